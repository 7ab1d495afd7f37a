//! The library takes nothing from its surroundings: `tests/c/surroundings.c` says how that is seen.
#![cfg(target_os = "linux")]

mod support;

use std::process::Command;

use support::{library, repository, run, temp, write_tiny_model};

#[test]
fn nothing_is_read_that_the_host_did_not_name() {
    let folder = temp();
    let (model, program) = (folder.path().join("tiny.gguf"), folder.path().join("surroundings"));
    write_tiny_model(&model);
    let library = library();
    let libraries = library.parent().expect("the library is in a folder");
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-I"]);
    cc.arg(repository().join("include")).arg(repository().join("tests/c/surroundings.c")).arg(&library);
    cc.args(["-lpthread", "-ldl"]).arg(format!("-Wl,-rpath,{}", libraries.display()));
    run(cc.arg("-o").arg(&program));
    // What the standard library, its allocator and crates of numbers look for, if they look.
    run(Command::new(&program).arg(&model).envs(
        ["RUST_MIN_STACK", "RUST_BACKTRACE", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"].map(|name| (name, "7")),
    ));
}
