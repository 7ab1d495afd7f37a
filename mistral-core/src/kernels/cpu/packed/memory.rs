//! Where packed weights live: anonymous memory that the system may back with large pages.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A large page on x86-64 and, with 4 KiB pages, on AArch64.
const LARGE_PAGE: usize = 2 << 20;
/// Matrices share maps of this size; one that is larger than a quarter of it has a map of its own.
const SHARED: usize = 32 << 20;
/// Where matrices begin: at a line of every cache.
const ALIGNMENT: usize = 64;

/// Memory for packed matrices. Decoding reads all weights for every token: with pages of 2 MiB that is up to a third faster than with
/// pages of 4 KiB, as far fewer translations are looked up, and the hardware's prefetch does not stop at each page. The matrices of a
/// small model are smaller than such a page, so they lie side by side in maps that they share.
#[derive(Debug, Default)]
pub struct Arena {
    /// The map that is being filled, and the bytes of it that are taken.
    open: Option<(Arc<Map>, usize)>,
}

impl Arena {
    /// `len` bytes, all zero, aligned for the kernels. Memory is taken when it is first written.
    ///
    /// # Errors
    /// [`Error::Limit`] if the system does not give that much.
    pub fn zeroed(&mut self, len: usize) -> Result<PackedBytes> {
        if len > SHARED / 4 {
            return Ok(PackedBytes { map: Arc::new(Map::new(len)?), at: 0, len });
        }
        let (map, taken) = match self.open.take() {
            Some((map, taken)) if SHARED - taken >= len => (map, taken),
            _ => (Arc::new(Map::new(SHARED)?), 0),
        };
        self.open = Some((Arc::clone(&map), (taken + len).next_multiple_of(ALIGNMENT)));
        Ok(PackedBytes { map, at: taken, len })
    }
}

/// Zeroed memory that begins on a large page if it is as large as one.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    _map: MmapMut,
}

// SAFETY: the pointer is to the map, which may be used from any thread; who hands out parts of it hands out each once.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    fn new(len: usize) -> Result<Self> {
        let failed =
            |reason: &dyn ToString| Error::limit("memory", format!("{len} bytes"), reason.to_string());
        // Room to begin on a large page. Only pages that are written cost memory.
        let slack = if len < LARGE_PAGE { 0 } else { LARGE_PAGE };
        let size = len.max(1).checked_add(slack).ok_or_else(|| failed(&"the address space"))?;
        let mut map = MmapMut::map_anon(size).map_err(|error| failed(&error))?;
        let start = if slack == 0 { 0 } else { map.as_ptr().align_offset(LARGE_PAGE) };
        // Linux gives large pages to who asks; elsewhere, and where it has none left, these are ordinary ones.
        #[cfg(target_os = "linux")]
        if slack > 0 {
            // A wish: a kernel without large pages refuses it, and nothing is lost but speed.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let start = NonNull::from(&mut map[start..]).cast();
        Ok(Self { start, _map: map })
    }
}

/// A part of a map, handed out once.
#[derive(Debug)]
pub struct PackedBytes {
    map: Arc<Map>,
    at: usize,
    len: usize,
}

impl Deref for PackedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the part lies in the map, which lives as long as `self`, and no other part overlaps it.
        unsafe { std::slice::from_raw_parts(self.map.start.as_ptr().add(self.at), self.len) }
    }
}

impl DerefMut for PackedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `self` is borrowed for changes, and no one else has this part.
        unsafe { std::slice::from_raw_parts_mut(self.map.start.as_ptr().add(self.at), self.len) }
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
        let mut arena = Arena::default();
        let mut all = Vec::new();
        for len in
            [0, 1, 4096, LARGE_PAGE - 1, LARGE_PAGE, 2 * LARGE_PAGE + 17, SHARED / 4, SHARED / 4 + 1, SHARED]
        {
            let mut bytes = arena.zeroed(len).unwrap();
            assert_eq!(bytes.len(), len);
            assert!(bytes.iter().all(|&byte| byte == 0));
            assert_eq!(bytes.as_ptr().align_offset(ALIGNMENT), 0);
            assert!(len <= SHARED / 4 || bytes.as_ptr().align_offset(LARGE_PAGE) == 0);
            bytes.fill(all.len() as u8 + 1);
            all.push(bytes);
        }
        drop(arena);
        for (i, bytes) in all.iter().enumerate() {
            assert!(bytes.as_ref().iter().all(|&byte| byte == i as u8 + 1), "{i} was overwritten");
        }
    }

    #[test]
    fn small_matrices_share_a_map_until_it_is_full() {
        let mut arena = Arena::default();
        let len = SHARED / 4 - ALIGNMENT;
        let parts: Vec<_> = (0..5).map(|_| arena.zeroed(len).unwrap()).collect();
        assert!(parts[1..4].iter().all(|part| Arc::ptr_eq(&part.map, &parts[0].map)));
        assert!(!Arc::ptr_eq(&parts[4].map, &parts[0].map));
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [usize::MAX, usize::MAX / 2] {
            let error = Arena::default().zeroed(len).unwrap_err();
            assert!(error.to_string().contains("memory"), "{error}");
        }
    }
}
