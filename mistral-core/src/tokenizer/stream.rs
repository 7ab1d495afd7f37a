//! Tokens to text, one by one: a character comes out when its last byte is there.

use std::borrow::Borrow;

use super::vocab::Kind;
use super::{Invalid, Tokenizer};
use crate::error::Result;

/// Turns tokens into text as they arrive. `T` is `&Tokenizer` or a shared pointer to one.
///
/// What comes out of all calls together is [`Tokenizer::decode`] of the same tokens.
#[derive(Clone, Debug)]
pub struct StreamDecoder<T: Borrow<Tokenizer>> {
    tokenizer: T,
    skip_special: bool,
    /// The bytes of a character that is not complete: three at most.
    pending: Vec<u8>,
    /// Nothing has come that could have a leading space.
    at_start: bool,
}

impl<T: Borrow<Tokenizer>> StreamDecoder<T> {
    /// A decoder at the beginning of a text. With `skip_special`, control tokens give no text, else their names.
    pub fn new(tokenizer: T, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, pending: Vec::new(), at_start: true }
    }

    /// As one that has given text already: the first space stays.
    pub fn going_on(self) -> Self {
        Self { at_start: false, ..self }
    }

    /// The text that `id` completes, often empty in the middle of a character.
    ///
    /// [`crate::Error::Argument`] if there is no such token; the decoder is as it was.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let tokenizer = self.tokenizer.borrow();
        tokenizer.check(id)?;
        let mut text = String::new();
        match tokenizer.vocab.kind(id) {
            Kind::Control => {
                Self::drain(&mut self.pending, tokenizer.decoding.invalid, true, &mut text);
                if !self.skip_special {
                    text.push_str(&String::from_utf8_lossy(tokenizer.vocab.bytes_of(id)));
                    self.at_start = false;
                }
            }
            kind => {
                let mut bytes = match (&tokenizer.decoding.unknown, kind) {
                    (Some(surface), Kind::Unknown) => surface.as_bytes(),
                    _ => tokenizer.vocab.bytes_of(id),
                };
                if self.at_start && tokenizer.strips_first_space(kind) {
                    bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
                }
                self.at_start = false;
                self.pending.extend_from_slice(bytes);
                Self::drain(&mut self.pending, tokenizer.decoding.invalid, false, &mut text);
            }
        }
        Ok(text)
    }

    /// Whether `id` is no text but stands between texts: a control token, unless its name is written.
    pub(crate) fn parts_text_at(&self, id: u32) -> bool {
        self.skip_special && self.tokenizer.borrow().is_control(id)
    }

    /// The end of the text: what is left of an incomplete character becomes U+FFFD. The decoder is then as new.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        Self::drain(&mut self.pending, self.tokenizer.borrow().decoding.invalid, true, &mut text);
        self.at_start = true;
        text
    }

    /// Moves what is complete (or everything, at an end) from `pending` to `text`.
    fn drain(pending: &mut Vec<u8>, invalid: Invalid, at_end: bool, text: &mut String) {
        let mut used = 0;
        while used < pending.len() {
            match std::str::from_utf8(&pending[used..]) {
                Ok(valid) => {
                    text.push_str(valid);
                    used = pending.len();
                }
                Err(error) => {
                    let valid = used + error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&pending[used..valid]));
                    used = valid;
                    let bad = match error.error_len() {
                        Some(bad) => bad,
                        None if at_end => pending.len() - used,
                        None => break,
                    };
                    let marks = if invalid == Invalid::EachByte { bad } else { 1 };
                    text.extend(std::iter::repeat_n(char::REPLACEMENT_CHARACTER, marks));
                    used += bad;
                }
            }
        }
        pending.drain(..used);
    }
}
