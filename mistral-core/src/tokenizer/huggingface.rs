//! Hugging Face's `tokenizer.json`, as far as it is byte-pair encoding: the parts that published Mistral and Llama files
//! use. Whatever would change the tokens and is not known here is refused, not ignored.
//!
//! Two differences to the crate `tokenizers` are deliberate: bytes that are not UTF-8 become one U+FFFD for each byte
//! (there, for each byte of the whole run of byte tokens, valid or not), and added tokens are looked for in the text
//! before normalisation even where they say `normalized`.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::added::Added;
use super::bpe::{Bpe, Merges, Unit};
use super::gguf::{ByteLevel, GPT2, resolve};
use super::split::{Behavior, Splitter};
use super::vocab::{Kind, MAX_TOKENS, Vocab};
use super::{
    Decoding, Invalid, METASPACE, Parts, Prefix, PrefixWhen, Roles, Tokenizer, byte_token, no_bytes,
};
use crate::error::{Error, Result};

/// The most ids without a token.
const MAX_HOLES: usize = 1 << 16;
/// The most steps of normalisation, or of pre-tokenisation, or of decoding.
const MAX_STEPS: usize = 16;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    #[serde(default)]
    decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    special: bool,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: HashMap<String, u32>,
    #[serde(default)]
    merges: Vec<Merge>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Joined(String),
    Pair(String, String),
}

pub(super) fn load(json: &[u8], config: Option<&[u8]>, file: &str) -> Result<Tokenizer> {
    let parsed: File = parse(json, file, "a tokenizer.json with a model of type BPE")?;
    let config: Value = match config {
        Some(bytes) => parse(bytes, "tokenizer_config.json", "a JSON object")?,
        None => Value::Null,
    };
    check_model(&parsed.model, file)?;
    let mut steps = Steps::default();
    steps.normalize(&parsed.normalizer, file)?;
    steps.pre_tokenize(&parsed.pre_tokenizer, file)?;
    let strip_space = steps.decode(&parsed.decoder, file)?;
    let ids = &parsed.model.vocab;
    let entries = entries(ids, &parsed.added_tokens, file)?;
    let (vocab, mut bpe) = match steps.byte_level {
        true => byte_level(&parsed.model, &entries, file)?,
        false => characters(&parsed.model, &entries, steps.metaspace, file)?,
    };
    bpe.unk = match &parsed.model.unk_token {
        Some(name) => Some(*ids.get(name).ok_or_else(|| {
            Error::format(file, "model.unk_token", format!("`{name}`"), "a token of the vocabulary")
        })?),
        None => None,
    };
    let roles = roles(&parsed, &config, &entries, bpe.unk)?;
    let parts = Parts {
        vocab,
        bpe,
        splitters: steps.splitters,
        prefix: steps.prefix,
        metaspace: steps.metaspace,
        added: parsed.added_tokens.into_iter().map(AddedToken::into_added).collect(),
        roles,
        decoding: Decoding {
            strip_space,
            invalid: if steps.byte_level { Invalid::EachPart } else { Invalid::EachByte },
            unknown: None,
        },
        version: None,
        sections: serde_json::Map::new(),
    };
    parts.assemble(file)
}

impl AddedToken {
    fn into_added(self) -> Added {
        let Self { id, content: text, single_word, lstrip, rstrip, .. } = self;
        Added { text, id, lstrip, rstrip, single_word }
    }
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], file: &str, expected: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let key = format!("line {} column {}", error.line(), error.column());
        Error::format(file, key, error, expected)
    })
}

fn check_model(model: &Model, file: &str) -> Result<()> {
    if let Some(kind) = &model.kind
        && kind != "BPE"
    {
        return Err(Error::unsupported("tokenizer model", format!("`{kind}`"), "BPE"));
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        return Err(Error::format(file, "model.dropout", "a number", "null: encoding is deterministic"));
    }
    for (key, value) in [
        ("continuing_subword_prefix", &model.continuing_subword_prefix),
        ("end_of_word_suffix", &model.end_of_word_suffix),
    ] {
        if let Some(value) = value
            && !value.is_empty()
        {
            return Err(Error::format(file, format!("model.{key}"), format!("`{value}`"), "null"));
        }
    }
    Ok(())
}

/// A place in the table of tokens.
#[derive(Clone, Copy)]
struct Entry<'a> {
    text: &'a str,
    kind: Kind,
}

