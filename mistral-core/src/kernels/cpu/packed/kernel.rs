//! The kernels, each written once for all instruction sets and formats.
//!
//! Every output is computed by one sequence of operations, whatever the number of activation rows or threads: block by block, in
//! the order of the columns, `sum = (scale × dot [+ offset × Σ codes]) × activation scale + sum`.

use std::ops::Range;

use super::activations::ActivationBlock;
use super::formats::{BlockFormat, Scales};
use super::layout::{BLOCK, CHUNK, GROUP_ROWS, chunk_bytes, code_bytes, group_bytes, header_bytes};
use super::rows::{self, ROW_CHUNK, RowBlock, RowsChunk};
use super::simd::Simd;
use crate::kernels::Layout;
use crate::kernels::cpu::simd::{LINE, prefetch};
use crate::quant::Format;

/// Blocks of a chunk.
pub(super) const BLOCKS: usize = CHUNK / BLOCK;
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

    /// Outputs for each row of activations.
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Where the results of the 16 rows of `group` go for activation row `m`, and how many of those rows the matrix has.
    #[inline(always)]
    fn place(self, m: usize, group: usize) -> (*mut f32, usize) {
        let first = group * GROUP_ROWS;
        let count = GROUP_ROWS.min(self.rows.saturating_sub(first));
        let at = m * self.rows + first;
        assert!(at + count <= self.len, "a task beyond its output");
        // SAFETY: in bounds by the assertion.
        (unsafe { self.start.add(at) }, count)
    }
}

/// A rectangle of the output: what one task computes.
pub(super) struct Tile<'a> {
    pub format: Format,
    pub layout: Layout,
    pub cols: usize,
    /// The matrix.
    pub data: &'a [u8],
    /// Groups of 16 rows of the matrix.
    pub groups: Range<usize>,
    /// Rows of activations.
    pub m: Range<usize>,
    pub out: Output,
}

/// The blocks of a chunk: packed, or as they stand in the file.
#[allow(clippy::large_enum_variant, reason = "each is made once a chunk and lies on the stack of its loop")]
pub(super) enum Chunk<'a> {
    Packed { header: &'a [u8], codes: &'a [u8] },
    Rows(RowsChunk<'a>),
}

impl Chunk<'_> {
    /// The scales of its blocks.
    #[inline(always)]
    pub fn scales<S: Simd, F: BlockFormat>(&self, simd: S, out: &mut [Scales; BLOCKS]) {
        match self {
            Self::Packed { header, .. } => F::scales(simd, header, out),
            Self::Rows(rows) => rows::scales(simd, rows, out),
        }
    }

    /// The codes of block `block`.
    #[inline(always)]
    pub fn codes<S: Simd, F: BlockFormat>(&self, simd: S, block: usize) -> [S::Bytes; 8] {
        let size = code_bytes(F::FORMAT);
        match self {
            Self::Packed { codes, .. } => F::codes(simd, &codes[block * size..][..size]),
            Self::Rows(rows) => rows::codes(simd, rows, block),
        }
    }
}

/// What will be read next: runs of bytes, as long, from here on.
pub(super) struct Ahead<'a> {
    bytes: &'a [u8],
    runs: usize,
    apart: usize,
}

impl Ahead<'_> {
    /// Lines of a run: what a row has in a chunk of `Q8_0`.
    const LINES: usize = ROW_CHUNK.div_ceil(LINE);

    /// Asks for part `part` of `parts`.
    #[inline(always)]
    pub fn prefetch(&self, part: usize, parts: usize) {
        let per_part = self.runs.div_ceil(parts);
        for run in part * per_part..self.runs.min((part + 1) * per_part) {
            for line in 0..Self::LINES {
                prefetch(self.bytes.as_ptr().wrapping_add(run * self.apart + line * LINE));
            }
        }
    }
}

