//! safetensors: one file, or shards with or without an index. The header is parsed by the crate `safetensors`, which bounds it
//! and checks that the tensors fill the file without gaps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::catalog::{Catalog, RawTensor};
use super::files::Files;
use super::sidecar::read_json;
use crate::config::{Fields, describe};
use crate::error::{Error, Result};
use crate::quant::Format;

/// Largest index that is read. That of the largest published model is below 10 MB.
const MAX_INDEX_BYTES: usize = 64 << 20;

/// Adds the tensors of one file to the catalogue.
pub(crate) fn add_file(catalog: &mut Catalog, path: &Path, files: &Files) -> Result<()> {
    let mapped = files.map(path)?;
    let bytes = mapped.bytes();
    let (header_len, metadata) = SafeTensors::read_metadata(bytes)
        .map_err(|e| Error::format(mapped.name(), "safetensors header", e, "a complete safetensors file"))?;
    let data_start = size_of::<u64>() + header_len;
    let file = catalog.files.len();
    let mut tensors: Vec<_> = metadata.tensors().into_iter().collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    catalog.files.push(mapped);
    for (name, info) in tensors {
        let (start, end) = info.data_offsets;
        let range = data_start + start..data_start + end;
        let format = format_of(info.dtype).ok_or_else(|| format!("{:?}", info.dtype));
        catalog.insert(name, RawTensor { file, format, shape: info.shape.clone(), range })?;
    }
    Ok(())
}

fn format_of(dtype: Dtype) -> Option<Format> {
    match dtype {
        Dtype::F32 => Some(Format::F32),
        Dtype::F16 => Some(Format::F16),
        Dtype::BF16 => Some(Format::BF16),
        Dtype::F8_E4M3 => Some(Format::F8E4M3),
        _ => None,
    }
}

/// A `*.safetensors.index.json`: which shard holds which tensor.
pub(crate) struct Index {
    path: PathBuf,
    /// Name of a tensor → file name of its shard.
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index. Shards must be plain names of files beside it.
    pub fn read(path: &Path, files: &Files) -> Result<Self> {
        let json = read_json(path, MAX_INDEX_BYTES, files)?;
        let file = path.display().to_string();
        let root = Fields::root(&file, &json)?;
        let Some(Value::Object(map)) = root.get("weight_map") else {
            return Err(root.bad("weight_map", "an object of tensor names and files"));
        };
        let mut weight_map = BTreeMap::new();
        for (name, shard) in map {
            match shard.as_str() {
                Some(shard) if is_plain_name(shard) => weight_map.insert(name.clone(), shard.to_owned()),
                _ => {
                    let key = format!("weight_map.{name}");
                    return Err(Error::format(
                        &file,
                        key,
                        describe(shard),
                        "the name of a file in the same folder",
                    ));
                }
            };
        }
        if weight_map.is_empty() {
            return Err(root.bad("weight_map", "at least one tensor"));
        }
        Ok(Self { path: path.to_owned(), weight_map })
    }

    /// The shards, each once, in order of name.
    pub fn shards(&self) -> Vec<PathBuf> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let mut shards: Vec<_> = self.weight_map.values().collect();
        shards.sort();
        shards.dedup();
        shards.into_iter().map(|shard| folder.join(shard)).collect()
    }

    /// Fails unless every tensor of the index is in the shard that it names, and every tensor of the shards is in the index.
    pub fn check(&self, catalog: &Catalog) -> Result<()> {
        let index = self.path.display();
        for (name, shard) in &self.weight_map {
            let found = catalog.tensors.get(name).map(|tensor| catalog.files[tensor.file].path());
            match found.and_then(Path::file_name) {
                Some(file) if file == shard.as_str() => {}
                Some(file) => {
                    let found = format!("the tensor in {}", file.display());
                    return Err(Error::format(index, name, found, format!("it in {shard}")));
                }
                None => return Err(Error::format(index, name, "no such tensor", format!("it in {shard}"))),
            }
        }
        match catalog.tensors.iter().find(|(name, _)| !self.weight_map.contains_key(*name)) {
            Some((name, tensor)) => {
                let file = catalog.file_name(tensor);
                Err(Error::format(
                    file,
                    name,
                    "a tensor that the index does not list",
                    format!("it in {index}"),
                ))
            }
            None => Ok(()),
        }
    }
}

/// A file name without any folder.
fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0', ':']) && name != "." && name != ".."
}
