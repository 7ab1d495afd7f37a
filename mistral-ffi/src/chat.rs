//! Chat: a request of the chat-completions API in, its response out; and the steps between them, for hosts that
//! run these themselves.

use std::ffi::{c_char, c_void};
use std::ptr;

use mistral_core::Written;
use mistral_core::chat::response;
use serde_json::Value;

use crate::buffer::{self, Buffer};
use crate::cancel::Steering;
use crate::failure::Failure;
use crate::guard::call;
use crate::input::{self, Out};
use crate::model;
use crate::options;
use crate::text::give_tokens;
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

/// Turns a chat-completions request into the tokens that the model reads for it. Of the request, `messages`,
/// `tools`, `response_format` and `reasoning_effort` change them; the other fields are checked.
///
/// `options` is a JSON object: `mode` (`"test"`, the default; `"serving"`, `"finetuning"`, `"agnostic"`: the
/// rules of how a conversation may end, by their names in mistral-common), `local_time` (seconds since 1970
/// in local time, for the templates that write the date).
///
/// `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of tokens that there are.
///
/// Encoding: `request` and `options` are UTF-8 JSON.
/// NULL allowed: `options` if `options_len` is 0, `tokens` if `capacity` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (also a conversation that breaks a rule of
/// the chat format), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the
/// model has no tokenizer or chat format, or a field cannot be honoured), `MISTRAL_E_BUFFER_TOO_SMALL`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_chat_encode(
    model: *const mistral_model,
    request: *const c_char,
    request_len: usize,
    options: *const c_char,
    options_len: usize,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (request, options, tokens, count) = unsafe {
            (
                input::text("request", request, request_len)?,
                input::optional_text("options", options, options_len)?,
                input::slice_mut("tokens", tokens, capacity)?,
                Out::new("count", count)?,
            )
        };
        let found = model.chat_encode_with(&options::request(request)?, &options::chat(options)?)?;
        let needed = found.len();
        give_tokens(found, needed, tokens, count)
    })
}

/// Turns a chat-completions request into the text that the model reads for it, control tokens by their
/// names, as mistral-common shows it: of a SentencePiece vocabulary the pieces, with U+2581 for a space. It is
/// for people: the tokens of this text may be others than those of `mistral_chat_encode`. Options as for that
/// function.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: `request` and `options` are UTF-8 JSON, the text is UTF-8.
/// NULL allowed: `options` if `options_len` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (also a conversation that breaks a rule of
/// the chat format), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`,
/// `MISTRAL_E_UNSUPPORTED` (as for `mistral_chat_encode`), `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_chat_render(
    model: *const mistral_model,
    request: *const c_char,
    request_len: usize,
    options: *const c_char,
    options_len: usize,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (request, options, out) = unsafe {
            let request = input::text("request", request, request_len)?;
            (request, input::optional_text("options", options, options_len)?, Out::new("out", out)?)
        };
        let text = model.chat_render(&options::request(request)?, &options::chat(options)?)?;
        buffer::give(out, Buffer::text(text)?)
    })
}

/// Reads what a model has written back as a message of the assistant: `content`, `reasoning_content`,
/// `tool_calls`, and `broken_tool_calls` for those that are cut off or malformed. What was written is either
/// `text`, control tokens by their names, or `tokens`; the other is NULL.
///
/// `options` is a JSON object: `tokenizer_version` (`"v7"` ...: Mistral's format in which it is read, if not
/// the model's own).
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: `text` is UTF-8, `options` and the message are UTF-8 JSON.
/// NULL allowed: `text` if `text_len` is 0, `tokens` if `count` is 0, `options` if `options_len` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (a token that does not exist, text and
/// tokens together, or the options), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`,
/// `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the model has no tokenizer), `MISTRAL_E_FORKED`,
/// `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_chat_parse(
    model: *const mistral_model,
    text: *const c_char,
    text_len: usize,
    tokens: *const u32,
    count: usize,
    options: *const c_char,
    options_len: usize,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (text, tokens, options, out) = unsafe {
            (
                input::optional_text("text", text, text_len)?,
                input::slice("tokens", tokens, count)?,
                input::optional_text("options", options, options_len)?,
                Out::new("out", out)?,
            )
        };
        let written = match text {
            Some(_) if count > 0 => return Err(Failure::argument("tokens", "tokens beside a text", "one of both")),
            Some(text) => Written::Text(text),
            None => Written::Tokens(tokens),
        };
        let answer = model.chat_parse(written, options::parse(options)?)?;
        buffer::give(out, Buffer::json(&response::message(&answer))?)
    })
}
