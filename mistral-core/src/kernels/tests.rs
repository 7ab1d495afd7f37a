//! Every override against its default body, on both backends in host memory and on shapes that fit no vector.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Flex, TensorData, read_sync};

use super::cpu::packed::{has_packed_form, multiplies_rows, packed_len, repack};
use super::*;
use crate::testing::Random;

/// Two f32 computations of one thing that add in different orders: relative to the largest value, or for a matrix product to the sum of the
/// magnitudes that an output adds up (its terms may cancel, its rounding does not).
const F32_TOLERANCE: f32 = 2e-6;
/// Activations of at most 1 in steps of at most 1/127: none is off by more than half a step; 1% is for the rounding of the scales.
const HALF_A_STEP: f32 = 1.01 / 254.0;

fn floats<B: Backend>(values: Vec<f32>, shape: &[usize]) -> FloatTensor<B> {
    B::float_from_data(TensorData::new(values, shape.to_vec()), &Default::default())
}

fn bytes<B: Backend>(values: &[u8]) -> IntTensor<B> {
    B::int_from_data(TensorData::new(values.to_vec(), [values.len()]), &Default::default())
}

fn values<B: Backend>(tensor: FloatTensor<B>) -> Vec<f32> {
    read_sync(B::float_into_data(tensor)).unwrap().try_into_vec().unwrap()
}

/// Uniform in [-1, 1).
fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.unit()).collect()
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let off = (got - want).abs() / scale;
        assert!(off <= tolerance, "{what}, element {i}: {got}, expected {want}, off by {off:e} of {scale}");
    }
}

/// For activations of at most 1, an output is off by no more than `share` of the sum of its weights' magnitudes.
fn assert_within(got: &[f32], want: &[f32], weights: &[f32], cols: usize, share: f32, what: &str) {
    let sums: Vec<f32> = weights.chunks_exact(cols).map(|row| row.iter().map(|w| w.abs()).sum()).collect();
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let bound = sums[i % sums.len()] * share;
        assert!((got - want).abs() <= bound, "{what}, element {i}: {got}, expected {want} within {bound}");
    }
}

/// Runs `check` on every backend that overrides the kernels.
macro_rules! on_every_backend {
    ($check:ident) => {
        $check::<Flex>();
        #[cfg(feature = "ndarray")]
        $check::<burn::backend::NdArray>();
    };
}

fn check_linear<B: Kernels>() {
    for format in Format::all() {
        let cols = if format.is_quantized() { 3 * format.block_len() } else { 43 };
        for (rows, scale) in [(1, scalar()), (7, per_row(7)), (35, blocks(35, cols))] {
            let file = Random::new(rows as u64).tensor("w", format, &[rows, cols]).bytes;
            let mut forms = Vec::new();
            if has_packed_form(format) {
                let mut out = vec![0; packed_len(format, rows, cols).unwrap()];
                repack(format, rows, cols, &file, &mut out).unwrap();
                forms.push((Layout::Packed, out));
            }
            if !has_packed_form(format) || multiplies_rows(format) {
                forms.push((Layout::Rows, file));
            }
            let scale = (format == Format::F8E4M3).then(|| Arc::new(scale));
            let both = [Activation::F32, Activation::Int8];
            for ((layout, data), activation) in forms.iter().flat_map(|form| both.map(|a| (form, a))) {
                let layout = *layout;
                let spec = LinearSpec { format, layout, rows, cols, scale: scale.clone(), activation };
                for m in [1, 2, 5, 33] {
                    let x = || floats::<B>(random(m * cols, 7), &[m, cols]);
                    let weight = || bytes::<B>(data);
                    let mut got = <B as Kernels>::linear(x(), Weights::One(weight()), vec![spec.clone()]);
                    let got = values::<B>(got.remove(0));
                    let three = Weights::Three(weight(), weight(), weight());
                    for again in <B as Kernels>::linear(x(), three, vec![spec.clone(); 3]) {
                        assert_eq!(got, values::<B>(again), "three matrices in one call");
                    }
                    let want = values::<B>(reference::linear::<B>(x(), bytes::<B>(data), spec.clone()));
                    let what = format!("{format:?} {activation:?} [{m}, {cols}] x {rows}");
                    let int8 = activation == Activation::Int8 && has_packed_form(format);
                    let share = if int8 { HALF_A_STEP } else { F32_TOLERANCE };
                    assert_within(&got, &want, &reference::decode(data, &spec), cols, share, &what);
                }
            }
        }
    }
}

