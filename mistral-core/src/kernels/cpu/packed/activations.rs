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

/// 32 columns of one row of activations: element ≈ `scale` × `codes[i]`.
pub(super) struct QuantizedRow {
    /// Makes the largest magnitude 127. NaN if there is a NaN or an infinity, so that this shows in every output.
    pub scale: f32,
    pub codes: [i8; BLOCK],
    /// Of the first and of the last 16 codes.
    pub sums: [i32; 2],
}

impl QuantizedRow {
    #[inline(always)]
    pub fn of(values: &[f32; BLOCK]) -> Self {
        // As integers the magnitudes are in the order of the floats, with infinity and NaN on top.
        let mut largest = 0;
        for value in values {
            largest = largest.max(value.to_bits() & 0x7fff_ffff);
        }
        let (scale, inverse) = match Self::scales(f32::from_bits(largest)) {
            Ok(scales) => scales,
            Err(row) => return row,
        };
        let mut row = Self { scale, codes: [0; BLOCK], sums: [0; 2] };
        for (i, (code, value)) in row.codes.iter_mut().zip(values).enumerate() {
            // Adding 1.5 × 2^23 rounds to the nearest whole number, halves to even, and leaves it in the low bits.
            *code = (value * inverse + 12_582_912.0).to_bits() as i8;
            row.sums[i / 16] += i32::from(*code);
        }
        row
    }

    /// The scale and its inverse, or the row if that is the same whatever the other values are.
    #[inline(always)]
    pub fn scales(largest: f32) -> Result<(f32, f32), Self> {
        let zeros = |scale| Self { scale, codes: [0; BLOCK], sums: [0; 2] };
        if !largest.is_finite() {
            return Err(zeros(f32::NAN));
        }
        // Below this 127 / largest overflows.
        if largest < 1e-36 {
            return Err(zeros(0.0));
        }
        Ok((largest / 127.0, 127.0 / largest))
    }
}

/// A block of some rows of activations.
pub(super) trait Quantized: Copy + Send {
    const ROWS: usize;
    const ZERO: Self;
    /// Whether it depends on what the weights ask.
    const STARTS: bool;

    /// Sets the part of row `r`.
    fn set(&mut self, r: usize, zero: Zero, row: &QuantizedRow);
}

impl<const R: usize> Quantized for ActivationBlock<R> {
    const ROWS: usize = R;
    const ZERO: Self =
        Self { codes: [[[0; 4]; 8]; R], scales: [0.0; R], sums: [0.0; R], starts: [[0; R]; 2] };
    const STARTS: bool = true;

    #[inline(always)]
    fn set(&mut self, r: usize, zero: Zero, row: &QuantizedRow) {
        let [first, second] = row.sums;
        self.scales[r] = row.scale;
        self.sums[r] = (first + second) as f32;
        self.starts[0][r] = -(if zero.halves { first } else { first + second }) * zero.point;
        self.starts[1][r] = -second * zero.point;
        self.codes[r].as_flattened_mut().copy_from_slice(&row.codes);
    }
}
