//! `mistral.hpp`: clean with every compiler, standard and way to do without exceptions; complete; and right on a tiny
//! model.

mod declarations;
mod support;

use std::process::Command;

use declarations::{declarations, generate};
use support::{have, library, repository, run, temp, write_tiny_model};

const COMPILERS: [&str; 2] = ["g++", "clang++"];
const STANDARDS: [&str; 4] = ["c++11", "c++14", "c++17", "c++20"];
const VARIANTS: [&[&str]; 4] =
    [&[], &["-DMISTRAL_NO_EXCEPTIONS"], &["-fno-exceptions", "-fno-rtti"], &["-fno-rtti"]];

fn compiler(name: &str, standard: &str, variant: &[&str]) -> Command {
    let mut command = Command::new(name);
    command.args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-Wconversion", "-Wshadow"]).args(variant);
    command.arg(format!("-std={standard}")).arg("-I").arg(repository().join("include"));
    command
}

#[test]
fn the_header_is_clean() {
    let folder = temp();
    let source = folder.path().join("header.cpp");
    std::fs::write(&source, "#include <mistral.hpp>\nint main() { return mistral::version() == nullptr; }\n")
        .expect("the file can be written");
    for name in COMPILERS.into_iter().filter(|name| have(&[name])) {
        for standard in STANDARDS {
            for variant in VARIANTS {
                run(compiler(name, standard, variant).arg("-fsyntax-only").arg(&source));
            }
        }
    }
}

/// Each standard, and each variant with one compiler at least.
#[test]
fn the_header_does_what_it_says() {
    let folder = temp();
    let model = folder.path().join("tiny.gguf");
    write_tiny_model(&model);
    let library = library();
    let libraries = library.parent().expect("the library is in a folder");
    for (i, standard) in STANDARDS.into_iter().enumerate() {
        for (j, name) in COMPILERS.into_iter().enumerate().filter(|(_, name)| have(&[name])) {
            let program = folder.path().join("interface");
            let mut command = compiler(name, standard, VARIANTS[(i + 2 * j) % VARIANTS.len()]);
            command.arg(repository().join("tests/cpp/interface.cpp")).arg(&library).arg("-lpthread");
            run(command.arg(format!("-Wl,-rpath,{}", libraries.display())).arg("-o").arg(&program));
            let output = run(Command::new(&program).arg(&model));
            assert!(output.stdout.is_empty() && output.stderr.is_empty(), "nothing is printed");
        }
    }
}

#[test]
fn every_function_of_the_c_header_is_used() {
    let path = repository().join("include/mistral.hpp");
    let header = std::fs::read_to_string(path).expect("the header is there");
    let names: Vec<_> = declarations(&generate()).into_iter().map(|function| function.name).collect();
    let calls = |name: &String| {
        let ends =
            |at: usize| !header[at + name.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
        header.match_indices(name.as_str()).any(|(at, _)| ends(at))
    };
    let missing: Vec<_> = names.iter().filter(|name| !calls(name)).collect();
    assert!(names.len() > 30 && missing.is_empty(), "{missing:?} cannot be called from C++");
}
