//! Vectors of f32: AVX-512 (sixteen lanes), AVX2 + FMA + F16C, NEON, or portable code (eight).
//!
//! Kernels are written once, generic over [`Floats`] and `#[inline(always)]`; [`simd_dispatch!`] makes an entry point that picks the arm at
//! run time. An arm's numbers do not depend on anything but its inputs, so results never vary with threads or batch size.

use crate::quant::f8e4m3_to_f32;

/// Lanes of the longest vector.
pub const MAX_LANES: usize = 16;
/// Bytes that a cache fetches at a time.
pub const LINE: usize = 64;

/// Bytes from what a kernel reads to what it asks for, on the arm of AVX-512: an Intel server fetches less ahead by itself than its memory gives. Zen 3, with AVX2, was
/// slower for it (PERFORMANCE.md).
#[cfg(target_arch = "x86_64")]
pub const AHEAD: usize = 768;

/// Whether it pays to ask for what the next region reads, too.
pub fn asks_ahead() -> bool {
    #[cfg(target_arch = "x86_64")]
    return has_avx512();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Asks for a line of the cache, which need not be readable.
#[inline(always)]
pub fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it needs nothing but SSE, and fails nowhere.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: it fails nowhere.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) line, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = line;
}

/// The sign, four bits of exponent and three of mantissa of a `float8_e4m3fn`, where an f16 has them: it is 1 / [`F8_UNIT`] of the value, subnormals included.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const F8_BITS: i16 = 0xbf80_u16 as i16;
/// Added to those, it carries to the fifth bit of the exponent for the one magnitude that is not a number; neither is an f16 with all five.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const F8_ONE: i16 = 1 << 7;
/// That bit.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const F8_CARRY: i16 = 1 << 14;
/// What [`Floats::load_f8e4m3`] divides by.
pub const F8_UNIT: f32 = 256.0;

/// So many numbers of `room`, from the beginning of a line on: a vector of the processor that lies across two lines is loaded twice.
pub fn aligned(room: &mut Vec<f32>, len: usize) -> &mut [f32] {
    room.resize(len + LINE / size_of::<f32>(), 0.0);
    let first = room.as_ptr().align_offset(LINE);
    &mut room[first..first + len]
}

/// A vector of f32.
///
/// # Safety
/// The arms of AVX-512 and AVX2 may only be used in code that runs after [`has_avx512`] or [`has_avx2`] said so (NEON is a part of its architecture); every `load` reads, and every
/// `store` writes, `LANES` elements from the pointer on.
#[allow(
    missing_docs,
    clippy::missing_safety_doc,
    reason = "each is what its name says; the trait states the conditions"
)]
pub unsafe trait Floats: Copy {
    /// Elements of a vector: a power of two, at most [`MAX_LANES`].
    const LANES: usize = 8;
    /// How far ahead of itself a kernel that streams weights asks for them, in bytes.
    const AHEAD: usize = 0;

