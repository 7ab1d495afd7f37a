//! Against the reference implementations on small vocabularies (`tests/fixtures/tokenizer`), and against damage.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tokenizer").join(name)
}

fn vectors() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("small.json")).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// Decoding whole, and token by token.
fn decode(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let whole = tokenizer.decode(ids, skip_special).unwrap();
    let mut decoder = tokenizer.decoder(skip_special);
    let mut streamed: String = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    streamed.push_str(&decoder.finish());
    assert_eq!(whole, streamed);
    whole
}

/// Checks `ids`, `text` and `sequences` of one tokenizer in the vectors.
fn check_vectors(tokenizer: &Tokenizer, texts: &[&str], expected: &Value) {
    for (i, text) in texts.iter().enumerate() {
        let tokens = ids(&expected["ids"][i]);
        assert_eq!(tokenizer.encode(text), tokens, "{text:?}");
        assert_eq!(decode(tokenizer, &tokens, true), expected["text"][i].as_str().unwrap(), "{text:?}");
    }
    for sequence in expected["sequences"].as_array().unwrap() {
        let tokens = ids(&sequence[0]);
        assert_eq!(decode(tokenizer, &tokens, true), sequence[1].as_str().unwrap(), "{tokens:?}");
    }
}

#[test]
fn sentencepiece_equals_its_reference() {
    let vectors = vectors();
    let tokenizer = Tokenizer::open(fixture("small.model.v3")).unwrap();
    check_vectors(&tokenizer, &strings(&vectors["texts"]), &vectors["sentencepiece"]);
    assert_eq!(tokenizer.version(), Some(TokenizerVersion::V3));
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk()), (Some(1), Some(2), Some(0)));
    assert_eq!(tokenizer.pad(), None);
    assert_eq!(tokenizer.special("[INST]"), Some(3));
    assert!(tokenizer.adds_bos() && tokenizer.is_control(3) && !tokenizer.is_control(5));
    // User-defined symbols are found in any text, control symbols only in templates.
    assert_eq!(tokenizer.encode("<mark>").last(), Some(&5));
    assert!(!tokenizer.encode("[INST]").contains(&3));
    assert_eq!(tokenizer.encode_with_special("[INST]"), [3]);
    assert_eq!(tokenizer.encode(""), [0u32; 0]);
}

#[test]
fn tekken_equals_its_reference() {
    let vectors = vectors();
    let tokenizer = Tokenizer::open(fixture("small.tekken.json")).unwrap();
    check_vectors(&tokenizer, &strings(&vectors["texts"]), &vectors["tekken"]);
    assert_eq!(tokenizer.version(), Some(TokenizerVersion::V13));
    assert_eq!(tokenizer.vocab_size(), 1410);
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.unk(), tokenizer.pad()),
        (Some(1), Some(2), Some(0), Some(5))
    );
    assert_eq!(tokenizer.special("<SPECIAL_9>"), Some(9));
    assert_eq!(tokenizer.encode_with_special("<s>[INST]a<SPECIAL_9>"), [1, 3, 10 + u32::from(b'a'), 9]);
    assert!(tokenizer.encode("<s>[INST]").iter().all(|&id| id >= 10));
    assert_eq!(decode(&tokenizer, &[1, 10 + 0xE4, 2], false), "<s>\u{FFFD}</s>");
}

#[test]
fn hugging_face_equals_its_reference() {
    let vectors = vectors();
    let mut texts = strings(&vectors["texts"]);
    texts.extend(strings(&vectors["special"]));
    for (form, expected) in vectors["huggingface"].as_object().unwrap() {
        let tokenizer = Tokenizer::open(fixture(&format!("small.{form}.tokenizer.json"))).unwrap();
        for (i, text) in texts.iter().enumerate() {
            let tokens = ids(&expected["ids"][i]);
            assert_eq!(tokenizer.encode_with_special(text), tokens, "{form}: {text:?}");
            assert_eq!(
                decode(&tokenizer, &tokens, true),
                expected["text"][i].as_str().unwrap(),
                "{form}: {text:?}"
            );
            let kept = expected["text_with_special"][i].as_str().unwrap();
            assert_eq!(decode(&tokenizer, &tokens, false), kept, "{form}: {text:?}");
        }
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(2)), "{form}");
        assert!(tokenizer.adds_bos(), "{form}");
        assert!(!tokenizer.encode("</s> <mark>").contains(&2), "{form}");
    }
}

