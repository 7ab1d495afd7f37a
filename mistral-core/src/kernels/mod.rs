//! The operations that decide the speed, as one extension of Burn's backends.
//!
//! The default bodies are the reference: ordinary tensor operations, on numbers decoded on the host. A backend overrides what it can
//! do faster ([`host`] for those in host memory); the tests hold every override against the reference.

#![cfg_attr(
    feature = "ndarray",
    allow(deprecated, reason = "NdArray is deprecated upstream, and asked for by those who compare the two")
)]

#[cfg(feature = "wgpu")]
pub(crate) mod check;
pub(crate) mod cpu;
mod host;
mod reference;
#[cfg(test)]
mod tests;
#[cfg(feature = "wgpu")]
pub(crate) mod wgpu;

use std::sync::Arc;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, ExtensionType, backend_extension};
use burn::tensor::{DType, Device, Int, Tensor};

use crate::config::RopeStyle;
use crate::device;
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

/// The weight matrices of one call of [`Kernels::linear`].
#[derive(Clone, Debug, ExtensionType)]
pub enum Weights<B: Backend> {
    /// A layer by itself.
    One(IntTensor<B>),
    /// Gate and up.
    Two(IntTensor<B>, IntTensor<B>),
    /// Queries, keys and values.
    Three(IntTensor<B>, IntTensor<B>, IntTensor<B>),
}

impl<B: Backend> Weights<B> {
    /// The matrices in their order.
    pub fn into_vec(self) -> Vec<IntTensor<B>> {
        match self {
            Self::One(a) => vec![a],
            Self::Two(a, b) => vec![a, b],
            Self::Three(a, b, c) => vec![a, b, c],
        }
    }
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// IEEE half precision.
    #[default]
    F16,
    /// Single precision.
    F32,
    /// Blocks of 32 elements as in GGUF's Q8_0: a scale in half precision, and codes of 8 bits. The last block of a head is filled up with zeros.
    Q8_0,
}

/// Elements of a block of [`CacheType::Q8_0`], and the bytes that it takes.
pub(crate) const CACHE_BLOCK: (usize, usize) = (32, 34);

impl CacheType {
    /// What hosts call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::Q8_0 => "q8_0",
        }
    }

    /// Bytes of one head of one position.
    pub fn row_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::F16 => 2 * head_dim,
            Self::F32 => 4 * head_dim,
            Self::Q8_0 => head_dim.div_ceil(CACHE_BLOCK.0) * CACHE_BLOCK.1,
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

impl CacheSpec {
    /// Bytes of keys, and as many of values.
    pub fn bytes(&self) -> usize {
        self.n_kv_heads * self.capacity * self.cache_type.row_bytes(self.head_dim)
    }
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
#[backend_extension(Flex, NdArray: cfg(feature = "ndarray"), Cube: cfg(feature = "wgpu"))]
pub trait Kernels: Backend {
    /// `x: [t, cols]` times the transposes of weight matrices: `[t, rows]` of each. Matrices that share their input are multiplied in one
    /// call, so that it is read, and threads are called together, once.
    fn linear(
        x: FloatTensor<Self>,
        #[extension_type] weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> Vec<FloatTensor<Self>> {
        let products = weights.into_vec().into_iter().zip(specs);
        products.map(|(weight, spec)| reference::linear::<Self>(x.clone(), weight, spec)).collect()
    }

    /// What a mixture's experts weigh for each token, `[t, n_experts]`: the softmax of the `k` largest of its `logits`, 0 for the others.
    fn route(logits: FloatTensor<Self>, k: usize) -> FloatTensor<Self> {
        reference::route::<Self>(logits, k)
    }

    /// [`Kernels::swiglu`] of the products of `x: [t, cols]` with two matrices, gate and up: `[t, rows]`.
    fn linear_swiglu(
        x: FloatTensor<Self>,
        #[extension_type] weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> FloatTensor<Self> {
        let mut products = <Self as Kernels>::linear(x, weights, specs).into_iter();
        let mut next = || products.next().expect("a product for each matrix");
        let (gate, up) = (next(), next());
        Self::swiglu(gate, up)
    }

    /// [`Kernels::add_rms_norm`] of `x` and `r: [t, cols]`: the sum, and the [`Kernels::linear`] of the norm.
    fn normed_linear(
        x: FloatTensor<Self>,
        r: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        #[extension_type] weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> Vec<FloatTensor<Self>> {
        let mut sum = <Self as Kernels>::add_rms_norm(x, r, weight, eps);
        let normed = sum.pop().expect("a sum and its norm");
        sum.extend(<Self as Kernels>::linear(normed, weights, specs));
        sum
    }

