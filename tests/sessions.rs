//! Sessions that are forked, cut, saved, loaded, sampled from and asked again: each goes on as one that was prefilled with the same tokens.
//!
//! `session/saved_tests.rs` has the blobs that are damaged, forged or foreign.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mistral_core::cache::KvCache;
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::kernels::CacheType;
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::session::PREFILL_CHUNK;
use mistral_core::testing::{self, TempFolder};
use mistral_core::tokenizer::Tokenizer;
use mistral_core::{
    Control, EmbedOptions, Error, FinishReason, GenerateOptions, Limits, LoadOptions, Model, ModelOptions,
    Pooling, Session, SessionOptions, device, estimate, weights,
};
use serde_json::{Value, json};
use support::{fixture, max_diff};

/// Dense with windows of 16 in every layer, a mixture, windows of 8 in three of four layers, YaRN with tied embeddings.
const CASES: [&str; 4] = ["dense_swa", "mixtral", "ministral_iswa", "ministral3_yarn"];
/// More than the ring of a layer with a window of 8 or 16 holds.
const LONG: usize = 3 * PREFILL_CHUNK + 5;

fn open(case: &str, options: &ModelOptions) -> Arc<Model> {
    let path = fixture("models").join(case);
    Model::open(&path, options, &mut Control::none()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn model(case: &str) -> Arc<Model> {
    open(case, &ModelOptions::default())
}

fn session(model: &Arc<Model>, context: usize) -> Session {
    model.session(&SessionOptions { context: Some(context), ..SessionOptions::default() }).unwrap()
}

fn ids(count: usize) -> Vec<u32> {
    (0..count as u32).map(|i| 3 + i * 7 % 500).collect()
}

fn prefill(session: &mut Session, ids: &[u32]) {
    session.prefill(ids, &mut Control::none()).unwrap();
}

/// The logits after `ids` on a session of its own.
fn fresh(model: &Arc<Model>, ids: &[u32]) -> Vec<f32> {
    let mut session = session(model, ids.len());
    prefill(&mut session, ids);
    session.logits().to_vec()
}

fn generate(session: &mut Session, ids: &[u32], options: &GenerateOptions) -> Vec<u32> {
    let mut control = Control::none();
    let mut generation = session.generate(ids, options, &mut control).unwrap();
    std::iter::from_fn(|| generation.next(&mut control)).map(|event| event.unwrap().token).collect()
}

fn greedy(max_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(max_tokens), ignore_eos: true, ..GenerateOptions::default() }
}

fn temp() -> TempFolder {
    TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

fn limit_of<T>(result: Result<T, Error>) -> String {
    match result.map(drop).unwrap_err() {
        Error::Limit { what, .. } => what,
        other => panic!("no limit: {other}"),
    }
}

#[test]
fn forks_go_on_by_themselves() {
    for device in device::names() {
        for case in CASES {
            let model = open(case, &ModelOptions { device: device.to_owned(), ..ModelOptions::default() });
            for start in [1, 20, 600] {
                let ids = ids(start + 20);
                let (common, rest) = ids.split_at(start);
                let other: Vec<u32> = rest.iter().rev().copied().collect();
                let mut one = session(&model, 700);
                prefill(&mut one, common);
                let (mut two, mut three) = (one.fork().unwrap(), one.fork().unwrap());
                assert_eq!((two.tokens(), two.logits()), (one.tokens(), one.logits()));
                // Two goes first, into memory that it shares with both.
                prefill(&mut two, &other);
                prefill(&mut one, &rest[..1]);
                prefill(&mut one, &rest[1..]);
                assert_eq!(one.logits(), fresh(&model, &ids), "{device} {case} {start}");
                assert_eq!(
                    two.logits(),
                    fresh(&model, &[common, &other].concat()),
                    "{device} {case} {start}"
                );
                drop((one, two));
                let answer = generate(&mut three, rest, &greedy(5));
                let expected = generate(&mut session(&model, 700), &ids, &greedy(5));
                assert_eq!(answer, expected, "{device} {case} {start}");
            }
        }
    }
}

/// The token that generation left unevaluated goes with the fork, and so does a fork of a fork.
#[test]
fn a_fork_in_the_middle_of_an_answer() {
    let model = model("ministral_iswa");
    let prompt = ids(30);
    let whole = generate(&mut session(&model, 64), &prompt, &greedy(12));
    let mut first = session(&model, 64);
    assert_eq!(generate(&mut first, &prompt, &greedy(5)), whole[..5]);
    let mut second = first.fork().unwrap();
    assert_eq!(generate(&mut second, &[], &greedy(3)), whole[5..8]);
    let mut third = second.fork().unwrap();
    for (session, from) in [(&mut third, 8), (&mut first, 5), (&mut second, 8)] {
        assert_eq!(generate(session, &[], &greedy(12 - from)), whole[from..]);
    }
}

#[test]
fn sessions_fork_on_threads() {
    let model = model("dense_swa");
    let (common, rest) = (ids(40), ids(60)[40..].to_vec());
    let mut first = session(&model, 80);
    prefill(&mut first, &common);
    let expected = fresh(&model, &ids(60));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (mut fork, rest, expected) = (first.fork().unwrap(), &rest, &expected);
            scope.spawn(move || {
                prefill(&mut fork, rest);
                assert_eq!(fork.logits(), expected);
            });
        }
        prefill(&mut first, &rest);
        assert_eq!(first.logits(), expected);
    });
}

