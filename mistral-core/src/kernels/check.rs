//! Known inputs: what the kernels of a device with memory of its own make of them, beside the reference. Its compiler, its driver and the
//! adapter itself are not part of this library, and a kernel that fails there may leave numbers that look like an answer.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Flex, TensorData, read_sync};
use burn::tensor::{Device, Int, Tensor};

use super::{
    Angles, AttentionSpec, CacheSpec, CacheType, Layout, LinearSpec, ROWS_ALIKE, Unnormed, reference,
};
use crate::config::RopeStyle;
use crate::device;
use crate::error::{Error, Result};

/// Two f32 computations of one thing that add in different orders, relative to what they add up. A device may also round a division, a root or an
/// exponential by some units in the last place.
const TOLERANCE: f32 = 1e-5;

/// No number of a norm of [`numbers`] is larger, beside 1, the largest of what is not normed.
const LARGEST_NORMED: f32 = 4.0;

/// Numbers in [-1, 1), always the same.
pub fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let number = |i: u32| i.wrapping_add(seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761) >> 8;
    (0..count as u32).map(|i| (number(i ^ (i >> 3)) as f32 / (1 << 23) as f32) - 1.0).collect()
}

fn on_host(values: &[f32], shape: &[usize]) -> FloatTensor<Flex> {
    use burn::backend::ops::FloatTensorOps;
    Flex::float_from_data(TensorData::new(values.to_vec(), shape.to_vec()), &Default::default())
}

fn bytes_on_host(values: &[u8]) -> IntTensor<Flex> {
    use burn::backend::ops::IntTensorOps;
    Flex::int_from_data(TensorData::new(values.to_vec(), [values.len()]), &Default::default())
}

fn values(tensor: FloatTensor<Flex>) -> Vec<f32> {
    use burn::backend::ops::FloatTensorOps;
    let data = read_sync(Flex::float_into_data(tensor)).expect("host memory can be read");
    data.try_into_vec().expect("f32")
}

/// Kernels of one device, whose answers are compared.
pub struct Check<'a> {
    device: &'a Device,
}

impl<'a> Check<'a> {
    /// Of the kernels of `device`.
    pub fn new(device: &'a Device) -> Self {
        Self { device }
    }

