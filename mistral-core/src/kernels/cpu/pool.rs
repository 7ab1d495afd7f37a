//! The threads of an engine: fork-join over numbered tasks, without spinning while no model runs.
//!
//! A decoded token is a few hundred short parallel regions, microseconds apart, so workers spin briefly for the next one
//! while a forward pass is under way ([`Pool::scope`]) and sleep otherwise. A worker joins a region only if it is awake in time: the
//! caller never waits for one that the system has not scheduled.
//!
//! A scope may follow a cancel token: once it is triggered, tasks are left out, and whoever began the work finds that out by [`check`].

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::control::CancelToken;
use crate::error::{Error, Result};

/// A region's body: called once for each task number.
type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// `state` holds the region's number, whether it may still be joined, and how many workers are inside.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH_SHIFT: u32 = 32;

/// Looks at `state` this often before a worker sleeps, while a forward pass is under way (about 0.2 ms).
const SPINS: u32 = 20_000;
/// Looks at `state` this often before the caller gives its time slice away.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Stack of a worker. Kernels need a fraction of it; without a number the standard library would read one from the environment.
const STACK_BYTES: usize = 2 << 20;

struct Shared {
    state: AtomicU64,
    /// The open region: valid from the moment `state` says OPEN until no worker is inside.
    body: Mutex<Option<BodyPtr>>,
    tasks: AtomicUsize,
    next: AtomicUsize,
    /// Forward passes under way: workers spin while there are any.
    active: AtomicUsize,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct BodyPtr(*const Body<'static>);

// SAFETY: the pointee is Sync, and `Pool::run` keeps it alive until every worker has left the region.
unsafe impl Send for BodyPtr {}

/// A fixed number of threads that run the tasks of one region at a time.
pub struct Pool {
    shared: Arc<Shared>,
    /// One region at a time: sessions of one engine take turns.
    turn: Mutex<()>,
    workers: Vec<JoinHandle<()>>,
    threads: usize,
}

/// The pool that a thread is in the scope of, and what stops its tasks.
#[derive(Clone)]
struct Current {
    pool: Arc<Pool>,
    stop: Option<Arc<Stop>>,
}

/// A token, and whether a task was left out for it: that stays so if the token is reset.
struct Stop {
    token: CancelToken,
    stopped: AtomicBool,
}

impl Stop {
    fn is_set(&self) -> bool {
        if !self.stopped.load(Ordering::Relaxed) && self.token.is_cancelled() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.stopped.load(Ordering::Relaxed)
    }
}

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// Locks, ignoring poison: what the mutexes here protect is valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads, the calling one included (so `threads - 1` are started).
    ///
    /// # Errors
    /// The system's error if a thread cannot be started.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            body: Mutex::new(None),
            tasks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
        });
        let threads = threads.max(1);
        let mut pool =
            Self { shared, turn: Mutex::new(()), workers: Vec::with_capacity(threads - 1), threads };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("mistral-{i}")).stack_size(STACK_BYTES);
            pool.workers.push(worker.spawn(move || shared.work())?);
        }
        Ok(pool)
    }

    /// The number of threads that share a region's tasks.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Runs `f` with this pool as the one that kernels called from it use, its workers held awake. Tasks that have not begun when `cancel` is
    /// triggered are left out, so that what they would have computed is missing: see [`check`].
    pub fn scope<R>(self: &Arc<Self>, cancel: Option<&CancelToken>, f: impl FnOnce() -> R) -> R {
        struct Leave(Arc<Pool>, Option<Current>);
        impl Drop for Leave {
            fn drop(&mut self) {
                self.0.shared.active.fetch_sub(1, Ordering::Relaxed);
                CURRENT.set(self.1.take());
            }
        }
        self.shared.active.fetch_add(1, Ordering::Relaxed);
        let stop =
            cancel.map(|token| Arc::new(Stop { token: token.clone(), stopped: AtomicBool::new(false) }));
        let current = Current { pool: Arc::clone(self), stop };
        let _leave = Leave(Arc::clone(self), CURRENT.replace(Some(current)));
        f()
    }

    /// Runs `body(0)`, …, `body(tasks - 1)`, in any order, on the threads of the pool; returns when all are done.
    ///
    /// # Panics
    /// With the panic of a task, after the other tasks have ended.
    pub fn run(&self, tasks: usize, body: &Body<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(body);
        }
        let _turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes; the region is closed and empty again before this function returns.
        let body_ptr = unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        *lock(&shared.body) = Some(BodyPtr(body_ptr));
        shared.tasks.store(tasks, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        let epoch = (shared.state.load(Ordering::Relaxed) >> EPOCH_SHIFT).wrapping_add(1) & (u32::MAX as u64);
        shared.state.store((epoch << EPOCH_SHIFT) | OPEN, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.lock);
            shared.wake.notify_all();
        }
        shared.take_tasks(body);
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks > SPINS_BEFORE_YIELD { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if let Some(payload) = lock(&shared.panic).take() {
            resume_unwind(payload);
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.lock);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a task, so it can only have ended well.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        while let Some(state) = self.wait_for_region(seen) {
            seen = state >> EPOCH_SHIFT;
            // Only this region's number, still open: a closed region's body may be gone.
            let mut state = state;
            loop {
                if state & OPEN == 0 || state >> EPOCH_SHIFT != seen {
                    break;
                }
                match self.state.compare_exchange_weak(state, state + 1, Ordering::AcqRel, Ordering::Acquire)
                {
                    Ok(_) => {
                        let body = *lock(&self.body);
                        if let Some(BodyPtr(body)) = body {
                            // SAFETY: this worker is counted INSIDE, and `Pool::run` returns only when none is.
                            self.take_tasks(unsafe { &*body });
                        }
                        self.state.fetch_sub(1, Ordering::Release);
                        break;
                    }
                    Err(now) => state = now,
                }
            }
        }
    }

    /// Runs tasks until none is left; keeps the first panic for the caller.
    fn take_tasks(&self, body: &Body<'_>) {
        let tasks = self.tasks.load(Ordering::Relaxed);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= tasks {
                    break;
                }
                body(task);
            }
        }));
        if let Err(payload) = result {
            lock(&self.panic).get_or_insert(payload);
        }
    }

    /// The state of a region newer than `seen` that is open, or `None` when the pool is dropped.
    fn wait_for_region(&self, seen: u64) -> Option<u64> {
        let fresh = |state: u64| state & OPEN != 0 && state >> EPOCH_SHIFT != seen;
        let mut looks = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if fresh(state) {
                return Some(state);
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if self.active.load(Ordering::Relaxed) > 0 && looks < SPINS {
                looks += 1;
                std::hint::spin_loop();
                continue;
            }
            let mut guard = lock(&self.lock);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            while !fresh(self.state.load(Ordering::SeqCst)) && !self.stop.load(Ordering::SeqCst) {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            looks = 0;
        }
    }
}

