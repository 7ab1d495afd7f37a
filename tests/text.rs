//! Tokenizers without weights wherever they lie, and completions of text: plain, and in the middle.

use std::path::{Path, PathBuf};

use mistral_core::chat::request::ChatRequest;
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::generate::FinishReason;
use mistral_core::quant::Format;
use mistral_core::testing::{self, GgufFile, GgufValue, TempFolder};
use mistral_core::tokenizer::TokenizerVersion;
use mistral_core::{
    ChatOptions, Control, Error, GenerateOptions, Model, ModelOptions, Result, SessionOptions, Written,
};

const HELLO: &str = r#"{"messages": [{"role": "user", "content": "hello"}]}"#;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/chat").join(name)
}

fn folder() -> TempFolder {
    TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder")
}

fn alone(path: &Path) -> Result<std::sync::Arc<Model>> {
    let options = ModelOptions { weights: false, ..ModelOptions::default() };
    Model::open(path, &options, &mut Control::none())
}

fn hello() -> ChatRequest {
    ChatRequest::from_json(HELLO).expect("a request")
}

/// A GGUF file with a vocabulary of bytes and some control tokens, a template, and no tensor.
fn vocabulary(controls: &[&str], template: &str) -> GgufFile {
    let mut tokens: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    tokens.extend(["▁", "h", "i"].map(str::to_owned));
    let mut kinds = vec![6; 256];
    kinds.extend([1; 3]);
    tokens.extend(controls.iter().map(|name| (*name).to_owned()));
    kinds.resize(tokens.len(), 3);
    let mut file = GgufFile::default();
    for (key, value) in [
        ("general.architecture", GgufValue::text("of another kind")),
        ("tokenizer.ggml.model", GgufValue::text("llama")),
        ("tokenizer.ggml.scores", GgufValue::F32s(vec![0.0; tokens.len()])),
        ("tokenizer.ggml.tokens", GgufValue::Texts(tokens)),
        ("tokenizer.ggml.token_type", GgufValue::I32s(kinds)),
        ("tokenizer.ggml.bos_token_id", GgufValue::U32(259)),
        ("tokenizer.ggml.eos_token_id", GgufValue::U32(260)),
        ("tokenizer.chat_template", GgufValue::text(template)),
    ] {
        file.set(key, value);
    }
    file
}

#[test]
fn a_vocabulary_in_gguf_without_tensors() {
    let folder = folder();
    let template =
        "{{ bos_token }}[INST]{{ messages[0].content }}[/INST]{% if false %}[TOOL_CALLS]{% endif %}";
    let controls = ["<s>", "</s>", "[INST]", "[/INST]", "[SUFFIX]", "[PREFIX]", "[TOOL_CALLS]"];
    vocabulary(&controls, template).write(&folder.path().join("vocab.gguf")).expect("a file");
    // By the folder and by the file.
    for path in [folder.path().to_owned(), folder.path().join("vocab.gguf")] {
        let model = alone(&path).expect("a tokenizer");
        let text = model.chat_render(&hello(), &ChatOptions::default()).expect("a template");
        assert_eq!(text, "<s>[INST]hello[/INST]");
        assert_eq!(model.chat_encode(&hello()).expect("a template")[..2], [259, 261]);
        // The marks are tokens of the vocabulary, and the template writes calls as Mistral does.
        assert_eq!(model.fim_encode("h", "i").expect("fill in the middle")[..2], [259, 263]);
        let answer =
            model.chat_parse(Written::Text("hi[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}]</s>"), None);
        let answer = answer.expect("a tokenizer");
        assert_eq!((answer.content.as_str(), answer.calls[0].name.as_str()), ("hi", "f"));
        let tokens = [model.tokenizer().expect("one").encode("hi"), vec![260, 257]].concat();
        assert_eq!(model.chat_parse(Written::Tokens(&tokens), None).expect("tokens of it").content, "hi");
    }
    let other = folder.path().join("other.gguf");
    vocabulary(&["<s>", "</s>"], "{{ messages[0].content }}").write(&other).expect("a file");
    let model = alone(&other).expect("a tokenizer");
    assert!(matches!(model.fim_encode("a", "b"), Err(Error::Unsupported { .. })));
    let answer = model.chat_parse(Written::Text("[TOOL_CALLS]x</s>y"), None).expect("text");
    assert_eq!((answer.content.as_str(), answer.calls.len()), ("[TOOL_CALLS]x", 0));
    // Calls without an id get the same one each time, and another for another answer.
    let id = |text: &str| {
        let answer = model.chat_parse(Written::Text(text), Some(TokenizerVersion::V13)).expect("text");
        answer.calls[0].id.clone()
    };
    assert_eq!(id("[TOOL_CALLS]f[ARGS]{}"), id("[TOOL_CALLS]f[ARGS]{}"));
    assert_ne!(id("[TOOL_CALLS]f[ARGS]{}"), id("[TOOL_CALLS]g[ARGS]{}"));
}

