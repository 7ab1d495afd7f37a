//! Where a benchmark finds what it is told.

use std::path::{Path, PathBuf};

/// `path` from the root of the repository, as commands are written: Cargo runs benchmarks in the folder of their package.
pub fn from_root(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
