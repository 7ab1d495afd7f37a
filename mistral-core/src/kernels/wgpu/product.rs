//! What a cube computes of a linear layer: 16 rows of a matrix and some rows of activations, and in which order it adds.
//!
//! A unit has four rows and one of 64 parts of the columns, whatever the number of rows of activations, and the parts are put together in one order: so a
//! token alone has the bits of a token among others.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::decode::{
    Element, Packing, Rows, Words, block_place, code, element, four_codes, offsets, pick, read_codes, scales,
};
use super::linear::{Form, Matrix, UNITS};

/// Rows of weights of a cube.
pub const ROWS: u32 = 16;
/// Parts of the columns.
const PARTS: u32 = UNITS * 4 / ROWS;
/// Four activations, which are read at once.
pub type Quad = Vector<f32, Const<4>>;

/// No product yet, of `tile` rows of activations.
#[cube]
pub fn zeros(#[comptime] tile: u32) -> Array<Rows> {
    let mut sums = Array::<Rows>::new(tile as usize);
    #[unroll]
    for m in 0..tile {
        sums[m as usize] = Rows::zeroed();
    }
    sums
}

/// The four rows and the part of the columns of this unit. The words of packed rows lie side by side, so that neighbouring units read neighbouring
/// words; rows that lie one after the other are read by a plane each.
#[cube]
fn place(#[comptime] form: Form) -> (u32, u32) {
    if comptime!(form.is_packed()) {
        (UNIT_POS % 4u32, UNIT_POS / 4u32)
    } else {
        (UNIT_POS / PARTS, UNIT_POS % PARTS)
    }
}

/// Memory in which [`total`] puts parts together: all of one row of activations, and then a quarter of them of each.
#[cube]
pub fn room(#[comptime] tile: u32) -> Shared<[f32]> {
    Shared::<[f32]>::new_slice(comptime!(PARTS * ROWS + UNITS * tile) as usize)
}

/// The sum of all parts of row `UNIT_POS % 16` and the cube's row `UNIT_POS / 16` of activations, of which there are `tile`.
#[cube]
pub fn total(
    sums: &Array<Rows>,
    room: &mut Shared<[f32]>,
    #[comptime] form: Form,
    #[comptime] tile: u32,
) -> f32 {
    let fours = comptime!(PARTS * ROWS);
    let (quad, part) = place(form);
    let (group, row) = (UNIT_POS / ROWS, UNIT_POS % ROWS);
    #[unroll]
    for m in 0..tile {
        sync_cube();
        #[unroll]
        for i in 0..4u32 {
            room[(part * ROWS + quad * 4u32 + i) as usize] = sums[m as usize].extract(comptime!(i as usize));
        }
        sync_cube();
        let mut four = 0.0f32;
        #[unroll]
        for i in 0..4u32 {
            four += room[((group * 4u32 + i) * ROWS + row) as usize];
        }
        room[(fours + comptime!(m * UNITS) + UNIT_POS) as usize] = four;
    }
    sync_cube();
    let mut total = 0.0f32;
    if group < tile {
        #[unroll]
        for i in 0..ROWS {
            total += room[(fours + group * UNITS + i * ROWS + row) as usize];
        }
    }
    total
}

/// Adds the products of this unit's rows and part of the columns of `block`, with each of `tile` rows of activations.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
pub fn add(
    x: &[Quad],
    weight: &[Words],
    sums: &mut Array<Rows>,
    matrix: &Matrix,
    block: u32,
    active: bool,
    cols: u32,
    tokens: u32,
    #[comptime] form: Form,
    #[comptime] tile: u32,
) {
    let first = CUBE_POS_Y * tile;
    let mut starts = Array::<u32>::new(tile as usize);
    #[unroll]
    for m in 0..tile {
        starts[m as usize] = min(first + m, tokens - 1u32) * (cols / 4u32);
    }
    let (quad, part) = place(form);
    let active = active && block * ROWS < matrix.rows;
    if comptime!(form.is_packed()) {
        packed(
            x,
            weight,
            sums,
            &starts,
            matrix.words,
            block,
            quad,
            part,
            active,
            cols,
            comptime!(form.packing()),
            tile,
        );
    } else {
        plain(
            x,
            weight,
            sums,
            &starts,
            matrix,
            block * ROWS + quad * 4u32,
            part,
            active,
            cols,
            comptime!(form.element()),
            tile,
        );
    }
}

