//! Bounds on calls and memory, and estimates of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mistral_core::kernels::CacheType;
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::testing;
use mistral_core::{
    Control, EmbedOptions, GenerateOptions, Limits, Model, ModelOptions, Session, SessionOptions, estimate,
    weights,
};
use serde_json::json;

use crate::chat::{chat_model, user};
use crate::support::fixture;
use crate::{generate, greedy, ids, limit_of, model, open, prefill, session, temp};

#[test]
fn limits_are_refused_and_change_nothing() {
    let limits = Limits { max_prompt_tokens: Some(5), max_output_tokens: Some(3), max_time: None };
    let model = open("dense_swa", &ModelOptions { limits, ..ModelOptions::default() });
    let mut session = session(&model, 64);
    let mut control = Control::none();
    assert_eq!(limit_of(session.prefill(&ids(6), &mut control)), "max_prompt_tokens");
    assert_eq!(limit_of(session.score(&ids(6), &mut control)), "max_prompt_tokens");
    assert_eq!(limit_of(session.generate(&ids(6), &greedy(1), &mut control)), "max_prompt_tokens");
    assert_eq!(limit_of(session.generate(&ids(2), &greedy(4), &mut control)), "max_output_tokens");
    assert_eq!(limit_of(model.embed(&ids(6), &EmbedOptions::default(), &mut control)), "max_prompt_tokens");
    assert!(session.tokens().is_empty());
    let unbounded = GenerateOptions { max_tokens: None, ..greedy(1) };
    assert_eq!(generate(&mut session, &ids(5), &unbounded).len(), 3);
    // Those of a session only make them tighter, and go with a fork.
    let session = session.with_limits(Limits {
        max_output_tokens: Some(9),
        max_prompt_tokens: Some(2),
        max_time: None,
    });
    let mut fork = session.fork().unwrap();
    assert_eq!(limit_of(fork.prefill(&ids(3), &mut control)), "max_prompt_tokens");
    assert_eq!(limit_of(fork.generate(&[], &greedy(4), &mut control)), "max_output_tokens");

    let folder = fixture("models/dense_swa");
    let bytes = folder.join("model.safetensors").metadata().unwrap().len();
    let open = |bytes| {
        let options = ModelOptions { max_model_bytes: Some(bytes), ..ModelOptions::default() };
        Model::open(&folder, &options, &mut Control::none())
    };
    assert_eq!(limit_of(open(bytes - 1)), "max_model_bytes");
    open(bytes).unwrap();
}

#[test]
fn limits_of_a_chat() {
    let folder = temp();
    chat_model(folder.path(), true);
    let open = |limits| {
        let options = ModelOptions { limits, ..ModelOptions::default() };
        Model::open(folder.path(), &options, &mut Control::none()).unwrap()
    };
    let request = |max_tokens: Option<u64>| json!({"messages": [user("Bonjour")], "max_tokens": max_tokens, "ignore_eos": true});
    let model = open(Limits { max_prompt_tokens: Some(3), ..Limits::default() });
    assert_eq!(limit_of(model.chat(&request(None), &mut |_| (), &mut Control::none())), "max_prompt_tokens");
    let mut session = session(&model, 64);
    assert_eq!(
        limit_of(session.chat(&request(None), &mut |_| (), &mut Control::none())),
        "max_prompt_tokens"
    );
    let model = open(Limits { max_output_tokens: Some(4), ..Limits::default() });
    assert_eq!(
        limit_of(model.chat(&request(Some(5)), &mut |_| (), &mut Control::none())),
        "max_output_tokens"
    );
    let answer = model.chat(&request(None), &mut |_| (), &mut Control::none()).unwrap();
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["choices"][0]["finish_reason"]),
        (&json!(4), &json!("length"))
    );
    let model = open(Limits { max_time: Some(Duration::ZERO), ..Limits::default() });
    assert_eq!(limit_of(model.chat(&request(None), &mut |_| (), &mut Control::none())), "max_time_ms");
}

/// A bound of no time at all ends every call that evaluates, at its first look at the clock; what was there stays.
#[test]
fn time_is_a_limit() {
    let (model, none) = (model("dense_swa"), Limits { max_time: Some(Duration::ZERO), ..Limits::default() });
    let mut control = Control::none();
    let mut session = session(&model, 1024);
    prefill(&mut session, &ids(20));
    let logits = session.logits().to_vec();
    let mut session = session.with_limits(none);
    assert_eq!(limit_of(session.prefill(&ids(5), &mut control)), "max_time_ms");
    assert_eq!(limit_of(session.score(&ids(600), &mut control)), "max_time_ms");
    assert_eq!((session.tokens(), session.logits()), (&ids(20)[..], &logits[..]));
    // Nothing is evaluated for the first token; the second ends the generation.
    let mut generation = session.generate(&[], &greedy(5), &mut control).unwrap();
    assert!(generation.next(&mut control).unwrap().is_ok());
    assert_eq!(limit_of(generation.next(&mut control).unwrap()), "max_time_ms");
    assert!(generation.next(&mut control).is_none());
    assert_eq!(limit_of(session.sample(&SamplingParams::greedy(), &mut control)), "max_time_ms");
    // A call of several parts has one bound for all of them.
    let mut session = session.with_limits(Limits::default());
    let long = Some(Duration::from_secs(3600));
    control.within(long, |control| session.prefill(&ids(5), control)).unwrap();
    let none = Some(Duration::ZERO);
    assert_eq!(limit_of(control.within(none, |control| session.prefill(&ids(5), control))), "max_time_ms");
}

