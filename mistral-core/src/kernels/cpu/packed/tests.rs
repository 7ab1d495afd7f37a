//! Every arm against the scalar one (to the bit), and against a plain product with dequantised weights.

use super::*;

/// Every form in which blocks are multiplied.
fn forms() -> impl Iterator<Item = (Format, Layout)> {
    let rows = FORMATS.into_iter().filter(|format| multiplies_rows(*format));
    let packed = FORMATS.into_iter().map(|format| (format, Layout::Packed));
    packed.chain(rows.map(|format| (format, Layout::Rows)))
}

const FORMATS: [Format; 10] = [
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q8_0,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::IQ4_NL,
    Format::IQ4_XS,
];

/// Reproducible random numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn uniform(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 31) as f32 * 2.0 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform() + self.uniform() * self.uniform()).collect()
    }

    /// Blocks of random bits, but with scales like those of a model: the f16 numbers of each block are set.
    fn blocks(&mut self, format: Format, elements: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..format.row_bytes(elements).unwrap()).map(|_| self.next() as u8).collect();
        let halves: &[usize] = match format {
            Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
            Format::Q6_K => &[208],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            for &at in halves {
                let scale = half::f16::from_f32(self.uniform() * 0.02);
                block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
            }
        }
        bytes
    }
}

/// A random matrix: its rows in f32, and as it is multiplied.
struct Case {
    format: Format,
    layout: Layout,
    rows: usize,
    cols: usize,
    dense: Vec<f32>,
    data: Vec<u8>,
}

impl Case {
    fn new(form: (Format, Layout), rows: usize, cols: usize) -> Self {
        let src = Random(rows as u64 * 1000 + cols as u64).blocks(form.0, rows * cols);
        Self::of(form, rows, cols, src)
    }

    fn of((format, layout): (Format, Layout), rows: usize, cols: usize, src: Vec<u8>) -> Self {
        let mut dense = vec![0.0; rows * cols];
        format.dequantize(&src, &mut dense).unwrap();
        let data = if layout == Layout::Rows {
            src
        } else {
            let mut packed = vec![0xaa; packed_len(format, rows, cols).unwrap()];
            repack(format, rows, cols, &src, &mut packed).unwrap();
            packed
        };
        Self { format, layout, rows, cols, dense, data }
    }

    fn matrix(&self) -> BlockMatrix<'_> {
        let &Self { format, layout, rows, cols, ref data, .. } = self;
        BlockMatrix { format, layout, rows, cols, data }
    }

    fn linear(&self, arm: Arm, activation: Activation, x: &[f32], m: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; m * self.rows];
        linear_on(arm, activation, x, m, vec![(self.matrix(), &mut out)]);
        out
    }

    /// The product in f64, and the sum of the magnitudes of its terms.
    fn reference(&self, x: &[f32], m: usize) -> Vec<(f64, f64)> {
        let mut out = Vec::new();
        for i in 0..m {
            for row in self.dense.chunks_exact(self.cols) {
                let terms = x[i * self.cols..].iter().zip(row).map(|(&x, &w)| f64::from(x) * f64::from(w));
                out.push(terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs())));
            }
        }
        out
    }
}

fn packed(format: Format) -> (Format, Layout) {
    (format, Layout::Packed)
}

fn name(form: (Format, Layout)) -> String {
    format!("{} {:?}", form.0.name(), form.1)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Odd shapes: ragged groups, one that is read in several places and what is left over of it, one block, whole chunks, a last chunk of one block or several, several panels.
fn shapes(format: Format) -> Vec<(usize, usize)> {
    let mut shapes: Vec<_> = (1..=17).map(|rows| (rows, 256)).collect();
    shapes.extend([(33, 512), (90, 512), (16, 1024), (5, 1536), (40, 2048)]);
    if format.block_len() == 32 {
        shapes.extend([(3, 32), (17, 96), (16, 288), (9, 544), (20, 1120)]);
    }
    shapes
}

#[test]
fn unpacks_what_was_packed() {
    for format in FORMATS {
        for (rows, cols) in shapes(format) {
            let case = Case::new(packed(format), rows, cols);
            for (row, expected) in case.dense.chunks_exact(cols).enumerate() {
                let mut found = vec![f32::NAN; cols];
                case.matrix().unpack_row(row, &mut found);
                assert!(bits(&found) == bits(expected), "{} [{rows}, {cols}] row {row}", format.name());
            }
        }
    }
}

#[test]
fn parts_pack_as_the_whole() {
    let (rows, cols) = (37, 512);
    let src = Random(5).blocks(Format::Q5_K, rows * cols);
    let mut whole = vec![0; packed_len(Format::Q5_K, rows, cols).unwrap()];
    repack(Format::Q5_K, rows, cols, &src, &mut whole).unwrap();
    let mut parts = vec![0; whole.len()];
    let cut = packed_len(Format::Q5_K, 16, cols).unwrap();
    let row = Format::Q5_K.row_bytes(cols).unwrap();
    repack(Format::Q5_K, 16, cols, &src[..16 * row], &mut parts[..cut]).unwrap();
    repack(Format::Q5_K, 21, cols, &src[16 * row..], &mut parts[cut..]).unwrap();
    assert!(whole == parts);
}

#[test]
fn packed_bytes_are_nearly_as_many_as_in_the_file() {
    for format in FORMATS {
        let (rows, cols) = (1024, 4096);
        let file = format.row_bytes(rows * cols).unwrap();
        let packed = packed_len(format, rows, cols).unwrap();
        assert!(packed >= file && packed <= file + file / 100, "{}: {packed} for {file}", format.name());
    }
}

#[test]
fn f32_activations_give_the_exact_product() {
    for form in forms() {
        for (rows, cols) in shapes(form.0) {
            let case = Case::new(form, rows, cols);
            for m in [1, 2, 3, 9] {
                let x = Random(m as u64).floats(m * cols);
                let found = case.linear(Arm::best(), Activation::F32, &x, m);
                for (found, (expected, size)) in found.iter().zip(case.reference(&x, m)) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= 1e-6 * size, "{} [{rows}, {cols}] × {m}: {found}", name(form));
                }
            }
        }
    }
}

