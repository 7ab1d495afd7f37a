//! The types of the C interface: opaque handles, the few structs, callbacks and numbers.
//!
//! Structs begin with `struct_size` and only ever grow at the end.

use std::ffi::{c_char, c_void};

/// The major version of the library; the part of its soname.
pub const MISTRAL_VERSION_MAJOR: u32 = 1;
/// The minor version.
pub const MISTRAL_VERSION_MINOR: u32 = 0;
/// The patch version.
pub const MISTRAL_VERSION_PATCH: u32 = 0;

/// What a call came to: `MISTRAL_OK` or one of the `MISTRAL_E_...` numbers. The numbers are frozen; new ones
/// may be added.
pub type mistral_status = i32;

/// The call did what it says.
pub const MISTRAL_OK: mistral_status = 0;
/// A pointer that must not be NULL is NULL.
pub const MISTRAL_E_NULL: mistral_status = 1;
/// An argument, an option or a field of a request is wrong.
pub const MISTRAL_E_ARGUMENT: mistral_status = 2;
/// Text is not UTF-8.
pub const MISTRAL_E_UTF8: mistral_status = 3;
/// A handle was freed already, is of another type, or never was one.
pub const MISTRAL_E_HANDLE: mistral_status = 4;
/// Another call is using the object, perhaps the one whose callback made this call.
pub const MISTRAL_E_BUSY: mistral_status = 5;
/// The system gives no more memory.
pub const MISTRAL_E_NO_MEMORY: mistral_status = 6;
/// A bound on size, time or work would be passed.
pub const MISTRAL_E_LIMIT: mistral_status = 7;
/// The system refused to open, read or map a file.
pub const MISTRAL_E_IO: mistral_status = 8;
/// A file is damaged, or breaks the rules of its format.
pub const MISTRAL_E_FORMAT: mistral_status = 9;
/// Contents do not match their digest.
pub const MISTRAL_E_INTEGRITY: mistral_status = 10;
/// A signature is missing or wrong.
pub const MISTRAL_E_SIGNATURE: mistral_status = 11;
/// Correct, but not something that this library, this build or this model does.
pub const MISTRAL_E_UNSUPPORTED: mistral_status = 12;
/// The tokens do not fit into the context of the session.
pub const MISTRAL_E_CONTEXT_FULL: mistral_status = 13;
/// The host cancelled the call.
pub const MISTRAL_E_CANCELLED: mistral_status = 14;
/// The caller's buffer is too small; the needed size was written.
pub const MISTRAL_E_BUFFER_TOO_SMALL: mistral_status = 15;
/// A device could not be opened, or failed.
pub const MISTRAL_E_DEVICE: mistral_status = 16;
/// A device went away; its models must be opened again.
pub const MISTRAL_E_DEVICE_LOST: mistral_status = 17;
/// The audit log could not be written.
pub const MISTRAL_E_AUDIT: mistral_status = 18;
/// The handle was made before `fork`, by the parent of this process.
pub const MISTRAL_E_FORKED: mistral_status = 19;
/// A bug of this library. The object that was in use answers this from now on, and can only be freed.
pub const MISTRAL_E_INTERNAL: mistral_status = 20;

/// The generation goes on.
pub const MISTRAL_FINISH_NONE: i32 = 0;
/// The model ended its answer, or a stop text or token came.
pub const MISTRAL_FINISH_STOP: i32 = 1;
/// `max_tokens` was reached.
pub const MISTRAL_FINISH_LENGTH: i32 = 2;
/// The session has no position left.
pub const MISTRAL_FINISH_CONTEXT_FULL: i32 = 3;

/// Something failed that should not have.
pub const MISTRAL_LOG_ERROR: i32 = 1;

/// Bytes that the library made, most often UTF-8 text. Free them with `mistral_buf_free`, which overwrites
/// them with zeros.
pub struct mistral_buf {
    _opaque: (),
}

