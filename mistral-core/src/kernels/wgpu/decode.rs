//! Numbers out of words: WGSL knows neither bytes nor bf16, and halves only where an adapter has them, so everything that is stored is
//! read as `u32` and taken apart with integer operations. All of it is exact.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use crate::quant::{Format, IQ4_CODEBOOK};

/// An element of a matrix that is stored row after row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    F32,
    F16,
    BF16,
    F8E4M3,
}

impl Element {
    /// The element of a format that is multiplied as it stands in the file.
    pub fn of(format: Format) -> Option<Self> {
        match format {
            Format::F32 => Some(Self::F32),
            Format::F16 => Some(Self::F16),
            Format::BF16 => Some(Self::BF16),
            Format::F8E4M3 => Some(Self::F8E4M3),
            _ => None,
        }
    }

    /// Elements of a word.
    pub fn per_word(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::F8E4M3 => 4,
        }
    }
}

/// Element `index` (below [`Element::per_word`]) of a word.
#[cube]
pub fn element(word: u32, #[comptime] index: u32, #[comptime] kind: Element) -> f32 {
    match kind {
        Element::F32 => f32::reinterpret(word),
        Element::F16 => half(word >> comptime!(16 * index)),
        Element::BF16 => f32::reinterpret((word >> comptime!(16 * index)) << 16u32),
        Element::F8E4M3 => fp8(word >> comptime!(8 * index)),
    }
}

/// The IEEE half in the low 16 bits.
#[cube]
pub fn half(bits: u32) -> f32 {
    let sign = (bits & 0x8000u32) << 16u32;
    let exponent = (bits >> 10u32) & 31u32;
    let mantissa = bits & 0x3ffu32;
    let rebias = select(exponent == 31u32, 224u32, 112u32);
    let normal = f32::reinterpret(sign | ((exponent + rebias) << 23u32) | (mantissa << 13u32));
    // A device may take a single-precision subnormal for zero: those of halves are made of normal numbers.
    let magnitude = f32::cast_from(mantissa) * 5.960_464_5e-8f32;
    let subnormal = select(sign == 0u32, magnitude, -magnitude);
    select(exponent == 0u32, subnormal, normal)
}

/// The `float8_e4m3fn` in the low 8 bits.
#[cube]
fn fp8(bits: u32) -> f32 {
    let sign = (bits & 0x80u32) << 24u32;
    let exponent = (bits >> 3u32) & 15u32;
    let mantissa = bits & 7u32;
    let nan = (bits & 0x7fu32) == 0x7fu32;
    let rebias = select(nan, 240u32, 120u32);
    let normal = f32::reinterpret(sign | ((exponent + rebias) << 23u32) | (mantissa << 20u32));
    let magnitude = f32::cast_from(mantissa) * 0.001_953_125f32;
    let subnormal = select(sign == 0u32, magnitude, -magnitude);
    select(exponent == 0u32, subnormal, normal)
}

/// The half nearest to `value`, ties to even, in the low 16 bits; what is too large becomes infinite.
#[cube]
pub fn to_half(value: f32) -> u32 {
    let bits = u32::reinterpret(value);
    let sign = (bits >> 16u32) & 0x8000u32;
    let magnitude = bits & 0x7fff_ffffu32;
    let rounded = magnitude + 0xfffu32 + ((magnitude >> 13u32) & 1u32);
    let normal = min((rounded - 0x3800_0000u32) >> 13u32, 0x7c00u32);
    // Below 2^-14 a half counts in steps of 2^-24: so many, rounded by hand.
    let steps = f32::reinterpret(min(magnitude, 0x3880_0000u32)) * 16_777_216.0f32;
    let whole = u32::cast_from(steps);
    let rest = steps - f32::cast_from(whole);
    let odd = (whole & 1u32) == 1u32;
    let up = rest > 0.5f32 || (rest == 0.5f32 && odd);
    let subnormal = whole + select(up, 1u32, 0u32);
    let finite = select(magnitude < 0x3880_0000u32, subnormal, normal);
    sign | select(magnitude > 0x7f80_0000u32, 0x7e00u32, finite)
}

