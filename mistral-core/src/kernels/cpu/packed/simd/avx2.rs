//! AVX2, FMA and F16C: two registers for a vector. Products of bytes are summed as i16 for as long as the bits of the codes allow.

use std::arch::asm;
use std::arch::x86_64::*;

use super::super::activations::{ActivationBlock, QuantizedRow};
use super::super::layout::BLOCK;
use super::super::rows::{RowBlock, SIDE_BY_SIDE};
use super::{Simd, Task};

/// Calls intrinsics from a method of [`Avx2`], or for one.
macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: the CPU has the instructions, which `self` proves, or the caller; pointers come from references to all the bytes that are touched.
        unsafe { $body }
    };
}

/// An expression for both registers of each of the named vectors.
macro_rules! both {
    (|$($name:ident),+| $body:expr) => {
        [{ $(let $name = $name[0];)+ $body }, { $(let $name = $name[1];)+ $body }]
    };
}

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// `None` if the CPU lacks one of the instruction sets.
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }

    /// [`Simd::dot`] for codes of up to six bits.
    #[inline(always)]
    fn dot_short<const M: usize, const G: usize>(
        self,
        bits: u32,
        codes: &[[__m256i; 2]; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [[__m256i; 2]; M] {
        // Pairs of products that fit into an i16: 8 × 2 × 15 × 127, 4 × 2 × 31 × 127, 2 × 2 × 63 × 127 < 2^15.
        let run = match bits {
            4 => 8,
            5 => 4,
            _ => 2,
        };
        if bits == 6 && M == 4 {
            // Sums of i16 and of i32 of four rows are all registers: two and two.
            let mut sums = [[self.load(&[0; 64])[0]; 2]; M];
            for (rows, sums) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let rows = [2 * rows, 2 * rows + 1];
                let (activations, starts) = (rows.map(|m| activations[m]), rows.map(|m| starts[m]));
                *sums = self.dot_short(bits, codes, activations, starts);
            }
            return sums;
        }
        intrinsics!({
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            for m in 0..M {
                sums[m] = [_mm256_set1_epi32(starts[m]); 2];
            }
            let mut start = 0;
            while start < G {
                let mut pairs = [[_mm256_setzero_si256(); 2]; M];
                for g in start..(start + run).min(G) {
                    for m in 0..M {
                        let four = four(activations[m][g]);
                        for half in 0..2 {
                            let products = _mm256_maddubs_epi16(codes[g][half], four);
                            pairs[m][half] = _mm256_add_epi16(pairs[m][half], products);
                        }
                    }
                    in_order(&mut pairs);
                }
                for m in 0..M {
                    for half in 0..2 {
                        let products = _mm256_madd_epi16(pairs[m][half], _mm256_set1_epi16(1));
                        sums[m][half] = _mm256_add_epi32(sums[m][half], products);
                    }
                }
                start += run;
            }
            sums
        })
    }

    /// [`Simd::dot`] for codes of eight bits, as two of four bits: 16 × high + low. Of whole codes no sum of products fits into an i16.
    #[inline(always)]
    fn dot_bytes<const M: usize, const G: usize>(
        self,
        codes: &[[__m256i; 2]; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [[__m256i; 2]; M] {
        intrinsics!({
            let mask = _mm256_set1_epi8(15);
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            for half in 0..2 {
                let mut pairs = [[_mm256_setzero_si256(); 2]; M];
                for (g, codes) in codes.iter().enumerate() {
                    let low = _mm256_and_si256(codes[half], mask);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(codes[half]), mask);
                    add_parts(&mut pairs, [low, high], activations, g);
                }
                for m in 0..M {
                    sums[m][half] = join_parts(pairs[m], starts[m]);
                }
            }
            sums
        })
    }
}

/// Adds the products of the low and of the high four bits of codes with the activations of group `g`.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn add_parts<const M: usize, const G: usize>(
    pairs: &mut [[__m256i; 2]; M],
    parts: [__m256i; 2],
    activations: [&[[i8; 4]; G]; M],
    g: usize,
) {
    intrinsics!({
        for m in 0..M {
            let four = four(activations[m][g]);
            for part in 0..2 {
                let products = _mm256_maddubs_epi16(parts[part], four);
                pairs[m][part] = _mm256_add_epi16(pairs[m][part], products);
            }
        }
        in_order(pairs);
    });
}

