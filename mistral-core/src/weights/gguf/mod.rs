//! GGUF, versions 2 and 3, little-endian (layout: the GGUF specification in the ggml repository). Every count, length and
//! offset is checked against the size of the file before it is used; nothing is allocated by a number from the file.

mod metadata;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::catalog::{Catalog, RawTensor};
use super::files::Files;
use crate::control::Control;
use crate::error::{Error, Result};
use crate::quant::{Format, gguf_type_name};

use metadata::{Entries, Kind, Value};
pub use metadata::{Metadata, Strings};

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u32 = 32;
/// Bound of the specification on the length of a key; names of tensors are far shorter.
const MAX_NAME_BYTES: usize = 65_535;
/// Bound of ggml.
const MAX_DIMENSIONS: u32 = 4;

/// Whether a file begins as GGUF does.
pub(crate) fn has_magic(path: &Path, files: &Files) -> Result<bool> {
    Ok(files.is_file(path) && files.start(path, MAGIC.len())? == MAGIC)
}

/// Adds the tensors of all splits to the catalogue; returns the metadata of the first.
pub(crate) fn add_files(
    catalog: &mut Catalog,
    paths: &[PathBuf],
    files: &Files,
    control: &Control<'_>,
) -> Result<Arc<Metadata>> {
    let mut first: Option<Metadata> = None;
    for (number, path) in paths.iter().enumerate() {
        control.check()?;
        let metadata = add_file(catalog, path, files)?;
        let declared = metadata.u64("split.count")?.unwrap_or(1).max(1);
        if declared != paths.len() as u64 {
            let expected = format!("{}, the number of files of the set", paths.len());
            return Err(Error::format(metadata.file(), "split.count", declared, expected));
        }
        if paths.len() > 1 && metadata.u64("split.no")? != Some(number as u64) {
            let found = metadata.u64("split.no")?.map_or("nothing".to_owned(), |no| no.to_string());
            return Err(Error::format(metadata.file(), "split.no", found, number));
        }
        first.get_or_insert(metadata);
    }
    first.map(Arc::new).ok_or_else(|| Error::Internal("a GGUF set without files".to_owned()))
}

/// The metadata of a file, whatever tensors it has: some hold a vocabulary alone.
pub(crate) fn metadata_of(path: &Path, files: &Files) -> Result<Arc<Metadata>> {
    let mapped = files.map(path)?;
    let name = mapped.name();
    let bytes = mapped.shared(0..mapped.bytes().len());
    let mut reader = Reader { file: &name, bytes: &bytes, position: 0 };
    read_metadata(&mut reader, &bytes).map(|(metadata, _)| Arc::new(metadata))
}

fn add_file(catalog: &mut Catalog, path: &Path, files: &Files) -> Result<Metadata> {
    let mapped = files.map(path)?;
    let name = mapped.name();
    let bytes = mapped.shared(0..mapped.bytes().len());
    let mut reader = Reader { file: &name, bytes: &bytes, position: 0 };
    let (metadata, n_tensors) = read_metadata(&mut reader, &bytes)?;
    let tensors = read_tensors(&mut reader, n_tensors, alignment(&metadata)?)?;
    let file = catalog.files.len();
    catalog.files.push(mapped);
    for (tensor_name, mut tensor) in tensors {
        tensor.file = file;
        catalog.insert(tensor_name, tensor)?;
    }
    Ok(metadata)
}

/// The metadata, and how many tensors follow it.
fn read_metadata(reader: &mut Reader<'_>, bytes: &Bytes) -> Result<(Metadata, u64)> {
    let (n_tensors, n_entries) = read_header(reader)?;
    let mut entries = Entries::new();
    for _ in 0..n_entries {
        let (key, value) = read_entry(reader)?;
        if entries.contains_key(&key) {
            return Err(reader.error(&key, "a second value", "each key once"));
        }
        entries.insert(key, value);
    }
    Ok((Metadata::new(reader.file.to_owned(), bytes.clone(), entries), n_tensors))
}

