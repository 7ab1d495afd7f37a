//! The key-value part of a GGUF file.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use crate::config::gguf::Keys;
use crate::error::{Error, Result};

/// The key-value part of a GGUF file. Values are read from the mapped file when they are asked for.
pub struct Metadata {
    file: String,
    bytes: Bytes,
    entries: Entries,
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata").field("file", &self.file).field("entries", &self.entries.len()).finish()
    }
}

impl Metadata {
    /// Takes values whose ranges lie inside of `bytes` and, where they are arrays of strings, hold whole strings.
    pub(super) fn new(file: String, bytes: Bytes, entries: Entries) -> Self {
        Self { file, bytes, entries }
    }

    /// The file, for errors.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether the key is there.
    pub fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// A string. Fails on a value of another type and on invalid UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::String(range)) => match std::str::from_utf8(&self.bytes[range.clone()]) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(self.bad(key, "a string of UTF-8")),
            },
            Some(_) => Err(self.bad(key, "a string")),
        }
    }

    /// A whole number from 0, of any integer type.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Scalar(Scalar::Int(n))) if u64::try_from(*n).is_ok() => Ok(u64::try_from(*n).ok()),
            Some(_) => Err(self.bad(key, "a whole number from 0")),
        }
    }

    /// A whole number that fits 32 bits, of any integer type.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        match self.u64(key)?.map(u32::try_from) {
            None => Ok(None),
            Some(Ok(n)) => Ok(Some(n)),
            Some(Err(_)) => Err(self.bad(key, format!("a whole number up to {}", u32::MAX))),
        }
    }

    /// A number of any type.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Scalar(Scalar::Float(x))) => Ok(Some(*x)),
            Some(Value::Scalar(Scalar::Int(n))) => Ok(Some(*n as f32)),
            Some(_) => Err(self.bad(key, "a number")),
        }
    }

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Scalar(Scalar::Bool(flag))) => Ok(Some(*flag)),
            Some(_) => Err(self.bad(key, "a boolean")),
        }
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<Strings<'_>>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array { kind: Kind::String, len, range }) => Ok(Some(Strings {
                file: &self.file,
                key: key.to_owned(),
                rest: &self.bytes[range.clone()],
                next: 0,
                len: *len,
            })),
            Some(_) => Err(self.bad(key, "an array of strings")),
        }
    }

    /// An array of numbers as `f32`.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.scalars(key, "an array of numbers", |scalar| match scalar {
            Scalar::Float(x) => Some(x),
            Scalar::Int(n) => Some(n as f32),
            Scalar::Bool(_) => None,
        })
    }

    /// An array of integers, each of which fits an `i32`.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>> {
        self.scalars(key, "an array of 32-bit integers", |scalar| match scalar {
            Scalar::Int(n) => i32::try_from(n).ok(),
            _ => None,
        })
    }

    fn scalars<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(Scalar) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, range, .. }) if !matches!(kind, Kind::String | Kind::Array) => {
                let elements = self.bytes[range.clone()].chunks_exact(kind.size());
                let values = elements.map(|bytes| kind.decode(bytes).and_then(&convert));
                values.collect::<Option<Vec<T>>>().map(Some).ok_or_else(|| self.bad(key, expected))
            }
            Some(_) => Err(self.bad(key, expected)),
        }
    }

    fn bad(&self, key: &str, expected: impl ToString) -> Error {
        let found = match self.entries.get(key) {
            None => "nothing".to_owned(),
            Some(Value::Scalar(Scalar::Int(n))) => n.to_string(),
            Some(Value::Scalar(Scalar::Float(x))) => x.to_string(),
            Some(Value::Scalar(Scalar::Bool(flag))) => flag.to_string(),
            Some(Value::String(range)) => format!("a string of {} bytes", range.len()),
            Some(Value::Array { kind, len, .. }) => format!("an array of {len} {kind:?}"),
        };
        Error::format(&self.file, key, found, expected)
    }
}

impl Keys for Metadata {
    fn file(&self) -> &str {
        self.file()
    }

    fn uint(&self, key: &str) -> Result<Option<u64>> {
        self.u64(key)
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        self.f32(key)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.bool(key)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        self.str(key)
    }

    fn uints(&self, key: &str) -> Result<Option<Vec<u64>>> {
        if !matches!(self.entries.get(key), Some(Value::Array { .. })) {
            return Ok(None);
        }
        self.scalars(key, "an array of whole numbers from 0", |scalar| match scalar {
            Scalar::Int(n) => u64::try_from(n).ok(),
            Scalar::Bool(flag) => Some(flag.into()),
            Scalar::Float(_) => None,
        })
    }

    fn array_len(&self, key: &str) -> Option<usize> {
        match self.entries.get(key) {
            Some(Value::Array { len, .. }) => Some(*len),
            _ => None,
        }
    }
}

/// The strings of an array, read from the file one after the other.
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    file: &'a str,
    key: String,
    rest: &'a [u8],
    next: usize,
    len: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = Result<&'a str>;

    fn next(&mut self) -> Option<Self::Item> {
        // The array was walked when the file was opened, so lengths and bounds are right.
        let (len, rest) = self.rest.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        self.rest = rest;
        let number = self.next;
        self.next += 1;
        Some(std::str::from_utf8(text).map_err(|_| {
            Error::format(self.file, format!("{}[{number}]", self.key), "invalid UTF-8", "UTF-8")
        }))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.len - self.next, Some(self.len - self.next))
    }
}

impl ExactSizeIterator for Strings<'_> {}

/// Keys and values.
pub(super) type Entries = BTreeMap<String, Value>;

/// The type of a value; the discriminants are those of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Bytes of one scalar; strings and arrays have a length of their own.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String | Self::Array => 8,
        }
    }

    /// Reads one scalar from exactly [`Kind::size`] bytes; `None` if they are none.
    pub fn decode(self, bytes: &[u8]) -> Option<Scalar> {
        Some(match self {
            Self::U8 => Scalar::Int(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I8 => Scalar::Int(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U16 => Scalar::Int(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I16 => Scalar::Int(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U32 => Scalar::Int(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I32 => Scalar::Int(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U64 => Scalar::Int(u64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I64 => Scalar::Int(i64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F32 => Scalar::Float(f32::from_le_bytes(bytes.try_into().ok()?)),
            // Nothing in a model needs more than an f32.
            Self::F64 => Scalar::Float(f64::from_le_bytes(bytes.try_into().ok()?) as f32),
            Self::Bool => match bytes {
                [0] => Scalar::Bool(false),
                [1] => Scalar::Bool(true),
                _ => return None,
            },
            Self::String | Self::Array => return None,
        })
    }
}

/// A number or a boolean of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Scalar {
    /// Wide enough for every integer type of the format.
    Int(i128),
    Float(f32),
    Bool(bool),
}

/// A value; strings and arrays stay in the file.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    String(Range<usize>),
    Array { kind: Kind, len: usize, range: Range<usize> },
}
