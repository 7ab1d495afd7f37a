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

/// Scores of up to this many query rows are held at a time.
const TILE_ROWS: usize = 32;

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
    let head_bytes = kv_head * capacity * dim * L::SIZE..(kv_head + 1) * capacity * dim * L::SIZE;
    let (keys, values) = (&call.k[head_bytes.clone()], &call.v[head_bytes]);
    part.largest.fill(f32::NEG_INFINITY);
    part.total.fill(0.0);
    part.sum.fill(0.0);
    let (first, last) = (spec.start + tokens.start, spec.start + tokens.end - 1);
    let from = spec.first_visible(first).max(split * SPLIT);
    let to = (last + 1).min((split + 1) * SPLIT);
    let mut scores = [[0.0f32; BLOCK]; TILE_ROWS];
    let mut block = from / BLOCK * BLOCK;
    while block < to {
        let span = block.max(from)..(block + BLOCK).min(to);
        for tile in (0..tokens.len() * group).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(tokens.len() * group - tile);
            let scores = &mut scores[..rows];
            let query = |r: usize| {
                let (token, head) = (tokens.start + (tile + r) / group, kv_head * group + (tile + r) % group);
                &call.q[(token * spec.n_heads + head) * dim..][..dim]
            };
            for run in runs(span.clone(), capacity) {
                let at = run.position - block..run.position - block + run.len;
                score_run::<V, L>(query, &keys[run.slot * dim * L::SIZE..], scores, at, spec.scale);
            }
            for (r, scores) in scores.iter_mut().enumerate() {
                let row = tile + r;
                let position = first + row / group;
                let visible = spec.first_visible(position).max(span.start)..(position + 1).min(span.end);
                let sum = &mut part.sum[row * dim..(row + 1) * dim];
                weigh::<V>(scores, visible, block, &mut part.largest[row], &mut part.total[row], sum);
            }
            let sums = &mut part.sum[tile * dim..(tile + rows) * dim];
            for run in runs(span.clone(), capacity) {
                let at = run.position - block..run.position - block + run.len;
                add_values::<V, L>(scores, at, &values[run.slot * dim * L::SIZE..], sums, dim);
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

/// `scores[r][at.start + j] = scale · query(r) · keys[j]`, four queries at a time, so that a key is decoded once for them.
#[inline(always)]
fn score_run<'q, V: F32x8, L: Load>(
    query: impl Fn(usize) -> &'q [f32] + Copy,
    keys: &[u8],
    scores: &mut [[f32; BLOCK]],
    at: std::ops::Range<usize>,
    scale: f32,
) {
    assert!(keys.len() >= at.len() * query(0).len() * L::SIZE && at.end <= BLOCK);
    let mut r = 0;
    while r < scores.len() {
        // The products of tile and chains fill the vector registers without spilling.
        match scores.len() - r {
            1 => r += score_rows::<V, L, 8, 1>(query, keys, scores, r, at.clone(), scale),
            2 => r += score_rows::<V, L, 4, 2>(query, keys, scores, r, at.clone(), scale),
            3 => r += score_rows::<V, L, 4, 3>(query, keys, scores, r, at.clone(), scale),
            _ => r += score_rows::<V, L, 2, 4>(query, keys, scores, r, at.clone(), scale),
        }
    }
}

/// `C` queries from `r` on against all keys of a run, `R` at a time; returns `C`.
#[inline(always)]
fn score_rows<'q, V: F32x8, L: Load, const R: usize, const C: usize>(
    query: impl Fn(usize) -> &'q [f32],
    keys: &[u8],
    scores: &mut [[f32; BLOCK]],
    r: usize,
    at: std::ops::Range<usize>,
    scale: f32,
) -> usize {
    let dim = query(r).len();
    let stride = dim * L::SIZE;
    let mut queries = [std::ptr::null(); C];
    for (c, q) in queries.iter_mut().enumerate() {
        *q = query(r + c).as_ptr();
    }
    let mut j = 0;
    while j < at.len() {
        // SAFETY: keys `j..` lie in the slice (asserted by the caller), and the arm was detected.
        unsafe {
            let mut key = [keys.as_ptr().add(j * stride); R];
            if j + R <= at.len() {
                for (i, key) in key.iter_mut().enumerate() {
                    *key = key.add(i * stride);
                }
                let sums = dot::<V, L, R, C>(key, queries, dim);
                for (i, sums) in sums.iter().enumerate() {
                    for (c, sum) in sums.iter().enumerate() {
                        scores[r + c][at.start + j + i] = sum * scale;
                    }
                }
                j += R;
            } else {
                let sums = dot::<V, L, 1, C>([key[0]], queries, dim);
                for (c, sum) in sums[0].iter().enumerate() {
                    scores[r + c][at.start + j] = sum * scale;
                }
                j += 1;
            }
        }
    }
    C
}

