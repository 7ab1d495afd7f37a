//! Linear layers: `out[i, j] = Σ_k x[i, k] · w[j, k]`, with weights that stay packed in device memory.
//!
//! Weights are expanded in registers, exactly as a reference does it, and multiplied in f32. A sum is made in one order, whatever the number
//! of rows of activations and of matrices: prefill and single tokens agree bit for bit.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::decode::{Element, Packing, code, element, four_codes, header_words, offset, scale};
use super::launch::{self, MAX_CUBES_X, new_floats};
use crate::kernels::{Layout, LinearSpec};

/// Units of a cube: for packed weights 16 parts of the columns for each of 16 rows, else 32 for each of 8.
const UNITS: u32 = 256;
/// Rows of activations that meet a weight each time it is expanded.
const TILE: u32 = 8;
/// Four activations, which are read at once.
type Quad = Vector<f32, Const<4>>;

/// How a matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    Packed(Packing),
    Plain(Element),
    /// Row after row, with rows or scales that begin where no four columns do.
    Ragged(Element),
}

impl Form {
    fn of(spec: &LinearSpec) -> Self {
        let scale_cols = spec.scale.as_deref().map_or(spec.cols, |scale| scale.block(spec.rows, spec.cols).1);
        let form = match spec.layout {
            Layout::Packed => Packing::of(spec.format).map(Self::Packed),
            Layout::Rows if spec.cols.is_multiple_of(4) && scale_cols.is_multiple_of(4) => {
                Element::of(spec.format).map(Self::Plain)
            }
            Layout::Rows => Element::of(spec.format).map(Self::Ragged),
        };
        form.expect("the loader expands what has no kernel")
    }

    /// Rows of weights of a cube.
    fn rows(self) -> u32 {
        match self {
            Self::Packed(_) => 16,
            Self::Plain(_) | Self::Ragged(_) => 8,
        }
    }

    /// Parts of the columns, a unit for each.
    fn parts(self) -> u32 {
        UNITS / self.rows()
    }

    fn is_packed(self) -> bool {
        matches!(self, Self::Packed(_))
    }

    fn packing(self) -> Packing {
        match self {
            Self::Packed(packing) => packing,
            _ => unreachable!("asked for packed matrices alone"),
        }
    }

    fn element(self) -> Element {
        match self {
            Self::Plain(element) | Self::Ragged(element) => element,
            Self::Packed(_) => unreachable!("asked for matrices in rows alone"),
        }
    }
}

/// The numbers of a matrix that a kernel takes.
#[derive(CubeType, CubeLaunch)]
struct Matrix {
    rows: u32,
    /// Words of a group of rows, or those of the matrix before its scales.
    words: u32,
    scale_rows: u32,
    scale_cols: u32,
}

impl Matrix {
    fn of(weight: &CubeTensor, spec: &LinearSpec) -> MatrixLaunch {
        let (rows, cols) = (spec.rows, spec.cols);
        let words = match spec.layout {
            Layout::Packed => weight.meta.shape()[0] / rows.div_ceil(16),
            Layout::Rows => super::weight_words(spec),
        };
        let (scale_rows, scale_cols) = spec.scale.as_deref().map_or((1, 1), |scale| scale.block(rows, cols));
        MatrixLaunch::new(rows as u32, words as u32, scale_rows as u32, scale_cols as u32)
    }
}

/// Cubes for the rows of matrices, one after the other, and rows of activations.
fn cubes(specs: &[LinearSpec], tokens: usize, tile: u32) -> CubeCount {
    let rows = specs.iter().map(|spec| spec.rows.div_ceil(Form::of(spec).rows() as usize)).sum();
    launch::cubes(rows, tokens.div_ceil(tile as usize))
}

fn tile(tokens: usize) -> u32 {
    if tokens == 1 { 1 } else { TILE }
}

/// Whether the kernels for several matrices take these.
fn together(specs: &[LinearSpec]) -> bool {
    specs.iter().all(|spec| spec.rows > 0 && !matches!(Form::of(spec), Form::Ragged(_)))
}

