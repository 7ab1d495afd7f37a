//! The kernels, each written once for all instruction sets and formats.
//!
//! Every output is computed by one sequence of operations, whatever the number of activation rows or threads: block by block, in
//! the order of the columns, `sum = (scale × dot [+ offset × Σ codes]) × activation scale + sum`.

use std::ops::Range;

use super::activations::ActivationBlock;
use super::formats::{BlockFormat, Scales};
use super::layout::{BLOCK, CHUNK, GROUP_ROWS, chunk_bytes, code_bytes, group_bytes, header_bytes};
use super::simd::Simd;
use crate::quant::Format;

/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / BLOCK;
/// Chunks that the prefill kernel unpacks at a time: they and the activations that meet them stay in the first-level cache.
const PANEL_CHUNKS: usize = 3;
/// Rows of activations in a tile of the prefill kernel. Fewer rows are streamed: the weights are unpacked into registers, and
/// not kept.
pub(super) const TILE_ROWS: usize = 4;

/// Where results go: `[m, rows]`, row-major, written by several tasks at disjoint places.
#[derive(Clone, Copy)]
pub(super) struct Output {
    start: *mut f32,
    len: usize,
    rows: usize,
}

// SAFETY: an address and two numbers; the one method that writes asks its callers for disjoint places.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    pub fn new(out: &mut [f32], rows: usize) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), rows }
    }

    /// Writes the results of the 16 rows of `group` for activation row `m`; rows beyond the matrix are dropped.
    ///
    /// # Safety
    /// The slice that `self` was made of is still borrowed for it, and no other thread writes or reads this group and `m`.
    #[inline(always)]
    unsafe fn write(self, m: usize, group: usize, values: &[f32; GROUP_ROWS]) {
        let first = group * GROUP_ROWS;
        let count = GROUP_ROWS.min(self.rows.saturating_sub(first));
        let at = m * self.rows + first;
        assert!(at + count <= self.len, "a task beyond its output");
        // A number of elements that the compiler knows is two moves and not a call.
        // SAFETY: in bounds by the assertion; the caller promises the rest.
        unsafe {
            match count {
                GROUP_ROWS => std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), GROUP_ROWS),
                _ => std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), count),
            }
        };
    }
}

/// A rectangle of the output: what one task computes.
pub(super) struct Tile<'a> {
    pub format: Format,
    pub cols: usize,
    /// The packed matrix.
    pub data: &'a [u8],
    /// Groups of 16 rows of the matrix.
    pub groups: Range<usize>,
    /// Rows of activations.
    pub m: Range<usize>,
    pub out: Output,
}

impl Tile<'_> {
    pub fn group(&self, group: usize) -> &[u8] {
        let size = group_bytes(self.format, self.cols);
        &self.data[group * size..][..size]
    }

    #[inline(always)]
    pub fn write<S: Simd>(&self, simd: S, m: usize, group: usize, value: S::Floats) {
        let mut values = [0.0; GROUP_ROWS];
        simd.store_floats(value, &mut values);
        // SAFETY: tasks are given disjoint tiles, and the call that made them borrows the output until all are done.
        unsafe { self.out.write(m, group, &values) };
    }
}

/// Integer arithmetic, for `R` rows of activations if `R` is less than four, else for any number, in tiles of four: tile t has the
/// blocks `activations[t * cols / 32..]`, and rows beyond the last are zero.
#[inline(always)]
pub(super) fn integer<S: Simd, F: BlockFormat, const R: usize>(
    simd: S,
    tile: &Tile<'_>,
    activations: &[ActivationBlock<R>],
) {
    let blocks = tile.cols / BLOCK;
    let activations = &activations[tile.m.start / R * blocks..tile.m.end.div_ceil(R) * blocks];
    if R == TILE_ROWS && tile.m.len() > R {
        return by_panels::<S, F, R>(simd, tile, activations);
    }
    let mut scales = [Scales::ZERO; BLOCKS];
    for group in tile.groups.clone() {
        let sums = stream_group::<S, F, R>(simd, tile.group(group), activations, &mut scales);
        for (m, sum) in tile.m.clone().zip(sums) {
            tile.write(simd, m, group, sum);
        }
    }
}