/// Asks for what the arm wants to have asked for when it reads `bytes` of a run.
#[inline(always)]
pub(super) fn ask_ahead<S: Simd>(bytes: &[u8]) {
    if S::AHEAD > 0 {
        for at in (0..bytes.len()).step_by(LINE) {
            prefetch(bytes.as_ptr().wrapping_add(S::AHEAD + at));
        }
    }
}

impl Tile<'_> {
    /// A group of a packed matrix.
    fn group(&self, group: usize) -> &[u8] {
        let size = group_bytes(self.format, self.cols);
        &self.data[group * size..][..size]
    }

    /// Known to be false for formats that are always packed, whose kernels are compiled without the other branch.
    #[inline(always)]
    fn stands_as_in_file<F: BlockFormat>(&self) -> bool {
        rows::multiplies_rows(F::FORMAT) && self.layout == Layout::Rows
    }

    /// The rows of the matrix that the tile has.
    pub fn rows(&self) -> Range<usize> {
        self.groups.start * GROUP_ROWS..self.out.rows.min(self.groups.end * GROUP_ROWS)
    }

    /// A row of a matrix that stands as in its file.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[RowBlock] {
        let blocks = self.cols / BLOCK;
        &self.data.as_chunks().0[row * blocks..][..blocks]
    }

    /// How many chunks a group has.
    pub fn chunks(&self) -> usize {
        self.cols.div_ceil(CHUNK)
    }

    /// A chunk of a group.
    #[inline(always)]
    pub fn chunk<F: BlockFormat>(&self, group: usize, chunk: usize) -> Chunk<'_> {
        if self.stands_as_in_file::<F>() {
            return Chunk::Rows(rows::chunk(self, group, chunk));
        }
        let at = chunk * chunk_bytes(F::FORMAT, CHUNK);
        let cols = CHUNK.min(self.cols - chunk * CHUNK);
        let chunk = &self.group(group)[at..][..chunk_bytes(F::FORMAT, cols)];
        let (header, codes) = chunk.split_at(header_bytes(F::FORMAT, cols / BLOCK));
        Chunk::Packed { header, codes }
    }

    /// The chunk after a chunk: the parts of sixteen rows, or one part.
    #[inline(always)]
    pub fn ahead<F: BlockFormat>(&self, group: usize, chunk: usize) -> Ahead<'_> {
        let (group, chunk) = if chunk + 1 < self.chunks() { (group, chunk + 1) } else { (group + 1, 0) };
        let (at, runs, apart) = if self.stands_as_in_file::<F>() {
            let row = self.cols / BLOCK * size_of::<RowBlock>();
            (group * GROUP_ROWS * row + chunk * ROW_CHUNK, GROUP_ROWS, row)
        } else {
            let (size, run) = (chunk_bytes(F::FORMAT, CHUNK), Ahead::LINES * LINE);
            (group * group_bytes(F::FORMAT, self.cols) + chunk * size, size.div_ceil(run), run)
        };
        Ahead { bytes: self.data.get(at..).unwrap_or_default(), runs, apart }
    }

    /// Writes one result.
    #[inline(always)]
    pub fn write_one(&self, m: usize, row: usize, value: f32) {
        let at = m * self.out.rows + row;
        assert!(row < self.out.rows && at < self.out.len, "a task beyond its output");
        // SAFETY: in bounds by the assertion. Tasks are given disjoint tiles, and the call that made them borrows the output until all are done.
        unsafe { *self.out.start.add(at) = value };
    }

    #[inline(always)]
    pub fn write<S: Simd>(&self, simd: S, m: usize, group: usize, value: S::Floats) {
        let (to, count) = self.out.place(m, group);
        if count == GROUP_ROWS {
            // SAFETY: `place` found room for as many. Tasks are given disjoint tiles, and the call that made them borrows the output until all are done.
            return simd.store_floats(value, unsafe { &mut *to.cast() });
        }
        let mut values = [0.0; GROUP_ROWS];
        simd.store_floats(value, &mut values);
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to, count) };
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
    if tile.stands_as_in_file::<F>() {
        return rows::integer(simd, tile, activations);
    }
    let mut scales = [[Scales::ZERO; BLOCKS]; STREAMS];
    let (first, apart) = (tile.groups.start, tile.groups.len() / STREAMS);
    for i in 0..=apart {
        // At the end what is left over.
        let (start, step, count) = match i < apart {
            true => (first + i, apart, STREAMS),
            false => (first + STREAMS * apart, 1, tile.groups.len() - STREAMS * apart),
        };
        let mut groups = [start; STREAMS];
        for (n, group) in groups.iter_mut().enumerate() {
            *group += n * step;
        }
        stream_groups::<S, F, R>(simd, tile, &groups[..count], activations, &mut scales);
    }
}

