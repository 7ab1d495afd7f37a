//! Linear layers on quantised weights, for the processor: `out[i, j] = Σ_k x[i, k] · w[j, k]`.
//!
//! Weights are repacked once ([`repack`], layout in `layout.rs`) or stand as in their file (`rows.rs`), and are read once per call, at about the speed of memory;
//! activations are quantised to 8 bits per block of 32, or stay f32 ([`Activation`]). The kernels are written once (`kernel.rs`,
//! `exact.rs`) over a few vector operations (`simd/`) and format parts (`formats.rs`). An output does not depend on the number of threads,
//! on the other rows of the batch, nor on the instruction set: all arms give the same bits.

mod activations;
mod exact;
mod formats;
mod kernel;
mod layout;
#[cfg(target_arch = "x86_64")]
mod matrix;
mod memory;
mod rows;
mod simd;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::pool;
use crate::kernels::Layout;
use crate::quant::Format;
use activations::{ActivationBlock, Quantized, Zero};
use formats::BlockFormat;
use kernel::{Output, STREAMS, TILE_ROWS, Tile};
use layout::BLOCK;
pub use layout::{GROUP_ROWS, has_packed_form, packed_len, repack};
#[cfg(target_arch = "x86_64")]
use matrix::MatrixBlock;
pub use memory::{Arena, LargePages, PackedBytes, populate};
pub use rows::multiplies_rows;
#[cfg(target_arch = "aarch64")]
use simd::neon::{self, Neon};
use simd::scalar::Scalar;
use simd::{Simd, Task};
#[cfg(target_arch = "x86_64")]
use simd::{amx::Amx, avx2::Avx2, avx512::Avx512};

/// What becomes of the activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Activation {
    /// Quantised to 8 bits with one scale for 32 columns: fast. The error is below that of the weights.
    #[default]
    Int8,
    /// Kept in f32: what a reference implementation computes from dequantised weights.
    F32,
}

/// A matrix `[rows, cols]` of blocks.
#[derive(Clone, Copy, Debug)]
pub struct BlockMatrix<'a> {
    /// The format that it has, or was packed from.
    pub format: Format,
    /// Whether it is packed, or stands as in a file, which [`multiplies_rows`] says is possible.
    pub layout: Layout,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// What [`repack`] wrote, [`packed_len`] bytes, fastest if it starts at a multiple of 64; or rows of blocks, at any address.
    pub data: &'a [u8],
}

impl BlockMatrix<'_> {
    /// Expands row `row` to f32, exactly as [`Format::dequantize`] would: a row of an embedding table.
    ///
    /// # Panics
    /// If `row`, `out` or the matrix's own parts do not fit each other, or it is not packed.
    pub fn unpack_row(&self, row: usize, out: &mut [f32]) {
        self.check();
        assert_eq!(self.layout, Layout::Packed);
        assert_eq!(out.len(), self.cols, "a row has as many elements as the matrix has columns");
        layout::unpack_row(self.format, self.rows, self.data, row, out);
    }

    fn check(&self) {
        let expected = match self.layout {
            Layout::Packed => packed_len(self.format, self.rows, self.cols).ok(),
            Layout::Rows if multiplies_rows(self.format) => {
                self.format.row_bytes(self.cols).ok().and_then(|row| row.checked_mul(self.rows))
            }
            Layout::Rows => None,
        };
        assert_eq!(
            expected,
            Some(self.data.len()),
            "bytes of [{}, {}], {:?}",
            self.rows,
            self.cols,
            self.layout
        );
    }
}

/// An instruction set that the kernels are compiled for.
#[derive(Clone, Copy)]
pub(crate) enum Arm {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// Many rows on tiles, few as [`Arm::Avx512`].
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon<{ neon::BASE }>),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(Neon<{ neon::DOTPROD }>),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(Neon<{ neon::I8MM }>),
}

impl Arm {
    /// Every arm that this CPU can run, the best one first.
    pub fn available() -> Vec<Self> {
        let mut arms = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            arms.extend(Amx::detect().map(Self::Amx));
            arms.extend(Avx512::detect().map(Self::Avx512));
            arms.extend(Avx2::detect().map(Self::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            arms.extend(Neon::detect().map(Self::NeonI8mm));
            arms.extend(Neon::detect().map(Self::NeonDotprod));
            arms.extend(Neon::detect().map(Self::Neon));
        }
        arms.push(Self::Scalar(Scalar));
        arms
    }

    /// The best arm, found once.
    pub fn best() -> Self {
        static BEST: OnceLock<Arm> = OnceLock::new();
        *BEST.get_or_init(|| Self::available()[0])
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => "amx-int8",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(_) => "neon-dotprod",
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(_) => "neon-i8mm",
        }
    }

