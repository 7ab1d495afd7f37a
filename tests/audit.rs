//! What models and sessions write to an audit log.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use mistral_core::audit::{AuditKey, AuditOptions, AuditVerifyOptions, verify};
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::testing::{self, TempFolder};
use mistral_core::{
    CancelToken, Control, Error, GenerateOptions, Limits, Model, ModelOptions, Session, SessionOptions,
};
use serde_json::Value;
use sha2::Sha256;

const KEY: [u8; 32] = [7; 32];

/// A model without a tokenizer and a folder for logs.
struct Scene {
    folder: TempFolder,
}

impl Scene {
    fn new() -> Self {
        let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
        let config = ModelConfig {
            architecture: "mistral".to_owned(),
            dim: 8,
            n_heads: 2,
            n_kv_heads: 1,
            head_dim: 4,
            hidden_dim: 12,
            vocab_size: 16,
            norm_eps: 1e-5,
            max_context: 64,
            rope: RopeConfig { theta: 1e4, style: RopeStyle::HalfSplit, scaling: RopeScaling::None },
            query_scaling: None,
            tied_embeddings: false,
            layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }],
        };
        fs::create_dir(folder.path().join("model")).unwrap();
        fs::create_dir(folder.path().join("log")).unwrap();
        let model = testing::Model::random(&config, Format::F32, 3);
        model.write_hugging_face(&folder.path().join("model")).unwrap();
        Self { folder }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log/audit.jsonl")
    }

    fn options(&self) -> AuditOptions {
        AuditOptions {
            key: Some(AuditKey::new(&KEY).unwrap()),
            required: true,
            ..AuditOptions::new(self.log())
        }
    }

    fn open(&self, audit: Option<AuditOptions>) -> Arc<Model> {
        let options = ModelOptions { threads: Some(1), audit, ..ModelOptions::default() };
        Model::open(self.folder.path().join("model"), &options, &mut Control::none()).unwrap()
    }

    fn records(&self) -> Vec<Value> {
        verify(self.log(), &AuditVerifyOptions::default(), &mut Control::none()).unwrap();
        let text = fs::read_to_string(self.log()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(64), ..SessionOptions::default() }).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn mac(tokens: &[u32]) -> String {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&KEY).unwrap();
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    hex(&mac.chain_update(bytes).finalize().into_bytes())
}

fn generate(session: &mut Session, ids: &[u32], count: usize) -> mistral_core::Result<Vec<u32>> {
    let options = GenerateOptions {
        max_tokens: Some(count),
        sampling: SamplingParams {
            temperature: 0.7,
            penalty_window: Some(5),
            seed: u64::MAX,
            logprobs: Some(2),
            ..SamplingParams::default()
        },
        prompt_lookup: 3,
        show_special: true,
        caller_ref: Some("case 12".to_owned()),
        ..GenerateOptions::default()
    };
    let mut control = Control::none();
    let mut generation = session.generate(ids, &options, &mut control)?;
    std::iter::from_fn(|| generation.next(&mut control)).map(|event| event.map(|event| event.token)).collect()
}

