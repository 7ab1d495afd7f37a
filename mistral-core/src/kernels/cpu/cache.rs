//! The writing of new keys and values into the cache.

use super::simd::{F32x8, simd_dispatch};
use crate::kernels::{CacheSpec, CacheType};

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
