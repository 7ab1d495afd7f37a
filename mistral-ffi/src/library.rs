//! What the library is: version, build, devices.

use std::ffi::{CStr, c_char};

use serde_json::json;

use crate::buffer::{self, Buffer};
use crate::guard::call;
use crate::input::Out;
use crate::types::*;

/// The version of the library: `"1.2.3"`.
///
/// Ownership: the text is static.
/// Encoding: ASCII, NUL-terminated.
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version has no NUL"),
        };
    VERSION.as_ptr()
}

/// What this build of the library is, as a JSON object: `version`, `arch`, `os`, `devices`, `sampler` (the
/// name and version of the random generator: the same seed gives the same tokens where it is the same),
/// `determinism` (for each device the levels that the option `reproducible` of `mistral_model_open` guarantees),
/// `wipes_freed_memory` (`true`: see `mistral_model_open`).
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: UTF-8 JSON.
/// Threads: any.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_build_info(out: *mut *mut mistral_buf) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("out", out) }?;
        let info = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "arch": std::env::consts::ARCH,
            "os": std::env::consts::OS,
            "devices": mistral_core::device::names(),
            "sampler": mistral_core::sampler::GENERATOR,
            "wipes_freed_memory": true,
            "determinism": mistral_core::determinism::of_devices(),
        });
        buffer::give(out, Buffer::json(&info)?)
    })
}

/// The devices that this build can open on this machine, as a JSON list of objects with a `name`, which
/// `mistral_model_open` takes as the option `device`, and a `kind` (`"cpu"`, `"ndarray"`, `"wgpu"`). Those of the kind
/// `wgpu` have what their driver says of them: `adapter` (its name), `backend` (`"vulkan"`, `"metal"`, `"dx12"`), `driver`,
/// `type` (`"discrete"`, `"integrated"`, `"virtual"`, `"other"`, `"software"`), `vendor_id`, `device_id`, `memory_bytes` (null
/// where it is not said), `limits`, `f16`, `subgroups`. Where there is no driver, there are none of them.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: UTF-8 JSON.
/// Threads: any.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_devices(out: *mut *mut mistral_buf) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("out", out) }?;
        buffer::give(out, Buffer::json(&mistral_core::device::list().into())?)
    })
}
