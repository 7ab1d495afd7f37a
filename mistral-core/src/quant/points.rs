//! `IQ1` to `IQ3`: runs of eight or four elements are points of a table ([`super::grids`]), with a scale and, but for `IQ1`, signs. See
//! [`super::dequantize`].

use super::dequantize::{f16_at, u32_at};
use super::grids;

/// Magnitudes of the two-bit codes; 3 does not occur.
const TWO_BITS: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Magnitudes of the codes of `IQ3_XXS`.
const THREE_BITS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];

/// Code `i` of an entry of eight.
fn of_eight(entry: u16, i: usize) -> usize {
    usize::from(entry >> (2 * i) & 3)
}

/// Code `i` of two entries of four.
fn of_four(entries: [u16; 2], i: usize) -> usize {
    usize::from(entries[i / 4] >> (4 * (i % 4)) & 7)
}

/// Eight elements; a bit of `signs` makes one negative.
fn signed(out: &mut [f32], scale: f32, signs: u8, magnitude: impl Fn(usize) -> f32) {
    for (i, out) in out.iter_mut().enumerate() {
        let value = scale * magnitude(i);
        *out = if signs >> i & 1 == 0 { value } else { -value };
    }
}

/// Signs in seven bits: the eighth makes their number even.
fn even_signs(bits: u32) -> u8 {
    let bits = bits as u8 & 0x7f;
    bits | (bits.count_ones() as u8 & 1) << 7
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn nibble(bytes: &[u8], i: usize) -> f32 {
    f32::from(bytes[i / 2] >> (4 * (i % 2)) & 15)
}

/// d, then for each 32 elements four indices, and signs and scale in 4 bytes.
pub(super) fn iq2_xxs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (src, out) in block[2..].as_chunks::<8>().0.iter().zip(out.chunks_exact_mut(32)) {
        let tail = u32_at(src, 4);
        let scale = d * (0.5 + (tail >> 28) as f32) * 0.25;
        for (k, out) in out.chunks_exact_mut(8).enumerate() {
            let point = grids::IQ2_XXS[usize::from(src[k])];
            signed(out, scale, even_signs(tail >> (7 * k)), |i| TWO_BITS[of_eight(point, i)]);
        }
    }
}

/// d, for each 8 elements 9 bits of index and 7 of signs, for each 16 four bits of scale.
pub(super) fn iq2_xs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 2 + 2 * g);
        let scale = d * (0.5 + nibble(&block[66..], g / 2)) * 0.25;
        let point = grids::IQ2_XS[usize::from(word & 511)];
        signed(out, scale, even_signs(u32::from(word >> 9)), |i| TWO_BITS[of_eight(point, i)]);
    }
}

/// d, for each 8 elements 8 bits of index and 8 of signs, then their high 2 bits of index, for each 16 four bits of scale.
pub(super) fn iq2_s(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let high = usize::from(block[66 + g / 4] >> (2 * (g % 4)) & 3);
        let scale = d * (0.5 + nibble(&block[74..], g / 2)) * 0.25;
        let point = grids::IQ2_S[usize::from(block[2 + g]) | high << 8];
        signed(out, scale, block[34 + g], |i| TWO_BITS[of_eight(point, i)]);
    }
}

/// d, an index for each 4 elements, then signs and scale of each 32 in 4 bytes.
pub(super) fn iq3_xxs(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let tail = u32_at(block, 66 + 4 * (g / 4));
        let scale = d * (0.5 + (tail >> 28) as f32) * 0.5;
        let points = [0, 1].map(|k| grids::IQ3_XXS[usize::from(block[2 + 2 * g + k])]);
        signed(out, scale, even_signs(tail >> (7 * (g % 4))), |i| THREE_BITS[of_four(points, i)]);
    }
}

/// d, for each 4 elements 8 bits of index, then their ninth bits, a bit of sign for each, for each 32 four bits of scale.
pub(super) fn iq3_s(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let scale = d * (1.0 + 2.0 * nibble(&block[106..], g / 4));
        let points = [0, 1].map(|k| {
            let (at, high) = (2 * g + k, block[66 + g / 4]);
            grids::IQ3_S[usize::from(block[2 + at]) | usize::from(high >> (at % 8) & 1) << 8]
        });
        signed(out, scale, block[74 + g], |i| (2 * of_four(points, i) + 1) as f32);
    }
}

/// d, for each 8 elements 8 bits of index, for each 32 their high bits of index (3 each), a scale (3) and whether all are moved down or up.
pub(super) fn iq1_s(block: &[u8], out: &mut [f32]) {
    let d = f16_at(block, 0);
    for (g, out) in out.chunks_exact_mut(8).enumerate() {
        let tail = u16_at(block, 34 + 2 * (g / 4));
        let scale = d * f32::from(2 * (tail >> 12 & 7) + 1);
        let shift = if tail & 0x8000 == 0 { 0.125 } else { -0.125 };
        let high = usize::from(tail >> (3 * (g % 4)) & 7);
        let point = grids::IQ1_S[usize::from(block[2 + g]) | high << 8];
        for (i, out) in out.iter_mut().enumerate() {
            *out = scale * (of_eight(point, i) as f32 - 1.0 + shift);
        }
    }
}
