//! Linear layers of many rows of activations: 64 rows of a matrix meet 64 rows of activations, 32 columns at a time, in memory that a cube shares.
//!
//! A sum is made in the order of the columns: not that of a few rows of activations, so the two agree but for rounding.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::decode::{
    Element, Packing, Rows, Words, block_place, code, element, offsets, pick, read_codes, scales,
};
use super::launch::MAX_CUBES_X;
use super::linear::{Form, Matrix, UNITS};
use super::product::{Quad, ROWS, fp8_scale};

/// Rows of weights, and of activations, of a cube.
pub const SIDE: u32 = 64;
/// Columns that are shared at a time.
pub const DEPTH: u32 = 32;
/// Fours of them.
pub const QUADS: u32 = DEPTH / 4;
/// Fours of rows of weights.
pub const ROW_QUADS: u32 = SIDE / 4;
/// Rows of activations of a unit.
pub const TOKENS: u32 = SIDE * ROW_QUADS / UNITS;

/// 64 rows of one matrix with 64 rows of activations: four and four for each unit.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
pub fn many(
    x: &[Quad],
    weight: &[Words],
    out: &mut [f32],
    matrix: Matrix,
    cols: u32,
    tokens: u32,
    #[comptime] form: Form,
) {
    let first_row = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * SIDE;
    let first_token = CUBE_POS_Y * SIDE;
    let mut weights = Shared::<[Rows]>::new_slice(comptime!(DEPTH * ROW_QUADS) as usize);
    let mut activations = Shared::<[Quad]>::new_slice(comptime!(SIDE * QUADS) as usize);
    let (row_quad, token) = (UNIT_POS % ROW_QUADS, UNIT_POS / ROW_QUADS * TOKENS);
    let mut sums = Array::<Rows>::new(TOKENS as usize);
    #[unroll]
    for i in 0..TOKENS {
        sums[i as usize] = Rows::zeroed();
    }
    for step in 0..cols / DEPTH {
        sync_cube();
        if UNIT_POS < comptime!(QUADS * ROW_QUADS) {
            let (quad, g) = (UNIT_POS % ROW_QUADS, UNIT_POS / ROW_QUADS);
            let row = first_row + quad * 4u32;
            let columns = match comptime!(form) {
                Form::Packed(packing) => packed(weight, &matrix, row, step, g, cols, packing),
                Form::Plain(element) | Form::Ragged(element) => {
                    plain(weight, &matrix, row, step, g, cols, element)
                }
            };
            #[unroll]
            for i in 0..4u32 {
                weights[((g * 4u32 + i) * ROW_QUADS + quad) as usize] = columns[i as usize];
            }
        } else {
            let unit = UNIT_POS - comptime!(QUADS * ROW_QUADS);
            #[unroll]
            for i in 0..comptime!(SIDE * QUADS / (UNITS - QUADS * ROW_QUADS)) {
                let at = unit + comptime!(i * (UNITS - QUADS * ROW_QUADS));
                let (quad, token) = (at % QUADS, at / QUADS);
                let row = min(first_token + token, tokens - 1u32) * (cols / 4u32);
                activations[place(token, quad) as usize] = x[(row + step * QUADS + quad) as usize];
            }
        }
        sync_cube();
        #[unroll]
        for quad in 0..QUADS {
            multiply(&weights, &activations, &mut sums, row_quad, token, quad, 0u32);
        }
    }
    #[unroll]
    for i in 0..TOKENS {
        #[unroll]
        for j in 0..4u32 {
            let (row, token) = (first_row + row_quad * 4u32 + j, first_token + token + i);
            if row < matrix.rows && token < tokens {
                out[(token * matrix.rows + row) as usize] = sums[i as usize].extract(comptime!(j as usize));
            }
        }
    }
}

/// Where four columns of a row of activations lie: turned, so that rows which are read together lie in different banks. Both tiles take the 16 kB that
/// every adapter has.
#[cube]
pub fn place(token: u32, quad: u32) -> u32 {
    token * QUADS + (quad + token / TOKENS) % QUADS
}

/// Adds the products of four columns to the `sums` of a unit's rows of activations, of which the first is at `first`.
#[cube]
pub fn multiply(
    weights: &Shared<[Rows]>,
    activations: &Shared<[Quad]>,
    sums: &mut Array<Rows>,
    row_quad: u32,
    token: u32,
    #[comptime] quad: u32,
    #[comptime] first: u32,
) {
    let mut columns = Array::<Rows>::new(4usize);
    #[unroll]
    for i in 0..4u32 {
        columns[i as usize] = weights[(comptime!((quad * 4 + i) * ROW_QUADS) + row_quad) as usize];
    }
    #[unroll]
    for i in 0..TOKENS {
        let four = activations[place(token + i, quad) as usize];
        #[unroll]
        for column in 0..4usize {
            let sum = comptime!((first + i) as usize);
            sums[sum] = fma(columns[column], Rows::new(four.extract(column)), sums[sum]);
        }
    }
}

/// Columns `4 * g..4 * g + 4` of block `b` of four rows.
#[cube]
fn packed(
    weight: &[Words],
    matrix: &Matrix,
    row: u32,
    b: u32,
    g: u32,
    cols: u32,
    #[comptime] packing: Packing,
) -> Array<Rows> {
    // Behind the last group there is none.
    let (group, quad) = (min(row / ROWS, (matrix.rows - 1u32) / ROWS), row % ROWS / 4u32);
    let (header, codes) = block_place(group * matrix.words, b, cols / 32u32, packing);
    let four = read_codes(weight, codes + quad, g, packing);
    let by = scales(weight, header, b % 8u32, g / 4u32, quad, packing);
    let plus = offsets(weight, header, b % 8u32, by, quad, packing);
    let mut columns = Array::<Rows>::new(4usize);
    #[unroll]
    for byte in 0..4u32 {
        columns[byte as usize] = fma(code(four, byte, packing), by, plus);
    }
    columns
}

/// Columns `32 * step + 4 * g..` of four rows that lie one after the other.
#[cube]
fn plain(
    weight: &[Words],
    matrix: &Matrix,
    first_row: u32,
    step: u32,
    g: u32,
    cols: u32,
    #[comptime] kind: Element,
) -> Array<Rows> {
    let per_word = comptime!(kind.per_word() as u32);
    let column = step * DEPTH + g * 4u32;
    let mut columns = Array::<Rows>::new(4usize);
    #[unroll]
    for i in 0..4usize {
        columns[i] = Rows::zeroed();
    }
    #[unroll]
    for i in 0..4u32 {
        let row = min(first_row + i, matrix.rows - 1u32);
        let word = (row * cols + column) / per_word;
        let four = weight[(word / 4u32) as usize];
        let mut scale = 1.0f32;
        if comptime!(matches!(kind, Element::F8E4M3)) {
            let word = fp8_scale(matrix, row, column, cols);
            scale = f32::reinterpret(pick(weight[(word / 4u32) as usize], word % 4u32));
        }
        #[unroll]
        for j in 0..4u32 {
            let bits = pick(four, word % 4u32 + comptime!(j / per_word));
            let number = element(bits, comptime!(j % per_word), kind);
            let mut column = columns[j as usize];
            column.insert(comptime!(i as usize), number * scale);
            columns[j as usize] = column;
        }
    }
    columns
}
