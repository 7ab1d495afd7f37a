//! Reading the caller's pointers: each is checked before it is followed.

use std::ffi::c_char;
use std::slice;

use crate::failure::{Failure, Outcome};
use crate::types::*;

/// Where a result goes; written only on success.
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    /// None where `out` is NULL.
    ///
    /// # Safety
    /// As [`Out::new`].
    pub(crate) unsafe fn optional(name: &str, out: *mut T) -> Outcome<Option<Self>> {
        // SAFETY: the caller's promise.
        if out.is_null() { Ok(None) } else { unsafe { Self::new(name, out) }.map(Some) }
    }

    /// # Safety
    /// `out` is NULL or may be written for as long as this lives.
    pub(crate) unsafe fn new(name: &str, out: *mut T) -> Outcome<Self> {
        match out {
            _ if out.is_null() => Err(Failure::null(name)),
            _ if !out.is_aligned() => Err(misaligned::<T>(name)),
            _ => Ok(Self(out)),
        }
    }

    pub(crate) fn write(self, value: T) {
        // SAFETY: checked and promised in `new`.
        unsafe { self.0.write(value) };
    }
}

/// `len` elements at `data`; NULL is no element where `len` is 0.
///
/// # Safety
/// `data` is NULL or points to `len` elements that do not change during `'a`.
pub(crate) unsafe fn slice<'a, T>(name: &str, data: *const T, len: usize) -> Outcome<&'a [T]> {
    check::<T>(name, data, len)?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: checked above and promised by the caller.
    Ok(unsafe { slice::from_raw_parts(data, len) })
}

/// Room for `len` elements at `data`; NULL is no room where `len` is 0.
///
/// # Safety
/// `data` is NULL or points to `len` elements that nothing else uses during `'a`.
pub(crate) unsafe fn slice_mut<'a, T>(name: &str, data: *mut T, len: usize) -> Outcome<&'a mut [T]> {
    check::<T>(name, data, len)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: checked above and promised by the caller.
    Ok(unsafe { slice::from_raw_parts_mut(data, len) })
}

/// UTF-8 text; NULL is not text, not even of length 0.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn text<'a>(name: &str, data: *const c_char, len: usize) -> Outcome<&'a str> {
    if data.is_null() {
        return Err(Failure::null(name));
    }
    // SAFETY: promised by the caller; bytes have no alignment.
    let bytes = unsafe { slice::<u8>(name, data.cast(), len) }?;
    std::str::from_utf8(bytes).map_err(|e| {
        let message = format!("argument `{name}`: the bytes from {} on are not UTF-8", e.valid_up_to());
        Failure::new(MISTRAL_E_UTF8, message).part("argument", name).part("offset", e.valid_up_to())
    })
}

/// UTF-8 text; none where it is NULL and of length 0.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn optional_text<'a>(
    name: &str,
    data: *const c_char,
    len: usize,
) -> Outcome<Option<&'a str>> {
    if data.is_null() && len == 0 {
        return Ok(None);
    }
    // SAFETY: promised by the caller.
    unsafe { text(name, data, len) }.map(Some)
}

fn check<T>(name: &str, data: *const T, len: usize) -> Outcome {
    if data.is_null() && len > 0 {
        return Err(Failure::null(name));
    }
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return Err(Failure::argument(name, format!("a length of {len}"), "one that fits into memory"));
    }
    if !data.is_null() && !data.is_aligned() {
        return Err(misaligned::<T>(name));
    }
    Ok(())
}

fn misaligned<T>(name: &str) -> Failure {
    Failure::argument(name, "a misaligned pointer", format!("a multiple of {}", align_of::<T>()))
}