#[test]
fn a_fork_counts_against_the_bounds() {
    let plain = model("dense_swa");
    let config = &plain.weights().unwrap().config;
    let cache = KvCache::bytes(config, 64, PREFILL_CHUNK, CacheType::F16).unwrap() as u64;
    let file = fixture("models/dense_swa/model.safetensors").metadata().unwrap().len();
    let two = ModelOptions { max_memory: Some(file + 2 * cache + cache / 2), ..ModelOptions::default() };
    let model = open("dense_swa", &two);
    let first = session(&model, 64);
    let second = first.fork().unwrap();
    assert_eq!(limit_of(first.fork()), "max_memory");
    drop(second);
    drop(first.fork().unwrap());
    let model = open("dense_swa", &ModelOptions { max_sessions: Some(2), ..ModelOptions::default() });
    let first = session(&model, 64);
    let second = first.fork().unwrap();
    assert_eq!(limit_of(second.fork()), "max_sessions");
    assert_eq!(limit_of(model.session(&SessionOptions::default())), "max_sessions");
    assert_eq!(limit_of(model.embed(&[1], &EmbedOptions::default(), &mut Control::none())), "max_sessions");
    drop(first);
    session(&model, 64);
}

#[test]
fn a_trimmed_session_goes_on_as_a_fresh_one() {
    for case in CASES {
        let (model, ids) = (model(case), ids(40));
        let mut whole = session(&model, 64);
        prefill(&mut whole, &ids);
        let answer = generate(&mut whole, &[], &greedy(5));
        let all = [ids, answer].concat();
        for count in [0, 1, 2, 17, 39, 40, 44, 45] {
            let mut cut = whole.fork().unwrap();
            cut.trim(count).unwrap();
            assert_eq!(cut.tokens(), &all[..count]);
            if count > 0 {
                prefill(&mut cut, &[]);
                assert_eq!(cut.logits(), fresh(&model, &all[..count]), "{case} {count}");
            }
            prefill(&mut cut, &[9, 8, 7]);
            assert_eq!(cut.logits(), fresh(&model, &[&all[..count], &[9, 8, 7]].concat()), "{case} {count}");
            let error = cut.trim(count + 4).unwrap_err();
            assert!(
                matches!(error, Error::Argument { .. }) && error.to_string().contains("`count`"),
                "{error}"
            );
        }
    }
}

