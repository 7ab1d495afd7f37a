//! The Python package, by its own tests, on the library that cargo built and a tiny model.

mod support;

use std::process::Command;

use support::{library, repository, run, silent, temp, write_tiny_model};

#[test]
fn the_package_does_what_it_says() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let mut python = Command::new("python3");
    // -B: nothing is written into the repository; -I: nothing of the user's is read.
    python.args(["-B", "-I", "-W", "error"]).arg(repository().join("tests/python/run.py"));
    silent(python.arg(library()).arg(&model));
}

#[test]
fn the_package_is_typed() {
    let folder = temp();
    let quiet = ["-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"];
    let mut pip = Command::new("python3");
    // pip works in the folder that is removed with everything in it.
    pip.env("TMPDIR", folder.path()).args(quiet).args(["mypy==2.4.1", "--target"]).arg(folder.path());
    run(&mut pip);
    let mut mypy = Command::new("python3");
    mypy.env("PYTHONPATH", folder.path()).env("MYPYPATH", repository().join("mistral-ffi/python"));
    mypy.args(["-B", "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir"])
        .arg(folder.path().join("cache"));
    mypy.arg(repository().join("mistral-ffi/python/mistral"));
    mypy.arg(repository().join("examples/python"));
    silent(&mut mypy);
}
