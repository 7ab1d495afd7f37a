//! What the files of a checkpoint hold, under the names that they use.

use std::collections::BTreeMap;
use std::ops::Range;

use super::mmap::Mapped;
use crate::error::{Error, Result};
use crate::quant::Format;

/// A tensor as it stands in a file.
#[derive(Clone, Debug)]
pub(crate) struct RawTensor {
    /// Index into [`Catalog::files`].
    pub file: usize,
    /// How the elements are stored; `Err` holds the name of a type that this library does not read. Only the use of such a
    /// tensor is an error: parts of a checkpoint that are skipped may have any type.
    pub format: Result<Format, String>,
    /// Row-major, slowest dimension first (torch order).
    pub shape: Vec<usize>,
    /// Bytes of the file, inside of its bounds and as long as shape and format say.
    pub range: Range<usize>,
}

/// All tensors of a checkpoint.
#[derive(Default)]
pub(crate) struct Catalog {
    pub files: Vec<Mapped>,
    pub tensors: BTreeMap<String, RawTensor>,
}

impl Catalog {
    /// Adds a tensor; a name that is there already is an error.
    pub fn insert(&mut self, name: String, tensor: RawTensor) -> Result<()> {
        if let Some(first) = self.tensors.get(&name) {
            let found =
                format!("a second tensor of this name (the first is in {})", self.files[first.file].name());
            return Err(Error::format(
                self.files[tensor.file].name(),
                name,
                found,
                "one tensor of each name",
            ));
        }
        self.tensors.insert(name, tensor);
        Ok(())
    }

    /// The file that holds a tensor, for errors.
    pub fn file_name(&self, tensor: &RawTensor) -> String {
        self.files[tensor.file].name()
    }

    /// The storage format, or the error that names a type which this library does not read.
    pub fn format(&self, name: &str, tensor: &RawTensor) -> Result<Format> {
        tensor.format.clone().map_err(|found| {
            Error::unsupported(
                format!("type of tensor {name} in {}", self.file_name(tensor)),
                found,
                "F32, F16, BF16, F8_E4M3",
            )
        })
    }

    /// The values of a small tensor of ordinary floats (scales, rotary factors).
    pub fn floats(&self, name: &str, tensor: &RawTensor) -> Result<Vec<f32>> {
        let bytes = &self.files[tensor.file].bytes()[tensor.range.clone()];
        Ok(match self.format(name, tensor)? {
            Format::F32 => bytes.as_chunks().0.iter().map(|b: &[u8; 4]| f32::from_le_bytes(*b)).collect(),
            Format::F16 => {
                bytes.as_chunks().0.iter().map(|b: &[u8; 2]| half::f16::from_le_bytes(*b).to_f32()).collect()
            }
            Format::BF16 => {
                bytes.as_chunks().0.iter().map(|b: &[u8; 2]| half::bf16::from_le_bytes(*b).to_f32()).collect()
            }
            other => {
                return Err(Error::format(self.file_name(tensor), name, other.name(), "F32, F16 or BF16"));
            }
        })
    }
}
