//! What is installed for macOS and Windows, as far as Linux can tell: clang and rustc's linker make the libraries of a
//! stand-in for ours, with the functions of the header and nothing inside.
#![cfg(target_os = "linux")]

mod declarations;
mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use declarations::{declarations, generate};
use support::{have, install, run, temp};

const TOOLS: [&str; 6] = ["clang", "llvm-ar", "llvm-nm", "llvm-objdump", "llvm-readobj", "llvm-dlltool"];

/// lld as Apple's and as Microsoft's linker, which comes with rustc.
fn linker(name: &str) -> PathBuf {
    let sysroot = run(Command::new("rustc").args(["--print", "sysroot"])).stdout;
    let sysroot = String::from_utf8(sysroot).expect("it is a path");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    Path::new(sysroot.trim()).join("lib/rustlib").join(host).join("bin/gcc-ld").join(name)
}

fn functions() -> BTreeSet<String> {
    declarations(&generate()).into_iter().map(|function| function.name).collect()
}

/// A static library with the functions of the header, and one that the header does not have.
fn stand_in(folder: &Path, target: &str, name: &str) -> PathBuf {
    let source = declarations::stand_in(&generate()) + "int not_exported(void) { return 0; }\n";
    let (code, object, library) = (folder.join("stub.c"), folder.join("stub.o"), folder.join(name));
    std::fs::write(&code, source).expect("the file can be written");
    let mut clang = Command::new("clang");
    clang.args([target, "-ffreestanding", "-DMISTRAL_STATIC", "-c", "-o"]).arg(&object);
    run(clang.arg(&code));
    run(Command::new("llvm-ar").arg("rc").arg(&library).arg(&object));
    library
}

fn output_of(tool: &str, arguments: &[&str], file: &Path) -> String {
    String::from_utf8(run(Command::new(tool).args(arguments).arg(file)).stdout).expect("it prints ASCII")
}

#[test]
fn the_library_of_macos() {
    if !have(&TOOLS) {
        return;
    }
    let folder = temp();
    let target = "--target=x86_64-apple-macos11";
    // So old a linker that every clang since knows how to speak to it.
    let version = "-mlinker-version=609";
    let built = stand_in(folder.path(), target, "libmistral.a");
    // The system's libraries, of which nothing is used.
    for name in ["m", "iconv"] {
        let text = format!(
            "--- !tapi-tbd\ntbd-version: 4\ntargets: [ x86_64-macos ]\ninstall-name: '/usr/lib/lib{name}.dylib'\n...\n"
        );
        std::fs::write(folder.path().join(format!("lib{name}.tbd")), text).expect("the file can be written");
    }
    let cc = format!(
        "clang {target} {version} --ld-path={} -nostdlib -L{}",
        linker("ld64.lld").display(),
        folder.path().display()
    );
    let built = built.to_string_lossy();
    let prefix = install("macos", &["--system", "darwin", "--static-library", &built, "--cc", &cc]);
    let library = prefix.join("lib/libmistral.1.dylib");
    let headers = output_of("llvm-objdump", &["--macho", "--private-headers"], &library);
    assert!(headers.contains("@rpath/libmistral.1.dylib"), "{headers}");
    assert!(headers.contains(&format!("current version {}", env!("CARGO_PKG_VERSION"))), "{headers}");
    assert!(headers.contains("compatibility version 1.0.0"), "{headers}");
    let exported =
        output_of("llvm-nm", &["--extern-only", "--defined-only", "--format=just-symbols"], &library);
    let exported: BTreeSet<String> =
        exported.lines().map(|name| name.trim_start_matches('_').to_owned()).collect();
    assert_eq!(exported, functions());
    let link = std::fs::read_link(prefix.join("lib/libmistral.dylib")).expect("it is a link");
    assert_eq!(link, Path::new("libmistral.1.dylib"));
    // A program finds the library by its install name.
    let program = folder.path().join("program");
    let (code, mut clang) = (client(folder.path()), Command::new("clang"));
    clang
        .args([target, version, "-ffreestanding", "-nostdlib"])
        .arg(format!("--ld-path={}", linker("ld64.lld").display()));
    clang.args(["-Wl,-undefined,dynamic_lookup", "-o"]).arg(&program).arg(&code).arg(&library);
    run(clang.arg("-I").arg(prefix.join("include")));
    assert!(
        output_of("llvm-objdump", &["--macho", "--dylibs-used"], &program)
            .contains("@rpath/libmistral.1.dylib")
    );
}

#[test]
fn the_library_of_windows() {
    if !have(&TOOLS) {
        return;
    }
    let folder = temp();
    let target = "--target=x86_64-pc-windows-msvc";
    let built = stand_in(folder.path(), target, "mistral.lib");
    for name in ["kernel32", "ntdll", "userenv", "ws2_32", "dbghelp"] {
        let definition = folder.path().join(format!("{name}.def"));
        std::fs::write(&definition, format!("LIBRARY {name}.dll\nEXPORTS\n"))
            .expect("the file can be written");
        let mut dlltool = Command::new("llvm-dlltool");
        dlltool.args(["-m", "i386:x86-64", "-d"]).arg(&definition).arg("-l");
        run(dlltool.arg(folder.path().join(format!("{name}.lib"))));
    }
    let lld = linker("lld-link");
    let link = format!("{} /NOENTRY /MACHINE:X64 /LIBPATH:{}", lld.display(), folder.path().display());
    let built = built.to_string_lossy();
    let prefix = install("windows", &["--system", "windows", "--static-library", &built, "--link", &link]);
    let exports = output_of("llvm-readobj", &["--coff-exports"], &prefix.join("bin/mistral-1.dll"));
    let exported: BTreeSet<String> =
        exports.lines().filter_map(|line| line.trim().strip_prefix("Name: ")).map(str::to_owned).collect();
    assert_eq!(exported, functions());
    // Both import libraries, the linker's and the one that MinGW makes of the .def, lead a program to this DLL.
    let definition = prefix.join("lib/mistral.def");
    let other = folder.path().join("mingw.lib");
    let mut dlltool = Command::new("llvm-dlltool");
    run(dlltool.args(["-m", "i386:x86-64", "-d"]).arg(&definition).arg("-l").arg(&other));
    let object = folder.path().join("client.o");
    let (code, mut clang) = (client(folder.path()), Command::new("clang"));
    clang.args([target, "-ffreestanding", "-c", "-o"]).arg(&object).arg(&code);
    run(clang.arg("-I").arg(prefix.join("include")));
    for import_library in [prefix.join("lib/mistral.lib"), other] {
        let program = folder.path().join("program.exe");
        let mut link = Command::new(&lld);
        link.args(["/ENTRY:main", "/SUBSYSTEM:CONSOLE", "/NODEFAULTLIB"])
            .arg(format!("/OUT:{}", program.display()));
        run(link.arg(&object).arg(&import_library));
        let imports = output_of("llvm-readobj", &["--coff-imports"], &program);
        assert!(imports.contains("Name: mistral-1.dll") && imports.contains("mistral_version"), "{imports}");
    }
}

fn client(folder: &Path) -> PathBuf {
    let code = folder.join("client.c");
    let text = "#include <mistral.h>\nint main(void) { return mistral_version() == 0; }\n";
    std::fs::write(&code, text).expect("the file can be written");
    code
}
