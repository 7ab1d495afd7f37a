//! The default bodies: what each kernel computes, in ordinary tensor operations.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Slice, TensorData, TensorMetadata, read_sync};

use super::cpu::packed;
use super::{AttentionSpec, CACHE_BLOCK, CacheSpec, CacheType, Layout, LinearSpec};
use crate::config::RopeStyle;

/// The bytes of a weight or cache tensor.
fn bytes<B: Backend>(x: IntTensor<B>) -> Vec<u8> {
    let data = read_sync(B::int_into_data(x)).expect("weights and caches can be read back");
    data.as_bytes().to_vec()
}

fn floats<B: Backend>(x: FloatTensor<B>) -> Vec<f32> {
    let data = read_sync(B::float_into_data(x)).expect("activations can be read back");
    data.try_into_vec().expect("activations are f32")
}

fn reshape<B: Backend>(x: FloatTensor<B>, shape: &[usize]) -> FloatTensor<B> {
    B::float_reshape(x, shape.to_vec().into())
}

/// Decodes the matrix, then multiplies: `x · Wᵀ`.
pub fn linear<B: Backend>(x: FloatTensor<B>, weight: IntTensor<B>, spec: LinearSpec) -> FloatTensor<B> {
    let device = x.device();
    let w = decode(&bytes::<B>(weight), &spec); // [rows, cols]
    let w = B::float_from_data(TensorData::new(w, [spec.rows, spec.cols]), &device);
    B::float_matmul(x, B::float_swap_dims(w, 0, 1))
}

/// The numbers of a weight matrix, `[rows, cols]`.
pub(super) fn decode(data: &[u8], spec: &LinearSpec) -> Vec<f32> {
    let mut w = vec![0.0; spec.rows * spec.cols];
    match spec.layout {
        Layout::Rows => spec.format.dequantize(data, &mut w).expect("the loader checked the length"),
        Layout::Packed => {
            let &LinearSpec { format, layout, rows, cols, .. } = spec;
            let matrix = packed::BlockMatrix { format, layout, rows, cols, data };
            w.chunks_exact_mut(spec.cols).enumerate().for_each(|(row, w)| matrix.unpack_row(row, w));
        }
    }
    if let Some(scale) = spec.scale.as_deref() {
        for (i, w) in w.iter_mut().enumerate() {
            *w *= scale.at(i / spec.cols, i % spec.cols, spec.cols);
        }
    }
    w
}

/// Sorts the logits on the host; of equal ones the first wins, as in `torch.topk`.
pub fn route<B: Backend>(logits: FloatTensor<B>, k: usize) -> FloatTensor<B> {
    let (device, shape) = (logits.device(), logits.shape());
    let logits = floats::<B>(logits);
    let mut routes = vec![0.0; logits.len()];
    for (logits, routes) in logits.chunks_exact(shape[1]).zip(routes.chunks_exact_mut(shape[1])) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order.truncate(k);
        let largest = logits[order[0]];
        let total: f32 = order.iter().map(|&e| (logits[e] - largest).exp()).sum();
        order.into_iter().for_each(|e| routes[e] = (logits[e] - largest).exp() / total);
    }
    B::float_from_data(TensorData::new(routes, shape), &device)
}

pub fn add_weighed<B: Backend>(
    sum: FloatTensor<B>,
    product: FloatTensor<B>,
    routes: FloatTensor<B>,
    expert: usize,
) -> FloatTensor<B> {
    let weight = floats::<B>(routes)[expert];
    B::float_add(sum, B::float_mul_scalar(product, weight.into()))
}

/// `x / sqrt(mean(x²) + eps) · weight`.
pub fn rms_norm<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, eps: f32) -> FloatTensor<B> {
    let shape = x.shape();
    let mean = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1); // [t, 1]
    let root = B::float_sqrt(B::float_add_scalar(mean, eps.into()));
    let weight = B::float_expand(reshape::<B>(weight, &[1, shape[1]]), shape);
    B::float_mul(B::float_div(x, root), weight)
}

/// `(a, b) → (a·cos − b·sin, a·sin + b·cos)` for each pair of a head.
pub fn rope<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    style: RopeStyle,
) -> FloatTensor<B> {
    let (t, width, half) = (x.shape()[0], x.shape()[1], cos.shape()[1]);
    let heads = width / (2 * half);
    // The pair's two components lie along `dim`: [t, heads, half, 2] or [t, heads, 2, half].
    let (shape, dim) = match style {
        RopeStyle::Interleaved => ([t, heads, half, 2], 3),
        RopeStyle::HalfSplit => ([t, heads, 2, half], 2),
    };
    let mut part = shape;
    part[dim] = 1;
    let angle = |a: FloatTensor<B>| {
        let mut one = part;
        one[1] = 1;
        B::float_expand(reshape::<B>(a, &one), part.to_vec().into())
    };
    let (cos, sin) = (angle(cos), angle(sin));
    let x = reshape::<B>(x, &shape);
    let component = |i: isize| {
        let mut slices = [Slice::full(); 4];
        slices[dim] = Slice::from(i..i + 1);
        B::float_slice(x.clone(), &slices)
    };
    let (a, b) = (component(0), component(1));
    let mul = |x: &FloatTensor<B>, y: &FloatTensor<B>| B::float_mul(x.clone(), y.clone());
    let rotated =
        vec![B::float_sub(mul(&a, &cos), mul(&b, &sin)), B::float_add(mul(&a, &sin), mul(&b, &cos))];
    reshape::<B>(B::float_cat(rotated, dim), &[t, width])
}

