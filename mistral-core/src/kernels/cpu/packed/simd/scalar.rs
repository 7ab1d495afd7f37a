//! The portable arm, and the definition of what the others compute.

use std::array;

use half::f16;

use super::{Simd, Task};

/// Proof of nothing: every CPU has these instructions. What is long is compiled once for all formats: inlined everywhere it would be much of the library, for processors that are rare.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type Bytes = [u8; 64];
    type Ints = [i32; 16];
    type Floats = [f32; 16];
    const BATCHES: bool = false;
    const TILES: usize = 1;
    const EXACT_ROWS: usize = 3;

    #[inline(always)]
    fn run(self, task: impl Task) {
        task.run(self);
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> [u8; 64] {
        *from
    }
    #[inline(always)]
    fn store(self, value: [u8; 64], to: &mut [u8; 64]) {
        *to = value;
    }
    #[inline(always)]
    fn and(self, a: [u8; 64], mask: u8) -> [u8; 64] {
        a.map(|byte| byte & mask)
    }
    #[inline(always)]
    fn or(self, a: [u8; 64], b: [u8; 64]) -> [u8; 64] {
        array::from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shift_left(self, a: [u8; 64], bits: u32) -> [u8; 64] {
        a.map(|byte| byte << bits)
    }
    #[inline(always)]
    fn shift_right(self, a: [u8; 64], bits: u32) -> [u8; 64] {
        a.map(|byte| byte >> bits)
    }
    #[inline(never)]
    fn look_up(self, table: &[u8; 16], indices: [u8; 64]) -> [u8; 64] {
        indices.map(|index| table[usize::from(index & 15)])
    }
    #[inline(never)]
    fn column(self, a: [u8; 64], byte: u32) -> [f32; 16] {
        array::from_fn(|row| f32::from(a[4 * row + byte as usize]))
    }

    #[inline(never)]
    fn dot<const M: usize, const G: usize>(
        self,
        _bits: u32,
        codes: &[[u8; 64]; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [[i32; 16]; M] {
        array::from_fn(|m| {
            let mut sums = [starts[m]; 16];
            for (codes, activations) in codes.iter().zip(activations[m]) {
                for (sum, codes) in sums.iter_mut().zip(codes.as_chunks::<4>().0) {
                    for (&code, &activation) in codes.iter().zip(activations) {
                        *sum += i32::from(code) * i32::from(activation);
                    }
                }
            }
            sums
        })
    }
    #[inline(always)]
    fn to_floats(self, a: [i32; 16]) -> [f32; 16] {
        a.map(|int| int as f32)
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> [f32; 16] {
        *from
    }
    #[inline(always)]
    fn store_floats(self, value: [f32; 16], to: &mut [f32; 16]) {
        *to = value;
    }
    #[inline(never)]
    fn load_f16(self, from: &[u8; 32]) -> [f32; 16] {
        array::from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }
    #[inline(never)]
    fn load_u8(self, from: &[u8; 16]) -> [f32; 16] {
        from.map(f32::from)
    }
    #[inline(never)]
    fn load_i8(self, from: &[u8; 16]) -> [f32; 16] {
        from.map(|byte| f32::from(byte as i8))
    }
    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 16] {
        [value; 16]
    }
    #[inline(always)]
    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        array::from_fn(|i| a[i] + b[i])
    }
    #[inline(never)]
    fn fma(self, a: [f32; 16], b: [f32; 16], c: [f32; 16]) -> [f32; 16] {
        array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
}
