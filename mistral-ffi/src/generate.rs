//! Generation: with a callback, or one event at a time.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use mistral_core::generate::GenerateOptions;
use mistral_core::{CancelToken, Control, Event, FinishReason, Generation};

use crate::cancel::Steering;
use crate::failure::{Failure, Outcome};
use crate::guard::call;
use crate::handle;
use crate::input::{self, Out};
use crate::options;
use crate::session::{Lease, SessionObject};
use crate::types::*;

/// What the handle of a generation stands for.
pub(crate) struct GenerationObject(Mutex<Running>);

struct Running {
    generation: Generation<Lease>,
    event: EventBox,
    stop: CancelToken,
}

impl Drop for GenerationObject {
    fn drop(&mut self) {
        let panicked = self.0.is_poisoned();
        let running = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        running.generation.holder_mut().torn |= panicked;
    }
}

/// An event in the form of the interface, with what it points to.
struct EventBox {
    text: Vec<u8>,
    top_logprobs: Vec<mistral_token_logprob>,
    event: mistral_event,
}

// SAFETY: the pointers of `event` lead to `text` and `top_logprobs`, which go with it.
unsafe impl Send for EventBox {}

impl EventBox {
    fn new() -> Self {
        let event = mistral_event {
            struct_size: size_of::<mistral_event>(),
            text: ptr::null(),
            text_len: 0,
            token: 0,
            finish_reason: MISTRAL_FINISH_NONE,
            logprob: f32::NAN,
            top_logprobs_len: 0,
            top_logprobs: ptr::null(),
        };
        Self { text: Vec::new(), top_logprobs: Vec::new(), event }
    }

    fn set(&mut self, event: &Event) -> &mistral_event {
        self.text.clear();
        self.text.extend_from_slice(event.text.as_bytes());
        self.text.push(0);
        self.top_logprobs.clear();
        let top = event.top_logprobs.iter();
        self.top_logprobs.extend(top.map(|t| mistral_token_logprob { token: t.token, logprob: t.logprob }));
        self.event = mistral_event {
            struct_size: size_of::<mistral_event>(),
            text: self.text.as_ptr().cast(),
            text_len: event.text.len(),
            token: event.token,
            finish_reason: match event.finish_reason {
                None => MISTRAL_FINISH_NONE,
                Some(FinishReason::Stop) => MISTRAL_FINISH_STOP,
                Some(FinishReason::Length) => MISTRAL_FINISH_LENGTH,
                Some(FinishReason::ContextFull) => MISTRAL_FINISH_CONTEXT_FULL,
            },
            logprob: event.logprob.unwrap_or(f32::NAN),
            // At most a few: the options bound them.
            top_logprobs_len: self.top_logprobs.len() as u32,
            top_logprobs: self.top_logprobs.as_ptr(),
        };
        &self.event
    }
}

/// What both ways to generate are given.
struct Request<'a> {
    session: Arc<SessionObject>,
    tokens: &'a [u32],
    options: GenerateOptions,
}

impl<'a> Request<'a> {
    /// # Safety
    /// As [`input::slice`] for `tokens` and `options`.
    unsafe fn read(
        session: *mut mistral_session,
        (tokens, count): (*const u32, usize),
        (options, options_len): (*const c_char, usize),
    ) -> Outcome<Self> {
        let session = handle::get::<SessionObject>("session", session)?;
        // SAFETY: the caller's promise.
        let (tokens, options) = unsafe {
            let tokens = input::slice("tokens", tokens, count)?;
            (tokens, input::optional_text("options", options, options_len)?)
        };
        Ok(Self { session, tokens, options: options::generate(options)? })
    }
}