    unsafe fn splat(v: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    unsafe fn load_i8(p: *const i8) -> Self;
    /// One half, in every lane; the pointer need not be aligned.
    unsafe fn splat_f16(p: *const u16) -> Self;
    /// Two vectors of `float8_e4m3fn`, times `factor` / [`F8_UNIT`], rounded once.
    unsafe fn load_f8e4m3(p: *const u8, factor: Self) -> [Self; 2];
    unsafe fn store(self, p: *mut f32);
    /// Rounds to nearest even.
    unsafe fn store_f16(self, p: *mut u16);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    unsafe fn max(self, o: Self) -> Self;
    /// `self * b + c`.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// e to the power of each lane; 0 far below zero, relative error below 2e-7.
    unsafe fn exp(self) -> Self;
    /// The sum of the lanes, always in the same order.
    unsafe fn sum(self) -> f32;
    /// [`Floats::sum`] of each of eight vectors.
    unsafe fn sums(vectors: [Self; 8]) -> [f32; 8];
    /// The largest lane.
    unsafe fn largest(self) -> f32;
}

/// The portable arm: of tests alone where every processor has vectors.
#[derive(Clone, Copy)]
#[cfg_attr(target_arch = "aarch64", allow(dead_code, reason = "tests hold the others against it"))]
pub struct Portable([f32; 8]);

#[cfg_attr(target_arch = "aarch64", allow(dead_code, reason = "as above"))]
impl Portable {
    #[inline(always)]
    fn map2(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

// SAFETY: plain Rust, no instruction set assumed; the pointers are the caller's promise.
unsafe impl Floats for Portable {
    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        Self([v; 8])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: eight readable elements are the caller's promise.
        Self(unsafe { p.cast::<[f32; 8]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(|v| half::f16::from_bits(v).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[u16; 8]>().read_unaligned() }.map(|v| f32::from_bits(u32::from(v) << 16)))
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[i8; 8]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> Self {
        // SAFETY: one readable element is the caller's promise.
        Self([half::f16::from_bits(unsafe { p.read_unaligned() }).to_f32(); 8])
    }
    #[inline(always)]
    unsafe fn load_f8e4m3(p: *const u8, factor: Self) -> [Self; 2] {
        // SAFETY: as above, twice.
        let codes = unsafe { p.cast::<[[u8; 8]; 2]>().read_unaligned() };
        let values = codes.map(|codes| Self(codes.map(|code| f8e4m3_to_f32(code) / F8_UNIT)));
        values.map(|values| values.map2(factor, |a, b| a * b))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: eight writable elements are the caller's promise.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: as above.
        unsafe { p.cast::<[u16; 8]>().write_unaligned(self.0.map(|v| half::f16::from_f32(v).to_bits())) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.map2(o, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.map2(o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.map2(o, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        self.map2(o, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        self.map2(o, f32::max)
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // Two roundings: a fused one is a library call where there is no instruction for it.
        Self(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        Self(self.0.map(f32::exp))
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let v = self.0;
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }
    #[inline(always)]
    unsafe fn sums(vectors: [Self; 8]) -> [f32; 8] {
        // SAFETY: plain Rust.
        vectors.map(|v| unsafe { v.sum() })
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
pub mod neon;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;

/// What every CPU of the architecture can run.
#[cfg(target_arch = "aarch64")]
pub type Base = neon::Neon;
/// What every CPU of the architecture can run.
#[cfg(not(target_arch = "aarch64"))]
pub type Base = Portable;

/// Whether the AVX2 arm may run here.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// Whether the AVX-512 arm may run here.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

/// Defines `fn name(args)` that runs `body::<V>(args)` on the best arm of this machine.
macro_rules! simd_dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident $(::<$($g:ty),+>)?) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body::<$crate::kernels::cpu::simd::Avx2 $($(, $g)+)?>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body::<$crate::kernels::cpu::simd::Avx512 $($(, $g)+)?>($($arg),*)
                }
                if $crate::kernels::cpu::simd::has_avx512() {
                    // SAFETY: as below; each processor with AVX-512 has what is before it.
                    return unsafe { avx512($($arg),*) };
                }
                if $crate::kernels::cpu::simd::has_avx2() {
                    // SAFETY: the instruction sets were detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body::<$crate::kernels::cpu::simd::Base $($(, $g)+)?>($($arg),*)
        }
    };
}
pub(crate) use simd_dispatch;

simd_dispatch!(
    /// Lanes of the vectors of the best arm of this machine.
    pub fn lanes() -> usize = lanes_body
);

#[inline(always)]
fn lanes_body<V: Floats>() -> usize {
    V::LANES
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Defines `fn name(args)` that runs `body::<V>(args)` on every arm of this machine.
    macro_rules! on_each_arm {
        (fn $name:ident($($arg:ident: $ty:ty),*) -> $ret:ty = $body:ident) => {
            fn $name($($arg: $ty),*) -> Vec<$ret> {
                #[allow(unused_mut, reason = "some architectures have one arm")]
                let mut all = vec![$body::<Base>($($arg),*)];
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx2,fma,f16c")]
                    fn avx2($($arg: $ty),*) -> $ret {
                        $body::<Avx2>($($arg),*)
                    }
                    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
                    fn avx512($($arg: $ty),*) -> $ret {
                        $body::<Avx512>($($arg),*)
                    }
                    // SAFETY: the instruction sets were detected.
                    all.extend(has_avx2().then(|| unsafe { avx2($($arg),*) }));
                    // SAFETY: as above.
                    all.extend(has_avx512().then(|| unsafe { avx512($($arg),*) }));
                }
                all
            }
        };
    }

    #[inline(always)]
    fn exp_body<V: Floats>(x: &[f32; MAX_LANES]) -> [f32; MAX_LANES] {
        let mut y = [0.0; MAX_LANES];
        // SAFETY: as many elements as a vector has, each.
        unsafe { V::load(x.as_ptr()).exp().store(y.as_mut_ptr()) };
        y
    }
    on_each_arm!(fn exp(x: &[f32; MAX_LANES]) -> [f32; MAX_LANES] = exp_body);

    #[test]
    fn exp_is_close_to_the_true_value() {
        for i in -8000..800 {
            let x = i as f32 * 0.01;
            let want = f64::from(x).exp();
            for y in exp(&[x; MAX_LANES]) {
                assert!((f64::from(y[3]) - want).abs() <= 2e-7 * want, "{x}: {y:?} {want}");
            }
        }
        for y in exp(&[f32::NEG_INFINITY; MAX_LANES]) {
            assert_eq!(y[..8], [0.0; 8]);
        }
    }

    #[inline(always)]
    fn sums_body<V: Floats>(x: &[[f32; MAX_LANES]; 8]) -> (usize, [[f32; 8]; 2]) {
        let mut alone = [0.0; 8];
        // SAFETY: as many elements as a vector has, each.
        unsafe {
            let mut vectors = [V::splat(0.0); 8];
            for i in 0..8 {
                vectors[i] = V::load(x[i].as_ptr());
                alone[i] = vectors[i].sum();
            }
            (V::LANES, [V::sums(vectors), alone])
        }
    }
    on_each_arm!(fn sums(x: &[[f32; MAX_LANES]; 8]) -> (usize, [[f32; 8]; 2]) = sums_body);

    #[test]
    fn eight_sums_at_once_are_those_of_each() {
        let x = std::array::from_fn(|i| std::array::from_fn(|j| ((i * MAX_LANES + j) as f32).sin() * 1e3));
        for (lanes, [together, alone]) in sums(&x) {
            assert_eq!(together, alone);
            for (sum, x) in together.iter().zip(&x) {
                let expected: f32 = x[..lanes].iter().sum();
                assert!((sum - expected).abs() <= 1e-2, "{sum} {expected}");
            }
        }
    }

    #[inline(always)]
    fn f8_body<V: Floats>(code: u8, factor: f32) -> [f32; 2] {
        let (mut x, mut y) = ([0; 2 * MAX_LANES], [0.0; 2 * MAX_LANES]);
        let places = [V::LANES / 2 + 1, 2 * V::LANES - 1];
        places.iter().for_each(|i| x[*i] = code);
        // SAFETY: as many elements as two vectors have, each.
        unsafe {
            let [low, high] = V::load_f8e4m3(x.as_ptr(), V::splat(factor * F8_UNIT));
            low.store(y.as_mut_ptr());
            high.store(y.as_mut_ptr().add(V::LANES));
        }
        let others = y.iter().enumerate().filter(|(i, _)| !places.contains(i));
        assert!(others.into_iter().all(|(_, y)| *y == 0.0), "{y:?}");
        places.map(|i| y[i])
    }
    on_each_arm!(fn f8(code: u8, factor: f32) -> [f32; 2] = f8_body);

    #[test]
    fn every_f8_code_is_its_value() {
        let same = |got: f32, want: f32| got == want || (got.is_nan() && want.is_nan());
        for code in 0..=255u8 {
            let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let mut want = if e == 0 { m * 2f32.powi(-9) } else { (8.0 + m) * 2f32.powi(e - 10) };
            if code & 0x7f == 0x7f {
                want = f32::NAN;
            }
            let want = if code & 0x80 != 0 { -want } else { want };
            assert!(same(f8e4m3_to_f32(code), want), "{code}: {want}");
            for factor in [1.0, 0.1] {
                for got in f8(code, factor).into_iter().flatten() {
                    assert!(same(got, want * factor), "{code} times {factor}: {got} {want}");
                }
            }
        }
    }
}
