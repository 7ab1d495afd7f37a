//! Grouped-query attention over the cache.
//!
//! Positions are taken in blocks of [`BLOCK`] and splits of [`SPLIT`], both aligned to multiples from position 0 on; inside a split the softmax is computed
//! online (Milakov & Gimelshein 2018, arXiv:1805.02867), and splits are merged in order (FlashDecoding). So an output depends on its query and
//! the visible keys alone: not on the batch, nor on the number of threads.

mod side_by_side;
mod tiles;

use std::cell::RefCell;
use std::ops::Range;

use self::side_by_side::{score_side_by_side, weigh_side_by_side};
use self::tiles::{BLOCK, LANES, QUERIES, add_values, score, weigh};
use super::dense::{Load, LoadF16, LoadF32, LoadQ8};
use super::pool;
use super::simd::{Floats, aligned, lanes, simd_dispatch};
use crate::kernels::{AttentionSpec, CacheSpec, CacheType};

/// Keys of one partial softmax.
const SPLIT: usize = 256;
/// Query rows (tokens × heads that share keys) of one task, a block of keys is decoded once for them: with sixteen lanes, and with fewer.
const TASK_ROWS: [usize; 2] = [64, 32];
/// Tasks of one token for each thread.
const TASKS_PER_THREAD: usize = 8;

/// What every task of one call reads.
#[derive(Clone, Copy)]
struct Call<'a> {
    q: &'a [f32],
    k: &'a [u8],
    v: &'a [u8],
    spec: &'a AttentionSpec,
    tokens: usize,
}

impl Call<'_> {
    /// Query heads that share a key head.
    fn group(self) -> usize {
        self.spec.n_heads / self.spec.cache.n_kv_heads
    }

    /// Elements from one row to the next, where rows are whole vectors.
    fn stride(self) -> usize {
        self.spec.cache.head_dim.next_multiple_of(LANES)
    }

    /// Where `rows` read the block of keys and values from that begins at position `block`, as far as the key `end` of it.
    fn source(self, rows: &Rows, block: usize, end: usize) -> Source {
        let CacheSpec { capacity, head_dim, .. } = self.spec.cache;
        if rows.tokens.len() == 1 && head_dim == self.stride() && block % capacity + end <= capacity {
            Source::Cache(self.place(rows, block))
        } else {
            Source::Decoded
        }
    }

    /// The byte of the cache where `position` begins.
    fn place(self, rows: &Rows, position: usize) -> usize {
        let capacity = self.spec.cache.capacity;
        (rows.kv_head * capacity + position % capacity) * self.width()
    }

    /// The positions of a split that `rows` see, block by block.
    #[inline(always)]
    fn spans(self, rows: &Rows, split: usize) -> impl Iterator<Item = Range<usize>> {
        let (first, last) = (self.spec.start + rows.tokens.start, self.spec.start + rows.tokens.end - 1);
        let from = self.spec.first_visible(first).max(split * SPLIT);
        let to = (last + 1).min((split + 1) * SPLIT);
        let blocks = (from / BLOCK * BLOCK..to).step_by(BLOCK);
        blocks.map(move |block| block.max(from)..(block + BLOCK).min(to))
    }

    /// The keys of `span` that row `r` of `rows` sees, counted from the first of their block.
    #[inline(always)]
    fn visible(self, rows: &Rows, r: usize, span: &Range<usize>) -> Range<usize> {
        let position = self.spec.start + rows.tokens.start + r / self.group();
        let start = self.spec.first_visible(position).max(span.start);
        let block = span.start / BLOCK * BLOCK;
        start - block..(position + 1).min(span.end).max(start) - block
    }

    /// Bytes of a cached row.
    fn width(self) -> usize {
        self.spec.cache.cache_type.row_bytes(self.spec.cache.head_dim)
    }

    /// Elements of the partial softmaxes of `rows` query rows.
    fn part_len(self, rows: usize) -> usize {
        rows * (2 + self.stride())
    }
}

/// Some tokens and the heads that share a key head: what one task computes.
#[derive(Clone)]
struct Rows {
    kv_head: usize,
    tokens: Range<usize>,
}