/// The tokens by id: those of the model, and over them the added ones. Ids without a token are empty and unused.
fn entries<'a>(ids: &'a HashMap<String, u32>, added: &'a [AddedToken], file: &str) -> Result<Vec<Entry<'a>>> {
    let count = ids.len() + added.len();
    let largest = ids.values().copied().chain(added.iter().map(|token| token.id)).max().unwrap_or(0) as usize;
    if ids.is_empty() || largest >= (count + MAX_HOLES).min(MAX_TOKENS) {
        let expected = "1 to 4194304 tokens with ids that leave few gaps";
        return Err(Error::format(
            file,
            "model.vocab",
            format!("{count} tokens, largest id {largest}"),
            expected,
        ));
    }
    let mut entries = vec![Entry { text: "", kind: Kind::Unused }; largest + 1];
    for (text, &id) in ids {
        let entry = &mut entries[id as usize];
        if entry.kind != Kind::Unused {
            let found = format!("{id} for `{text}` and `{}`", entry.text);
            return Err(Error::format(file, "model.vocab", found, "one token for each id"));
        }
        *entry = Entry { text, kind: Kind::Normal };
    }
    for (i, token) in added.iter().enumerate() {
        let entry = &mut entries[token.id as usize];
        if entry.kind != Kind::Unused && entry.text != token.content {
            let found = format!("`{}` for id {}, which is `{}`", token.content, token.id, entry.text);
            return Err(Error::format(file, format!("added_tokens[{i}]"), found, "one token for each id"));
        }
        let kind = if token.special { Kind::Control } else { Kind::UserDefined };
        *entry = Entry { text: &token.content, kind };
    }
    Ok(entries)
}

