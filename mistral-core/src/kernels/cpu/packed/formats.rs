//! What distinguishes the formats once they are packed: how scales and codes come out of a chunk. See [`super::layout`].

use super::layout::{BLOCK, CHUNK, GROUP_ROWS};
use super::simd::{Codes, Simd};
use crate::quant::{Format, IQ4_CODEBOOK};

/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / BLOCK;

/// Scales of a chunk: element = `scales[half][b][row]` × (code − zero) + `offsets[b][row]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Scales {
    /// For the first and the last 16 columns of each block; the second is used only if the format has [`BlockFormat::HALVES`].
    pub scales: [[[f32; GROUP_ROWS]; BLOCKS]; 2],
    /// Used only if the format has no zero point.
    pub offsets: [[f32; GROUP_ROWS]; BLOCKS],
}

impl Scales {
    pub const ZERO: Self =
        Self { scales: [[[0.0; GROUP_ROWS]; BLOCKS]; 2], offsets: [[0.0; GROUP_ROWS]; BLOCKS] };
}

/// A format of blocks of 32 codes.
pub(super) trait BlockFormat {
    const FORMAT: Format;
    const CODES: Codes;
    /// Whether the two halves of a block have scales of their own.
    const HALVES: bool = false;

    /// The scales of a chunk of `blocks` blocks.
    fn scales<S: Simd>(simd: S, header: &[u8], blocks: usize, out: &mut Scales);

    /// The codes of a block: vector g holds columns 4g to 4g + 3.
    fn codes<S: Simd>(simd: S, block: &[u8]) -> [S::Bytes; 8];
}

const fn symmetric(bits: u32, zero_shift: u32) -> Codes {
    Codes { bits, zero_shift: Some(zero_shift) }
}

const fn affine(bits: u32) -> Codes {
    Codes { bits, zero_shift: None }
}

/// Formats that differ in nothing but the parts they are made of.
macro_rules! block_format {
    ($name:ident, $codes:expr, $scales:ident, $decode:ident) => {
        #[allow(non_camel_case_types)]
        pub(super) struct $name;

        impl BlockFormat for $name {
            const FORMAT: Format = Format::$name;
            const CODES: Codes = $codes;
            const HALVES: bool = matches!(Format::$name, Format::Q6_K);

            #[inline(always)]
            fn scales<S: Simd>(simd: S, header: &[u8], blocks: usize, out: &mut Scales) {
                $scales(simd, header, blocks, out)
            }

            #[inline(always)]
            fn codes<S: Simd>(simd: S, block: &[u8]) -> [S::Bytes; 8] {
                $decode(simd, vectors(block))
            }
        }
    };
}

block_format!(Q4_0, symmetric(4, 3), scale_per_block, nibbles);
block_format!(Q4_1, affine(4), scale_and_offset_per_block, nibbles);
block_format!(Q5_0, symmetric(5, 4), scale_per_block, five_bits);
block_format!(Q5_1, affine(5), scale_and_offset_per_block, five_bits);
block_format!(Q8_0, symmetric(8, 7), scale_per_block, bytes);
block_format!(Q4_K, affine(4), k_scales, nibbles);
block_format!(Q5_K, affine(5), k_scales, five_bits);
block_format!(Q6_K, symmetric(6, 5), q6_k_scales, six_bits);
block_format!(IQ4_NL, symmetric(8, 7), scale_per_block, codebook);
block_format!(IQ4_XS, symmetric(8, 7), iq4_xs_scales, codebook);

#[inline(always)]
fn vectors(block: &[u8]) -> &[[u8; 64]] {
    block.as_chunks().0
}

/// Part `index` of a header, in parts of `N` bytes.
#[inline(always)]
fn part<const N: usize>(header: &[u8], index: usize) -> &[u8; N] {
    &header.as_chunks().0[index]
}

#[inline(always)]
fn scale_per_block<S: Simd>(simd: S, header: &[u8], blocks: usize, out: &mut Scales) {
    let halves = header.as_chunks::<32>().0.iter().take(blocks);
    for (out, halves) in out.scales[0].iter_mut().zip(halves) {
        simd.store_floats(simd.from_f16(halves), out);
    }
}

#[inline(always)]
fn scale_and_offset_per_block<S: Simd>(simd: S, header: &[u8], blocks: usize, out: &mut Scales) {
    for (b, halves) in header.as_chunks::<64>().0.iter().take(blocks.min(BLOCKS)).enumerate() {
        simd.store_floats(simd.from_f16(part(halves, 0)), &mut out.scales[0][b]);
        simd.store_floats(simd.from_f16(part(halves, 1)), &mut out.offsets[b]);
    }
}

/// Six-bit numbers of their low four bits and the high two, which stand in bits 4 and 5.
#[inline(always)]
fn join<S: Simd>(simd: S, low: S::Bytes, high: S::Bytes) -> S::Bytes {
    simd.or(simd.and(low, 15), simd.and(high, 0x30))
}

/// `factor` × each row of bytes (of the four in `bytes`, from `first` on), into rows of floats.
#[inline(always)]
fn scale_bytes<S: Simd>(
    simd: S,
    factor: S::Floats,
    bytes: S::Bytes,
    first: usize,
    out: &mut [[f32; GROUP_ROWS]],
) {
    let mut array = [0; 64];
    simd.store(bytes, &mut array);
    for (out, bytes) in out.iter_mut().zip(array.as_chunks::<16>().0.iter().skip(first)) {
        simd.store_floats(simd.mul(factor, simd.from_u8(bytes)), out);
    }
}

