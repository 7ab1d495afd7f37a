//! Activations as 8-bit integers: what the integer kernels multiply the codes of the weights with.

use super::layout::BLOCK;

/// 32 columns of `R` rows of activations: element ≈ `scales[r]` × `codes[r][i / 4][i % 4]`. Together, so that a kernel finds
/// everything at fixed distances from one address.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct ActivationBlock<const R: usize> {
    pub codes: [[[i8; 4]; 8]; R],
    pub scales: [f32; R],
    /// Sums of the codes.
    pub sums: [f32; R],
    /// What integer dot products with the first and the last 16 codes start from: minus their sum × the zero point of the
    /// weights. Where the halves of a block have no scales of their own, the first is that of the entire block.
    pub starts: [[i32; R]; 2],
}

/// What the weights ask of the activations.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Zero {
    /// The code that stands for zero; 0 if there is none.
    pub point: i32,
    /// Whether the halves of a block have scales of their own.
    pub halves: bool,
}

impl Zero {
    /// Nothing.
    pub const NONE: Self = Self { point: 0, halves: false };
}

/// A block of some rows of activations.
pub(super) trait Quantized: Copy + Send {
    const ROWS: usize;
    const ZERO: Self;
    /// Whether it depends on what the weights ask.
    const STARTS: bool;

    /// Quantises the part of row `r`. Its scale makes the largest magnitude 127; if there is a NaN or an infinity it is NaN, so
    /// that this shows in every output.
    fn quantize(&mut self, r: usize, zero: Zero, values: &[f32; BLOCK]);
}

impl<const R: usize> Quantized for ActivationBlock<R> {
    const ROWS: usize = R;
    const ZERO: Self =
        Self { codes: [[[0; 4]; 8]; R], scales: [0.0; R], sums: [0.0; R], starts: [[0; R]; 2] };
    const STARTS: bool = true;

    #[inline(always)]
    fn quantize(&mut self, r: usize, zero: Zero, values: &[f32; BLOCK]) {
        let (scale, codes) = quantize(values);
        let mut halves = [0; 2];
        for (half, codes) in halves.iter_mut().zip(codes.as_chunks::<16>().0) {
            for &code in codes {
                *half += i32::from(code);
            }
        }
        let first = if zero.halves { halves[0] } else { halves[0] + halves[1] };
        self.scales[r] = scale;
        self.sums[r] = (halves[0] + halves[1]) as f32;
        self.starts[0][r] = -first * zero.point;
        self.starts[1][r] = -halves[1] * zero.point;
        for (to, from) in self.codes[r].iter_mut().zip(codes.as_chunks().0) {
            *to = *from;
        }
    }
}

/// A scale and codes.
#[inline(always)]
pub(super) fn quantize(values: &[f32; BLOCK]) -> (f32, [i8; BLOCK]) {
    // As integers the magnitudes are in the order of the floats, with infinity and NaN on top.
    let mut largest = 0;
    for value in values {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return (f32::NAN, [0; BLOCK]);
    }
    // Below this 127 / largest overflows.
    if largest < 1e-36 {
        return (0.0, [0; BLOCK]);
    }
    let inverse = 127.0 / largest;
    // Adding 1.5 × 2^23 rounds to the nearest whole number, halves to even, and leaves it in the low bits.
    let mut codes = [0; BLOCK];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse + 12_582_912.0).to_bits() as i8;
    }
    (largest / 127.0, codes)
}
