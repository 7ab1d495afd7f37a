//! Random weights that mean something: no infinities, and sizes that keep activations in range.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};

use super::containers::{GgufValue, TensorData, byte_len, write_gguf};
use super::model::{gguf_entries, tensor_shapes};
use crate::config::{FeedForwardConfig, ModelConfig};
use crate::quant::Format;

/// The size of weights.
const SPREAD: f32 = 0.05;

/// A small generator (SplitMix64, Steele et al. 2014) whose sequence never changes.
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    }

    /// A tensor: norms (one dimension) near 1, everything else near 0.
    pub fn tensor(&mut self, name: &str, format: Format, shape: &[usize]) -> TensorData {
        let mut bytes = Vec::with_capacity(byte_len(format, shape));
        let is_norm = shape.len() == 1;
        for _ in 0..byte_len(format, shape) / format.block_bytes() {
            self.block(format, is_norm, &mut bytes);
        }
        TensorData { name: name.to_owned(), format, shape: shape.to_vec(), bytes }
    }

    /// Appends one block: random codes, and scales such that the largest weight is about [`SPREAD`].
    fn block(&mut self, format: Format, is_norm: bool, out: &mut Vec<u8>) {
        let value = self.unit() * SPREAD + if is_norm { 1.0 } else { 0.0 };
        let start = out.len();
        match format {
            Format::F32 => return out.extend(value.to_le_bytes()),
            Format::F16 => return out.extend(f16::from_f32(value).to_le_bytes()),
            Format::BF16 => return out.extend(bf16::from_f32(value).to_le_bytes()),
            // The two patterns 0x7f and 0xff are NaN.
            Format::F8E4M3 => return out.push((self.bits() as u8) & 0xfe),
            _ => {
                while out.len() < start + format.block_bytes() {
                    out.extend(self.bits().to_le_bytes());
                }
                out.truncate(start + format.block_bytes());
            }
        }
        // Where the f16 scales of a block stand, and the largest product of its codes.
        let (scales, largest): (&[usize], f32) = match format {
            Format::Q4_0 => (&[0], 8.0),
            Format::Q4_1 => (&[0, 2], 15.0),
            Format::Q5_0 => (&[0], 16.0),
            Format::Q5_1 => (&[0, 2], 31.0),
            Format::Q4_K => (&[0, 2], 63.0 * 15.0),
            Format::Q5_K => (&[0, 2], 63.0 * 31.0),
            Format::Q6_K => (&[208], 127.0 * 32.0),
            Format::IQ4_XS => (&[0], 32.0 * 127.0),
            Format::Q2_K => (&[80, 82], 15.0 * 3.0),
            Format::Q3_K => (&[108], 32.0 * 4.0),
            Format::IQ1_S => (&[0], 15.0 * 1.125),
            Format::IQ2_XXS | Format::IQ2_XS | Format::IQ2_S => (&[0], 15.5 / 4.0 * 43.0),
            Format::IQ3_XXS => (&[0], 15.5 / 2.0 * 62.0),
            Format::IQ3_S => (&[0], 31.0 * 15.0),
            Format::TQ1_0 => (&[52], 1.0),
            Format::TQ2_0 => (&[64], 2.0),
            _ => (&[0], 127.0),
        };
        for (number, at) in scales.iter().enumerate() {
            // The offset of Q4_1 and Q5_1 is added as it is, that of the K formats is subtracted: centre both.
            let scale = match (number, format) {
                (1, Format::Q4_1 | Format::Q5_1) => -SPREAD / 2.0,
                (1, Format::Q2_K) => SPREAD / 15.0 / 2.0,
                (1, _) => SPREAD / 63.0 / 2.0,
                _ => SPREAD / largest,
            };
            out[start + at..start + at + 2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        }
    }
}

/// Writes a GGUF model of any size with random weights and a byte vocabulary, a block of memory at a time. Norms are f32, the
/// router too, matrices are of `format`.
pub fn write_random_gguf(path: &Path, config: &ModelConfig, format: Format, seed: u64) -> io::Result<()> {
    write_random_gguf_with(path, config, &|_| format, seed)
}

