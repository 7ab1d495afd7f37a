//! Where packed weights live: anonymous memory that the system may back with large pages.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A large page on x86-64 and, with 4 KiB pages, on AArch64.
const LARGE_PAGE: usize = 2 << 20;

/// Zeroed bytes, aligned for the kernels. Decoding reads all weights for every token: with pages of 2 MiB that is up to a third
/// faster than with pages of 4 KiB, as far fewer translations are looked up, and the hardware's prefetch does not stop at each page.
/// Linux gives them to who asks; elsewhere, and where it has none left, these are ordinary pages.
#[derive(Debug)]
pub struct PackedBytes {
    map: MmapMut,
    start: usize,
    len: usize,
}

impl PackedBytes {
    /// `len` bytes, all zero. Memory is taken when it is first written.
    ///
    /// # Errors
    /// [`Error::Limit`] if the system does not give that much.
    pub fn zeroed(len: usize) -> Result<Self> {
        let failed =
            |reason: &dyn ToString| Error::limit("memory", format!("{len} bytes"), reason.to_string());
        // Room to begin on a large page. Only pages that are written cost memory.
        let slack = if len < LARGE_PAGE { 0 } else { LARGE_PAGE };
        let size = len.max(1).checked_add(slack).ok_or_else(|| failed(&"the address space"))?;
        let map = MmapMut::map_anon(size).map_err(|error| failed(&error))?;
        let start = if slack == 0 { 0 } else { map.as_ptr().align_offset(LARGE_PAGE) };
        #[cfg(target_os = "linux")]
        if slack > 0 {
            // A wish: a kernel without large pages refuses it, and nothing is lost but speed.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map, start, len })
    }
}

impl Deref for PackedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.start..][..self.len]
    }
}

impl DerefMut for PackedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..][..self.len]
    }
}

impl AsRef<[u8]> for PackedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_zero_aligned_and_writable() {
        for len in [0, 1, 4096, LARGE_PAGE - 1, LARGE_PAGE, 2 * LARGE_PAGE + 17] {
            let mut bytes = PackedBytes::zeroed(len).unwrap();
            assert_eq!(bytes.len(), len);
            assert!(bytes.iter().all(|&byte| byte == 0));
            assert_eq!(bytes.as_ptr().align_offset(64), 0);
            assert!(len < LARGE_PAGE || bytes.as_ptr().align_offset(LARGE_PAGE) == 0);
            bytes.fill(7);
            assert!(bytes.as_ref().iter().all(|&byte| byte == 7));
        }
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [usize::MAX, usize::MAX / 2] {
            let error = PackedBytes::zeroed(len).unwrap_err();
            assert!(error.to_string().contains("memory"), "{error}");
        }
    }
}
