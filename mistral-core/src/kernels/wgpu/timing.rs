//! The kernels of an adapter by themselves, for `benches/adapter.rs`.

use std::time::Instant;

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::limits::Limits;
use crate::config::RopeStyle;
use crate::device::{self, Opened};
use crate::error::{Error, Result};
use crate::kernels::check::numbers;
use crate::kernels::cpu::packed::{has_packed_form, packed_len};
use crate::kernels::{self, Activation, Angles, AttentionSpec, CacheSpec, Layout, LinearSpec};
use crate::quant::Format;

/// Seconds of work before something is measured.
const WARM: f64 = 0.1;
/// Launches that are waited for together, so that the wait is a small part.
const LAUNCHES: usize = 256;
/// Weights of more bytes than a cache of an adapter holds.
const BYTES: usize = 256 << 20;

/// An adapter, and what it does at most.
pub struct Adapter {
    opened: Opened,
}

impl Adapter {
    /// # Errors
    /// See [`device::open`].
    pub fn new(name: &str) -> Result<Self> {
        Ok(Self { opened: device::open(name, 0)? })
    }

    /// Its name.
    pub fn name(&self) -> String {
        let info = self.opened.gpu.as_ref().map(|gpu| gpu.info());
        info.and_then(|info| info["adapter"].as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// What it does at most.
    ///
    /// # Errors
    /// If it is none.
    pub fn limits(&self) -> Result<Limits> {
        let gpu = self.opened.gpu.as_ref();
        let gpu = gpu.ok_or_else(|| Error::argument("device", &self.opened.name, "an adapter"))?;
        Ok(Limits::measure(gpu.runtime(), gpu.max_tensor_bytes().min(512 << 20) as usize))
    }

    /// Words of any bits, but no halves that are infinite or no number.
    fn words(&self, bytes: usize) -> Tensor<1, Int> {
        let word = |i: u32| i.wrapping_mul(2_654_435_761).rotate_left(i % 32) & 0x3fff_3fff;
        let words = (0..(bytes / 4) as u32).map(word).collect::<Vec<_>>();
        let data = TensorData::new(words, [bytes / 4]);
        Tensor::from_data(data, (&self.opened.device, DType::U32))
    }

    fn floats(&self, shape: [usize; 2]) -> Tensor<2> {
        let data = TensorData::new(numbers(shape[0] * shape[1], 1), shape);
        Tensor::from_data(data, &self.opened.device)
    }

    /// Seconds of `launches` of `run`, which is told which of them it is, after others that compile and warm.
    fn time(&self, launches: usize, mut run: impl FnMut(usize)) -> Result<f64> {
        let mut measure = || {
            let start = Instant::now();
            (0..launches).for_each(&mut run);
            self.opened.settle()?;
            Ok(start.elapsed().as_secs_f64() / launches as f64)
        };
        // An adapter that had nothing to do wakes up slowly.
        let start = Instant::now();
        while start.elapsed().as_secs_f64() < WARM {
            measure()?;
        }
        measure()
    }

    /// Bytes of a matrix `[rows, cols]`, and seconds of its product with each number of rows of activations in `tokens`.
    ///
    /// # Errors
    /// If the adapter gives no memory, or a kernel fails.
    pub fn linear(
        &self,
        format: Format,
        rows: usize,
        cols: usize,
        tokens: &[usize],
    ) -> Result<(usize, Vec<f64>)> {
        let layout = if has_packed_form(format) { Layout::Packed } else { Layout::Rows };
        let spec = LinearSpec { format, layout, rows, cols, scale: None, activation: Activation::F32 };
        let bytes = match layout {
            Layout::Packed => packed_len(format, rows, cols)?,
            Layout::Rows => format.row_bytes(cols)? * rows,
        };
        let copies = BYTES.div_ceil(bytes).clamp(1, 64);
        let weights: Vec<_> = (0..copies).map(|_| self.words(bytes)).collect();
        let seconds = tokens.iter().map(|&t| {
            let x = self.floats([t, cols]);
            let launches = if t > 64 { 8 } else { LAUNCHES };
            self.time(launches, |i| drop(kernels::linear(x.clone(), &weights[i % copies], &spec)))
        });
        Ok((bytes, seconds.collect::<Result<_>>()?))
    }

    /// Seconds of attention of `tokens` tokens that come after `spec.start` others.
    ///
    /// # Errors
    /// As [`Adapter::linear`].
    pub fn attention(&self, spec: &AttentionSpec, tokens: usize) -> Result<f64> {
        let CacheSpec { head_dim, .. } = spec.cache;
        let copies = BYTES.div_ceil(2 * spec.cache.bytes()).clamp(1, 32);
        let caches: Vec<_> = (0..copies).map(|_| [(); 2].map(|()| self.words(spec.cache.bytes()))).collect();
        let q = self.floats([tokens, spec.n_heads * head_dim]);
        let [cos, sin] = [(); 2].map(|()| self.floats([tokens, head_dim / 2]));
        let angles = Angles { cos, sin, style: RopeStyle::Interleaved };
        let launches = if tokens > 64 { 8 } else { LAUNCHES };
        self.time(launches, |i| {
            let [k, v] = caches[i % copies].clone();
            drop(kernels::attention_rotated(q.clone(), &angles, k, v, spec.clone()));
        })
    }

    /// Seconds of a launch that computes next to nothing, among many, and of one that is given 16 kB and whose 128 kB are read.
    ///
    /// # Errors
    /// As [`Adapter::linear`].
    pub fn launch(&self) -> Result<[f64; 2]> {
        let spec = |rows, cols| LinearSpec {
            format: Format::F16,
            layout: Layout::Rows,
            rows,
            cols,
            scale: None,
            activation: Activation::F32,
        };
        let (x, weight, small) = (self.floats([1, 32]), self.words(64), spec(1, 32));
        let launch = self.time(4 * LAUNCHES, |_| drop(kernels::linear(x.clone(), &weight, &small)))?;
        let (weight, large) = (self.words(2 * 4096 * 32_768), spec(32_768, 4096));
        let device = self.opened.device.clone();
        let mut read = Ok(());
        let trip = self.time(1, |_| {
            let x = Tensor::from_data(TensorData::new(vec![0.5f32; 4096], [1, 4096]), &device);
            let product = kernels::linear(x, &weight, &large).try_into_data();
            read = product.map(drop).map_err(|error| Error::limit("reading", error.to_string(), "numbers"));
        })?;
        read.map(|()| [launch, trip])
    }
}