#[test]
fn every_call_is_written_before_and_after_it_runs() {
    let scene = Scene::new();
    let model = scene.open(Some(scene.options()));
    let mut session = session(&model);
    let first = generate(&mut session, &[1, 2, 3], 4).unwrap();
    session.prefill(&[5], &mut Control::none()).unwrap();
    session.sample(&SamplingParams::greedy(), &mut Control::none()).unwrap();
    session.score(&[6], &mut Control::none()).unwrap();
    let records = scene.records();
    let what: Vec<String> = records
        .iter()
        .map(|r| format!("{} {}", r["event"].as_str().unwrap(), r["call"].as_str().unwrap_or_default()))
        .collect();
    let calls = ["generate", "prefill", "sample", "score"];
    let expected: Vec<String> =
        calls.iter().flat_map(|c| [format!("begin {c}"), format!("end {c}")]).collect();
    assert_eq!(what[0], "open ");
    assert_eq!(what[1..], expected);
    let end = &records[2];
    let digest = hex(&model.digest(&mut Control::none()).unwrap());
    for (key, value) in [
        ("seq", "2"),
        ("begin_seq", "1"),
        ("call", "\"generate\""),
        ("lib_version", concat!("\"", env!("CARGO_PKG_VERSION"), "\"")),
        ("model_digest", &format!("\"{digest}\"")),
        ("adapter_digests", "[]"),
        ("device", "\"cpu\""),
        ("seed", "\"18446744073709551615\""),
        ("prompt_hmac", &format!("\"{}\"", mac(&[1, 2, 3]))),
        ("output_hmac", &format!("\"{}\"", mac(&first))),
        ("prompt_tokens", "3"),
        ("output_tokens", "4"),
        ("finish_reason", "\"length\""),
        ("status", "\"ok\""),
        ("caller_ref", "\"case 12\""),
    ] {
        assert_eq!(end[key].to_string(), value, "{key}");
    }
    for key in ["utc", "monotonic_ns", "build_id", "duration_ns", "options", "hash", "prev_hash"] {
        assert!(!end[key].is_null(), "{key}");
    }
    let options: Value = serde_json::from_str(
        r#"{"constraint": null, "frequency_penalty": "0", "ignore_eos": false, "logit_bias": 0, "logprobs": "2", "max_tokens": "4",
        "min_p": "0", "penalty_window": "5", "presence_penalty": "0", "prompt_lookup": 3, "repetition_penalty": "1",
        "show_special": true, "stop": 0, "stop_tokens": 0, "temperature": "0.7", "top_k": 0, "top_p": "1"}"#,
    )
    .unwrap();
    assert_eq!(end["options"], options);
    // The prompt of a later call is all that it sees.
    let timeline = [&[1, 2, 3], &first[..], &[5]].concat();
    assert_eq!(records[3]["prompt_hmac"], mac(&timeline));
    assert_eq!(model.info()["audit"]["checkpoint"]["seq"], records.len() as u64 - 1);
    assert!(records.iter().all(|record| record.get("prompt").is_none() && record.get("output").is_none()));
}

