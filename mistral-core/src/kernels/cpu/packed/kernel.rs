//! The kernels, each written once for all instruction sets and formats.
//!
//! Every output is computed by one sequence of operations, whatever the number of activation rows or threads: block by block, in
//! the order of the columns, `sum = (scale × dot [+ offset × Σ codes]) × activation scale + sum`.

use std::ops::Range;

use super::activations::ActivationChunk;
use super::formats::{BlockFormat, Scales};
use super::layout::{BLOCK, CHUNK, GROUP_ROWS, chunk_bytes, code_bytes, group_bytes, header_bytes};
use super::simd::Simd;
use crate::quant::Format;

/// Blocks of a chunk.
const BLOCKS: usize = CHUNK / BLOCK;
/// Chunks that the prefill kernel unpacks at a time: they and the activations that meet them stay in the first-level cache.
const PANELS: usize = 3;
/// Up to this many activation rows, weights are unpacked into registers, and not kept.
const STREAMED_ROWS: usize = 4;

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
        // SAFETY: in bounds by the assertion; the caller promises the rest.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), count) };
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

/// Integer arithmetic: `activations` are the chunks of all rows, row by row.
#[inline(always)]
pub(super) fn integer<S: Simd, F: BlockFormat>(simd: S, tile: &Tile<'_>, activations: &[ActivationChunk]) {
    let per_row = tile.cols.div_ceil(CHUNK);
    let row = |m: usize| &activations[m * per_row..][..per_row];
    if tile.m.len() > STREAMED_ROWS {
        return integer_panels::<S, F>(simd, tile, activations);
    }
    for group in tile.groups.clone() {
        let packed = tile.group(group);
        let first = tile.m.start;
        macro_rules! stream {
            ($($i:literal),+) => {{
                let sums = stream_group::<S, F, { [$($i),+].len() }>(simd, packed, tile.cols, [$(row(first + $i)),+]);
                for (i, sum) in sums.into_iter().enumerate() {
                    tile.write(simd, first + i, group, sum);
                }
            }};
        }
        match tile.m.len() {
            1 => stream!(0),
            2 => stream!(0, 1),
            3 => stream!(0, 1, 2),
            _ => stream!(0, 1, 2, 3),
        }
    }
}

/// One group with `M` rows of activations, in one pass over the packed bytes.
#[inline(always)]
fn stream_group<S: Simd, F: BlockFormat, const M: usize>(
    simd: S,
    packed: &[u8],
    cols: usize,
    rows: [&[ActivationChunk]; M],
) -> [S::Floats; M] {
    let mut sums = [simd.splat(0.0); M];
    let mut scales = Scales::ZERO;
    for (c, chunk) in packed.chunks(chunk_bytes(F::FORMAT, CHUNK)).enumerate() {
        let blocks = BLOCKS.min(cols / BLOCK - c * BLOCKS);
        let (header, codes) = chunk.split_at(header_bytes(F::FORMAT, blocks));
        F::scales(simd, header, blocks, &mut scales);
        let activations = rows.map(|row| &row[c]);
        for (b, block) in codes.chunks_exact(code_bytes(F::FORMAT)).enumerate().take(BLOCKS) {
            let codes = F::codes(simd, block);
            add_block::<S, F, M>(simd, &codes, &scales, b, activations, &mut sums);
        }
    }
    sums
}

/// Adds the products of a block of weights with `M` rows of activations.
#[inline(always)]
fn add_block<S: Simd, F: BlockFormat, const M: usize>(
    simd: S,
    codes: &[S::Bytes; 8],
    scales: &Scales,
    b: usize,
    activations: [&ActivationChunk; M],
    sums: &mut [S::Floats; M],
) {
    let scale = simd.load_floats(&scales.scales[0][b]);
    if F::HALVES {
        let second = simd.load_floats(&scales.scales[1][b]);
        let half = |h: usize| {
            let sums = activations.map(|row| row.negated_half_sums[h][b]);
            let rows = activations.map(|row| &row.codes[b][4 * h..4 * h + 4]);
            simd.dot(F::CODES, &codes[4 * h..4 * h + 4], rows, sums)
        };
        let (low, high) = (half(0), half(1));
        for m in 0..M {
            let dot = simd.mul(scale, simd.to_floats(low[m]));
            let dot = simd.fma(second, simd.to_floats(high[m]), dot);
            sums[m] = simd.fma(dot, simd.splat(activations[m].scales[b]), sums[m]);
        }
        return;
    }
    let rows = activations.map(|row| &row.codes[b][..]);
    let dots = simd.dot(F::CODES, codes, rows, activations.map(|row| row.negated_sums[b]));
    for m in 0..M {
        let mut dot = simd.mul(scale, simd.to_floats(dots[m]));
        if F::CODES.zero_shift.is_none() {
            let offset = simd.load_floats(&scales.offsets[b]);
            dot = simd.fma(offset, simd.splat(activations[m].sums[b]), dot);
        }
        sums[m] = simd.fma(dot, simd.splat(activations[m].scales[b]), sums[m]);
    }
}

