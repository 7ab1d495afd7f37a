//! Where packed weights live: anonymous memory that the system may back with large pages.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use memmap2::MmapMut;

use crate::error::{Error, Result};

/// A large page on x86-64 and, with 4 KiB pages, on AArch64.
const LARGE_PAGE: usize = 2 << 20;
/// Matrices share maps of this size; one that is larger than a quarter of it has a map of its own.
const SHARED: usize = 32 << 20;
/// Where matrices begin: at a line of every cache.
const ALIGNMENT: usize = 64;

/// Memory for packed matrices. Decoding reads all weights for every token: with pages of 2 MiB that is up to a tenth faster than with
/// pages of 4 KiB, as far fewer translations are looked up. But a large page may be long in coming (PERFORMANCE.md), so the weights are
/// written to ordinary pages, which [`LargePages`] then replaces. The matrices of a small model are smaller than a large page, so they lie
/// side by side in maps that they share.
#[derive(Debug, Default)]
pub struct Arena {
    /// The map that is being filled, and the bytes of it that are taken.
    open: Option<(Arc<Map>, usize)>,
    full: Vec<(Arc<Map>, usize)>,
}

impl Arena {
    /// `len` bytes, all zero, aligned for the kernels. Memory is taken when it is first written.
    ///
    /// # Errors
    /// [`Error::Limit`] if the system does not give that much.
    pub fn zeroed(&mut self, len: usize) -> Result<PackedBytes> {
        if len > SHARED / 4 {
            let map = Arc::new(Map::new(len)?);
            self.full.push((Arc::clone(&map), len));
            return Ok(PackedBytes { map, at: 0, len });
        }
        let (map, taken) = match self.open.take() {
            Some((map, taken)) if SHARED - taken >= len => (map, taken),
            other => {
                self.full.extend(other);
                (Arc::new(Map::new(SHARED)?), 0)
            }
        };
        self.open = Some((Arc::clone(&map), (taken + len).next_multiple_of(ALIGNMENT)));
        Ok(PackedBytes { map, at: taken, len })
    }

    /// Begins to move what was written to large pages.
    pub fn into_large_pages(self) -> LargePages {
        LargePages::new(self.full.into_iter().chain(self.open).collect())
    }
}

/// Moves weights from ordinary to large pages, on a thread of its own, while they are in use; what they are does not change. Ends when it is done, or dropped.
#[derive(Debug)]
pub struct LargePages {
    shared: Arc<Moved>,
    total: usize,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Moved {
    stop: AtomicBool,
    bytes: AtomicUsize,
}

impl LargePages {
    fn new(maps: Vec<(Arc<Map>, usize)>) -> Self {
        let maps: Vec<_> = maps.into_iter().map(|(map, taken)| (map.large_pages(taken), map)).collect();
        let total: usize = maps.iter().map(|(pages, _)| pages * LARGE_PAGE).sum();
        let shared = Arc::new(Moved::default());
        let moved = Arc::clone(&shared);
        let work = move || {
            std::thread::park_timeout(AFTER);
            let mut failures = 0;
            for (map, page) in maps.iter().flat_map(|(pages, map)| (0..*pages).map(move |page| (map, page))) {
                if moved.stop.load(Ordering::Relaxed) || failures == FAILURES {
                    return;
                }
                if map.collapse(page) {
                    moved.bytes.fetch_add(LARGE_PAGE, Ordering::Relaxed);
                } else {
                    failures += 1;
                }
            }
        };
        // Without the thread the weights stay where they are, and are read a little slower.
        let worker = (total > 0 && Map::collapses())
            .then(|| {
                std::thread::Builder::new()
                    .name("mistral-pages".to_owned())
                    .stack_size(STACK_BYTES)
                    .spawn(work)
                    .ok()
            })
            .flatten();
        Self { shared, total, worker }
    }

    /// Bytes that lie in large pages, and how many are to, which are fewer where the system has no more of them.
    pub fn progress(&self) -> (usize, usize) {
        let ended = self.worker.as_ref().is_none_or(|worker| worker.is_finished());
        let bytes = self.shared.bytes.load(Ordering::Relaxed);
        (bytes, if ended { bytes } else { self.total })
    }

    /// Waits until all is done.
    pub fn wait(mut self) {
        self.join();
    }

    fn join(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.thread().unpark();
            // It cannot panic, and if it did there would be nothing to do.
            let _ = worker.join();
        }
    }
}

/// So often the system may say no before it is not asked again.
const FAILURES: usize = 16;
/// When it begins: what a host does first with a model is what it waits for.
const AFTER: Duration = Duration::from_millis(200);
/// Of a thread that calls the system and nothing else.
const STACK_BYTES: usize = 64 << 10;

