//! `include/mistral.h` is what the crate says, and the library exports what the header says.

mod declarations;
mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use declarations::{Function, declarations, generate, nullable};
use support::{exports, have, library, repository, run};

#[test]
fn the_committed_header_is_what_the_crate_says() {
    let committed = std::fs::read_to_string(header_path()).unwrap_or_default();
    let generated = generate();
    assert!(generated.is_ascii(), "compilers disagree on the encoding of anything else");
    if committed == generated {
        return;
    }
    let line = committed.lines().zip(generated.lines()).position(|(a, b)| a != b);
    let line = line.unwrap_or(committed.lines().count().min(generated.lines().count()));
    panic!(
        "include/mistral.h differs from line {} on:\n  committed {:?}\n  generated {:?}\nWrite it anew with\n  \
         cargo test --release -p mistral-ffi --test header -- --ignored write_the_header",
        line + 1,
        committed.lines().nth(line),
        generated.lines().nth(line),
    );
}

#[test]
#[ignore = "writes include/mistral.h"]
fn write_the_header() {
    std::fs::create_dir_all(header_path().parent().expect("it is in a folder"))
        .expect("the folder can be made");
    std::fs::write(header_path(), generate()).expect("the header can be written");
}

#[test]
fn the_library_exports_the_functions_of_the_header_and_nothing_else() {
    // Cargo's library has the bounds of tables that CubeCL's compiler gathers while linking; what is installed hides them.
    let gathered = |name: &String| name.starts_with("start_linkm") || name.starts_with("stop_linkm");
    let exported: BTreeSet<String> = exports(&library()).into_iter().filter(|name| !gathered(name)).collect();
    let declared: BTreeSet<String> =
        declarations(&generate()).into_iter().map(|function| function.name).collect();
    assert_eq!(exported, declared);
    assert!(declared.len() <= 45, "{} functions: the interface is to stay small", declared.len());
}

#[test]
fn every_function_documents_what_its_caller_must_know() {
    for Function { name, comment, result, parameters } in declarations(&generate()) {
        let has = |heading: &str| comment.contains(heading);
        assert!(has("Threads: "), "{name} does not say which threads may call it");
        assert_eq!(result == "mistral_status", has("Statuses: `MISTRAL_OK`"), "{name} and its statuses");
        assert!(!has("Statuses:") || has("`MISTRAL_E_INTERNAL`"), "{name} may always fail inside");
        let has_handle =
            parameters.iter().any(|p| p.contains("mistral_") && p.contains('*') && !p.contains("**"));
        if has_handle && has("Statuses:") {
            assert!(has("`MISTRAL_E_HANDLE`") && has("`MISTRAL_E_FORKED`"), "{name} takes a handle");
        }
        let text = parameters.iter().any(|p| p.contains("const char *"));
        assert!(!text || has("Encoding: "), "{name} does not say how its text is encoded");
        let makes = parameters.iter().any(|p| p.contains("**"));
        assert!(!makes || has("Ownership: "), "{name} does not say who owns what it gives");
        for nullable in nullable(&comment) {
            let known = parameters.iter().any(|p| p.ends_with(&nullable));
            assert!(known, "{name} has no parameter {nullable}");
        }
    }
}

#[test]
fn the_header_is_clean_c_and_cpp() {
    let folder = support::temp();
    let include = repository().join("include");
    let text = "#include <mistral.h>\nint main(void) { return (int)sizeof(mistral_event) == 0; }\n";
    for (compilers, extension, standards) in [
        (["gcc", "clang"], "c", &["c99", "c11", "c17"][..]),
        (["g++", "clang++"], "cpp", &["c++11", "c++14", "c++17", "c++20"]),
    ] {
        let source = folder.path().join(format!("header.{extension}"));
        std::fs::write(&source, text).expect("the file can be written");
        for compiler in compilers.into_iter().filter(|compiler| have(&[compiler])) {
            for standard in standards {
                let mut command = Command::new(compiler);
                command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion", "-fsyntax-only"]);
                run(command.arg(format!("-std={standard}")).arg("-I").arg(&include).arg(&source));
            }
        }
    }
}

fn header_path() -> PathBuf {
    repository().join("include/mistral.h")
}
