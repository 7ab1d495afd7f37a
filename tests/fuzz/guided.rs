//! The same inputs and checks under libFuzzer, which keeps what reaches new code: `tests/fuzz.sh` builds and runs it, with AddressSanitizer. A failed check aborts, and libFuzzer
//! says so and keeps the input.

use std::ffi::{CString, c_char, c_int, c_long};
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

type Mutate = dyn Fn(&[Vec<u8>], &mut Vec<u8>, u32) + Send + Sync;

/// What libFuzzer calls, and what it may not choose by itself.
pub struct Guided {
    /// Good inputs, to begin with.
    pub seeds: Vec<Vec<u8>>,
    /// Changes an input by its structure, with that seed.
    pub mutate: Box<Mutate>,
    /// Reads an input, and panics where something is wrong.
    pub run: Box<dyn Fn(&[u8]) + Send + Sync>,
}

static GUIDED: OnceLock<Guided> = OnceLock::new();

// SAFETY: as in libFuzzer's FuzzerInterface.h (LLVM), and in C's time.h.
unsafe extern "C" {
    safe fn clock() -> c_long;
    fn LLVMFuzzerRunDriver(
        argc: *mut c_int,
        argv: *mut *mut *mut c_char,
        one: unsafe extern "C" fn(*const u8, usize) -> c_int,
    ) -> c_int;
    fn LLVMFuzzerMutate(data: *mut u8, size: usize, most: usize) -> usize;
}

/// What an input may take of the processor's time: the clock's says little on a machine that does other work.
const MOST: Duration = Duration::from_secs(1);

/// The processor's time of this process.
fn cpu_time() -> Duration {
    // CLOCKS_PER_SEC is a million on every POSIX system.
    Duration::from_micros(u64::try_from(clock()).expect("every Linux has this clock"))
}

/// Runs libFuzzer with `flags` (its own, such as `-runs=1000`) on the inputs in `folder`, where the seeds are written to and what it finds is kept; or once
/// on each file that is named among them.
pub fn drive(guided: Guided, folder: &Path, flags: &[String]) -> ExitCode {
    std::fs::create_dir_all(folder).expect("a folder for the inputs");
    for (i, seed) in guided.seeds.iter().enumerate() {
        std::fs::write(folder.join(format!("seed-{i}")), seed).expect("a seed");
    }
    assert!(GUIDED.set(guided).is_ok(), "one target a process");
    let folder = folder.to_str().expect("a path in UTF-8").to_owned();
    let files = flags.iter().any(|flag| !flag.starts_with('-'));
    let words =
        std::iter::once("fuzz".to_owned()).chain(flags.iter().cloned()).chain((!files).then_some(folder));
    let words: Vec<CString> = words.map(|word| CString::new(word).expect("no zero bytes")).collect();
    let mut pointers: Vec<*mut c_char> = words.iter().map(|word| word.as_ptr().cast_mut()).collect();
    let mut count = c_int::try_from(pointers.len()).expect("a few flags");
    pointers.push(std::ptr::null_mut());
    let mut argv = pointers.as_mut_ptr();
    // SAFETY: `count` texts that end in zero, and a null after them, all of which outlive the call; libFuzzer does not write to the texts.
    let status = unsafe { LLVMFuzzerRunDriver(&mut count, &mut argv, one) };
    ExitCode::from(u8::from(status != 0))
}

/// # Safety
/// `size` bytes lie at `data`.
unsafe extern "C" fn one(data: *const u8, size: usize) -> c_int {
    let input = match size {
        0 => &[],
        // SAFETY: the caller's promise.
        _ => unsafe { std::slice::from_raw_parts(data, size) },
    };
    let guided = GUIDED.get().expect("it was set before libFuzzer was called");
    let before = cpu_time();
    (guided.run)(input);
    let took = cpu_time() - before;
    assert!(took <= MOST, "took {took:?}");
    0
}

/// What libFuzzer makes of an input, or what the target's own knowledge of its structure does.
///
/// # Safety
/// `size` bytes lie at `data`, where there is room for `most`.
#[unsafe(no_mangle)]
unsafe extern "C" fn LLVMFuzzerCustomMutator(data: *mut u8, size: usize, most: usize, seed: u32) -> usize {
    if seed.is_multiple_of(2) {
        // SAFETY: the caller's promise.
        return unsafe { LLVMFuzzerMutate(data, size, most) };
    }
    let guided = GUIDED.get().expect("it was set before libFuzzer was called");
    // SAFETY: the caller's promise.
    let room = unsafe { std::slice::from_raw_parts_mut(data, most) };
    let mut input = room[..size].to_vec();
    (guided.mutate)(&guided.seeds, &mut input, seed);
    let size = input.len().min(most);
    room[..size].copy_from_slice(&input[..size]);
    size
}
