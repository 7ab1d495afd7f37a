//! What `mistral-ffi/package/install.py` installs, as C and C++ programs find it: files, symbols, pkg-config, CMake.
#![cfg(target_os = "linux")]

mod declarations;
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use declarations::{declarations, generate};
use support::{have, install, readme_block, readme_folder, repository, run, temp, write_tiny_model};

const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| install("installed", &[]))
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("it prints UTF-8")
}

fn functions() -> BTreeSet<String> {
    declarations(&generate()).into_iter().map(|function| function.name).collect()
}

#[test]
fn the_files_are_where_c_programs_look() {
    let version = env!("CARGO_PKG_VERSION");
    let shared = format!("lib/libmistral.so.{version}");
    for file in [
        "include/mistral.h",
        "include/mistral.hpp",
        "lib/libmistral.a",
        "lib/pkgconfig/mistral.pc",
        "lib/cmake/mistral/mistralConfig.cmake",
        "lib/cmake/mistral/mistralConfigVersion.cmake",
        &shared,
    ] {
        assert!(prefix().join(file).is_file(), "{file}");
    }
    for link in ["libmistral.so", "libmistral.so.1"] {
        let target = std::fs::read_link(prefix().join("lib").join(link)).expect("it is a link");
        assert_eq!(target, Path::new(&format!("libmistral.so.{version}")), "{link}");
    }
    let dynamic = text(&run(Command::new("readelf").arg("-dW").arg(prefix().join(&shared))));
    for entry in ["Library soname: [libmistral.so.1]", "NODELETE", "BIND_NOW"] {
        assert!(dynamic.contains(entry), "{entry}:\n{dynamic}");
    }
    let needed: BTreeSet<&str> =
        dynamic.split("Shared library: [").skip(1).filter_map(|l| l.split('.').next()).collect();
    let system = BTreeSet::from(["libc", "libm", "libgcc_s", "ld-linux-x86-64", "ld-linux-aarch64"]);
    assert!(needed.is_subset(&system), "{needed:?}");
}

/// What a product that embeds it has to carry.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_library_is_at_most_twelve_megabytes() {
    let bytes = std::fs::metadata(prefix().join("lib/libmistral.so")).expect("it is installed").len();
    assert!(bytes <= 12_000_000, "{bytes} bytes");
}

#[test]
fn the_symbols_are_those_of_the_header() {
    let symbols = |flags: &[&str], file: &str| -> BTreeSet<String> {
        let lines = text(&run(Command::new("nm").args(flags).arg(prefix().join("lib").join(file))));
        let words = lines.lines().filter_map(|line| line.split_whitespace().nth(2));
        words.map(str::to_owned).collect()
    };
    let mut versioned: BTreeSet<String> =
        functions().iter().map(|name| format!("{name}@@MISTRAL_1")).collect();
    versioned.insert("MISTRAL_1".to_owned());
    assert_eq!(symbols(&["-D", "--defined-only"], "libmistral.so"), versioned);
    assert_eq!(symbols(&["-g", "--defined-only"], "libmistral.a"), functions());
}

#[test]
fn no_path_of_the_building_machine_is_in_the_libraries() {
    let home = std::env::var("CARGO_HOME").or_else(|_| std::env::var("HOME").map(|home| home + "/.cargo"));
    let repository = repository().canonicalize().expect("the repository is there");
    let folders = [home.expect("cargo has a home") + "/registry", repository.to_string_lossy().into_owned()];
    for library in ["libmistral.so", "libmistral.a"] {
        let bytes = std::fs::read(prefix().join("lib").join(library)).expect("the library can be read");
        for folder in &folders {
            let found = bytes.windows(folder.len()).any(|window| window == folder.as_bytes());
            assert!(!found, "{library} names {folder}");
        }
        // That panics say where they are is kept.
        assert!(bytes.windows(9).any(|window| window == b"crates///"), "{library}");
    }
}

