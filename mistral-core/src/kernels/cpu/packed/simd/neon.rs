//! NEON, as every 64-bit ARM has it: four registers for a vector. Dot products with the best instruction there is: of two rows with two (i8mm), of one with one (dotprod), or
//! of 16-bit products. The first two are written in assembly, as Rust has no stable intrinsics for them.

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::super::super::simd::neon::widen;
use super::super::activations::ActivationBlock;
use super::super::rows::{RowBlock, SIDE_BY_SIDE};
use super::{Simd, Task};

/// No more than NEON.
pub(crate) const BASE: u8 = 0;
/// And `sdot`.
pub(crate) const DOTPROD: u8 = 1;
/// And `sdot` and `smmla`.
pub(crate) const I8MM: u8 = 2;

/// Proof that the CPU has NEON and the instructions of `LEVEL`.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const LEVEL: u8>(());

impl<const LEVEL: u8> Neon<LEVEL> {
    /// `None` if the CPU lacks one of the instruction sets.
    pub fn detect() -> Option<Self> {
        let found = is_aarch64_feature_detected!("neon")
            && (LEVEL < DOTPROD || is_aarch64_feature_detected!("dotprod"))
            && (LEVEL < I8MM || is_aarch64_feature_detected!("i8mm"));
        found.then_some(Self(()))
    }
}

type Bytes = [uint8x16_t; 4];
type Ints = [int32x4_t; 4];
type Floats = [float32x4_t; 4];

/// Calls intrinsics from a method of [`Neon`].
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: the CPU has the instructions, which `self` proves; pointers come from references to all the bytes that are touched.
        unsafe { $body }
    };
}

/// An expression for all four registers of each of the named vectors.
macro_rules! each {
    (|$($name:ident),+| $body:expr) => {
        [
            { $(let $name = $name[0];)+ $body },
            { $(let $name = $name[1];)+ $body },
            { $(let $name = $name[2];)+ $body },
            { $(let $name = $name[3];)+ $body },
        ]
    };
}

/// `sum + Σ codes · four`, where `four` is a lane of `activations`.
///
/// # Safety
/// The CPU has dotprod.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn sdot<const LANE: i32>(sum: &mut int32x4_t, codes: int8x16_t, activations: int8x16_t) {
    // SAFETY: an instruction that this function is compiled for, on registers alone.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{3}]",
            inout(vreg) * sum,
            in(vreg) codes,
            in(vreg) activations,
            const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// `sum` + the products of codes and activations, of each four neighbours.
///
/// # Safety
/// The CPU has dotprod.
#[target_feature(enable = "neon,dotprod")]
#[inline]
unsafe fn sdot_all(sum: &mut int32x4_t, codes: int8x16_t, activations: int8x16_t) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) * sum,
            in(vreg) codes,
            in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Adds the products of two rows of eight codes with two rows of eight activations: first with both, second with both.
