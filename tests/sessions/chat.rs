//! Conversations that go on in a session.

use std::path::Path;
use std::sync::Arc;

use mistral_core::chat::request::ChatRequest;
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::testing;
use mistral_core::tokenizer::Tokenizer;
use mistral_core::{CancelToken, ChatOptions, Control, Error, GenerateOptions, Model, ModelOptions};
use serde_json::{Value, json};

use crate::support::fixture;
use crate::{session, temp};

/// A model with a tokenizer: SentencePiece in one of Mistral's formats, or with a template.
pub fn chat_model(folder: &Path, template: bool) -> Arc<Model> {
    let (from, to) = if template {
        ("tokenizer/small.smollm.tokenizer.json", "tokenizer.json")
    } else {
        ("chat/tokenizer.model.v3", "tokenizer.model.v3")
    };
    std::fs::copy(fixture(from), folder.join(to)).unwrap();
    let config = ModelConfig {
        architecture: "mistral".to_owned(),
        dim: 32,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        hidden_dim: 48,
        vocab_size: Tokenizer::open(folder.join(to)).unwrap().vocab_size(),
        norm_eps: 1e-5,
        max_context: 512,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: Some(64), feed_forward: FeedForwardConfig::Dense }; 2],
    };
    testing::Model::random(&config, Format::F32, 1).write_hugging_face(folder).unwrap();
    if template {
        let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>";
        std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    }
    Model::open(folder, &ModelOptions::default(), &mut Control::none()).unwrap()
}

pub fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

#[test]
fn a_second_turn_does_not_prefill_the_first_again() {
    for template in [false, true] {
        let folder = temp();
        let model = chat_model(folder.path(), template);
        let format = &model.info()["tokenizer"]["chat_format"];
        assert_eq!(format, if template { "template" } else { "mistral v3" });
        let mut session = session(&model, 512);
        let mut chat = |messages: &Value| {
            let request = json!({"messages": messages, "max_tokens": 12, "ignore_eos": true});
            let answer = session.chat(&request, &mut |_| (), &mut Control::none()).unwrap();
            let again = model.chat(&request, &mut |_| (), &mut Control::none()).unwrap();
            assert_eq!(answer["choices"], again["choices"], "a prefix that is reused changes nothing");
            assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
            let usage = |key: &str| answer["usage"][key].as_u64().unwrap();
            let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            // A random model may write nothing, or broken calls of tools, which no request can hold.
            let content = answer["choices"][0]["message"]["content"].as_str().filter(|text| !text.is_empty());
            let message = json!({"role": "assistant", "content": content.unwrap_or("Bien.")});
            (message, usage("prompt_tokens"), cached, session.stats())
        };
        let first = user("Bonjour, comment allez-vous ?");
        let (answer, prompt, cached, before) = chat(&json!([first]));
        assert_eq!((cached, before.prompt.tokens), (0, prompt));
        let (_, prompt2, cached2, after) = chat(&json!([first, answer, user("Et demain ?")]));
        // The first prompt; and of the answer what its text gives again as the same tokens. Where no control token stands between prompt and
        // answer, as in this template, the tokens at the seam may be others.
        let seam = if template { 2 } else { 0 };
        assert!(cached2 + seam >= prompt && cached2 < prompt2, "{cached2} of {prompt2}, {prompt} before");
        assert_eq!(after.prompt.tokens - before.prompt.tokens, prompt2 - cached2);
        // The same once more: all but the last token.
        let (_, prompt3, cached3, _) = chat(&json!([first, answer, user("Et demain ?")]));
        assert_eq!((prompt3, cached3), (prompt2, prompt2 - 1));
        // What does not fit is refused before the session is touched.
        let (tokens, long) = (session.tokens().to_vec(), "mot ".repeat(600));
        let request = json!({"messages": [user(&long)]});
        let error = session.chat(&request, &mut |_| (), &mut Control::none()).unwrap_err();
        assert!(matches!(error, Error::ContextFull { .. }), "{error}");
        assert_eq!(session.tokens(), tokens);
    }
}

