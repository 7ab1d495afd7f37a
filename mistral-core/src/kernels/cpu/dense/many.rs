//! Many rows of activations: a chunk of columns of the weights is expanded to f32, in the second-level cache, and all rows pass it, a few of them in the first-level
//! cache at a time. The running sums of all outputs wait in memory for the next chunk.

use std::cell::RefCell;
use std::ops::Range;

use super::load::{RowScales, Weights};
use super::{DenseMatrix, Output};
use crate::kernels::cpu::simd::{Floats, MAX_LANES, aligned, prefetch, simd_dispatch};

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
    /// A chunk of a task's weights: `[rows, stride]`, filled up to whole tiles.
    weights: Vec<f32>,
    /// The running sums: `[m, rows, lanes]`, or nothing where there is one chunk; room for the most lanes.
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
    let (chunk, stride) = (chunk_of(w.cols), stride_of(w.cols));
    let n = rows.len().next_multiple_of(ROWS);
    let waiting = if w.cols > chunk { m * n * MAX_LANES } else { 0 };
    let (weights, sums) = (aligned(&mut scratch.weights, n * stride), aligned(&mut scratch.sums, waiting));
    // SAFETY: a place inside the output, as there are outputs of these rows.
    let out = Output { data: unsafe { out.data.add(rows.start) }, ..out };
    for (first, x) in (0..w.cols).step_by(chunk).zip(x.chunks_exact(m * stride)) {
        let cols = first..(first + chunk).min(w.cols);
        for (row, to) in rows.clone().step_by(ROWS).zip(weights.chunks_exact_mut(ROWS * stride)) {
            E::expand::<V>(w, row..rows.end.min(row + ROWS), cols.clone(), to, stride);
        }
        let (begins, ends) = (first == 0, cols.end == w.cols);
        pass(Part { x, weights, stride, n, rows: rows.len(), cols: cols.len(), begins, ends, sums, out }, m);
    }
    // Nothing of what a session computes stays in a thread that outlives it.
    sums.fill(0.0);
    let _ = SCRATCH.try_with(|kept| kept.replace(scratch));
}

/// How the weights of a format are expanded.
pub trait Expand {
    /// Writes elements `cols` of `rows`, at most [`ROWS`], to rows of `to` that lie `stride` apart; beyond them anything.
    fn expand<V: Floats>(
        w: &DenseMatrix<'_>,
        rows: Range<usize>,
        cols: Range<usize>,
        to: &mut [f32],
        stride: usize,
    );
}

/// Formats of blocks, and scales of whatever shape: one row after the other.
pub struct Blocks;

impl Expand for Blocks {
    fn expand<V: Floats>(
        w: &DenseMatrix<'_>,
        rows: Range<usize>,
        cols: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        for (row, to) in rows.zip(to.chunks_exact_mut(stride)) {
            w.expand(row, cols.clone(), &mut to[..cols.len()]);
        }
    }
}

/// [`ROWS`] side by side, as a processor fetches ahead for as many runs of addresses; the last one again and again where there are fewer.
impl<W: Weights> Expand for W {
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "loops, not closures, which are not compiled for the arm")]
    fn expand<V: Floats>(
        w: &DenseMatrix<'_>,
        rows: Range<usize>,
        cols: Range<usize>,
        to: &mut [f32],
        stride: usize,
    ) {
        let row_bytes = W::bytes(w.cols);
        assert!(!rows.is_empty() && rows.end * row_bytes <= w.data.len() && ROWS * stride <= to.len());
        assert!(cols.len() <= stride && cols.end <= w.cols);
        let whole = cols.start + cols.len() / (2 * V::LANES) * (2 * V::LANES);
        let mut scales = [RowScales::of(w, rows.start); ROWS];
        let mut from = [w.data.as_ptr(); ROWS];
        for r in 0..ROWS {
            let row = (rows.start + r).min(rows.end - 1);
            scales[r] = RowScales::of(w, row);
            from[r] = from[r].wrapping_add(row * row_bytes);
        }
        // SAFETY: the rows are there, and so is the room (asserted); the arm was detected.
        unsafe {
            let to = to.as_mut_ptr();
            let mut j = cols.start;
            while j < whole {
                let run = j / scales[0].cols;
                let end = ((run + 1) * scales[0].cols).min(whole);
                let mut factors = [V::splat(1.0); ROWS];
                for r in 0..ROWS {
                    factors[r] = V::splat(scales[r].factors[run] * W::UNIT);
                }
                while j < end {
                    for r in 0..ROWS {
                        if V::AHEAD > 0 {
                            prefetch(from[r].wrapping_add(ROWS * row_bytes + W::bytes(j)));
                        }
                        let values = W::load(from[r], j, factors[r]);
                        let to = to.add(r * stride + j - cols.start);
                        values[0].store(to);
                        values[1].store(to.add(V::LANES));
                    }
                    j += 2 * V::LANES;
                }
            }
            for r in 0..ROWS {
                for t in whole..cols.end {
                    let factor = scales[r].factors[t / scales[r].cols];
                    *to.add(r * stride + t - cols.start) = W::one(from[r], t, factor);
                }
            }
        }
    }
}

