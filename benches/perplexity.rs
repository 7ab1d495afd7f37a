//! Perplexity of one model on a fixed text, with activations of 8 bits and of f32: what the fast arithmetic costs. Beside it, how far its predictions are
//! from those with f32: the mean Kullback-Leibler divergence, and how often the most likely token is the same.
//!
//! `cargo bench --bench perplexity -- --model PATH`
//!
//! The text is the beginning of Lewis Carroll's *Alice's Adventures in Wonderland* (1865, in the public domain; the Millennium Fulcrum Edition 2.9, 20 kB, each
//! paragraph on one line). It is read in windows of 512 tokens, of which the second halves count, so that each token that counts sees at least 256
//! before it. The model has probably read the book: only the ratio says something.
#![allow(clippy::print_stdout, reason = "a benchmark prints")]

#[path = "support/root.rs"]
mod root;

use mistral_core::kernels::Activation;
use mistral_core::{Control, Error, Model, ModelOptions, Result, Session, SessionOptions};

const TEXT: &str = include_str!("texts/alice.txt");
const WINDOW: usize = 512;
const UNSEEN: usize = WINDOW / 2;

/// What a model reads the text with: one kind of activations.
struct Reader {
    session: Session,
    /// Minus the logarithms of the probabilities of the tokens that count.
    loss: f64,
}

impl Reader {
    fn open(path: &str, activation: Activation) -> Result<Self> {
        let options = ModelOptions { activation, ..ModelOptions::default() };
        let model = Model::open(root::from_root(path), &options, &mut Control::none())?;
        let options = SessionOptions { context: Some(WINDOW), ..SessionOptions::default() };
        Ok(Self { session: model.session(&options)?, loss: 0.0 })
    }

    /// Reads a window; returns the logits that predict each token of its second half: `[tokens, vocab_size]`.
    fn read(&mut self, [unseen, counted]: [&[u32]; 2]) -> Result<Vec<f32>> {
        let control = &mut Control::none();
        self.session.reset();
        self.session.prefill(unseen, control)?;
        let before = self.session.logits().to_vec();
        let mut rows = self.session.score(counted, control)?;
        // The logits after a token predict the next one.
        rows.truncate(rows.len() - before.len());
        Ok([before, rows].concat())
    }
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [flag, path] = &words[..] else {
        return Err(Error::argument("arguments", words.len(), "--model PATH"));
    };
    if flag != "--model" {
        return Err(Error::argument(flag, path, "--model PATH"));
    }
    let mut int8 = Reader::open(path, Activation::Int8)?;
    let mut f32 = Reader::open(path, Activation::F32)?;
    let tokens = f32.session.model().tokenizer()?.encode(TEXT);
    let vocab_size = f32.session.model().vocab_size();
    let (mut count, mut divergence, mut same) = (0, 0.0, 0);
    for window in tokens.chunks(UNSEEN).collect::<Vec<_>>().windows(2) {
        let (a, b) = (int8.read([window[0], window[1]])?, f32.read([window[0], window[1]])?);
        for ((&token, a), b) in
            window[1].iter().zip(a.chunks_exact(vocab_size)).zip(b.chunks_exact(vocab_size))
        {
            let (a, b) = (log_softmax(a), log_softmax(b));
            int8.loss -= a[token as usize];
            f32.loss -= b[token as usize];
            divergence += b.iter().zip(&a).map(|(b, a)| b.exp() * (b - a)).sum::<f64>();
            same += u32::from(most_likely(&a) == most_likely(&b));
            count += 1;
        }
    }
    report(
        path,
        [int8.loss, f32.loss].map(|loss| (loss / f64::from(count)).exp()),
        divergence / f64::from(count),
        f64::from(same) / f64::from(count),
    );
    Ok(())
}

fn report(path: &str, [int8, f32]: [f64; 2], divergence: f64, same: f64) {
    let ratio = int8 / f32;
    println!(
        "{path}\nperplexity: {int8:.4} with activations of 8 bits, {f32:.4} with f32: {:+.3}%; divergence {divergence:.6}, the same token {:.2}%",
        100.0 * (ratio - 1.0),
        100.0 * same
    );
    println!(
        "{}",
        serde_json::json!({ "model": path, "perplexity_int8": int8, "perplexity_f32": f32, "ratio": ratio, "divergence": divergence, "same_token": same })
    );
}

/// The logarithms of the probabilities.
fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum::<f64>().ln();
    logits.iter().map(|&logit| f64::from(logit - largest) - total).collect()
}

fn most_likely(values: &[f64]) -> Option<usize> {
    (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]))
}
