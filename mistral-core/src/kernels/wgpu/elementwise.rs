//! Norms, rotations and gates.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{self, MAX_CUBES_X, new_floats};
use crate::config::RopeStyle;

/// Units of a cube.
const UNITS: u32 = 128;

fn shape(x: &CubeTensor) -> [usize; 2] {
    [x.meta.shape()[0], x.meta.shape()[1]]
}

/// `x / sqrt(mean(x²) + eps) · weight`, row by row.
pub fn rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
    let [t, dim] = shape(&x);
    let out = new_floats(&x, [t, dim]);
    if t == 0 || dim == 0 {
        return out;
    }
    let client = x.client.clone();
    rms_norm_kernel::launch(
        &client,
        launch::cubes(t, 1),
        CubeDim::new_1d(UNITS),
        x.into_buffer_arg(),
        weight.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        t as u32,
        dim as u32,
        eps,
    );
    out
}

/// A row for each cube.
#[cube(launch)]
fn rms_norm_kernel(x: &[f32], weight: &[f32], out: &mut [f32], t: u32, dim: u32, eps: f32) {
    let row = CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X;
    let mut parts = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut sum = 0.0f32;
    let mut i = select(row < t, UNIT_POS, dim);
    while i < dim {
        let value = x[(row * dim + i) as usize];
        sum = fma(value, value, sum);
        i += UNITS;
    }
    parts[UNIT_POS as usize] = sum;
    sync_cube();
    let mut total = 0.0f32;
    for part in 0..UNITS {
        total += parts[part as usize];
    }
    let root = (total / f32::cast_from(dim) + eps).sqrt();
    let mut i = select(row < t, UNIT_POS, dim);
    while i < dim {
        out[(row * dim + i) as usize] = x[(row * dim + i) as usize] / root * weight[i as usize];
        i += UNITS;
    }
}

/// Rotates the heads of `x: [t, n_heads * head_dim]` by `cos`, `sin: [t, head_dim / 2]`.
pub fn rope(x: CubeTensor, cos: CubeTensor, sin: CubeTensor, style: RopeStyle) -> CubeTensor {
    let [t, width] = shape(&x);
    let half = cos.meta.shape()[1];
    let out = new_floats(&x, [t, width]);
    let pairs = t * width / 2;
    if pairs == 0 {
        return out;
    }
    let client = x.client.clone();
    rope_kernel::launch(
        &client,
        launch::cubes(pairs.div_ceil(UNITS as usize), 1),
        CubeDim::new_1d(UNITS),
        x.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        pairs as u32,
        width as u32,
        half as u32,
        style == RopeStyle::Interleaved,
    );
    out
}

/// `(a, b) → (a·cos − b·sin, a·sin + b·cos)`: a pair for each unit.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn rope_kernel(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
    pairs: u32,
    width: u32,
    half: u32,
    #[comptime] interleaved: bool,
) {
    let pair = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if pair < pairs {
        let row = pair / (width / 2u32);
        let i = pair % half;
        let head = row * width + pair % (width / 2u32) / half * (2u32 * half);
        let first = head + if comptime!(interleaved) { 2u32 * i } else { i };
        let second = first + if comptime!(interleaved) { 1u32.runtime() } else { half };
        let angle = (row * half + i) as usize;
        let c = cos[angle];
        let s = sin[angle];
        let a = x[first as usize];
        let b = x[second as usize];
        out[first as usize] = a * c - b * s;
        out[second as usize] = a * s + b * c;
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
