//! From a checkpoint to a transformer on a device: each weight is placed once, in the form in which it will be multiplied.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{AllocationProperty, Bytes, DType, Device, Int, Tensor, TensorData};

#[cfg(feature = "wgpu")]
use crate::cache::KvCache;
use crate::config::{FeedForwardConfig, LayerConfig, ModelConfig};
use crate::control::{Control, Progress};
use crate::device::{self, Opened};
use crate::error::{Error, Result};
#[cfg(feature = "wgpu")]
use crate::kernels::CacheType;
#[cfg(feature = "wgpu")]
use crate::kernels::check::{Check, small_attentions};
use crate::kernels::cpu::packed::{self, Arena};
use crate::kernels::cpu::pool;
use crate::kernels::{self, Activation, Layout, LinearSpec};
use crate::nn::feed_forward::{Moe, SwiGlu};
use crate::nn::{Attention, Embedding, FeedForward, Linear, RmsNorm, Rope};
use crate::quant::Format;
use crate::transformer::{Block, Transformer};
use crate::weights::{Checkpoint, Fp8Scale, TensorView};

/// How weights are placed.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where they go.
    pub device: Opened,
    /// Turn float weights into this block format while loading.
    pub quantize: Option<Format>,
    /// How activations meet block-quantised weights.
    pub activation: Activation,
}

/// Builds the transformer of `checkpoint`, and says where its packed weights lie.
///
/// # Errors
/// Missing or ill-shaped tensors by name, [`Error::Cancelled`], and allocations that fail.
pub fn load(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    control: &mut Control<'_>,
) -> Result<(Transformer, Arena)> {
    let total = checkpoint.total_bytes();
    let (config, arena) = (&checkpoint.config, Arena::default());
    let mut loader = Loader { checkpoint, config, options, control, arena, done: 0, total };
    Ok((loader.transformer()?, loader.arena))
}

/// Runs what a session will run, once: kernels are compiled when they are first used, which takes seconds. Those of a device with memory of its own
/// are held against the reference before.
///
/// # Errors
/// [`Error::Device`] if a kernel fails, or computes something else; [`Error::Cancelled`].
#[cfg(feature = "wgpu")]
pub fn warm(
    transformer: &Transformer,
    config: &ModelConfig,
    device: &Opened,
    control: &mut Control<'_>,
) -> Result<()> {
    let Some(gpu) = &device.gpu else { return Ok(()) };
    device.settle()?;
    let check = Check::new(&device.device);
    let (heads, kv_heads, head_dim) = (config.n_heads, config.n_kv_heads, config.head_dim);
    let style = config.rope.style;
    let steps = 4;
    let mut step = |done| control.step(Progress { phase: "warm", done, total: steps });
    gpu.once("elementwise", || check.elementwise(3, heads * head_dim))?;
    step(1)?;
    for (done, cache_type) in [(2, CacheType::F16), (3, CacheType::F32)] {
        let specs = small_attentions(heads, kv_heads, head_dim, cache_type);
        let name = format!("attention {cache_type:?} {style:?} {head_dim}");
        let mut pairs = specs.iter().flat_map(|spec| [1, 3, kernels::ROWS_ALIKE + 1].map(|t| (spec, t)));
        gpu.once(&name, || pairs.try_for_each(|(spec, t)| check.attention(spec, t, style)))?;
        step(done)?;
    }
    let mut cache = KvCache::new(config, 4, 4, CacheType::F16, device, false)?;
    for tokens in [&[0, 0, 0][..], &[0]] {
        let h = transformer.tok_embeddings.forward(tokens)?;
        let h = transformer.forward(h, &mut cache, &mut || Ok(()))?;
        let logits = transformer.logits(h).try_into_data();
        logits.map_err(|error| Error::Device { device: device.name.clone(), reason: error.to_string() })?;
    }
    device.check()?;
    step(steps)
}

struct Loader<'a, 'c> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
    control: &'a mut Control<'c>,
    arena: Arena,
    done: u64,
    total: u64,
}

