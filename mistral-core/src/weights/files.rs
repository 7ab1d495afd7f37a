//! How the files of a model are reached: on disk, or as they were mapped when they were verified.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::mmap::Mapped;
use crate::error::{Error, Result};

/// Entries of a folder that are looked at; published model folders hold a few hundred.
pub(crate) const MAX_ENTRIES: usize = 1 << 16;

/// The files that a model is opened from. Everything that opening reads, it reads through this; so where the files were verified
/// before, nothing else is there to be read, and a file that took the place of another since then is never looked at.
#[derive(Debug, Default)]
pub(crate) struct Files {
    held: Option<Held>,
}

/// Files that were mapped, under the paths by which opening knows them.
#[derive(Debug)]
struct Held {
    folder: PathBuf,
    files: BTreeMap<PathBuf, Mapped>,
}

impl Files {
    /// Those on disk, as they are when they are asked for.
    pub fn on_disk() -> Self {
        Self::default()
    }

    /// `files` and no others; `folder` is the one that they lie in.
    pub fn held(folder: PathBuf, files: BTreeMap<PathBuf, Mapped>) -> Self {
        Self { held: Some(Held { folder, files }) }
    }

    /// Whether `path` is a folder. Fails where there is nothing.
    pub fn is_folder(&self, path: &Path) -> Result<bool> {
        match &self.held {
            Some(held) => Ok(path == held.folder),
            None => Ok(std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir()),
        }
    }

    /// Whether `path` is a file.
    pub fn is_file(&self, path: &Path) -> bool {
        match &self.held {
            Some(held) => held.files.contains_key(path),
            None => path.is_file(),
        }
    }

    /// The path of the file `name` in `folder`, if it is there.
    pub fn beside(&self, folder: &Path, name: &str) -> Option<PathBuf> {
        Some(folder.join(name)).filter(|path| self.is_file(path))
    }

    /// The names of what lies in `folder`, sorted.
    pub fn names(&self, folder: &Path) -> Result<Vec<String>> {
        let name = |name: &std::ffi::OsStr| name.to_string_lossy().into_owned();
        let mut names = Vec::new();
        if let Some(held) = &self.held {
            let inside = held.files.keys().filter(|path| path.parent() == Some(folder));
            names.extend(inside.filter_map(|path| path.file_name()).map(name));
        } else {
            for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
                if names.len() == MAX_ENTRIES {
                    let found = format!("more in {}", folder.display());
                    return Err(Error::limit("entries of a model folder", found, MAX_ENTRIES));
                }
                names.push(name(&entry.map_err(|e| Error::io(folder, e))?.file_name()));
            }
        }
        names.sort();
        Ok(names)
    }

    /// The length of a file in bytes.
    pub fn len(&self, path: &Path) -> Result<u64> {
        match &self.held {
            Some(_) => Ok(self.map(path)?.bytes().len() as u64),
            None => Ok(std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len()),
        }
    }

    /// The file in memory.
    pub fn map(&self, path: &Path) -> Result<Mapped> {
        let Some(held) = &self.held else { return Mapped::open(path) };
        held.files.get(path).cloned().ok_or_else(|| {
            let found = "a file that was not verified";
            Error::integrity(path.display(), found, "one of the manifest or of the signature")
        })
    }

    /// The first bytes of a file, at most `max`.
    pub fn start(&self, path: &Path, max: usize) -> Result<Vec<u8>> {
        if self.held.is_some() {
            let mapped = self.map(path)?;
            return Ok(mapped.bytes()[..mapped.bytes().len().min(max)].to_vec());
        }
        let metadata = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        // Checked before the file is opened: opening a pipe would wait for its writer.
        if !metadata.is_file() {
            return Err(Error::format(path.display(), "the path", "not a regular file", "a regular file"));
        }
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        file.take(max as u64).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
        Ok(bytes)
    }

    /// A whole file of at most `max` bytes, for whoever copies what it says; `what` names the kind of file in errors.
    pub fn read(&self, path: &Path, max: usize, what: &str) -> Result<Vec<u8>> {
        let bytes = self.start(path, max.saturating_add(1))?;
        if bytes.len() > max {
            let found = format!("{} bytes in {}", self.len(path)?, path.display());
            return Err(Error::limit(format!("size of a {what}"), found, format!("{max} bytes")));
        }
        Ok(bytes)
    }
}