/// Groups that are read side by side, far from each other: a processor fetches ahead for each stream by itself, and of one alone
/// it has not as much under way as memory can give (PERFORMANCE.md).
pub(super) const STREAMS: usize = 4;

/// Some groups with `R` rows of activations, in one pass over the packed bytes. `scales` are room to work in: clearing it for each group shows in the
/// time (PERFORMANCE.md).
#[inline(always)]
fn stream_groups<S: Simd, F: BlockFormat, const R: usize>(
    simd: S,
    tile: &Tile<'_>,
    groups: &[usize],
    activations: &[ActivationBlock<R>],
    scales: &mut [[Scales; BLOCKS]; STREAMS],
) {
    let (chunk, block) = (chunk_bytes(F::FORMAT, CHUNK), code_bytes(F::FORMAT));
    let mut sums = [[simd.splat(0.0); R]; STREAMS];
    let mut dots = [[simd.splat(0.0); R]; 2];
    let mut codes = [tile.data; STREAMS];
    for (c, activations) in activations.chunks(BLOCKS).enumerate() {
        let header = header_bytes(F::FORMAT, activations.len());
        for ((group, codes), scales) in groups.iter().zip(&mut codes).zip(&mut *scales) {
            let (head, rest) = tile.group(*group)[c * chunk..].split_at(header);
            ask_ahead::<S>(head);
            F::scales(simd, head, scales);
            *codes = rest;
        }
        for (b, activations) in activations.iter().enumerate() {
            // Not for each of four by itself: that would be four times the code.
            let streams = codes[..groups.len()].iter().zip(&*scales).zip(&mut sums);
            for ((codes, scales), sums) in streams {
                let codes = &codes[b * block..][..block];
                ask_ahead::<S>(codes);
                let codes = F::codes(simd, codes);
                block_dots::<S, F, R>(simd, &codes, activations, &mut dots);
                add_dots::<S, F, R>(simd, &dots, &scales[b], activations, sums);
            }
        }
    }
    for (group, sums) in groups.iter().zip(sums) {
        for (m, sum) in tile.m.clone().zip(sums) {
            tile.write(simd, m, *group, sum);
        }
    }
}

/// Dot products of 16 rows of a block of weights with `R` rows of activations: of all 32 columns, or of the first and the last 16 where those have scales of
/// their own.
type Dots<S, const R: usize> = [[<S as Simd>::Floats; R]; 2];

#[inline(always)]
fn block_dots<S: Simd, F: BlockFormat, const R: usize>(
    simd: S,
    codes: &[S::Bytes; 8],
    activations: &ActivationBlock<R>,
    dots: &mut Dots<S, R>,
) {
    let bits = F::CODES.bits;
    // Loops, not closures, here and everywhere in the kernels: a closure is not compiled for the instructions of the arm.
    if F::HALVES {
        let (low, high) = (&codes.as_chunks::<4>().0[0], &codes.as_chunks::<4>().0[1]);
        let ints = simd.dot(bits, low, half_codes(activations, 0), starts::<F, R>(activations, 0));
        to_floats(simd, ints, &mut dots[0]);
        let ints = simd.dot(bits, high, half_codes(activations, 1), starts::<F, R>(activations, 1));
        to_floats(simd, ints, &mut dots[1]);
    } else {
        let ints = simd.dot(bits, codes, all_codes(activations), starts::<F, R>(activations, 0));
        to_floats(simd, ints, &mut dots[0]);
    }
}

