//! Chat: a request of the chat-completions API in, its response out.

use std::ffi::{c_char, c_void};
use std::ptr;

use mistral_core::Control;
use serde_json::Value;

use crate::buffer::{self, Buffer};
use crate::cancel::Steering;
use crate::failure::{Failure, Outcome};
use crate::guard::call;
use crate::handle;
use crate::input::{self, Out};
use crate::model;
use crate::options;
use crate::session::SessionObject;
use crate::types::*;

/// Answers a chat-completions request: the JSON body that Mistral's and OpenAI's APIs take, `messages` and
/// the rest. If it says `"stream": true`, `callback` is given each chunk object (without the `data:` of an
/// HTTP stream) on the calling thread; `*response` is the whole response either way.
///
/// Non-zero from `callback` ends the call with `MISTRAL_E_CANCELLED`.
///
/// Ownership: the caller frees `*response` with `mistral_buf_free`.
/// Encoding: `request`, the chunks and the response are UTF-8 JSON.
/// NULL allowed: `cancel`, `callback` if the request does not ask for a stream, `user_data`.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CONTEXT_FULL`,
/// `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_chat(
    model: *const mistral_model,
    request: *const c_char,
    request_len: usize,
    cancel: *const mistral_cancel,
    callback: mistral_chunk_fn,
    user_data: *mut c_void,
    response: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (exchange, response) = unsafe {
            let exchange = Exchange::read((request, request_len), cancel, callback, user_data)?;
            (exchange, Out::new("response", response)?)
        };
        let answer = exchange.run(|request, chunk, control| Ok(model.chat(request, chunk, control)?))?;
        buffer::give(response, Buffer::json(&answer)?)
    })
}

/// Answers a chat-completions request on a session: what the conversation shares with the session's timeline,
/// such as its earlier turns, is not evaluated again, and the rest of the timeline is forgotten. The
/// response says in `usage.prompt_tokens_details.cached_tokens` how many tokens that saved. Send the whole
/// conversation each time. Everything else is as for `mistral_chat`.
///
/// The context is that of the session: a conversation that does not fit is refused with
/// `MISTRAL_E_CONTEXT_FULL`, and leaves the session as it was; an answer ends where the context does. A call on
/// this session from `callback` is refused with `MISTRAL_E_BUSY`.
///
/// Ownership: the caller frees `*response` with `mistral_buf_free`.
/// Encoding: `request`, the chunks and the response are UTF-8 JSON.
/// NULL allowed: `cancel`, `callback` if the request does not ask for a stream, `user_data`.
/// Threads: one at a time for each session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_BUSY`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
/// `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_session_chat(
    session: *mut mistral_session,
    request: *const c_char,
    request_len: usize,
    cancel: *const mistral_cancel,
    callback: mistral_chunk_fn,
    user_data: *mut c_void,
    response: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        let session = handle::get::<SessionObject>("session", session)?;
        // SAFETY: the caller's promises of the header.
        let (exchange, response) = unsafe {
            let exchange = Exchange::read((request, request_len), cancel, callback, user_data)?;
            (exchange, Out::new("response", response)?)
        };
        let answer = session.with_mut(|session| {
            exchange.run(|request, chunk, control| Ok(session.chat(request, chunk, control)?))
        })?;
        buffer::give(response, Buffer::json(&answer)?)
    })
}

/// A request, and where its chunks go.
struct Exchange {
    request: Value,
    steering: Steering,
    callback: mistral_chunk_fn,
    user_data: *mut c_void,
}

impl Exchange {
    /// # Safety
    /// As [`input::text`] for `request`.
    unsafe fn read(
        (request, request_len): (*const c_char, usize),
        cancel: *const mistral_cancel,
        callback: mistral_chunk_fn,
        user_data: *mut c_void,
    ) -> Outcome<Self> {
        // SAFETY: the caller's promise.
        let request = options::json("request", unsafe { input::text("request", request, request_len) }?)?;
        if callback.is_none() && request.get("stream") == Some(&Value::Bool(true)) {
            return Err(Failure::null("callback"));
        }
        let steering = Steering::new(cancel, None, ptr::null_mut())?;
        Ok(Self { request, steering, callback, user_data })
    }

    /// What `answer` makes of the request; the host gets the chunks.
    fn run(
        &self,
        answer: impl FnOnce(&Value, &mut dyn FnMut(Value), &mut Control<'_>) -> Outcome<Value>,
    ) -> Outcome<Value> {
        let mut chunk = |chunk: Value| {
            if let Some(callback) = self.callback {
                let mut text = chunk.to_string();
                let len = text.len();
                text.push('\0');
                // SAFETY: the function was given for this; the text is NUL-terminated and lives until it returns.
                if unsafe { callback(self.user_data, text.as_ptr().cast(), len) } != 0 {
                    self.steering.stop.cancel();
                }
            }
        };
        self.steering.run(|control| answer(&self.request, &mut chunk, control))
    }
}