    /// See [`Simd::BATCHES`].
    fn batches(self) -> bool {
        !matches!(self, Self::Scalar(_))
    }

    fn run(self, task: impl Task) {
        match self {
            Self::Scalar(simd) => simd.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(simd) => simd.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(simd) => simd.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Amx(unit) => unit.simd().run(task),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(simd) => simd.run(task),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDotprod(simd) => simd.run(task),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm(simd) => simd.run(task),
        }
    }
}

/// The instruction set in use: `amx-int8`, `avx512-vnni`, `avx2`, `neon-i8mm`, `neon-dotprod`, `neon` or `scalar`.
pub fn arm_name() -> &'static str {
    Arm::best().name()
}

/// `out = x · wᵀ` for `x: [m, cols]` and each matrix with its `out: [m, rows]`, on the threads of the current pool.
///
/// # Panics
/// If a slice does not fit the shapes.
pub fn linear(activation: Activation, x: &[f32], m: usize, products: Vec<(BlockMatrix<'_>, &mut [f32])>) {
    linear_on(Arm::best(), activation, x, m, products);
}

pub(crate) fn linear_on(
    arm: Arm,
    activation: Activation,
    x: &[f32],
    m: usize,
    products: Vec<(BlockMatrix<'_>, &mut [f32])>,
) {
    let products: Vec<_> = products
        .into_iter()
        .filter(|(_, out)| !out.is_empty())
        .map(|(w, out)| {
            w.check();
            assert_eq!(x.len(), m * w.cols, "activations of [{m}, {}]", w.cols);
            assert_eq!(out.len(), m * w.rows, "outputs of [{m}, {}]", w.rows);
            (w, Output::new(out, w.rows))
        })
        .collect();
    match activation {
        Activation::F32 => by_tiles(arm, m, &products, &|_| Operand::Floats(x)),
        #[cfg(target_arch = "x86_64")]
        Activation::Int8 if matches!(arm, Arm::Amx(_)) && m >= MATRIX_ROWS => {
            integer(arm, x, m, &products, |blocks| Operand::Matrix(blocks));
        }
        Activation::Int8 => match if arm.batches() { m } else { 1 } {
            1 => integer(arm, x, m, &products, |blocks| Operand::One(blocks)),
            2 => integer(arm, x, m, &products, |blocks| Operand::Two(blocks)),
            3 => integer(arm, x, m, &products, |blocks| Operand::Three(blocks)),
            _ => integer(arm, x, m, &products, |blocks| Operand::Tiles(blocks)),
        },
    }
}

/// Quantises the activations, once for all matrices whose formats ask the same of them, and multiplies.
fn integer<B: Quantized>(
    arm: Arm,
    x: &[f32],
    m: usize,
    products: &[(BlockMatrix<'_>, Output)],
    operand: for<'a> fn(&'a [B]) -> Operand<'a>,
) {
    let zero_of = |format| if B::STARTS { zero_of(format) } else { Zero::NONE };
    let mut quantized: Vec<(Zero, Vec<B>)> = Vec::new();
    for (w, _) in products {
        let zero = zero_of(w.format);
        if quantized.iter().all(|(other, _)| *other != zero) {
            quantized.push((zero, quantize(arm, x, m, w.cols, zero)));
        }
    }
    by_tiles(arm, m, products, &|format| {
        let zero = zero_of(format);
        let found = quantized.iter().find(|(other, _)| *other == zero);
        operand(found.map_or(&[], |(_, blocks)| blocks))
    });
}

/// Tiles of activations that a task quantises.
const QUANTIZE_TILES: usize = 4;

/// Activations in 8 bits: for each tile of rows of `x`, `cols / 32` blocks.
fn quantize<B: Quantized>(arm: Arm, x: &[f32], m: usize, cols: usize, zero: Zero) -> Vec<B> {
    let per_tile = cols / BLOCK;
    let mut blocks = vec![B::ZERO; m.div_ceil(B::ROWS) * per_tile];
    if per_tile == 0 {
        return blocks;
    }
    if m <= QUANTIZE_TILES * B::ROWS {
        arm.run(Quantize { x, cols, zero, to: &mut blocks });
        return blocks;
    }
    let parts: Vec<_> = blocks.chunks_mut(QUANTIZE_TILES * per_tile).map(Mutex::new).collect();
    pool::run(parts.len(), &|part| {
        let x = &x[part * QUANTIZE_TILES * B::ROWS * cols..];
        // Each task has a part of its own: its lock is free.
        let mut to = parts[part].lock().unwrap_or_else(PoisonError::into_inner);
        arm.run(Quantize { x, cols, zero, to: &mut to });
    });
    drop(parts);
    blocks
}

struct Quantize<'a, B> {
    /// From the first row of the first tile on.
    x: &'a [f32],
    cols: usize,
    zero: Zero,
    to: &'a mut [B],
}

impl<B: Quantized> Task for Quantize<'_, B> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let tiles = self.to.chunks_exact_mut(self.cols / BLOCK);
        for (tile, rows) in tiles.zip(self.x.chunks(B::ROWS * self.cols)) {
            for (r, row) in rows.chunks_exact(self.cols).enumerate() {
                for (to, values) in tile.iter_mut().zip(row.as_chunks().0) {
                    to.set(r, self.zero, &simd.quantize(values));
                }
            }
        }
    }
}

