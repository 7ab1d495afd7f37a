//! Models: open, describe, free.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use mistral_core::Model;

use crate::buffer::{self, Buffer};
use crate::cancel::Steering;
use crate::failure::Outcome;
use crate::guard::call;
use crate::handle;
use crate::input::{self, Out};
use crate::options;
use crate::types::*;

/// What the handle of a model stands for.
pub(crate) struct ModelObject(pub(crate) Arc<Model>);

/// The model of a handle.
pub(crate) fn get(model: *const mistral_model) -> Outcome<Arc<Model>> {
    Ok(Arc::clone(&handle::get::<ModelObject>("model", model)?.0))
}

/// Opens the checkpoint at `path`: a folder or a file. The files are mapped, and must not change while the
/// model is open.
///
/// `options` is a JSON object: `device` (`"cpu"`, which is the default; `"wgpu"`, the first adapter; `"wgpu:N"` or `"wgpu:NAME"`, one of those that
/// `mistral_devices` lists; `"auto"`, a graphics processor with enough memory, else `"cpu"`: `mistral_model_info` says which
/// and why), `gpu_layers` (of a device with memory of its own: how many layers go there, the last ones first, the others to
/// the processor; `"all"`; `"auto"`, the default: as many as fit), `threads`, `quantize`
/// (`"q8_0"`, `"q4_0"`, `"q4_k"`: float weights are turned into these blocks while loading), `activation`
/// (`"int8"`, `"f32"`: how activations meet weights in blocks), `weights` (`false` opens the tokenizer alone),
/// `reproducible` and `lock_memory` (see below), `tokenizer_version` (`"v3"` ...: Mistral's chat format, where the files do not tell it), `verify` (an object,
/// the options of `mistral_verify`: the model is opened only if its files are what a manifest or a signature
/// vouches for, and from the very bytes that were verified), `audit` (see below). A relative path starts at the
/// current directory, as everywhere.
///
/// `audit` is an object that makes the model, and sessions without an `audit` of their own, write down what runs:
/// a record before and one after each evaluation and answer, chained by SHA-256 (see `mistral_audit_verify`). Its
/// keys: `path` (of the log, a regular file, which is continued if it is one; `PATH.lock` lies beside it), `required`
/// (`true`: what cannot be written down does not run, `MISTRAL_E_AUDIT`), `key` (a secret of at least 16 bytes, in hexadecimal digits or Base64, for the
/// HMAC-SHA-256 of prompts and answers; none are written without it), `text` (`true`: prompts and answers
/// themselves, too), `rotate_bytes` (the file is then renamed to `PATH.1` ... and a new one begun), `sync_every`
/// (records after which they are forced to the disk; by default the system decides), `checkpoint` (an object:
/// `path`, `every` so many records, `key`), `caller_ref` (what the host calls those for whom it runs; at most 256
/// bytes). Models and sessions of a process that name the same log share it; other processes are refused,
/// children of `fork` among them.
///
/// `reproducible` (`true`) guarantees that the same build, device, options and seed give the same tokens: every
/// time (D1), alone or while other sequences run (D2), and with any number of threads (D3). Opening then evaluates
/// a few tokens in two ways, compares the bits, and fails with `MISTRAL_E_DEVICE` where they differ; a device that
/// cannot guarantee it is refused with `MISTRAL_E_UNSUPPORTED`. `mistral_model_info` reports the levels, and for
/// what machine they hold.
///
/// `lock_memory` (`true`) keeps the keys and values of sessions out of the swap; where the system does not let them
/// be locked (`ulimit -l`), making a session is refused with `MISTRAL_E_LIMIT`. Not the weights, which are no secret.
///
/// `large_pages` (`true` by default; Linux): once the model is open, a thread moves its packed weights to pages of 2 MiB, which
/// takes some seconds a gigabyte. Tokens take longer while that goes on, and are sooner there afterwards; what they are does not
/// change. `mistral_model_info` says how far it is (`weights.large_pages`: `bytes`, `of`); it ends when it is done, or with
/// the model. `false` leaves them where they are: for a model that is opened for a few tokens.
///
/// What the library frees was overwritten before, or given back to the system, which overwrites it: prompts, tokens,
/// answers, keys and values, saved sessions and everything on the way between them. What a session forgets is
/// overwritten at once. Not reached: registers, the swap without `lock_memory`, and what the host has copied.
///
/// Bounds, each refused with `MISTRAL_E_LIMIT` before anything is allocated for it: `max_memory` (bytes for
/// weights and caches together), `max_model_bytes` (of the files with weights), `max_sessions` (at a time, with
/// those that `mistral_chat` and `mistral_embed` make for themselves); and for every call on the model or its
/// sessions, not for opening it: `max_prompt_tokens` (tokens given to one call, or of a whole conversation),
/// `max_output_tokens` (of one answer: asking for more is refused, asking for no number ends there),
/// `max_time_ms` (milliseconds: the call ends where it could be cancelled, and a session keeps what was
/// evaluated).
///
/// `progress` is called on the calling thread.
///
/// Ownership: the caller frees `*out` with `mistral_model_free`; its sessions may outlive the handle.
/// Encoding: `path` and `options` are UTF-8.
/// NULL allowed: `options` if `options_len` is 0, `cancel`, `progress`, `user_data`.
/// Threads: any.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_HANDLE`,
/// `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_IO`, `MISTRAL_E_FORMAT`, `MISTRAL_E_INTEGRITY`,
/// `MISTRAL_E_SIGNATURE`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_CANCELLED`, `MISTRAL_E_DEVICE`,
/// `MISTRAL_E_AUDIT`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "C has no slices")]
pub unsafe extern "C" fn mistral_model_open(
    path: *const c_char,
    path_len: usize,
    options: *const c_char,
    options_len: usize,
    cancel: *const mistral_cancel,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
    out: *mut *mut mistral_model,
) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promises of the header.
        let (path, options, out) = unsafe {
            let path = input::text("path", path, path_len)?;
            (path, input::optional_text("options", options, options_len)?, Out::new("out", out)?)
        };
        let options = options::model(options)?;
        let steering = Steering::new(cancel, progress, user_data)?;
        let model = steering.run(|control| Model::open(path, &options, control))?;
        out.write(handle::insert(ModelObject(model))?);
        Ok(())
    })
}