///
/// # Safety
/// The CPU has i8mm.
#[target_feature(enable = "neon,i8mm")]
#[inline]
unsafe fn smmla(sum: &mut int32x4_t, codes: int8x16_t, activations: int8x16_t) {
    // SAFETY: as above.
    unsafe {
        asm!(
            "smmla {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) * sum,
            in(vreg) codes,
            in(vreg) activations,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
}

/// Codes as signed numbers: those of eight bits with their zero point, 128, taken off.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
unsafe fn signed(bits: u32, codes: Bytes) -> [int8x16_t; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        match bits {
            8 => each!(|codes| vreinterpretq_s8_u8(veorq_u8(codes, vdupq_n_u8(0x80)))),
            _ => each!(|codes| vreinterpretq_s8_u8(codes)),
        }
    }
}

/// Where dot products start from: at nothing if [`signed`] took the zero point off.
fn start(bits: u32, start: i32) -> i32 {
    if bits == 8 { 0 } else { start }
}

impl<const LEVEL: u8> Neon<LEVEL> {
    /// [`Simd::dot`] by 16-bit products.
    #[inline(always)]
    fn dot_products<const M: usize, const G: usize>(
        self,
        bits: u32,
        codes: &[Bytes; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [Ints; M] {
        // Pairs of sums of products that fit into an i16: 2 × 8 × 15 × 127, 2 × 4 × 31 × 127, 2 × 2 × 63 × 127, 2 × 128 × 127 < 2^15.
        let run = match bits {
            4 => 8,
            5 => 4,
            6 => 2,
            _ => 1,
        };
        intrinsics!({
            let mut sums = [[vdupq_n_s32(0); 4]; M];
            for m in 0..M {
                sums[m] = [vdupq_n_s32(start(bits, starts[m])); 4];
                let mut first = 0;
                while first < G {
                    let mut products = [[vdupq_n_s16(0); 2]; 4];
                    for g in first..(first + run).min(G) {
                        let four = i32::from_ne_bytes(activations[m][g].map(|code| code as u8));
                        let four = vreinterpretq_s8_s32(vdupq_n_s32(four));
                        let codes = signed(bits, codes[g]);
                        for (products, codes) in products.iter_mut().zip(codes) {
                            products[0] = vmlal_s8(products[0], vget_low_s8(codes), vget_low_s8(four));
                            products[1] = vmlal_high_s8(products[1], codes, four);
                        }
                    }
                    for (sum, products) in sums[m].iter_mut().zip(products) {
                        *sum = vpadalq_s16(*sum, vpaddq_s16(products[0], products[1]));
                    }
                    first += run;
                }
            }
            sums
        })
    }

    /// [`Simd::dot`] by `sdot`.
    #[inline(always)]
    fn dot_fours<const M: usize, const G: usize>(
        self,
        bits: u32,
        codes: &[Bytes; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [Ints; M] {
        intrinsics!({
            let mut sums = [[vdupq_n_s32(0); 4]; M];
            for m in 0..M {
                sums[m] = [vdupq_n_s32(start(bits, starts[m])); 4];
            }
            let mut first = 0;
            while first < G {
                let mut sixteen = [vdupq_n_s8(0); M];
                for m in 0..M {
                    sixteen[m] = vld1q_s8(activations[m][first..first + 4].as_ptr().cast());
                }
                macro_rules! lane {
                    ($lane:literal) => {
                        let codes = signed(bits, codes[first + $lane]);
                        for m in 0..M {
                            for quarter in 0..4 {
                                sdot::<$lane>(&mut sums[m][quarter], codes[quarter], sixteen[m]);
                            }
                        }
                    };
                }
                lane!(0);
                lane!(1);
                lane!(2);
                lane!(3);
                first += 4;
            }
            sums
        })
    }

    /// [`Simd::dot`] by `smmla`, for an even number of rows of activations.
    #[inline(always)]
    fn dot_squares<const M: usize, const G: usize>(
        self,
        bits: u32,
        codes: &[Bytes; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [Ints; M] {
        intrinsics!({
            // For each two rows of activations, of each quarter's four rows: the first two with both, and the last two.
            let mut squares = [[[vdupq_n_s32(0); 2]; 4]; M];
            for g in (0..G).step_by(2) {
                let mut eight = [vdupq_n_s8(0); M];
                for pair in 0..M / 2 {
                    let first = vld1_s8(activations[2 * pair][g..g + 2].as_ptr().cast());
                    let second = vld1_s8(activations[2 * pair + 1][g..g + 2].as_ptr().cast());
                    eight[pair] = vcombine_s8(first, second);
                }
                let (codes, next) = (signed(bits, codes[g]), signed(bits, codes[g + 1]));
                for quarter in 0..4 {
                    let (a, b) = (vreinterpretq_s32_s8(codes[quarter]), vreinterpretq_s32_s8(next[quarter]));
                    let rows = [vzip1q_s32(a, b), vzip2q_s32(a, b)];
                    for pair in 0..M / 2 {
                        for half in 0..2 {
                            let rows = vreinterpretq_s8_s32(rows[half]);
                            smmla(&mut squares[pair][quarter][half], rows, eight[pair]);
                        }
                    }
                }
            }
            let mut sums = [[vdupq_n_s32(0); 4]; M];
            for m in 0..M {
                let start = vdupq_n_s32(start(bits, starts[m]));
                for quarter in 0..4 {
                    let [a, b] = squares[m / 2][quarter];
                    let dots = if m % 2 == 0 { vuzp1q_s32(a, b) } else { vuzp2q_s32(a, b) };
                    sums[m][quarter] = vaddq_s32(start, dots);
                }
            }
            sums
        })
    }
}

impl<const LEVEL: u8> Simd for Neon<LEVEL> {
    type Bytes = Bytes;
    type Ints = Ints;
    type Floats = Floats;
    const TILES: usize = 1;
    const EXACT_ROWS: usize = 3;

    #[inline(always)]
    fn run(self, task: impl Task) {
        #[target_feature(enable = "neon")]
        fn base<const LEVEL: u8>(simd: Neon<LEVEL>, task: impl Task) {
            task.run(simd);
        }
        #[target_feature(enable = "neon,dotprod")]
        fn dotprod<const LEVEL: u8>(simd: Neon<LEVEL>, task: impl Task) {
            task.run(simd);
        }
        #[target_feature(enable = "neon,dotprod,i8mm")]
        fn i8mm<const LEVEL: u8>(simd: Neon<LEVEL>, task: impl Task) {
            task.run(simd);
        }
        intrinsics!(match LEVEL {
            BASE => base(self, task),
            DOTPROD => dotprod(self, task),
            _ => i8mm(self, task),
        })
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> Bytes {
        let from = from.as_ptr();
        intrinsics!([vld1q_u8(from), vld1q_u8(from.add(16)), vld1q_u8(from.add(32)), vld1q_u8(from.add(48))])
    }
    #[inline(always)]
    fn store(self, value: Bytes, to: &mut [u8; 64]) {
        for (to, value) in to.as_chunks_mut::<16>().0.iter_mut().zip(value) {
            intrinsics!(vst1q_u8(to.as_mut_ptr(), value));
        }
    }
    #[inline(always)]
    fn and(self, a: Bytes, mask: u8) -> Bytes {
        intrinsics!(each!(|a| vandq_u8(a, vdupq_n_u8(mask))))
    }
    #[inline(always)]
    fn or(self, a: Bytes, b: Bytes) -> Bytes {
        intrinsics!(each!(|a, b| vorrq_u8(a, b)))
    }
    #[inline(always)]
    fn shift_left(self, a: Bytes, bits: u32) -> Bytes {
        intrinsics!(each!(|a| vshlq_u8(a, vdupq_n_s8(bits as i8))))
    }
    #[inline(always)]
    fn shift_right(self, a: Bytes, bits: u32) -> Bytes {
        intrinsics!(each!(|a| vshlq_u8(a, vdupq_n_s8(-(bits as i8)))))
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], indices: Bytes) -> Bytes {
        intrinsics!({
            let table = vld1q_u8(table.as_ptr());
            each!(|indices| vqtbl1q_u8(table, indices))
        })
    }
    #[inline(always)]
    fn column(self, a: Bytes, byte: u32) -> Floats {
        intrinsics!(each!(|a| {
            let shifted = vshlq_u32(vreinterpretq_u32_u8(a), vdupq_n_s32(-8 * byte as i32));
            vcvtq_f32_u32(vandq_u32(shifted, vdupq_n_u32(255)))
        }))
    }

    #[inline(always)]
    fn dot<const M: usize, const G: usize>(
        self,
        bits: u32,
        codes: &[Bytes; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [Ints; M] {
        match LEVEL {
            BASE => self.dot_products(bits, codes, activations, starts),
            I8MM if M.is_multiple_of(2) => self.dot_squares(bits, codes, activations, starts),
            _ => self.dot_fours(bits, codes, activations, starts),
        }
    }
    #[inline(always)]
    fn add_rows<const M: usize>(
        self,
        blocks: [&RowBlock; SIDE_BY_SIDE],
        activations: &ActivationBlock<M>,
        sums: &mut [[f32; SIDE_BY_SIDE]; M],
    ) {
        intrinsics!({
            let mut halves = [0; SIDE_BY_SIDE];
            for (half, block) in halves.iter_mut().zip(blocks) {
                *half = u16::from_le_bytes([block[0], block[1]]);
            }
            let scales = widen(vld1q_u16(halves.as_ptr()));
            for (m, sums) in sums.iter_mut().enumerate() {
                let mut dots = [vdupq_n_s32(0); SIDE_BY_SIDE];
                for (dot, block) in dots.iter_mut().zip(blocks) {
                    let both =
                        activations.codes[m].as_chunks::<4>().0.iter().zip(block[2..].as_chunks::<16>().0);
                    for (activations, codes) in both {
                        let activations = vld1q_s8(activations.as_ptr().cast());
                        let codes = vld1q_s8(codes.as_ptr().cast());
                        if LEVEL == BASE {
                            // Of two products, no more than 2 × 128 × 127 < 2^15.
                            let pairs = vmull_s8(vget_low_s8(codes), vget_low_s8(activations));
                            *dot = vpadalq_s16(*dot, vmlal_high_s8(pairs, codes, activations));
                        } else {
                            sdot_all(dot, codes, activations);
                        }
                    }
                }
                let scale = vdupq_n_f32(activations.scales[m]);
                for (four, sums) in sums.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let dots = &dots[4 * four..];
                    let dots = vpaddq_s32(vpaddq_s32(dots[0], dots[1]), vpaddq_s32(dots[2], dots[3]));
                    let product = vmulq_f32(scales[four], vcvtq_f32_s32(dots));
                    let sum = vfmaq_f32(vld1q_f32(sums.as_ptr()), product, scale);
                    vst1q_f32(sums.as_mut_ptr(), sum);
                }
            }
        });
    }
    #[inline(always)]
    fn to_floats(self, a: Ints) -> Floats {
        intrinsics!(each!(|a| vcvtq_f32_s32(a)))
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> Floats {
        let from = from.as_ptr();
        intrinsics!([
            vld1q_f32(from),
            vld1q_f32(from.add(4)),
            vld1q_f32(from.add(8)),
            vld1q_f32(from.add(12))
        ])
    }
    #[inline(always)]
    fn store_floats(self, value: Floats, to: &mut [f32; 16]) {
        for (to, value) in to.as_chunks_mut::<4>().0.iter_mut().zip(value) {
            intrinsics!(vst1q_f32(to.as_mut_ptr(), value));
        }
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> Floats {
        intrinsics!({
            let halves = [vld1q_u8(from.as_ptr()), vld1q_u8(from[16..].as_ptr())];
            let halves = [vreinterpretq_u16_u8(halves[0]), vreinterpretq_u16_u8(halves[1])];
            let [a, b] = widen(halves[0]);
            let [c, d] = widen(halves[1]);
            [a, b, c, d]
        })
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> Floats {
        intrinsics!({
            let bytes = vld1q_u8(from.as_ptr());
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes));
            let words = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_high_u16(low),
                vmovl_u16(vget_low_u16(high)),
                vmovl_high_u16(high),
            ];
            each!(|words| vcvtq_f32_u32(words))
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> Floats {
        intrinsics!({
            let bytes = vreinterpretq_s8_u8(vld1q_u8(from.as_ptr()));
            let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
            let words = [
                vmovl_s16(vget_low_s16(low)),
                vmovl_high_s16(low),
                vmovl_s16(vget_low_s16(high)),
                vmovl_high_s16(high),
            ];
            each!(|words| vcvtq_f32_s32(words))
        })
    }
    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        intrinsics!([vdupq_n_f32(value); 4])
    }
    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        intrinsics!(each!(|a, b| vmulq_f32(a, b)))
    }
    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        intrinsics!(each!(|a, b| vaddq_f32(a, b)))
    }
    #[inline(always)]
    fn fma(self, a: Floats, b: Floats, c: Floats) -> Floats {
        intrinsics!(each!(|a, b, c| vfmaq_f32(c, a, b)))
    }
}
