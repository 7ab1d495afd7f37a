//! No network, no files beyond those that are named: the C examples under strace, and in a network namespace that has nothing in it. The system is asked here, not
//! the C library as in `surroundings.rs`, so that a call that goes around that one is seen, too.
#![cfg(target_os = "linux")]

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{compile, have, library, repository, run, temp, write_tiny_model};

/// Calls that make, change or remove files, or start programs. `openat` and `open` are judged by their flags.
const CHANGES: [&str; 17] = [
    "creat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "truncate",
    "chmod",
];

/// Whether a command that needs a right of the system can be used. Where it cannot, that is said, past the capture of the harness.
fn permitted(what: &str, command: &mut Command) -> bool {
    let permitted = command.output().is_ok_and(|output| output.status.success());
    if !permitted {
        let _ = writeln!(std::io::stderr(), "NOT CHECKED: the system does not permit {what}");
    }
    permitted
}

/// The programs, and the model that they open.
fn examples(folder: &Path) -> (Vec<PathBuf>, PathBuf) {
    let model = folder.join("tiny.gguf");
    write_tiny_model(&model);
    let names = ["chat", "stream", "steps", "threads"];
    let source = |name: &&str| repository().join(format!("examples/c/{name}.c"));
    (names.iter().map(source).map(|source| compile(folder, &source, "c99")).collect(), model)
}

/// What a line of strace calls: `123 openat(...) = 3`.
fn call(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
    let (name, rest) = line.split_once('(')?;
    name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_').then_some((name, rest))
}

/// The lines that a run must not have.
fn forbidden<'t>(trace: &'t str, may_read: &[&str]) -> Vec<&'t str> {
    let network = [
        "socket",
        "connect",
        "bind",
        "sendto",
        "recvfrom",
        "sendmsg",
        "recvmsg",
        "listen",
        "accept",
        "accept4",
        "socketpair",
    ];
    let wrong = |line: &&str| {
        let Some((name, arguments)) = call(line) else { return false };
        if network.contains(&name) || CHANGES.contains(&name) {
            return true;
        }
        let opens = ["open", "openat", "openat2"].contains(&name);
        let writes = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC"].iter().any(|flag| arguments.contains(flag));
        let path = arguments.split('"').nth(1).unwrap_or_default();
        opens && (writes || !may_read.iter().any(|start| path.starts_with(start)))
    };
    trace.lines().filter(wrong).collect()
}

#[test]
fn traces_are_judged() {
    let trace = "12 socket(AF_INET, SOCK_STREAM, IPPROTO_TCP) = 3\n12 openat(AT_FDCWD, \"/lib/x\", O_RDONLY|O_CLOEXEC) = 3\n\
        12 openat(AT_FDCWD, \"/lib/x\", O_RDWR) = 3\n13 openat(AT_FDCWD, \"/root/.netrc\", O_RDONLY) = -1 ENOENT\n\
        12 <... read resumed>\n12 unlink(\"/lib/x\") = 0\n12 +++ exited with 0 +++\n";
    let wrong = forbidden(trace, &["/lib"]);
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    assert!(
        wrong[0].contains("AF_INET")
            && wrong[1].contains("O_RDWR")
            && wrong[2].contains(".netrc")
            && wrong[3].contains("unlink")
    );
}

#[test]
fn examples_open_no_socket_and_write_no_file() {
    if !have(&["cc", "strace"]) || !permitted("strace (ptrace)", Command::new("strace").args(["-f", "true"]))
    {
        return;
    }
    let folder = temp();
    let (programs, model) = examples(folder.path());
    let libraries = library().parent().expect("the library is in a folder").display().to_string();
    let model_path = model.display().to_string();
    let may_read = [
        // The dynamic linker; the library; the model; how many processors the process may use.
        "/etc/ld.so",
        "/lib",
        "/usr/lib",
        "/usr/local/lib",
        &libraries,
        &model_path,
        "/proc/self/cgroup",
        "/proc/self/mountinfo",
        "/sys/fs/cgroup",
    ];
    for program in programs {
        let trace = folder.path().join("trace");
        let mut strace = Command::new("strace");
        strace
            .args(["-f", "-qq", "-e", "trace=%network,%file,%process", "-o"])
            .arg(&trace)
            .arg(&program)
            .arg(&model);
        let folder_of_its_own = folder.path().join("empty");
        std::fs::create_dir_all(&folder_of_its_own).expect("a folder");
        let output = run(strace.current_dir(&folder_of_its_own).env_remove("LD_LIBRARY_PATH"));
        let trace = std::fs::read_to_string(&trace).expect("strace writes what it saw");
        assert!(
            trace.contains(&model_path) && trace.contains("execve("),
            "the trace shows nothing:\n{trace}"
        );
        let wrong = forbidden(&trace, &may_read);
        assert!(wrong.is_empty(), "{}: {wrong:#?}", program.display());
        assert_eq!(trace.matches("execve(").count(), 1, "{}: it started a program", program.display());
        assert!(!output.stdout.is_empty(), "{}: it said nothing", program.display());
        assert_eq!(
            std::fs::read_dir(&folder_of_its_own).expect("a folder").count(),
            0,
            "{}",
            program.display()
        );
    }
}

#[test]
fn examples_run_without_a_network() {
    let flags = ["-n", "-rn"].into_iter().find(|flags| {
        Command::new("unshare").args([flags, "true"]).output().is_ok_and(|output| output.status.success())
    });
    let Some(flags) = flags else {
        permitted("a network namespace (unshare -n)", &mut Command::new("false"));
        return;
    };
    let folder = temp();
    let (programs, model) = examples(folder.path());
    for program in programs {
        let alone = run(Command::new("unshare").arg(flags).arg(&program).arg(&model));
        let usual = run(Command::new(&program).arg(&model));
        assert!(!alone.stdout.is_empty(), "{}: it said nothing", program.display());
        // Times and names of answers aside, the programs say the same.
        assert_eq!(alone.stdout.len(), usual.stdout.len(), "{}", program.display());
    }
}
