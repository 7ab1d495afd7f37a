//! The kernels of the device `wgpu`, in CubeCL: one source for Vulkan, Metal and DirectX 12.
//!
//! Weights and caches are tensors of `u32`, whose words hold the same bytes as on the processor: packed weights as `cpu/packed/layout.rs` lays
//! them out, where the words of 16 rows lie side by side, as a graphics processor wants to read them.

mod attention;
mod cache;
mod decode;
mod elementwise;
mod launch;
pub mod limits;
mod linear;
mod many;
mod product;
mod prompt;
#[cfg(test)]
mod tests;
pub mod timing;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;

use super::{AttentionSpec, CacheSpec, Kernels, Layout, LinearSpec, Weights, reference};
use crate::config::RopeStyle;
use crate::quant::Format;
use decode::Element;

impl Kernels for CubeBackend {
    fn linear(
        x: FloatTensor<Self>,
        weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> Vec<FloatTensor<Self>> {
        linear::linear(into_contiguous(x), weights.into_vec(), &specs)
    }

    fn linear_swiglu(
        x: FloatTensor<Self>,
        weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> FloatTensor<Self> {
        gated(x, weights, &specs, None)
    }

    fn normed_linear(
        x: FloatTensor<Self>,
        r: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> Vec<FloatTensor<Self>> {
        let [x, r, weight] = [x, r, weight].map(into_contiguous);
        let weights = weights.into_vec();
        let norm = linear::Norm { r: r.clone(), weight: weight.clone(), eps };
        linear::normed(&x, norm, &weights, &specs).unwrap_or_else(|| {
            let [sum, x] = elementwise::add_rms_norm(x, r, weight, eps);
            std::iter::once(sum).chain(linear::linear(x, weights, &specs)).collect()
        })
    }

    fn normed_swiglu(
        x: FloatTensor<Self>,
        r: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
        weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> Vec<FloatTensor<Self>> {
        let [x, r, weight] = [x, r, weight].map(into_contiguous);
        let Weights::Two(gate, up) = weights else { unreachable!("gate and up") };
        let (norm, pair) = (linear::Norm { r: r.clone(), weight: weight.clone(), eps }, [gate, up]);
        linear::normed_gated(&x, norm, &pair, &specs).unwrap_or_else(|| {
            let ([sum, x], [gate, up]) = (elementwise::add_rms_norm(x, r, weight, eps), pair);
            vec![sum, gated(x, Weights::Two(gate, up), &specs, None)]
        })
    }

    fn linear_swiglu_if(
        x: FloatTensor<Self>,
        weights: Weights<Self>,
        routes: FloatTensor<Self>,
        specs: Vec<LinearSpec>,
        expert: usize,
    ) -> FloatTensor<Self> {
        gated(x, weights, &specs, Some((into_contiguous(routes), expert)))
    }

    fn linear_add(
        sum: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        routes: FloatTensor<Self>,
        spec: LinearSpec,
        expert: usize,
    ) -> FloatTensor<Self> {
        let [sum, x, routes] = [sum, x, routes].map(into_contiguous);
        linear::weighed(&sum, &x, &weight, (routes.clone(), expert), &spec).unwrap_or_else(|| {
            let product = linear::linear(x, vec![weight], &[spec]).remove(0);
            reference::add_weighed::<Self>(sum, product, routes, expert)
        })
    }

    fn route(logits: FloatTensor<Self>, k: usize) -> FloatTensor<Self> {
        elementwise::route(into_contiguous(logits), k)
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        elementwise::rms_norm(into_contiguous(x), into_contiguous(weight), eps)
    }

    fn add_rms_norm(
        x: FloatTensor<Self>,
        r: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> Vec<FloatTensor<Self>> {
        let [x, r, weight] = [x, r, weight].map(into_contiguous);
        elementwise::add_rms_norm(x, r, weight, eps).into()
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::swiglu(into_contiguous(gate), into_contiguous(up))
    }

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
        let [keys, values, cos, sin] = [keys, values, cos, sin].map(into_contiguous);
        cache::write_rotated([k, v], [keys, values], [cos, sin], style, &spec, start).into()
    }

    fn attention_rotated(
        q: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        style: RopeStyle,
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        let [q, cos, sin] = [q, cos, sin].map(into_contiguous);
        attend(q, [cos, sin], style, [k, v], None, &spec)
    }

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
        let [q, keys, values] = [q, keys, values].map(into_contiguous);
        let [angles, own_angles] = [[cos, sin], [key_cos, key_sin]].map(|both| both.map(into_contiguous));
        let one = q.meta.shape()[0] == 1 && attention::Own::fits(&q);
        let (own, [k, v]) = if one {
            let own = attention::Own { key: keys, value: values, angles: own_angles };
            (Some(own), [k, v].map(cache::alone))
        } else {
            let rows = [keys, values];
            (None, cache::write_rotated([k, v], rows, own_angles, style, &spec.cache, spec.start))
        };
        (attend(q, angles, style, [k.clone(), v.clone()], own, &spec), vec![k, v])
    }
}

fn attend(
    q: FloatTensor<CubeBackend>,
    angles: [FloatTensor<CubeBackend>; 2],
    style: RopeStyle,
    [k, v]: [IntTensor<CubeBackend>; 2],
    own: Option<attention::Own>,
    spec: &AttentionSpec,
) -> FloatTensor<CubeBackend> {
    if prompt::suits(q.meta.shape()[0], &spec.cache) {
        return prompt::attention(q, angles, style, [k, v], spec);
    }
    attention::attention(q, angles, style, k, v, own, spec)
}

fn gated(
    x: FloatTensor<CubeBackend>,
    weights: Weights<CubeBackend>,
    specs: &[LinearSpec],
    route: Option<linear::Route>,
) -> FloatTensor<CubeBackend> {
    let Weights::Two(gate, up) = weights else { unreachable!("gate and up") };
    let (x, weights) = (into_contiguous(x), [gate, up]);
    linear::gated(&x, &weights, specs, route).unwrap_or_else(|| {
        let [gate, up] = weights;
        let mut products = linear::linear(x, vec![gate, up], specs);
        let (up, gate) = (products.remove(1), products.remove(0));
        elementwise::swiglu(gate, up)
    })
}

/// Whether matrices of this format are multiplied as they stand in the file; what is neither that nor packed is expanded to f32 while loading.
pub fn multiplies(format: Format) -> bool {
    Element::of(format).is_some()
}

/// Words of the elements of a matrix that lies row after row; the scales of FP8 weights follow.
fn weight_words(spec: &LinearSpec) -> usize {
    Element::of(spec.format).map_or(0, |kind| (spec.rows * spec.cols).div_ceil(kind.per_word()))
}

/// The bytes of a weight as this device holds them: whole words, and behind a matrix that lies row after row the scales of FP8 weights.
pub fn weight_bytes(mut bytes: Vec<u8>, spec: &LinearSpec) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    if spec.layout == Layout::Rows
        && let Some(scale) = &spec.scale
    {
        bytes.extend(scale.values().iter().flat_map(|value| value.to_le_bytes()));
    }
    // Kernels read four words at once.
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    bytes
}