/// What a model is, as a JSON object: its architecture and shape, device, files, and what its tokenizer is. The
/// `sha256` of the files is null until a session is saved or loaded, which computes it.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: UTF-8 JSON.
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`,
/// `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_model_info(
    model: *const mistral_model,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("out", out) }?;
        let model = get(model)?;
        buffer::give(out, Buffer::json(&model.info())?)
    })
}

/// What a model would take, without opening it: reads the headers of its files, in milliseconds, and no weights.
///
/// `options` is a JSON object: those of `mistral_model_open`, of a session (`context`, `cache_type`), and
/// `sessions` (how many; 1 if not given). `*out` is a JSON object: `weights_bytes` (of the files), `cache_bytes`
/// (of one session), `total_bytes` (what counts against `max_memory`: weights and all caches), `context`,
/// `cache_type`, `sessions`, and `format` (`"gguf"`, `"safetensors"`), `files` (each with `path` and `bytes`),
/// `architecture`, `n_layers`, `vocab_size`, `max_context`. Activations and the program itself take some tens
/// of megabytes more. If `device` has memory of its own, or is `"auto"`: `gpu_layers` (as many as `gpu_layers` of
/// the options asks for, or all) and `device_bytes` (what these take of that memory with one session, at most: to
/// be held against `memory_bytes` of `mistral_devices`).
///
/// What opening the model and the sessions would refuse is refused here too, as far as the headers tell: files
/// that are damaged or not supported, options out of range, bounds that it would pass.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: `path` and `options` are UTF-8, `*out` UTF-8 JSON.
/// NULL allowed: `options` if `options_len` is 0.
/// Threads: any.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_ARGUMENT`, `MISTRAL_E_UTF8`, `MISTRAL_E_NO_MEMORY`,
/// `MISTRAL_E_LIMIT`, `MISTRAL_E_IO`, `MISTRAL_E_FORMAT`, `MISTRAL_E_UNSUPPORTED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_model_estimate(
    path: *const c_char,
    path_len: usize,
    options: *const c_char,
    options_len: usize,
    out: *mut *mut mistral_buf,
) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promises of the header.
        let (path, options, out) = unsafe {
            let path = input::text("path", path, path_len)?;
            (path, input::optional_text("options", options, options_len)?, Out::new("out", out)?)
        };
        let (model, session, sessions) = options::estimate(options)?;
        let estimate = mistral_core::estimate(path, &model, &session, sessions)?;
        buffer::give(out, Buffer::json(&estimate)?)
    })
}

/// Gives a model up. Its memory goes when its last session has been freed and its last call has ended.
///
/// NULL allowed: `model`: nothing is done.
/// Threads: one at a time for each model.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_model_free(model: *mut mistral_model) -> mistral_status {
    call(|| handle::remove::<ModelObject>("model", model))
}
