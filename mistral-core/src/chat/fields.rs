//! Reading the fields of a request: each has a type and a range, and an error names its JSON path.

use crate::chat::json::Json;
use crate::error::{Error, Result};

/// The longest piece of a caller's key or keyword that an error repeats.
const MAX_QUOTED_CHARS: usize = 40;

/// A value and where it stands in the request.
#[derive(Clone, Debug)]
pub(super) struct Field<'a> {
    pub value: &'a Json,
    pub path: String,
}

impl<'a> Field<'a> {
    pub fn root(value: &'a Json) -> Self {
        Self { value, path: String::new() }
    }

    pub fn wrong(&self, expected: impl ToString) -> Error {
        Error::argument(self.name(), self.value.kind(), expected)
    }

    /// The value itself is wrong, not its type; `found` must not be text of a prompt.
    pub fn refused(&self, found: impl ToString, expected: impl ToString) -> Error {
        Error::argument(self.name(), found, expected)
    }

    fn name(&self) -> &str {
        if self.path.is_empty() { "request" } else { &self.path }
    }

    pub fn string(&self) -> Result<&'a str> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    pub fn boolean(&self) -> Result<bool> {
        match self.value {
            Json::Bool(b) => Ok(*b),
            _ => Err(self.wrong("true or false")),
        }
    }

    pub fn integer(&self, min: u64, max: u64) -> Result<u64> {
        let expected = || format!("an integer from {min} to {max}");
        let Json::Int(digits) = self.value else { return Err(self.wrong(expected())) };
        match digits.parse::<u64>() {
            Ok(i) if (min..=max).contains(&i) => Ok(i),
            _ => Err(self.refused(quote(digits), expected())),
        }
    }

    pub fn number(&self, min: f64, max: f64) -> Result<f64> {
        let expected = || format!("a number from {min} to {max}");
        let (number, text) = match self.value {
            Json::Int(digits) => (digits.parse().unwrap_or(f64::NAN), digits.clone()),
            Json::Float(f) => (*f, f.to_string()),
            _ => return Err(self.wrong(expected())),
        };
        if (min..=max).contains(&number) { Ok(number) } else { Err(self.refused(quote(&text), expected())) }
    }

    pub fn array(&self) -> Result<Vec<Field<'a>>> {
        let items = self.value.as_array().ok_or_else(|| self.wrong("an array"))?;
        Ok(items
            .iter()
            .enumerate()
            .map(|(i, value)| Field { value, path: format!("{}[{i}]", self.path) })
            .collect())
    }

    pub fn object(&self) -> Result<&'a [(String, Json)]> {
        self.value.members().ok_or_else(|| self.wrong("an object"))
    }

    pub fn child(&self, key: &str, value: &'a Json) -> Field<'a> {
        let key = clip(key);
        let path = if self.path.is_empty() { key } else { format!("{}.{key}", self.path) };
        Field { value, path }
    }

    /// The member `key`, unless it is absent or null.
    pub fn optional(&self, key: &str) -> Option<Field<'a>> {
        let value = self.value.get(key).filter(|v| **v != Json::Null)?;
        Some(self.child(key, value))
    }

    pub fn required(&self, key: &str) -> Result<Field<'a>> {
        self.optional(key).ok_or_else(|| {
            let found = if self.value.get(key).is_some() { "null" } else { "nothing" };
            Error::argument(self.child(key, self.value).path, found, "a value")
        })
    }

    /// An object with no other keys than `known`.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        for (key, value) in self.object()? {
            if !known.contains(&key.as_str()) {
                let expected = format!("one of the fields {}", known.join(", "));
                return Err(Error::argument(self.child(key, value).path, "an unknown field", expected));
            }
        }
        Ok(())
    }

    /// One of a few words.
    pub fn keyword<T: Copy>(&self, words: &[(&str, T)]) -> Result<T> {
        let found = self.string()?;
        words.iter().find(|(word, _)| *word == found).map(|(_, value)| *value).ok_or_else(|| {
            let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.refused(quote(found), format!("one of {}", all.join(", ")))
        })
    }
}

/// A caller's word for an error message, in quotes.
pub(super) fn quote(word: &str) -> String {
    if is_word(word) { format!("`{word}`") } else { clip(word) }
}

/// A word or the name of a field as it is; of anything else, which may be a part of a conversation, only how long it is.
fn clip(word: &str) -> String {
    if is_word(word) { word.to_owned() } else { format!("(a text of {} characters)", word.chars().count()) }
}

fn is_word(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+.$".contains(&byte);
    (1..=MAX_QUOTED_CHARS).contains(&word.len()) && word.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_told_and_texts_are_not() {
        assert_eq!(
            (quote("usr"), quote("json_schema"), quote("-1.5e3")),
            ("`usr`".into(), "`json_schema`".into(), "`-1.5e3`".into())
        );
        for text in ["my number is 12", "naïve", "", "a\nb", &"a".repeat(41)] {
            let told = quote(text);
            assert_eq!(told, format!("(a text of {} characters)", text.chars().count()));
            assert!(text.is_empty() || !told.contains(text), "{told}");
        }
    }
}
