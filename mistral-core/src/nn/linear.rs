//! A linear layer without bias, whatever its weights are stored as.

use burn::tensor::{Int, Tensor};

use crate::kernels::{self, LinearSpec};

/// `y = x · Wᵀ`, `W: [rows, cols]`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor<1, Int>,
    pub(crate) spec: LinearSpec,
}

impl Linear {
    /// A layer whose weight's bytes are laid out as `spec` says.
    pub fn new(weight: Tensor<1, Int>, spec: LinearSpec) -> Self {
        Self { weight, spec }
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> u64 {
        self.weight.dims()[0] as u64
    }

    /// `x: [t, cols]` → `[t, rows]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        kernels::linear(x, self.weight.clone(), &self.spec)
    }
}
