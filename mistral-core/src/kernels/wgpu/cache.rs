//! Heads rotated, keys and values stored, and their numbers read.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::decode::{half, to_half};
use super::launch::{self, MAX_CUBES_X};
use crate::config::RopeStyle;
use crate::kernels::{CacheSpec, CacheType};

/// Units of a cube.
const UNITS: u32 = 64;

/// Stores keys, rotated by `cos`, `sin: [t, head_dim / 2]`, and values, both `[t, n_kv_heads * head_dim]`, at positions `start..start + t`, in place.
pub fn write_rotated(
    caches: [CubeTensor; 2],
    [keys, values]: [CubeTensor; 2],
    [cos, sin]: [CubeTensor; 2],
    style: RopeStyle,
    spec: &CacheSpec,
    start: usize,
) -> [CubeTensor; 2] {
    let t = keys.meta.shape()[0];
    let f16 = spec.cache_type == CacheType::F16;
    let words = t * spec.n_kv_heads * spec.head_dim / if f16 { 2 } else { 1 };
    if words == 0 {
        return caches;
    }
    let [k, v] = caches.map(alone);
    write_kernel::launch(
        &k.client,
        launch::cubes(words.div_ceil(UNITS as usize), 2),
        CubeDim::new_1d(UNITS),
        keys.into_buffer_arg(),
        values.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        k.clone().into_buffer_arg(),
        v.clone().into_buffer_arg(),
        words as u32,
        spec.n_kv_heads as u32,
        spec.capacity as u32,
        start as u32,
        spec.head_dim as u32,
        f16,
        style == RopeStyle::Interleaved,
    );
    [k, v]
}

/// A cache that nobody else holds: nobody else's numbers are overwritten.
pub fn alone(cache: CubeTensor) -> CubeTensor {
    if cache.can_mut() { cache } else { cache.copy() }
}

/// A word of the keys for each unit of the first cubes, one of the values for each of the others.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn write_kernel(
    keys: &[f32],
    values: &[f32],
    cos: &[f32],
    sin: &[f32],
    k: &mut [u32],
    v: &mut [u32],
    words: u32,
    heads: u32,
    capacity: u32,
    start: u32,
    #[comptime] head_dim: u32,
    #[comptime] f16: bool,
    #[comptime] interleaved: bool,
) {
    let per_word = if comptime!(f16) { 2u32 } else { 1u32 };
    let at = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < words {
        let of_head = head_dim / per_word;
        let head = at / of_head % heads;
        let t = at / (of_head * heads);
        let d = at % of_head * per_word;
        let place = ((head * capacity + (start + t) % capacity) * of_head + at % of_head) as usize;
        let row = (t * heads + head) * head_dim;
        if CUBE_POS_Y == 0u32 {
            let low = rotated(keys, cos, sin, row, t, d, head_dim, interleaved);
            let mut high = low;
            if comptime!(f16) {
                high = rotated(keys, cos, sin, row, t, d + 1u32, head_dim, interleaved);
            }
            k[place] = word(low, high, f16);
        } else {
            let low = values[(row + d) as usize];
            let mut high = low;
            if comptime!(f16) {
                high = values[(row + d + 1u32) as usize];
            }
            v[place] = word(low, high, f16);
        }
    }
}

/// Two numbers as halves, or the first as it is.
#[cube]
pub fn word(low: f32, high: f32, #[comptime] f16: bool) -> u32 {
    if comptime!(f16) { to_half(low) | (to_half(high) << 16u32) } else { u32::reinterpret(low) }
}

/// Number `d` of the head that begins at `row` and belongs to token `t`, rotated: `(a, b) → (a·cos − b·sin, a·sin + b·cos)`.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a head and its angles")]
pub fn rotated(
    x: &[f32],
    cos: &[f32],
    sin: &[f32],
    row: u32,
    t: u32,
    d: u32,
    #[comptime] head_dim: u32,
    #[comptime] interleaved: bool,
) -> f32 {
    let half = comptime!(head_dim / 2);
    let (pair, second, other) = if comptime!(interleaved) {
        (d / 2u32, d % 2u32 == 1u32, d ^ 1u32)
    } else {
        (d % half, d >= half, select(d >= half, d - half, d + half))
    };
    let angle = (t * half + pair) as usize;
    let turned = x[(row + other) as usize] * sin[angle];
    x[(row + d) as usize] * cos[angle] + select(second, turned, -turned)
}

/// Number `index` of a word of a cache.
#[cube]
pub fn number(word: u32, #[comptime] index: u32, #[comptime] f16: bool) -> f32 {
    if comptime!(f16) { half(word >> comptime!(16 * index)) } else { f32::reinterpret(word) }
}
