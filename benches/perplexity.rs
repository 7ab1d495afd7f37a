//! Perplexity of one model on a fixed text, with activations of 8 bits and of f32: what the fast arithmetic costs.
//!
//! `cargo bench --bench perplexity -- --model PATH`
//!
//! The text is the beginning of Lewis Carroll's *Alice's Adventures in Wonderland* (1865, in the public domain; the Millennium Fulcrum Edition 2.9, 20 kB, each
//! paragraph on one line). It is read in windows of 512 tokens, of which the second halves count, so that each token that counts sees at least 256
//! before it. The model has probably read the book: only the ratio says something.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

use std::path::Path;

use mistral_core::kernels::Activation;
use mistral_core::{Control, Error, Model, ModelOptions, Result, SessionOptions};

const TEXT: &str = include_str!("texts/alice.txt");
const WINDOW: usize = 512;
const UNSEEN: usize = WINDOW / 2;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [flag, path] = &words[..] else {
        return Err(Error::argument("arguments", words.len(), "--model PATH"));
    };
    if flag != "--model" {
        return Err(Error::argument(flag, path, "--model PATH"));
    }
    let [int8, f32] = [perplexity(path, Activation::Int8)?, perplexity(path, Activation::F32)?];
    let ratio = int8 / f32;
    println!(
        "{path}\nperplexity: {int8:.4} with activations of 8 bits, {f32:.4} with f32: {:+.3}%",
        100.0 * (ratio - 1.0)
    );
    println!(
        "{}",
        serde_json::json!({ "model": path, "perplexity_int8": int8, "perplexity_f32": f32, "ratio": ratio })
    );
    Ok(())
}

fn perplexity(path: impl AsRef<Path>, activation: Activation) -> Result<f64> {
    let control = &mut Control::none();
    let model = Model::open(path.as_ref(), &ModelOptions { activation, ..ModelOptions::default() }, control)?;
    let tokens = model.tokenizer()?.encode(TEXT);
    let options = SessionOptions { context: Some(WINDOW), ..SessionOptions::default() };
    let mut session = model.session(&options)?;
    let (mut sum, mut count) = (0.0, 0);
    for window in tokens.chunks(UNSEEN).collect::<Vec<_>>().windows(2) {
        session.reset();
        session.prefill(window[0], control)?;
        let mut before = session.logits().to_vec();
        let rows = session.score(window[1], control)?;
        for (&token, row) in window[1].iter().zip(rows.chunks_exact(model.vocab_size())) {
            sum -= log_probability(&before, token);
            count += 1;
            before.copy_from_slice(row);
        }
    }
    Ok((sum / f64::from(count)).exp())
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    f64::from(logits[token as usize] - largest) - total.ln()
}
