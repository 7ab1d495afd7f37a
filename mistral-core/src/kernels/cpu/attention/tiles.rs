//! What attention computes of a block of keys and values, a tile at a time.

use std::ops::Range;

use crate::kernels::cpu::dense::Load;
use crate::kernels::cpu::simd::{Floats, LINE, MAX_LANES, prefetch};

/// Keys scored at a time.
pub const BLOCK: usize = 64;
/// Rows are filled up with zeros to multiples of this before they are multiplied: to whole vectors of each arm.
pub const LANES: usize = MAX_LANES;

/// `scores[r][j] = queries[r] · keys[j]` for the keys of a block in `range`, which begins and ends with whole vectors. Meanwhile what lies at `ahead` as the keys do
/// in their block comes into the cache of the processor, which does not guess it.
#[inline(always)]
pub fn score<V: Floats, L: Load>(
    (queries, keys): (&[f32], &[u8]),
    stride: usize,
    range: Range<usize>,
    scores: &mut [f32],
    ahead: *const u8,
) {
    let n = queries.len() / stride;
    assert!(keys.len() >= range.end * L::bytes(stride) && range.end <= BLOCK && stride.is_multiple_of(LANES));
    assert!(n.is_multiple_of(QUERIES) && scores.len() == n * BLOCK);
    for j in range.step_by(KEYS) {
        for line in (0..KEYS * L::bytes(stride)).step_by(LINE) {
            prefetch(ahead.wrapping_add(j * L::bytes(stride) + line));
        }
        for r in (0..n).step_by(QUERIES) {
            // SAFETY: so many keys, queries and rows of scores are there (asserted); the arm was detected.
            unsafe {
                let keys = keys.as_ptr().add(j * L::bytes(stride));
                let dots = tile_dots::<V, L>(keys, queries.as_ptr().add(r * stride), stride);
                for (q, dots) in dots.as_chunks::<KEYS>().0.iter().enumerate() {
                    scores.as_mut_ptr().add((r + q) * BLOCK + j).cast::<[f32; KEYS]>().write_unaligned(*dots);
                }
            }
        }
    }
}

/// Keys and queries of a tile of eight dot products: a vector each, so that the sums of a tile and what is loaded fit into the registers.
const KEYS: usize = 2;
pub const QUERIES: usize = 4;

/// The dot products of a tile: those of the first query first.
///
/// # Safety
/// So many rows of `stride` elements lie at `keys` and `queries`; the arm of `V` was detected.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "the indices are those of pointers too")]
unsafe fn tile_dots<V: Floats, L: Load>(
    keys: *const u8,
    queries: *const f32,
    stride: usize,
) -> [f32; KEYS * QUERIES] {
    // SAFETY: all offsets stay inside the rows, the caller's promise.
    unsafe {
        let mut sums = [V::splat(0.0); KEYS * QUERIES];
        let mut d = 0;
        while d < stride {
            let mut key = [V::splat(0.0); KEYS];
            for k in 0..KEYS {
                key[k] = L::load::<V>(keys.add(k * L::bytes(stride)), d);
            }
            for q in 0..QUERIES {
                let query = V::load(queries.add(q * stride + d));
                for k in 0..KEYS {
                    sums[q * KEYS + k] = key[k].fma(query, sums[q * KEYS + k]);
                }
            }
            d += V::LANES;
        }
        V::sums(sums)
    }
}

/// Turns a row of scores into weights relative to the largest so far, zero where the key is not visible; brings `largest`, `total` and `sum` up
/// to date.
#[inline(always)]
pub fn weigh<V: Floats>(
    scores: &mut [f32; BLOCK],
    visible: Range<usize>,
    largest: &mut f32,
    total: &mut f32,
    sum: &mut [f32],
) {
    if visible.is_empty() {
        return scores.fill(0.0);
    }
    scores[..visible.start].fill(f32::NEG_INFINITY);
    scores[visible.end..].fill(f32::NEG_INFINITY);
    let before = *largest;
    // SAFETY: `BLOCK` is a multiple of all lanes, and the arm was detected.
    unsafe {
        let p = scores.as_mut_ptr();
        let mut m = V::load(p);
        for j in (V::LANES..BLOCK).step_by(V::LANES) {
            m = m.max(V::load(p.add(j)));
        }
        *largest = m.largest().max(before);
        let (offset, mut added) = (V::splat(*largest), V::splat(0.0));
        for j in (0..BLOCK).step_by(V::LANES) {
            let weight = V::load(p.add(j)).sub(offset).exp();
            weight.store(p.add(j));
            added = added.add(weight);
        }
        let scale = if before == f32::NEG_INFINITY { 0.0 } else { (before - *largest).exp() };
        *total = *total * scale + added.sum();
        if *largest != before {
            sum.iter_mut().for_each(|s| *s *= scale);
        }
    }
}