    /// [`Kernels::add_rms_norm`] of `x` and `r: [t, cols]`: the sum, and the [`Kernels::linear_swiglu`] of the norm.
    fn normed_swiglu(
        x: FloatTensor<Self>,
        r: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        #[extension_type] weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> Vec<FloatTensor<Self>> {
        let mut sum = <Self as Kernels>::add_rms_norm(x, r, weight, eps);
        let normed = sum.pop().expect("a sum and its norm");
        sum.push(<Self as Kernels>::linear_swiglu(normed, weights, specs));
        sum
    }

    /// [`Kernels::linear_swiglu`] of one row by matrices of expert `expert`. If that weighs nothing in `routes: [1, n_experts]`, they need not be
    /// read, and the result is any numbers.
    fn linear_swiglu_if(
        x: FloatTensor<Self>,
        #[extension_type] weights: Weights<Self>,
        routes: FloatTensor<Self>,
        specs: Vec<LinearSpec>,
        expert: usize,
    ) -> FloatTensor<Self> {
        drop((routes, expert));
        Self::linear_swiglu(x, weights, specs)
    }

    /// `sum: [1, rows]` and the product of one row with a matrix of expert `expert`, times what that weighs in `routes: [1, n_experts]`.
    fn linear_add(
        sum: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        routes: FloatTensor<Self>,
        spec: LinearSpec,
        expert: usize,
    ) -> FloatTensor<Self> {
        let product = <Self as Kernels>::linear(x, Weights::One(weight), vec![spec]).remove(0);
        reference::add_weighed::<Self>(sum, product, routes, expert)
    }

    /// RMSNorm of the rows of `x: [t, dim]` with `weight: [dim]`.
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        reference::rms_norm::<Self>(x, weight, eps)
    }

