//! How numbers become f32: by themselves ([`Load`]), or as weights ([`Weights`]), which may have scales.

use super::DenseMatrix;
use crate::kernels::CACHE_BLOCK;
use crate::kernels::cpu::simd::{F8_UNIT, Floats};
use crate::quant::f8e4m3_to_f32;
use crate::weights::Fp8Scale;

/// How one format is read.
pub trait Load {
    /// Bytes of `n` elements, or of a row of so many.
    fn bytes(n: usize) -> usize;
    /// A vector of elements from `j` on, a multiple of its lanes.
    ///
    /// # Safety
    /// They are readable; the arm of `V` was detected.
    unsafe fn load<V: Floats>(p: *const u8, j: usize) -> V;
    /// Element `j`.
    ///
    /// # Safety
    /// It is readable.
    unsafe fn one(p: *const u8, j: usize) -> f32;
}

/// f32, little-endian.
pub struct LoadF32;
/// IEEE half precision.
pub struct LoadF16;
/// The upper half of an f32.
pub struct LoadBf16;
/// Rows of blocks as in [`CacheType::Q8_0`](crate::kernels::CacheType).
pub struct LoadQ8;

impl Load for LoadF32 {
    #[inline(always)]
    fn bytes(n: usize) -> usize {
        4 * n
    }
    #[inline(always)]
    unsafe fn load<V: Floats>(p: *const u8, j: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load(p.cast::<f32>().wrapping_add(j)) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8, j: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<f32>().wrapping_add(j).read_unaligned() }
    }
}

impl Load for LoadF16 {
    #[inline(always)]
    fn bytes(n: usize) -> usize {
        2 * n
    }
    #[inline(always)]
    unsafe fn load<V: Floats>(p: *const u8, j: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f16(p.cast::<u16>().wrapping_add(j)) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8, j: usize) -> f32 {
        // SAFETY: the caller's promise.
        half::f16::from_bits(unsafe { p.cast::<u16>().wrapping_add(j).read_unaligned() }).to_f32()
    }
}

impl Load for LoadBf16 {
    #[inline(always)]
    fn bytes(n: usize) -> usize {
        2 * n
    }
    #[inline(always)]
    unsafe fn load<V: Floats>(p: *const u8, j: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_bf16(p.cast::<u16>().wrapping_add(j)) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8, j: usize) -> f32 {
        // SAFETY: the caller's promise.
        f32::from_bits(u32::from(unsafe { p.cast::<u16>().wrapping_add(j).read_unaligned() }) << 16)
    }
}

impl Load for LoadQ8 {
    #[inline(always)]
    fn bytes(n: usize) -> usize {
        n.div_ceil(CACHE_BLOCK.0) * CACHE_BLOCK.1
    }
    #[inline(always)]
    unsafe fn load<V: Floats>(p: *const u8, j: usize) -> V {
        // SAFETY: the caller's promise; a vector that begins at a multiple of its lanes lies in one block.
        unsafe {
            let block = p.wrapping_add(j / CACHE_BLOCK.0 * CACHE_BLOCK.1);
            V::load_i8(block.wrapping_add(2 + j % CACHE_BLOCK.0).cast()).mul(V::splat_f16(block.cast()))
        }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8, j: usize) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            let block = p.wrapping_add(j / CACHE_BLOCK.0 * CACHE_BLOCK.1);
            let scale = half::f16::from_bits(block.cast::<u16>().read_unaligned()).to_f32();
            f32::from(*block.wrapping_add(2 + j % CACHE_BLOCK.0).cast::<i8>()) * scale
        }
    }
}

/// How the elements of a row of weights are read, two vectors at a time.
pub trait Weights {
    /// Whether matrices of it have an [`Fp8Scale`].
    const SCALED: bool = false;
    /// What factors of vectors are multiplied by beforehand.
    const UNIT: f32 = 1.0;

    /// Bytes of `n` elements.
    fn bytes(n: usize) -> usize;
    /// Two vectors of elements from `j` on, a multiple of their lanes, times `factor` / [`Weights::UNIT`] if they are scaled.
    ///
    /// # Safety
    /// They are readable; the arm of `V` was detected.
    unsafe fn load<V: Floats>(p: *const u8, j: usize, factor: V) -> [V; 2];
    /// Element `j`, times `factor` if it is scaled.
    ///
    /// # Safety
    /// It is readable.
    unsafe fn one(p: *const u8, j: usize, factor: f32) -> f32;
}

impl<L: Load> Weights for L {
    #[inline(always)]
    fn bytes(n: usize) -> usize {
        L::bytes(n)
    }
    #[inline(always)]
    unsafe fn load<V: Floats>(p: *const u8, j: usize, _: V) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe { [<L as Load>::load(p, j), <L as Load>::load(p, j + V::LANES)] }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8, j: usize, _: f32) -> f32 {
        // SAFETY: the caller's promise.
        unsafe { <L as Load>::one(p, j) }
    }
}

/// `float8_e4m3fn`, whose runs of columns with one scale are whole pairs of vectors.
pub struct LoadF8;

impl Weights for LoadF8 {
    const SCALED: bool = true;
    const UNIT: f32 = F8_UNIT;

    #[inline(always)]
    fn bytes(n: usize) -> usize {
        n
    }
    #[inline(always)]
    unsafe fn load<V: Floats>(p: *const u8, j: usize, factor: V) -> [V; 2] {
        // SAFETY: the caller's promise.
        unsafe { V::load_f8e4m3(p.wrapping_add(j), factor) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8, j: usize, factor: f32) -> f32 {
        // SAFETY: the caller's promise.
        f8e4m3_to_f32(unsafe { *p.wrapping_add(j) }) * factor
    }
}

/// The scales of one row of weights: each of so many columns.
#[derive(Clone, Copy)]
pub struct RowScales<'a> {
    pub factors: &'a [f32],
    pub cols: usize,
}

impl<'a> RowScales<'a> {
    /// Those of `row`; one for all columns, which nothing is multiplied by, without [`Weights::SCALED`].
    pub fn of(w: &DenseMatrix<'a>, row: usize) -> Self {
        let across = w.cols.max(1);
        match w.scale {
            None => Self { factors: &[1.0], cols: across },
            Some(Fp8Scale::Scalar(scale)) => Self { factors: std::slice::from_ref(scale), cols: across },
            Some(Fp8Scale::PerRow(scales)) => Self { factors: &scales[row..=row], cols: across },
            Some(Fp8Scale::Block { rows, cols, values }) => {
                let per_row = w.cols.div_ceil(*cols);
                Self { factors: &values[row / rows * per_row..][..per_row], cols: *cols }
            }
        }
    }
}
