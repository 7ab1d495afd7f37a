//! Against vectors made with gguf-py 0.19.0 (`tests/fixtures/quant`), and against first principles where it has none.

use std::path::Path;

use super::*;

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/quant").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Reproducible numbers, near enough to normally distributed.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| (0..4).map(|_| uniform()).sum()).collect()
}

#[test]
fn dequantizes_as_the_reference() {
    let formats: Vec<Format> = Format::all().filter(|format| format.is_quantized()).collect();
    assert_eq!(formats.len(), 20);
    for format in formats {
        let name = format.name();
        let expected = floats(&fixture(&format!("{name}.f32")));
        let mut found = vec![f32::NAN; expected.len()];
        format.dequantize(&fixture(&format!("{name}.bin")), &mut found).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{name}");
    }
}

/// The fixtures use a part of each table: this is the rest. The hashes (FNV-1a, 64 bits, of the little-endian entries) were made with gguf-py 0.19.0
/// from its own tables.
#[test]
fn the_points_are_those_of_the_reference() {
    for (name, points, expected) in [
        ("IQ1_S", grids::IQ1_S.as_slice(), 0x03f1_8808_17ee_ffa4_u64),
        ("IQ2_XXS", &grids::IQ2_XXS, 0x6fca_17f5_c451_905d),
        ("IQ2_XS", &grids::IQ2_XS, 0x29d6_ac8e_0e6b_14e3),
        ("IQ2_S", &grids::IQ2_S, 0x641f_9aa3_fbd9_8694),
        ("IQ3_XXS", &grids::IQ3_XXS, 0xa3a6_9590_8a71_0942),
        ("IQ3_S", &grids::IQ3_S, 0xde38_cc07_14d2_3202),
    ] {
        let bytes = points.iter().flat_map(|point| point.to_le_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(hash, expected, "{name}");
    }
}

#[test]
fn quantizes_as_the_reference() {
    for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0] {
        let name = format.name();
        let expected = fixture(&format!("{name}.quantized.bin"));
        let mut found = vec![0; expected.len()];
        format.quantize(&floats(&fixture(&format!("{name}.src.f32"))), &mut found).unwrap();
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn quantizes_zeros_to_zeros() {
    for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::Q8_0, Format::Q4_K] {
        let mut bytes = vec![0xff; format.row_bytes(512).unwrap()];
        format.quantize(&[0.0; 512], &mut bytes).unwrap();
        let mut values = [f32::NAN; 512];
        format.dequantize(&bytes, &mut values).unwrap();
        assert!(values.iter().all(|&value| value == 0.0), "{}", format.name());
    }
}

/// Root mean square error of `values` after a round through `Q4_K`.
fn q4_k_error(values: &[f32]) -> f64 {
    let mut bytes = vec![0; Format::Q4_K.row_bytes(values.len()).unwrap()];
    Format::Q4_K.quantize(values, &mut bytes).unwrap();
    let mut found = vec![0.0; values.len()];
    Format::Q4_K.dequantize(&bytes, &mut found).unwrap();
    root_mean_square(values, &found)
}

fn root_mean_square(a: &[f32], b: &[f32]) -> f64 {
    let sum: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a - b).powi(2)).sum();
    (sum / a.len() as f64).sqrt()
}

/// The error if each sub-block's range were spread over the codes, with real scales: more than six-bit ones could hold.
fn naive_error(values: &[f32]) -> f64 {
    let mut found = Vec::new();
    for values in values.chunks(32) {
        let low = values.iter().copied().fold(0.0, f32::min);
        let high = values.iter().copied().fold(0.0, f32::max);
        let scale = (high - low) / 15.0;
        found.extend(values.iter().map(|value| ((value - low) / scale).round() * scale + low));
    }
    root_mean_square(values, &found)
}

#[test]
fn q4_k_search_beats_the_naive_range() {
    let values = noise(16 * 256, 7);
    let (found, naive) = (q4_k_error(&values), naive_error(&values));
    assert!(found < 0.92 * naive, "{found} against {naive}");
}

#[test]
fn q4_k_keeps_positive_and_offset_blocks() {
    let positive: Vec<f32> = noise(512, 3).iter().map(|value| value.abs() + 0.01).collect();
    let negative: Vec<f32> = positive.iter().map(|value| -value).collect();
    assert!(q4_k_error(&positive) < 0.027, "{}", q4_k_error(&positive));
    assert!(q4_k_error(&negative) < 0.027, "{}", q4_k_error(&negative));
}

#[test]
fn fp8_matches_its_definition() {
    let mut values = [0.0; 256];
    let codes: Vec<u8> = (0..=255).collect();
    Format::F8E4M3.dequantize(&codes, &mut values).unwrap();
    for (code, &found) in values.iter().enumerate() {
        let (exponent, mantissa) = (code >> 3 & 15, (code & 7) as f64);
        let magnitude = match exponent {
            0 => mantissa / 8.0 * 2f64.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent as i32 - 7),
        };
        if code & 0x7f == 0x7f {
            assert!(found.is_nan(), "{code}");
        } else {
            let expected = if code < 128 { magnitude } else { -magnitude } as f32;
            assert_eq!(found.to_bits(), expected.to_bits(), "{code}");
        }
    }
    assert_eq!(values[0x7e], 448.0);
}

#[test]
fn reads_plain_floats() {
    let mut out = [0.0; 2];
    Format::F32.dequantize(&[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0], &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0]);
    Format::F16.dequantize(&[0, 0x3c, 0, 0xc0], &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0]);
    Format::BF16.dequantize(&[0x80, 0x3f, 0, 0xc0], &mut out).unwrap();
    assert_eq!(out, [1.0, -2.0]);
}

#[test]
fn the_table_is_in_the_order_of_the_variants() {
    for format in Format::all() {
        assert_eq!(format.traits().format, format);
        if let Some(id) = format.gguf_id() {
            assert_eq!(Format::from_gguf(id), Some(format));
            assert_eq!(gguf_type_name(id), Some(format.name()));
        }
    }
    assert_eq!(Format::all().count(), FORMATS.len());
    assert_eq!(Format::from_gguf(39), None);
    assert_eq!(gguf_type_name(39), Some("MXFP4"));
    assert_eq!(gguf_type_name(4), None);
}

#[test]
fn refuses_sizes_that_do_not_fit() {
    assert_eq!(Format::Q4_K.row_bytes(512).unwrap(), 288);
    assert!(Format::Q4_K.row_bytes(255).is_err());
    assert!(Format::F32.row_bytes(usize::MAX).is_err());
    assert!(Format::Q4_0.dequantize(&[0; 17], &mut [0.0; 32]).is_err());
    assert!(Format::Q4_0.quantize(&[0.0; 32], &mut [0; 19]).is_err());
    assert!(Format::Q6_K.quantize(&[0.0; 256], &mut [0; 210]).is_err());
}

#[test]
fn refuses_weights_that_are_no_numbers() {
    let mut values = [0.0; 32];
    for bad in [f32::NAN, f32::INFINITY, -1e6] {
        values[5] = bad;
        let error = Format::Q8_0.quantize(&values, &mut [0; 34]).unwrap_err();
        assert!(error.to_string().contains("at 5"), "{error}");
    }
}
