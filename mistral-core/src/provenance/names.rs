//! Names of files in a model: which may stand in a manifest, and which lie in a folder.

use std::collections::BTreeSet;
use std::path::Path;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::weights::MAX_ENTRIES;

/// Folders in folders; published models have one or two.
const MAX_DEPTH: usize = 32;
const MAX_NAME: usize = 4096;

/// Why `name` is not the plain name of a file inside of a folder, with `/` between its parts.
pub(super) fn fault(name: &str) -> Option<&'static str> {
    let parts = || name.split('/');
    Some(match name {
        _ if name.is_empty() => "an empty name",
        _ if name.len() > MAX_NAME => "a name of more than 4096 bytes",
        _ if name.starts_with('/') => "an absolute name",
        _ if name.contains(['\\', ':']) => "a name with a backslash or a colon",
        _ if name.chars().any(char::is_control) => "a name with control characters",
        _ if parts().any(|part| matches!(part, "." | "..")) => "a name that leads out of its folder",
        _ if parts().any(str::is_empty) => "a name with an empty part",
        _ => return None,
    })
}

/// Whether `name` is one of `covers`, or lies in a folder that is.
pub(super) fn is_under(name: &str, covers: &[String]) -> bool {
    let inside = |cover: &String| name.strip_prefix(&**cover).is_some_and(|rest| rest.starts_with('/'));
    covers.iter().any(|cover| name == cover || inside(cover))
}

/// What lies in a folder.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// The regular files.
    pub files: BTreeSet<String>,
    /// What is there of the names that were to be skipped.
    pub skipped: Vec<String>,
}

impl Listing {
    /// Lists `root` and the folders in it, but not what is under `skip`.
    ///
    /// # Errors
    /// [`Error::Integrity`] for links and for everything else that is neither file nor folder.
    pub fn read(root: &Path, skip: &[String], control: &Control<'_>) -> Result<Self> {
        let mut listing = Self::default();
        let (mut pending, mut entries) = (vec![(String::new(), 0)], 0);
        while let Some((folder, depth)) = pending.pop() {
            let path = root.join(&folder);
            for entry in std::fs::read_dir(&path).map_err(|e| Error::io(&path, e))? {
                control.check()?;
                let entry = entry.map_err(|e| Error::io(&path, e))?;
                entries += 1;
                if entries > MAX_ENTRIES || depth > MAX_DEPTH {
                    let found = format!("more in {}", path.display());
                    let limit = format!("{MAX_ENTRIES} in {MAX_DEPTH} levels of folders");
                    return Err(Error::limit("entries of a model folder", found, limit));
                }
                let Ok(name) = entry.file_name().into_string() else {
                    let found = "a name that is not UTF-8";
                    return Err(Error::integrity(entry.path().display(), found, "the names of a model"));
                };
                let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
                if is_under(&name, skip) {
                    listing.skipped.push(name);
                    continue;
                }
                match file_type(&entry.path())? {
                    Type::Folder => pending.push((name, depth + 1)),
                    Type::File => _ = listing.files.insert(name),
                }
            }
        }
        listing.skipped.sort();
        Ok(listing)
    }
}

/// Fails unless `name` in `root` is a regular file that no link leads to.
pub(super) fn check_file(root: &Path, name: &str) -> Result<()> {
    let mut path = root.to_owned();
    let mut kind = Type::Folder;
    for part in name.split('/') {
        path.push(part);
        kind = file_type(&path)?;
    }
    match kind {
        Type::File => Ok(()),
        Type::Folder => Err(Error::integrity(path.display(), "a folder", "a regular file")),
    }
}

/// The name of `file` in `root`, if it lies there.
pub(super) fn inside(root: &Path, file: &Path) -> Option<String> {
    let (root, file) = (std::fs::canonicalize(root).ok()?, std::fs::canonicalize(file).ok()?);
    let parts: Option<Vec<&str>> = file.strip_prefix(root).ok()?.iter().map(|part| part.to_str()).collect();
    Some(parts?.join("/"))
}

enum Type {
    File,
    Folder,
}

fn file_type(path: &Path) -> Result<Type> {
    let metadata = std::fs::symlink_metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => missing(path),
        _ => Error::io(path, e),
    })?;
    match metadata.file_type() {
        kind if kind.is_file() => Ok(Type::File),
        kind if kind.is_dir() => Ok(Type::Folder),
        kind => {
            let found = if kind.is_symlink() { "a symbolic link" } else { "neither a file nor a folder" };
            Err(Error::integrity(path.display(), found, "a regular file"))
        }
    }
}

pub(super) fn missing(path: &Path) -> Error {
    Error::integrity(path.display(), "no such file", "every file of the manifest or of the signature")
}
