//! What the audit log costs: the time of answers of 64 tokens with it and without, interleaved.
//!
//! `cargo bench -p mistral-core --bench audit` (SmolLM2 must lie in `models/`). Prints the median of the ratios of 15 pairs, and their quartiles.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mistral_core::audit::{AuditKey, AuditOptions};
use mistral_core::testing::TempFolder;
use mistral_core::{Control, GenerateOptions, Model, ModelOptions, Session, SessionOptions};

const TOKENS: usize = 64;
const PAIRS: usize = 15;

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(256), ..SessionOptions::default() }).expect("a session")
}

/// The time from the first call to the last token, the prompt of a few tokens included.
fn answer(session: &mut Session, prompt: &[u32]) -> Duration {
    session.reset();
    let options =
        GenerateOptions { max_tokens: Some(TOKENS), ignore_eos: true, ..GenerateOptions::default() };
    let (start, mut control) = (Instant::now(), Control::none());
    let mut generation = session.generate(prompt, &options, &mut control).expect("a generation");
    while let Some(event) = generation.next(&mut control) {
        event.expect("an event");
    }
    start.elapsed()
}

fn main() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let model =
        Model::open(&file, &ModelOptions::default(), &mut Control::none()).expect("SmolLM2 in models/");
    let prompt = model.tokenizer().expect("a tokenizer").encode("Once upon a time");
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("a folder");
    let key = Some(AuditKey::new(&[7; 32]).expect("a key"));
    let audit = AuditOptions { required: true, key, ..AuditOptions::new(folder.path().join("audit.jsonl")) };
    let mut plain = session(&model);
    let mut audited = session(&model).with_audit(&audit).expect("a log");
    answer(&mut plain, &prompt);
    answer(&mut audited, &prompt);
    let mut ratios: Vec<f64> = (0..PAIRS)
        .map(|i| {
            // Each is first as often as the other.
            let first = (i % 2 == 0).then(|| answer(&mut plain, &prompt));
            let with = answer(&mut audited, &prompt);
            let without = first.unwrap_or_else(|| answer(&mut plain, &prompt));
            with.as_secs_f64() / without.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let (low, median, high) = (ratios[PAIRS / 4], ratios[PAIRS / 2], ratios[PAIRS * 3 / 4]);
    println!(
        "time with the log / without: {median:.4} (quartiles {low:.4} to {high:.4}), {TOKENS} tokens, {PAIRS} pairs"
    );
}