/// The sums of products of whole codes.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn join_parts(pairs: [__m256i; 2], start: i32) -> __m256i {
    intrinsics!({
        let low = _mm256_madd_epi16(pairs[0], _mm256_set1_epi16(1));
        let high = _mm256_madd_epi16(pairs[1], _mm256_set1_epi16(16));
        _mm256_add_epi32(_mm256_set1_epi32(start), _mm256_add_epi32(low, high))
    })
}

/// Makes the compiler compute these sums before what follows. It would go on to the other codes of one row of activations, and for the next row
/// fetch them again, from a stack that they had to be written to: a third of all instructions.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn in_order<const M: usize>(sums: &mut [[__m256i; 2]; M]) {
    #[target_feature(enable = "avx2")]
    #[inline]
    fn all(sums: &mut [[__m256i; 2]; 4]) {
        let [[a, b], [c, d], [e, f], [g, h]] = sums;
        // SAFETY: no instruction is executed.
        unsafe {
            asm!(
                "/* {0} {1} {2} {3} {4} {5} {6} {7} */",
                inout(ymm_reg) * a,
                inout(ymm_reg) * b,
                inout(ymm_reg) * c,
                inout(ymm_reg) * d,
                inout(ymm_reg) * e,
                inout(ymm_reg) * f,
                inout(ymm_reg) * g,
                inout(ymm_reg) * h,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
    }
    if let Ok(sums) = sums.as_mut_slice().try_into() {
        // SAFETY: promised by the caller.
        unsafe { all(sums) };
    }
}

/// Four activations, for every row.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn four(activations: [i8; 4]) -> __m256i {
    let four = i32::from_ne_bytes(activations.map(|code| code as u8));
    // SAFETY: promised by the caller.
    unsafe { _mm256_set1_epi32(four) }
}

/// [`Simd::add_rows`].
///
/// # Safety
/// The CPU has AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn add_rows<const M: usize>(
    blocks: [&RowBlock; SIDE_BY_SIDE],
    activations: &ActivationBlock<M>,
    sums: &mut [[f32; SIDE_BY_SIDE]; M],
) {
    intrinsics!({
        let scales = row_scales(blocks);
        for (m, sums) in sums.iter_mut().enumerate() {
            let activation = _mm256_loadu_si256(activations.codes[m].as_ptr().cast());
            let mut dots = [_mm256_setzero_si256(); SIDE_BY_SIDE];
            for (dot, block) in dots.iter_mut().zip(blocks) {
                // Magnitudes with the activations' signs changed: their own magnitudes may be 128. No sum of two products is more than 2 × 128 × 127 < 2^15.
                let codes = _mm256_loadu_si256(block[2..].as_ptr().cast());
                let signed = _mm256_sign_epi8(activation, codes);
                let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(codes), signed);
                *dot = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            }
            add_scaled(scales, dots, activations.scales[m], sums);
        }
    });
}

/// The scales of blocks.
///
/// # Safety
/// The CPU has AVX2 and F16C.
#[inline(always)]
pub(super) unsafe fn row_scales(blocks: [&RowBlock; SIDE_BY_SIDE]) -> __m256 {
    intrinsics!({
        let mut scales = _mm_setzero_si128();
        macro_rules! scale {
            ($($lane:literal)+) => {
                $(let half = u16::from_le_bytes([blocks[$lane][0], blocks[$lane][1]]);
                scales = _mm_insert_epi16::<$lane>(scales, i32::from(half));)+
            };
        }
        scale!(0 1 2 3 4 5 6 7);
        _mm256_cvtph_ps(scales)
    })
}

