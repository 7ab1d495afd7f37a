//! Linear layers: `out[i, j] = Σ_k x[i, k] · w[j, k]`, with weights that stay packed in device memory.
//!
//! Weights are expanded in registers, exactly as a reference does it, and multiplied in f32. A sum is made in one order, whatever the number
//! of rows of activations: prefill and single tokens agree bit for bit.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::decode::{Element, Packing, code, element, four_codes, header_words, offset, scale};
use super::launch::{self, MAX_CUBES_X, new_floats};
use crate::kernels::{Layout, LinearSpec};

/// Units of a cube: for packed weights 8 parts of the columns for each of 16 rows, else 32 for each of 4.
const UNITS: u32 = 128;
/// Rows of a group of the packed form.
const GROUP: u32 = 16;
/// Rows of a cube where weights lie row after row.
const ROWS: u32 = 4;
/// Rows of activations that meet a weight each time it is expanded.
const TILE: u32 = 8;

/// `x: [t, cols]`, contiguous, times the transpose of the matrix that `spec` describes: `[t, rows]`.
pub fn linear(x: CubeTensor, weight: CubeTensor, spec: &LinearSpec) -> CubeTensor {
    let tokens = x.meta.shape()[0];
    let out = new_floats(&x, [tokens, spec.rows]);
    if tokens == 0 || spec.rows == 0 {
        return out;
    }
    let client = x.client.clone();
    let shape = Shape::of(&weight, spec, tokens);
    let (count, units) = (shape.cubes(), CubeDim::new_1d(UNITS));
    let (x, weight, result) = (x.into_buffer_arg(), weight.into_buffer_arg(), out.clone().into_buffer_arg());
    match shape.form {
        Form::Packed(packing) => {
            packed::launch(&client, count, units, x, weight, result, shape.numbers(), packing, shape.tile);
        }
        Form::Plain(kind) => {
            plain::launch(&client, count, units, x, weight, result, shape.numbers(), kind, shape.tile);
        }
    }
    out
}

/// [`linear`] of one row, if `expert` weighs anything in `routes`; added to `sum`, times what it weighs, if there is one.
pub fn linear_if(
    x: CubeTensor,
    weight: CubeTensor,
    routes: CubeTensor,
    spec: &LinearSpec,
    expert: usize,
    sum: Option<CubeTensor>,
) -> CubeTensor {
    let add = sum.is_some();
    let out = match sum {
        Some(sum) if sum.can_mut() => sum,
        Some(sum) => sum.copy(),
        None => new_floats(&x, [1, spec.rows]),
    };
    if spec.rows == 0 {
        return out;
    }
    let client = x.client.clone();
    let shape = Shape::of(&weight, spec, 1);
    let (count, units) = (shape.cubes(), CubeDim::new_1d(UNITS));
    let (x, weight, routes) = (x.into_buffer_arg(), weight.into_buffer_arg(), routes.into_buffer_arg());
    let (result, expert) = (out.clone().into_buffer_arg(), expert as u32);
    match shape.form {
        Form::Packed(packing) => packed_if::launch(
            &client,
            count,
            units,
            x,
            weight,
            routes,
            result,
            shape.numbers(),
            expert,
            packing,
            add,
        ),
        Form::Plain(kind) => plain_if::launch(
            &client,
            count,
            units,
            x,
            weight,
            routes,
            result,
            shape.numbers(),
            expert,
            kind,
            add,
        ),
    }
    out
}

/// How a matrix is stored.
enum Form {
    Packed(Packing),
    Plain(Element),
}

/// What a launch needs to know.
struct Shape {
    form: Form,
    rows: usize,
    cols: usize,
    tokens: usize,
    tile: u32,
    /// Words of a group of rows, or those of the matrix before the scales.
    words: usize,
    scale_block: (usize, usize),
}

impl Shape {
    fn of(weight: &CubeTensor, spec: &LinearSpec, tokens: usize) -> Self {
        let (rows, cols) = (spec.rows, spec.cols);
        let form = match spec.layout {
            Layout::Packed => Packing::of(spec.format).map(Form::Packed),
            Layout::Rows => Element::of(spec.format).map(Form::Plain),
        };
        let words = match spec.layout {
            Layout::Packed => weight.meta.shape()[0] / rows.div_ceil(GROUP as usize),
            Layout::Rows => super::weight_words(spec),
        };
        Self {
            form: form.expect("the loader expands what has no kernel"),
            rows,
            cols,
            tokens,
            tile: if tokens == 1 { 1 } else { TILE },
            words,
            scale_block: spec.scale.as_deref().map_or((1, 1), |scale| scale.block(rows, cols)),
        }
    }

