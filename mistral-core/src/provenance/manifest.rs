//! Manifests: which files a model has, and their SHA-256.
//!
//! ```json
//! {"files": [{"name": "config.json", "sha256": "f2c1...", "bytes": 640}, ...]}
//! ```
//!
//! `bytes` may be left out. What `sha256sum` writes (`f2c1...  config.json`) is a manifest as well.

use serde::Deserialize;

use super::{Claim, Expected, unhex};
use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    files: Vec<File>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    sha256: String,
    bytes: Option<u64>,
}

/// Reads a manifest, which errors call `file`.
pub(super) fn parse(file: &str, bytes: &[u8]) -> Result<Claim> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        Error::format(file, format!("byte {}", e.valid_up_to()), "invalid UTF-8", "a manifest in UTF-8")
    })?;
    let entries = if text.trim_start().starts_with('{') { json(file, text)? } else { lines(file, text)? };
    Claim::new(file, entries)
}

fn json(file: &str, text: &str) -> Result<Vec<(String, Expected)>> {
    let json: Json = serde_json::from_str(text).map_err(|e| {
        let place = format!("line {} column {}", e.line(), e.column());
        Error::format(file, place, e, r#"{"files": [{"name", "sha256", "bytes"}]}"#)
    })?;
    let entry = |(i, f): (usize, File)| {
        let key = || format!("files[{i}].sha256");
        Ok((f.name, Expected { sha256: digest(file, key, &f.sha256)?, bytes: f.bytes }))
    };
    json.files.into_iter().enumerate().map(entry).collect()
}

/// `digest`, a space, a space or `*`, `name`.
fn lines(file: &str, text: &str) -> Result<Vec<(String, Expected)>> {
    let entry = |(i, line): (usize, &str)| {
        let key = || format!("line {}", i + 1);
        let (hex, rest) = line.split_once(' ').unwrap_or((line, ""));
        let sha256 = digest(file, key, hex)?;
        let name = rest.strip_prefix([' ', '*']).ok_or_else(|| {
            Error::format(
                file,
                key(),
                "no name after the digest",
                "two spaces and a name, as sha256sum writes",
            )
        })?;
        Ok((name.to_owned(), Expected { sha256, bytes: None }))
    };
    text.lines().enumerate().map(entry).collect()
}

fn digest(file: &str, key: impl FnOnce() -> String, text: &str) -> Result<[u8; 32]> {
    unhex(text).ok_or_else(|| {
        let found = format!("{} characters that are no digest", text.chars().count());
        Error::format(file, key(), found, "a SHA-256: 64 hexadecimal digits")
    })
}
