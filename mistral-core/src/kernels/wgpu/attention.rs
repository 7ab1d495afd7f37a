//! Attention over what is cached: 256 positions at a time, each by a cube of its own; then what they found is put together.
//!
//! The parts begin at multiples of 256 positions whatever is asked for, so that a query's numbers are added in one order, alone or among others.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::cache::{number, rotated};
use super::launch::{self, new_floats, over_cube};
use crate::config::RopeStyle;
use crate::kernels::{AttentionSpec, CacheType};

/// Units of a cube, and keys that are scored at a time.
const UNITS: u32 = 64;
/// Positions of a part.
const PART: u32 = 256;
/// Reads that do not wait for each other.
const AHEAD: u32 = 4;
/// Most bytes of what parts have found, before they are put together.
const MAX_PARTS_BYTES: usize = 16 << 20;
/// Below every score, and finite: differences of two are numbers.
const LOWEST: f32 = -3.0e38;

/// `softmax(q · kᵀ · scale) · v` of `q: [t, n_heads * head_dim]`, rotated by `cos`, `sin: [t, head_dim / 2]`, over what each query sees.
pub fn attention(
    q: CubeTensor,
    [cos, sin]: [CubeTensor; 2],
    style: RopeStyle,
    k: CubeTensor,
    v: CubeTensor,
    spec: &AttentionSpec,
) -> CubeTensor {
    let (t, width) = (q.meta.shape()[0], q.meta.shape()[1]);
    let out = new_floats(&q, [t, width]);
    if t == 0 || width == 0 {
        return out;
    }
    let cache = &spec.cache;
    let (heads, head_dim) = (spec.n_heads as u32, cache.head_dim as u32);
    let planes = launch::planes(&q);
    let words = launch::words_at_once(cache.cache_type.row_bytes(cache.head_dim) / 4);
    let first_part = |query: usize| spec.first_visible(spec.start + query) / PART as usize;
    let last_part = |query: usize| (spec.start + query) / PART as usize;
    let most_parts = last_part(t - 1) - first_part(0) + 1;
    let at_once = (MAX_PARTS_BYTES / (4 * spec.n_heads * most_parts * (cache.head_dim + 2))).clamp(1, t);
    for query in (0..t).step_by(at_once) {
        let queries = at_once.min(t - query);
        let first = first_part(query);
        let parts = last_part(query + queries - 1) - first + 1;
        let found = match parts {
            1 => out.clone(),
            _ => new_floats(&q, [queries * spec.n_heads * parts, cache.head_dim + 2]),
        };
        attend::launch(
            &q.client,
            CubeCount::Static(heads, queries as u32, parts as u32),
            CubeDim::new_1d(UNITS),
            words,
            q.clone().into_buffer_arg(),
            cos.clone().into_buffer_arg(),
            sin.clone().into_buffer_arg(),
            launch::vectors(k.clone(), words).into_buffer_arg(),
            launch::vectors(v.clone(), words).into_buffer_arg(),
            found.clone().into_buffer_arg(),
            heads,
            cache.n_kv_heads as u32,
            cache.capacity as u32,
            query as u32,
            spec.start as u32,
            first as u32,
            spec.window.map_or(u32::MAX, |window| window.min(u32::MAX as usize) as u32),
            spec.scale,
            head_dim,
            cache.cache_type == CacheType::F16,
            style == RopeStyle::Interleaved,
            parts == 1,
            planes,
        );
        if parts > 1 {
            merge::launch(
                &q.client,
                CubeCount::Static(heads, queries as u32, 1),
                CubeDim::new_1d(UNITS),
                found.into_buffer_arg(),
                out.clone().into_buffer_arg(),
                query as u32,
                parts as u32,
                head_dim,
            );
        }
    }
    out
}

