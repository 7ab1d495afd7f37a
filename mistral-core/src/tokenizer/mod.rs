//! Text to tokens and back.
//!
//! Four file formats — Tekken, SentencePiece, the vocabularies inside GGUF, Hugging Face's `tokenizer.json` — become one
//! pipeline: find special tokens, add the space that SentencePiece wants, split ([`split`]), merge ([`bpe`]).
//!
//! The cores are our own, about 200 lines, where one would rather take a library: `tokenizers` reads environment
//! variables and starts threads; `kitoken` 0.11 brings some eighteen dependencies, among them another version of
//! `fancy-regex`, a backtracking engine, for the patterns. The search for patterns (`regex-automata`, linear in the text)
//! and for special tokens (`aho-corasick`) is libraries' work.
//!
//! SentencePiece writes a space as `▁` (U+2581) and reads `▁` as a space. Here the vocabulary is turned round when it
//! is loaded, so that its tokens and the text hold plain spaces.

mod added;
mod bpe;
mod gguf;
mod huggingface;
mod sentencepiece;
mod split;
mod stream;
mod tekken;
mod version;
mod vocab;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use gguf::GgufVocab;
pub use stream::StreamDecoder;
pub use version::TokenizerVersion;

use crate::error::{Error, Result};
use added::{Added, Fragment, Matcher};
use bpe::{Bpe, Scratch, Unit};
use split::Splitter;
use vocab::{Kind, NONE, Vocab};

/// The largest tokenizer file that is read; published ones are under 40 MB.
pub(crate) const MAX_FILE: usize = 1 << 28;

/// A vocabulary and the rules that turn text into its tokens and back. Immutable; share it freely between threads.
pub struct Tokenizer {
    vocab: Vocab,
    bpe: Bpe,
    splitters: Vec<Splitter>,
    prefix: Prefix,
    /// `▁` in the text means a space.
    metaspace: bool,
    /// Tokens that are found in any text.
    plain: Option<Matcher>,
    /// Those, the control tokens and the unknown one.
    all: Option<Matcher>,
    specials: HashMap<Box<str>, u32>,
    roles: Roles,
    decoding: Decoding,
    version: Option<TokenizerVersion>,
    sections: serde_json::Map<String, serde_json::Value>,
}

/// Where a space is put before the text, so that its first word is spelled like any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Prefix {
    when: PrefixWhen,
    /// Not where there is one already.
    unless_space: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum PrefixWhen {
    #[default]
    Never,
    /// Before the very first fragment, if it is text.
    First,
    /// At the beginning and after control tokens.
    Start,
    /// Before every stretch of text between special tokens.
    Fragment,
}

/// The tokens with a role.
#[derive(Clone, Copy, Debug, Default)]
struct Roles {
    bos: Option<u32>,
    eos: Option<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
    adds_bos: bool,
}

/// How tokens become text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decoding {
    /// The first token that is text loses its leading space.
    strip_space: bool,
    invalid: Invalid,
    /// What a token of kind [`Kind::Unknown`] says, if not its own name.
    unknown: Option<String>,
}

/// How many U+FFFD stand for bytes that are not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Invalid {
    /// One for each byte, as SentencePiece does.
    EachByte,
    /// One for each maximal part of a character, as Python and Rust do (Unicode 16, section 3.9).
    EachPart,
}