impl<'a> Loader<'a, '_> {
    fn transformer(&mut self) -> Result<Transformer> {
        let ModelConfig { dim, vocab_size, norm_eps, .. } = *self.config;
        let embeddings = self.view("tok_embeddings.weight", &[vocab_size, dim])?;
        let output = if self.config.tied_embeddings { "tok_embeddings.weight" } else { "output.weight" };
        // With the last layers, so that of what is on a device only logits come back.
        let last = self.options.device.on_layer(self.config.layers.len());
        Ok(Transformer {
            tok_embeddings: Embedding::new(
                embeddings.shared(),
                embeddings.format,
                embeddings.scale,
                vocab_size,
                dim,
                self.options.device.on_layer(0).device,
            ),
            layers: (0..self.config.layers.len()).map(|i| self.block(i)).collect::<Result<_>>()?,
            norm: self.norm("norm.weight", dim, norm_eps, &last)?,
            output: self.linear(output, vocab_size, dim, &last)?,
            rope: Rope::new(self.config),
        })
    }

    fn block(&mut self, index: usize) -> Result<Block> {
        let ModelConfig { dim, n_heads, n_kv_heads, head_dim, norm_eps, .. } = *self.config;
        let LayerConfig { window, feed_forward } = self.config.layers[index];
        let name = |part: &str| format!("layers.{index}.{part}.weight");
        let on = &self.options.device.on_layer(index);
        #[cfg(feature = "wgpu")]
        self.check_attention(index, on)?;
        Ok(Block {
            device: on.device.clone(),
            attention_norm: self.norm(&name("attention_norm"), dim, norm_eps, on)?,
            attention: Attention {
                wq: self.linear(&name("attention.wq"), n_heads * head_dim, dim, on)?,
                wk: self.linear(&name("attention.wk"), n_kv_heads * head_dim, dim, on)?,
                wv: self.linear(&name("attention.wv"), n_kv_heads * head_dim, dim, on)?,
                wo: self.linear(&name("attention.wo"), dim, n_heads * head_dim, on)?,
                n_heads,
                window,
            },
            ffn_norm: self.norm(&name("ffn_norm"), dim, norm_eps, on)?,
            feed_forward: self.feed_forward(&format!("layers.{index}.feed_forward"), feed_forward, on)?,
        })
    }

    fn feed_forward(&mut self, prefix: &str, config: FeedForwardConfig, on: &Opened) -> Result<FeedForward> {
        Ok(match config {
            FeedForwardConfig::Dense => FeedForward::Dense(self.swiglu(prefix, on)?),
            FeedForwardConfig::Moe { n_experts, n_experts_per_tok } => FeedForward::Moe(Moe {
                gate: self.linear(&format!("{prefix}.gate.weight"), n_experts, self.config.dim, on)?,
                experts: (0..n_experts)
                    .map(|e| self.expert(&format!("{prefix}.experts.{e}"), on))
                    .collect::<Result<_>>()?,
                n_experts_per_tok,
            }),
        })
    }

    fn expert(&mut self, prefix: &str, on: &Opened) -> Result<SwiGlu> {
        #[cfg(feature = "wgpu")]
        self.check_expert(prefix, on)?;
        self.swiglu(prefix, on)
    }

    fn swiglu(&mut self, prefix: &str, on: &Opened) -> Result<SwiGlu> {
        let ModelConfig { dim, hidden_dim, .. } = *self.config;
        #[cfg(feature = "wgpu")]
        self.check_swiglu(prefix, on)?;
        Ok(SwiGlu {
            w1: self.linear(&format!("{prefix}.w1.weight"), hidden_dim, dim, on)?,
            w2: self.linear(&format!("{prefix}.w2.weight"), dim, hidden_dim, on)?,
            w3: self.linear(&format!("{prefix}.w3.weight"), hidden_dim, dim, on)?,
        })
    }

    fn norm(&mut self, name: &str, dim: usize, eps: f32, on: &Opened) -> Result<RmsNorm> {
        let view = self.view(name, &[dim])?;
        let mut weight = vec![0.0; dim];
        view.format.dequantize(view.bytes, &mut weight)?;
        Ok(RmsNorm::new(Tensor::from_data(TensorData::new(weight, [dim]), &on.device), eps))
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize, on: &Opened) -> Result<Linear> {
        let view = self.view(name, &[rows, cols])?;
        let (linear, layout) = place(&view, rows, cols, self.options, on, &mut self.arena)?;
        pool::check()?;
        self.done += view.bytes.len() as u64;
        // The output layer of a tied model was read as the embedding: never more than the whole.
        self.control.step(Progress { phase: "load", done: self.done.min(self.total), total: self.total })?;
        if layout == Layout::Packed {
            self.checkpoint.release(&view);
        }
        Ok(linear)
    }

    fn view(&self, name: &str, shape: &[usize]) -> Result<TensorView<'a>> {
        self.checkpoint.tensor(name, shape)
    }
}

