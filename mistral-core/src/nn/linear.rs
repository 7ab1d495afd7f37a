//! A linear layer without bias, whatever its weights are stored as.

use burn::tensor::{Int, Tensor};

use super::Normed;
use crate::kernels::{self, LinearSpec};

/// `y = x · Wᵀ`, `W: [rows, cols]`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// The rows of `W` in their order: all of them, or as many as a device takes in one tensor.
    pub(crate) parts: Vec<Part>,
}

/// Some rows of a matrix.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    weight: Tensor<1, Int>,
    pub(crate) spec: LinearSpec,
}

impl Linear {
    /// A layer whose weight's bytes are laid out as `spec` says, in one or more parts.
    pub fn new(parts: impl IntoIterator<Item = (Tensor<1, Int>, LinearSpec)>) -> Self {
        Self { parts: parts.into_iter().map(|(weight, spec)| Part { weight, spec }).collect() }
    }

    /// Bytes of the weight.
    pub fn bytes(&self) -> u64 {
        let bytes = |part: &Part| part.weight.dims()[0] * part.weight.dtype().size();
        self.parts.iter().map(|part| bytes(part) as u64).sum()
    }

    /// `silu(gate(x)) · up(x)`: `x: [t, cols]` → `[t, rows]`.
    pub fn swiglu([gate, up]: [&Self; 2], x: Tensor<2>) -> Tensor<2> {
        Self::parted([gate, up], &x, |gate, up| {
            kernels::linear_swiglu(x.clone(), [&gate.weight, &up.weight], [&gate.spec, &up.spec])
        })
    }

    /// The residual stream, and the [`Linear::swiglu`] of its norm `x: [t, cols]`.
    pub fn normed_swiglu([gate, up]: [&Self; 2], x: Normed) -> [Tensor<2>; 2] {
        match (x, &gate.parts[..], &up.parts[..]) {
            (Normed::Later(x), [gate], [up]) => {
                kernels::normed_swiglu(x, [&gate.weight, &up.weight], [&gate.spec, &up.spec])
            }
            (x, ..) => {
                let [h, x] = x.compute();
                [h, Self::swiglu([gate, up], x)]
            }
        }
    }

    /// [`Linear::swiglu`] of one row; any numbers if `expert` weighs nothing in `routes: [1, n_experts]`.
    pub fn swiglu_if([gate, up]: [&Self; 2], x: Tensor<2>, routes: &Tensor<2>, expert: usize) -> Tensor<2> {
        Self::parted([gate, up], &x, |gate, up| {
            let (weights, specs) = ([&gate.weight, &up.weight], [&gate.spec, &up.spec]);
            kernels::linear_swiglu_if(x.clone(), weights, routes.clone(), specs, expert)
        })
    }

    /// What `product` makes of the parts of two layers, if these are cut alike.
    fn parted(
        [gate, up]: [&Self; 2],
        x: &Tensor<2>,
        product: impl Fn(&Part, &Part) -> Tensor<2>,
    ) -> Tensor<2> {
        let rows = |layer: &Self| layer.parts.iter().map(|part| part.spec.rows).collect::<Vec<_>>();
        match (&gate.parts[..], &up.parts[..]) {
            ([gate], [up]) => product(gate, up),
            (gates, ups) if rows(gate) == rows(up) => {
                Tensor::cat(gates.iter().zip(ups).map(|(gate, up)| product(gate, up)).collect(), 1)
            }
            _ => kernels::swiglu(gate.forward(x.clone()), up.forward(x.clone())),
        }
    }

    /// `sum: [1, rows]` and what `expert` makes of `x: [1, cols]`, times what it weighs in `routes: [1, n_experts]`.
    pub fn forward_add(&self, sum: Tensor<2>, x: Tensor<2>, routes: &Tensor<2>, expert: usize) -> Tensor<2> {
        let add = |sum, part: &Part| {
            kernels::linear_add(sum, x.clone(), part.weight.clone(), routes.clone(), &part.spec, expert)
        };
        match &self.parts[..] {
            [part] => add(sum, part),
            parts => {
                let firsts = parts.iter().scan(0, |next, part| {
                    let first = *next;
                    *next += part.spec.rows;
                    Some(first)
                });
                let sums = parts
                    .iter()
                    .zip(firsts)
                    .map(|(part, first)| add(sum.clone().narrow(1, first, part.spec.rows), part));
                Tensor::cat(sums.collect(), 1)
            }
        }
    }

    /// `x: [t, cols]` → `[t, rows]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match &self.parts[..] {
            [part] => kernels::linear(x, &part.weight, &part.spec),
            parts => {
                let product = |part: &Part| kernels::linear(x.clone(), &part.weight, &part.spec);
                Tensor::cat(parts.iter().map(product).collect(), 1)
            }
        }
    }

    /// The residual stream, and what three layers make of its norm `x: [t, cols]`: `[t, rows]` of each.
    pub fn triple([a, b, c]: [&Self; 3], x: Normed) -> (Tensor<2>, [Tensor<2>; 3]) {
        match (x, &a.parts[..], &b.parts[..], &c.parts[..]) {
            (Normed::Later(x), [a], [b], [c]) => {
                kernels::normed_triple(x, [&a.weight, &b.weight, &c.weight], [&a.spec, &b.spec, &c.spec])
            }
            (Normed::Now { h, x }, [a], [b], [c]) => {
                let (weights, specs) = ([&a.weight, &b.weight, &c.weight], [&a.spec, &b.spec, &c.spec]);
                (h, kernels::linear_triple(x, weights, specs))
            }
            (x, ..) => {
                let [h, x] = x.compute();
                (h, [a.forward(x.clone()), b.forward(x.clone()), c.forward(x)])
            }
        }
    }
}