/// How scales lie in the header of a chunk (`cpu/packed/layout.rs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scales {
    /// A half for each block.
    Blocks,
    /// Two halves for each block: scale and offset.
    Affine,
    /// `d`, `dmin`, and six bits for each.
    K,
    /// `d`, and a byte for each half of a block.
    Q6K,
    /// `d`, and six bits for each block, stored with 32 added.
    Iq4Xs,
}

/// What the packed form of a format is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packing {
    pub bits: u32,
    /// The code that stands for zero; 0 for formats with offsets.
    pub zero: u32,
    /// The code is a place in [`IQ4_CODEBOOK`].
    pub codebook: bool,
    pub scales: Scales,
}

impl Packing {
    /// The packing of a format that has a packed form.
    pub fn of(format: Format) -> Option<Self> {
        let (bits, zero, codebook, scales) = match format {
            Format::Q4_0 => (4, 8, false, Scales::Blocks),
            Format::Q4_1 => (4, 0, false, Scales::Affine),
            Format::Q5_0 => (5, 16, false, Scales::Blocks),
            Format::Q5_1 => (5, 0, false, Scales::Affine),
            Format::Q8_0 => (8, 128, false, Scales::Blocks),
            Format::Q4_K => (4, 0, false, Scales::K),
            Format::Q5_K => (5, 0, false, Scales::K),
            Format::Q6_K => (6, 32, false, Scales::Q6K),
            Format::IQ4_NL => (4, 128, true, Scales::Blocks),
            Format::IQ4_XS => (4, 128, true, Scales::Iq4Xs),
            _ => return None,
        };
        Some(Self { bits, zero, codebook, scales })
    }

    /// Words of the codes of a block.
    pub fn code_words(self) -> u32 {
        self.bits * 16
    }

    /// Words of the header of a chunk of 8 blocks.
    pub fn header_words(self) -> u32 {
        match self.scales {
            Scales::Blocks => 64,
            Scales::Affine => 128,
            Scales::K => 64,
            Scales::Q6K => 80,
            Scales::Iq4Xs => 32,
        }
    }
}

/// Words of the header of a chunk of `blocks` blocks. Formats of super-blocks have whole chunks only.
#[cube]
pub fn header_words(blocks: u32, #[comptime] packing: Packing) -> u32 {
    match comptime!(packing.scales) {
        Scales::Blocks => (blocks * 8u32).div_ceil(16u32) * 16u32,
        Scales::Affine => blocks * 16u32,
        _ => comptime!(packing.header_words()).runtime(),
    }
}

/// Half `index` of the row `lane` of a group, in the header that starts at word `header`.
#[cube]
fn header_half(weight: &[u32], header: u32, index: u32, lane: u32) -> f32 {
    let at = index * 16u32 + lane;
    half(weight[(header + at / 2u32) as usize] >> (16u32 * (at % 2u32)))
}

/// Byte `index` of the row `lane` of a group, in the header part that starts at word `part`.
#[cube]
fn header_byte(weight: &[u32], part: u32, index: u32, lane: u32) -> u32 {
    let at = index * 16u32 + lane;
    (weight[(part + at / 4u32) as usize] >> (8u32 * (at % 4u32))) & 255u32
}

