//! The names of tensors: canonical (Mistral's own) ones, and what Hugging Face files and GGUF call the same tensors.

use super::catalog::Catalog;
use crate::config::RopeStyle;

/// A tensor of the text model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Embedding,
    FinalNorm,
    Output,
    Layer(usize, LayerRole),
}

/// A tensor of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerRole {
    AttentionNorm,
    FfnNorm,
    Wq,
    Wk,
    Wv,
    Wo,
    FeedForward(Projection),
    Router,
    Expert(usize, Projection),
}

/// A matrix of SwiGLU: `w2(silu(w1 x) * w3 x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Projection {
    /// Gate.
    W1,
    /// Down.
    W2,
    /// Up.
    W3,
}

/// Where in a file a tensor may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub name: String,
    pub part: Part,
}

/// Which part of a tensor of a file is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    /// Matrix `index` of `[n_experts, rows, columns]`.
    Expert {
        index: usize,
    },
    /// Half of the rows of matrix `index` of `[n_experts, 2 * rows, columns]`: gate first, then up.
    ExpertHalf {
        index: usize,
        half: usize,
    },
}

/// How the files of a checkpoint name their tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    /// Hugging Face, with what stands before `layers.N` and before `lm_head`.
    HuggingFace {
        prefix: &'static str,
    },
    Native,
    Gguf,
}

/// What Hugging Face files put before `layers.N`; the empty one, which fits everything, last.
const HF_PREFIXES: [&str; 4] = ["language_model.model.", "model.language_model.", "model.", ""];

impl Role {
    /// Mistral's own name.
    pub fn canonical(self) -> String {
        match self {
            Self::Embedding => "tok_embeddings.weight".to_owned(),
            Self::FinalNorm => "norm.weight".to_owned(),
            Self::Output => "output.weight".to_owned(),
            Self::Layer(layer, role) => format!("layers.{layer}.{}.weight", role.canonical()),
        }
    }
}

impl LayerRole {
    fn canonical(self) -> String {
        match self {
            Self::AttentionNorm => "attention_norm".to_owned(),
            Self::FfnNorm => "ffn_norm".to_owned(),
            Self::Wq => "attention.wq".to_owned(),
            Self::Wk => "attention.wk".to_owned(),
            Self::Wv => "attention.wv".to_owned(),
            Self::Wo => "attention.wo".to_owned(),
            Self::FeedForward(projection) => format!("feed_forward.{}", projection.native()),
            Self::Router => "feed_forward.gate".to_owned(),
            Self::Expert(expert, projection) => {
                format!("feed_forward.experts.{expert}.{}", projection.native())
            }
        }
    }
}

impl Projection {
    fn native(self) -> &'static str {
        match self {
            Self::W1 => "w1",
            Self::W2 => "w2",
            Self::W3 => "w3",
        }
    }

    /// Hugging Face appends `_proj`, GGUF prepends `ffn_`.
    fn described(self) -> &'static str {
        match self {
            Self::W1 => "gate",
            Self::W2 => "down",
            Self::W3 => "up",
        }
    }
}

impl Naming {
    /// The naming of safetensors files, read off their tensors.
    pub fn detect(catalog: &Catalog) -> Self {
        let names = || catalog.tensors.keys();
        let is_native = |name: &String| {
            name == "tok_embeddings.weight" || (name.starts_with("layers.") && name.contains(".attention.w"))
        };
        if names().any(is_native) {
            return Self::Native;
        }
        let fits = |prefix: &&&str| {
            names().any(|name| {
                let rest = name.strip_prefix(**prefix);
                rest.is_some_and(|rest| rest.starts_with("layers.") || rest.starts_with("embed_tokens."))
            })
        };
        // Without a tensor to tell by, the usual prefix makes the error about what is missing readable.
        Self::HuggingFace { prefix: HF_PREFIXES.iter().find(fits).copied().unwrap_or("model.") }
    }

    /// The rotary layout of files with these names.
    pub fn rope_style(self) -> RopeStyle {
        match self {
            Self::HuggingFace { .. } => RopeStyle::HalfSplit,
            // Converters permute the rows of q and k of Hugging Face files, so GGUF is as Mistral's own files.
            Self::Native | Self::Gguf => RopeStyle::Interleaved,
        }
    }

    /// Where a tensor may stand, the usual place first. Never empty.
    pub fn sources(self, role: Role) -> Vec<Source> {
        match self {
            Self::HuggingFace { prefix } => hugging_face(prefix, role),
            Self::Native => vec![whole(role.canonical())],
            Self::Gguf => gguf(role),
        }
    }
}

