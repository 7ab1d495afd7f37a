//! Linear layers: `out[i, j] = Σ_k x[i, k] · w[j, k]`, with weights that stay packed in device memory.
//!
//! Everything is multiplied in f32. A sum is made in one order, whatever the number of matrices and of rows of activations (`product.rs`), up to
//! [`ROWS_ALIKE`]; more rows have a kernel of their own (`many.rs`).

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::decode::{Element, Packing, Words, element};
use super::launch::{self, MAX_CUBES_X, all_new_floats, new_floats};
use super::many;
use super::product::{Input, Quad, ROWS, add, fp8_scale, nothing, room, total};
use crate::kernels::{Layout, LinearSpec, ROWS_ALIKE};

/// Units of a cube.
pub const UNITS: u32 = 256;
/// Rows of activations that meet a weight each time it is expanded.
const TILE: u32 = 8;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    Packed(Packing),
    Plain(Element),
    /// Row after row, with rows or scales that begin where no four words do.
    Ragged(Element),
}

impl Form {
    fn of(spec: &LinearSpec) -> Self {
        let scale_cols = spec.scale.as_deref().map_or(spec.cols, |scale| scale.block(spec.rows, spec.cols).1);
        let whole = |element: &Element| {
            let columns = 4 * element.per_word();
            spec.cols.is_multiple_of(columns) && scale_cols.is_multiple_of(columns)
        };
        let form = match spec.layout {
            Layout::Packed => Packing::of(spec.format).map(Self::Packed),
            Layout::Rows => Element::of(spec.format).map(|element| match whole(&element) {
                true => Self::Plain(element),
                false => Self::Ragged(element),
            }),
        };
        form.expect("the loader expands what has no kernel")
    }

    pub fn is_packed(self) -> bool {
        matches!(self, Self::Packed(_))
    }

    pub fn packing(self) -> Packing {
        match self {
            Self::Packed(packing) => packing,
            _ => unreachable!("asked for packed matrices alone"),
        }
    }

    pub fn element(self) -> Element {
        match self {
            Self::Plain(element) | Self::Ragged(element) => element,
            Self::Packed(_) => unreachable!("asked for matrices in rows alone"),
        }
    }
}

/// The numbers of a matrix that a kernel takes.
#[derive(CubeType, CubeLaunch)]
pub struct Matrix {
    pub rows: u32,
    /// Words of a group of rows, or those of the matrix before its scales.
    pub words: u32,
    pub scale_rows: u32,
    pub scale_cols: u32,
}

impl Matrix {
    fn of(weight: &CubeTensor, spec: &LinearSpec) -> MatrixLaunch {
        let (rows, cols) = (spec.rows, spec.cols);
        let words = match spec.layout {
            Layout::Packed => weight.meta.shape()[0] / rows.div_ceil(ROWS as usize),
            Layout::Rows => super::weight_words(spec),
        };
        let (scale_rows, scale_cols) = spec.scale.as_deref().map_or((1, 1), |scale| scale.block(rows, cols));
        MatrixLaunch::new(rows as u32, words as u32, scale_rows as u32, scale_cols as u32)
    }
}

/// Cubes for the rows of matrices, one after the other, and rows of activations.
fn cubes(specs: &[LinearSpec], tokens: usize, tile: u32) -> CubeCount {
    let rows = specs.iter().map(|spec| spec.rows.div_ceil(ROWS as usize)).sum();
    launch::cubes(rows, tokens.div_ceil(tile as usize))
}

fn tile(tokens: usize) -> u32 {
    if tokens == 1 { 1 } else { TILE }
}

/// Whether these are rows of activations that each have the bits of a row alone, on an adapter that has the buffers of the kernels for several matrices.
fn few(x: &CubeTensor) -> bool {
    (1..=ROWS_ALIKE).contains(&x.meta.shape()[0]) && launch::has_buffers(x, 10)
}

