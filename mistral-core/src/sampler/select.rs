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
    /// The kept tokens, in no order, where `cut` is set.
    pool: Vec<Key>,
    /// The last kept token; `None` where neither top-k nor top-p applies.
    cut: Option<Key>,
    /// Working memory.
    sorted: Vec<f32>,
}

impl Row {
    /// Looks at a row: [vocab_size]. Says whether it has logits and all are finite.
    pub(super) fn scan(&mut self, logits: &[f32]) -> bool {
        self.maxima.clear();
        let mut not_finite = 0;
        for block in logits.chunks(BLOCK) {
            let (max, bad) = scan_block(block);
            not_finite |= bad;
            self.maxima.push(max);
        }
        self.max = self.maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        not_finite == 0 && !logits.is_empty()
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
    pub(super) fn log_total(&self, logits: &[f32]) -> f32 {
        let total = weights(logits, self.max, 1.0, |_| true);
        self.max + (total as f64 / ONE).ln() as f32
    }

    /// Top-k and top-p: leaves the kept tokens in `pool`, the last of them in `cut`.
    pub(super) fn keep(&mut self, logits: &[f32], params: &SamplingParams) {
        self.cut = None;
        let by_count = params.top_k > 0 && (params.top_k as usize) < logits.len();
        if by_count {
            self.collect_top(logits, params.top_k as usize);
        }
        if params.top_p < 1.0 {
            let scale = Scale { max: self.max, temperature: params.temperature };
            let total = if by_count {
                scale.total(&self.pool)
            } else {
                let total = weights(logits, self.max, params.temperature, |_| true);
                self.collect_nucleus(logits, scale, total, params.top_p);
                total
            };
            let goal = (f64::from(params.top_p) * total as f64).ceil() as u64;
            let kept = nucleus(&mut self.pool, scale, goal.clamp(1, total));
            self.pool.truncate(kept);
        }
        if by_count || params.top_p < 1.0 {
            self.cut = self.pool.iter().copied().max();
        }
    }

    /// Min-p, and the draw with the 64 random bits `random`.
    pub(super) fn draw(&mut self, logits: &[f32], params: &SamplingParams, random: u64) -> u32 {
        let scale = Scale { max: self.max, temperature: params.temperature };
        let Some(cut) = self.cut else {
            let kept = |weight: f32| weight >= params.min_p;
            let total = weights(logits, self.max, params.temperature, kept);
            return walk(enumerate(logits), scale, params.min_p, below(random, total));
        };
        self.pool.retain(|&key| scale.weight(logit(key)) >= params.min_p);
        let point = below(random, scale.total(&self.pool));
        if self.pool.len() > logits.len() / 32 {
            // A pool that large is slower to sort by id than the row is to walk.
            let kept = enumerate(logits).filter(|&(token, logit)| key(token, logit) <= cut);
            return walk(kept, scale, params.min_p, point);
        }
        self.pool.sort_unstable_by_key(|&key| token(key));
        walk(self.pool.iter().map(|&key| (token(key), logit(key))), scale, params.min_p, point)
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
        self.collect_above(logits, least.max(f32::MIN));
        if self.pool.len() > n {
            self.pool.select_nth_unstable(n - 1);
            self.pool.truncate(n);
        }
    }

    /// Puts into `pool` the keys of tokens enough to hold the share `top_p` of `total`.
    fn collect_nucleus(&mut self, logits: &[f32], scale: Scale, total: u64, top_p: f32) {
        // Tokens with a weight below (1 - top_p) · total / vocab_size hold less than the share 1 - top_p together. Half of that leaves
        // room for the rounding of weights and of the logarithm.
        let least = (1.0 - f64::from(top_p)) * (total as f64 / ONE) / (2.0 * logits.len() as f64);
        let least = f64::from(scale.max) + f64::from(scale.temperature) * least.ln();
        self.pool.clear();
        self.collect_above(logits, (least as f32).max(f32::MIN));
    }

    /// Adds the keys of the logits not below `least` to `pool`.
    fn collect_above(&mut self, logits: &[f32], least: f32) {
        for (index, (block, &max)) in logits.chunks(BLOCK).zip(&self.maxima).enumerate() {
            if max >= least {
                let tokens = (index * BLOCK) as u32..;
                let above = tokens.zip(block).filter(|&(_, &logit)| logit >= least);
                self.pool.extend(above.map(|(token, &logit)| key(token, logit)));
            }
        }
    }
}

/// How logits become weights: `exp((logit − max) / temperature)`.
#[derive(Clone, Copy)]
struct Scale {
    max: f32,
    temperature: f32,
}

impl Scale {
    fn weight(self, logit: f32) -> f32 {
        exp((logit - self.max) / self.temperature)
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

/// The largest logit of a block, and non-zero where one is not finite.
fn scan_block(block: &[f32]) -> (f32, u32) {
    const EXPONENT: u32 = 0x7f80_0000;
    const LANES: usize = 8;
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut bad = [0; LANES];
    let (groups, rest) = block.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            max[lane] = if group[lane] > max[lane] { group[lane] } else { max[lane] };
            bad[lane] |= u32::from(group[lane].to_bits() & EXPONENT == EXPONENT);
        }
    }
    for &logit in rest {
        max[0] = max[0].max(logit);
        bad[0] |= u32::from(!logit.is_finite());
    }
    (max.into_iter().fold(f32::NEG_INFINITY, f32::max), bad.into_iter().fold(0, |a, b| a | b))
}

/// The sum of the weights for which `kept` holds, in units of 2⁻⁴⁰.
fn weights(logits: &[f32], max: f32, temperature: f32, kept: impl Fn(f32) -> bool) -> u64 {
    let scale = Scale { max, temperature };
    let mut total = 0;
    for &logit in logits {
        let weight = scale.weight(logit);
        total += fixed(if kept(weight) { weight } else { 0.0 });
    }
    total
}

fn enumerate(logits: &[f32]) -> impl Iterator<Item = (u32, f32)> {
    (0..).zip(logits.iter().copied())
}

/// The first of `tokens` (not below `min_p`) at which the running sum of the weights exceeds `point`.
fn walk(tokens: impl Iterator<Item = (u32, f32)>, scale: Scale, min_p: f32, point: u64) -> u32 {
    let mut sum = 0;
    let mut last = 0;
    for (token, logit) in tokens {
        let weight = scale.weight(logit);
        if weight >= min_p {
            sum += fixed(weight);
            last = token;
            if sum > point {
                break;
            }
        }
    }
    last
}

/// A whole number below `total` from 64 random bits.
fn below(random: u64, total: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// Moves the nucleus to the front of `keys` — the fewest keys, lowest first, whose weights reach `goal` — and says how many it has. Halves the
/// part in question again and again: the time is proportional to the length, whatever the logits.
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

/// A weight from 0 to 1 in units of 2⁻⁴⁰, rounded to nearest: from 2¹² to 2¹³ that is the distance of neighbouring f64.
fn fixed(weight: f32) -> u64 {
    const BASE: f64 = 4096.0;
    (f64::from(weight) + BASE).to_bits() - BASE.to_bits()
}

/// `exp(x)` for `x ≤ 0`, −∞ included, with a relative error below 2⁻²²; the same bits on every platform, and plain enough for the
/// compiler to vectorise: x = n · ln 2 + r, Taylor's polynomial of degree 7 at r, times 2ⁿ.
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