/// The error of int8 activations is the rounding of each, at most half a step of 1/127 of its block's largest: about 0.3% of a term,
/// of random sign.
#[test]
fn int8_activations_give_nearly_the_product() {
    for form in forms() {
        for (rows, cols) in shapes(form.0) {
            let case = Case::new(form, rows, cols);
            for m in [1, 2, 4, 9] {
                let x = Random(m as u64).floats(m * cols);
                let found = case.linear(Arm::best(), Activation::Int8, &x, m);
                for (found, (expected, size)) in found.iter().zip(case.reference(&x, m)) {
                    let error = (f64::from(*found) - expected).abs();
                    assert!(error <= 4e-3 * size, "{} [{rows}, {cols}] × {m}: {found}", name(form));
                }
            }
        }
    }
}

/// With activations that are whole multiples of their scale nothing is rounded but sums.
#[test]
fn int8_arithmetic_is_exact_on_whole_activations() {
    for form in forms() {
        let (rows, cols) = (19, 768);
        let case = Case::new(form, rows, cols);
        for m in [1, 11] {
            let mut random = Random(m as u64);
            let mut x: Vec<f32> = (0..m * cols).map(|_| (random.next() % 255) as f32 - 127.0).collect();
            x.iter_mut().step_by(32).for_each(|x| *x = 127.0);
            let found = case.linear(Arm::best(), Activation::Int8, &x, m);
            for (found, (expected, size)) in found.iter().zip(case.reference(&x, m)) {
                let error = (f64::from(*found) - expected).abs();
                assert!(error <= 1e-6 * size, "{}: {found} for {expected}", name(form));
            }
        }
    }
}

#[test]
fn all_arms_give_the_same_bits() {
    for form in forms() {
        for (rows, cols) in shapes(form.0) {
            let case = Case::new(form, rows, cols);
            for m in (1..=9).chain([16, 33]) {
                let mut x = Random(m as u64).floats(m * cols);
                // The extremes of a code, and a block of zeros.
                x[..8].fill(-3.0);
                x[cols - 32..cols].fill(0.0);
                for activation in [Activation::Int8, Activation::F32] {
                    let expected = case.linear(Arm::Scalar(Scalar), activation, &x, m);
                    for arm in Arm::available() {
                        let found = case.linear(arm, activation, &x, m);
                        let what = format!("{} [{rows}, {cols}] × {m}, {activation:?}", name(form));
                        assert!(bits(&found) == bits(&expected), "{what}");
                    }
                }
            }
        }
    }
}

