//! Attention of many queries: 64 of a head meet 64 keys at a time, in memory that a cube shares, with a running maximum and sum (Dao 2023, arXiv:2307.08691).
//!
//! Scores and sums of values are both products of two tiles, as in `many.rs`. A query's numbers are added in an order that depends on those beside it, and so
//! agree with what it has alone but for rounding.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::attention::{LOWEST, merge_parts};
use super::cache::{number, rotated};
use super::decode::Rows;
use super::launch::{self, MAX_CUBES_X, new_floats};
use super::linear::UNITS;
use super::many::{DEPTH, QUADS, ROW_QUADS, SIDE, TOKENS, multiply, place};
use super::product::Quad;
use crate::config::RopeStyle;
use crate::kernels::{AttentionSpec, CacheSpec, CacheType, ROWS_ALIKE};

/// Most elements of a head: a unit keeps a sixteenth of the sums of four queries.
const MAX_HEAD_DIM: usize = 128;
/// Cubes that keep an adapter busy. Fewer share their positions out among more of them.
const CUBES: usize = 256;
/// Positions that are worth a cube of their own.
const PART: usize = 256;

// A unit's queries are the elements of a vector.
const _: () = assert!(TOKENS == 4);

/// Whether `t` queries are taken here.
pub fn suits(t: usize, cache: &CacheSpec) -> bool {
    let head_dim = cache.head_dim;
    t > ROWS_ALIKE && head_dim <= MAX_HEAD_DIM && head_dim.is_multiple_of(DEPTH as usize)
}

/// `softmax(q · kᵀ · scale) · v` of `q: [t, n_heads * head_dim]`, rotated by the angles, over what each query sees.
pub fn attention(
    q: CubeTensor,
    angles: [CubeTensor; 2],
    style: RopeStyle,
    [k, v]: [CubeTensor; 2],
    spec: &AttentionSpec,
) -> CubeTensor {
    let (t, cache) = (q.meta.shape()[0], &spec.cache);
    let out = new_floats(&q, [t, spec.n_heads * cache.head_dim]);
    let q = turned(q, angles, style, spec);
    let tiles = t.div_ceil(SIDE as usize);
    let seen = spec.start + t - spec.first_visible(spec.start);
    let parts = seen.div_ceil(PART).min(CUBES / (spec.n_heads * tiles)).max(1);
    let found = match parts {
        1 => out.clone(),
        _ => new_floats(&q, [t * spec.n_heads * parts, cache.head_dim + 2]),
    };
    let f16 = cache.cache_type == CacheType::F16;
    // Four numbers.
    let words = if f16 { 2 } else { 4 };
    let [k, v] = [k, v].map(|cache| launch::vectors(cache, words).into_buffer_arg());
    let numbers = NumbersLaunch::new(
        spec.n_heads as u32,
        cache.n_kv_heads as u32,
        cache.capacity as u32,
        spec.start as u32,
        t as u32,
        seen.div_ceil(parts) as u32,
        spec.window.map_or(u32::MAX, |window| window.min(u32::MAX as usize) as u32),
    );
    attend::launch(
        &out.client,
        CubeCount::Static(spec.n_heads as u32, tiles as u32, parts as u32),
        CubeDim::new_1d(UNITS),
        words,
        launch::vectors(q, 4).into_buffer_arg(),
        k,
        v,
        found.clone().into_buffer_arg(),
        numbers,
        Kind { head_dim: cache.head_dim as u32, f16 },
    );
    if parts > 1 {
        merge_parts(found, &out, 0, [spec.n_heads, t, parts], cache.head_dim);
    }
    out
}

/// The queries, rotated and scaled.
fn turned(q: CubeTensor, [cos, sin]: [CubeTensor; 2], style: RopeStyle, spec: &AttentionSpec) -> CubeTensor {
    let (t, width) = (q.meta.shape()[0], q.meta.shape()[1]);
    let out = new_floats(&q, [t, width]);
    turn::launch(
        &out.client,
        launch::cubes((t * width).div_ceil(UNITS as usize), 1),
        CubeDim::new_1d(UNITS),
        q.into_buffer_arg(),
        cos.into_buffer_arg(),
        sin.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        (t * width) as u32,
        spec.n_heads as u32,
        spec.scale,
        spec.cache.head_dim as u32,
        style == RopeStyle::Interleaved,
    );
    out
}