/// Whether the kernels for several matrices take these.
fn together(specs: &[LinearSpec]) -> bool {
    specs.iter().all(|spec| spec.rows > 0 && !matches!(Form::of(spec), Form::Ragged(_)))
}

/// `x: [t, cols]`, contiguous, times the transposes of the matrices that `specs` describe: `[t, rows]` of each.
pub fn linear(x: CubeTensor, weights: Vec<CubeTensor>, specs: &[LinearSpec]) -> Vec<CubeTensor> {
    if let [a, b, c] = &weights[..]
        && together(specs)
        && few(&x)
    {
        return three(&x, [a, b, c].map(CubeTensor::clone), specs, None);
    }
    weights.into_iter().zip(specs).map(|(weight, spec)| one(x.clone(), weight, spec)).collect()
}

fn one(x: CubeTensor, weight: CubeTensor, spec: &LinearSpec) -> CubeTensor {
    let tokens = x.meta.shape()[0];
    let out = new_floats(&x, [tokens, spec.rows]);
    if tokens == 0 || spec.rows == 0 {
        return out;
    }
    let (client, form, matrix) = (x.client.clone(), Form::of(spec), Matrix::of(&weight, spec));
    let (cols, t, units) = (spec.cols as u32, tokens as u32, CubeDim::new_1d(UNITS));
    let result = out.clone().into_buffer_arg();
    if let Form::Ragged(element) = form {
        let count = launch::cubes((tokens * spec.rows).div_ceil(UNITS as usize), 1);
        let (x, weight) = (x.into_buffer_arg(), weight.into_buffer_arg());
        ragged::launch(&client, count, units, x, weight, result, matrix, cols, t, element);
        return out;
    }
    let weight = launch::vectors(weight, 4).into_buffer_arg();
    let x = launch::vectors(x, 4).into_buffer_arg();
    if tokens > ROWS_ALIKE && cols.is_multiple_of(many::DEPTH) {
        let side = many::SIDE as usize;
        let count = launch::cubes(spec.rows.div_ceil(side), tokens.div_ceil(side));
        many::many::launch(&client, count, units, x, weight, result, matrix, cols, t, form);
        return out;
    }
    let tile = tile(tokens);
    let count = cubes(std::slice::from_ref(spec), tokens, tile);
    single::launch(&client, count, units, x, weight, result, matrix, cols, t, form, tile);
    out
}

/// What a kernel makes of `x` before it multiplies it.
pub struct Norm {
    /// Is added first: `[t, cols]`.
    pub r: CubeTensor,
    /// `[cols]`
    pub weight: CubeTensor,
    pub eps: f32,
}

/// The sum of `x` and what a norm adds to it, and the [`linear`] of the norm of that. `None` if there is no kernel for these.
pub fn normed(
    x: &CubeTensor,
    norm: Norm,
    weights: &[CubeTensor],
    specs: &[LinearSpec],
) -> Option<Vec<CubeTensor>> {
    match weights {
        [a, b, c] if together(specs) && few(x) => {
            Some(three(x, [a, b, c].map(CubeTensor::clone), specs, Some(norm)))
        }
        _ => None,
    }
}

