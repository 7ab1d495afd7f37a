//! Scalar dequantisation: the definition of each format, and the reference for every faster kernel.
//!
//! Products of a scale (f16) and codes are exact in f32, so each value is rounded at most once and all implementations agree to
//! the bit (ggml `ggml-quants.c`, gguf-py `quants.py`).

use half::{bf16, f16};

use super::{Format, few_bits, points};
use crate::error::{Error, Result};

/// Values of the 16 codes of `IQ4_NL` and `IQ4_XS` (`kvalues_iq4nl` of ggml).
pub(crate) const IQ4_CODEBOOK: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Format {
    /// Expands blocks to f32: `out[i]` is element `i` of `bytes`. Bit-exact with gguf-py 0.19.0.
    ///
    /// # Errors
    /// [`Error::Argument`] unless `bytes` holds exactly `out.len()` elements, a whole number of blocks.
    pub fn dequantize(self, bytes: &[u8], out: &mut [f32]) -> Result<()> {
        let expected = self.row_bytes(out.len())?;
        if bytes.len() != expected {
            return Err(Error::argument(
                "bytes",
                format!("{} bytes", bytes.len()),
                format!("{expected} bytes ({} elements of {})", out.len(), self.name()),
            ));
        }
        let block = match self {
            Self::F32 => |b: &[u8], out: &mut [f32]| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F16 => |b: &[u8], out: &mut [f32]| out[0] = f16_at(b, 0),
            Self::BF16 => |b: &[u8], out: &mut [f32]| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Self::F8E4M3 => |b: &[u8], out: &mut [f32]| out[0] = f8e4m3_to_f32(b[0]),
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q4_K => q4_k,
            Self::Q5_K => q5_k,
            Self::Q6_K => q6_k,
            Self::IQ4_NL => iq4_nl,
            Self::IQ4_XS => iq4_xs,
            Self::Q2_K => few_bits::q2_k,
            Self::Q3_K => few_bits::q3_k,
            Self::TQ1_0 => few_bits::tq1_0,
            Self::TQ2_0 => few_bits::tq2_0,
            Self::IQ1_S => points::iq1_s,
            Self::IQ2_XXS => points::iq2_xxs,
            Self::IQ2_XS => points::iq2_xs,
            Self::IQ2_S => points::iq2_s,
            Self::IQ3_XXS => points::iq3_xxs,
            Self::IQ3_S => points::iq3_s,
        };
        let blocks = bytes.chunks_exact(self.block_bytes());
        for (bytes, out) in blocks.zip(out.chunks_exact_mut(self.block_len())) {
            block(bytes, out);
        }
        Ok(())
    }
}

/// An element of `float8_e4m3fn` (Micikevicius et al. 2022, arXiv:2209.05433): bias 7, no infinities, NaN is `S.1111.111`.
pub fn f8e4m3_to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(code >> 3) & 15, u32::from(code & 7));
    let magnitude = match (exponent, mantissa) {
        (15, 7) => f32::NAN,
        // Subnormal: mantissa / 8 × 2^-6.
        (0, _) => mantissa as f32 * (1.0 / 512.0),
        _ => f32::from_bits((exponent + 127 - 7) << 23 | mantissa << 20),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The six-bit scale and minimum of sub-block `j` of 8, from the 12 bytes that `Q4_K` and `Q5_K` hold them in.
pub(crate) fn k_scale_min(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let high = |at: usize| (packed[at] >> 6) << 4;
        (packed[j + 4] & 15 | high(j - 4), packed[j + 4] >> 4 | high(j))
    }
}

/// The six-bit scale, less 32, of sub-block `j` of 8 of an `IQ4_XS` block.
pub(crate) fn iq4_xs_scale(block: &[u8], j: usize) -> i8 {
    let high = u16::from_le_bytes([block[2], block[3]]) >> (2 * j) & 3;
    let low = block[4 + j / 2] >> (4 * (j % 2)) & 15;
    (low | (high as u8) << 4) as i8 - 32
}

pub(super) fn f16_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Code `i` of 32, where byte `i % 16` holds codes `i` (low four bits) and `i + 16`.
fn nibble(codes: &[u8], i: usize) -> u8 {
    codes[i % 16] >> (4 * (i / 16)) & 15
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * (f32::from(nibble(&block[2..], i)) - 8.0);
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, min) = (f16_at(block, 0), f16_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(nibble(&block[4..], i)) + min;
    }
}

/// Code `i` of 32 with its fifth bit from `high`.
fn five_bits(codes: &[u8], high: u32, i: usize) -> f32 {
    f32::from(nibble(codes, i) | ((high >> i & 1) as u8) << 4)
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let (d, high) = (f16_at(block, 0), u32_at(block, 2));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * (five_bits(&block[6..], high, i) - 16.0);
    }
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, min, high) = (f16_at(block, 0), f16_at(block, 2), u32_at(block, 4));
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * five_bits(&block[8..], high, i) + min;
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (out, &code) in out.iter_mut().zip(&block[2..]) {
        *out = d * f32::from(code as i8);
    }
}

/// d, dmin, 12 bytes of scales and minima, 128 bytes of codes; 64 elements share 32 bytes.
fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = k_scale_min(&block[4..16], j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        for (out, &byte) in out.iter_mut().zip(&block[16 + j / 2 * 32..]) {
            *out = scale * f32::from(byte >> (4 * (j % 2)) & 15) - min;
        }
    }
}

/// As `Q4_K`, with 32 bytes of fifth bits (bit `j` of byte `i`: element `i` of sub-block `j`) before the codes.
fn q5_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 0), f16_at(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = k_scale_min(&block[4..16], j);
        let (scale, min) = (d * f32::from(scale), dmin * f32::from(min));
        let codes = block[48 + j / 2 * 32..].iter().zip(&block[16..48]);
        for (out, (&low, &high)) in out.iter_mut().zip(codes) {
            let code = low >> (4 * (j % 2)) & 15 | (high >> j & 1) << 4;
            *out = scale * f32::from(code) - min;
        }
    }
}

/// 128 bytes of low nibbles, 64 bytes of high pairs of bits, 16 signed scales, d; 128 elements share 64 + 32 bytes.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 208);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (j / 4, j % 4);
        let low = &block[64 * half + 32 * (quarter % 2)..];
        let high = &block[128 + 32 * half..];
        for (i, out) in out.iter_mut().enumerate() {
            let code = low[i] >> (4 * (quarter / 2)) & 15 | (high[i] >> (2 * quarter) & 3) << 4;
            let scale = block[192 + 2 * j + i / 16] as i8;
            *out = d * f32::from(scale) * (f32::from(code) - 32.0);
        }
    }
}

fn iq4_nl(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (i, out) in out.iter_mut().enumerate() {
        *out = d * f32::from(IQ4_CODEBOOK[usize::from(nibble(&block[2..], i))]);
    }
}

/// d, high bits of the scales (2 bytes), low bits (4 bytes), 8 × 16 bytes of codes.
fn iq4_xs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let scale = d * f32::from(iq4_xs_scale(block, j));
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * f32::from(IQ4_CODEBOOK[usize::from(nibble(&block[8 + 16 * j..], i))]);
        }
    }
}