/// Turns a row of scores into weights relative to the largest so far, zero where the key is not visible; brings `largest`, `total` and `sum` up
/// to date.
#[inline(always)]
fn weigh<V: F32x8>(
    scores: &mut [f32; BLOCK],
    visible: std::ops::Range<usize>,
    block: usize,
    largest: &mut f32,
    total: &mut f32,
    sum: &mut [f32],
) {
    if visible.is_empty() {
        return scores.fill(0.0);
    }
    scores[..visible.start - block].fill(f32::NEG_INFINITY);
    scores[visible.end - block..].fill(f32::NEG_INFINITY);
    let before = *largest;
    // SAFETY: `BLOCK` is a multiple of 8, and the arm was detected.
    unsafe {
        let p = scores.as_mut_ptr();
        let mut m = V::load(p);
        for j in (8..BLOCK).step_by(8) {
            m = m.max(V::load(p.add(j)));
        }
        *largest = m.largest().max(before);
        let (offset, mut added) = (V::splat(*largest), V::splat(0.0));
        for j in (0..BLOCK).step_by(8) {
            let weight = V::load(p.add(j)).sub(offset).exp();
            weight.store(p.add(j));
            added = added.add(weight);
        }
        let scale = if before == f32::NEG_INFINITY { 0.0 } else { (before - *largest).exp() };
        *total = *total * scale + added.sum();
        if *largest != before {
            sum.iter_mut().for_each(|s| *s *= scale);
        }
    }
}

/// `sums[r] += Σ_j scores[r][at.start + j] · values[j]`, two rows at a time, so that a value is decoded once for both.
#[inline(always)]
fn add_values<V: F32x8, L: Load>(
    scores: &[[f32; BLOCK]],
    at: std::ops::Range<usize>,
    values: &[u8],
    sums: &mut [f32],
    dim: usize,
) {
    assert!(values.len() >= at.len() * dim * L::SIZE && sums.len() == scores.len() * dim);
    let mut r = 0;
    while r < scores.len() {
        let n = if scores.len() - r >= 2 { 2 } else { 1 };
        let mut d = 0;
        while d < dim {
            d += match (n, dim - d) {
                (2, 32..) => {
                    add_columns::<V, L, 2, 4>(&scores[r..], &at, values, &mut sums[r * dim..], dim, d)
                }
                (1, 32..) => {
                    add_columns::<V, L, 1, 4>(&scores[r..], &at, values, &mut sums[r * dim..], dim, d)
                }
                (2, 8..) => {
                    add_columns::<V, L, 2, 1>(&scores[r..], &at, values, &mut sums[r * dim..], dim, d)
                }
                (1, 8..) => {
                    add_columns::<V, L, 1, 1>(&scores[r..], &at, values, &mut sums[r * dim..], dim, d)
                }
                _ => add_column::<L>(&scores[r..r + n], &at, values, &mut sums[r * dim..], dim, d),
            };
        }
        r += n;
    }
}

/// Columns `d..d + 8 * W` of `R` rows; returns how many.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "the indices are those of pointers too")]
fn add_columns<V: F32x8, L: Load, const R: usize, const W: usize>(
    scores: &[[f32; BLOCK]],
    at: &std::ops::Range<usize>,
    values: &[u8],
    sums: &mut [f32],
    dim: usize,
    d: usize,
) -> usize {
    // SAFETY: `d + 8 * W <= dim`; `R` rows lie in `scores` and `sums`, `at.len()` in `values` (asserted by the caller); the arm was detected.
    unsafe {
        let p = sums.as_mut_ptr().add(d);
        let mut acc = [[V::splat(0.0); W]; R];
        for r in 0..R {
            for w in 0..W {
                acc[r][w] = V::load(p.add(r * dim + 8 * w));
            }
        }
        for j in 0..at.len() {
            let value = values.as_ptr().add(j * dim * L::SIZE);
            for w in 0..W {
                let value = L::load::<V>(value, d + 8 * w);
                for r in 0..R {
                    acc[r][w] =
                        V::splat(*scores.get_unchecked(r).get_unchecked(at.start + j)).fma(value, acc[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                acc[r][w].store(p.add(r * dim + 8 * w));
            }
        }
    }
    8 * W
}

/// Column `d` of the rows; returns 1.
#[inline(always)]
fn add_column<L: Load>(
    scores: &[[f32; BLOCK]],
    at: &std::ops::Range<usize>,
    values: &[u8],
    sums: &mut [f32],
    dim: usize,
    d: usize,
) -> usize {
    for (scores, sums) in scores.iter().zip(sums.chunks_mut(dim)) {
        for (j, score) in scores[at.clone()].iter().enumerate() {
            // SAFETY: `at.len()` rows lie in `values` (asserted by the caller), and `d < dim`.
            sums[d] += score * unsafe { L::one(values.as_ptr().add(j * dim * L::SIZE), d) };
        }
    }
    1
}