/// A shift of the text changes the tokens behind it, not those before.
#[test]
fn a_conversation_that_changes_keeps_what_is_the_same() {
    let folder = temp();
    let model = chat_model(folder.path(), true);
    let mut session = session(&model, 512);
    let mut chat = |text: &str| {
        let request = json!({"messages": [user("Bonjour à tous"), user(text)], "max_tokens": 3});
        let answer = session.chat(&request, &mut |_| (), &mut Control::none()).unwrap();
        let expected = model.chat(&request, &mut |_| (), &mut Control::none()).unwrap();
        assert_eq!(answer["choices"], expected["choices"]);
        answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(chat("un deux trois"), 0);
    let shared = chat("un deux quatre");
    assert!(shared > 5);
    assert!(chat("autre chose") < shared);
}

#[test]
fn an_answer_that_asks_for_it_is_marked_as_generated() {
    let folder = temp();
    let model = chat_model(folder.path(), true);
    let mut request =
        json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 6, "sidecar": true});
    let mut chunks = |_| {};
    let response = model.chat(&request, &mut chunks, &mut Control::none()).unwrap();
    let (mark, text) =
        (&response["choices"][0]["sidecar"], response["choices"][0]["message"]["content"].as_str().unwrap());
    mistral_core::marking::check(mark, text).unwrap();
    assert_eq!(mark["ai_generated"], true);
    let digest = model.digest(&mut Control::none()).unwrap();
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(mark["model"]["sha256"], digest);
    assert!(matches!(mistral_core::marking::check(mark, "another text"), Err(Error::Integrity { .. })));
    assert!(matches!(mistral_core::marking::check(&json!({}), text), Err(Error::Format { .. })));
    request["sidecar"] = false.into();
    let response = model.chat(&request, &mut chunks, &mut Control::none()).unwrap();
    assert!(response["choices"][0].get("sidecar").is_none());
}

/// A host stops the call from within its function, at whichever chunk: there is no further one, and no answer.
#[test]
fn every_chunk_can_be_the_last() {
    let folder = temp();
    let model = chat_model(folder.path(), true);
    let request = json!({"messages": [user("hello")], "max_tokens": 3, "n": 2, "ignore_eos": true, "stream": true,
        "stream_options": {"include_usage": true}});
    let stopped_at = |last: usize| {
        let (cancel, mut chunks) = (CancelToken::new(), 0);
        let mut on_chunk = |_| {
            chunks += 1;
            if chunks == last {
                cancel.cancel();
            }
        };
        let answer = model.chat(&request, &mut on_chunk, &mut Control::none().with_cancel(&cancel));
        (answer.map(drop), chunks)
    };
    let (answer, all) = stopped_at(usize::MAX);
    answer.unwrap();
    assert!(all > 4, "{all} chunks");
    for last in 1..=all {
        let (answer, chunks) = stopped_at(last);
        assert!(matches!(answer, Err(Error::Cancelled)), "chunk {last} of {all}: {answer:?}");
        assert_eq!(chunks, last);
    }
}

/// The number of tokens of a chat's prompt.
fn prompt_tokens(answer: &Value) -> usize {
    answer["usage"]["prompt_tokens"].as_u64().unwrap() as usize
}

#[test]
fn a_request_that_was_read_keeps_its_digits() {
    let folder = temp();
    let model = chat_model(folder.path(), false);
    let deep = "[".repeat(130) + &"]".repeat(130);
    for value in ["-0", "18446744073709551616", "1e-30", "0.30000000000000004", &deep] {
        let text = format!(
            r#"{{"messages": [{{"role": "user", "content": "hi"}}], "max_tokens": 1, "tool_choice": "none", "tools": [{{"type": "function",
                "function": {{"name": "f", "parameters": {{"x": {value}}}}}}}]}}"#
        );
        let request = ChatRequest::from_json(&text).unwrap();
        let tokens = model.chat_encode(&request).unwrap();
        let mut session = session(&model, 2048);
        let answer = session.chat_request(&request, &mut |_| (), &mut Control::none()).unwrap();
        assert_eq!(session.tokens()[..tokens.len()], tokens, "{value}");
        assert_eq!(prompt_tokens(&answer), tokens.len(), "{value}");
        let written = model.chat_render(&request, &ChatOptions::default()).unwrap().replace('▁', "");
        assert!(written.contains(value.trim_start_matches('-')), "{value}: {written}");
    }
}

#[test]
fn a_template_that_writes_the_date_is_told_it() {
    let folder = temp();
    chat_model(folder.path(), true);
    let template = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}<{{ m.content }}>{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let model = Model::open(folder.path(), &ModelOptions::default(), &mut Control::none()).unwrap();
    let mut request = json!({"messages": [user("hello")], "max_tokens": 1});
    let error = model.chat(&request, &mut |_| (), &mut Control::none()).unwrap_err();
    assert!(error.to_string().contains("local_time"), "{error}");
    request["local_time"] = 1_709_210_096.into();
    let answer = model.chat(&request, &mut |_| (), &mut Control::none()).unwrap();
    let read = ChatRequest::from_value(&request).unwrap();
    assert_eq!(prompt_tokens(&answer), model.chat_encode(&read).unwrap().len());
    let of = |local_time| {
        let options = ChatOptions { local_time, ..ChatOptions::default() };
        model.chat_render(&read, &options).unwrap()
    };
    // The option goes before the field.
    assert_eq!((of(None).as_str(), of(Some(0)).as_str()), ("2024-02-29<hello>", "1970-01-01<hello>"));
    for wrong in [json!(-1), json!(1.5), json!("now"), json!(1u64 << 32)] {
        request["local_time"] = wrong;
        let error = ChatRequest::from_value(&request).unwrap_err().to_string();
        assert!(error.contains("`local_time`"), "{error}");
    }
}

