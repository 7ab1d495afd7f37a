//! Writers of safetensors and GGUF.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::quant::Format;

/// A tensor with its data.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Its name in the file.
    pub name: String,
    /// How the elements are stored.
    pub format: Format,
    /// Row-major, slowest dimension first (torch order).
    pub shape: Vec<usize>,
    /// The elements.
    pub bytes: Vec<u8>,
}

impl TensorData {
    /// A tensor of `f32`.
    pub fn f32(name: impl ToString, shape: &[usize], values: &[f32]) -> Self {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { name: name.to_string(), format: Format::F32, shape: shape.to_vec(), bytes }
    }

    /// The same data under another name.
    pub fn named(&self, name: impl ToString) -> Self {
        Self { name: name.to_string(), ..self.clone() }
    }
}

/// Bytes of a tensor of this shape.
pub(super) fn byte_len(format: Format, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() / format.block_len() * format.block_bytes()
}

/// A whole safetensors file. Panics on a format that it has no name for.
pub fn safetensors_bytes(tensors: &[TensorData]) -> Vec<u8> {
    let mut header = Map::new();
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes.len();
        let dtype = match tensor.format {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::F8E4M3 => "F8_E4M3",
            other => panic!("no safetensors dtype for {other:?}"),
        };
        let info = json!({"dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end]});
        header.insert(tensor.name.clone(), info);
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&header);
    for tensor in tensors {
        bytes.extend_from_slice(&tensor.bytes);
    }
    bytes
}

/// A value of GGUF metadata.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum GgufValue {
    U16(u16),
    U32(u32),
    I32(i32),
    F32(f32),
    U64(u64),
    Bool(bool),
    Text(String),
    U32s(Vec<u32>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

impl GgufValue {
    /// A string.
    pub fn text(text: impl ToString) -> Self {
        Self::Text(text.to_string())
    }

    /// Type and value as they stand in a file.
    fn bytes(&self) -> Vec<u8> {
        const ARRAY: u32 = 9;
        let array = |element: u32, len: usize, bytes: Vec<u8>| {
            let head = [ARRAY.to_le_bytes(), element.to_le_bytes()].concat();
            (None, [head, (len as u64).to_le_bytes().to_vec(), bytes].concat())
        };
        let (id, bytes) = match self {
            Self::U16(x) => (Some(2u32), x.to_le_bytes().to_vec()),
            Self::U32(x) => (Some(4), x.to_le_bytes().to_vec()),
            Self::I32(x) => (Some(5), x.to_le_bytes().to_vec()),
            Self::F32(x) => (Some(6), x.to_le_bytes().to_vec()),
            Self::Bool(x) => (Some(7), vec![u8::from(*x)]),
            Self::Text(x) => (Some(8), string(x)),
            Self::U64(x) => (Some(10), x.to_le_bytes().to_vec()),
            Self::U32s(x) => array(4, x.len(), x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::I32s(x) => array(5, x.len(), x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::F32s(x) => array(6, x.len(), x.iter().flat_map(|x| x.to_le_bytes()).collect()),
            Self::Bools(x) => array(7, x.len(), x.iter().map(|x| u8::from(*x)).collect()),
            Self::Texts(x) => array(8, x.len(), x.iter().flat_map(|x| string(x)).collect()),
        };
        [id.map(|id| id.to_le_bytes().to_vec()).unwrap_or_default(), bytes].concat()
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The number of a storage format in GGUF. Panics on FP8, which GGUF does not have.
pub fn gguf_id(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q4_K => 12,
        Format::Q5_K => 13,
        Format::Q6_K => 14,
        Format::IQ4_NL => 20,
        Format::IQ4_XS => 23,
        Format::Q2_K => 10,
        Format::Q3_K => 11,
        Format::IQ2_XXS => 16,
        Format::IQ2_XS => 17,
        Format::IQ3_XXS => 18,
        Format::IQ1_S => 19,
        Format::IQ3_S => 21,
        Format::IQ2_S => 22,
        Format::TQ1_0 => 34,
        Format::TQ2_0 => 35,
        Format::BF16 => 30,
        Format::F8E4M3 => panic!("GGUF has no FP8"),
    }
}

/// Content of a GGUF file, version 3.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufFile {
    /// Keys and values in order.
    pub entries: Vec<(String, GgufValue)>,
    /// Tensors in order.
    pub tensors: Vec<TensorData>,
}

impl GgufFile {
    /// Sets a key, in its place if it is there already.
    pub fn set(&mut self, key: &str, value: GgufValue) {
        match self.entries.iter_mut().find(|(known, _)| known == key) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// The whole file.
    pub fn bytes(&self) -> Vec<u8> {
        let table: Vec<_> =
            self.tensors.iter().map(|t| (t.name.clone(), t.format, t.shape.clone())).collect();
        let mut bytes = Vec::new();
        let fill = |number: usize, out: &mut dyn Write| out.write_all(&self.tensors[number].bytes);
        // Writing to memory does not fail.
        write_gguf(&mut bytes, &self.entries, &table, fill).unwrap_or_default();
        bytes
    }

    /// Writes the whole file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, self.bytes())
    }
}

/// Writes a GGUF file whose tensors (name, format, shape) are filled one after the other by `fill`, so that files larger than
/// memory can be made.
pub(super) fn write_gguf(
    out: &mut dyn Write,
    entries: &[(String, GgufValue)],
    table: &[(String, Format, Vec<usize>)],
    mut fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    const ALIGNMENT: usize = 32;
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((table.len() as u64).to_le_bytes());
    head.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        head.extend(string(key));
        head.extend(value.bytes());
    }
    let mut offset = 0;
    for (name, format, shape) in table {
        head.extend(string(name));
        head.extend((shape.len() as u32).to_le_bytes());
        head.extend(shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
        head.extend(gguf_id(*format).to_le_bytes());
        head.extend((offset as u64).to_le_bytes());
        offset += byte_len(*format, shape).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&head)?;
    for (number, (_, format, shape)) in table.iter().enumerate() {
        fill(number, out)?;
        let len = byte_len(*format, shape);
        out.write_all(&[0; ALIGNMENT][..len.next_multiple_of(ALIGNMENT) - len])?;
    }
    Ok(())
}