/// A chunk of all rows of activations, and of a task's weights.
struct Part<'a> {
    /// `[m, stride]`
    x: &'a [f32],
    /// `[n, stride]`, of which the first `rows` are there, and the others fill a tile up.
    weights: &'a [f32],
    stride: usize,
    n: usize,
    rows: usize,
    cols: usize,
    /// Whether it is the first, and the last chunk.
    begins: bool,
    ends: bool,
    sums: &'a mut [f32],
    /// From the column of the first of the task's rows on.
    out: Output,
}

simd_dispatch!(
    /// All `m` rows of activations pass the weights: compiled once for each arm, not for each format.
    fn pass(part: Part<'_>, m: usize) = pass_body
);

#[inline(always)]
fn pass_body<V: Floats>(mut part: Part<'_>, m: usize) {
    let mut i = 0;
    while i < m {
        i += match m - i {
            COLS.. if V::LANES == MAX_LANES => part.across::<V, COLS>(i),
            COLS_OF_EIGHT_LANES.. if V::LANES != MAX_LANES => part.across::<V, COLS_OF_EIGHT_LANES>(i),
            4.. => part.across::<V, 4>(i),
            2.. => part.across::<V, 2>(i),
            _ => part.across::<V, 1>(i),
        };
    }
}

impl Part<'_> {
    /// `C` rows of activations from `i` on with all of the weights; returns `C`.
    #[inline(always)]
    fn across<V: Floats, const C: usize>(&mut self, i: usize) -> usize {
        for row in (0..self.n).step_by(ROWS) {
            self.tile::<V, C>(row, i);
        }
        C
    }

    /// `C` rows of activations from `i` on with [`ROWS`] rows of weights from `row` on.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "loops, not closures, which are not compiled for the arm")]
    fn tile<V: Floats, const C: usize>(&mut self, row: usize, i: usize) {
        let whole = self.cols / (2 * V::LANES) * (2 * V::LANES);
        debug_assert!(
            (i + C) * self.stride <= self.x.len() && (row + ROWS) * self.stride <= self.weights.len()
        );
        // SAFETY: the rows are there, and as many sums wait as there are outputs, unless there is one chunk; the arm was detected.
        unsafe {
            let w = self.weights.as_ptr().add(row * self.stride);
            let x = self.x.as_ptr().add(i * self.stride);
            let waiting = self.sums.as_mut_ptr().wrapping_add((i * self.n + row) * V::LANES);
            let mut sums = [[V::splat(0.0); ROWS]; C];
            if !self.begins {
                for c in 0..C {
                    for r in 0..ROWS {
                        sums[c][r] = V::load(waiting.add((c * self.n + r) * V::LANES));
                    }
                }
            }
            for j in (0..whole).step_by(V::LANES) {
                let mut xv = [V::splat(0.0); C];
                for c in 0..C {
                    xv[c] = V::load(x.add(c * self.stride + j));
                }
                for r in 0..ROWS {
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
                for r in 0..ROWS {
                    sums[c][r].store(waiting.add((c * self.n + r) * V::LANES));
                }
            }
        }
    }

    /// Adds the lanes, and the columns from `whole` on, and writes the outputs that there are.
    #[inline(always)]
    #[allow(clippy::needless_range_loop, reason = "as above")]
    fn finish<V: Floats, const C: usize>(&self, sums: [[V; ROWS]; C], whole: usize, row: usize, i: usize) {
        // SAFETY: the rows are there, and the columns of the output are this task's; the arm was detected.
        unsafe {
            let mut eights = [[V::splat(0.0); 8]; (ROWS * COLS).div_ceil(8)];
            for c in 0..C {
                for r in 0..ROWS {
                    eights[(c * ROWS + r) / 8][(c * ROWS + r) % 8] = sums[c][r];
                }
            }
            for (first, eight) in (0..ROWS * C).step_by(8).zip(eights) {
                for (at, mut sum) in (first..ROWS * C).zip(V::sums(eight)) {
                    let (c, r) = (at / ROWS, at % ROWS);
                    if row + r >= self.rows {
                        continue;
                    }
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
