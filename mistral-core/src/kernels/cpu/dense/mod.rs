//! Linear layers whose weights are multiplied from where the file is mapped: numbers (f32, f16, bf16, FP8), and blocks of formats without a
//! packed form, which are expanded to f32.
//!
//! Every output is one dot product in f32: running sums along k, one for each lane of a vector, added at the end in a fixed order. Neither how many rows there are nor
//! how they are taken together changes that, so a row of a batch equals the same row alone, bit for bit.

mod few;
mod load;
mod many;

use std::ops::Range;

use super::pool;
use super::simd::{Floats, MAX_LANES, simd_dispatch};
use crate::quant::Format;
use crate::weights::Fp8Scale;
pub use load::{Load, LoadF16, LoadF32, LoadQ8};
use load::{LoadBf16, LoadF8, Weights};

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
/// Rows of activations from which on it pays to expand the weights first (PERFORMANCE.md).
const MANY: usize = 12;

/// `out[i, j] = Σ_k x[i, k] · w[j, k]` for `x: [m, cols]` and each matrix with its `out: [m, rows]`.
pub fn linear(x: &[f32], m: usize, products: Vec<(DenseMatrix<'_>, &mut [f32])>) {
    let Some(cols) = products.first().map(|(w, _)| w.cols) else { return };
    if m * cols == 0 {
        return products.into_iter().for_each(|(_, out)| out.fill(0.0));
    }
    let total: usize = products.iter().map(|(w, _)| w.rows).sum();
    let share = total.div_ceil(pool::threads() * TASKS_PER_THREAD).next_multiple_of(few::STREAMS);
    let task_rows = if m < MANY { share.clamp(TASK_ROWS, TASK_ROWS_STREAMED) } else { TASK_ROWS };
    let mut tasks = 0;
    let parts = products.into_iter().map(|(w, out)| {
        assert_eq!(x.len(), m * w.cols);
        assert_eq!(out.len(), m * w.rows);
        assert_eq!(w.data.len(), w.row_bytes() * w.rows);
        let first = tasks;
        tasks += w.rows.div_ceil(task_rows);
        (first..tasks, w, Output { data: out.as_mut_ptr(), stride: w.rows })
    });
    let parts: Vec<_> = parts.collect();
    let mut room = Vec::new();
    let x = if m < MANY { x } else { many::panels(x, m, cols, &mut room) };
    let first = parts.first().map(|(_, w, _)| w).filter(|_| m < MANY);
    let after_first_task = first.and_then(|w| w.data.get(task_rows * w.row_bytes()..)).unwrap_or_default();
    pool::run_reading(after_first_task, tasks, &|task| {
        let Some((tasks, w, out)) = parts.iter().find(|part| part.0.contains(&task)) else { return };
        let first = (task - tasks.start) * task_rows;
        w.multiply(x, m, first..(first + task_rows).min(w.rows), *out);
    });
}

impl DenseMatrix<'_> {
    fn row_bytes(&self) -> usize {
        self.format.block_bytes() * (self.cols / self.format.block_len())
    }

    /// The outputs of some rows; `x` as it came, or from [`MANY`] rows on in panels.
    fn multiply(&self, x: &[f32], m: usize, rows: Range<usize>, out: Output) {
        match self.format {
            Format::F32 => f32_rows(x, m, self, rows, out),
            Format::F16 => f16_rows(x, m, self, rows, out),
            Format::BF16 => bf16_rows(x, m, self, rows, out),
            Format::F8E4M3 if self.scales_end_with_vectors() => f8_rows(x, m, self, rows, out),
            _ => expanded_rows(x, m, self, rows, out),
        }
    }

    fn scales_end_with_vectors(&self) -> bool {
        !matches!(self.scale, Some(Fp8Scale::Block { cols, .. }) if cols % (2 * MAX_LANES) != 0)
    }

    /// Elements `cols` of `row`, whole blocks, as f32.
    fn expand(&self, row: usize, cols: Range<usize>, to: &mut [f32]) {
        let (len, bytes) = (self.format.block_len(), self.format.block_bytes());
        let blocks = &self.data[row * self.row_bytes()..][cols.start / len * bytes..cols.end / len * bytes];
        self.format.dequantize(blocks, to).expect("whole blocks");
        if let Some(scale) = self.scale {
            to.iter_mut().zip(cols).for_each(|(value, col)| *value *= scale.at(row, col, self.cols));
        }
    }
}

/// The output, written by several tasks at disjoint columns.
#[derive(Clone, Copy)]
struct Output {
    data: *mut f32,
    stride: usize,
}

// SAFETY: tasks write disjoint columns.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// Writes what row `row` of the weights makes of row `i` of the activations.
    ///
    /// # Safety
    /// Both are inside the output, and no other task writes that column.
    #[inline(always)]
    unsafe fn set(self, i: usize, row: usize, value: f32) {
        // SAFETY: the caller's promise.
        unsafe { *self.data.add(i * self.stride + row) = value }
    }
}