/// Extreme codes of weights and activations: no sum may saturate.
#[test]
fn nothing_saturates() {
    for form in forms() {
        let format = form.0;
        for fill in [0x00, 0x80, 0xff] {
            let (rows, cols) = (16, 256);
            let mut src = vec![fill; format.row_bytes(rows * cols).unwrap()];
            let mut random = Random(1);
            let patch = random.blocks(format, rows * cols);
            let halves: &[usize] = match format {
                Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 1, 2, 3],
                Format::Q6_K => &[208, 209],
                _ => &[0, 1],
            };
            for (block, patch) in
                src.chunks_exact_mut(format.block_bytes()).zip(patch.chunks_exact(format.block_bytes()))
            {
                halves.iter().for_each(|&at| block[at] = patch[at]);
            }
            let case = Case::of(form, rows, cols, src);
            for sign in [1.0, -1.0] {
                let x = vec![sign; 17 * cols];
                for m in [1, 6, 17] {
                    let expected = case.linear(Arm::Scalar(Scalar), Activation::Int8, &x[..m * cols], m);
                    for arm in Arm::available() {
                        let found = case.linear(arm, Activation::Int8, &x[..m * cols], m);
                        assert_eq!(bits(&found), bits(&expected), "{} {fill:x} {sign}", name(form));
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch_or_on_threads() {
    let pool = std::sync::Arc::new(pool::Pool::new(3).unwrap());
    for format in [Format::Q4_0, Format::Q4_K, Format::Q6_K, Format::Q8_0] {
        let case = Case::new(packed(format), 600, 1280);
        let m = 300;
        let x = Random(9).floats(m * case.cols);
        for activation in [Activation::Int8, Activation::F32] {
            let together = pool.scope(None, || case.linear(Arm::best(), activation, &x, m));
            for i in [0, 1, 7, 150, 298, 299] {
                let row = &x[i * case.cols..][..case.cols];
                let alone = case.linear(Arm::best(), activation, row, 1);
                assert_eq!(bits(&alone), bits(&together[i * case.rows..][..case.rows]), "{}", format.name());
            }
        }
    }
}

#[test]
fn rows_as_in_the_file_give_the_bits_of_packed_ones() {
    let pool = std::sync::Arc::new(pool::Pool::new(2).unwrap());
    let format = Format::Q8_0;
    let shapes = shapes(format).into_iter().chain([(600, 1280), (250, 4096)]);
    for (rows, cols) in shapes {
        let (file, packed) =
            (Case::new((format, Layout::Rows), rows, cols), Case::new(packed(format), rows, cols));
        for m in [1, 2, 3, 4, 5, 8, 9, 300] {
            let x = Random(m as u64).floats(m * cols);
            for activation in [Activation::Int8, Activation::F32] {
                let both = [&file, &packed]
                    .map(|case| pool.scope(None, || case.linear(Arm::best(), activation, &x, m)));
                assert_eq!(bits(&both[0]), bits(&both[1]), "[{rows}, {cols}] × {m}, {activation:?}");
            }
        }
    }
}

#[test]
fn matrices_multiplied_together_give_what_each_gives_alone() {
    let pool = std::sync::Arc::new(pool::Pool::new(2).unwrap());
    // What they ask of the activations differs, and so do their heights.
    let cases = [(Format::Q4_K, 40), (Format::Q4_K, 7), (Format::Q6_K, 70), (Format::Q8_0, 16)];
    let mut cases: Vec<_> =
        cases.into_iter().map(|(format, rows)| Case::new(packed(format), rows, 512)).collect();
    cases.push(Case::new((Format::Q8_0, Layout::Rows), 43, 512));
    for m in [1, 2, 3, 4, 30] {
        let x = Random(m as u64).floats(m * 512);
        for activation in [Activation::Int8, Activation::F32] {
            let mut outs: Vec<_> = cases.iter().map(|case| vec![f32::NAN; m * case.rows]).collect();
            let products = cases.iter().zip(&mut outs).map(|(case, out)| (case.matrix(), &mut out[..]));
            pool.scope(None, || linear_on(Arm::best(), activation, &x, m, products.collect()));
            for (case, out) in cases.iter().zip(&outs) {
                let alone = case.linear(Arm::best(), activation, &x, m);
                assert_eq!(bits(out), bits(&alone), "{} × {m}, {activation:?}", case.format.name());
            }
        }
    }
}

#[test]
fn activations_that_are_no_numbers_show() {
    let case = Case::new(packed(Format::Q4_0), 16, 64);
    for bad in [f32::NAN, f32::INFINITY] {
        let mut x = vec![1.0; 128];
        x[40] = bad;
        let out = case.linear(Arm::best(), Activation::Int8, &x, 2);
        assert!(out[..16].iter().all(|y| y.is_nan()) && out[16..].iter().all(|y| y.is_finite()));
    }
    let tiny = case.linear(Arm::best(), Activation::Int8, &[1e-38; 64], 1);
    assert!(tiny.iter().all(|&y| y == 0.0));
}

#[test]
fn empty_products_are_empty() {
    let case = Case::new(packed(Format::Q4_0), 4, 32);
    assert!(case.linear(Arm::best(), Activation::Int8, &[], 0).is_empty());
    let no_cols = Case { cols: 0, data: vec![], ..Case::new(packed(Format::Q4_0), 4, 32) };
    assert_eq!(no_cols.linear(Arm::best(), Activation::Int8, &[], 2), [0.0; 8]);
    assert_eq!(no_cols.linear(Arm::best(), Activation::F32, &[], 2), [0.0; 8]);
}

#[test]
fn refuses_what_does_not_fit() {
    let message = |result: crate::error::Result<()>| result.unwrap_err().to_string();
    let len = |format, rows, cols| packed_len(format, rows, cols).map(drop);
    assert!(message(len(Format::F8E4M3, 1, 32)).contains("F8_E4M3"));
    assert!(message(len(Format::Q4_K, 1, 128)).contains("multiple of 256"));
    assert!(message(len(Format::Q4_0, usize::MAX / 8, 32)).contains("rows"));
    assert!(message(len(Format::Q4_0, 1, usize::MAX / 32 * 32)).contains("memory"));
    assert!(message(repack(Format::Q4_0, 1, 32, &[0; 17], &mut [0; 320])).contains("src"));
    assert!(message(repack(Format::Q4_0, 1, 32, &[0; 18], &mut [0; 288])).contains("dst"));
}
