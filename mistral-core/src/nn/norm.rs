//! RMSNorm.

use burn::tensor::Tensor;

use crate::kernels;

/// `x / sqrt(mean(x²) + eps) · weight` (Zhang & Sennrich 2019, arXiv:1910.07467).
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor<1>,
    eps: f32,
}

impl RmsNorm {
    /// With `weight: [dim]`.
    pub fn new(weight: Tensor<1>, eps: f32) -> Self {
        Self { weight, eps }
    }

    /// The residual stream `h + r: [t, dim]`, and its norm.
    pub fn after(&self, h: Tensor<2>, r: Option<Tensor<2>>) -> [Tensor<2>; 2] {
        match r {
            Some(r) => kernels::add_rms_norm(h, r, self.weight.clone(), self.eps),
            None => [h.clone(), self.forward(h)],
        }
    }

    /// `x: [t, dim]` → `[t, dim]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        kernels::rms_norm(x, self.weight.clone(), self.eps)
    }
}
