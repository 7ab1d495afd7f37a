//! Cancel objects, and how calls follow them.

use std::ffi::c_void;

use mistral_core::{CancelToken, Control, Progress};

use crate::failure::Outcome;
use crate::guard::call;
use crate::handle;
use crate::input::Out;
use crate::types::*;

/// Makes a cancel object, which stops the calls that are given it.
///
/// Ownership: the caller frees `*out` with `mistral_cancel_free`.
/// Threads: any.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_cancel_new(out: *mut *mut mistral_cancel) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("out", out) }?;
        out.write(handle::insert(CancelToken::new())?);
        Ok(())
    })
}

/// Stops the calls that were given `cancel`, those that run and those to come: they end with
/// `MISTRAL_E_CANCELLED`, within one step. Not for signal handlers.
///
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_cancel_trigger(cancel: *const mistral_cancel) -> mistral_status {
    call(|| {
        handle::get::<CancelToken>("cancel", cancel)?.cancel();
        Ok(())
    })
}

/// Makes a cancel object that was triggered usable again.
///
/// Threads: any, several at once.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_cancel_reset(cancel: *const mistral_cancel) -> mistral_status {
    call(|| {
        handle::get::<CancelToken>("cancel", cancel)?.reset();
        Ok(())
    })
}

/// Frees a cancel object. Calls that were given it go on.
///
/// NULL allowed: `cancel`: nothing is done.
/// Threads: one at a time for each object.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_HANDLE`, `MISTRAL_E_FORKED`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub extern "C" fn mistral_cancel_free(cancel: *mut mistral_cancel) -> mistral_status {
    call(|| handle::remove::<CancelToken>("cancel", cancel))
}

/// How a call is followed and stopped: by the host's cancel object, and by what its callbacks return.
pub(crate) struct Steering {
    /// Cancelled with the host's object, and by callbacks without touching that.
    pub(crate) stop: CancelToken,
    progress: mistral_progress_fn,
    user_data: *mut c_void,
}

impl Steering {
    pub(crate) fn new(
        cancel: *const mistral_cancel,
        progress: mistral_progress_fn,
        user_data: *mut c_void,
    ) -> Outcome<Self> {
        let host = handle::get_optional::<CancelToken>("cancel", cancel)?;
        let stop = host.map_or_else(CancelToken::new, |token| token.child());
        Ok(Self { stop, progress, user_data })
    }

    /// Runs `body` with a control that reports to the host.
    pub(crate) fn run<R>(&self, body: impl FnOnce(&mut Control<'_>) -> R) -> R {
        let Some(callback) = self.progress else { return body(&mut Control::none().with_cancel(&self.stop)) };
        let mut report = |progress: Progress| {
            let phase = match progress.phase {
                "verify" => c"verify",
                "audit" => c"audit",
                "load" => c"load",
                "prefill" => c"prefill",
                "digest" => c"digest",
                _ => c"work",
            };
            let progress = mistral_progress {
                struct_size: size_of::<mistral_progress>(),
                phase: phase.as_ptr(),
                done: progress.done,
                total: progress.total,
            };
            // SAFETY: the function was given for this; `progress` lives until it returns.
            if unsafe { callback(self.user_data, &progress) } != 0 {
                self.stop.cancel();
            }
        };
        body(&mut Control::none().with_cancel(&self.stop).with_progress(&mut report))
    }
}