/// Runs an example on a tiny model, with a line on its standard input or none.
fn run_example(program: &Path, model: &Path, input: &str) -> Output {
    let mut command = Command::new(program);
    command.arg(model).args(["hello", "8"]).current_dir(model.parent().expect("it is in a folder"));
    command.env("LD_LIBRARY_PATH", prefix().join("lib"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the example starts");
    std::io::Write::write_all(&mut child.stdin.take().expect("it is a pipe"), input.as_bytes())
        .expect("it listens");
    child.wait_with_output().expect("the example ends")
}

/// That an example works, and says what is wrong where it cannot.
fn check_example(program: &Path, model: &Path) {
    // Enter stops the examples that can be stopped.
    for input in ["", "\n"] {
        let output = run_example(program, model, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{}: {error}", program.display());
        assert!(!output.stdout.is_empty(), "{} printed nothing", program.display());
    }
    let output = run_example(program, &model.with_file_name("nowhere"), "");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("nowhere"), "{}: {error}", program.display());
}

fn examples(language: &str) -> Vec<PathBuf> {
    let folder = std::fs::read_dir(repository().join("examples").join(language)).expect("there are examples");
    let mut found: Vec<_> = folder.map(|entry| entry.expect("it can be read").path()).collect();
    found.sort();
    assert!(found.len() >= 4, "{found:?}");
    found
}

/// What `pkg-config` says.
fn pkg_config(flags: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig")).args(flags).arg("mistral");
    text(&run(&mut command)).split_whitespace().map(str::to_owned).collect()
}

fn tiny_model(folder: &Path) -> PathBuf {
    let model = folder.join("tiny.gguf");
    write_tiny_model(&model);
    model
}

#[test]
fn the_examples_run_through_pkg_config() {
    if !have(&["pkg-config"]) {
        return;
    }
    let folder = temp();
    let model = tiny_model(folder.path());
    assert_eq!(pkg_config(&["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    for (language, compiler, standard) in [("c", "cc", "-std=c99"), ("cpp", "c++", "-std=c++11")] {
        for source in examples(language) {
            let program = folder.path().join("example");
            let mut command = Command::new(compiler);
            command.arg(standard).args(WARNINGS).arg(&source).arg("-o").arg(&program);
            run(command.args(pkg_config(&["--cflags", "--libs"])).arg("-lpthread"));
            check_example(&program, &model);
        }
    }
}

#[test]
fn the_examples_run_through_cmake() {
    if !have(&["cmake", "make"]) {
        return;
    }
    let folder = temp();
    let model = tiny_model(folder.path());
    // As a package is made, and then found elsewhere than it was made for.
    let root = install(
        "destdir",
        &["--prefix", "/opt/mistral", "--destdir", &folder.path().join("root").to_string_lossy()],
    );
    assert!(!root.exists(), "everything is below the destdir");
    for target in ["mistral::mistral", "mistral::mistral_static"] {
        let build = folder.path().join("build");
        let mut configure = Command::new("cmake");
        configure.arg("-S").arg(repository().join("examples")).arg("-B").arg(&build);
        configure.arg(format!("-DCMAKE_PREFIX_PATH={}", folder.path().join("root/opt/mistral").display()));
        run(configure.arg(format!("-DMISTRAL_LIBRARY={target}")));
        run(Command::new("cmake").args(["--build"]).arg(&build).args(["--parallel", "2"]));
        let programs: Vec<_> = ["c", "cpp"].iter().flat_map(|language| examples(language)).collect();
        for source in &programs {
            let name = source.file_name().expect("it has a name").to_string_lossy().replace('.', "_");
            check_example(&build.join(name), &model);
        }
        let version = |asked: &str| {
            let project = folder.path().join("version");
            std::fs::create_dir_all(&project).expect("the folder can be made");
            let find = format!(
                "cmake_minimum_required(VERSION 3.16)\nproject(p NONE)\nfind_package(mistral {asked} CONFIG REQUIRED)\n"
            );
            std::fs::write(project.join("CMakeLists.txt"), find).expect("the file can be written");
            let mut configure = Command::new("cmake");
            configure.arg("-S").arg(&project).arg("-B").arg(project.join("build"));
            configure
                .arg(format!("-DCMAKE_PREFIX_PATH={}", folder.path().join("root/opt/mistral").display()));
            configure.output().expect("cmake starts").status.success()
        };
        if target == "mistral::mistral" {
            assert!(version("") && version("1") && version("1.0"));
            assert!(!version("2") && !version("1.999") && !version("0.1"));
        }
    }
}

/// The standard library is in both, under names that only the linker of each has seen.
#[test]
fn a_program_can_carry_two_static_libraries_of_rust() {
    let folder = temp();
    let model = tiny_model(folder.path());
    let (other, program) = (folder.path().join("libother.a"), folder.path().join("program"));
    let source = "#[unsafe(no_mangle)] pub extern \"C\" fn other(n: u32) -> usize {
        std::panic::catch_unwind(|| format!(\"{n}\").len()).unwrap_or(0)
    }";
    std::fs::write(folder.path().join("other.rs"), source).expect("the file can be written");
    let mut rustc = Command::new("rustc");
    rustc
        .args(["--edition", "2024", "--crate-type", "staticlib", "-o"])
        .arg(&other)
        .arg(folder.path().join("other.rs"));
    run(&mut rustc);
    let main = format!(
        "#include <stddef.h>\nsize_t other(unsigned n);\n#define main stream\n#include \"{}\"\n#undef main\n\
         int main(int argc, char **argv) {{ return other(42) == 2 ? stream(argc, argv) : 1; }}\n",
        repository().join("examples/c/stream.c").display()
    );
    std::fs::write(folder.path().join("main.c"), main).expect("the file can be written");
    let mut cc = Command::new("cc");
    cc.arg("-o").arg(&program).arg(folder.path().join("main.c")).arg("-I").arg(prefix().join("include"));
    cc.arg(prefix().join("lib/libmistral.a")).arg(&other);
    run(cc.args(["-lgcc_s", "-lpthread", "-lm", "-ldl"]));
    check_example(&program, &model);
}

#[test]
fn the_programs_of_the_readme_run() {
    let folder = readme_folder();
    for (language, compiler, standard) in [("c", "cc", "-std=c99"), ("cpp", "c++", "-std=c++11")] {
        let source = folder.path().join(format!("hello.{language}"));
        std::fs::write(&source, readme_block(language)).expect("the file can be written");
        let program = folder.path().join("hello");
        let mut command = Command::new(compiler);
        command.arg(standard).args(WARNINGS).arg(&source).arg("-o").arg(&program);
        command.arg("-I").arg(prefix().join("include")).arg("-L").arg(prefix().join("lib")).arg("-lmistral");
        run(&mut command);
        let mut command = Command::new(&program);
        let output = run(command.current_dir(folder.path()).env("LD_LIBRARY_PATH", prefix().join("lib")));
        assert!(text(&output).contains("chat.completion"), "{}", text(&output));
    }
}
