//! C programs: compiled against the header, linked with the library, run on a tiny model. They print nothing
//! unless they fail, and neither does the library.

mod declarations;
mod matrix;
mod support;

use std::process::Command;

use declarations::declarations;
use matrix::matrix;
use support::{compile, repository, silent, temp, write_tiny_model};

#[test]
fn the_interface_does_what_its_header_says() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    for standard in ["c99", "c11"] {
        let program = compile(folder.path(), &repository().join("tests/c/interface.c"), standard);
        let tokenizer = repository().join("tests/fixtures/chat/tokenizer.model.v3");
        silent(Command::new(&program).arg(&model).arg(folder.path()).arg(tokenizer));
    }
}

#[test]
fn every_null_and_every_bad_busy_or_forked_handle_is_refused() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let header =
        std::fs::read_to_string(repository().join("include/mistral.h")).expect("the header is there");
    let source = folder.path().join("matrix.c");
    let (cases, text) = matrix(&declarations(&header));
    assert!(cases > 250, "{cases} cases");
    std::fs::write(&source, text).expect("the program can be written");
    let program = compile(folder.path(), &source, "c99");
    silent(Command::new(&program).arg(&model));
}
