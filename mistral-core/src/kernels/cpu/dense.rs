//! Linear layers whose weights are multiplied from where the file is mapped: numbers (f32, f16, bf16, FP8), and blocks of formats without a
//! packed form, of which a few rows at a time are expanded to f32.
//!
//! Every output is one dot product: running sums along k, one for each lane of a vector, added at the end in a fixed order. The tile's shape never changes that, so
//! a row of a batch equals the same row alone, bit for bit.

use super::pool;
use super::simd::{Floats, MAX_LANES, prefetch, simd_dispatch};
use crate::kernels::CACHE_BLOCK;
use crate::quant::Format;
use crate::weights::Fp8Scale;

/// A row-major matrix `[rows, cols]` as it stands in a file.
#[derive(Clone, Copy)]
pub struct DenseMatrix<'a> {
    /// Any format.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// `rows * cols` elements in whole blocks, at any alignment.
    pub data: &'a [u8],
    /// The scales of FP8 weights.
    pub scale: Option<&'a Fp8Scale>,
}

/// Output rows of one task: enough work to be worth a hand-over, few enough to balance. A few rows of activations take more of them, as the rows that are read side
/// by side then lie further from each other.
const TASK_ROWS: usize = 32;
const TASK_ROWS_STREAMED: usize = 128;
/// As many tasks as even out what one thread is slower than another.
const TASKS_PER_THREAD: usize = 4;
/// Rows of weights that a single row of activations meets at once, to hide the latency of the sums and of memory.
const STREAMS: usize = 8;
/// Bytes of weights that stay in the second-level cache while rows of activations pass by.
const BLOCK_BYTES: usize = 128 << 10;
/// Rows of weights and of activations of a tile: its sums, and what is loaded for them, fit into sixteen registers.
const TILE_ROWS: usize = 2;
const TILE_COLS: usize = 4;

