//! Many rows of activations: a chunk of columns of the weights is expanded to f32, in the second-level cache, and all rows pass it, a few of them in the first-level
//! cache at a time. The running sums of all outputs wait in memory for the next chunk.

use std::cell::RefCell;
use std::ops::Range;

use super::load::{RowScales, Weights};
use super::{DenseMatrix, Output};
use crate::kernels::cpu::simd::{Floats, MAX_LANES, aligned, prefetch};

/// Columns of a chunk, at most: six rows of activations of as many take half of a first-level cache.
const CHUNK: usize = 1024;
/// A chunk holds whole blocks of each format.
const GRAIN: usize = 256;
/// Rows of weights of a tile. With [`COLS`] rows of activations its sums, and what is loaded for them, fit into the registers: 32 of sixteen lanes, or 16 of eight.
const ROWS: usize = 4;
const COLS: usize = 6;
const COLS_OF_EIGHT_LANES: usize = 3;

/// Columns of each chunk of rows of `cols`, which are not none, but of the last one.
fn chunk_of(cols: usize) -> usize {
    cols.div_ceil(cols.div_ceil(CHUNK)).next_multiple_of(GRAIN)
}

/// Elements from one row of a chunk to the next: not a multiple of what a cache's lines are told apart by.
fn stride_of(cols: usize) -> usize {
    chunk_of(cols) + MAX_LANES
}

/// The rows of activations `x: [m, cols]`, chunk after chunk: `[chunks, m, stride_of(cols)]`, in `room`.
pub fn panels<'a>(x: &[f32], m: usize, cols: usize, room: &'a mut Vec<f32>) -> &'a [f32] {
    let (chunk, stride) = (chunk_of(cols), stride_of(cols));
    let panels = aligned(room, cols.div_ceil(chunk) * m * stride);
    for (first, panel) in (0..cols).step_by(chunk).zip(panels.chunks_exact_mut(m * stride)) {
        let part = first..(first + chunk).min(cols);
        for (x, to) in x.chunks_exact(cols).zip(panel.chunks_exact_mut(stride)) {
            to[..part.len()].copy_from_slice(&x[part.clone()]);
        }
    }
    panels
}