/// One group with `R` rows of activations, in one pass over the packed bytes. `scales` are room to work in: clearing it for each group shows in the
/// time (PERFORMANCE.md).
#[inline(always)]
fn stream_group<S: Simd, F: BlockFormat, const R: usize>(
    simd: S,
    packed: &[u8],
    activations: &[ActivationBlock<R>],
    scales: &mut [Scales; BLOCKS],
) -> [S::Floats; R] {
    let mut sums = [[simd.splat(0.0); R]];
    let chunks = packed.chunks(chunk_bytes(F::FORMAT, CHUNK));
    for (chunk, activations) in chunks.zip(activations.chunks(BLOCKS)) {
        let (header, codes) = chunk.split_at(header_bytes(F::FORMAT, activations.len()));
        F::scales(simd, header, scales);
        let blocks = codes.chunks_exact(code_bytes(F::FORMAT)).zip(&*scales).zip(activations);
        for ((block, scales), activations) in blocks {
            add_block::<S, F, R, 1>(simd, &F::codes(simd, block), scales, [activations], &mut sums);
        }
    }
    let [sums] = sums;
    sums
}

/// Adds the products of a block of weights with `T` tiles of `R` rows of activations.
#[inline(always)]
fn add_block<S: Simd, F: BlockFormat, const R: usize, const T: usize>(
    simd: S,
    codes: &[S::Bytes; 8],
    scales: &Scales,
    activations: [&ActivationBlock<R>; T],
    sums: &mut [[S::Floats; R]; T],
) {
    let scale = simd.load_floats(&scales.scales[0]);
    for (activations, sums) in activations.into_iter().zip(sums) {
        let mut dots = [simd.splat(0.0); R];
        if F::HALVES {
            let second = simd.load_floats(&scales.scales[1]);
            // Loops, not closures, here and everywhere in the kernels: a closure is not compiled for the instructions of the arm.
            let mut rows = [[&activations.codes[0].as_chunks::<4>().0[0]; R]; 2];
            for (half, rows) in rows.iter_mut().enumerate() {
                for (row, codes) in rows.iter_mut().zip(&activations.codes) {
                    *row = &codes.as_chunks::<4>().0[half];
                }
            }
            let low = simd.dot(F::CODES.bits, &codes.as_chunks::<4>().0[0], rows[0], activations.starts[0]);
            let high = simd.dot(F::CODES.bits, &codes.as_chunks::<4>().0[1], rows[1], activations.starts[1]);
            for r in 0..R {
                let dot = simd.mul(scale, simd.to_floats(low[r]));
                dots[r] = simd.fma(second, simd.to_floats(high[r]), dot);
            }
        } else {
            let mut rows = [&activations.codes[0]; R];
            for (row, codes) in rows.iter_mut().zip(&activations.codes) {
                *row = codes;
            }
            let ints = simd.dot(F::CODES.bits, codes, rows, activations.starts[0]);
            for r in 0..R {
                dots[r] = simd.mul(scale, simd.to_floats(ints[r]));
            }
        }
        for r in 0..R {
            if F::CODES.zero.is_none() {
                let offset = simd.load_floats(&scales.offsets);
                dots[r] = simd.fma(offset, simd.splat(activations.sums[r]), dots[r]);
            }
            sums[r] = simd.fma(dots[r], simd.splat(activations.scales[r]), sums[r]);
        }
    }
}

/// A block of weights, unpacked to bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct PanelBlock {
    codes: [[u8; 64]; 8],
    scales: Scales,
}

