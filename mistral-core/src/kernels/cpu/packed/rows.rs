//! Matrices of `Q8_0` as they stand in a file. To read them so costs no more than to read them interleaved, and nothing has to be read and
//! written before the first token; the results are the same bits.

use super::activations::ActivationBlock;
use super::formats::Scales;
use super::kernel::{BLOCKS, Tile, ask_ahead};
use super::layout::{BLOCK, GROUP_ROWS};
use super::simd::Simd;
use crate::quant::Format;

/// Whether matrices of a format are multiplied as they stand in a file.
pub const fn multiplies_rows(format: Format) -> bool {
    matches!(format, Format::Q8_0)
}

/// A block of a row: a scale (f16), and 32 codes with signs.
pub(super) type RowBlock = [u8; 34];
/// Bytes of a row's part of a chunk.
pub(super) const ROW_CHUNK: usize = BLOCKS * size_of::<RowBlock>();

/// Rows of weights that are read side by side.
pub(super) const SIDE_BY_SIDE: usize = 8;

/// Few rows of activations. Eight rows of weights at a time, an eighth of the tile from each other: a processor fetches ahead for each by itself, and goes on
/// from one row to the next (PERFORMANCE.md).
#[inline(always)]
pub(super) fn integer<S: Simd, const R: usize>(simd: S, tile: &Tile<'_>, activations: &[ActivationBlock<R>]) {
    let rows = tile.rows();
    let apart = rows.len() / SIDE_BY_SIDE;
    for first in rows.start..rows.start + apart {
        eight_rows(simd, tile, activations, (first, apart), rows.end);
    }
    let rest = rows.start + SIDE_BY_SIDE * apart;
    if rest < rows.end {
        eight_rows(simd, tile, activations, (rest, 1), rows.end);
    }
}

/// Eight rows from `first` on, `apart` from each other; in the place of those that would be `end` or beyond, the last one.
#[inline(always)]
fn eight_rows<S: Simd, const R: usize>(
    simd: S,
    tile: &Tile<'_>,
    activations: &[ActivationBlock<R>],
    (first, apart): (usize, usize),
    end: usize,
) {
    let mut rows = [first; SIDE_BY_SIDE];
    let mut weights = [&tile.row(first)[..activations.len()]; SIDE_BY_SIDE];
    for lane in 1..SIDE_BY_SIDE {
        rows[lane] = (first + lane * apart).min(end - 1);
        weights[lane] = &tile.row(rows[lane])[..activations.len()];
    }
    let mut sums = [[0.0; SIDE_BY_SIDE]; R];
    for (b, activations) in activations.iter().enumerate() {
        // A line has nearly two blocks.
        if b % 2 == 0 {
            for row in &weights {
                ask_ahead::<S>(&row[b]);
            }
        }
        let mut blocks = [&weights[0][b]; SIDE_BY_SIDE];
        for lane in 1..SIDE_BY_SIDE {
            blocks[lane] = &weights[lane][b];
        }
        simd.add_rows(blocks, activations, &mut sums);
    }
    for (m, sums) in tile.m.clone().zip(sums) {
        for (row, sum) in rows.iter().zip(sums) {
            tile.write_one(m, *row, sum);
        }
    }
}

/// A chunk of the rows of a group; where the matrix has no more rows, the last one again.
pub(super) type RowsChunk<'a> = [&'a [RowBlock]; GROUP_ROWS];

/// Chunk `chunk` of the rows of `group`.
#[inline(always)]
pub(super) fn chunk<'a>(tile: &'a Tile<'_>, group: usize, chunk: usize) -> RowsChunk<'a> {
    let (first, last) = (group * GROUP_ROWS, tile.out.rows() - 1);
    let blocks = chunk * BLOCKS..(tile.cols / BLOCK).min((chunk + 1) * BLOCKS);
    let mut rows = [&tile.row(first)[blocks.clone()]; GROUP_ROWS];
    for (lane, row) in rows.iter_mut().enumerate() {
        *row = &tile.row((first + lane).min(last))[blocks.clone()];
    }
    rows
}

/// The scales of a chunk.
#[inline(always)]
pub(super) fn scales<S: Simd>(simd: S, rows: &RowsChunk<'_>, out: &mut [Scales; BLOCKS]) {
    let blocks = rows[0].len().min(BLOCKS);
    let mut halves = [[0; 2 * GROUP_ROWS]; BLOCKS];
    for (lane, row) in rows.iter().enumerate() {
        for (halves, block) in halves.iter_mut().zip(&row[..blocks]) {
            halves[2 * lane..2 * lane + 2].copy_from_slice(&block[..2]);
        }
    }
    for (halves, out) in halves[..blocks].iter().zip(out) {
        simd.store_floats(simd.load_f16(halves), &mut out.scales[0]);
    }
}

/// The codes of a block of a chunk, as [`super::formats::BlockFormat::codes`] has them.
#[inline(always)]
pub(super) fn codes<S: Simd>(simd: S, rows: &RowsChunk<'_>, block: usize) -> [S::Bytes; 8] {
    let mut blocks = [&rows[0][block]; GROUP_ROWS];
    for lane in 1..GROUP_ROWS {
        blocks[lane] = &rows[lane][block];
    }
    simd.interleave(blocks)
}
