//! Grouped-query attention over the cache, and the writing of new keys and values into it.
//!
//! Positions are taken in blocks of [`BLOCK`] and splits of [`SPLIT`], both aligned to multiples from position 0 on; inside a split the softmax is computed
//! online (Milakov & Gimelshein 2018, arXiv:1805.02867), and splits are merged in order (FlashDecoding). So an output depends on its query and
//! the visible keys alone: not on the batch, nor on the number of threads.

use super::dense::{Load, LoadF16, LoadF32, dot};
use super::pool;
use super::simd::{F32x8, simd_dispatch};
use crate::kernels::{AttentionSpec, CacheSpec, CacheType};

/// Keys scored at a time.
const BLOCK: usize = 64;
/// Keys of one partial softmax.
const SPLIT: usize = 256;
/// Query rows (tokens × heads that share keys) of one task.
const TASK_ROWS: usize = 32;

/// Writes `rows: [t, n_kv_heads * head_dim]` at positions `start..start + t` of a ring laid out `[n_kv_heads, capacity, head_dim]`.
pub fn cache_write(cache: &mut [u8], rows: &[f32], spec: &CacheSpec, start: usize) {
    let width = spec.n_kv_heads * spec.head_dim;
    let size = spec.cache_type.bytes();
    assert_eq!(cache.len(), width * spec.capacity * size);
    for (i, row) in rows.chunks_exact(width).enumerate() {
        let slot = (start + i) % spec.capacity;
        for (head, values) in row.chunks_exact(spec.head_dim).enumerate() {
            let at = (head * spec.capacity + slot) * spec.head_dim * size;
            store(&mut cache[at..at + spec.head_dim * size], values, spec.cache_type);
        }
    }
}

fn store(to: &mut [u8], from: &[f32], cache_type: CacheType) {
    match cache_type {
        CacheType::F32 => {
            to.chunks_exact_mut(4).zip(from).for_each(|(to, v)| to.copy_from_slice(&v.to_le_bytes()));
        }
        CacheType::F16 => store_f16(to, from),
    }
}

simd_dispatch!(fn store_f16(to: &mut [u8], from: &[f32]) = store_f16_body);

#[inline(always)]
fn store_f16_body<V: F32x8>(to: &mut [u8], from: &[f32]) {
    assert_eq!(to.len(), from.len() * 2);
    let whole = from.len() / 8 * 8;
    for j in (0..whole).step_by(8) {
        // SAFETY: `j + 8 <= from.len()`, and `to` has two bytes for each.
        unsafe { V::load(from.as_ptr().add(j)).store_f16(to.as_mut_ptr().cast::<u16>().wrapping_add(j)) };
    }
    for j in whole..from.len() {
        to[2 * j..2 * j + 2].copy_from_slice(&half::f16::from_f32(from[j]).to_le_bytes());
    }
}

/// What every task of one call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    q: &'a [f32],
    k: &'a [u8],
    v: &'a [u8],
    spec: &'a AttentionSpec,
    tokens: usize,
}

/// A partial softmax of one query row: its largest score, the sum of its weights, its weighted sum of values.
struct Partial<'a> {
    largest: &'a mut [f32],
    total: &'a mut [f32],
    sum: &'a mut [f32],
}

/// `q: [t, n_heads * head_dim]` at positions `spec.start..`, against the cache; returns `[t, n_heads * head_dim]`.
pub fn attention(q: &[f32], k: &[u8], v: &[u8], spec: &AttentionSpec) -> Vec<f32> {
    let (heads, dim) = (spec.n_heads, spec.cache.head_dim);
    let tokens = q.len() / (heads * dim);
    let call = Call { q, k, v, spec, tokens };
    if tokens == 1 { decode(call) } else { prefill(call) }
}

