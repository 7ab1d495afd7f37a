//! The kernels against the reference, on shapes that fit no cube.

use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor, TensorData};

use crate::config::RopeStyle;
use crate::device::{self, Opened};
use crate::kernels::check::Check;
use crate::kernels::cpu::packed::{has_packed_form, packed_len, repack};
use crate::kernels::{
    self, Activation, Angles, AttentionSpec, CacheSpec, CacheType, Layout, LinearSpec, ROWS_ALIKE, Unnormed,
};
use crate::quant::Format;
use crate::testing::Random;
use crate::weights::Fp8Scale;

fn open() -> Opened {
    device::open("wgpu", 0)
        .unwrap_or_else(|e| panic!("{e}: these tests need a driver, such as Mesa's lavapipe"))
}

fn scales(rows: usize, cols: usize) -> [Fp8Scale; 3] {
    let count = rows.div_ceil(16) * cols.div_ceil(16);
    [
        Fp8Scale::Scalar(0.375),
        Fp8Scale::PerRow((0..rows).map(|row| 0.25 + row as f32).collect()),
        Fp8Scale::Block { rows: 16, cols: 16, values: (0..count).map(|i| 1.0 + i as f32 / 8.0).collect() },
    ]
}

#[test]
fn linear_layers_equal_decoded_matrices() {
    let opened = open();
    let check = Check::new(&opened.device);
    for format in Format::all().filter(|format| has_packed_form(*format) || super::multiplies(*format)) {
        let widths: &[usize] = match format.block_len() {
            1 => &[1, 43, 144, 160],
            32 => &[32, 96, 288, 512],
            _ => &[256, 768, 256, 512],
        };
        for (&cols, rows) in widths.iter().zip([1, 35, 33, 100]) {
            let data = Random::new(rows as u64).tensor("w", format, &[rows, cols]).bytes;
            let (layout, data) = match has_packed_form(format) {
                false => (Layout::Rows, data),
                true => {
                    let mut out = vec![0; packed_len(format, rows, cols).unwrap()];
                    repack(format, rows, cols, &data, &mut out).unwrap();
                    (Layout::Packed, out)
                }
            };
            let scales = match format {
                Format::F8E4M3 => scales(rows, cols).map(|scale| Some(Arc::new(scale))).to_vec(),
                _ => vec![None],
            };
            for scale in scales {
                let activation = Activation::F32;
                let spec = LinearSpec { format, layout, rows, cols, scale, activation };
                for m in [1, 2, 9, 70] {
                    check.linear(&data, &spec, m).unwrap();
                }
                check.linear_add(&data, &spec).unwrap();
            }
        }
    }
    opened.check().unwrap();
}

/// As guesses at what follows need it: a row that is evaluated with others gives the token that it gives alone.
#[test]
fn a_row_has_the_bits_of_a_row_alone() {
    let opened = open();
    let tensor = |values: Vec<f32>, rows: usize, cols: usize| {
        Tensor::<2>::from_data(TensorData::new(values, [rows, cols]), &opened.device)
    };
    for (format, rows, cols) in [(Format::Q4_K, 33, 512), (Format::Q6_K, 16, 256), (Format::F16, 35, 144)] {
        let data = Random::new(3).tensor("w", format, &[rows, cols]).bytes;
        let layout = if has_packed_form(format) { Layout::Packed } else { Layout::Rows };
        let spec = LinearSpec { format, layout, rows, cols, scale: None, activation: Activation::F32 };
        let bytes = match layout {
            Layout::Rows => super::weight_bytes(data, &spec),
            Layout::Packed => {
                let mut out = vec![0; packed_len(format, rows, cols).unwrap()];
                repack(format, rows, cols, &data, &mut out).unwrap();
                out
            }
        };
        let words = TensorData::from_bytes_vec(bytes.clone(), [bytes.len() / 4], DType::U32);
        let weight = Tensor::<1, Int>::from_data(words, (&opened.device, DType::U32));
        let mut random = Random::new(4);
        let x: Vec<f32> = (0..ROWS_ALIKE * cols).map(|_| random.unit()).collect();
        let product = |x: &[f32]| -> Vec<f32> {
            let product = kernels::linear(tensor(x.to_vec(), x.len() / cols, cols), &weight, &spec);
            product.try_into_data().unwrap().try_into_vec().unwrap()
        };
        let normed = |x: &[f32]| -> Vec<Vec<f32>> {
            let x = tensor(x.to_vec(), x.len() / cols, cols);
            let weight_of_norm = Tensor::ones([cols], &opened.device) * 0.7;
            let unnormed = Unnormed { r: x.clone() * 0.3, x, weight: weight_of_norm, eps: 1e-5 };
            let (_, products) = kernels::normed_triple(unnormed.clone(), [&weight; 3], [&spec; 3]);
            let [_, gated] = kernels::normed_swiglu(unnormed, [&weight; 2], [&spec; 2]);
            let all = products.into_iter().chain([gated]);
            all.map(|all| all.try_into_data().unwrap().try_into_vec().unwrap()).collect()
        };
        let (together, all_normed) = (product(&x), normed(&x));
        for (i, x) in x.chunks(cols).enumerate() {
            assert_eq!(together[i * rows..][..rows], product(x), "{}", format.name());
            for (all, alone) in all_normed.iter().zip(normed(x)) {
                assert_eq!(all[i * rows..][..rows], alone, "{} of a norm", format.name());
            }
        }
    }
}