/// `x: [t, cols]`, contiguous, times the transposes of the matrices that `specs` describe: `[t, rows]` of each.
pub fn linear(x: CubeTensor, weights: Vec<CubeTensor>, specs: &[LinearSpec]) -> Vec<CubeTensor> {
    if let [a, b, c] = &weights[..]
        && together(specs)
        && x.meta.shape()[0] > 0
    {
        return three(x, [a, b, c].map(CubeTensor::clone), specs);
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
    let (weight, result) = (weight.into_buffer_arg(), out.clone().into_buffer_arg());
    if let Form::Ragged(element) = form {
        let count = launch::cubes((tokens * spec.rows).div_ceil(UNITS as usize), 1);
        ragged::launch(&client, count, units, x.into_buffer_arg(), weight, result, matrix, cols, t, element);
        return out;
    }
    let (tile, x) = (tile(tokens), launch::vectors(x, 4).into_buffer_arg());
    let count = cubes(std::slice::from_ref(spec), tokens, tile);
    single::launch(&client, count, units, x, weight, result, matrix, cols, t, form, tile);
    out
}

fn three(x: CubeTensor, weights: [CubeTensor; 3], specs: &[LinearSpec]) -> Vec<CubeTensor> {
    let tokens = x.meta.shape()[0];
    let outs: Vec<CubeTensor> = specs.iter().map(|spec| new_floats(&x, [tokens, spec.rows])).collect();
    let (client, tile) = (x.client.clone(), tile(tokens));
    let matrix = |i: usize| Matrix::of(&weights[i], &specs[i]);
    let matrices = (matrix(0), matrix(1), matrix(2));
    let [a, b, c] = weights.map(CubeTensor::into_buffer_arg);
    let out = |i: usize| outs[i].clone().into_buffer_arg();
    triple::launch(
        &client,
        cubes(specs, tokens, tile),
        CubeDim::new_1d(UNITS),
        launch::vectors(x, 4).into_buffer_arg(),
        a,
        b,
        c,
        out(0),
        out(1),
        out(2),
        matrices.0,
        matrices.1,
        matrices.2,
        specs[0].cols as u32,
        tokens as u32,
        Form::of(&specs[0]),
        Form::of(&specs[1]),
        Form::of(&specs[2]),
        tile,
    );
    outs
}

/// What an expert of a mixture weighs for a token: `routes: [1, n_experts]`, and its number.
pub type Route = (CubeTensor, usize);

/// `silu(x · w1ᵀ) · (x · w3ᵀ)` of matrices of one shape; if there is a `route`, of one row, and zeros if it weighs nothing. `None` if there is no kernel
/// for them.
pub fn gated(
    x: &CubeTensor,
    [w1, w3]: &[CubeTensor; 2],
    specs: &[LinearSpec],
    route: Option<Route>,
) -> Option<CubeTensor> {
    let (tokens, rows) = (x.meta.shape()[0], specs[0].rows);
    if !together(specs)
        || tokens == 0
        || rows != specs[1].rows
        || Form::of(&specs[0]).rows() != Form::of(&specs[1]).rows()
    {
        return None;
    }
    let out = new_floats(x, [tokens, rows]);
    let tile = tile(tokens);
    let routed = route.is_some();
    let (routes, expert) = route.unwrap_or((x.clone(), 0));
    pair::launch(
        &x.client,
        cubes(&specs[..1], tokens, tile),
        CubeDim::new_1d(UNITS),
        launch::vectors(x.clone(), 4).into_buffer_arg(),
        w1.clone().into_buffer_arg(),
        w3.clone().into_buffer_arg(),
        routes.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        Matrix::of(w1, &specs[0]),
        Matrix::of(w3, &specs[1]),
        specs[0].cols as u32,
        tokens as u32,
        expert as u32,
        Form::of(&specs[0]),
        Form::of(&specs[1]),
        tile,
        routed,
    );
    Some(out)
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
        weight.clone().into_buffer_arg(),
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
    weight: &[u32],
    out: &mut [f32],
    matrix: Matrix,
    cols: u32,
    tokens: u32,
    #[comptime] form: Form,
    #[comptime] tile: u32,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let mut sums = zeros(tile);
    add(x, weight, &mut sums, &matrix, block, true, cols, tokens, form, tile);
    let parts = shared(&sums, tile);
    write(&parts, out, &matrix, block, tokens, form, tile);
}

/// Rows of one of three matrices with `tile` rows of activations.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn triple(
    x: &[Quad],
    a: &[u32],
    b: &[u32],
    c: &[u32],
    a_out: &mut [f32],
    b_out: &mut [f32],
    c_out: &mut [f32],
    a_matrix: Matrix,
    b_matrix: Matrix,
    c_matrix: Matrix,
    cols: u32,
    tokens: u32,
    #[comptime] a_form: Form,
    #[comptime] b_form: Form,
    #[comptime] c_form: Form,
    #[comptime] tile: u32,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let b_block = a_matrix.rows.div_ceil(comptime!(a_form.rows()));
    let c_block = b_block + b_matrix.rows.div_ceil(comptime!(b_form.rows()));
    let mut sums = zeros(tile);
    if block < b_block {
        add(x, a, &mut sums, &a_matrix, block, true, cols, tokens, a_form, tile);
    } else if block < c_block {
        add(x, b, &mut sums, &b_matrix, block - b_block, true, cols, tokens, b_form, tile);
    } else {
        add(x, c, &mut sums, &c_matrix, block - c_block, true, cols, tokens, c_form, tile);
    }
    let parts = shared(&sums, tile);
    if block < b_block {
        write(&parts, a_out, &a_matrix, block, tokens, a_form, tile);
    } else if block < c_block {
        write(&parts, b_out, &b_matrix, block - b_block, tokens, b_form, tile);
    } else {
        write(&parts, c_out, &c_matrix, block - c_block, tokens, c_form, tile);
    }
}

