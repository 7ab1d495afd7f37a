//! The vocabularies inside GGUF files: `llama` (SentencePiece's, with scores) and `gpt2` (byte-level pairs, with a named
//! pre-tokenizer).

use std::collections::HashMap;

use super::added::Added;
use super::bpe::{Bpe, Merges, Unit};
use super::sentencepiece::{self, Piece, Scored};
use super::split::{Behavior, Splitter};
use super::vocab::{Kind, MAX_TOKENS, NONE, Vocab};
use super::{Decoding, Invalid, Parts, Prefix, PrefixWhen, Roles, Tokenizer, no_bytes};
use crate::error::{Error, Result};

/// The pattern of Tekken's `config.pattern`.
pub(super) const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// GPT-2's pattern; others split digits off before it.
pub(super) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The pattern of `cl100k_base`, as Llama 3 has it.
pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits.
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The pattern of `o200k_base`.
pub(super) const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A pre-tokenizer: its patterns, applied one after the other.
struct Pre {
    /// The values of `tokenizer.ggml.pre` that mean it, those of llama.cpp.
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A piece that is a token is not merged (`ignore_merges`).
    whole_piece_first: bool,
    /// Where `tokenizer.ggml.add_bos_token` is missing.
    adds_bos: bool,
}

const PRES: [Pre; 10] = [
    Pre { names: &["tekken"], patterns: &[TEKKEN], whole_piece_first: true, adds_bos: true },
    Pre {
        names: &["llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        patterns: &[LLAMA3],
        whole_piece_first: true,
        adds_bos: true,
    },
    Pre { names: &["dbrx", "smaug-bpe"], patterns: &[LLAMA3], whole_piece_first: false, adds_bos: false },
    Pre {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        patterns: &[r"\p{N}", GPT2],
        whole_piece_first: false,
        adds_bos: false,
    },
    Pre {
        names: &["gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "gigachat"],
        patterns: &[GPT2],
        whole_piece_first: false,
        adds_bos: false,
    },
    Pre {
        names: &["qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"],
        patterns: &[QWEN2],
        whole_piece_first: false,
        adds_bos: false,
    },
    Pre { names: &["gpt-4o"], patterns: &[GPT4O], whole_piece_first: false, adds_bos: false },
    Pre {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        whole_piece_first: false,
        adds_bos: false,
    },
    Pre {
        names: &["deepseek-coder"],
        patterns: &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"],
        whole_piece_first: false,
        adds_bos: false,
    },
    Pre {
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        whole_piece_first: false,
        adds_bos: false,
    },
];

/// The tokenizer of a GGUF file: its keys `tokenizer.ggml.*`.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab<'a> {
    /// `model`: `llama` or `gpt2`.
    pub model: &'a str,
    /// `pre`: how `gpt2` splits text; `None` is `default`.
    pub pre: Option<&'a str>,
    /// `tokens`, in the order of their ids.
    pub tokens: Vec<&'a str>,
    /// `scores`, one for each token; `llama` needs them.
    pub scores: Vec<f32>,
    /// `token_type`, one for each token, or empty: all normal.
    pub token_types: Vec<i32>,
    /// `merges`, each two tokens with a space between; `gpt2` needs them.
    pub merges: Vec<&'a str>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`; `None`: what llama.cpp does without it.
    pub add_bos: Option<bool>,
    /// `add_space_prefix`, which `llama` heeds; `None`: true.
    pub add_space_prefix: Option<bool>,
}

pub(super) fn load(gguf: GgufVocab<'_>, file: &str) -> Result<Tokenizer> {
    check(&gguf, file)?;
    match gguf.model {
        "llama" => load_llama(&gguf, file),
        "gpt2" => load_gpt2(&gguf, file),
        other => Err(Error::unsupported("tokenizer.ggml.model", format!("`{other}`"), "llama, gpt2")),
    }
}

fn check(gguf: &GgufVocab<'_>, file: &str) -> Result<()> {
    let count = gguf.tokens.len();
    if count == 0 || count > MAX_TOKENS {
        let expected = format!("1 to {MAX_TOKENS} tokens");
        return Err(Error::format(file, "tokenizer.ggml.tokens", format!("{count} tokens"), expected));
    }
    if !gguf.token_types.is_empty() && gguf.token_types.len() != count {
        let found = format!("{} types", gguf.token_types.len());
        return Err(Error::format(file, "tokenizer.ggml.token_type", found, format!("{count}, one a token")));
    }
    let roles = [
        ("bos_token_id", gguf.bos),
        ("eos_token_id", gguf.eos),
        ("unknown_token_id", gguf.unk),
        ("padding_token_id", gguf.pad),
    ];
    for (key, id) in roles {
        if let Some(id) = id
            && id as usize >= count
        {
            return Err(Error::format(
                file,
                format!("tokenizer.ggml.{key}"),
                id,
                format!("an id below {count}"),
            ));
        }
    }
    Ok(())
}

fn kind(gguf: &GgufVocab<'_>, i: usize, file: &str) -> Result<Kind> {
    match gguf.token_types.get(i) {
        None => Ok(Kind::Normal),
        Some(&number) => {
            // A negative number is no type either.
            let number = u64::try_from(number).unwrap_or(u64::MAX);
            sentencepiece::kind(number, file, &format!("tokenizer.ggml.token_type[{i}]"))
        }
    }
}

fn roles(gguf: &GgufVocab<'_>, adds_bos: bool) -> Roles {
    let adds_bos = gguf.add_bos.unwrap_or(adds_bos);
    Roles { bos: gguf.bos, eos: gguf.eos, unk: gguf.unk, pad: gguf.pad, adds_bos }
}

fn load_llama(gguf: &GgufVocab<'_>, file: &str) -> Result<Tokenizer> {
    if gguf.scores.len() != gguf.tokens.len() {
        let expected = format!("{}, one a token", gguf.tokens.len());
        return Err(Error::format(
            file,
            "tokenizer.ggml.scores",
            format!("{} scores", gguf.scores.len()),
            expected,
        ));
    }
    let mut pieces = Vec::with_capacity(gguf.tokens.len());
    for (i, (&text, &score)) in gguf.tokens.iter().zip(&gguf.scores).enumerate() {
        pieces.push(Piece { text, score, kind: kind(gguf, i, file)? });
    }
    let key = |i| format!("tokenizer.ggml.tokens[{i}]");
    let Scored { vocab, mut bpe, added } = sentencepiece::scored(&pieces, key, file)?;
    bpe.unk = gguf.unk;
    let add_space = gguf.add_space_prefix.unwrap_or(true);
    let when = if add_space { PrefixWhen::Fragment } else { PrefixWhen::Never };
    let parts = Parts {
        vocab,
        bpe,
        splitters: Vec::new(),
        prefix: Prefix { when, unless_space: false },
        metaspace: true,
        added,
        roles: roles(gguf, true),
        decoding: Decoding {
            strip_space: add_space,
            invalid: Invalid::EachByte,
            unknown: Some(" \u{2047} ".to_owned()),
        },
        version: None,
        sections: serde_json::Map::new(),
    };
    parts.assemble(file)
}

fn load_gpt2(gguf: &GgufVocab<'_>, file: &str) -> Result<Tokenizer> {
    let name = gguf.pre.unwrap_or("default");
    let Some(pre) = PRES.iter().find(|pre| pre.names.contains(&name)) else {
        let known: Vec<&str> = PRES.iter().flat_map(|pre| pre.names).copied().collect();
        return Err(Error::unsupported("tokenizer.ggml.pre", format!("`{name}`"), known.join(", ")));
    };
    let splitters = pre
        .patterns
        .iter()
        .map(|pattern| Splitter::pattern(pattern, Behavior::Isolated, false).map_err(Error::Internal));
    let splitters = splitters.collect::<Result<Vec<_>>>()?;
    let mut table = ByteLevel::new(gguf.tokens.len());
    let mut added = Vec::new();
    for (i, &text) in gguf.tokens.iter().enumerate() {
        let kind = kind(gguf, i, file)?;
        let id = table.push(text, kind, file, &format!("tokenizer.ggml.tokens[{i}]"))?;
        if matches!(kind, Kind::Control | Kind::UserDefined) {
            added.push(Added { text: text.to_owned(), id, ..Added::default() });
        }
    }
    let merges = gguf.merges.iter().enumerate().map(|(i, merge)| {
        // Neither half is empty, so a space at the front belongs to the left one.
        let at = merge.bytes().skip(1).position(|byte| byte == b' ').map(|at| at + 1);
        at.map(|at| (&merge[..at], &merge[at + 1..])).ok_or(i)
    });
    let key = |i| format!("tokenizer.ggml.merges[{i}]");
    let (vocab, merges, bytes) = table.finish(merges, key, file)?;
    let parts = Parts {
        vocab,
        bpe: Bpe {
            merges,
            unit: Unit::Byte,
            whole_piece_first: pre.whole_piece_first,
            bytes,
            unk: None,
            fuse_unk: false,
        },
        splitters,
        // llama.cpp, too, adds a space for `llama` only.
        prefix: Prefix::default(),
        metaspace: false,
        added,
        roles: roles(gguf, pre.adds_bos),
        decoding: Decoding { strip_space: false, invalid: Invalid::EachPart, unknown: None },
        version: None,
        sections: serde_json::Map::new(),
    };
    parts.assemble(file)
}

/// A table of tokens that are written in GPT-2's alphabet, in which each byte is a printable character.
pub(super) struct ByteLevel<'a> {
    vocab: Vocab,
    ids: HashMap<&'a str, u32>,
    bytes: Box<[u32; 256]>,
}

