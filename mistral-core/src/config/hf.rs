//! `config.json` of Hugging Face checkpoints. Defaults are those of the configuration classes of transformers 5.23, because
//! published files leave out keys that equal them (the text part of Pixtral has no `num_attention_heads`).

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{
    Evidence, FeedForwardConfig, Fields, Heads, LayerConfig, MAX_CONTEXT, MAX_EXPERTS, MAX_HEAD_DIM,
    MAX_HEADS, MAX_HIDDEN, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, ModelConfig, ParsedConfig, QueryScaling,
    RopeConfig, RopeScaling, repeat_windows, unsupported_model, yarn_mscale,
};
use crate::error::{Error, Result};

/// A text model and the defaults of its configuration class.
struct Family {
    model_type: &'static str,
    class: &'static str,
    n_heads: usize,
    /// `None`: as many as query heads.
    n_kv_heads: Option<usize>,
    /// `None`: width / heads.
    head_dim: Option<usize>,
    norm_eps: f32,
    /// Of rotary parameters that do not give it.
    theta: f32,
    max_context: usize,
    window: Option<usize>,
}

const FAMILIES: [Family; 5] = [
    Family {
        model_type: "mistral",
        class: "MistralForCausalLM",
        n_heads: 32,
        n_kv_heads: Some(8),
        head_dim: None,
        norm_eps: 1e-6,
        theta: 1e4,
        max_context: 131_072,
        window: Some(4096),
    },
    Family {
        model_type: "ministral",
        class: "MinistralForCausalLM",
        n_heads: 32,
        n_kv_heads: Some(8),
        head_dim: None,
        norm_eps: 1e-6,
        theta: 1e4,
        max_context: 131_072,
        window: Some(4096),
    },
    Family {
        model_type: "ministral3",
        class: "Ministral3ForCausalLM",
        n_heads: 32,
        n_kv_heads: Some(8),
        head_dim: Some(128),
        norm_eps: 1e-5,
        theta: 1e4,
        max_context: 262_144,
        window: None,
    },
    Family {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        n_heads: 32,
        n_kv_heads: Some(8),
        head_dim: None,
        norm_eps: 1e-5,
        theta: 1e6,
        max_context: 131_072,
        window: None,
    },
    Family {
        model_type: "llama",
        class: "LlamaForCausalLM",
        n_heads: 32,
        n_kv_heads: None,
        head_dim: None,
        norm_eps: 1e-6,
        theta: 1e4,
        max_context: 2048,
        window: None,
    },
];

const ORIGINAL: &str = "original_max_position_embeddings";

/// What `Ministral3Config` takes for rotary parameters that are absent; the other classes take plain rotation.
static MINISTRAL3_ROPE: LazyLock<Value> = LazyLock::new(|| {
    json!({
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    })
});

/// Parses the content of a `config.json`; `file` names it in errors.
pub fn parse(file: &str, value: &Value, evidence: Evidence) -> Result<ParsedConfig> {
    let root = Fields::root(file, value)?;
    let (text, family, has_vision) = text_model(&root)?;
    refuse_unknown_mathematics(&text)?;
    let fp8_block = match fp8_block(&root)? {
        Some(block) => Some(block),
        None => fp8_block(&text)?,
    };
    let model = text_config(file, &text, family, evidence)?;
    Ok(ParsedConfig { model, has_vision, fp8_block })
}

/// The object that describes the text model, its family, and whether a vision tower stands beside it.
fn text_model<'a>(root: &Fields<'a>) -> Result<(Fields<'a>, &'static Family, bool)> {
    let class = architecture(root)?;
    let model_type = root.text("model_type")?;
    if let Some(family) = FAMILIES.iter().find(|family| Some(family.class) == class) {
        if model_type.is_some_and(|found| found != family.model_type) {
            return Err(root.bad(
                "model_type",
                format!("`{}`, as architectures is {}", family.model_type, family.class),
            ));
        }
        return Ok((root.clone(), family, false));
    }
    // What a wrapper takes for the type of its text model, if that is absent.
    let default_type = match (class, model_type) {
        (Some("Mistral3ForConditionalGeneration"), _) | (None, Some("mistral3")) => Some("mistral"),
        (Some("LlavaForConditionalGeneration"), _) | (None, Some("llava")) => Some("llama"),
        _ => None,
    };
    if let Some(default_type) = default_type {
        let text = root.object("text_config")?.ok_or_else(|| root.bad("text_config", "an object"))?;
        let text_type = text.text("model_type")?.unwrap_or(default_type);
        let family = family_of(text_type)
            .filter(|family| matches!(family.model_type, "mistral" | "ministral3"))
            .ok_or_else(|| {
                let wrapper = class.or(model_type).unwrap_or_default();
                unsupported_model(format!("{wrapper} over text model `{text_type}`"))
            })?;
        return Ok((text, family, true));
    }
    match (class, model_type) {
        (Some(class), _) => Err(unsupported_model(class)),
        (None, Some(model_type)) => {
            let family = family_of(model_type)
                .ok_or_else(|| unsupported_model(format!("model_type `{model_type}`")))?;
            Ok((root.clone(), family, false))
        }
        (None, None) => Err(root.bad("architectures", "a list with the class of the model")),
    }
}