/// Rows of gate and up with `tile` rows of activations, and `silu(gate) · up` of them.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn pair(
    x: &[Quad],
    gate: &[u32],
    up: &[u32],
    routes: &[f32],
    out: &mut [f32],
    gate_matrix: Matrix,
    up_matrix: Matrix,
    cols: u32,
    tokens: u32,
    expert: u32,
    #[comptime] gate_form: Form,
    #[comptime] up_form: Form,
    #[comptime] tile: u32,
    #[comptime] routed: bool,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let mut active = true;
    if comptime!(routed) {
        active = routes[expert as usize] != 0.0f32;
    }
    let mut gate_sums = zeros(tile);
    let mut up_sums = zeros(tile);
    add(x, gate, &mut gate_sums, &gate_matrix, block, active, cols, tokens, gate_form, tile);
    add(x, up, &mut up_sums, &up_matrix, block, active, cols, tokens, up_form, tile);
    let gate_parts = shared(&gate_sums, tile);
    let up_parts = shared(&up_sums, tile);
    let rows = comptime!(gate_form.rows());
    let (m, r) = (UNIT_POS / rows, UNIT_POS % rows);
    let (row, token) = (block * rows + r, CUBE_POS_Y * tile + m);
    if m < tile && row < gate_matrix.rows && token < tokens {
        let gate = total(&gate_parts, m, r, gate_form);
        let up = total(&up_parts, m, r, up_form);
        out[(token * gate_matrix.rows + row) as usize] = gate / (1.0f32 + (-gate).exp()) * up;
    }
}

/// Rows of an expert's matrix with one row of activations, times what the expert weighs, and `sum`.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn routed(
    x: &[Quad],
    weight: &[u32],
    routes: &[f32],
    sum: &[f32],
    out: &mut [f32],
    matrix: Matrix,
    cols: u32,
    expert: u32,
    #[comptime] form: Form,
) {
    let block = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let route = routes[expert as usize];
    let mut sums = zeros(1u32);
    add(x, weight, &mut sums, &matrix, block, route != 0.0f32, cols, 1u32, form, 1u32);
    let parts = shared(&sums, 1u32);
    let row = block * comptime!(form.rows()) + UNIT_POS;
    if UNIT_POS < comptime!(form.rows()) && row < matrix.rows {
        out[row as usize] = fma(total(&parts, 0u32, UNIT_POS, form), route, sum[row as usize]);
    }
}

#[cube]
fn zeros(#[comptime] tile: u32) -> Array<f32> {
    let mut sums = Array::<f32>::new(tile as usize);
    #[unroll]
    for m in 0..tile {
        sums[m as usize] = 0.0f32;
    }
    sums
}

/// The sums of all units, a row of activations after the other.
#[cube]
fn shared(sums: &Array<f32>, #[comptime] tile: u32) -> Shared<[f32]> {
    let mut parts = Shared::<[f32]>::new_slice(comptime!(UNITS * tile) as usize);
    #[unroll]
    for m in 0..tile {
        parts[(comptime!(m * UNITS) + UNIT_POS) as usize] = sums[m as usize];
    }
    sync_cube();
    parts
}

/// The product of row `r` of a cube's weights and its row `m` of activations, of its parts.
#[cube]
fn total(parts: &Shared<[f32]>, m: u32, r: u32, #[comptime] form: Form) -> f32 {
    let mut total = 0.0f32;
    #[unroll]
    for part in 0..comptime!(form.parts()) {
        let unit = if comptime!(form.is_packed()) {
            comptime!(part * form.rows()) + r
        } else {
            r * comptime!(form.parts()) + part
        };
        total += parts[(m * UNITS + unit) as usize];
    }
    total
}

