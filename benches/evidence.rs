//! What evidence costs: the audit log for each answer, and `reproducible` for each opening and each token.
//!
//! `cargo bench -p mistral-core --bench evidence` (SmolLM2 must lie in `models/`). Prints a table and one line of JSON.
//!
//! A log writes two records for an answer, and adds each token to an HMAC: microseconds, which drown in how the milliseconds of a token of SmolLM2 vary. So what it
//! costs is measured on a model whose tokens take microseconds, as the difference of answers with and without, in turn; and then set against SmolLM2's time for as many tokens.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mistral_core::audit::{AuditKey, AuditOptions};
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::testing::{TempFolder, write_random_gguf};
use mistral_core::{Control, GenerateOptions, Model, ModelOptions, Session, SessionOptions};

const TOKENS: usize = 64;
/// Pairs of answers of the tiny model.
const PAIRS: usize = 400;
/// Answers of SmolLM2 for each way.
const ANSWERS: usize = 9;
/// Openings for each way.
const OPENINGS: usize = 7;

fn smollm2() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct.Q4_1.gguf")
}

fn open(path: &Path, reproducible: bool, threads: Option<usize>) -> Arc<Model> {
    let options = ModelOptions { reproducible, threads, ..ModelOptions::default() };
    Model::open(path, &options, &mut Control::none()).expect("the model (SmolLM2 lies in models/)")
}

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(256), ..SessionOptions::default() }).expect("a session")
}

/// The time of an answer, the prompt of a few tokens included.
fn answer(session: &mut Session) -> Duration {
    session.reset();
    let options =
        GenerateOptions { max_tokens: Some(TOKENS), ignore_eos: true, ..GenerateOptions::default() };
    let (start, mut control) = (Instant::now(), Control::none());
    let mut generation = session.generate(&[1, 2, 3, 4], &options, &mut control).expect("a generation");
    while let Some(event) = generation.next(&mut control) {
        event.expect("an event");
    }
    start.elapsed()
}

/// Of numbers: the quartiles.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[(values.len() - 1) * quarter / 4])
}

/// Two ways in turn, each first as often as the other: the differences of the second, and the times of the first, in microseconds.
fn in_turn(
    count: usize,
    mut one: impl FnMut() -> Duration,
    mut other: impl FnMut() -> Duration,
) -> (Vec<f64>, Vec<f64>) {
    let pair = |i: usize| {
        let (a, b) = if i.is_multiple_of(2) {
            let a = one();
            (a, other())
        } else {
            let b = other();
            (one(), b)
        };
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        (micros(b) - micros(a), micros(a))
    };
    (0..count).map(pair).unzip()
}

/// What a log adds to an answer, in microseconds. `sync`: every record is forced to the disk.
fn audit_cost(folder: &Path, sync: bool) -> [f64; 3] {
    let layer = LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense };
    let config = ModelConfig {
        architecture: "llama".to_owned(),
        dim: 32,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
        hidden_dim: 32,
        vocab_size: 64,
        norm_eps: 1e-5,
        max_context: 256,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![layer],
    };
    let path = folder.join("tiny.gguf");
    write_random_gguf(&path, &config, Format::F32, 1).expect("a model");
    let model = open(&path, false, Some(1));
    let key = Some(AuditKey::new(&[7; 32]).expect("a key"));
    let mut options =
        AuditOptions { required: true, key, ..AuditOptions::new(folder.join(format!("{sync}.jsonl"))) };
    if sync {
        options.sync = mistral_core::audit::SyncPolicy::Every(1);
    }
    let mut plain = session(&model);
    let mut audited = session(&model).with_audit(&options).expect("a log");
    answer(&mut plain);
    answer(&mut audited);
    quartiles(in_turn(PAIRS, || answer(&mut plain), || answer(&mut audited)).0)
}

fn main() {
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder");
    let [buffered, synced] = [false, true].map(|sync| audit_cost(folder.path(), sync));

    let path = smollm2();
    let opening = |reproducible| {
        let start = Instant::now();
        drop(open(&path, reproducible, None));
        start.elapsed()
    };
    opening(true);
    let (tests, openings) = in_turn(OPENINGS, || opening(false), || opening(true));
    let (model, reproducible) = (open(&path, false, None), open(&path, true, None));
    let (mut usual, mut exact) = (session(&model), session(&reproducible));
    answer(&mut usual);
    answer(&mut exact);
    let (differences, times) = in_turn(ANSWERS, || answer(&mut usual), || answer(&mut exact));
    let ratios = quartiles(differences.iter().zip(&times).map(|(more, time)| 1.0 + more / time).collect());
    let [_, token, _] = quartiles(times.iter().map(|time| time / TOKENS as f64).collect());
    let (tests, openings) = (quartiles(tests), quartiles(openings));

    let share = |cost: f64| 100.0 * cost / (token * TOKENS as f64);
    println!("SmolLM2 Q4_1: {:.3} ms a token, answers of {TOKENS}", token / 1e3);
    println!("| | median | quartiles | |");
    println!("|---|---|---|---|");
    for (name, cost) in [("audit log, an answer", buffered), ("audit log, synced", synced)] {
        let [low, median, high] = cost;
        println!(
            "| {name} | {median:.0} µs | {low:.0} to {high:.0} | {:.2}% of the answer's time |",
            share(median)
        );
    }
    println!(
        "| `reproducible`, opening | {:.1} ms | {:.1} to {:.1} | of {:.0} ms |",
        tests[1] / 1e3,
        tests[0] / 1e3,
        tests[2] / 1e3,
        openings[1] / 1e3
    );
    println!("| `reproducible`, an answer | × {:.4} | {:.4} to {:.4} | |", ratios[1], ratios[0], ratios[2]);
    println!(
        "{}",
        serde_json::json!({
            "token_us": token, "audit_us": buffered, "audit_share_percent": share(buffered[1]), "audit_synced_us": synced,
            "reproducible_open_us": tests, "open_us": openings, "reproducible_ratio": ratios,
        })
    );
}