/// Blocks of 32 columns: the products of codes and activations, and the activations themselves, are added up before scale and offset come in.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn packed(
    x: &[Quad],
    weight: &[Words],
    sums: &mut Array<Rows>,
    starts: &Array<u32>,
    words_of_group: u32,
    group: u32,
    quad: u32,
    part: u32,
    active: bool,
    cols: u32,
    #[comptime] packing: Packing,
    #[comptime] tile: u32,
) {
    let spans = comptime!(if packing.has_half_scales() { 2u32 } else { 1u32 });
    let blocks = cols / 32u32;
    let mut b = select(active, part, blocks);
    while b < blocks {
        let (header, codes) = block_place(group * words_of_group, b, blocks, packing);
        let (block, codes) = (b % 8u32, codes + quad);
        // Of a row alone, all that comes from memory at once, so that nothing waits twice; of several, less code and fewer registers.
        let mut words = Array::<Words>::new(comptime!((packing.code_words() / 16) as usize));
        let mut near = Array::<Quad>::new(8usize);
        if comptime!(tile == 1) {
            #[unroll]
            for i in 0..comptime!(packing.code_words() / 16) {
                words[i as usize] = weight[(codes + comptime!(4 * i)) as usize];
            }
            #[unroll]
            for g in 0..8u32 {
                near[g as usize] = x[(starts[0usize] + b * 8u32 + g) as usize];
            }
        }
        #[unroll]
        for span in 0..spans {
            let by = scales(weight, header, block, span, quad, packing);
            let plus = offsets(weight, header, block, by, quad, packing);
            let mut products = zeros(tile);
            let mut all = Array::<f32>::new(tile as usize);
            #[unroll]
            for m in 0..tile {
                all[m as usize] = 0.0f32;
            }
            if comptime!(tile == 1) {
                #[unroll]
                for g in comptime!(span * 8 / spans)..comptime!((span + 1) * 8 / spans) {
                    let numbers = numbers(comptime_codes(&words, g, packing), packing);
                    multiply(&numbers, near[g as usize], &mut products, &mut all, 0u32);
                }
            } else {
                for g in comptime!(span * 8 / spans)..comptime!((span + 1) * 8 / spans) {
                    let numbers = numbers(read_codes(weight, codes, g, packing), packing);
                    #[unroll]
                    for m in 0..tile {
                        let x = x[(starts[m as usize] + b * 8u32 + g) as usize];
                        multiply(&numbers, x, &mut products, &mut all, m);
                    }
                }
            }
            #[unroll]
            for m in 0..tile {
                let i = m as usize;
                sums[i] = fma(products[i], by, fma(plus, Rows::new(all[i]), sums[i]));
            }
        }
        b += PARTS;
    }
}

/// The codes of columns `4 * g..4 * g + 4` of a block whose words are all there.
#[cube]
fn comptime_codes(words: &Array<Words>, #[comptime] g: u32, #[comptime] packing: Packing) -> Words {
    let first = comptime!((if packing.bits == 8 { g } else { g % 4 }) as usize);
    let last = comptime!(packing.code_words() / 16 - 1);
    let more = comptime!((if packing.bits == 6 { 4 + g / 4 } else { last }) as usize);
    four_codes(words[first], words[more], g, packing)
}

/// Four columns' codes of four rows as numbers.
#[cube]
fn numbers(four: Words, #[comptime] packing: Packing) -> Array<Rows> {
    let mut numbers = Array::<Rows>::new(4usize);
    #[unroll]
    for byte in 0..4u32 {
        numbers[byte as usize] = code(four, byte, packing);
    }
    numbers
}

/// Adds the products of four columns with the activations `x` of row `m`, and these activations.
#[cube]
fn multiply(
    numbers: &Array<Rows>,
    x: Quad,
    products: &mut Array<Rows>,
    all: &mut Array<f32>,
    #[comptime] m: u32,
) {
    let m = m as usize;
    #[unroll]
    for byte in 0..4usize {
        products[m] = fma(numbers[byte], Rows::new(x.extract(byte)), products[m]);
    }
    all[m] += (x.extract(0usize) + x.extract(1usize)) + (x.extract(2usize) + x.extract(3usize));
}

/// Rows one after the other, four words of each at a time.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn plain(
    x: &[Quad],
    weight: &[Words],
    sums: &mut Array<Rows>,
    starts: &Array<u32>,
    matrix: &Matrix,
    first_row: u32,
    part: u32,
    active: bool,
    cols: u32,
    #[comptime] kind: Element,
    #[comptime] tile: u32,
) {
    let per_word = comptime!(kind.per_word() as u32);
    let columns = comptime!(4 * per_word);
    let count = cols / columns;
    let mut at = select(active, part, count);
    while at < count {
        let mut words = Array::<Words>::new(4usize);
        let mut scales = Rows::new(1.0f32);
        #[unroll]
        for i in 0..4u32 {
            let row = min(first_row + i, matrix.rows - 1u32);
            words[i as usize] = weight[(row * count + at) as usize];
            if comptime!(matches!(kind, Element::F8E4M3)) {
                let word = fp8_scale(matrix, row, at * columns, cols);
                let four = weight[(word / 4u32) as usize];
                scales.insert(comptime!(i as usize), f32::reinterpret(pick(four, word % 4u32)));
            }
        }
        #[unroll]
        for column in 0..columns {
            let mut numbers = Rows::empty();
            #[unroll]
            for i in 0..4usize {
                let word = words[i].extract(comptime!((column / per_word) as usize));
                numbers.insert(i, element(word, comptime!(column % per_word), kind));
            }
            if comptime!(matches!(kind, Element::F8E4M3)) {
                numbers *= scales;
            }
            #[unroll]
            for m in 0..tile {
                let i = m as usize;
                let x = x[(starts[i] + at * per_word + comptime!(column / 4)) as usize];
                sums[i] = fma(numbers, Rows::new(x.extract(comptime!((column % 4) as usize))), sums[i]);
            }
        }
        at += PARTS;
    }
}

/// The word of the scale of an FP8 weight: they lie behind the matrix.
#[cube]
pub fn fp8_scale(matrix: &Matrix, row: u32, column: u32, cols: u32) -> u32 {
    let across = cols.div_ceil(matrix.scale_cols);
    matrix.words + row / matrix.scale_rows * across + column / matrix.scale_cols
}
