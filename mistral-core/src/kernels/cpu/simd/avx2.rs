//! AVX2, FMA and F16C: one register for a vector.

use std::arch::x86_64::*;

use super::{F8_BITS, F8_CARRY, F8_ONE, Floats};

/// The AVX2 + FMA + F16C arm.
#[derive(Clone, Copy)]
pub struct Avx2(__m256);

// SAFETY: each method only uses AVX2, FMA and F16C, which its caller has detected; pointers are the caller's promise.
unsafe impl Floats for Avx2 {
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
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast()))) })
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned())) })
    }
    #[inline(always)]
    unsafe fn load_f8e4m3(p: *const u8, factor: Self) -> [Self; 2] {
        // SAFETY: see the impl.
        unsafe {
            let wide = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())));
            let bits = _mm256_and_si256(wide, _mm256_set1_epi16(F8_BITS));
            let one_more = _mm256_add_epi16(bits, _mm256_set1_epi16(F8_ONE));
            let bits = _mm256_or_si256(bits, _mm256_and_si256(one_more, _mm256_set1_epi16(F8_CARRY)));
            let low = _mm256_cvtph_ps(_mm256_castsi256_si128(bits));
            let high = _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(bits));
            [Self(_mm256_mul_ps(low, factor.0)), Self(_mm256_mul_ps(high, factor.0))]
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
    unsafe fn sums(vectors: [Self; 8]) -> [f32; 8] {
        // SAFETY: see the impl.
        unsafe {
            // Lane i + lane i + 4, of two vectors side by side; then those two apart, then neighbours: as in `sum`.
            let mut fours = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                let (a, b) = (vectors[i].0, vectors[i + 4].0);
                let outer = _mm256_blend_ps::<0xf0>(a, b);
                fours[i] = _mm256_add_ps(outer, _mm256_permute2f128_ps::<0x21>(a, b));
            }
            let mut twos = [_mm256_setzero_ps(); 2];
            for i in 0..2 {
                let (a, b) = (_mm256_castps_pd(fours[2 * i]), _mm256_castps_pd(fours[2 * i + 1]));
                let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
                twos[i] = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
            }
            let even = _mm256_shuffle_ps::<0x88>(twos[0], twos[1]);
            let mut sums = [0.0; 8];
            let all = _mm256_add_ps(even, _mm256_shuffle_ps::<0xdd>(twos[0], twos[1]));
            _mm256_storeu_ps(sums.as_mut_ptr(), all);
            sums
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
}
