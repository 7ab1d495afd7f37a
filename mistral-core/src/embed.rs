//! Embeddings: one vector for a text, from the hidden states of a model.
//!
//! Mistral's generative models were not trained to embed: their vectors compare texts roughly, those of a model made for it better.

use std::sync::Arc;

use crate::control::Control;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::session::{MAX_CONTEXT, PREFILL_CHUNK, SessionOptions};

/// How the states of the tokens become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    #[default]
    Mean,
    /// That of the last token, which has seen all others.
    Last,
}

/// How a text is embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbedOptions {
    /// From many vectors to one.
    pub pooling: Pooling,
    /// Scale the vector to a length (L2) of 1.
    pub normalize: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self { pooling: Pooling::Mean, normalize: true }
    }
}

impl Model {
    /// The embedding of `ids`, `[dim]`: their hidden states after the last norm, pooled. The same tokens give the same bits, whatever the
    /// number of threads.
    ///
    /// # Errors
    /// [`Error::Argument`] for no token or one outside the vocabulary, [`Error::Limit`] for more tokens than the model was made for or than
    /// its options allow, [`Error::Unsupported`] on a model opened without weights, [`Error::Cancelled`], [`Error::Format`] where the
    /// states are no numbers.
    pub fn embed(
        self: &Arc<Self>,
        ids: &[u32],
        options: &EmbedOptions,
        control: &mut Control<'_>,
    ) -> Result<Vec<f32>> {
        let config = &self.weights()?.config;
        if ids.is_empty() {
            return Err(Error::argument("tokens", "none", "at least one token"));
        }
        self.limits().check_prompt(ids.len())?;
        let most = config.max_context.min(MAX_CONTEXT);
        if ids.len() > most {
            return Err(Error::limit("tokens", ids.len(), most));
        }
        let session = SessionOptions { context: Some(ids.len()), ..SessionOptions::default() };
        let mut session = self.session(&session)?;
        // In double precision: the sum of many.
        let mut sum = vec![0f64; config.dim];
        control.within(self.limits().max_time, |control| {
            ids.chunks(PREFILL_CHUNK).try_for_each(|chunk| {
                let states = session.states(chunk, control)?;
                for state in states.chunks_exact(config.dim) {
                    let kept = if options.pooling == Pooling::Last { 0.0 } else { 1.0 };
                    sum.iter_mut().zip(state).for_each(|(sum, x)| *sum = *sum * kept + f64::from(*x));
                }
                control.check()
            })
        })?;
        let count = if options.pooling == Pooling::Last { 1 } else { ids.len() } as f64;
        let length = sum.iter().map(|x| (x / count).powi(2)).sum::<f64>().sqrt();
        // Nothing can be done about a vector of zeros.
        let scale = if options.normalize && length > 0.0 { 1.0 / length } else { 1.0 };
        let vector: Vec<f32> = sum.iter().map(|x| (x / count * scale) as f32).collect();
        match vector.iter().find(|x| !x.is_finite()) {
            None => Ok(vector),
            Some(x) => {
                let expected = "finite numbers: the weights are damaged";
                Err(Error::format(self.path().display(), "the embedding", x, expected))
            }
        }
    }
}
