//! Which module may import which: the directions of `ARCHITECTURE.md`, read from the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of `mistral-core` and the modules that it may import, lowest first. `*`: all of them. A new module
/// gets a line here.
const MAY_IMPORT: [(&str, &[&str]); 32] = [
    ("error", &[]),
    ("control", &["error"]),
    ("limits", &["error"]),
    ("config", &["error"]),
    ("quant", &["error", "config"]),
    ("weights", &["error", "control", "config", "quant"]),
    ("provenance", &["error", "control", "weights"]),
    ("audit", &["error", "control", "provenance"]),
    ("device", &["error"]),
    ("kernels", &["error", "control", "config", "quant", "weights", "device"]),
    ("cache", &["error", "config", "kernels", "device"]),
    ("nn", &["error", "config", "quant", "weights", "kernels", "cache", "device"]),
    ("transformer", &["error", "control", "config", "kernels", "cache", "nn", "device"]),
    (
        "loader",
        &[
            "error",
            "control",
            "config",
            "quant",
            "weights",
            "kernels",
            "cache",
            "nn",
            "transformer",
            "device",
        ],
    ),
    ("placement", &["error", "config", "quant", "weights", "kernels", "cache", "device"]),
    // Text and tokens: no tensors, no model.
    ("tokenizer", &["error"]),
    ("chat", &["error", "tokenizer"]),
    ("sampler", &["error"]),
    ("stop", &["error"]),
    ("constraint", &["error"]),
    ("carried", &["control", "error", "weights", "tokenizer"]),
    // The top, where the parts come together: its modules know each other.
    ("session", &["*"]),
    ("generate", &["*"]),
    ("lookup", &["error", "control", "session"]),
    ("completion", &["*"]),
    ("text", &["*"]),
    ("engine", &["*"]),
    ("determinism", &["*"]),
    ("marking", &["*"]),
    ("embed", &["*"]),
    ("estimate", &["*"]),
    // What tests write files with and break models by, and what benches run kernels by.
    ("testing", &["error", "config", "quant", "weights", "kernels", "engine"]),
];

/// The modules that compute on a device; no other mentions Burn.
const WITH_BURN: [&str; 8] =
    ["device", "kernels", "cache", "nn", "transformer", "loader", "session", "engine"];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Every source file with the module that it belongs to; tests excepted.
fn files() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut pending = vec![sources()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("tests") {
                continue;
            }
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && !path.to_string_lossy().ends_with("tests.rs")
            {
                let inside = path.strip_prefix(sources()).unwrap();
                let module = inside.components().next().unwrap().as_os_str().to_str().unwrap();
                found.push((module.trim_end_matches(".rs").to_owned(), path));
            }
        }
    }
    found.retain(|(module, _)| module != "lib");
    found
}

/// The code of a file: without comments, and without what follows the first `#[cfg(test)]` that opens a module.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or("").trim()).collect();
    let is_tests = |at: usize| {
        lines[at] == "#[cfg(test)]"
            && lines[at + 1..].iter().take(2).any(|line| line.starts_with("mod ") && line.ends_with('{'))
    };
    let end = (0..lines.len()).find(|&at| is_tests(at)).unwrap_or(lines.len());
    // An import under `#[cfg(test)]` binds no code that ships.
    let ships = |at: &usize| *at == 0 || lines[at - 1] != "#[cfg(test)]";
    (0..end).filter(ships).map(|at| lines[at]).collect::<Vec<_>>().join("\n")
}

/// The first names after each `crate::`, the names of `crate::{a, b::c}` included.
fn imports(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = true;
        for (at, c) in group.char_indices() {
            if start && depth == 0 && !c.is_whitespace() {
                found.insert(word(&group[at..]));
                start = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                _ => {}
            }
        }
    }
    found
}

#[test]
fn modules_import_only_what_is_below_them() {
    let modules: BTreeSet<&str> = MAY_IMPORT.iter().map(|(module, _)| *module).collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (module, path) in files() {
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("module `{module}` has no line in this test"));
            continue;
        };
        for import in imports(&code(&path)) {
            // What `lib.rs` re-exports is imported from where it is at home.
            let known = modules.contains(import.as_str());
            seen += usize::from(known);
            if import != module && !allowed.contains(&"*") && !allowed.contains(&import.as_str()) {
                wrong.push(format!("{}: imports `crate::{import}`", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 20, "only {seen} imports were found: has the layout changed?");
}

#[test]
fn burn_stays_where_tensors_are() {
    let names_burn = |code: &str| {
        let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_'));
        words
            .into_iter()
            .any(|word| word == "burn" || word.starts_with("burn_") || word.starts_with("cubecl"))
    };
    let files = files();
    let wrong = files.iter().filter(|(module, _)| !WITH_BURN.contains(&module.as_str()));
    let wrong: Vec<_> = wrong.filter(|(_, path)| names_burn(&code(path))).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let with = files.iter().filter(|(_, path)| names_burn(&code(path))).count();
    assert!(with > 0, "Burn was found nowhere: has the layout changed?");
}

#[test]
fn imports_are_found() {
    let code = "use crate::error::{Error, Result};\nuse crate::{config, nn::{Linear, x}, quant::BlockType};\nlet a = crate::cache::new();\nmy_crate::no;";
    let found: Vec<String> = imports(code).into_iter().collect();
    assert_eq!(found, ["cache", "config", "error", "nn", "quant"]);
}