/// The kernels that take several matrices, held against the reference once for each device and combination of formats.
#[cfg(feature = "wgpu")]
impl Loader<'_, '_> {
    fn check_attention(&self, index: usize, on: &Opened) -> Result<()> {
        let ModelConfig { dim, n_heads, n_kv_heads, head_dim, .. } = *self.config;
        let matrices = [("wq", n_heads), ("wk", n_kv_heads), ("wv", n_kv_heads)].map(|(name, heads)| {
            (format!("layers.{index}.attention.{name}.weight"), (heads * head_dim, dim))
        });
        self.once("attention", matrices, on, |check, [a, b, c]| {
            let matrices = [(&a.0[..], &a.1), (&b.0[..], &b.1), (&c.0[..], &c.1)];
            [1, 9].into_iter().try_for_each(|m| check.linear_triple(matrices, m))
        })
    }

    fn check_swiglu(&self, prefix: &str, on: &Opened) -> Result<()> {
        let shape = (self.config.hidden_dim, self.config.dim);
        let matrices = ["w1", "w3"].map(|name| (format!("{prefix}.{name}.weight"), shape));
        self.once("feed_forward", matrices, on, |check, [a, b]| {
            let matrices = [(&a.0[..], &a.1), (&b.0[..], &b.1)];
            [1, 9].into_iter().try_for_each(|m| check.linear_swiglu(matrices, m))
        })
    }

    fn check_expert(&self, prefix: &str, on: &Opened) -> Result<()> {
        let shape = (self.config.dim, self.config.hidden_dim);
        let matrices = [(format!("{prefix}.w2.weight"), shape)];
        self.once("expert", matrices, on, |check, [(bytes, spec)]| check.linear_add(&bytes, &spec))
    }