/// A number for each unit.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn turn(
    q: &[f32],
    cos: &[f32],
    sin: &[f32],
    out: &mut [f32],
    count: u32,
    heads: u32,
    scale: f32,
    #[comptime] head_dim: u32,
    #[comptime] interleaved: bool,
) {
    let at = (CUBE_POS_Z * MAX_CUBES_X + CUBE_POS_X) * UNITS + UNIT_POS;
    if at < count {
        let row = at / head_dim * head_dim;
        let token = at / (heads * head_dim);
        out[at as usize] = rotated(q, cos, sin, row, token, at % head_dim, head_dim, interleaved) * scale;
    }
}

/// The numbers that the kernel takes.
#[derive(CubeType, CubeLaunch)]
struct Numbers {
    heads: u32,
    kv_heads: u32,
    capacity: u32,
    start: u32,
    tokens: u32,
    /// Positions of a part, from the first on that the first query sees.
    part: u32,
    window: u32,
}

/// What the kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    head_dim: u32,
    f16: bool,
}

impl Kind {
    /// Fours of elements of a head.
    fn quads(self) -> u32 {
        self.head_dim / 4
    }

    /// Tiles of values beside each other: of as many fours as a cube takes rows of weights.
    fn across(self) -> u32 {
        self.quads().div_ceil(ROW_QUADS)
    }
}

/// What a cube reads of the cache: positions `first..end` of a head whose ring begins at row `rows`.
#[derive(CubeType)]
struct Seen {
    rows: u32,
    capacity: u32,
    first: u32,
    end: u32,
    window: u32,
}

#[cube]
impl Seen {
    /// Whether the query at `position` sees `key`.
    fn by(&self, position: u32, key: u32) -> bool {
        key < self.end && key <= position && position - key < self.window
    }
}

/// 64 queries of one head over one part of the positions: what their largest scores are, what their weights add up to beside these, and the sums of the values
/// that they weigh; if there is only this part, their quotients. A unit has four queries, and a sixteenth of the keys and of the elements.
#[cube(launch)]
fn attend<N: Size>(
    q: &[Quad],
    k: &[Vector<u32, N>],
    v: &[Vector<u32, N>],
    found: &mut [f32],
    numbers: Numbers,
    #[comptime] kind: Kind,
) {
    let first_query = CUBE_POS_Y * SIDE;
    let (lane, query) = (UNIT_POS % ROW_QUADS, UNIT_POS / ROW_QUADS * TOKENS);
    let seen = part_of_positions(first_query, &numbers);
    let mut left = Shared::<[Rows]>::new_slice(comptime!(DEPTH * ROW_QUADS) as usize);
    let mut right = Shared::<[Quad]>::new_slice(comptime!(SIDE * QUADS) as usize);
    let mut sums = nothing(comptime!(TOKENS * kind.across()));
    // Of four queries.
    let mut largest = Rows::new(comptime!(LOWEST).runtime());
    let mut total = Rows::new(0.0f32);
    let mut from = seen.first;
    while from < seen.end {
        let mut weights = scores(q, k, &mut left, &mut right, &seen, from, first_query, &numbers, kind);
        let (key, position) = (from + lane * 4u32, numbers.start + first_query + query);
        let ours = largest_of(&weights, largest, key, position, &seen);
        let now = over_lanes(ours, &mut right, true);
        let shrink = (largest - now).exp();
        largest = now;
        total = total * shrink + weigh(&mut weights, now, key, position, &seen);
        #[unroll]
        for i in 0..comptime!(TOKENS * kind.across()) {
            sums[i as usize] *= Rows::new(shrink.extract(comptime!((i % TOKENS) as usize)));
        }
        gather(v, &weights, &mut sums, &mut left, &mut right, &seen, from, kind);
        from += SIDE;
    }
    store(found, &sums, largest, over_lanes(total, &mut right, false), first_query + query, &numbers, kind);
}

#[cube]
fn nothing(#[comptime] count: u32) -> Array<Rows> {
    let mut sums = Array::<Rows>::new(count as usize);
    #[unroll]
    for i in 0..count {
        sums[i as usize] = Rows::zeroed();
    }
    sums
}

