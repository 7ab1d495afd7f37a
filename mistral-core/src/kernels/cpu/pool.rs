//! The threads of an engine: fork-join over numbered tasks, without spinning while no model runs.
//!
//! A decoded token is a few hundred short parallel regions, microseconds apart, so workers spin briefly for the next one
//! while a forward pass is under way ([`Pool::scope`]) and sleep otherwise. A worker joins a region only if it is awake in time: the
//! caller never waits for one that the system has not scheduled.
//!
//! A scope may follow a cancel token: once it is triggered, tasks are left out, and whoever began the work finds that out by [`check`].

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::ahead::{Asking, Next, Order};
use super::simd;
use crate::control::CancelToken;
use crate::error::{Error, Result};

/// A region's body: called once for each task number.
type Body<'a> = dyn Fn(usize) + Sync + 'a;

/// A word that says everything about the open region: its number, how many tasks it has, and the next of them. So a thread that takes a
/// task knows by the same step whether there was one.
#[derive(Clone, Copy)]
struct Ticket(u64);

impl Ticket {
    const BITS: u32 = 24;
    const MASK: u64 = (1 << Self::BITS) - 1;
    /// Tasks of a region at most; the threads that come too late count on from there.
    const MOST: usize = Self::MASK as usize - (1 << 16);

    fn new(region: u64, tasks: usize, next: usize) -> Self {
        Self(region << (2 * Self::BITS) | (tasks as u64) << Self::BITS | next as u64)
    }

    fn region(self) -> u64 {
        self.0 >> (2 * Self::BITS)
    }

    /// The next task, if there is one left.
    fn task(self) -> Option<usize> {
        let (tasks, next) = (self.0 >> Self::BITS & Self::MASK, self.0 & Self::MASK);
        (next < tasks).then_some(next as usize)
    }
}

/// Looks at the ticket this often before a worker sleeps, while a forward pass is under way (about 0.2 ms).
const SPINS: u32 = 20_000;
/// Looks for the end this often before the caller gives its time slice away.
const SPINS_BEFORE_YIELD: u32 = 2_000;
/// Stack of a worker. Kernels need a fraction of it; without a number the standard library would read one from the environment.
const STACK_BYTES: usize = 2 << 20;

/// On a line of the cache of its own, which threads hand to each other.
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

