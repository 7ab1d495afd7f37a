//! Eight f32 lanes: AVX2 + FMA + F16C, or portable code with the same shape.
//!
//! Kernels are written once, generic over [`F32x8`] and `#[inline(always)]`; [`simd_dispatch!`] makes an entry point that picks the arm at
//! run time. An arm's numbers do not depend on anything but its inputs, so results never vary with threads or batch size.

/// Eight lanes of f32.
///
/// # Safety
/// The AVX2 arm may only be used in code that runs after AVX2, FMA and F16C were detected; every `load` reads, and every `store` writes,
/// eight elements from the pointer on.
#[allow(
    missing_docs,
    clippy::missing_safety_doc,
    reason = "each is what its name says; the trait states the conditions"
)]
pub unsafe trait F32x8: Copy {
    unsafe fn splat(v: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn load_f16(p: *const u16) -> Self;
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Eight `float8_e4m3fn`.
    unsafe fn load_f8e4m3(p: *const u8) -> Self;
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
    /// [`F32x8::sum`] of each of eight vectors.
    unsafe fn sums(vectors: [Self; 8]) -> Self;
    /// The largest lane.
    unsafe fn largest(self) -> f32;
    /// Asks for the line of the cache at `p`, which need not be readable.
    unsafe fn prefetch(p: *const u8);
}

/// The portable arm.
#[derive(Clone, Copy)]
pub struct Portable([f32; 8]);

impl Portable {
    #[inline(always)]
    fn map2(self, o: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], o.0[i])))
    }
}

// SAFETY: plain Rust, no instruction set assumed; the pointers are the caller's promise.
unsafe impl F32x8 for Portable {
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
    unsafe fn load_f8e4m3(p: *const u8) -> Self {
        // SAFETY: as above.
        Self(unsafe { p.cast::<[u8; 8]>().read_unaligned() }.map(crate::quant::f8e4m3_to_f32))
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
    unsafe fn sums(vectors: [Self; 8]) -> Self {
        // SAFETY: plain Rust.
        Self(vectors.map(|v| unsafe { v.sum() }))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::F32x8;

    /// The AVX2 + FMA + F16C arm.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    // SAFETY: each method only uses AVX2, FMA and F16C, which its caller has detected; pointers are the caller's promise.
    unsafe impl F32x8 for Avx2 {
        #[inline(always)]
        unsafe fn splat(v: f32) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_set1_ps(v) })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const u16) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) })
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const u16) -> Self {
            // SAFETY: see the impl.
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
            }
        }
        #[inline(always)]
        unsafe fn load_f8e4m3(p: *const u8) -> Self {
            // SAFETY: see the impl.
            unsafe {
                let wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let magnitude = _mm256_and_si256(wide, _mm256_set1_epi32(0x7f));
                // An f32 with these exponent and mantissa bits is 2^-120 of the value, subnormals included.
                let bits = _mm256_slli_epi32::<20>(magnitude);
                let value =
                    _mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(f32::from_bits(0x7b80_0000)));
                let nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
                let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(wide, _mm256_set1_epi32(0x80)));
                Self(_mm256_or_ps(value, _mm256_castsi256_ps(_mm256_or_si256(nan, sign))))
            }
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            // SAFETY: see the impl.
            unsafe { _mm256_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn store_f16(self, p: *mut u16) {
            // SAFETY: see the impl.
            unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
        }
        #[inline(always)]
        unsafe fn add(self, o: Self) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_add_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, o: Self) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_sub_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, o: Self) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_mul_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn div(self, o: Self) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_div_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn max(self, o: Self) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_max_ps(self.0, o.0) })
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            // SAFETY: see the impl.
            Self(unsafe { _mm256_fmadd_ps(self.0, b.0, c.0) })
        }
        /// exp(x) = 2^n · exp(r), r = x − n·ln 2 in two parts, exp(r) by a degree-6 polynomial (Cephes `expf`).
        #[inline(always)]
        unsafe fn exp(self) -> Self {
            // SAFETY: see the impl.
            unsafe {
                let x = _mm256_min_ps(_mm256_max_ps(self.0, _mm256_set1_ps(-87.3)), _mm256_set1_ps(88.3));
                let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
                    x,
                    _mm256_set1_ps(std::f32::consts::LOG2_E),
                ));
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693_359_4), x);
                let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.121_944_4e-4), r);
                let mut p = _mm256_set1_ps(1.987_569_1e-4);
                for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
                }
                let p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
                let power =
                    _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
                let value = _mm256_mul_ps(p, _mm256_castsi256_ps(power));
                // Far below: exactly zero, so that a masked score (-inf) adds nothing.
                let live = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_set1_ps(-87.3));
                Self(_mm256_and_ps(value, live))
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see the impl.
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
        #[inline(always)]
        unsafe fn sums(vectors: [Self; 8]) -> Self {
            // SAFETY: see the impl.
            unsafe {
                // Lane i + lane i + 4, of two vectors side by side; then those two apart, then neighbours: as in `sum`.
                let mut fours = [_mm256_setzero_ps(); 4];
                for i in 0..4 {
                    let (a, b) = (vectors[i].0, vectors[i + 4].0);
                    let low = _mm256_insertf128_ps::<1>(a, _mm256_castps256_ps128(b));
                    fours[i] = _mm256_add_ps(low, _mm256_permute2f128_ps::<0x31>(a, b));
                }
                let mut twos = [_mm256_setzero_ps(); 2];
                for i in 0..2 {
                    let (a, b) = (_mm256_castps_pd(fours[2 * i]), _mm256_castps_pd(fours[2 * i + 1]));
                    let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
                    twos[i] = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
                }
                let even = _mm256_shuffle_ps::<0x88>(twos[0], twos[1]);
                Self(_mm256_add_ps(even, _mm256_shuffle_ps::<0xdd>(twos[0], twos[1])))
            }
        }
        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: see the impl.
            unsafe {
                let v = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            // SAFETY: see the impl; a prefetch does not fail.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
    }
}