impl Tokenizer {
    /// Opens a tokenizer file, or the tokenizer of a folder: `tekken.json`, `*.model*` and `tokenizer.json` are looked
    /// for in this order, but beside a chat template `tokenizer.json` goes before a bare `*.model`. What a file is, its content says; its name gives the version of a SentencePiece file.
    ///
    /// A `tokenizer_config.json` beside a `tokenizer.json` is taken into account.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            return match file_in(path)? {
                Some(file) => Self::open(file),
                None => Err(Error::format(
                    path.display(),
                    "tokenizer",
                    "none",
                    "a file tekken.json, tokenizer.model[.v*] or tokenizer.json",
                )),
            };
        }
        let config = || {
            let config = path.with_file_name("tokenizer_config.json");
            if config.is_file() { read(&config).map(Some) } else { Ok(None) }
        };
        Self::from_file(&read(path)?, &path.display().to_string(), config)
    }

    /// Reads any of the files that [`Tokenizer::open`] opens. `config` is asked for the `tokenizer_config.json` of Hugging Face's.
    pub(crate) fn from_file(
        bytes: &[u8],
        file: &str,
        config: impl FnOnce() -> Result<Option<Vec<u8>>>,
    ) -> Result<Self> {
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return Self::from_sentencepiece(bytes, file);
        }
        match tekken::is_tekken(bytes) {
            true => Self::from_tekken(bytes, file),
            false => Self::from_hf(bytes, config()?.as_deref(), file),
        }
    }

    /// Which of the names in a folder is the tokenizer. `has_template` is asked whether the folder has a chat template.
    pub(crate) fn choose(
        names: &[String],
        has_template: impl FnOnce() -> Result<bool>,
    ) -> Result<Option<&String>> {
        // Where several versions of a SentencePiece file lie side by side, the newest.
        let sentencepiece = |name: &&String| {
            let base = name.split(".model").next().unwrap_or_default();
            base.contains("tokenizer")
                && TokenizerVersion::from_file_name(name).is_ok_and(|version| version.is_some())
        };
        let newest = names
            .iter()
            .filter(sentencepiece)
            .max_by_key(|name| (TokenizerVersion::from_file_name(name).ok().flatten(), name.as_str()));
        let tekken = names.iter().find(|name| *name == "tekken.json");
        let huggingface = names.iter().find(|name| *name == "tokenizer.json");
        // A bare `tokenizer.model` says no version: the template that was made with `tokenizer.json` is what the model was trained with.
        let bare = newest.is_some_and(|name| name.ends_with(".model"));
        if tekken.is_none() && bare && huggingface.is_some() && has_template()? {
            return Ok(huggingface);
        }
        Ok(tekken.or(newest).or(huggingface))
    }

    /// Reads Mistral's own JSON format. `file` is what errors call it.
    pub fn from_tekken(bytes: &[u8], file: &str) -> Result<Self> {
        tekken::load(bytes, file)
    }

    /// Reads a SentencePiece model of type BPE. `file` is what errors call it, and its suffix gives the version.
    pub fn from_sentencepiece(bytes: &[u8], file: &str) -> Result<Self> {
        sentencepiece::load(bytes, file)
    }

    /// Reads Hugging Face's `tokenizer.json` and, if there is one, `tokenizer_config.json`. `file` is what errors call
    /// the former.
    pub fn from_hf(tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>, file: &str) -> Result<Self> {
        huggingface::load(tokenizer_json, tokenizer_config, file)
    }

    /// Takes the vocabulary of a GGUF file. `file` is what errors call it.
    pub fn from_gguf(vocab: GgufVocab<'_>, file: &str) -> Result<Self> {
        gguf::load(vocab, file)
    }

    /// The tokens of a text, without a beginning-of-sequence token. The names of control tokens are text like any
    /// other, so nothing in the text of a user can steer the model.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_by(self.plain.as_ref(), text)
    }

    /// The tokens of a rendered template: the names of control tokens become those tokens. Not for text of users.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        self.encode_by(self.all.as_ref(), text)
    }

    /// The text of tokens. Bytes that are not UTF-8 become U+FFFD, as in the reference implementation of the format;
    /// with `skip_special`, control tokens give no text, else their names.
    ///
    /// [`Error::Argument`] if a token does not exist.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let mut decoder = self.decoder(skip_special);
        let mut text = String::new();
        for &id in ids {
            text.push_str(&decoder.push(id)?);
        }
        text.push_str(&decoder.finish());
        Ok(text)
    }

    /// Decodes token by token. [`StreamDecoder::new`] makes one that shares ownership of the tokenizer.
    pub fn decoder(&self, skip_special: bool) -> StreamDecoder<&Self> {
        StreamDecoder::new(self, skip_special)
    }

    /// The token that begins a sequence.
    pub fn bos(&self) -> Option<u32> {
        self.roles.bos
    }

    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.roles.eos
    }

    /// The token for text that the vocabulary cannot spell.
    pub fn unk(&self) -> Option<u32> {
        self.roles.unk
    }

    /// The token that fills up batches.
    pub fn pad(&self) -> Option<u32> {
        self.roles.pad
    }

    /// Whether the model wants [`Tokenizer::bos`] before a sequence.
    pub fn adds_bos(&self) -> bool {
        self.roles.adds_bos && self.roles.bos.is_some()
    }

    /// The control or added token of this name: `[INST]`, `<|im_end|>`.
    pub fn special(&self, name: &str) -> Option<u32> {
        self.specials.get(name).copied()
    }

    /// The number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes that a token adds to the text: none for a control token; `None` if there is no such token.
    pub fn token_bytes(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        if !self.vocab.contains(id) {
            return None;
        }
        Some(match (self.vocab.kind(id), &self.decoding.unknown) {
            (Kind::Control, _) => Cow::Borrowed(&[]),
            (Kind::Unknown, Some(surface)) => Cow::Borrowed(surface.as_bytes()),
            _ => Cow::Borrowed(self.vocab.bytes_of(id)),
        })
    }

    /// As [`Tokenizer::token_bytes`], for the first token of a text: the space that encoding puts before a text is gone.
    pub fn token_bytes_at_start(&self, id: u32) -> Option<Cow<'_, [u8]>> {
        let bytes = self.token_bytes(id)?;
        if !self.strips_first_space(self.vocab.kind(id)) || !bytes.starts_with(b" ") {
            return Some(bytes);
        }
        Some(Cow::Owned(bytes[1..].to_vec()))
    }

    /// Whether the first token of a text loses its leading space.
    fn strips_first_space(&self, kind: Kind) -> bool {
        self.decoding.strip_space && kind != Kind::Byte && kind != Kind::Unknown
    }

    /// A token for people to read: its text (a control token's name; U+FFFD for what is not UTF-8), or `<0xE2>` for a
    /// token of one byte; `None` if there is no such token.
    pub fn token_text(&self, id: u32) -> Option<Cow<'_, str>> {
        if !self.vocab.contains(id) {
            return None;
        }
        let bytes = self.vocab.bytes_of(id);
        Some(match self.vocab.kind(id) {
            Kind::Byte => Cow::Owned(bytes.iter().map(|byte| format!("<0x{byte:02X}>")).collect()),
            _ => String::from_utf8_lossy(bytes),
        })
    }

    /// Whether a token steers the model and is no text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocab.contains(id) && self.vocab.kind(id) == Kind::Control
    }

    /// The generation of Mistral's chat format that the file, or its name, declares.
    pub fn version(&self) -> Option<TokenizerVersion> {
        self.version
    }

    /// A further section of a Tekken file as it stands there: `image`, `audio`, `model_settings_builder`.
    pub fn section(&self, name: &str) -> Option<&serde_json::Value> {
        self.sections.get(name)
    }

    /// Whether the vocabulary writes a space as SentencePiece does, `▁`. Texts and tokens here have plain spaces.
    pub fn writes_metaspace(&self) -> bool {
        self.metaspace
    }

    fn check(&self, id: u32) -> Result<()> {
        if self.vocab.contains(id) {
            return Ok(());
        }
        Err(Error::argument("token", id, format!("a token id below {}", self.vocab.len())))
    }

    fn encode_by(&self, matcher: Option<&Matcher>, text: &str) -> Vec<u32> {
        let mut out = Vec::with_capacity(text.len() / 4 + 1);
        let mut scratch = Scratch::new();
        let mut before = Before::Nothing;
        let mut each = |fragment: Fragment<'_>| match fragment {
            Fragment::Text(text) => {
                self.encode_fragment(text, self.prefix.applies(before), &mut scratch, &mut out);
                before = Before::Text;
            }
            Fragment::Token(id) => {
                let control = self.vocab.kind(id) == Kind::Control;
                if !control && self.prefix.when == PrefixWhen::Start && before != Before::Text {
                    self.encode_fragment("", true, &mut scratch, &mut out);
                }
                before = if control { Before::Control } else { Before::Text };
                out.push(id);
            }
        };
        match matcher {
            Some(matcher) => matcher.split(text, &mut each),
            None if text.is_empty() => {}
            None => each(Fragment::Text(text)),
        }
        out
    }

    /// Appends the tokens of a text without special tokens.
    fn encode_fragment(&self, text: &str, prefix: bool, scratch: &mut Scratch, out: &mut Vec<u32>) {
        let mut text = Cow::Borrowed(text);
        if self.metaspace && text.contains(METASPACE) {
            text = Cow::Owned(text.replace(METASPACE, " "));
        }
        if prefix && !(self.prefix.unless_space && text.starts_with(' ')) {
            text = Cow::Owned([" ", &text].concat());
        }
        split::split(&self.splitters, &text, &mut |piece| {
            self.bpe.encode(&self.vocab, piece, scratch, out);
        });
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab.len())
            .field("version", &self.version)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// SentencePiece's way to write a space.