/// A matrix of random numbers, as a device with memory of its own has it.
fn matrix(format: Format, rows: usize, cols: usize) -> (Vec<u8>, LinearSpec) {
    let data = Random::new(rows as u64 + 1).tensor("w", format, &[rows, cols]).bytes;
    let layout = if has_packed_form(format) { Layout::Packed } else { Layout::Rows };
    let spec = LinearSpec { format, layout, rows, cols, scale: None, activation: Activation::F32 };
    if layout == Layout::Rows {
        return (data, spec);
    }
    let mut out = vec![0; packed_len(format, rows, cols).unwrap()];
    repack(format, rows, cols, &data, &mut out).unwrap();
    (out, spec)
}

/// Matrices of several formats that meet one input, and widths of which some have no kernel for several.
#[test]
fn matrices_multiplied_together_equal_decoded_ones() {
    let opened = open();
    let check = Check::new(&opened.device);
    let kinds = [
        ([Format::Q4_K, Format::Q4_K, Format::Q6_K], 512),
        ([Format::Q4_0, Format::Q8_0, Format::Q4_1], 96),
        ([Format::BF16, Format::F16, Format::F32], 132),
        ([Format::F16, Format::Q4_0, Format::F32], 64),
        ([Format::F32, Format::F16, Format::BF16], 43),
    ];
    for (formats, cols) in kinds {
        for rows in [[40, 40, 7], [3, 17, 33]] {
            let [a, b, c] = std::array::from_fn(|i| matrix(formats[i], rows[i], cols));
            for m in [1, 9, ROWS_ALIKE + 1] {
                let all = [(&a.0[..], &a.1), (&b.0[..], &b.1), (&c.0[..], &c.1)];
                check.linear_triple(all, m).unwrap();
                if rows[0] == rows[1] {
                    check.linear_swiglu([all[0], all[1]], m).unwrap();
                }
            }
        }
    }
    opened.check().unwrap();
}

/// The kernels for several matrices, and the one that stores what it attends to, need more buffers than WebGPU promises.
#[test]
fn an_adapter_with_few_buffers_computes_the_same() {
    let opened = open();
    super::launch::tests::FEW_BUFFERS.set(true);
    let check = Check::new(&opened.device);
    let [a, b, c] = [40, 40, 7].map(|rows| matrix(Format::Q4_0, rows, 96));
    let all = [(&a.0[..], &a.1), (&b.0[..], &b.1), (&c.0[..], &c.1)];
    check.linear_triple(all, 1).unwrap();
    check.linear_swiglu([all[0], all[1]], 1).unwrap();
    for spec in crate::kernels::check::small_attentions(4, 2, 32, CacheType::F16) {
        check.attention(&spec, 1, RopeStyle::Interleaved).unwrap();
    }
}

/// With and without units that add up among themselves: Mesa's driver in software has them, but CubeCL does not use them there.
fn with_and_without_planes(check: impl Fn()) {
    for planes in [false, true] {
        super::launch::tests::PLANES.set(Some(planes));
        check();
    }
}

#[test]
fn norms_and_gates_equal_tensor_operations() {
    let opened = open();
    with_and_without_planes(|| {
        for (t, width) in [(1, 2), (3, 30), (9, 256), (70, 576)] {
            Check::new(&opened.device).elementwise(t, width).unwrap();
        }
    });
}

