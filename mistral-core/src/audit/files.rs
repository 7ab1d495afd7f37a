//! The files of a log: `NAME`, which is written to, and `NAME.1`, `NAME.2`, ..., which were, oldest first.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::record::{self, Link};
use super::{MAX_LINE, failed};
use crate::error::{Error, Result};

/// A path beside `path`, with `suffix` behind its name.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The numbers of the files that were rotated away, in order.
pub(super) fn rotated(path: &Path) -> Result<Vec<u64>> {
    let folder = folder(path);
    let start = path.file_name().map(|name| format!("{}.", name.to_string_lossy())).unwrap_or_default();
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
        let name = entry.map_err(|e| Error::io(&folder, e))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(&start)).and_then(|n| n.parse().ok());
        numbers.extend(number.filter(|n: &u64| *n > 0));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The folder of a log.
pub(super) fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// All files of a log that are there, oldest first.
pub(super) fn all(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> =
        rotated(path)?.into_iter().map(|number| with_suffix(path, &format!(".{number}"))).collect();
    files.extend(Some(path.to_owned()).filter(|path| path.exists()));
    Ok(files)
}

/// How a file ends.
#[derive(Debug, Default)]
pub(super) struct Tail {
    /// The last whole record.
    pub last: Option<Link>,
    /// Where it ends.
    pub whole: u64,
    /// What follows: the beginning of a record whose writer was stopped.
    pub torn: Vec<u8>,
}

/// Reads the end of a file.
pub(super) fn tail(path: &Path) -> Result<Tail> {
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let len = file.metadata().map_err(|e| Error::io(path, e))?.len();
    let mut take = 64 << 10;
    loop {
        let start = len.saturating_sub(take);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(start)).map_err(|e| Error::io(path, e))?;
        (&file).take(take).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = bytes[..end.saturating_sub(1)].iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
        // The beginning of the last record must be in view, or the beginning of the file.
        let (end, line) = match (line, start) {
            (Some(line), _) => (end, line),
            (None, 0) => (end, 0),
            _ if take > 2 * MAX_LINE => {
                return Err(failed(path, "it ends with a line that is too long for a record"));
            }
            _ => {
                take *= 4;
                continue;
            }
        };
        let mut tail = Tail { last: None, whole: start + end as u64, torn: bytes[end..].to_vec() };
        if end > 0 {
            let record = record::unseal(&bytes[line..end - 1]);
            let (_, link) = record.map_err(|what| failed(path, format!("it ends with {what}: verify it")))?;
            tail.last = Some(link);
        }
        return Ok(tail);
    }
}
