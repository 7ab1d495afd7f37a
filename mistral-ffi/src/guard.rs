//! What every entry goes through: panics end here, and say so to the host's log instead of standard error.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::sync::{Mutex, Once, PoisonError};

use crate::failure::{Failure, Outcome};
use crate::log;
use crate::types::*;

thread_local! {
    /// Where the last panic of this thread was.
    static PLACE: Cell<Option<String>> = const { Cell::new(None) };
}

/// Where the last panic of any thread was: a worker's panic goes on in the thread that waits for it.
static LAST_PLACE: Mutex<Option<String>> = Mutex::new(None);

/// Runs the body of a function of the interface, and keeps what it fails with for the thread.
pub(crate) fn call(body: impl FnOnce() -> Outcome) -> mistral_status {
    match contain(body).and_then(|outcome| outcome) {
        Ok(()) => MISTRAL_OK,
        Err(failure) => failure.keep(),
    }
}

/// Runs `body`; a panic becomes a failure.
pub(crate) fn contain<T>(body: impl FnOnce() -> T) -> Outcome<T> {
    static INSTALL: Once = Once::new();
    // The library has a copy of the standard library of its own, so the hook is its own too.
    INSTALL.call_once(|| set_hook(Box::new(hook)));
    catch_unwind(AssertUnwindSafe(body)).map_err(|_| {
        let any = || LAST_PLACE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let place = PLACE.take().or_else(any).unwrap_or_else(|| "an unknown place".to_owned());
        Failure::internal(format!("internal error: a panic at {place}"))
    })
}

fn hook(info: &PanicHookInfo<'_>) {
    let place = describe(info);
    log::write(MISTRAL_LOG_ERROR, &format!("panic at {place}"));
    *LAST_PLACE.lock().unwrap_or_else(PoisonError::into_inner) = Some(place.clone());
    // Only fails while the thread ends.
    let _ = PLACE.try_with(|last| last.set(Some(place)));
}

/// File, line and message. A message that was formatted may hold text of a prompt (`str` puts its contents
/// into the message when it is cut between the bytes of a character), so only literal ones are told.
fn describe(info: &PanicHookInfo<'_>) -> String {
    let payload: &(dyn Any + Send) = info.payload();
    let message = payload.downcast_ref::<&'static str>().copied().unwrap_or("message withheld");
    match info.location() {
        Some(at) => format!("{}:{}: {message}", short(at.file()), at.line()),
        None => message.to_owned(),
    }
}

/// The last three parts of a path: where the library was built is nobody's business.
fn short(path: &str) -> &str {
    let cut = path.rmatch_indices(['/', '\\']).nth(2);
    cut.map_or(path, |(at, _)| &path[at + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cut() {
        assert_eq!(short("mistral-core/src/session.rs"), "mistral-core/src/session.rs");
        assert_eq!(short("/home/build/registry/burn-flex-0.22.1/src/lib.rs"), "burn-flex-0.22.1/src/lib.rs");
    }
}
