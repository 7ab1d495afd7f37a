//! What a call that failed says: a status, a message and its parts, kept for the thread that called.

use std::cell::RefCell;
use std::ffi::c_char;

use mistral_core::Error;
use serde_json::{Map, Value, json};

use crate::buffer::{self, Buffer};
use crate::guard::call;
use crate::input::Out;
use crate::status;
use crate::types::*;

/// Why a call failed.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: mistral_status,
    message: String,
    /// The parts of the message by name: `argument`, `found`, `expected` ...
    parts: Map<String, Value>,
}

/// The result of the body of a function of the interface.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

thread_local! {
    static LAST: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

impl Failure {
    pub(crate) fn new(status: mistral_status, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), parts: Map::new() }
    }

    pub(crate) fn null(name: &str) -> Self {
        let message = format!("argument `{name}`: found NULL, expected a pointer");
        Self::new(MISTRAL_E_NULL, message).part("argument", name)
    }

    pub(crate) fn argument(name: &str, found: impl ToString, expected: impl ToString) -> Self {
        Error::argument(name, found, expected).into()
    }

    pub(crate) fn busy(what: &str, reason: &str) -> Self {
        Self::new(MISTRAL_E_BUSY, format!("the {what} is busy: {reason}")).part("object", what)
    }

    pub(crate) fn too_small(name: &str, needed: usize, capacity: usize) -> Self {
        let message = format!("buffer `{name}`: room for {capacity}, needed for {needed}");
        Self::new(MISTRAL_E_BUFFER_TOO_SMALL, message).part("argument", name).part("needed", needed)
    }

    pub(crate) fn no_memory(bytes: usize, what: &str) -> Self {
        Self::new(MISTRAL_E_NO_MEMORY, format!("no memory for {bytes} bytes of {what}")).part("bytes", bytes)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(MISTRAL_E_INTERNAL, message)
    }

    pub(crate) fn part(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.parts.insert(name.to_owned(), value.into());
        self
    }

    /// Keeps the failure for [`mistral_last_error`] and gives its status.
    pub(crate) fn keep(self) -> mistral_status {
        let status = self.status;
        // Only fails while the thread ends: then nobody asks.
        let _ = LAST.try_with(|last| last.replace(Some(self)));
        status
    }

    fn to_json(&self) -> Value {
        let mut all = Map::new();
        all.insert("status".to_owned(), json!(self.status));
        all.insert("name".to_owned(), json!(status::name(self.status).to_str().unwrap_or_default()));
        all.insert("message".to_owned(), json!(self.message));
        all.extend(self.parts.clone());
        Value::Object(all)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let of = |status| Self::new(status, message);
        match error {
            Error::Io { path, source } => of(MISTRAL_E_IO)
                .part("file", path.display().to_string())
                .part("os_error", source.raw_os_error().map_or(Value::Null, Value::from)),
            Error::Format { file, key, found, expected } => of(MISTRAL_E_FORMAT)
                .part("file", file)
                .part("key", key)
                .part("found", found)
                .part("expected", expected),
            Error::Integrity { what, found, expected } => {
                of(MISTRAL_E_INTEGRITY).part("what", what).part("found", found).part("expected", expected)
            }
            Error::Argument { name, found, expected } => {
                of(MISTRAL_E_ARGUMENT).part("argument", name).part("found", found).part("expected", expected)
            }
            Error::Chat { rule, path, found, expected } => of(MISTRAL_E_ARGUMENT)
                .part("rule", rule.to_string())
                .part("argument", path)
                .part("found", found)
                .part("expected", expected),
            Error::Unsupported { what, found, supported } => {
                of(MISTRAL_E_UNSUPPORTED).part("what", what).part("found", found).part("supported", supported)
            }
            Error::Limit { what, found, limit } => {
                of(MISTRAL_E_LIMIT).part("what", what).part("found", found).part("limit", limit)
            }
            Error::ContextFull { needed, capacity } => {
                of(MISTRAL_E_CONTEXT_FULL).part("needed", needed).part("capacity", capacity)
            }
            Error::Signature { file, found, expected } => {
                of(MISTRAL_E_SIGNATURE).part("file", file).part("found", found).part("expected", expected)
            }
            Error::Audit { log, reason } => of(MISTRAL_E_AUDIT).part("log", log).part("reason", reason),
            Error::Cancelled => of(MISTRAL_E_CANCELLED),
            Error::Device { device, reason } => {
                of(MISTRAL_E_DEVICE).part("device", device).part("reason", reason)
            }
            Error::Busy { what } => of(MISTRAL_E_BUSY).part("object", what),
            // `Internal`, and kinds that are younger than this list.
            _ => of(MISTRAL_E_INTERNAL),
        }
    }
}

/// Copies out the message of the last call that failed on this thread: what failed, where, what was found,
/// what was expected; never text of a prompt or an answer. Calls that succeed leave it as it is.
///
/// Like `snprintf`: at most `capacity` bytes are written to `message`, a final NUL included, cut between
/// characters, and the length of the whole message without the NUL comes back: 0 where no call has failed.
///
/// Encoding: UTF-8.
/// NULL allowed: `message` if `capacity` is 0.
/// Threads: any; each has its own last error.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_last_error(message: *mut c_char, capacity: usize) -> usize {
    let copy = |last: &RefCell<Option<Failure>>| {
        let last = last.borrow();
        let text = last.as_ref().map_or("", |failure| failure.message.as_str());
        if capacity > 0 && !message.is_null() {
            let len = text.floor_char_boundary(capacity - 1);
            // SAFETY: the caller gave `capacity` bytes; `len + 1` are written, and the text is ours.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr().cast(), message, len);
                message.add(len).write(0);
            }
        }
        text.len()
    };
    LAST.try_with(copy).unwrap_or(0)
}

/// The last call that failed on this thread, as a JSON object: `status` (its number), `name`, `message`, and
/// the parts of the message where it has them: `argument`, `file`, `key`, `found`, `expected`, `supported`,
/// `limit`, `needed` ... `null` where no call has failed.
///
/// Ownership: the caller frees `*out` with `mistral_buf_free`.
/// Encoding: UTF-8 JSON.
/// Threads: any; each has its own last error.
/// Statuses: `MISTRAL_OK`, `MISTRAL_E_NULL`, `MISTRAL_E_NO_MEMORY`, `MISTRAL_E_LIMIT`, `MISTRAL_E_INTERNAL`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mistral_last_error_json(out: *mut *mut mistral_buf) -> mistral_status {
    call(|| {
        // SAFETY: the caller's promise of the header.
        let out = unsafe { Out::new("out", out) }?;
        let json = |last: &RefCell<Option<Failure>>| last.borrow().as_ref().map(Failure::to_json);
        let last = LAST.try_with(json).ok().flatten().unwrap_or(Value::Null);
        buffer::give(out, Buffer::json(&last)?)
    })
}
