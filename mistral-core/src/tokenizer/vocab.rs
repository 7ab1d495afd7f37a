//! The table of tokens: id → bytes in one allocation, and bytes → id through a compact hash index.

use std::hash::{BuildHasher, RandomState};

use crate::error::{Error, Result};

/// The most tokens of a vocabulary; the largest published one has about 260,000.
pub(super) const MAX_TOKENS: usize = 1 << 22;
/// The most bytes in all tokens together.
const MAX_BYTES: usize = 1 << 28;

/// The absence of a token, where an `Option` would double the size.
pub(super) const NONE: u32 = u32::MAX;

/// What a token is for. The names are those of SentencePiece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A piece of text.
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Steers the model; plain text never becomes one.
    Control,
    /// A piece of text that is found before all others.
    UserDefined,
    /// A reserved id.
    Unused,
    /// One raw byte.
    Byte,
}

/// All tokens of a tokenizer.
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`; it starts where its predecessor ends.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
    index: Index,
    longest: usize,
}

impl Vocab {
    /// An empty table for about `tokens` tokens.
    pub(super) fn with_capacity(tokens: usize) -> Self {
        let tokens = tokens.min(MAX_TOKENS);
        Self {
            bytes: Vec::new(),
            ends: Vec::with_capacity(tokens),
            kinds: Vec::with_capacity(tokens),
            index: Index::with_capacity(tokens),
            longest: 0,
        }
    }

    /// Appends a token that [`Vocab::find`] does not see. `file` and `key` are for the error.
    pub(super) fn push(&mut self, bytes: &[u8], kind: Kind, file: &str, key: &str) -> Result<u32> {
        if self.ends.len() >= MAX_TOKENS || self.bytes.len() + bytes.len() > MAX_BYTES {
            let expected = format!("at most {MAX_TOKENS} tokens of {MAX_BYTES} bytes together");
            return Err(Error::format(file, key, "more", expected));
        }
        let id = self.ends.len() as u32;
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
        self.kinds.push(kind);
        Ok(id)
    }

    /// Makes a token findable by its bytes; `Err` with the token that has the same bytes already.
    pub(super) fn index(&mut self, id: u32) -> std::result::Result<(), u32> {
        self.longest = self.longest.max(self.bytes_of(id).len());
        self.index.insert(id, &self.bytes, &self.ends)
    }

    /// Gives back the memory that loading has over-allocated.
    pub(super) fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.kinds.shrink_to_fit();
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn contains(&self, id: u32) -> bool {
        (id as usize) < self.ends.len()
    }

    /// The bytes of a token that exists.
    pub(super) fn bytes_of(&self, id: u32) -> &[u8] {
        span(&self.bytes, &self.ends, id)
    }

    /// The kind of a token that exists.
    pub(super) fn kind(&self, id: u32) -> Kind {
        self.kinds[id as usize]
    }

    /// The indexed token that has exactly these bytes.
    #[inline]
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.len() > self.longest { None } else { self.index.find(bytes, &self.bytes, &self.ends) }
    }
}

fn span<'a>(bytes: &'a [u8], ends: &[u32], id: u32) -> &'a [u8] {
    let id = id as usize;
    let start = if id == 0 { 0 } else { ends[id - 1] as usize };
    &bytes[start..ends[id] as usize]
}

/// Open addressing over token ids: four bytes a slot (eight bits of the hash, 24 of id + 1; 0 is empty), never more
/// than half full. The keys stay in the table of tokens, so that a vocabulary is held once.
struct Index {
    slots: Vec<u32>,
    len: usize,
    /// Random, so that no file can be made whose tokens collide.
    seed: u64,
}

impl Index {
    fn with_capacity(tokens: usize) -> Self {
        let slots = (tokens * 2).next_power_of_two().max(16);
        Self { slots: vec![0; slots], len: 0, seed: RandomState::new().hash_one(0u8) }
    }

    fn find(&self, key: &[u8], bytes: &[u8], ends: &[u32]) -> Option<u32> {
        let hash = hash(key, self.seed);
        let mut at = hash as usize & (self.slots.len() - 1);
        loop {
            let slot = self.slots[at];
            if slot == 0 {
                return None;
            }
            let id = (slot & ID_MASK) - 1;
            if slot & !ID_MASK == tag(hash) && equal(span(bytes, ends, id), key) {
                return Some(id);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    fn insert(&mut self, id: u32, bytes: &[u8], ends: &[u32]) -> std::result::Result<(), u32> {
        let key = span(bytes, ends, id);
        if let Some(other) = self.find(key, bytes, ends) {
            return Err(other);
        }
        if (self.len + 1) * 2 > self.slots.len() {
            self.grow(bytes, ends);
        }
        self.place(id, key);
        self.len += 1;
        Ok(())
    }

    fn grow(&mut self, bytes: &[u8], ends: &[u32]) {
        let larger = vec![0; self.slots.len() * 2];
        for slot in std::mem::replace(&mut self.slots, larger) {
            if slot != 0 {
                let id = (slot & ID_MASK) - 1;
                self.place(id, span(bytes, ends, id));
            }
        }
    }

    fn place(&mut self, id: u32, key: &[u8]) {
        let hash = hash(key, self.seed);
        let mut at = hash as usize & (self.slots.len() - 1);
        while self.slots[at] != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        self.slots[at] = tag(hash) | (id + 1);
    }
}

const ID_MASK: u32 = (1 << 24) - 1;

fn tag(hash: u64) -> u32 {
    ((hash >> 56) as u32) << 24
}

/// Keys are a few bytes long: a call of `memcmp` costs more than the comparison.
#[inline]
fn equal(a: &[u8], b: &[u8]) -> bool {
    let ((words, rest), (others, tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let same = |(a, b): (&[u8; 8], &[u8; 8])| u64::from_le_bytes(*a) == u64::from_le_bytes(*b);
    a.len() == b.len() && words.iter().zip(others).all(same) && rest.iter().zip(tail).all(|(a, b)| a == b)
}

/// Multiply-and-fold over eight bytes at a time (the construction of wyhash): the standard library's hash costs more
/// than the rest of a lookup on keys this short.
#[inline]
fn hash(key: &[u8], seed: u64) -> u64 {
    let mut state = fold(seed ^ key.len() as u64, 0x9E37_79B9_7F4A_7C15);
    let (words, rest) = key.as_chunks::<8>();
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), 0xA076_1D64_78BD_642F);
    }
    fold(state ^ last_bytes(key, rest), 0xE703_7ED1_A0B4_28DB)
}

/// The bytes after the last whole word, without a loop: of keys of the same length, those with other bytes there differ.
#[inline]
fn last_bytes(key: &[u8], rest: &[u8]) -> u64 {
    match (key.last_chunk::<8>(), rest) {
        (_, []) => 0,
        (Some(last), _) => u64::from_le_bytes(*last),
        (None, [first, .., last]) if rest.len() < 4 => {
            u64::from(*first) | u64::from(rest[rest.len() / 2]) << 8 | u64::from(*last) << 16
        }
        (None, [only]) => u64::from(*only),
        (None, _) => match (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
            (Some(first), Some(last)) => {
                u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))
            }
            // Invariant: four bytes at least are left here.
            _ => 0,
        },
    }
}

fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_indexed_and_nothing_else() {
        let mut vocab = Vocab::with_capacity(0);
        for i in 0..5000u32 {
            let id = vocab.push(format!("t{i}").as_bytes(), Kind::Normal, "f", "k").unwrap();
            assert_eq!(vocab.index(id), Ok(()));
        }
        for i in 0..5000u32 {
            assert_eq!(vocab.find(format!("t{i}").as_bytes()), Some(i));
        }
        assert_eq!(vocab.find(b"t5000"), None);
        assert_eq!(vocab.find(b""), None);
        assert_eq!(vocab.find(&[b'x'; 1000]), None);
        let again = vocab.push(b"t7", Kind::Normal, "f", "k").unwrap();
        assert_eq!(vocab.index(again), Err(7));
        assert_eq!(vocab.bytes_of(4999), b"t4999");
    }
}
