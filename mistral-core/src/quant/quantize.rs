//! Quantisation of f32 rows: for models that are quantised while they are loaded.

use half::f16;

use super::{Format, k_quantize};
use crate::error::{Error, Result};

impl Format {
    /// Packs f32 elements into blocks. `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1` and `Q8_0` give the bytes that gguf-py 0.19.0 gives; `Q4_K`
    /// searches scales of its own.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the other formats; [`Error::Argument`] if a length does not fit, an element is not finite
    /// or too large for f16.
    pub fn quantize(self, values: &[f32], bytes: &mut [u8]) -> Result<()> {
        let block = match self {
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q4_K => k_quantize::q4_k,
            _ => {
                let supported = "Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K";
                return Err(Error::unsupported("target of quantisation", self.name(), supported));
            }
        };
        let expected = self.row_bytes(values.len())?;
        if bytes.len() != expected {
            let expected = format!("{expected} bytes ({} elements of {})", values.len(), self.name());
            return Err(Error::argument("bytes", format!("{} bytes", bytes.len()), expected));
        }
        // A block's minimum is kept as f16.
        let limit = f16::MAX.to_f32();
        if let Some(at) = values.iter().position(|value| value.is_nan() || value.abs() > limit) {
            let found = format!("{} at {at}", values[at]);
            return Err(Error::argument("values", found, format!("finite, at most {limit} in magnitude")));
        }
        let blocks = values.chunks_exact(self.block_len());
        for (values, bytes) in blocks.zip(bytes.chunks_exact_mut(self.block_bytes())) {
            block(values, bytes);
        }
        Ok(())
    }
}

/// Writes `value` as f16 at `at`.
pub(super) fn put_f16(bytes: &mut [u8], at: usize, value: f32) {
    bytes[at..at + 2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// 1 / `scale`, and 0 for a block of zeros.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The first element of largest magnitude, with its sign.
fn peak(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |peak: f32, &value| if value.abs() > peak.abs() { value } else { peak })
}

fn range(values: &[f32]) -> (f32, f32) {
    values.iter().fold((f32::MAX, f32::MIN), |(low, high), &value| (low.min(value), high.max(value)))
}

/// Codes of a symmetric format: the element of largest magnitude becomes `-half`.
fn symmetric(values: &[f32], half: u8) -> (f32, [u8; 32]) {
    let scale = peak(values) / -f32::from(half);
    let inverse = f64::from(inverse(scale));
    let mut codes = [0; 32];
    for (code, &value) in codes.iter_mut().zip(values) {
        // The reference rounds the exact product: f64 has room for it.
        let shifted = f64::from(value) * inverse + (f64::from(half) + 0.5);
        *code = (shifted as u8).min(2 * half - 1);
    }
    (scale, codes)
}

/// Codes of a format with a minimum: the range of the block is spread over `0..=top`.
fn affine(values: &[f32], top: u8) -> (f32, f32, [u8; 32]) {
    let (low, high) = range(values);
    let scale = (high - low) / f32::from(top);
    let inverse = inverse(scale);
    let mut codes = [0; 32];
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = (((value - low) * inverse + 0.5) as u8).min(top);
    }
    (scale, low, codes)
}

fn put_nibbles(bytes: &mut [u8], codes: &[u8; 32]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = codes[i] & 15 | codes[i + 16] << 4;
    }
}

fn put_fifth_bits(bytes: &mut [u8], codes: &[u8; 32]) {
    let bits = codes.iter().enumerate().fold(0, |bits, (i, code)| bits | u32::from(code >> 4) << i);
    bytes.copy_from_slice(&bits.to_le_bytes());
}

fn q4_0(values: &[f32], block: &mut [u8]) {
    let (scale, codes) = symmetric(values, 8);
    put_f16(block, 0, scale);
    put_nibbles(&mut block[2..], &codes);
}

fn q4_1(values: &[f32], block: &mut [u8]) {
    let (scale, min, codes) = affine(values, 15);
    put_f16(block, 0, scale);
    put_f16(block, 2, min);
    put_nibbles(&mut block[4..], &codes);
}

fn q5_0(values: &[f32], block: &mut [u8]) {
    let (scale, codes) = symmetric(values, 16);
    put_f16(block, 0, scale);
    put_fifth_bits(&mut block[2..6], &codes);
    put_nibbles(&mut block[6..], &codes);
}

fn q5_1(values: &[f32], block: &mut [u8]) {
    let (scale, min, codes) = affine(values, 31);
    put_f16(block, 0, scale);
    put_f16(block, 2, min);
    put_fifth_bits(&mut block[4..8], &codes);
    put_nibbles(&mut block[8..], &codes);
}

fn q8_0(values: &[f32], block: &mut [u8]) {
    let scale = peak(values).abs() / 127.0;
    let inverse = inverse(scale);
    put_f16(block, 0, scale);
    for (byte, &value) in block[2..].iter_mut().zip(values) {
        // Halves away from zero, as the reference: the fraction is exact.
        let scaled = value * inverse;
        let whole = scaled as i32;
        let fraction = scaled - whole as f32;
        *byte = (whole + i32::from(fraction >= 0.5) - i32::from(fraction <= -0.5)) as u8;
    }
}
