//! The memory of the library: overwritten before it is freed, so that no prompt, answer or key is left in what is used again.
//!
//! This is the allocator of the library's own Rust code, Burn and the other dependencies included, and of nothing else: the host has its own. So nothing depends
//! on each buffer on the way of a text being known: what grows, is copied by a parser, or is dropped in the middle of a failure, is overwritten like the rest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::ops::Range;
use std::sync::Mutex;

/// From this size on whole pages are given back to the system instead, which clears them before anybody sees them again. Overwriting would first take
/// memory for the pages of a cache that were never used.
const LARGE: usize = 8 << 20;

/// The system's allocator, whose memory is overwritten when it is freed.
pub(crate) struct Wiping;

/// Sizes of blocks that are kept for the next who asks for as much: what is computed between two layers has the same few sizes again and again. A block that was
/// overwritten need not be cleared for him, nor its pages be taken anew. None for AddressSanitizer, which is to see who uses them too late.
const KEPT: Range<usize> = 32 << 10..if cfg!(any(guided, sanitized)) { 0 } else { LARGE };
/// Bytes that are kept at most.
const KEPT_BYTES: usize = 32 << 20;
static SHELF: Mutex<Shelf> = Mutex::new(Shelf { blocks: [None; 32], next: 0, bytes: 0 });

/// Blocks that are free, and zero.
struct Shelf {
    blocks: [Option<Block>; 32],
    /// The place that is filled next, with the oldest block.
    next: usize,
    bytes: usize,
}

#[derive(Clone, Copy)]
struct Block {
    /// Its address.
    at: usize,
    layout: Layout,
}

impl Shelf {
    /// A block of exactly this layout, which is now the caller's.
    fn take(layout: Layout) -> Option<*mut u8> {
        if !KEPT.contains(&layout.size()) {
            return None;
        }
        // A child of `fork` may find it locked for ever, and others for a moment: they go to the system.
        let mut shelf = SHELF.try_lock().ok()?;
        let place =
            shelf.blocks.iter_mut().find(|place| place.is_some_and(|block| block.layout == layout))?;
        let block = place.take()?;
        shelf.bytes -= layout.size();
        Some(std::ptr::with_exposed_provenance_mut(block.at))
    }

    /// Keeps a block that is free, and zero, in place of the oldest ones if there is no room.
    ///
    /// # Safety
    /// The system's allocator gave the block out with this layout, and nobody else has it.
    unsafe fn put(pointer: *mut u8, layout: Layout) {
        let shelf = if KEPT.contains(&layout.size()) { SHELF.try_lock().ok() } else { None };
        let Some(mut shelf) = shelf else {
            // SAFETY: the caller's promise.
            return unsafe { System.dealloc(pointer, layout) };
        };
        let mut block = Some(Block { at: pointer.expose_provenance(), layout });
        shelf.bytes += layout.size();
        while shelf.bytes > KEPT_BYTES || block.is_some() {
            let next = shelf.next;
            shelf.next = (next + 1) % shelf.blocks.len();
            if let Some(Block { at, layout }) = std::mem::replace(&mut shelf.blocks[next], block.take()) {
                shelf.bytes -= layout.size();
                // SAFETY: it was put there with this layout, by the caller's promise.
                unsafe { System.dealloc(std::ptr::with_exposed_provenance_mut(at), layout) };
            }
        }
    }
}

// SAFETY: memory comes from the system's allocator and goes back to it; before it does, it belongs to the one who frees it.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        Shelf::take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        Shelf::take(layout).unwrap_or_else(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller frees `layout.size()` bytes there, which are its own until the system has them.
        unsafe {
            wipe(pointer, layout.size());
            Shelf::put(pointer, layout);
        }
    }

    // `realloc` stays that of the trait: new memory, a copy, and the old freed through `dealloc`.
}

/// # Safety
/// `len` bytes at `pointer` may be written, and nobody reads them afterwards.
unsafe fn wipe(pointer: *mut u8, len: usize) {
    #[cfg(target_os = "linux")]
    // SAFETY: the caller's promise.
    if len >= LARGE && unsafe { give_back(pointer, len) } {
        return;
    }
    // SAFETY: the caller's promise. What happens to the pointer afterwards is hidden from the compiler, so the writes are not left out.
    unsafe { black_box(pointer).write_bytes(0, len) };
    black_box(pointer);
}

/// Overwrites the ends, and gives the whole pages between them back; false where the system refuses, as for pages that are locked.
///
/// # Safety
/// As [`wipe`].
#[cfg(target_os = "linux")]
unsafe fn give_back(pointer: *mut u8, len: usize) -> bool {
    /// A multiple of the size of every page that Linux has by default.
    const PAGE: usize = 64 << 10;
    let before = pointer.align_offset(PAGE);
    let pages = (len - before) / PAGE * PAGE;
    // SAFETY: these pages lie in the caller's memory alone; private anonymous memory that is given back is zero when it is next used.
    let given = unsafe { libc::madvise(pointer.add(before).cast(), pages, libc::MADV_DONTNEED) } == 0;
    if given {
        // SAFETY: the caller's promise: both parts lie in its memory.
        unsafe {
            black_box(pointer).write_bytes(0, before);
            black_box(pointer).add(before + pages).write_bytes(0, len - before - pages);
        }
        black_box(pointer);
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Other tests run beside this one, and may take what it put there: so it goes on until it has seen a block again.
    #[test]
    fn a_block_that_comes_again_is_zero_and_few_are_kept() {
        let layout = Layout::from_size_align(98_765, 8).unwrap();
        let mut again = 0;
        for _ in 0..1000 {
            // SAFETY: the block is written and read inside of its layout, and freed with it.
            let address = unsafe {
                let block = Wiping.alloc_zeroed(layout);
                assert!(std::slice::from_raw_parts(block, layout.size()).iter().all(|&byte| byte == 0));
                block.write_bytes(7, layout.size());
                Wiping.dealloc(block, layout);
                block.addr()
            };
            let shelf = SHELF.lock().unwrap();
            again += usize::from(shelf.blocks.iter().flatten().any(|block| block.at == address));
            let bytes: usize = shelf.blocks.iter().flatten().map(|block| block.layout.size()).sum();
            assert!(bytes == shelf.bytes && bytes <= KEPT_BYTES);
        }
        assert!(again > 0);
        // What nobody asks for again goes when others come.
        for size in 0..100 {
            let layout = Layout::from_size_align((1 << 20) + size, 8).unwrap();
            // SAFETY: as above.
            unsafe { Wiping.dealloc(Wiping.alloc(layout), layout) };
        }
        let shelf = SHELF.lock().unwrap();
        assert!(shelf.bytes <= KEPT_BYTES);
        assert!(shelf.blocks.iter().flatten().all(|block| block.layout != layout));
    }

    #[test]
    fn what_is_freed_is_zero() {
        for len in [1, 24, 4095, 1 << 20, LARGE, LARGE + 12_345, 3 * LARGE + 1] {
            let mut memory = vec![7u8; len];
            // SAFETY: the bytes are the vector's, which is not read between its values.
            unsafe { wipe(memory.as_mut_ptr(), len) };
            assert!(memory.iter().all(|&byte| byte == 0), "{len}");
            // It is memory as before.
            memory.fill(9);
            assert!(memory.iter().all(|&byte| byte == 9), "{len}");
        }
    }
}