const METASPACE: char = '\u{2581}';

/// What stands before a fragment.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    Nothing,
    Control,
    Text,
}

impl Prefix {
    fn applies(self, before: Before) -> bool {
        match self.when {
            PrefixWhen::Never => false,
            PrefixWhen::First => before == Before::Nothing,
            PrefixWhen::Start => before != Before::Text,
            PrefixWhen::Fragment => true,
        }
    }
}

/// What a loader has read; [`Parts::assemble`] makes the tokenizer of it.
struct Parts {
    vocab: Vocab,
    bpe: Bpe,
    splitters: Vec<Splitter>,
    prefix: Prefix,
    metaspace: bool,
    /// Tokens to find in the text; control tokens and the unknown one only in templates.
    added: Vec<Added>,
    roles: Roles,
    decoding: Decoding,
    version: Option<TokenizerVersion>,
    sections: serde_json::Map<String, serde_json::Value>,
}

impl Parts {
    fn assemble(mut self, file: &str) -> Result<Tokenizer> {
        self.vocab.shrink();
        let specials = self.added.iter().map(|token| (token.text.as_str().into(), token.id)).collect();
        let is_plain = |token: &&Added| self.vocab.kind(token.id) == Kind::UserDefined;
        let plain = Matcher::new(self.added.iter().filter(is_plain).cloned().collect(), file)?;
        let all = Matcher::new(self.added, file)?;
        if self.splitters.is_empty() && self.bpe.unit == Unit::Char && words_are_independent(&self.vocab) {
            self.splitters.push(Splitter::Words);
        }
        Ok(Tokenizer {
            vocab: self.vocab,
            bpe: self.bpe,
            splitters: self.splitters,
            prefix: self.prefix,
            metaspace: self.metaspace,
            plain,
            all,
            specials,
            roles: self.roles,
            decoding: self.decoding,
            version: self.version,
            sections: self.sections,
        })
    }
}

