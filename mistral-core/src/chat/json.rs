//! JSON as Python reads and writes it: what the reference feeds to its tokenizers is the output of `json.dumps`, so that a
//! space, an escape or the digits of a number that differ are tokens that differ.
//!
//! Integers keep all their digits, keys keep their order (a repeated key takes the last value at the first place), floats are
//! written as `repr` does.

use std::fmt::Write as _;

use crate::chat::json_parser::{self, Parser};
use crate::error::{Error, Result};

/// How deeply arrays and objects may be nested.
pub const MAX_DEPTH: usize = 256;

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// An integer, as its digits: any size.
    Int(String),
    /// Any other number. Not finite only where [`Dialect::Python`] read it.
    Float(f64),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Json>),
    /// An object, in the order of its keys.
    Object(Vec<(String, Json)>),
}

/// Which texts are JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// RFC 8259.
    Strict,
    /// What Python's `json.loads` takes as well: `NaN`, `Infinity`, `-Infinity`, lone surrogates (read as U+FFFD).
    Python,
}

/// What [`Json::parse`] refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Byte offset at which the text stops being JSON.
    pub offset: usize,
    /// Why.
    pub reason: &'static str,
    /// Whether the text ended too early, so that more of it could still make it right.
    pub truncated: bool,
}

impl Invalid {
    /// The text may be JSON, but more of it than is read here.
    pub(super) fn is_limit(&self) -> bool {
        matches!(self.reason, json_parser::TOO_DEEP | json_parser::TOO_MANY_DIGITS)
    }
}

impl Json {
    /// Reads a whole text.
    pub fn parse(text: &str, dialect: Dialect) -> Result<Self, Invalid> {
        Parser::new(text, dialect).whole()
    }

    /// Reads the body of a request: [`Dialect::Strict`], with an error for the caller.
    pub fn from_request(text: &str) -> Result<Self> {
        Self::parse(text, Dialect::Strict).map_err(|e| {
            Error::argument("request", format!("{} at byte {}", e.reason, e.offset), "a JSON object")
        })
    }

    /// The member of an object.
    pub fn get(&self, key: &str) -> Option<&Json> {
        self.members()?.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }

    /// The members of an object.
    pub fn members(&self) -> Option<&[(String, Json)]> {
        match self {
            Self::Object(members) => Some(members),
            _ => None,
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(s) => Some(s),
            _ => None,
        }
    }

    /// The elements of an array.
    pub fn as_array(&self) -> Option<&[Json]> {
        match self {
            Self::Array(a) => Some(a),
            _ => None,
        }
    }

    /// The type, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }

    /// `json.dumps(value, ensure_ascii=False)`.
    pub fn dumps(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, &Style::default(), 0);
        out
    }

    /// `json.dumps` with its options.
    pub fn dumps_with(&self, style: &Style) -> String {
        let mut out = String::new();
        self.write(&mut out, style, 0);
        out
    }

    fn write(&self, out: &mut String, style: &Style, level: usize) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Self::Int(digits) => out.push_str(digits),
            Self::Float(f) => out.push_str(&float_repr(*f)),
            Self::String(s) => write_string(out, s, style.ensure_ascii),
            Self::Array(items) => {
                style.open(out, '[', items.is_empty(), level);
                for (i, item) in items.iter().enumerate() {
                    style.separate(out, i, level);
                    item.write(out, style, level + 1);
                }
                style.close(out, ']', items.is_empty(), level);
            }
            Self::Object(members) => {
                style.open(out, '{', members.is_empty(), level);
                for (i, (key, value)) in style.ordered(members).into_iter().enumerate() {
                    style.separate(out, i, level);
                    write_string(out, key, style.ensure_ascii);
                    out.push_str(&style.key_separator);
                    value.write(out, style, level + 1);
                }
                style.close(out, '}', members.is_empty(), level);
            }
        }
    }
}

impl From<&serde_json::Value> for Json {
    fn from(value: &serde_json::Value) -> Self {
        use serde_json::Value;
        match value {
            Value::Null => Self::Null,
            Value::Bool(b) => Self::Bool(*b),
            Value::Number(n) => match (n.as_i64(), n.as_u64(), n.as_f64()) {
                (Some(i), _, _) => Self::Int(i.to_string()),
                (_, Some(u), _) => Self::Int(u.to_string()),
                (_, _, f) => Self::Float(f.unwrap_or(f64::NAN)),
            },
            Value::String(s) => Self::String(s.clone()),
            Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            Value::Object(members) => {
                Self::Object(members.iter().map(|(k, v)| (k.clone(), Self::from(v))).collect())
            }
        }
    }
}

/// The options of `json.dumps`.
#[derive(Clone, Debug)]
pub struct Style {
    /// Everything beyond ASCII as `\uXXXX`.
    pub ensure_ascii: bool,
    /// Between the elements.
    pub item_separator: String,
    /// Between a key and its value.
    pub key_separator: String,
    /// What one level of nesting is indented by; `None`: all on one line.
    pub indent: Option<String>,
    /// Members in the order of their keys.
    pub sort_keys: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            ensure_ascii: false,
            item_separator: ", ".into(),
            key_separator: ": ".into(),
            indent: None,
            sort_keys: false,
        }
    }
}

