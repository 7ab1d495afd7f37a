//! A whole model in memory under canonical names, and the three ways to write it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use super::containers::{GgufFile, GgufValue, TensorData, safetensors_bytes};
use super::random::Random;
use crate::config::{FeedForwardConfig, ModelConfig, QueryScaling, RopeScaling, RopeStyle};
use crate::error::{Error, Result};
use crate::quant::Format;
use crate::weights::Checkpoint;

/// A model whose tensors have canonical names and the rotary layout of `config.rope.style`. FP8 is not supported.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Its shape.
    pub config: ModelConfig,
    /// Its tensors, sorted by name.
    pub tensors: Vec<TensorData>,
}

impl Model {
    /// Random weights: matrices in `format`, norms near 1 in f32.
    pub fn random(config: &ModelConfig, format: Format, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut tensors = Vec::new();
        for (name, shape) in tensor_shapes(config) {
            let format = if shape.len() == 1 { Format::F32 } else { format };
            tensors.push(random.tensor(&name, format, &shape));
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Self { config: config.clone(), tensors }
    }

    /// A copy of an open checkpoint.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let mut tensors = Vec::new();
        for (name, shape, format) in checkpoint.names() {
            let view = checkpoint.tensor(name, shape)?;
            if view.scale.is_some() {
                return Err(Error::unsupported(
                    "tensor type in a copy",
                    format.name(),
                    "types without scales",
                ));
            }
            tensors.push(TensorData {
                name: name.to_owned(),
                format,
                shape: shape.to_vec(),
                bytes: view.bytes.to_vec(),
            });
        }
        Ok(Self { config: checkpoint.config.clone(), tensors })
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn write_hugging_face(&self, folder: &Path) -> io::Result<()> {
        let tensors: Vec<_> =
            self.in_style(RopeStyle::HalfSplit).map(|t| t.named(hugging_face_name(&t.name))).collect();
        std::fs::write(folder.join("model.safetensors"), safetensors_bytes(&tensors))?;
        std::fs::write(folder.join("config.json"), config_json(&self.config).to_string())
    }

    /// Writes `params.json` and `consolidated.safetensors`.
    pub fn write_native(&self, folder: &Path) -> io::Result<()> {
        let tensors: Vec<_> = self.in_style(RopeStyle::Interleaved).collect();
        std::fs::write(folder.join("consolidated.safetensors"), safetensors_bytes(&tensors))?;
        std::fs::write(folder.join("params.json"), params_json(&self.config).to_string())
    }

    /// The model as GGUF, experts stacked.
    pub fn gguf(&self) -> GgufFile {
        let mut stacked: BTreeMap<String, TensorData> = BTreeMap::new();
        let mut tensors = Vec::new();
        let by_name: BTreeMap<String, TensorData> =
            self.in_style(RopeStyle::Interleaved).map(|t| (t.name.clone(), t)).collect();
        for name in tensor_shapes(&self.config).into_iter().map(|(name, _)| name) {
            let Some(tensor) = by_name.get(&name) else { continue };
            let gguf_name = gguf_name(&name);
            if !name.contains(".experts.") {
                tensors.push(tensor.named(gguf_name));
                continue;
            }
            // tensor_shapes lists experts in order.
            let whole = stacked.entry(gguf_name.clone()).or_insert_with(|| TensorData {
                shape: [&[0], tensor.shape.as_slice()].concat(),
                bytes: Vec::new(),
                ..tensor.named(gguf_name)
            });
            whole.shape[0] += 1;
            whole.bytes.extend_from_slice(&tensor.bytes);
        }
        tensors.extend(stacked.into_values());
        GgufFile { entries: gguf_entries(&self.config), tensors }
    }

    /// The tensors with the rows of q and k in the order of `style`.
    fn in_style(&self, style: RopeStyle) -> impl Iterator<Item = TensorData> {
        let head_dim = self.config.head_dim;
        let same = style == self.config.rope.style;
        self.tensors.iter().map(move |tensor| {
            let is_rotated =
                tensor.name.ends_with("attention.wq.weight") || tensor.name.ends_with("attention.wk.weight");
            if same || !is_rotated { tensor.clone() } else { reorder_heads(tensor, head_dim, style) }
        })
    }
}

/// Moves the rows of each head: component c of pair i is row `2i + c` interleaved and row `c * head_dim / 2 + i` split.
fn reorder_heads(tensor: &TensorData, head_dim: usize, to: RopeStyle) -> TensorData {
    let row_bytes = tensor.bytes.len() / tensor.shape[0];
    let rows: Vec<&[u8]> = tensor.bytes.chunks_exact(row_bytes).collect();
    let source = |row: usize| {
        let (head, row) = (row / head_dim * head_dim, row % head_dim);
        head + match to {
            RopeStyle::Interleaved => (row % 2) * head_dim / 2 + row / 2,
            RopeStyle::HalfSplit => (row % (head_dim / 2)) * 2 + row / (head_dim / 2),
        }
    };
    let bytes = (0..rows.len()).flat_map(|row| rows[source(row)].iter().copied()).collect();
    TensorData { bytes, ..tensor.clone() }
}

/// The canonical name and the shape of every tensor of a model, in the order of the layers.
pub fn tensor_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (dim, hidden) = (config.dim, config.hidden_dim);
    let (q, kv) = (config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim);
    let mut all = vec![("tok_embeddings.weight".to_owned(), vec![config.vocab_size, dim])];
    for (number, layer) in config.layers.iter().enumerate() {
        let mut add = |name: String, shape: &[usize]| {
            all.push((format!("layers.{number}.{name}.weight"), shape.to_vec()))
        };
        add("attention_norm".to_owned(), &[dim]);
        for (name, shape) in [("wq", [q, dim]), ("wk", [kv, dim]), ("wv", [kv, dim]), ("wo", [dim, q])] {
            add(format!("attention.{name}"), &shape);
        }
        add("ffn_norm".to_owned(), &[dim]);
        let blocks = match layer.feed_forward {
            FeedForwardConfig::Dense => vec!["feed_forward".to_owned()],
            FeedForwardConfig::Moe { n_experts, .. } => {
                add("feed_forward.gate".to_owned(), &[n_experts, dim]);
                (0..n_experts).map(|expert| format!("feed_forward.experts.{expert}")).collect()
            }
        };
        for block in blocks {
            for (name, shape) in [("w1", [hidden, dim]), ("w2", [dim, hidden]), ("w3", [hidden, dim])] {
                add(format!("{block}.{name}"), &shape);
            }
        }
    }
    all.push(("norm.weight".to_owned(), vec![dim]));
    if !config.tied_embeddings {
        all.push(("output.weight".to_owned(), vec![config.vocab_size, dim]));
    }
    all
}

