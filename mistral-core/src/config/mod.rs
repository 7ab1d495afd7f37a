//! The shape of a model, parsed from `config.json`, `params.json` or GGUF metadata.
//!
//! Parsing is pure: it takes the parsed JSON or the metadata, and [`Evidence`] from the tensors, and gives a [`ModelConfig`] in
//! which every number has been checked, or an error that names the key.

pub mod gguf;
pub mod hf;
mod json;
pub mod params;

pub(crate) use json::{Fields, describe};

use crate::error::{Error, Result};

/// Everything that the transformer needs to know about its own shape.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// The architecture as the file names it (`mistral`, `ministral3`, `llama`, …).
    pub architecture: String,
    /// Width of the residual stream.
    pub dim: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads (grouped-query attention).
    pub n_kv_heads: usize,
    /// Width of one head; not always `dim / n_heads`.
    pub head_dim: usize,
    /// Width of the feed-forward block (of one expert's, in a mixture).
    pub hidden_dim: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_eps: f32,
    /// Positions that the model was made for.
    pub max_context: usize,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Llama-4 query scaling, where the model has it.
    pub query_scaling: Option<QueryScaling>,
    /// The output layer is the embedding table (no `output` tensor in the file).
    pub tied_embeddings: bool,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
}

/// What may differ from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerConfig {
    /// Key j is visible to query i iff `i - window < j <= i`; `None`: every earlier key.
    pub window: Option<usize>,
    /// One SwiGLU or a mixture of them.
    pub feed_forward: FeedForwardConfig,
}

/// The feed-forward block of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeedForwardConfig {
    /// One SwiGLU.
    Dense,
    /// Mixtral: top-k of the router's logits, then softmax over those.
    Moe {
        /// Experts in the layer.
        n_experts: usize,
        /// Experts that a token uses.
        n_experts_per_tok: usize,
    },
}

/// Rotary position embedding (Su et al. 2021, arXiv:2104.09864).
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// θ.
    pub theta: f32,
    /// Which components of a head make a pair.
    pub style: RopeStyle,
    /// Context extension.
    pub scaling: RopeScaling,
}

/// Which components of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// (0, 1), (2, 3), …: Mistral's own files and GGUF.
    Interleaved,
    /// (i, i + head_dim / 2): Hugging Face files.
    HalfSplit,
}

/// How the rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The stretch.
        factor: f32,
    },
    /// Llama 3.1's interpolation by wavelength.
    Llama3 {
        /// The stretch.
        factor: f32,
        /// Below this share of the original context: divided by `factor`.
        low_freq_factor: f32,
        /// Above this share: unchanged.
        high_freq_factor: f32,
        /// The trained context.
        original_max_position: usize,
    },
    /// One divisor for each frequency (`rope_freqs.weight` of a GGUF file).
    Factors(Vec<f32>),
    /// YaRN (Peng et al. 2023, arXiv:2309.00071).
    Yarn {
        /// The stretch.
        factor: f32,
        /// The trained context.
        original_max_position: usize,
        /// Rotations above which a frequency is kept.
        beta_fast: f32,
        /// Rotations below which a frequency is divided by `factor`.
        beta_slow: f32,
        /// Multiplies cos and sin (1.0 where the file says `apply_scale: false`).
        attention_factor: f32,
    },
}

/// `q *= 1 + beta * ln(1 + floor(position / original_max_position))`, after the rotation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScaling {
    /// β.
    pub beta: f32,
    /// The trained context.
    pub original_max_position: usize,
}

/// What the tensors of a checkpoint say about its shape, where the configuration is silent or known to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// Rows of the embedding table, for configurations that do not give the size of the vocabulary.
    pub vocab_size: Option<usize>,
    /// There is an output layer. `tie_word_embeddings` is wrong in published files (text part and whole disagree), so
    /// the presence of the tensor decides.
    pub has_output: bool,
    /// The rotary layout, which follows from the naming of the tensors.
    pub rope_style: RopeStyle,
}