/// What the cube's queries see of its part, at most.
#[cube]
fn part_of_positions(first_query: u32, numbers: &Numbers) -> Seen {
    let (position, window) = (numbers.start + first_query, numbers.window);
    let first = first_visible(numbers.start, window) + CUBE_POS_Z * numbers.part;
    let end = numbers.start + min(first_query + SIDE, numbers.tokens);
    Seen {
        rows: CUBE_POS_X * numbers.kv_heads / numbers.heads * numbers.capacity,
        capacity: numbers.capacity,
        first: max(first_visible(position, window), first),
        end: min(end, first + numbers.part),
        window,
    }
}

#[cube]
fn first_visible(position: u32, window: u32) -> u32 {
    select(position >= window, position - window + 1u32, 0u32)
}

/// Four numbers of the key or value at `position`, or of the nearest that is seen.
#[cube]
fn four<N: Size>(
    cache: &[Vector<u32, N>],
    seen: &Seen,
    position: u32,
    quad: u32,
    #[comptime] kind: Kind,
) -> Rows {
    let row = seen.rows + clamp(position, seen.first, seen.end - 1u32) % seen.capacity;
    let vector = cache[(row * comptime!(kind.quads()) + quad) as usize];
    let per_word = if comptime!(kind.f16) { 2u32 } else { 1u32 };
    let mut all = Rows::zeroed();
    #[unroll]
    for i in 0..4u32 {
        let word = vector.extract(comptime!((i / per_word) as usize));
        all.insert(comptime!(i as usize), number(word, comptime!(i % per_word), comptime!(kind.f16)));
    }
    all
}

/// The products of the unit's four queries with its four keys from `from` on.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernel was given")]
fn scores<N: Size>(
    q: &[Quad],
    k: &[Vector<u32, N>],
    left: &mut Shared<[Rows]>,
    right: &mut Shared<[Quad]>,
    seen: &Seen,
    from: u32,
    first_query: u32,
    numbers: &Numbers,
    #[comptime] kind: Kind,
) -> Array<Rows> {
    let (lane, query) = (UNIT_POS % ROW_QUADS, UNIT_POS / ROW_QUADS * TOKENS);
    let mut products = nothing(TOKENS);
    for step in 0..comptime!(kind.head_dim / DEPTH) {
        sync_cube();
        if UNIT_POS < comptime!(QUADS * ROW_QUADS) {
            // Four elements of four keys, turned: the keys side by side.
            let group = UNIT_POS / ROW_QUADS;
            let mut columns = nothing(4u32);
            #[unroll]
            for i in 0..4u32 {
                let key = four(k, seen, from + lane * 4u32 + i, step * QUADS + group, kind);
                #[unroll]
                for j in 0..4usize {
                    let mut column = columns[j];
                    column.insert(comptime!(i as usize), key.extract(j));
                    columns[j] = column;
                }
            }
            #[unroll]
            for j in 0..4u32 {
                left[((group * 4u32 + j) * ROW_QUADS + lane) as usize] = columns[j as usize];
            }
        } else {
            let unit = UNIT_POS - comptime!(QUADS * ROW_QUADS);
            #[unroll]
            for i in 0..comptime!(SIDE * QUADS / (UNITS - QUADS * ROW_QUADS)) {
                let at = unit + comptime!(i * (UNITS - QUADS * ROW_QUADS));
                let (quad, query) = (at % QUADS, at / QUADS);
                let row = min(first_query + query, numbers.tokens - 1u32) * numbers.heads + CUBE_POS_X;
                right[place(query, quad) as usize] =
                    q[(row * comptime!(kind.quads()) + step * QUADS + quad) as usize];
            }
        }
        sync_cube();
        #[unroll]
        for quad in 0..QUADS {
            multiply(&*left, &*right, &mut products, lane, query, quad, 0u32);
        }
    }
    products
}

/// The largest of each row of scores, for the query at `position` and the next, with `key` and the next, and of those before.
#[cube]
fn largest_of(scores: &Array<Rows>, before: Rows, key: u32, position: u32, seen: &Seen) -> Rows {
    let mut all = before;
    #[unroll]
    for i in 0..TOKENS {
        let row = scores[i as usize];
        let mut largest = before.extract(comptime!(i as usize));
        #[unroll]
        for j in 0..4u32 {
            let score = row.extract(comptime!(j as usize));
            largest = select(seen.by(position + i, key + j), max(largest, score), largest);
        }
        all.insert(comptime!(i as usize), largest);
    }
    all
}

