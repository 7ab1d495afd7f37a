//! The kernels of the device `wgpu`, in CubeCL: one source for Vulkan, Metal and DirectX 12.
//!
//! Weights and caches are tensors of `u32`, whose words hold the same bytes as on the processor: packed weights as `cpu/packed/layout.rs` lays
//! them out, where the words of 16 rows lie side by side, as a graphics processor wants to read them.

mod attention;
mod decode;
mod elementwise;
mod launch;
mod linear;
#[cfg(test)]
mod tests;

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;

use super::{AttentionSpec, CacheSpec, Kernels, Layout, LinearSpec, Weights};
use crate::config::RopeStyle;
use crate::quant::Format;
use decode::Element;

impl Kernels for CubeBackend {
    fn linear(
        x: FloatTensor<Self>,
        weights: Weights<Self>,
        specs: Vec<LinearSpec>,
    ) -> Vec<FloatTensor<Self>> {
        let x = into_contiguous(x);
        let products = weights.into_vec().into_iter().zip(&specs);
        products.map(|(weight, spec)| linear::linear(x.clone(), weight, spec)).collect()
    }

    fn route(logits: FloatTensor<Self>, k: usize) -> FloatTensor<Self> {
        elementwise::route(into_contiguous(logits), k)
    }

    fn linear_if(
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        routes: FloatTensor<Self>,
        spec: LinearSpec,
        expert: usize,
    ) -> FloatTensor<Self> {
        linear::linear_if(into_contiguous(x), weight, routes, &spec, expert, None)
    }

    fn linear_add(
        sum: FloatTensor<Self>,
        x: FloatTensor<Self>,
        weight: IntTensor<Self>,
        routes: FloatTensor<Self>,
        spec: LinearSpec,
        expert: usize,
    ) -> FloatTensor<Self> {
        linear::linear_if(into_contiguous(x), weight, routes, &spec, expert, Some(into_contiguous(sum)))
    }

    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        elementwise::rms_norm(into_contiguous(x), into_contiguous(weight), eps)
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        style: RopeStyle,
    ) -> FloatTensor<Self> {
        elementwise::rope(into_contiguous(x), into_contiguous(cos), into_contiguous(sin), style)
    }

    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::swiglu(into_contiguous(gate), into_contiguous(up))
    }

    fn cache_write(
        cache: IntTensor<Self>,
        rows: FloatTensor<Self>,
        spec: CacheSpec,
        start: usize,
    ) -> IntTensor<Self> {
        attention::cache_write(cache, into_contiguous(rows), &spec, start)
    }

    fn attention(
        q: FloatTensor<Self>,
        k: IntTensor<Self>,
        v: IntTensor<Self>,
        spec: AttentionSpec,
    ) -> FloatTensor<Self> {
        attention::attention(into_contiguous(q), k, v, &spec)
    }
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
    bytes
}