#[test]
fn an_estimate_is_what_opening_takes() {
    for case in ["dense_swa", "ministral_iswa"] {
        let path = fixture("models").join(case);
        let session = SessionOptions { context: Some(300), cache_type: CacheType::F32 };
        let found = estimate(&path, &ModelOptions::default(), &session, 3).unwrap();
        let (file, model) = (path.join("model.safetensors"), model(case));
        let bytes = file.metadata().unwrap().len();
        let cache = model.session(&session).unwrap().stats().cache_bytes as u64;
        let expected = json!({
            "format": "safetensors", "files": [{"path": file.display().to_string(), "bytes": bytes}],
            "architecture": model.info()["weights"]["architecture"], "n_layers": model.info()["weights"]["n_layers"],
            "vocab_size": 512, "max_context": 4096, "weights_bytes": bytes, "context": 300, "cache_type": "f32",
            "cache_bytes": cache, "sessions": 3, "total_bytes": bytes + 3 * cache,
        });
        assert_eq!(found, expected);
        // Opened with exactly that, there is room for the three and no more.
        let options = ModelOptions { max_memory: Some(bytes + 3 * cache), ..ModelOptions::default() };
        let model = open(case, &options);
        let sessions: Vec<Session> = (0..3).map(|_| model.session(&session).unwrap()).collect();
        assert_eq!(limit_of(sessions[0].fork()), "max_memory");
        assert!(estimate(&path, &options, &session, 3).is_ok());
        assert_eq!(limit_of(estimate(&path, &options, &session, 4)), "max_memory");
    }
}

/// Keys and values of one session, the weights without the embeddings, which stay with the host, and what is promised beside them.
#[test]
fn an_estimate_of_a_device_with_memory_of_its_own_says_what_layers_take_there() {
    let path = fixture("models").join("dense_swa");
    let session = SessionOptions { context: Some(300), ..SessionOptions::default() };
    let found = |gpu_layers| {
        let options = ModelOptions { device: "auto".to_owned(), gpu_layers, ..ModelOptions::default() };
        estimate(&path, &options, &session, 1).unwrap()
    };
    let all = found(None);
    let layers = all["n_layers"].as_u64().unwrap();
    assert_eq!(all["gpu_layers"], layers);
    let bytes = |found: &serde_json::Value| found["device_bytes"].as_u64().unwrap();
    let most = all["weights_bytes"].as_u64().unwrap() + all["cache_bytes"].as_u64().unwrap();
    assert!(bytes(&all) > 200 << 20 && bytes(&all) < most * 115 / 100 + (200 << 20), "{all}");
    assert_eq!((&found(Some(0))["gpu_layers"], bytes(&found(Some(0)))), (&json!(0), 0));
    let one = found(Some(1));
    assert!(one["gpu_layers"] == 1 && bytes(&one) < bytes(&all) && bytes(&one) > 200 << 20, "{one}");
}

#[test]
fn an_estimate_refuses_what_opening_refuses() {
    let folder = temp();
    let path: PathBuf = folder.path().join("tiny.gguf");
    let source = fixture("models/dense_headdim");
    let checkpoint = weights::open(&source, &mut Control::none()).unwrap();
    testing::Model::from_checkpoint(&checkpoint).unwrap().gguf().write(&path).unwrap();
    let options = |change: &dyn Fn(&mut ModelOptions)| {
        let mut options = ModelOptions::default();
        change(&mut options);
        options
    };
    let session = SessionOptions::default();
    assert_eq!(estimate(&path, &ModelOptions::default(), &session, 1).unwrap()["format"], "gguf");
    let both = |path: &Path, options: &ModelOptions| {
        let opened = Model::open(path, options, &mut Control::none()).map(drop).unwrap_err().to_string();
        assert_eq!(estimate(path, options, &session, 0).unwrap_err().to_string(), opened);
        opened
    };
    assert!(both(&folder.path().join("nowhere"), &options(&|_| ())).contains("nowhere"));
    assert!(both(&path, &options(&|o| o.device = "tpu".to_owned())).contains("tpu"));
    assert!(both(&path, &options(&|o| o.threads = Some(0))).contains("threads"));
    assert!(both(&path, &options(&|o| o.quantize = Some(Format::Q6_K))).contains("quantize"));
    assert!(both(&path, &options(&|o| o.max_model_bytes = Some(9))).contains("max_model_bytes"));
    assert!(both(&path, &options(&|o| o.max_memory = Some(9))).contains("max_memory"));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert!(both(&path, &options(&|_| ())).contains("tiny.gguf"));
    let estimate =
        |session: SessionOptions| estimate(&source, &options(&|o| o.max_sessions = Some(2)), &session, 2);
    estimate(SessionOptions::default()).unwrap();
    assert!(
        estimate(SessionOptions { context: Some(0), ..SessionOptions::default() })
            .unwrap_err()
            .to_string()
            .contains("context")
    );
    assert_eq!(
        limit_of(estimate(SessionOptions { context: Some(usize::MAX), ..SessionOptions::default() })),
        "context"
    );
}