/// What a thread works on, kept from task to task.
#[derive(Default)]
struct Scratch {
    /// A chunk of a task's weights: `[rows, stride]`.
    weights: Vec<f32>,
    /// The running sums: `[m, rows, lanes]`, or nothing where there is one chunk.
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// What `rows` of the weights make of the `m` rows of [`panels`].
#[inline(always)]
pub fn multiply<V: Floats, E: Expand>(
    x: &[f32],
    m: usize,
    w: &DenseMatrix<'_>,
    rows: Range<usize>,
    out: Output,
) {
    // A thread that ends may have dropped it.
    let mut scratch = SCRATCH.try_with(RefCell::take).unwrap_or_default();
    let (chunk, stride, n) = (chunk_of(w.cols), stride_of(w.cols), rows.len());
    let waiting = if w.cols > chunk { m * n * V::LANES } else { 0 };
    let (weights, sums) = (aligned(&mut scratch.weights, n * stride), aligned(&mut scratch.sums, waiting));
    // SAFETY: a place inside the output, as there are outputs of these rows.
    let out = Output { data: unsafe { out.data.add(rows.start) }, ..out };
    for (first, x) in (0..w.cols).step_by(chunk).zip(x.chunks_exact(m * stride)) {
        let cols = first..(first + chunk).min(w.cols);
        expand::<V, E>(w, rows.clone(), cols.clone(), weights, stride);
        let (begins, ends) = (first == 0, cols.end == w.cols);
        Part { x, weights, stride, n, cols: cols.len(), begins, ends, sums, out }.multiply::<V>(m);
    }
    // Nothing of what a session computes stays in a thread that outlives it.
    sums.fill(0.0);
    let _ = SCRATCH.try_with(|kept| kept.replace(scratch));
}

/// How the weights of a format are expanded.
pub trait Expand {
    /// Writes elements `cols` of `R` rows from `row` on, each `stride` from the one before.
    fn expand<V: Floats, const R: usize>(
        w: &DenseMatrix<'_>,
        row: usize,
        cols: Range<usize>,
        to: &mut [f32],
        stride: usize,
    );
}

/// Formats of blocks, and scales of whatever shape: one row after the other.
pub struct Blocks;

impl Expand for Blocks {
    fn expand<V: Floats, const R: usize>(
        w: &DenseMatrix<'_>,
        row: usize,
        cols: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        for (r, to) in to.chunks_mut(stride).take(R).enumerate() {
            w.expand(row + r, cols.clone(), &mut to[..cols.len()]);
        }
    }
}

impl<W: Weights> Expand for W {
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "loops, not closures, which are not compiled for the arm")]
    fn expand<V: Floats, const R: usize>(
        w: &DenseMatrix<'_>,
        row: usize,
        cols: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        let row_bytes = W::bytes(w.cols);
        assert!((row + R) * row_bytes <= w.data.len() && (R - 1) * stride + cols.len() <= to.len());
        let whole = cols.start + cols.len() / (2 * V::LANES) * (2 * V::LANES);
        let mut scales = [RowScales::of(w, row); R];
        for r in 0..R {
            scales[r] = RowScales::of(w, row + r);
        }
        // SAFETY: the rows are there, and so is the room (asserted); the arm was detected.
        unsafe {
            let (from, to) = (w.data.as_ptr().add(row * row_bytes), to.as_mut_ptr());
            let mut j = cols.start;
            while j < whole {
                let run = j / scales[0].cols;
                let end = ((run + 1) * scales[0].cols).min(whole);
                let mut factors = [V::splat(1.0); R];
                for r in 0..R {
                    factors[r] = V::splat(scales[r].factors[run] * W::UNIT);
                }
                while j < end {
                    for r in 0..R {
                        let row = from.add(r * row_bytes);
                        if V::AHEAD > 0 {
                            prefetch(row.wrapping_add(R * row_bytes + W::bytes(j)));
                        }
                        let values = W::load(row, j, factors[r]);
                        let to = to.add(r * stride + j - cols.start);
                        values[0].store(to);
                        values[1].store(to.add(V::LANES));
                    }
                    j += 2 * V::LANES;
                }
            }
            for r in 0..R {
                for t in whole..cols.end {
                    let factor = scales[r].factors[t / scales[r].cols];
                    *to.add(r * stride + t - cols.start) = W::one(from.add(r * row_bytes), t, factor);
                }
            }
        }
    }
}

/// Elements `cols` of `rows`, [`ROWS`] at a time: as many runs of addresses as a processor fetches ahead for.
#[inline(always)]
fn expand<V: Floats, E: Expand>(
    w: &DenseMatrix<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    to: &mut [f32],
    stride: usize,
) {
    let (mut row, mut to) = (rows.start, to);
    while row < rows.end {
        let count = if rows.end - row < ROWS { 1 } else { ROWS };
        match count {
            1 => E::expand::<V, 1>(w, row, cols.clone(), to, stride),
            _ => E::expand::<V, ROWS>(w, row, cols.clone(), to, stride),
        }
        row += count;
        to = &mut to[count * stride..];
    }
}

/// A chunk of all rows of activations, and of a task's weights.
struct Part<'a> {
    /// `[m, stride]`
    x: &'a [f32],
    /// `[n, stride]`
    weights: &'a [f32],
    stride: usize,
    n: usize,
    cols: usize,
    /// Whether it is the first, and the last chunk.
    begins: bool,
    ends: bool,
    sums: &'a mut [f32],
    /// From the column of the first of the task's rows on.
    out: Output,
}