/// One token: a task for each key head and split, then the splits are merged.
fn decode(call: Call<'_>) -> Vec<f32> {
    let (spec, dim) = (call.spec, call.spec.cache.head_dim);
    let group = spec.n_heads / spec.cache.n_kv_heads;
    let first_split = spec.first_visible(spec.start) / SPLIT;
    let splits = spec.start / SPLIT + 1 - first_split;
    // [n_kv_heads, splits, group, 2 + head_dim]
    let part = group * (2 + dim);
    let mut partials = vec![0.0; spec.cache.n_kv_heads * splits * part];
    let chunks = Disjoint { data: partials.as_mut_ptr(), len: part };
    pool::run(spec.cache.n_kv_heads * splits, &|task| {
        let (kv_head, split) = (task / splits, first_split + task % splits);
        // SAFETY: each task has its own chunk.
        let chunk = unsafe { chunks.get(task) };
        let (largest, rest) = chunk.split_at_mut(group);
        let (total, sum) = rest.split_at_mut(group);
        split_scores(call, kv_head, 0..1, split, Partial { largest, total, sum });
    });
    let mut out = vec![0.0; spec.n_heads * dim];
    for (head, out) in out.chunks_exact_mut(dim).enumerate() {
        let (kv_head, r) = (head / group, head % group);
        let chunk = |s: usize| &partials[(kv_head * splits + s) * part..][..part];
        let parts = (0..splits).map(|s| {
            let chunk = chunk(s);
            (chunk[r], chunk[group + r], &chunk[2 * group + r * dim..][..dim])
        });
        merge(parts, out);
    }
    out
}

/// Many tokens: a task for each key head and a few query rows, which walks the splits itself.
fn prefill(call: Call<'_>) -> Vec<f32> {
    let (spec, dim) = (call.spec, call.spec.cache.head_dim);
    let (heads, group) = (spec.n_heads, spec.n_heads / spec.cache.n_kv_heads);
    let step = (TASK_ROWS / group).max(1);
    let blocks = call.tokens.div_ceil(step);
    let mut out = vec![0.0; call.tokens * heads * dim];
    let rows = Disjoint { data: out.as_mut_ptr(), len: dim };
    pool::run(spec.cache.n_kv_heads * blocks, &|task| {
        // The last tokens see the most keys: they go first.
        let (kv_head, block) = (task % spec.cache.n_kv_heads, blocks - 1 - task / spec.cache.n_kv_heads);
        let tokens = block * step..((block + 1) * step).min(call.tokens);
        let n = tokens.len() * group;
        let first = spec.first_visible(spec.start + tokens.start) / SPLIT;
        let last = (spec.start + tokens.end - 1) / SPLIT;
        let mut parts = vec![0.0; (last + 1 - first) * n * (2 + dim)];
        for (split, chunk) in (first..=last).zip(parts.chunks_exact_mut(n * (2 + dim))) {
            let (largest, rest) = chunk.split_at_mut(n);
            let (total, sum) = rest.split_at_mut(n);
            split_scores(call, kv_head, tokens.clone(), split, Partial { largest, total, sum });
        }
        for r in 0..n {
            let (token, head) = (tokens.start + r / group, kv_head * group + r % group);
            // SAFETY: no other task has this token and head.
            let out = unsafe { rows.get(token * heads + head) };
            let parts = parts.chunks_exact(n * (2 + dim));
            merge(parts.map(|c| (c[r], c[n + r], &c[2 * n + r * dim..][..dim])), out);
        }
    });
    out
}

/// Chunks of one buffer that tasks write to, each its own.
#[derive(Clone, Copy)]
struct Disjoint {
    data: *mut f32,
    len: usize,
}

// SAFETY: tasks use disjoint chunks.
unsafe impl Send for Disjoint {}
// SAFETY: as above.
unsafe impl Sync for Disjoint {}

impl Disjoint {
    /// # Safety
    /// Chunk `i` lies in the buffer and no one else uses it.
    #[allow(clippy::mut_from_ref, reason = "the chunks are disjoint")]
    unsafe fn get(&self, i: usize) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.len), self.len) }
    }
}

