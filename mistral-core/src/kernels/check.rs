//! Known inputs: what the kernels of a device with memory of its own make of them, beside the reference. Its compiler, its driver and the
//! adapter itself are not part of this library, and a kernel that fails there may leave numbers that look like an answer.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Flex, TensorData, read_sync};
use burn::tensor::{Device, Int, Tensor};

use super::{AttentionSpec, CacheSpec, CacheType, Layout, LinearSpec, reference};
use crate::config::RopeStyle;
use crate::device;
use crate::error::{Error, Result};

/// Two f32 computations of one thing that add in different orders, relative to what they add up. A device may also round a division, a root or an
/// exponential by some units in the last place.
const TOLERANCE: f32 = 1e-5;

/// Numbers in [-1, 1), always the same.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
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
        let weights = reference::decode(bytes, spec);
        let sums: Vec<f32> =
            weights.chunks_exact(spec.cols.max(1)).map(|row| row.iter().map(|w| w.abs()).sum()).collect();
        let stored = match spec.layout {
            Layout::Packed => bytes.to_vec(),
            Layout::Rows => super::words(bytes.to_vec(), spec),
        };
        let got = super::linear(self.tensor(&x, [m, spec.cols]), &self.stored(stored), spec);
        let what = format!("linear {} [{m}, {}] x {}", spec.format.name(), spec.cols, spec.rows);
        self.equal(&what, got, &want, &sums)
    }

    /// Norm, rotation and gate of `t` rows.
    ///
    /// # Errors
    /// As [`Check::linear`].
    pub fn elementwise(&self, t: usize, heads: usize, head_dim: usize, style: RopeStyle) -> Result<()> {
        let (width, half) = (heads * head_dim, head_dim / 2);
        let (x, y, weight) = (numbers(t * width, 1), numbers(t * width, 2), numbers(width, 3));
        let (cos, sin) = (numbers(t * half, 4), numbers(t * half, 5));
        let host = |values: &[f32], width: usize| on_host(values, &[values.len() / width, width]);
        let want = values(reference::rms_norm::<Flex>(host(&x, width), on_host(&weight, &[width]), 1e-5));
        let got = super::rms_norm(self.tensor(&x, [t, width]), self.tensor(&weight, [width]), 1e-5);
        self.equal("rms_norm", got, &want, &[4.0])?;
        let want =
            values(reference::rope::<Flex>(host(&x, width), host(&cos, half), host(&sin, half), style));
        let angles = (self.tensor(&cos, [t, half]), self.tensor(&sin, [t, half]));
        let got = super::rope(self.tensor(&x, [t, width]), angles.0, angles.1, style);
        self.equal("rope", got, &want, &[1.0])?;
        let want = values(reference::swiglu::<Flex>(host(&x, width), host(&y, width)));
        let got = super::swiglu(self.tensor(&x, [t, width]), self.tensor(&y, [t, width]));
        self.equal("swiglu", got, &want, &[1.0])
    }

    /// A cache that is filled to `spec.start`, written `t` positions more, and attended from them.
    ///
    /// # Errors
    /// As [`Check::linear`].
    pub fn attention(&self, spec: &AttentionSpec, t: usize) -> Result<()> {
        let CacheSpec { n_kv_heads, head_dim, cache_type, .. } = spec.cache;
        let (width, all) = (n_kv_heads * head_dim, spec.start + t);
        let queries = spec.n_heads * head_dim;
        let rows = [numbers(all * width, 4), numbers(all * width, 5)];
        let empty = vec![0; spec.cache.bytes()];
        let mut ours = [self.stored(empty.clone()), self.stored(empty.clone())];
        let mut plain = [bytes_on_host(&empty), bytes_on_host(&empty)];
        let steps = (0..spec.start).step_by(16).map(|at| at..(at + 16).min(spec.start));
        for range in steps.chain(std::iter::once(spec.start..all)) {
            for i in 0..2 {
                let part = &rows[i][range.start * width..range.end * width];
                let (cache, shape) = (&spec.cache, [range.len(), width]);
                ours[i] = super::cache_write(ours[i].clone(), self.tensor(part, shape), cache, range.start);
                let part = on_host(part, &shape);
                plain[i] = reference::cache_write::<Flex>(plain[i].clone(), part, cache.clone(), range.start);
            }
        }
        let q = numbers(t * queries, 9);
        let [k, v] = plain;
        let want = values(reference::attention::<Flex>(on_host(&q, &[t, queries]), k, v, spec.clone()));
        let [k, v] = ours;
        let got = super::attention(self.tensor(&q, [t, queries]), k, v, spec.clone());
        let what = format!("attention {} [{t}, {} of {head_dim}]", cache_type.name(), spec.n_heads);
        self.equal(&what, got, &want, &[1.0])
    }
}

/// The attention of a model's shape, over a few positions.
pub fn small_attention(
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    cache_type: CacheType,
) -> AttentionSpec {
    let cache = CacheSpec { n_kv_heads, capacity: 40, head_dim, cache_type };
    AttentionSpec { n_heads, start: 30, window: Some(20), scale: (head_dim as f32).powf(-0.5), cache }
}