/// Whether the AVX2 arm may run here.
#[inline]
pub fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    #[cfg(not(target_arch = "x86_64"))]
    false
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
                if $crate::kernels::cpu::simd::has_avx2() {
                    // SAFETY: the instruction sets were detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $body::<$crate::kernels::cpu::simd::Portable $($(, $g)+)?>($($arg),*)
        }
    };
}
pub(crate) use simd_dispatch;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::f8e4m3_to_f32;

    #[inline(always)]
    fn exp_body<V: F32x8>(x: &[f32; 8]) -> [f32; 8] {
        let mut y = [0.0; 8];
        // SAFETY: eight elements each.
        unsafe { V::load(x.as_ptr()).exp().store(y.as_mut_ptr()) };
        y
    }
    simd_dispatch!(fn exp(x: &[f32; 8]) -> [f32; 8] = exp_body);

    #[test]
    fn exp_is_close_to_the_true_value() {
        for i in -8000..800 {
            let x = i as f32 * 0.01;
            let (y, want) = (exp(&[x; 8])[3], f64::from(x).exp());
            assert!((f64::from(y) - want).abs() <= 2e-7 * want, "{x}: {y} {want}");
        }
        assert_eq!(exp(&[f32::NEG_INFINITY; 8]), [0.0; 8]);
    }

    #[inline(always)]
    fn sums_body<V: F32x8>(x: &[[f32; 8]; 8]) -> [[f32; 8]; 2] {
        let (mut together, mut alone) = ([0.0; 8], [0.0; 8]);
        // SAFETY: eight elements each.
        unsafe {
            let mut vectors = [V::splat(0.0); 8];
            for i in 0..8 {
                vectors[i] = V::load(x[i].as_ptr());
                alone[i] = vectors[i].sum();
            }
            V::sums(vectors).store(together.as_mut_ptr());
        }
        [together, alone]
    }
    simd_dispatch!(fn sums(x: &[[f32; 8]; 8]) -> [[f32; 8]; 2] = sums_body);

    #[test]
    fn eight_sums_at_once_are_those_of_each() {
        let x = std::array::from_fn(|i| std::array::from_fn(|j| ((i * 8 + j) as f32).sin() * 1e3));
        let [together, alone] = sums(&x);
        assert_eq!(together, alone);
        assert_eq!(sums_body::<Portable>(&x), [together, alone]);
    }

    #[inline(always)]
    fn f8_body<V: F32x8>(x: &[u8; 8]) -> [f32; 8] {
        let mut y = [0.0; 8];
        // SAFETY: eight elements each.
        unsafe { V::load_f8e4m3(x.as_ptr()).store(y.as_mut_ptr()) };
        y
    }
    simd_dispatch!(fn f8(x: &[u8; 8]) -> [f32; 8] = f8_body);

    #[test]
    fn every_f8_code_is_its_value() {
        for code in 0..=255u8 {
            let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let mut want = if e == 0 { m * 2f32.powi(-9) } else { (8.0 + m) * 2f32.powi(e - 10) };
            if code & 0x7f == 0x7f {
                want = f32::NAN;
            }
            let want = if code & 0x80 != 0 { -want } else { want };
            for got in [f8(&[code; 8])[5], f8e4m3_to_f32(code)] {
                assert!(got == want || (got.is_nan() && want.is_nan()), "{code}: {got} {want}");
            }
        }
    }
}
