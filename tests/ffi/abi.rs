//! Within a major version the binary interface only grows: what the first release of it had is held in `tests/abi`, as the
//! debug information of the library, as its header, and as a program that is compiled against that header.
#![cfg(target_os = "linux")]

mod declarations;
mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use declarations::generate;
use support::{have, install, repository, run, temp, write_tiny_model};

fn baseline(name: &str) -> PathBuf {
    repository().join("tests/abi").join(name)
}

/// The library with what debuggers read: cargo builds this crate with `debug = 2`, at 1 there are no parameters in it.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| install("abi", &["--debug"]).join("lib/libmistral.so"))
}

/// What abidiff reports, if it does. New functions do not count. A member at the end of a struct that begins with its size
/// does, although it is allowed: abidiff cannot be told of it alone, so that the baseline is to be written anew.
fn changes(before: &Path, after: &Path) -> Option<String> {
    let mut command = Command::new("abidiff");
    command.arg("--no-added-syms").arg(before).arg(after);
    let output = command.output().expect("abidiff starts");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    let code = output.status.code().expect("abidiff ends by itself");
    // 4 is a change and 8 one that breaks programs for certain; 1 and 2 are errors of abidiff itself.
    assert!(code & 3 == 0, "abidiff: {code}: {report}{}", String::from_utf8_lossy(&output.stderr));
    (code != 0).then_some(report)
}

/// A library of the functions of a header, for what debug information of Rust leaves out: the types of callbacks.
fn stand_in(folder: &Path, name: &str, header: &str) -> PathBuf {
    let (source, library) = (folder.join(format!("{name}.c")), folder.join(format!("lib{name}.so")));
    std::fs::write(&source, declarations::stand_in(header)).expect("the file can be written");
    run(Command::new("cc").args(["-w", "-g", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source));
    library
}

#[test]
fn nothing_but_additions_since_the_baseline() {
    if !have(&["abidiff"]) {
        return;
    }
    // Debug information is that of one processor.
    if cfg!(target_arch = "x86_64") {
        assert_eq!(changes(&baseline("mistral.abi"), library()), None);
    }
    let folder = temp();
    let before = std::fs::read_to_string(baseline("mistral.h")).expect("the baseline is there");
    let (before, after) =
        (stand_in(folder.path(), "before", &before), stand_in(folder.path(), "after", &generate()));
    assert_eq!(changes(&before, &after), None);
}

/// The same check on baselines that the library has supposedly changed since.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_change_of_the_library_is_found() {
    if !have(&["abidiff"]) {
        return;
    }
    let text = std::fs::read_to_string(baseline("mistral.abi")).expect("the baseline is there");
    let folder = temp();
    let without_a_parameter = {
        let function = text.find("mangled-name='mistral_generate'").expect("it is in the baseline");
        let start = function + text[function..].find("\n          <parameter").expect("it has parameters");
        let end = start + 1 + text[start + 1..].find('\n').expect("the line ends");
        text[..start].to_owned() + &text[end..]
    };
    let renamed = text.replace("mistral_chat'", "mistral_old'").replace("mistral_chat@@", "mistral_old@@");
    for (changed, says) in [
        (without_a_parameter, "was added"),
        (replace(&text, "mangled-name='mistral_generate'", "type-id='", "size_t", "u32"), "changed"),
        (replace(&text, "name='mistral_event'", "layout-offset-in-bits='", "224", "232"), "offset changed"),
        (renamed, "'function i32 mistral::chat::mistral_old"),
    ] {
        let before = folder.path().join("changed.abi");
        std::fs::write(&before, changed).expect("the file can be written");
        let report = changes(&before, library()).unwrap_or_default();
        assert!(report.contains(says), "{says}: {report}");
    }
}