/// Counts of tensors and of metadata entries, both possible in a file of this length.
fn read_header(reader: &mut Reader<'_>) -> Result<(u64, u64)> {
    // Name length, one byte of name, dimension count, one dimension, type, offset.
    const LEAST_TENSOR: u64 = 8 + 1 + 4 + 8 + 4 + 8;
    // Key length, one byte of key, type, one byte of value.
    const LEAST_ENTRY: u64 = 8 + 1 + 4 + 1;
    let magic = reader.take(MAGIC.len(), "magic")?;
    if magic != MAGIC {
        return Err(reader.error("magic", format!("{magic:02x?}"), "`GGUF`"));
    }
    let version = reader.u32("version")?;
    if matches!(version.swap_bytes(), 1..=3) {
        return Err(Error::unsupported(
            "GGUF byte order",
            format!("big-endian in {}", reader.file),
            "little-endian",
        ));
    }
    if !matches!(version, 2 | 3) {
        return Err(Error::unsupported("GGUF version", format!("{version} in {}", reader.file), "2, 3"));
    }
    let n_tensors = reader.u64("tensor count")?;
    let n_entries = reader.u64("metadata count")?;
    for (what, count, least) in
        [("tensor count", n_tensors, LEAST_TENSOR), ("metadata count", n_entries, LEAST_ENTRY)]
    {
        let most = reader.left() as u64 / least;
        if count > most {
            return Err(reader.error(what, count, format!("at most {most}, as the file ends after that")));
        }
    }
    Ok((n_tensors, n_entries))
}

fn read_entry(reader: &mut Reader<'_>) -> Result<(String, Value)> {
    let key = reader.name("metadata key")?;
    let kind = read_kind(reader, &key)?;
    let value = match kind {
        Kind::String => Value::String(reader.string(&key)?),
        Kind::Array => read_array(reader, &key)?,
        scalar => {
            let range = reader.range(scalar.size(), &key)?;
            let value = scalar.decode(&reader.bytes[range]);
            Value::Scalar(value.ok_or_else(|| reader.error(&key, "a byte other than 0 and 1", "a boolean"))?)
        }
    };
    Ok((key, value))
}

fn read_kind(reader: &mut Reader<'_>, key: &str) -> Result<Kind> {
    let id = reader.u32(key)?;
    Kind::from_id(id).ok_or_else(|| reader.error(key, format!("value type {id}"), "a type from 0 to 12"))
}