#[inline(always)]
fn k_scales<S: Simd>(simd: S, header: &[u8], _blocks: usize, out: &mut Scales) {
    let d = simd.from_f16(part(header, 0));
    let minus_dmin = simd.mul(simd.from_f16(part(header, 1)), simd.splat(-1.0));
    let (first, last, high) =
        (simd.load(part(header, 1)), simd.load(part(header, 2)), simd.load(part(header, 3)));
    let (scales, offsets) = (out.scales[0].split_at_mut(4), out.offsets.split_at_mut(4));
    scale_bytes(simd, d, join(simd, first, simd.shift_left(high, 4)), 0, scales.0);
    scale_bytes(simd, d, join(simd, last, simd.shift_left(high, 2)), 0, scales.1);
    scale_bytes(simd, minus_dmin, join(simd, simd.shift_right(first, 4), high), 0, offsets.0);
    let last = join(simd, simd.shift_right(last, 4), simd.shift_right(high, 2));
    scale_bytes(simd, minus_dmin, last, 0, offsets.1);
}

#[inline(always)]
fn q6_k_scales<S: Simd>(simd: S, header: &[u8], _blocks: usize, out: &mut Scales) {
    let d = simd.from_f16(part(header, 0));
    for b in 0..BLOCKS {
        for half in 0..2 {
            let scale = simd.from_i8(part(header, 2 + 2 * b + half));
            simd.store_floats(simd.mul(d, scale), &mut out.scales[half][b]);
        }
    }
}

#[inline(always)]
fn iq4_xs_scales<S: Simd>(simd: S, header: &[u8], _blocks: usize, out: &mut Scales) {
    let d = simd.from_f16(part(header, 0));
    // 32 bytes of d, then four rows of low bits, then two of high bits: of scales 0, 2, 4, 6 and of 1, 3, 5, 7.
    let low = simd.load(part(&header[32..], 0));
    let mut twice = [0; 64];
    twice[..32].copy_from_slice(&header[96..128]);
    twice[32..].copy_from_slice(&header[96..128]);
    let high = simd.load(&twice);
    for (pair, out) in out.scales[0].chunks_exact_mut(2).enumerate() {
        let low = if pair < 2 { low } else { simd.shift_right(low, 4) };
        let high =
            [simd.shift_left(high, 4), simd.shift_left(high, 2), high, simd.shift_right(high, 2)][pair];
        scale_bytes(simd, d, join(simd, low, high), 2 * (pair % 2), out);
    }
    // The scales are stored with 32 added; d × 32 is exact, and so is the difference.
    let zero = simd.mul(d, simd.splat(-32.0));
    for row in &mut out.scales[0] {
        simd.store_floats(simd.add(simd.load_floats(row), zero), row);
    }
}

#[inline(always)]
fn nibbles<S: Simd>(simd: S, vectors: &[[u8; 64]]) -> [S::Bytes; 8] {
    let [a, b, c, d] = [&vectors[0], &vectors[1], &vectors[2], &vectors[3]].map(|v| simd.load(v));
    let low = |v| simd.and(v, 15);
    let high = |v| simd.and(simd.shift_right(v, 4), 15);
    [low(a), low(b), low(c), low(d), high(a), high(b), high(c), high(d)]
}

#[inline(always)]
fn five_bits<S: Simd>(simd: S, vectors: &[[u8; 64]]) -> [S::Bytes; 8] {
    let mut codes = nibbles(simd, vectors);
    let fifth = simd.load(&vectors[4]);
    for (g, code) in codes.iter_mut().enumerate() {
        let g = g as u32;
        let bit = if g < 4 { simd.shift_left(fifth, 4 - g) } else { simd.shift_right(fifth, g - 4) };
        *code = simd.or(*code, simd.and(bit, 0x10));
    }
    codes
}

#[inline(always)]
fn six_bits<S: Simd>(simd: S, vectors: &[[u8; 64]]) -> [S::Bytes; 8] {
    let mut codes = nibbles(simd, vectors);
    let high = [simd.load(&vectors[4]), simd.load(&vectors[5])];
    for (g, code) in codes.iter_mut().enumerate() {
        let at = 2 * (g as u32 % 4);
        let high = high[g / 4];
        let bits = if at < 4 { simd.shift_left(high, 4 - at) } else { simd.shift_right(high, at - 4) };
        *code = simd.or(*code, simd.and(bits, 0x30));
    }
    codes
}

#[inline(always)]
fn bytes<S: Simd>(simd: S, vectors: &[[u8; 64]]) -> [S::Bytes; 8] {
    std::array::from_fn(|g| simd.load(&vectors[g]))
}

/// The codebook of the IQ4 formats with 128 added, so that its values are unsigned.
const CODEBOOK: [u8; 16] = {
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = IQ4_CODEBOOK[i] as u8 ^ 0x80;
        i += 1;
    }
    table
};

#[inline(always)]
fn codebook<S: Simd>(simd: S, vectors: &[[u8; 64]]) -> [S::Bytes; 8] {
    nibbles(simd, vectors).map(|codes| simd.look_up(&CODEBOOK, codes))
}