/// Whether no merge can cross from a word to the space after it: see [`Splitter::Words`].
fn words_are_independent(vocab: &Vocab) -> bool {
    let crosses = |bytes: &[u8]| bytes.windows(2).any(|pair| pair[0] != b' ' && pair[1] == b' ');
    vocab.find(b" ").is_some()
        && (0..vocab.len() as u32).all(|id| vocab.kind(id) != Kind::Normal || !crosses(vocab.bytes_of(id)))
}

/// The byte that a token of the form `<0xE2>` stands for; `None` for any other text.
fn byte_token(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    // from_str_radix would also take a sign.
    let valid = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    if valid { u8::from_str_radix(hex, 16).ok() } else { None }
}

/// No byte has a token.
fn no_bytes() -> Box<[u32; 256]> {
    Box::new([NONE; 256])
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let size = std::fs::metadata(path).map_err(|error| Error::io(path, error))?.len();
    if size > MAX_FILE as u64 {
        return Err(Error::limit("size of a tokenizer file", size, MAX_FILE));
    }
    std::fs::read(path).map_err(|error| Error::io(path, error))
}

/// The tokenizer file of a folder.
fn file_in(folder: &Path) -> Result<Option<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| Error::io(folder, error))?.file_name();
        names.extend(name.into_string().ok());
    }
    let has_template = || {
        let has = |name: &str| names.iter().any(|other| other == name);
        if has("chat_template.jinja") || has("chat_template.json") || !has("tokenizer_config.json") {
            return Ok(has("chat_template.jinja") || has("chat_template.json"));
        }
        // What else is wrong with it, its reader says.
        let config = serde_json::from_slice(&read(&folder.join("tokenizer_config.json"))?);
        Ok(config.is_ok_and(|config: serde_json::Value| !config["chat_template"].is_null()))
    };
    Ok(Tokenizer::choose(&names, has_template)?.map(|name| folder.join(name)))
}