#[test]
fn calls_that_fail_or_are_given_up_say_so() {
    let scene = Scene::new();
    let model = scene.open(Some(scene.options()));
    let mut session = session(&model);
    assert!(matches!(session.prefill(&[99], &mut Control::none()), Err(Error::Argument { .. })));
    drop(session.generate(&[1], &GenerateOptions::default(), &mut Control::none()).unwrap());
    let token = CancelToken::new();
    token.cancel();
    let mut control = Control::none().with_cancel(&token);
    assert!(session.generate(&[1], &GenerateOptions::default(), &mut control).is_err());
    let mut generation = session.generate(&[1], &GenerateOptions::default(), &mut Control::none()).unwrap();
    assert!(matches!(generation.next(&mut control), Some(Err(Error::Cancelled))));
    drop(generation);
    let wrong = SamplingParams { top_p: 7.0, logprobs: Some(usize::MAX), ..SamplingParams::default() };
    assert!(matches!(session.sample(&wrong, &mut Control::none()), Err(Error::Argument { .. })));
    let ends: Vec<Value> = scene.records().into_iter().filter(|record| record["event"] == "end").collect();
    let statuses: Vec<&str> = ends.iter().map(|record| record["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["argument", "abandoned", "cancelled", "cancelled", "argument"]);
}

#[test]
fn of_a_prompt_that_is_too_long_only_its_length_is_written() {
    let scene = Scene::new();
    let model = scene.open(Some(AuditOptions { text: true, ..scene.options() }));
    let mut session = session(&model);
    session.prefill(&[1, 2], &mut Control::none()).unwrap();
    let full = [3; 63];
    assert!(matches!(session.prefill(&full, &mut Control::none()), Err(Error::ContextFull { .. })));
    assert!(matches!(session.score(&full, &mut Control::none()), Err(Error::ContextFull { .. })));
    assert!(matches!(generate(&mut session, &full, 1), Err(Error::ContextFull { .. })));
    let limits = Limits { max_prompt_tokens: Some(3), ..Limits::default() };
    let mut session = session.with_limits(limits);
    assert!(matches!(session.prefill(&[3; 4], &mut Control::none()), Err(Error::Limit { .. })));
    session.prefill(&[3; 3], &mut Control::none()).unwrap();
    let ends: Vec<Value> = scene.records().into_iter().filter(|record| record["event"] == "end").collect();
    let said = |record: &Value| {
        let hmac = record["prompt_hmac"].as_str().map(str::to_owned);
        (record["status"].as_str().unwrap().to_owned(), record["prompt_tokens"].as_u64().unwrap(), hmac)
    };
    let refused = |status: &str, tokens| (status.to_owned(), tokens, None);
    assert_eq!(
        ends.iter().map(said).collect::<Vec<_>>(),
        [
            ("ok".to_owned(), 2, Some(mac(&[1, 2]))),
            refused("context_full", 65),
            refused("context_full", 65),
            refused("context_full", 65),
            refused("limit", 6),
            ("ok".to_owned(), 5, Some(mac(&[1, 2, 3, 3, 3]))),
        ]
    );
}

#[test]
fn nothing_runs_that_must_be_written_and_cannot_be() {
    let scene = Scene::new();
    let required = scene.open(Some(AuditOptions { rotate_bytes: Some(4096), ..scene.options() }));
    let mut session = session(&required);
    // The file can still be written to, but not be rotated any more.
    fs::remove_dir_all(scene.log().parent().unwrap()).unwrap();
    let error = (0..20).find_map(|_| session.prefill(&[1], &mut Control::none()).err()).unwrap();
    assert!(matches!(error, Error::Audit { .. }), "{error}");
    let before = session.tokens().len();
    assert!(matches!(generate(&mut session, &[1], 2), Err(Error::Audit { .. })));
    assert!(matches!(session.prefill(&[1], &mut Control::none()), Err(Error::Audit { .. })));
    assert!(matches!(session.score(&[1], &mut Control::none()), Err(Error::Audit { .. })));
    assert!(matches!(
        session.sample(&SamplingParams::greedy(), &mut Control::none()),
        Err(Error::Audit { .. })
    ));
    assert!(session.fork().unwrap().prefill(&[1], &mut Control::none()).is_err());
    assert_eq!(session.tokens().len(), before);
    // A model that must be audited does not open without its log; one that need not be goes on.
    drop((session, required));
    let options = ModelOptions { audit: Some(scene.options()), ..ModelOptions::default() };
    let refused = Model::open(scene.folder.path().join("model"), &options, &mut Control::none());
    assert!(matches!(refused, Err(Error::Audit { .. })));
    fs::create_dir(scene.log().parent().unwrap()).unwrap();
    let options = AuditOptions { rotate_bytes: Some(4096), required: false, ..scene.options() };
    let model = scene.open(Some(options));
    fs::remove_dir_all(scene.log().parent().unwrap()).unwrap();
    let mut session = self::session(&model);
    (0..20).for_each(|_| session.prefill(&[1], &mut Control::none()).unwrap());
}

#[test]
fn sessions_on_many_threads_write_one_chain_and_may_have_a_log_of_their_own() {
    let scene = Scene::new();
    let model = scene.open(Some(scene.options()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let model = &model;
            scope
                .spawn(move || (0..8).for_each(|_| drop(generate(&mut session(model), &[1, 2], 3).unwrap())));
        }
    });
    let report = verify(scene.log(), &AuditVerifyOptions::default(), &mut Control::none()).unwrap();
    assert_eq!((report.records, report.unfinished.len()), (1 + 2 * 4 * 8, 0));
    let own = AuditOptions::new(scene.folder.path().join("log/own.jsonl"));
    let mut session = session(&model).with_audit(&own).unwrap();
    session.prefill(&[1], &mut Control::none()).unwrap();
    assert_eq!(scene.records().len() as u64, report.records);
    let report = verify(&own.path, &AuditVerifyOptions::default(), &mut Control::none()).unwrap();
    assert_eq!(report.records, 2);
}
