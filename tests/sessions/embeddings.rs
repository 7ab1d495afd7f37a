//! Embeddings against the logits of the same states, and each other.

use std::sync::Arc;

use mistral_core::session::PREFILL_CHUNK;
use mistral_core::{CancelToken, Control, EmbedOptions, Error, Model, ModelOptions, Pooling, weights};

use crate::support::{fixture, max_diff};
use crate::{fresh, ids, limit_of, model, open};

/// The output layer turns the state of the last token into the logits, which `tests/oracles.rs` holds against the reference: so the state is the
/// reference's too.
#[test]
fn an_embedding_is_the_hidden_state() {
    for case in ["dense_swa", "mixtral", "ministral3_yarn"] {
        let path = fixture("models").join(case);
        let checkpoint = weights::open(&path, &mut Control::none()).unwrap();
        let (model, ids) = (model(case), ids(40));
        let config = &model.weights().unwrap().config;
        let name = if config.tied_embeddings { "tok_embeddings.weight" } else { "output.weight" };
        let view = checkpoint.tensor(name, &[config.vocab_size, config.dim]).unwrap();
        let mut output = vec![0.0; config.vocab_size * config.dim];
        view.format.dequantize(view.bytes, &mut output).unwrap();
        let options = EmbedOptions { pooling: Pooling::Last, normalize: false };
        let state = model.embed(&ids, &options, &mut Control::none()).unwrap();
        let row = |row: &[f32]| {
            row.iter().zip(&state).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>() as f32
        };
        let logits: Vec<f32> = output.chunks_exact(config.dim).map(row).collect();
        // The same products in another order.
        let diff = max_diff(&logits, &fresh(&model, &ids));
        assert!(diff <= 1e-5, "{case}: {diff:e}");
    }
}

#[test]
fn embeddings_are_pooled_and_normalised() {
    let (model, ids) = (model("ministral_iswa"), ids(PREFILL_CHUNK + 20));
    let embed = |ids: &[u32], pooling, normalize| {
        model.embed(ids, &EmbedOptions { pooling, normalize }, &mut Control::none()).unwrap()
    };
    let states: Vec<Vec<f32>> =
        (1..=ids.len()).map(|count| embed(&ids[..count], Pooling::Last, false)).collect();
    for count in [1, 2, 20, PREFILL_CHUNK, PREFILL_CHUNK + 1, ids.len()] {
        let mean: Vec<f32> = (0..states[0].len())
            .map(|i| {
                (states[..count].iter().map(|state| f64::from(state[i])).sum::<f64>() / count as f64) as f32
            })
            .collect();
        // Bit for bit: a state does not depend on the chunk that it was computed in.
        assert_eq!(embed(&ids[..count], Pooling::Mean, false), mean, "{count}");
        let unit = embed(&ids[..count], Pooling::Mean, true);
        assert_eq!(unit, model.embed(&ids[..count], &EmbedOptions::default(), &mut Control::none()).unwrap());
        let length = unit.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((length - 1.0).abs() < 1e-6, "{length}");
        let scale = mean.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!(unit.iter().zip(&mean).all(|(u, m)| (f64::from(*u) - f64::from(*m) / scale).abs() < 1e-6));
    }
    assert_eq!(embed(&ids[..1], Pooling::Mean, true), embed(&ids[..1], Pooling::Last, true));
    assert_ne!(embed(&ids[..9], Pooling::Mean, true), embed(&ids[..9], Pooling::Last, true));
    let one = open("ministral_iswa", &ModelOptions { threads: Some(1), ..ModelOptions::default() });
    let three = open("ministral_iswa", &ModelOptions { threads: Some(3), ..ModelOptions::default() });
    let of = |model: &Arc<Model>| model.embed(&ids, &EmbedOptions::default(), &mut Control::none()).unwrap();
    assert_eq!(of(&one), of(&three));
}

#[test]
fn embeddings_refuse_what_they_cannot_do() {
    let model = model("ministral3_yarn");
    let embed = |ids: &[u32]| model.embed(ids, &EmbedOptions::default(), &mut Control::none());
    assert!(matches!(embed(&[]), Err(Error::Argument { .. })));
    assert!(embed(&[1, 512]).unwrap_err().to_string().contains("tokens[1]"));
    embed(&ids(256)).unwrap();
    assert_eq!(limit_of(embed(&ids(257))), "tokens");
    let token = CancelToken::new();
    token.cancel();
    let mut control = Control::none().with_cancel(&token);
    assert!(matches!(model.embed(&[1], &EmbedOptions::default(), &mut control), Err(Error::Cancelled)));
}
