//! A call is cancelled at every place where it looks whether it was, one after the other: it ends there, and leaves everything as it was.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use crate::control::{CancelToken, Control};
use crate::engine::{Model, ModelOptions};
use crate::error::Error;
use crate::quant::Format;
use crate::session::{PREFILL_CHUNK, Session, SessionOptions};
use crate::testing::{TempFolder, write_random_gguf};

/// Blocks in GGUF, of two kinds of layers, with a window that passes cross.
fn write(folder: &Path) -> PathBuf {
    let moe = FeedForwardConfig::Moe { n_experts: 3, n_experts_per_tok: 2 };
    let config = ModelConfig {
        architecture: "llama".to_owned(),
        dim: 32,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
        hidden_dim: 64,
        vocab_size: 272,
        norm_eps: 1e-5,
        max_context: 1024,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: [None, Some(24)].map(|window| LayerConfig { window, feed_forward: moe }).to_vec(),
    };
    let path = folder.join("m.gguf");
    write_random_gguf(&path, &config, Format::Q4_0, 1).unwrap();
    path
}

fn temp() -> TempFolder {
    TempFolder::new_in(&std::env::temp_dir()).unwrap()
}

fn options() -> ModelOptions {
    ModelOptions { threads: Some(2), ..ModelOptions::default() }
}

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(600), ..SessionOptions::default() }).unwrap()
}

#[test]
fn loading_ends_wherever_it_is_cancelled() {
    let folder = temp();
    let path = write(folder.path());
    let mut looks = 0;
    loop {
        let token = CancelToken::cancelled_after(looks);
        match Model::open(&path, &options(), &mut Control::none().with_cancel(&token)) {
            Err(Error::Cancelled) => looks += 1,
            Err(error) => panic!("{error}"),
            Ok(_) => break,
        }
    }
    // The groups of rows of the large matrices, and not only the tensors, of which there are 30.
    assert!(looks > 60, "{looks}");
}

/// Some tokens are evaluated before, some more in two passes; what was cancelled is done again, and nothing can be told from it.
#[test]
fn a_pass_ends_wherever_it_is_cancelled_and_was_not_there() {
    let folder = temp();
    let model = Model::open(write(folder.path()), &options(), &mut Control::none()).unwrap();
    let ids: Vec<u32> = (0..PREFILL_CHUNK as u32 + 60).map(|i| 3 + i * 7 % 250).collect();
    let (before, after) = ids.split_at(30);
    let mut whole = session(&model);
    whole.prefill(before, &mut Control::none()).unwrap();
    let logits_before = whole.logits().to_vec();
    whole.prefill(after, &mut Control::none()).unwrap();

    let mut session = session(&model);
    let (mut looks, mut inside) = (0, 0);
    loop {
        session.reset();
        session.prefill(before, &mut Control::none()).unwrap();
        let token = CancelToken::cancelled_after(looks);
        let result = session.prefill(after, &mut Control::none().with_cancel(&token));
        if result.is_ok() {
            assert_eq!(session.logits(), whole.logits());
            break;
        }
        assert!(matches!(result, Err(Error::Cancelled)));
        // The first pass was there, or it was not.
        let kept = session.tokens().len();
        match kept - before.len() {
            0 => {
                inside += 1;
                assert_eq!(session.logits(), logits_before);
            }
            done => assert_eq!((done, session.logits()), (PREFILL_CHUNK, &[][..])),
        }
        session.prefill(&ids[kept..], &mut Control::none()).unwrap();
        assert_eq!(session.tokens(), ids);
        assert_eq!(session.logits(), whole.logits(), "cancelled after {looks} looks");
        // Every place at first, then some.
        looks += 1 + looks / 40;
    }
    // Far more places than layers.
    assert!(inside > 40 && looks > 100, "{inside} of {looks}");
}
