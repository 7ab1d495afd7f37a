//! From a checkpoint to a transformer on a device: each weight is placed once, in the form in which it will be multiplied.

use burn::tensor::{AllocationProperty, Bytes, DType, Device, Int, Tensor, TensorData};

use crate::config::{FeedForwardConfig, LayerConfig, ModelConfig};
use crate::control::{Control, Progress};
use crate::error::Result;
use crate::kernels::cpu::{packed, pool};
use crate::kernels::{Activation, Layout, LinearSpec};
use crate::nn::feed_forward::{Moe, SwiGlu};
use crate::nn::{Attention, Embedding, FeedForward, Linear, RmsNorm, Rope};
use crate::quant::Format;
use crate::transformer::{Block, Transformer};
use crate::weights::{Checkpoint, TensorView};

/// How weights are placed.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Where they go.
    pub device: Device,
    /// Turn float weights into this block format while loading.
    pub quantize: Option<Format>,
    /// How activations meet block-quantised weights.
    pub activation: Activation,
}

/// Builds the transformer of `checkpoint`.
///
/// # Errors
/// Missing or ill-shaped tensors by name, [`Error::Cancelled`], and allocations that fail.
pub fn load(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    control: &mut Control<'_>,
) -> Result<Transformer> {
    let total = checkpoint.total_bytes();
    let mut loader = Loader { checkpoint, config: &checkpoint.config, options, control, done: 0, total };
    loader.transformer()
}

struct Loader<'a, 'c> {
    checkpoint: &'a Checkpoint,
    config: &'a ModelConfig,
    options: &'a LoadOptions,
    control: &'a mut Control<'c>,
    done: u64,
    total: u64,
}