/// A parsed configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedConfig {
    /// The shape of the text model.
    pub model: ModelConfig,
    /// The checkpoint also holds a vision tower, whose tensors are not part of the text model.
    pub has_vision: bool,
    /// Rows and columns of an FP8 block, where the file declares them.
    pub fp8_block: Option<(usize, usize)>,
}

/// What this library runs, for errors that refuse something else.
pub const SUPPORTED_MODELS: &str = "MistralForCausalLM, MixtralForCausalLM, MinistralForCausalLM, Ministral3ForCausalLM, \
     LlamaForCausalLM, the text part of Mistral3ForConditionalGeneration and LlavaForConditionalGeneration (over mistral or \
     ministral3), and GGUF of architecture llama or mistral3";

// Bounds on what a configuration may claim. They are far above every published model and keep products of sizes
// within 64 bits; the tensors are compared with the claims afterwards.
pub(crate) const MAX_LAYERS: usize = 1 << 10;
pub(crate) const MAX_WIDTH: usize = 1 << 20;
pub(crate) const MAX_HEADS: usize = 1 << 12;
pub(crate) const MAX_HEAD_DIM: usize = 1 << 12;
pub(crate) const MAX_HIDDEN: usize = 1 << 22;
pub(crate) const MAX_VOCAB: usize = 1 << 24;
pub(crate) const MAX_CONTEXT: usize = 1 << 31;
pub(crate) const MAX_EXPERTS: usize = 1 << 10;

/// An error for a model that this library does not run.
pub(crate) fn unsupported_model(found: impl ToString) -> Error {
    Error::unsupported("model", found, SUPPORTED_MODELS)
}

/// YaRN's magnitude correction: `0.1 * mscale * ln(scale) + 1` (Peng et al. 2023, arXiv:2309.00071, eq. 22).
pub(crate) fn yarn_mscale(scale: f32, mscale: f32) -> f32 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

/// Where the numbers of a head came from, for the errors of [`Heads::check`].
pub(crate) struct Heads<'a> {
    pub file: &'a str,
    /// Keys of: query heads, key and value heads, width of a head.
    pub keys: [&'a str; 3],
    pub n_heads: usize,
    pub n_kv_heads: usize,
    /// The width of a head, or what it is derived from.
    pub head_dim: Option<usize>,
    pub dim: usize,
}

impl Heads<'_> {
    /// The width of a head, once grouped-query attention and rotary embedding are possible with these numbers.
    pub fn check(&self) -> Result<usize> {
        let [heads_key, kv_key, dim_key] = self.keys;
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of {heads_key} ({})", self.n_heads);
            return Err(Error::format(self.file, kv_key, self.n_kv_heads, expected));
        }
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if self.dim.is_multiple_of(self.n_heads) => self.dim / self.n_heads,
            None => {
                let expected = format!("a divisor of the width {}, as {dim_key} is absent", self.dim);
                return Err(Error::format(self.file, heads_key, self.n_heads, expected));
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(Error::format(
                self.file,
                dim_key,
                head_dim,
                format!("an even number up to {MAX_HEAD_DIM}"),
            ));
        }
        Ok(head_dim)
    }
}

/// The windows of `n_layers` layers from a list that is repeated to fill them (`[null, 32768, 32768, 32768]`).
pub(crate) fn repeat_windows(
    fields: &Fields<'_>,
    name: &str,
    list: &[serde_json::Value],
    n_layers: usize,
) -> Result<Vec<Option<usize>>> {
    if list.is_empty() || !n_layers.is_multiple_of(list.len()) {
        return Err(fields.bad(name, format!("a list whose length divides the {n_layers} layers")));
    }
    let windows = list.iter().map(|entry| match entry.as_u64().and_then(|n| usize::try_from(n).ok()) {
        _ if entry.is_null() => Ok(None),
        Some(window) if (1..=MAX_CONTEXT).contains(&window) => Ok(Some(window)),
        _ => Err(fields.bad(
            name,
            format!("null or whole numbers from 1 to {MAX_CONTEXT} (one is {})", describe(entry)),
        )),
    });
    let windows = windows.collect::<Result<Vec<_>>>()?;
    Ok(windows.iter().copied().cycle().take(n_layers).collect())
}

#[cfg(test)]
mod tests;