/// One head of one query over one part: what the largest score is, what the weights add up to beside it, and the sum of the values that they
/// weigh; if there is only this part, their quotient. 64 keys at a time, with a running maximum and sum.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn attend<N: Size>(
    q: &[f32],
    cos: &[f32],
    sin: &[f32],
    k: &[Vector<u32, N>],
    v: &[Vector<u32, N>],
    found: &mut [f32],
    heads: u32,
    kv_heads: u32,
    capacity: u32,
    first_query: u32,
    start: u32,
    first_part: u32,
    window: u32,
    scale: f32,
    #[comptime] head_dim: u32,
    #[comptime] f16: bool,
    #[comptime] interleaved: bool,
    #[comptime] only: bool,
    #[comptime] planes: bool,
) {
    let head = CUBE_POS_X;
    let query = first_query + CUBE_POS_Y;
    let position = start + query;
    let row = (query * heads + head) * head_dim;
    let kv = head * kv_heads / heads * capacity;
    let per_unit = comptime!(head_dim.div_ceil(UNITS));
    let per_word = comptime!(if f16 { 2u32 } else { 1u32 });
    // Numbers that are read at once, and units for the values of a key.
    let words = N::value().comptime() as u32;
    let at_once = comptime!(words * per_word);
    let lanes = comptime!(min(head_dim / at_once, UNITS));
    let per_lane = comptime!((head_dim / at_once).div_ceil(lanes));
    let side_by_side = comptime!(UNITS / lanes);

    let mut turned = Shared::<[f32]>::new_slice(head_dim as usize);
    #[unroll]
    for i in 0..per_unit {
        let d = UNIT_POS + comptime!(i * UNITS);
        if d < head_dim {
            turned[d as usize] = rotated(q, cos, sin, row, query, d, head_dim, interleaved);
        }
    }
    // More than there are, so that values of no key can be taken, too.
    let count = comptime!((UNITS.div_ceil(side_by_side * AHEAD) * AHEAD + 1) * side_by_side);
    let mut weights = Shared::<[f32]>::new_slice(count as usize);
    let mut i = UNITS + UNIT_POS;
    while i < count {
        weights[i as usize] = 0.0f32;
        i += UNITS;
    }
    let mut room = Shared::<[f32]>::new_slice(comptime!(UNITS + UNITS.isqrt()) as usize);
    let mut sums = Array::<f32>::new(comptime!(per_lane * at_once) as usize);
    #[unroll]
    for i in 0..comptime!(per_lane * at_once) {
        sums[i as usize] = 0.0f32;
    }
    let mut largest = comptime!(LOWEST).runtime();
    let mut total = 0.0f32;
    // What the query sees of this part.
    let part = (first_part + CUBE_POS_Z) * PART;
    let visible = select(position >= window, position - window + 1u32, 0u32);
    let first = max(visible, part);
    let end = min(part + PART, position + 1u32);
    let mut from = max(first / UNITS * UNITS, part);
    sync_cube();
    while from < end {
        let key = from + UNIT_POS;
        let seen = key >= first && key < end;
        let mut score = comptime!(LOWEST).runtime();
        if seen {
            score = dot(&turned, k, (kv + key % capacity) * head_dim, head_dim, f16) * scale;
        }
        let tile_largest = over_cube(score, &mut room, UNITS, true, planes);
        let now = max(largest, tile_largest);
        let weight = select(seen, (score - now).exp(), 0.0f32);
        let shrink = (largest - now).exp();
        largest = now;
        weights[UNIT_POS as usize] = weight;
        total = fma(total, shrink, over_cube(weight, &mut room, UNITS, false, planes));
        #[unroll]
        for i in 0..comptime!(per_lane * at_once) {
            sums[i as usize] *= shrink;
        }
        gather(v, &weights, &mut sums, kv, capacity, from, first, end, lanes, head_dim, f16);
        from += UNITS;
    }
    let mut to = row;
    if comptime!(!only) {
        to = ((CUBE_POS_Y * heads + head) * CUBE_COUNT_Z + CUBE_POS_Z) * comptime!(head_dim + 2);
        if UNIT_POS == 0u32 {
            found[(to + head_dim) as usize] = largest;
            found[(to + comptime!(head_dim + 1)) as usize] = total;
        }
    }
    let divisor = if comptime!(only) { total } else { 1.0f32.runtime() };
    share(&sums, found, to, divisor, lanes, at_once, head_dim);
}

/// Adds the values of 64 keys from `from` on, times what they weigh: as many side by side as there are units, each of which has some numbers of a key's.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernel was given")]
fn gather<N: Size>(
    v: &[Vector<u32, N>],
    weights: &Shared<[f32]>,
    sums: &mut Array<f32>,
    kv: u32,
    capacity: u32,
    from: u32,
    first: u32,
    end: u32,
    #[comptime] lanes: u32,
    #[comptime] head_dim: u32,
    #[comptime] f16: bool,
) {
    let per_word = comptime!(if f16 { 2u32 } else { 1u32 });
    let words = N::value().comptime() as u32;
    let row = comptime!(head_dim / (words * per_word));
    let side_by_side = comptime!(UNITS / lanes);
    let (lane, side) = (UNIT_POS % lanes, UNIT_POS / lanes);
    for step in 0..comptime!(UNITS.div_ceil(side_by_side * AHEAD)) {
        #[unroll]
        for ahead in 0..AHEAD {
            let i = (step * AHEAD + ahead) * side_by_side + side;
            // Without a weight of its own, of a key that is seen: what others hold may be no number.
            let key = clamp(from + i, first, end - 1u32);
            let value = (kv + key % capacity) * row + lane;
            add(v, value, weights[i as usize], sums, lane, lanes, row, f16);
        }
    }
}

