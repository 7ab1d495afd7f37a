//! Embeddings.

use std::ffi::c_char;
use std::ptr;

use crate::cancel::Steering;
use crate::failure::Failure;
use crate::guard::call;
use crate::input::{self, Out};
use crate::model;
use crate::options;
use crate::types::*;

/// Turns tokens into one vector of `dim` numbers (see `mistral_model_info`): the hidden states of the tokens after the
/// model's last norm, pooled. A text becomes tokens by `mistral_encode`, most often with its option `bos`.
///
/// `options` is a JSON object: `pooling` (`"mean"`, the default, of all tokens, or `"last"`: that of the last
/// token), `normalize` (`true`, the default, scales the vector to a length of 1). Mistral's generative models were
/// not trained to embed: expect rough similarities of them. There may be as many tokens as the model was made
/// for, and memory for their cache is needed during the call.
///
/// `*count` is written also with `MISTRAL_E_BUFFER_TOO_SMALL`, which is found before anything is evaluated: the
/// number of floats that there are.
///
/// Encoding: `options` is UTF-8.
/// NULL allowed: `options` if `options_len` is 0, `cancel`, `embedding` if `capacity` is 0.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT` (the options, no token, or one outside the
/// vocabulary), `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (the weights are damaged),
/// `MISTRAL_E_UNSUPPORTED` (no weights), `MISTRAL_E_CANCELLED`, `MISTRAL_E_BUFFER_TOO_SMALL`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_embed(
    model: *const mistral_model,
    tokens: *const u32,
    token_count: usize,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    embedding: *mut f32,
    capacity: usize,
    count: *mut usize,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        if tokens.is_null() {
            return Err(Failure::null("tokens"));
        }
        // SAFETY: the caller's promises of the header.
        let (tokens, options, embedding, count) = unsafe {
            (
                input::slice("tokens", tokens, token_count)?,
                input::optional_text("options", options, options_len)?,
                input::slice_mut("embedding", embedding, capacity)?,
                Out::new("count", count)?,
            )
        };
        let options = options::embed(options)?;
        let steering = Steering::new(cancel, None, ptr::null_mut())?;
        let needed = model.weights()?.config.dim;
        let Some(room) = embedding.get_mut(..needed) else {
            count.write(needed);
            return Err(Failure::too_small("embedding", needed, capacity));
        };
        room.copy_from_slice(&steering.run(|control| model.embed(tokens, &options, control))?);
        count.write(needed);
        Ok(())
    })
}