fn family_of(model_type: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == model_type)
}

/// The one class in `architectures`.
fn architecture<'a>(root: &Fields<'a>) -> Result<Option<&'a str>> {
    match root.list("architectures")? {
        None => Ok(None),
        Some([Value::String(class)]) => Ok(Some(class)),
        Some(_) => Err(root.bad("architectures", "a list of one string")),
    }
}

fn refuse_unknown_mathematics(text: &Fields<'_>) -> Result<()> {
    let activation = text.text("hidden_act")?.unwrap_or("silu");
    if activation != "silu" {
        return Err(Error::unsupported("hidden_act", activation, "silu"));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if text.flag(key)? == Some(true) {
            return Err(Error::unsupported(key, "true", "false"));
        }
    }
    for key in ["kv_lora_rank", "final_logit_softcapping", "attn_logit_softcapping"] {
        if text.get(key).is_some() {
            return Err(unsupported_model(format!("a configuration with {key}")));
        }
    }
    Ok(())
}

fn text_config(file: &str, text: &Fields<'_>, family: &Family, evidence: Evidence) -> Result<ModelConfig> {
    let dim = text.required("hidden_size", MAX_WIDTH)?;
    let n_layers = text.required("num_hidden_layers", MAX_LAYERS)?;
    let n_heads = text.count("num_attention_heads", MAX_HEADS)?.unwrap_or(family.n_heads);
    // Absent: the default of the class; null: one of each for every query head.
    let n_kv_heads = match text.count("num_key_value_heads", MAX_HEADS)? {
        Some(count) => count,
        None if text.mentions("num_key_value_heads") => n_heads,
        None => family.n_kv_heads.unwrap_or(n_heads),
    };
    let head_dim = match text.count("head_dim", MAX_HEAD_DIM)? {
        None if !text.mentions("head_dim") => family.head_dim,
        found => found,
    };
    let keys = ["num_attention_heads", "num_key_value_heads", "head_dim"];
    let head_dim = Heads { file, keys, n_heads, n_kv_heads, head_dim, dim }.check()?;
    let max_context = text.count("max_position_embeddings", MAX_CONTEXT)?.unwrap_or(family.max_context);
    let vocab_size = match evidence.vocab_size {
        Some(rows) if text.get("vocab_size").is_none() => rows,
        _ => text.required("vocab_size", MAX_VOCAB)?,
    };
    let feed_forward = feed_forward(text, family)?;
    let rope = Rope::find(file, text, family)?;
    Ok(ModelConfig {
        architecture: family.model_type.to_owned(),
        dim,
        n_heads,
        n_kv_heads,
        head_dim,
        hidden_dim: text.required("intermediate_size", MAX_HIDDEN)?,
        vocab_size,
        norm_eps: text.positive("rms_norm_eps")?.unwrap_or(family.norm_eps),
        max_context,
        rope: RopeConfig {
            theta: rope.theta(text, family)?,
            style: evidence.rope_style,
            scaling: rope.scaling(max_context)?,
        },
        query_scaling: rope.query_scaling(text)?,
        tied_embeddings: !evidence.has_output,
        layers: windows(text, family, n_layers)?
            .into_iter()
            .map(|window| LayerConfig { window, feed_forward })
            .collect(),
    })
}

fn feed_forward(text: &Fields<'_>, family: &Family) -> Result<FeedForwardConfig> {
    if family.model_type != "mixtral" {
        return Ok(FeedForwardConfig::Dense);
    }
    let key = if text.get("num_local_experts").is_some() { "num_local_experts" } else { "num_experts" };
    let n_experts = text.count(key, MAX_EXPERTS)?.unwrap_or(8);
    let n_experts_per_tok = text.count("num_experts_per_tok", n_experts)?.unwrap_or(2);
    if n_experts_per_tok > n_experts {
        return Err(text.bad(key, format!("at least num_experts_per_tok ({n_experts_per_tok})")));
    }
    Ok(FeedForwardConfig::Moe { n_experts, n_experts_per_tok })
}