simd_dispatch!(fn f32_rows(x: &[f32], m: usize, w: &DenseMatrix<'_>, rows: Range<usize>, out: Output) = rows_body::<LoadF32>);
simd_dispatch!(fn f16_rows(x: &[f32], m: usize, w: &DenseMatrix<'_>, rows: Range<usize>, out: Output) = rows_body::<LoadF16>);
simd_dispatch!(fn bf16_rows(x: &[f32], m: usize, w: &DenseMatrix<'_>, rows: Range<usize>, out: Output) = rows_body::<LoadBf16>);
simd_dispatch!(fn f8_rows(x: &[f32], m: usize, w: &DenseMatrix<'_>, rows: Range<usize>, out: Output) = rows_body::<LoadF8>);
simd_dispatch!(fn expanded_rows(x: &[f32], m: usize, w: &DenseMatrix<'_>, rows: Range<usize>, out: Output) = expanded_body);

#[inline(always)]
fn rows_body<V: Floats, W: Weights>(
    x: &[f32],
    m: usize,
    w: &DenseMatrix<'_>,
    rows: Range<usize>,
    out: Output,
) {
    if m < MANY {
        few::multiply::<V, W>(x, m, w, rows, out);
    } else {
        many::multiply::<V, W>(x, m, w, rows, out);
    }
}

/// As many rows are expanded at a time as are read side by side, so that they stay in the second-level cache.
#[inline(always)]
fn expanded_body<V: Floats>(x: &[f32], m: usize, w: &DenseMatrix<'_>, rows: Range<usize>, out: Output) {
    if m >= MANY {
        return many::multiply::<V, many::Blocks>(x, m, w, rows, out);
    }
    let mut values = vec![0.0f32; few::STREAMS.min(rows.len()) * w.cols];
    for first in rows.clone().step_by(few::STREAMS) {
        let count = few::STREAMS.min(rows.end - first);
        for (row, values) in values.chunks_exact_mut(w.cols).take(count).enumerate() {
            w.expand(first + row, 0..w.cols, values);
        }
        // SAFETY: every f32 is four bytes, and the borrow outlives the call.
        let data = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), 4 * count * w.cols) };
        let expanded = DenseMatrix { format: Format::F32, rows: count, data, scale: None, ..*w };
        // SAFETY: columns `first..first + count` of the output are this task's.
        let out = Output { data: unsafe { out.data.add(first) }, ..out };
        few::multiply::<V, LoadF32>(x, m, &expanded, 0..count, out);
    }
}

/// Products of one round of [`fma_peak`], whatever the arm.
pub const FMA_PEAK_PRODUCTS: usize = PEAK_SUMS * MAX_LANES;
/// Sums that do not wait for each other, as many as sixteen registers hold beside two factors.
const PEAK_SUMS: usize = 12;

simd_dispatch!(
    /// Multiplies and adds in registers, `rounds` times.
    pub fn fma_peak(rounds: usize) = fma_peak_body
);

#[inline(always)]
fn fma_peak_body<V: Floats>(rounds: usize) {
    // SAFETY: the arm was detected.
    unsafe {
        let factor = V::splat(std::hint::black_box(0.5));
        let mut sums = [factor; PEAK_SUMS];
        for _ in 0..rounds * MAX_LANES / V::LANES {
            for sum in &mut sums {
                *sum = sum.fma(factor, factor);
            }
        }
        sums.iter().for_each(|sum| _ = std::hint::black_box(sum.sum()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    /// Tiles and tasks with remainders of each kind, and rows of a part of a chunk, and of several.
    #[test]
    fn a_row_of_many_is_that_row_alone() {
        let rows = TASK_ROWS + 3;
        let scalar = Fp8Scale::Scalar(0.3);
        let per_row = Fp8Scale::PerRow((0..rows).map(|row| 0.3 + row as f32).collect());
        let blocks = |rows: usize, cols: usize| Fp8Scale::Block {
            rows,
            cols,
            values: (0..10_000).map(|i| 0.3 + (i % 13) as f32).collect(),
        };
        for (format, scale) in [
            (Format::F32, None),
            (Format::F16, None),
            (Format::BF16, None),
            (Format::Q2_K, None),
            (Format::F8E4M3, Some(&scalar)),
            (Format::F8E4M3, Some(&per_row)),
            (Format::F8E4M3, Some(&blocks(16, 96))),
            (Format::F8E4M3, Some(&blocks(7, 9))),
        ] {
            for cols in [5, 32, 77, 2345].map(|cols: usize| cols.next_multiple_of(format.block_len())) {
                let mut random = Random::new(cols as u64);
                let data = random.tensor("w", format, &[rows, cols]).bytes;
                let w = DenseMatrix { format, rows, cols, data: &data, scale };
                for m in [6, MANY, 23] {
                    let x: Vec<f32> = (0..m * cols).map(|_| random.unit()).collect();
                    let (mut many, mut alone) = (vec![0.0; m * rows], vec![0.0; m * rows]);
                    linear(&x, m, vec![(w, &mut many)]);
                    for (x, out) in x.chunks_exact(cols).zip(alone.chunks_exact_mut(rows)) {
                        linear(x, 1, vec![(w, out)]);
                    }
                    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert!(many.iter().all(|out| out.is_finite()) && many.iter().any(|out| *out != 0.0));
                    assert_eq!(bits(&many), bits(&alone), "{} {scale:?}: {m} x {cols}", format.name());
                }
            }
        }
    }

    #[test]
    fn nothing_makes_nothing() {
        let w = DenseMatrix { format: Format::F16, rows: 2, cols: 0, data: &[], scale: None };
        for m in [0, 1, MANY] {
            let mut out = vec![1.0; 2 * m];
            linear(&[], m, vec![(w, &mut out)]);
            assert_eq!(out, vec![0.0; 2 * m]);
        }
        linear(&[], 1, Vec::new());
    }
}
