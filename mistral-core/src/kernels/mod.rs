//! The operations that decide the speed, as one extension of Burn's backends.
//!
//! The default bodies are the reference: ordinary tensor operations, on numbers decoded on the host. A backend overrides what it can
//! do faster ([`host`] for those in host memory); the tests hold every override against the reference.

#![cfg_attr(
    feature = "ndarray",
    allow(deprecated, reason = "NdArray is deprecated upstream, and asked for by those who compare the two")
)]

pub(crate) mod cpu;
mod host;
mod reference;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::{Int, Tensor};

use crate::config::RopeStyle;
use crate::quant::Format;
use crate::weights::Fp8Scale;

pub use cpu::packed::Activation;

/// How the numbers of a weight matrix lie in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row, as in the file.
    Rows,
    /// Sixteen rows interleaved ([`cpu::packed`]).
    Packed,
}

/// What a weight matrix `[rows, cols]` is.
#[derive(Clone, Debug)]
pub struct LinearSpec {
    /// How elements are stored.
    pub format: Format,
    /// Where they lie.
    pub layout: Layout,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The scales of FP8 weights.
    pub scale: Option<Arc<Fp8Scale>>,
    /// How activations meet block-quantised weights.
    pub activation: Activation,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// IEEE half precision.
    #[default]
    F16,
    /// Single precision.
    F32,
}

impl CacheType {
    /// What hosts call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// The cache of one layer: a ring of `capacity` positions, laid out `[n_kv_heads, capacity, head_dim]`.
#[derive(Clone, Debug)]
pub struct CacheSpec {
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Positions that the ring holds; position `p` lies in slot `p % capacity`.
    pub capacity: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// How an element is stored.
    pub cache_type: CacheType,
}

/// What an attention call sees.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Query heads: `n_heads / n_kv_heads` neighbours share a key head.
    pub n_heads: usize,
    /// Position of the first query.
    pub start: usize,
    /// Key j is visible to query i iff `i - window < j <= i`.
    pub window: Option<usize>,
    /// Multiplies the scores: `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// The cache.
    pub cache: CacheSpec,
}

impl AttentionSpec {
    /// The first key that the query at `position` sees.
    pub fn first_visible(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// The operations. Tensors of weights and caches hold raw bytes (`u8`), so that no format needs a tensor type.
#[cfg_attr(feature = "ndarray", backend_extension(Flex, NdArray))]
#[cfg_attr(not(feature = "ndarray"), backend_extension(Flex))]
pub trait Kernels: Backend {
    /// `x: [t, cols]` times the transpose of a weight matrix: `[t, rows]`.
    fn linear(x: FloatTensor<Self>, weight: IntTensor<Self>, spec: LinearSpec) -> FloatTensor<Self> {
        reference::linear::<Self>(x, weight, spec)
    }

    /// RMSNorm of the rows of `x: [t, dim]` with `weight: [dim]`.
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        reference::rms_norm::<Self>(x, weight, eps)
    }

    /// Rotates the heads of `x: [t, n_heads * head_dim]` by `cos`, `sin: [t, head_dim / 2]`.
    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        style: RopeStyle,
    ) -> FloatTensor<Self> {
        reference::rope::<Self>(x, cos, sin, style)
    }

    /// `silu(gate) · up`, both `[t, hidden_dim]`.
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        reference::swiglu::<Self>(gate, up)
    }

    /// The cache with `rows: [t, n_kv_heads * head_dim]` at positions `start..start + t`; in place where it is not shared.
    fn cache_write(
        cache: IntTensor<Self>,
        rows: FloatTensor<Self>,
        spec: CacheSpec,
        start: usize,
    ) -> IntTensor<Self> {
        reference::cache_write::<Self>(cache, rows, spec, start)
    }

    /// Attention of `q: [t, n_heads * head_dim]` over the cached keys and values: `[t, n_heads * head_dim]`.
    fn attention(
        q: FloatTensor<Self>,
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        reference::attention::<Self>(q, k, v, spec)
    }
}

/// [`Kernels::linear`] on the device of the tensors.
pub fn linear(x: Tensor<2>, weight: Tensor<1, Int>, spec: &LinearSpec) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Kernels>::linear(
        x.into_dispatch(),
        weight.into_dispatch(),
        spec.clone(),
    ))
}

/// [`Kernels::rms_norm`] on the device of the tensors.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Kernels>::rms_norm(x.into_dispatch(), weight.into_dispatch(), eps))
}

/// [`Kernels::rope`] on the device of the tensors.
pub fn rope(x: Tensor<2>, cos: Tensor<2>, sin: Tensor<2>, style: RopeStyle) -> Tensor<2> {
    let (cos, sin) = (cos.into_dispatch(), sin.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::rope(x.into_dispatch(), cos, sin, style))
}

/// [`Kernels::swiglu`] on the device of the tensors.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Kernels>::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

/// [`Kernels::cache_write`] on the device of the tensors.
pub fn cache_write(cache: Tensor<1, Int>, rows: Tensor<2>, spec: &CacheSpec, start: usize) -> Tensor<1, Int> {
    let (cache, rows) = (cache.into_dispatch(), rows.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::cache_write(cache, rows, spec.clone(), start))
}

/// [`Kernels::attention`] on the device of the tensors.
pub fn attention(q: Tensor<2>, k: Tensor<1, Int>, v: Tensor<1, Int>, spec: AttentionSpec) -> Tensor<2> {
    let (k, v) = (k.into_dispatch(), v.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Kernels>::attention(q.into_dispatch(), k, v, spec))
}
