//! `params.json`, the configuration of Mistral's own files (keys as in mistral-inference's `args.py` and vLLM's
//! `transformers_utils/configs/mistral.py`).

use serde_json::Value;

use super::{
    Evidence, FeedForwardConfig, Fields, Heads, LayerConfig, MAX_CONTEXT, MAX_EXPERTS, MAX_HEAD_DIM,
    MAX_HEADS, MAX_HIDDEN, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH, ModelConfig, ParsedConfig, QueryScaling,
    RopeConfig, RopeScaling, repeat_windows, unsupported_model, yarn_mscale,
};
use crate::error::{Error, Result};

/// Context of files that do not give one, as in vLLM.
const DEFAULT_CONTEXT: usize = 128_000;

/// Parses the content of a `params.json`; `file` names it in errors.
pub fn parse(file: &str, value: &Value, evidence: Evidence) -> Result<ParsedConfig> {
    let root = Fields::root(file, value)?;
    refuse_other_families(&root)?;
    let dim = root.required("dim", MAX_WIDTH)?;
    let n_layers = root.required("n_layers", MAX_LAYERS)?;
    let n_heads = root.required("n_heads", MAX_HEADS)?;
    let n_kv_heads = root.count("n_kv_heads", MAX_HEADS)?.unwrap_or(n_heads);
    let head_dim = root.count("head_dim", MAX_HEAD_DIM)?;
    let keys = ["n_heads", "n_kv_heads", "head_dim"];
    let head_dim = Heads { file, keys, n_heads, n_kv_heads, head_dim, dim }.check()?;
    let windows = windows(&root, n_layers)?;
    let feed_forward = feed_forward(&root)?;
    let query_scaling = query_scaling(&root)?;
    let architecture = match (&feed_forward, &query_scaling) {
        (FeedForwardConfig::Moe { .. }, _) => "mixtral",
        (_, Some(_)) => "ministral3",
        _ => "mistral",
    };
    let model = ModelConfig {
        architecture: architecture.to_owned(),
        dim,
        n_heads,
        n_kv_heads,
        head_dim,
        hidden_dim: root.required("hidden_dim", MAX_HIDDEN)?,
        vocab_size: vocab_size(&root, evidence)?,
        norm_eps: root.required_positive("norm_eps")?,
        max_context: max_context(&root)?,
        rope: RopeConfig {
            theta: theta(&root)?,
            style: evidence.rope_style,
            scaling: yarn(&root)?.unwrap_or(RopeScaling::None),
        },
        query_scaling,
        tied_embeddings: !evidence.has_output,
        layers: windows.into_iter().map(|window| LayerConfig { window, feed_forward }).collect(),
    };
    let has_vision = root.get("vision_encoder").is_some() || root.get("multimodal").is_some();
    Ok(ParsedConfig { model, has_vision, fp8_block: None })
}

fn refuse_other_families(root: &Fields<'_>) -> Result<()> {
    if let Some(model_type) = root.text("model_type")?
        && !matches!(model_type, "transformer" | "mistral" | "mixtral" | "ministral3")
    {
        return Err(unsupported_model(format!("params.json of model_type `{model_type}`")));
    }
    if ["q_lora_rank", "kv_lora_rank"].iter().any(|key| root.get(key).is_some()) {
        return Err(unsupported_model("params.json with multi-head latent attention (kv_lora_rank)"));
    }
    let multimodal = root.object("multimodal")?;
    if multimodal.is_some_and(|args| args.get("whisper_model_args").is_some()) {
        return Err(unsupported_model("params.json of Voxtral (multimodal.whisper_model_args: audio)"));
    }
    if root.get("lora").is_some() {
        return Err(unsupported_model("params.json with LoRA adapters (lora)"));
    }
    if let Some(activation) = root.text("activation")?
        && activation != "silu"
    {
        return Err(Error::unsupported("activation", activation, "silu"));
    }
    if let Some(quantization) = root.object("quantization")? {
        let format = quantization.text("qformat_weight")?.unwrap_or("unnamed");
        if format != "fp8_e4m3" {
            return Err(Error::unsupported("quantization.qformat_weight", format, "fp8_e4m3"));
        }
    }
    Ok(())
}

