//! Attention over what is cached: 256 positions at a time, each by a cube of its own; then what they found is put together.
//!
//! The parts begin at multiples of 256 positions whatever is asked for, so that a query's numbers are added in one order, alone or among others.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::tensor::CubeTensor;

use super::cache::{number, rotated, word};
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
pub const LOWEST: f32 = -3.0e38;

/// The key and the value of the one token that asks, both `[1, n_kv_heads * head_dim]`, and the angles by which the key is rotated: not stored yet.
pub struct Own {
    pub key: CubeTensor,
    pub value: CubeTensor,
    pub angles: [CubeTensor; 2],
}

impl Own {
    /// Whether an adapter has as many buffers as the kernel that stores them.
    pub fn fits(q: &CubeTensor) -> bool {
        launch::has_buffers(q, 10)
    }
}

/// `softmax(q · kᵀ · scale) · v` of `q: [t, n_heads * head_dim]`, rotated by `cos`, `sin: [t, head_dim / 2]`, over what each query sees; that of one token
/// stores its own key and value in `k` and `v`, which nobody else holds, if they are not there.
pub fn attention(
    q: CubeTensor,
    angles: [CubeTensor; 2],
    style: RopeStyle,
    k: CubeTensor,
    v: CubeTensor,
    own: Option<Own>,
    spec: &AttentionSpec,
) -> CubeTensor {
    let (t, width) = (q.meta.shape()[0], q.meta.shape()[1]);
    let out = new_floats(&q, [t, width]);
    if t == 0 || width == 0 {
        return out;
    }
    let cache = &spec.cache;
    let (heads, head_dim) = (spec.n_heads as u32, cache.head_dim as u32);
    let kind = Kind {
        head_dim,
        f16: cache.cache_type == CacheType::F16,
        interleaved: style == RopeStyle::Interleaved,
        only: true,
        stores: own.is_some(),
        planes: launch::planes(&q),
    };
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
        let (count, units) = (CubeCount::Static(heads, queries as u32, parts as u32), CubeDim::new_1d(UNITS));
        let [q_arg, cos, sin] = [&q, &angles[0], &angles[1]].map(|x| x.clone().into_buffer_arg());
        let [k, v] = [&k, &v].map(|cache| launch::vectors(cache.clone(), words).into_buffer_arg());
        let result = found.clone().into_buffer_arg();
        let numbers = NumbersLaunch::new(
            heads,
            cache.n_kv_heads as u32,
            cache.capacity as u32,
            query as u32,
            spec.start as u32,
            first as u32,
            spec.window.map_or(u32::MAX, |window| window.min(u32::MAX as usize) as u32),
            spec.scale,
        );
        let kind = Kind { only: parts == 1, ..kind };
        if let Some(own) = &own {
            let [key, value] = [&own.key, &own.value].map(|x| x.clone().into_buffer_arg());
            let [own_cos, own_sin] = own.angles.clone().map(CubeTensor::into_buffer_arg);
            attend_and_store::launch(
                &q.client, count, units, words, q_arg, cos, sin, key, value, own_cos, own_sin, k, v, result,
                numbers, kind,
            );
        } else {
            attend::launch(&q.client, count, units, words, q_arg, cos, sin, k, v, result, numbers, kind);
        }
        if parts > 1 {
            merge_parts(found, &out, query, [spec.n_heads, queries, parts], cache.head_dim);
        }
    }
    out
}

/// The numbers that a kernel takes.
#[derive(CubeType, CubeLaunch)]
struct Numbers {
    heads: u32,
    kv_heads: u32,
    capacity: u32,
    first_query: u32,
    start: u32,
    first_part: u32,
    window: u32,
    scale: f32,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    head_dim: u32,
    f16: bool,
    interleaved: bool,
    /// There is one part.
    only: bool,
    /// The token's own key and value are not in the caches yet.
    stores: bool,
    planes: bool,
}

