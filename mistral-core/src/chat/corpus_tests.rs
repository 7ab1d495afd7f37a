//! Every case of the corpus that `tests/fixtures/chat/make_corpus.py` makes with mistral-common.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;
use crate::chat::json::{Dialect, Json};
use crate::chat::request::{ChatRequest, CompletionRequest};
use crate::error::Error;
use crate::tokenizer::Tokenizer;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat")
}

/// The Tekken file of a version, derived from the one that is committed as the script does.
fn tekken(version: &str, specials: usize, settings: &[&str]) -> Tokenizer {
    let text = std::fs::read_to_string(fixtures().join("tekken.json")).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    file["config"]["version"] = version.into();
    file["special_tokens"].as_array_mut().unwrap().truncate(specials);
    match settings {
        [] => drop(file.as_object_mut().unwrap().remove("model_settings_builder")),
        _ => {
            let known = file["model_settings_builder"].as_object_mut().unwrap();
            known.retain(|key, _| settings.contains(&key.as_str()));
        }
    }
    Tokenizer::from_tekken(file.to_string().as_bytes(), "tekken.json").unwrap()
}

pub(super) fn tokenizers() -> BTreeMap<String, Tokenizer> {
    let mut all = BTreeMap::new();
    for (version, specials) in [("v3", 20), ("v7", 20), ("v11", 34), ("v13", 36), ("v15", 38)] {
        let settings: &[&str] = if version == "v15" { &["reasoning_effort"] } else { &[] };
        all.insert(format!("tekken-{version}"), tekken(version, specials, settings));
    }
    all.insert("tekken-v15-schema".into(), tekken("v15", 38, &["reasoning_effort", "json_schema"]));
    for version in ["v1", "v2", "v3", "v7"] {
        let path = fixtures().join(format!("tokenizer.model.{version}"));
        all.insert(format!("spm-{version}"), Tokenizer::open(path).unwrap());
    }
    all
}

fn encode(tokenizer: &Tokenizer, request: &Json, mode: ValidationMode) -> crate::Result<Vec<u32>> {
    let format = ChatFormat::of(tokenizer, None)?.with_mode(mode);
    let prompt = match request.get("prompt") {
        Some(_) => {
            let request = CompletionRequest::read(request)?;
            format.fim(&request.prompt, request.suffix.as_deref().unwrap_or_default())?
        }
        None => format.prompt(&ChatRequest::read(request)?)?,
    };
    prompt.to_tokens(tokenizer)
}

/// FNV-1a over the ids, as the script makes it.
fn digest(tokens: &[u32]) -> String {
    let bytes = tokens.iter().flat_map(|token| token.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{}:{hash:016x}", tokens.len())
}

fn agrees(result: &crate::Result<Vec<u32>>, expected: &Json) -> bool {
    match (result, expected) {
        (Ok(tokens), Json::Array(ids)) => {
            ids.len() == tokens.len() && ids.iter().zip(tokens).all(|(id, t)| *id == Json::Int(t.to_string()))
        }
        (Ok(tokens), Json::String(expected)) => digest(tokens) == *expected,
        (Err(_), Json::String(expected)) if expected == "Error" => true,
        (Err(Error::Chat { rule, .. }), Json::String(expected)) => rule.as_str() == expected,
        _ => false,
    }
}

/// The number of cases, and those that differ.
fn compare(corpus: &Path) -> (usize, Vec<String>) {
    let tokenizers = tokenizers();
    let (mut cases, mut different) = (0, Vec::new());
    for (i, line) in std::fs::read_to_string(corpus).unwrap().lines().enumerate() {
        let case = Json::parse(line, Dialect::Strict).unwrap();
        let mode = match case.get("mode").and_then(Json::as_str) {
            Some("serving") => ValidationMode::Serving,
            Some("finetuning") => ValidationMode::Finetuning,
            Some("agnostic") => ValidationMode::Agnostic,
            _ => ValidationMode::Test,
        };
        for (name, expected) in case.get("results").unwrap().members().unwrap() {
            cases += 1;
            let result = encode(&tokenizers[name], case.get("request").unwrap(), mode);
            if !agrees(&result, expected) {
                let result = result.map(|tokens| tokenizers[name].decode(&tokens, false));
                different.push(format!("line {}, {name}: {result:?} instead of {}", i + 1, expected.dumps()));
            }
        }
    }
    (cases, different)
}

#[test]
fn equal_to_mistral_common() {
    let (cases, different) = compare(&fixtures().join("corpus.jsonl"));
    assert!(cases >= 6000, "{cases} cases");
    assert!(
        different.is_empty(),
        "{} of {cases} differ:\n{}",
        different.len(),
        different[..different.len().min(5)].join("\n")
    );
}
