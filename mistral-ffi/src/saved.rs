//! Sessions as bytes: save, load.

use std::ffi::{c_char, c_void};

use mistral_core::{LoadOptions, Session};

use crate::buffer::{self, Buffer};
use crate::cancel::Steering;
use crate::failure::Failure;
use crate::guard::call;
use crate::handle;
use crate::input::{self, Out};
use crate::model;
use crate::options;
use crate::session::{SessionObject, with_audit};
use crate::types::*;

/// Writes a session into a buffer, for `mistral_session_load`: its tokens, and the keys and values of the
/// positions in use; not the logits, which the last token gives again, nor the random numbers of
/// `mistral_sample`.
///
/// `options` is a JSON object: `key`, a secret of the host of at least 16 bytes, in hexadecimal digits or Base64.
/// With it, nobody without it can make or change a buffer that is loaded (HMAC-SHA-256). Without a key, damage
/// is found, and forgery is not. The buffer holds the conversation and is not encrypted.
///
/// The bytes are bound to the SHA-256 of the model's files, which the first call on a model computes: it reads
/// them all, about a second for each gigabyte that the system has in memory, and as long as the disk takes
/// otherwise. `progress` is called on the calling thread meanwhile, with the phase `"digest"`. Later calls only
/// read the cache of the session.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: `options` is UTF-8; the buffer is binary.
/// NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
/// Threads: several at once, but not while another call changes the session.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_BUSY`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_session_save(
    session: *const mistral_session,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        let session = handle::get::<SessionObject>("session", session)?;
        // SAFETY: the caller's promises of the header.
        let (options, out) =
            unsafe { (input::optional_text("options", options, options_len)?, Out::new("out", out)?) };
        let key = options::save(options)?;
        let steering = Steering::new(cancel, progress, user_data)?;
        let saved =
            session.with(|session| Ok(steering.run(|control| session.save(key.as_deref(), control))?))?;
        buffer::give(out, Buffer::bytes(saved)?)
    })
}

/// Makes a session from what `mistral_session_save` wrote, on the same model, opened on the same device with the
/// same `quantize` and `activation`. It goes on bit for bit as the one that was saved; the last token is evaluated
/// again by the next call that needs its logits.
///
/// `options` is a JSON object: `key` (the one that it was saved with; none where it was saved with none),
/// `context` (as many positions as it had if not given), `cache_type` (refused where the saved one is another), and
/// the bounds of a session and `audit`, as for `mistral_session_new`.
///
/// Nothing is believed or allocated before the bytes are known to be whole and this model's. The first call on a
/// model reads all its files, as `mistral_session_save` says.
///
/// Ownership: the caller frees `*out` with `mistral_session_free`; the session keeps the model alive. `blob` stays
/// the caller's and is not used afterwards.
/// Encoding: `options` is UTF-8; `blob` is binary.
/// NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_FORMAT` (no saved session), `MISTRAL_E_INTEGRITY` (damaged, of
/// another key or of another model), `MISTRAL_E_UNSUPPORTED` (of another version, or type of cache),
/// `MISTRAL_E_CONTEXT_FULL` (`context` is too small), `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`, `MISTRAL_E_AUDIT`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_session_load(
    model: *const mistral_model,
    blob: *const c_void,
    blob_len: usize,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
    out: *mut *mut mistral_session,
) -> mistral_status {
    call(|| {
        let model = model::get(model)?;
        if blob.is_null() {
            return Err(Failure::null("blob"));
        }
        // SAFETY: the caller's promises of the header.
        let (blob, options, out) = unsafe {
            let blob = input::slice::<u8>("blob", blob.cast(), blob_len)?;
            (blob, input::optional_text("options", options, options_len)?, Out::new("out", out)?)
        };
        let options = options::load(options)?;
        let load = LoadOptions {
            context: options.context,
            cache_type: options.cache_type,
            key: options.key.as_deref(),
        };
        let steering = Steering::new(cancel, progress, user_data)?;
        let session = steering.run(|control| Session::load(model, blob, &load, control))?;
        let session = with_audit(session.with_limits(options.limits), options.audit.as_ref())?;
        SessionObject::give(out, session)
    })
}
