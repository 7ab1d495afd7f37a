//! Models that panic when they run: what a bug in a kernel would do, without one. The product pays nothing for it: what is broken is a
//! value in a model that was opened.

use std::sync::Arc;

use crate::engine::Model;
use crate::quant::Format;
use crate::weights::Fp8Scale;

/// Where a model is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A kernel panics on the thread that called it.
    Kernel,
    /// Each task of a kernel panics, on whatever thread of the pool runs it.
    Tasks,
    /// Evaluating this token, or a later one of the vocabulary, panics.
    TokensFrom(u32),
}

/// Breaks a model that nobody else holds yet.
///
/// # Panics
/// If the model is shared, or has no weights.
pub fn inject(model: &mut Arc<Model>, fault: Fault) {
    let vocab_size = model.vocab_size();
    let model = Arc::get_mut(model).expect("the model is shared");
    let transformer = model.transformer_mut().expect("the model has weights");
    let output = &mut transformer.output.parts[0].spec;
    match fault {
        // The weight is not as long as its shape says.
        Fault::Kernel => output.cols += 1,
        // The same bytes as rows of another format, none of which has its scale.
        Fault::Tasks => {
            output.rows *= output.format.block_bytes() / output.format.block_len();
            output.format = Format::F8E4M3;
            output.scale = Some(Arc::new(Fp8Scale::PerRow(Vec::new())));
        }
        Fault::TokensFrom(token) => {
            let table = &mut transformer.tok_embeddings.data;
            table.truncate(table.len() / vocab_size * token as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use super::*;
    use crate::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
    use crate::control::Control;
    use crate::engine::ModelOptions;
    use crate::error::Error;
    use crate::session::{Session, SessionOptions};
    use crate::testing::TempFolder;

    fn open() -> Arc<Model> {
        let config = ModelConfig {
            architecture: "llama".to_owned(),
            dim: 32,
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 8,
            hidden_dim: 64,
            vocab_size: 100,
            norm_eps: 1e-5,
            max_context: 512,
            rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
            query_scaling: None,
            tied_embeddings: false,
            layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 2],
        };
        let folder = TempFolder::new_in(&std::env::temp_dir()).unwrap();
        let path = folder.path().join("model.gguf");
        crate::testing::Model::random(&config, Format::F32, 1).gguf().write(&path).unwrap();
        let options = ModelOptions { threads: Some(3), ..ModelOptions::default() };
        Model::open(&path, &options, &mut Control::none()).unwrap()
    }

    fn session(model: &Arc<Model>) -> Session {
        model.session(&SessionOptions { context: Some(512), ..SessionOptions::default() }).unwrap()
    }

    fn panics(body: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(body)).is_err()
    }

    #[test]
    fn a_session_whose_kernel_panicked_is_refused() {
        for fault in [Fault::Kernel, Fault::Tasks] {
            let mut model = open();
            inject(&mut model, fault);
            let mut session = session(&model);
            assert!(panics(|| drop(session.prefill(&[1, 2, 3], &mut Control::none()))), "{fault:?}");
            let again = session.prefill(&[1], &mut Control::none());
            assert!(matches!(again, Err(Error::Internal(_))), "{fault:?}: {again:?}");
        }
    }

    #[test]
    fn a_panic_poisons_the_session_that_it_came_from_alone() {
        let mut model = open();
        inject(&mut model, Fault::TokensFrom(90));
        let (mut broken, mut other) = (session(&model), session(&model));
        broken.prefill(&[1, 89], &mut Control::none()).unwrap();
        assert!(panics(|| drop(broken.prefill(&[90], &mut Control::none()))));
        assert!(matches!(broken.prefill(&[1], &mut Control::none()), Err(Error::Internal(_))));
        other.prefill(&[1, 89], &mut Control::none()).unwrap();
    }

    #[test]
    fn a_panic_in_a_callback_poisons_its_session_alone() {
        let model = open();
        let (mut broken, mut other) = (session(&model), session(&model));
        let mut report = |_| resume_unwind(Box::new("from the host"));
        let mut control = Control::none().with_progress(&mut report);
        assert!(panics(|| drop(broken.prefill(&[1; 400], &mut control))));
        assert!(matches!(broken.prefill(&[1], &mut Control::none()), Err(Error::Internal(_))));
        other.prefill(&[1; 400], &mut Control::none()).unwrap();
    }
}
