//! Chat: a request of the chat-completions API in, its response out.

use std::ffi::{c_char, c_void};
use std::ptr;

use serde_json::Value;

use crate::buffer::{self, Buffer};
use crate::cancel::Steering;
use crate::failure::Failure;
use crate::guard::call;
use crate::input::{self, Out};
use crate::model;
use crate::options;
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
        let (request, response) =
            unsafe { (input::text("request", request, request_len)?, Out::new("response", response)?) };
        let request = options::json("request", request)?;
        if callback.is_none() && request.get("stream") == Some(&Value::Bool(true)) {
            return Err(Failure::null("callback"));
        }
        let steering = Steering::new(cancel, None, ptr::null_mut())?;
        let mut chunk = |chunk: Value| {
            if let Some(callback) = callback {
                let mut text = chunk.to_string();
                let len = text.len();
                text.push('\0');
                // SAFETY: the function was given for this; the text is NUL-terminated and lives until it returns.
                if unsafe { callback(user_data, text.as_ptr().cast(), len) } != 0 {
                    steering.stop.cancel();
                }
            }
        };
        let answer = steering.run(|control| model.chat(&request, &mut chunk, control))?;
        buffer::give(response, Buffer::json(&answer)?)
    })
}