impl<'a> ByteLevel<'a> {
    pub(super) fn new(tokens: usize) -> Self {
        let tokens = tokens.min(MAX_TOKENS);
        Self { vocab: Vocab::with_capacity(tokens), ids: HashMap::with_capacity(tokens), bytes: no_bytes() }
    }

    /// Appends a token; only normal ones are in the byte alphabet and in reach of merges.
    pub(super) fn push(&mut self, text: &'a str, kind: Kind, file: &str, key: &str) -> Result<u32> {
        let bytes = if kind == Kind::Normal { unescape(text) } else { None };
        let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) else {
            return self.vocab.push(text.as_bytes(), kind, file, key);
        };
        let id = self.vocab.push(&bytes, kind, file, key)?;
        if let Err(other) = self.vocab.index(id) {
            let found = format!("`{text}`, as token {other}");
            return Err(Error::format(file, key, found, "text that no other token has"));
        }
        if let [byte] = bytes[..] {
            self.bytes[byte as usize] = id;
        }
        self.ids.insert(text, id);
        Ok(id)
    }

    /// Resolves the merges: pairs of tokens, or the index of one that is none.
    pub(super) fn finish(
        self,
        merges: impl ExactSizeIterator<Item = std::result::Result<(&'a str, &'a str), usize>>,
        key: impl Fn(usize) -> String,
        file: &str,
    ) -> Result<(Vocab, Merges, Box<[u32; 256]>)> {
        let pairs = resolve(merges, |text| self.ids.get(text).copied(), key, file)?;
        Ok((self.vocab, Merges::Pairs(pairs), self.bytes))
    }
}

