//! What distinguishes the formats once they are packed: how scales and codes come out of a chunk. See [`super::layout`].

use super::layout::{BLOCK, CHUNK, GROUP_ROWS};
use super::simd::Simd;
use crate::quant::{Format, IQ4_CODEBOOK};

/// Scales of a block: element = `scales[half][row]` × (code − zero) + `offsets[row]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Scales {
    /// For the first and the last 16 columns; the second is used only if the format has [`BlockFormat::HALVES`].
    pub scales: [[f32; GROUP_ROWS]; 2],
    /// Used only if the format has no zero point.
    pub offsets: [f32; GROUP_ROWS],
}

impl Scales {
    pub const ZERO: Self = Self { scales: [[0.0; GROUP_ROWS]; 2], offsets: [0.0; GROUP_ROWS] };
}

/// Scales of the blocks of a chunk; those beyond its last block are not touched.
type ChunkScales = [Scales; CHUNK / BLOCK];

/// What the codes of a format are.
#[derive(Clone, Copy)]
pub(super) struct Codes {
    /// Bits of a code: 4, 5, 6 or 8. Eight-bit codes have the zero point 128.
    pub bits: u32,
    /// The code that stands for zero; `None` if the format has offsets instead.
    pub zero: Option<u8>,
}

/// A format of blocks of 32 codes.
pub(super) trait BlockFormat {
    const FORMAT: Format;
    const CODES: Codes;
    /// Whether the two halves of a block have scales of their own.
    const HALVES: bool = false;

    /// The scales of a chunk.
    fn scales<S: Simd>(simd: S, header: &[u8], out: &mut ChunkScales);

    /// The codes of a block: vector g holds columns 4g to 4g + 3.
    fn codes<S: Simd>(simd: S, block: &[u8]) -> [S::Bytes; 8];
}

const fn symmetric(bits: u32, zero: u8) -> Codes {
    Codes { bits, zero: Some(zero) }
}

const fn affine(bits: u32) -> Codes {
    Codes { bits, zero: None }
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
            fn scales<S: Simd>(simd: S, header: &[u8], out: &mut ChunkScales) {
                $scales(simd, header, out)
            }

            #[inline(always)]
            fn codes<S: Simd>(simd: S, block: &[u8]) -> [S::Bytes; 8] {
                $decode(simd, vectors(block))
            }
        }
    };
}

block_format!(Q4_0, symmetric(4, 8), scale_per_block, nibbles);
block_format!(Q4_1, affine(4), scale_and_offset_per_block, nibbles);
block_format!(Q5_0, symmetric(5, 16), scale_per_block, five_bits);
block_format!(Q5_1, affine(5), scale_and_offset_per_block, five_bits);
block_format!(Q8_0, symmetric(8, 128), scale_per_block, bytes);
block_format!(Q4_K, affine(4), k_scales, nibbles);
block_format!(Q5_K, affine(5), k_scales, five_bits);
block_format!(Q6_K, symmetric(6, 32), q6_k_scales, six_bits);
block_format!(IQ4_NL, symmetric(8, 128), scale_per_block, codebook);
block_format!(IQ4_XS, symmetric(8, 128), iq4_xs_scales, codebook);

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
fn scale_per_block<S: Simd>(simd: S, header: &[u8], out: &mut ChunkScales) {
    for (halves, out) in header.as_chunks().0.iter().zip(out) {
        simd.store_floats(simd.load_f16(halves), &mut out.scales[0]);
    }
}

#[inline(always)]
fn scale_and_offset_per_block<S: Simd>(simd: S, header: &[u8], out: &mut ChunkScales) {
    for (halves, out) in header.as_chunks::<64>().0.iter().zip(out) {
        simd.store_floats(simd.load_f16(part(halves, 0)), &mut out.scales[0]);
        simd.store_floats(simd.load_f16(part(halves, 1)), &mut out.offsets);
    }
}

/// Six-bit numbers of their low four bits and the high two, which stand in bits 4 and 5.
#[inline(always)]
fn join<S: Simd>(simd: S, low: S::Bytes, high: S::Bytes) -> S::Bytes {
    simd.or(simd.and(low, 15), simd.and(high, 0x30))
}

