//! The files of a log: `NAME`, which is written to, and `NAME.1`, `NAME.2`, ..., which were, oldest first.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
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
        numbers.extend(name.to_str().and_then(|name| name.strip_prefix(&start)).and_then(number));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number of a rotated file, written as rotation writes it: `01` is none.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| *number > 0 && number.to_string() == text)
}

/// Whether `file` is a name that the log at `log` uses, or may come to use.
pub(super) fn belongs(file: &Path, log: &Path) -> bool {
    let rest = file.as_os_str().as_encoded_bytes().strip_prefix(log.as_os_str().as_encoded_bytes());
    match rest.and_then(|rest| std::str::from_utf8(rest).ok()) {
        Some("" | ".lock" | ".new") => true,
        Some(rest) => rest.strip_prefix('.').and_then(number).is_some(),
        None => false,
    }
}

/// `path`, from the root and with no link in its folder.
pub(super) fn place(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it is no name of a file"))?;
    Ok(std::fs::canonicalize(folder(path))?.join(name))
}

/// Opens a file of a log to read it.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Before it is opened: opening a pipe would wait for its writer.
    check_regular(&std::fs::metadata(path)?)?;
    File::open(path)
}

/// Opens a file to append to it, or makes it. Not through a link, which would be a second name for one log.
pub(super) fn open_own(path: &Path) -> io::Result<File> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => check_regular(&metadata)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn check_regular(metadata: &std::fs::Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false if metadata.is_symlink() => Err(io::Error::other("a symbolic link, not a regular file")),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Locks a file; `held` says what it means that it is locked.
pub(super) fn lock(file: &File, held: &str) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other(held),
        TryLockError::Error(error) => error,
    })
}

/// Locks the log itself, for it may have two names (hard links) with a lock file each. Not where a lock keeps readers out.
pub(super) fn lock_itself(log: &File) -> io::Result<()> {
    if cfg!(unix) { lock(log, "another process writes it, or this one under another name") } else { Ok(()) }
}

/// Not left to closing the file: a child of `fork` has it too, and would go on holding the lock.
pub(super) fn unlock(file: &File) {
    // What fails, fails because it was not locked.
    drop(file.unlock());
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
    let mut file = open(path).map_err(|e| Error::io(path, e))?;
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
            check_first(&mut file, path)?;
        }
        if !record::may_begin(&tail.torn) {
            return Err(failed(path, "it ends with what is not the beginning of a record: it is no log"));
        }
        return Ok(tail);
    }
}

/// Refuses a file that does not begin with a record.
fn check_first(file: &mut File, path: &Path) -> Result<()> {
    let mut line = Vec::new();
    file.rewind().map_err(|e| Error::io(path, e))?;
    let mut start = BufReader::new(file.take(MAX_LINE));
    start.read_until(b'\n', &mut line).map_err(|e| Error::io(path, e))?;
    let first = record::unseal(line.strip_suffix(b"\n").unwrap_or(&line));
    first.map(drop).map_err(|what| failed(path, format!("it begins with {what}: it is no log")))
}
