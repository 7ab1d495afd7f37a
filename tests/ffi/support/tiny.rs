//! A tiny model with a tokenizer.

use std::path::Path;

use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::testing::{GgufValue, Model};

/// Writes a random model of two layers with a tokenizer of bytes (GPT-2's letters for them, two merges, and
/// `<s>`, `</s>`), and a chat template. The tokens of a text are its bytes in the order of GPT-2, but `he`
/// and `ll`.
pub fn write_tiny_model(path: &Path) {
    write_tiny_model_of(path, 2, 512);
}

/// The same of so many layers, for contexts of so many tokens.
pub fn write_tiny_model_of(path: &Path, layers: usize, max_context: usize) {
    let config = ModelConfig {
        architecture: "llama".to_owned(),
        dim: 32,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 8,
        hidden_dim: 64,
        vocab_size: 260,
        norm_eps: 1e-5,
        max_context,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; layers],
    };
    let mut file = Model::random(&config, Format::F32, 1).gguf();
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    tokens.extend(["he", "ll", "<s>", "</s>"].map(str::to_owned));
    let mut kinds = vec![1; 258];
    kinds.extend([3, 3]);
    for (key, value) in [
        ("model", GgufValue::text("gpt2")),
        ("pre", GgufValue::text("gpt-2")),
        ("tokens", GgufValue::Texts(tokens)),
        ("token_type", GgufValue::I32s(kinds)),
        ("merges", GgufValue::Texts(vec!["h e".to_owned(), "l l".to_owned()])),
        ("bos_token_id", GgufValue::U32(258)),
        ("eos_token_id", GgufValue::U32(259)),
        ("add_bos_token", GgufValue::Bool(true)),
    ] {
        file.set(&format!("tokenizer.ggml.{key}"), value);
    }
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    file.set("tokenizer.chat_template", GgufValue::text(template));
    file.write(path).expect("the model can be written");
}

/// The letter that stands for a byte in GPT-2's vocabularies.
fn letter(byte: u8) -> char {
    let shown = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if shown(byte) {
        return char::from(byte);
    }
    let hidden_before = (0..byte).filter(|&b| !shown(b)).count() as u32;
    char::from_u32(256 + hidden_before).expect("these are letters")
}