struct Shared {
    /// A [`Ticket`].
    ticket: Line<AtomicU64>,
    /// Tasks of the region that have ended.
    done: Line<AtomicUsize>,
    /// What a task of the region runs: valid for who holds one.
    body: Line<Cell<Option<BodyPtr>>>,
    /// Forward passes under way: workers spin while there are any.
    active: AtomicUsize,
    /// What the next region reads.
    next: Line<Next>,
    sleepers: AtomicUsize,
    stop: AtomicBool,
    lock: Mutex<()>,
    wake: Condvar,
    panicked: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

#[derive(Clone, Copy)]
struct BodyPtr(*const Body<'static>);

// SAFETY: the pointee is Sync, and `Pool::run` keeps it alive until every task has ended.
unsafe impl Send for BodyPtr {}
// SAFETY: all but `body` is; and that is written by `Pool::run` alone, one caller at a time, after every task of the last region has ended, and read
// only by who has taken a task of this one, which happens after.
unsafe impl Sync for Shared {}

/// A fixed number of threads that run the tasks of one region at a time.
pub struct Pool {
    shared: Arc<Shared>,
    /// One region at a time: sessions of one engine take turns.
    turn: Mutex<Order>,
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
    /// Without a destructor, for what a thread frees when it ends. Between scopes there is nothing to drop.
    static CURRENT: RefCell<ManuallyDrop<Option<Current>>> = const { RefCell::new(ManuallyDrop::new(None)) };
}

/// Makes this the scope that the thread is in; the one before.
fn enter(current: Option<Current>) -> Option<Current> {
    ManuallyDrop::into_inner(CURRENT.replace(ManuallyDrop::new(current)))
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
            ticket: Line::default(),
            done: Line::default(),
            body: Line::default(),
            active: AtomicUsize::new(0),
            next: Line::default(),
            sleepers: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            panicked: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let threads = threads.max(1);
        let mut pool =
            Self { shared, turn: Mutex::default(), workers: Vec::with_capacity(threads - 1), threads };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new().name(format!("mistral-{i}")).stack_size(STACK_BYTES);
            pool.workers.push(worker.spawn(move || shared.work(Asking::new(i - 1, threads - 1)))?);
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
                enter(self.1.take());
            }
        }
        self.shared.active.fetch_add(1, Ordering::Relaxed);
        let stop =
            cancel.map(|token| Arc::new(Stop { token: token.clone(), stopped: AtomicBool::new(false) }));
        let current = Current { pool: Arc::clone(self), stop };
        let _leave = Leave(Arc::clone(self), enter(Some(current)));
        f()
    }

    /// Runs `body(0)`, …, `body(tasks - 1)`, in any order, on the threads of the pool; returns when all are done.
    ///
    /// # Panics
    /// With the panic of a task, after the other tasks have ended.
    pub fn run(&self, tasks: usize, body: &Body<'_>) {
        self.run_reading(&[], tasks, body);
    }

    /// [`Pool::run`] of tasks that read `bytes` one after the other, those of the caller's first task left out: threads that wait ask for them before it
    /// begins, if what came last was the same the last time.
    pub fn run_reading(&self, bytes: &[u8], tasks: usize, body: &Body<'_>) {
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(body);
        }
        if tasks > Ticket::MOST {
            let rest = tasks - Ticket::MOST;
            self.run_reading(bytes, Ticket::MOST, body);
            return self.run(rest, &|task| body(Ticket::MOST + task));
        }
        let mut order = lock(&self.turn);
        let shared = &*self.shared;
        if !bytes.is_empty()
            && simd::asks_ahead()
            && let Some(next) = order.reads(bytes)
        {
            shared.next.0.set(next);
        }
        // SAFETY: only the lifetime changes; this function returns when every task has ended.
        let body_ptr = unsafe { std::mem::transmute::<*const Body<'_>, *const Body<'static>>(body) };
        shared.body.0.set(Some(BodyPtr(body_ptr)));
        shared.done.0.store(0, Ordering::Relaxed);
        let last = Ticket(shared.ticket.0.load(Ordering::Relaxed)).region();
        // The first task is the caller's.
        shared.ticket.0.store(Ticket::new(last.wrapping_add(1), tasks, 1).0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&shared.lock);
            shared.wake.notify_all();
        }
        shared.take_tasks(0, body);
        let mut looks = 0;
        while shared.done.0.load(Ordering::Acquire) < tasks {
            looks += 1;
            if looks > SPINS_BEFORE_YIELD { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        if shared.panicked.swap(false, Ordering::Relaxed)
            && let Some(payload) = lock(&shared.panic).take()
        {
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
    fn work(&self, mut asking: Asking) {
        let mut seen = 0;
        while let Some(region) = self.wait_for_region(seen, &mut asking) {
            seen = region;
            let Some(task) = self.take() else { continue };
            if let Some(BodyPtr(body)) = self.body.0.get() {
                // SAFETY: `Pool::run` returns, and another region begins, only when this task has ended too.
                self.take_tasks(task, unsafe { &*body });
            }
        }
    }

    /// The next task of the region that is open.
    fn take(&self) -> Option<usize> {
        // A look first: who comes too late must not count on and on.
        Ticket(self.ticket.0.load(Ordering::Relaxed)).task()?;
        Ticket(self.ticket.0.fetch_add(1, Ordering::AcqRel)).task()
    }

    /// Runs `first` and then tasks until none is left; keeps the first panic for the caller.
    fn take_tasks(&self, first: usize, body: &Body<'_>) {
        let mut task = Some(first);
        let mut done = 0;
        while let Some(number) = task {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| body(number))) {
                lock(&self.panic).get_or_insert(payload);
                self.panicked.store(true, Ordering::Relaxed);
            }
            done += 1;
            task = self.take();
        }
        self.done.0.fetch_add(done, Ordering::AcqRel);
    }

    /// The number of a region other than `seen` that has tasks left, or `None` when the pool is dropped.
    fn wait_for_region(&self, seen: u64, asking: &mut Asking) -> Option<u64> {
        let fresh = |order| {
            let ticket = Ticket(self.ticket.0.load(order));
            (ticket.region() != seen && ticket.task().is_some()).then_some(ticket.region())
        };
        let mut looks = 0;
        loop {
            if let Some(region) = fresh(Ordering::Acquire) {
                return Some(region);
            }
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            if self.active.load(Ordering::Relaxed) > 0 && looks < SPINS {
                looks += 1;
                if !asking.step(&self.next.0) {
                    std::hint::spin_loop();
                }
                continue;
            }
            let mut guard = lock(&self.lock);
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            while fresh(Ordering::SeqCst).is_none() && !self.stop.load(Ordering::SeqCst) {
                guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
            looks = 0;
        }
    }
}

/// Runs the tasks on the pool that this thread is in the scope of, or one after the other if it is in none.
pub fn run(tasks: usize, body: &Body<'_>) {
    run_reading(&[], tasks, body);
}

/// [`Pool::run_reading`] on that pool.
pub fn run_reading(bytes: &[u8], tasks: usize, body: &Body<'_>) {
    match CURRENT.with_borrow(|current| (**current).clone()) {
        Some(Current { pool, stop: None }) => pool.run_reading(bytes, tasks, body),
        Some(Current { pool, stop: Some(stop) }) => pool.run_reading(bytes, tasks, &|task| {
            if !stop.is_set() {
                body(task);
            }
        }),
        None => (0..tasks).for_each(body),
    }
}

/// The number of threads that share the tasks of [`run`] here.
pub fn threads() -> usize {
    CURRENT.with_borrow(|current| current.as_ref().map_or(1, |current| current.pool.threads))
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
    fn a_thread_that_ends_may_still_run_tasks() {
        struct AtEnd(Arc<Pool>, Arc<AtomicUsize>);
        impl Drop for AtEnd {
            fn drop(&mut self) {
                self.0.scope(None, || run(9, &|_| _ = self.1.fetch_add(1, Ordering::Relaxed)));
            }
        }
        thread_local! {
            static KEPT: RefCell<Option<AtEnd>> = const { RefCell::new(None) };
        }
        let (pool, count) = (Arc::new(Pool::new(2).unwrap()), Arc::new(AtomicUsize::new(0)));
        let at_end = AtEnd(Arc::clone(&pool), Arc::clone(&count));
        let thread = std::thread::spawn(move || {
            // Dropped after what the first scope makes.
            KEPT.set(Some(at_end));
            pool.scope(None, || run(3, &|_| {}));
        });
        thread.join().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 9);
    }

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