#[inline(always)]
fn to_floats<S: Simd, const R: usize>(simd: S, ints: [S::Ints; R], dots: &mut [S::Floats; R]) {
    for r in 0..R {
        dots[r] = simd.to_floats(ints[r]);
    }
}

#[inline(always)]
fn all_codes<const R: usize>(activations: &ActivationBlock<R>) -> [&[[i8; 4]; 8]; R] {
    let mut rows = [&activations.codes[0]; R];
    for (row, codes) in rows.iter_mut().zip(&activations.codes) {
        *row = codes;
    }
    rows
}

#[inline(always)]
fn half_codes<const R: usize>(activations: &ActivationBlock<R>, half: usize) -> [&[[i8; 4]; 4]; R] {
    let mut rows = [&activations.codes[0].as_chunks::<4>().0[half]; R];
    for (row, codes) in rows.iter_mut().zip(&activations.codes) {
        *row = &codes.as_chunks::<4>().0[half];
    }
    rows
}

/// Known to be zeros where the format has no zero point.
#[inline(always)]
fn starts<F: BlockFormat, const R: usize>(activations: &ActivationBlock<R>, half: usize) -> [i32; R] {
    if F::CODES.zero.is_some() { activations.starts[half] } else { [0; R] }
}

/// Adds the dot products of a block, scaled.
#[inline(always)]
fn add_dots<S: Simd, F: BlockFormat, const R: usize>(
    simd: S,
    dots: &Dots<S, R>,
    scales: &Scales,
    activations: &ActivationBlock<R>,
    sums: &mut [S::Floats; R],
) {
    let scale = simd.load_floats(&scales.scales[0]);
    for r in 0..R {
        let mut dot = simd.mul(scale, dots[0][r]);
        if F::HALVES {
            dot = simd.fma(simd.load_floats(&scales.scales[1]), dots[1][r], dot);
        }
        if F::CODES.zero.is_none() {
            let offset = simd.load_floats(&scales.offsets);
            dot = simd.fma(offset, simd.splat(activations.sums[r]), dot);
        }
        sums[r] = simd.fma(dot, simd.splat(activations.scales[r]), sums[r]);
    }
}

/// A block of weights, unpacked.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct PanelBlock<S: Simd> {
    scales: Scales,
    /// The first eight, or what [`Simd::keep`] makes of codes of eight bits.
    codes: [S::Bytes; 16],
}

impl<S: Simd> PanelBlock<S> {
    #[inline(always)]
    fn set<F: BlockFormat>(&mut self, simd: S, scales: &Scales, codes: &[S::Bytes; 8]) {
        self.scales = *scales;
        match F::CODES.bits {
            8 => simd.keep(codes, &mut self.codes),
            _ => self.codes[..8].copy_from_slice(codes),
        }
    }

    #[inline(always)]
    fn dots<F: BlockFormat, const R: usize>(
        &self,
        simd: S,
        activations: &ActivationBlock<R>,
        dots: &mut Dots<S, R>,
    ) {
        if F::CODES.bits == 8 {
            let ints = simd.dot_kept(&self.codes, all_codes(activations), starts::<F, R>(activations, 0));
            to_floats(simd, ints, &mut dots[0]);
        } else {
            block_dots::<S, F, R>(simd, &self.codes.as_chunks().0[0], activations, dots);
        }
    }
}