fn hugging_face_name(canonical: &str) -> String {
    match canonical {
        "tok_embeddings.weight" => return "model.embed_tokens.weight".to_owned(),
        "output.weight" => return "lm_head.weight".to_owned(),
        _ => {}
    }
    let mut name = format!("model.{canonical}");
    for (from, to) in [
        ("attention_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attention.wq", "self_attn.q_proj"),
        ("attention.wk", "self_attn.k_proj"),
        ("attention.wv", "self_attn.v_proj"),
        ("attention.wo", "self_attn.o_proj"),
        ("feed_forward.w1", "mlp.gate_proj"),
        ("feed_forward.w2", "mlp.down_proj"),
        ("feed_forward.w3", "mlp.up_proj"),
        ("feed_forward.", "block_sparse_moe."),
    ] {
        name = name.replace(from, to);
    }
    name
}

/// The experts of a layer share a name.
pub(super) fn gguf_name(canonical: &str) -> String {
    match canonical {
        "tok_embeddings.weight" => return "token_embd.weight".to_owned(),
        "norm.weight" => return "output_norm.weight".to_owned(),
        "output.weight" => return canonical.to_owned(),
        _ => {}
    }
    if let Some((layer, expert)) = canonical.split_once("feed_forward.experts.") {
        let kind = match expert.trim_end_matches(".weight").rsplit('.').next() {
            Some("w1") => "gate",
            Some("w2") => "down",
            _ => "up",
        };
        return format!("{}ffn_{kind}_exps.weight", layer.replacen("layers.", "blk.", 1));
    }
    let mut name = canonical.replacen("layers.", "blk.", 1);
    for (from, to) in [
        ("attention_norm", "attn_norm"),
        ("attention.wq", "attn_q"),
        ("attention.wk", "attn_k"),
        ("attention.wv", "attn_v"),
        ("attention.wo", "attn_output"),
        ("feed_forward.w1", "ffn_gate"),
        ("feed_forward.w2", "ffn_down"),
        ("feed_forward.w3", "ffn_up"),
        ("feed_forward.gate", "ffn_gate_inp"),
    ] {
        name = name.replace(from, to);
    }
    name
}