impl<'a> Loader<'a, '_> {
    fn transformer(&mut self) -> Result<Transformer> {
        let ModelConfig { dim, vocab_size, norm_eps, .. } = *self.config;
        let embeddings = self.view("tok_embeddings.weight", &[vocab_size, dim])?;
        let output = if self.config.tied_embeddings { "tok_embeddings.weight" } else { "output.weight" };
        let device = self.options.device.clone();
        Ok(Transformer {
            tok_embeddings: Embedding::new(
                embeddings.shared(),
                embeddings.format,
                vocab_size,
                dim,
                device.clone(),
            ),
            layers: (0..self.config.layers.len()).map(|i| self.block(i)).collect::<Result<_>>()?,
            norm: self.norm("norm.weight", dim, norm_eps)?,
            output: self.linear(output, vocab_size, dim)?,
            rope: Rope::new(self.config, device),
        })
    }

    fn block(&mut self, index: usize) -> Result<Block> {
        let ModelConfig { dim, n_heads, n_kv_heads, head_dim, norm_eps, .. } = *self.config;
        let LayerConfig { window, feed_forward } = self.config.layers[index];
        let name = |part: &str| format!("layers.{index}.{part}.weight");
        Ok(Block {
            attention_norm: self.norm(&name("attention_norm"), dim, norm_eps)?,
            attention: Attention {
                wq: self.linear(&name("attention.wq"), n_heads * head_dim, dim)?,
                wk: self.linear(&name("attention.wk"), n_kv_heads * head_dim, dim)?,
                wv: self.linear(&name("attention.wv"), n_kv_heads * head_dim, dim)?,
                wo: self.linear(&name("attention.wo"), dim, n_heads * head_dim)?,
                n_heads,
                window,
            },
            ffn_norm: self.norm(&name("ffn_norm"), dim, norm_eps)?,
            feed_forward: self.feed_forward(&format!("layers.{index}.feed_forward"), feed_forward)?,
        })
    }

    fn feed_forward(&mut self, prefix: &str, config: FeedForwardConfig) -> Result<FeedForward> {
        Ok(match config {
            FeedForwardConfig::Dense => FeedForward::Dense(self.swiglu(prefix)?),
            FeedForwardConfig::Moe { n_experts, n_experts_per_tok } => FeedForward::Moe(Moe {
                gate: self.linear(&format!("{prefix}.gate.weight"), n_experts, self.config.dim)?,
                experts: (0..n_experts)
                    .map(|e| self.swiglu(&format!("{prefix}.experts.{e}")))
                    .collect::<Result<_>>()?,
                n_experts_per_tok,
            }),
        })
    }

    fn swiglu(&mut self, prefix: &str) -> Result<SwiGlu> {
        let ModelConfig { dim, hidden_dim, .. } = *self.config;
        Ok(SwiGlu {
            w1: self.linear(&format!("{prefix}.w1.weight"), hidden_dim, dim)?,
            w2: self.linear(&format!("{prefix}.w2.weight"), dim, hidden_dim)?,
            w3: self.linear(&format!("{prefix}.w3.weight"), hidden_dim, dim)?,
        })
    }

    fn norm(&mut self, name: &str, dim: usize, eps: f32) -> Result<RmsNorm> {
        let view = self.view(name, &[dim])?;
        let mut weight = vec![0.0; dim];
        view.format.dequantize(view.bytes, &mut weight)?;
        Ok(RmsNorm::new(Tensor::from_data(TensorData::new(weight, [dim]), &self.options.device), eps))
    }

    fn linear(&mut self, name: &str, rows: usize, cols: usize) -> Result<Linear> {
        let view = self.view(name, &[rows, cols])?;
        let (linear, layout) = place(&view, rows, cols, self.options)?;
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

/// Most block formats are interleaved in memory of our own, as large as the original; everything else is multiplied from the mapped file.
fn place(view: &TensorView<'_>, rows: usize, cols: usize, options: &LoadOptions) -> Result<(Linear, Layout)> {
    let quantize =
        options.quantize.filter(|to| !view.format.is_quantized() && cols.is_multiple_of(to.block_len()));
    let (format, layout) = match quantize {
        Some(to) => (to, Layout::Packed),
        None if packed::has_packed_form(view.format) => (view.format, Layout::Packed),
        None => (view.format, Layout::Rows),
    };
    let bytes = match layout {
        Layout::Rows => Bytes::from_shared(view.shared(), AllocationProperty::Other),
        Layout::Packed => Bytes::from_shared(pack(view, format, rows, cols)?, AllocationProperty::Native),
    };
    let scale = if layout == Layout::Rows { view.scale.clone().map(Into::into) } else { None };
    let len = bytes.len();
    let data = TensorData::from_bytes(bytes, [len], DType::U8);
    let weight = Tensor::<1, Int>::from_data(data, (&options.device, DType::U8));
    let spec = LinearSpec { format, layout, rows, cols, scale, activation: options.activation };
    Ok((Linear::new(weight, spec), layout))
}

/// The rows of `view` in the packed form of `format`, a group at a time on the current pool.
fn pack(view: &TensorView<'_>, format: Format, rows: usize, cols: usize) -> Result<bytes::Bytes> {
    const GROUP: usize = packed::GROUP_ROWS;
    let len = packed::packed_len(format, rows, cols)?;
    let group_len = len / rows.div_ceil(GROUP).max(1);
    let mut memory = packed::PackedBytes::zeroed(len)?;
    let groups = std::sync::Mutex::new(memory.chunks_exact_mut(group_len.max(1)).enumerate());
    let failure = std::sync::Mutex::new(None);
    pool::run(rows.div_ceil(GROUP), &|_| {
        let next = groups.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let Some((group, out)) = next else { return };
        let range = group * GROUP..((group + 1) * GROUP).min(rows);
        if let Err(error) = pack_group(view, format, range, cols, out) {
            failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
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
    rows: std::ops::Range<usize>,
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
            values.iter_mut().enumerate().for_each(|(col, v)| *v *= scale.at(row, col, cols));
        }
        format.quantize(&values, blocks)?;
    }
    packed::repack(format, rows.len(), cols, &blocks, out)
}