/// Products of `x` with three matrices; after the sum of `x` and `r`, if there is a norm.
fn three(
    x: &CubeTensor,
    weights: [CubeTensor; 3],
    specs: &[LinearSpec],
    norm: Option<Norm>,
) -> Vec<CubeTensor> {
    let (tokens, cols) = (x.meta.shape()[0], x.meta.shape()[1]);
    let normed = norm.is_some();
    let shapes = normed.then_some([tokens, cols]).into_iter();
    let results = all_new_floats(x, shapes.chain(specs.iter().map(|spec| [tokens, spec.rows])));
    // What a kernel does not use has to be some buffer.
    let Norm { r, weight, eps } = norm.unwrap_or_else(|| Norm { r: x.clone(), weight: x.clone(), eps: 0.0 });
    let (sum, outs) = if normed { (&results[0], &results[1..]) } else { (x, &results[..]) };
    let tile = tile(tokens);
    let matrix = |i: usize| Matrix::of(&weights[i], &specs[i]);
    let matrices = (matrix(0), matrix(1), matrix(2));
    let [a, b, c] = weights.map(|weight| launch::vectors(weight, 4).into_buffer_arg());
    let out = |i: usize| outs[i].clone().into_buffer_arg();
    triple::launch(
        &x.client,
        cubes(specs, tokens, tile),
        CubeDim::new_1d(UNITS),
        launch::vectors(x.clone(), 4).into_buffer_arg(),
        launch::vectors(r, 4).into_buffer_arg(),
        launch::vectors(weight, 4).into_buffer_arg(),
        a,
        b,
        c,
        launch::vectors(sum.clone(), 4).into_buffer_arg(),
        out(0),
        out(1),
        out(2),
        matrices.0,
        matrices.1,
        matrices.2,
        cols as u32,
        tokens as u32,
        eps,
        Form::of(&specs[0]),
        Form::of(&specs[1]),
        Form::of(&specs[2]),
        tile,
        normed,
    );
    results
}

/// What an expert of a mixture weighs for a token: `routes: [1, n_experts]`, and its number.
pub type Route = (CubeTensor, usize);

/// `silu(x · w1ᵀ) · (x · w3ᵀ)` of matrices of one shape; if there is a `route`, of one row, and zeros if it weighs nothing. `None` if there is no kernel
/// for them.
pub fn gated(
    x: &CubeTensor,
    weights: &[CubeTensor; 2],
    specs: &[LinearSpec],
    route: Option<Route>,
) -> Option<CubeTensor> {
    two(x, weights, specs, route, None)?.pop()
}

/// The sum of `x` and what a norm adds to it, and the [`gated`] of the norm of that.
pub fn normed_gated(
    x: &CubeTensor,
    norm: Norm,
    weights: &[CubeTensor; 2],
    specs: &[LinearSpec],
) -> Option<Vec<CubeTensor>> {
    two(x, weights, specs, None, Some(norm))
}

fn two(
    x: &CubeTensor,
    [w1, w3]: &[CubeTensor; 2],
    specs: &[LinearSpec],
    route: Option<Route>,
    norm: Option<Norm>,
) -> Option<Vec<CubeTensor>> {
    let (tokens, cols, rows) = (x.meta.shape()[0], x.meta.shape()[1], specs[0].rows);
    if !together(specs) || !few(x) || rows != specs[1].rows {
        return None;
    }
    let (normed, routed) = (norm.is_some(), route.is_some());
    let results = all_new_floats(x, normed.then_some([tokens, cols]).into_iter().chain([[tokens, rows]]));
    let sum = if normed { results[0].clone() } else { x.clone() };
    let Norm { r, weight, eps } = norm.unwrap_or_else(|| Norm { r: x.clone(), weight: x.clone(), eps: 0.0 });
    let (routes, expert) = route.unwrap_or((x.clone(), 0));
    let tile = tile(tokens);
    pair::launch(
        &x.client,
        cubes(&specs[..1], tokens, tile),
        CubeDim::new_1d(UNITS),
        launch::vectors(x.clone(), 4).into_buffer_arg(),
        launch::vectors(r, 4).into_buffer_arg(),
        launch::vectors(weight, 4).into_buffer_arg(),
        launch::vectors(w1.clone(), 4).into_buffer_arg(),
        launch::vectors(w3.clone(), 4).into_buffer_arg(),
        routes.into_buffer_arg(),
        launch::vectors(sum, 4).into_buffer_arg(),
        results[usize::from(normed)].clone().into_buffer_arg(),
        Matrix::of(w1, &specs[0]),
        Matrix::of(w3, &specs[1]),
        cols as u32,
        tokens as u32,
        expert as u32,
        eps,
        Form::of(&specs[0]),
        Form::of(&specs[1]),
        tile,
        normed,
        routed,
    );
    Some(results)
}

