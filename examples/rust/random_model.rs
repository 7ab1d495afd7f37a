//! Writes a GGUF file of a known shape with random weights, to measure speed and memory on.
//!
//! `cargo run --release --example random_model -- 1b Q4_0 models/random-1b-Q4_0.gguf`; shapes: `1b`, `7b`, `thin` (the
//! layers of a 7B model and next to no work in them: what remains is what a layer costs by itself), with another number of layers `7b:4`; formats: those of GGUF, and `Q4_K_M`, llama.cpp's mixture of Q4_K and Q6_K.
#![allow(clippy::print_stdout, reason = "a program prints")]

use std::error::Error;
use std::path::Path;

use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::testing::write_random_gguf_with;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [shape, format, path] = words.as_slice() else {
        return Err("expected: SHAPE FORMAT PATH".into());
    };
    let (shape, layers) = shape.split_once(':').map_or((shape.as_str(), None), |(s, n)| (s, Some(n)));
    let mut config = match shape {
        "1b" => config(2048, 16, 16, 4, 7168),
        "7b" => config(4096, 32, 32, 8, 14336),
        "thin" => config(256, 32, 2, 1, 512),
        _ => return Err(format!("shape `{shape}`: expected 1b, 7b or thin").into()),
    };
    if let Some(layers) = layers {
        config.layers.truncate(layers.parse()?);
    }
    let layers = config.layers.len();
    let known = Format::all().find(|known| known.name() == format);
    match known {
        Some(known) => write_random_gguf_with(Path::new(path), &config, &|_| known, 1)?,
        None if format == "Q4_K_M" => {
            write_random_gguf_with(Path::new(path), &config, &|name| q4_k_m(name, layers), 1)?;
        }
        None => return Err(format!("unknown format `{format}`").into()),
    }
    println!("{path}: {:.0} MB", std::fs::metadata(path)?.len() as f64 / 1e6);
    Ok(())
}

/// The format of a matrix in llama.cpp's Q4_K_M (`llama_tensor_get_type`): the output, and the values and the last matrix of half of the layers, have more bits.
fn q4_k_m(name: &str, layers: usize) -> Format {
    let layer = name.split('.').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0);
    let more = layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
    let precise = name.ends_with("attn_v.weight") || name.ends_with("ffn_down.weight");
    if name == "output.weight" || (precise && more) { Format::Q6_K } else { Format::Q4_K }
}

/// The shape of Mistral 7B v0.3, or a smaller one like it.
fn config(dim: usize, n_layers: usize, n_heads: usize, n_kv_heads: usize, hidden_dim: usize) -> ModelConfig {
    let layer = LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense };
    ModelConfig {
        architecture: "llama".to_owned(),
        dim,
        n_heads,
        n_kv_heads,
        head_dim: 128,
        hidden_dim,
        vocab_size: 32768,
        norm_eps: 1e-5,
        max_context: 32768,
        rope: RopeConfig { theta: 1e6, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![layer; n_layers],
    }
}
