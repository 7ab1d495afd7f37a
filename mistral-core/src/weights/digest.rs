//! What files are, to the bit.

use sha2::{Digest, Sha256};

use super::{Checkpoint, Mapped};
use crate::control::{Control, Progress};
use crate::error::Result;

/// Bytes between two looks at the control.
pub(crate) const STEP: usize = 4 << 20;

/// The SHA-256 of a file. Every byte is read: about a second for each gigabyte in the system's cache and instructions for SHA, and as long
/// as the disk takes otherwise. `step` is told of the bytes that were read.
pub(crate) fn sha256(file: &Mapped, step: &mut dyn FnMut(u64) -> Result<()>) -> Result<[u8; 32]> {
    let mut hash = Sha256::new();
    for start in (0..file.bytes().len()).step_by(STEP) {
        let end = file.bytes().len().min(start + STEP);
        hash.update(&file.bytes()[start..end]);
        // Most of it was not in memory before, and need not be afterwards.
        file.release(start..end);
        step((end - start) as u64)?;
    }
    Ok(hash.finalize().into())
}

impl Checkpoint {
    /// The SHA-256 of each file with weights, in the order of [`Checkpoint::files`]; every byte is read.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn digests(&self, control: &mut Control<'_>) -> Result<Vec<[u8; 32]>> {
        let (mut done, total) = (0, self.total_bytes());
        let mut digest = |file: &Mapped| {
            sha256(file, &mut |read| {
                done += read;
                control.step(Progress { phase: "digest", done, total })
            })
        };
        self.files.iter().map(&mut digest).collect()
    }
}
