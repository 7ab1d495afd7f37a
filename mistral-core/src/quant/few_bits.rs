//! Formats of two and three bits, and of three values, with a code for each element. See [`super::dequantize`].

use super::dequantize::f16_at;

/// 16 bytes of scales (low nibble) and minima (high nibble), 64 bytes of codes, d, dmin; 128 elements share 32 bytes.
pub(super) fn q2_k(block: &[u8], out: &mut [f32]) {
    let (d, dmin) = (f16_at(block, 80), f16_at(block, 82));
    for (j, out) in out.chunks_exact_mut(16).enumerate() {
        let (scale, min) = (d * f32::from(block[j] & 15), dmin * f32::from(block[j] >> 4));
        for (out, &byte) in out.iter_mut().zip(&block[16 + 32 * (j / 8) + 16 * (j % 2)..]) {
            *out = scale * f32::from(byte >> (2 * (j / 2 % 4)) & 3) - min;
        }
    }
}

/// 32 bytes of third bits (bit `s` of byte `i`: element `i` of 32 of run `s`; where it is 0, 4 is taken off), 64 bytes of codes as in
/// `Q2_K`, 12 bytes of six-bit scales, d.
pub(super) fn q3_k(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 108);
    for (j, out) in out.chunks_exact_mut(16).enumerate() {
        let scale = d * f32::from(q3_k_scale(&block[96..108], j));
        let high = block[16 * (j % 2)..].iter();
        let codes = block[32 + 32 * (j / 8) + 16 * (j % 2)..].iter().zip(high);
        for (out, (&low, &high)) in out.iter_mut().zip(codes) {
            let code = low >> (2 * (j / 2 % 4)) & 3 | (high >> (j / 2) & 1) << 2;
            *out = scale * (f32::from(code) - 4.0);
        }
    }
}

/// The scale, less 32, of sub-block `j` of 16: low nibbles in 8 bytes, high pairs of bits in 4.
fn q3_k_scale(packed: &[u8], j: usize) -> i8 {
    let low = packed[j % 8] >> (4 * (j / 8)) & 15;
    let high = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
    (low | high << 4) as i8 - 32
}

/// Five elements in a byte, d. A byte is a fraction of 256, its first element the first digit in base 3.
pub(super) fn tq1_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 52);
    // Where a run of bytes begins, its length, and how many digits are used.
    let mut at = 0;
    for (from, len, digits) in [(0, 32, 5), (32, 16, 5), (48, 4, 4)] {
        let mut power = 1u8;
        for _ in 0..digits {
            for (out, byte) in out[at..at + len].iter_mut().zip(&block[from..]) {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *out = d * (f32::from(digit) - 1.0);
            }
            (at, power) = (at + len, power.wrapping_mul(3));
        }
    }
}

/// 64 bytes of codes as in `Q2_K`, d.
pub(super) fn tq2_0(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 64);
    for (s, out) in out.chunks_exact_mut(32).enumerate() {
        for (out, &byte) in out.iter_mut().zip(&block[32 * (s / 4)..]) {
            *out = d * (f32::from(byte >> (2 * (s % 4)) & 3) - 1.0);
        }
    }
}
