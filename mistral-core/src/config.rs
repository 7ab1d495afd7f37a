//! The shape of a model, parsed from `config.json`, `params.json` or GGUF metadata.

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
