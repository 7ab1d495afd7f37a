//! The host's log: where the library says what it has to say, since it prints nothing.

use std::cell::Cell;
use std::ffi::c_void;
use std::sync::{PoisonError, RwLock};

use crate::failure::Failure;
use crate::guard::call;
use crate::types::*;

/// The host's function and its argument.
struct Sink {
    callback: unsafe extern "C" fn(*mut c_void, i32, *const std::ffi::c_char, usize),
    user_data: *mut c_void,
}

// SAFETY: the header says that the callback may be called from any thread, and its argument goes with it.
unsafe impl Send for Sink {}
// SAFETY: as above; several threads at once are part of that promise.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

thread_local! {
    /// Whether this thread is inside the callback.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Sets the function that is given what the library has to say, for the whole process; NULL ends it. When
/// this returns, the function that was set before is not running and will not be called again. A library
/// without one is silent: it never writes to standard output or standard error.
///
/// Ownership: `user_data` stays the caller's, and must live until another function is set.
/// NULL allowed: `callback`, `user_data`.
/// Threads: any, but not from within the callback.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_BUSY` (called from the callback), `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_set_log(callback: mistral_log_fn, user_data: *mut c_void) -> mistral_status {
    call(|| {
        if INSIDE.get() {
            return Err(Failure::busy("log", "this call comes from its callback"));
        }
        let sink = callback.map(|callback| Sink { callback, user_data });
        *SINK.write().unwrap_or_else(PoisonError::into_inner) = sink;
        Ok(())
    })
}

/// Gives the host a message. What its callback causes in turn is not told.
pub(crate) fn write(level: i32, message: &str) {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            INSIDE.set(false);
        }
    }
    if INSIDE.replace(true) {
        return;
    }
    let _leave = Leave;
    let sink = SINK.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(sink) = sink.as_ref() {
        let text = format!("{message}\0");
        // SAFETY: the function was given for this; the text is NUL-terminated and lives until it returns.
        unsafe { (sink.callback)(sink.user_data, level, text.as_ptr().cast(), message.len()) };
    }
}
