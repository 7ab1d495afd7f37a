//! Arithmetic in f32: weights are expanded exactly, activations stay as they are. For comparison with reference
//! implementations.
//!
//! Every output is two running sums, over the even and over the odd columns, in order, and then their sum.

use super::formats::{BlockFormat, Scales};
use super::kernel::{BLOCKS, Chunk, Tile};
use super::layout::{BLOCK, CHUNK, GROUP_ROWS};
use super::simd::Simd;

/// Expands a chunk of weights.
#[inline(always)]
fn expand<S: Simd, F: BlockFormat>(simd: S, chunk: &Chunk<'_>, out: &mut [[f32; GROUP_ROWS]]) {
    let mut scales = [Scales::ZERO; BLOCKS];
    chunk.scales::<S, F>(simd, &mut scales);
    let zero = F::CODES.zero.map_or(0.0, |zero| -f32::from(zero));
    for (b, (scales, out)) in scales.iter().zip(out.as_chunks_mut::<BLOCK>().0).enumerate() {
        let codes = chunk.codes::<S, F>(simd, b);
        for (g, (codes, out)) in codes.into_iter().zip(out.as_chunks_mut::<4>().0).enumerate() {
            let half = if F::HALVES { g / 4 } else { 0 };
            let scale = simd.load_floats(&scales.scales[half]);
            let offset = match F::CODES.zero {
                Some(_) => simd.mul(scale, simd.splat(zero)),
                None => simd.load_floats(&scales.offsets),
            };
            for (byte, out) in (0..).zip(out) {
                simd.store_floats(simd.fma(simd.column(codes, byte), scale, offset), out);
            }
        }
    }
}

/// `x` is `[m, cols]`, row-major, of all rows of activations.
#[inline(always)]
pub(super) fn exact<S: Simd, F: BlockFormat>(simd: S, tile: &Tile<'_>, x: &[f32]) {
    let mut expanded = [[0.0; GROUP_ROWS]; CHUNK];
    let mut sums = vec![[[0.0; GROUP_ROWS]; 2]; tile.m.len()];
    let x = &x[tile.m.start * tile.cols..tile.m.end * tile.cols];
    for group in tile.groups.clone() {
        sums.fill([[0.0; GROUP_ROWS]; 2]);
        for c in 0..tile.chunks() {
            let cols = CHUNK.min(tile.cols - c * CHUNK);
            expand::<S, F>(simd, &tile.chunk::<F>(group, c), &mut expanded[..cols]);
            by_rows(simd, &expanded[..cols], (&x[c * CHUNK..], tile.cols), &mut sums);
        }
        for (m, [even, odd]) in sums.iter().enumerate() {
            let sum = simd.add(simd.load_floats(even), simd.load_floats(odd));
            tile.write(simd, tile.m.start + m, group, sum);
        }
    }
}

/// Takes all rows of activations past a chunk of weights. `x` is the first row's part and the distance of the rows.
#[inline(always)]
fn by_rows<S: Simd>(
    simd: S,
    weights: &[[f32; GROUP_ROWS]],
    (x, per_row): (&[f32], usize),
    sums: &mut [[[f32; GROUP_ROWS]; 2]],
) {
    let mut m = 0;
    macro_rules! tiles {
        ($rows:literal) => {
            while S::EXACT_ROWS >= $rows && sums.len() - m >= $rows {
                let rows = std::array::from_fn(|i| &x[(m + i) * per_row..][..weights.len()]);
                by_tile::<S, $rows>(simd, weights, rows, &mut sums[m..]);
                m += $rows;
            }
        };
    }
    tiles!(8);
    tiles!(3);
    tiles!(2);
    tiles!(1);
}

/// `M` rows of activations past a chunk of weights.
#[inline(always)]
fn by_tile<S: Simd, const M: usize>(
    simd: S,
    weights: &[[f32; GROUP_ROWS]],
    rows: [&[f32]; M],
    sums: &mut [[[f32; GROUP_ROWS]; 2]],
) {
    let mut totals = [[simd.splat(0.0); 2]; M];
    for (total, sums) in totals.iter_mut().zip(sums.iter()) {
        *total = [simd.load_floats(&sums[0]), simd.load_floats(&sums[1])];
    }
    let (pairs, last) = weights.as_chunks::<2>();
    for (k, pair) in pairs.iter().enumerate() {
        for odd in 0..2 {
            let weights = simd.load_floats(&pair[odd]);
            for m in 0..M {
                totals[m][odd] = simd.fma(weights, simd.splat(rows[m][2 * k + odd]), totals[m][odd]);
            }
        }
    }
    if let [weights] = last {
        let weights = simd.load_floats(weights);
        for m in 0..M {
            let x = simd.splat(rows[m][2 * pairs.len()]);
            totals[m][0] = simd.fma(weights, x, totals[m][0]);
        }
    }
    for (total, sums) in totals.iter().zip(sums) {
        simd.store_floats(total[0], &mut sums[0]);
        simd.store_floats(total[1], &mut sums[1]);
    }
}
