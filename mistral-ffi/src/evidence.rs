//! Evidence: whether a model is the one that someone vouched for, and whether an audit log is whole.

use std::ffi::{c_char, c_void};

use mistral_core::{audit, provenance};

use crate::buffer::{self, Buffer};
use crate::cancel::Steering;
use crate::guard::call;
use crate::input::{self, Out};
use crate::options;
use crate::types::*;

/// Verifies the files of the model at `path`, a folder or a file, against a manifest of their SHA-256 or a
/// signature of OpenSSF Model Signing, offline; `*out` then says what was verified. The same object as the
/// option `verify` of `mistral_model_open` makes it a condition of opening.
///
/// `options` is a JSON object: `manifest` (a path; `{"files": [{"name", "sha256", "bytes"}]}`, or what
/// `sha256sum` writes), `signature` (a path; a Sigstore bundle, version 0.3, made with a bare key), `keys` (a
/// list of public keys as PEM, ECDSA on P-256, P-384 or P-521, one of which must have made the signature),
/// `ignore` (names of files and folders that may lie in the folder although nothing vouches for them). Manifest
/// or signature must be given; what a signature says itself to ignore is not ignored.
///
/// Every file is read once; `progress` is called on the calling thread, with the phase `"verify"`.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: `path` and `options` are UTF-8, the report is UTF-8 JSON.
/// NULL allowed: `cancel`, `progress`, `user_data`.
/// Threads: any.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_IO`, `MISTRAL_E_FORMAT` (no manifest or bundle, or
/// names in it that lead out of the folder), `MISTRAL_E_INTEGRITY` (a file is missing, unexpected, a link or
/// another), `MISTRAL_E_SIGNATURE` (of another key, or of something else), `MISTRAL_E_UNSUPPORTED`,
/// `MISTRAL_E_CANCELLED`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_verify(
    path: *const c_char,
    path_len: usize,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promises of the header.
        let (path, options, out) = unsafe {
            let path = input::text("path", path, path_len)?;
            (path, input::text("options", options, options_len)?, Out::new("out", out)?)
        };
        let options = options::verify(Some(options))?;
        let steering = Steering::new(cancel, progress, user_data)?;
        let verified = steering.run(|control| provenance::verify(path, &options, control))?;
        buffer::give(out, Buffer::json(&verified.to_json())?)
    })
}

/// Verifies the audit log at `path`, with the files that were rotated away from it; `*out` then says how many
/// records it has and what the last one is. A log is written by models and sessions with the option `audit`.
///
/// Each record has the hash of the one before it, so a record that was changed, removed or moved is found. That
/// records were cut off at the end, or the chain computed anew, is found against a checkpoint: `checkpoint` of
/// an earlier report, of `mistral_model_info`, or of the file that the option `audit` names.
///
/// `options` is a JSON object: `checkpoints` (a list of objects `{"seq", "hash", "mac"}`; one may be the record
/// before the oldest that was kept), `checkpoint_key` (hexadecimal digits or Base64: the key that
/// must have signed them; not without `checkpoints`), `allow_incomplete` (`true`: the log may end in the beginning
/// of a record, as a crash leaves it).
///
/// `progress` is called on the calling thread, with the phase `"audit"`.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: `path` and `options` are UTF-8, the report is UTF-8 JSON.
/// NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
/// Threads: any.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_IO` (also for what is no regular file),
/// `MISTRAL_E_INTEGRITY` (the log is damaged), `MISTRAL_E_SIGNATURE` (a checkpoint that the key has not signed),
/// `MISTRAL_E_CANCELLED`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_audit_verify(
    path: *const c_char,
    path_len: usize,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promises of the header.
        let (path, options, out) = unsafe {
            let path = input::text("path", path, path_len)?;
            (path, input::optional_text("options", options, options_len)?, Out::new("out", out)?)
        };
        let options = options::audit_verify(options)?;
        let steering = Steering::new(cancel, progress, user_data)?;
        let report = steering.run(|control| audit::verify(path, &options, control))?;
        buffer::give(out, Buffer::json(&report.to_json())?)
    })
}