/// The small SentencePiece vocabulary in the form in which GGUF has it.
fn gguf_of_sentencepiece(bytes: &[u8]) -> (Vec<String>, Vec<f32>, Vec<i32>) {
    let tokenizer = Tokenizer::from_sentencepiece(bytes, "small.model").unwrap();
    let Bpe { merges: bpe::Merges::ByPriority(priorities), .. } = &tokenizer.bpe else {
        panic!("scores expected")
    };
    let tokens = (0..tokenizer.vocab_size() as u32).map(|id| {
        let text = tokenizer.token_text(id).unwrap();
        if tokenizer.vocab.kind(id) == Kind::Byte { text.into_owned() } else { text.replace(' ', "▁") }
    });
    let types = (0..tokenizer.vocab_size() as u32).map(|id| match tokenizer.vocab.kind(id) {
        Kind::Normal => 1,
        Kind::Unknown => 2,
        Kind::Control => 3,
        Kind::UserDefined => 4,
        Kind::Unused => 5,
        Kind::Byte => 6,
    });
    (tokens.collect(), priorities.iter().map(|&priority| -(priority as f32)).collect(), types.collect())
}

#[test]
fn a_vocabulary_with_scores_inside_gguf_equals_the_sentencepiece_file() {
    let vectors = vectors();
    let bytes = std::fs::read(fixture("small.model.v3")).unwrap();
    let (tokens, scores, token_types) = gguf_of_sentencepiece(&bytes);
    let vocab = GgufVocab {
        model: "llama",
        tokens: tokens.iter().map(String::as_str).collect(),
        scores,
        token_types,
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    };
    let tokenizer = Tokenizer::from_gguf(vocab.clone(), "small.gguf").unwrap();
    for (i, text) in strings(&vectors["texts"]).into_iter().enumerate() {
        // llama.cpp also puts a space behind a user-defined symbol.
        if !text.contains("    ") && !text.contains("▁▁▁▁") {
            assert_eq!(tokenizer.encode(text), ids(&vectors["sentencepiece"]["ids"][i]), "{text:?}");
        }
    }
    assert!(tokenizer.adds_bos());
    let without_space = GgufVocab { add_space_prefix: Some(false), ..vocab };
    let without_space = Tokenizer::from_gguf(without_space, "small.gguf").unwrap();
    assert_eq!(without_space.encode(" a b"), tokenizer.encode("a b"));
    assert_eq!(decode(&without_space, &without_space.encode(" a b"), true), " a b");
}

#[test]
fn a_vocabulary_with_merges_inside_gguf_equals_the_hugging_face_file() {
    let vectors = vectors();
    for (form, pre) in [("smollm", "smollm"), ("llama3", "llama-bpe")] {
        let file = std::fs::read(fixture(&format!("small.{form}.tokenizer.json"))).unwrap();
        let file: Value = serde_json::from_slice(&file).unwrap();
        let model = &file["model"];
        let size = model["vocab"].as_object().unwrap().len() + 1;
        let mut tokens = vec!["<mark>"; size];
        let mut token_types = vec![1; size];
        for (text, id) in model["vocab"].as_object().unwrap() {
            tokens[id.as_u64().unwrap() as usize] = text;
        }
        token_types[..3].fill(3);
        token_types[size - 1] = 4;
        let merges: Vec<String> =
            model["merges"].as_array().unwrap().iter().map(|pair| strings(pair).join(" ")).collect();
        let merges = merges.iter().map(String::as_str).collect();
        let vocab =
            GgufVocab { model: "gpt2", pre: Some(pre), tokens, token_types, merges, ..GgufVocab::default() };
        let tokenizer = Tokenizer::from_gguf(vocab, "small.gguf").unwrap();
        for (i, text) in strings(&vectors["texts"]).into_iter().enumerate() {
            let expected = ids(&vectors["huggingface"][form]["ids"][i]);
            assert_eq!(tokenizer.encode_with_special(text), expected, "{form}: {text:?}");
        }
    }
}