/// Adds the sums of the lanes of `dots`, times both scales.
///
/// # Safety
/// The CPU has AVX2 and FMA.
#[inline(always)]
pub(super) unsafe fn add_scaled(
    scales: __m256,
    dots: [__m256i; SIDE_BY_SIDE],
    scale: f32,
    sums: &mut [f32; SIDE_BY_SIDE],
) {
    intrinsics!({
        let product = _mm256_mul_ps(scales, _mm256_cvtepi32_ps(sums_of_eight(dots)));
        let sum = _mm256_fmadd_ps(product, _mm256_set1_ps(scale), _mm256_loadu_ps(sums.as_ptr()));
        _mm256_storeu_ps(sums.as_mut_ptr(), sum);
    });
}

/// [`Simd::quantize`].
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
pub(super) unsafe fn quantize(values: &[f32; BLOCK]) -> QuantizedRow {
    intrinsics!({
        let mut vectors = [_mm256_setzero_ps(); 4];
        let mut largest = _mm256_setzero_si256();
        for (vector, values) in vectors.iter_mut().zip(values.as_chunks::<8>().0) {
            *vector = _mm256_loadu_ps(values.as_ptr());
            let magnitudes = _mm256_and_si256(_mm256_castps_si256(*vector), _mm256_set1_epi32(0x7fff_ffff));
            largest = _mm256_max_epu32(largest, magnitudes);
        }
        let four = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
        let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b11_10>(four));
        let largest = _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two)));
        let (scale, inverse) = match QuantizedRow::scales(f32::from_bits(largest as u32)) {
            Ok(scales) => scales,
            Err(row) => return row,
        };
        let mut codes = [_mm256_setzero_si256(); 4];
        for (codes, vector) in codes.iter_mut().zip(vectors) {
            // Rounds halves to even, as adding 1.5 × 2^23 does.
            *codes = _mm256_cvtps_epi32(_mm256_mul_ps(vector, _mm256_set1_ps(inverse)));
        }
        let (first, second) = (_mm256_add_epi32(codes[0], codes[1]), _mm256_add_epi32(codes[2], codes[3]));
        let pairs = _mm256_hadd_epi32(first, second);
        let pairs = _mm256_hadd_epi32(pairs, pairs);
        let sums = _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs));
        let words = [_mm256_packs_epi32(codes[0], codes[1]), _mm256_packs_epi32(codes[2], codes[3])];
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words[0], words[1]), order);
        let mut row = QuantizedRow {
            scale,
            codes: [0; BLOCK],
            sums: [_mm_cvtsi128_si32(sums), _mm_extract_epi32::<1>(sums)],
        };
        _mm256_storeu_si256(row.codes.as_mut_ptr().cast(), bytes);
        row
    })
}

/// The sum of each of eight vectors.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn sums_of_eight(v: [__m256i; 8]) -> __m256i {
    intrinsics!({
        let [a, b] = [_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3])];
        let [c, d] = [_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7])];
        let [first, last] = [_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d)];
        let low = _mm256_permute2x128_si256::<0x20>(first, last);
        _mm256_add_epi32(low, _mm256_permute2x128_si256::<0x31>(first, last))
    })
}