/// One window for all layers, a list of windows, or `layer_types` that say which layers use the one window.
fn windows(text: &Fields<'_>, family: &Family, n_layers: usize) -> Result<Vec<Option<usize>>> {
    if text.flag("use_sliding_window")? == Some(false) {
        return Ok(vec![None; n_layers]);
    }
    if let Some(Value::Array(list)) = text.get("sliding_window") {
        return repeat_windows(text, "sliding_window", list, n_layers);
    }
    let window = match text.count("sliding_window", MAX_CONTEXT)? {
        None if !text.mentions("sliding_window") => family.window,
        found => found,
    };
    let Some(layer_types) = text.list("layer_types")? else { return Ok(vec![window; n_layers]) };
    if layer_types.len() != n_layers {
        return Err(text.bad("layer_types", format!("a list of {n_layers}, one for each layer")));
    }
    let of_layer = |layer_type: &Value| match layer_type.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => {
            Err(text.bad("sliding_window", "a window, as layer_types has sliding_attention"))
        }
        other => Err(Error::unsupported(
            "layer_types",
            other.unwrap_or("not a string"),
            "full_attention, sliding_attention",
        )),
    };
    layer_types.iter().map(of_layer).collect()
}

/// Rows and columns of FP8 blocks; other quantisation methods are refused by name.
fn fp8_block(fields: &Fields<'_>) -> Result<Option<(usize, usize)>> {
    let Some(config) = fields.object("quantization_config")? else { return Ok(None) };
    let method = config.text("quant_method")?.unwrap_or("unnamed");
    let is_fp8 = match method {
        "fp8" | "fbgemm_fp8" => true,
        "compressed-tensors" => {
            matches!(config.text("format")?, None | Some("float-quantized" | "naive-quantized" | "dense"))
        }
        _ => false,
    };
    if !is_fp8 {
        let format = config.text("format")?.map(|format| format!(" ({format})")).unwrap_or_default();
        return Err(Error::unsupported(
            "quantization_config.quant_method",
            format!("{method}{format}"),
            "fp8, and compressed-tensors of format float-quantized",
        ));
    }
    match block_size(&config, "weight_block_size")? {
        None => block_of_groups(&config),
        found => Ok(found),
    }
}

/// Rows and columns of a block, as a list of two.
fn block_size(fields: &Fields<'_>, key: &str) -> Result<Option<(usize, usize)>> {
    let Some(list) = fields.list(key)? else { return Ok(None) };
    let side = |value: &Value| {
        value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=MAX_WIDTH).contains(n))
    };
    match list.iter().map(side).collect::<Vec<_>>()[..] {
        [Some(rows), Some(cols)] => Ok(Some((rows, cols))),
        _ => Err(fields.bad(key, "two whole numbers above 0")),
    }
}

/// The block size of the groups of compressed-tensors, of which those with blocks must agree.
fn block_of_groups(config: &Fields<'_>) -> Result<Option<(usize, usize)>> {
    let Some(groups) = config.object("config_groups")? else { return Ok(None) };
    let mut found = None;
    for name in groups.keys() {
        let Some(group) = groups.object(name)? else { continue };
        let Some(weights) = group.object("weights")? else { continue };
        let key = "block_structure";
        match (block_size(&weights, key)?, found) {
            (None, _) if weights.text("strategy")? == Some("block") => {
                return Err(weights.bad(key, "rows and columns, as strategy is `block`"));
            }
            (None, _) => {}
            (Some(block), Some(other)) if block != other => {
                return Err(weights.bad(key, format!("{other:?}, as in another group")));
            }
            (block, _) => found = block,
        }
    }
    Ok(found)
}

/// The rotary parameters: `rope_parameters` (transformers 5), or `rope_theta` beside `rope_scaling` (before).
struct Rope<'a> {
    fields: Option<Fields<'a>>,
    /// The trained context. The top level wins (transformers `standardize_rope_params`).
    original: Option<usize>,
}

