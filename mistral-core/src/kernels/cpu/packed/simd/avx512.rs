//! AVX-512 F, BW, VL and VNNI: one register for a vector, four multiplications and additions an element and instruction.

use std::arch::x86_64::*;

use super::super::activations::{ActivationBlock, QuantizedRow};
use super::super::layout::BLOCK;
use super::super::rows::{RowBlock, SIDE_BY_SIDE};
use super::{Simd, Task, avx2};

/// Proof that the CPU has AVX-512 F, BW, VL, VNNI, and AVX2, FMA, F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// `None` if the CPU lacks one of the instruction sets.
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

/// Calls intrinsics from a method of [`Avx512`].
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: the CPU has the instructions, which `self` proves; pointers come from references to all the bytes that are touched.
        unsafe { $body }
    };
}

impl Simd for Avx512 {
    type Bytes = __m512i;
    type Ints = __m512i;
    type Floats = __m512;
    const TILES: usize = 2;
    const EXACT_ROWS: usize = 8;
    const AHEAD: usize = crate::kernels::cpu::simd::AHEAD;

    #[inline(always)]
    fn run(self, task: impl Task) {
        #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
        fn inner(simd: Avx512, task: impl Task) {
            task.run(simd);
        }
        intrinsics!(inner(self, task))
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> __m512i {
        intrinsics!(_mm512_loadu_si512(from.as_ptr().cast()))
    }
    #[inline(always)]
    fn store(self, value: __m512i, to: &mut [u8; 64]) {
        intrinsics!(_mm512_storeu_si512(to.as_mut_ptr().cast(), value))
    }
    #[inline(always)]
    fn and(self, a: __m512i, mask: u8) -> __m512i {
        intrinsics!(_mm512_and_si512(a, _mm512_set1_epi8(mask as i8)))
    }
    #[inline(always)]
    fn or(self, a: __m512i, b: __m512i) -> __m512i {
        intrinsics!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shift_left(self, a: __m512i, bits: u32) -> __m512i {
        intrinsics!(_mm512_sll_epi16(a, _mm_cvtsi32_si128(bits as i32)))
    }
    #[inline(always)]
    fn shift_right(self, a: __m512i, bits: u32) -> __m512i {
        intrinsics!(_mm512_srl_epi16(a, _mm_cvtsi32_si128(bits as i32)))
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], indices: __m512i) -> __m512i {
        intrinsics!({
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            _mm512_shuffle_epi8(table, indices)
        })
    }
    #[inline(always)]
    fn column(self, a: __m512i, byte: u32) -> __m512 {
        intrinsics!({
            let shifted = _mm512_srl_epi32(a, _mm_cvtsi32_si128(8 * byte as i32));
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        })
    }

    #[inline(always)]
    fn dot<const M: usize, const G: usize>(
        self,
        _bits: u32,
        codes: &[__m512i; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [__m512i; M] {
        intrinsics!({
            // Few rows are one chain of dependent instructions: cut it in two.
            let chains = if M <= 2 { 2 } else { 1 };
            let mut sums = [[_mm512_setzero_si512(); M]; 2];
            for (sum, start) in sums[0].iter_mut().zip(starts) {
                *sum = _mm512_set1_epi32(start);
            }
            for (g, &codes) in codes.iter().enumerate() {
                for m in 0..M {
                    let four = i32::from_ne_bytes(activations[m][g].map(|code| code as u8));
                    let sum = &mut sums[g % chains][m];
                    *sum = _mm512_dpbusd_epi32(*sum, codes, _mm512_set1_epi32(four));
                }
            }
            let [mut sums, seconds] = sums;
            if chains == 2 {
                for (sum, second) in sums.iter_mut().zip(seconds) {
                    *sum = _mm512_add_epi32(*sum, second);
                }
            }
            sums
        })
    }
    #[inline(always)]
    fn add_rows<const M: usize>(
        self,
        blocks: [&RowBlock; SIDE_BY_SIDE],
        activations: &ActivationBlock<M>,
        sums: &mut [[f32; SIDE_BY_SIDE]; M],
    ) {
        intrinsics!({
            let scales = avx2::row_scales(blocks);
            for (m, sums) in sums.iter_mut().enumerate() {
                let activation = _mm256_loadu_si256(activations.codes[m].as_ptr().cast());
                // 128 is added to the codes, and taken off by the start.
                let start = _mm256_zextsi128_si256(_mm_cvtsi32_si128(activations.starts[0][m]));
                let mut dots = [start; SIDE_BY_SIDE];
                for (dot, block) in dots.iter_mut().zip(blocks) {
                    let codes = _mm256_loadu_si256(block[2..].as_ptr().cast());
                    let codes = _mm256_xor_si256(codes, _mm256_set1_epi8(i8::MIN));
                    *dot = _mm256_dpbusd_epi32(*dot, codes, activation);
                }
                avx2::add_scaled(scales, dots, activations.scales[m], sums);
            }
        });
    }
    #[inline(always)]
    fn quantize(self, values: &[f32; BLOCK]) -> QuantizedRow {
        intrinsics!(avx2::quantize(values))
    }
    #[inline(always)]
    fn interleave(self, blocks: [&RowBlock; 16]) -> [__m512i; 8] {
        intrinsics!({
            let mut codes = [_mm512_setzero_si512(); 8];
            for (codes, halves) in codes.iter_mut().zip(avx2::interleave(blocks)) {
                *codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
            }
            codes
        })
    }
    #[inline(always)]
    fn to_floats(self, a: __m512i) -> __m512 {
        intrinsics!(_mm512_cvtepi32_ps(a))
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> __m512 {
        intrinsics!(_mm512_loadu_ps(from.as_ptr()))
    }
    #[inline(always)]
    fn store_floats(self, value: __m512, to: &mut [f32; 16]) {
        intrinsics!(_mm512_storeu_ps(to.as_mut_ptr(), value))
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> __m512 {
        intrinsics!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> __m512 {
        intrinsics!(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> __m512 {
        intrinsics!(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))))
    }
    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        intrinsics!(_mm512_set1_ps(value))
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        intrinsics!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        intrinsics!(_mm512_fmadd_ps(a, b, c))
    }
}