impl Drop for LargePages {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join();
    }
}

/// Zeroed memory that begins on a large page if it is as large as one.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    /// From `start` on, in whole large pages.
    large_pages: usize,
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
        // Room to begin on a large page and to end with one. Only pages that are written cost memory.
        let slack = if len < LARGE_PAGE { 0 } else { 2 * LARGE_PAGE };
        let size = len.max(1).checked_add(slack).ok_or_else(|| failed(&"the address space"))?;
        let mut map = MmapMut::map_anon(size).map_err(|error| failed(&error))?;
        let start = if slack == 0 { 0 } else { map.as_ptr().align_offset(LARGE_PAGE) };
        // Linux before 6.1 moves nothing when it is asked to, and gives large pages to who asked for them before the first write.
        #[cfg(target_os = "linux")]
        if slack > 0 && !Self::collapses() {
            // A wish: a kernel without large pages refuses it, and nothing is lost but speed.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let large_pages = (size - start) / LARGE_PAGE;
        let start = NonNull::from(&mut map[start..]).cast();
        Ok(Self { start, large_pages, _map: map })
    }

    /// How many large pages the first `taken` bytes are worth: the last one if they fill half of it.
    fn large_pages(&self, taken: usize) -> usize {
        ((taken + LARGE_PAGE / 2) / LARGE_PAGE).min(self.large_pages)
    }

    /// Whether this system can move memory to large pages.
    fn collapses() -> bool {
        // Of nothing: that asks whether the advice is known.
        advise(std::ptr::null(), 0, Advice::Collapse)
    }

    /// Moves what lies where large page `page` is to be; whether that was done.
    fn collapse(&self, page: usize) -> bool {
        debug_assert!(page < self.large_pages);
        advise(self.start.as_ptr().wrapping_add(page * LARGE_PAGE), LARGE_PAGE, Advice::Collapse)
    }
}

/// What is asked of the system about memory. Neither changes what lies there.
#[derive(Clone, Copy)]
enum Advice {
    /// That there be pages, before they are written.
    Populate,
    /// That a large page take the place of many.
    Collapse,
}

#[cfg(target_os = "linux")]
fn advise(start: *const u8, len: usize, advice: Advice) -> bool {
    // Of Linux's mman-common.h; `libc` does not name the second one for every C library.
    let advice = match advice {
        Advice::Populate => 23,
        Advice::Collapse => 25,
    };
    // SAFETY: both kinds of advice leave the content as it is, and what is not mapped is refused.
    unsafe { libc::madvise(start.cast_mut().cast(), len, advice) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn advise(_start: *const u8, _len: usize, _advice: Advice) -> bool {
    false
}

/// Gets the pages of memory that is about to be written, in one step instead of one for each page.
pub fn populate(bytes: &mut [u8]) {
    let start = bytes.as_ptr().align_offset(PAGE).min(bytes.len());
    let len = (bytes.len() - start) / PAGE * PAGE;
    // Where that fails, as on Linux before 5.14, each page comes when it is written.
    let _ = advise(bytes[start..].as_ptr(), len, Advice::Populate);
}

/// An ordinary page of most systems; with larger ones the advice is refused.
const PAGE: usize = 4 << 10;

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
    fn what_was_moved_to_large_pages_is_what_was_written() {
        let mut arena = Arena::default();
        let mut parts: Vec<_> =
            [3 * LARGE_PAGE, SHARED / 4 + 17, 5].map(|len| arena.zeroed(len).unwrap()).into();
        for (i, part) in parts.iter_mut().enumerate() {
            populate(part);
            part.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 + i) as u8);
        }
        let pages = arena.into_large_pages();
        let (_, total) = pages.progress();
        assert!(total == 0 || total == 7 * LARGE_PAGE, "{total}");
        // Read while it runs, and after.
        while pages.worker.as_ref().is_some_and(|worker| !worker.is_finished()) {
            for (i, part) in parts.iter().enumerate() {
                assert!(part.iter().enumerate().all(|(at, byte)| *byte == (at * 7 + i) as u8));
            }
        }
        let shared = Arc::clone(&pages.shared);
        drop(pages);
        assert_eq!(Arc::strong_count(&shared), 1, "its thread has ended");
    }

    #[test]
    fn too_much_is_an_error() {
        for len in [usize::MAX, usize::MAX / 2] {
            let error = Arena::default().zeroed(len).unwrap_err();
            assert!(error.to_string().contains("memory"), "{error}");
        }
    }
}