    fn tensor<const D: usize>(&self, values: &[f32], shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values.to_vec(), shape), self.device)
    }

    /// Stored bytes, as the device holds them.
    fn stored(&self, bytes: Vec<u8>) -> Tensor<1, Int> {
        let stored = device::stored(self.device);
        let data = TensorData::from_bytes_vec(bytes.clone(), [bytes.len() / stored.size()], stored);
        Tensor::from_data(data, (self.device, stored))
    }

    fn equal<const D: usize>(&self, what: &str, got: Tensor<D>, want: &[f32], scale: &[f32]) -> Result<()> {
        let failed = |reason: String| Error::Device { device: format!("{:?}", self.device), reason };
        let data = got.try_into_data().map_err(|error| failed(format!("{what}: {error}")))?;
        let got: Vec<f32> = data.try_into_vec().map_err(|error| failed(format!("{what}: {error:?}")))?;
        let bound = |i: usize| TOLERANCE * scale[i % scale.len()].max(1e-3);
        let wrong = (0..want.len()).find(|&i| {
            got.get(i).is_none_or(|got| got.is_nan() != want[i].is_nan() || (got - want[i]).abs() > bound(i))
        });
        match wrong {
            None if got.len() == want.len() => Ok(()),
            _ => {
                let i = wrong.unwrap_or(want.len());
                let (got, want) = (got.get(i), want.get(i));
                Err(failed(format!("kernel {what} computes {got:?} at {i} where the reference has {want:?}")))
            }
        }
    }

    /// The product of `m` rows with a matrix whose `bytes` lie in host memory as `spec` says.
    ///
    /// # Errors
    /// [`Error::Device`] if the kernel's answer is not the reference's.
    pub fn linear(&self, bytes: &[u8], spec: &LinearSpec, m: usize) -> Result<()> {
        let x = numbers(m * spec.cols, 7);
        let want = values(reference::linear::<Flex>(
            on_host(&x, &[m, spec.cols]),
            bytes_on_host(bytes),
            spec.clone(),
        ));
        let got = super::linear(self.tensor(&x, [m, spec.cols]), &self.weight(bytes, spec), spec);
        let what = format!("linear {} [{m}, {}] x {}", spec.format.name(), spec.cols, spec.rows);
        self.equal(&what, got, &want, &sums(bytes, spec))
    }

    /// Three products of one input at once.
    ///
    /// # Errors
    /// As [`Check::linear`].
    pub fn linear_triple(&self, matrices: [(&[u8], &LinearSpec); 3], m: usize) -> Result<()> {
        let cols = matrices[0].1.cols;
        let x = numbers(m * cols, 7);
        let [a, b, c] = &matrices.map(|(bytes, spec)| self.weight(bytes, spec));
        let specs = matrices.map(|(_, spec)| spec);
        let got = super::linear_triple(self.tensor(&x, [m, cols]), [a, b, c], specs);
        for (got, (bytes, spec)) in got.into_iter().zip(matrices) {
            let want = reference::linear::<Flex>(on_host(&x, &[m, cols]), bytes_on_host(bytes), spec.clone());
            self.equal("linear_triple", got, &values(want), &sums(bytes, spec))?;
        }
        let (unnormed, sum, x) = self.unnormed(m, cols);
        let (got_sum, got) = super::normed_triple(unnormed, [a, b, c], specs);
        self.equal("normed_triple, sum", got_sum, &sum, &[2.0])?;
        for (got, (bytes, spec)) in got.into_iter().zip(matrices) {
            let want = reference::linear::<Flex>(x.clone(), bytes_on_host(bytes), spec.clone());
            let scale: Vec<f32> = sums(bytes, spec).iter().map(|sum| sum * LARGEST_NORMED).collect();
            self.equal("normed_triple", got, &values(want), &scale)?;
        }
        Ok(())
    }

    /// `m` rows to be normed, their sum, and their norm.
    fn unnormed(&self, m: usize, cols: usize) -> (Unnormed, Vec<f32>, FloatTensor<Flex>) {
        let (x, r, weight) = (numbers(m * cols, 7), numbers(m * cols, 8), numbers(cols, 3));
        let sum: Vec<f32> = x.iter().zip(&r).map(|(x, r)| x + r).collect();
        let normed = reference::rms_norm::<Flex>(on_host(&sum, &[m, cols]), on_host(&weight, &[cols]), 1e-5);
        let [x, r] = [x, r].map(|values| self.tensor(&values, [m, cols]));
        (Unnormed { x, r, weight: self.tensor(&weight, [cols]), eps: 1e-5 }, sum, normed)
    }

    /// Gate and up and their product, of a norm, too, and that of an expert that was chosen.
    ///
    /// # Errors
    /// As [`Check::linear`].
    pub fn linear_swiglu(&self, matrices: [(&[u8], &LinearSpec); 2], m: usize) -> Result<()> {
        let cols = matrices[0].1.cols;
        let x = numbers(m * cols, 7);
        let [a, b] = &matrices.map(|(bytes, spec)| self.weight(bytes, spec));
        let (on_device, specs) = (self.tensor(&x, [m, cols]), matrices.map(|(_, spec)| spec));
        let (want, scale) = swiglu_on_host(matrices, &on_host(&x, &[m, cols]));
        let got = super::linear_swiglu(on_device.clone(), [a, b], specs);
        self.equal("linear_swiglu", got, &want, &scale)?;
        if m == 1 {
            let routes = self.tensor(&[0.0, 0.5], [1, 2]);
            let got = super::linear_swiglu_if(on_device, [a, b], routes, specs, 1);
            self.equal("linear_swiglu_if", got, &want, &scale)?;
        }
        let (unnormed, sum, x) = self.unnormed(m, cols);
        let (want, mut scale) = swiglu_on_host(matrices, &x);
        scale.iter_mut().for_each(|sum| *sum *= LARGEST_NORMED);
        let [got_sum, got] = super::normed_swiglu(unnormed, [a, b], specs);
        self.equal("normed_swiglu, sum", got_sum, &sum, &[2.0])?;
        self.equal("normed_swiglu", got, &want, &scale)
    }

    /// [`super::linear_add`] of an expert that was chosen, and of one that was not.
    ///
    /// # Errors
    /// As [`Check::linear`].
    pub fn linear_add(&self, bytes: &[u8], spec: &LinearSpec) -> Result<()> {
        let (x, sum) = (numbers(spec.cols, 7), numbers(spec.rows, 8));
        let product =
            reference::linear::<Flex>(on_host(&x, &[1, spec.cols]), bytes_on_host(bytes), spec.clone());
        let scale: Vec<f32> = sums(bytes, spec).iter().map(|sum| sum + 1.0).collect();
        for (expert, route) in [(0, 0.0f32), (1, 0.75)] {
            let routes = on_host(&[0.0, 0.75], &[1, 2]);
            let sum_on_host = on_host(&sum, &[1, spec.rows]);
            let want = reference::add_weighed::<Flex>(sum_on_host, product.clone(), routes, expert);
            let got = super::linear_add(
                self.tensor(&sum, [1, spec.rows]),
                self.tensor(&x, [1, spec.cols]),
                self.weight(bytes, spec),
                self.tensor(&[0.0, 0.75], [1, 2]),
                spec,
                expert,
            );
            self.equal(&format!("linear_add of {route}"), got, &values(want), &scale)?;
        }
        Ok(())
    }

    /// A weight whose bytes lie in host memory, as the device holds it.
    fn weight(&self, bytes: &[u8], spec: &LinearSpec) -> Tensor<1, Int> {
        self.stored(match spec.layout {
            Layout::Packed => bytes.to_vec(),
            Layout::Rows => super::words(bytes.to_vec(), spec),
        })
    }

    /// Norm, with and without a sum, and gate of `t` rows.
    ///
    /// # Errors
    /// As [`Check::linear`].
    pub fn elementwise(&self, t: usize, width: usize) -> Result<()> {
        let (x, y, weight) = (numbers(t * width, 1), numbers(t * width, 2), numbers(width, 3));
        let host = |values: &[f32]| on_host(values, &[t, width]);
        let norm = |x: FloatTensor<Flex>| reference::rms_norm::<Flex>(x, on_host(&weight, &[width]), 1e-5);
        let tensor = |values: &[f32]| self.tensor(values, [t, width]);
        let weights = self.tensor(&weight, [width]);
        let got = super::rms_norm(tensor(&x), weights.clone(), 1e-5);
        self.equal("rms_norm", got, &values(norm(host(&x))), &[4.0])?;
        let both: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        let [sum, normed] = super::add_rms_norm(tensor(&x), tensor(&y), weights, 1e-5);
        self.equal("add_rms_norm, sum", sum, &both, &[2.0])?;
        self.equal("add_rms_norm", normed, &values(norm(host(&both))), &[4.0])?;
        let want = values(reference::swiglu::<Flex>(host(&x), host(&y)));
        self.equal("swiglu", super::swiglu(tensor(&x), tensor(&y)), &want, &[1.0])
    }

    /// A cache that is filled to `spec.start`, written `t` positions more, and attended from them.
    ///
    /// # Errors
    /// As [`Check::linear`].
    pub fn attention(&self, spec: &AttentionSpec, t: usize, style: RopeStyle) -> Result<()> {
        let CacheSpec { n_kv_heads, head_dim, cache_type, .. } = spec.cache;
        let (width, half, all) = (n_kv_heads * head_dim, head_dim / 2, spec.start + t);
        let queries = spec.n_heads * head_dim;
        let rows = [numbers(all * width, 4), numbers(all * width, 5)];
        // No larger than numbers that were rotated: a cosine and a sine.
        let turns: Vec<f32> = numbers(all * half, 6).iter().map(|x| x * 3.0).collect();
        let angles = |range: std::ops::Range<usize>| {
            let turns = &turns[range.start * half..range.end * half];
            [turns.iter().map(|x| x.cos()).collect::<Vec<f32>>(), turns.iter().map(|x| x.sin()).collect()]
        };
        let rotated = |x: &[f32], width: usize, range: std::ops::Range<usize>| {
            let shape = [range.len(), half];
            let [cos, sin] = angles(range).map(|angles| on_host(&angles, &shape));
            reference::rope::<Flex>(on_host(x, &[shape[0], width]), cos, sin, style)
        };
        let ours_of = |range: std::ops::Range<usize>| {
            let shape = [range.len(), half];
            let [cos, sin] = angles(range).map(|angles| self.tensor(&angles, shape));
            Angles { cos, sin, style }
        };
        let empty = vec![0; spec.cache.bytes()];
        let mut ours = [self.stored(empty.clone()), self.stored(empty.clone())];
        let mut plain = [bytes_on_host(&empty), bytes_on_host(&empty)];
        let mut before = ours.clone();
        let steps = (0..spec.start).step_by(16).map(|at| at..(at + 16).min(spec.start));
        for range in steps.chain(std::iter::once(spec.start..all)) {
            let parts = rows.each_ref().map(|rows| &rows[range.start * width..range.end * width]);
            let (shape, cache) = ([range.len(), width], &spec.cache);
            let tensors = parts.map(|part| self.tensor(part, shape));
            before = ours.clone();
            ours = super::cache_write_rotated(ours, tensors, &ours_of(range.clone()), cache, range.start);
            let [k, v] = plain;
            let write =
                |cache, rows| reference::cache_write::<Flex>(cache, rows, spec.cache.clone(), range.start);
            plain = [write(k, rotated(parts[0], width, range.clone())), write(v, on_host(parts[1], &shape))];
        }
        let q = numbers(t * queries, 9);
        let [k, v] = plain;
        let turned = rotated(&q, queries, spec.start..all);
        let want = values(reference::attention::<Flex>(turned, k, v, spec.clone()));
        let [k, v] = ours.clone();
        let (angles, q) = (ours_of(spec.start..all), self.tensor(&q, [t, queries]));
        let got = super::attention_rotated(q.clone(), &angles, k, v, spec.clone());
        let what = format!("attention {} [{t}, {} of {head_dim}]", cache_type.name(), spec.n_heads);
        self.equal(&what, got, &want, &[1.0])?;
        let [k, v] = rows.map(|rows| self.tensor(&rows[spec.start * width..], [t, width]));
        let (got, caches) = super::cached_attention([q, k, v], [&angles; 2], before, spec.clone());
        self.equal(&format!("cached {what}"), got, &want, &[1.0])?;
        let same = |[a, b]: [Tensor<1, Int>; 2]| matches!([a.try_into_data(), b.try_into_data()], [Ok(a), Ok(b)] if a.as_bytes() == b.as_bytes());
        let [[a, b], [c, d]] = [caches, ours];
        if same([a, c]) && same([b, d]) {
            return Ok(());
        }
        let reason =
            format!("kernel cached {what} stores other keys and values than the one that only stores them");
        Err(Error::Device { device: format!("{:?}", self.device), reason })
    }
}

