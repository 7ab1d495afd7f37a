//! The few vector operations that the packed kernels are written in, once for each instruction set.
//!
//! A vector is 64 bytes: four columns of 16 rows as bytes, or one number for each of 16 rows. Instruction sets with narrower
//! registers use several. A value of an arm's type is the proof that the CPU has its instructions: it is only made after asking.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod scalar;

use half::f16;

use super::activations::{ActivationBlock, QuantizedRow};
use super::layout::BLOCK;
use super::rows::{RowBlock, SIDE_BY_SIDE};

/// A piece of work that is written for any arm.
pub(super) trait Task {
    /// Does it. Must be `#[inline(always)]`, as everything that it calls with `simd`, to be compiled with the instructions of the arm.
    fn run<S: Simd>(self, simd: S);
}

/// An arm. All arms give the same bits: integers are exact, and floats are combined in the same order, with the same fused
/// operations.
pub(super) trait Simd: Copy {
    /// 64 bytes.
    type Bytes: Copy;
    /// 16 × i32.
    type Ints: Copy;
    /// 16 × f32.
    type Floats: Copy;
    /// Whether several rows of activations share the weights. Kernels for them are most of the code, which an arm for rare processors does not pay for.
    const BATCHES: bool = true;
    /// Tiles of four rows of activations that share the codes of a block in the prefill kernel: one or two.
    const TILES: usize;
    /// Rows of activations that share the weights in the kernel for f32 activations: 3 or 8.
    const EXACT_ROWS: usize;
    /// How far ahead of itself the kernel for few rows of activations asks for weights, in bytes.
    const AHEAD: usize = 0;

    /// Runs `task`, compiled with the instructions of this arm.
    fn run(self, task: impl Task);

    fn load(self, from: &[u8; 64]) -> Self::Bytes;
    fn store(self, value: Self::Bytes, to: &mut [u8; 64]);
    fn and(self, a: Self::Bytes, mask: u8) -> Self::Bytes;
    fn or(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    /// Shifts pairs of bytes: callers mask off what came from the neighbour.
    fn shift_left(self, a: Self::Bytes, bits: u32) -> Self::Bytes;
    /// Shifts pairs of bytes: callers mask off what came from the neighbour.
    fn shift_right(self, a: Self::Bytes, bits: u32) -> Self::Bytes;
    /// `table[index]` for each byte of `indices` (below 16).
    fn look_up(self, table: &[u8; 16], indices: Self::Bytes) -> Self::Bytes;
    /// Byte `byte` of each row's four, as a number.
    fn column(self, a: Self::Bytes, byte: u32) -> Self::Floats;

    /// For each of `M` rows of activations: the dot product of the codes, their zero point taken off, with the activations.
    /// Vector g of `codes` meets `activations[m][g]`; `starts[m]` is minus the sum of those activations × the zero point.
    fn dot<const M: usize, const G: usize>(
        self,
        bits: u32,
        codes: &[Self::Bytes; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [Self::Ints; M];
    /// Keeps codes of eight bits for [`Simd::dot_kept`], in the form that the arm multiplies many rows with.
    #[inline(always)]
    fn keep(self, codes: &[Self::Bytes; 8], to: &mut [Self::Bytes; 16]) {
        for (to, codes) in to.iter_mut().zip(codes) {
            *to = *codes;
        }
    }
    /// [`Simd::dot`] with what [`Simd::keep`] kept.
    #[inline(always)]
    fn dot_kept<const M: usize>(
        self,
        kept: &[Self::Bytes; 16],
        activations: [&[[i8; 4]; 8]; M],
        starts: [i32; M],
    ) -> [Self::Ints; M] {
        self.dot(8, &kept.as_chunks::<8>().0[0], activations, starts)
    }
    fn to_floats(self, a: Self::Ints) -> Self::Floats;

    /// 32 activations in 8 bits.
    #[inline(always)]
    fn quantize(self, values: &[f32; BLOCK]) -> QuantizedRow {
        QuantizedRow::of(values)
    }
    /// Adds to `sums`, for each row of activations and of weights: (scale of the block × dot product with its codes) × scale of the activations.
    #[inline(always)]
    fn add_rows<const M: usize>(
        self,
        blocks: [&RowBlock; SIDE_BY_SIDE],
        activations: &ActivationBlock<M>,
        sums: &mut [[f32; SIDE_BY_SIDE]; M],
    ) {
        add_rows(blocks, activations, sums);
    }
    /// The codes of blocks of sixteen rows, 128 added: vector g holds columns 4g to 4g + 3.
    #[inline(always)]
    fn interleave(self, blocks: [&RowBlock; 16]) -> [Self::Bytes; 8] {
        let vectors = interleaved(blocks);
        let mut codes = [self.load(&vectors[0]); 8];
        for (codes, vector) in codes.iter_mut().zip(&vectors) {
            *codes = self.load(vector);
        }
        codes
    }

    fn load_floats(self, from: &[f32; 16]) -> Self::Floats;
    fn store_floats(self, value: Self::Floats, to: &mut [f32; 16]);
    fn load_f16(self, from: &[u8; 32]) -> Self::Floats;
    fn load_u8(self, from: &[u8; 16]) -> Self::Floats;
    fn load_i8(self, from: &[u8; 16]) -> Self::Floats;
    fn splat(self, value: f32) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c` with one rounding.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
}

fn add_rows<const M: usize>(
    blocks: [&RowBlock; SIDE_BY_SIDE],
    activations: &ActivationBlock<M>,
    sums: &mut [[f32; SIDE_BY_SIDE]; M],
) {
    for (m, sums) in sums.iter_mut().enumerate() {
        for (sum, block) in sums.iter_mut().zip(blocks) {
            let mut dot = 0;
            for (&code, &activation) in block[2..].iter().zip(activations.codes[m].as_flattened()) {
                dot += i32::from(code as i8) * i32::from(activation);
            }
            let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            *sum = (scale * dot as f32).mul_add(activations.scales[m], *sum);
        }
    }
}

fn interleaved(blocks: [&RowBlock; 16]) -> [[u8; 64]; 8] {
    let mut vectors = [[0; 64]; 8];
    for (lane, block) in blocks.iter().enumerate() {
        for (four, to) in block[2..].as_chunks::<4>().0.iter().zip(&mut vectors) {
            to.as_chunks_mut::<4>().0[lane] = four.map(|code| code ^ 0x80);
        }
    }
    vectors
}
