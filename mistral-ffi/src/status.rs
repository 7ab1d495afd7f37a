//! Names and descriptions of the statuses.

use std::ffi::{CStr, c_char};

use crate::types::*;

/// Every status with its name and what it means: the numbers are frozen, and none is used again.
const STATUSES: [(mistral_status, &CStr, &CStr); 21] = [
    (MISTRAL_OK, c"MISTRAL_OK", c"no error"),
    (MISTRAL_E_NULL, c"MISTRAL_E_NULL", c"a pointer that must not be NULL is NULL"),
    (MISTRAL_E_ARGUMENT, c"MISTRAL_E_ARGUMENT", c"an argument, an option or a field of a request is wrong"),
    (MISTRAL_E_UTF8, c"MISTRAL_E_UTF8", c"text is not UTF-8"),
    (MISTRAL_E_HANDLE, c"MISTRAL_E_HANDLE", c"a handle was freed, is of another type, or never was one"),
    (MISTRAL_E_BUSY, c"MISTRAL_E_BUSY", c"another call is using the object"),
    (MISTRAL_E_NO_MEMORY, c"MISTRAL_E_NO_MEMORY", c"the system gives no more memory"),
    (MISTRAL_E_LIMIT, c"MISTRAL_E_LIMIT", c"a bound on size, time or work would be passed"),
    (MISTRAL_E_IO, c"MISTRAL_E_IO", c"the system refused to open, read or map a file"),
    (MISTRAL_E_FORMAT, c"MISTRAL_E_FORMAT", c"a file is damaged or breaks the rules of its format"),
    (MISTRAL_E_INTEGRITY, c"MISTRAL_E_INTEGRITY", c"contents do not match their digest"),
    (MISTRAL_E_SIGNATURE, c"MISTRAL_E_SIGNATURE", c"a signature is missing or wrong"),
    (
        MISTRAL_E_UNSUPPORTED,
        c"MISTRAL_E_UNSUPPORTED",
        c"not something that this library, build or model does",
    ),
    (
        MISTRAL_E_CONTEXT_FULL,
        c"MISTRAL_E_CONTEXT_FULL",
        c"the tokens do not fit into the context of the session",
    ),
    (MISTRAL_E_CANCELLED, c"MISTRAL_E_CANCELLED", c"the host cancelled the call"),
    (MISTRAL_E_BUFFER_TOO_SMALL, c"MISTRAL_E_BUFFER_TOO_SMALL", c"the caller's buffer is too small"),
    (MISTRAL_E_DEVICE, c"MISTRAL_E_DEVICE", c"a device could not be opened or failed"),
    (MISTRAL_E_DEVICE_LOST, c"MISTRAL_E_DEVICE_LOST", c"a device went away"),
    (MISTRAL_E_AUDIT, c"MISTRAL_E_AUDIT", c"the audit log could not be written"),
    (MISTRAL_E_FORKED, c"MISTRAL_E_FORKED", c"the handle belongs to the parent of this process"),
    (MISTRAL_E_INTERNAL, c"MISTRAL_E_INTERNAL", c"a bug of this library"),
];

/// The name of a status: `"MISTRAL_E_ARGUMENT"`; `"MISTRAL_E_?"` for a number that is none.
///
/// Ownership: the text is static.
/// Encoding: ASCII, NUL-terminated.
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_status_name(status: mistral_status) -> *const c_char {
    name(status).as_ptr()
}

/// What a status means, in a few English words.
///
/// Ownership: the text is static.
/// Encoding: ASCII, NUL-terminated.
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_status_description(status: mistral_status) -> *const c_char {
    find(status).map_or(c"not a status of this library", |row| row.2).as_ptr()
}

pub(crate) fn name(status: mistral_status) -> &'static CStr {
    find(status).map_or(c"MISTRAL_E_?", |row| row.1)
}

fn find(status: mistral_status) -> Option<&'static (mistral_status, &'static CStr, &'static CStr)> {
    STATUSES.iter().find(|row| row.0 == status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_frozen() {
        for (number, (status, name, _)) in STATUSES.iter().enumerate() {
            assert_eq!(*status as usize, number, "{name:?}");
        }
        assert_eq!(name(MISTRAL_E_FORKED), c"MISTRAL_E_FORKED");
        assert_eq!((name(-1), name(21)), (c"MISTRAL_E_?", c"MISTRAL_E_?"));
    }
}
