//! SwiGLU, alone or as a mixture of experts.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use super::Linear;
use crate::error::{Error, Result};
use crate::kernels;

/// `w2(silu(w1(x)) · w3(x))` (Shazeer 2020, arXiv:2002.05202).
#[derive(Clone, Debug)]
pub struct SwiGlu {
    /// `[hidden_dim, dim]`, the gate.
    pub w1: Linear,
    /// `[dim, hidden_dim]`, down.
    pub w2: Linear,
    /// `[hidden_dim, dim]`, up.
    pub w3: Linear,
}

impl SwiGlu {
    /// Bytes of the weights.
    pub fn bytes(&self) -> u64 {
        [&self.w1, &self.w2, &self.w3].into_iter().map(Linear::bytes).sum()
    }

    /// `x: [t, dim]` → `[t, dim]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        self.w2.forward(kernels::swiglu(self.w1.forward(x.clone()), self.w3.forward(x)))
    }
}

/// Mixtral's sparse mixture (Jiang et al. 2024, arXiv:2401.04088): top-k of the router's logits, softmax over those.
#[derive(Clone, Debug)]
pub struct Moe {
    /// The router, `[n_experts, dim]`.
    pub gate: Linear,
    /// The experts.
    pub experts: Vec<SwiGlu>,
    /// Experts that a token uses.
    pub n_experts_per_tok: usize,
}

impl Moe {
    /// `x: [t, dim]` → `[t, dim]`; only the chosen experts' weights are read.
    ///
    /// # Errors
    /// [`Error::Device`] if the router's logits cannot be read back.
    pub fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>> {
        let device = x.device();
        let logits = self.gate.forward(x.clone()).try_into_data(); // [t, n_experts]
        let logits: Vec<f32> =
            logits.ok().and_then(|data| data.try_into_vec().ok()).ok_or_else(|| Error::Device {
                device: format!("{device:?}"),
                reason: "the router's logits could not be read".to_owned(),
            })?;
        let routes = route(&logits, self.experts.len(), self.n_experts_per_tok);
        let mut out = x.zeros_like();
        for (expert, chosen) in self.experts.iter().zip(routes).filter(|(_, chosen)| !chosen.is_empty()) {
            let (tokens, weights) = columns(&chosen, &device); // [n], [n, 1]
            let y = expert.forward(x.clone().select(0, tokens.clone())) * weights; // [n, dim]
            out = out.select_assign(0, tokens, y, IndexingUpdateOp::Add);
        }
        Ok(out)
    }
}

/// For each expert, the tokens that chose it and how much each weighs it.
fn route(logits: &[f32], n_experts: usize, k: usize) -> Vec<Vec<(usize, f32)>> {
    let mut routes = vec![Vec::new(); n_experts];
    for (token, logits) in logits.chunks_exact(n_experts).enumerate() {
        let mut order: Vec<usize> = (0..n_experts).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(k);
        let largest = logits[order[0]];
        let total: f32 = order.iter().map(|&e| (logits[e] - largest).exp()).sum();
        for expert in order {
            routes[expert].push((token, (logits[expert] - largest).exp() / total));
        }
    }
    routes
}

fn columns(chosen: &[(usize, f32)], device: &Device) -> (Tensor<1, Int>, Tensor<2>) {
    let tokens: Vec<i64> = chosen.iter().map(|&(token, _)| token as i64).collect();
    let weights: Vec<f32> = chosen.iter().map(|&(_, weight)| weight).collect();
    let n = chosen.len();
    (
        Tensor::from_data(TensorData::new(tokens, [n]), device),
        Tensor::from_data(TensorData::new(weights, [n, 1]), device),
    )
}

/// The feed-forward block of a layer.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "one a layer; the large one is the usual one")]
pub enum FeedForward {
    /// One SwiGLU.
    Dense(SwiGlu),
    /// A mixture of them.
    Moe(Moe),
}

impl FeedForward {
    /// Bytes of weights that one token reads.
    pub fn bytes_per_token(&self) -> u64 {
        match self {
            Self::Dense(swiglu) => swiglu.bytes(),
            Self::Moe(moe) => {
                let experts: u64 = moe.experts.iter().map(SwiGlu::bytes).sum();
                moe.gate.bytes() + experts * moe.n_experts_per_tok as u64 / moe.experts.len() as u64
            }
        }
    }

    /// `x: [t, dim]` → `[t, dim]`.
    ///
    /// # Errors
    /// As [`Moe::forward`].
    pub fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>> {
        match self {
            Self::Dense(swiglu) => Ok(swiglu.forward(x)),
            Self::Moe(moe) => moe.forward(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_its_best_experts_with_softmax_weights() {
        let routes = route(&[0.0, 2.0, 1.0, -1.0, 5.0, 5.0, 4.0, 5.0], 4, 2);
        let share = 1.0 / (1.0 + (-1f32).exp());
        assert_eq!(routes[1], vec![(0, share), (1, 0.5)]);
        assert_eq!(routes[2], vec![(0, (-1f32).exp() / (1.0 + (-1f32).exp()))]);
        // Equal logits: the lower index wins, as in torch.topk.
        assert_eq!(routes[0], vec![(1, 0.5)]);
        assert!(routes[3].is_empty());
    }
}