/// A folder as transformers saves it: what a bare `tokenizer.model` is, the template beside it says.
#[test]
fn a_bare_name_gives_way_to_a_template() {
    let folder = folder();
    let beside = |name: &str| folder.path().join(name);
    std::fs::copy(fixture("tokenizer.model.v1"), beside("tokenizer.model")).expect("a copy");
    std::fs::copy(fixture("../tokenizer/small.smollm.tokenizer.json"), beside("tokenizer.json"))
        .expect("a copy");
    let format = || alone(folder.path()).expect("a tokenizer").info()["tokenizer"]["chat_format"].clone();
    let tokens =
        |path: &Path| mistral_core::tokenizer::Tokenizer::open(path).expect("a tokenizer").vocab_size();
    assert_eq!(format(), "mistral v1");
    assert_eq!(tokens(folder.path()), tokens(&beside("tokenizer.model")));
    for (name, text) in [
        ("tokenizer_config.json", r#"{"chat_template": "<{{ messages[0].content }}>"}"#),
        ("chat_template.jinja", "<{{ messages[0].content }}>"),
    ] {
        std::fs::write(beside(name), text).expect("a file");
        let model = alone(folder.path()).expect("a tokenizer");
        assert_eq!(
            model.chat_render(&hello(), &ChatOptions::default()).expect("a template"),
            "<hello>",
            "{name}"
        );
        assert_eq!(tokens(folder.path()), tokens(&beside("tokenizer.json")));
        std::fs::remove_file(beside(name)).expect("a file");
    }
    std::fs::write(beside("tokenizer_config.json"), r#"{"bos_token": "<s>"}"#).expect("a file");
    assert_eq!(format(), "mistral v1");
    std::fs::write(beside("chat_template.jinja"), "x").expect("a file");
    std::fs::copy(fixture("tokenizer.model.v3"), beside("tokenizer.model.v3")).expect("a copy");
    assert_eq!(format(), "mistral v3");
}

#[test]
fn what_needs_weights_says_so() {
    let model = alone(&fixture("tokenizer.model.v3")).expect("a tokenizer");
    let session = model.session(&SessionOptions::default());
    for error in [session.err(), model.weights().err()] {
        let error = error.expect("there are no weights");
        assert!(
            matches!(error, Error::Unsupported { .. }) && error.to_string().contains("without weights"),
            "{error}"
        );
    }
    for path in ["corpus.jsonl", "make_corpus.py", "nothing"] {
        assert!(matches!(alone(&fixture(path)), Err(Error::Format { .. } | Error::Io { .. })), "{path}");
    }
}

/// A random model of a few layers with the tokenizer of v3, in Mistral's own files.
fn codestral(folder: &Path) -> std::sync::Arc<Model> {
    std::fs::copy(fixture("tokenizer.model.v3"), folder.join("tokenizer.model.v3")).expect("a file");
    let vocab_size = alone(folder).expect("a tokenizer").vocab_size();
    let config = ModelConfig {
        architecture: "mistral".to_owned(),
        dim: 32,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        hidden_dim: 64,
        vocab_size,
        norm_eps: 1e-5,
        max_context: 512,
        rope: RopeConfig { theta: 1e6, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 2],
    };
    testing::Model::random(&config, Format::F32, 3).write_native(folder).expect("a model");
    Model::open(folder, &ModelOptions::default(), &mut Control::none()).expect("a model")
}

/// The tokens and the text that follow a prompt.
fn complete(model: &std::sync::Arc<Model>, prompt: &[u32]) -> (Vec<u32>, String, FinishReason) {
    let mut control = Control::none();
    let mut session = model.session(&SessionOptions::default()).expect("a session");
    let options = GenerateOptions { max_tokens: Some(24), ..GenerateOptions::default() };
    let mut generation = session.generate(prompt, &options, &mut control).expect("a generation");
    let (mut tokens, mut text, mut reason) = (Vec::new(), String::new(), None);
    while let Some(event) = generation.next(&mut control) {
        let event = event.expect("an event");
        tokens.push(event.token);
        text += &event.text;
        reason = event.finish_reason;
    }
    (tokens, text, reason.expect("the last event says why"))
}

#[test]
fn code_is_completed_in_the_middle_and_at_the_end() {
    let folder = folder();
    let model = codestral(folder.path());
    let (before, after) = ("def add(a, b):\n    return ", "\n\nprint(add(1, 2))");
    let middle = model.fim_encode(before, after).expect("fill in the middle");
    assert_eq!(
        middle,
        alone(folder.path()).expect("a tokenizer").fim_encode(before, after).expect("the same")
    );
    let tokenizer = model.tokenizer().expect("one");
    // A base model reads the beginning of the sequence and the text, nothing else.
    let mut plain = tokenizer.encode(before);
    plain.insert(0, tokenizer.bos().expect("one"));
    let (filling, text, reason) = complete(&model, &middle);
    assert!(matches!(reason, FinishReason::Length | FinishReason::Stop));
    assert_eq!(text, tokenizer.decode(&filling, true).expect("tokens of it"));
    assert_eq!(complete(&model, &middle), (filling.clone(), text, reason), "the same again");
    let (following, ..) = complete(&model, &plain);
    assert_ne!(following, filling, "the suffix matters");
    // The mark that ends a filling ends it here too.
    let eos = tokenizer.eos().expect("one");
    assert!(model.eos_token_ids().contains(&eos));
}