/// Appends tokens to a session and generates what follows, event by event, until it is finished.
///
/// `options` is a JSON object: `max_tokens`, `temperature` (0, the default, takes the most probable token),
/// `top_k`, `top_p`, `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`,
/// `penalty_window`, `logit_bias` (`{"token": number}`), `seed`, `stop` (a text or a list of texts),
/// `stop_tokens`, `ignore_eos`, `prompt_lookup` (0 to 32, default 0: so many tokens are guessed at a time from the text so far
/// and evaluated together; the answer is the same, sooner where it repeats what stands before it), `logprobs` (how many
/// alternatives to report; `true` is 0), `show_special` (the names of control tokens are part of the text), `caller_ref` (what the audit log says for whom it runs; at
/// most 256 bytes); and at most one of `json_object` (`true`: the answer is a
/// JSON object), `json_schema` (a JSON Schema that the answer is valid under), `regex` (a regular expression that
/// matches the whole answer) and `grammar` (a context-free grammar in Lark's syntax). The answer ends once nothing
/// can follow under it; one that ends by `max_tokens`, a stop text or a full context is the beginning of an answer
/// that obeys. What cannot be enforced is refused before anything is evaluated, with the reason:
/// `MISTRAL_E_UNSUPPORTED` for a keyword, `MISTRAL_E_ARGUMENT` for what is wrong or satisfied by nothing,
/// `MISTRAL_E_LIMIT` for what is too large, or takes too much work on the way.
///
/// `callback` is called on the calling thread; a call on this session from it is refused with
/// `MISTRAL_E_BUSY`. Non-zero from it ends the call with `MISTRAL_E_CANCELLED`; the session keeps what was
/// generated. Without tokens, generation goes on from what the session holds.
///
/// Encoding: `options` is UTF-8.
/// NULL allowed: `tokens` if `count` is 0, `options` if `options_len` is 0, `cancel`, `user_data`.
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_UNSUPPORTED`,
/// `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_generate(
    session: *mut mistral_session,
    tokens: *const u32,
    count: usize,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    callback: mistral_event_fn,
    user_data: *mut c_void,
) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promises of the header.
        let request = unsafe { Request::read(session, (tokens, count), (options, options_len)) }?;
        let callback = callback.ok_or_else(|| Failure::null("callback"))?;
        let steering = Steering::new(cancel, None, ptr::null_mut())?;
        let mut event = EventBox::new();
        request.session.with_mut(|session| {
            let limit = session.limits().max_time;
            let mut events = |control: &mut Control<'_>| {
                let mut generation = session.generate(request.tokens, &request.options, control)?;
                while let Some(next) = generation.next(control) {
                    let event = event.set(&next?);
                    // SAFETY: the function was given for this; the event lives until it returns.
                    if unsafe { callback(user_data, event) } != 0 {
                        return Err(Failure::new(MISTRAL_E_CANCELLED, "cancelled by the callback"));
                    }
                }
                Ok(())
            };
            steering.run(|control| control.within(limit, &mut events))
        })
    })
}

/// Appends tokens to a session, evaluates them, and starts a generation whose events
/// `mistral_generation_next` gives one at a time: for hosts that would rather ask than be called. Options as
/// for `mistral_generate`. Until the generation is freed, other calls on the session are refused with
/// `MISTRAL_E_BUSY`.
///
/// `cancel` is followed by the whole generation, `progress` is called on the calling thread during this call.
///
/// Ownership: the caller frees `*out` with `mistral_generation_free`; it keeps the session alive.
/// Encoding: `options` is UTF-8.
/// NULL allowed: `tokens` if `count` is 0, `options` if `options_len` is 0, `cancel`, `progress`,
/// `user_data`.
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_UNSUPPORTED`,
/// `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_generation_new(
    session: *mut mistral_session,
    tokens: *const u32,
    count: usize,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
    out: *mut *mut mistral_generation,
) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promises of the header.
        let (request, out) = unsafe {
            let request = Request::read(session, (tokens, count), (options, options_len))?;
            (request, Out::new("out", out)?)
        };
        let steering = Steering::new(cancel, progress, user_data)?;
        let lease = request.session.lend()?;
        let generation =
            steering.run(|control| Generation::new(lease, request.tokens, &request.options, control))?;
        let running = Running { generation, event: EventBox::new(), stop: steering.stop };
        out.write(handle::insert(GenerationObject(Mutex::new(running)))?);
        Ok(())
    })
}

/// Gives the next event of a generation: one token, sampled and evaluated. The last event says so in
/// `finish_reason`; after it, and after an error, there is none: `MISTRAL_E_ARGUMENT`.
///
/// Ownership: `*event` and what it points to are the generation's; they live until the next call with it.
/// Threads: one at a time for each generation.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the generation has ended, or its constraint
/// lets no token follow), `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT` (`max_time_ms` of one call, or
/// the work of a constraint), `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_CANCELLED`,
/// `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_generation_next(
    generation: *mut mistral_generation,
    event: *mut *const mistral_event,
) -> mistral_status {
    call(|| {
        let generation = handle::get::<GenerationObject>("generation", generation)?;
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("event", event) }?;
        let mut running = generation.0.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Failure::busy("generation", "another call is using it"),
            TryLockError::Poisoned(_) => {
                Failure::internal("an earlier call on this generation failed inside the library: free it")
            }
        })?;
        let Running { generation, event, stop } = &mut *running;
        match generation.next(&mut Control::none().with_cancel(stop)) {
            None => Err(Failure::argument("generation", "one that has ended", "one that goes on")),
            Some(next) => {
                // The box of the event stays where it is until the object goes.
                out.write(ptr::from_ref(event.set(&next?)));
                Ok(())
            }
        }
    })
}

/// Ends a generation, finished or not, and gives its session back. The session keeps what was generated.
///
/// NULL allowed: `generation`: nothing is done.
/// Threads: one at a time for each generation.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_generation_free(generation: *mut mistral_generation) -> mistral_status {
    call(|| handle::remove::<GenerationObject>("generation", generation))
}
