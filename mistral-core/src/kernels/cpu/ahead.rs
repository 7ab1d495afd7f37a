//! Asking memory early: a thread that waits for the next region asks for what that will read.
//!
//! A forward pass reads the same matrices in the same order each time. So what followed a matrix the last time is what follows it now, and while one thread
//! does what lies between two matrices, the others fetch the second one into their caches instead of looking at a word.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::simd::{LINE, prefetch};

/// Bytes that are asked for at most before a region: the second-level cache of a processor has room for them.
const MOST: usize = 256 << 10;
/// Lines that are asked for between two looks at whether the region has begun.
const LINES: usize = 8;

/// Where a region begins to read, and how many bytes. Only asked for, never read: it may be out of date.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    at: usize,
    len: usize,
}

/// What was read after what.
#[derive(Debug, Default)]
pub struct Order {
    last: usize,
    followers: BTreeMap<usize, Run>,
}

impl Order {
    /// Notes that the region that begins now reads `bytes`, and says what followed them the last time.
    pub fn reads(&mut self, bytes: &[u8]) -> Option<Run> {
        let now = Run { at: bytes.as_ptr().addr(), len: bytes.len().min(MOST) };
        self.followers.insert(std::mem::replace(&mut self.last, now.at), now);
        self.followers.get(&now.at).copied()
    }
}

/// What comes next, for those who wait. A run that was half written asks for what nobody needs, which is all that it does.
#[derive(Debug, Default)]
pub struct Next {
    at: AtomicUsize,
    len: AtomicUsize,
}

impl Next {
    /// Says what comes next.
    pub fn set(&self, run: Run) {
        self.len.store(run.len, Ordering::Relaxed);
        self.at.store(run.at, Ordering::Relaxed);
    }

    fn get(&self) -> Run {
        Run { at: self.at.load(Ordering::Relaxed), len: self.len.load(Ordering::Relaxed) }
    }
}

/// How far one of several threads has asked.
#[derive(Debug)]
pub struct Asking {
    run: Run,
    /// Bytes from the run's beginning on.
    next: usize,
    first: usize,
    step: usize,
}

impl Asking {
    /// For thread `thread` of `threads`, which take turns in asking for lines.
    pub fn new(thread: usize, threads: usize) -> Self {
        let (first, step) = (thread * LINES * LINE, threads * LINES * LINE);
        Self { run: Run::default(), next: 0, first, step }
    }

    /// Asks for some lines of what comes next; whether there were any left.
    pub fn step(&mut self, next: &Next) -> bool {
        let run = next.get();
        if run != self.run {
            (self.run, self.next) = (run, self.first);
        }
        if self.next >= run.len {
            return false;
        }
        for line in 0..LINES {
            prefetch(std::ptr::without_provenance(run.at.wrapping_add(self.next + line * LINE)));
        }
        self.next += self.step;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_is_what_follows() {
        let (a, b, c) = ([0; 100], [0; 300], vec![0; 2 * MOST]);
        let mut order = Order::default();
        let run = |bytes: &[u8]| Run { at: bytes.as_ptr().addr(), len: bytes.len().min(MOST) };
        assert_eq!([&a[..], &b, &c].map(|bytes| order.reads(bytes)), [None; 3]);
        assert_eq!(order.reads(&a), Some(run(&b)));
        assert_eq!(order.reads(&b), Some(run(&c)));
        assert_eq!(order.reads(&c), Some(run(&a)));
        // Another way through: what came last counts.
        order.reads(&b);
        assert_eq!(order.reads(&c), Some(run(&b)));
        assert_eq!(order.followers.len(), 4, "of what came first, and of each of the three");
    }

    #[test]
    fn threads_ask_for_all_of_it_once() {
        let bytes = vec![0; 10_000];
        let next = Next::default();
        let mut threads = [0, 1, 2].map(|thread| Asking::new(thread, 3));
        assert!(!threads[0].step(&next), "nothing is known yet");
        for _ in 0..2 {
            next.set(Run { at: bytes.as_ptr().addr(), len: bytes.len() });
            let steps: usize =
                threads.iter_mut().map(|thread| (0..).take_while(|_| thread.step(&next)).count()).sum();
            assert_eq!(steps, bytes.len().div_ceil(LINES * LINE));
            next.set(Run::default());
            assert!(threads.iter_mut().all(|thread| !thread.step(&next)));
        }
    }
}