/// What a ring has overwritten is evaluated again, and only then.
#[test]
fn a_trim_behind_the_ring_evaluates_again() {
    let (model, ids) = (model("ministral_iswa"), ids(LONG));
    let mut long = session(&model, LONG + 8);
    prefill(&mut long, &ids);
    for (count, again) in [(LONG - 1, 1), (LONG - 200, 1), (LONG - 300, LONG - 300), (20, 20), (1, 1)] {
        let mut cut = long.fork().unwrap();
        cut.trim(count).unwrap();
        let stats = cut.stats();
        assert_eq!((stats.tokens, stats.tokens - stats.evaluated), (count, again));
        prefill(&mut cut, &[]);
        assert_eq!(cut.logits(), fresh(&model, &ids[..count]), "{count}");
        // And once more, from what was evaluated again.
        cut.trim(count - count / 4).unwrap();
        prefill(&mut cut, &[5]);
        assert_eq!(cut.logits(), fresh(&model, &[&ids[..count - count / 4], &[5]].concat()), "{count}");
    }
}

#[test]
fn a_loaded_session_goes_on_bit_for_bit() {
    for case in CASES {
        let model = model(case);
        for cache_type in [CacheType::F16, CacheType::F32] {
            let options = SessionOptions { context: Some(LONG + 40), cache_type };
            for length in [1, 30, LONG] {
                let mut saved = model.session(&options).unwrap();
                prefill(&mut saved, &ids(length));
                let key = (length == 30).then_some(&b"a key of sixteen"[..]);
                let blob = saved.save(key, &mut Control::none()).unwrap();
                let load = LoadOptions { key, ..LoadOptions::default() };
                let mut loaded =
                    Session::load(Arc::clone(&model), &blob, &load, &mut Control::none()).unwrap();
                assert_eq!((loaded.tokens(), loaded.capacity()), (saved.tokens(), saved.capacity()));
                prefill(&mut loaded, &[]);
                assert_eq!(loaded.logits(), saved.logits(), "{case} {length}");
                assert!(loaded.save(key, &mut Control::none()).unwrap() == blob, "{case} {length}");
                for session in [&mut loaded, &mut saved] {
                    prefill(session, &[4, 5]);
                }
                assert_eq!(loaded.logits(), saved.logits(), "{case} {length}");
                assert_eq!(
                    generate(&mut loaded, &[7], &greedy(8)),
                    generate(&mut saved, &[7], &greedy(8)),
                    "{case} {length}"
                );
                // What the rings hold came with it.
                for session in [&mut loaded, &mut saved] {
                    session.trim(length).unwrap();
                    prefill(session, &[6]);
                }
                assert_eq!(loaded.logits(), saved.logits(), "{case} {length}");
            }
        }
    }
}

/// With an unevaluated token, after a trim, empty, and into another context.
#[test]
fn every_state_of_a_session_can_be_saved() {
    let model = model("ministral_iswa");
    let load = |blob: &[u8], context| {
        let options = LoadOptions { context, ..LoadOptions::default() };
        Session::load(Arc::clone(&model), blob, &options, &mut Control::none())
    };
    let save = |session: &Session| session.save(None, &mut Control::none()).unwrap();
    let mut answered = session(&model, 64);
    generate(&mut answered, &ids(30), &greedy(4));
    let mut trimmed = session(&model, LONG);
    prefill(&mut trimmed, &ids(LONG));
    let mut again = trimmed.fork().unwrap();
    trimmed.trim(LONG - 100).unwrap();
    again.trim(20).unwrap();
    let mut full = session(&model, 8);
    generate(&mut full, &ids(8), &greedy(1));
    assert_eq!(full.tokens().len(), 9);
    assert_eq!(load(&save(&full), None).unwrap().tokens(), full.tokens());
    for (session, name) in [(answered, "answered"), (trimmed, "trimmed"), (again, "again"), (full, "full")] {
        let (tokens, blob) = (session.tokens().to_vec(), save(&session));
        for context in [tokens.len() + 1, tokens.len() + 300, 2 * LONG] {
            let mut loaded = load(&blob, Some(context)).unwrap();
            prefill(&mut loaded, &[11]);
            assert_eq!(loaded.logits(), fresh(&model, &[&tokens[..], &[11]].concat()), "{name} {context}");
        }
        let error = load(&blob, Some(tokens.len() - 2)).unwrap_err();
        assert!(matches!(error, Error::ContextFull { .. }), "{name}: {error}");
    }
    let mut empty = load(&save(&session(&model, 64)), None).unwrap();
    assert!(empty.tokens().is_empty() && empty.logits().is_empty());
    prefill(&mut empty, &ids(3));
    assert_eq!(empty.logits(), fresh(&model, &ids(3)));
}