/// Stops calls that were given it, from any thread.
pub struct mistral_cancel {
    _opaque: (),
}

/// A model that was opened: immutable, for any number of sessions and threads.
pub struct mistral_model {
    _opaque: (),
}

/// One timeline of tokens on a model, with its cache. It keeps its model alive.
pub struct mistral_session {
    _opaque: (),
}

/// A generation that is asked for one event at a time. It keeps its session to itself until it is freed.
pub struct mistral_generation {
    _opaque: (),
}

/// How far a long call has come.
#[repr(C)]
pub struct mistral_progress {
    /// The size of this struct in the library; members beyond it do not exist.
    pub struct_size: usize,
    /// What is being done: `"verify"`, `"load"`, `"prefill"`, `"digest"`, `"audit"`; others may come. NUL-terminated.
    pub phase: *const c_char,
    /// Units done: tokens while prefilling, otherwise bytes.
    pub done: u64,
    /// Units in all.
    pub total: u64,
}

/// A token and the natural logarithm of its probability.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct mistral_token_logprob {
    /// The token.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
}

/// One step of a generation: exactly one for each token.
#[repr(C)]
pub struct mistral_event {
    /// The size of this struct in the library; members beyond it do not exist.
    pub struct_size: usize,
    /// Text that became certain with this token: whole UTF-8 characters, often none, never part of a stop
    /// text. A NUL follows it.
    pub text: *const c_char,
    /// Bytes of `text`, without the NUL.
    pub text_len: usize,
    /// The token.
    pub token: u32,
    /// `MISTRAL_FINISH_NONE`, or on the last event why it is the last.
    pub finish_reason: i32,
    /// The token's log-probability in the model's own distribution; not a number unless the options ask for
    /// it.
    pub logprob: f32,
    /// How many `top_logprobs` there are; 0 unless the options ask for them.
    pub top_logprobs_len: u32,
    /// The most probable tokens, best first.
    pub top_logprobs: *const mistral_token_logprob,
}

/// Is told of progress. `progress` lives until it returns. Non-zero stops the call with
/// `MISTRAL_E_CANCELLED`. It must return: no exception, no `longjmp`.
pub type mistral_progress_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, progress: *const mistral_progress) -> i32>;

/// Is given each event of a generation. `event` lives until it returns. Non-zero stops the call with
/// `MISTRAL_E_CANCELLED`. It must return: no exception, no `longjmp`.
pub type mistral_event_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, event: *const mistral_event) -> i32>;

/// Is given each chunk of a streamed chat: `len` bytes of UTF-8 JSON, followed by a NUL, that live until it
/// returns. Non-zero stops the call with `MISTRAL_E_CANCELLED`. It must return: no exception, no `longjmp`.
pub type mistral_chunk_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, chunk: *const c_char, len: usize) -> i32>;

/// Is given what the library has to say: `level` is a `MISTRAL_LOG_...` number; `message` is `len` bytes of
/// UTF-8, followed by a NUL, that live until it returns. It may be called from any thread, several at once,
/// threads of the library included. It must return: no exception, no `longjmp`.
pub type mistral_log_fn =
    Option<unsafe extern "C" fn(user_data: *mut c_void, level: i32, message: *const c_char, len: usize)>;

const _: () = {
    const fn number(text: &str) -> u32 {
        let (bytes, mut i, mut value) = (text.as_bytes(), 0, 0);
        while i < bytes.len() {
            value = value * 10 + (bytes[i] - b'0') as u32;
            i += 1;
        }
        value
    }
    assert!(MISTRAL_VERSION_MAJOR == number(env!("CARGO_PKG_VERSION_MAJOR")));
    assert!(MISTRAL_VERSION_MINOR == number(env!("CARGO_PKG_VERSION_MINOR")));
    assert!(MISTRAL_VERSION_PATCH == number(env!("CARGO_PKG_VERSION_PATCH")));
};