fn moe(config: &ModelConfig) -> Option<(usize, usize)> {
    match config.layers.first()?.feed_forward {
        FeedForwardConfig::Moe { n_experts, n_experts_per_tok } => Some((n_experts, n_experts_per_tok)),
        FeedForwardConfig::Dense => None,
    }
}

/// The windows of the layers as `params.json` has them: one number, or a list where they differ.
fn windows(config: &ModelConfig) -> Value {
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
    if has_mixed_windows(config) { json!(windows) } else { json!(windows[0]) }
}

fn has_mixed_windows(config: &ModelConfig) -> bool {
    config.layers.iter().any(|layer| layer.window != config.layers[0].window)
}

/// A `config.json` for a model.
pub fn config_json(config: &ModelConfig) -> Value {
    let class = match (moe(config), config.query_scaling) {
        (Some(_), _) => ("MixtralForCausalLM", "mixtral"),
        (None, Some(_)) => ("Ministral3ForCausalLM", "ministral3"),
        (None, None) if has_mixed_windows(config) => ("MinistralForCausalLM", "ministral"),
        (None, None) => ("MistralForCausalLM", "mistral"),
    };
    let mut rope = match &config.rope.scaling {
        RopeScaling::None => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor, "original_max_position_embeddings": original_max_position,
        }),
        RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, attention_factor } => {
            json!({
                "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original_max_position,
                "beta_fast": beta_fast, "beta_slow": beta_slow, "attention_factor": attention_factor,
            })
        }
        RopeScaling::Factors(_) => panic!("config.json has no way to write rotary factors"),
    };
    rope["rope_theta"] = json!(config.rope.theta);
    if let Some(QueryScaling { beta, original_max_position }) = config.query_scaling {
        rope["llama_4_scaling_beta"] = json!(beta);
        rope["original_max_position_embeddings"] = json!(original_max_position);
    }
    let mut json = json!({
        "architectures": [class.0], "model_type": class.1, "hidden_act": "silu",
        "hidden_size": config.dim, "num_hidden_layers": config.layers.len(), "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads, "head_dim": config.head_dim, "intermediate_size": config.hidden_dim,
        "vocab_size": config.vocab_size, "rms_norm_eps": config.norm_eps, "max_position_embeddings": config.max_context,
        "sliding_window": config.layers.iter().find_map(|layer| layer.window), "rope_parameters": rope, "tie_word_embeddings": config.tied_embeddings,
    });
    if let Some((n_experts, n_experts_per_tok)) = moe(config) {
        json["num_local_experts"] = json!(n_experts);
        json["num_experts_per_tok"] = json!(n_experts_per_tok);
    }
    if has_mixed_windows(config) {
        let layer_type =
            |window: Option<usize>| if window.is_some() { "sliding_attention" } else { "full_attention" };
        json["layer_types"] = config.layers.iter().map(|layer| layer_type(layer.window)).collect();
    }
    json
}

