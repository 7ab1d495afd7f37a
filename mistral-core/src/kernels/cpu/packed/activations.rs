//! Activations as 8-bit integers: what the integer kernels multiply the codes of the weights with.

use super::layout::{BLOCK, CHUNK};

/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / BLOCK;

/// 256 activations of one row, in 8 blocks of 32: element ≈ `scales[b]` × `codes[b][i / 4][i % 4]`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct ActivationChunk {
    pub codes: [[[i8; 4]; 8]; BLOCKS],
    pub scales: [f32; BLOCKS],
    /// Sum of the codes of each block.
    pub sums: [f32; BLOCKS],
    /// The sum again, negated: what the zero point of the weights multiplies.
    pub negated_sums: [i32; BLOCKS],
    /// The same over the first 16 codes of each block, and over the last 16.
    pub negated_half_sums: [[i32; BLOCKS]; 2],
}

impl ActivationChunk {
    pub const ZERO: Self = Self {
        codes: [[[0; 4]; 8]; BLOCKS],
        scales: [0.0; BLOCKS],
        sums: [0.0; BLOCKS],
        negated_sums: [0; BLOCKS],
        negated_half_sums: [[0; BLOCKS]; 2],
    };

    /// Quantises up to 256 activations, a whole number of blocks. Each block is scaled so that its largest magnitude becomes 127;
    /// a block with a NaN or an infinity gets the scale NaN, so that it shows in every output.
    #[inline(always)]
    pub fn quantize(&mut self, values: &[f32]) {
        for (b, values) in values.as_chunks::<BLOCK>().0.iter().enumerate().take(BLOCKS) {
            let (scale, codes) = quantize_block(values);
            let sum = |codes: &[i8]| codes.iter().map(|&code| i32::from(code)).sum::<i32>();
            let halves = [sum(&codes[..16]), sum(&codes[16..])];
            self.scales[b] = scale;
            self.sums[b] = (halves[0] + halves[1]) as f32;
            self.negated_sums[b] = -halves[0] - halves[1];
            self.negated_half_sums[0][b] = -halves[0];
            self.negated_half_sums[1][b] = -halves[1];
            for (to, from) in self.codes[b].iter_mut().zip(codes.as_chunks::<4>().0) {
                *to = *from;
            }
        }
    }
}

#[inline(always)]
fn quantize_block(values: &[f32; BLOCK]) -> (f32, [i8; BLOCK]) {
    // As integers the magnitudes are in the order of the floats, with infinity and NaN on top.
    let largest = values.iter().fold(0, |largest, value| largest.max(value.to_bits() & 0x7fff_ffff));
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
    let codes = values.map(|value| (value * inverse + 12_582_912.0).to_bits() as i8);
    (largest / 127.0, codes)
}