/// Many rows of activations: unpacks a few chunks of a group, takes all rows past them, goes on to the next chunks.
#[inline(always)]
fn by_panels<S: Simd, F: BlockFormat, const R: usize>(
    simd: S,
    tile: &Tile<'_>,
    activations: &[ActivationBlock<R>],
) {
    let per_tile = tile.cols / BLOCK;
    let mut panel = vec![PanelBlock { codes: [[0; 64]; 8], scales: Scales::ZERO }; PANEL_CHUNKS * BLOCKS];
    let mut sums = vec![[[0.0; GROUP_ROWS]; R]; tile.m.len().div_ceil(R)];
    for group in tile.groups.clone() {
        sums.fill([[0.0; GROUP_ROWS]; R]);
        let mut first = 0;
        for packed in tile.group(group).chunks(PANEL_CHUNKS * chunk_bytes(F::FORMAT, CHUNK)) {
            let panel = &mut panel[..(PANEL_CHUNKS * BLOCKS).min(per_tile - first)];
            unpack_panel::<S, F>(simd, packed, panel);
            let activations = &activations[first..];
            let mut t = 0;
            if S::TILES == 2 {
                while t + 2 <= sums.len() {
                    let tiles = [
                        &activations[t * per_tile..][..panel.len()],
                        &activations[(t + 1) * per_tile..][..panel.len()],
                    ];
                    panel_by_tiles::<S, F, R, 2>(simd, panel, tiles, &mut sums[t..]);
                    t += 2;
                }
            }
            while t < sums.len() {
                let tiles = [&activations[t * per_tile..][..panel.len()]];
                panel_by_tiles::<S, F, R, 1>(simd, panel, tiles, &mut sums[t..]);
                t += 1;
            }
            first += panel.len();
        }
        for (m, sums) in tile.m.clone().zip(sums.as_flattened()) {
            tile.write(simd, m, group, simd.load_floats(sums));
        }
    }
}

#[inline(always)]
fn unpack_panel<S: Simd, F: BlockFormat>(simd: S, packed: &[u8], panel: &mut [PanelBlock]) {
    let mut scales = [Scales::ZERO; BLOCKS];
    let chunks = packed.chunks(chunk_bytes(F::FORMAT, CHUNK));
    for (chunk, panel) in chunks.zip(panel.chunks_mut(BLOCKS)) {
        let (header, codes) = chunk.split_at(header_bytes(F::FORMAT, panel.len()));
        F::scales(simd, header, &mut scales);
        let blocks = codes.chunks_exact(code_bytes(F::FORMAT)).zip(&scales);
        for (to, (block, scales)) in panel.iter_mut().zip(blocks) {
            to.scales = *scales;
            let codes = F::codes(simd, block);
            for (to, codes) in to.codes.iter_mut().zip(&codes) {
                simd.store(*codes, to);
            }
        }
    }
}

/// Takes `T` tiles of activations past the panel.
#[inline(always)]
fn panel_by_tiles<S: Simd, F: BlockFormat, const R: usize, const T: usize>(
    simd: S,
    panel: &[PanelBlock],
    tiles: [&[ActivationBlock<R>]; T],
    sums: &mut [[[f32; GROUP_ROWS]; R]],
) {
    let mut totals = [[simd.splat(0.0); R]; T];
    for (totals, sums) in totals.iter_mut().zip(sums.iter()) {
        for (total, sum) in totals.iter_mut().zip(sums) {
            *total = simd.load_floats(sum);
        }
    }
    for (b, block) in panel.iter().enumerate() {
        let mut codes = [simd.load(&block.codes[0]); 8];
        for (codes, from) in codes.iter_mut().zip(&block.codes) {
            *codes = simd.load(from);
        }
        let mut activations = [&tiles[0][b]; T];
        for (activations, tile) in activations.iter_mut().zip(&tiles) {
            *activations = &tile[b];
        }
        add_block::<S, F, R, T>(simd, &codes, &block.scales, activations, &mut totals);
    }
    for (totals, sums) in totals.iter().zip(sums) {
        for (total, sum) in totals.iter().zip(sums) {
            simd.store_floats(*total, sum);
        }
    }
}