#[test]
fn only_the_positions_in_use_are_saved() {
    let (model, ids) = (model("ministral_iswa"), ids(LONG));
    let mut session = session(&model, 4096);
    let mut size = |count: usize| {
        session.reset();
        prefill(&mut session, &ids[..count]);
        session.save(None, &mut Control::none()).unwrap().len()
    };
    // Keys and values of 2 heads of 16 numbers of 2 bytes; one layer of four keeps everything, the others 8 + 256 positions.
    let layers = |count: usize| (count + 3 * count.min(8 + PREFILL_CHUNK)) * 2 * 2 * 16 * 2;
    for count in [1, 100, 264, LONG] {
        assert_eq!(size(count), 120 + 4 * count + layers(count) + 32);
    }
}

#[test]
fn the_digest_is_that_of_the_files_and_known_once() {
    use sha2::{Digest, Sha256};
    let model = model("dense_swa");
    let sha256 = |model: &Model| model.info()["weights"]["files"][0]["sha256"].clone();
    assert_eq!(sha256(&model), Value::Null);
    let token = mistral_core::CancelToken::new();
    token.cancel();
    let session = session(&model, 8);
    assert!(matches!(session.save(None, &mut Control::none().with_cancel(&token)), Err(Error::Cancelled)));
    let mut seen = Vec::new();
    let mut report = |progress: mistral_core::Progress| seen.push(progress);
    session.save(None, &mut Control::none().with_progress(&mut report)).unwrap();
    let bytes = std::fs::read(fixture("models/dense_swa/model.safetensors")).unwrap();
    let last = seen.last().unwrap();
    assert_eq!((last.phase, last.done, last.total), ("digest", bytes.len() as u64, bytes.len() as u64));
    let count = seen.len();
    let mut report = |progress: mistral_core::Progress| seen.push(progress);
    session.save(None, &mut Control::none().with_progress(&mut report)).unwrap();
    assert_eq!(seen.len(), count);
    let expected: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(sha256(&model), json!(expected));
}

#[test]
fn sampling_step_by_step_gives_the_tokens_of_generate() {
    let model = model("mixtral");
    let params = [
        SamplingParams::greedy(),
        SamplingParams { temperature: 1.3, seed: 7, ..SamplingParams::default() },
        SamplingParams {
            temperature: 0.9,
            top_k: 50,
            repetition_penalty: 1.3,
            frequency_penalty: 0.5,
            seed: 8,
            ..SamplingParams::default()
        },
    ];
    for params in params {
        let options = GenerateOptions { sampling: params.clone(), ..greedy(16) };
        let expected = generate(&mut session(&model, 64), &ids(20), &options);
        let mut steps = session(&model, 64);
        prefill(&mut steps, &ids(20));
        let next = |session: &mut Session| session.sample(&params, &mut Control::none()).unwrap().token;
        let first: Vec<u32> = (0..8).map(|_| next(&mut steps)).collect();
        // The state goes with a fork; looking at the logits in between changes nothing.
        let mut fork = steps.fork().unwrap();
        for session in [&mut steps, &mut fork] {
            prefill(session, &[]);
            let rest: Vec<u32> = (0..8).map(|_| next(session)).collect();
            assert_eq!([&first[..], &rest].concat(), expected);
            assert_eq!(session.logits(), fresh(&model, &session.tokens()[..35]));
        }
        // After a cut the numbers begin anew.
        steps.trim(20).unwrap();
        assert_eq!((0..16).map(|_| next(&mut steps)).collect::<Vec<_>>(), expected);
    }
}

