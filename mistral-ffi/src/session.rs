//! Sessions: new, reset, stats, free; and evaluating tokens step by step.

use std::ffi::{c_char, c_void};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, PoisonError, RwLock, TryLockError};

use serde_json::json;

use mistral_core::Session;

use crate::buffer::{self, Buffer};
use crate::cancel::Steering;
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
    /// Runs `body` with the session, which no other call uses meanwhile.
    pub(crate) fn with_mut<R>(&self, body: impl FnOnce(&mut Session) -> Outcome<R>) -> Outcome<R> {
        let mut state = self.0.try_write().map_err(refuse)?;
        match &mut *state {
            State::Ready(session) => body(session),
            other => Err(other.refusal()),
        }
    }

    /// Runs `body` with the session, which other calls may read meanwhile.
    fn with<R>(&self, body: impl FnOnce(&Session) -> Outcome<R>) -> Outcome<R> {
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

/// Makes an empty session on a model, its cache included.
///
/// `options` is a JSON object: `context` (positions; 4096, or fewer if the model was made for fewer, if not
/// given), `cache_type` (`"f16"`, the default, or `"f32"`).
///
/// Ownership: the caller frees `*out` with `mistral_session_free`; the session keeps the model alive.
/// Encoding: `options` is UTF-8.
/// NULL allowed: `options` if `options_len` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_FORKED`,
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
        let session = model.session(&options::session(options)?)?;
        out.write(handle::insert(SessionObject(RwLock::new(State::Ready(Box::new(session)))))?);
        Ok(())
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

/// How full a session is, as a JSON object: `tokens` (on its timeline) and `context` (positions in all).
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
        let stats = session
            .with(|session| Ok(json!({ "tokens": session.tokens().len(), "context": session.capacity() })))?;
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

/// Appends tokens to a session and evaluates them; `mistral_logits` then has the logits of the last one. A
/// call that is cancelled keeps the tokens that were evaluated until then; one that fails otherwise appends
/// none.
///
/// `progress` is called on the calling thread; a call on this session from it is refused with
/// `MISTRAL_E_BUSY`.
///
/// NULL allowed: `cancel`, `progress`, `user_data`.
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (no token, or one outside the vocabulary),
/// `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_prefill(
    session: *mut mistral_session,
    tokens: *const u32,
    count: usize,
    cancel: *const mistral_cancel,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
) -> mistral_status {
    call(|| {
        let session = handle::get::<SessionObject>("session", session)?;
        if tokens.is_null() {
            return Err(Failure::null("tokens"));
        }
        // SAFETY: the caller's promise of the header.
        let tokens = unsafe { input::slice("tokens", tokens, count) }?;
        if tokens.is_empty() {
            return Err(Failure::argument("tokens", "none", "at least one token"));
        }
        let steering = Steering::new(cancel, progress, user_data)?;
        session.with_mut(|session| Ok(steering.run(|control| session.prefill(tokens, control))?))
    })
}

/// Copies out the logits after the last token that was evaluated: one for each token of the model's
/// vocabulary.
///
/// `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of logits that there are.
///
/// NULL allowed: `logits` if `capacity` is 0.
/// Threads: several at once, but not while another call changes the session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (nothing was evaluated),
/// `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_BUFFER_TOO_SMALL`, `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_logits(
    session: *const mistral_session,
    logits: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> mistral_status {
    call(|| {
        let session = handle::get::<SessionObject>("session", session)?;
        // SAFETY: the caller's promises of the header.
        let (logits, count) =
            unsafe { (input::slice_mut("logits", logits, capacity)?, Out::new("count", count)?) };
        session.with(|session| {
            let found = session.logits();
            if found.is_empty() {
                return Err(Failure::argument(
                    "session",
                    "no evaluated token",
                    "a call of mistral_prefill before",
                ));
            }
            count.write(found.len());
            let room = logits
                .get_mut(..found.len())
                .ok_or_else(|| Failure::too_small("logits", found.len(), capacity))?;
            room.copy_from_slice(found);
            Ok(())
        })
    })
}