/// The activations of a call.
#[derive(Clone, Copy)]
enum Operand<'a> {
    Floats(&'a [f32]),
    One(&'a [ActivationBlock<1>]),
    Two(&'a [ActivationBlock<2>]),
    Three(&'a [ActivationBlock<3>]),
    Tiles(&'a [ActivationBlock<TILE_ROWS>]),
    #[cfg(target_arch = "x86_64")]
    Matrix(&'a [MatrixBlock]),
}

/// Activation rows of a task: their sums and a panel's share of their codes stay in the second-level cache.
const TASK_M: usize = 256;
/// Whole tiles of every arm.
const M_STEP: usize = 16;
/// More rows of activations than a tile of the other kernels has are worth one of sixteen.
#[cfg(target_arch = "x86_64")]
const MATRIX_ROWS: usize = TILE_ROWS + 1;
/// A task reads about as many packed bytes, or its thread's share divided by [`TASKS_PER_THREAD`] if that is less, …
const TASK_BYTES: usize = 256 * 1024;
/// … but not less than this: handing a task over takes as long as reading some kilobytes.
const TASK_BYTES_MIN: usize = 16 * 1024;
/// As many tasks as even out what one thread is slower than another.
const TASKS_PER_THREAD: usize = 8;

/// The tasks of one matrix of a call.
struct Part<'a> {
    w: BlockMatrix<'a>,
    out: Output,
    operand: Operand<'a>,
    /// Groups of rows of a task.
    groups: usize,
    /// Tasks side by side; those of the next rows of activations follow.
    across: usize,
    /// The numbers of its tasks among those of the call.
    tasks: Range<usize>,
}

impl<'a> Part<'a> {
    /// The bytes of its tasks but the first.
    fn after_first_task(&self) -> &'a [u8] {
        let first = self.groups * (self.w.data.len() / self.w.rows.div_ceil(GROUP_ROWS));
        self.w.data.get(first..).unwrap_or_default()
    }
}

/// Splits the outputs into tiles, and runs them on the pool.
fn by_tiles<'a>(
    arm: Arm,
    m: usize,
    products: &[(BlockMatrix<'a>, Output)],
    operand: &dyn Fn(Format) -> Operand<'a>,
) {
    let total: usize = products.iter().map(|(w, _)| w.data.len()).sum();
    let share = total.div_ceil(pool::threads() * TASKS_PER_THREAD);
    let task_bytes = share.min(TASK_BYTES).max(if m == 1 { TASK_BYTES_MIN } else { 1 });
    // Blocks of equal height: a last one of a few rows would unpack all weights for them.
    let m_block = m.div_ceil(m.div_ceil(TASK_M).max(1)).next_multiple_of(M_STEP).max(1);
    let mut tasks = 0;
    let parts = products.iter().map(|&(w, out)| {
        let all = w.rows.div_ceil(GROUP_ROWS);
        let groups = task_bytes.div_ceil((w.data.len() / all).max(1));
        let groups = if m <= TILE_ROWS { groups.next_multiple_of(STREAMS) } else { groups }.min(all);
        let across = all.div_ceil(groups);
        let first = tasks;
        tasks += across * m.div_ceil(m_block);
        Part { w, out, operand: operand(w.format), groups, across, tasks: first..tasks }
    });
    let parts: Vec<_> = parts.collect();
    let reads = parts.first().filter(|_| m <= TILE_ROWS).map_or(&[][..], Part::after_first_task);
    pool::run_reading(reads, tasks, &|task| {
        let Some(part) = parts.iter().find(|part| part.tasks.contains(&task)) else { return };
        let task = task - part.tasks.start;
        let (first, m_first) = (task % part.across * part.groups, task / part.across * m_block);
        let tile = Tile {
            format: part.w.format,
            layout: part.w.layout,
            cols: part.w.cols,
            data: part.w.data,
            groups: first..part.w.rows.div_ceil(GROUP_ROWS).min(first + part.groups),
            m: m_first..m.min(m_first + m_block),
            out: part.out,
        };
        run_tile(arm, &tile, part.operand);
    });
}

struct FormatTile<'a, F> {
    tile: &'a Tile<'a>,
    operand: Operand<'a>,
    format: PhantomData<F>,
}

impl<F: BlockFormat> Task for FormatTile<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.operand {
            Operand::Floats(x) => exact::exact::<S, F>(simd, self.tile, x),
            Operand::One(blocks) => {
                for m in self.tile.m.clone() {
                    let tile = Tile { m: m..m + 1, groups: self.tile.groups.clone(), ..*self.tile };
                    kernel::integer::<S, F, 1>(simd, &tile, blocks);
                }
            }
            Operand::Two(blocks) if S::BATCHES => kernel::integer::<S, F, 2>(simd, self.tile, blocks),
            Operand::Three(blocks) if S::BATCHES => kernel::integer::<S, F, 3>(simd, self.tile, blocks),
            Operand::Tiles(blocks) if S::BATCHES => {
                kernel::integer::<S, F, TILE_ROWS>(simd, self.tile, blocks)
            }
            _ => unreachable!("`linear_on` gives this arm no tiles"),
        }
    }
}

/// Calls `$body` with `$F` as the type that stands for `$format`.
macro_rules! with_format {
    ($value:expr, $F:ident => $body:expr) => {
        with_format!(@ $value, $F => $body; Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K IQ4_NL IQ4_XS)
    };
    (@ $value:expr, $F:ident => $body:expr; $($format:ident)+) => {
        match $value {
            $(Format::$format => {
                type $F = formats::$format;
                $body
            })+
            other => unreachable!("{} has no packed form: `packed_len` refuses it", other.name()),
        }
    };
}

/// What the integer kernel needs to know about `format` in the activations.
fn zero_of(format: Format) -> Zero {
    with_format!(format, F => Zero { point: F::CODES.zero.map_or(0, i32::from), halves: F::HALVES })
}

fn run_tile(arm: Arm, tile: &Tile<'_>, operand: Operand<'_>) {
    #[cfg(target_arch = "x86_64")]
    if let (Arm::Amx(unit), Operand::Matrix(blocks)) = (arm, operand) {
        return with_format!(tile.format, F => matrix::integer::<F>(unit, tile, blocks));
    }
    with_format!(tile.format, F => arm.run(FormatTile::<F> { tile, operand, format: PhantomData }));
}

/// Products of one round of [`dot_peak`].
pub(crate) const DOT_PEAK_PRODUCTS: usize = 8 * 64 * TILE_ROWS;

/// Multiplies a block of four-bit codes with four rows of activations, `rounds` times, from the first-level cache.
pub(crate) fn dot_peak(arm: Arm, rounds: usize) {
    struct Peak(usize);
    impl Task for Peak {
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let codes = [[7; 64]; 8];
            let block = std::hint::black_box(ActivationBlock::<TILE_ROWS>::ZERO);
            let mut rows = [&block.codes[0]; TILE_ROWS];
            for (row, codes) in rows.iter_mut().zip(&block.codes) {
                *row = codes;
            }
            for _ in 0..self.0 {
                let mut loaded = [simd.load(&codes[0]); 8];
                for (loaded, from) in loaded.iter_mut().zip(std::hint::black_box(&codes)) {
                    *loaded = simd.load(from);
                }
                std::hint::black_box(simd.dot(4, &loaded, std::hint::black_box(rows), [0; TILE_ROWS]));
            }
        }
    }
    arm.run(Peak(rounds));
}