/// The partial softmax of each of `n` query rows over one split: largest scores `[n]`, sums of the weights `[n]`, weighted sums of the values `[n, stride]`.
struct Partial<'a> {
    largest: &'a mut [f32],
    total: &'a mut [f32],
    sum: &'a mut [f32],
}

impl<'a> Partial<'a> {
    fn new(part: &'a mut [f32], n: usize) -> Self {
        let (largest, rest) = part.split_at_mut(n);
        let (total, sum) = rest.split_at_mut(n);
        largest.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        sum.fill(0.0);
        Self { largest, total, sum }
    }
}

/// `q: [t, n_heads * head_dim]` at positions `spec.start..`, against the cache; returns `[t, n_heads * head_dim]`.
pub fn attention(q: &[f32], k: &[u8], v: &[u8], spec: &AttentionSpec) -> Vec<f32> {
    let tokens = q.len() / (spec.n_heads * spec.cache.head_dim);
    let size = spec.cache.bytes();
    assert!(q.len() == tokens * spec.n_heads * spec.cache.head_dim && k.len() == size && v.len() == size);
    let call = Call { q, k, v, spec, tokens };
    if tokens == 1 { decode(call) } else { prefill(call) }
}

/// One token: a task for each key head and some splits, then the splits are merged.
fn decode(call: Call<'_>) -> Vec<f32> {
    let (spec, dim, group) = (call.spec, call.spec.cache.head_dim, call.group());
    let first_split = spec.first_visible(spec.start) / SPLIT;
    let splits = spec.start / SPLIT + 1 - first_split;
    let part = call.part_len(group);
    let mut partials = vec![0.0; spec.cache.n_kv_heads * splits * part]; // [n_kv_heads, splits, part]
    let chunks = Disjoint { data: partials.as_mut_ptr(), len: part };
    // What a task reads first does not come ahead: so not more of them than even out the threads.
    let run = (spec.cache.n_kv_heads * splits).div_ceil(pool::threads() * TASKS_PER_THREAD).min(splits);
    let runs = splits.div_ceil(run);
    pool::run(spec.cache.n_kv_heads * runs, &|task| {
        let (kv_head, first) = (task / runs, task % runs * run);
        let here = first..(first + run).min(splits);
        // SAFETY: each task has its own chunks.
        let parts = unsafe { chunks.get(kv_head * splits + here.start..kv_head * splits + here.end) };
        attend(call, Rows { kv_head, tokens: 0..1 }, first_split + here.start..first_split + here.end, parts);
    });
    let mut out = vec![0.0; spec.n_heads * dim];
    let outs = Disjoint { data: out.as_mut_ptr(), len: dim };
    pool::run(spec.cache.n_kv_heads, &|kv_head| {
        let parts = &partials[kv_head * splits * part..][..splits * part];
        for r in 0..group {
            let head = kv_head * group + r;
            // SAFETY: no other task has this head.
            merge(parts, r, group, unsafe { outs.get(head..head + 1) });
        }
    });
    out
}

