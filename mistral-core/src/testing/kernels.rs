//! The kernels by themselves, for `benches/kernels.rs`: those of packed weights arm by arm, of numbers as weights, and attention.

use std::hint::black_box;
use std::sync::Arc;

use super::Random;
use crate::error::{Error, Result};
use crate::kernels::cpu::attention::attention;
use crate::kernels::cpu::cache::cache_write;
use crate::kernels::cpu::dense::{DenseMatrix, FMA_PEAK_PRODUCTS, fma_peak, linear};
use crate::kernels::cpu::packed::{
    Arena, Arm, BlockMatrix, DOT_PEAK_PRODUCTS, PackedBytes, dot_peak, linear_on, multiplies_rows,
    packed_len, repack,
};
use crate::kernels::cpu::pool::Pool;
#[cfg(feature = "wgpu")]
pub use crate::kernels::wgpu::{limits::Limits as AdapterLimits, timing::Adapter};
use crate::kernels::{Activation, AttentionSpec, CacheSpec, Layout};
use crate::quant::Format;
use crate::weights::Fp8Scale;

/// A matrix `[rows, cols]` of random blocks, in the form in which a processor multiplies a file's, and the threads that multiply by it.
pub struct KernelCase {
    format: Format,
    layout: Layout,
    rows: usize,
    cols: usize,
    data: PackedBytes,
    pool: Arc<Pool>,
}

/// What the adapter of `model`, if it is on one, does at most.
#[cfg(feature = "wgpu")]
pub fn adapter_limits(model: &crate::engine::Model) -> Option<AdapterLimits> {
    let gpu = model.device().gpu.as_ref()?;
    let bytes = gpu.max_tensor_bytes().min(512 << 20) as usize;
    Some(AdapterLimits::measure(gpu.runtime(), bytes))
}

/// The arms that this machine can run, the best one first.
pub fn arms() -> Vec<&'static str> {
    Arm::available().into_iter().map(Arm::name).collect()
}

fn arm(name: &str) -> Result<Arm> {
    let found = Arm::available().into_iter().find(|arm| arm.name() == name);
    found.ok_or_else(|| Error::argument("arm", name, arms().join(", ")))
}

impl KernelCase {
    /// # Errors
    /// If the format has no packed form, the shape does not fit it, or memory or threads are not given.
    pub fn new(format: Format, rows: usize, cols: usize, threads: usize) -> Result<Self> {
        let mut random = Random::new(1);
        let mut blocks = vec![0; format.row_bytes(cols)? * rows];
        blocks.fill_with(|| random.bits() as u8);
        let mut arena = Arena::default();
        let layout = if multiplies_rows(format) { Layout::Rows } else { Layout::Packed };
        let mut data;
        if layout == Layout::Rows {
            data = arena.zeroed(blocks.len())?;
            data.copy_from_slice(&blocks);
        } else {
            data = arena.zeroed(packed_len(format, rows, cols)?)?;
            repack(format, rows, cols, &blocks, &mut data)?;
            arena.into_large_pages().wait();
        }
        let pool =
            Pool::new(threads).map_err(|e| Error::limit("threads", threads.to_string(), e.to_string()))?;
        Ok(Self { format, layout, rows, cols, data, pool: Arc::new(pool) })
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Multiplies `x: [m, cols]` by the matrix, with the kernels of that arm.
    ///
    /// # Errors
    /// If this machine has no such arm.
    pub fn run(&self, arm_name: &str, activation: Activation, x: &[f32], m: usize) -> Result<()> {
        let arm = arm(arm_name)?;
        let mut out = vec![0.0; m * self.rows];
        let &Self { format, layout, rows, cols, ref data, .. } = self;
        let matrix = BlockMatrix { format, layout, rows, cols, data };
        self.pool.scope(None, || linear_on(arm, activation, x, m, vec![(matrix, &mut out)]));
        black_box(out);
        Ok(())
    }

    /// Products of codes of four bits and activations that `rounds` rounds on each thread compute from the first-level cache: the limit of the
    /// arithmetic.
    ///
    /// # Errors
    /// As [`KernelCase::run`].
    pub fn peak(&self, arm_name: &str, rounds: usize) -> Result<u64> {
        let arm = arm(arm_name)?;
        let threads = self.pool.threads();
        self.pool.scope(None, || self.pool.run(threads, &|_| dot_peak(arm, rounds)));
        Ok((threads * rounds * DOT_PEAK_PRODUCTS) as u64)
    }
}

/// A matrix `[rows, cols]` of random numbers as they stand in a file, FP8 with a scale for each 128 × 128, and the threads that multiply by it, with the best arm.
pub struct NumbersCase {
    format: Format,
    rows: usize,
    cols: usize,
    data: Vec<u8>,
    scale: Option<Fp8Scale>,
    pool: Arc<Pool>,
}

impl NumbersCase {
    /// # Errors
    /// If threads are not given.
    pub fn new(format: Format, rows: usize, cols: usize, threads: usize) -> Result<Self> {
        // A row, again and again: what is multiplied does not change how long it takes.
        let data = Random::new(1).tensor("w", format, &[1, cols]).bytes.repeat(rows);
        let scale = (format == Format::F8E4M3).then(|| Fp8Scale::Block {
            rows: 128,
            cols: 128,
            values: vec![0.01; rows.div_ceil(128) * cols.div_ceil(128)],
        });
        let pool =
            Pool::new(threads).map_err(|e| Error::limit("threads", threads.to_string(), e.to_string()))?;
        Ok(Self { format, rows, cols, data, scale, pool: Arc::new(pool) })
    }

