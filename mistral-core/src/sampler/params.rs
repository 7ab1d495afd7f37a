//! The settings of a sampler and their ranges.

use std::collections::BTreeSet;

use crate::error::{Error, Result};

/// The most alternatives that [`SamplingParams::logprobs`] may ask for: the bound of the OpenAI API.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// How tokens are chosen. The default is the model's own distribution: temperature 1, nothing cut, nothing penalised.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits, 0 to 100; 0 takes the most probable token (greedy).
    pub temperature: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the fewest most probable tokens whose probabilities reach this, 0 to 1; 1 keeps all, 0 one.
    pub top_p: f32,
    /// Keeps the tokens at least this many times as probable as the most probable one, 0 to 1; 0 keeps all.
    pub min_p: f32,
    /// Divides the positive logits and multiplies the negative ones of tokens of the prompt and the answer, above 0,
    /// up to 100; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Subtracted once from the logits of tokens of the answer, −2 to 2.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens of the answer, times how often they stand there, −2 to 2.
    pub frequency_penalty: f32,
    /// The penalties look at this many last tokens of prompt and answer together; `None`, the default as in
    /// `transformers` and vLLM, at all of them (llama.cpp's default is 64).
    pub penalty_window: Option<usize>,
    /// Added to the logits of these tokens, each −100 to 100; a token may stand here once.
    pub logit_bias: Vec<(u32, f32)>,
    /// The seed of the generator [`GENERATOR`](super::GENERATOR).
    pub seed: u64,
    /// `Some(n)` reports the log-probability of each token, and the `n` most probable tokens beside it, at most
    /// [`MAX_TOP_LOGPROBS`].
    pub logprobs: Option<usize>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            penalty_window: None,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// The settings that always take the most probable token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`Error::Argument`] that names the first setting out of its range, or a biased token that is repeated or is
    /// not below `vocab_size`.
    pub fn validate(&self, vocab_size: usize) -> Result<()> {
        range("temperature", self.temperature, 0.0, 100.0)?;
        range("top_p", self.top_p, 0.0, 1.0)?;
        range("min_p", self.min_p, 0.0, 1.0)?;
        range("repetition_penalty", self.repetition_penalty, f32::MIN_POSITIVE, 100.0)?;
        range("presence_penalty", self.presence_penalty, -2.0, 2.0)?;
        range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?;
        if let Some(n) = self.logprobs.filter(|&n| n > MAX_TOP_LOGPROBS) {
            return Err(Error::argument("logprobs", n, format!("at most {MAX_TOP_LOGPROBS}")));
        }
        let mut seen = BTreeSet::new();
        for (index, &(token, bias)) in self.logit_bias.iter().enumerate() {
            let name = format!("logit_bias[{index}]");
            if token as usize >= vocab_size {
                let found = format!("token {token}");
                return Err(Error::argument(name, found, format!("a token below {vocab_size}")));
            }
            if !seen.insert(token) {
                return Err(Error::argument(name, format!("token {token} again"), "each token once"));
            }
            range(&name, bias, -100.0, 100.0)?;
        }
        Ok(())
    }
}

fn range(name: &str, found: f32, least: f32, most: f32) -> Result<()> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    let expected = if least == f32::MIN_POSITIVE {
        format!("a number above 0, at most {most}")
    } else {
        format!("a number from {least} to {most}")
    };
    Err(Error::argument(name, found, expected))
}
