//! Numbers out of words: WGSL knows neither bytes nor bf16, and halves only where an adapter has them, so everything that is stored is
//! read as `u32` and taken apart with integer operations. All of it is exact.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use crate::quant::{Format, IQ4_CODEBOOK};

/// Four words, which are read at once.
pub type Words = Vector<u32, Const<4>>;
/// A number for each of four rows.
pub type Rows = Vector<f32, Const<4>>;

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
    let magnitude = (bits & 0x7fffu32) << 13u32;
    let rebias = select(magnitude >= 0x0f80_0000u32, 224u32 << 23u32, 112u32 << 23u32);
    let normal = f32::reinterpret(magnitude + rebias);
    // A device may take a single-precision subnormal for zero: those of halves are differences of normal numbers, 2^-15 · (1 + m/1024) without its one.
    let subnormal = fma(normal, 2.0f32, -6.103_515_6e-5f32);
    let value = select(magnitude < 0x0080_0000u32, subnormal, normal);
    f32::reinterpret(u32::reinterpret(value) | ((bits & 0x8000u32) << 16u32))
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

    /// Whether each half of a block has a scale of its own.
    pub fn has_half_scales(self) -> bool {
        self.scales == Scales::Q6K
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
fn header_words(blocks: u32, #[comptime] packing: Packing) -> u32 {
    match comptime!(packing.scales) {
        Scales::Blocks => (blocks * 8u32).div_ceil(16u32) * 16u32,
        Scales::Affine => blocks * 16u32,
        _ => comptime!(packing.header_words()).runtime(),
    }
}

/// Where the header of the chunk with block `b` and the codes of the block begin, in a group of rows that begins at word `group`; this and what follows
/// count four words at a time.
#[cube]
pub fn block_place(group: u32, b: u32, blocks: u32, #[comptime] packing: Packing) -> (u32, u32) {
    let chunk_words = comptime!(packing.header_words() + 8 * packing.code_words());
    let chunk = b / 8u32;
    let header = (group + chunk * chunk_words) / 4u32;
    let in_chunk = min(blocks - chunk * 8u32, 8u32);
    let before = header_words(in_chunk, packing) + b % 8u32 * comptime!(packing.code_words());
    (header, header + before / 4u32)
}

/// Half `index` of the rows `4 * quad..4 * quad + 4` of a group, in the header that starts at `header`.
#[cube]
fn header_halves(weight: &[Words], header: u32, index: u32, quad: u32) -> Rows {
    let four = weight[(header + index * 2u32 + quad / 2u32) as usize];
    let second = quad % 2u32 == 1u32;
    let low = select(second, four.extract(2usize), four.extract(0usize));
    let high = select(second, four.extract(3usize), four.extract(1usize));
    let mut halves = Rows::empty();
    halves.insert(0usize, half(low));
    halves.insert(1usize, half(low >> 16u32));
    halves.insert(2usize, half(high));
    halves.insert(3usize, half(high >> 16u32));
    halves
}

/// Byte `index` of four rows, in the header part that starts at `part`.
#[cube]
fn header_bytes(weight: &[Words], part: u32, index: u32, quad: u32) -> Words {
    let word = pick(weight[(part + index) as usize], quad);
    let mut bytes = Words::empty();
    #[unroll]
    for row in 0..4u32 {
        bytes.insert(comptime!(row as usize), (word >> comptime!(8 * row)) & 255u32);
    }
    bytes
}

/// Word `index` of four.
#[cube]
pub fn pick(four: Words, index: u32) -> u32 {
    let low = select(index == 1u32, four.extract(1usize), four.extract(0usize));
    let high = select(index == 3u32, four.extract(3usize), four.extract(2usize));
    select(index < 2u32, low, high)
}

/// The numbers of six bits of four rows, whose low and high bits lie apart.
#[cube]
fn six_bits(low: Words, high: Words) -> Rows {
    let low = low & Words::new(15u32);
    let high = (high & Words::new(3u32)) << Words::new(4u32);
    Rows::cast_from(low | high)
}

/// What codes are multiplied by in block `block` of a chunk, half `half_block` of it.
#[cube]
pub fn scales(
    weight: &[Words],
    header: u32,
    block: u32,
    half_block: u32,
    quad: u32,
    #[comptime] packing: Packing,
) -> Rows {
    match comptime!(packing.scales) {
        Scales::Blocks => header_halves(weight, header, block, quad),
        Scales::Affine => header_halves(weight, header, 2u32 * block, quad),
        Scales::K => {
            let low = header_bytes(weight, header + 4u32, block, quad);
            let high = header_bytes(weight, header + 12u32, block % 4u32, quad);
            let high = high >> Words::new(2u32 * (block / 4u32));
            header_halves(weight, header, 0u32, quad) * six_bits(low, high)
        }
        Scales::Q6K => {
            let bytes = header_bytes(weight, header + 2u32, 2u32 * block + half_block, quad);
            // Two's complement of eight bits.
            let number = Rows::cast_from(bytes ^ Words::new(128u32)) - Rows::new(128.0f32);
            header_halves(weight, header, 0u32, quad) * number
        }
        Scales::Iq4Xs => {
            let low = header_bytes(weight, header + 2u32, block % 4u32, quad);
            let high = header_bytes(weight, header + 6u32, block % 2u32, quad);
            let low = low >> Words::new(4u32 * (block / 4u32));
            let high = high >> Words::new(2u32 * (block / 2u32));
            header_halves(weight, header, 0u32, quad) * (six_bits(low, high) - Rows::new(32.0f32))
        }
    }
}

/// What is added to each product of scale and code in block `block` of a chunk.
#[cube]
pub fn offsets(
    weight: &[Words],
    header: u32,
    block: u32,
    scales: Rows,
    quad: u32,
    #[comptime] packing: Packing,
) -> Rows {
    match comptime!(packing.scales) {
        Scales::Affine => header_halves(weight, header, 2u32 * block + 1u32, quad),
        Scales::K => {
            let low = header_bytes(weight, header + 4u32, block, quad) >> Words::new(4u32);
            let high = header_bytes(weight, header + 12u32, block % 4u32, quad) >> Words::new(4u32);
            let high = high >> Words::new(2u32 * (block / 4u32));
            -(header_halves(weight, header, 1u32, quad) * six_bits(low, high))
        }
        // Exact: the zero points are small whole numbers.
        _ => scales * Rows::new(comptime!(-(packing.zero as f32))),
    }
}

/// The [`four_codes`] `g` of four rows of a block whose words begin at `codes`.
#[cube]
pub fn read_codes(weight: &[Words], codes: u32, g: u32, #[comptime] packing: Packing) -> Words {
    let first = if comptime!(packing.bits == 8) { g } else { g % 4u32 };
    let words = weight[(codes + 4u32 * first) as usize];
    let mut more = words;
    if comptime!(packing.bits == 5) {
        more = weight[(codes + 16u32) as usize];
    }
    if comptime!(packing.bits == 6) {
        more = weight[(codes + 16u32 + 4u32 * (g / 4u32)) as usize];
    }
    four_codes(words, more, g, packing)
}

/// The codes of columns `4 * g..4 * g + 4` of a block, a byte each, of four rows, out of the words that hold them, and the words with their fifth and sixth bits.
#[cube]
pub fn four_codes(words: Words, more: Words, g: u32, #[comptime] packing: Packing) -> Words {
    if comptime!(packing.bits == 8) {
        words
    } else {
        let nibbles = (words >> Words::new(4u32 * (g / 4u32))) & Words::new(0x0f0f_0f0fu32);
        if comptime!(packing.bits == 5) {
            let fifth = (more >> Words::new(g)) & Words::new(0x0101_0101u32);
            nibbles | (fifth << Words::new(4u32))
        } else if comptime!(packing.bits == 6) {
            let high = (more >> Words::new(2u32 * (g % 4u32))) & Words::new(0x0303_0303u32);
            nibbles | (high << Words::new(4u32))
        } else {
            nibbles
        }
    }
}

/// Code `byte` of four, of four rows, as numbers.
#[cube]
pub fn code(codes: Words, #[comptime] byte: u32, #[comptime] packing: Packing) -> Rows {
    let code = (codes >> Words::new(comptime!(8 * byte))) & Words::new(255u32);
    if comptime!(packing.codebook) {
        let mut numbers = Words::empty();
        #[unroll]
        for row in 0..4usize {
            numbers.insert(row, look_up(code.extract(row)));
        }
        Rows::cast_from(numbers)
    } else {
        Rows::cast_from(code)
    }
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