/// As [`write_random_gguf`], each matrix of the format that `format` says for its name in the file.
pub fn write_random_gguf_with(
    path: &Path,
    config: &ModelConfig,
    format: &dyn Fn(&str) -> Format,
    seed: u64,
) -> io::Result<()> {
    let mut entries = gguf_entries(config);
    entries.extend(byte_vocabulary(config.vocab_size));
    let table = gguf_table(config, format);
    let mut random = Random::new(seed);
    let mut out = BufWriter::new(File::create(path)?);
    write_gguf(&mut out, &entries, &table, |number, out| {
        let (_, format, shape) = &table[number];
        // Some hundred kilobytes of fresh blocks, repeated: speed does not depend on the values.
        const FRESH: usize = 1 << 18;
        let is_norm = shape.len() == 1;
        let mut left = byte_len(*format, shape);
        let mut blocks = Vec::new();
        while blocks.len() < left.min(FRESH) {
            random.block(*format, is_norm, &mut blocks);
        }
        while left > 0 {
            let part = left.min(blocks.len());
            out.write_all(&blocks[..part])?;
            left -= part;
        }
        Ok(())
    })?;
    out.flush()
}

/// Name, format and shape of every tensor; the experts of a layer are one.
fn gguf_table(config: &ModelConfig, format: &dyn Fn(&str) -> Format) -> Vec<(String, Format, Vec<usize>)> {
    let mut table: Vec<(String, Format, Vec<usize>)> = Vec::new();
    for (canonical, shape) in tensor_shapes(config) {
        let name = super::model::gguf_name(&canonical);
        let is_small = shape.len() == 1 || canonical.ends_with("feed_forward.gate.weight");
        let format = if is_small { Format::F32 } else { format(&name) };
        if canonical.contains(".experts.") {
            if table.iter().any(|(known, ..)| *known == name) {
                continue;
            }
            let n_experts = config.layers.first().map_or(1, |layer| match layer.feed_forward {
                FeedForwardConfig::Moe { n_experts, .. } => n_experts,
                FeedForwardConfig::Dense => 1,
            });
            table.push((name, format, [&[n_experts], shape.as_slice()].concat()));
        } else {
            table.push((name, format, shape));
        }
    }
    table
}

/// A SentencePiece vocabulary: unknown, begin, end, the 256 bytes, and words to fill it.
fn byte_vocabulary(size: usize) -> Vec<(String, GgufValue)> {
    const UNKNOWN: i32 = 2;
    const CONTROL: i32 = 3;
    const NORMAL: i32 = 1;
    const BYTE: i32 = 6;
    let special = ["<unk>", "<s>", "</s>"];
    let token = |id: usize| match id {
        0..3 => (special[id].to_owned(), if id == 0 { UNKNOWN } else { CONTROL }),
        3..259 => (format!("<0x{:02X}>", id - 3), BYTE),
        _ => (format!("\u{2581}w{id}"), NORMAL),
    };
    let (texts, types): (Vec<_>, Vec<_>) = (0..size).map(token).unzip();
    let scores = (0..size).map(|id| -(id as f32)).collect();
    vec![
        ("tokenizer.ggml.model".to_owned(), GgufValue::text("llama")),
        ("tokenizer.ggml.tokens".to_owned(), GgufValue::Texts(texts)),
        ("tokenizer.ggml.scores".to_owned(), GgufValue::F32s(scores)),
        ("tokenizer.ggml.token_type".to_owned(), GgufValue::I32s(types)),
        ("tokenizer.ggml.unknown_token_id".to_owned(), GgufValue::U32(0)),
        ("tokenizer.ggml.bos_token_id".to_owned(), GgufValue::U32(1)),
        ("tokenizer.ggml.eos_token_id".to_owned(), GgufValue::U32(2)),
    ]
}
