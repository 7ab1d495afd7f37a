//! Many rows of activations on a matrix unit, sixteen at a time: the bits are those of [`super::kernel`].

use std::arch::x86_64::{
    _mm512_cvtepi32_ps, _mm512_loadu_si512, _mm512_set1_epi8, _mm512_storeu_si512, _mm512_sub_epi8,
};

use super::activations::{Quantized, QuantizedRow, Zero};
use super::formats::{BlockFormat, Scales};
use super::kernel::{BLOCKS, Chunk, Tile};
use super::layout::{BLOCK, GROUP_ROWS};
use super::simd::Simd;
use super::simd::amx::{Amx, TILE, Tiles};
use super::simd::avx512::Avx512;

/// 32 columns of 16 rows of activations: element ≈ `scales[r]` × `codes[r][i]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct MatrixBlock {
    codes: [[i8; BLOCK]; TILE],
    scales: [f32; TILE],
    /// Sums of the codes.
    sums: [f32; TILE],
}

impl Quantized for MatrixBlock {
    const ROWS: usize = TILE;
    const ZERO: Self = Self { codes: [[0; BLOCK]; TILE], scales: [0.0; TILE], sums: [0.0; TILE] };
    // Zero points are taken off the codes of the weights.
    const STARTS: bool = false;

    #[inline(always)]
    fn set(&mut self, r: usize, _: Zero, row: &QuantizedRow) {
        (self.scales[r], self.codes[r], self.sums[r]) =
            (row.scale, row.codes, (row.sums[0] + row.sums[1]) as f32);
    }
}

/// A block of weights, unpacked: codes with signs, vector g holds columns 4g to 4g + 3.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct PanelBlock {
    scales: Scales,
    codes: [[i8; 64]; 8],
}

/// Products of a tile of activations with a block of weights.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Products([[i32; GROUP_ROWS]; TILE]);

/// A chunk of a group of rows of weights.
struct Panel {
    blocks: [PanelBlock; BLOCKS],
    /// With one tile of activations: for each block, of all 32 columns; or of the first and of the last 16, where those have scales of their own.
    products: [Products; 2 * BLOCKS],
}

/// Tile t of the activations has the blocks `activations[t * cols / 32..]`; rows beyond the last are zero.
pub(super) fn integer<F: BlockFormat>(unit: Amx, tile: &Tile<'_>, activations: &[MatrixBlock]) {
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl,avx512vnni,fma,f16c")]
    fn inner<F: BlockFormat>(unit: Amx, tile: &Tile<'_>, activations: &[MatrixBlock]) {
        by_panels::<F>(unit, tile, activations);
    }
    // SAFETY: `unit` proves that the CPU has these instructions.
    unsafe { inner::<F>(unit, tile, activations) }
}

/// Unpacks a chunk of a group, takes all rows past it, goes on to the next chunk.
#[inline(always)]
fn by_panels<F: BlockFormat>(unit: Amx, tile: &Tile<'_>, activations: &[MatrixBlock]) {
    let (simd, per_tile) = (unit.simd(), tile.cols / BLOCK);
    let activations = &activations[tile.m.start / TILE * per_tile..tile.m.end.div_ceil(TILE) * per_tile];
    let tiles = unit.tiles(if F::HALVES { BLOCK / 2 } else { BLOCK });
    let mut panel = Panel {
        blocks: [PanelBlock { scales: Scales::ZERO, codes: [[0; 64]; 8] }; BLOCKS],
        products: [Products([[0; GROUP_ROWS]; TILE]); 2 * BLOCKS],
    };
    let mut sums = vec![[[0.0; GROUP_ROWS]; TILE]; tile.m.len().div_ceil(TILE)];
    for group in tile.groups.clone() {
        sums.fill([[0.0; GROUP_ROWS]; TILE]);
        for chunk in 0..tile.chunks() {
            let blocks = chunk * BLOCKS..per_tile.min((chunk + 1) * BLOCKS);
            unpack::<F>(simd, &tile.chunk::<F>(group, chunk), &mut panel.blocks[..blocks.len()]);
            let (ahead, parts) = (tile.ahead::<F>(group, chunk), sums.len());
            for (t, sums) in sums.iter_mut().enumerate() {
                ahead.prefetch(t, parts);
                let activations = &activations[t * per_tile..][blocks.clone()];
                multiply::<F>(&tiles, &mut panel, activations);
                add::<F>(simd, &panel, activations, sums);
            }
        }
        for (m, sums) in tile.m.clone().zip(sums.as_flattened()) {
            tile.write(simd, m, group, simd.load_floats(sums));
        }
    }
}