    fn cubes(&self) -> CubeCount {
        let rows = match self.form {
            Form::Packed(_) => GROUP,
            Form::Plain(_) => ROWS,
        };
        launch::cubes(self.rows.div_ceil(rows as usize), self.tokens.div_ceil(self.tile as usize))
    }

    fn numbers(&self) -> NumbersLaunch {
        let (scale_rows, scale_cols) = self.scale_block;
        NumbersLaunch::new(
            self.rows as u32,
            self.cols as u32,
            self.tokens as u32,
            self.words as u32,
            scale_rows as u32,
            scale_cols as u32,
        )
    }
}

/// The numbers of [`Shape`] that a kernel takes.
#[derive(CubeType, CubeLaunch)]
struct Numbers {
    rows: u32,
    cols: u32,
    tokens: u32,
    words: u32,
    scale_rows: u32,
    scale_cols: u32,
}

/// One group of 16 rows with `tile` rows of activations. The words of 16 rows lie side by side, so that neighbouring units read
/// neighbouring words.
#[cube(launch)]
fn packed(
    x: &[f32],
    weight: &[u32],
    out: &mut [f32],
    numbers: Numbers,
    #[comptime] packing: Packing,
    #[comptime] tile: u32,
) {
    packed_body(x, weight, out, &numbers, 1.0f32, packing, tile, false);
}

/// [`packed`] of one row, if the expert weighs anything.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn packed_if(
    x: &[f32],
    weight: &[u32],
    routes: &[f32],
    out: &mut [f32],
    numbers: Numbers,
    expert: u32,
    #[comptime] packing: Packing,
    #[comptime] add: bool,
) {
    packed_body(x, weight, out, &numbers, routes[expert as usize], packing, 1u32, add);
}

#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn packed_body(
    x: &[f32],
    weight: &[u32],
    out: &mut [f32],
    numbers: &Numbers,
    route: f32,
    #[comptime] packing: Packing,
    #[comptime] tile: u32,
    #[comptime] add: bool,
) {
    let group = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let first = CUBE_POS_Y * tile;
    let lane = UNIT_POS % GROUP;
    let chunk_words = comptime!(packing.header_words() + 8 * packing.code_words());
    let blocks = numbers.cols / 32u32;
    let inside = group * GROUP < numbers.rows && route != 0.0f32;

    let mut sums = Array::<f32>::new(tile as usize);
    let mut starts = Array::<u32>::new(tile as usize);
    #[unroll]
    for m in 0..tile {
        sums[m as usize] = 0.0f32;
        starts[m as usize] = min(first + m, numbers.tokens - 1u32) * numbers.cols;
    }
    let mut b = select(inside, UNIT_POS / GROUP, blocks);
    while b < blocks {
        let chunk = b / 8u32;
        let block = b % 8u32;
        let header = group * numbers.words + chunk * chunk_words;
        let in_chunk = min(blocks - chunk * 8u32, 8u32);
        let codes = header + header_words(in_chunk, packing) + block * comptime!(packing.code_words()) + lane;
        #[unroll]
        for half_block in 0..2u32 {
            let by = scale(weight, header, block, half_block, lane, packing);
            let plus = offset(weight, header, block, by, lane, packing);
            #[unroll]
            for quarter in 0..4u32 {
                let g = comptime!(4 * half_block + quarter);
                let four = four_codes(weight, codes, g, packing);
                #[unroll]
                for byte in 0..4u32 {
                    let w = fma(code(four, byte, packing), by, plus);
                    let column = b * 32u32 + comptime!(4 * g + byte);
                    #[unroll]
                    for m in 0..tile {
                        sums[m as usize] =
                            fma(w, x[(starts[m as usize] + column) as usize], sums[m as usize]);
                    }
                }
            }
        }
        b += comptime!(UNITS / GROUP);
    }

    let mut parts = Shared::<[f32]>::new_slice(comptime!(UNITS * tile) as usize);
    #[unroll]
    for m in 0..tile {
        parts[(comptime!(m * UNITS) + UNIT_POS) as usize] = sums[m as usize];
    }
    sync_cube();
    if UNIT_POS < comptime!(GROUP * tile) {
        let m = UNIT_POS / GROUP;
        let mut total = 0.0f32;
        #[unroll]
        for part in 0..comptime!(UNITS / GROUP) {
            total += parts[(m * UNITS + comptime!(part * GROUP) + lane) as usize];
        }
        let row = group * GROUP + lane;
        if row < numbers.rows && first + m < numbers.tokens {
            write(out, (first + m) * numbers.rows + row, total, route, add);
        }
    }
}