/// `out[i, j] = Σ_k x[i, k] · w[j, k]` for `x: [m, cols]` and each matrix with its `out: [m, rows]`.
pub fn linear(x: &[f32], m: usize, products: Vec<(DenseMatrix<'_>, &mut [f32])>) {
    let total: usize = products.iter().map(|(w, _)| w.rows).sum();
    let share = total.div_ceil(pool::threads() * TASKS_PER_THREAD).next_multiple_of(STREAMS);
    let task_rows = if m < TILE_COLS { share.clamp(TASK_ROWS, TASK_ROWS_STREAMED) } else { TASK_ROWS };
    let mut tasks = 0;
    let parts = products.into_iter().map(|(w, out)| {
        assert_eq!(x.len(), m * w.cols);
        assert_eq!(out.len(), m * w.rows);
        assert_eq!(w.data.len(), w.format.block_bytes() * (w.cols / w.format.block_len()) * w.rows);
        let first = tasks;
        tasks += w.rows.div_ceil(task_rows);
        (first..tasks, w, Rows { data: out.as_mut_ptr(), stride: w.rows })
    });
    let parts: Vec<_> = parts.collect();
    let first = parts.first().map(|(_, w, _)| w).filter(|_| m < TILE_COLS);
    let after_first_task =
        first.and_then(|w| w.data.get(task_rows * (w.data.len() / w.rows.max(1))..)).unwrap_or_default();
    pool::run_reading(after_first_task, tasks, &|task| {
        let Some((tasks, w, out)) = parts.iter().find(|part| part.0.contains(&task)) else { return };
        let first = (task - tasks.start) * task_rows;
        linear_rows(x, m, *w, first..(first + task_rows).min(w.rows), *out);
    });
}

/// The output, written by several tasks at disjoint columns.
#[derive(Clone, Copy)]
struct Rows {
    data: *mut f32,
    stride: usize,
}

// SAFETY: tasks write disjoint columns.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

fn linear_rows(x: &[f32], m: usize, w: DenseMatrix<'_>, rows: std::ops::Range<usize>, out: Rows) {
    match w.format {
        Format::F32 => f32_rows(x, m, w, rows, out),
        Format::F16 => f16_rows(x, m, w, rows, out),
        Format::BF16 => bf16_rows(x, m, w, rows, out),
        Format::F8E4M3 => f8_rows(x, m, w, rows, out),
        _ => expanded_rows(x, m, w, rows, out),
    }
}

/// Rows that are expanded at a time: as many as a tile takes, so that they stay in the second-level cache.
const EXPANDED_ROWS: usize = 8;

/// Expands rows of blocks, and multiplies them like f32.
fn expanded_rows(x: &[f32], m: usize, w: DenseMatrix<'_>, rows: std::ops::Range<usize>, out: Rows) {
    let row_bytes = w.format.block_bytes() * (w.cols / w.format.block_len());
    let mut values = vec![0.0f32; EXPANDED_ROWS.min(rows.len()) * w.cols];
    for first in rows.clone().step_by(EXPANDED_ROWS) {
        let count = EXPANDED_ROWS.min(rows.end - first);
        let values = &mut values[..count * w.cols];
        let blocks = &w.data[first * row_bytes..(first + count) * row_bytes];
        w.format.dequantize(blocks, values).expect("rows are whole blocks");
        // SAFETY: every f32 is four bytes, and the borrow outlives the call.
        let data = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        let expanded = DenseMatrix { format: Format::F32, rows: count, data, ..w };
        // SAFETY: columns `first..first + count` of the output are this task's.
        let out = Rows { data: unsafe { out.data.add(first) }, ..out };
        f32_rows(x, m, expanded, 0..count, out);
    }
}

simd_dispatch!(fn f32_rows(x: &[f32], m: usize, w: DenseMatrix<'_>, rows: std::ops::Range<usize>, out: Rows) = rows_body::<LoadF32>);
simd_dispatch!(fn f16_rows(x: &[f32], m: usize, w: DenseMatrix<'_>, rows: std::ops::Range<usize>, out: Rows) = rows_body::<LoadF16>);
simd_dispatch!(fn bf16_rows(x: &[f32], m: usize, w: DenseMatrix<'_>, rows: std::ops::Range<usize>, out: Rows) = rows_body::<LoadBf16>);
simd_dispatch!(fn f8_rows(x: &[f32], m: usize, w: DenseMatrix<'_>, rows: std::ops::Range<usize>, out: Rows) = rows_body::<LoadF8>);

#[inline(always)]
fn rows_body<V: Floats, L: Load>(
    x: &[f32],
    m: usize,
    w: DenseMatrix<'_>,
    rows: std::ops::Range<usize>,
    out: Rows,
) {
    let row_bytes = (w.cols * w.format.block_bytes()).max(1);
    // For many rows of activations the weights of a block stay in the second-level cache, and a tile's activations in the first.
    let block = if m < TILE_COLS { rows.len() } else { (BLOCK_BYTES / row_bytes).max(TILE_ROWS) };
    for first in rows.clone().step_by(block.max(1)) {
        let rows = first..(first + block).min(rows.end);
        let mut i = 0;
        while i < m {
            i += match m - i {
                // With 32 registers of 16 lanes.
                8.. if V::LANES == MAX_LANES => tiles::<V, L, TILE_ROWS, 8>(x, w, rows.clone(), i, out),
                TILE_COLS.. => tiles::<V, L, TILE_ROWS, TILE_COLS>(x, w, rows.clone(), i, out),
                _ => tiles::<V, L, STREAMS, 1>(x, w, rows.clone(), i, out),
            };
        }
    }
}

/// `C` activation rows from `i` on times the weight rows `rows`, `R` at a time; returns `C`. Those `R` lie far from each other: see `STREAMS` in
/// `packed/kernel.rs`.
#[inline(always)]
fn tiles<V: Floats, L: Load, const R: usize, const C: usize>(
    x: &[f32],
    w: DenseMatrix<'_>,
    rows: std::ops::Range<usize>,
    i: usize,
    out: Rows,
) -> usize {
    let apart = rows.len() / R;
    for first in rows.start..rows.start + apart {
        let mut rows = [first; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row += r * apart;
        }
        tile::<V, L, R, C>(x, w, rows, i, out);
    }
    for row in rows.start + R * apart..rows.end {
        tile::<V, L, 1, C>(x, w, [row], i, out);
    }
    C
}

/// `C` activation rows from `i` on times `R` weight rows.
#[inline(always)]
fn tile<V: Floats, L: Load, const R: usize, const C: usize>(
    x: &[f32],
    w: DenseMatrix<'_>,
    rows: [usize; R],
    i: usize,
    out: Rows,
) {
    let k = w.cols;
    let size = w.format.block_bytes();
    debug_assert!((i + C) * k <= x.len() && rows.iter().all(|row| (row + 1) * k * size <= w.data.len()));
    // SAFETY: the rows lie inside their slices (checked by `linear`), and the arm was detected by the dispatcher.
    let mut sums = unsafe {
        let wp: [*const u8; R] = std::array::from_fn(|r| w.data.as_ptr().add(rows[r] * k * size));
        let xp: [*const f32; C] = std::array::from_fn(|c| x.as_ptr().add((i + c) * k));
        match w.scale {
            Some(Fp8Scale::Block { rows: high, cols, values }) if L::SCALED => {
                let across = k.div_ceil(*cols);
                let mut sums = [[0.0; C]; R];
                for b in 0..across {
                    let (from, len) = (b * cols, (*cols).min(k - b * cols));
                    let part =
                        dot::<V, L, R, C>(wp.map(|p| p.add(from * size)), xp.map(|p| p.add(from)), len);
                    for r in 0..R {
                        let s = values[rows[r] / high * across + b];
                        for c in 0..C {
                            sums[r][c] += part[r][c] * s;
                        }
                    }
                }
                sums
            }
            _ => dot::<V, L, R, C>(wp, xp, k),
        }
    };
    if L::SCALED {
        for (row, sums) in rows.iter().zip(&mut sums) {
            let scale = match w.scale {
                Some(Fp8Scale::Scalar(s)) => *s,
                Some(Fp8Scale::PerRow(s)) => s[*row],
                _ => 1.0,
            };
            sums.iter_mut().for_each(|sum| *sum *= scale);
        }
    }
    for (row, sums) in rows.iter().zip(sums) {
        for (c, sum) in sums.into_iter().enumerate() {
            // SAFETY: inside the output, at columns that only this task writes.
            unsafe { *out.data.add((i + c) * out.stride + row) = sum };
        }
    }
}

/// `R × C` dot products of length `k`.
///
/// # Safety
/// `k` elements are readable from each pointer; the arm of `V` was detected.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "the indices are those of pointers too")]
pub unsafe fn dot<V: Floats, L: Load, const R: usize, const C: usize>(
    w: [*const u8; R],
    x: [*const f32; C],
    k: usize,
) -> [[f32; C]; R] {
    // SAFETY: all offsets stay below `k`.
    unsafe {
        let mut acc = [[V::splat(0.0); C]; R];
        let mut j = 0;
        while j + V::LANES <= k {
            // Loops, not closures: a closure would not be compiled for the arm's instructions.
            let mut xv = [V::splat(0.0); C];
            for c in 0..C {
                xv[c] = V::load(x[c].add(j));
            }
            for r in 0..R {
                if C == 1 && V::AHEAD > 0 {
                    prefetch(w[r].wrapping_add(L::bytes(j) + V::AHEAD));
                }
                let wv = L::load::<V>(w[r], j);
                for c in 0..C {
                    acc[r][c] = wv.fma(xv[c], acc[r][c]);
                }
            }
            j += V::LANES;
        }
        let mut sums = [[0.0; C]; R];
        for r in 0..R {
            for c in 0..C {
                sums[r][c] = acc[r][c].sum();
                for t in j..k {
                    sums[r][c] += L::one(w[r], t) * *x[c].add(t);
                }
            }
        }
        sums
    }
}

/// How one format is read.
pub trait Load {
    /// Whether matrices of it have an [`Fp8Scale`].
    const SCALED: bool = false;

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
/// `float8_e4m3fn`.
pub struct LoadF8;
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

impl Load for LoadF8 {
    const SCALED: bool = true;

    #[inline(always)]
    fn bytes(n: usize) -> usize {
        n
    }
    #[inline(always)]
    unsafe fn load<V: Floats>(p: *const u8, j: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe { V::load_f8e4m3(p.wrapping_add(j)) }
    }
    #[inline(always)]
    unsafe fn one(p: *const u8, j: usize) -> f32 {
        // SAFETY: the caller's promise.
        crate::quant::f8e4m3_to_f32(unsafe { *p.wrapping_add(j) })
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles with remainders of each kind.
    #[test]
    fn a_row_of_many_is_that_row_alone() {
        let (m, rows) = (2 * TILE_COLS + 3, TASK_ROWS + 3);
        let mut state = 1u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let per_row = Fp8Scale::PerRow((0..rows).map(|row| 0.5 + row as f32).collect());
        let scales = [None, Some(&Fp8Scale::Scalar(0.25)), Some(&per_row)];
        for (format, scale) in [
            (Format::F32, scales[0]),
            (Format::F16, scales[0]),
            (Format::BF16, scales[0]),
            (Format::F8E4M3, scales[1]),
            (Format::F8E4M3, scales[2]),
        ] {
            for cols in [5, 8, 77] {
                // The upper byte of each number is that of a small one.
                let size = format.block_bytes();
                let data: Vec<u8> = (0..rows * cols * size)
                    .map(|i| if i % size == size - 1 { byte() % 0x30 } else { byte() })
                    .collect();
                let x: Vec<f32> = (0..m * cols).map(|_| f32::from(byte()) / 128.0 - 1.0).collect();
                let w = DenseMatrix { format, rows, cols, data: &data, scale };
                let (mut many, mut alone) = (vec![0.0; m * rows], vec![0.0; m * rows]);
                linear(&x, m, vec![(w, &mut many)]);
                for (x, out) in x.chunks_exact(cols).zip(alone.chunks_exact_mut(rows)) {
                    linear(x, 1, vec![(w, out)]);
                }
                let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&many), bits(&alone), "{} with {cols} columns", format.name());
            }
        }
    }
}
