//! The arithmetic of sampling on one row of logits: what is kept and what is drawn, without sorting the vocabulary.

#[cfg(test)]
mod tests;

use super::SamplingParams;

/// Logits are looked at in blocks of this many.
const BLOCK: usize = 64;

/// A weight of 1 (that of the largest logit) as an integer: 2⁴⁰. A sum of 2²³ of them still fits.
const ONE: f64 = (1u64 << 40) as f64;

/// A token as a number: by ascending key come descending logits and, among equal ones, ascending ids.
type Key = u64;

/// What is known of one row of logits, and the memory to work on it.
#[derive(Clone, Debug, Default)]
pub(super) struct Row {
    /// The largest logit of each block. [⌈vocab_size / BLOCK⌉]
    maxima: Vec<f32>,
    /// The largest logit.
    max: f32,
    /// The sum of the kept weights of each block. [⌈vocab_size / BLOCK⌉]
    sums: Vec<u64>,
    /// Tokens in question.
    pool: Vec<Key>,
    /// Working memory.
    sorted: Vec<f32>,
}

impl Row {
    /// Looks at a row: [vocab_size]. Says whether it has logits and all are finite.
    pub(super) fn scan(&mut self, logits: &[f32]) -> bool {
        self.maxima.clear();
        let (blocks, rest) = logits.as_chunks::<BLOCK>();
        let mut not_finite = false;
        for block in blocks {
            let (max, bad) = scan_block(block);
            not_finite |= bad;
            self.maxima.push(max);
        }
        if !rest.is_empty() {
            not_finite |= rest.iter().any(|logit| !logit.is_finite());
            self.maxima.push(rest.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        self.max = self.maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        !not_finite && !logits.is_empty()
    }

    /// The largest logit of the row.
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    /// The lowest token that has the largest logit.
    pub(super) fn argmax(&self, logits: &[f32]) -> u32 {
        let block = self.maxima.iter().position(|&max| max == self.max).unwrap_or(0);
        let within = logits[block * BLOCK..].iter().position(|&logit| logit == self.max).unwrap_or(0);
        (block * BLOCK + within) as u32
    }

    /// The `n` tokens with the largest logits, best first.
    pub(super) fn top(&mut self, logits: &[f32], n: usize) -> Vec<u32> {
        self.collect_top(logits, n);
        self.pool.sort_unstable();
        self.pool.iter().map(|&key| token(key)).collect()
    }

    /// The logarithm of the sum of the exponentials of the row.
    pub(super) fn log_total(&mut self, logits: &[f32]) -> f32 {
        let total = self.total(logits, Scale { max: self.max, temperature: 1.0 }, Kept::ALL);
        self.max + (total as f64 / ONE).ln() as f32
    }

    /// Temperature, top-k, top-p and min-p, and the draw with the 64 random bits `random`.
    pub(super) fn draw(&mut self, logits: &[f32], params: &SamplingParams, random: u64) -> u32 {
        let scale = Scale { max: self.max, temperature: params.temperature };
        let kept = self.keep(logits, params, scale);
        let total = self.total(logits, scale, kept);
        let point = ((u128::from(random) * u128::from(total)) >> 64) as u64;
        self.find(logits, scale, kept, point)
    }

    /// Top-k, then top-p, then min-p.
    fn keep(&mut self, logits: &[f32], params: &SamplingParams, scale: Scale) -> Kept {
        let mut kept = Kept::ALL;
        if params.top_k > 0 && (params.top_k as usize) < logits.len() {
            self.collect_top(logits, params.top_k as usize);
            if params.top_p < 1.0 {
                let goal = goal(scale.total(&self.pool), params.top_p);
                let length = nucleus(&mut self.pool, scale, goal);
                self.pool.truncate(length);
            }
            kept = kept.up_to(&self.pool);
        } else if params.top_p < 1.0 {
            let total = self.total(logits, scale, kept);
            self.collect_nucleus_edge(logits, scale, total, params.top_p);
            kept = kept.up_to(&self.pool);
        }
        kept.min_p = params.min_p;
        kept
    }

    /// The sum of the weights of the kept tokens; `sums` has those of the blocks.
    fn total(&mut self, logits: &[f32], scale: Scale, kept: Kept) -> u64 {
        let Self { maxima, sums, .. } = self;
        sums.clear();
        for_blocks(logits, maxima, |start, block, max| {
            // exp(-30) is less than half a unit: such a block adds nothing.
            let counts = max >= kept.least && (max - scale.max) / scale.temperature > -30.0;
            sums.push(if counts { kept.sum(start, block, scale) } else { 0 });
        });
        sums.iter().sum()
    }

    /// The first kept token at which the running sum of the weights exceeds `point`, which is below the sum of
    /// `sums`.
    fn find(&self, logits: &[f32], scale: Scale, kept: Kept, point: u64) -> u32 {
        let mut before = 0;
        let mut block = 0;
        while before + self.sums[block] <= point {
            before += self.sums[block];
            block += 1;
        }
        let start = block * BLOCK;
        let end = logits.len().min(start + BLOCK);
        let mut token = start;
        for (at, &logit) in (start..end).zip(&logits[start..end]) {
            let weight = scale.weight(logit);
            before += if kept.has(at as u32, logit, weight) { fixed(weight) } else { 0 };
            if before > point {
                token = at;
                break;
            }
        }
        token as u32
    }

    /// Puts the keys of the `n` largest finite logits (fewer where there are fewer) into `pool`.
    fn collect_top(&mut self, logits: &[f32], n: usize) {
        self.pool.clear();
        if n == 0 {
            return;
        }
        // n blocks have a maximum of at least the n-th largest maximum: so have n tokens.
        let least = if n <= self.maxima.len() {
            self.sorted.clone_from(&self.maxima);
            *self.sorted.select_nth_unstable_by(n - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::MIN
        };
        let tokens = above(logits, &self.maxima, least.max(f32::MIN));
        self.pool.extend(tokens.map(|(token, logit)| key(token, logit)));
        if self.pool.len() > n {
            self.pool.select_nth_unstable(n - 1);
            self.pool.truncate(n);
        }
    }

    /// Finds the nucleus of the whole row: puts some keys of it into `pool`, the last one among them.
    fn collect_nucleus_edge(&mut self, logits: &[f32], scale: Scale, total: u64, top_p: f32) {
        // Tokens with a weight below (1 - top_p) · total / vocab_size hold less than the share 1 - top_p together:
        // the nucleus has none. Half of that leaves room for the rounding of weights and of the logarithm.
        let least = (1.0 - f64::from(top_p)) * (total as f64 / ONE) / (2.0 * logits.len() as f64);
        let least = f64::from(scale.max) + f64::from(scale.temperature) * least.ln();
        let least = (least as f32).max(f32::MIN);
        let buckets = Buckets { max: scale.max, per_unit: Buckets::COUNT as f32 / (scale.max - least) };
        let mut sums = [0; Buckets::COUNT];
        for_blocks(logits, &self.maxima, |_, block, max| {
            if max >= least {
                let (weights, buckets) = (scale.weights(block), buckets.of_all(block));
                for (bucket, weight) in buckets.into_iter().zip(weights) {
                    sums[bucket as usize] += fixed(weight);
                }
            }
        });
        let mut missing = goal(total, top_p);
        let mut edge = 0;
        while edge + 1 < Buckets::COUNT && sums[edge] < missing {
            missing -= sums[edge];
            edge += 1;
        }
        let Self { maxima, pool, .. } = self;
        pool.clear();
        for_blocks(logits, maxima, |start, block, max| {
            if buckets.of(max) as usize <= edge {
                for (at, bucket) in buckets.of_all(block).into_iter().enumerate() {
                    if bucket as usize == edge {
                        pool.push(key((start + at) as u32, block[at]));
                    }
                }
            }
        });
        let length = nucleus(pool, scale, missing);
        pool.truncate(length);
    }
}

/// Calls `work` with each block of a row, its first token and its largest logit; the last block is filled up with −∞.
fn for_blocks(logits: &[f32], maxima: &[f32], mut work: impl FnMut(usize, &[f32; BLOCK], f32)) {
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    let mut start = 0;
    for (block, &max) in blocks.iter().zip(maxima) {
        work(start, block, max);
        start += BLOCK;
    }
    if let (false, Some(&max)) = (rest.is_empty(), maxima.last()) {
        let mut block = [f32::NEG_INFINITY; BLOCK];
        block[..rest.len()].copy_from_slice(rest);
        work(start, &block, max);
    }
}

/// Parts of equal width of the logits, from the largest downwards; the last has all that remain. A larger logit never
/// has a later bucket, which is all that correctness asks for: that the sums come out even is only for speed.
#[derive(Clone, Copy)]
struct Buckets {
    max: f32,
    per_unit: f32,
}

impl Buckets {
    const COUNT: usize = 1024;

    #[inline(always)]
    fn of(self, logit: f32) -> u32 {
        const LAST: f32 = (Buckets::COUNT - 1) as f32;
        let distance = (self.max - logit) * self.per_unit;
        // Not a number only if all widths are zero or infinite; adding 2²³ rounds and puts the integer into the low
        // bits.
        let distance = if distance < LAST { distance } else { LAST };
        (distance + 8_388_608.0).to_bits() & 0x7f_ffff
    }

    fn of_all(self, block: &[f32; BLOCK]) -> [u32; BLOCK] {
        let mut buckets = [0; BLOCK];
        for (bucket, &logit) in buckets.iter_mut().zip(block) {
            *bucket = self.of(logit);
        }
        buckets
    }
}

/// The tokens whose logits are not below `least`, by id. `maxima`: the largest logit of each block.
fn above<'a>(logits: &'a [f32], maxima: &'a [f32], least: f32) -> impl Iterator<Item = (u32, f32)> + 'a {
    let blocks = logits.chunks(BLOCK).zip(maxima).enumerate().filter(move |(_, (_, max))| **max >= least);
    let tokens = blocks.flat_map(|(index, (block, _))| ((index * BLOCK) as u32..).zip(block.iter().copied()));
    tokens.filter(move |&(_, logit)| logit >= least)
}

/// Which tokens are kept: those with larger logits than `least`, those with just that and an id up to `last`; and of
/// these the ones whose weight is not below `min_p`.
#[derive(Clone, Copy)]
struct Kept {
    least: f32,
    last: u32,
    min_p: f32,
}

impl Kept {
    const ALL: Self = Self { least: f32::NEG_INFINITY, last: u32::MAX, min_p: 0.0 };

    /// Only the tokens up to the last one, in the order of keys, of `pool`.
    fn up_to(self, pool: &[Key]) -> Self {
        match pool.iter().max() {
            Some(&edge) => Self { least: logit(edge), last: token(edge), ..self },
            None => self,
        }
    }

    /// Whether a token with this logit and weight is kept.
    fn has(self, token: u32, logit: f32, weight: f32) -> bool {
        (logit > self.least || (logit == self.least && token <= self.last)) && weight >= self.min_p
    }

    /// The sum of the weights of the kept tokens of a block that begins with token `start`.
    fn sum(self, start: usize, block: &[f32; BLOCK], scale: Scale) -> u64 {
        let weights = scale.weights(block);
        let (first, last) = (start as u32, (start + BLOCK - 1) as u32);
        if first <= self.last && self.last < last {
            let tokens = (first..).zip(block).zip(weights);
            let kept = tokens.filter(|&((token, &logit), weight)| self.has(token, logit, weight));
            return kept.map(|(_, weight)| fixed(weight)).sum();
        }
        // All ties with `least` are on the same side of `last`: one comparison, and the compiler vectorises the loop.
        let least = if last <= self.last { self.least } else { self.least.next_up() };
        let mut sum = 0;
        for at in 0..BLOCK {
            let kept = (block[at] >= least) & (weights[at] >= self.min_p);
            sum += fixed(if kept { weights[at] } else { 0.0 });
        }
        sum
    }
}

/// How logits become weights: `exp((logit − max) / temperature)`.
#[derive(Clone, Copy)]
struct Scale {
    max: f32,
    temperature: f32,
}

impl Scale {
    #[inline(always)]
    fn weight(self, logit: f32) -> f32 {
        exp((logit - self.max) / self.temperature)
    }

    fn weights(self, block: &[f32; BLOCK]) -> [f32; BLOCK] {
        // A loop instead of `map`, which the compiler does not vectorise.
        let mut weights = [0.0; BLOCK];
        for (weight, &logit) in weights.iter_mut().zip(block) {
            *weight = self.weight(logit);
        }
        weights
    }

    fn total(self, keys: &[Key]) -> u64 {
        keys.iter().map(|&key| fixed(self.weight(logit(key)))).sum()
    }
}

/// A logit that is not too large to be worked on; overflow does not make it infinite.
pub(super) fn finite(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}

/// Makes the logits −∞ whose bit in `allowed` is not set, and those beyond its end.
pub(super) fn mask(logits: &mut [f32], allowed: &[u32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (chunk, word) in logits.chunks_mut(32).zip(words) {
        if word == u32::MAX {
            continue;
        }
        for (bit, logit) in chunk.iter_mut().enumerate() {
            *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
        }
    }
}

/// The largest logit of a block, and whether one is not finite.
fn scan_block(block: &[f32; BLOCK]) -> (f32, bool) {
    const EXPONENT: u32 = 0x7f80_0000;
    const LANES: usize = 8;
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut bad = [0; LANES];
    for group in block.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            max[lane] = if group[lane] > max[lane] { group[lane] } else { max[lane] };
            bad[lane] |= u32::from(group[lane].to_bits() & EXPONENT == EXPONENT);
        }
    }
    (max.into_iter().fold(f32::NEG_INFINITY, f32::max), bad != [0; LANES])
}

/// The weight that a nucleus needs at least, `top_p` being below 1.
fn goal(total: u64, top_p: f32) -> u64 {
    ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total)
}

/// Moves the nucleus to the front of `keys` — the fewest keys, lowest first, whose weights reach `goal` — and says
/// how many it has. Halves the part in question again and again: the time is proportional to the length, whatever the
/// logits.
fn nucleus(keys: &mut [Key], scale: Scale, goal: u64) -> usize {
    let (mut start, mut end, mut missing) = (0, keys.len(), goal);
    while end - start > 16 {
        let middle = start + (end - start) / 2;
        keys[start..end].select_nth_unstable(middle - start);
        let sum = scale.total(&keys[start..middle]);
        if sum >= missing {
            end = middle;
        } else {
            missing -= sum;
            start = middle;
        }
    }
    keys[start..end].sort_unstable();
    for (index, &key) in keys[start..end].iter().enumerate() {
        let weight = fixed(scale.weight(logit(key)));
        if weight >= missing {
            return start + index + 1;
        }
        missing -= weight;
    }
    end
}

fn key(token: u32, logit: f32) -> Key {
    // Adding 0 makes -0 equal to 0.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(token)
}

fn token(key: Key) -> u32 {
    key as u32
}

fn logit(key: Key) -> f32 {
    let ascending = !((key >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending ^ 1 << 31 } else { !ascending })
}

/// A weight from 0 to 1 in units of 2⁻⁴⁰, rounded to nearest: from 2¹² to 2¹³ that is the distance of neighbouring
/// f64.
#[inline(always)]
fn fixed(weight: f32) -> u64 {
    const BASE: f64 = 4096.0;
    (f64::from(weight) + BASE).to_bits() - BASE.to_bits()
}

/// `exp(x)` for `x ≤ 0`, −∞ included, with a relative error below 2⁻²²; the same bits on every platform, and plain
/// enough for the compiler to vectorise: x = n · ln 2 + r, Taylor's polynomial of degree 7 at r, times 2ⁿ.
#[inline(always)]
fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5 · 2²³ rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first with so few bits that its products with n are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Below -87 the result would be subnormal: far below one unit of `fixed`.
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = sum * r + coefficient;
    }
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    sum * f32::from_bits(exponent << 23)
}
