//! RMSNorm.

use burn::tensor::Tensor;

use crate::kernels::{self, Unnormed};

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

    /// The norm of the residual stream `h + r: [t, dim]`, for what reads it.
    pub fn of(&self, h: Tensor<2>, r: Option<Tensor<2>>) -> Normed {
        match r {
            Some(r) => Normed::Later(Unnormed { x: h, r, weight: self.weight.clone(), eps: self.eps }),
            None => Normed::Now { x: self.forward(h.clone()), h },
        }
    }

    /// `x: [t, dim]` → `[t, dim]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        kernels::rms_norm(x, self.weight.clone(), self.eps)
    }
}

/// The residual stream and its norm, both `[t, dim]`. The layers that read the norm may compute it on their way.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "two a layer; the large one is the usual one")]
pub enum Normed {
    /// The stream `h` and its norm `x`.
    Now {
        /// The stream.
        h: Tensor<2>,
        /// Its norm.
        x: Tensor<2>,
    },
    /// What they are to be computed of.
    Later(Unnormed),
}

impl Normed {
    /// The stream and its norm.
    pub fn compute(self) -> [Tensor<2>; 2] {
        match self {
            Self::Now { h, x } => [h, x],
            Self::Later(Unnormed { x, r, weight, eps }) => kernels::add_rms_norm(x, r, weight, eps),
        }
    }
}