    /// Bytes of the matrix.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Multiplies `x: [m, cols]` by the matrix.
    pub fn run(&self, x: &[f32], m: usize) {
        let mut out = vec![0.0; m * self.rows];
        let &Self { format, rows, cols, ref data, ref scale, .. } = self;
        let matrix = DenseMatrix { format, rows, cols, data, scale: scale.as_ref() };
        self.pool.scope(None, || linear(x, m, vec![(matrix, &mut out)]));
        black_box(out);
    }

    /// Products of f32 that `rounds` rounds on each thread add up in registers: the limit of the arithmetic.
    pub fn peak(&self, rounds: usize) -> u64 {
        let threads = self.pool.threads();
        self.pool.scope(None, || self.pool.run(threads, &|_| fma_peak(rounds)));
        (threads * rounds * FMA_PEAK_PRODUCTS) as u64
    }
}

/// The keys and values of some layers, and one token that looks at all of them.
pub struct AttentionCase {
    spec: AttentionSpec,
    q: Vec<f32>,
    layers: Vec<[Vec<u8>; 2]>,
    pool: Arc<Pool>,
}

impl AttentionCase {
    /// `layers` caches of `spec.cache`, which are full up to position `spec.start`, where the token is.
    ///
    /// # Errors
    /// If threads are not given.
    pub fn new(spec: AttentionSpec, layers: usize, threads: usize) -> Result<Self> {
        let mut random = Random::new(2);
        let CacheSpec { n_kv_heads, head_dim, .. } = spec.cache;
        let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| random.unit()).collect() };
        let q = numbers(spec.n_heads * head_dim);
        let rows = numbers((spec.start + 1) * n_kv_heads * head_dim);
        let filled = || {
            let mut cache = vec![0; spec.cache.bytes()];
            cache_write(&mut cache, &rows, &spec.cache, 0);
            cache
        };
        let layers = (0..layers).map(|_| [filled(), filled()]).collect();
        let pool =
            Pool::new(threads).map_err(|e| Error::limit("threads", threads.to_string(), e.to_string()))?;
        Ok(Self { spec, q, layers, pool: Arc::new(pool) })
    }

    /// Bytes of keys and values that one run reads.
    pub fn bytes(&self) -> usize {
        let row = self.spec.cache.cache_type.row_bytes(self.spec.cache.head_dim);
        2 * self.layers.len() * self.spec.cache.n_kv_heads * (self.spec.start + 1) * row
    }

    /// The token at every layer, one after the other, and that `times` times.
    pub fn run(&self, times: usize) {
        self.pool.scope(None, || {
            for [k, v] in (0..times).flat_map(|_| &self.layers) {
                black_box(attention(&self.q, k, v, &self.spec));
            }
        });
    }
}