impl Kind {
    fn per_word(self) -> u32 {
        if self.f16 { 2 } else { 1 }
    }
}

/// One head of one query over one part of the positions.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn attend<N: Size>(
    q: &[f32],
    cos: &[f32],
    sin: &[f32],
    k: &mut [Vector<u32, N>],
    v: &mut [Vector<u32, N>],
    found: &mut [f32],
    numbers: Numbers,
    #[comptime] kind: Kind,
) {
    let own = Token::new(q, q, cos, sin);
    part(q, cos, sin, &own, k, v, found, &numbers, kind);
}

/// [`attend`] of the one token that asks, whose key and value are not stored yet.
#[cube(launch)]
#[allow(clippy::too_many_arguments, reason = "arguments of a kernel are bindings and numbers")]
fn attend_and_store<N: Size>(
    q: &[f32],
    cos: &[f32],
    sin: &[f32],
    own_key: &[f32],
    own_value: &[f32],
    own_cos: &[f32],
    own_sin: &[f32],
    k: &mut [Vector<u32, N>],
    v: &mut [Vector<u32, N>],
    found: &mut [f32],
    numbers: Numbers,
    #[comptime] kind: Kind,
) {
    let own = Token::new(own_key, own_value, own_cos, own_sin);
    part(q, cos, sin, &own, k, v, found, &numbers, kind);
}

/// What the largest score is, what the weights add up to beside it, and the sum of the values that they weigh; if there is only this part, their
/// quotient. 64 keys at a time, with a running maximum and sum.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernels were given")]
fn part<N: Size>(
    q: &[f32],
    cos: &[f32],
    sin: &[f32],
    token: &Token<'_>,
    k: &mut [Vector<u32, N>],
    v: &mut [Vector<u32, N>],
    found: &mut [f32],
    numbers: &Numbers,
    #[comptime] kind: Kind,
) {
    let (head, heads, capacity) = (CUBE_POS_X, numbers.heads, numbers.capacity);
    let head_dim = comptime!(kind.head_dim);
    let query = numbers.first_query + CUBE_POS_Y;
    let position = numbers.start + query;
    let row = (query * heads + head) * head_dim;
    let kv = head * numbers.kv_heads / heads * capacity;
    // Numbers that are read at once, and units for the values of a key.
    let words = N::value().comptime() as u32;
    let at_once = comptime!(words * kind.per_word());
    let lanes = comptime!(min(head_dim / at_once, UNITS));
    let numbers_of_unit = comptime!((head_dim / at_once).div_ceil(lanes) * at_once);

    let mut turned = Shared::<[f32]>::new_slice(head_dim as usize);
    let mut d = UNIT_POS;
    while d < head_dim {
        turned[d as usize] = rotated(q, cos, sin, row, query, d, head_dim, comptime!(kind.interleaved));
        d += UNITS;
    }
    // The token's own key and value: what is stored now is in memory for other cubes when these have ended.
    let own_vectors = comptime!(if kind.stores { 2 * head_dim / at_once } else { 1 });
    let mut own = Shared::<[Vector<u32, N>]>::new_slice(own_vectors as usize);
    if comptime!(kind.stores) {
        let place = (kv + position % capacity) * comptime!(head_dim / at_once);
        if CUBE_POS_Z == CUBE_COUNT_Z - 1u32 {
            keep(token, &mut own, k, v, place, numbers, kind);
        }
    }
    let mut weights = no_weights(lanes);
    let mut room = Shared::<[f32]>::new_slice(comptime!(UNITS + UNITS.isqrt()) as usize);
    let mut sums = Array::<f32>::new(numbers_of_unit as usize);
    #[unroll]
    for i in 0..numbers_of_unit {
        sums[i as usize] = 0.0f32;
    }
    let mut largest = comptime!(LOWEST).runtime();
    let mut total = 0.0f32;
    // What the query sees of this part.
    let part = (numbers.first_part + CUBE_POS_Z) * PART;
    let window = numbers.window;
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
            let place = (kv + key % capacity) * head_dim;
            score = dot(&turned, &*k, &own, place, key == position, kind) * numbers.scale;
        }
        let tile_largest = over_cube(score, &mut room, UNITS, true, comptime!(kind.planes));
        let now = max(largest, tile_largest);
        let weight = select(seen, (score - now).exp(), 0.0f32);
        let shrink = (largest - now).exp();
        largest = now;
        weights[UNIT_POS as usize] = weight;
        total = fma(total, shrink, over_cube(weight, &mut room, UNITS, false, comptime!(kind.planes)));
        #[unroll]
        for i in 0..numbers_of_unit {
            sums[i as usize] *= shrink;
        }
        gather(&*v, &own, &weights, &mut sums, kv, capacity, from, first, end, position, lanes, kind);
        from += UNITS;
    }
    let mut to = row;
    if comptime!(!kind.only) {
        to = ((CUBE_POS_Y * heads + head) * CUBE_COUNT_Z + CUBE_POS_Z) * comptime!(head_dim + 2);
        if UNIT_POS == 0u32 {
            found[(to + head_dim) as usize] = largest;
            found[(to + comptime!(head_dim + 1)) as usize] = total;
        }
    }
    let divisor = if comptime!(kind.only) { total } else { 1.0f32.runtime() };
    share(&sums, found, to, divisor, lanes, at_once, head_dim);
}