/// Absent or -1 in some files: then the embedding table tells.
fn vocab_size(root: &Fields<'_>, evidence: Evidence) -> Result<usize> {
    let unset = root.get("vocab_size").is_none_or(|value| value.as_i64() == Some(-1));
    match evidence.vocab_size {
        Some(rows) if unset => Ok(rows),
        _ => root.required("vocab_size", MAX_VOCAB),
    }
}

fn max_context(root: &Fields<'_>) -> Result<usize> {
    let declared = match root.count("max_position_embeddings", MAX_CONTEXT)? {
        Some(context) => Some(context),
        None => root.count("max_seq_len", MAX_CONTEXT)?,
    };
    Ok(declared.unwrap_or(DEFAULT_CONTEXT))
}

/// Absent: 10^4 with a sliding window (Mistral 7B v0.1), else 10^6.
fn theta(root: &Fields<'_>) -> Result<f32> {
    let windowed = ["sliding_window", "_sliding_window"].iter().any(|key| root.get(key).is_some());
    Ok(root.positive("rope_theta")?.unwrap_or(if windowed { 1e4 } else { 1e6 }))
}

/// `sliding_window`, or `_sliding_window` where published files hide it: a number for all layers or a list to repeat.
fn windows(root: &Fields<'_>, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let key = if root.get("sliding_window").is_some() { "sliding_window" } else { "_sliding_window" };
    match root.get(key) {
        Some(Value::Array(list)) => repeat_windows(root, key, list, n_layers),
        _ => Ok(vec![root.count(key, MAX_CONTEXT)?; n_layers]),
    }
}

/// `moe` of Mixtral has two keys; more belong to models with shared or latent experts.
fn feed_forward(root: &Fields<'_>) -> Result<FeedForwardConfig> {
    let Some(moe) = root.object("moe")? else { return Ok(FeedForwardConfig::Dense) };
    let is_mixtral = |key: &str| matches!(key, "num_experts" | "num_experts_per_tok");
    if let Some(other) = moe.keys().find(|key| !is_mixtral(key) && moe.get(key).is_some()) {
        return Err(unsupported_model(format!(
            "params.json with a mixture of experts beyond Mixtral (moe.{other})"
        )));
    }
    let n_experts = moe.required("num_experts", MAX_EXPERTS)?;
    let n_experts_per_tok = moe.required("num_experts_per_tok", n_experts)?;
    Ok(FeedForwardConfig::Moe { n_experts, n_experts_per_tok })
}

/// `apply_scale: false` keeps the magnitude; true or absent multiplies it by `0.1 ln(factor) + 1`.
fn yarn(root: &Fields<'_>) -> Result<Option<RopeScaling>> {
    let Some(yarn) = root.object("yarn")? else { return Ok(None) };
    let factor = yarn.required_positive("factor")?;
    let apply_scale = yarn.flag("apply_scale")?.unwrap_or(true);
    Ok(Some(RopeScaling::Yarn {
        factor,
        original_max_position: yarn.required("original_max_position_embeddings", MAX_CONTEXT)?,
        beta_fast: yarn.positive("beta")?.unwrap_or(32.0),
        beta_slow: yarn.positive("alpha")?.unwrap_or(1.0),
        attention_factor: if apply_scale { yarn_mscale(factor, 1.0) } else { 1.0 },
    }))
}

fn query_scaling(root: &Fields<'_>) -> Result<Option<QueryScaling>> {
    let Some(scaling) = root.object("llama_4_scaling")? else { return Ok(None) };
    Ok(Some(QueryScaling {
        beta: scaling.float("beta")?.ok_or_else(|| scaling.bad("beta", "a finite number"))?,
        original_max_position: scaling.required("original_max_position_embeddings", MAX_CONTEXT)?,
    }))
}
