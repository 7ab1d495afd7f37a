//! Step by step: evaluate tokens, look at the logits, choose the next token.

use std::ffi::{c_char, c_void};
use std::ptr;

use mistral_core::Control;

use crate::cancel::Steering;
use crate::failure::Failure;
use crate::guard::call;
use crate::handle;
use crate::input::{self, Out};
use crate::options;
use crate::session::SessionObject;
use crate::types::*;

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
/// `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
/// `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
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

/// Copies out the logits after the last token of a session: one for each token of the model's vocabulary. Where
/// that token is not evaluated yet (one that was sampled, or the last one after `mistral_session_trim` or
/// `mistral_session_load`), this call evaluates it first; `mistral_sample` does so too, and can be cancelled.
///
/// `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of logits that there are.
///
/// NULL allowed: `logits` if `capacity` is 0.
/// Threads: several at once, but not while another call changes the session; one that has to evaluate changes it.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (there is no token), `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged), `MISTRAL_E_CONTEXT_FULL`
/// (no position is left for the last token), `MISTRAL_E_BUFFER_TOO_SMALL`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
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
        if !session.with(|session| Ok(session.is_settled() || session.tokens().is_empty()))? {
            session.with_mut(|session| Ok(session.prefill(&[], &mut Control::none())?))?;
        }
        session.with(|session| {
            let found = session.logits();
            if found.is_empty() {
                let expected = "a call of mistral_prefill before";
                return Err(Failure::argument("session", "no evaluated token", expected));
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

/// Chooses the next token from the logits after the last one and appends it. It is evaluated by the next call
/// that needs it, so the last token of an answer costs nothing. The loop is
/// `mistral_prefill(prompt)`, then `mistral_sample` until the host has enough; `mistral_logits` may be called
/// in between, and `mistral_prefill` to go on with tokens of the host's own. End-of-sequence tokens
/// (`eos_token_ids` of `mistral_model_info`) are tokens like others here.
///
/// `options` is a JSON object: `temperature` (0, the default, takes the most probable token), `top_k`, `top_p`,
/// `min_p`, `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `penalty_window`, `logit_bias`, `seed`,
/// all as for `mistral_generate`. The same seed gives the tokens that `mistral_generate` gives: the random numbers
/// go on from call to call while the options stay the same, and begin anew, from the seed, with other options, and
/// after the session was trimmed, reset or used by `mistral_session_chat`.
///
/// `*logprob` is the natural logarithm of the token's probability in the model's own distribution.
///
/// Encoding: `options` is UTF-8.
/// NULL allowed: `options` if `options_len` is 0, `cancel`, `logprob`.
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the options, or a session without a token),
/// `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_BUSY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are
/// damaged), `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_sample(
    session: *mut mistral_session,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    token: *mut u32,
    logprob: *mut f32,
) -> mistral_status {
    call(|| {
        let session = handle::get::<SessionObject>("session", session)?;
        // SAFETY: the caller's promises of the header.
        let (options, token, logprob) = unsafe {
            let options = input::optional_text("options", options, options_len)?;
            (options, Out::new("token", token)?, Out::optional("logprob", logprob)?)
        };
        let mut sampling = options::sample(options)?;
        // It always counts, so that asking for it changes nothing else.
        sampling.logprobs = Some(0);
        let steering = Steering::new(cancel, None, ptr::null_mut())?;
        let sampled =
            session.with_mut(|session| Ok(steering.run(|control| session.sample(&sampling, control))?))?;
        token.write(sampled.token);
        if let Some(logprob) = logprob {
            logprob.write(sampled.logprob.unwrap_or(f32::NAN));
        }
        Ok(())
    })
}
