//! How a host follows and stops long work: progress and cancellation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// Stops calls that were given a clone of it, from any thread.
#[derive(Clone, Debug, Default)]
pub struct CancelToken(Arc<Flag>);

#[derive(Debug, Default)]
struct Flag {
    cancelled: AtomicBool,
    parent: Option<CancelToken>,
    /// Looks at the token until it is cancelled, where a test counts them.
    #[cfg(test)]
    looks_left: Option<std::sync::atomic::AtomicUsize>,
}

impl CancelToken {
    /// A token that has not been triggered.
    pub fn new() -> Self {
        Self::default()
    }

    /// A token that is cancelled with this one, and can be without it.
    pub fn child(&self) -> Self {
        Self(Arc::new(Flag { parent: Some(self.clone()), ..Flag::default() }))
    }

    /// A token that is cancelled once it was looked at `looks` times: every place where a call can be stopped, one after the other.
    #[cfg(test)]
    pub(crate) fn cancelled_after(looks: usize) -> Self {
        Self(Arc::new(Flag { looks_left: Some(looks.into()), ..Flag::default() }))
    }

    /// Asks the calls that hold this token to stop; they end with [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Release);
    }

    /// Makes the token usable again; a parent that is cancelled still stops its calls.
    pub fn reset(&self) {
        self.0.cancelled.store(false, Ordering::Release);
    }

    /// Whether [`CancelToken::cancel`] was called, on this token or on a parent.
    pub fn is_cancelled(&self) -> bool {
        #[cfg(test)]
        if let Some(left) = &self.0.looks_left
            && left.try_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err()
        {
            self.cancel();
        }
        self.0.cancelled.load(Ordering::Acquire) || self.0.parent.as_ref().is_some_and(Self::is_cancelled)
    }
}

/// How far a long call has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// What is being done: `"verify"`, `"load"`, `"prefill"`, `"digest"`, `"audit"`.
    pub phase: &'static str,
    /// Units done: tokens while prefilling, otherwise bytes.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// What a long call reports to, and what can stop it.
#[derive(Default)]
pub struct Control<'a> {
    cancel: Option<&'a CancelToken>,
    progress: Option<&'a mut dyn FnMut(Progress)>,
    time: Option<Time>,
}

/// A bound on the time of a call.
#[derive(Clone, Copy)]
struct Time {
    start: Instant,
    limit: Duration,
}

impl<'a> Control<'a> {
    /// No progress, no cancellation.
    pub fn none() -> Self {
        Self::default()
    }

    /// With a token that can stop the call.
    pub fn with_cancel(mut self, cancel: &'a CancelToken) -> Self {
        self.cancel = Some(cancel);
        self
    }

    /// The token that can stop the call.
    pub(crate) fn cancel_token(&self) -> Option<&'a CancelToken> {
        self.cancel
    }

    /// With a function that is told of progress.
    pub fn with_progress(mut self, progress: &'a mut dyn FnMut(Progress)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Runs `body`, which fails with [`Error::Limit`] where it is checked after `limit` has passed. The bound of a call that this one is a
    /// part of stays instead.
    pub fn within<R>(&mut self, limit: Option<Duration>, body: impl FnOnce(&mut Self) -> R) -> R {
        let outer = self.time;
        self.time = outer.or_else(|| limit.map(|limit| Time { start: Instant::now(), limit }));
        let result = body(self);
        self.time = outer;
        result
    }

    /// Reports progress, then fails as [`Control::check`].
    ///
    /// # Errors
    /// As [`Control::check`].
    pub fn step(&mut self, progress: Progress) -> Result<()> {
        if let Some(report) = self.progress.as_mut() {
            report(progress);
        }
        self.check()
    }

    /// Fails with [`Error::Cancelled`] if the host has asked to stop, with [`Error::Limit`] if the time is up.
    ///
    /// # Errors
    /// These two.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_some_and(CancelToken::is_cancelled) {
            return Err(Error::Cancelled);
        }
        match self.time.map(|time| (time.start.elapsed(), time.limit)) {
            Some((passed, limit)) if passed > limit => {
                Err(Error::limit("max_time_ms", passed.as_millis(), limit.as_millis()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stops_with_its_parent_and_not_the_other_way_round() {
        let parent = CancelToken::new();
        let (one, other) = (parent.child(), parent.child());
        one.cancel();
        assert!(one.is_cancelled() && !other.is_cancelled() && !parent.is_cancelled());
        parent.cancel();
        assert!(other.is_cancelled());
        parent.reset();
        assert!(one.is_cancelled() && !other.is_cancelled());
    }

    #[test]
    fn the_bound_of_the_outer_call_holds_inside_and_no_longer() {
        let mut control = Control::none();
        control.within(Some(Duration::ZERO), |control| {
            std::thread::sleep(Duration::from_millis(1));
            let error = control.within(Some(Duration::MAX), |control| control.check()).unwrap_err();
            assert!(error.to_string().contains("max_time_ms"), "{error}");
            assert!(matches!(error, Error::Limit { .. }));
        });
        control.within(Some(Duration::MAX), |control| control.check()).unwrap();
        control.check().unwrap();
    }
}
