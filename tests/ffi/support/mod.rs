//! What the tests of the C interface share: where the built library is, a tiny model with a tokenizer,
//! running programs.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod tiny;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use mistral_core::testing::TempFolder;

pub use tiny::write_tiny_model;

/// The top folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the repository").to_owned()
}

/// The dynamic library that cargo built for this test: beside the test itself.
pub fn library() -> PathBuf {
    built(&format!("{}mistral{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX))
}

/// The static library that cargo built for this test.
pub fn static_library() -> PathBuf {
    built(if cfg!(windows) { "mistral.lib" } else { "libmistral.a" })
}

fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let path = test.parent().expect("the test is in a folder").join(name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// An empty folder that goes with the value.
pub fn temp() -> TempFolder {
    TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder can be made")
}

/// Compiles `source` without a warning and links it with the library that cargo built.
pub fn compile(folder: &Path, source: &Path, standard: &str) -> PathBuf {
    let name = source.file_stem().expect("a source has a name").to_string_lossy();
    let program = folder.join(format!("{name}-{standard}"));
    let library = library();
    let libraries = library.parent().expect("the library is in a folder");
    let mut cc = Command::new("cc");
    cc.arg(format!("-std={standard}")).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-g", "-I"]);
    cc.arg(repository().join("include")).arg(source).arg(&library).args(["-lm", "-lpthread", "-ldl"]);
    cc.arg(format!("-Wl,-rpath,{}", libraries.display())).arg("-o").arg(&program);
    run(&mut cc);
    program
}

/// Runs a command that must succeed.
pub fn run(command: &mut Command) -> Output {
    // A layer of Mesa looks for a Wayland server where adapters are listed, and says so on stderr where this is not set.
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        command.env("XDG_RUNTIME_DIR", env!("CARGO_TARGET_TMPDIR"));
    }
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    output
}

/// Runs a command that must succeed and print nothing.
pub fn silent(command: &mut Command) {
    let output = run(command);
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(printed, "", "{command:?} printed something");
}

/// Whether these commands are there. Where one is not, the test says so and does nothing; but not in continuous
/// integration, which installs them.
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
pub fn have(tools: &[&str]) -> bool {
    let found = |tool: &&&str| {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&paths).any(|folder| folder.join(tool).is_file())
    };
    let missing: Vec<_> = tools.iter().filter(|tool| !found(tool)).collect();
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "{missing:?} is not installed");
    if !missing.is_empty() {
        eprintln!("skipped: {missing:?} is not installed");
    }
    missing.is_empty()
}

/// Installs the static library that cargo built for this test into an empty folder of this name.
pub fn install(name: &str, arguments: &[&str]) -> PathBuf {
    let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if prefix.exists() {
        std::fs::remove_dir_all(&prefix).expect("what was installed before can be removed");
    }
    let mut python = Command::new("python3");
    python.arg("-B").arg(repository().join("mistral-ffi/package/install.py")).arg("--prefix").arg(&prefix);
    if !arguments.contains(&"--static-library") {
        python.arg("--static-library").arg(static_library());
    }
    run(python.args(arguments));
    prefix
}

/// The block of a language in README.md, as it stands there.
pub fn readme_block(language: &str) -> String {
    let text = std::fs::read_to_string(repository().join("README.md")).expect("the README is there");
    let blocks: Vec<&str> = text
        .split(&format!("\n```{language}\n"))
        .skip(1)
        .map(|rest| rest.split("```").next().expect("a block ends"))
        .collect();
    assert_eq!(blocks.len(), 1, "README.md has one block of {language}");
    blocks[0].to_owned()
}

/// A folder to run the programs of README.md in: the model that they open is there, a tiny one.
pub fn readme_folder() -> TempFolder {
    let folder = temp();
    let models = folder.path().join("models");
    std::fs::create_dir(&models).expect("the folder can be made");
    write_tiny_model(&models.join("SmolLM2-135M-Instruct.Q4_1.gguf"));
    folder
}

/// The names that a dynamic library exports.
pub fn exports(library: &Path) -> std::collections::BTreeSet<String> {
    let mut nm = Command::new("nm");
    let flags: &[&str] = if cfg!(target_os = "macos") { &["-gU"] } else { &["-D", "--defined-only"] };
    let output = run(nm.args(flags).arg(library));
    let lines = String::from_utf8(output.stdout).expect("symbols are ASCII");
    let name =
        |line: &str| line.split_whitespace().last().map(|name| name.trim_start_matches('_').to_owned());
    lines.lines().filter_map(name).collect()
}
