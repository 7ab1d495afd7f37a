//! The system refuses a file, memory or a thread at every place where it can: `tests/c/failing.c`. Panics of the library's own are in `faults.rs`.
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod support;

use std::process::Command;

use mistral_core::provenance::{VerifyOptions, verify};
use mistral_core::{Control, Error};
use support::{compile, repository, silent, temp, write_tiny_model};

#[test]
fn whatever_the_system_refuses_gets_a_status_and_leaves_nothing() {
    let folder = temp();
    let (model, manifest) = (folder.path().join("tiny.gguf"), folder.path().join("manifest"));
    write_tiny_model(&model);
    let digest = sha256(&model);
    std::fs::write(&manifest, format!("{digest}  tiny.gguf\n")).expect("a manifest");
    let options = VerifyOptions { manifest: Some(manifest.clone()), ..VerifyOptions::default() };
    let verified = verify(&model, &options, &mut Control::none());
    assert!(!matches!(verified, Err(Error::Integrity { .. })), "{verified:?}");
    let program = compile(folder.path(), &repository().join("tests/c/failing.c"), "gnu11");
    silent(Command::new(&program).arg(&model).arg(&manifest).arg(folder.path().join("audit.jsonl")));
}

fn sha256(path: &std::path::Path) -> String {
    let output = support::run(Command::new("sha256sum").arg(path));
    String::from_utf8(output.stdout).expect("digits").split(' ').next().expect("a digest").to_owned()
}