/// `sums[r] += Σ_j weight[r][j] · values[j]` for the `j` in `range`, in order; the weight is at `r * steps[0] + j * steps[1]`. Meanwhile the block that begins at `ahead`
/// comes into the cache of the processor.
#[inline(always)]
pub fn add_values<V: Floats, L: Load>(
    (weights, steps, values): (&[f32], [usize; 2], &[u8]),
    range: Range<usize>,
    sums: &mut [f32],
    stride: usize,
    ahead: *const u8,
) {
    let n = sums.len() / stride;
    assert!(values.len() >= range.end * L::bytes(stride) && range.end <= BLOCK && sums.len() == n * stride);
    assert!(n == 0 || range.is_empty() || (n - 1) * steps[0] + (range.end - 1) * steps[1] < weights.len());
    // So much of each of its rows for two vectors of these.
    let step = L::bytes(stride) * 2 * V::LANES / stride;
    for d in (0..stride).step_by(2 * V::LANES) {
        let ahead = (ahead.wrapping_add(BLOCK * step * d / (2 * V::LANES)), step);
        let mut r = 0;
        while r < n {
            // SAFETY: the rows and columns lie in the slices (asserted); the arm was detected.
            r += unsafe {
                let weights = (weights.as_ptr().add(r * steps[0]), steps);
                let (values, sums) = (values.as_ptr(), sums.as_mut_ptr().add(r * stride + d));
                match (n - r, stride - d >= 2 * V::LANES) {
                    (4.., true) => {
                        add_tile::<V, L, 4, 2>(weights, values, range.clone(), sums, (stride, d), ahead)
                    }
                    (3, true) => {
                        add_tile::<V, L, 3, 2>(weights, values, range.clone(), sums, (stride, d), ahead)
                    }
                    (2, true) => {
                        add_tile::<V, L, 2, 2>(weights, values, range.clone(), sums, (stride, d), ahead)
                    }
                    (_, true) => {
                        add_tile::<V, L, 1, 2>(weights, values, range.clone(), sums, (stride, d), ahead)
                    }
                    (4.., false) => {
                        add_tile::<V, L, 4, 1>(weights, values, range.clone(), sums, (stride, d), ahead)
                    }
                    _ => add_tile::<V, L, 1, 1>(weights, values, range.clone(), sums, (stride, d), ahead),
                }
            };
        }
    }
}

/// `W` vectors of `R` rows, from column `d` on; returns `R`. With each value, `step` more bytes of `ahead` are asked for.
///
/// # Safety
/// The rows lie at the pointers, `range` in a block; the arm of `V` was detected.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "the indices are those of pointers too")]
unsafe fn add_tile<V: Floats, L: Load, const R: usize, const W: usize>(
    (weights, steps): (*const f32, [usize; 2]),
    values: *const u8,
    range: Range<usize>,
    sums: *mut f32,
    (stride, d): (usize, usize),
    (ahead, step): (*const u8, usize),
) -> usize {
    // SAFETY: all offsets stay inside the rows, the caller's promise.
    unsafe {
        let mut acc = [[V::splat(0.0); W]; R];
        for r in 0..R {
            for w in 0..W {
                acc[r][w] = V::load(sums.add(r * stride + w * V::LANES));
            }
        }
        for j in range {
            prefetch(ahead.wrapping_add(j * step));
            let mut value = [V::splat(0.0); W];
            for w in 0..W {
                value[w] = L::load::<V>(values.add(j * L::bytes(stride)), d + w * V::LANES);
            }
            for r in 0..R {
                let weight = V::splat(*weights.add(r * steps[0] + j * steps[1]));
                for w in 0..W {
                    acc[r][w] = weight.fma(value[w], acc[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                acc[r][w].store(sums.add(r * stride + w * V::LANES));
            }
        }
    }
    R
}