    /// The sum of `x` and `r: [t, dim]`, and its [`Kernels::rms_norm`].
    fn add_rms_norm(
        x: FloatTensor<Self>,
        r: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> Vec<FloatTensor<Self>> {
        let sum = Self::float_add(x, r);
        vec![sum.clone(), Self::rms_norm(sum, weight, eps)]
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

    /// [`Kernels::cache_write`] of keys that [`Kernels::rope`] has rotated, and of values: both caches.
    #[allow(clippy::too_many_arguments, reason = "two caches and what goes into them")]
    fn cache_write_rotated(
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        style: RopeStyle,
        spec: CacheSpec,
        start: usize,
    ) -> Vec<IntTensor<Self>> {
        let keys = Self::rope(keys, cos, sin, style);
        vec![Self::cache_write(k, keys, spec.clone(), start), Self::cache_write(v, values, spec, start)]
    }

    /// [`Kernels::attention`] of what [`Kernels::rope`] makes of `q`.
    fn attention_rotated(
        q: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        style: RopeStyle,
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        <Self as Kernels>::attention(Self::rope(q, cos, sin, style), k, v, spec)
    }

    /// [`Kernels::cache_write_rotated`] of keys and values at `spec.start`, and the [`Kernels::attention_rotated`] of `q` over what is stored then; that and
    /// both caches.
    #[allow(clippy::too_many_arguments, reason = "queries, keys and values, their angles, and two caches")]
    fn cached_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        key_cos: FloatTensor<Self>,
        key_sin: FloatTensor<Self>,
        style: RopeStyle,
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> (FloatTensor<Self>, Vec<IntTensor<Self>>) {
        let (cache, start) = (spec.cache.clone(), spec.start);
        let caches = Self::cache_write_rotated(k, v, keys, values, key_cos, key_sin, style, cache, start);
        let [k, v] = [0, 1].map(|i| caches[i].clone());
        (Self::attention_rotated(q, cos, sin, style, k, v, spec), caches)
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

/// The form in which a device multiplies matrices of a format: as they stand in the file (`in_file`, unless they are made while loading), packed, or expanded to f32.
pub fn form(format: Format, in_file: bool, device: &Device) -> (Format, Layout) {
    let host = device::stored(device) == DType::U8;
    if cpu::packed::has_packed_form(format) && !(host && in_file && cpu::packed::multiplies_rows(format)) {
        return (format, Layout::Packed);
    }
    if host { (format, Layout::Rows) } else { (device_form(format), Layout::Rows) }
}

/// The format in which a device with memory of its own holds matrices of `format`.
pub fn device_form(format: Format) -> Format {
    #[cfg(feature = "wgpu")]
    if !cpu::packed::has_packed_form(format) && !wgpu::multiplies(format) {
        return Format::F32;
    }
    format
}

/// The bytes of a matrix that lies row after row, as devices hold them that know no bytes.
pub fn words(bytes: Vec<u8>, spec: &LinearSpec) -> Vec<u8> {
    #[cfg(feature = "wgpu")]
    return wgpu::weight_bytes(bytes, spec);
    #[cfg(not(feature = "wgpu"))]
    unreachable!("a device without bytes, in a build without one: {spec:?} of {} bytes", bytes.len())
}

/// A row of a product has the bits that it has alone, on every device, among at most so many rows.
pub const ROWS_ALIKE: usize = 33;

/// [`Kernels::linear`] on the device of the tensors.
pub fn linear(x: Tensor<2>, weight: &Tensor<1, Int>, spec: &LinearSpec) -> Tensor<2> {
    let [y] = products(x, Weights::One(primitive(weight)), [spec]);
    y
}

/// [`Kernels::linear`] for three matrices.
pub fn linear_triple(x: Tensor<2>, weights: [&Tensor<1, Int>; 3], specs: [&LinearSpec; 3]) -> [Tensor<2>; 3] {
    let [a, b, c] = weights.map(primitive);
    products(x, Weights::Three(a, b, c), specs)
}

fn primitive(weight: &Tensor<1, Int>) -> IntTensor<Dispatch> {
    weight.clone().into_dispatch()
}

fn products<const N: usize>(
    x: Tensor<2>,
    weights: Weights<Dispatch>,
    specs: [&LinearSpec; N],
) -> [Tensor<2>; N] {
    let specs = specs.into_iter().cloned().collect();
    let mut products = <Dispatch as Kernels>::linear(x.into_dispatch(), weights, specs).into_iter();
    std::array::from_fn(|_| Tensor::from_dispatch(products.next().expect("a product for each matrix")))
}

/// [`Kernels::route`] on the device of the tensors.
pub fn route(logits: Tensor<2>, k: usize) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Kernels>::route(logits.into_dispatch(), k))
}

/// What [`Kernels::normed_linear`] and [`Kernels::normed_swiglu`] read: `x + r`, to be normed with `weight` and `eps`.
#[derive(Clone, Debug)]
pub struct Unnormed {
    /// `[t, cols]`
    pub x: Tensor<2>,
    /// `[t, cols]`
    pub r: Tensor<2>,
    /// `[cols]`
    pub weight: Tensor<1>,
    /// Beside the mean square.
    pub eps: f32,
}

/// [`Kernels::normed_linear`] for three matrices, on the device of the tensors.
pub fn normed_triple(
    Unnormed { x, r, weight, eps }: Unnormed,
    weights: [&Tensor<1, Int>; 3],
    specs: [&LinearSpec; 3],
) -> (Tensor<2>, [Tensor<2>; 3]) {
    let [a, b, c] = weights.map(primitive);
    let (x, r, weight) = (x.into_dispatch(), r.into_dispatch(), weight.into_dispatch());
    let specs = specs.into_iter().cloned().collect();
    let all = <Dispatch as Kernels>::normed_linear(x, r, weight, eps, Weights::Three(a, b, c), specs);
    let mut all = all.into_iter().map(Tensor::from_dispatch);
    let mut next = || all.next().expect("a sum, and a product for each matrix");
    (next(), std::array::from_fn(|_| next()))
}

/// [`Kernels::normed_swiglu`] on the device of the tensors.
pub fn normed_swiglu(
    Unnormed { x, r, weight, eps }: Unnormed,
    weights: [&Tensor<1, Int>; 2],
    specs: [&LinearSpec; 2],
) -> [Tensor<2>; 2] {
    let [gate, up] = weights.map(primitive);
    let (x, r, weight) = (x.into_dispatch(), r.into_dispatch(), weight.into_dispatch());
    let specs = specs.into_iter().cloned().collect();
    let both = <Dispatch as Kernels>::normed_swiglu(x, r, weight, eps, Weights::Two(gate, up), specs);
    let mut both = both.into_iter().map(Tensor::from_dispatch);
    std::array::from_fn(|_| both.next().expect("a sum, and what was made of its norm"))
}

/// [`Kernels::linear_swiglu`] on the device of the tensors.
pub fn linear_swiglu(x: Tensor<2>, weights: [&Tensor<1, Int>; 2], specs: [&LinearSpec; 2]) -> Tensor<2> {
    let [gate, up] = weights.map(primitive);
    let specs = specs.into_iter().cloned().collect();
    Tensor::from_dispatch(<Dispatch as Kernels>::linear_swiglu(
        x.into_dispatch(),
        Weights::Two(gate, up),
        specs,
    ))
}

/// [`Kernels::linear_swiglu_if`] on the device of the tensors.
pub fn linear_swiglu_if(
    x: Tensor<2>,
    weights: [&Tensor<1, Int>; 2],
    routes: Tensor<2>,
    specs: [&LinearSpec; 2],
    expert: usize,
) -> Tensor<2> {
    let [gate, up] = weights.map(primitive);
    let (x, routes) = (x.into_dispatch(), routes.into_dispatch());
    let specs = specs.into_iter().cloned().collect();
    Tensor::from_dispatch(<Dispatch as Kernels>::linear_swiglu_if(
        x,
        Weights::Two(gate, up),
        routes,
        specs,
        expert,
    ))
}

/// [`Kernels::linear_add`] on the device of the tensors.
pub fn linear_add(
    sum: Tensor<2>,
    x: Tensor<2>,
    weight: Tensor<1, Int>,
    routes: Tensor<2>,
    spec: &LinearSpec,
    expert: usize,
) -> Tensor<2> {
    let (x, weight, routes) = (x.into_dispatch(), weight.into_dispatch(), routes.into_dispatch());
    let sum = sum.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Kernels>::linear_add(sum, x, weight, routes, spec.clone(), expert))
}

/// [`Kernels::rms_norm`] on the device of the tensors.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, eps: f32) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Kernels>::rms_norm(x.into_dispatch(), weight.into_dispatch(), eps))
}