#[test]
fn streaming_gives_a_character_with_its_last_byte() {
    let tokenizer = Tokenizer::open(fixture("small.tekken.json")).unwrap();
    let mut decoder = StreamDecoder::new(std::sync::Arc::new(tokenizer), true);
    let emoji = "🤖".bytes().map(|byte| decoder.push(10 + u32::from(byte)).unwrap()).collect::<Vec<_>>();
    assert_eq!(emoji, ["", "", "", "🤖"]);
    assert_eq!(decoder.push(10 + 0xE4).unwrap(), "");
    assert!(matches!(decoder.push(1410), Err(Error::Argument { .. })));
    assert_eq!(decoder.push(10 + u32::from(b'x')).unwrap(), "\u{FFFD}x");
    assert_eq!(decoder.push(10 + 0xE4).unwrap(), "");
    assert_eq!(decoder.finish(), "\u{FFFD}");
    assert_eq!(decoder.finish(), "");
}

#[test]
fn tokens_can_be_looked_at() {
    let tokenizer = Tokenizer::open(fixture("small.model.v3")).unwrap();
    assert_eq!(tokenizer.token_bytes(1).unwrap(), &b""[..]);
    assert_eq!(tokenizer.token_text(1).unwrap(), "<s>");
    let byte = tokenizer.encode("\u{1}")[1];
    assert_eq!(tokenizer.token_bytes(byte).unwrap(), &b"\x01"[..]);
    assert_eq!(tokenizer.token_text(byte).unwrap(), "<0x01>");
    assert_eq!(tokenizer.token_bytes(u32::MAX), None);
    assert_eq!(tokenizer.token_text(tokenizer.vocab_size() as u32), None);
    assert!(!tokenizer.is_control(u32::MAX));
    assert!(matches!(tokenizer.decode(&[1, u32::MAX], true), Err(Error::Argument { .. })));
}

#[test]
fn long_pieces_take_little_time() {
    // With a quadratic algorithm these would take hours.
    for name in
        ["small.model.v3", "small.tekken.json", "small.llama3.tokenizer.json", "small.prepend.tokenizer.json"]
    {
        let tokenizer = Tokenizer::open(fixture(name)).unwrap();
        for unit in ["a", " ", "\n", "é", "中", "1", "{", "▁", "<mark>", "<"] {
            let text = unit.repeat(300_000 / unit.len());
            let tokens = tokenizer.encode(&text);
            let plain = |text: &str| text.replace('▁', " ").trim_start().to_owned();
            assert_eq!(plain(&tokenizer.decode(&tokens, true).unwrap()), plain(&text), "{name} {unit:?}");
        }
    }
}

#[test]
fn the_scan_and_the_heap_agree() {
    // The same text as pieces of both sides of the bound, in all three orders of merges.
    let unit = "the abc 1a\u{301}é中\n{[ab";
    for name in ["small.model.v3", "small.tekken.json", "small.smollm.tokenizer.json"] {
        let tokenizer = Tokenizer::open(fixture(name)).unwrap();
        for len in 1..120 {
            let text: String = unit.chars().cycle().skip(len * 7).take(len).collect();
            let mut by_scan = Vec::new();
            let mut by_heap = Vec::new();
            let encode = |scan: usize, out: &mut Vec<u32>| {
                let mut scratch = Scratch::with_scan(scan);
                tokenizer.bpe.encode(&tokenizer.vocab, &text, &mut scratch, out);
            };
            encode(usize::MAX, &mut by_scan);
            encode(0, &mut by_heap);
            assert_eq!(by_scan, by_heap, "{name} {text:?}");
        }
    }
}

#[test]
fn tokenizers_are_shared_between_threads() {
    let vectors = vectors();
    let texts = strings(&vectors["texts"]);
    let tokenizer = Tokenizer::open(fixture("small.tekken.json")).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| check_vectors(&tokenizer, &texts, &vectors["tekken"]));
        }
    });
}

/// Loads a Tekken file after `change`; the key that the error names.
fn tekken_error(change: impl FnOnce(&mut Value)) -> String {
    let mut file: Value =
        serde_json::from_slice(&std::fs::read(fixture("small.tekken.json")).unwrap()).unwrap();
    change(&mut file);
    match Tokenizer::from_tekken(file.to_string().as_bytes(), "t.json") {
        Err(Error::Format { key, .. }) => key,
        other => panic!("{other:?}"),
    }
}

