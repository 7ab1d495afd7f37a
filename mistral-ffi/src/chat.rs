//! Chat: a request of the chat-completions API in, its response out; and the steps between them, for hosts that
//! run these themselves.

use std::ffi::{c_char, c_void};
use std::ptr;

use mistral_core::chat::request::ChatRequest;
use mistral_core::chat::response;
use mistral_core::{Control, Written};
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
use crate::text::give_tokens;
use crate::types::*;

/// Answers a chat-completions request: the JSON body that Mistral's and OpenAI's APIs take, `messages` and
/// the rest. If it says `"stream": true`, `callback` is given each chunk object (without the `data:` of an
/// HTTP stream) on the calling thread; `*response` is the whole response either way.
///
/// With `"sidecar": true` each choice of the response has a `sidecar`: a JSON object to keep beside the answer, which
/// says that it was generated (`ai_generated`), when, by which model (`model.sha256`, which the first such call
/// computes: it reads all files of the model), and of which text it says so (`output.sha256`, of
/// `message.content`).
///
/// If the last message is the assistant's and says `"prefix": true`, the answer goes on from it and begins with it, in
/// the response and in the chunks. `"local_time"` of a request is as the option of `mistral_chat_encode`: the library
/// does not look at a clock for it.
///
/// Non-zero from `callback` ends the call with `MISTRAL_E_CANCELLED`, at the last chunk as well.
///
/// Ownership: the caller frees `*response` with `mistral_buf_free`.
/// Encoding: `request`, the chunks and the response are UTF-8 JSON.
/// NULL allowed: `cancel`, `callback` if the request does not ask for a stream, `user_data`.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
/// `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
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
        let answer =
            exchange.run(|request, chunk, control| Ok(model.chat_request(request, chunk, control)?))?;
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
/// `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CONTEXT_FULL`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
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
            exchange.run(|request, chunk, control| Ok(session.chat_request(request, chunk, control)?))
        })?;
        buffer::give(response, Buffer::json(&answer)?)
    })
}

/// A request, and where its chunks go.
struct Exchange {
    request: ChatRequest,
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
        let request = options::request(unsafe { input::text("request", request, request_len) }?)?;
        if callback.is_none() && request.stream {
            return Err(Failure::null("callback"));
        }
        let steering = Steering::new(cancel, None, ptr::null_mut())?;
        Ok(Self { request, steering, callback, user_data })
    }

    /// What `answer` makes of the request; the host gets the chunks.
    fn run(
        &self,
        answer: impl FnOnce(&ChatRequest, &mut dyn FnMut(Value), &mut Control<'_>) -> Outcome<Value>,
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

/// Turns a chat-completions request into the tokens that the model reads for it. Of the request, `messages`,
/// `tools`, `response_format`, `reasoning_effort` and `local_time` change them; the other fields are checked.
///
/// `options` is a JSON object: `mode` (`"test"`, the default; `"serving"`, `"finetuning"`, `"agnostic"`: the
/// rules of how a conversation may end, by their names in mistral-common), `local_time` (seconds since 1970
/// in local time, for the templates that write the date; it goes before the field `local_time` of the request).
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
            Some(_) if count > 0 => {
                return Err(Failure::argument("tokens", "tokens beside a text", "one of both"));
            }
            Some(text) => Written::Text(text),
            None => Written::Tokens(tokens),
        };
        let answer = model.chat_parse(written, options::parse(options)?)?;
        buffer::give(out, Buffer::json(&response::message(&answer))?)
    })
}