/// `sum` and the product of one row with a matrix of an expert, times what the expert weighs. `None` if there is no kernel for it.
pub fn weighed(
    sum: &CubeTensor,
    x: &CubeTensor,
    weight: &CubeTensor,
    (routes, expert): Route,
    spec: &LinearSpec,
) -> Option<CubeTensor> {
    if !together(std::slice::from_ref(spec)) {
        return None;
    }
    let out = new_floats(x, [1, spec.rows]);
    routed::launch(
        &x.client,
        cubes(std::slice::from_ref(spec), 1, 1),
        CubeDim::new_1d(UNITS),
        launch::vectors(x.clone(), 4).into_buffer_arg(),
        launch::vectors(weight.clone(), 4).into_buffer_arg(),
        routes.into_buffer_arg(),
        sum.clone().into_buffer_arg(),
        out.clone().into_buffer_arg(),
        Matrix::of(weight, spec),
        spec.cols as u32,
        expert as u32,
        Form::of(spec),
    );
    Some(out)
}

/// Rows of one matrix with `tile` rows of activations.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn single(
    x: &[Quad],
    weight: &[Words],
    out: &mut [f32],
    matrix: Matrix,
    cols: u32,
    tokens: u32,
    #[comptime] form: Form,
    #[comptime] tile: u32,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let input = Input::new(x, x, x, tokens, cols, false);
    let mut room = room(tile);
    let mut sums = nothing(tile);
    add(&input, weight, &mut sums, &matrix, block, true, form, tile);
    write(total(&input, &sums, &mut room, 0.0f32, form, tile), out, matrix.rows, block, tokens, tile);
}

/// Rows of one of three matrices with `tile` rows of activations.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn triple(
    x: &[Quad],
    r: &[Quad],
    gain: &[Quad],
    a: &[Words],
    b: &[Words],
    c: &[Words],
    sum: &mut [Quad],
    a_out: &mut [f32],
    b_out: &mut [f32],
    c_out: &mut [f32],
    a_matrix: Matrix,
    b_matrix: Matrix,
    c_matrix: Matrix,
    cols: u32,
    tokens: u32,
    eps: f32,
    #[comptime] a_form: Form,
    #[comptime] b_form: Form,
    #[comptime] c_form: Form,
    #[comptime] tile: u32,
    #[comptime] normed: bool,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let b_block = a_matrix.rows.div_ceil(ROWS);
    let c_block = b_block + b_matrix.rows.div_ceil(ROWS);
    let input = Input::new(x, r, gain, tokens, cols, normed);
    let mut room = room(tile);
    let mut sums = nothing(tile);
    // The branches are a cube's, so all of its units wait in the same one.
    if block < b_block {
        add(&input, a, &mut sums, &a_matrix, block, true, a_form, tile);
        let product = total(&input, &sums, &mut room, eps, a_form, tile);
        write(product, a_out, a_matrix.rows, block, tokens, tile);
    } else if block < c_block {
        add(&input, b, &mut sums, &b_matrix, block - b_block, true, b_form, tile);
        let product = total(&input, &sums, &mut room, eps, b_form, tile);
        write(product, b_out, b_matrix.rows, block - b_block, tokens, tile);
    } else {
        add(&input, c, &mut sums, &c_matrix, block - c_block, true, c_form, tile);
        let product = total(&input, &sums, &mut room, eps, c_form, tile);
        write(product, c_out, c_matrix.rows, block - c_block, tokens, tile);
    }
    if comptime!(normed) {
        write_sum(&input, sum, block, tile);
    }
}

