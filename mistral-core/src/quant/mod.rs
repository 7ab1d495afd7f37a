//! Storage formats of weights: block layouts, scalar dequantisation and quantisation. No Burn here.
//!
//! The block layouts are those of GGUF (ggml's `ggml-common.h`, gguf-py's `quants.py`): a row is a sequence of blocks, each
//! with its own scale, so a matrix can be cut anywhere between two blocks.

mod dequantize;
mod few_bits;
mod grids;
mod k_quantize;
mod points;
mod quantize;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};

pub(crate) use dequantize::IQ4_CODEBOOK;
pub use dequantize::f8e4m3_to_f32;

/// How the elements of a tensor are stored. The names are those of GGUF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, missing_docs)]
#[non_exhaustive]
pub enum Format {
    F32,
    F16,
    BF16,
    /// FP8 with 4 exponent and 3 mantissa bits, no infinities (`float8_e4m3fn`); scales live beside the tensor.
    F8E4M3,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    Q2_K,
    Q3_K,
    IQ1_S,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ3_XXS,
    IQ3_S,
    TQ1_0,
    TQ2_0,
}

/// What is constant about a format.
struct Traits {
    format: Format,
    name: &'static str,
    /// `ggml_type` in a GGUF file.
    gguf_id: Option<u32>,
    /// Elements of a block.
    block_len: usize,
    /// Bytes of a block.
    block_bytes: usize,
}

const fn traits(
    format: Format,
    name: &'static str,
    gguf_id: Option<u32>,
    block_len: usize,
    block_bytes: usize,
) -> Traits {
    Traits { format, name, gguf_id, block_len, block_bytes }
}

/// In the order of the variants of [`Format`].
const FORMATS: [Traits; 24] = [
    traits(Format::F32, "F32", Some(0), 1, 4),
    traits(Format::F16, "F16", Some(1), 1, 2),
    traits(Format::BF16, "BF16", Some(30), 1, 2),
    traits(Format::F8E4M3, "F8_E4M3", None, 1, 1),
    traits(Format::Q4_0, "Q4_0", Some(2), 32, 18),
    traits(Format::Q4_1, "Q4_1", Some(3), 32, 20),
    traits(Format::Q5_0, "Q5_0", Some(6), 32, 22),
    traits(Format::Q5_1, "Q5_1", Some(7), 32, 24),
    traits(Format::Q8_0, "Q8_0", Some(8), 32, 34),
    traits(Format::Q4_K, "Q4_K", Some(12), 256, 144),
    traits(Format::Q5_K, "Q5_K", Some(13), 256, 176),
    traits(Format::Q6_K, "Q6_K", Some(14), 256, 210),
    traits(Format::IQ4_NL, "IQ4_NL", Some(20), 32, 18),
    traits(Format::IQ4_XS, "IQ4_XS", Some(23), 256, 136),
    traits(Format::Q2_K, "Q2_K", Some(10), 256, 84),
    traits(Format::Q3_K, "Q3_K", Some(11), 256, 110),
    traits(Format::IQ1_S, "IQ1_S", Some(19), 256, 50),
    traits(Format::IQ2_XXS, "IQ2_XXS", Some(16), 256, 66),
    traits(Format::IQ2_XS, "IQ2_XS", Some(17), 256, 74),
    traits(Format::IQ2_S, "IQ2_S", Some(22), 256, 82),
    traits(Format::IQ3_XXS, "IQ3_XXS", Some(18), 256, 98),
    traits(Format::IQ3_S, "IQ3_S", Some(21), 256, 110),
    traits(Format::TQ1_0, "TQ1_0", Some(34), 256, 54),
    traits(Format::TQ2_0, "TQ2_0", Some(35), 256, 66),
];

/// Types that a GGUF file may name and this library does not read, so that a refusal can say which it met.
const UNSUPPORTED_GGUF: [(u32, &str); 14] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];

impl Format {
    /// Every format, in the order of the variants.
    pub fn all() -> impl Iterator<Item = Self> {
        FORMATS.iter().map(|traits| traits.format)
    }

    /// The name that GGUF tools print (`Q4_K`); FP8 is `F8_E4M3`, as in safetensors.
    pub fn name(self) -> &'static str {
        self.traits().name
    }

    /// The format of a GGUF tensor type (`ggml_type`); `None` if this library does not read it.
    pub fn from_gguf(id: u32) -> Option<Self> {
        FORMATS.iter().find(|traits| traits.gguf_id == Some(id)).map(|traits| traits.format)
    }

    /// The names of all formats that a GGUF file may hold, for refusals.
    pub fn gguf_names() -> String {
        let names: Vec<_> = FORMATS.iter().filter(|t| t.gguf_id.is_some()).map(|t| t.name).collect();
        names.join(", ")
    }

    /// The GGUF tensor type; `None` for FP8, which GGUF does not have.
    pub fn gguf_id(self) -> Option<u32> {
        self.traits().gguf_id
    }

    /// Elements of a block; 1 where elements stand alone.
    pub fn block_len(self) -> usize {
        self.traits().block_len
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.traits().block_bytes
    }

    /// Whether elements come in blocks with scales of their own.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// Bytes of a row of `cols` elements.
    ///
    /// # Errors
    /// [`Error::Argument`] if `cols` is not a multiple of [`Format::block_len`], or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        let Traits { name, block_len, block_bytes, .. } = *self.traits();
        if !cols.is_multiple_of(block_len) {
            return Err(Error::argument(
                "cols",
                format!("{cols} columns"),
                format!("a multiple of {block_len} ({name})"),
            ));
        }
        (cols / block_len)
            .checked_mul(block_bytes)
            .ok_or_else(|| Error::argument("cols", format!("{cols} columns"), "a row that fits into memory"))
    }

    fn traits(self) -> &'static Traits {
        &FORMATS[self as usize]
    }
}

/// The name of a GGUF tensor type, read by this library or not; `None` if the number is not known at all.
pub fn gguf_type_name(id: u32) -> Option<&'static str> {
    let known = FORMATS.iter().find(|traits| traits.gguf_id == Some(id)).map(|traits| traits.name);
    known.or_else(|| UNSUPPORTED_GGUF.iter().find(|entry| entry.0 == id).map(|entry| entry.1))
}