#[test]
fn a_change_of_the_header_is_found() {
    if !have(&["abidiff"]) {
        return;
    }
    let folder = temp();
    let header = generate();
    let before = stand_in(folder.path(), "before", &header);
    let end = "#ifdef __cplusplus\n}  // extern";
    let added = format!("\nMISTRAL_API\nint mistral_more(void);\n{end}");
    for (old, new, allowed) in [
        ("  uint64_t done;", "  uint32_t done;", false),
        ("  const char *phase;", "  const char *phase;\n  uint64_t inserted;", false),
        ("  const struct mistral_token_logprob *top_logprobs;", "  const void *top_logprobs;", false),
        ("} mistral_token_logprob;", "  float more;\n} mistral_token_logprob;", false),
        ("const struct mistral_progress *progress);", "const struct mistral_event *progress);", false),
        ("(*mistral_event_fn)(void *user_data,", "(*mistral_event_fn)(", false),
        (end, &added, true),
    ] {
        assert!(header.contains(old), "{old} is in the header");
        let after = stand_in(folder.path(), "after", &header.replacen(old, new, 1));
        assert_eq!(changes(&before, &after).is_none(), allowed, "{new}");
    }
}

#[cfg(target_arch = "x86_64")]
/// `text` with another value of an attribute after `inside`. A type's name stands for its number.
fn replace(text: &str, inside: &str, attribute: &str, old: &str, new: &str) -> String {
    let number = |name: &str| {
        let at = text.find(&format!("<type-decl name='{name}'")).expect("the type is in the baseline");
        let id = text[at..].split("id='").nth(1).expect("it has a number");
        id.split('\'').next().expect("the number ends").to_owned()
    };
    let value = |name: &str| match name {
        "size_t" => number("usize"),
        "u32" => number("u32"),
        other => other.to_owned(),
    };
    let pattern = format!("{attribute}{}'", value(old));
    let at = text.find(inside).unwrap_or_else(|| panic!("{inside} is in the baseline"));
    let start = at + text[at..].find(&pattern).unwrap_or_else(|| panic!("{pattern} comes after {inside}"));
    format!("{}{attribute}{}'{}", &text[..start], value(new), &text[start + pattern.len()..])
}

#[test]
fn no_number_of_the_baseline_has_changed() {
    let numbers = |header: &str| -> BTreeMap<String, String> {
        let lines = header.lines().filter_map(|line| line.strip_prefix("#define MISTRAL_")?.split_once(' '));
        let frozen = lines.filter(|(name, _)| !name.starts_with("VERSION_"));
        frozen.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    let before = std::fs::read_to_string(baseline("mistral.h")).expect("the baseline is there");
    let (before, now) = (numbers(&before), numbers(&generate()));
    assert!(before.len() > 20, "{before:?}");
    for (name, value) in &before {
        assert_eq!(now.get(name), Some(value), "MISTRAL_{name}");
    }
}

#[test]
fn a_program_of_the_baseline_runs_on_the_library() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let program = folder.path().join("program");
    let mut cc = Command::new("cc");
    cc.args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"])
        .arg(repository().join("tests/abi"));
    cc.arg(baseline("program.c")).arg("-o").arg(&program).arg(library());
    run(&mut cc);
    let libraries = library().parent().expect("the library is in a folder");
    run(Command::new(&program).arg(&model).env("LD_LIBRARY_PATH", libraries));
}

/// For a new major version, and for what a minor one has added. The program is written by hand.
#[test]
#[ignore = "writes tests/abi"]
fn write_the_baseline() {
    let mut abidw = Command::new("abidw");
    abidw
        .args(["--no-corpus-path", "--no-comp-dir-path", "--no-show-locs", "--no-elf-needed"])
        .arg(library());
    let text = String::from_utf8(run(&mut abidw).stdout).expect("it is XML");
    // The units of other crates are empty: they declare nothing of the interface.
    let mut units = text.split("  <abi-instr ");
    let mut kept = units.next().expect("it begins with the symbols").to_owned();
    for unit in units.filter(|unit| unit.lines().nth(1).is_some_and(|line| line.trim() != "</abi-instr>")) {
        kept.extend(["  <abi-instr ", unit]);
    }
    if !kept.ends_with("</abi-corpus>\n") {
        kept += "</abi-corpus>\n";
    }
    std::fs::write(baseline("mistral.abi"), kept).expect("the file can be written");
    std::fs::write(baseline("mistral.h"), generate()).expect("the file can be written");
}