/// Merges partial softmaxes `(largest, total, sum)` in order, and divides.
fn merge<'a>(parts: impl Iterator<Item = (f32, f32, &'a [f32])> + Clone, out: &mut [f32]) {
    let largest = parts.clone().map(|p| p.0).fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0;
    out.fill(0.0);
    for (m, t, sum) in parts {
        // A split in which this query sees no key has m = -inf.
        let scale = if m == f32::NEG_INFINITY { 0.0 } else { (m - largest).exp() };
        total += t * scale;
        out.iter_mut().zip(sum).for_each(|(o, s)| *o += s * scale);
    }
    out.iter_mut().for_each(|o| *o /= total);
}

fn split_scores(
    call: Call<'_>,
    kv_head: usize,
    tokens: std::ops::Range<usize>,
    split: usize,
    part: Partial<'_>,
) {
    match call.spec.cache.cache_type {
        CacheType::F16 => split_f16(call, kv_head, tokens, split, part),
        CacheType::F32 => split_f32(call, kv_head, tokens, split, part),
    }
}

simd_dispatch!(fn split_f16(call: Call<'_>, kv_head: usize, tokens: std::ops::Range<usize>, split: usize, part: Partial<'_>) = split_body::<LoadF16>);
simd_dispatch!(fn split_f32(call: Call<'_>, kv_head: usize, tokens: std::ops::Range<usize>, split: usize, part: Partial<'_>) = split_body::<LoadF32>);

/// The partial softmax of `tokens` (times the heads that share `kv_head`) over the keys of one split.
#[inline(always)]
fn split_body<V: F32x8, L: Load>(
    call: Call<'_>,
    kv_head: usize,
    tokens: std::ops::Range<usize>,
    split: usize,
    part: Partial<'_>,
) {
    let spec = call.spec;
    let (dim, capacity) = (spec.cache.head_dim, spec.cache.capacity);
    let group = spec.n_heads / spec.cache.n_kv_heads;
    let size = spec.cache.cache_type.bytes();
    let rows = tokens.len() * group;
    let head_bytes = kv_head * capacity * dim * size..(kv_head + 1) * capacity * dim * size;
    let (keys, values) = (&call.k[head_bytes.clone()], &call.v[head_bytes]);
    let query = |r: usize| {
        let at = ((tokens.start + r / group) * spec.n_heads + kv_head * group + r % group) * dim;
        &call.q[at..at + dim]
    };
    part.largest.fill(f32::NEG_INFINITY);
    part.total.fill(0.0);
    part.sum.fill(0.0);
    let (first, last) = (spec.start + tokens.start, spec.start + tokens.end - 1);
    let from = spec.first_visible(first).max(split * SPLIT);
    let to = (last + 1).min((split + 1) * SPLIT);
    let mut scores = [0.0f32; BLOCK];
    let mut block = from / BLOCK * BLOCK;
    while block < to {
        for r in 0..rows {
            let position = first + r / group;
            let visible =
                spec.first_visible(position).max(from).max(block)..(position + 1).min(block + BLOCK).min(to);
            if visible.is_empty() {
                continue;
            }
            // Scores of the keys in view; the ring may wrap inside the block.
            scores.fill(f32::NEG_INFINITY);
            for run in runs(visible.clone(), capacity) {
                let at = &mut scores[run.position - block..][..run.len];
                score_run::<V, L>(query(r), &keys[run.slot * dim * size..], at, spec.scale);
            }
            let m = softmax_block::<V>(&mut scores, part.largest[r], &mut part.total[r]);
            let sum = &mut part.sum[r * dim..(r + 1) * dim];
            if m != part.largest[r] {
                let scale =
                    if part.largest[r] == f32::NEG_INFINITY { 0.0 } else { (part.largest[r] - m).exp() };
                sum.iter_mut().for_each(|s| *s *= scale);
                part.largest[r] = m;
            }
            for run in runs(visible, capacity) {
                let weights = &scores[run.position - block..][..run.len];
                add_values::<V, L>(weights, &values[run.slot * dim * size..], sum);
            }
        }
        block += BLOCK;
    }
}

/// Positions that lie next to each other in the ring.
struct Run {
    position: usize,
    slot: usize,
    len: usize,
}

