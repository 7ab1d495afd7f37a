//! GGUF metadata (keys of the GGUF specification; meaning as in llama.cpp's `llama-model.cpp` and its converters).

use super::{
    Evidence, FeedForwardConfig, Heads, LayerConfig, MAX_CONTEXT, MAX_EXPERTS, MAX_HEAD_DIM, MAX_HEADS,
    MAX_HIDDEN, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, ModelConfig, ParsedConfig, QueryScaling, RopeConfig,
    RopeScaling, unsupported_model, yarn_mscale,
};
use crate::error::{Error, Result};

/// What the configuration needs of GGUF metadata. Reads of a key that is there with another type are errors that name it.
pub trait Keys {
    /// The file, for errors.
    fn file(&self) -> &str;
    /// A whole number that is not negative.
    fn uint(&self, key: &str) -> Result<Option<u64>>;
    /// A number.
    fn float(&self, key: &str) -> Result<Option<f32>>;
    /// `true` or `false`.
    fn flag(&self, key: &str) -> Result<Option<bool>>;
    /// A string.
    fn text(&self, key: &str) -> Result<Option<&str>>;
    /// Whole numbers or booleans (as 0 and 1) of an array; `None` if the key is absent or not an array.
    fn uints(&self, key: &str) -> Result<Option<Vec<u64>>>;
    /// The length of an array, of whatever type.
    fn array_len(&self, key: &str) -> Option<usize>;
}

/// Parses GGUF metadata. `rope_factors` is the content of the tensor `rope_freqs.weight`, where the file has it.
pub fn parse(keys: &dyn Keys, rope_factors: Option<Vec<f32>>, evidence: Evidence) -> Result<ParsedConfig> {
    let name = keys.text("general.architecture")?;
    let name = name.ok_or_else(|| missing(keys, "general.architecture", "a string"))?;
    if !matches!(name, "llama" | "mistral3") {
        return Err(unsupported_model(format!("GGUF architecture `{name}`")));
    }
    let arch = Arch { keys, name };
    arch.refuse_unknown_mathematics()?;
    let dim = arch.required("embedding_length", MAX_WIDTH)?;
    let n_layers = arch.required("block_count", MAX_LAYERS)?;
    let n_heads = arch.uniform("attention.head_count", MAX_HEADS)?;
    let n_heads = n_heads.ok_or_else(|| arch.missing("attention.head_count", MAX_HEADS))?;
    let n_kv_heads = arch.uniform("attention.head_count_kv", MAX_HEADS)?.unwrap_or(n_heads);
    let head_dim = arch.head_dim(dim, n_heads, n_kv_heads)?;
    let rope = arch.rope(rope_factors, evidence, head_dim)?;
    let query_scaling = arch.query_scaling(&rope.scaling)?;
    let feed_forward = arch.feed_forward()?;
    let hidden_dim = arch.uniform("feed_forward_length", MAX_HIDDEN)?;
    let eps_key = "attention.layer_norm_rms_epsilon";
    let model = ModelConfig {
        architecture: name.to_owned(),
        dim,
        n_heads,
        n_kv_heads,
        head_dim,
        hidden_dim: hidden_dim.ok_or_else(|| arch.missing("feed_forward_length", MAX_HIDDEN))?,
        vocab_size: arch.vocab_size(evidence)?,
        norm_eps: arch
            .positive(eps_key)?
            .ok_or_else(|| missing(keys, &arch.key(eps_key), "a number above 0"))?,
        max_context: arch.required("context_length", MAX_CONTEXT)?,
        rope,
        query_scaling,
        tied_embeddings: !evidence.has_output,
        layers: arch
            .windows(n_layers)?
            .into_iter()
            .map(|window| LayerConfig { window, feed_forward })
            .collect(),
    };
    Ok(ParsedConfig { model, has_vision: false, fp8_block: None })
}

fn missing(keys: &dyn Keys, key: &str, expected: impl ToString) -> Error {
    Error::format(keys.file(), key, "nothing", expected)
}

