//! SwiGLU, alone or as a mixture of experts.

use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use super::{Linear, Normed};
use crate::device;
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
        self.w2.forward(Linear::swiglu([&self.w1, &self.w3], x)) // [t, hidden_dim] → [t, dim]
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
    /// `x: [t, dim]` → `[t, dim]`; only the chosen experts' weights are read. Of one token on a device with memory of its own, nothing comes
    /// back to the host.
    ///
    /// # Errors
    /// [`Error::Device`] if the router's logits cannot be read back.
    pub fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>> {
        let device = x.device();
        let routes = kernels::route(self.gate.forward(x.clone()), self.n_experts_per_tok); // [t, n_experts]
        if x.dims()[0] == 1 && device::stored(&device) != DType::U8 {
            return Ok(self.one_token(x, &routes));
        }
        let routes: Vec<f32> =
            routes.try_into_data().ok().and_then(|data| data.try_into_vec().ok()).ok_or_else(|| {
                Error::Device {
                    device: format!("{device:?}"),
                    reason: "the router's choice could not be read".to_owned(),
                }
            })?;
        let mut out = x.zeros_like();
        for (e, expert) in self.experts.iter().enumerate() {
            let weights = routes.iter().skip(e).step_by(self.experts.len()).copied();
            let chosen: Vec<(usize, f32)> =
                weights.enumerate().filter(|&(_, weight)| weight != 0.0).collect();
            if !chosen.is_empty() {
                let (tokens, weights) = columns(&chosen, &device); // [n], [n, 1]
                let y = expert.forward(x.clone().select(0, tokens.clone())) * weights; // [n, dim]
                out = out.select_assign(0, tokens, y, IndexingUpdateOp::Add);
            }
        }
        Ok(out)
    }

    /// `x: [1, dim]` → `[1, dim]`: every expert is called, and those that were not chosen do nothing.
    fn one_token(&self, x: Tensor<2>, routes: &Tensor<2>) -> Tensor<2> {
        let experts = self.experts.iter().enumerate();
        experts.fold(x.zeros_like(), |sum, (e, expert)| {
            let h = Linear::swiglu_if([&expert.w1, &expert.w3], x.clone(), routes, e); // [1, hidden_dim]
            expert.w2.forward_add(sum, h, routes, e)
        })
    }
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

    /// The residual stream, and what is to be added to it: `x: [t, dim]`, its norm → `[t, dim]`.
    ///
    /// # Errors
    /// As [`Moe::forward`].
    pub fn forward(&self, x: Normed) -> Result<[Tensor<2>; 2]> {
        match self {
            Self::Dense(SwiGlu { w1, w2, w3 }) => {
                let [h, x] = Linear::normed_swiglu([w1, w3], x); // [t, hidden_dim]
                Ok([h, w2.forward(x)])
            }
            Self::Moe(moe) => {
                let [h, x] = x.compute();
                Ok([h, moe.forward(x)?])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_its_best_experts_with_softmax_weights() {
        let logits = [0.0, 2.0, 1.0, -1.0, 5.0, 5.0, 4.0, 5.0f32];
        for name in device::names() {
            let device = device::open(name, 0).unwrap().device;
            let logits = Tensor::from_data(TensorData::new(logits.to_vec(), [2, 4]), &device);
            let routes: Vec<f32> = kernels::route(logits, 2).try_into_data().unwrap().try_into_vec().unwrap();
            let share = 1.0 / (1.0 + (-1f32).exp());
            // Equal logits: the lower index wins, as in torch.topk.
            let want = [0.0, share, 1.0 - share, 0.0, 0.5, 0.5, 0.0, 0.0];
            for (got, want) in routes.iter().zip(want) {
                assert!((got - want).abs() < 1e-6, "{name}: {routes:?}");
            }
        }
    }
}