/// Stores the sums of the keys side by side, in the order of these, divided.
#[cube]
fn share(
    sums: &Array<f32>,
    found: &mut [f32],
    to: u32,
    divisor: f32,
    #[comptime] lanes: u32,
    #[comptime] at_once: u32,
    #[comptime] head_dim: u32,
) {
    let per_lane = comptime!((head_dim / at_once).div_ceil(lanes));
    let (lane, side) = (UNIT_POS % lanes, UNIT_POS / lanes);
    let mut all = Shared::<[f32]>::new_slice(comptime!(UNITS * per_lane * at_once) as usize);
    #[unroll]
    for i in 0..comptime!(per_lane * at_once) {
        let d = (lane + comptime!(i / at_once * lanes)) * at_once + comptime!(i % at_once);
        all[(side * head_dim + d) as usize] = sums[i as usize];
    }
    sync_cube();
    let mut d = UNIT_POS;
    while d < head_dim {
        let mut sum = all[d as usize];
        #[unroll]
        for side in 1..comptime!(UNITS / lanes) {
            sum += all[(comptime!(side * head_dim) + d) as usize];
        }
        found[(to + d) as usize] = sum / divisor;
        d += UNITS;
    }
}

/// Adds the values of a key, from `value` on every `lanes` vectors, times what it weighs.
#[cube]
#[allow(clippy::too_many_arguments, reason = "a part of a row")]
fn add<N: Size>(
    v: &[Vector<u32, N>],
    value: u32,
    weight: f32,
    sums: &mut Array<f32>,
    lane: u32,
    #[comptime] lanes: u32,
    #[comptime] row: u32,
    #[comptime] f16: bool,
) {
    let per_word = comptime!(if f16 { 2u32 } else { 1u32 });
    let words = N::value().comptime() as u32;
    let at_once = comptime!(words * per_word);
    #[unroll]
    for j in 0..comptime!(row.div_ceil(lanes)) {
        if lane + comptime!(j * lanes) < row {
            let vector = v[(value + comptime!(j * lanes)) as usize];
            #[unroll]
            for n in 0..at_once {
                let at = comptime!((j * at_once + n) as usize);
                let word = vector.extract(comptime!((n / per_word) as usize));
                sums[at] = fma(weight, number(word, comptime!(n % per_word), f16), sums[at]);
            }
        }
    }
}

/// The product of a query and the key whose numbers begin at `row`.
#[cube]
fn dot<N: Size>(
    q: &Shared<[f32]>,
    k: &[Vector<u32, N>],
    row: u32,
    #[comptime] head_dim: u32,
    #[comptime] f16: bool,
) -> f32 {
    let per_word = comptime!(if f16 { 2u32 } else { 1u32 });
    let words = N::value().comptime() as u32;
    let count = comptime!(head_dim / per_word / words);
    let ahead = comptime!(if count.is_multiple_of(AHEAD) { AHEAD } else { 1 });
    let first = row / per_word / words;
    let mut dot = 0.0f32;
    for i in 0..comptime!(count / ahead) {
        #[unroll]
        for j in 0..ahead {
            let vector = k[(first + i * ahead + j) as usize];
            #[unroll]
            for n in 0..comptime!(words * per_word) {
                let d = (i * ahead + j) * comptime!(words * per_word) + n;
                let word = vector.extract(comptime!((n / per_word) as usize));
                dot = fma(q[d as usize], number(word, comptime!(n % per_word), f16), dot);
            }
        }
    }
    dot
}

/// What the parts of a head of a query have found, put together one after the other.
#[cube(launch)]
fn merge(found: &[f32], out: &mut [f32], first_query: u32, parts: u32, #[comptime] head_dim: u32) {
    let heads = CUBE_COUNT_X;
    let from = (CUBE_POS_Y * heads + CUBE_POS_X) * parts * comptime!(head_dim + 2);
    let row = ((first_query + CUBE_POS_Y) * heads + CUBE_POS_X) * head_dim;
    let mut d = UNIT_POS;
    while d < head_dim {
        let mut largest = comptime!(LOWEST).runtime();
        let mut total = 0.0f32;
        let mut sum = 0.0f32;
        for part in 0..parts {
            let at = from + part * comptime!(head_dim + 2);
            let now = max(largest, found[(at + head_dim) as usize]);
            let (before, here) = ((largest - now).exp(), (found[(at + head_dim) as usize] - now).exp());
            largest = now;
            total = fma(total, before, found[(at + comptime!(head_dim + 1)) as usize] * here);
            sum = fma(sum, before, found[(at + d) as usize] * here);
        }
        out[(row + d) as usize] = sum / total;
        d += UNITS;
    }
}
