//! Bytes that the library hands to its host.

use std::ffi::c_char;

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::guard::{call, contain};
use crate::handle;
use crate::input::Out;
use crate::types::*;

/// Bytes and the NUL behind them; overwritten with zeros when they go, as all memory of the library is ([`crate::wipe`]).
pub(crate) struct Buffer(Vec<u8>);

impl Buffer {
    pub(crate) fn text(text: impl Into<String>) -> Outcome<Self> {
        Self::bytes(text.into().into_bytes())
    }

    pub(crate) fn bytes(mut bytes: Vec<u8>) -> Outcome<Self> {
        bytes.try_reserve_exact(1).map_err(|_| Failure::no_memory(bytes.len() + 1, "a buffer"))?;
        bytes.push(0);
        Ok(Self(bytes))
    }

    pub(crate) fn json(value: &Value) -> Outcome<Self> {
        Self::text(value.to_string())
    }

    pub(crate) fn as_ptr(&self) -> *const c_char {
        self.0.as_ptr().cast()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() - 1
    }
}

/// Hands `buffer` to the caller.
pub(crate) fn give(out: Out<*mut mistral_buf>, buffer: Buffer) -> Outcome {
    out.write(handle::insert(buffer)?);
    Ok(())
}

/// The bytes of a buffer, followed by a NUL; NULL if `buf` is not the handle of a buffer.
///
/// Ownership: the bytes are the buffer's, and live until it is freed.
/// Encoding: what the function that made the buffer says: most often UTF-8.
/// NULL allowed: `buf`.
/// Threads: any, several at once.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_buf_data(buf: *const mistral_buf) -> *const c_char {
    let found = contain(|| handle::get::<Buffer>("buf", buf)).and_then(|buffer| buffer);
    match found {
        // The table keeps the bytes where they are until the handle is freed.
        Ok(buffer) => buffer.as_ptr(),
        Err(failure) => {
            failure.keep();
            std::ptr::null()
        }
    }
}

/// The number of bytes of a buffer, without the NUL behind them; 0 if `buf` is not the handle of a buffer.
///
/// NULL allowed: `buf`.
/// Threads: any, several at once.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_buf_len(buf: *const mistral_buf) -> usize {
    let found = contain(|| handle::get::<Buffer>("buf", buf)).and_then(|buffer| buffer);
    match found {
        Ok(buffer) => buffer.len(),
        Err(failure) => {
            failure.keep();
            0
        }
    }
}

/// Overwrites the bytes of a buffer with zeros and frees it.
///
/// NULL allowed: `buf`: nothing is done.
/// Threads: one at a time for each buffer.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_buf_free(buf: *mut mistral_buf) -> mistral_status {
    call(|| handle::remove::<Buffer>("buf", buf))
}
