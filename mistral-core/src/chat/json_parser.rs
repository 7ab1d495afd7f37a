//! Reads JSON; [`crate::chat::json`] says which.

use std::collections::HashMap;

use crate::chat::json::{Dialect, Invalid, Json, MAX_DEPTH};

/// Python refuses to convert longer integers (`sys.get_int_max_str_digits`).
const MAX_INTEGER_DIGITS: usize = 4300;

/// Objects with more keys than this are searched through a table while they are parsed.
const LINEAR_SEARCH_KEYS: usize = 16;

pub(super) const TOO_DEEP: &str = "nested too deeply";
pub(super) const TOO_MANY_DIGITS: &str = "integer with too many digits";

/// Reads one text.
pub(super) struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    dialect: Dialect,
}

impl<'a> Parser<'a> {
    pub fn new(text: &'a str, dialect: Dialect) -> Self {
        Self { text, at: 0, depth: 0, dialect }
    }

    /// The value that the whole text is.
    pub fn whole(mut self) -> Result<Json, Invalid> {
        self.skip_space();
        let value = self.value()?;
        self.skip_space();
        if self.at < self.text.len() {
            return Err(self.fail("text after the value"));
        }
        Ok(value)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn fail(&self, reason: &'static str) -> Invalid {
        Invalid { offset: self.at, reason, truncated: self.at >= self.text.len() }
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Result<Json, Invalid> {
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::array),
            Some(b'"') => self.string().map(Json::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true", Json::Bool(true)),
            Some(b'f') => self.word("false", Json::Bool(false)),
            Some(b'n') => self.word("null", Json::Null),
            Some(b'N') if self.dialect == Dialect::Python => self.word("NaN", Json::Float(f64::NAN)),
            Some(b'I') if self.dialect == Dialect::Python => {
                self.word("Infinity", Json::Float(f64::INFINITY))
            }
            _ => Err(self.fail("no value")),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Json, Invalid>) -> Result<Json, Invalid> {
        if self.depth == MAX_DEPTH {
            return Err(self.fail(TOO_DEEP));
        }
        self.depth += 1;
        self.at += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn word(&mut self, word: &str, value: Json) -> Result<Json, Invalid> {
        let rest = &self.text.as_bytes()[self.at..];
        if rest.starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(value);
        }
        let truncated = word.as_bytes().starts_with(rest);
        Err(Invalid { truncated, ..self.fail("no value") })
    }

    fn array(&mut self) -> Result<Json, Invalid> {
        let mut items = Vec::new();
        self.skip_space();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Json::Array(items));
        }
        loop {
            self.skip_space();
            items.push(self.value()?);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Json::Array(items));
                }
                _ => return Err(self.fail("no `,` or `]`")),
            }
        }
    }

    fn object(&mut self) -> Result<Json, Invalid> {
        let mut members = Members::default();
        self.skip_space();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Json::Object(members.list));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(self.fail("no key"));
            }
            let key = self.string()?;
            self.skip_space();
            if self.peek() != Some(b':') {
                return Err(self.fail("no `:`"));
            }
            self.at += 1;
            self.skip_space();
            let value = self.value()?;
            members.set(key, value);
            self.skip_space();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Json::Object(members.list));
                }
                _ => return Err(self.fail("no `,` or `}`")),
            }
        }
    }

    /// At the opening quote.
    fn string(&mut self) -> Result<String, Invalid> {
        self.at += 1;
        let mut out = String::new();
        loop {
            let start = self.at;
            while !matches!(self.peek(), None | Some(b'"' | b'\\' | 0..=0x1f)) {
                self.at += 1;
            }
            // Invariant: both ends are at ASCII bytes or at the end, hence at character borders.
            out.push_str(&self.text[start..self.at]);
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    self.at += 1;
                    out.push(self.escape()?);
                }
                _ => return Err(self.fail("string without end, or a control character in it")),
            }
        }
    }

    /// After the backslash.
    fn escape(&mut self) -> Result<char, Invalid> {
        let c = match self.peek() {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return Err(self.fail("unknown escape")),
        };
        self.at += 1;
        Ok(c)
    }

    /// After `\u`: one UTF-16 unit, and its partner where it has one.
    fn unicode_escape(&mut self) -> Result<char, Invalid> {
        let unit = self.hex4()?;
        if let Some(c) = char::from_u32(unit) {
            return Ok(c);
        }
        let rest = &self.text.as_bytes()[self.at..];
        if unit < 0xdc00 && rest.starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let low = self.hex4()?;
            if (0xdc00..0xe000).contains(&low) {
                let scalar = 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00);
                return char::from_u32(scalar).ok_or_else(|| self.fail("no character"));
            }
            self.at = back;
        }
        match self.dialect {
            Dialect::Python => Ok(char::REPLACEMENT_CHARACTER),
            Dialect::Strict => {
                let truncated = unit < 0xdc00 && b"\\u".starts_with(rest);
                Err(Invalid { truncated, ..self.fail("half of a surrogate pair") })
            }
        }
    }

    fn hex4(&mut self) -> Result<u32, Invalid> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|b| (b as char).to_digit(16));
            unit = unit * 16 + digit.ok_or_else(|| self.fail("no hexadecimal digit"))?;
            self.at += 1;
        }
        Ok(unit)
    }

    fn number(&mut self) -> Result<Json, Invalid> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.dialect == Dialect::Python && self.peek() == Some(b'I') {
                return self.word("Infinity", Json::Float(f64::NEG_INFINITY));
            }
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.fail("no digit")),
        }
        let mut float = false;
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
            float = true;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
            float = true;
        }
        let text = &self.text[start..self.at];
        if float {
            return text.parse().map(Json::Float).map_err(|_| self.fail("no number"));
        }
        if text.len() > MAX_INTEGER_DIGITS {
            return Err(self.fail(TOO_MANY_DIGITS));
        }
        Ok(Json::Int(if text == "-0" { "0".into() } else { text.into() }))
    }

    fn digits(&mut self) {
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), Invalid> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.fail("no digit"));
        }
        self.digits();
        Ok(())
    }
}

/// The members of an object while it is read.
#[derive(Default)]
struct Members {
    list: Vec<(String, Json)>,
    /// Built when a linear search would get slow.
    index: HashMap<String, usize>,
}

impl Members {
    fn set(&mut self, key: String, value: Json) {
        match self.find(&key) {
            Some(i) => self.list[i].1 = value,
            None => {
                if !self.index.is_empty() {
                    self.index.insert(key.clone(), self.list.len());
                }
                self.list.push((key, value));
            }
        }
    }

    fn find(&mut self, key: &str) -> Option<usize> {
        if self.list.len() <= LINEAR_SEARCH_KEYS {
            return self.list.iter().position(|(k, _)| k == key);
        }
        if self.index.is_empty() {
            self.index = self.list.iter().enumerate().map(|(i, (k, _))| (k.clone(), i)).collect();
        }
        self.index.get(key).copied()
    }
}