#[inline(always)]
fn unpack<F: BlockFormat>(simd: Avx512, chunk: &Chunk<'_>, panel: &mut [PanelBlock]) {
    let mut scales = [Scales::ZERO; BLOCKS];
    chunk.scales::<Avx512, F>(simd, &mut scales);
    for (b, (to, scales)) in panel.iter_mut().zip(&scales).enumerate() {
        to.scales = *scales;
        for (to, codes) in to.codes.iter_mut().zip(chunk.codes::<Avx512, F>(simd, b)) {
            // SAFETY: `simd` proves that the CPU has the instructions; a vector has as many bytes.
            unsafe {
                let zero = _mm512_set1_epi8(F::CODES.zero.unwrap_or(0) as i8);
                _mm512_storeu_si512(to.as_mut_ptr().cast(), _mm512_sub_epi8(codes, zero));
            }
        }
    }
}

/// All products of a tile of activations with the panel. They go through memory, which gives them back the sooner the longer ago they were written: so sums
/// are not made after each block (PERFORMANCE.md).
#[inline(always)]
fn multiply<F: BlockFormat>(tiles: &Tiles, panel: &mut Panel, activations: &[MatrixBlock]) {
    let parts = if F::HALVES { 2 } else { 1 };
    let (products, _) = panel.products.as_chunks_mut::<2>();
    for ((block, activations), products) in panel.blocks.iter().zip(activations).zip(products) {
        for (part, product) in products[..parts].iter_mut().enumerate() {
            // SAFETY: 16 rows of 32 columns and 8 vectors of 64 bytes lie there; the tiles are set up for all of them, or for half.
            unsafe {
                let rows = activations.codes.as_ptr().cast::<i8>().add(part * BLOCK / 2);
                let codes = block.codes.as_ptr().cast::<i8>().add(part * 4 * 64);
                tiles.product(rows, codes, &mut product.0);
            }
        }
    }
}

/// Adds the products of a panel, scaled, as `add_dots` of the kernel does.
#[inline(always)]
fn add<F: BlockFormat>(
    simd: Avx512,
    panel: &Panel,
    activations: &[MatrixBlock],
    sums: &mut [[f32; GROUP_ROWS]; TILE],
) {
    let mut totals = [simd.splat(0.0); TILE];
    for (total, sum) in totals.iter_mut().zip(&*sums) {
        *total = simd.load_floats(sum);
    }
    let (products, _) = panel.products.as_chunks::<2>();
    for ((block, activations), products) in panel.blocks.iter().zip(activations).zip(products) {
        let scale = simd.load_floats(&block.scales.scales[0]);
        let second = simd.load_floats(&block.scales.scales[1]);
        let offset = simd.load_floats(&block.scales.offsets);
        for (r, total) in totals.iter_mut().enumerate() {
            let mut dot = simd.mul(scale, floats(simd, &products[0].0[r]));
            if F::HALVES {
                dot = simd.fma(second, floats(simd, &products[1].0[r]), dot);
            }
            if F::CODES.zero.is_none() {
                dot = simd.fma(offset, simd.splat(activations.sums[r]), dot);
            }
            *total = simd.fma(dot, simd.splat(activations.scales[r]), *total);
        }
    }
    for (total, sum) in totals.into_iter().zip(sums) {
        simd.store_floats(total, sum);
    }
}

#[inline(always)]
fn floats(_proof: Avx512, ints: &[i32; GROUP_ROWS]) -> <Avx512 as Simd>::Floats {
    // SAFETY: the CPU has the instructions, as the proof says; all sixteen are there.
    unsafe { _mm512_cvtepi32_ps(_mm512_loadu_si512(ints.as_ptr().cast())) }
}
