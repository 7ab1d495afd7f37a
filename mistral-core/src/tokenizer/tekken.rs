//! Tekken, Mistral's JSON format: byte-pair encoding over bytes, merges in the order of the vocabulary, after a split
//! by a pattern (the `Tekkenizer` of `mistral-common`).

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::added::Added;
use super::bpe::{Bpe, Merges, Unit};
use super::split::{Behavior, Splitter};
use super::vocab::{Kind, MAX_TOKENS, Vocab};
use super::{Decoding, Invalid, Parts, Prefix, Roles, Tokenizer, TokenizerVersion, no_bytes};
use crate::error::{Error, Result};

/// The special tokens of files that list none, which was allowed up to v7.
const OLD_SPECIAL_TOKENS: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

#[derive(Deserialize)]
struct TekkenFile<'a> {
    #[serde(borrow)]
    config: Config<'a>,
    #[serde(borrow)]
    vocab: Vec<Token<'a>>,
    #[serde(borrow, default)]
    special_tokens: Option<Vec<SpecialToken<'a>>>,
    #[serde(default)]
    image: Option<Value>,
    #[serde(default)]
    multimodal: Option<Value>,
    #[serde(default)]
    audio: Option<Value>,
    #[serde(default)]
    model_settings_builder: Option<Value>,
}

#[derive(Deserialize)]
struct Config<'a> {
    #[serde(borrow)]
    pattern: Cow<'a, str>,
    default_vocab_size: usize,
    default_num_special_tokens: usize,
    #[serde(borrow)]
    version: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Token<'a> {
    rank: u64,
    #[serde(borrow)]
    token_bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
struct SpecialToken<'a> {
    rank: u64,
    #[serde(borrow)]
    token_str: Cow<'a, str>,
}

/// Whether a JSON file is Tekken's: its vocabulary, not a model, stands at the top level.
pub(super) fn is_tekken(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        #[serde(default)]
        vocab: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        model: Option<serde::de::IgnoredAny>,
    }
    // Published files begin with the configuration: most need no second pass.
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    if head.contains("\"default_num_special_tokens\"") {
        return true;
    }
    serde_json::from_slice::<Probe>(bytes).is_ok_and(|probe| probe.vocab.is_some() && probe.model.is_none())
}

pub(super) fn load(bytes: &[u8], file: &str) -> Result<Tokenizer> {
    let parsed: TekkenFile<'_> = serde_json::from_slice(bytes).map_err(|error| {
        let key = format!("line {} column {}", error.line(), error.column());
        Error::format(file, key, error, "a Tekken vocabulary")
    })?;
    let version = TokenizerVersion::parse(&parsed.config.version).map_err(|_| {
        let expected = TokenizerVersion::ALL.map(TokenizerVersion::as_str).join(", ");
        Error::format(file, "config.version", format!("`{}`", parsed.config.version), expected)
    })?;
    let num_special = check_sizes(&parsed, file)?;
    let mut vocab = Vocab::with_capacity(parsed.config.default_vocab_size);
    let added = push_special(&parsed, version, num_special, &mut vocab, file)?;
    let mut bpe = Bpe {
        merges: Merges::ById,
        unit: Unit::Byte,
        whole_piece_first: true,
        bytes: no_bytes(),
        unk: None,
        fuse_unk: false,
    };
    push_vocab(&parsed, num_special, &mut vocab, &mut bpe, file)?;
    let splitter =
        Splitter::pattern(&parsed.config.pattern, Behavior::Isolated, false).map_err(|reason| {
            Error::format(
                file,
                "config.pattern",
                reason,
                "a regular expression without look-around but `\\s+(?!\\S)`",
            )
        })?;
    let role = |name| added.iter().find(|token| token.text == name).map(|token| token.id);
    let roles =
        Roles { bos: role("<s>"), eos: role("</s>"), unk: role("<unk>"), pad: role("<pad>"), adds_bos: true };
    let parts = Parts {
        vocab,
        bpe,
        splitters: vec![splitter],
        prefix: Prefix::default(),
        metaspace: false,
        added,
        roles,
        decoding: Decoding { strip_space: false, invalid: Invalid::EachPart, unknown: None },
        version: Some(version),
        sections: sections(parsed, version, file)?,
    };
    parts.assemble(file)
}

/// Checks the sizes against each other and against what may be allocated; the number of special tokens.
fn check_sizes(parsed: &TekkenFile<'_>, file: &str) -> Result<usize> {
    let Config { default_vocab_size: size, default_num_special_tokens: special, .. } = parsed.config;
    if size > MAX_TOKENS {
        return Err(Error::format(file, "config.default_vocab_size", size, format!("at most {MAX_TOKENS}")));
    }
    if special > size {
        let expected = format!("at most the vocabulary's {size}");
        return Err(Error::format(file, "config.default_num_special_tokens", special, expected));
    }
    let tokens = size - special;
    if tokens > parsed.vocab.len() {
        return Err(Error::format(
            file,
            "vocab",
            format!("{} tokens", parsed.vocab.len()),
            format!("{tokens}"),
        ));
    }
    if tokens < 256 {
        return Err(Error::format(
            file,
            "vocab",
            format!("{tokens} tokens"),
            "at least the 256 single bytes",
        ));
    }
    Ok(special)
}