/// A chunk of weights, unpacked to bytes.
struct Panel {
    codes: [[[u8; 64]; 8]; BLOCKS],
    scales: Scales,
    blocks: usize,
}

/// Many rows of activations: unpacks a few chunks of a group, takes all rows past them, goes on to the next chunks.
#[inline(always)]
fn integer_panels<S: Simd, F: BlockFormat>(simd: S, tile: &Tile<'_>, activations: &[ActivationChunk]) {
    let mut panels: Vec<Panel> = (0..PANELS)
        .map(|_| Panel { codes: [[[0; 64]; 8]; BLOCKS], scales: Scales::ZERO, blocks: 0 })
        .collect();
    let mut sums = vec![[0.0; GROUP_ROWS]; tile.m.len()];
    let per_row = tile.cols.div_ceil(CHUNK);
    let activations = &activations[tile.m.start * per_row..tile.m.end * per_row];
    for group in tile.groups.clone() {
        sums.fill([0.0; GROUP_ROWS]);
        for (p, packed) in tile.group(group).chunks(PANELS * chunk_bytes(F::FORMAT, CHUNK)).enumerate() {
            let chunks = packed.chunks(chunk_bytes(F::FORMAT, CHUNK));
            let mut used = 0;
            for (c, (panel, chunk)) in panels.iter_mut().zip(chunks).enumerate() {
                panel.unpack::<S, F>(simd, chunk, tile.cols - (p * PANELS + c) * CHUNK);
                used = c + 1;
            }
            panels_by_rows::<S, F>(simd, &panels[..used], &activations[p * PANELS..], per_row, &mut sums);
        }
        for (m, sums) in sums.iter().enumerate() {
            tile.write(simd, tile.m.start + m, group, simd.load_floats(sums));
        }
    }
}

impl Panel {
    /// Unpacks a chunk; `cols` is what is left of the row.
    #[inline(always)]
    fn unpack<S: Simd, F: BlockFormat>(&mut self, simd: S, chunk: &[u8], cols: usize) {
        self.blocks = BLOCKS.min(cols / BLOCK);
        let (header, codes) = chunk.split_at(header_bytes(F::FORMAT, self.blocks));
        F::scales(simd, header, self.blocks, &mut self.scales);
        for (to, block) in self.codes.iter_mut().zip(codes.chunks_exact(code_bytes(F::FORMAT))) {
            for (to, codes) in to.iter_mut().zip(F::codes(simd, block)) {
                simd.store(codes, to);
            }
        }
    }
}

/// Takes all rows of activations past `panels`, in tiles as tall as the arm's registers allow. Row m starts at
/// `activations[m * per_row]`.
#[inline(always)]
fn panels_by_rows<S: Simd, F: BlockFormat>(
    simd: S,
    panels: &[Panel],
    activations: &[ActivationChunk],
    per_row: usize,
    sums: &mut [[f32; GROUP_ROWS]],
) {
    let mut m = 0;
    macro_rules! tiles {
        ($rows:literal) => {
            while S::TILE >= $rows && sums.len() - m >= $rows {
                let rows = std::array::from_fn(|i| &activations[(m + i) * per_row..][..panels.len()]);
                panels_by_tile::<S, F, $rows>(simd, panels, rows, &mut sums[m..]);
                m += $rows;
            }
        };
    }
    tiles!(8);
    tiles!(4);
    tiles!(2);
    tiles!(1);
}

/// `M` rows of activations past `panels`.
#[inline(always)]
fn panels_by_tile<S: Simd, F: BlockFormat, const M: usize>(
    simd: S,
    panels: &[Panel],
    rows: [&[ActivationChunk]; M],
    sums: &mut [[f32; GROUP_ROWS]],
) {
    let mut totals = [simd.splat(0.0); M];
    for (total, sums) in totals.iter_mut().zip(sums.iter()) {
        *total = simd.load_floats(sums);
    }
    for (c, panel) in panels.iter().enumerate() {
        let activations = rows.map(|row| &row[c]);
        for (b, codes) in panel.codes.iter().enumerate().take(panel.blocks) {
            let codes = codes.each_ref().map(|codes| simd.load(codes));
            add_block::<S, F, M>(simd, &codes, &panel.scales, b, activations, &mut totals);
        }
    }
    for (total, sums) in totals.iter().zip(sums) {
        simd.store_floats(*total, sums);
    }
}