/// `factor` × each of the four rows of bytes.
#[inline(always)]
fn scale_bytes<S: Simd>(simd: S, factor: S::Floats, bytes: S::Bytes) -> [S::Floats; 4] {
    let mut array = [0; 64];
    simd.store(bytes, &mut array);
    let mut rows = [factor; 4];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = simd.mul(factor, simd.load_u8(part(&array, i)));
    }
    rows
}

#[inline(always)]
fn k_scales<S: Simd>(simd: S, header: &[u8], out: &mut ChunkScales) {
    let d = simd.load_f16(part(header, 0));
    let minus_dmin = simd.mul(simd.load_f16(part(header, 1)), simd.splat(-1.0));
    let first = simd.load(part(header, 1));
    let last = simd.load(part(header, 2));
    let high = simd.load(part(header, 3));
    let scales = [
        scale_bytes(simd, d, join(simd, first, simd.shift_left(high, 4))),
        scale_bytes(simd, d, join(simd, last, simd.shift_left(high, 2))),
    ];
    let first = join(simd, simd.shift_right(first, 4), high);
    let last = join(simd, simd.shift_right(last, 4), simd.shift_right(high, 2));
    let offsets = [scale_bytes(simd, minus_dmin, first), scale_bytes(simd, minus_dmin, last)];
    for (b, out) in out.iter_mut().enumerate() {
        simd.store_floats(scales[b / 4][b % 4], &mut out.scales[0]);
        simd.store_floats(offsets[b / 4][b % 4], &mut out.offsets);
    }
}

#[inline(always)]
fn q6_k_scales<S: Simd>(simd: S, header: &[u8], out: &mut ChunkScales) {
    let d = simd.load_f16(part(header, 0));
    for (b, out) in out.iter_mut().enumerate() {
        for (half, out) in out.scales.iter_mut().enumerate() {
            let scale = simd.load_i8(part(header, 2 + 2 * b + half));
            simd.store_floats(simd.mul(d, scale), out);
        }
    }
}

#[inline(always)]
fn iq4_xs_scales<S: Simd>(simd: S, header: &[u8], out: &mut ChunkScales) {
    let d = simd.load_f16(part(header, 0));
    // The scales are stored with 32 added; d × 32 is exact, and so is the difference.
    let zero = simd.mul(d, simd.splat(-32.0));
    // 32 bytes of d, then four rows of low bits, then two of high bits: of scales 0, 2, 4, 6 and of 1, 3, 5, 7.
    let low = simd.load(part(&header[32..], 0));
    let mut twice = [0; 64];
    twice[..32].copy_from_slice(&header[96..128]);
    twice[32..].copy_from_slice(&header[96..128]);
    let high = simd.load(&twice);
    let pairs = [
        scale_bytes(simd, d, join(simd, low, simd.shift_left(high, 4))),
        scale_bytes(simd, d, join(simd, low, simd.shift_left(high, 2))),
        scale_bytes(simd, d, join(simd, simd.shift_right(low, 4), high)),
        scale_bytes(simd, d, join(simd, simd.shift_right(low, 4), simd.shift_right(high, 2))),
    ];
    for (b, out) in out.iter_mut().enumerate() {
        simd.store_floats(simd.add(pairs[b / 2][b % 4], zero), &mut out.scales[0]);
    }
}

#[inline(always)]
fn nibbles<S: Simd>(simd: S, vectors: &[[u8; 64]]) -> [S::Bytes; 8] {
    let mut codes = [simd.load(&vectors[0]); 8];
    for g in 0..4 {
        let both = simd.load(&vectors[g]);
        codes[g] = simd.and(both, 15);
        codes[g + 4] = simd.and(simd.shift_right(both, 4), 15);
    }
    codes
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
    let mut codes = [simd.load(&vectors[0]); 8];
    for g in 1..8 {
        codes[g] = simd.load(&vectors[g]);
    }
    codes
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
    let mut codes = nibbles(simd, vectors);
    for code in &mut codes {
        *code = simd.look_up(&CODEBOOK, *code);
    }
    codes
}
