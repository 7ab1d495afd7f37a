//! Models with Mistral's own tokenizers, from the request to the answer: the prompt is the reference's, and the answer the model's.
//!
//! The weights are random; the requests and their tokens are those of the chat corpus (`tests/fixtures/chat`).

mod support;

use std::path::Path;
use std::sync::Arc;

use mistral_core::chat::request::ChatRequest;
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::testing::{self, TempFolder};
use mistral_core::{Control, GenerateOptions, Model, ModelOptions, Session, SessionOptions};
use serde_json::{Value, json};
use support::fixture;

/// More tokens than any of the small tokenizers has.
const VOCAB: usize = 2048;
const CONTEXT: usize = 512;

/// The formats, and of Tekken how many control tokens each version has.
const FORMATS: [(&str, usize); 9] = [
    ("spm-v1", 0),
    ("spm-v2", 0),
    ("spm-v3", 0),
    ("spm-v7", 0),
    ("tekken-v3", 20),
    ("tekken-v7", 20),
    ("tekken-v11", 34),
    ("tekken-v13", 36),
    ("tekken-v15", 38),
];

/// Puts the tokenizer of a format into a folder, as Mistral publishes it.
fn write_tokenizer(folder: &Path, format: &str, specials: usize) {
    if let Some(version) = format.strip_prefix("spm-") {
        let name = format!("tokenizer.model.{version}");
        std::fs::copy(fixture("chat").join(&name), folder.join(&name)).unwrap();
        return;
    }
    // The file of v15 with what an older version does not have cut off.
    let text = std::fs::read_to_string(fixture("chat/tekken.json")).unwrap();
    let mut file: Value = serde_json::from_str(&text).unwrap();
    file["config"]["version"] = format.strip_prefix("tekken-").unwrap().into();
    file["special_tokens"].as_array_mut().unwrap().truncate(specials);
    if format != "tekken-v15" {
        file.as_object_mut().unwrap().remove("model_settings_builder");
    }
    std::fs::write(folder.join("tekken.json"), file.to_string()).unwrap();
}

/// A model of two layers with the tokenizer of a format.
fn model(format: &str, specials: usize) -> Arc<Model> {
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let config = ModelConfig {
        architecture: "mistral".to_owned(),
        dim: 32,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        hidden_dim: 48,
        vocab_size: VOCAB,
        norm_eps: 1e-5,
        max_context: CONTEXT,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::HalfSplit, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 2],
    };
    testing::Model::random(&config, Format::BF16, 7).write_hugging_face(folder.path()).unwrap();
    write_tokenizer(folder.path(), format, specials);
    Model::open(folder.path(), &ModelOptions::default(), &mut Control::none()).unwrap()
}

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(CONTEXT), ..SessionOptions::default() }).unwrap()
}

/// Requests of the corpus with the tokens that mistral-common makes of them in `format`; those that fit the context and bind the answer to
/// no form.
fn cases(format: &str, most: usize) -> Vec<(Value, Vec<u32>)> {
    let corpus = std::fs::read_to_string(fixture("chat/corpus.jsonl")).unwrap();
    let lines = corpus.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let usual = lines.filter(|case| {
        let request = &case["request"];
        let is_free = request["response_format"].is_null() && request["tool_choice"].is_null();
        case["mode"].is_null() && request["messages"].is_array() && is_free
    });
    usual
        .filter_map(|mut case| {
            let tokens: Vec<u32> = serde_json::from_value(case["results"][format].take()).ok()?;
            (tokens.len() < CONTEXT - 32).then(|| (case["request"].take(), tokens))
        })
        .take(most)
        .collect()
}

/// `request` with options: a few greedy tokens, and none of the control tokens and those beyond the tokenizer, so that the answer is text.
fn with_options(model: &Model, request: &Value, options: Value) -> Value {
    let tokenizer = model.tokenizer().unwrap();
    let is_text = |id: u32| (id as usize) < tokenizer.vocab_size() && !tokenizer.is_control(id);
    let bias = (0..VOCAB as u32).filter(|&id| !is_text(id)).map(|id| (id.to_string(), json!(-100)));
    let mut request = request.clone();
    request["logit_bias"] = bias.collect();
    request["max_tokens"] = json!(12);
    request["temperature"] = json!(0);
    for (key, value) in options.as_object().unwrap() {
        request[key] = value.clone();
    }
    request
}

/// The answer to a request, and the chunks that came before it.
fn chat(session: &mut Session, request: &Value) -> (Value, Vec<Value>) {
    let mut chunks = Vec::new();
    let whole = session.chat(request, &mut |chunk| chunks.push(chunk), &mut Control::none()).unwrap();
    (whole, chunks)
}

fn content(response: &Value, choice: usize) -> &str {
    response["choices"][choice]["message"]["content"].as_str().unwrap()
}

