//! Nothing of a conversation is left behind: `tests/c/canary.c` says where it looks.
#![cfg(target_os = "linux")]

mod support;

use std::process::Command;

use support::{compile, repository, silent, temp, write_tiny_model};

#[test]
fn a_conversation_leaves_nothing_in_memory_errors_and_files() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let program = compile(folder.path(), &repository().join("tests/c/canary.c"), "gnu11");
    silent(Command::new(&program).arg(&model).arg(folder.path().join("audit.jsonl")));
}