/// Many tokens: a task for each key head and a few query rows, which walks the splits itself.
fn prefill(call: Call<'_>) -> Vec<f32> {
    let (spec, dim) = (call.spec, call.spec.cache.head_dim);
    let (heads, group) = (spec.n_heads, call.group());
    let rows = TASK_ROWS[usize::from(lanes() < LANES)];
    let step = (rows / group).max(1);
    let blocks = call.tokens.div_ceil(step);
    let mut out = vec![0.0; call.tokens * heads * dim];
    let outs = Disjoint { data: out.as_mut_ptr(), len: dim };
    pool::run(spec.cache.n_kv_heads * blocks, &|task| {
        // The last tokens see the most keys: they go first.
        let (kv_head, block) = (task % spec.cache.n_kv_heads, blocks - 1 - task / spec.cache.n_kv_heads);
        let tokens = block * step..((block + 1) * step).min(call.tokens);
        let n = tokens.len() * group;
        let first = spec.first_visible(spec.start + tokens.start) / SPLIT;
        let last = (spec.start + tokens.end - 1) / SPLIT;
        let mut parts = vec![0.0; (last + 1 - first) * call.part_len(n)];
        attend(call, Rows { kv_head, tokens: tokens.clone() }, first..last + 1, &mut parts);
        for r in 0..n {
            let (token, head) = (tokens.start + r / group, kv_head * group + r % group);
            // SAFETY: no other task has this token and head.
            merge(&parts, r, n, unsafe { outs.get(token * heads + head..token * heads + head + 1) });
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
    /// These chunks lie in the buffer and no one else uses them.
    #[allow(clippy::mut_from_ref, reason = "the chunks are disjoint")]
    unsafe fn get(&self, chunks: Range<usize>) -> &mut [f32] {
        // SAFETY: the caller's promise.
        unsafe {
            let first = self.data.add(chunks.start * self.len);
            std::slice::from_raw_parts_mut(first, chunks.len() * self.len)
        }
    }
}

simd_dispatch!(
    /// Merges the partial softmaxes of row `r` of `n` over all splits, in their order, and divides.
    fn merge(parts: &[f32], r: usize, n: usize, out: &mut [f32]) = merge_body
);

#[inline(always)]
fn merge_body<V: Floats>(parts: &[f32], r: usize, n: usize, out: &mut [f32]) {
    let stride = out.len().next_multiple_of(LANES);
    let parts = parts.chunks_exact(n * (2 + stride));
    let mut largest = f32::NEG_INFINITY;
    for part in parts.clone() {
        largest = largest.max(part[r]);
    }
    let mut total = 0.0;
    out.fill(0.0);
    for part in parts {
        // A split in which this query sees no key has -inf for its largest score.
        let scale = if part[r] == f32::NEG_INFINITY { 0.0 } else { (part[r] - largest).exp() };
        total += part[n + r] * scale;
        add_scaled::<V>(out, &part[2 * n + r * stride..][..stride], scale);
    }
    for o in out {
        *o /= total;
    }
}

/// `out += scale * values`; there are as many values as whole vectors have.
#[inline(always)]
fn add_scaled<V: Floats>(out: &mut [f32], values: &[f32], scale: f32) {
    let whole = out.len() / V::LANES * V::LANES;
    assert!(values.len() >= out.len());
    for j in (0..whole).step_by(V::LANES) {
        // SAFETY: as many elements from `j` on lie in both (asserted); the arm was detected.
        unsafe {
            let o = out.as_mut_ptr().add(j);
            V::load(o).add(V::load(values.as_ptr().add(j)).mul(V::splat(scale))).store(o);
        }
    }
    for j in whole..out.len() {
        out[j] += values[j] * scale;
    }
}

/// What a thread works on, kept from task to task.
#[derive(Default)]
struct Scratch {
    /// The queries, times the scale: `[rows, stride]`.
    queries: Vec<f32>,
    /// A block of keys, then of values: `[BLOCK, stride]`, or nothing while they are read where they lie.
    block: Vec<f32>,
    /// `[rows, BLOCK]`
    scores: Vec<f32>,
}

impl Scratch {
    /// Leaves nothing of a session's keys, values and queries in a thread that outlives it.
    fn wipe(&mut self) {
        for part in [&mut self.queries, &mut self.block, &mut self.scores] {
            part.fill(0.0);
            part.clear();
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The partial softmaxes of `rows` over each of `splits`, into `parts`.
fn attend(call: Call<'_>, rows: Rows, splits: Range<usize>, parts: &mut [f32]) {
    // A thread that ends may have dropped it.
    let mut scratch = SCRATCH.try_with(RefCell::take).unwrap_or_default();
    match call.spec.cache.cache_type {
        CacheType::F16 => attend_f16(call, rows, splits, parts, &mut scratch),
        CacheType::F32 => attend_f32(call, rows, splits, parts, &mut scratch),
        CacheType::Q8_0 => attend_q8_0(call, rows, splits, parts, &mut scratch),
    }
    scratch.wipe();
    let _ = SCRATCH.try_with(|kept| kept.replace(scratch));
}

simd_dispatch!(fn attend_f16(call: Call<'_>, rows: Rows, splits: Range<usize>, parts: &mut [f32], scratch: &mut Scratch) = attend_body::<LoadF16>);
simd_dispatch!(fn attend_f32(call: Call<'_>, rows: Rows, splits: Range<usize>, parts: &mut [f32], scratch: &mut Scratch) = attend_body::<LoadF32>);
simd_dispatch!(fn attend_q8_0(call: Call<'_>, rows: Rows, splits: Range<usize>, parts: &mut [f32], scratch: &mut Scratch) = attend_body::<LoadQ8>);

#[inline(always)]
fn attend_body<V: Floats, L: Load>(
    call: Call<'_>,
    rows: Rows,
    splits: Range<usize>,
    parts: &mut [f32],
    scratch: &mut Scratch,
) {
    let (spec, group, stride) = (call.spec, call.group(), call.stride());
    let n = rows.tokens.len() * group;
    if V::LANES == LANES && rows.tokens.len() > 1 && n > LANES / 2 {
        return attend_side_by_side::<V, L>(call, rows, splits, parts, scratch);
    }
    let queries = aligned(&mut scratch.queries, n.next_multiple_of(QUERIES) * stride);
    let scores = aligned(&mut scratch.scores, n.next_multiple_of(QUERIES) * BLOCK);
    load_queries(call, &rows, queries, 1);
    let end = (spec.start + rows.tokens.end).min(splits.end * SPLIT);
    for (split, part) in splits.zip(parts.chunks_exact_mut(call.part_len(n))) {
        let part = Partial::new(part, n);
        for span in call.spans(&rows, split) {
            let block = span.start / BLOCK * BLOCK;
            // Whole vectors of keys: scores of those around `span` are masked.
            let keys = (span.start - block) / LANES * LANES..(span.end - block).next_multiple_of(LANES);
            let source = call.source(&rows, block, keys.end);
            match source {
                Source::Cache(at) => {
                    let (keys_at, values) = (&call.k[at..], call.v[at..].as_ptr());
                    score::<V, L>((queries, keys_at), stride, keys, scores, values);
                }
                Source::Decoded => {
                    let decoded = aligned(&mut scratch.block, BLOCK * stride);
                    decode_block::<V, L>(call, call.k, rows.kv_head, &span, decoded);
                    // All of it is there: nothing to ask for.
                    let decoded = as_bytes(decoded);
                    score::<V, LoadF32>((queries, decoded), stride, keys, scores, decoded.as_ptr());
                }
            }
            for r in 0..n {
                let scores = &mut scores.as_chunks_mut().0[r];
                let visible = call.visible(&rows, r, &span);
                let sum = &mut part.sum[r * stride..(r + 1) * stride];
                weigh::<V>(scores, visible, &mut part.largest[r], &mut part.total[r], sum);
            }
            let (values, weights) = (span.start - block..span.end - block, &scores[..]);
            match source {
                Source::Cache(at) => {
                    // After the last block there is nothing to ask for but what is there.
                    let next = if span.end < end { call.place(&rows, block + BLOCK) } else { at };
                    let keys = call.k[next..].as_ptr();
                    add_values::<V, L>((weights, [BLOCK, 1], &call.v[at..]), values, part.sum, stride, keys);
                }
                Source::Decoded => {
                    let decoded = aligned(&mut scratch.block, BLOCK * stride);
                    decode_block::<V, L>(call, call.v, rows.kv_head, &span, decoded);
                    let decoded = as_bytes(decoded);
                    let weights = (weights, [BLOCK, 1], decoded);
                    add_values::<V, LoadF32>(weights, values, part.sum, stride, decoded.as_ptr());
                }
            }
        }
    }
}

/// [`attend_body`] of many rows, which lie side by side: a vector has a number of each of as many as it has lanes, so nothing is summed over lanes. The sums are
/// those of [`attend_body`], in its order.
#[inline(always)]
fn attend_side_by_side<V: Floats, L: Load>(
    call: Call<'_>,
    rows: Rows,
    splits: Range<usize>,
    parts: &mut [f32],
    scratch: &mut Scratch,
) {
    let (n, stride) = (rows.tokens.len() * call.group(), call.stride());
    let width = n.next_multiple_of(LANES);
    let queries = aligned(&mut scratch.queries, stride * width);
    let scores = aligned(&mut scratch.scores, BLOCK * width);
    let decoded = aligned(&mut scratch.block, BLOCK * stride);
    load_queries(call, &rows, queries, LANES);
    for (split, part) in splits.zip(parts.chunks_exact_mut(call.part_len(n))) {
        let part = Partial::new(part, n);
        for span in call.spans(&rows, split) {
            let block = span.start / BLOCK * BLOCK;
            let keys = span.start - block..span.end - block;
            decode_block::<V, L>(call, call.k, rows.kv_head, &span, decoded);
            score_side_by_side::<V>((queries, decoded), stride, keys.clone(), scores);
            for (scores, r) in scores.chunks_mut(BLOCK * LANES).zip((0..n).step_by(LANES)) {
                let lanes = r..n.min(r + LANES);
                let mut visible = [const { 0..0 }; LANES];
                for (visible, r) in visible.iter_mut().zip(lanes.clone()) {
                    *visible = call.visible(&rows, r, &span);
                }
                let sums = &mut part.sum[lanes.start * stride..lanes.end * stride];
                let (largest, total) = (&mut part.largest[lanes.clone()], &mut part.total[lanes]);
                weigh_side_by_side::<V>(scores, keys.clone(), &visible, largest, total, sums);
            }
            decode_block::<V, L>(call, call.v, rows.kv_head, &span, decoded);
            let values = as_bytes(decoded);
            for (weights, sums) in scores.chunks(BLOCK * LANES).zip(part.sum.chunks_mut(LANES * stride)) {
                let weights = (weights, [1, LANES], values);
                add_values::<V, LoadF32>(weights, keys.clone(), sums, stride, values.as_ptr());
            }
        }
    }
}

/// Where a block of keys or values is read from.
#[derive(Clone, Copy)]
enum Source {
    /// From the cache, where it starts at this byte: best for a few queries.
    Cache(usize),
    /// From where it was decoded to: best for many queries, and for rows that are no whole vectors or begin anew in the ring.
    Decoded,
}

/// The bytes of f32 numbers.
fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: every f32 is four bytes, and the borrow goes on.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// The queries of `rows`, times the scale, `lanes` of them side by side and filled up with zeros: `[rows / lanes, stride, lanes]`.
#[inline(always)]
fn load_queries(call: Call<'_>, rows: &Rows, to: &mut [f32], lanes: usize) {
    let (dim, group) = (call.spec.cache.head_dim, call.group());
    to.fill(0.0);
    for r in 0..rows.tokens.len() * group {
        let (token, head) = (rows.tokens.start + r / group, rows.kv_head * group + r % group);
        let from = &call.q[(token * call.spec.n_heads + head) * dim..][..dim];
        let to = &mut to[r / lanes * lanes * call.stride() + r % lanes..];
        to.iter_mut().step_by(lanes).zip(from).for_each(|(to, from)| *to = from * call.spec.scale);
    }
}

/// Decodes the cached rows at the positions of `span` into their places in a block, filled up with zeros.
#[inline(always)]
fn decode_block<V: Floats, L: Load>(
    call: Call<'_>,
    cache: &[u8],
    kv_head: usize,
    span: &Range<usize>,
    to: &mut [f32],
) {
    let CacheSpec { capacity, head_dim: dim, .. } = call.spec.cache;
    for (position, to) in span.clone().zip(to.chunks_exact_mut(call.stride()).skip(span.start % BLOCK)) {
        let row = kv_head * capacity + position % capacity;
        let from = cache[row * L::bytes(dim)..][..L::bytes(dim)].as_ptr();
        // SAFETY: `dim` elements lie in `from`, at least as many in `to`; the arm was detected.
        unsafe {
            let mut j = 0;
            while j + V::LANES <= dim {
                L::load::<V>(from, j).store(to.as_mut_ptr().add(j));
                j += V::LANES;
            }
            while j < dim {
                to[j] = L::one(from, j);
                j += 1;
            }
        }
        to[dim..].fill(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::cache_write;
    use super::*;

    /// Tasks of several splits, the last of them shorter.
    #[test]
    fn a_token_after_many_is_that_token_of_a_batch() {
        for (cache_type, window) in
            [(CacheType::F16, None), (CacheType::F32, Some(900)), (CacheType::Q8_0, None)]
        {
            let cache = CacheSpec { n_kv_heads: 3, capacity: 1200, head_dim: 16, cache_type };
            let numbers =
                |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32 * 0.37).sin()).collect() };
            let (mut k, mut v) = (vec![0; cache.bytes()], vec![0; cache.bytes()]);
            cache_write(&mut k, &numbers(1200 * 3 * 16), &cache, 0);
            cache_write(&mut v, &numbers(1201 * 3 * 16)[48..], &cache, 0);
            let q = numbers(2 * 6 * 16);
            let spec = |start| AttentionSpec { n_heads: 6, start, window, scale: 0.25, cache: cache.clone() };
            let both = attention(&q, &k, &v, &spec(1198));
            let alone = attention(&q[6 * 16..], &k, &v, &spec(1199));
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&alone), bits(&both[6 * 16..]), "{cache_type:?}");
        }
    }

    /// Rows side by side, of which some see nothing of a block, and one more than whole vectors.
    #[test]
    fn each_of_many_tokens_is_that_token_alone() {
        for (cache_type, window, head_dim, n_heads, start) in [
            (CacheType::F16, None, 64, 3, 0),
            (CacheType::F16, Some(70), 40, 3, 500),
            (CacheType::Q8_0, None, 32, 1, 250),
            (CacheType::F32, Some(5), 20, 4, 61),
        ] {
            let tokens = 91;
            let cache = CacheSpec { n_kv_heads: 1, capacity: 600, head_dim, cache_type };
            let numbers = |count: usize, by: f32| -> Vec<f32> {
                (0..count).map(|i| (i as f32 * by).sin() * 3.0).collect()
            };
            let (mut k, mut v) = (vec![0; cache.bytes()], vec![0; cache.bytes()]);
            cache_write(&mut k, &numbers((start + tokens) * head_dim, 0.37), &cache, 0);
            cache_write(&mut v, &numbers((start + tokens) * head_dim, 0.73), &cache, 0);
            let q = numbers(tokens * n_heads * head_dim, 0.29);
            let spec = |start| AttentionSpec { n_heads, start, window, scale: 0.3, cache: cache.clone() };
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            let together = attention(&q, &k, &v, &spec(start));
            let width = n_heads * head_dim;
            for (i, (q, together)) in q.chunks(width).zip(together.chunks(width)).enumerate() {
                let alone = attention(q, &k, &v, &spec(start + i));
                assert_eq!(bits(&alone), bits(together), "{cache_type:?} {start} {i}");
            }
        }
    }

    #[test]
    fn nothing_stays_in_the_scratch_of_a_thread() {
        for cache_type in [CacheType::F16, CacheType::F32, CacheType::Q8_0] {
            for tokens in [1, 2, 9] {
                let cache = CacheSpec { n_kv_heads: 1, capacity: 16, head_dim: 12, cache_type };
                let spec = AttentionSpec { n_heads: 2, start: 3, window: None, scale: 0.5, cache };
                let mut kv = vec![0; spec.cache.bytes()];
                cache_write(&mut kv, &[1.5; 16 * 12], &spec.cache, 0);
                let out = attention(&vec![2.0; tokens * 2 * 12], &kv, &kv, &spec);
                // The scale of a block is in half precision.
                assert!(out.iter().all(|x| (x - 1.5).abs() <= 1.5 / 2048.0), "{out:?}");
                SCRATCH.with_borrow_mut(|Scratch { queries, block, scores }| {
                    assert!(queries.capacity() > 0 && block.capacity() > 0 && scores.capacity() > 0);
                    for part in [queries, block, scores] {
                        assert!(part.is_empty());
                        // SAFETY: what was in use was written before, and `clear` leaves it.
                        let left = unsafe { std::slice::from_raw_parts(part.as_ptr(), 12) };
                        assert!(left.iter().all(|x| *x == 0.0));
                    }
                });
            }
        }
    }
}