impl<'a> Rope<'a> {
    /// A `rope_scaling` that is not empty wins, as a whole (transformers `convert_rope_params_to_dict`).
    fn find(file: &'a str, text: &Fields<'a>, family: &Family) -> Result<Self> {
        let scaling = text.object("rope_scaling")?.filter(|fields| fields.keys().next().is_some());
        let fields = match scaling {
            None => text.object("rope_parameters")?,
            scaling => scaling,
        };
        let fields = match fields {
            None if family.model_type == "ministral3" => Some(Fields::root(file, &MINISTRAL3_ROPE)?),
            fields => fields,
        };
        if let Some(fields) = &fields {
            for layer_type in ["full_attention", "sliding_attention"] {
                if fields.get(layer_type).is_some() {
                    return Err(Error::unsupported(
                        "rope_parameters",
                        format!("rotary parameters for each layer type (`{layer_type}`)"),
                        "one set for all layers",
                    ));
                }
            }
        }
        for fields in std::iter::once(text).chain(&fields) {
            if fields.float("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
                return Err(fields.bad("partial_rotary_factor", "1.0 (the whole head is rotated)"));
            }
        }
        let original = match (text.count(ORIGINAL, MAX_CONTEXT)?, &fields) {
            (None, Some(fields)) => fields.count(ORIGINAL, MAX_CONTEXT)?,
            (found, _) => found,
        };
        Ok(Self { fields, original })
    }

    fn theta(&self, text: &Fields<'_>, family: &Family) -> Result<f32> {
        if let Some(fields) = &self.fields
            && let Some(theta) = fields.positive("rope_theta")?
        {
            return Ok(theta);
        }
        Ok(text.positive("rope_theta")?.unwrap_or(family.theta))
    }

    fn scaling(&self, max_context: usize) -> Result<RopeScaling> {
        let Some(fields) = &self.fields else { return Ok(RopeScaling::None) };
        let key = if fields.get("rope_type").is_some() { "rope_type" } else { "type" };
        match fields.text(key)?.unwrap_or("default") {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: fields.required_positive("factor")? }),
            "llama3" => llama3(fields, self.original),
            "yarn" => yarn(fields, self.original.unwrap_or(max_context), max_context),
            other => Err(Error::unsupported("rope type", other, "default, linear, llama3, yarn")),
        }
    }

    /// At top level (`llama_4_scaling`), or inside the rotary parameters (`llama_4_scaling_beta`).
    fn query_scaling(&self, text: &Fields<'_>) -> Result<Option<QueryScaling>> {
        for holder in std::iter::once(text).chain(&self.fields) {
            let (beta, own) = match holder.object("llama_4_scaling")? {
                Some(nested) => (nested.float("beta")?, nested.count(ORIGINAL, MAX_CONTEXT)?),
                None => (holder.float("llama_4_scaling_beta")?, None),
            };
            let Some(beta) = beta else { continue };
            let Some(original_max_position) = own.or(self.original) else {
                let fields = self.fields.as_ref().unwrap_or(text);
                return Err(fields.bad(ORIGINAL, "a whole number above 0, as queries are scaled"));
            };
            return Ok(Some(QueryScaling { beta, original_max_position }));
        }
        Ok(None)
    }
}

/// Llama 3.1's interpolation (transformers `_compute_llama3_parameters`).
fn llama3(fields: &Fields<'_>, original: Option<usize>) -> Result<RopeScaling> {
    let low_freq_factor = fields.required_positive("low_freq_factor")?;
    let high_freq_factor = fields.required_positive("high_freq_factor")?;
    if high_freq_factor <= low_freq_factor {
        return Err(fields.bad("high_freq_factor", format!("more than low_freq_factor ({low_freq_factor})")));
    }
    Ok(RopeScaling::Llama3 {
        factor: fields.required_positive("factor")?,
        low_freq_factor,
        high_freq_factor,
        original_max_position: match original {
            Some(original) => original,
            None => fields.required(ORIGINAL, MAX_CONTEXT)?,
        },
    })
}

/// YaRN (transformers `_compute_yarn_parameters`): an explicit `attention_factor` wins; then the quotient of the two
/// `mscale`s if both are there and not zero; then `0.1 ln(factor) + 1`.
fn yarn(fields: &Fields<'_>, original_max_position: usize, max_context: usize) -> Result<RopeScaling> {
    if fields.flag("truncate")? == Some(false) {
        return Err(fields.bad("truncate", "true (the bounds of the ramp are whole numbers)"));
    }
    let factor = fields.positive("factor")?.unwrap_or(max_context as f32 / original_max_position as f32);
    let mscale = fields.float("mscale")?.unwrap_or(0.0);
    let mscale_all_dim = fields.float("mscale_all_dim")?.unwrap_or(0.0);
    let attention_factor = match fields.positive("attention_factor")? {
        Some(explicit) => explicit,
        None if fields.flag("apply_scale")? == Some(false) => 1.0,
        None if mscale != 0.0 && mscale_all_dim != 0.0 => {
            yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
        }
        None => yarn_mscale(factor, 1.0),
    };
    if !attention_factor.is_finite() || attention_factor <= 0.0 {
        return Err(fields.bad("mscale", "values that give a positive attention factor"));
    }
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position,
        beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
        beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
        attention_factor,
    })
}
