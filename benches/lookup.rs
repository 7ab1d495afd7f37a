//! Decoding with and without guesses from the text (prompt lookup), on a task that copies: a passage is begun a second time, and the model goes on.
//!
//! `cargo bench --bench lookup -- --model PATH`
//!
//! The passage is of Lewis Carroll's *Alice's Adventures in Wonderland* (1865, in the public domain). Runs alternate; figures are medians. The tokens must be
//! the same, or the bench fails.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/root.rs"]
mod root;

use std::time::Instant;

use mistral_core::{Control, Error, GenerateOptions, Model, ModelOptions, Result, SessionOptions};

const TEXT: &str = include_str!("texts/alice.txt");
/// Bytes of the passage, and of its second beginning.
const PASSAGE: usize = 1500;
const AGAIN: usize = 60;
const ANSWER: usize = 256;
const ROUNDS: usize = 5;
const GUESSES: [usize; 4] = [0, 4, 10, 32];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [flag, path] = &words[..] else {
        return Err(Error::argument("arguments", words.len(), "--model PATH"));
    };
    if flag != "--model" {
        return Err(Error::argument(flag, path, "--model PATH"));
    }
    let model = Model::open(root::from_root(path), &ModelOptions::default(), &mut Control::none())?;
    let text = &TEXT[TEXT.find("Alice was beginning").unwrap_or(0)..];
    let prompt = model.tokenizer()?.encode(&format!("{}\n\n{}", &text[..PASSAGE], &text[..AGAIN]));
    let mut rates = GUESSES.map(|_| Vec::new());
    let mut passes = GUESSES.map(|_| 0);
    let mut expected = Vec::new();
    for _ in 0..ROUNDS {
        for (i, guesses) in GUESSES.into_iter().enumerate() {
            let (tokens, rate, count) = run(&model, &prompt, guesses)?;
            rates[i].push(rate);
            passes[i] = count;
            if expected.is_empty() {
                expected = tokens;
            } else if expected != tokens {
                return Err(Error::Internal(format!("other tokens with guesses of {guesses}")));
            }
        }
    }
    println!("{path}: {} tokens after {}", expected.len(), prompt.len());
    let plain = median(&rates[0]);
    let mut json = serde_json::Map::new();
    json.insert("model".into(), path.as_str().into());
    for (i, guesses) in GUESSES.into_iter().enumerate() {
        let rate = median(&rates[i]);
        println!("guesses of {guesses:>2}: {rate:>7.1} token/s, {:.2}x, {} passes", rate / plain, passes[i]);
        json.insert(format!("guesses_{guesses}"), rate.into());
    }
    println!("{}", serde_json::Value::Object(json));
    Ok(())
}

/// The tokens of an answer, how many a second, and in how many passes.
fn run(model: &std::sync::Arc<Model>, prompt: &[u32], guesses: usize) -> Result<(Vec<u32>, f64, u64)> {
    let control = &mut Control::none();
    let options = SessionOptions { context: Some(prompt.len() + ANSWER), ..SessionOptions::default() };
    let mut session = model.session(&options)?;
    let options = GenerateOptions {
        max_tokens: Some(ANSWER),
        ignore_eos: true,
        prompt_lookup: guesses,
        ..GenerateOptions::default()
    };
    let mut generation = session.generate(prompt, &options, control)?;
    let start = Instant::now();
    let mut tokens = Vec::new();
    while let Some(event) = generation.next(control) {
        tokens.push(event?.token);
    }
    let rate = (tokens.len() - 1) as f64 / start.elapsed().as_secs_f64();
    drop(generation);
    Ok((tokens, rate, session.stats().decode.passes))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