/// A `params.json` for a model. Of the rotary scalings it can hold only YaRN.
pub fn params_json(config: &ModelConfig) -> Value {
    let mut json = json!({
        "dim": config.dim, "n_layers": config.layers.len(), "head_dim": config.head_dim, "hidden_dim": config.hidden_dim,
        "n_heads": config.n_heads, "n_kv_heads": config.n_kv_heads, "norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size, "rope_theta": config.rope.theta, "max_position_embeddings": config.max_context,
        "tied_embeddings": config.tied_embeddings, "sliding_window": windows(config),
    });
    match &config.rope.scaling {
        RopeScaling::None => {}
        RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, attention_factor } => {
            json["yarn"] = json!({
                "factor": factor, "original_max_position_embeddings": original_max_position, "beta": beta_fast,
                "alpha": beta_slow, "apply_scale": *attention_factor != 1.0,
            });
        }
        other => panic!("params.json has no way to write {other:?}"),
    }
    if let Some(QueryScaling { beta, original_max_position }) = config.query_scaling {
        json["llama_4_scaling"] =
            json!({"beta": beta, "original_max_position_embeddings": original_max_position});
    }
    if let Some((n_experts, n_experts_per_tok)) = moe(config) {
        json["moe"] = json!({"num_experts": n_experts, "num_experts_per_tok": n_experts_per_tok});
    }
    json
}

/// The metadata of a GGUF model, without a vocabulary. Rotary factors are a tensor, which the caller adds.
pub(super) fn gguf_entries(config: &ModelConfig) -> Vec<(String, GgufValue)> {
    let arch = if config.query_scaling.is_some() { "mistral3" } else { "llama" };
    let mut file = GgufFile::default();
    file.set("general.architecture", GgufValue::text(arch));
    let mut set = |key: &str, value: GgufValue| file.set(&format!("{arch}.{key}"), value);
    let count = |n: usize| GgufValue::U32(n as u32);
    set("block_count", count(config.layers.len()));
    set("context_length", count(config.max_context));
    set("embedding_length", count(config.dim));
    set("feed_forward_length", count(config.hidden_dim));
    set("attention.head_count", count(config.n_heads));
    set("attention.head_count_kv", count(config.n_kv_heads));
    set("attention.key_length", count(config.head_dim));
    set("attention.value_length", count(config.head_dim));
    set("attention.layer_norm_rms_epsilon", GgufValue::F32(config.norm_eps));
    set("rope.dimension_count", count(config.head_dim));
    set("rope.freq_base", GgufValue::F32(config.rope.theta));
    set("vocab_size", count(config.vocab_size));
    if let Some((n_experts, n_experts_per_tok)) = moe(config) {
        set("expert_count", count(n_experts));
        set("expert_used_count", count(n_experts_per_tok));
    }
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
    if let Some(window) = windows.iter().flatten().next() {
        set("attention.sliding_window", count(*window));
        if windows.contains(&None) {
            set(
                "attention.sliding_window_pattern",
                GgufValue::Bools(windows.iter().map(Option::is_some).collect()),
            );
        }
    }
    match &config.rope.scaling {
        RopeScaling::None | RopeScaling::Factors(_) => {}
        RopeScaling::Linear { factor } => {
            set("rope.scaling.type", GgufValue::text("linear"));
            set("rope.scaling.factor", GgufValue::F32(*factor));
        }
        RopeScaling::Yarn { factor, original_max_position, beta_fast, beta_slow, attention_factor } => {
            set("rope.scaling.type", GgufValue::text("yarn"));
            set("rope.scaling.factor", GgufValue::F32(*factor));
            set("rope.scaling.original_context_length", count(*original_max_position));
            set("rope.scaling.yarn_beta_fast", GgufValue::F32(*beta_fast));
            set("rope.scaling.yarn_beta_slow", GgufValue::F32(*beta_slow));
            set("rope.scaling.yarn_attn_factor", GgufValue::F32(*attention_factor));
        }
        RopeScaling::Llama3 { .. } => panic!("GGUF writes Llama 3's scaling as the tensor rope_freqs.weight"),
    }
    if let Some(QueryScaling { beta, original_max_position }) = config.query_scaling {
        set("attention.temperature_scale", GgufValue::F32(beta));
        set("attention.temperature_length", count(original_max_position));
    }
    file.entries
}