#[test]
fn attention_equals_softmax_of_a_masked_product() {
    let opened = open();
    with_and_without_planes(|| {
        for cache_type in [CacheType::F32, CacheType::F16] {
            for (n_heads, n_kv_heads, head_dim, start, t, window) in [
                (2, 2, 8, 0, 1, None),
                (4, 2, 20, 0, 40, None),
                (6, 2, 64, 63, 3, None),
                (5, 1, 34, 64, 1, None),
                (3, 3, 40, 255, 2, None),
                (3, 1, 72, 250, 13, None),
                (2, 1, 130, 70, 2, None),
                (2, 1, 128, 700, 3, None),
                (4, 2, 16, 5, 9, Some(3)),
                (4, 2, 16, 100, 40, Some(24)),
                (3, 1, 32, 0, 34, None),
                (6, 2, 64, 30, 130, None),
                (4, 2, 96, 500, 70, None),
                (2, 1, 128, 1000, 65, None),
                (6, 2, 64, 100, 200, Some(40)),
                (2, 1, 32, 300, 400, Some(40)),
                (2, 1, 128, 700, 100, Some(300)),
                (6, 2, 32, 300, 1, Some(70)),
                (6, 2, 32, 600, 4, Some(330)),
            ] {
                let capacity = window.map_or(start + t + 3, |window| window + t.max(16));
                let cache = CacheSpec { n_kv_heads, capacity, head_dim, cache_type };
                let scale = (head_dim as f32).powf(-0.5);
                let spec = AttentionSpec { n_heads, start, window, scale, cache };
                let style = if n_heads == 6 { RopeStyle::HalfSplit } else { RopeStyle::Interleaved };
                Check::new(&opened.device).attention(&spec, t, style).unwrap();
            }
        }
    });
}

/// One that stores its own key and value on its way, of one part and of several, and with a window.
#[test]
fn a_token_attends_alone_as_among_others() {
    let opened = open();
    let tensor = |rows: usize, cols: usize, seed: u32| {
        let numbers = crate::kernels::check::numbers(rows * cols, seed);
        Tensor::<2>::from_data(TensorData::new(numbers, [rows, cols]), &opened.device)
    };
    for (cache_type, start, window) in
        [(CacheType::F16, 0, None), (CacheType::F32, 254, None), (CacheType::F16, 510, Some(300))]
    {
        let (t, n_heads, n_kv_heads, head_dim) = (5, 6, 2, 72);
        let cache = CacheSpec { n_kv_heads, capacity: 600, head_dim, cache_type };
        let spec = |start| AttentionSpec { n_heads, start, window, scale: 0.2, cache: cache.clone() };
        let angles = |from: usize, count: usize| {
            let [cos, sin] = [3, 4].map(|seed| tensor(start + t, head_dim / 2, seed).narrow(0, from, count));
            Angles { cos, sin, style: RopeStyle::HalfSplit }
        };
        let kv = n_kv_heads * head_dim;
        let rows = |from: usize, count: usize| {
            [(n_heads * head_dim, 5), (kv, 6), (kv, 7)]
                .map(|(width, seed)| tensor(start + t, width, seed).narrow(0, from, count))
        };
        let empty = || {
            let words = cache.bytes() / 4;
            [(); 2].map(|()| Tensor::<1, Int>::zeros([words], (&opened.device, DType::U32)))
        };
        let filled = || match start {
            0 => empty(),
            _ => {
                let [_, keys, values] = rows(0, start);
                kernels::cache_write_rotated(empty(), [keys, values], &angles(0, start), &cache, 0)
            }
        };
        let numbers = |x: Tensor<2>| -> Vec<f32> { x.try_into_data().unwrap().try_into_vec().unwrap() };
        let (together, _) =
            kernels::cached_attention(rows(start, t), [&angles(start, t); 2], filled(), spec(start));
        let mut caches = filled();
        for (i, want) in numbers(together).chunks(n_heads * head_dim).enumerate() {
            let at = start + i;
            let alone;
            (alone, caches) = kernels::cached_attention(rows(at, 1), [&angles(at, 1); 2], caches, spec(at));
            assert_eq!(numbers(alone), want, "{} {at}", cache_type.name());
        }
    }
}

/// Halves of every kind, subnormal and infinite ones included, as a matrix: each as itself.
#[test]
fn every_half_is_decoded_exactly() {
    use burn::tensor::{DType, Int, Tensor, TensorData};
    let opened = open();
    let halves: Vec<u16> = (0..=u16::MAX).filter(|bits| half::f16::from_bits(*bits).is_finite()).collect();
    let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    let (rows, cols) = (halves.len(), 1);
    let spec = LinearSpec {
        format: Format::F16,
        layout: Layout::Rows,
        rows,
        cols,
        scale: None,
        activation: Activation::F32,
    };
    let words = super::weight_bytes(bytes, &spec);
    let data = TensorData::from_bytes_vec(words.clone(), [words.len() / 4], DType::U32);
    let weight = Tensor::<1, Int>::from_data(data, (&opened.device, DType::U32));
    let one = Tensor::<2>::from_data(TensorData::new(vec![1.0f32], [1, 1]), &opened.device);
    let got: Vec<f32> =
        crate::kernels::linear(one, &weight, &spec).try_into_data().unwrap().try_into_vec().unwrap();
    for (half, got) in halves.iter().zip(got) {
        assert_eq!(got, half::f16::from_bits(*half).to_f32(), "{half:#06x}");
    }
}

