//! What several test programs share.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};

/// A file or folder under `tests/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The little-endian data of a NumPy file, after its header.
fn npy(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let header = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    bytes[10 + header..].to_vec()
}

/// An array of `<f4`.
pub fn npy_f32(path: &Path) -> Vec<f32> {
    npy(path).as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// An array of `<i8` token ids.
pub fn npy_tokens(path: &Path) -> Vec<u32> {
    npy(path).as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect()
}

/// The largest absolute difference of two arrays of one length.
pub fn max_diff(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // A NaN must not disappear in the comparison.
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() || d > m { d } else { m })
}
