//! Read-only memory maps: the one place of this module tree with `unsafe`.
//!
//! A map stays valid while the file keeps its length. If another process truncates the file while it is mapped, touching the lost
//! pages ends the process (`SIGBUS`): a limit of memory mapping that no reader can check for. Model files must not be changed in place.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// A file in memory, shared by all who hold a part of it.
#[derive(Clone, Debug)]
pub(crate) struct Mapped {
    path: PathBuf,
    /// `None` for an empty file, which cannot be mapped.
    map: Option<SharedMap>,
    bytes: Bytes,
}

#[derive(Clone, Debug)]
struct SharedMap(Arc<Mmap>);

impl AsRef<[u8]> for SharedMap {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Mapped {
    /// Maps a regular file for reading.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with_metadata(path).map(|(mapped, _)| mapped)
    }

    /// As [`Mapped::open`], with what the system says of the file that was mapped.
    pub fn open_with_metadata(path: &Path) -> Result<(Self, Metadata)> {
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        // Checked before the file is opened: opening a pipe would wait for its writer.
        if !metadata.is_file() {
            return Err(Error::format(path.display(), "the path", "not a regular file", "a regular file"));
        }
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, e))?;
        if metadata.len() == 0 {
            return Ok((Self { path: path.to_owned(), map: None, bytes: Bytes::new() }, metadata));
        }
        // SAFETY: the map is read-only and lives as long as any slice of it (`Bytes` owns a clone of the `Arc`). That
        // the file is not truncated or rewritten under us is the documented condition of this module.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let map = SharedMap(Arc::new(map));
        let bytes = Bytes::from_owner(map.clone());
        Ok((Self { path: path.to_owned(), bytes, map: Some(map) }, metadata))
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path, for errors.
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A part of the content that keeps the map alive; no copy.
    pub fn shared(&self, range: Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    /// Tells the system that the pages of `range` are not needed in memory any more; a later read brings them back.
    pub fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Some(map) = &self.map {
            // SAFETY: the map is read-only and backed by a file, so dropped pages are read again from the file with the
            // same content; nothing is lost. The range lies inside of the map (checked by the callee).
            let advised = unsafe {
                map.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // A system that does not follow the advice only keeps more memory in use.
            drop(advised);
        }
        #[cfg(not(unix))]
        let _ = (range, &self.map);
    }
}