/// Rows of gate and up with `tile` rows of activations, and `silu(gate) · up` of them.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn pair(
    x: &[Quad],
    r: &[Quad],
    gain: &[Quad],
    gate: &[Words],
    up: &[Words],
    routes: &[f32],
    sum: &mut [Quad],
    out: &mut [f32],
    gate_matrix: Matrix,
    up_matrix: Matrix,
    cols: u32,
    tokens: u32,
    expert: u32,
    eps: f32,
    #[comptime] gate_form: Form,
    #[comptime] up_form: Form,
    #[comptime] tile: u32,
    #[comptime] normed: bool,
    #[comptime] routed: bool,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let input = Input::new(x, r, gain, tokens, cols, normed);
    let mut room = room(tile);
    let mut active = true;
    if comptime!(routed) {
        active = routes[expert as usize] != 0.0f32;
    }
    let mut sums = nothing(tile);
    add(&input, gate, &mut sums, &gate_matrix, block, active, gate_form, tile);
    let gate = total(&input, &sums, &mut room, eps, gate_form, tile);
    let mut sums = nothing(tile);
    add(&input, up, &mut sums, &up_matrix, block, active, up_form, tile);
    let up = total(&input, &sums, &mut room, eps, up_form, tile);
    write(gate / (1.0f32 + (-gate).exp()) * up, out, gate_matrix.rows, block, tokens, tile);
    if comptime!(normed) {
        write_sum(&input, sum, block, tile);
    }
}

/// Rows of an expert's matrix with one row of activations, times what the expert weighs, and `sum`.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn routed(
    x: &[Quad],
    weight: &[Words],
    routes: &[f32],
    sum: &[f32],
    out: &mut [f32],
    matrix: Matrix,
    cols: u32,
    expert: u32,
    #[comptime] form: Form,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let input = Input::new(x, x, x, 1u32, cols, false);
    let mut room = room(1u32);
    let route = routes[expert as usize];
    let mut sums = nothing(1u32);
    add(&input, weight, &mut sums, &matrix, block, route != 0.0f32, form, 1u32);
    let product = total(&input, &sums, &mut room, 0.0f32, form, 1u32);
    let row = block * ROWS + UNIT_POS;
    if UNIT_POS < ROWS && row < matrix.rows {
        out[row as usize] = fma(product, route, sum[row as usize]);
    }
}

/// Stores the products of a cube.
#[cube]
fn write(product: f32, out: &mut [f32], rows: u32, block: u32, tokens: u32, #[comptime] tile: u32) {
    let (m, row) = (UNIT_POS / ROWS, block * ROWS + UNIT_POS % ROWS);
    let token = CUBE_POS_Y * tile + m;
    if m < tile && row < rows && token < tokens {
        out[(token * rows + row) as usize] = product;
    }
}

/// Stores the cube's rows of what is normed, if it is the first of those that read them.
#[cube]
fn write_sum(input: &Input<'_>, sum: &mut [Quad], block: u32, #[comptime] tile: u32) {
    let quads = input.cols / 4u32;
    let first = CUBE_POS_Y * tile * quads;
    let end = min(first + tile * quads, input.tokens * quads);
    let mut at = select(block == 0u32, first + UNIT_POS, end);
    while at < end {
        sum[at as usize] = input.x[at as usize] + input.r[at as usize];
        at += UNITS;
    }
}

/// A product for each unit, column after column: no model has such a width, and it is not made to be fast.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn ragged(
    x: &[f32],
    weight: &[u32],
    out: &mut [f32],
    matrix: Matrix,
    cols: u32,
    tokens: u32,
    #[comptime] kind: Element,
) {
    let per_word = comptime!(kind.per_word() as u32);
    let at = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < tokens * matrix.rows {
        let (token, row) = (at / matrix.rows, at % matrix.rows);
        let mut sum = 0.0f32;
        for column in 0..cols {
            let place = row * cols + column;
            let bits = weight[(place / per_word) as usize] >> (place % per_word * comptime!(32 / per_word));
            let mut w = element(bits, 0u32, kind);
            if comptime!(matches!(kind, Element::F8E4M3)) {
                w *= f32::reinterpret(weight[fp8_scale(&matrix, row, column, cols) as usize]);
            }
            sum = fma(w, x[(token * cols + column) as usize], sum);
        }
        out[at as usize] = sum;
    }
}
