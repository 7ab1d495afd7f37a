//! NEON, as every 64-bit ARM has it: two registers for a vector. Half precision is written in assembly, as Rust has no stable intrinsics for it.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{F8_BITS, F8_CARRY, F8_ONE, Floats};

/// The NEON arm.
#[derive(Clone, Copy)]
pub struct Neon([float32x4_t; 2]);

/// An expression for both registers of each of the named vectors.
macro_rules! both {
    (|$($name:ident),+| $body:expr) => {
        // SAFETY: NEON is a part of the architecture, and the pointers are the caller's promise.
        Self(unsafe { [{ $(let $name = $name[0];)+ $body }, { $(let $name = $name[1];)+ $body }] })
    };
}

/// Eight halves as f32.
///
/// # Safety
/// The CPU has NEON.
#[inline(always)]
pub unsafe fn widen(halves: uint16x8_t) -> [float32x4_t; 2] {
    let (low, high);
    // SAFETY: instructions on registers alone, which every CPU of the architecture has.
    unsafe {
        asm!(
            "fcvtl {0:v}.4s, {2:v}.4h",
            "fcvtl2 {1:v}.4s, {2:v}.8h",
            out(vreg) low,
            out(vreg) high,
            in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    [low, high]
}

/// Eight numbers of 16 bits, as 32.
///
/// # Safety
/// They are readable.
#[inline(always)]
unsafe fn words(p: *const u16) -> [uint32x4_t; 2] {
    // SAFETY: eight elements are the caller's promise.
    unsafe {
        let eight = vld1q_u16(p);
        [vmovl_u16(vget_low_u16(eight)), vmovl_high_u16(eight)]
    }
}

// SAFETY: NEON is a part of the architecture; pointers are the caller's promise.
unsafe impl Floats for Neon {
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { [vdupq_n_f32(v); 2] })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { widen(vld1q_u16(p)) })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        let words = unsafe { words(p) };
        both!(|words| vreinterpretq_f32_u32(vshlq_n_u32::<16>(words)))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the impl.
        let words = unsafe {
            let eight = vmovl_s8(vld1_s8(p));
            [vmovl_s16(vget_low_s16(eight)), vmovl_high_s16(eight)]
        };
        both!(|words| vcvtq_f32_s32(words))
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { widen(vdupq_n_u16(p.read_unaligned())) })
    }
    #[inline(always)]
    unsafe fn load_f8e4m3(p: *const u8, factor: Self) -> [Self; 2] {
        // SAFETY: see the impl.
        unsafe {
            let codes = vreinterpretq_s8_u8(vld1q_u8(p));
            let words = [vmovl_s8(vget_low_s8(codes)), vmovl_high_s8(codes)];
            let mut vectors = [factor; 2];
            for i in 0..2 {
                let bits = vandq_s16(vshlq_n_s16::<7>(words[i]), vdupq_n_s16(F8_BITS));
                let one_more = vaddq_s16(bits, vdupq_n_s16(F8_ONE));
                let bits = vorrq_s16(bits, vandq_s16(one_more, vdupq_n_s16(F8_CARRY)));
                vectors[i] = Self(widen(vreinterpretq_u16_s16(bits))).mul(factor);
            }
            vectors
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe {
            vst1q_f32(p, self.0[0]);
            vst1q_f32(p.add(4), self.0[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe {
            let halves: uint16x8_t;
            // The first writes before the second reads: not to one of its registers, which plain `out` says.
            asm!(
                "fcvtn {0:v}.4h, {1:v}.4s",
                "fcvtn2 {0:v}.8h, {2:v}.4s",
                out(vreg) halves,
                in(vreg) self.0[0],
                in(vreg) self.0[1],
                options(pure, nomem, nostack, preserves_flags)
            );
            vst1q_u16(p, halves);
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        let (a, b) = (self.0, o.0);
        both!(|a, b| vaddq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        let (a, b) = (self.0, o.0);
        both!(|a, b| vsubq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        let (a, b) = (self.0, o.0);
        both!(|a, b| vmulq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        let (a, b) = (self.0, o.0);
        both!(|a, b| vdivq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        let (a, b) = (self.0, o.0);
        both!(|a, b| vmaxnmq_f32(a, b))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        let (a, b, c) = (self.0, b.0, c.0);
        both!(|a, b, c| vfmaq_f32(c, a, b))
    }
    /// As in the AVX2 arm.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        let v = self.0;
        both!(|v| {
            let x = vminq_f32(vmaxq_f32(v, vdupq_n_f32(-87.3)), vdupq_n_f32(88.3));
            let n = vrndnq_f32(vmulq_f32(x, vdupq_n_f32(std::f32::consts::LOG2_E)));
            let r = vfmsq_f32(x, n, vdupq_n_f32(0.693_359_4));
            let r = vfmsq_f32(r, n, vdupq_n_f32(-2.121_944_4e-4));
            let mut p = vdupq_n_f32(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = vfmaq_f32(vdupq_n_f32(c), p, r);
            }
            let p = vaddq_f32(vfmaq_f32(r, p, vmulq_f32(r, r)), vdupq_n_f32(1.0));
            let power = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)));
            let value = vmulq_f32(p, vreinterpretq_f32_s32(power));
            // Far below: exactly zero, so that a masked score (-inf) adds nothing.
            let live = vcgtq_f32(v, vdupq_n_f32(-87.3));
            vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), live))
        })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let four = vaddq_f32(self.0[0], self.0[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn sums(vectors: [Self; 8]) -> [f32; 8] {
        // SAFETY: see the impl.
        unsafe {
            // Lane i + lane i + 4; then those two apart, of two vectors side by side; then neighbours: as in `sum`.
            let mut twos = [vdupq_n_f32(0.0); 4];
            for i in 0..4 {
                let a = vaddq_f32(vectors[2 * i].0[0], vectors[2 * i].0[1]);
                let b = vaddq_f32(vectors[2 * i + 1].0[0], vectors[2 * i + 1].0[1]);
                let low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
                twos[i] = vaddq_f32(low, vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
            }
            let mut sums = [0.0; 8];
            Self([vpaddq_f32(twos[0], twos[1]), vpaddq_f32(twos[2], twos[3])]).store(sums.as_mut_ptr());
            sums
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(self.0[0], self.0[1])) }
    }
}