    fn once<const N: usize>(
        &self,
        what: &str,
        matrices: [(String, (usize, usize)); N],
        on: &Opened,
        check: impl FnOnce(Check<'_>, [(Vec<u8>, LinearSpec); N]) -> Result<()>,
    ) -> Result<()> {
        let Some(gpu) = &on.gpu else { return Ok(()) };
        let (mut name, mut views) = (what.to_owned(), Vec::new());
        for (matrix, (rows, cols)) in matrices {
            let view = self.view(&matrix, &[rows, cols])?;
            let format = stored_as(&view, 0..1, cols, self.options, &on.device).format;
            name = name + " " + format.name();
            views.push((view, (rows, cols)));
        }
        gpu.once(&name, || {
            let samples = views.iter().map(|(view, shape)| sample(view, *shape, self.options, on));
            let samples = samples.collect::<Result<Vec<_>>>()?;
            check(Check::new(&on.device), samples.try_into().expect("a sample of each"))
        })
    }
}

/// Most block formats are interleaved in memory of our own, as large as the original; `Q8_0` and numbers are multiplied from the mapped file, or
/// copied to a device with memory of its own, in as many parts as it asks for.
fn place(
    view: &TensorView<'_>,
    rows: usize,
    cols: usize,
    options: &LoadOptions,
    on: &Opened,
    arena: &mut Arena,
) -> Result<(Linear, Layout)> {
    let device = &on.device;
    let stored = device::stored(device);
    let LinearSpec { format, layout, .. } = stored_as(view, 0..rows, cols, options, device);
    #[cfg(feature = "wgpu")]
    check_kernel(view, (rows, cols), options, on)?;
    let mut part = |range: Range<usize>| -> Result<_> {
        let spec = stored_as(view, range.clone(), cols, options, device);
        let bytes = match layout {
            Layout::Packed => {
                let memory = arena.zeroed(packed::packed_len(format, range.len(), cols)?)?;
                Bytes::from_shared(pack(view, format, range, cols, memory)?, AllocationProperty::Native)
            }
            Layout::Rows if stored == DType::U8 => {
                Bytes::from_shared(view.shared(), AllocationProperty::Other)
            }
            Layout::Rows => Bytes::from_bytes_vec(kernels::words(plain(view, range, &spec)?, &spec)),
        };
        let len = bytes.len() / stored.size();
        let data = TensorData::from_bytes(bytes, [len], stored);
        Ok((on.lasting(|| Tensor::<1, Int>::from_data(data, (device, stored))), spec))
    };
    let per_part = rows_of_a_part(view, format, layout, (rows, cols), device)?;
    let parts = (0..rows.max(1)).step_by(per_part).map(|first| part(first..rows.min(first + per_part)));
    Ok((Linear::new(parts.collect::<Result<Vec<_>>>()?), layout))
}

/// As many rows as the device takes in one tensor, cut where groups of rows and blocks of scales are.
fn rows_of_a_part(
    view: &TensorView<'_>,
    format: Format,
    layout: Layout,
    (rows, cols): (usize, usize),
    device: &Device,
) -> Result<usize> {
    let Some(most) = device::max_tensor_bytes(device) else { return Ok(rows.max(1)) };
    let unit = match (layout, &view.scale) {
        (Layout::Packed, _) => packed::GROUP_ROWS,
        (Layout::Rows, Some(Fp8Scale::Block { rows, .. })) => *rows,
        (Layout::Rows, _) => 1,
    };
    let unit_bytes = match layout {
        Layout::Packed => packed::packed_len(format, unit, cols)?,
        // Each row may have a scale for each of its elements.
        Layout::Rows => unit * (format.row_bytes(cols)? + if view.scale.is_some() { 4 * cols } else { 0 }),
    };
    match (most / unit_bytes.max(1) as u64) as usize {
        0 => {
            Err(Error::limit("device", format!("{unit} rows of {unit_bytes} bytes"), format!("{most} bytes")))
        }
        units => Ok((units * unit).min(rows.max(1))),
    }
}

/// Rows of `view` as they stand in the file, or expanded to f32 if the device has no kernel for their format.
fn plain(view: &TensorView<'_>, rows: Range<usize>, spec: &LinearSpec) -> Result<Vec<u8>> {
    let row = view.format.row_bytes(spec.cols)?;
    let bytes = &view.bytes[rows.start * row..rows.end * row];
    if spec.format == view.format {
        return Ok(bytes.to_vec());
    }
    let mut values = vec![0.0; spec.rows * spec.cols];
    view.format.dequantize(bytes, &mut values)?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// The first rows of `view`, as `on` holds them: what its kernels are tried on.
#[cfg(feature = "wgpu")]
fn sample(
    view: &TensorView<'_>,
    (rows, cols): (usize, usize),
    options: &LoadOptions,
    on: &Opened,
) -> Result<(Vec<u8>, LinearSpec)> {
    let spec = stored_as(view, 0..rows.min(packed::GROUP_ROWS), cols, options, &on.device);
    let bytes = match spec.layout {
        Layout::Packed => {
            let len = packed::packed_len(spec.format, spec.rows, cols)?;
            let memory = Arena::default().zeroed(len)?;
            pack(view, spec.format, 0..spec.rows, cols, memory)?.to_vec()
        }
        Layout::Rows => plain(view, 0..spec.rows, &spec)?,
    };
    Ok((bytes, spec))
}

/// Holds the kernel for the form of `view` against the reference, once for each device.
#[cfg(feature = "wgpu")]
fn check_kernel(
    view: &TensorView<'_>,
    shape: (usize, usize),
    options: &LoadOptions,
    on: &Opened,
) -> Result<()> {
    let Some(gpu) = &on.gpu else { return Ok(()) };
    let format = stored_as(view, 0..1, shape.1, options, &on.device).format;
    gpu.once(&format!("linear {}", format.name()), || {
        let (bytes, spec) = sample(view, shape, options, on)?;
        let check = Check::new(&on.device);
        // A row alone, several, and more than are computed alike.
        [1, 9, kernels::ROWS_ALIKE + 1].into_iter().try_for_each(|m| check.linear(&bytes, &spec, m))
    })
}

/// How rows of `view` lie in the memory of `device`.
fn stored_as(
    view: &TensorView<'_>,
    rows: Range<usize>,
    cols: usize,
    options: &LoadOptions,
    device: &Device,
) -> LinearSpec {
    let quantize =
        options.quantize.filter(|to| !view.format.is_quantized() && cols.is_multiple_of(to.block_len()));
    let (format, layout) = kernels::form(quantize.unwrap_or(view.format), quantize.is_none(), device);
    let scale = view.scale.as_ref().filter(|_| layout == Layout::Rows);
    let scale = scale.map(|scale| Arc::new(scale.of_rows(rows.clone(), cols)));
    LinearSpec { format, layout, rows: rows.len(), cols, scale, activation: options.activation }
}

/// Packed bytes that a thread gets memory for at a time, and then writes while they are in its cache.
const PACK_BYTES: usize = 256 << 10;

/// Writes rows of `view` in the packed form of `format` into `memory`, a group at a time on the current pool.
fn pack(
    view: &TensorView<'_>,
    format: Format,
    rows: Range<usize>,
    cols: usize,
    mut memory: packed::PackedBytes,
) -> Result<bytes::Bytes> {
    const GROUP: usize = packed::GROUP_ROWS;
    let count = rows.len().div_ceil(GROUP);
    let group_len = memory.len() / count.max(1);
    let per_task = (PACK_BYTES / group_len.max(1)).max(1);
    let tasks = std::sync::Mutex::new(memory.chunks_mut((per_task * group_len).max(1)).enumerate());
    let failure = std::sync::Mutex::new(None);
    pool::run(count.div_ceil(per_task), &|_| {
        let next = tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let Some((task, out)) = next else { return };
        packed::populate(out);
        for (i, out) in out.chunks_exact_mut(group_len).enumerate() {
            let first = rows.start + (task * per_task + i) * GROUP;
            if let Err(error) = pack_group(view, format, first..(first + GROUP).min(rows.end), cols, out) {
                failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
            }
        }
    });
    match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(bytes::Bytes::from_owner(memory)),
    }
}

fn pack_group(
    view: &TensorView<'_>,
    format: Format,
    rows: Range<usize>,
    cols: usize,
    out: &mut [u8],
) -> Result<()> {
    let row_bytes = |format: Format| cols / format.block_len() * format.block_bytes();
    let from = row_bytes(view.format);
    if format == view.format {
        return packed::repack(
            format,
            rows.len(),
            cols,
            &view.bytes[rows.start * from..rows.end * from],
            out,
        );
    }
    let (mut values, to) = (vec![0.0; cols], row_bytes(format));
    let mut blocks = vec![0; rows.len() * to];
    for (row, blocks) in rows.clone().zip(blocks.chunks_exact_mut(to)) {
        view.format.dequantize(&view.bytes[row * from..][..from], &mut values)?;
        if let Some(scale) = &view.scale {
            scale.apply(row, &mut values);
        }
        format.quantize(&values, blocks)?;
    }
    packed::repack(format, rows.len(), cols, &blocks, out)
}