#[test]
fn errors_of_tekken_files_name_the_key() {
    assert_eq!(tekken_error(|file| file["vocab"][300]["rank"] = json!(299)), "vocab[300].rank");
    assert_eq!(tekken_error(|file| file["vocab"][300]["token_bytes"] = json!("?")), "vocab[300].token_bytes");
    assert_eq!(tekken_error(|file| file["vocab"][300]["token_bytes"] = json!("")), "vocab[300].token_bytes");
    assert_eq!(
        tekken_error(|file| file["vocab"][65]["token_bytes"] = json!("AA==")),
        "vocab[65].token_bytes"
    );
    let copy =
        |file: &mut Value| file["vocab"][300]["token_bytes"] = file["vocab"][301]["token_bytes"].clone();
    assert_eq!(tekken_error(copy), "vocab[301].token_bytes");
    let config = |key: &str, value: Value| tekken_error(|file| file["config"][key] = value);
    assert_eq!(config("version", json!("v9")), "config.version");
    assert_eq!(config("pattern", json!("(?=a)")), "config.pattern");
    assert_eq!(config("default_vocab_size", json!(u64::MAX)), "config.default_vocab_size");
    assert_eq!(config("default_vocab_size", json!(1511)), "vocab");
    assert_eq!(config("default_vocab_size", json!(100)), "vocab");
    assert_eq!(config("default_num_special_tokens", json!(5)), "special_tokens");
    assert_eq!(config("default_num_special_tokens", json!(2000)), "config.default_num_special_tokens");
    assert!(config("default_vocab_size", json!(-1)).starts_with("line 1 column"));
    assert_eq!(tekken_error(|file| file["special_tokens"] = Value::Null), "special_tokens");
    assert_eq!(tekken_error(|file| file["special_tokens"][3]["rank"] = json!(7)), "special_tokens[3].rank");
    assert_eq!(
        tekken_error(|file| file["special_tokens"][3]["token_str"] = json!("<s>")),
        "special_tokens[3].token_str"
    );
    assert_eq!(tekken_error(|file| file["multimodal"] = json!({})), "multimodal");
    assert_eq!(tekken_error(|file| file["model_settings_builder"] = json!({})), "model_settings_builder");
    let nested = [b"{\"vocab\":".as_slice(), &[b'['; 100_000]].concat();
    assert!(matches!(Tokenizer::from_tekken(&nested, "t.json"), Err(Error::Format { .. })));
}

#[test]
fn tekken_files_up_to_v7_may_leave_the_special_tokens_out() {
    let mut file: Value =
        serde_json::from_slice(&std::fs::read(fixture("small.tekken.json")).unwrap()).unwrap();
    file["special_tokens"] = Value::Null;
    file["config"]["version"] = json!("v7");
    file["config"]["default_num_special_tokens"] = json!(20);
    file["multimodal"] = json!({"image_patch_size": 16});
    let tokenizer = Tokenizer::from_tekken(file.to_string().as_bytes(), "t.json").unwrap();
    assert_eq!(tokenizer.special("[TOOL_CONTENT]"), Some(19));
    assert_eq!(tokenizer.section("image"), Some(&json!({"image_patch_size": 16})));
    assert_eq!(tokenizer.section("audio"), None);
}