/// `gate · sigmoid(gate) · up`.
pub fn swiglu<B: Backend>(gate: FloatTensor<B>, up: FloatTensor<B>) -> FloatTensor<B> {
    let silu = B::float_mul(gate.clone(), B::sigmoid(gate));
    B::float_mul(silu, up)
}

/// Through host memory: one row at a time into its slot.
pub fn cache_write<B: Backend>(
    cache: IntTensor<B>,
    rows: FloatTensor<B>,
    spec: CacheSpec,
    start: usize,
) -> IntTensor<B> {
    let device = cache.device();
    let size = spec.cache_type.row_bytes(spec.head_dim);
    let (mut data, rows) = (bytes::<B>(cache), floats::<B>(rows));
    for (i, row) in rows.chunks_exact(spec.head_dim).enumerate() {
        let (slot, head) = ((start + i / spec.n_kv_heads) % spec.capacity, i % spec.n_kv_heads);
        let at = (head * spec.capacity + slot) * size;
        data[at..at + size].copy_from_slice(&encode_row(row, spec.cache_type));
    }
    let len = data.len();
    B::int_from_data(TensorData::new(data, [len]), &device)
}

fn encode_row(row: &[f32], cache_type: CacheType) -> Vec<u8> {
    match cache_type {
        CacheType::F32 => row.iter().flat_map(|value| value.to_le_bytes()).collect(),
        CacheType::F16 => row.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
        CacheType::Q8_0 => row.chunks(CACHE_BLOCK.0).flat_map(encode_block).collect(),
    }
}

/// A scale that makes the largest magnitude 127, and the codes (GGUF's Q8_0).
fn encode_block(values: &[f32]) -> Vec<u8> {
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let (scale, inverse) = if largest > 0.0 { (largest / 127.0, 127.0 / largest) } else { (0.0, 0.0) };
    let mut block = half::f16::from_f32(scale).to_le_bytes().to_vec();
    block.extend(values.iter().map(|value| (value * inverse).round_ties_even() as i8 as u8));
    block.resize(CACHE_BLOCK.1, 0);
    block
}

fn decode_row(row: &[u8], head_dim: usize, cache_type: CacheType) -> Vec<f32> {
    let half = |bytes: &[u8]| half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
    let mut values: Vec<f32> = match cache_type {
        CacheType::F32 => row.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        CacheType::F16 => row.chunks_exact(2).map(half).collect(),
        CacheType::Q8_0 => {
            let block = |block: &[u8]| {
                let (scale, codes) = (half(block), block[2..].to_vec());
                codes.into_iter().map(move |code| f32::from(code as i8) * scale)
            };
            row.chunks_exact(CACHE_BLOCK.1).flat_map(block).collect()
        }
    };
    values.truncate(head_dim);
    values
}

/// Decodes the visible part of the cache, then softmax(q · kᵀ · scale + mask) · v, head by head.
pub fn attention<B: Backend>(
    q: FloatTensor<B>,
    k: IntTensor<B>,
    v: IntTensor<B>,
    spec: AttentionSpec,
) -> FloatTensor<B> {
    let device = q.device();
    let (t, heads, dim) = (q.shape()[0], spec.n_heads, spec.cache.head_dim);
    let (first, end) = (spec.first_visible(spec.start), spec.start + t);
    let n = end - first;
    let mask = (0..t * n).map(|i| {
        let (position, key) = (spec.start + i / n, first + i % n);
        if key <= position && key >= spec.first_visible(position) { 0.0 } else { f32::NEG_INFINITY }
    });
    let mask = B::float_from_data(TensorData::new(mask.collect::<Vec<f32>>(), [1, t, n]), &device);
    let cached = |cache: IntTensor<B>| {
        let data = cached_heads(&bytes::<B>(cache), &spec, first..end);
        B::float_from_data(TensorData::new(data, [heads, n, dim]), &device)
    };
    let (k, v) = (cached(k), cached(v)); // [n_heads, n, head_dim]
    let q = B::float_swap_dims(reshape::<B>(q, &[t, heads, dim]), 0, 1); // [n_heads, t, head_dim]
    let scores = B::float_matmul(q, B::float_swap_dims(k, 1, 2));
    let scores = B::float_mul_scalar(scores, spec.scale.into());
    let scores = B::float_add(scores, B::float_expand(mask, vec![heads, t, n].into()));
    let out = B::float_matmul(B::softmax(scores, 2), v); // [n_heads, t, head_dim]
    reshape::<B>(B::float_swap_dims(out, 0, 1), &[t, heads * dim])
}

/// The cached rows of `positions`, each key head repeated for the query heads that share it.
fn cached_heads(data: &[u8], spec: &AttentionSpec, positions: std::ops::Range<usize>) -> Vec<f32> {
    let CacheSpec { capacity, head_dim, cache_type, n_kv_heads } = spec.cache;
    let size = cache_type.row_bytes(head_dim);
    let mut out = Vec::with_capacity(spec.n_heads * positions.len() * head_dim);
    for head in 0..spec.n_heads {
        let kv_head = head * n_kv_heads / spec.n_heads;
        for position in positions.clone() {
            let at = (kv_head * capacity + position % capacity) * size;
            out.extend(decode_row(&data[at..at + size], head_dim, cache_type));
        }
    }
    out
}