#[test]
fn sampling_refuses_what_it_cannot_do() {
    let model = model("dense_swa");
    let mut session = session(&model, 4);
    let sampled = |session: &mut Session, temperature: f32| {
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        session.sample(&params, &mut Control::none()).map(|sampled| sampled.token)
    };
    assert!(matches!(sampled(&mut session, 1.0), Err(Error::Argument { .. })));
    prefill(&mut session, &ids(3));
    assert!(sampled(&mut session, -1.0).unwrap_err().to_string().contains("temperature"));
    // The last token that fits is sampled, and one behind it, which cannot be evaluated.
    let mut fork = session.fork().unwrap();
    let tokens: Vec<u32> = (0..2).map(|_| sampled(&mut session, 1.0).unwrap()).collect();
    assert!(matches!(sampled(&mut session, 1.0), Err(Error::ContextFull { needed: 5, capacity: 4 })));
    assert_eq!(session.tokens()[3..], tokens);
    // Wrong settings in between did not move the random numbers.
    assert_eq!(sampled(&mut fork, 1.0).unwrap(), tokens[0]);
    assert!(sampled(&mut fork, 1e9).is_err());
    assert_eq!(sampled(&mut fork, 1.0).unwrap(), tokens[1]);
}

#[test]
fn stats_count_what_was_done() {
    let model = model("dense_swa");
    let mut session = session(&model, 64);
    let before = session.stats();
    assert_eq!((before.tokens, before.prompt.tokens, before.prompt.per_second()), (0, 0, 0.0));
    generate(&mut session, &ids(30), &greedy(5));
    let stats = session.stats();
    // The fifth token was not evaluated.
    assert_eq!((stats.tokens, stats.evaluated, stats.context), (35, 34, 64));
    assert_eq!((stats.prompt.tokens, stats.decode.tokens), (30, 4));
    assert!(stats.prompt.per_second() > 0.0 && stats.decode.time > Duration::ZERO);
    let config = &model.weights().unwrap().config;
    let bytes = KvCache::bytes(config, 64, PREFILL_CHUNK, CacheType::F16).unwrap();
    assert_eq!((stats.cache_bytes, stats.cache_type), (bytes, CacheType::F16));
    let fork = session.fork().unwrap().stats();
    assert_eq!((fork.tokens, fork.prompt.tokens, fork.decode.tokens), (35, 0, 0));
}

