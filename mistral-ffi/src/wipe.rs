//! The memory of the library: overwritten before it is freed, so that no prompt, answer or key is left in what is used again.
//!
//! This is the allocator of the library's own Rust code, Burn and the other dependencies included, and of nothing else: the host has its own. So nothing depends
//! on each buffer on the way of a text being known: what grows, is copied by a parser, or is dropped in the middle of a failure, is overwritten like the rest.

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

/// From this size on whole pages are given back to the system instead, which clears them before anybody sees them again. Overwriting would first take
/// memory for the pages of a cache that were never used.
#[cfg(target_os = "linux")]
const LARGE: usize = 4 << 20;

/// The system's allocator, whose memory is overwritten when it is freed.
pub(crate) struct Wiping;

// SAFETY: memory comes from the system's allocator and goes back to it; before it does, it belongs to the one who frees it.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller frees `layout.size()` bytes there, which are its own until the system has them.
        unsafe {
            wipe(pointer, layout.size());
            System.dealloc(pointer, layout);
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

    #[test]
    fn what_is_freed_is_zero() {
        for len in [1, 24, 4095, 1 << 20, 4 << 20, (4 << 20) + 12_345, (12 << 20) + 1] {
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
