//! Sessions: new, fork, reset, trim, stats, free.

use std::ffi::c_char;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError, RwLock, TryLockError};

use serde_json::json;

use mistral_core::Session;
use mistral_core::audit::AuditOptions;

use crate::buffer::{self, Buffer};
use crate::failure::{Failure, Outcome};
use crate::guard::call;
use crate::handle;
use crate::input::{self, Out};
use crate::model;
use crate::options;
use crate::types::*;

/// What the handle of a session stands for. The lock never waits: whoever finds it taken is told that the
/// session is busy. A panic poisons it.
pub(crate) struct SessionObject(RwLock<State>);

enum State {
    Ready(Box<Session>),
    /// A generation has it.
    Lent,
    /// The generation that had it panicked.
    Lost,
}

/// A session in the hands of a generation; it goes back when this is dropped.
pub(crate) struct Lease {
    home: Arc<SessionObject>,
    /// Always there until the drop.
    session: Option<Box<Session>>,
    /// The session may be torn: do not give it back.
    pub(crate) torn: bool,
}

impl SessionObject {
    /// Hands `session` to the caller.
    pub(crate) fn give(out: Out<*mut mistral_session>, session: Session) -> Outcome {
        out.write(handle::insert(Self(RwLock::new(State::Ready(Box::new(session)))))?);
        Ok(())
    }

    /// Runs `body` with the session, which no other call uses meanwhile.
    pub(crate) fn with_mut<R>(&self, body: impl FnOnce(&mut Session) -> Outcome<R>) -> Outcome<R> {
        let mut state = self.0.try_write().map_err(refuse)?;
        match &mut *state {
            State::Ready(session) => body(session),
            other => Err(other.refusal()),
        }
    }

    /// Runs `body` with the session, which other calls may read meanwhile.
    pub(crate) fn with<R>(&self, body: impl FnOnce(&Session) -> Outcome<R>) -> Outcome<R> {
        let state = self.0.try_read().map_err(refuse)?;
        match &*state {
            State::Ready(session) => body(session),
            other => Err(other.refusal()),
        }
    }

    /// Takes the session for a generation.
    pub(crate) fn lend(self: &Arc<Self>) -> Outcome<Lease> {
        let mut state = self.0.try_write().map_err(refuse)?;
        match std::mem::replace(&mut *state, State::Lent) {
            State::Ready(session) => {
                Ok(Lease { home: Arc::clone(self), session: Some(session), torn: false })
            }
            other => {
                *state = other;
                Err(state.refusal())
            }
        }
    }
}

impl State {
    fn refusal(&self) -> Failure {
        match self {
            Self::Lent => Failure::busy("session", "a generation that was not freed holds it"),
            Self::Ready(_) | Self::Lost => lost(),
        }
    }
}

fn refuse<T>(error: TryLockError<T>) -> Failure {
    match error {
        TryLockError::WouldBlock => Failure::busy("session", "another call is using it"),
        TryLockError::Poisoned(_) => lost(),
    }
}

fn lost() -> Failure {
    Failure::internal("an earlier call on this session failed inside the library: free it")
}

impl Deref for Lease {
    type Target = Session;

    fn deref(&self) -> &Session {
        self.session.as_ref().expect("only the drop takes it")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Session {
        self.session.as_mut().expect("only the drop takes it")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let back = self.session.take().filter(|_| !self.torn && !std::thread::panicking());
        // Held by others only while they find out that it is lent.
        *self.home.0.write().unwrap_or_else(PoisonError::into_inner) = back.map_or(State::Lost, State::Ready);
    }
}

/// A session that is written to a log of its own, if there are options for one.
pub(crate) fn with_audit(session: Session, audit: Option<&AuditOptions>) -> Outcome<Session> {
    Ok(match audit {
        Some(options) => session.with_audit(options)?,
        None => session,
    })
}

/// Makes an empty session on a model, its cache included.
///
/// `options` is a JSON object: `context` (positions; 4096, or fewer if the model was made for fewer, if not
/// given), `cache_type` (`"f16"`, the default, `"f32"`, or `"q8_0"`, about half of `f16`), and the bounds `max_prompt_tokens`,
/// `max_output_tokens` and `max_time_ms` of each call on the session, as for `mistral_model_open`: the tighter
/// of both holds; `audit` (as for `mistral_model_open`: a log of its own instead of the model's).
///
/// Ownership: the caller frees `*out` with `mistral_session_free`; the session keeps the model alive.
/// Encoding: `options` is UTF-8.
/// NULL allowed: `options` if `options_len` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_session_new(
    model: *const mistral_model,
    options: *const c_char,
    options_len: usize,
    out: *mut *mut mistral_session,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (options, out) =
            unsafe { (input::optional_text("options", options, options_len)?, Out::new("out", out)?) };
        let (options, limits, audit) = options::session(options)?;
        let session = model.session(&options)?.with_limits(limits);
        SessionObject::give(out, with_audit(session, audit.as_ref())?)
    })
}