/// What a code is multiplied by in block `block` of a chunk, half `half_block` of it.
#[cube]
pub fn scale(
    weight: &[u32],
    header: u32,
    block: u32,
    #[comptime] half_block: u32,
    lane: u32,
    #[comptime] packing: Packing,
) -> f32 {
    match comptime!(packing.scales) {
        Scales::Blocks => header_half(weight, header, block, lane),
        Scales::Affine => header_half(weight, header, 2u32 * block, lane),
        Scales::K => {
            let low = header_byte(weight, header + 16u32, block, lane);
            let high = header_byte(weight, header + 48u32, block % 4u32, lane) >> (2u32 * (block / 4u32));
            let number = (low & 15u32) | ((high & 3u32) << 4u32);
            header_half(weight, header, 0u32, lane) * f32::cast_from(number)
        }
        Scales::Q6K => {
            let byte = header_byte(weight, header + 8u32, 2u32 * block + half_block, lane);
            let number = f32::cast_from(byte) - select(byte > 127u32, 256.0f32, 0.0f32);
            header_half(weight, header, 0u32, lane) * number
        }
        Scales::Iq4Xs => {
            let low = header_byte(weight, header + 8u32, block % 4u32, lane) >> (4u32 * (block / 4u32));
            let high = header_byte(weight, header + 24u32, block % 2u32, lane) >> (2u32 * (block / 2u32));
            let number = (low & 15u32) | ((high & 3u32) << 4u32);
            header_half(weight, header, 0u32, lane) * (f32::cast_from(number) - 32.0f32)
        }
    }
}

/// What is added to the product of scale and code in block `block` of a chunk.
#[cube]
pub fn offset(
    weight: &[u32],
    header: u32,
    block: u32,
    scale: f32,
    lane: u32,
    #[comptime] packing: Packing,
) -> f32 {
    match comptime!(packing.scales) {
        Scales::Affine => header_half(weight, header, 2u32 * block + 1u32, lane),
        Scales::K => {
            let low = header_byte(weight, header + 16u32, block, lane);
            let high = header_byte(weight, header + 48u32, block % 4u32, lane) >> (2u32 * (block / 4u32));
            let number = (low >> 4u32) | (((high >> 4u32) & 3u32) << 4u32);
            -(header_half(weight, header, 1u32, lane) * f32::cast_from(number))
        }
        // Exact: the zero points are small whole numbers.
        _ => scale * comptime!(-(packing.zero as f32)),
    }
}

/// The codes of columns `4 * g..4 * g + 4` of a row of a block, a byte each, whose row has its words at `codes`, 16 apart.
#[cube]
pub fn four_codes(weight: &[u32], codes: u32, #[comptime] g: u32, #[comptime] packing: Packing) -> u32 {
    if comptime!(packing.bits == 8) {
        weight[(codes + comptime!(16 * g)) as usize]
    } else {
        let nibbles =
            (weight[(codes + comptime!(16 * (g % 4))) as usize] >> comptime!(4 * (g / 4))) & 0x0f0f_0f0fu32;
        if comptime!(packing.bits == 5) {
            let fifth = (weight[(codes + 64u32) as usize] >> comptime!(g)) & 0x0101_0101u32;
            nibbles | (fifth << 4u32)
        } else if comptime!(packing.bits == 6) {
            let word = weight[(codes + comptime!(64 + 16 * (g / 4))) as usize];
            let high = (word >> comptime!(2 * (g % 4))) & 0x0303_0303u32;
            nibbles | (high << 4u32)
        } else {
            nibbles
        }
    }
}

/// Code `byte` of four as a number.
#[cube]
pub fn code(codes: u32, #[comptime] byte: u32, #[comptime] packing: Packing) -> f32 {
    let code = (codes >> comptime!(8 * byte)) & 255u32;
    if comptime!(packing.codebook) { f32::cast_from(look_up(code)) } else { f32::cast_from(code) }
}

/// The entry of the codebook, 128 added.
#[cube]
fn look_up(code: u32) -> u32 {
    let low = select(code < 4u32, comptime!(codebook_word(0)), comptime!(codebook_word(1)));
    let high = select(code < 12u32, comptime!(codebook_word(2)), comptime!(codebook_word(3)));
    (select(code < 8u32, low, high) >> (8u32 * (code % 4u32))) & 255u32
}

/// Four entries of the codebook, 128 added to each.
const fn codebook_word(index: usize) -> u32 {
    let mut word = 0;
    let mut i = 0;
    while i < 4 {
        word |= ((IQ4_CODEBOOK[4 * index + i] as u8 ^ 0x80) as u32) << (8 * i);
        i += 1;
    }
    word
}
