//! C programs: compiled against the header, linked with the library, run on a tiny model. They print nothing
//! unless they fail, and neither does the library.

mod declarations;
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use declarations::{Function, declarations, nullable};
use support::{library, repository, run, static_library, temp, write_tiny_model};

#[test]
fn the_interface_does_what_its_header_says() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    for standard in ["c99", "c11"] {
        let program = compile(folder.path(), &repository().join("tests/c/interface.c"), standard);
        let tokenizer = repository().join("tests/fixtures/chat/tokenizer.model.v3");
        let output = run(Command::new(&program).arg(&model).arg(folder.path()).arg(tokenizer));
        assert_eq!(
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()),
            "",
            "nothing is printed"
        );
    }
}

#[test]
fn every_null_and_every_bad_handle_is_refused() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let header =
        std::fs::read_to_string(repository().join("include/mistral.h")).expect("the header is there");
    let source = folder.path().join("matrix.c");
    let (cases, text) = matrix(&declarations(&header));
    assert!(cases > 100, "{cases} cases");
    std::fs::write(&source, text).expect("the program can be written");
    let program = compile(folder.path(), &source, "c99");
    run(Command::new(&program).arg(&model));
}

#[test]
fn the_examples_run() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    for (example, parts) in [("generate", &["tokens"][..]), ("chat", &[])] {
        let program = compile(folder.path(), &repository().join(format!("examples/{example}.c")), "c99");
        let output = run(Command::new(&program).arg(&model).args(["hello", "8"]));
        let text = String::from_utf8(output.stdout).expect("the examples print UTF-8");
        assert!(parts.iter().all(|part| text.contains(part)) && !text.is_empty(), "{example}: {text}");
        assert!(output.stderr.is_empty());
        let failed = Command::new(&program).arg("/nowhere").output().expect("it starts");
        assert!(!failed.status.success() && String::from_utf8_lossy(&failed.stderr).contains("MISTRAL_E_IO"));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_program_can_carry_the_static_library() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let program = folder.path().join("static");
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(repository().join("include"));
    cc.arg(repository().join("examples/generate.c")).arg(static_library());
    run(cc.args(["-lm", "-lpthread", "-ldl", "-o"]).arg(&program));
    run(Command::new(&program).arg(&model).args(["hello", "8"]));
}

/// Compiles `source` without a warning and links it with the library that cargo built.
fn compile(folder: &Path, source: &Path, standard: &str) -> PathBuf {
    let name = source.file_stem().expect("a source has a name").to_string_lossy();
    let program = folder.join(format!("{name}-{standard}"));
    let library = library();
    let libraries = library.parent().expect("the library is in a folder");
    let mut cc = Command::new("cc");
    cc.arg(format!("-std={standard}")).args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1", "-g", "-I"]);
    cc.arg(repository().join("include")).arg(source).arg(&library).args(["-lm", "-lpthread"]);
    cc.arg(format!("-Wl,-rpath,{}", libraries.display())).arg("-o").arg(&program);
    run(&mut cc);
    program
}

/// A program that calls each function with each of its pointers NULL and each of its handles freed, or of
/// another type.
fn matrix(functions: &[Function]) -> (usize, String) {
    let mut body = String::new();
    let mut cases = 0;
    let mut case = |function: &Function, arguments: &[String], expected: &str, what: &str| {
        let call = format!("{}({})", function.name, arguments.join(", "));
        body += &format!("  CHECK({call}, {expected}, \"{}: {what}\");\n", function.name);
        cases += 1;
    };
    for function in functions.iter().filter(|f| f.result == "mistral_status") {
        let names: Vec<&str> = function.parameters.iter().map(|p| parameter_name(p)).collect();
        let valid: Vec<String> = function.parameters.iter().map(|p| valid(function, p)).collect();
        let nullable = nullable(&function.comment);
        for (i, parameter) in function.parameters.iter().enumerate() {
            let with = |value: &str| {
                let mut arguments = valid.clone();
                arguments[i] = value.to_owned();
                arguments
            };
            let is_pointer = parameter.contains('*') || parameter.contains("_fn ");
            // A pointer that may be NULL where its length is 0 may not where it is not.
            let has_length = function.parameters.get(i + 1).is_some_and(|next| next.starts_with("size_t "));
            let required = !nullable.iter().any(|n| n == names[i]) || (has_length && parameter.contains('*'));
            if is_pointer && required {
                case(function, &with("NULL"), "MISTRAL_E_NULL", &format!("{} is NULL", names[i]));
            }
            if let Some(kind) = handle(parameter) {
                let stale = format!("stale_{kind}");
                case(function, &with(&stale), "MISTRAL_E_HANDLE", &format!("{} was freed", names[i]));
                let other = if kind == "buf" { "(void *)cancel" } else { "(void *)buf" };
                case(function, &with(other), "MISTRAL_E_HANDLE", &format!("{} is of another type", names[i]));
                let invented = "(void *)&count";
                case(function, &with(invented), "MISTRAL_E_HANDLE", &format!("{} is no handle", names[i]));
            }
        }
    }
    (cases, include_str!("../c/matrix.c.in").replace("@CASES@", &body))
}

fn parameter_name(parameter: &str) -> &str {
    parameter.rsplit([' ', '*']).next().expect("a parameter has a name")
}

/// The kind of the handle that a parameter is, if it is one.
fn handle(parameter: &str) -> Option<&str> {
    let kind = parameter.trim_start_matches("const ").strip_prefix("mistral_")?;
    let (kind, rest) = kind.split_once(' ')?;
    (rest.starts_with('*') && !rest.starts_with("**")).then_some(kind)
}

/// A right argument for a parameter: the variables of the program have the names of the parameters.
fn valid(function: &Function, parameter: &str) -> String {
    let name = parameter_name(parameter);
    if function.name.ends_with("_free") || name == "session" && function.name == "mistral_generation_new" {
        return format!("spare_{}", handle(parameter).expect("it takes a handle"));
    }
    match name {
        "out" | "response" | "event" => {
            let kind = parameter.trim_start_matches("const ").split(' ').next().expect("it has a type");
            format!("&{}out_{kind}", if parameter.starts_with("const ") { "const_" } else { "" })
        }
        "count" if parameter.contains('*') => "&count".to_owned(),
        "count" => "2".to_owned(),
        "capacity" => "CAPACITY".to_owned(),
        "text_len" | "path_len" | "request_len" | "options_len" | "prompt_len" | "suffix_len" => {
            format!("strlen({})", name.trim_end_matches("_len"))
        }
        "user_data" => "NULL".to_owned(),
        "callback" => {
            parameter.split(' ').next().expect("it has a type").replace("mistral_", "on_").replace("_fn", "")
        }
        _ => name.to_owned(),
    }
}