/// Room for the weights of 64 keys, and of more that there are not, so that values of no key can be taken, too: those weigh nothing.
#[cube]
fn no_weights(#[comptime] lanes: u32) -> Shared<[f32]> {
    let side_by_side = comptime!(UNITS / lanes);
    let count = comptime!((UNITS.div_ceil(side_by_side * AHEAD) * AHEAD + 1) * side_by_side);
    let mut weights = Shared::<[f32]>::new_slice(count as usize);
    let mut i = UNITS + UNIT_POS;
    while i < count {
        weights[i as usize] = 0.0f32;
        i += UNITS;
    }
    weights
}

/// A token's keys and values, `[kv_heads, head_dim]`, and the angles of its keys.
#[derive(CubeType)]
struct Token<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    cos: &'a [f32],
    sin: &'a [f32],
}

#[cube]
impl<'a> Token<'a> {
    fn new(keys: &'a [f32], values: &'a [f32], cos: &'a [f32], sin: &'a [f32]) -> Self {
        Token::<'a> { keys, values, cos, sin }
    }
}

/// Keeps the token's key of this head, rotated, and its value in `own`, one behind the other; one of the heads that share them stores them in both caches at
/// `place`.
#[cube]
fn keep<N: Size>(
    token: &Token<'_>,
    own: &mut Shared<[Vector<u32, N>]>,
    k: &mut [Vector<u32, N>],
    v: &mut [Vector<u32, N>],
    place: u32,
    numbers: &Numbers,
    #[comptime] kind: Kind,
) {
    let (f16, interleaved, head_dim) = comptime!((kind.f16, kind.interleaved, kind.head_dim));
    let words = N::value().comptime() as u32;
    let row = comptime!(head_dim / (words * kind.per_word()));
    let from = CUBE_POS_X * numbers.kv_heads / numbers.heads * head_dim;
    let of_group = CUBE_POS_X % (numbers.heads / numbers.kv_heads);
    let mut i = UNIT_POS;
    while i < row {
        let mut key = Vector::<u32, N>::empty();
        let mut value = Vector::<u32, N>::empty();
        #[unroll]
        for n in 0..words {
            let d = (i * words + n) * comptime!(kind.per_word());
            let low = rotated(token.keys, token.cos, token.sin, from, 0u32, d, head_dim, interleaved);
            let value_low = token.values[(from + d) as usize];
            let (mut high, mut value_high) = (low, value_low);
            if comptime!(f16) {
                high = rotated(token.keys, token.cos, token.sin, from, 0u32, d + 1u32, head_dim, interleaved);
                value_high = token.values[(from + d + 1u32) as usize];
            }
            key.insert(comptime!(n as usize), word(low, high, f16));
            value.insert(comptime!(n as usize), word(value_low, value_high, f16));
        }
        own[i as usize] = key;
        own[(row + i) as usize] = value;
        if of_group == 0u32 {
            k[(place + i) as usize] = key;
            v[(place + i) as usize] = value;
        }
        i += UNITS;
    }
}