/// Makes a second session with the same tokens and logits, which goes on by itself: neither sees what the other
/// does from here on. Both share the memory of the cache until one of them evaluates a token, which then copies
/// the positions in use; the whole cache counts against `max_memory` at once. The bounds of the session and the
/// random numbers of `mistral_sample` go with it.
///
/// Ownership: the caller frees `*out` with `mistral_session_free`; the order of frees is free.
/// Threads: several at once, but not while another call changes the session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_session_fork(
    session: *const mistral_session,
    out: *mut *mut mistral_session,
) -> mistral_status {
    call(|| {
        let session = handle::get::<SessionObject>("session", session)?;
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("out", out) }?;
        let fork = session.with(|session| Ok(session.fork()?))?;
        SessionObject::give(out, fork)
    })
}

/// Forgets all tokens of a session; its memory stays allocated.
///
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_session_reset(session: *mut mistral_session) -> mistral_status {
    call(|| {
        handle::get::<SessionObject>("session", session)?.with_mut(|session| {
            session.reset();
            Ok(())
        })
    })
}

/// Keeps the first `count` tokens of a session and forgets the others. It goes on as a session that was
/// prefilled with these tokens: the last of them is evaluated again by the next call that needs its logits.
/// Where a layer with a sliding window has overwritten what they need, that call evaluates all of them again.
///
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (more tokens than there are),
/// `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_session_trim(session: *mut mistral_session, count: usize) -> mistral_status {
    call(|| handle::get::<SessionObject>("session", session)?.with_mut(|session| Ok(session.trim(count)?)))
}

/// What a session holds and has done, as a JSON object: `tokens` (on its timeline), `evaluated` (those of them
/// that are in the cache; the others are evaluated by the next call), `context` (positions in all), `cache_type`,
/// `cache_bytes` (forks share them until one of them goes on), `locked_bytes` (those of them that are kept out of the
/// swap), and since the session was made: `prompt_tokens` and
/// `prompt_seconds` (evaluated several at a time), `decode_tokens` and `decode_seconds` (one at a time), by a
/// monotonic clock, with `prompt_tokens_per_second` and `decode_tokens_per_second`.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: UTF-8 JSON.
/// Threads: several at once, but not while another call changes the session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_NO_MEMORY`,
/// `MISTRAL_E_LIMIT`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_session_stats(
    session: *const mistral_session,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        let session = handle::get::<SessionObject>("session", session)?;
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("out", out) }?;
        let stats = session.with(|session| Ok(session.stats()))?;
        let stats = json!({
            "tokens": stats.tokens,
            "evaluated": stats.evaluated,
            "context": stats.context,
            "cache_type": stats.cache_type.name(),
            "cache_bytes": stats.cache_bytes,
            "locked_bytes": stats.locked_bytes,
            "prompt_tokens": stats.prompt.tokens,
            "prompt_seconds": stats.prompt.time.as_secs_f64(),
            "prompt_tokens_per_second": stats.prompt.per_second(),
            "decode_tokens": stats.decode.tokens,
            "decode_seconds": stats.decode.time.as_secs_f64(),
            "decode_tokens_per_second": stats.decode.per_second(),
        });
        buffer::give(out, Buffer::json(&stats)?)
    })
}

/// Gives a session up. A call or a generation that is using it goes on; the memory goes when that ends.
///
/// NULL allowed: `session`: nothing is done.
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_session_free(session: *mut mistral_session) -> mistral_status {
    call(|| handle::remove::<SessionObject>("session", session))
}