impl Part<'_> {
    #[inline(always)]
    fn multiply<V: Floats>(mut self, m: usize) {
        let mut i = 0;
        while i < m {
            i += match m - i {
                COLS.. if V::LANES == MAX_LANES => self.across::<V, COLS>(i),
                COLS_OF_EIGHT_LANES.. if V::LANES != MAX_LANES => self.across::<V, COLS_OF_EIGHT_LANES>(i),
                4.. => self.across::<V, 4>(i),
                2.. => self.across::<V, 2>(i),
                _ => self.across::<V, 1>(i),
            };
        }
    }

    /// `C` rows of activations from `i` on with all of the weights; returns `C`.
    #[inline(always)]
    fn across<V: Floats, const C: usize>(&mut self, i: usize) -> usize {
        let tiles = self.n / ROWS * ROWS;
        for row in (0..tiles).step_by(ROWS) {
            self.tile::<V, ROWS, C>(row, i);
        }
        for row in tiles..self.n {
            self.tile::<V, 1, C>(row, i);
        }
        C
    }

    /// `C` rows of activations from `i` on with `R` rows of weights from `row` on.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "loops, not closures, which are not compiled for the arm")]
    fn tile<V: Floats, const R: usize, const C: usize>(&mut self, row: usize, i: usize) {
        let whole = self.cols / (2 * V::LANES) * (2 * V::LANES);
        debug_assert!((i + C) * self.stride <= self.x.len() && (row + R) * self.stride <= self.weights.len());
        // SAFETY: the rows are there, and as many sums wait as there are outputs, unless there is one chunk; the arm was detected.
        unsafe {
            let w = self.weights.as_ptr().add(row * self.stride);
            let x = self.x.as_ptr().add(i * self.stride);
            let waiting = self.sums.as_mut_ptr().wrapping_add((i * self.n + row) * V::LANES);
            let mut sums = [[V::splat(0.0); R]; C];
            if !self.begins {
                for c in 0..C {
                    for r in 0..R {
                        sums[c][r] = V::load(waiting.add((c * self.n + r) * V::LANES));
                    }
                }
            }
            for j in (0..whole).step_by(V::LANES) {
                let mut xv = [V::splat(0.0); C];
                for c in 0..C {
                    xv[c] = V::load(x.add(c * self.stride + j));
                }
                for r in 0..R {
                    let wv = V::load(w.add(r * self.stride + j));
                    for c in 0..C {
                        sums[c][r] = wv.fma(xv[c], sums[c][r]);
                    }
                }
            }
            if self.ends {
                return self.finish(sums, whole, row, i);
            }
            for c in 0..C {
                for r in 0..R {
                    sums[c][r].store(waiting.add((c * self.n + r) * V::LANES));
                }
            }
        }
    }

    /// Adds the lanes, and the columns from `whole` on, and writes the outputs.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "as above")]
    fn finish<V: Floats, const R: usize, const C: usize>(
        &self,
        sums: [[V; R]; C],
        whole: usize,
        row: usize,
        i: usize,
    ) {
        // SAFETY: the rows are there, and the columns of the output are this task's; the arm was detected.
        unsafe {
            let mut eights = [[V::splat(0.0); 8]; (ROWS * COLS).div_ceil(8)];
            for c in 0..C {
                for r in 0..R {
                    eights[(c * R + r) / 8][(c * R + r) % 8] = sums[c][r];
                }
            }
            for (first, eight) in (0..R * C).step_by(8).zip(eights) {
                for (at, mut sum) in (first..R * C).zip(V::sums(eight)) {
                    let (c, r) = (at / R, at % R);
                    let w = self.weights.as_ptr().add((row + r) * self.stride);
                    let x = self.x.as_ptr().add((i + c) * self.stride);
                    for t in whole..self.cols {
                        sum += *w.add(t) * *x.add(t);
                    }
                    self.out.set(i + c, row + r, sum);
                }
            }
        }
    }
}