/// [`Kernels::add_rms_norm`] on the device of the tensors.
pub fn add_rms_norm(x: Tensor<2>, r: Tensor<2>, weight: Tensor<1>, eps: f32) -> [Tensor<2>; 2] {
    let (x, r) = (x.into_dispatch(), r.into_dispatch());
    let mut both = <Dispatch as Kernels>::add_rms_norm(x, r, weight.into_dispatch(), eps).into_iter();
    std::array::from_fn(|_| Tensor::from_dispatch(both.next().expect("a sum and its norm")))
}

/// The angles by which heads are rotated.
#[derive(Clone, Debug)]
pub struct Angles {
    /// `[t, head_dim / 2]`
    pub cos: Tensor<2>,
    /// `[t, head_dim / 2]`
    pub sin: Tensor<2>,
    /// Which elements make a pair.
    pub style: RopeStyle,
}

/// [`Kernels::cache_write_rotated`] on the device of the tensors.
pub fn cache_write_rotated(
    caches: [Tensor<1, Int>; 2],
    rows: [Tensor<2>; 2],
    angles: &Angles,
    spec: &CacheSpec,
    start: usize,
) -> [Tensor<1, Int>; 2] {
    let (cos, sin) = (angles.cos.clone().into_dispatch(), angles.sin.clone().into_dispatch());
    let ([k, v], [keys, values]) = (caches.map(Tensor::into_dispatch), rows.map(Tensor::into_dispatch));
    let (style, spec) = (angles.style, spec.clone());
    let mut both =
        <Dispatch as Kernels>::cache_write_rotated(k, v, keys, values, cos, sin, style, spec, start)
            .into_iter();
    std::array::from_fn(|_| Tensor::from_dispatch(both.next().expect("keys and values")))
}

/// [`Kernels::attention_rotated`] on the device of the tensors.
pub fn attention_rotated(
    q: Tensor<2>,
    angles: &Angles,
    k: Tensor<1, Int>,
    v: Tensor<1, Int>,
    spec: AttentionSpec,
) -> Tensor<2> {
    let (cos, sin) = (angles.cos.clone().into_dispatch(), angles.sin.clone().into_dispatch());
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let style = angles.style;
    Tensor::from_dispatch(<Dispatch as Kernels>::attention_rotated(q, cos, sin, style, k, v, spec))
}

/// [`Kernels::cached_attention`] on the device of the tensors: of queries, keys and values, and the angles of the first and of the second.
pub fn cached_attention(
    rows: [Tensor<2>; 3],
    [of_queries, of_keys]: [&Angles; 2],
    caches: [Tensor<1, Int>; 2],
    spec: AttentionSpec,
) -> (Tensor<2>, [Tensor<1, Int>; 2]) {
    let [q, keys, values] = rows.map(Tensor::into_dispatch);
    let both = |angles: &Angles| [&angles.cos, &angles.sin].map(|tensor| tensor.clone().into_dispatch());
    let ([cos, sin], [key_cos, key_sin]) = (both(of_queries), both(of_keys));
    let ([k, v], style) = (caches.map(Tensor::into_dispatch), of_keys.style);
    let (out, caches) = <Dispatch as Kernels>::cached_attention(
        q, keys, values, cos, sin, key_cos, key_sin, style, k, v, spec,
    );
    let mut caches = caches.into_iter().map(Tensor::from_dispatch);
    (Tensor::from_dispatch(out), std::array::from_fn(|_| caches.next().expect("keys and values")))
}

/// [`Kernels::swiglu`] on the device of the tensors.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Kernels>::swiglu(gate.into_dispatch(), up.into_dispatch()))
}
