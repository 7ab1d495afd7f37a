//! Models written by `testing`, opened, compared; and everything that can be wrong with them.

mod damage;
mod folders;
mod formats;

use std::path::{Path, PathBuf};

use super::*;
use crate::config::{FeedForwardConfig, LayerConfig, QueryScaling, RopeConfig, RopeScaling, RopeStyle};
use crate::testing::{Model, TempFolder};

/// A folder for one test.
fn temp() -> TempFolder {
    TempFolder::new_in(&std::env::temp_dir()).unwrap()
}

/// Opens without progress or cancellation.
fn open_quietly(path: &Path) -> Result<Checkpoint> {
    open(path, &mut Control::none())
}

/// The message of the error that opening must give.
fn refusal(path: &Path) -> String {
    match open_quietly(path) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    }
}

/// A dense model so small that every byte of it can be damaged.
fn tiny() -> ModelConfig {
    ModelConfig {
        architecture: "mistral".to_owned(),
        dim: 8,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 4,
        hidden_dim: 12,
        vocab_size: 16,
        norm_eps: 1e-5,
        max_context: 64,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::HalfSplit, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 2],
    }
}

fn tiny_mixtral() -> ModelConfig {
    let feed_forward = FeedForwardConfig::Moe { n_experts: 3, n_experts_per_tok: 2 };
    ModelConfig {
        architecture: "mixtral".to_owned(),
        layers: vec![LayerConfig { window: None, feed_forward }; 2],
        ..tiny()
    }
}

fn tiny_ministral3() -> ModelConfig {
    let scaling = RopeScaling::Yarn {
        factor: 16.0,
        original_max_position: 4,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: 1.0,
    };
    ModelConfig {
        architecture: "ministral3".to_owned(),
        rope: RopeConfig { theta: 1e6, style: RopeStyle::HalfSplit, scaling },
        query_scaling: Some(QueryScaling { beta: 0.1, original_max_position: 4 }),
        tied_embeddings: true,
        ..tiny()
    }
}

fn tiny_windows() -> ModelConfig {
    let mut config = tiny();
    config.architecture = "ministral".to_owned();
    config.layers = [None, Some(8), Some(8), Some(8)]
        .map(|window| LayerConfig { window, feed_forward: FeedForwardConfig::Dense })
        .to_vec();
    config
}

/// Writes `model` with Hugging Face names and returns the path of its weights.
fn write_hf(model: &Model, folder: &Path) -> PathBuf {
    model.write_hugging_face(folder).unwrap();
    folder.join("model.safetensors")
}
