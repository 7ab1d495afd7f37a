//! What a host relies on for years: calls that are refused instead of aborting, cancelled at once, from many threads, again and again, and
//! under valgrind. The C programs print nothing unless they fail, and neither does the library. What takes long is bounded here; whole runs
//! are ignored tests, and `tests/sanitize.sh` runs the programs under the sanitizers.
#![cfg(target_os = "linux")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mistral_core::testing::TempFolder;
use support::{compile, have, library, repository, run, silent, temp, write_tiny_model};

/// A program of `tests/c`, its folder, and a tiny model in it.
struct Program {
    folder: TempFolder,
    path: PathBuf,
}

impl Program {
    fn new(name: &str) -> Self {
        let folder = temp();
        write_tiny_model(&folder.path().join("tiny.gguf"));
        let path = compile(folder.path(), &repository().join(format!("tests/c/{name}.c")), "c99");
        Self { folder, path }
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("tiny.gguf")
    }

    fn run(&self, arguments: &[&str]) {
        silent(Command::new(&self.path).arg(self.model()).args(arguments));
    }
}

#[test]
fn what_makes_others_abort_gets_a_status() {
    Program::new("refusals").run(&[]);
}

#[test]
fn a_call_that_is_cancelled_ends_with_the_step_that_it_is_in() {
    Program::new("cancel").run(&[]);
}

#[test]
fn many_threads_with_short_sessions_on_one_model() {
    Program::new("stress").run(&["64", "100"]);
}

#[test]
fn a_process_forks_while_its_threads_run_a_model() {
    Program::new("forks").run(&["200"]);
}

#[test]
fn opening_and_freeing_leaves_nothing_behind() {
    Program::new("soak").run(&["500"]);
}

/// `cargo test --release -p mistral-ffi --test reliability -- --ignored --nocapture ten_thousand`
#[test]
#[ignore = "takes minutes"]
#[allow(clippy::print_stdout, reason = "the figures are what it is run for")]
fn ten_thousand_cycles_leave_nothing_behind() {
    let program = Program::new("soak");
    let output = run(Command::new(&program.path).arg(program.model()).args(["10000", "-v"]));
    print!("{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn the_library_can_be_loaded_and_unloaded() {
    let folder = temp();
    let (model, program) = (folder.path().join("tiny.gguf"), folder.path().join("dlopen"));
    write_tiny_model(&model);
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-I"]).arg(repository().join("include"));
    run(cc.arg(repository().join("tests/c/dlopen.c")).args(["-lpthread", "-ldl", "-o"]).arg(&program));
    silent(Command::new(&program).arg(library()).arg(&model).arg("100"));
}

/// `cargo test --release -p mistral-ffi --test reliability -- --ignored write_the_tiny_model`
#[test]
#[ignore = "writes target/tmp/tiny.gguf, for tests/sanitize.sh"]
fn write_the_tiny_model() {
    support::write_tiny_model(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny.gguf"));
}

/// Memcheck's processor has no AVX-512: this also runs the AVX2 kernels where the machine would not choose them.
#[test]
fn valgrind_finds_no_error_and_no_lost_byte() {
    if !have(&["valgrind"]) {
        return;
    }
    let memcheck = |program: &Path, arguments: &[&str]| {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", "--leak-check=full", "--error-exitcode=9"]);
        valgrind.args(["--show-leak-kinds=definite", "--errors-for-leak-kinds=definite"]);
        let folder = program.parent().expect("a program is in a folder");
        valgrind.arg(program).arg(folder.join("tiny.gguf")).args(arguments);
        let output = run(valgrind.current_dir(folder).stdin(Stdio::null()));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{}", program.display());
    };
    for name in ["chat", "stream", "steps", "resume", "threads"] {
        let folder = temp();
        write_tiny_model(&folder.path().join("tiny.gguf"));
        let source = repository().join(format!("examples/c/{name}.c"));
        memcheck(&compile(folder.path(), &source, "c99"), &["hello", "8"]);
    }
    memcheck(&Program::new("cancel").path, &[]);
    memcheck(&Program::new("stress").path, &["8", "4", r#"{"threads": 2, "quantize": "q4_0"}"#]);
}