/// Runs the ignored test `name` in a process of its own: what it does to its adapter would fail the others.
fn child(name: &str) {
    let name = format!("kernels::wgpu::tests::{name}");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--ignored", "--test-threads=1"])
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

mod broken {
    use burn_cubecl::cubecl;
    use burn_cubecl::cubecl::prelude::*;

    /// WGSL has no such type.
    #[cube(launch)]
    pub fn in_bf16(out: &mut [f32]) {
        let value = half::bf16::cast_from(out[0] + 1.0f32);
        out[0] = f32::cast_from(value + value);
    }

    #[cube(launch)]
    pub fn fill(out: &mut [f32]) {
        out[UNIT_POS as usize] = 1.0f32;
    }
}

/// A kernel that no adapter can launch: reading what it should have written is an error. And one at which CubeCL's compiler panics, on a thread of its
/// own: nobody is told, and what is read is what was in memory before. Only its answer shows it, which is why [`Check`] asks every kernel for one.
#[test]
fn a_kernel_that_fails_is_an_error_or_gives_another_answer() {
    child("in_a_process_with_a_kernel_in_bf16");
    child("in_a_process_with_too_large_a_cube");
}

/// The first number that a kernel has written, if nothing says that it failed.
fn written(
    launch: impl FnOnce(&burn_cubecl::cubecl::client::Client, burn_cubecl::cubecl::prelude::BufferArg),
) -> Option<f32> {
    let opened = open();
    let client = opened.gpu.as_ref().unwrap().client();
    let handle = client.create_from_slice(&[0; 16]);
    // SAFETY: as long as it was made.
    let argument = unsafe { burn_cubecl::cubecl::prelude::BufferArg::from_raw_parts(handle.clone(), 4) };
    launch(client, argument);
    let read = client.read_one(handle);
    opened.check().ok()?;
    read.ok().map(|bytes| f32::from_le_bytes(std::array::from_fn(|i| bytes[i])))
}

#[test]
#[ignore = "runs in a process of its own"]
fn in_a_process_with_a_kernel_in_bf16() {
    use burn_cubecl::cubecl::prelude::{CubeCount, CubeDim};
    let one = CubeCount::Static(1, 1, 1);
    let answer = written(|client, out| broken::in_bf16::launch(client, one, CubeDim::new_1d(1), out));
    assert_ne!(answer, Some(2.0), "WGSL has bf16 now");
}

#[test]
#[ignore = "runs in a process of its own"]
fn in_a_process_with_too_large_a_cube() {
    use burn_cubecl::cubecl::prelude::{CubeCount, CubeDim};
    let one = CubeCount::Static(1, 1, 1);
    assert_eq!(written(|client, out| broken::fill::launch(client, one, CubeDim::new_1d(1 << 20), out)), None);
}

/// What the cache keeps is what the processor would keep, ties, subnormal halves and overflow included.
#[test]
fn halves_are_rounded_as_on_the_processor() {
    use burn::tensor::{DType, Int, Tensor, TensorData};
    let opened = open();
    let mut values: Vec<f32> = (0..4096u32).map(|i| f32::from_bits(0x3300_0000 + i * 0x4_2001)).collect();
    values.extend((0..1024).map(|i| (i as f32 + 0.5) * 2f32.powi(-24)));
    values.extend([
        0.0,
        -0.0,
        65504.0,
        65519.9,
        65520.0,
        1e9,
        -1e9,
        2f32.powi(-25),
        1.0000001 * 2f32.powi(-25),
    ]);
    values.resize(values.len().next_multiple_of(2), 0.0);
    let spec = CacheSpec { n_kv_heads: 1, capacity: 1, head_dim: values.len(), cache_type: CacheType::F16 };
    let cache = Tensor::<1, Int>::zeros([values.len() / 2], (&opened.device, DType::U32));
    let rows = Tensor::<2>::from_data(TensorData::new(values.clone(), [1, values.len()]), &opened.device);
    // Turned by nothing.
    let angle = |value: f32| {
        Tensor::<2>::from_data(
            TensorData::new(vec![value; values.len() / 2], [1, values.len() / 2]),
            &opened.device,
        )
    };
    let angles = Angles { cos: angle(1.0), sin: angle(0.0), style: RopeStyle::Interleaved };
    let (caches, rows) = ([cache.clone(), cache], [rows.clone(), rows]);
    let [_, cache] = crate::kernels::cache_write_rotated(caches, rows, &angles, &spec, 0);
    let words: Vec<u32> = cache.try_into_data().unwrap().try_into_vec().unwrap();
    for (pair, word) in values.chunks(2).zip(words) {
        let want = [0, 1].map(|i| half::f16::from_f32(pair[i]).to_bits());
        let got = [word as u16, (word >> 16) as u16];
        assert_eq!(got, want, "{pair:?}");
    }
}
