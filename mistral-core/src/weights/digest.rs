//! What the files of a checkpoint are, to the bit.

use sha2::{Digest, Sha256};

use super::Checkpoint;
use crate::control::{Control, Progress};
use crate::error::Result;

/// Bytes between two looks at the control.
const STEP: usize = 4 << 20;

impl Checkpoint {
    /// The SHA-256 of each file with weights, in the order of [`Checkpoint::files`]. Every byte is read: about a second for each gigabyte
    /// in the system's cache and instructions for SHA, and as long as the disk takes otherwise.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub fn digests(&self, control: &mut Control<'_>) -> Result<Vec<[u8; 32]>> {
        let total = self.total_bytes();
        let mut done = 0;
        let mut digest = |file: &super::Mapped| {
            let mut hash = Sha256::new();
            for start in (0..file.bytes().len()).step_by(STEP) {
                let end = file.bytes().len().min(start + STEP);
                hash.update(&file.bytes()[start..end]);
                // Most of it was not in memory before, and need not be afterwards.
                file.release(start..end);
                done += (end - start) as u64;
                control.step(Progress { phase: "digest", done, total })?;
            }
            Ok(hash.finalize().into())
        };
        self.files.iter().map(&mut digest).collect()
    }
}
