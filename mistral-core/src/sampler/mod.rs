//! From one row of logits to one token.
//!
//! The steps, in the order of `transformers` and vLLM, on which Mistral's recommended settings were tuned:
//!
//! 1. `logit_bias` is added (OpenAI API; vLLM v1 adds it before the penalties).
//! 2. Penalties: repetition (Keskar et al. 2019, CTRL, §4.1, in the form of `transformers`: a positive logit is
//!    divided, a negative one multiplied), then frequency and presence (OpenAI API). As in vLLM, repetition looks at
//!    prompt and answer, frequency and presence at the answer alone.
//! 3. The mask of a constraint.
//! 4. Temperature 0 takes the largest logit here. Otherwise the logits are divided by the temperature.
//! 5. top-k, then top-p (Holtzman et al. 2020: the fewest most probable tokens whose probabilities, renormalised
//!    after top-k, reach `top_p`), then min-p (Nguyen et al. 2024: at least `min_p` times the largest probability).
//!    llama.cpp has the same order of the three, but its temperature comes last: there `top_p` at a temperature other
//!    than 1 keeps another set.
//! 6. One token is drawn from what is left.
//!
//! Among equal logits the lowest token id comes first, everywhere.
//!
//! # The generator `chacha20-v1`
//!
//! The stream of ChaCha20 (Bernstein 2008; 64-bit block counter and 64-bit nonce, both from zero) whose key is the
//! seed's eight little-endian bytes followed by 24 zero bytes. A token drawn at a temperature above 0 takes one
//! 64-bit little-endian word `u` of it, a greedy one takes none. The weights `exp((logit − max) / temperature)` are
//! rounded to multiples of 2⁻⁴⁰; with `total` their sum over the kept tokens as an integer, the token taken is the
//! first, by id, at which the running sum exceeds `⌊u · total / 2⁶⁴⌋`. All sums are of integers and the exponential
//! is this module's own, so the same logits and the same seed give the same tokens on every platform, in every later
//! version of this library: another way would get another name.

mod params;
mod penalties;
mod select;
#[cfg(test)]
mod tests;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

pub use params::{MAX_TOP_LOGPROBS, SamplingParams};

use crate::error::{Error, Result};
use penalties::Penalties;
use select::Row;

/// The name of the random generator and of the way tokens are drawn with it; see the documentation of this module.
pub const GENERATOR: &str = "chacha20-v1";

/// The largest vocabulary, so that the sum of its weights fits an integer.
const MAX_VOCAB: usize = 1 << 23;

/// A token and its log-probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability under the model.
    pub logprob: f32,
}

/// What [`Sampler::sample`] chose.
///
/// Log-probabilities are those of the model's own distribution (the log-softmax of the logits as they came), before
/// bias, penalties, mask, temperature and truncation: the default of vLLM (`logprobs_mode = raw_logprobs`) and the
/// meaning of the OpenAI API.
#[derive(Clone, Debug, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// Its log-probability, where [`SamplingParams::logprobs`] asks for it.
    pub logprob: Option<f32>,
    /// The most probable tokens, best first; as many as [`SamplingParams::logprobs`] says.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// Chooses tokens for one answer: the settings, the tokens seen so far and the state of the generator.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    vocab_size: usize,
    penalties: Penalties,
    generator: ChaCha20Rng,
    /// The logits after bias, penalties and mask; unused where none of them applies. [vocab_size]
    adjusted: Vec<f32>,
    row: Row,
}

impl Sampler {
    /// A sampler for rows of `vocab_size` logits.
    ///
    /// # Errors
    /// [`Error::Argument`] for a setting out of its range (see [`SamplingParams`]), a biased token outside the
    /// vocabulary, or a vocabulary that is empty or larger than 2²³.
    pub fn new(params: SamplingParams, vocab_size: usize) -> Result<Self> {
        params.validate(vocab_size)?;
        if !(1..=MAX_VOCAB).contains(&vocab_size) {
            return Err(Error::argument("vocab_size", vocab_size, format!("1 to {MAX_VOCAB}")));
        }
        let mut key = [0; 32];
        key[..8].copy_from_slice(&params.seed.to_le_bytes());
        Ok(Self {
            vocab_size,
            penalties: Penalties::new(&params),
            generator: ChaCha20Rng::from_seed(key),
            adjusted: Vec::new(),
            row: Row::default(),
            params,
        })
    }

