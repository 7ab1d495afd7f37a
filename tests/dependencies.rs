//! What the library is made of: no crate that speaks to a network, no licence that a vendor could not ship. The rules
//! stand in `deny.toml`; this test holds them where cargo-deny is not installed, for the platform that it runs on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The rules of `deny.toml`.
struct Rules {
    banned: BTreeSet<String>,
    licences: BTreeSet<String>,
    /// A crate and a licence that it alone may have.
    exceptions: Vec<(String, String)>,
}

impl Rules {
    fn read() -> Self {
        let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
        let text: Vec<&str> = text.lines().map(|line| line.split('#').next().unwrap_or("")).collect();
        let exceptions = strings(&text, "exceptions = [");
        let exceptions = exceptions.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
        let set = |start| strings(&text, start).into_iter().collect();
        Self { banned: set("deny = ["), licences: set("allow = ["), exceptions }
    }

    fn allow(&self, name: &str, licence: &str) -> bool {
        // The old way to write OR.
        let expression = licence.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let mut words: Vec<&str> = expression.split_whitespace().rev().collect();
        let allowed = |one: &str| {
            let exception = |(of, licence): &(String, String)| of == name && licence == one;
            self.licences.contains(one) || self.exceptions.iter().any(exception)
        };
        either(&mut words, &allowed) && words.is_empty()
    }
}

/// The quoted strings from a line that begins with `start` to the line that closes the bracket.
fn strings(text: &[&str], start: &str) -> Vec<String> {
    let lines = text
        .iter()
        .skip_while(|line| !line.starts_with(start))
        .skip(1)
        .take_while(|line| !line.starts_with(']'));
    lines.flat_map(|line| line.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// SPDX: `a OR b`. `words` is read from its end.
fn either(words: &mut Vec<&str>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut result = both(words, allowed);
    while words.pop_if(|word| *word == "OR").is_some() {
        result |= both(words, allowed);
    }
    result
}

/// SPDX: `a AND b`, which binds more closely.
fn both(words: &mut Vec<&str>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let mut result = one(words, allowed);
    while words.pop_if(|word| *word == "AND").is_some() {
        result &= one(words, allowed);
    }
    result
}

/// SPDX: one licence, perhaps `WITH` an exception, or a parenthesis.
fn one(words: &mut Vec<&str>, allowed: &dyn Fn(&str) -> bool) -> bool {
    let Some(word) = words.pop() else { return false };
    if word == "(" {
        let result = either(words, allowed);
        return result & (words.pop() == Some(")"));
    }
    if words.pop_if(|next| *next == "WITH").is_some() {
        let exception = words.pop().unwrap_or("");
        return allowed(&format!("{word} WITH {exception}"));
    }
    allowed(word)
}

/// Name and licence of every crate in the graph of all features of the workspace, build and test dependencies
/// included, as Cargo resolves it: `Cargo.lock` and `cargo metadata` also list optional dependencies that nothing
/// turns on.
fn graph() -> Vec<(String, String)> {
    let tree = |offline: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(root()).args([
            "tree",
            "--workspace",
            "--all-features",
            "--locked",
            "--prefix",
            "none",
        ]);
        command.args(["--edges", "normal,build,dev", "--format", "{p}|{l}"]).args(offline).output().unwrap()
    };
    let mut output = tree(&["--offline"]);
    if !output.status.success() {
        // A feature that was never built here: its crates are not on this machine yet.
        output = tree(&[]);
    }
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: BTreeSet<&str> =
        text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.is_empty()).collect();
    let crates = lines.into_iter().map(|line| {
        let (package, licence) = line.split_once('|').unwrap();
        (package.split(' ').next().unwrap().to_owned(), licence.to_owned())
    });
    crates.collect()
}

#[test]
fn no_crate_speaks_to_a_network_and_every_licence_can_be_shipped() {
    let rules = Rules::read();
    let graph = graph();
    for expected in ["mistral-core", "mistral-ffi", "burn", "wgpu", "serde_json"] {
        assert!(graph.iter().any(|(name, _)| name == expected), "{expected} is not in the graph: {graph:?}");
    }
    let banned: Vec<&str> =
        graph.iter().map(|(name, _)| name.as_str()).filter(|name| rules.banned.contains(*name)).collect();
    assert!(banned.is_empty(), "banned by deny.toml: {banned:?}");
    let refused: Vec<_> = graph.iter().filter(|(name, licence)| !rules.allow(name, licence)).collect();
    assert!(refused.is_empty(), "licences not allowed by deny.toml: {refused:?}");
}

#[test]
fn every_crate_comes_from_the_registry() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let sources: BTreeSet<&str> = lock.lines().filter_map(|line| line.strip_prefix("source = ")).collect();
    assert_eq!(sources, BTreeSet::from(["\"registry+https://github.com/rust-lang/crates.io-index\""]));
}

#[test]
fn the_rules_are_read_and_understood() {
    let rules = Rules::read();
    for name in [
        "reqwest",
        "hyper",
        "ureq",
        "curl",
        "openssl",
        "native-tls",
        "rustls",
        "tokio",
        "socket2",
        "mio",
        "h2",
        "quinn",
    ] {
        assert!(rules.banned.contains(name), "{name}");
    }
    let exceptions = ["colored", "buildid", "cbindgen"].map(|name| (name.to_owned(), "MPL-2.0".to_owned()));
    assert_eq!(rules.exceptions, exceptions);
    for good in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0 OR MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
    ] {
        assert!(rules.allow("any", good), "{good}");
    }
    for bad in [
        "",
        "GPL-3.0",
        "MPL-2.0",
        "MIT AND GPL-3.0",
        "(MIT OR ISC) AND AGPL-3.0",
        "MIT WITH X",
        "MIT MIT",
        "(MIT",
    ] {
        assert!(!rules.allow("any", bad), "{bad}");
    }
    assert!(rules.allow("colored", "MPL-2.0"));
}
