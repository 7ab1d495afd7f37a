//! Every tokenizer file of Mistral's own package, token for token as the reference has it.
//!
//! The files are fetched from PyPI once, by `tests/fixtures/fetch.py`, into `models/`; this fails where they cannot be had.

use std::path::{Path, PathBuf};
use std::process::Command;

use mistral_core::tokenizer::Tokenizer;
use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder with the files of the package mistral-common.
fn mistral_common() -> PathBuf {
    let models = root().join("models");
    let script = root().join("tests/fixtures/fetch.py");
    let output = Command::new("python3").arg(script).arg(&models).output().expect("python3 is installed");
    assert!(output.status.success(), "fetch.py: {}", String::from_utf8_lossy(&output.stderr));
    models.join("mistral-common-1.13.1")
}

fn vectors() -> Value {
    let file = root().join("tests/fixtures/tokenizer/vectors.json");
    serde_json::from_slice(&std::fs::read(file).expect("a file of this repository")).expect("JSON")
}

fn check(folder: &Path, name: &str, vectors: &Value) {
    let tokenizer = Tokenizer::open(folder.join(name)).expect("a tokenizer of Mistral's");
    let texts = vectors["texts"].as_array().expect("a list");
    assert_eq!(texts.len(), 420);
    for (text, expected) in texts.iter().zip(vectors["tokens"][name].as_array().expect("a list")) {
        let text = text.as_str().expect("a text");
        let expected: Vec<u32> = serde_json::from_value(expected.clone()).expect("tokens");
        assert_eq!(tokenizer.encode(text), expected, "{name}: {text:?}");
        // SentencePiece reads its sign for a space as a space.
        let round_trip = if name.starts_with("tekken") { text.to_owned() } else { text.replace('▁', " ") };
        assert_eq!(tokenizer.decode(&expected, true).expect("tokens of it"), round_trip, "{name}");
        let mut decoder = tokenizer.decoder(true);
        let mut streamed: String =
            expected.iter().map(|&id| decoder.push(id).expect("a token of it")).collect();
        streamed.push_str(&decoder.finish());
        assert_eq!(streamed, round_trip, "{name}");
    }
}

#[test]
fn the_tokens_are_those_of_mistral_common() {
    let folder = mistral_common();
    let vectors = vectors();
    for name in [
        "tokenizer.model.v1",
        "mistral_instruct_tokenizer_240323.model.v3",
        "mistral_instruct_tokenizer_241114.model.v7",
        "tekken_240718.json",
    ] {
        check(&folder, name, &vectors);
    }
}

#[test]
fn every_file_opens_with_its_version() {
    let folder = mistral_common();
    for (name, version, inst) in [
        ("tokenizer.model.v1", "v1", None),
        ("mistral_instruct_tokenizer_240216.model.v2", "v2", Some(3)),
        ("mistral_instruct_tokenizer_240323.model.v3", "v3", Some(3)),
        ("mistral_instruct_tokenizer_241114.model.v7", "v7", Some(3)),
        ("mistral_instruct_tokenizer_241114.model.v7m1", "v7", Some(3)),
        ("tekken_240718.json", "v3", Some(3)),
        ("tekken_240911.json", "v3", Some(3)),
    ] {
        let tokenizer = Tokenizer::open(folder.join(name)).expect("a tokenizer of Mistral's");
        assert_eq!(tokenizer.version().expect("a version").as_str(), version, "{name}");
        assert_eq!(tokenizer.special("[INST]"), inst, "{name}");
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)), "{name}");
    }
}