    /// The settings.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Chooses the next token. It is not counted for the penalties: call [`Sampler::accept`] with the token that is
    /// kept.
    ///
    /// `logits`: [vocab_size]. `allowed`: one bit per token, the lowest bit of the first word is token 0, a set bit
    /// allows; tokens beyond its end are not allowed.
    ///
    /// # Errors
    /// [`Error::Internal`] for a row of another length or with a logit that is not finite; [`Error::Argument`] where
    /// `allowed` leaves no token. The generator has not moved then.
    pub fn sample(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<SampledToken> {
        if logits.len() != self.vocab_size {
            let found = logits.len();
            return Err(Error::Internal(format!("a row of {found} logits for {} tokens", self.vocab_size)));
        }
        if !self.row.scan(logits) {
            return Err(not_finite(logits));
        }
        // The log-probabilities want the row as it came, and `row` describes it now.
        let top = self.params.logprobs.map(|n| (self.row.top(logits, n), self.row.log_total(logits)));
        let token = if self.adjusts() || allowed.is_some() {
            self.adjust(logits, allowed)?;
            self.choose_adjusted()
        } else {
            choose(&self.params, &mut self.row, &mut self.generator, logits)
        };
        let Some((top, log_total)) = top else {
            return Ok(SampledToken { token, logprob: None, top_logprobs: Vec::new() });
        };
        let logprob = |token: u32| logits[token as usize] - log_total;
        Ok(SampledToken {
            token,
            logprob: Some(logprob(token)),
            top_logprobs: top
                .into_iter()
                .map(|token| TokenLogprob { token, logprob: logprob(token) })
                .collect(),
        })
    }

    /// Counts a token of the answer for the penalties.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token outside the vocabulary.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        self.check(token)?;
        self.penalties.push(token, true);
        Ok(())
    }

    /// Counts the tokens of the prompt for the repetition penalty.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token outside the vocabulary; nothing has been counted then.
    pub fn accept_prompt(&mut self, tokens: &[u32]) -> Result<()> {
        tokens.iter().try_for_each(|&token| self.check(token))?;
        tokens.iter().for_each(|&token| self.penalties.push(token, false));
        Ok(())
    }

    fn check(&self, token: u32) -> Result<()> {
        if (token as usize) < self.vocab_size {
            return Ok(());
        }
        Err(Error::argument("token", token, format!("an id below {}", self.vocab_size)))
    }

    /// Whether bias or penalties can change a logit.
    fn adjusts(&self) -> bool {
        !self.params.logit_bias.is_empty() || self.penalties.active()
    }

    /// Steps 1 to 3, into `adjusted`, which `row` describes afterwards.
    fn adjust(&mut self, logits: &[f32], allowed: Option<&[u32]>) -> Result<()> {
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        for &(token, bias) in &self.params.logit_bias {
            let logit = &mut self.adjusted[token as usize];
            *logit = select::finite(*logit + bias);
        }
        self.penalties.apply(&mut self.adjusted);
        if let Some(allowed) = allowed {
            select::mask(&mut self.adjusted, allowed);
        }
        self.row.scan(&self.adjusted);
        if self.row.max() == f32::NEG_INFINITY {
            return Err(Error::argument("allowed", "no token allowed", "at least one token allowed"));
        }
        Ok(())
    }

    fn choose_adjusted(&mut self) -> u32 {
        choose(&self.params, &mut self.row, &mut self.generator, &self.adjusted)
    }
}

/// Steps 4 to 6. `row` describes `logits`, of which at least one is finite.
fn choose(params: &SamplingParams, row: &mut Row, generator: &mut ChaCha20Rng, logits: &[f32]) -> u32 {
    if params.temperature == 0.0 {
        return row.argmax(logits);
    }
    row.draw(logits, params, generator.next_u64())
}

fn not_finite(logits: &[f32]) -> Error {
    let found = logits.iter().enumerate().find(|(_, logit)| !logit.is_finite());
    Error::Internal(match found {
        Some((token, logit)) => format!("the logit of token {token} is {logit}: not a finite number"),
        None => "no logits".to_owned(),
    })
}
