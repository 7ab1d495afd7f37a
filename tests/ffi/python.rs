//! The Python package, by its own tests, on the library that cargo built and a tiny model.

mod support;

use std::process::Command;

use support::{library, repository, run, temp, write_tiny_model};

#[test]
fn the_package_does_what_it_says() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let mut python = Command::new("python3");
    // -B: nothing is written into the repository; -I: nothing of the user's is read.
    python.args(["-B", "-I", "-W", "error"]).arg(repository().join("tests/python/run.py"));
    run(python.arg(library()).arg(&model));
}