/// Stores the products of a cube.
#[cube]
fn write(
    parts: &Shared<[f32]>,
    out: &mut [f32],
    matrix: &Matrix,
    block: u32,
    tokens: u32,
    #[comptime] form: Form,
    #[comptime] tile: u32,
) {
    let rows = comptime!(form.rows());
    let (m, r) = (UNIT_POS / rows, UNIT_POS % rows);
    let (row, token) = (block * rows + r, CUBE_POS_Y * tile + m);
    if m < tile && row < matrix.rows && token < tokens {
        out[(token * matrix.rows + row) as usize] = total(parts, m, r, form);
    }
}

/// Adds the products of this unit's part of the columns of its row in `block`, with each of `tile` rows of activations.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn add(
    x: &[Quad],
    weight: &[u32],
    sums: &mut Array<f32>,
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
    if comptime!(form.is_packed()) {
        let active = active && block * comptime!(form.rows()) < matrix.rows;
        packed(x, weight, sums, &starts, matrix.words, block, active, cols, comptime!(form.packing()), tile);
    } else {
        plain(x, weight, sums, &starts, matrix, block, active, cols, comptime!(form.element()), tile);
    }
}

/// A unit for each of 16 rows and 16 parts of the columns, in blocks of 32. The words of 16 rows lie side by side, so that neighbouring units
/// read neighbouring words.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn packed(
    x: &[Quad],
    weight: &[u32],
    sums: &mut Array<f32>,
    starts: &Array<u32>,
    words: u32,
    group: u32,
    active: bool,
    cols: u32,
    #[comptime] packing: Packing,
    #[comptime] tile: u32,
) {
    let lane = UNIT_POS % 16u32;
    let chunk_words = comptime!(packing.header_words() + 8 * packing.code_words());
    let blocks = cols / 32u32;
    let mut b = select(active, UNIT_POS / 16u32, blocks);
    while b < blocks {
        let chunk = b / 8u32;
        let block = b % 8u32;
        let header = group * words + chunk * chunk_words;
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
                let mut w = Array::<f32>::new(4usize);
                #[unroll]
                for byte in 0..4u32 {
                    w[byte as usize] = fma(code(four, byte, packing), by, plus);
                }
                multiply(x, &w, sums, starts, b * 8u32 + g, tile);
            }
        }
        b += 16u32;
    }
}

/// Adds the products of four weights with the activations `quad` of each row.
#[cube]
fn multiply(
    x: &[Quad],
    w: &Array<f32>,
    sums: &mut Array<f32>,
    starts: &Array<u32>,
    quad: u32,
    #[comptime] tile: u32,
) {
    #[unroll]
    for m in 0..tile {
        let four = x[(starts[m as usize] + quad) as usize];
        #[unroll]
        for i in 0..4usize {
            sums[m as usize] = fma(w[i], four.extract(i), sums[m as usize]);
        }
    }
}

/// 32 units for each of 8 rows that lie row after row, four columns at a time.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn plain(
    x: &[Quad],
    weight: &[u32],
    sums: &mut Array<f32>,
    starts: &Array<u32>,
    matrix: &Matrix,
    block: u32,
    active: bool,
    cols: u32,
    #[comptime] kind: Element,
    #[comptime] tile: u32,
) {
    let per_word = comptime!(kind.per_word() as u32);
    let row = block * 8u32 + UNIT_POS / 32u32;
    let quads = cols / 4u32;
    let mut quad = select(active && row < matrix.rows, UNIT_POS % 32u32, quads);
    while quad < quads {
        let word = (row * quads + quad) * comptime!(4 / per_word);
        let mut w = Array::<f32>::new(4usize);
        #[unroll]
        for i in 0..4u32 {
            let bits = weight[(word + comptime!(i / per_word)) as usize];
            w[i as usize] = element(bits, comptime!(i % per_word), kind);
        }
        if comptime!(matches!(kind, Element::F8E4M3)) {
            let scale = fp8_scale(weight, matrix, row, quad * 4u32, cols);
            #[unroll]
            for i in 0..4usize {
                w[i] *= scale;
            }
        }
        multiply(x, &w, sums, starts, quad, tile);
        quad += 32u32;
    }
}

/// The scale of an FP8 weight: they lie behind the matrix.
#[cube]
fn fp8_scale(weight: &[u32], matrix: &Matrix, row: u32, column: u32, cols: u32) -> f32 {
    let across = cols.div_ceil(matrix.scale_cols);
    let scale = row / matrix.scale_rows * across + column / matrix.scale_cols;
    f32::reinterpret(weight[(matrix.words + scale) as usize])
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
                w *= fp8_scale(weight, &matrix, row, column, cols);
            }
            sum = fma(w, x[(token * cols + column) as usize], sum);
        }
        out[at as usize] = sum;
    }
}
