//! Reads of one JSON object, each checked and each error naming the file and the whole path of the key.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// One object of a configuration file.
#[derive(Clone)]
pub(crate) struct Fields<'a> {
    file: &'a str,
    /// Path of this object in the file, with a trailing dot; empty for the whole file.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The object that is the whole file.
    pub fn root(file: &'a str, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Self { file, prefix: String::new(), map }),
            other => Err(Error::format(file, "the file", describe(other), "a JSON object")),
        }
    }

    /// An error about the key `name`.
    pub fn bad(&self, name: &str, expected: impl ToString) -> Error {
        let found = self.map.get(name).map_or("nothing".to_owned(), describe);
        Error::format(self.file, self.path(name), found, expected)
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Whether the key stands in the file, be it as `null`.
    pub fn mentions(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A nested object.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields { file: self.file, prefix: self.path(name) + ".", map }))
            }
            Some(_) => Err(self.bad(name, "an object")),
        }
    }

    /// A whole number between 1 and `max`.
    pub fn count(&self, name: &str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(self.bad(name, format!("a whole number from 1 to {max}"))),
        }
    }

    /// A whole number between 1 and `max` that must be there.
    pub fn required(&self, name: &str, max: usize) -> Result<usize> {
        self.count(name, max)?.ok_or_else(|| self.bad(name, format!("a whole number from 1 to {max}")))
    }

    /// A number that an `f32` can hold.
    pub fn float(&self, name: &str) -> Result<Option<f32>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().map(|x| x as f32) {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.bad(name, "a finite number")),
        }
    }

    /// A number above zero that an `f32` can hold.
    pub fn positive(&self, name: &str) -> Result<Option<f32>> {
        match self.float(name)? {
            Some(x) if x <= 0.0 => Err(self.bad(name, "a number above 0")),
            other => Ok(other),
        }
    }

    /// A number above zero that must be there.
    pub fn required_positive(&self, name: &str) -> Result<f32> {
        self.positive(name)?.ok_or_else(|| self.bad(name, "a number above 0"))
    }

    /// `true` or `false`.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.bad(name, "true or false")),
        }
    }

    /// A string.
    pub fn text(&self, name: &str) -> Result<Option<&'a str>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(name, "a string")),
        }
    }

    /// A list.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(self.bad(name, "a list")),
        }
    }

    /// The keys of the object.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// A value as an error shows it: never more than a line.
pub(crate) fn describe(value: &Value) -> String {
    const SHOWN: usize = 60;
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > SHOWN => {
            format!("\"{}…\"", text.chars().take(SHOWN).collect::<String>())
        }
        other => other.to_string(),
    }
}