#[test]
fn gguf_vocabularies_are_checked() {
    let error = |vocab: GgufVocab<'_>| match Tokenizer::from_gguf(vocab, "g.gguf") {
        Err(Error::Format { key, .. }) => key,
        Err(Error::Unsupported { found, .. }) => found,
        other => panic!("{other:?}"),
    };
    let llama = |tokens: &[&'static str], token_types: &[i32]| GgufVocab {
        model: "llama",
        tokens: tokens.to_vec(),
        scores: vec![0.0; tokens.len()],
        token_types: token_types.to_vec(),
        ..GgufVocab::default()
    };
    // A byte token must be one, whatever a lenient parser of numbers would read there.
    for name in ["<0x-1>", "<0x+1>", "<0x1>", "<0x100>", "<0xGG>", "<0x41", "é"] {
        assert_eq!(error(llama(&[name], &[6])), "tokenizer.ggml.tokens[0]", "{name}");
        assert!(Tokenizer::from_gguf(llama(&[name], &[1]), "g.gguf").is_ok());
    }
    assert_eq!(error(llama(&["<0x41>", "<0x41>"], &[6, 6])), "tokenizer.ggml.tokens[1]");
    assert_eq!(error(llama(&["a", "a"], &[1, 1])), "tokenizer.ggml.tokens[1]");
    assert_eq!(error(llama(&["a"], &[7])), "tokenizer.ggml.token_type[0]");
    assert_eq!(error(llama(&["a"], &[-1])), "tokenizer.ggml.token_type[0]");
    assert_eq!(error(llama(&["a"], &[1, 1])), "tokenizer.ggml.token_type");
    assert_eq!(error(llama(&[], &[])), "tokenizer.ggml.tokens");
    assert_eq!(error(GgufVocab { scores: vec![], ..llama(&["a"], &[1]) }), "tokenizer.ggml.scores");
    assert_eq!(
        error(GgufVocab { scores: vec![f32::NAN], ..llama(&["a"], &[1]) }),
        "tokenizer.ggml.tokens[0]"
    );
    assert_eq!(error(GgufVocab { bos: Some(1), ..llama(&["a"], &[1]) }), "tokenizer.ggml.bos_token_id");
    assert_eq!(error(GgufVocab { model: "bert", ..llama(&["a"], &[1]) }), "`bert`");
    let gpt2 =
        GgufVocab { model: "gpt2", pre: Some("gpt-2"), tokens: vec!["a", "b", "ab"], ..GgufVocab::default() };
    let merges = |merges: &[&'static str]| GgufVocab { merges: merges.to_vec(), ..gpt2.clone() };
    assert_eq!(Tokenizer::from_gguf(merges(&["a b"]), "g").unwrap().encode("abc ab"), [2, 2]);
    assert_eq!(error(merges(&["a b", "ab"])), "tokenizer.ggml.merges[1]");
    assert_eq!(error(merges(&["a x"])), "tokenizer.ggml.merges[0]");
    assert_eq!(error(GgufVocab { pre: Some("nope"), ..gpt2.clone() }), "`nope`");
}

#[test]
fn sentencepiece_files_of_other_kinds_are_refused() {
    let error = |bytes: &[u8]| Tokenizer::from_sentencepiece(bytes, "t.model").unwrap_err().to_string();
    let bytes = std::fs::read(fixture("small.model.v3")).unwrap();
    // A field that is repeated replaces the earlier one.
    let with = |field: &[u8]| [&bytes, field].concat();
    assert!(error(&with(&[0x12, 2, 3 << 3, 1])).contains("UNIGRAM"));
    assert!(error(&with(&[0x12, 3, 0xC0, 1, 1])).contains("treat_whitespace_as_suffix"));
    assert!(error(&with(&[0x1A, 2, 4 << 3, 1])).contains("remove_extra_whitespaces"));
    assert!(error(&with(&[0x1A, 2, 5 << 3, 0])).contains("escape_whitespaces"));
    assert!(error(&with(&[0x1A, 3, 2 << 3 | 2, 1, b'x'])).contains("precompiled_charsmap"));
    assert!(error(&with(&[0x0A, 0])).contains("empty piece"));
    assert!(error(&with(&[0x0A, 3, 0x0A, 1, 0xFF])).contains("utf-8"));
    assert!(error(b"").contains("pieces"));
    assert!(error(&[0xFF; 20]).contains("byte 0"));
    // A length of 2⁶³ allocates nothing.
    assert!(error(&[0x0A, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]).contains("byte 0"));
}

