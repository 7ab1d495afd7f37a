//! Keys and values: written, and attended to.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::decode::{half, to_half};
use super::launch::{self, MAX_CUBES_X, new_floats};
use crate::kernels::{AttentionSpec, CacheSpec, CacheType};

/// Units of a cube, and keys that are scored at a time.
const UNITS: u32 = 64;

/// Below every score, and finite: differences of two are numbers.
const LOWEST: f32 = -3.0e38;

/// Stores `rows: [t, n_kv_heads * head_dim]` at positions `start..start + t`, in place.
pub fn cache_write(cache: CubeTensor, rows: CubeTensor, spec: &CacheSpec, start: usize) -> CubeTensor {
    let t = rows.meta.shape()[0];
    let f16 = spec.cache_type == CacheType::F16;
    let words = t * spec.n_kv_heads * spec.head_dim / if f16 { 2 } else { 1 };
    if words == 0 {
        return cache;
    }
    // Nobody else's numbers are overwritten: what is shared is copied first.
    let cache = if cache.can_mut() { cache } else { cache.copy() };
    let client = cache.client.clone();
    cache_write_kernel::launch(
        &client,
        launch::cubes(words.div_ceil(UNITS as usize), 1),
        CubeDim::new_1d(UNITS),
        rows.into_buffer_arg(),
        cache.clone().into_buffer_arg(),
        words as u32,
        spec.n_kv_heads as u32,
        spec.head_dim as u32,
        spec.capacity as u32,
        start as u32,
        f16,
    );
    cache
}

/// A word of the cache for each unit.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn cache_write_kernel(
    rows: &[f32],
    cache: &mut [u32],
    words: u32,
    heads: u32,
    head_dim: u32,
    capacity: u32,
    start: u32,
    #[comptime] f16: bool,
) {
    let per_word = if comptime!(f16) { 2u32 } else { 1u32 };
    let at = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < words {
        let of_head = head_dim / per_word;
        let head = at / of_head % heads;
        let slot = (start + at / (of_head * heads)) % capacity;
        let place = ((head * capacity + slot) * of_head + at % of_head) as usize;
        if comptime!(f16) {
            let low = to_half(rows[(2u32 * at) as usize]);
            let high = to_half(rows[(2u32 * at + 1u32) as usize]);
            cache[place] = low | (high << 16u32);
        } else {
            cache[place] = u32::reinterpret(rows[at as usize]);
        }
    }
}

/// `softmax(q · kᵀ · scale) · v` of `q: [t, n_heads * head_dim]`, over what each query sees.
pub fn attention(q: CubeTensor, k: CubeTensor, v: CubeTensor, spec: &AttentionSpec) -> CubeTensor {
    let (t, width) = (q.meta.shape()[0], q.meta.shape()[1]);
    let out = new_floats(&q, [t, width]);
    if t == 0 || width == 0 {
        return out;
    }
    let cache = &spec.cache;
    let client = q.client.clone();
    attention_kernel::launch(
        &client,
        CubeCount::Static(spec.n_heads as u32, t as u32, 1),
        CubeDim::new_1d(UNITS),
        q.into_buffer_arg(),
        k.into_buffer_arg(),
        v.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        spec.n_heads as u32,
        cache.n_kv_heads as u32,
        cache.capacity as u32,
        spec.start as u32,
        spec.window.map_or(u32::MAX, |window| window.min(u32::MAX as usize) as u32),
        spec.scale,
        cache.head_dim as u32,
        cache.cache_type == CacheType::F16,
    );
    out
}

/// Number `index` of a cache.
#[cube]
fn number(cache: &[u32], index: u32, #[comptime] f16: bool) -> f32 {
    if comptime!(f16) {
        half(cache[(index / 2u32) as usize] >> (16u32 * (index % 2u32)))
    } else {
        f32::reinterpret(cache[index as usize])
    }
}

/// One head of one query: 64 keys at a time, aligned to absolute positions, with a running maximum and sum.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn attention_kernel(
    q: &[f32],
    k: &[u32],
    v: &[u32],
    out: &mut [f32],
    heads: u32,
    kv_heads: u32,
    capacity: u32,
    start: u32,
    window: u32,
    scale: f32,
    #[comptime] head_dim: u32,
    #[comptime] f16: bool,
) {
    let head = CUBE_POS_X;
    let position = start + CUBE_POS_Y;
    let query = (CUBE_POS_Y * heads + head) * head_dim;
    let kv = head * kv_heads / heads * capacity;
    let first = select(position >= window, position - window + 1u32, 0u32);
    let per_unit = comptime!(head_dim.div_ceil(UNITS));

    let mut scores = Shared::<[f32]>::new_slice(UNITS as usize);
    let mut sums = Array::<f32>::new(per_unit as usize);
    #[unroll]
    for i in 0..per_unit {
        sums[i as usize] = 0.0f32;
    }
    let mut largest = comptime!(LOWEST).runtime();
    let mut weights = 0.0f32;
    let mut from = first / UNITS * UNITS;
    while from <= position {
        let key = from + UNIT_POS;
        let mut score = comptime!(LOWEST).runtime();
        if key >= first && key <= position {
            let row = (kv + key % capacity) * head_dim;
            let mut dot = 0.0f32;
            for d in 0..head_dim {
                dot = fma(q[(query + d) as usize], number(k, row + d, f16), dot);
            }
            score = dot * scale;
        }
        sync_cube();
        scores[UNIT_POS as usize] = score;
        sync_cube();
        let mut tile_largest = largest;
        for i in 0..UNITS {
            tile_largest = max(tile_largest, scores[i as usize]);
        }
        let shrink = (largest - tile_largest).exp();
        largest = tile_largest;
        weights *= shrink;
        #[unroll]
        for i in 0..per_unit {
            sums[i as usize] *= shrink;
        }
        let low = max(from, first);
        let high = min(from + UNITS, position + 1u32);
        for key in low..high {
            let weight = (scores[(key - from) as usize] - largest).exp();
            weights += weight;
            let row = (kv + key % capacity) * head_dim;
            #[unroll]
            for i in 0..per_unit {
                let d = UNIT_POS + comptime!(i * UNITS);
                if d < head_dim {
                    sums[i as usize] = fma(weight, number(v, row + d, f16), sums[i as usize]);
                }
            }
        }
        from += UNITS;
    }
    #[unroll]
    for i in 0..per_unit {
        let d = UNIT_POS + comptime!(i * UNITS);
        if d < head_dim {
            out[(query + d) as usize] = sums[i as usize] / weights;
        }
    }
}