/// Stores a product, or adds it, times what the expert weighs.
#[cube]
fn write(out: &mut [f32], at: u32, total: f32, route: f32, #[comptime] add: bool) {
    if comptime!(add) {
        out[at as usize] += total * route;
    } else {
        out[at as usize] = total;
    }
}

/// Four rows that lie row after row, with `tile` rows of activations.
#[cube(launch)]
fn plain(
    x: &[f32],
    weight: &[u32],
    out: &mut [f32],
    numbers: Numbers,
    #[comptime] kind: Element,
    #[comptime] tile: u32,
) {
    plain_body(x, weight, out, &numbers, 1.0f32, kind, tile, false);
}

/// [`plain`] of one row, if the expert weighs anything.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn plain_if(
    x: &[f32],
    weight: &[u32],
    routes: &[f32],
    out: &mut [f32],
    numbers: Numbers,
    expert: u32,
    #[comptime] kind: Element,
    #[comptime] add: bool,
) {
    plain_body(x, weight, out, &numbers, routes[expert as usize], kind, 1u32, add);
}

#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn plain_body(
    x: &[f32],
    weight: &[u32],
    out: &mut [f32],
    numbers: &Numbers,
    route: f32,
    #[comptime] kind: Element,
    #[comptime] tile: u32,
    #[comptime] add: bool,
) {
    let per_word = comptime!(kind.per_word() as u32);
    let per_row = comptime!(UNITS / ROWS);
    let cols = numbers.cols;
    let row = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * ROWS + UNIT_POS / per_row;
    let first = CUBE_POS_Y * tile;

    let mut sums = Array::<f32>::new(tile as usize);
    let mut starts = Array::<u32>::new(tile as usize);
    #[unroll]
    for m in 0..tile {
        sums[m as usize] = 0.0f32;
        starts[m as usize] = min(first + m, numbers.tokens - 1u32) * cols;
    }
    // A row may begin and end inside a word: its columns from there on, as many of a word at a time as it has.
    let begin = row * cols;
    let end = begin + cols;
    let step = comptime!(per_word * per_row);
    let from = begin / per_word * per_word + UNIT_POS % per_row * per_word;
    let mut place = select(row < numbers.rows && route != 0.0f32, from, end);
    while place < end {
        let word = weight[(place / per_word) as usize];
        #[unroll]
        for i in 0..per_word {
            if place + i >= begin && place + i < end {
                let column = place + i - begin;
                let mut w = element(word, i, kind);
                if comptime!(matches!(kind, Element::F8E4M3)) {
                    let across = cols.div_ceil(numbers.scale_cols);
                    let scale = row / numbers.scale_rows * across + column / numbers.scale_cols;
                    w *= f32::reinterpret(weight[(numbers.words + scale) as usize]);
                }
                #[unroll]
                for m in 0..tile {
                    sums[m as usize] = fma(w, x[(starts[m as usize] + column) as usize], sums[m as usize]);
                }
            }
        }
        place += step;
    }

    let mut parts = Shared::<[f32]>::new_slice(comptime!(UNITS * tile) as usize);
    #[unroll]
    for m in 0..tile {
        parts[(comptime!(m * UNITS) + UNIT_POS) as usize] = sums[m as usize];
    }
    sync_cube();
    if UNIT_POS < comptime!(ROWS * tile) {
        let m = UNIT_POS / ROWS;
        let r = UNIT_POS % ROWS;
        let mut total = 0.0f32;
        for part in 0..per_row {
            total += parts[(m * UNITS + r * per_row + part) as usize];
        }
        let row = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * ROWS + r;
        if row < numbers.rows && first + m < numbers.tokens {
            write(out, (first + m) * numbers.rows + row, total, route, add);
        }
    }
}
