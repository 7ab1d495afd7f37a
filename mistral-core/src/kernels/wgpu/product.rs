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

/// Rows of activations `[tokens, cols]`: `x`, or what RMSNorm with the weights `gain` makes of `x + r`. A product with the latter is first summed up
/// as if the mean square were one, and then divided by its root ([`root`]): one pass reads it all.
#[derive(CubeType)]
pub struct Input<'a> {
    pub x: &'a [Quad],
    pub r: &'a [Quad],
    pub gain: &'a [Quad],
    pub tokens: u32,
    pub cols: u32,
    #[cube(comptime)]
    pub normed: bool,
}

#[cube]
impl<'a> Input<'a> {
    /// `r` and `gain` are any buffers where nothing is normed.
    pub fn new(
        x: &'a [Quad],
        r: &'a [Quad],
        gain: &'a [Quad],
        tokens: u32,
        cols: u32,
        #[comptime] normed: bool,
    ) -> Self {
        Input::<'a> { x, r, gain, tokens, cols, normed }
    }
}

/// What the units of a cube have added up, for each of a tile of rows of activations.
#[derive(CubeType)]
pub struct Sums {
    /// The products with four rows of weights.
    pub products: Array<Rows>,
    /// The squares of the activations, where they are normed.
    pub squares: Array<f32>,
}

/// Nothing yet, of `tile` rows of activations.
#[cube]
pub fn nothing(#[comptime] tile: u32) -> Sums {
    let mut squares = Array::<f32>::new(tile as usize);
    #[unroll]
    for m in 0..tile {
        squares[m as usize] = 0.0f32;
    }
    Sums { products: zeros(tile), squares }
}

#[cube]
fn zeros(#[comptime] tile: u32) -> Array<Rows> {
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
    input: &Input<'_>,
    sums: &Sums,
    room: &mut Shared<[f32]>,
    eps: f32,
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
            let product = sums.products[m as usize].extract(comptime!(i as usize));
            room[(part * ROWS + quad * 4u32 + i) as usize] = product;
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
    if comptime!(input.normed) {
        total /= root(&sums.squares, room, input.cols, eps, form, tile);
    }
    total
}

/// The root of the mean square of the cube's row `UNIT_POS / 16` of activations.
#[cube]
fn root(
    squares: &Array<f32>,
    room: &mut Shared<[f32]>,
    cols: u32,
    eps: f32,
    #[comptime] form: Form,
    #[comptime] tile: u32,
) -> f32 {
    let (quad, part) = place(form);
    let group = UNIT_POS / ROWS;
    sync_cube();
    // Units with other rows of weights have added up the same.
    if quad == 0u32 {
        #[unroll]
        for m in 0..tile {
            room[(comptime!(m * PARTS) + part) as usize] = squares[m as usize];
        }
    }
    sync_cube();
    let mut total = 0.0f32;
    if group < tile {
        for part in 0..PARTS {
            total += room[(group * PARTS + part) as usize];
        }
    }
    (total / f32::cast_from(cols) + eps).sqrt()
}

/// Adds the products of this unit's rows and part of the columns of `block`, with each of `tile` rows of activations.
#[cube]
pub fn add(
    input: &Input<'_>,
    weight: &[Words],
    sums: &mut Sums,
    matrix: &Matrix,
    block: u32,
    active: bool,
    #[comptime] form: Form,
    #[comptime] tile: u32,
) {
    let first = CUBE_POS_Y * tile;
    let mut starts = Array::<u32>::new(tile as usize);
    #[unroll]
    for m in 0..tile {
        starts[m as usize] = min(first + m, input.tokens - 1u32) * (input.cols / 4u32);
    }
    let (quad, part) = place(form);
    let active = active && block * ROWS < matrix.rows;
    if comptime!(form.is_packed()) {
        let words = block * matrix.words;
        let packing = comptime!(form.packing());
        packed(input, weight, sums, &starts, words, quad, part, active, packing, tile);
    } else {
        let row = block * ROWS + quad * 4u32;
        plain(input, weight, sums, &starts, matrix, row, part, active, comptime!(form.element()), tile);
    }
}

/// Four activations, at `quad` of the row that begins at `start`; their squares are added up where they are normed, and their sum is always.
#[cube]
fn read(input: &Input<'_>, start: u32, quad: u32, squares: &mut f32, all: &mut f32) -> Quad {
    let at = (start + quad) as usize;
    let mut x = input.x[at];
    if comptime!(input.normed) {
        x += input.r[at];
        let gain = input.gain[quad as usize];
        // Fused on purpose: a compiler that does it here and not there would give a row other bits among others than alone.
        #[unroll]
        for i in 0..4usize {
            *squares = fma(x.extract(i), x.extract(i), *squares);
            *all = fma(x.extract(i), gain.extract(i), *all);
        }
        x *= gain;
    } else {
        *all += (x.extract(0usize) + x.extract(1usize)) + (x.extract(2usize) + x.extract(3usize));
    }
    x
}

