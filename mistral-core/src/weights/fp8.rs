//! The scales of FP8 weights: `W = e4m3 * scale`. `weight_scale_inv` is a multiplier too, in spite of its name.

use super::catalog::{Catalog, RawTensor};
use std::ops::Range;

use crate::error::{Error, Result};

/// What the elements of an FP8 matrix `[n, k]` are multiplied by.
#[derive(Clone, Debug, PartialEq)]
pub enum Fp8Scale {
    /// One number for the whole matrix.
    Scalar(f32),
    /// One number for each of the n rows.
    PerRow(Vec<f32>),
    /// One number for each block.
    Block {
        /// Rows of a block; the last one may be cut off by the edge.
        rows: usize,
        /// Columns of a block; the last one may be cut off by the edge.
        cols: usize,
        /// `[ceil(n / rows), ceil(k / cols)]`, row-major.
        values: Vec<f32>,
    },
}

impl Fp8Scale {
    /// The multiplier of the element at `[row, col]` of a matrix with `n_cols` columns.
    pub fn at(&self, row: usize, col: usize, n_cols: usize) -> f32 {
        match self {
            Self::Scalar(scale) => *scale,
            Self::PerRow(scales) => scales[row],
            Self::Block { rows, cols, values } => values[row / rows * n_cols.div_ceil(*cols) + col / cols],
        }
    }

    /// Multiplies the decoded elements of a row.
    pub fn apply(&self, row: usize, values: &mut [f32]) {
        let n_cols = values.len();
        values.iter_mut().enumerate().for_each(|(col, value)| *value *= self.at(row, col, n_cols));
    }

    /// The scales of some rows of a matrix with `n_cols` columns; a block begins with the first of them.
    pub fn of_rows(&self, range: Range<usize>, n_cols: usize) -> Self {
        match self {
            Self::Scalar(scale) => Self::Scalar(*scale),
            Self::PerRow(values) => Self::PerRow(values[range].to_vec()),
            Self::Block { rows, cols, values } => {
                let per_row = n_cols.div_ceil(*cols);
                let values =
                    values[range.start / rows * per_row..range.end.div_ceil(*rows) * per_row].to_vec();
                Self::Block { rows: *rows, cols: *cols, values }
            }
        }
    }

    /// All of them, row by row of their blocks.
    pub fn values(&self) -> &[f32] {
        match self {
            Self::Scalar(scale) => std::slice::from_ref(scale),
            Self::PerRow(values) | Self::Block { values, .. } => values,
        }
    }

    /// Rows and columns that share one, in a matrix `[n, k]`.
    pub fn block(&self, n: usize, k: usize) -> (usize, usize) {
        match self {
            Self::Scalar(_) => (n.max(1), k.max(1)),
            Self::PerRow(_) => (1, k.max(1)),
            Self::Block { rows, cols, .. } => (*rows, *cols),
        }
    }
}

/// Rows and columns of a block where the configuration does not give them: the default of transformers' `FineGrainedFP8Config`.
const USUAL_BLOCK: (usize, usize) = (128, 128);

/// Finds and reads the scale of the matrix `name` of shape `[n, k]`; also returns the name of its tensor.
pub(crate) fn find(
    catalog: &Catalog,
    name: &str,
    tensor: &RawTensor,
    block: Option<(usize, usize)>,
) -> Result<(String, Fp8Scale)> {
    let base = name.strip_suffix(".weight").unwrap_or(name);
    let names = [format!("{name}_scale_inv"), format!("{name}_scale"), format!("{base}.qscale_weight")];
    let Some((scale_name, scale)) = names.iter().find_map(|name| catalog.tensors.get_key_value(name)) else {
        let expected = format!("its scale, {} or {}", names[0], names[2]);
        return Err(Error::format(catalog.file_name(tensor), name, "FP8 weights without a scale", expected));
    };
    let bad = |found: String, expected: String| {
        Error::format(catalog.file_name(scale), scale_name, found, expected)
    };
    let &[n, k] = tensor.shape.as_slice() else {
        let found = format!("shape {:?}", tensor.shape);
        return Err(Error::format(
            catalog.file_name(tensor),
            name,
            found,
            "a matrix, as it is stored in FP8",
        ));
    };
    let values = catalog.floats(scale_name, scale)?;
    if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
        return Err(bad(wrong.to_string(), "finite scales".to_owned()));
    }
    let (rows, cols) = block.unwrap_or(USUAL_BLOCK);
    let kind = shape_of_scale(&scale.shape, (n, k), (rows, cols));
    let scale = match (kind, values.as_slice()) {
        (Some(Kind::Scalar), [value]) => Fp8Scale::Scalar(*value),
        (Some(Kind::PerRow), _) => Fp8Scale::PerRow(values),
        (Some(Kind::Block), _) => Fp8Scale::Block { rows, cols, values },
        _ => {
            let blocks = [n.div_ceil(rows), k.div_ceil(cols)];
            let origin = if block.is_some() { "declared" } else { "usual, as no size is declared" };
            let expected = format!(
                "[], [{n}], or {blocks:?} for blocks of {rows}x{cols} ({origin}), for weights {:?}",
                tensor.shape
            );
            return Err(bad(format!("shape {:?}", scale.shape), expected));
        }
    };
    Ok((scale_name.clone(), scale))
}

#[derive(Debug, PartialEq)]
enum Kind {
    Scalar,
    PerRow,
    Block,
}

/// Which of the three a scale of this shape is, for a matrix `[n, k]` and blocks of `[rows, cols]`.
fn shape_of_scale(shape: &[usize], (n, k): (usize, usize), (rows, cols): (usize, usize)) -> Option<Kind> {
    match *shape {
        [] | [1] | [1, 1] => Some(Kind::Scalar),
        [count] | [count, 1] if count == n => Some(Kind::PerRow),
        [down, across] if down == n.div_ceil(rows) && across == k.div_ceil(cols) => Some(Kind::Block),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_scales() {
        let kind = |shape: &[usize], block| shape_of_scale(shape, (256, 384), block);
        let usual = |shape: &[usize]| kind(shape, USUAL_BLOCK);
        assert_eq!(usual(&[]), Some(Kind::Scalar));
        assert_eq!(usual(&[1]), Some(Kind::Scalar));
        assert_eq!(usual(&[256]), Some(Kind::PerRow));
        assert_eq!(usual(&[256, 1]), Some(Kind::PerRow));
        assert_eq!(usual(&[2, 3]), Some(Kind::Block));
        // Of other blocks only if they are declared.
        assert_eq!(usual(&[4, 6]), None);
        assert_eq!(kind(&[4, 6], (64, 64)), Some(Kind::Block));
        assert_eq!(kind(&[4, 4], (64, 96)), Some(Kind::Block));
        assert_eq!(kind(&[2, 3], (64, 64)), None);
        assert_eq!(usual(&[3, 3]), None);
        assert_eq!(usual(&[384]), None);
        assert_eq!(usual(&[0, 3]), None);
    }
}
