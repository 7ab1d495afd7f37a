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
        let place = PLACE
            .try_with(Cell::take)
            .ok()
            .flatten()
            .or_else(any)
            .unwrap_or_else(|| "an unknown place".to_owned());
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
    use std::ffi::{c_char, c_void};

    use mistral_core::constraint::{Constraint, ConstraintSpec, TokenTable};

    use super::*;

    /// What the log was told.
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());

    unsafe extern "C" fn tell(_: *mut c_void, level: i32, message: *const c_char, len: usize) {
        assert_eq!(level, MISTRAL_LOG_ERROR);
        // SAFETY: the library gives a text of this length.
        let text = unsafe { std::slice::from_raw_parts(message.cast::<u8>(), len) };
        TOLD.lock().unwrap().push(String::from_utf8_lossy(text).into_owned());
    }

    /// One test at a time: the log and the hook are the process's.
    static ONE: Mutex<()> = Mutex::new(());

    #[test]
    fn a_panic_becomes_a_status_and_goes_to_the_log_without_text_of_the_host() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let secret = "the secret";
        // SAFETY: the function lives for ever.
        assert_eq!(unsafe { log::mistral_set_log(Some(tell), std::ptr::null_mut()) }, MISTRAL_OK);
        let literal = contain(|| panic!("a literal message"));
        let formatted = contain(|| panic!("a message with {secret}"));
        let worker = contain(|| {
            let caught = std::thread::spawn(|| panic!("in a worker")).join();
            std::panic::resume_unwind(caught.expect_err("it panicked"))
        });
        assert_eq!(call(|| panic!("in a call")), MISTRAL_E_INTERNAL);
        // The library of constraints puts a hook of its own before ours when it is first used.
        let tokens = vec![b"a".to_vec(), Vec::new()];
        let table = TokenTable::new(tokens, &[1]).map(std::sync::Arc::new).expect("a table");
        let spec = ConstraintSpec::Regex("a+".to_owned());
        assert!(matches!(contain(|| Constraint::new(&table, &spec)), Ok(Ok(_))));
        let constrained = contain(|| panic!("after a constraint"));
        set_hook(Box::new(hook));
        assert!(matches!(contain(|| Constraint::new(&table, &spec)), Ok(Ok(_))));
        let again = contain(|| panic!("after both"));
        // SAFETY: NULL is no function.
        assert_eq!(unsafe { log::mistral_set_log(None, std::ptr::null_mut()) }, MISTRAL_OK);
        // The hook of the tests again: theirs print.
        drop(std::panic::take_hook());

        let messages: Vec<String> = [literal, formatted, worker, constrained, again]
            .into_iter()
            .map(|outcome: Outcome<()>| outcome.expect_err("it panicked").to_string())
            .collect();
        let parts =
            ["a literal message", "message withheld", "in a worker", "after a constraint", "after both"];
        for (message, part) in messages.iter().zip(parts) {
            assert!(message.contains("src/guard.rs:") && message.contains(part), "{message}");
        }
        assert!(!messages.concat().contains(secret));
        let told = TOLD.lock().unwrap();
        assert_eq!(told.len(), 6, "{told:?}");
        assert!(told.iter().all(|message| message.contains("panic at") && !message.contains(secret)));
    }

    #[test]
    fn a_panic_in_a_thread_that_ends_is_a_status_too() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        struct AtEnd(std::sync::mpsc::Sender<mistral_status>);
        impl Drop for AtEnd {
            fn drop(&mut self) {
                let _ = self.0.send(call(|| panic!("at the end")));
            }
        }
        thread_local! {
            static KEPT: std::cell::RefCell<Option<AtEnd>> = const { std::cell::RefCell::new(None) };
        }
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            KEPT.set(Some(AtEnd(sender)));
            assert_eq!(call(|| panic!("before")), MISTRAL_E_INTERNAL);
        });
        assert_eq!(receiver.recv(), Ok(MISTRAL_E_INTERNAL));
    }

    #[test]
    fn paths_are_cut() {
        assert_eq!(short("mistral-core/src/session.rs"), "mistral-core/src/session.rs");
        assert_eq!(short("/home/build/registry/burn-flex-0.22.1/src/lib.rs"), "burn-flex-0.22.1/src/lib.rs");
    }
}