/// [`Simd::interleave`].
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
pub(super) unsafe fn interleave(blocks: [&RowBlock; 16]) -> [[__m256i; 2]; 8] {
    intrinsics!({
        let mut codes = [[_mm256_setzero_si256(); 2]; 8];
        let zero_point = _mm256_set1_epi8(-128);
        for (half, part) in [0, 0, 1, 1].into_iter().zip([0, 1, 0, 1]) {
            // Sixteen columns of eight rows: rows 0 to 3 in the low halves, 4 to 7 in the high ones.
            let mut rows = [_mm256_setzero_si256(); 4];
            for (i, row) in rows.iter_mut().enumerate() {
                let [low, high] = [blocks[8 * half + i], blocks[8 * half + 4 + i]];
                let [low, high] = [&low[2 + 16 * part..], &high[2 + 16 * part..]];
                *row = _mm256_loadu2_m128i(high[..16].as_ptr().cast(), low[..16].as_ptr().cast());
            }
            let [a, b] = [_mm256_unpacklo_epi32(rows[0], rows[1]), _mm256_unpackhi_epi32(rows[0], rows[1])];
            let [c, d] = [_mm256_unpacklo_epi32(rows[2], rows[3]), _mm256_unpackhi_epi32(rows[2], rows[3])];
            let columns = [
                _mm256_unpacklo_epi64(a, c),
                _mm256_unpackhi_epi64(a, c),
                _mm256_unpacklo_epi64(b, d),
                _mm256_unpackhi_epi64(b, d),
            ];
            for (g, columns) in columns.into_iter().enumerate() {
                codes[4 * part + g][half] = _mm256_xor_si256(columns, zero_point);
            }
        }
        codes
    })
}

impl Simd for Avx2 {
    type Bytes = [__m256i; 2];
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    const TILES: usize = 1;
    const EXACT_ROWS: usize = 3;

    #[inline(always)]
    fn run(self, task: impl Task) {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner(simd: Avx2, task: impl Task) {
            task.run(simd);
        }
        intrinsics!(inner(self, task))
    }

