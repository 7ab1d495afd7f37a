//! Sessions that are forked, cut, saved, loaded, sampled from and asked again: each goes on as one that was prefilled with the same tokens.
//!
//! `session/saved_tests.rs` has the blobs that are damaged, forged or foreign.

mod chat;
mod embeddings;
mod limits;
mod lookup;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mistral_core::cache::KvCache;
use mistral_core::kernels::CacheType;
use mistral_core::sampler::SamplingParams;
use mistral_core::session::PREFILL_CHUNK;
use mistral_core::testing::TempFolder;
use mistral_core::{
    Control, EmbedOptions, Error, FinishReason, GenerateOptions, LoadOptions, Model, ModelOptions, Session,
    SessionOptions, device,
};
use serde_json::{Value, json};
use support::fixture;

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
    let (within, behind) = (LONG - PREFILL_CHUNK * 3 / 4, LONG - PREFILL_CHUNK * 5 / 4);
    for (count, again) in [(LONG - 1, 1), (within, 1), (behind, behind), (20, 20), (1, 1)] {
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
        for cache_type in [CacheType::F16, CacheType::F32, CacheType::Q8_0] {
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

#[test]
fn a_full_context_still_ends_an_answer() {
    let model = model("dense_swa");
    let mut session = session(&model, 10);
    let mut control = Control::none();
    let mut generation = session.generate(&ids(8), &greedy(100), &mut control).unwrap();
    let events: Vec<_> = std::iter::from_fn(|| generation.next(&mut control)).map(Result::unwrap).collect();
    assert_eq!((events.len(), events.last().unwrap().finish_reason), (2, Some(FinishReason::ContextFull)));
}