/// A model with a tokenizer: SentencePiece in one of Mistral's formats, or with a template.
fn chat_model(folder: &Path, template: bool) -> Arc<Model> {
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

fn user(text: &str) -> Value {
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
        // The first prompt; and of the answer what its text gives again as the same tokens.
        assert!(cached2 >= prompt && cached2 < prompt2, "{cached2} of {prompt2}, {prompt} before");
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

/// The output layer turns the state of the last token into the logits, which `tests/oracles.rs` holds against the reference: so the state is the
/// reference's too.
#[test]
fn an_embedding_is_the_hidden_state() {
    for case in ["dense_swa", "mixtral", "ministral3_yarn"] {
        let path = fixture("models").join(case);
        let checkpoint = weights::open(&path, &mut Control::none()).unwrap();
        let (model, ids) = (model(case), ids(40));
        let config = &model.weights().unwrap().config;
        let name = if config.tied_embeddings { "tok_embeddings.weight" } else { "output.weight" };
        let view = checkpoint.tensor(name, &[config.vocab_size, config.dim]).unwrap();
        let mut output = vec![0.0; config.vocab_size * config.dim];
        view.format.dequantize(view.bytes, &mut output).unwrap();
        let options = EmbedOptions { pooling: Pooling::Last, normalize: false };
        let state = model.embed(&ids, &options, &mut Control::none()).unwrap();
        let row = |row: &[f32]| {
            row.iter().zip(&state).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
        };
        let logits: Vec<f32> = output.chunks_exact(config.dim).map(row).collect();
        // The same products in another order.
        let diff = max_diff(&logits, &fresh(&model, &ids));
        assert!(diff <= 1e-5, "{case}: {diff:e}");
    }
}

#[test]
fn embeddings_are_pooled_and_normalised() {
    let (model, ids) = (model("ministral_iswa"), ids(PREFILL_CHUNK + 20));
    let embed = |ids: &[u32], pooling, normalize| {
        model.embed(ids, &EmbedOptions { pooling, normalize }, &mut Control::none()).unwrap()
    };
    let states: Vec<Vec<f32>> =
        (1..=ids.len()).map(|count| embed(&ids[..count], Pooling::Last, false)).collect();
    for count in [1, 2, 20, PREFILL_CHUNK, PREFILL_CHUNK + 1, ids.len()] {
        let mean: Vec<f32> = (0..states[0].len())
            .map(|i| {
                (states[..count].iter().map(|state| f64::from(state[i])).sum::<f64>() / count as f64) as f32
            })
            .collect();
        // Bit for bit: a state does not depend on the chunk that it was computed in.
        assert_eq!(embed(&ids[..count], Pooling::Mean, false), mean, "{count}");
        let unit = embed(&ids[..count], Pooling::Mean, true);
        assert_eq!(unit, model.embed(&ids[..count], &EmbedOptions::default(), &mut Control::none()).unwrap());
        let length = unit.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
        let scale = mean.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!(unit.iter().zip(&mean).all(|(u, m)| (f64::from(*u) - f64::from(*m) / scale).abs() < 1e-6));
    }
    assert_eq!(embed(&ids[..1], Pooling::Mean, true), embed(&ids[..1], Pooling::Last, true));
    assert_ne!(embed(&ids[..9], Pooling::Mean, true), embed(&ids[..9], Pooling::Last, true));
    let one = open("ministral_iswa", &ModelOptions { threads: Some(1), ..ModelOptions::default() });
    let three = open("ministral_iswa", &ModelOptions { threads: Some(3), ..ModelOptions::default() });
    let of = |model: &Arc<Model>| model.embed(&ids, &EmbedOptions::default(), &mut Control::none()).unwrap();
    assert_eq!(of(&one), of(&three));
}

#[test]
fn embeddings_refuse_what_they_cannot_do() {
    let model = model("ministral3_yarn");
    let embed = |ids: &[u32]| model.embed(ids, &EmbedOptions::default(), &mut Control::none());
    assert!(matches!(embed(&[]), Err(Error::Argument { .. })));
    assert!(embed(&[1, 512]).unwrap_err().to_string().contains("tokens[1]"));
    embed(&ids(256)).unwrap();
    assert_eq!(limit_of(embed(&ids(257))), "tokens");
    let token = mistral_core::CancelToken::new();
    token.cancel();
    let mut control = Control::none().with_cancel(&token);
    assert!(matches!(model.embed(&[1], &EmbedOptions::default(), &mut control), Err(Error::Cancelled)));
}

#[test]
fn a_full_context_still_ends_an_answer() {
    let model = model("dense_swa");
    let mut session = session(&model, 10);
    let mut control = Control::none();
    let mut generation = session.generate(&ids(8), &greedy(100), &mut control).unwrap();
    let events: Vec<_> = std::iter::from_fn(|| generation.next(&mut control)).map(Result::unwrap).collect();
    assert_eq!((events.len(), events.last().unwrap().finish_reason), (2, Some(FinishReason::ContextFull)));
}