/// Runs the tasks on the pool that this thread is in the scope of, or one after the other if it is in none.
pub fn run(tasks: usize, body: &Body<'_>) {
    match CURRENT.with_borrow(Clone::clone) {
        Some(Current { pool, stop: None }) => pool.run(tasks, body),
        Some(Current { pool, stop: Some(stop) }) => pool.run(tasks, &|task| {
            if !stop.is_set() {
                body(task);
            }
        }),
        None => (0..tasks).for_each(body),
    }
}

/// Fails if tasks of this thread's scope were left out, or will be: the scope's token was triggered.
///
/// # Errors
/// [`Error::Cancelled`].
pub fn check() -> Result<()> {
    let stop = CURRENT.with_borrow(|current| current.as_ref().and_then(|current| current.stop.clone()));
    match stop {
        Some(stop) if stop.is_set() => Err(Error::Cancelled),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Arc::new(Pool::new(threads).unwrap());
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.scope(None, || run(tasks, &|i| _ = counts[i].fetch_add(1, Ordering::Relaxed)));
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} {tasks}");
            }
        }
    }

    #[test]
    fn regions_follow_each_other_without_loss() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(4, &|i| _ = sum.fetch_add(i, Ordering::Relaxed));
        }
        assert_eq!(sum.into_inner(), 20_000 * 6);
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..500 {
                        pool.run(3, &|_| _ = sum.fetch_add(1, Ordering::Relaxed));
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 500 * 3);
    }

    #[test]
    fn a_token_stops_what_has_not_begun_and_keeps_it_stopped() {
        for threads in [1, 3] {
            let pool = Arc::new(Pool::new(threads).unwrap());
            let (token, ran) = (CancelToken::new(), AtomicUsize::new(0));
            pool.scope(Some(&token), || {
                assert!(check().is_ok());
                run(1000, &|_| {
                    ran.fetch_add(1, Ordering::Relaxed);
                    token.cancel();
                });
                // Each thread may have begun one before it saw the token.
                assert!((1..=threads).contains(&ran.load(Ordering::Relaxed)), "{ran:?}");
                token.reset();
                assert!(matches!(check(), Err(Error::Cancelled)));
                run(10, &|_| panic!("work goes on without what it stands on"));
            });
            assert!(check().is_ok());
            pool.scope(Some(&token), || run(10, &|_| _ = ran.fetch_add(1, Ordering::Relaxed)));
            assert!(ran.into_inner() > 10);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives() {
        let pool = Pool::new(2).unwrap();
        let result = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, &|i| {
                if i == 5 {
                    resume_unwind(Box::new("five"))
                }
            })
        }));
        assert_eq!(result.unwrap_err().downcast_ref::<&str>(), Some(&"five"));
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| _ = count.fetch_add(1, Ordering::Relaxed));
        assert_eq!(count.into_inner(), 8);
    }
}