/// Turns these scores into weights beside the `largest`, and adds them up.
#[cube]
fn weigh(scores: &mut Array<Rows>, largest: Rows, key: u32, position: u32, seen: &Seen) -> Rows {
    let mut total = Rows::zeroed();
    #[unroll]
    for i in 0..TOKENS {
        let mut row = scores[i as usize];
        let mut sum = 0.0f32;
        #[unroll]
        for j in 0..4u32 {
            let score = row.extract(comptime!(j as usize)) - largest.extract(comptime!(i as usize));
            let weight = select(seen.by(position + i, key + j), score.exp(), 0.0f32);
            row.insert(comptime!(j as usize), weight);
            sum += weight;
        }
        scores[i as usize] = row;
        total.insert(comptime!(i as usize), sum);
    }
    total
}

/// The largest (`largest`) or the sum of what the units that have the same queries have for each of these.
#[cube]
fn over_lanes(ours: Rows, room: &mut Shared<[Quad]>, #[comptime] largest: bool) -> Rows {
    sync_cube();
    room[UNIT_POS as usize] = ours;
    sync_cube();
    let first = UNIT_POS / ROW_QUADS * ROW_QUADS;
    let mut all = room[first as usize];
    for lane in 1..ROW_QUADS {
        let next = room[(first + lane) as usize];
        all = if comptime!(largest) { max(all, next) } else { all + next };
    }
    all
}

/// Adds the values of 64 keys from `from` on, times what they weigh: 32 keys, and 64 elements at a time.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernel was given")]
fn gather<N: Size>(
    v: &[Vector<u32, N>],
    weights: &Array<Rows>,
    sums: &mut Array<Rows>,
    left: &mut Shared<[Rows]>,
    right: &mut Shared<[Quad]>,
    seen: &Seen,
    from: u32,
    #[comptime] kind: Kind,
) {
    let (lane, query) = (UNIT_POS % ROW_QUADS, UNIT_POS / ROW_QUADS * TOKENS);
    #[unroll]
    for half in 0..comptime!(SIDE / DEPTH) {
        #[unroll]
        for across in 0..comptime!(kind.across()) {
            sync_cube();
            if comptime!(across == 0) && lane / QUADS == half {
                #[unroll]
                for i in 0..TOKENS {
                    right[place(query + i, lane % QUADS) as usize] = weights[i as usize];
                }
            }
            #[unroll]
            for i in 0..comptime!(DEPTH * ROW_QUADS / UNITS) {
                let at = UNIT_POS + comptime!(i * UNITS);
                let (quad, key) = (at % ROW_QUADS + comptime!(across * ROW_QUADS), at / ROW_QUADS);
                if quad < comptime!(kind.quads()) {
                    left[at as usize] = four(v, seen, from + comptime!(half * DEPTH) + key, quad, kind);
                }
            }
            sync_cube();
            #[unroll]
            for quad in 0..QUADS {
                multiply(&*left, &*right, sums, lane, query, quad, comptime!(across * TOKENS));
            }
        }
    }
}

/// Stores what the unit has of its four queries, `query` and the next.
#[cube]
fn store(
    found: &mut [f32],
    sums: &Array<Rows>,
    largest: Rows,
    total: Rows,
    query: u32,
    numbers: &Numbers,
    #[comptime] kind: Kind,
) {
    let (lane, head_dim) = (UNIT_POS % ROW_QUADS, comptime!(kind.head_dim));
    #[unroll]
    for i in 0..TOKENS {
        if query + i < numbers.tokens {
            let head = (query + i) * numbers.heads + CUBE_POS_X;
            let sum = total.extract(comptime!(i as usize));
            let mut to = head * head_dim;
            let mut divisor = sum;
            if CUBE_COUNT_Z > 1u32 {
                to = (head * CUBE_COUNT_Z + CUBE_POS_Z) * comptime!(head_dim + 2);
                divisor = 1.0f32.runtime();
                if lane == 0u32 {
                    found[(to + head_dim) as usize] = largest.extract(comptime!(i as usize));
                    found[(to + comptime!(head_dim + 1)) as usize] = sum;
                }
            }
            #[unroll]
            for across in 0..comptime!(kind.across()) {
                let row = sums[comptime!((across * TOKENS + i) as usize)];
                let quad = lane + comptime!(across * ROW_QUADS);
                if quad < comptime!(kind.quads()) {
                    #[unroll]
                    for j in 0..4u32 {
                        found[(to + quad * 4u32 + j) as usize] = row.extract(comptime!(j as usize)) / divisor;
                    }
                }
            }
        }
    }
}
