//! A few rows of activations: the weights are read once for each four, or each one, of them, several rows of weights side by side.

use std::ops::Range;

use super::load::{RowScales, Weights};
use super::{DenseMatrix, Output};
use crate::kernels::cpu::simd::{Floats, prefetch};

/// Rows of weights that a single row of activations meets at once, to hide the latency of the sums and of memory.
pub const STREAMS: usize = 8;
/// Rows of weights and of activations of a tile: as many sums.
const TILE_ROWS: usize = 2;
const TILE_COLS: usize = 4;
const _: () = assert!(TILE_ROWS * TILE_COLS == STREAMS);

/// What `rows` of the weights make of `x: [m, cols]`.
#[inline(always)]
pub fn multiply<V: Floats, W: Weights>(
    x: &[f32],
    m: usize,
    w: &DenseMatrix<'_>,
    rows: Range<usize>,
    out: Output,
) {
    let mut i = 0;
    while i < m {
        i += match m - i {
            TILE_COLS.. => tiles::<V, W, TILE_ROWS, TILE_COLS>(x, w, rows.clone(), i, out),
            _ => tiles::<V, W, STREAMS, 1>(x, w, rows.clone(), i, out),
        };
    }
}

/// `C` activation rows from `i` on times the weight rows `rows`, `R` at a time; returns `C`. Those `R` lie far from each other: see `STREAMS` in
/// `packed/kernel.rs`.
#[inline(always)]
fn tiles<V: Floats, W: Weights, const R: usize, const C: usize>(
    x: &[f32],
    w: &DenseMatrix<'_>,
    rows: Range<usize>,
    i: usize,
    out: Output,
) -> usize {
    let apart = rows.len() / R;
    for first in rows.start..rows.start + apart {
        let mut rows = [first; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row += r * apart;
        }
        tile::<V, W, R, C>(x, w, rows, i, out);
    }
    for row in rows.start + R * apart..rows.end {
        tile::<V, W, 1, C>(x, w, [row], i, out);
    }
    C
}

/// `C` activation rows from `i` on times `R` weight rows; at most [`STREAMS`] products.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "loops, not closures, which are not compiled for the arm")]
fn tile<V: Floats, W: Weights, const R: usize, const C: usize>(
    x: &[f32],
    w: &DenseMatrix<'_>,
    rows: [usize; R],
    i: usize,
    out: Output,
) {
    let k = w.cols;
    let whole = k / (2 * V::LANES) * (2 * V::LANES);
    let mut scales = [RowScales { factors: &[1.0], cols: k.max(1) }; R];
    if W::SCALED {
        for r in 0..R {
            scales[r] = RowScales::of(w, rows[r]);
        }
    }
    debug_assert!((i + C) * k <= x.len() && rows.iter().all(|row| (row + 1) * W::bytes(k) <= w.data.len()));
    // SAFETY: the rows lie inside their slices (checked by `linear`), offsets stay below `k`, and the arm was detected by the dispatcher.
    unsafe {
        let w: [*const u8; R] = std::array::from_fn(|r| w.data.as_ptr().add(rows[r] * W::bytes(k)));
        let x: [*const f32; C] = std::array::from_fn(|c| x.as_ptr().add((i + c) * k));
        let mut sums = [V::splat(0.0); STREAMS];
        let (mut j, mut run) = (0, 0);
        while j < whole {
            let end = ((run + 1) * scales[0].cols).min(whole);
            let mut factors = [V::splat(1.0); R];
            for r in 0..R {
                factors[r] = V::splat(scales[r].factors[run] * W::UNIT);
            }
            while j < end {
                let mut xv = [[V::splat(0.0); 2]; C];
                for c in 0..C {
                    xv[c] = [V::load(x[c].add(j)), V::load(x[c].add(j + V::LANES))];
                }
                for r in 0..R {
                    if V::AHEAD > 0 {
                        prefetch(w[r].wrapping_add(W::bytes(j) + V::AHEAD));
                    }
                    let wv = W::load(w[r], j, factors[r]);
                    for c in 0..C {
                        let sum = wv[0].fma(xv[c][0], sums[r * C + c]);
                        sums[r * C + c] = wv[1].fma(xv[c][1], sum);
                    }
                }
                j += 2 * V::LANES;
            }
            run += 1;
        }
        let mut sums = V::sums(sums);
        for r in 0..R {
            for c in 0..C {
                for t in whole..k {
                    let factor = scales[r].factors[t / scales[r].cols];
                    sums[r * C + c] += W::one(w[r], t, factor) * *x[c].add(t);
                }
                out.set(i + c, rows[r], sums[r * C + c]);
            }
        }
    }
}