/// Listed merges by the ids of their tokens: the earlier in the list, the earlier they are done.
pub(super) fn resolve<'a>(
    merges: impl ExactSizeIterator<Item = std::result::Result<(&'a str, &'a str), usize>>,
    id: impl Fn(&str) -> Option<u32>,
    key: impl Fn(usize) -> String,
    file: &str,
) -> Result<HashMap<(u32, u32), (u32, u32)>> {
    let mut pairs = HashMap::with_capacity(merges.len().min(MAX_TOKENS));
    let mut joined = String::new();
    for (i, merge) in merges.enumerate() {
        let (left, right) =
            merge.map_err(|i| Error::format(file, key(i), "one word", "two tokens with a space between"))?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let find = |text: &str| {
            let found = || Error::format(file, key(i), format!("`{text}`"), "tokens of the vocabulary");
            id(text).ok_or_else(found)
        };
        let (left, right, merged) = (find(left)?, find(right)?, find(&joined)?);
        if i >= NONE as usize {
            return Err(Error::format(file, key(i), "more", format!("fewer than {NONE} merges")));
        }
        pairs.entry((left, right)).or_insert((i as u32, merged));
    }
    Ok(pairs)
}

/// The bytes of a token in GPT-2's alphabet; `None` if a character is not of it.
pub(super) fn unescape(text: &str) -> Option<Vec<u8>> {
    text.chars().map(unescape_char).collect()
}

/// The byte that a character stands for: printable Latin-1 for itself, U+0100 onwards for the others in their order
/// (`bytes_to_unicode` of GPT-2).
fn unescape_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7F) as u8),
        0x143 => Some(0xAD),
        _ => None,
    }
}