fn scalar() -> Fp8Scale {
    Fp8Scale::Scalar(0.375)
}

fn per_row(rows: usize) -> Fp8Scale {
    Fp8Scale::PerRow((0..rows).map(|row| 0.25 + row as f32).collect())
}

fn blocks(rows: usize, cols: usize) -> Fp8Scale {
    let count = rows.div_ceil(16) * cols.div_ceil(8);
    Fp8Scale::Block { rows: 16, cols: 8, values: (0..count).map(|i| 1.0 + i as f32 / 8.0).collect() }
}

#[test]
fn linear_layers_equal_decoded_matrices() {
    on_every_backend!(check_linear);
}

fn check_elementwise<B: Kernels>() {
    for (t, width) in [(1, 8), (3, 20), (17, 66), (70, 576)] {
        let x = |seed| floats::<B>(random(t * width, seed), &[t, width]);
        let weight = || floats::<B>(random(width, 3), &[width]);
        let got = values::<B>(<B as Kernels>::rms_norm(x(1), weight(), 1e-5));
        assert_close(
            &got,
            &values::<B>(reference::rms_norm::<B>(x(1), weight(), 1e-5)),
            F32_TOLERANCE,
            "rms_norm",
        );
        let sum = B::float_add(x(1), x(2));
        let want = [sum.clone(), reference::rms_norm::<B>(sum, weight(), 1e-5)];
        for (got, want) in <B as Kernels>::add_rms_norm(x(1), x(2), weight(), 1e-5).into_iter().zip(want) {
            assert_close(&values::<B>(got), &values::<B>(want), F32_TOLERANCE, "add_rms_norm");
        }
        let got = values::<B>(B::swiglu(x(1), x(2)));
        assert_close(&got, &values::<B>(reference::swiglu::<B>(x(1), x(2))), F32_TOLERANCE, "swiglu");
    }
    for (t, heads, head_dim) in [(1, 1, 2), (3, 5, 6), (9, 4, 64)] {
        let x = || floats::<B>(random(t * heads * head_dim, 1), &[t, heads * head_dim]);
        let angle = |seed| floats::<B>(random(t * head_dim / 2, seed), &[t, head_dim / 2]);
        for style in [RopeStyle::Interleaved, RopeStyle::HalfSplit] {
            let got = values::<B>(B::rope(x(), angle(2), angle(3), style));
            let want = values::<B>(reference::rope::<B>(x(), angle(2), angle(3), style));
            assert_close(&got, &want, F32_TOLERANCE, &format!("rope {style:?}"));
        }
    }
}

#[test]
fn norms_rotations_and_gates_equal_tensor_operations() {
    on_every_backend!(check_elementwise);
}

/// Made while loading there is no file to multiply from; of a format that needs interleaving, none is multiplied from.
#[test]
fn what_stands_in_a_file_is_packed_only_if_that_is_faster() {
    let device = device::open("cpu", 0).unwrap().device;
    for (format, in_file, layout) in [
        (Format::Q8_0, true, Layout::Rows),
        (Format::Q8_0, false, Layout::Packed),
        (Format::Q4_0, true, Layout::Packed),
        (Format::F16, true, Layout::Rows),
    ] {
        assert_eq!(form(format, in_file, &device), (format, layout));
    }
}