/// Blocks of 32 columns: the products of codes and activations, and the activations themselves, are added up before scale and offset come in.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn packed(
    input: &Input<'_>,
    weight: &[Words],
    sums: &mut Sums,
    starts: &Array<u32>,
    words_before: u32,
    quad: u32,
    part: u32,
    active: bool,
    #[comptime] packing: Packing,
    #[comptime] tile: u32,
) {
    let spans = comptime!(if packing.has_half_scales() { 2u32 } else { 1u32 });
    let blocks = input.cols / 32u32;
    let mut b = select(active, part, blocks);
    while b < blocks {
        let (header, codes) = block_place(words_before, b, blocks, packing);
        let (block, codes) = (b % 8u32, codes + quad);
        // Of a row alone, all that comes from memory at once, so that nothing waits twice; of several, less code and fewer registers.
        let mut words = Array::<Words>::new(comptime!((packing.code_words() / 16) as usize));
        let mut near = Array::<Quad>::new(8usize);
        let mut near_all = Array::<f32>::new(2usize);
        if comptime!(tile == 1) {
            #[unroll]
            for i in 0..comptime!(packing.code_words() / 16) {
                words[i as usize] = weight[(codes + comptime!(4 * i)) as usize];
            }
            #[unroll]
            for span in 0..spans {
                let mut all = 0.0f32;
                #[unroll]
                for g in comptime!(span * 8 / spans)..comptime!((span + 1) * 8 / spans) {
                    let quad = b * 8u32 + g;
                    near[g as usize] = read(input, starts[0usize], quad, &mut sums.squares[0usize], &mut all);
                }
                near_all[span as usize] = all;
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
                all[0usize] = near_all[span as usize];
                #[unroll]
                for g in comptime!(span * 8 / spans)..comptime!((span + 1) * 8 / spans) {
                    let numbers = numbers(comptime_codes(&words, g, packing), packing);
                    multiply(&numbers, near[g as usize], &mut products, 0u32);
                }
            } else {
                for g in comptime!(span * 8 / spans)..comptime!((span + 1) * 8 / spans) {
                    let numbers = numbers(read_codes(weight, codes, g, packing), packing);
                    #[unroll]
                    for m in 0..tile {
                        let i = m as usize;
                        let quad = b * 8u32 + g;
                        let x = read(input, starts[i], quad, &mut sums.squares[i], &mut all[i]);
                        multiply(&numbers, x, &mut products, m);
                    }
                }
            }
            #[unroll]
            for m in 0..tile {
                let i = m as usize;
                sums.products[i] = fma(products[i], by, fma(plus, Rows::new(all[i]), sums.products[i]));
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

/// Adds the products of four columns with the activations `x` of row `m`.
#[cube]
fn multiply(numbers: &Array<Rows>, x: Quad, products: &mut Array<Rows>, #[comptime] m: u32) {
    let m = m as usize;
    #[unroll]
    for byte in 0..4usize {
        products[m] = fma(numbers[byte], Rows::new(x.extract(byte)), products[m]);
    }
}

/// Rows one after the other, four words of each at a time.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn plain(
    input: &Input<'_>,
    weight: &[Words],
    sums: &mut Sums,
    starts: &Array<u32>,
    matrix: &Matrix,
    first_row: u32,
    part: u32,
    active: bool,
    #[comptime] kind: Element,
    #[comptime] tile: u32,
) {
    let per_word = comptime!(kind.per_word() as u32);
    let columns = comptime!(4 * per_word);
    let count = input.cols / columns;
    let mut at = select(active, part, count);
    while at < count {
        let mut words = Array::<Words>::new(4usize);
        let mut scales = Rows::new(1.0f32);
        #[unroll]
        for i in 0..4u32 {
            let row = min(first_row + i, matrix.rows - 1u32);
            words[i as usize] = weight[(row * count + at) as usize];
            if comptime!(matches!(kind, Element::F8E4M3)) {
                let word = fp8_scale(matrix, row, at * columns, input.cols);
                let four = weight[(word / 4u32) as usize];
                scales.insert(comptime!(i as usize), f32::reinterpret(pick(four, word % 4u32)));
            }
        }
        #[unroll]
        for quad in 0..per_word {
            let mut four = Array::<Rows>::new(4usize);
            #[unroll]
            for column in 0..4u32 {
                let mut numbers = Rows::empty();
                #[unroll]
                for i in 0..4usize {
                    let at = comptime!(4 * quad + column);
                    let word = words[i].extract(comptime!((at / per_word) as usize));
                    numbers.insert(i, element(word, comptime!(at % per_word), kind));
                }
                if comptime!(matches!(kind, Element::F8E4M3)) {
                    numbers *= scales;
                }
                four[column as usize] = numbers;
            }
            #[unroll]
            for m in 0..tile {
                let i = m as usize;
                let mut all = 0.0f32;
                let x = read(input, starts[i], at * per_word + quad, &mut sums.squares[i], &mut all);
                multiply(&four, x, &mut sums.products, m);
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
