//! The writing of new keys and values into the cache.

use super::simd::{Floats, simd_dispatch};
use crate::kernels::{CACHE_BLOCK, CacheSpec, CacheType};

/// Writes `rows: [t, n_kv_heads * head_dim]` at positions `start..start + t` of a ring laid out `[n_kv_heads, capacity, head_dim]`.
pub fn cache_write(cache: &mut [u8], rows: &[f32], spec: &CacheSpec, start: usize) {
    let width = spec.n_kv_heads * spec.head_dim;
    let size = spec.cache_type.row_bytes(spec.head_dim);
    assert_eq!(cache.len(), spec.bytes());
    for (i, row) in rows.chunks_exact(width).enumerate() {
        let slot = (start + i) % spec.capacity;
        for (head, values) in row.chunks_exact(spec.head_dim).enumerate() {
            let at = (head * spec.capacity + slot) * size;
            store(&mut cache[at..at + size], values, spec.cache_type);
        }
    }
}

fn store(to: &mut [u8], from: &[f32], cache_type: CacheType) {
    match cache_type {
        CacheType::F32 => {
            to.chunks_exact_mut(4).zip(from).for_each(|(to, v)| to.copy_from_slice(&v.to_le_bytes()));
        }
        CacheType::F16 => store_f16(to, from),
        CacheType::Q8_0 => {
            to.chunks_exact_mut(CACHE_BLOCK.1)
                .zip(from.chunks(CACHE_BLOCK.0))
                .for_each(|(to, from)| store_block(to, from));
        }
    }
}

simd_dispatch!(
    /// Its scale, then its codes. One element that is no finite number makes the scale none, and so the whole block, so that it shows.
    fn store_block(to: &mut [u8], from: &[f32]) = store_block_body
);

/// Plain Rust: with the instructions of the arm, rounding is one, and no call.
#[inline(always)]
fn store_block_body<V: Floats>(to: &mut [u8], from: &[f32]) {
    // As integers the magnitudes are in the order of the floats, with infinity and NaN on top.
    let mut largest = 0;
    for value in from {
        largest = largest.max(value.to_bits() & 0x7fff_ffff);
    }
    let largest = f32::from_bits(largest);
    let (scale, inverse) = if largest > 0.0 { (largest / 127.0, 127.0 / largest) } else { (largest, 0.0) };
    let (scales, codes) = to.split_at_mut(2);
    scales.copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
    codes.fill(0);
    for (code, value) in codes.iter_mut().zip(from) {
        *code = (value * inverse).round_ties_even() as i8 as u8;
    }
}

simd_dispatch!(fn store_f16(to: &mut [u8], from: &[f32]) = store_f16_body);

#[inline(always)]
fn store_f16_body<V: Floats>(to: &mut [u8], from: &[f32]) {
    assert_eq!(to.len(), from.len() * 2);
    let whole = from.len() / V::LANES * V::LANES;
    for j in (0..whole).step_by(V::LANES) {
        // SAFETY: as many elements lie from `j` on, and `to` has two bytes for each.
        unsafe { V::load(from.as_ptr().add(j)).store_f16(to.as_mut_ptr().cast::<u16>().wrapping_add(j)) };
    }
    for j in whole..from.len() {
        to[2 * j..2 * j + 2].copy_from_slice(&half::f16::from_f32(from[j]).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_shows_in_all_of_its_block() {
        let spec = CacheSpec { n_kv_heads: 1, capacity: 1, head_dim: 32, cache_type: CacheType::Q8_0 };
        for at in [0, 13, 31] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut row = [1.0; 32];
                row[at] = bad;
                let mut cache = vec![0; spec.bytes()];
                cache_write(&mut cache, &row, &spec, 0);
                let scale = half::f16::from_le_bytes([cache[0], cache[1]]).to_f32();
                let decoded = |code: &u8| f32::from(*code as i8) * scale;
                assert!(cache[2..].iter().all(|code| decoded(code).is_nan()), "{bad} at {at}");
            }
        }
    }
}