/// The special tokens, the first ids; `<SPECIAL_i>` where the file has no name.
fn push_special(
    parsed: &TekkenFile<'_>,
    version: TokenizerVersion,
    count: usize,
    vocab: &mut Vocab,
    file: &str,
) -> Result<Vec<Added>> {
    let mut names: Vec<Cow<'_, str>> = Vec::new();
    match &parsed.special_tokens {
        Some(listed) => {
            for (i, token) in listed.iter().enumerate() {
                if token.rank != i as u64 {
                    return Err(Error::format(file, format!("special_tokens[{i}].rank"), token.rank, i));
                }
                names.push(Cow::Borrowed(&token.token_str));
            }
        }
        None if version <= TokenizerVersion::V7 => names.extend(OLD_SPECIAL_TOKENS.map(Cow::Borrowed)),
        None => {
            let expected = format!("a list, which {version} must have");
            return Err(Error::format(file, "special_tokens", "nothing", expected));
        }
    }
    if names.len() > count {
        let expected = format!("at most config.default_num_special_tokens, {count}");
        return Err(Error::format(file, "special_tokens", format!("{} tokens", names.len()), expected));
    }
    names.extend((names.len()..count).map(|i| Cow::Owned(format!("<SPECIAL_{i}>"))));
    let mut seen = std::collections::HashSet::new();
    let mut added = Vec::with_capacity(count);
    for (i, name) in names.into_iter().enumerate() {
        let key = format!("special_tokens[{i}].token_str");
        let id = vocab.push(name.as_bytes(), Kind::Control, file, &key)?;
        if name.is_empty() || !seen.insert(name.clone()) {
            return Err(Error::format(file, key, format!("`{name}`"), "a name that no other token has"));
        }
        added.push(Added { text: name.into_owned(), id, ..Added::default() });
    }
    Ok(added)
}

/// The first tokens of the file's vocabulary, as many as the sizes leave, at rank + number of special tokens.
fn push_vocab(
    parsed: &TekkenFile<'_>,
    num_special: usize,
    vocab: &mut Vocab,
    bpe: &mut Bpe,
    file: &str,
) -> Result<()> {
    let mut bytes = Vec::new();
    let count = parsed.config.default_vocab_size - num_special;
    for (i, token) in parsed.vocab.iter().take(count).enumerate() {
        if token.rank != i as u64 {
            return Err(Error::format(file, format!("vocab[{i}].rank"), token.rank, i));
        }
        let key = || format!("vocab[{i}].token_bytes");
        bytes.clear();
        STANDARD
            .decode_vec(token.token_bytes.as_bytes(), &mut bytes)
            .map_err(|error| Error::format(file, key(), error, "base64"))?;
        if i < 256 && bytes != [i as u8] {
            return Err(Error::format(file, key(), format!("{bytes:02x?}"), format!("the byte [{i:02x}]")));
        }
        if bytes.is_empty() {
            return Err(Error::format(file, key(), "nothing", "at least one byte"));
        }
        let id = vocab.push(&bytes, Kind::Normal, file, "vocab")?;
        if let Err(other) = vocab.index(id) {
            let found = format!("the bytes of vocab[{}]", other as usize - num_special);
            return Err(Error::format(file, key(), found, "bytes that no other token has"));
        }
        if i < 256 {
            bpe.bytes[i] = id;
        }
    }
    Ok(())
}

/// The sections that the chat format needs, with the rules on which version may have which.
fn sections(parsed: TekkenFile<'_>, version: TokenizerVersion, file: &str) -> Result<Map<String, Value>> {
    let mut sections = Map::new();
    if let Some(old) = parsed.multimodal {
        if version > TokenizerVersion::V11 {
            return Err(Error::format(
                file,
                "multimodal",
                "a section",
                format!("`image` in its place from v13 on, this is {version}"),
            ));
        }
        sections.insert("image".into(), old);
    } else if let Some(image) = parsed.image {
        sections.insert("image".into(), image);
    }
    if let Some(settings) = parsed.model_settings_builder {
        if version < TokenizerVersion::V15 {
            return Err(Error::format(
                file,
                "model_settings_builder",
                "a section",
                format!("none before v15, this is {version}"),
            ));
        }
        sections.insert("model_settings_builder".into(), settings);
    }
    if let Some(audio) = parsed.audio {
        sections.insert("audio".into(), audio);
    }
    Ok(sections)
}
