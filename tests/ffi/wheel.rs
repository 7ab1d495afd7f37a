//! The wheel: built by its backend, accepted by the tools of PyPI, installed where nothing else is, and used.
#![cfg(target_os = "linux")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use support::{readme_block, readme_folder, repository, run, static_library, temp, write_tiny_model};

/// The wheel, built by pip as anyone would.
fn wheel() -> &'static Path {
    static WHEEL: OnceLock<PathBuf> = OnceLock::new();
    WHEEL.get_or_init(|| {
        let folder = empty("wheel");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps", "--no-index"]);
        pip.arg("--config-settings").arg(format!("static-library={}", static_library().display()));
        pip.env("PYTHONDONTWRITEBYTECODE", "1");
        run(pip.arg("--wheel-dir").arg(&folder).arg(repository().join("mistral-ffi/python")));
        let files: Vec<_> = std::fs::read_dir(&folder).expect("the folder is there").collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.into_iter().next().expect("there is one").expect("it can be read").path()
    })
}

/// Python of a virtual environment with the wheel and nothing else.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = empty("wheel-installed");
        run(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&folder));
        let python = folder.join("bin/python");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--disable-pip-version-check", "--python"]).arg(&python);
        run(pip.args(["install", "--quiet", "--no-index"]).arg(wheel()));
        python
    })
}

fn empty(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("what was there before can be removed");
    }
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    folder
}

#[test]
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
fn the_tools_of_pypi_accept_it() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pypi-tools");
    let tool = |name: &str| folder.join("bin").join(name);
    if !tool("twine").exists() || !tool("auditwheel").exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
        let fetched = Command::new(tool("pip"))
            .args(["install", "--quiet", "auditwheel==6.8.2", "twine==7.0.0"])
            .output();
        if !fetched.expect("pip starts").status.success() {
            assert!(std::env::var_os("CI").is_none(), "auditwheel and twine could not be fetched");
            eprintln!("skipped: auditwheel and twine could not be fetched");
            return;
        }
    }
    let name = wheel().file_name().expect("it has a name").to_string_lossy();
    let tag = name.trim_end_matches(".whl").rsplit('-').next().expect("it has a platform");
    assert!(tag.starts_with("manylinux_2_"), "{name}");
    let report = String::from_utf8(run(Command::new(tool("auditwheel")).arg("show").arg(wheel())).stdout);
    let report = report.expect("it is text").split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        report.contains(&format!("is consistent with the following platform tag: \"{tag}\"")),
        "{report}"
    );
    run(Command::new(tool("twine")).args(["check", "--strict"]).arg(wheel()));
}

#[test]
fn it_is_used_without_anything_else() {
    let folder = readme_folder();
    let script = folder.path().join("hello.py");
    std::fs::write(&script, readme_block("python")).expect("the file can be written");
    let mut command = Command::new(python());
    // No environment: the package finds its library by itself.
    let output = run(command.env_clear().current_dir(folder.path()).arg("-I").arg(&script));
    assert!(!output.stdout.is_empty(), "it printed nothing");
    let mut command = Command::new(python());
    let places = "import mistral; print(mistral.load_library().parent == __import__('pathlib').Path(mistral.__file__).parent)";
    let output = run(command.env_clear().args(["-I", "-c", places]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "True\n");
}

#[test]
fn the_examples_run() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let examples = std::fs::read_dir(repository().join("examples/python")).expect("there are examples");
    let examples: Vec<_> = examples.map(|entry| entry.expect("it can be read").path()).collect();
    assert!(examples.len() >= 4, "{examples:?}");
    for example in examples {
        let mut command = Command::new(python());
        command.args(["-B", "-W", "error"]).arg(&example).arg(&model).args(["hello", "8"]);
        let output = run(command.current_dir(folder.path()).stdin(Stdio::null()));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{}", example.display());
    }
}
