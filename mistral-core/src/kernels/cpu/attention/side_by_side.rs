//! What attention computes of a block of keys for many queries, which lie side by side: each vector has one number of each of sixteen queries. What `tiles.rs` keeps in the
//! lanes of one vector is in sixteen vectors here, and is added in the order of [`Floats::sum`]: so both have the same bits. Of vectors of eight lanes it is no faster.

use std::hint::black_box;
use std::ops::Range;

use super::tiles::{BLOCK, LANES};
use crate::kernels::cpu::simd::Floats;

/// Lanes of [`Floats::sum`] that are computed together.
const TOGETHER: usize = LANES / 4;

/// `scores[v][j] = queries[v] · keys[j]` for the keys of a block in `range`, and up to three on each side of it; `queries: [vectors, stride, LANES]`, `keys: [BLOCK, stride]`,
/// `scores: [vectors, BLOCK, LANES]`.
#[inline(always)]
pub fn score_side_by_side<V: Floats>(
    (queries, keys): (&[f32], &[f32]),
    stride: usize,
    range: Range<usize>,
    scores: &mut [f32],
) {
    let vectors = scores.len() / (BLOCK * LANES);
    assert_eq!(V::LANES, LANES);
    assert!(range.end <= BLOCK && stride.is_multiple_of(LANES) && keys.len() == BLOCK * stride);
    assert!(queries.len() == vectors * stride * LANES && scores.len() == vectors * BLOCK * LANES);
    for v in (0..vectors).step_by(2) {
        // SAFETY: so many keys, queries and scores are there (asserted); the arm was detected.
        unsafe {
            let queries = queries.as_ptr().add(v * stride * LANES);
            let (keys, scores) = (keys.as_ptr(), scores.as_mut_ptr().add(v * BLOCK * LANES));
            // As many sums as leave registers for the rest.
            match vectors - v {
                1 => score_tiles::<V, 1, 4>(queries, keys, stride, range.clone(), scores),
                _ => score_tiles::<V, 2, 2>(queries, keys, stride, range.clone(), scores),
            }
        }
    }
}

/// The scores of [`score_side_by_side`] of some vectors, `KEYS` at a time.
///
/// # Safety
/// What it asserts; the arm of `V` was detected.
#[inline(always)]
unsafe fn score_tiles<V: Floats, const VECTORS: usize, const KEYS: usize>(
    queries: *const f32,
    keys: *const f32,
    stride: usize,
    range: Range<usize>,
    scores: *mut f32,
) {
    for j in (range.start / KEYS * KEYS..range.end).step_by(KEYS) {
        // SAFETY: the caller's promise; a block has whole tiles.
        unsafe {
            let keys = keys.add(j * stride);
            // Out of the compiler's sight: it would add them up in the end, and keep four times as many until then.
            let lanes = |first| black_box(lane_sums::<V, VECTORS, KEYS>(queries, keys, stride, first));
            let dots = add(add(lanes(0), lanes(2)), add(lanes(1), lanes(3)));
            for (v, dots) in dots.into_iter().enumerate() {
                for (k, dot) in dots.into_iter().enumerate() {
                    dot.store(scores.add((v * BLOCK + j + k) * LANES));
                }
            }
        }
    }
}

/// # Safety
/// The arm of `V` was detected.
#[inline(always)]
unsafe fn add<V: Floats, const VECTORS: usize, const KEYS: usize>(
    a: [[V; KEYS]; VECTORS],
    b: [[V; KEYS]; VECTORS],
) -> [[V; KEYS]; VECTORS] {
    let mut sums = a;
    for v in 0..VECTORS {
        for k in 0..KEYS {
            // SAFETY: the caller's promise.
            sums[v][k] = unsafe { a[v][k].add(b[v][k]) };
        }
    }
    sums
}

