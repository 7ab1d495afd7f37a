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

/// What a format writes of an assistant's message, it reads back.
#[test]
fn answers_are_read_back() {
    let arguments = "{\"ville\": \"Nîmes\", \"n\": [1, 2.5, \"]}\"]}";
    let calls = format!(
        "[{{\"id\": \"abcdefgh1\", \"function\": {{\"name\": \"f\", \"arguments\": {arguments}}}}},
          {{\"id\": \"abcdefgh2\", \"function\": {{\"name\": \"g-2\", \"arguments\": {{}}}}}}]"
    );
    for (name, tokenizer) in tokenizers() {
        let format = ChatFormat::of(&tokenizer, None).unwrap();
        let version = format.version();
        let think = version >= crate::tokenizer::TokenizerVersion::V13;
        let both = version >= crate::tokenizer::TokenizerVersion::V7;
        let (content, calls) = match (version.as_str(), both) {
            ("v1", _) => ("\"Ça va ? 🤖\"", "[]"),
            (_, false) => ("null", calls.as_str()),
            _ if think => (
                "[{\"type\": \"thinking\", \"thinking\": \"Hm…\"}, {\"type\": \"text\", \"text\": \"Ça va ? 🤖\"}]",
                calls.as_str(),
            ),
            _ => ("\"Ça va ? 🤖\"", calls.as_str()),
        };
        let request = format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}},
              {{\"role\": \"assistant\", \"content\": {content}, \"tool_calls\": {calls}, \"prefix\": true}}]}}"
        );
        let prompt = format.prompt(&ChatRequest::from_json(&request).unwrap()).unwrap();
        let all = prompt.to_tokens(&tokenizer).unwrap();
        let mut head = prompt.clone();
        head.fragments.truncate(prompt.fragments.len() - prompt.prefix().len());
        let tokens = &all[head.to_tokens(&tokenizer).unwrap().len()..];

        let answer = AnswerParser::new(Some(version), 1).read_tokens(&tokenizer, tokens).unwrap();
        assert_eq!(answer.content, if content == "null" { "" } else { "Ça va ? 🤖" }, "{name}");
        assert_eq!(answer.reasoning, if think { "Hm…" } else { "" }, "{name}");
        assert_eq!(answer.broken, [], "{name}");
        if version.as_str() != "v1" {
            assert_eq!(answer.calls.len(), 2, "{name}");
            assert_eq!(
                (answer.calls[0].name.as_str(), answer.calls[0].arguments.as_str()),
                ("f", arguments),
                "{name}"
            );
            assert_eq!(answer.calls[1].arguments, "{}", "{name}");
            let ids = ["v3", "v7", "v11"].contains(&version.as_str());
            assert_eq!(answer.calls[0].id == "abcdefgh1", ids, "{name}");
        }
        let mut parser = AnswerParser::new(Some(version), 1);
        parser.resume(prompt.prefix());
        assert_eq!(parser.finish().1, answer, "{name}");
    }
}

/// Requests of the corpus with some of their bytes changed: an error or tokens, never a panic.
#[test]
fn damaged_requests() {
    let tokenizers = tokenizers();
    let text = std::fs::read_to_string(fixtures().join("corpus.jsonl")).unwrap();
    let signs = b"{}[]\":,0-9.eEntfu\\ \0\xc3";
    let mut state = 1u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut good = 0;
    for line in text.lines() {
        let request = Json::parse(line, Dialect::Strict).unwrap().get("request").unwrap().dumps();
        for _ in 0..12 {
            let mut bytes = request.clone().into_bytes();
            for _ in 0..=random(3) {
                let (at, sign) = (random(bytes.len()), signs[random(signs.len())]);
                match random(3) {
                    0 => bytes[at] = sign,
                    1 => bytes.insert(at, sign),
                    _ => drop(bytes.drain(at..(at + 1 + random(20)).min(bytes.len()))),
                }
            }
            let Ok(json) = Json::from_request(&String::from_utf8_lossy(&bytes)) else { continue };
            let tokenizer = &tokenizers[["tekken-v15", "tekken-v11", "spm-v3", "spm-v2"][random(4)]];
            good += usize::from(encode(tokenizer, &json, ValidationMode::Test).is_ok());
        }
    }
    assert!(good > 500, "{good}");
}