/// The at most two runs of `positions` in a ring of `capacity` slots.
#[inline(always)]
fn runs(positions: std::ops::Range<usize>, capacity: usize) -> impl Iterator<Item = Run> {
    let slot = positions.start % capacity;
    let len = positions.len().min(capacity - slot);
    let rest = positions.len() - len;
    [
        Run { position: positions.start, slot, len },
        Run { position: positions.start + len, slot: 0, len: rest },
    ]
    .into_iter()
    .filter(|run| run.len > 0)
}

/// `scores[j] = scale · q · keys[j]`.
#[inline(always)]
fn score_run<V: F32x8, L: Load>(q: &[f32], keys: &[u8], scores: &mut [f32], scale: f32) {
    let dim = q.len();
    let stride = dim * L::SIZE;
    assert!(keys.len() >= scores.len() * stride);
    let mut j = 0;
    while j < scores.len() {
        let key = |i: usize| keys[i * stride..].as_ptr();
        // SAFETY: keys `j..` lie in the slice (asserted), and the arm was detected.
        unsafe {
            if j + 4 <= scores.len() {
                let sums = dot::<V, L, 4, 1>([key(j), key(j + 1), key(j + 2), key(j + 3)], [q.as_ptr()], dim);
                sums.iter().zip(&mut scores[j..]).for_each(|(sum, s)| *s = sum[0] * scale);
                j += 4;
            } else {
                scores[j] = dot::<V, L, 1, 1>([key(j)], [q.as_ptr()], dim)[0][0] * scale;
                j += 1;
            }
        }
    }
}

/// Turns scores into weights relative to the largest so far, which it returns; brings `total` up to date.
#[inline(always)]
fn softmax_block<V: F32x8>(scores: &mut [f32; BLOCK], largest: f32, total: &mut f32) -> f32 {
    // SAFETY: `BLOCK` is a multiple of 8, and the arm was detected.
    unsafe {
        let p = scores.as_mut_ptr();
        let mut m = V::load(p);
        for j in (8..BLOCK).step_by(8) {
            m = m.max(V::load(p.add(j)));
        }
        let m = m.largest().max(largest);
        let (offset, mut sum) = (V::splat(m), V::splat(0.0));
        for j in (0..BLOCK).step_by(8) {
            let weight = V::load(p.add(j)).sub(offset).exp();
            weight.store(p.add(j));
            sum = sum.add(weight);
        }
        let before = if largest == f32::NEG_INFINITY { 0.0 } else { *total * (largest - m).exp() };
        *total = before + sum.sum();
        m
    }
}

/// `sum += Σ_j weights[j] · values[j]`.
#[inline(always)]
fn add_values<V: F32x8, L: Load>(weights: &[f32], values: &[u8], sum: &mut [f32]) {
    const WIDE: usize = 4;
    let dim = sum.len();
    let stride = dim * L::SIZE;
    assert!(values.len() >= weights.len() * stride);
    let mut d = 0;
    while d < dim {
        // SAFETY: `d + 8 * n <= dim` in each arm, rows `0..weights.len()` lie in `values` (asserted), and the arm was detected.
        unsafe {
            let p = sum.as_mut_ptr().add(d);
            if d + 8 * WIDE <= dim {
                let mut acc: [V; WIDE] = std::array::from_fn(|i| V::load(p.add(8 * i)));
                for (j, &weight) in weights.iter().enumerate() {
                    let (row, weight) = (values.as_ptr().add(j * stride), V::splat(weight));
                    for (i, acc) in acc.iter_mut().enumerate() {
                        *acc = weight.fma(L::load::<V>(row, d + 8 * i), *acc);
                    }
                }
                acc.iter().enumerate().for_each(|(i, acc)| acc.store(p.add(8 * i)));
                d += 8 * WIDE;
            } else if d + 8 <= dim {
                let mut acc = V::load(p);
                for (j, &weight) in weights.iter().enumerate() {
                    acc = V::splat(weight).fma(L::load::<V>(values.as_ptr().add(j * stride), d), acc);
                }
                acc.store(p);
                d += 8;
            } else {
                for (j, &weight) in weights.iter().enumerate() {
                    *p += weight * L::one(values.as_ptr().add(j * stride), d);
                }
                d += 1;
            }
        }
    }
}