/// What is done in one step has the bits of the two that it stands for.
fn check_rotated<B: Kernels>() {
    let (t, head_dim, style) = (3, 12, RopeStyle::HalfSplit);
    let cache = CacheSpec { n_kv_heads: 2, capacity: 7, head_dim, cache_type: CacheType::F16 };
    let spec = AttentionSpec { n_heads: 4, start: 2, window: None, scale: 0.3, cache: cache.clone() };
    let x = |heads: usize, seed| floats::<B>(random(t * heads * head_dim, seed), &[t, heads * head_dim]);
    let angle = |seed| floats::<B>(random(t * head_dim / 2, seed), &[t, head_dim / 2]);
    let empty = || bytes::<B>(&vec![0; cache.bytes()]);
    let rotated = |x| B::rope(x, angle(2), angle(3), style);
    let (k, v) = (x(2, 1), x(2, 7));
    let mut both =
        B::cache_write_rotated(empty(), empty(), k, v, angle(2), angle(3), style, cache.clone(), 2);
    let (v, k) = (both.remove(1), both.remove(0));
    let ints = |tensor: &IntTensor<B>| read_sync(B::int_into_data(tensor.clone())).unwrap();
    for (got, rows) in [(&k, rotated(x(2, 1))), (&v, x(2, 7))] {
        let want = B::cache_write(empty(), rows, cache.clone(), 2);
        assert!(ints(got) == ints(&want) && ints(got) != ints(&empty()));
    }
    let got = B::attention_rotated(x(4, 5), angle(2), angle(3), style, k.clone(), k.clone(), spec.clone());
    assert_eq!(
        values::<B>(got),
        values::<B>(<B as Kernels>::attention(rotated(x(4, 5)), k.clone(), k, spec))
    );
}

#[test]
fn rotated_and_stored_or_attended_at_once() {
    on_every_backend!(check_rotated);
}

/// Fills a cache to `start`, writes `t` more positions and attends from them: override and reference side by side.
fn attend<B: Kernels>(spec: &AttentionSpec, t: usize) -> [Vec<f32>; 2] {
    let CacheSpec { n_kv_heads, head_dim, .. } = spec.cache;
    let width = n_kv_heads * head_dim;
    let empty = vec![0; spec.cache.bytes()];
    let rows = |seed, from: usize, count: usize| {
        floats::<B>(random((from + count) * width, seed)[from * width..].to_vec(), &[count, width])
    };
    let q = || floats::<B>(random(t * spec.n_heads * head_dim, 9), &[t, spec.n_heads * head_dim]);
    let mut ours = [bytes::<B>(&empty), bytes::<B>(&empty)];
    let mut plain = ours.clone();
    let steps = (0..spec.start).step_by(16).map(|at| (at, 16.min(spec.start - at)));
    for (at, count) in steps.chain([(spec.start, t)]) {
        for (i, seed) in [(0, 4), (1, 5)] {
            let cache = spec.cache.clone();
            ours[i] = B::cache_write(ours[i].clone(), rows(seed, at, count), cache.clone(), at);
            plain[i] = reference::cache_write::<B>(plain[i].clone(), rows(seed, at, count), cache, at);
        }
    }
    let [k, v] = ours;
    let got = <B as Kernels>::attention(q(), k, v, spec.clone());
    let [k, v] = plain;
    [got, reference::attention::<B>(q(), k, v, spec.clone())].map(values::<B>)
}

fn check_attention<B: Kernels>() {
    for cache_type in [CacheType::F32, CacheType::F16, CacheType::Q8_0] {
        // Heads in groups of 1, 2, 3 and 5; starts around the edges of blocks (64) and splits (256); rings that have wrapped.
        for (n_heads, n_kv_heads, head_dim, start, t, window) in [
            (2, 2, 8, 0, 1, None),
            (4, 2, 20, 0, 40, None),
            (6, 2, 64, 63, 3, None),
            (5, 1, 34, 64, 1, None),
            (3, 3, 40, 255, 2, None),
            (6, 2, 16, 256, 1, None),
            (3, 1, 72, 250, 13, None),
            (4, 2, 16, 5, 9, Some(3)),
            (4, 2, 16, 100, 40, Some(24)),
            (6, 2, 32, 300, 1, Some(70)),
        ] {
            let capacity = window.map_or(start + t + 3, |window| window + t.max(16));
            let cache = CacheSpec { n_kv_heads, capacity, head_dim, cache_type };
            let spec = AttentionSpec { n_heads, start, window, scale: (head_dim as f32).powf(-0.5), cache };
            let [got, want] = attend::<B>(&spec, t);
            assert_close(&got, &want, F32_TOLERANCE, &format!("{t} tokens, {spec:?}"));
        }
    }
}

#[test]
fn attention_equals_softmax_of_a_masked_product() {
    on_every_backend!(check_attention);
}