impl Style {
    fn open(&self, out: &mut String, bracket: char, empty: bool, level: usize) {
        out.push(bracket);
        if !empty {
            self.break_line(out, level + 1);
        }
    }

    fn separate(&self, out: &mut String, index: usize, level: usize) {
        if index > 0 {
            out.push_str(&self.item_separator);
            self.break_line(out, level + 1);
        }
    }

    fn close(&self, out: &mut String, bracket: char, empty: bool, level: usize) {
        if !empty {
            self.break_line(out, level);
        }
        out.push(bracket);
    }

    fn break_line(&self, out: &mut String, level: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..level).for_each(|_| out.push_str(indent));
        }
    }

    fn ordered<'a>(&self, members: &'a [(String, Json)]) -> Vec<&'a (String, Json)> {
        let mut all: Vec<_> = members.iter().collect();
        if self.sort_keys {
            all.sort_by(|a, b| a.0.cmp(&b.0));
        }
        all
    }
}

/// `repr` of a Python float: the shortest digits that read back, in scientific notation below 1e-4 and from 1e16.
fn float_repr(f: f64) -> String {
    if f.is_nan() {
        return "NaN".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let scientific = format!("{f:e}");
    // Invariant: `{:e}` always writes one `e` followed by an integer.
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = f.to_string();
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// A string literal as `json.dumps` writes it.
fn write_string(out: &mut String, s: &str, ensure_ascii: bool) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !c.is_ascii()) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(text: &str) -> String {
        Json::parse(text, Dialect::Python).unwrap().dumps()
    }

    #[test]
    fn writes_what_python_writes() {
        // Right: json.dumps(json.loads(left), ensure_ascii=False) of CPython 3.11.
        for (text, expected) in [
            ("{\"a\":1,\"b\":[true,false,null]}", "{\"a\": 1, \"b\": [true, false, null]}"),
            (
                "[1.0,1e3,1E16,123456789012345678,1e-5,0.0001,-0.0,-0]",
                "[1.0, 1000.0, 1e+16, 123456789012345678, 1e-05, 0.0001, -0.0, 0]",
            ),
            ("[1e400,-1e400,NaN,-Infinity]", "[Infinity, -Infinity, NaN, -Infinity]"),
            ("[18446744073709551616123]", "[18446744073709551616123]"),
            (
                "[5e-324,1.7976931348623157e308,9007199254740993.0]",
                "[5e-324, 1.7976931348623157e+308, 9007199254740992.0]",
            ),
            ("[\"\\u00e9\\ud83e\\udd16\\/\\u0001\\u007f\"]", "[\"é🤖/\\u0001\u{7f}\"]"),
            ("{\"a\":1,\"b\":2,\"a\":3}", "{\"a\": 3, \"b\": 2}"),
            (" {} ", "{}"),
            ("[]", "[]"),
        ] {
            assert_eq!(round(text), expected);
        }
    }

    #[test]
    fn styles() {
        let value = Json::parse("{\"b\":[1,{}],\"a\":\"é🤖\"}", Dialect::Strict).unwrap();
        let style = Style { ensure_ascii: true, sort_keys: true, ..Style::default() };
        assert_eq!(value.dumps_with(&style), "{\"a\": \"\\u00e9\\ud83e\\udd16\", \"b\": [1, {}]}");
        let style = Style { indent: Some("  ".into()), item_separator: ",".into(), ..Style::default() };
        assert_eq!(value.dumps_with(&style), "{\n  \"b\": [\n    1,\n    {}\n  ],\n  \"a\": \"é🤖\"\n}");
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in [
            "", "{", "[1,]", "{\"a\"}", "{'a':1}", "01", "1.", "1e", "-", "tru", "\"\n\"", "\"\\x\"", "1 2",
            "[1 2]",
        ] {
            assert!(Json::parse(text, Dialect::Python).is_err(), "{text}");
        }
        assert!(Json::parse("NaN", Dialect::Strict).is_err());
        assert!(Json::parse("\"\\ud800\"", Dialect::Strict).is_err());
        assert!(Json::parse(&"[".repeat(MAX_DEPTH + 1), Dialect::Python).is_err());
        let deep = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        assert_eq!(round(&deep), deep);
        assert!(Json::parse(&"1".repeat(4301), Dialect::Python).is_err());
    }

    #[test]
    fn tells_truncated_from_wrong() {
        for (text, truncated) in
            [("{\"a\": \"x", true), ("{\"a\": tr", true), ("[1,", true), ("{\"a\" 1", false), ("[1 2", false)]
        {
            assert_eq!(Json::parse(text, Dialect::Strict).unwrap_err().truncated, truncated, "{text}");
        }
    }

    #[test]
    fn many_keys() {
        let text: Vec<String> = (0..1000).map(|i| format!("\"k{}\":{i}", i % 500)).collect();
        let value = Json::parse(&format!("{{{}}}", text.join(",")), Dialect::Strict).unwrap();
        assert_eq!(value.members().unwrap().len(), 500);
        assert_eq!(value.get("k7"), Some(&Json::Int("507".into())));
    }
}