/// A vocabulary in GPT-2's alphabet of bytes.
fn byte_level(model: &Model, entries: &[Entry<'_>], file: &str) -> Result<(Vocab, Bpe)> {
    let mut table = ByteLevel::new(entries.len());
    for entry in entries {
        table.push(entry.text, entry.kind, file, "model.vocab")?;
    }
    let (vocab, merges, bytes) = table.finish(merges(model), |i| format!("model.merges[{i}]"), file)?;
    let whole_piece_first = model.ignore_merges;
    Ok((
        vocab,
        Bpe { merges, unit: Unit::Byte, whole_piece_first, bytes, unk: None, fuse_unk: model.fuse_unk },
    ))
}

/// A vocabulary of characters.
fn characters(model: &Model, entries: &[Entry<'_>], metaspace: bool, file: &str) -> Result<(Vocab, Bpe)> {
    let mut vocab = Vocab::with_capacity(entries.len());
    // Where the token of a byte is missing, characters with that byte in them become `unk`.
    let mut bytes = no_bytes();
    let mut ids = HashMap::with_capacity(entries.len());
    for entry in entries {
        if let (Kind::Normal, true, Some(byte)) = (entry.kind, model.byte_fallback, byte_token(entry.text)) {
            bytes[byte as usize] = vocab.push(&[byte], Kind::Byte, file, "model.vocab")?;
            continue;
        }
        if entry.kind != Kind::Normal {
            vocab.push(entry.text.as_bytes(), entry.kind, file, "model.vocab")?;
            continue;
        }
        let text = if metaspace { entry.text.replace(METASPACE, " ") } else { entry.text.to_owned() };
        let id = vocab.push(text.as_bytes(), Kind::Normal, file, "model.vocab")?;
        ids.insert(entry.text, id);
        // As in SentencePiece, text has its spaces escaped before it is looked up.
        let out_of_reach = text.is_empty() || (metaspace && entry.text.contains(' '));
        if !out_of_reach && let Err(other) = vocab.index(id) {
            let found = format!("`{}` as tokens {other} and {id}", entry.text);
            return Err(Error::format(file, "model.vocab", found, "one id for each token"));
        }
    }
    let find = |text: &str| ids.get(text).copied();
    let pairs = resolve(merges(model), find, |i| format!("model.merges[{i}]"), file)?;
    let bpe = Bpe {
        merges: Merges::Pairs(pairs),
        unit: Unit::Char,
        whole_piece_first: model.ignore_merges,
        bytes,
        unk: None,
        fuse_unk: model.fuse_unk,
    };
    Ok((vocab, bpe))
}

fn merges(model: &Model) -> impl ExactSizeIterator<Item = std::result::Result<(&str, &str), usize>> {
    model.merges.iter().enumerate().map(|(i, merge)| match merge {
        Merge::Pair(left, right) => Ok((left.as_str(), right.as_str())),
        Merge::Joined(both) => both.split_once(' ').ok_or(i),
    })
}

/// What the components of a file come to.
#[derive(Default)]
struct Steps {
    prefix: Prefix,
    metaspace: bool,
    byte_level: bool,
    splitters: Vec<Splitter>,
}

impl Steps {
    fn normalize(&mut self, component: &Value, file: &str) -> Result<()> {
        for (step, kind) in flatten(component, "normalizers", "normalizer", file)? {
            match kind {
                "Prepend" if text(step, "prepend") == Some("▁") => {
                    self.prefix = Prefix { when: PrefixWhen::Fragment, unless_space: false };
                }
                "Replace" if replaces(step, " ", "▁") => self.metaspace = true,
                _ => {
                    return Err(unsupported("normalizer", step, "Prepend `▁`, Replace ` ` by `▁`, Sequence"));
                }
            }
        }
        if self.prefix.when != PrefixWhen::Never && !self.metaspace {
            return Err(unsupported(
                "normalizer",
                component,
                "Prepend only together with Replace ` ` by `▁`",
            ));
        }
        Ok(())
    }

    fn pre_tokenize(&mut self, component: &Value, file: &str) -> Result<()> {
        for (i, (step, kind)) in
            flatten(component, "pretokenizers", "pre_tokenizer", file)?.into_iter().enumerate()
        {
            match kind {
                "ByteLevel" => self.byte_level_step(step, i)?,
                "Metaspace" => self.metaspace_step(step, i)?,
                "Split" => {
                    let invert = flag(step, "invert", false);
                    self.split(step, &split_pattern(step)?, text(step, "behavior"), invert)?;
                }
                "Digits" => {
                    let pattern = if flag(step, "individual_digits", false) { r"\p{N}" } else { r"\p{N}+" };
                    self.split(step, pattern, Some("Isolated"), false)?;
                }
                "Punctuation" => {
                    let behavior = text(step, "behavior").unwrap_or("Isolated");
                    self.split(step, r"[\p{P}!-/:-@\[-`{-~]", Some(behavior), false)?;
                }
                _ => {
                    let known = "ByteLevel, Metaspace, Split, Digits, Punctuation, Sequence";
                    return Err(unsupported("pre_tokenizer", step, known));
                }
            }
        }
        if self.byte_level && self.metaspace {
            return Err(unsupported("pre_tokenizer", component, "ByteLevel or `▁` for spaces, not both"));
        }
        Ok(())
    }

    fn byte_level_step(&mut self, step: &Value, index: usize) -> Result<()> {
        self.byte_level = true;
        if flag(step, "add_prefix_space", true) {
            if index > 0 {
                return Err(unsupported("pre_tokenizer", step, "add_prefix_space in the first step only"));
            }
            self.prefix = Prefix { when: PrefixWhen::Fragment, unless_space: true };
        }
        if flag(step, "use_regex", true) {
            self.split(step, GPT2, Some("Isolated"), false)?;
        }
        Ok(())
    }

    fn metaspace_step(&mut self, step: &Value, index: usize) -> Result<()> {
        let known =
            "Metaspace as the first step, with replacement `▁` and prepend_scheme always, first or never";
        let scheme = match text(step, "prepend_scheme") {
            Some(scheme) => scheme,
            // The form of older files.
            None if flag(step, "add_prefix_space", true) => "always",
            None => "never",
        };
        let when = match scheme {
            "always" => PrefixWhen::Fragment,
            "first" => PrefixWhen::First,
            "never" => PrefixWhen::Never,
            _ => return Err(unsupported("pre_tokenizer", step, known)),
        };
        if index > 0 || text(step, "replacement").is_some_and(|replacement| replacement != "▁") {
            return Err(unsupported("pre_tokenizer", step, known));
        }
        self.metaspace = true;
        if when != PrefixWhen::Never {
            self.prefix = Prefix { when, unless_space: true };
        }
        if flag(step, "split", true) {
            self.split(step, " ", Some("MergedWithNext"), false)?;
        }
        Ok(())
    }

    fn split(&mut self, step: &Value, pattern: &str, behavior: Option<&str>, invert: bool) -> Result<()> {
        let behavior = match behavior {
            Some("Isolated") => Behavior::Isolated,
            Some("Removed") => Behavior::Removed,
            Some("MergedWithPrevious") => Behavior::MergedWithPrevious,
            Some("MergedWithNext") => Behavior::MergedWithNext,
            _ => {
                let known = "behavior Isolated, Removed, MergedWithPrevious or MergedWithNext";
                return Err(unsupported("pre_tokenizer", step, known));
            }
        };
        // The text that is split has plain spaces.
        let pattern = if self.metaspace { pattern.replace(METASPACE, " ") } else { pattern.to_owned() };
        let splitter = Splitter::pattern(&pattern, behavior, invert).map_err(|reason| {
            Error::unsupported(
                "pattern in pre_tokenizer",
                reason,
                "expressions without look-around but a final `\\s+(?!\\S)`",
            )
        })?;
        self.splitters.push(splitter);
        Ok(())
    }

    /// Checks the decoder against the vocabulary's form; whether it strips the first space.
    fn decode(&self, component: &Value, file: &str) -> Result<bool> {
        let mut strip = false;
        let (mut bytes, mut spaces) = (false, false);
        for (step, kind) in flatten(component, "decoders", "decoder", file)? {
            match kind {
                "ByteLevel" => bytes = true,
                "Metaspace" => {
                    spaces = true;
                    strip =
                        text(step, "prepend_scheme") != Some("never") && flag(step, "add_prefix_space", true);
                }
                "Replace" if replaces(step, "▁", " ") => spaces = true,
                "ByteFallback" | "Fuse" => {}
                "Strip" if is_strip_of_one_space(step) => strip = true,
                _ => {
                    let known = "ByteLevel, Metaspace, Replace `▁` by ` `, ByteFallback, Fuse, Strip of one space, Sequence";
                    return Err(unsupported("decoder", step, known));
                }
            }
        }
        // Without a decoder, `tokenizers` joins tokens by spaces, which no model of this kind wants.
        if !component.is_null() && (bytes != self.byte_level || spaces != self.metaspace) {
            return Err(unsupported("decoder", component, "the inverse of normalizer and pre_tokenizer"));
        }
        Ok(strip)
    }
}

/// The steps of a component with their types, nested sequences laid out in order.
fn flatten<'a>(component: &'a Value, list: &str, key: &str, file: &str) -> Result<Vec<(&'a Value, &'a str)>> {
    let mut steps = Vec::new();
    let mut open = vec![component];
    while let Some(step) = open.pop() {
        if step.is_null() {
            continue;
        }
        let Some(kind) = text(step, "type") else {
            return Err(Error::format(file, key, "no `type`", "a component with a type"));
        };
        match (kind, step.get(list).and_then(Value::as_array)) {
            ("Sequence", Some(inner)) => open.extend(inner.iter().rev()),
            ("Sequence", None) => {
                return Err(Error::format(file, key, format!("no `{list}`"), "a list of steps"));
            }
            _ => steps.push((step, kind)),
        }
        if steps.len() > MAX_STEPS {
            return Err(Error::format(file, key, "more steps", format!("at most {MAX_STEPS}")));
        }
    }
    Ok(steps)
}

fn split_pattern(step: &Value) -> Result<String> {
    let pattern = &step["pattern"];
    if let Some(regex) = text(pattern, "Regex") {
        return Ok(regex.to_owned());
    }
    match text(pattern, "String") {
        Some(literal) => Ok(literal.chars().map(|c| format!("\\x{{{:x}}}", u32::from(c))).collect()),
        None => Err(unsupported("pre_tokenizer", step, "a pattern `Regex` or `String`")),
    }
}

fn replaces(step: &Value, from: &str, to: &str) -> bool {
    text(&step["pattern"], "String") == Some(from) && text(step, "content") == Some(to)
}

fn is_strip_of_one_space(step: &Value) -> bool {
    text(step, "content") == Some(" ")
        && step["start"].as_u64() == Some(1)
        && step["stop"].as_u64() == Some(0)
}

fn text<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

fn flag(object: &Value, key: &str, default: bool) -> bool {
    object.get(key).and_then(Value::as_bool).unwrap_or(default)
}

fn unsupported(what: &str, step: &Value, supported: &str) -> Error {
    let mut found = step.to_string();
    if found.len() > 200 {
        found.truncate(found.floor_char_boundary(200));
        found.push('…');
    }
    Error::unsupported(what, found, supported)
}

/// Roles by the names in `tokenizer_config.json`, else by the usual names.
fn roles(parsed: &File, config: &Value, entries: &[Entry<'_>], unk: Option<u32>) -> Result<Roles> {
    let named = |name: &str| entries.iter().position(|entry| entry.text == name).map(|id| id as u32);
    let role = |key: &str, usual: &str| -> Result<Option<u32>> {
        let value = &config[key];
        let Some(name) = value.as_str().or_else(|| text(value, "content")) else { return Ok(named(usual)) };
        let unknown =
            || Error::format("tokenizer_config.json", key, format!("`{name}`"), "a token of the vocabulary");
        named(name).map(Some).ok_or_else(unknown)
    };
    let first = first_of_template(&parsed.post_processor);
    let bos = match first.and_then(named) {
        Some(id) if config["bos_token"].is_null() => Some(id),
        _ => role("bos_token", "<s>")?,
    };
    let adds_bos = config["add_bos_token"].as_bool().unwrap_or(first.is_some());
    let eos = role("eos_token", "</s>")?;
    let pad = role("pad_token", "<pad>")?;
    let unk = match unk {
        Some(id) => Some(id),
        None => role("unk_token", "<unk>")?,
    };
    Ok(Roles { bos, eos, unk, pad, adds_bos })
}

/// The name of the token that a template puts before the text.
fn first_of_template(processor: &Value) -> Option<&str> {
    let steps = match processor.get("processors").and_then(Value::as_array) {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(processor),
    };
    let template = steps.iter().find(|step| text(step, "type") == Some("TemplateProcessing"))?;
    text(template.get("single")?.get(0)?.get("SpecialToken")?, "id")
}