fn read_array(reader: &mut Reader<'_>, key: &str) -> Result<Value> {
    let kind = read_kind(reader, key)?;
    let len = reader.u64(key)?;
    let start = reader.position;
    let least = match kind {
        Kind::Array => {
            return Err(Error::unsupported(
                format!("value of {key} in {}", reader.file),
                "an array of arrays",
                "flat arrays",
            ));
        }
        // The length before each string.
        Kind::String => 8,
        scalar => scalar.size(),
    };
    let len = match usize::try_from(len) {
        Ok(n) if n <= reader.left() / least => n,
        _ => {
            return Err(reader.error(
                key,
                format!("an array of {len}"),
                "an array that ends inside of the file",
            ));
        }
    };
    match kind {
        Kind::String => {
            for _ in 0..len {
                reader.string(key)?;
            }
        }
        scalar => {
            // Within the file by the check above, so the product cannot overflow.
            let range = reader.range(len * scalar.size(), key)?;
            if scalar == Kind::Bool && reader.bytes[range].iter().any(|byte| *byte > 1) {
                return Err(reader.error(key, "a byte other than 0 and 1", "booleans"));
            }
        }
    }
    Ok(Value::Array { kind, len, range: start..reader.position })
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    const KEY: &str = "general.alignment";
    let alignment = metadata.u32(KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    match usize::try_from(alignment) {
        Ok(n) if n.is_power_of_two() => Ok(n),
        _ => Err(Error::format(metadata.file(), KEY, alignment, "a power of two")),
    }
}

/// The table of tensors. As in llama.cpp, the data must follow in the order of the table, padded to the alignment.
fn read_tensors(reader: &mut Reader<'_>, count: u64, alignment: usize) -> Result<Vec<(String, RawTensor)>> {
    let mut tensors = Vec::new();
    let mut next: usize = 0;
    for _ in 0..count {
        let name = reader.name("tensor name")?;
        let shape = read_shape(reader, &name)?;
        let format = read_format(reader, &name)?;
        let offset = reader.u64(&name)?;
        if usize::try_from(offset).ok() != Some(next) {
            return Err(reader.error(
                &name,
                format!("data at offset {offset}"),
                format!("data at offset {next}"),
            ));
        }
        let size = byte_size(format, &shape);
        let size = size.ok_or_else(|| {
            let expected =
                format!("rows of whole blocks of {} and a size that fits memory", format.block_len());
            reader.error(&name, format!("shape {shape:?} of type {}", format.name()), expected)
        })?;
        let end = next.checked_add(size);
        let Some(end) = end.filter(|end| *end <= reader.bytes.len()) else {
            return Err(reader.error(
                &name,
                format!("{size} bytes of data"),
                "data that ends inside of the file",
            ));
        };
        // File and start of the data are filled in once they are known.
        tensors.push((name, RawTensor { file: 0, format: Ok(format), shape, range: next..end }));
        // At most the file's length plus the alignment, a u32.
        next = end.checked_next_multiple_of(alignment).unwrap_or(usize::MAX);
    }
    let Some(start) = reader.position.checked_next_multiple_of(alignment) else {
        return Err(reader.error("general.alignment", alignment, "an alignment smaller than the file"));
    };
    for (name, tensor) in &mut tensors {
        let end = start.checked_add(tensor.range.end).filter(|end| *end <= reader.bytes.len());
        let Some(end) = end else {
            let found = format!("a file of {} bytes", reader.bytes.len());
            return Err(reader.error(
                name,
                found,
                format!("data up to byte {}", start.saturating_add(tensor.range.end)),
            ));
        };
        tensor.range = start + tensor.range.start..end;
    }
    Ok(tensors)
}

/// Dimensions in torch order: GGUF writes the fastest first.
fn read_shape(reader: &mut Reader<'_>, name: &str) -> Result<Vec<usize>> {
    let n_dims = reader.u32(name)?;
    if !(1..=MAX_DIMENSIONS).contains(&n_dims) {
        return Err(reader.error(
            name,
            format!("{n_dims} dimensions"),
            format!("1 to {MAX_DIMENSIONS} dimensions"),
        ));
    }
    let mut shape = Vec::new();
    for _ in 0..n_dims {
        let dim = reader.u64(name)?;
        match usize::try_from(dim) {
            Ok(n) if n > 0 => shape.push(n),
            _ => return Err(reader.error(name, format!("dimension {dim}"), "dimensions above 0")),
        }
    }
    shape.reverse();
    Ok(shape)
}

fn read_format(reader: &mut Reader<'_>, name: &str) -> Result<Format> {
    let id = reader.u32(name)?;
    Format::from_gguf(id).ok_or_else(|| {
        let found = gguf_type_name(id).map_or(format!("type {id}"), str::to_owned);
        Error::unsupported(format!("type of tensor {name} in {}", reader.file), found, Format::gguf_names())
    })
}

/// `None` if a row is not made of whole blocks or the size overflows.
fn byte_size(format: Format, shape: &[usize]) -> Option<usize> {
    let row = *shape.last()?;
    if !row.is_multiple_of(format.block_len()) {
        return None;
    }
    let elements = shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim))?;
    (elements / format.block_len())
        .checked_mul(format.block_bytes())
        .filter(|size| *size <= isize::MAX as usize)
}

/// A position in a file. Every read is checked against the end; errors name what was being read.
struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn range(&mut self, len: usize, what: &str) -> Result<Range<usize>> {
        if len > self.left() {
            let found = format!("the end of the file at byte {}", self.bytes.len());
            return Err(self.error(what, found, format!("{len} bytes from byte {}", self.position)));
        }
        let range = self.position..self.position + len;
        self.position = range.end;
        Ok(range)
    }

    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let range = self.range(len, what)?;
        Ok(&self.bytes[range])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The bytes of a string.
    fn string(&mut self, what: &str) -> Result<Range<usize>> {
        let len = self.u64(what)?;
        match usize::try_from(len) {
            Ok(len) if len <= self.left() => self.range(len, what),
            _ => Err(self.error(
                what,
                format!("a string of {len} bytes"),
                "a string that ends inside of the file",
            )),
        }
    }

    /// A key or the name of a tensor.
    fn name(&mut self, what: &str) -> Result<String> {
        let at = format!("{what} at byte {}", self.position);
        let range = self.string(&at)?;
        if range.is_empty() || range.len() > MAX_NAME_BYTES {
            return Err(self.error(
                at,
                format!("{} bytes", range.len()),
                format!("1 to {MAX_NAME_BYTES} bytes"),
            ));
        }
        match std::str::from_utf8(&self.bytes[range]) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.error(at, "invalid UTF-8", "UTF-8")),
        }
    }

    fn error(&self, key: impl ToString, found: impl ToString, expected: impl ToString) -> Error {
        Error::format(self.file, key, found, expected)
    }
}
