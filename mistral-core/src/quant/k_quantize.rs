//! `Q4_K` from f32: a search for the scales that leave the least squared error.
//!
//! Each sub-block of 32 first gets a real scale and minimum: several widths of its range are tried, each refined by least
//! squares on the codes that it gives. Scales and minima are then rounded to six bits against the block's two f16 numbers, and
//! the neighbouring roundings are tried again on the elements.

use half::f16;

use super::quantize::put_f16;

/// Largest code.
const TOP: f32 = 15.0;
/// Largest six-bit scale or minimum.
const TOP_SCALE: f32 = 63.0;
/// Widths that are tried for the range of a sub-block, in steps of the code: narrower ones clip the outliers.
const WIDTHS: [f32; 6] = [13.8, 14.3, 14.7, 15.0, 15.3, 15.7];

type SubBlock = [f32; 32];

/// Element ≈ `scale` × code − `min`.
#[derive(Clone, Copy, Default)]
struct Fit {
    scale: f32,
    min: f32,
}

/// Packs 256 elements into the 144 bytes of a block.
pub(super) fn q4_k(values: &[f32], block: &mut [u8]) {
    let (sub_blocks, _) = values.as_chunks::<32>();
    let mut fits = [Fit::default(); 8];
    for (fit, values) in fits.iter_mut().zip(sub_blocks) {
        *fit = search(values);
    }
    let largest = |part: fn(&Fit) -> f32| fits.iter().map(part).fold(0.0, f32::max);
    put_f16(block, 0, largest(|fit| fit.scale) / TOP_SCALE);
    put_f16(block, 2, largest(|fit| fit.min) / TOP_SCALE);
    let step = Fit {
        scale: f16::from_le_bytes([block[0], block[1]]).to_f32(),
        min: f16::from_le_bytes([block[2], block[3]]).to_f32(),
    };
    block[4..].fill(0);
    for (j, values) in sub_blocks.iter().enumerate() {
        let (scale, min) = round_fit(values, fits[j], step);
        put_scale_min(&mut block[4..16], j, scale, min);
        let codes =
            codes(values, Fit { scale: step.scale * f32::from(scale), min: step.min * f32::from(min) });
        for (byte, code) in block[16 + j / 2 * 32..].iter_mut().zip(codes) {
            *byte |= (code as u8) << (4 * (j % 2));
        }
    }
}

/// The best real scale and minimum; the minimum is never negative, as the format has it.
fn search(values: &SubBlock) -> Fit {
    let low = values.iter().copied().fold(0.0, f32::min);
    let high = values.iter().copied().fold(0.0, f32::max);
    if low == high {
        return Fit::default();
    }
    let mut best = (f32::INFINITY, Fit::default());
    for width in WIDTHS {
        let first = Fit { scale: (high - low) / width, min: -low };
        // For the same codes least squares is never worse than the range itself.
        let fit = least_squares(values, &codes(values, first)).unwrap_or(first);
        let error = squared_error(values, fit);
        if error < best.0 {
            best = (error, fit);
        }
    }
    best.1
}

/// The scale and minimum with the least squared error for given codes; `None` if the codes are all equal.
fn least_squares(values: &SubBlock, codes: &SubBlock) -> Option<Fit> {
    // [Σ x, Σ c, Σ c x, Σ c²], in eight parts each: independent sums can be made at once.
    let mut parts = [[0.0; 8]; 4];
    for (values, codes) in values.as_chunks::<8>().0.iter().zip(codes.as_chunks::<8>().0) {
        for i in 0..8 {
            parts[0][i] += values[i];
            parts[1][i] += codes[i];
            parts[2][i] += codes[i] * values[i];
            parts[3][i] += codes[i] * codes[i];
        }
    }
    let [x, c, cx, cc] = parts.map(|parts| parts.iter().sum::<f32>());
    let n = values.len() as f32;
    let determinant = n * cc - c * c;
    if determinant <= 0.0 {
        return None;
    }
    let fit = Fit { scale: (n * cx - c * x) / determinant, min: (c * cx - cc * x) / determinant };
    // Without a minimum, the line goes through zero.
    let fit = if fit.min < 0.0 { Fit { scale: cx / cc, min: 0.0 } } else { fit };
    (fit.scale > 0.0).then_some(fit)
}

/// The six-bit scale and minimum next to `fit` with the least squared error.
fn round_fit(values: &SubBlock, fit: Fit, step: Fit) -> (u8, u8) {
    let near = |value: f32, step: f32| if step > 0.0 { (value / step).round().min(TOP_SCALE) } else { 0.0 };
    let (scale, min) = (near(fit.scale, step.scale), near(fit.min, step.min));
    let mut best = (f32::INFINITY, 0.0, 0.0);
    for (scale_step, min_step) in [(0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)] {
        let scale = (scale + scale_step).clamp(0.0, TOP_SCALE);
        let min = (min + min_step).clamp(0.0, TOP_SCALE);
        let error = squared_error(values, Fit { scale: step.scale * scale, min: step.min * min });
        if error < best.0 {
            best = (error, scale, min);
        }
    }
    (best.1 as u8, best.2 as u8)
}

/// The nearest code of each element, as a whole number in `0..=15`.
fn codes(values: &SubBlock, fit: Fit) -> SubBlock {
    // Adding 1.5 × 2^23 leaves no bits for a fraction: rounds to nearest in two additions, in every instruction set.
    const ROUND: f32 = 12_582_912.0;
    let inverse = if fit.scale > 0.0 { 1.0 / fit.scale } else { 0.0 };
    values.map(|value| (((value + fit.min) * inverse).clamp(0.0, TOP) + ROUND) - ROUND)
}

fn squared_error(values: &SubBlock, fit: Fit) -> f32 {
    let codes = codes(values, fit);
    let mut parts = [0.0; 8];
    for (values, codes) in values.as_chunks::<8>().0.iter().zip(codes.as_chunks::<8>().0) {
        for i in 0..8 {
            let error = fit.scale * codes[i] - fit.min - values[i];
            parts[i] += error * error;
        }
    }
    parts.iter().sum()
}

/// The inverse of [`super::dequantize::k_scale_min`], into bytes that start as zeros.
fn put_scale_min(packed: &mut [u8], j: usize, scale: u8, min: u8) {
    if j < 4 {
        packed[j] |= scale;
        packed[j + 4] |= min;
    } else {
        packed[j + 4] |= scale & 15 | min << 4;
        packed[j - 4] |= (scale >> 4) << 6;
        packed[j] |= (min >> 4) << 6;
    }
}