/// What four lanes of dot products add up to, from lane `first` on, which are as far from each other as four can be.
///
/// # Safety
/// As [`score_tiles`], for the keys at `keys`.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "the indices are those of pointers too")]
unsafe fn lane_sums<V: Floats, const VECTORS: usize, const KEYS: usize>(
    queries: *const f32,
    keys: *const f32,
    stride: usize,
    first: usize,
) -> [[V; KEYS]; VECTORS] {
    // SAFETY: all offsets stay inside the rows, the caller's promise.
    unsafe {
        let mut sums = [[[V::splat(0.0); KEYS]; VECTORS]; TOGETHER];
        let mut at = first;
        while at < stride {
            for lane in 0..TOGETHER {
                let d = at + lane * (LANES / TOGETHER);
                let mut query = [V::splat(0.0); VECTORS];
                for v in 0..VECTORS {
                    query[v] = V::load(queries.add((v * stride + d) * LANES));
                }
                for k in 0..KEYS {
                    let key = V::splat(*keys.add(k * stride + d));
                    for v in 0..VECTORS {
                        sums[lane][v][k] = key.fma(query[v], sums[lane][v][k]);
                    }
                }
            }
            at += LANES;
        }
        add(add(sums[0], sums[2]), add(sums[1], sums[3]))
    }
}

/// Turns the scores of a vector of rows with the keys in `range` into weights relative to the largest so far, zero where the key is not `visible`; brings `largest`, `total` and `sums: [rows, stride]` up to date. `scores: [BLOCK, LANES]`.
#[inline(always)]
pub fn weigh_side_by_side<V: Floats>(
    scores: &mut [f32],
    range: Range<usize>,
    visible: &[Range<usize>; LANES],
    largest: &mut [f32],
    total: &mut [f32],
    sums: &mut [f32],
) {
    let rows = largest.len();
    assert_eq!(V::LANES, LANES);
    assert!(rows > 0 && rows <= LANES && total.len() == rows && sums.len().is_multiple_of(rows));
    assert!(range.end <= BLOCK && scores.len() == BLOCK * LANES);
    for (r, visible) in visible[..rows].iter().enumerate() {
        let unseen =
            (range.start..visible.start.min(range.end)).chain(visible.end.max(range.start)..range.end);
        unseen.for_each(|j| scores[j * LANES + r] = f32::NEG_INFINITY);
    }
    // SAFETY: a vector of each key of a block is there (asserted), and as many numbers as the longest vector has; the arm was detected.
    unsafe {
        let p = scores.as_mut_ptr();
        let mut top = V::splat(f32::NEG_INFINITY);
        for j in range.clone() {
            top = top.max(V::load(p.add(j * LANES)));
        }
        let (mut tops, mut offsets) = ([0.0; LANES], [0.0; LANES]);
        top.store(tops.as_mut_ptr());
        for (r, sums) in sums.chunks_exact_mut(sums.len() / rows).enumerate() {
            let before = largest[r];
            largest[r] = tops[r].max(before);
            if largest[r] != before {
                let scale = if before == f32::NEG_INFINITY { 0.0 } else { (before - largest[r]).exp() };
                total[r] *= scale;
                sums.iter_mut().for_each(|sum| *sum *= scale);
            }
            // Of a row that has seen nothing yet, nothing has a weight.
            offsets[r] = if largest[r] == f32::NEG_INFINITY { 0.0 } else { largest[r] };
        }
        let offset = V::load(offsets.as_ptr());
        // What the lanes of a vector of keys would have.
        let mut added = [V::splat(0.0); LANES];
        for (lane, added) in added.iter_mut().enumerate() {
            let first = range.start + (LANES + lane - range.start % LANES) % LANES;
            for j in (first..range.end).step_by(LANES) {
                let weight = V::load(p.add(j * LANES)).sub(offset).exp();
                weight.store(p.add(j * LANES));
                *added = added.add(weight);
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                added[lane] = added[lane].add(added[lane + half]);
            }
            half /= 2;
        }
        added[0].store(tops.as_mut_ptr());
        total.iter_mut().zip(tops).for_each(|(total, added)| *total += added);
    }
}
