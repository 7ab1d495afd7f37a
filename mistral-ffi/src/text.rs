//! Between text and tokens.

use std::ffi::c_char;

use crate::buffer::{self, Buffer};
use crate::failure::{Failure, Outcome};
use crate::guard::call;
use crate::input::{self, Out};
use crate::model;
use crate::options;
use crate::types::*;

/// Turns text into tokens.
///
/// `options` is a JSON object: `bos` (`true` puts the beginning-of-sequence token first, if the model's
/// tokenizer wants one), `special` (`true` reads the names of control tokens as these tokens: not for text of
/// users). Both are `false` if not given.
///
/// `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of tokens that there are.
///
/// Encoding: `text` and `options` are UTF-8.
/// NULL allowed: `options` if `options_len` is 0, `tokens` if `capacity` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the model has no tokenizer), `MISTRAL_E_BUFFER_TOO_SMALL`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_encode(
    model: *const mistral_model,
    text: *const c_char,
    text_len: usize,
    options: *const c_char,
    options_len: usize,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (text, options, tokens, count) = unsafe {
            (
                input::text("text", text, text_len)?,
                input::optional_text("options", options, options_len)?,
                input::slice_mut("tokens", tokens, capacity)?,
                Out::new("count", count)?,
            )
        };
        let options = options::encode(options)?;
        let tokenizer = model.tokenizer()?;
        let found =
            if options.special { tokenizer.encode_with_special(text) } else { tokenizer.encode(text) };
        let bos = tokenizer.bos().filter(|_| options.bos && tokenizer.adds_bos());
        let needed = found.len() + usize::from(bos.is_some());
        give_tokens(bos.into_iter().chain(found), needed, tokens, count)
    })
}

/// Writes `needed` tokens into the caller's room, or only their number where it is too small.
pub(crate) fn give_tokens(
    found: impl IntoIterator<Item = u32>,
    needed: usize,
    tokens: &mut [u32],
    count: Out<usize>,
) -> Outcome {
    count.write(needed);
    let capacity = tokens.len();
    let Some(room) = tokens.get_mut(..needed) else {
        return Err(Failure::too_small("tokens", needed, capacity));
    };
    room.iter_mut().zip(found).for_each(|(to, token)| *to = token);
    Ok(())
}

/// Turns tokens into text. Bytes that are not UTF-8 become U+FFFD.
///
/// `options` is a JSON object: `special` (`true` writes the names of control tokens; `false`, the default,
/// leaves them out).
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: `options` and the text are UTF-8.
/// NULL allowed: `tokens` if `count` is 0, `options` if `options_len` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (a token that does not exist, or the
/// options), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`,
/// `MISTRAL_E_UNSUPPORTED` (the model has no tokenizer), `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_decode(
    model: *const mistral_model,
    tokens: *const u32,
    count: usize,
    options: *const c_char,
    options_len: usize,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (tokens, options, out) = unsafe {
            let tokens = input::slice("tokens", tokens, count)?;
            (tokens, input::optional_text("options", options, options_len)?, Out::new("out", out)?)
        };
        let special = options::decode(options)?;
        let text = model.tokenizer()?.decode(tokens, !special)?;
        buffer::give(out, Buffer::text(text)?)
    })
}

/// Turns the text before and after a gap into the tokens from which a model of the Codestral family writes
/// what stands in the gap: give them to `mistral_generate`, whose text is the filling.
///
/// `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`: the number of tokens that there are.
///
/// Encoding: `prompt` and `suffix` are UTF-8.
/// NULL allowed: `tokens` if `capacity` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the chat format is v1), `MISTRAL_E_UTF8`,
/// `MISTRAL_E_HANDLE`, `MISTRAL_E_LIMIT`, `MISTRAL_E_UNSUPPORTED` (the model cannot, or has no tokenizer),
/// `MISTRAL_E_BUFFER_TOO_SMALL`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_fim_encode(
    model: *const mistral_model,
    prompt: *const c_char,
    prompt_len: usize,
    suffix: *const c_char,
    suffix_len: usize,
    tokens: *mut u32,
    capacity: usize,
    count: *mut usize,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        // SAFETY: the caller's promises of the header.
        let (prompt, suffix, tokens, count) = unsafe {
            (
                input::text("prompt", prompt, prompt_len)?,
                input::text("suffix", suffix, suffix_len)?,
                input::slice_mut("tokens", tokens, capacity)?,
                Out::new("count", count)?,
            )
        };
        let found = model.fim_encode(prompt, suffix)?;
        let needed = found.len();
        give_tokens(found, needed, tokens, count)
    })
}