/// As Mistral's API has it; and the deltas say the same as the whole.
#[test]
fn an_answer_begins_with_its_prefix() {
    for template in [false, true] {
        let folder = temp();
        let model = chat_model(folder.path(), template);
        let prefix = json!({"role": "assistant", "content": "Once upon a", "prefix": true});
        let request = json!({"messages": [user("Tell."), prefix], "max_tokens": 6, "ignore_eos": true, "n": 2, "stream": true});
        let mut deltas = [String::new(), String::new()];
        let mut on_chunk = |chunk: Value| {
            let choice = &chunk["choices"][0];
            deltas[choice["index"].as_u64().unwrap() as usize] +=
                choice["delta"]["content"].as_str().unwrap_or_default();
        };
        let whole = model.chat(&request, &mut on_chunk, &mut Control::none()).unwrap();
        for (index, streamed) in deltas.iter().enumerate() {
            let content = whole["choices"][index]["message"]["content"].as_str().unwrap();
            assert!(content.starts_with("Once upon a") && content.len() > 11, "{content}");
            assert_eq!(content, streamed);
            assert_eq!(content.matches("Once upon a").count(), 1);
        }
    }
}

/// SentencePiece puts a space before each text: it is taken off again where a text begins, not in the midst of one.
#[test]
fn the_first_space_is_dropped_where_a_text_begins() {
    let folder = temp();
    let model = chat_model(folder.path(), false);
    let tokenizer = model.tokenizer().unwrap();
    let [time] = tokenizer.encode("time")[..] else { panic!("one token") };
    let (bos, inst) = (tokenizer.bos().unwrap(), tokenizer.special("[/INST]").unwrap());
    let mut options = GenerateOptions { max_tokens: Some(2), ..GenerateOptions::default() };
    options.sampling.logit_bias = vec![(time, 100.0)];
    let of = |prompt: &[u32], options: &GenerateOptions| {
        let (mut session, mut control) = (session(&model, 64), Control::none());
        let mut generation = session.generate(prompt, options, &mut control).unwrap();
        let events = std::iter::from_fn(|| generation.next(&mut control));
        let text: String = events.map(|event| event.unwrap().text).collect();
        drop(generation);
        // What goes on from there is the midst of a text.
        let mut generation = session.generate(&[], options, &mut control).unwrap();
        assert_eq!(generation.next(&mut control).unwrap().unwrap().text, " time");
        text
    };
    let once = [&[bos][..], &tokenizer.encode("Once upon a")].concat();
    assert_eq!(of(&once, &options), " time time");
    assert_eq!(of(&[bos], &options), "time time");
    assert_eq!(of(&[bos, inst], &options), "time time");
    assert_eq!(of(&model.fim_encode("return", "x").unwrap(), &options), " time time");
    // The constraint knows of it.
    for (prompt, text) in [(&once[..], " time"), (&[bos][..], "time")] {
        let constraint = Some(mistral_core::ConstraintSpec::Regex(text.to_owned()));
        let options = GenerateOptions { constraint, max_tokens: Some(8), ..GenerateOptions::default() };
        let (mut session, mut control) = (session(&model, 64), Control::none());
        let mut generation = session.generate(prompt, &options, &mut control).unwrap();
        let events = std::iter::from_fn(|| generation.next(&mut control));
        assert_eq!(events.map(|event| event.unwrap().text).collect::<String>(), text);
    }
    for (messages, expected) in [
        (json!([user("hi")]), "time time"),
        (
            json!([user("hi"), {"role": "assistant", "content": "Once upon a", "prefix": true}]),
            "Once upon a time time",
        ),
    ] {
        let request = json!({"messages": messages, "max_tokens": 2, "logit_bias": {time.to_string(): 100}});
        let answer = model.chat(&request, &mut |_| (), &mut Control::none()).unwrap();
        assert_eq!(answer["choices"][0]["message"]["content"], expected);
    }
}
