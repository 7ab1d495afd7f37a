//! A panic inside of the library: in a kernel, in a worker of the pool, in a step of a generation. The call says INTERNAL, its object says
//! so until it is freed, everything else goes on, the host's log is told, and nothing is printed: this program starts itself again and
//! looks at what came out.

mod support;

use std::ffi::{CStr, c_char, c_void};
use std::process::{Command, ExitCode};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use mistral_core::testing::{Fault, inject};
use mistral_core::{Control, Model, ModelOptions};
use support::{silent, temp, write_tiny_model};

const OK: i32 = 0;
const HANDLE: i32 = 4;
const BUSY: i32 = 5;
const INTERNAL: i32 = 20;
const REQUEST: &str = r#"{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}"#;
/// The argument of the process that does it all.
const RUN: &str = "--run";

type Handle = *mut c_void;

const NONE: Handle = null_mut();

type EventFn = extern "C" fn(*mut c_void, *const c_void) -> i32;
type LogFn = extern "C" fn(*mut c_void, i32, *const c_char, usize);

// SAFETY: these are the declarations of mistral.h. They are safe to call here: handles are checked by the library, and the other pointers
// that this program passes are right.
unsafe extern "C" {
    safe fn mistral_set_log(callback: Option<LogFn>, user_data: *mut c_void) -> i32;
    safe fn mistral_last_error(message: *mut c_char, capacity: usize) -> usize;
    safe fn mistral_buf_free(buf: Handle) -> i32;
    safe fn mistral_model_free(model: Handle) -> i32;
    safe fn mistral_session_new(model: Handle, options: *const c_char, len: usize, out: *mut Handle) -> i32;
    safe fn mistral_session_reset(session: Handle) -> i32;
    safe fn mistral_session_stats(session: Handle, out: *mut Handle) -> i32;
    safe fn mistral_session_fork(session: Handle, out: *mut Handle) -> i32;
    safe fn mistral_session_trim(session: Handle, count: usize) -> i32;
    safe fn mistral_session_save(
        session: Handle,
        options: *const c_char,
        len: usize,
        cancel: Handle,
        progress: *const c_void,
        user_data: *mut c_void,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_sample(
        session: Handle,
        options: *const c_char,
        len: usize,
        cancel: Handle,
        token: *mut u32,
        logprob: *mut f32,
    ) -> i32;
    safe fn mistral_session_chat(
        session: Handle,
        request: *const c_char,
        len: usize,
        cancel: Handle,
        callback: *const c_void,
        user_data: *mut c_void,
        response: *mut Handle,
    ) -> i32;
    safe fn mistral_session_free(session: Handle) -> i32;
    safe fn mistral_prefill(
        session: Handle,
        tokens: *const u32,
        count: usize,
        cancel: Handle,
        progress: *const c_void,
        user_data: *mut c_void,
    ) -> i32;
    safe fn mistral_logits(session: Handle, logits: *mut f32, capacity: usize, count: *mut usize) -> i32;
    safe fn mistral_generate(
        session: Handle,
        tokens: *const u32,
        count: usize,
        options: *const c_char,
        len: usize,
        cancel: Handle,
        callback: EventFn,
        user_data: *mut c_void,
    ) -> i32;
    safe fn mistral_generation_new(
        session: Handle,
        tokens: *const u32,
        count: usize,
        options: *const c_char,
        len: usize,
        cancel: Handle,
        progress: *const c_void,
        user_data: *mut c_void,
        out: *mut Handle,
    ) -> i32;
    safe fn mistral_generation_next(generation: Handle, event: *mut *const c_void) -> i32;
    safe fn mistral_generation_free(generation: Handle) -> i32;
    safe fn mistral_chat(
        model: Handle,
        request: *const c_char,
        len: usize,
        cancel: Handle,
        callback: *const c_void,
        user_data: *mut c_void,
        response: *mut Handle,
    ) -> i32;
}

/// Says where a status is not the one that it should be, and ends: a panic of this program would be as silent as those of the library.
macro_rules! expect {
    ($call:expr, $expected:expr) => {
        let found = $call;
        if found != $expected {
            fail(line!(), &format!("{}: {found:?}, expected {:?}", stringify!($call), $expected));
        }
    };
}

#[allow(clippy::print_stderr, reason = "this is what a failed test prints")]
fn fail(line: u32, message: &str) -> ! {
    eprintln!("line {line}: {message}\n  last error: {}", last_error());
    std::process::exit(1);
}

fn last_error() -> String {
    let mut message = [0; 512];
    mistral_last_error(message.as_mut_ptr(), message.len());
    // SAFETY: the library wrote a NUL within the array.
    unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned()
}

/// What the log was told, and by whom.
static TOLD: AtomicUsize = AtomicUsize::new(0);
/// The generation whose call panics.
static RUNNING: AtomicPtr<c_void> = AtomicPtr::new(NONE);
/// Whether a caller's panic waits until a worker panics too.
static WAIT_FOR_WORKER: AtomicBool = AtomicBool::new(false);
static WORKER_PANICKED: (Mutex<bool>, Condvar) = (Mutex::new(false), Condvar::new());

extern "C" fn on_log(_: *mut c_void, _: i32, message: *const c_char, len: usize) {
    // SAFETY: the library gives a text of this length with a NUL behind it.
    let text = unsafe { CStr::from_ptr(message) };
    expect!(text.to_bytes().starts_with(b"panic at ") && text.count_bytes() == len, true);
    expect!(mistral_set_log(None, null_mut()), BUSY);
    let (running, mut event) = (RUNNING.load(Ordering::SeqCst), null());
    if !running.is_null() {
        expect!(mistral_generation_next(running, &raw mut event), BUSY);
    }
    TOLD.fetch_add(1, Ordering::SeqCst);
    let (panicked, changed) = &WORKER_PANICKED;
    let mut panicked = panicked.lock().unwrap();
    if std::thread::current().name().is_some_and(|name| name.starts_with("mistral-")) {
        *panicked = true;
        changed.notify_all();
    } else if WAIT_FOR_WORKER.load(Ordering::SeqCst) {
        // The region stays open while its caller is here, so a worker joins it.
        let wait = changed.wait_timeout_while(panicked, Duration::from_secs(100), |panicked| !*panicked);
        expect!(wait.unwrap().1.timed_out(), false);
    }
}

extern "C" fn on_event(events: *mut c_void, _: *const c_void) -> i32 {
    // SAFETY: it is the counter that `generate` passes.
    unsafe { *events.cast::<usize>() += 1 };
    0
}

/// Generates on `session`: the status, and how many events came.
fn generate(session: Handle, tokens: &[u32], options: &str) -> (i32, usize) {
    let mut events = 0;
    let user_data = (&raw mut events).cast();
    let (options, len) = (options.as_ptr().cast(), options.len());
    let (tokens, count) = (tokens.as_ptr(), tokens.len());
    (mistral_generate(session, tokens, count, options, len, null_mut(), on_event, user_data), events)
}

fn prefill(session: Handle, tokens: &[u32]) -> i32 {
    mistral_prefill(session, tokens.as_ptr(), tokens.len(), null_mut(), null(), null_mut())
}

fn session(model: Handle) -> Handle {
    let mut session = null_mut();
    expect!(mistral_session_new(model, null(), 0, &raw mut session), OK);
    session
}

fn generation(session: Handle, options: &str) -> (i32, Handle) {
    let mut generation = null_mut();
    let (options, len) = (options.as_ptr().cast(), options.len());
    let tokens = [1, 2];
    let (callback, data) = (null(), null_mut());
    let status = mistral_generation_new(
        session,
        tokens.as_ptr(),
        2,
        options,
        len,
        null_mut(),
        callback,
        data,
        &raw mut generation,
    );
    (status, generation)
}

/// A session in which a call panicked: INTERNAL until it is freed.
fn expect_lost(session: Handle) {
    let (mut logits, mut count, mut buf) = ([0.0; 4], 0, null_mut());
    expect!(prefill(session, &[1]), INTERNAL);
    expect!(generate(session, &[1], "{}"), (INTERNAL, 0));
    expect!(generation(session, "{}"), (INTERNAL, NONE));
    expect!(mistral_session_reset(session), INTERNAL);
    expect!(mistral_session_stats(session, &raw mut buf), INTERNAL);
    expect!(mistral_logits(session, logits.as_mut_ptr(), 4, &raw mut count), INTERNAL);
    let (mut fork, mut token) = (NONE, 0);
    let chat = REQUEST.as_ptr().cast();
    expect!(mistral_session_fork(session, &raw mut fork), INTERNAL);
    expect!(mistral_session_trim(session, 0), INTERNAL);
    expect!(mistral_session_save(session, null(), 0, NONE, null(), null_mut(), &raw mut buf), INTERNAL);
    expect!(mistral_sample(session, null(), 0, NONE, &raw mut token, null_mut()), INTERNAL);
    expect!(
        mistral_session_chat(session, chat, REQUEST.len(), NONE, null(), null_mut(), &raw mut buf),
        INTERNAL
    );
    expect!((buf.is_null(), fork.is_null(), count), (true, true, 0));
    expect!(mistral_session_free(session), OK);
    expect!(mistral_session_free(session), HANDLE);
}

/// Each call in which a kernel panics.
fn in_a_kernel(model: Handle) {
    let (by_prefill, by_generate, by_generation) = (session(model), session(model), session(model));
    expect!(prefill(by_prefill, &[1, 2, 3]), INTERNAL);
    expect!(last_error().contains("a panic at cpu/dense/"), true);
    expect!(generate(by_generate, &[1, 2, 3], "{}"), (INTERNAL, 0));
    expect!(generation(by_generation, "{}"), (INTERNAL, NONE));
    let mut response = null_mut();
    let (text, len) = (REQUEST.as_ptr().cast(), REQUEST.len());
    expect!(mistral_chat(model, text, len, null_mut(), null(), null_mut(), &raw mut response), INTERNAL);
    expect!(response.is_null(), true);
    [by_prefill, by_generate, by_generation].into_iter().for_each(expect_lost);
    expect!(mistral_model_free(model), OK);
}

/// A generation that goes well until it evaluates token 200.
fn in_a_step(model: Handle) {
    let options = r#"{"logit_bias": {"200": 100}, "ignore_eos": true}"#;
    let (by_next, by_generate, good) = (session(model), session(model), session(model));
    let mut event = null();
    let (status, running) = generation(by_next, options);
    expect!(status, OK);
    expect!(mistral_generation_next(running, &raw mut event), OK);
    event = null();
    RUNNING.store(running, Ordering::SeqCst);
    expect!(mistral_generation_next(running, &raw mut event), INTERNAL);
    RUNNING.store(NONE, Ordering::SeqCst);
    expect!(mistral_generation_next(running, &raw mut event), INTERNAL);
    expect!(event.is_null(), true);
    // The generation has the session until it is freed.
    expect!(mistral_session_reset(by_next), BUSY);
    expect!(mistral_generation_free(running), OK);
    expect!(mistral_generation_free(running), HANDLE);
    expect_lost(by_next);
    expect!(generate(by_generate, &[1], options), (INTERNAL, 1));
    expect_lost(by_generate);
    // The model and its other sessions are as they were.
    expect!(prefill(good, &[1, 2, 3]), OK);
    expect!(mistral_session_free(good), OK);
    expect!(mistral_model_free(model), OK);
}

/// Sessions on another model, while others panic: they always answer the same.
fn go_on(model: Handle, stop: &AtomicBool) -> usize {
    let mut rounds = 0;
    while rounds == 0 || !stop.load(Ordering::SeqCst) {
        let session = session(model);
        expect!(generate(session, &[1, 2], r#"{"max_tokens": 8, "ignore_eos": true}"#), (OK, 8));
        expect!(mistral_session_free(session), OK);
        rounds += 1;
    }
    rounds
}

fn open(path: &str, fault: Option<Fault>) -> Handle {
    let options = ModelOptions { threads: Some(3), ..ModelOptions::default() };
    let mut model: Arc<Model> = match Model::open(path, &options, &mut Control::none()) {
        Ok(model) => model,
        Err(error) => fail(line!(), &error.to_string()),
    };
    if let Some(fault) = fault {
        inject(&mut model, fault);
    }
    mistral::testing::adopt(model).cast()
}

fn run(path: &str) {
    let good = open(path, None);
    expect!(mistral_set_log(Some(on_log), null_mut()), OK);
    let (stop, address) = (AtomicBool::new(false), good.addr());
    std::thread::scope(|scope| {
        let others = scope.spawn(|| go_on(std::ptr::without_provenance_mut(address), &stop));
        in_a_kernel(open(path, Some(Fault::Kernel)));
        expect!(TOLD.load(Ordering::SeqCst), 4);
        WAIT_FOR_WORKER.store(true, Ordering::SeqCst);
        in_a_kernel(open(path, Some(Fault::Tasks)));
        expect!(*WORKER_PANICKED.0.lock().unwrap(), true);
        WAIT_FOR_WORKER.store(false, Ordering::SeqCst);
        in_a_step(open(path, Some(Fault::TokensFrom(200))));
        stop.store(true, Ordering::SeqCst);
        expect!(others.join().is_ok_and(|rounds| rounds > 0), true);
    });
    expect!(mistral_set_log(None, null_mut()), OK);
    // Without a log nothing is said at all.
    in_a_kernel(open(path, Some(Fault::Tasks)));
    expect!(mistral_buf_free(null_mut()), OK);
    expect!(mistral_model_free(good), OK);
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [command, path] = arguments.as_slice()
        && command == RUN
    {
        run(path);
        return ExitCode::SUCCESS;
    }
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    silent(Command::new(std::env::current_exe().expect("the test has a path")).arg(RUN).arg(&model));
    ExitCode::SUCCESS
}
