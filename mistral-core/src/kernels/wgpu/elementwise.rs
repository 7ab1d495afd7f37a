//! Norms and gates.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{self, MAX_CUBES_X, new_floats, over_cube};

/// Units of a cube.
const UNITS: u32 = 256;

fn shape(x: &CubeTensor) -> [usize; 2] {
    [x.meta.shape()[0], x.meta.shape()[1]]
}

/// `x / sqrt(mean(x²) + eps) · weight`, row by row.
pub fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let [_, normed] = norm(x, None, weight, eps);
    normed
}

/// The sum of `x` and `r`, and its [`rms_norm`].
pub fn add_rms_norm(x: CubeTensor, r: CubeTensor, weight: CubeTensor, eps: f32) -> [CubeTensor; 2] {
    norm(x, Some(r), weight, eps)
}

fn norm(x: CubeTensor, r: Option<CubeTensor>, weight: CubeTensor, eps: f32) -> [CubeTensor; 2] {
    let [t, dim] = shape(&x);
    let add = r.is_some();
    let (sum, out) = (if add { new_floats(&x, [t, dim]) } else { x.clone() }, new_floats(&x, [t, dim]));
    if t == 0 || dim == 0 {
        return [sum, out];
    }
    rms_norm_kernel::launch(
        &x.client,
        launch::cubes(t, 1),
        CubeDim::new_1d(UNITS),
        x.clone().into_buffer_arg(),
        r.unwrap_or_else(|| x.clone()).into_buffer_arg(),
        weight.into_buffer_arg(),
        sum.clone().into_buffer_arg(),
        out.clone().into_buffer_arg(),
        t as u32,
        dim as u32,
        eps,
        add,
        launch::planes(&x),
    );
    [sum, out]
}

/// A row for each cube.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn rms_norm_kernel(
    x: &[f32],
    r: &[f32],
    weight: &[f32],
    sum: &mut [f32],
    out: &mut [f32],
    t: u32,
    dim: u32,
    eps: f32,
    #[comptime] add: bool,
    #[comptime] planes: bool,
) {
    let row = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let mut room = Shared::<[f32]>::new_slice(comptime!(UNITS + UNITS.isqrt()) as usize);
    let mut squares = 0.0f32;
    let first = select(row < t, UNIT_POS, dim);
    let mut i = first;
    while i < dim {
        let at = (row * dim + i) as usize;
        let mut value = x[at];
        if comptime!(add) {
            value += r[at];
            sum[at] = value;
        }
        squares = fma(value, value, squares);
        i += UNITS;
    }
    let total = over_cube(squares, &mut room, UNITS, false, planes);
    let root = (total / f32::cast_from(dim) + eps).sqrt();
    let mut i = first;
    while i < dim {
        let at = (row * dim + i) as usize;
        let value = if comptime!(add) { sum[at] } else { x[at] };
        out[at] = value / root * weight[i as usize];
        i += UNITS;
    }
}

/// The softmax of the `k` largest of each row of `logits: [t, n]`, 0 for the others.
pub fn route(logits: CubeTensor, k: usize) -> CubeTensor {
    let [t, n] = shape(&logits);
    let out = new_floats(&logits, [t, n]);
    if t == 0 {
        return out;
    }
    let client = logits.client.clone();
    route_kernel::launch(
        &client,
        launch::cubes(t.div_ceil(UNITS as usize), 1),
        CubeDim::new_1d(UNITS),
        logits.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        t as u32,
        n as u32,
        k as u32,
    );
    out
}

/// A row for each unit: a handful of numbers.
#[cube(launch)]
fn route_kernel(logits: &[f32], out: &mut [f32], t: u32, n: u32, k: u32) {
    let row = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if row < t {
        let first = row * n;
        let mut largest = logits[first as usize];
        for e in 1..n {
            largest = max(largest, logits[(first + e) as usize]);
        }
        let mut total = 0.0f32;
        for e in 0..n {
            // Chosen, if fewer than k come before it; of equal ones the first.
            let logit = logits[(first + e) as usize];
            let mut before = 0u32;
            for other in 0..n {
                let rival = logits[(first + other) as usize];
                let comes_before = rival > logit || (rival == logit && other < e);
                before += select(comes_before, 1u32, 0u32);
            }
            let weight = select(before < k, (logit - largest).exp(), 0.0f32);
            out[(first + e) as usize] = weight;
            total += weight;
        }
        for e in 0..n {
            out[(first + e) as usize] /= total;
        }
    }
}

/// `silu(gate) · up`.
pub fn swiglu(gate: CubeTensor, up: CubeTensor) -> CubeTensor {
    let [t, width] = shape(&gate);
    let out = new_floats(&gate, [t, width]);
    let count = t * width;
    if count == 0 {
        return out;
    }
    let client = gate.client.clone();
    swiglu_kernel::launch(
        &client,
        launch::cubes(count.div_ceil(UNITS as usize), 1),
        CubeDim::new_1d(UNITS),
        gate.into_buffer_arg(),
        up.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        count as u32,
    );
    out
}

#[cube(launch)]
fn swiglu_kernel(gate: &[f32], up: &[f32], out: &mut [f32], count: u32) {
    let i = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if i < count {
        let value = gate[i as usize];
        out[i as usize] = value / (1.0f32 + (-value).exp()) * up[i as usize];
    }
}