#[test]
fn the_prompt_is_the_reference_and_the_answer_follows_it() {
    for (format, specials) in FORMATS {
        let model = model(format, specials);
        let version = format.split_once('-').unwrap().1;
        assert_eq!(model.info()["tokenizer"]["chat_format"], format!("mistral {version}"), "{format}");
        let cases = cases(format, 16);
        let mut answers = 0;
        for (request, tokens) in cases {
            let read = ChatRequest::from_value(&request).unwrap();
            assert_eq!(model.chat_encode(&read).unwrap(), tokens, "{format}");
            // Tools bind the answer, and the corpus has tools that nothing can obey.
            if request["tools"].as_array().is_some_and(|tools| !tools.is_empty()) {
                continue;
            }
            answers += 1;
            let request = with_options(&model, &request, json!({}));
            let mut session = session(&model);
            let (response, chunks) = chat(&mut session, &request);
            assert!(chunks.is_empty(), "{format}: chunks that no one asked for");
            let (prompt, answer) = session.tokens().split_at(tokens.len());
            assert_eq!(prompt, tokens, "{format}");
            assert_eq!(response["object"], "chat.completion");
            assert_eq!(response["usage"]["prompt_tokens"], tokens.len());
            assert_eq!(response["usage"]["completion_tokens"], 12);
            assert_eq!(response["choices"][0]["finish_reason"], "length");
            assert_eq!(response["choices"][0]["message"]["role"], "assistant");
            assert_eq!(answer, greedy(&model, &request, &tokens), "{format}");
            let text = model.tokenizer().unwrap().decode(answer, false).unwrap();
            // The message begins with what the request gave of it.
            let given = request["messages"].as_array().unwrap().last().unwrap()["prefix"] == true;
            let content = content(&response, 0).trim();
            assert!(
                content.ends_with(text.trim()) && (given || content == text.trim()),
                "{format}: {content}"
            );
        }
        assert!(answers >= 4, "{format}: {answers} answers");
    }
}

/// What generation makes of the tokens, with the request's bias.
fn greedy(model: &Arc<Model>, request: &Value, tokens: &[u32]) -> Vec<u32> {
    let bias = request["logit_bias"].as_object().unwrap().keys().map(|id| (id.parse().unwrap(), -100.0));
    let mut options = GenerateOptions { max_tokens: Some(12), ..GenerateOptions::default() };
    options.sampling.logit_bias = bias.collect();
    let (mut session, mut control) = (session(model), Control::none());
    let mut generation = session.generate(tokens, &options, &mut control).unwrap();
    std::iter::from_fn(|| generation.next(&mut control)).map(|event| event.unwrap().token).collect()
}

#[test]
fn streamed_choices_add_up_to_the_whole() {
    for (format, specials) in FORMATS {
        let model = model(format, specials);
        let request = json!({"messages": [{"role": "user", "content": "Bonjour"}]});
        let options = json!({"stream": true, "n": 2, "temperature": 1.0, "seed": 5,
            "stream_options": {"include_usage": true}});
        let request = with_options(&model, &request, options);
        let (whole, chunks) = chat(&mut session(&model), &request);
        assert_eq!(whole["choices"].as_array().unwrap().len(), 2, "{format}");
        for index in 0..2 {
            let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
            let own: Vec<&Value> = choices.filter(|choice| choice["index"] == index).collect();
            let text: String = own.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
            assert_eq!(text, content(&whole, index), "{format}");
            assert_eq!(own[0]["delta"]["role"], "assistant", "{format}");
            let ends: Vec<&Value> = own.iter().map(|choice| &choice["finish_reason"]).collect();
            let (last, others) = ends.split_last().unwrap();
            assert!(**last == "length" && others.iter().all(|end| end.is_null()), "{format}: {ends:?}");
        }
        assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
        let usage = &chunks.last().unwrap()["usage"];
        assert_eq!(usage["prompt_tokens"], whole["usage"]["prompt_tokens"], "{format}");
        assert_eq!(usage["completion_tokens"], 24, "{format}");

        // Choice 1 is what the next seed gives alone; the two differ.
        let alone = with_options(&model, &request, json!({"temperature": 1.0, "seed": 6, "n": 1}));
        assert_eq!(content(&chat(&mut session(&model), &alone).0, 0), content(&whole, 1), "{format}");
        assert_ne!(content(&whole, 0), content(&whole, 1), "{format}");
    }
}

/// A second turn evaluates only what is new, and its answer is that of a fresh session.
#[test]
fn a_conversation_goes_on() {
    for (format, specials) in FORMATS {
        let model = model(format, specials);
        let first = json!({"messages": [{"role": "user", "content": "Bonjour"}]});
        let first = with_options(&model, &first, json!({}));
        let mut kept = session(&model);
        let (answer, _) = chat(&mut kept, &first);
        assert_eq!(answer["usage"]["prompt_tokens_details"]["cached_tokens"], 0, "{format}");
        let second = json!({"messages": [{"role": "user", "content": "Bonjour"},
            {"role": "assistant", "content": content(&answer, 0)}, {"role": "user", "content": "Encore"}]});
        let second = with_options(&model, &second, json!({}));
        let (again, _) = chat(&mut kept, &second);
        let mut fresh = session(&model);
        let (alone, _) = chat(&mut fresh, &second);
        assert_eq!(content(&again, 0), content(&alone, 0), "{format}");
        assert_eq!(kept.tokens(), fresh.tokens(), "{format}");
        assert_eq!(kept.logits(), fresh.logits(), "{format}");
        let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        assert!(cached >= answer["usage"]["prompt_tokens"].as_u64().unwrap() - 1, "{format}: {cached}");
    }
}
