//! AVX-512: one register for a vector of sixteen lanes.

use std::arch::x86_64::*;

use super::{F8_BITS, F8_CARRY, F8_ONE, Floats};

/// The AVX-512 arm.
#[derive(Clone, Copy)]
pub struct Avx512(__m512);

/// Lanes 2 and 3 of the first, and 0 and 1 of the second, of four with 128 bits each.
const HALVES_SWAPPED: i32 = 0b01_00_11_10;
/// Neighbours among four lanes change places.
const NEIGHBOURS_SWAPPED: i32 = 0b10_11_00_01;

/// The sums of half of each of two vectors' lanes with the other half: those of `a`, then those of `b`.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn fold_halves(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let outer = _mm512_mask_blend_ps(0xff00, a, b);
        _mm512_add_ps(outer, _mm512_shuffle_f32x4::<HALVES_SWAPPED>(a, b))
    }
}

/// The sums of neighbours among lanes of 128 bits: of `a` in even lanes, of `b` in odd ones.
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn fold_quarters(a: __m512, b: __m512) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe {
        let (same, other) = (_mm512_mask_blend_ps(0xf0f0, a, b), _mm512_mask_blend_ps(0x0f0f, a, b));
        _mm512_add_ps(same, _mm512_shuffle_f32x4::<NEIGHBOURS_SWAPPED>(other, other))
    }
}

// SAFETY: each method only uses AVX-512 F, BW and VL, which its caller has detected; pointers are the caller's promise.
unsafe impl Floats for Avx512 {
    const LANES: usize = 16;
    const AHEAD: usize = super::AHEAD;

    #[inline(always)]
    unsafe fn splat(v: f32) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_set1_ps(v) })
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_loadu_ps(p) })
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) })
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(p: *const i8) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast()))) })
    }
    #[inline(always)]
    unsafe fn splat_f16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())) })
    }
    #[inline(always)]
    unsafe fn load_f8e4m3(p: *const u8, factor: Self) -> [Self; 2] {
        // SAFETY: see the impl.
        unsafe {
            // As in the arm of AVX2, for 32 at a time; the last operation is `bits | (one_more & bit)`.
            let wide = _mm512_slli_epi16::<7>(_mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())));
            let bits = _mm512_and_si512(wide, _mm512_set1_epi16(F8_BITS));
            let one_more = _mm512_add_epi16(bits, _mm512_set1_epi16(F8_ONE));
            let bits = _mm512_ternarylogic_epi32::<0xf8>(bits, one_more, _mm512_set1_epi16(F8_CARRY));
            let low = _mm512_cvtph_ps(_mm512_castsi512_si256(bits));
            let high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(bits));
            [Self(_mm512_mul_ps(low, factor.0)), Self(_mm512_mul_ps(high, factor.0))]
        }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_add_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_sub_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_mul_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_div_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_max_ps(self.0, o.0) })
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        Self(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    /// As in the arm of AVX2, with an instruction for the power of two.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let x = _mm512_min_ps(_mm512_max_ps(self.0, _mm512_set1_ps(-87.3)), _mm512_set1_ps(88.3));
            let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
                x,
                _mm512_set1_ps(std::f32::consts::LOG2_E),
            ));
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693_359_4), x);
            let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.121_944_4e-4), r);
            let mut p = _mm512_set1_ps(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
            }
            let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0));
            // Far below: exactly zero, so that a masked score (-inf) adds nothing.
            let live = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_set1_ps(-87.3));
            Self(_mm512_maskz_scalef_ps(live, p, n))
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let v = fold_halves(self.0, self.0);
            let v = _mm512_castps512_ps128(fold_quarters(v, v));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
        }
    }
    #[inline(always)]
    unsafe fn sums(vectors: [Self; 8]) -> [f32; 8] {
        // SAFETY: see the impl.
        unsafe {
            let mut halves = [_mm512_setzero_ps(); 4];
            for i in 0..4 {
                halves[i] = fold_halves(vectors[i].0, vectors[i + 4].0);
            }
            // Four lanes of 128 bits: those of vectors i, i + 2, i + 4 and i + 6.
            let mut quarters = [_mm512_setzero_ps(); 2];
            for i in 0..2 {
                quarters[i] = fold_quarters(halves[i], halves[i + 2]);
            }
            let (low, high) = (
                _mm512_mask_blend_ps(0xcccc, quarters[0], quarters[1]),
                _mm512_mask_blend_ps(0x3333, quarters[0], quarters[1]),
            );
            let eighths = _mm512_add_ps(low, _mm512_permute_ps::<0x4e>(high));
            let all = _mm512_add_ps(eighths, _mm512_permute_ps::<0xb1>(eighths));
            // Vectors 0, 1, 2, …, 7 are in these lanes.
            let order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14);
            let mut sums = [0.0; 8];
            let first = _mm512_castps512_ps256(_mm512_permutexvar_ps(order, all));
            _mm256_storeu_ps(sums.as_mut_ptr(), first);
            sums
        }
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        // SAFETY: see the impl.
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}
