//! What a release says of itself, as far as that can be seen without making one: `mistral-ffi/package/release.py` makes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs Python with the functions of release.py.
fn python(program: &str) -> String {
    let package = root().join("mistral-ffi/package");
    let output = Command::new("python3")
        .args(["-B", "-c", program])
        .env("PYTHONPATH", &package)
        .current_dir(root())
        .output();
    let output = output.expect("python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// An SBOM of what the lock file says is shipped is accepted; one with a part more, a part less or another version is not.
#[test]
fn an_sbom_is_held_against_the_lock_file() {
    let said = python(
        "import json, release\n\
         parts = release.shipped()\n\
         part = lambda name, version: {'name': name, 'version': version}\n\
         root = next(p for p in parts if p[0] == 'mistral-ffi')\n\
         sbom = {'metadata': {'component': part(*root)}, 'components': [part(*p) for p in sorted(parts - {root})]}\n\
         same = release.compare(release.components(sbom), parts)\n\
         removed = sbom['components'].pop()\n\
         less = release.compare(release.components(sbom), parts)\n\
         sbom['components'].append(part(removed['name'], '0.0.0'))\n\
         other = release.compare(release.components(sbom), parts)\n\
         sbom['components'] = [part(*p) for p in sorted(parts - {root})] + [part('optional', '1.0.0')]\n\
         narrowed = release.narrow(sbom, parts)\n\
         assert release.compare(release.components(sbom), parts) and not release.compare(release.components(narrowed), parts)\n\
         print(json.dumps([sorted(p[0] for p in parts), same, less, other]))",
    );
    let said: (Vec<String>, Vec<String>, Vec<String>, Vec<String>) =
        serde_json::from_str(&said).expect("JSON");
    for expected in ["mistral-ffi", "mistral-core", "burn", "serde_json", "zeroize"] {
        assert!(said.0.iter().any(|name| name == expected), "{expected} is not among what is shipped");
    }
    // Used by tests alone.
    assert!(!said.0.iter().any(|name| name == "cbindgen"));
    assert!(said.1.is_empty(), "{:?}", said.1);
    assert!(said.2.len() == 1 && said.2[0].contains("not listed"), "{:?}", said.2);
    assert!(said.3.len() == 2 && said.3[1].contains("not shipped"), "{:?}", said.3);
}

/// The strings of a list in a file of settings.
fn list(file: &str, start: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(file)).expect("settings");
    let from = text.find(start).unwrap_or_else(|| panic!("{file}: no {start}")) + start.len();
    let body = &text[from..from + text[from..].find("\n]").expect("an end")];
    body.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn notices_are_written_for_the_licences_that_are_allowed() {
    let allowed = list("deny.toml", "\nallow = [");
    assert!(allowed.len() > 5);
    assert_eq!(list("about.toml", "\naccepted = ["), allowed);
}

/// How often `unsafe` stands in the code of a file, comments and texts left out.
fn count(text: &str) -> usize {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let words = code.flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || c == '_')));
    words.filter(|word| *word == "unsafe").count()
}

fn inventory() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut pending = vec![root().join("mistral-core/src"), root().join("mistral-ffi/src")];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name =
                    path.strip_prefix(root()).expect("it is below").to_string_lossy().replace('\\', "/");
                let uses = count(&std::fs::read_to_string(&path).expect("a source"));
                if uses > 0 {
                    found.insert(name, uses);
                }
            }
        }
    }
    found
}

fn written() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/unsafe.txt")
}

fn as_text(inventory: &BTreeMap<String, usize>) -> String {
    let total: usize = inventory.values().sum();
    let lines: String = inventory.iter().map(|(file, uses)| format!("{uses:4} {file}\n")).collect();
    format!("{lines}{total:4} in all\n")
}

#[test]
fn unsafe_code_does_not_grow_unseen() {
    let committed = std::fs::read_to_string(written()).expect("tests/unsafe.txt");
    let found = as_text(&inventory());
    let again = "cargo test -p mistral-core --test release -- --ignored write_the_inventory_of_unsafe";
    assert_eq!(
        found, committed,
        "tests/unsafe.txt is not what the sources have. Where that is right: {again}"
    );
    // Where the house rules let it be; what Vulkan alone says of an adapter; and kernels that are made to fail.
    let allowed = [
        "mistral-core/src/kernels/cpu/",
        "mistral-core/src/weights/mmap.rs",
        "mistral-core/src/device/adapter_memory.rs",
        "mistral-core/src/kernels/wgpu/tests.rs",
        "mistral-ffi/src/",
    ];
    let elsewhere: Vec<_> =
        inventory().into_keys().filter(|file| !allowed.iter().any(|start| file.starts_with(start))).collect();
    assert!(elsewhere.is_empty(), "{elsewhere:?}");
}

#[test]
fn unsafe_is_counted() {
    assert_eq!(count("unsafe { f() } // unsafe\nunsafe fn g() {}\nunsafe_code"), 2);
}

/// After a change that was looked at.
#[test]
#[ignore = "writes tests/unsafe.txt"]
fn write_the_inventory_of_unsafe() {
    std::fs::write(written(), as_text(&inventory())).expect("it is written");
}