    #[inline(always)]
    fn load(self, from: &[u8; 64]) -> [__m256i; 2] {
        let from: *const __m256i = from.as_ptr().cast();
        intrinsics!([_mm256_loadu_si256(from), _mm256_loadu_si256(from.add(1))])
    }
    #[inline(always)]
    fn store(self, value: [__m256i; 2], to: &mut [u8; 64]) {
        let to: *mut __m256i = to.as_mut_ptr().cast();
        intrinsics!({
            _mm256_storeu_si256(to, value[0]);
            _mm256_storeu_si256(to.add(1), value[1]);
        })
    }
    #[inline(always)]
    fn and(self, a: [__m256i; 2], mask: u8) -> [__m256i; 2] {
        intrinsics!(both!(|a| _mm256_and_si256(a, _mm256_set1_epi8(mask as i8))))
    }
    #[inline(always)]
    fn or(self, a: [__m256i; 2], b: [__m256i; 2]) -> [__m256i; 2] {
        intrinsics!(both!(|a, b| _mm256_or_si256(a, b)))
    }
    #[inline(always)]
    fn shift_left(self, a: [__m256i; 2], bits: u32) -> [__m256i; 2] {
        intrinsics!(both!(|a| _mm256_sll_epi16(a, _mm_cvtsi32_si128(bits as i32))))
    }
    #[inline(always)]
    fn shift_right(self, a: [__m256i; 2], bits: u32) -> [__m256i; 2] {
        intrinsics!(both!(|a| _mm256_srl_epi16(a, _mm_cvtsi32_si128(bits as i32))))
    }
    #[inline(always)]
    fn look_up(self, table: &[u8; 16], indices: [__m256i; 2]) -> [__m256i; 2] {
        intrinsics!({
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            both!(|indices| _mm256_shuffle_epi8(table, indices))
        })
    }
    #[inline(always)]
    fn column(self, a: [__m256i; 2], byte: u32) -> [__m256; 2] {
        intrinsics!(both!(|a| {
            let shifted = _mm256_srl_epi32(a, _mm_cvtsi32_si128(8 * byte as i32));
            _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255)))
        }))
    }

    #[inline(always)]
    fn dot<const M: usize, const G: usize>(
        self,
        bits: u32,
        codes: &[[__m256i; 2]; G],
        activations: [&[[i8; 4]; G]; M],
        starts: [i32; M],
    ) -> [[__m256i; 2]; M] {
        match bits {
            8 => self.dot_bytes(codes, activations, starts),
            _ => self.dot_short(bits, codes, activations, starts),
        }
    }
    /// The low four bits of each, and, eight vectors on, the high ones.
    #[inline(always)]
    fn keep(self, codes: &[[__m256i; 2]; 8], to: &mut [[__m256i; 2]; 16]) {
        let (low, high) = to.split_at_mut(8);
        for (codes, (low, high)) in codes.iter().zip(low.iter_mut().zip(high)) {
            *low = self.and(*codes, 15);
            *high = self.and(self.shift_right(*codes, 4), 15);
        }
    }
    #[inline(always)]
    fn dot_kept<const M: usize>(
        self,
        kept: &[[__m256i; 2]; 16],
        activations: [&[[i8; 4]; 8]; M],
        starts: [i32; M],
    ) -> [[__m256i; 2]; M] {
        intrinsics!({
            let mut sums = [[_mm256_setzero_si256(); 2]; M];
            for half in 0..2 {
                let mut pairs = [[_mm256_setzero_si256(); 2]; M];
                for g in 0..8 {
                    add_parts(&mut pairs, [kept[g][half], kept[8 + g][half]], activations, g);
                }
                for m in 0..M {
                    sums[m][half] = join_parts(pairs[m], starts[m]);
                }
            }
            sums
        })
    }
    #[inline(always)]
    fn quantize(self, values: &[f32; BLOCK]) -> QuantizedRow {
        intrinsics!(quantize(values))
    }
    #[inline(always)]
    fn add_rows<const M: usize>(
        self,
        blocks: [&RowBlock; SIDE_BY_SIDE],
        activations: &ActivationBlock<M>,
        sums: &mut [[f32; SIDE_BY_SIDE]; M],
    ) {
        intrinsics!(add_rows(blocks, activations, sums));
    }
    #[inline(always)]
    fn interleave(self, blocks: [&RowBlock; 16]) -> [[__m256i; 2]; 8] {
        intrinsics!(interleave(blocks))
    }
    #[inline(always)]
    fn to_floats(self, a: [__m256i; 2]) -> [__m256; 2] {
        intrinsics!(both!(|a| _mm256_cvtepi32_ps(a)))
    }

    #[inline(always)]
    fn load_floats(self, from: &[f32; 16]) -> [__m256; 2] {
        let from = from.as_ptr();
        intrinsics!([_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))])
    }
    #[inline(always)]
    fn store_floats(self, value: [__m256; 2], to: &mut [f32; 16]) {
        let to = to.as_mut_ptr();
        intrinsics!({
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        })
    }
    #[inline(always)]
    fn load_f16(self, from: &[u8; 32]) -> [__m256; 2] {
        let from: *const __m128i = from.as_ptr().cast();
        intrinsics!([_mm256_cvtph_ps(_mm_loadu_si128(from)), _mm256_cvtph_ps(_mm_loadu_si128(from.add(1)))])
    }
    #[inline(always)]
    fn load_u8(self, from: &[u8; 16]) -> [__m256; 2] {
        let from: *const __m128i = from.as_ptr().cast();
        intrinsics!({
            let bytes = _mm_loadu_si128(from);
            let bytes = [bytes, _mm_srli_si128::<8>(bytes)];
            both!(|bytes| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)))
        })
    }
    #[inline(always)]
    fn load_i8(self, from: &[u8; 16]) -> [__m256; 2] {
        let from: *const __m128i = from.as_ptr().cast();
        intrinsics!({
            let bytes = _mm_loadu_si128(from);
            let bytes = [bytes, _mm_srli_si128::<8>(bytes)];
            both!(|bytes| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)))
        })
    }
    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 2] {
        intrinsics!([_mm256_set1_ps(value); 2])
    }
    #[inline(always)]
    fn mul(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        intrinsics!(both!(|a, b| _mm256_mul_ps(a, b)))
    }
    #[inline(always)]
    fn add(self, a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] {
        intrinsics!(both!(|a, b| _mm256_add_ps(a, b)))
    }
    #[inline(always)]
    fn fma(self, a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
        intrinsics!(both!(|a, b, c| _mm256_fmadd_ps(a, b, c)))
    }
}