fn whole(name: String) -> Source {
    Source { name, part: Part::Whole }
}

fn hugging_face(prefix: &str, role: Role) -> Vec<Source> {
    let (layer, role) = match role {
        Role::Embedding => return vec![whole(format!("{prefix}embed_tokens.weight"))],
        Role::FinalNorm => return vec![whole(format!("{prefix}norm.weight"))],
        Role::Output => {
            let names = ["lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight"];
            return names.into_iter().map(|name| whole(name.to_owned())).collect();
        }
        Role::Layer(layer, role) => (format!("{prefix}layers.{layer}."), role),
    };
    let one = |name: &str| vec![whole(format!("{layer}{name}.weight"))];
    match role {
        LayerRole::AttentionNorm => one("input_layernorm"),
        LayerRole::FfnNorm => one("post_attention_layernorm"),
        LayerRole::Wq => one("self_attn.q_proj"),
        LayerRole::Wk => one("self_attn.k_proj"),
        LayerRole::Wv => one("self_attn.v_proj"),
        LayerRole::Wo => one("self_attn.o_proj"),
        LayerRole::FeedForward(projection) => one(&format!("mlp.{}_proj", projection.described())),
        LayerRole::Router => [one("block_sparse_moe.gate"), one("mlp.gate")].concat(),
        LayerRole::Expert(index, projection) => {
            let (native, described) = (projection.native(), projection.described());
            let mut sources = one(&format!("block_sparse_moe.experts.{index}.{native}"));
            sources.extend(one(&format!("mlp.experts.{index}.{described}_proj")));
            let (name, part) = match projection {
                Projection::W1 => ("gate_up_proj", Part::ExpertHalf { index, half: 0 }),
                Projection::W3 => ("gate_up_proj", Part::ExpertHalf { index, half: 1 }),
                Projection::W2 => ("down_proj", Part::Expert { index }),
            };
            for block in ["mlp", "block_sparse_moe"] {
                sources.push(Source { name: format!("{layer}{block}.experts.{name}"), part });
            }
            sources
        }
    }
}

fn gguf(role: Role) -> Vec<Source> {
    let (layer, role) = match role {
        Role::Embedding => return vec![whole("token_embd.weight".to_owned())],
        Role::FinalNorm => return vec![whole("output_norm.weight".to_owned())],
        Role::Output => return vec![whole("output.weight".to_owned())],
        Role::Layer(layer, role) => (format!("blk.{layer}."), role),
    };
    let one = |name: &str| vec![whole(format!("{layer}{name}.weight"))];
    match role {
        LayerRole::AttentionNorm => one("attn_norm"),
        LayerRole::FfnNorm => one("ffn_norm"),
        LayerRole::Wq => one("attn_q"),
        LayerRole::Wk => one("attn_k"),
        LayerRole::Wv => one("attn_v"),
        LayerRole::Wo => one("attn_output"),
        LayerRole::FeedForward(projection) => one(&format!("ffn_{}", projection.described())),
        LayerRole::Router => one("ffn_gate_inp"),
        LayerRole::Expert(index, projection) => {
            let name = projection.described();
            // Early files have a tensor for each expert.
            let stacked =
                Source { name: format!("{layer}ffn_{name}_exps.weight"), part: Part::Expert { index } };
            vec![stacked, whole(format!("{layer}ffn_{name}.{index}.weight"))]
        }
    }
}

/// Whether a tensor that the text model does not use may stand in a file all the same.
pub(crate) fn may_be_skipped(name: &str, has_vision: bool) -> bool {
    // Rotary frequencies that old exporters wrote out; they follow from the configuration.
    let is_frequency = name.ends_with("rotary_emb.inv_freq")
        || name == "rope.freqs"
        || name.ends_with(".attn_rot_embd.weight");
    // Scales for activations and for the cache in 8 bits; both are kept in floating point here.
    let suffixes = [
        ".activation_scale",
        ".input_scale",
        ".output_scale",
        ".qscale_act",
        ".k_scale",
        ".v_scale",
        ".kv_scale",
    ];
    is_frequency || suffixes.iter().any(|suffix| name.ends_with(suffix)) || (has_vision && is_vision(name))
}

fn is_vision(name: &str) -> bool {
    const PARTS: [&str; 8] = [
        "vision_tower.",
        "vision_model.",
        "vision_encoder.",
        "multi_modal_projector.",
        "vision_language_adapter.",
        "patch_merger.",
        "pre_mm_projector_norm.",
        "mm_",
    ];
    let name = name.strip_prefix("model.").unwrap_or(name);
    PARTS.iter().any(|part| name.starts_with(part))
}