/// Adds the values of 64 keys from `from` on, times what they weigh: as many side by side as there are units, each of which has some numbers of a key's.
#[cube]
#[allow(clippy::too_many_arguments, reason = "what the kernel was given")]
fn gather<N: Size>(
    v: &[Vector<u32, N>],
    own: &[Vector<u32, N>],
    weights: &Shared<[f32]>,
    sums: &mut Array<f32>,
    kv: u32,
    capacity: u32,
    from: u32,
    first: u32,
    end: u32,
    position: u32,
    #[comptime] lanes: u32,
    #[comptime] kind: Kind,
) {
    let words = N::value().comptime() as u32;
    let row = comptime!(kind.head_dim / (words * kind.per_word()));
    let side_by_side = comptime!(UNITS / lanes);
    let (lane, side) = (UNIT_POS % lanes, UNIT_POS / lanes);
    for step in 0..comptime!(UNITS.div_ceil(side_by_side * AHEAD)) {
        #[unroll]
        for ahead in 0..AHEAD {
            let i = (step * AHEAD + ahead) * side_by_side + side;
            // Without a weight of its own, of a key that is seen: what others hold may be no number.
            let key = clamp(from + i, first, end - 1u32);
            let value = (kv + key % capacity) * row + lane;
            if comptime!(kind.stores) {
                if key == position {
                    add(own, row + lane, weights[i as usize], sums, lane, lanes, row, comptime!(kind.f16));
                } else {
                    add(v, value, weights[i as usize], sums, lane, lanes, row, comptime!(kind.f16));
                }
            } else {
                add(v, value, weights[i as usize], sums, lane, lanes, row, comptime!(kind.f16));
            }
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

/// The product of a query and the key whose numbers begin at `row`, or that which is its `own` if it is `mine` and not stored.
#[cube]
fn dot<N: Size>(
    q: &Shared<[f32]>,
    k: &[Vector<u32, N>],
    own: &[Vector<u32, N>],
    row: u32,
    mine: bool,
    #[comptime] kind: Kind,
) -> f32 {
    if comptime!(kind.stores) {
        if mine { dot_at(q, own, 0u32, kind) } else { dot_at(q, k, row, kind) }
    } else {
        dot_at(q, k, row, kind)
    }
}

#[cube]
fn dot_at<N: Size>(q: &Shared<[f32]>, k: &[Vector<u32, N>], row: u32, #[comptime] kind: Kind) -> f32 {
    let per_word = comptime!(kind.per_word());
    let words = N::value().comptime() as u32;
    let count = comptime!(kind.head_dim / per_word / words);
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
                dot = fma(q[d as usize], number(word, comptime!(n % per_word), comptime!(kind.f16)), dot);
            }
        }
    }
    dot
}

/// Puts together what the parts of each of `heads` of `queries` have found, from query `first_query` of `out` on.
pub fn merge_parts(
    found: CubeTensor,
    out: &CubeTensor,
    first_query: usize,
    [heads, queries, parts]: [usize; 3],
    head_dim: usize,
) {
    merge::launch(
        &out.client,
        CubeCount::Static(heads as u32, queries as u32, 1),
        CubeDim::new_1d(UNITS),
        found.into_buffer_arg(),
        out.clone().into_buffer_arg(),
        first_query as u32,
        parts as u32,
        head_dim as u32,
    );
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
