//! Storage formats of weights: block layouts, scalar dequantisation and quantisation. No Burn here.

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
}