/// The keys under `{arch}.`.
struct Arch<'a> {
    keys: &'a dyn Keys,
    name: &'a str,
}

impl Arch<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.name)
    }

    fn bad(&self, name: &str, found: impl ToString, expected: impl ToString) -> Error {
        Error::format(self.keys.file(), self.key(name), found, expected)
    }

    fn missing(&self, name: &str, max: usize) -> Error {
        self.bad(name, "nothing", format!("a whole number from 1 to {max}"))
    }

    /// A whole number from 1 to `max`.
    fn count(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(found) = self.keys.uint(&self.key(name))? else { return Ok(None) };
        match usize::try_from(found) {
            Ok(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.bad(name, found, format!("a whole number from 1 to {max}"))),
        }
    }

    fn required(&self, name: &str, max: usize) -> Result<usize> {
        self.count(name, max)?.ok_or_else(|| self.missing(name, max))
    }

    /// A count that may be written once or once for each layer, but must then be the same in all.
    fn uniform(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(list) = self.keys.uints(&self.key(name))? else { return self.count(name, max) };
        match list.as_slice() {
            [first, rest @ ..] if rest.iter().all(|n| n == first) => match usize::try_from(*first) {
                Ok(n) if (1..=max).contains(&n) => Ok(Some(n)),
                _ => Err(self.bad(name, first, format!("whole numbers from 1 to {max}"))),
            },
            _ => Err(Error::unsupported(
                self.key(name),
                "different values for each layer",
                "one for all layers",
            )),
        }
    }

    fn positive(&self, name: &str) -> Result<Option<f32>> {
        match self.keys.float(&self.key(name))? {
            Some(x) if !(x.is_finite() && x > 0.0) => Err(self.bad(name, x, "a finite number above 0")),
            other => Ok(other),
        }
    }

    fn refuse_unknown_mathematics(&self) -> Result<()> {
        let causal = self.key("attention.causal");
        if self.keys.flag(&causal)? == Some(false) {
            return Err(Error::unsupported(causal, "false", "true"));
        }
        // Zero means none, as in llama.cpp.
        let neutral: [(&str, &[f32]); 3] = [
            ("logit_scale", &[0.0, 1.0]),
            ("attn_logit_softcapping", &[0.0]),
            ("final_logit_softcapping", &[0.0]),
        ];
        for (name, neutral) in neutral {
            let key = self.key(name);
            if let Some(found) = self.keys.float(&key)?.filter(|found| !neutral.contains(found)) {
                return Err(Error::unsupported(key, found, "0 (none)"));
            }
        }
        Ok(())
    }

    fn head_dim(&self, dim: usize, n_heads: usize, n_kv_heads: usize) -> Result<usize> {
        let names =
            ["attention.head_count", "attention.head_count_kv", "attention.key_length"].map(|k| self.key(k));
        let head_dim = self.count("attention.key_length", MAX_HEAD_DIM)?;
        let file = self.keys.file();
        let heads =
            Heads { file, keys: names.each_ref().map(String::as_str), n_heads, n_kv_heads, head_dim, dim };
        let head_dim = heads.check()?;
        for other in ["attention.value_length", "rope.dimension_count"] {
            if let Some(found) = self.count(other, MAX_HEAD_DIM)?
                && found != head_dim
            {
                return Err(self.bad(other, found, format!("the width of a head, {head_dim}")));
            }
        }
        Ok(head_dim)
    }

    /// As llama.cpp: the tokens of the vocabulary; without them the declared size, without that the embedding table's.
    fn vocab_size(&self, evidence: Evidence) -> Result<usize> {
        let tokens = self.keys.array_len("tokenizer.ggml.tokens").filter(|n| (1..=MAX_VOCAB).contains(n));
        match tokens {
            Some(tokens) => Ok(tokens),
            None => match self.count("vocab_size", MAX_VOCAB)?.or(evidence.vocab_size) {
                Some(size) => Ok(size),
                None => Err(self.missing("vocab_size", MAX_VOCAB)),
            },
        }
    }

    fn feed_forward(&self) -> Result<FeedForwardConfig> {
        // Dense files may say 0.
        if self.keys.uint(&self.key("expert_count"))?.unwrap_or(0) == 0 {
            return Ok(FeedForwardConfig::Dense);
        }
        for other in ["expert_shared_count", "leading_dense_block_count"] {
            if let Some(found) = self.keys.uint(&self.key(other))?.filter(|n| *n != 0) {
                return Err(Error::unsupported(self.key(other), found, "0 (mixtures like Mixtral's)"));
            }
        }
        let n_experts = self.required("expert_count", MAX_EXPERTS)?;
        let n_experts_per_tok = self.required("expert_used_count", n_experts)?;
        Ok(FeedForwardConfig::Moe { n_experts, n_experts_per_tok })
    }

    /// The window of each layer. llama.cpp ignores the key for these architectures; the model was trained with it
    /// (Mistral 7B v0.1), so it is honoured here. Zero means none.
    fn windows(&self, n_layers: usize) -> Result<Vec<Option<usize>>> {
        let name = "attention.sliding_window";
        let to_window = |found: u64| match usize::try_from(found) {
            Ok(0) => Ok(None),
            Ok(window) if window <= MAX_CONTEXT => Ok(Some(window)),
            _ => Err(self.bad(name, found, format!("a whole number up to {MAX_CONTEXT}"))),
        };
        if let Some(list) = self.keys.uints(&self.key(name))? {
            if list.len() != n_layers {
                return Err(self.bad(
                    name,
                    format!("a list of {}", list.len()),
                    format!("a list of {n_layers}"),
                ));
            }
            return list.into_iter().map(to_window).collect();
        }
        let window = to_window(self.keys.uint(&self.key(name))?.unwrap_or(0))?;
        let has_window = self.window_pattern(n_layers)?;
        Ok(has_window.into_iter().map(|has| window.filter(|_| has)).collect())
    }

    /// Which layers use the window: a flag for each, or a period n of which the last layer is full.
    fn window_pattern(&self, n_layers: usize) -> Result<Vec<bool>> {
        let name = "attention.sliding_window_pattern";
        if let Some(flags) = self.keys.uints(&self.key(name))? {
            if flags.len() != n_layers {
                return Err(self.bad(
                    name,
                    format!("a list of {}", flags.len()),
                    format!("a list of {n_layers}"),
                ));
            }
            return Ok(flags.into_iter().map(|flag| flag != 0).collect());
        }
        let period = self.count(name, n_layers)?;
        Ok((0..n_layers).map(|layer| period.is_none_or(|n| layer % n < n - 1)).collect())
    }

    fn rope(&self, factors: Option<Vec<f32>>, evidence: Evidence, head_dim: usize) -> Result<RopeConfig> {
        let scaling = self.rope_scaling()?;
        let scaling = match (factors, scaling) {
            (None, scaling) => scaling,
            (Some(factors), scaling) => {
                let is_divisor = |f: &f32| f.is_finite() && *f > 0.0;
                if factors.len() != head_dim / 2 || !factors.iter().all(is_divisor) {
                    let found = format!("{} numbers, or one not above 0", factors.len());
                    let expected = format!("{} finite numbers above 0", head_dim / 2);
                    return Err(Error::format(self.keys.file(), "rope_freqs.weight", found, expected));
                }
                match scaling {
                    RopeScaling::None => RopeScaling::Factors(factors),
                    RopeScaling::Linear { factor } => {
                        RopeScaling::Factors(factors.into_iter().map(|f| f * factor).collect())
                    }
                    _ => {
                        return Err(Error::unsupported(
                            "rope scaling",
                            "yarn beside rope_freqs.weight",
                            "one of them",
                        ));
                    }
                }
            }
        };
        // The default of llama.cpp.
        let theta = self.positive("rope.freq_base")?.unwrap_or(1e4);
        Ok(RopeConfig { theta, style: evidence.rope_style, scaling })
    }

    fn rope_scaling(&self) -> Result<RopeScaling> {
        let kind_key = self.key("rope.scaling.type");
        let factor = match self.stretch("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            // The key of early files.
            None => self.stretch("rope.scale_linear")?,
        };
        // Without a type a factor is linear, as in llama.cpp.
        match self.keys.text(&kind_key)?.unwrap_or("linear") {
            "none" => Ok(RopeScaling::None),
            "linear" => Ok(match factor {
                Some(factor) if factor != 1.0 => RopeScaling::Linear { factor },
                _ => RopeScaling::None,
            }),
            "yarn" => {
                let factor =
                    factor.ok_or_else(|| self.bad("rope.scaling.factor", "nothing", "a number above 0"))?;
                self.yarn(factor)
            }
            other => Err(Error::unsupported(kind_key, other, "none, linear, yarn")),
        }
    }

    /// A factor of context extension. Zero means none, as in llama.cpp.
    fn stretch(&self, name: &str) -> Result<Option<f32>> {
        if self.keys.float(&self.key(name))? == Some(0.0) { Ok(None) } else { self.positive(name) }
    }

    /// The converters write `mscale_all_dim` as `yarn_log_multiplier` (1.0 for `params.json`) and take `mscale` as 1, so
    /// the magnitude is `m(1) / m(log multiplier)` with `m(x) = 0.1 x ln(factor) + 1`, or `m(1)` without the key or with 0
    /// (llama.cpp `llama-context.cpp`). `yarn_attn_factor` is an explicit `attention_factor`.
    fn yarn(&self, factor: f32) -> Result<RopeScaling> {
        let original = self.count("rope.scaling.original_context_length", MAX_CONTEXT)?;
        let original_max_position = match original {
            Some(original) => original,
            None => self.required("context_length", MAX_CONTEXT)?,
        };
        let log_multiplier = self.keys.float(&self.key("rope.scaling.yarn_log_multiplier"))?.unwrap_or(0.0);
        let magnitude = match self.positive("rope.scaling.yarn_attn_factor")? {
            Some(explicit) => explicit,
            None if log_multiplier != 0.0 => yarn_mscale(factor, 1.0) / yarn_mscale(factor, log_multiplier),
            None => yarn_mscale(factor, 1.0),
        };
        let attention_factor = magnitude * self.positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        if !attention_factor.is_finite() || attention_factor <= 0.0 {
            let expected = "a multiplier that gives a positive attention factor";
            return Err(self.bad("rope.scaling.yarn_log_multiplier", log_multiplier, expected));
        }
        Ok(RopeScaling::Yarn {
            factor,
            original_max_position,
            beta_fast: self.positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor,
        })
    }

    /// `temperature_scale` is β; its length is `temperature_length` or the trained context of YaRN.
    fn query_scaling(&self, scaling: &RopeScaling) -> Result<Option<QueryScaling>> {
        let name = "attention.temperature_scale";
        let beta = match self.keys.float(&self.key(name))? {
            None => return Ok(None),
            Some(0.0) => return Ok(None),
            Some(beta) if beta.is_finite() => beta,
            Some(beta) => return Err(self.bad(name, beta, "a finite number")),
        };
        let declared = match self.count("attention.temperature_length", MAX_CONTEXT)? {
            Some(length) => Some(length),
            None => self.count("rope.scaling.original_context_length", MAX_CONTEXT)?,
        };
        let original_max_position = match (declared, scaling) {
            (Some(length), _) => length,
            (None, RopeScaling::Yarn { original_max_position, .. }) => *original_max_position,
            (None, _) => return Err(self.missing("attention.temperature_length", MAX_CONTEXT)),
        };
        Ok(Some(QueryScaling { beta, original_max_position }))
    }
}