/// Many rows of activations: unpacks a chunk of a group, takes all rows past it, goes on to the next chunk.
#[inline(always)]
fn by_panels<S: Simd, F: BlockFormat, const R: usize>(
    simd: S,
    tile: &Tile<'_>,
    activations: &[ActivationBlock<R>],
) {
    let per_tile = tile.cols / BLOCK;
    let mut panel = [PanelBlock { scales: Scales::ZERO, codes: [simd.load(&[0; 64]); 16] }; BLOCKS];
    let mut dots = [[[simd.splat(0.0); R]; 2]; 2 * BLOCKS];
    let mut sums = vec![[[0.0; GROUP_ROWS]; R]; tile.m.len().div_ceil(R)];
    for group in tile.groups.clone() {
        sums.fill([[0.0; GROUP_ROWS]; R]);
        for chunk in 0..tile.chunks() {
            let first = chunk * BLOCKS;
            let panel = &mut panel[..BLOCKS.min(per_tile - first)];
            unpack_panel::<S, F>(simd, &tile.chunk::<F>(group, chunk), panel);
            let activations = &activations[first..];
            let (mut t, ahead) = (0, tile.ahead::<F>(group, chunk));
            if S::TILES == 2 {
                while t + 2 <= sums.len() {
                    let tiles = [
                        &activations[t * per_tile..][..panel.len()],
                        &activations[(t + 1) * per_tile..][..panel.len()],
                    ];
                    panel_by_tiles::<S, F, R, 2>(simd, panel, tiles, &mut dots, &mut sums[t..]);
                    t += 2;
                }
            }
            while t < sums.len() {
                ahead.prefetch(t, sums.len());
                let tiles = [&activations[t * per_tile..][..panel.len()]];
                panel_by_tiles::<S, F, R, 1>(simd, panel, tiles, &mut dots, &mut sums[t..]);
                t += 1;
            }
        }
        for (m, sums) in tile.m.clone().zip(sums.as_flattened()) {
            tile.write(simd, m, group, simd.load_floats(sums));
        }
    }
}

#[inline(always)]
fn unpack_panel<S: Simd, F: BlockFormat>(simd: S, chunk: &Chunk<'_>, panel: &mut [PanelBlock<S>]) {
    let mut scales = [Scales::ZERO; BLOCKS];
    chunk.scales::<S, F>(simd, &mut scales);
    for (b, (to, scales)) in panel.iter_mut().zip(&scales).enumerate() {
        to.set::<F>(simd, scales, &chunk.codes::<S, F>(simd, b));
    }
}

/// Takes `T` tiles of activations past the panel: all products, which go through memory, and then all sums. One block after the other would wait for
/// each block's last product to pass through the sums, for which there are no registers beside those of the products.
#[inline(always)]
fn panel_by_tiles<S: Simd, F: BlockFormat, const R: usize, const T: usize>(
    simd: S,
    panel: &[PanelBlock<S>],
    tiles: [&[ActivationBlock<R>]; T],
    dots: &mut [Dots<S, R>; 2 * BLOCKS],
    sums: &mut [[[f32; GROUP_ROWS]; R]],
) {
    let (dots, _) = dots.as_chunks_mut::<T>();
    for (b, (block, dots)) in panel.iter().zip(dots.iter_mut()).enumerate() {
        for (tile, dots) in tiles.iter().zip(dots) {
            block.dots::<F, R>(simd, &tile[b], dots);
        }
    }
    for (t, (tile, sums)) in tiles.iter().zip(sums).enumerate() {
        let mut totals = [simd.splat(0.0); R];
        for (total, sum) in totals.iter_mut().zip(&*sums) {
            *total = simd.load_floats(sum);
        }
        for (b, (block, dots)) in panel.iter().zip(&*dots).enumerate() {
            add_dots::<S, F, R>(simd, &dots[t], &block.scales, &tile[b], &mut totals);
        }
        for (total, sum) in totals.iter().zip(sums) {
            simd.store_floats(*total, sum);
        }
    }
}