/// What gate and up make of `x`, and what their rows add up, at most: what is off in one product is multiplied by the other.
fn swiglu_on_host(matrices: [(&[u8], &LinearSpec); 2], x: &FloatTensor<Flex>) -> (Vec<f32>, Vec<f32>) {
    let [gate, up] = matrices
        .map(|(bytes, spec)| reference::linear::<Flex>(x.clone(), bytes_on_host(bytes), spec.clone()));
    let largest = [&gate, &up].into_iter().flat_map(|product| values(product.clone()));
    let largest = largest.fold(1f32, |largest, x| largest.max(x.abs()));
    let [gate_sums, up_sums] = matrices.map(|(bytes, spec)| sums(bytes, spec));
    let scale = gate_sums.iter().zip(up_sums).map(|(a, b)| (a + b) * largest).collect();
    (values(reference::swiglu::<Flex>(gate, up)), scale)
}

/// What the magnitudes of each row of a matrix add up to.
fn sums(bytes: &[u8], spec: &LinearSpec) -> Vec<f32> {
    let weights = reference::decode(bytes, spec);
    weights.chunks_exact(spec.cols.max(1)).map(|row| row.iter().map(|w| w.abs()).sum()).collect()
}

/// The attention of a model's shape, over a few positions, for up to [`ROWS_ALIKE`] and one more tokens: of one part, and around position 256, where kernels may begin another one.
pub fn small_attentions(
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    cache_type: CacheType,
) -> [AttentionSpec; 2] {
    [30, 256].map(|start| {
        let window = 20;
        let cache = CacheSpec { n_kv_heads, capacity: window + ROWS_ALIKE + 1, head_dim, cache_type };
        AttentionSpec { n_heads, start, window: Some(window), scale: (head_dim as f32).powf(-0.5), cache }
    })
}