#[test]
fn hugging_face_files_of_other_kinds_are_refused() {
    let file: Value =
        serde_json::from_slice(&std::fs::read(fixture("small.prepend.tokenizer.json")).unwrap()).unwrap();
    let error = |key: &str, value: Value| {
        let mut changed = file.clone();
        *changed.pointer_mut(key).unwrap() = value;
        Tokenizer::from_hf(changed.to_string().as_bytes(), None, "t.json").unwrap_err().to_string()
    };
    assert!(error("/model/type", json!("Unigram")).contains("Unigram"));
    assert!(error("/model/dropout", json!(0.1)).contains("dropout"));
    assert!(error("/model/unk_token", json!("nope")).contains("unk_token"));
    assert!(error("/model/end_of_word_suffix", json!("</w>")).contains("end_of_word_suffix"));
    assert!(error("/model/merges/0", json!("a")).contains("merges[0]"));
    assert!(error("/model/merges/0", json!(["a", "nope"])).contains("merges[0]"));
    assert!(error("/model/vocab", json!({"a": 4_000_000_000u32})).contains("model.vocab"));
    assert!(error("/model/vocab", json!({"a": -1})).contains("line 1"));
    assert!(error("/model/vocab", json!({"a": 3, "b": 3})).contains("model.vocab"));
    assert!(error("/added_tokens/1/id", json!(2)).contains("added_tokens[1]"));
    assert!(error("/normalizer", json!({"type": "NFC"})).contains("NFC"));
    assert!(error("/normalizer", json!({"type": "Prepend", "prepend": "▁"})).contains("Prepend"));
    assert!(error("/pre_tokenizer", json!({"type": "Whitespace"})).contains("Whitespace"));
    assert!(error("/pre_tokenizer", json!({"type": "ByteLevel"})).contains("not both"));
    assert!(error("/pre_tokenizer", json!({"type": "Sequence"})).contains("pretokenizers"));
    let split = json!({"type": "Split", "pattern": {"Regex": "a(?=b)"}, "behavior": "Isolated"});
    assert!(error("/pre_tokenizer", split).contains("look-around"));
    let steps = vec![json!({"type": "Fuse"}); 100];
    assert!(error("/decoder", json!({"type": "Sequence", "decoders": steps})).contains("at most"));
    assert!(error("/decoder", json!({"type": "ByteLevel"})).contains("decoder"));
    let config =
        |config: &str| Tokenizer::from_hf(file.to_string().as_bytes(), Some(config.as_bytes()), "t.json");
    assert!(config(r#"{"eos_token": "nope"}"#).unwrap_err().to_string().contains("eos_token"));
    assert!(config("[").unwrap_err().to_string().contains("tokenizer_config.json"));
    let configured = config(r#"{"eos_token": {"content": "<mark>"}, "add_bos_token": false}"#).unwrap();
    assert_eq!(configured.eos(), configured.special("<mark>"));
    assert!(!configured.adds_bos());
}

#[test]
fn damaged_files_give_errors() {
    let mut state = 7u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for name in
        ["small.model.v3", "small.tekken.json", "small.prepend.tokenizer.json", "small.llama3.tokenizer.json"]
    {
        let bytes = std::fs::read(fixture(name)).unwrap();
        let load = |bytes: &[u8]| match name {
            "small.model.v3" => Tokenizer::from_sentencepiece(bytes, name),
            "small.tekken.json" => Tokenizer::from_tekken(bytes, name),
            _ => Tokenizer::from_hf(bytes, None, name),
        };
        for _ in 0..60 {
            let cut = random(bytes.len());
            // What is left of a protobuf can be a smaller vocabulary, of JSON it never can.
            let truncated = load(&bytes[..cut]);
            assert!(truncated.is_err() || name == "small.model.v3", "{name} cut at {cut}");
            let mut flipped = bytes.clone();
            for _ in 0..=random(3) {
                let at = random(bytes.len());
                flipped[at] ^= 1 << random(8);
            }
            // It loads or it does not; if it does, it works.
            if let Ok(tokenizer) = load(&flipped) {
                let tokens = tokenizer.encode_with_special("<s>Hello <mark> wörld  中\n");
                tokenizer.decode(&tokens, false).unwrap();
            }
        }
    }
}

#[test]
fn files_are_found_in_folders() {
    let folder = std::env::temp_dir().join(format!("mistral-tokenizer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    assert!(Tokenizer::open(&folder).unwrap_err().to_string().contains("tekken.json"));
    let copy = |from: &str, to: &str| std::fs::copy(fixture(from), folder.join(to)).unwrap();
    let size = || Tokenizer::open(&folder).unwrap().vocab_size();
    copy("small.smollm.tokenizer.json", "tokenizer.json");
    let huggingface = size();
    std::fs::write(folder.join("tokenizer_config.json"), r#"{"add_bos_token": false}"#).unwrap();
    assert!(!Tokenizer::open(&folder).unwrap().adds_bos());
    copy("small.model.v3", "tokenizer.model");
    assert_ne!(size(), huggingface);
    assert_eq!(Tokenizer::open(&folder).unwrap().version(), Some(TokenizerVersion::V1));
    copy("small.model.v3", "tokenizer.model.v3");
    assert_eq!(Tokenizer::open(&folder).unwrap().version(), Some(TokenizerVersion::V3));
    copy("small.tekken.json", "tekken.json");
    assert_eq!(Tokenizer::open(&folder).unwrap().version(), Some(TokenizerVersion::V13));
    std::fs::remove_dir_all(&folder).unwrap();
    assert!(matches!(Tokenizer::open(&folder), Err(Error::Io { .. })));
}
