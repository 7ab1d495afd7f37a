//! SentencePiece models of type BPE: byte-pair encoding over characters, merges in the order of the pieces' scores
//! (Kudo and Richardson 2018, arXiv:1808.06226; `sentencepiece_model.proto`).

use super::added::Added;
use super::bpe::{Bpe, Merges, Unit};
use super::vocab::{Kind, NONE, Vocab};
use super::{
    Decoding, Invalid, METASPACE, Parts, Prefix, PrefixWhen, Roles, Tokenizer, TokenizerVersion, byte_token,
    no_bytes,
};
use crate::error::{Error, Result};

/// One entry of a vocabulary with scores.
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) score: f32,
    pub(super) kind: Kind,
}

/// What a vocabulary with scores becomes; also for those inside GGUF.
pub(super) struct Scored {
    pub(super) vocab: Vocab,
    pub(super) bpe: Bpe,
    pub(super) added: Vec<Added>,
}

pub(super) fn load(bytes: &[u8], file: &str) -> Result<Tokenizer> {
    let version = TokenizerVersion::from_file_name(file)?;
    let model = Model::parse(bytes, file)?;
    model.check(file)?;
    let unk = model.pieces.iter().position(|piece| piece.kind == Kind::Unknown).map(|id| id as u32);
    let Scored { vocab, mut bpe, added } = scored(&model.pieces, |i| format!("pieces[{i}]"), file)?;
    if !model.byte_fallback {
        bpe.bytes = no_bytes();
    }
    let Some(unk) = unk else {
        return Err(Error::format(file, "pieces", "no piece of type UNKNOWN", "one"));
    };
    bpe.unk = Some(unk);
    bpe.fuse_unk = true;
    let control = |name: &str| {
        added
            .iter()
            .find(|token| token.text == name && vocab.kind(token.id) == Kind::Control)
            .map(|token| token.id)
    };
    let roles = Roles {
        bos: control(model.bos),
        eos: control(model.eos),
        unk: Some(unk),
        pad: control(model.pad),
        adds_bos: true,
    };
    let when = if model.add_dummy_prefix { PrefixWhen::Start } else { PrefixWhen::Never };
    let parts = Parts {
        vocab,
        bpe,
        splitters: Vec::new(),
        prefix: Prefix { when, unless_space: false },
        metaspace: true,
        added,
        roles,
        decoding: Decoding {
            strip_space: model.add_dummy_prefix,
            invalid: Invalid::EachByte,
            unknown: Some(model.unk_surface.to_owned()),
        },
        version,
        sections: serde_json::Map::new(),
    };
    parts.assemble(file)
}

/// Builds the table of tokens and the order of merges. `key` names the entry of an index in errors.
pub(super) fn scored(pieces: &[Piece<'_>], key: impl Fn(usize) -> String, file: &str) -> Result<Scored> {
    let mut vocab = Vocab::with_capacity(pieces.len());
    let mut bytes = no_bytes();
    let mut added = Vec::new();
    for (i, piece) in pieces.iter().enumerate() {
        if !piece.score.is_finite() {
            return Err(Error::format(file, key(i), format!("a score of {}", piece.score), "a finite score"));
        }
        let text = piece.text.replace(METASPACE, " ");
        match piece.kind {
            Kind::Byte => {
                let Some(byte) = byte_token(piece.text) else {
                    return Err(Error::format(
                        file,
                        key(i),
                        format!("`{}`", piece.text),
                        "`<0x00>` to `<0xFF>`",
                    ));
                };
                let id = vocab.push(&[byte], Kind::Byte, file, "pieces")?;
                if std::mem::replace(&mut bytes[byte as usize], id) != NONE {
                    return Err(Error::format(
                        file,
                        key(i),
                        format!("`{}` again", piece.text),
                        "one of each byte",
                    ));
                }
            }
            Kind::Normal => {
                let id = vocab.push(text.as_bytes(), Kind::Normal, file, "pieces")?;
                // A piece with a plain space is out of reach: text has its spaces escaped before pieces are looked up.
                let reachable = !piece.text.is_empty() && !piece.text.contains(' ');
                if reachable && let Err(other) = vocab.index(id) {
                    let found = format!("`{}`, as {}", piece.text, key(other as usize));
                    return Err(Error::format(file, key(i), found, "text that no other piece has"));
                }
            }
            Kind::Control | Kind::UserDefined | Kind::Unknown => {
                let own = if piece.kind == Kind::UserDefined { &text } else { piece.text };
                let id = vocab.push(own.as_bytes(), piece.kind, file, "pieces")?;
                added.push(Added { text: own.to_owned(), id, ..Added::default() });
            }
            Kind::Unused => {
                vocab.push(text.as_bytes(), Kind::Unused, file, "pieces")?;
            }
        }
    }
    let merges = Merges::ByPriority(priorities(pieces));
    let bpe = Bpe { merges, unit: Unit::Char, whole_piece_first: false, bytes, unk: None, fuse_unk: true };
    Ok(Scored { vocab, bpe, added })
}

/// For each piece the place of its score among all scores, the highest first; equal scores share a place.
fn priorities(pieces: &[Piece<'_>]) -> Vec<u32> {
    let mut by_score: Vec<u32> = (0..pieces.len() as u32).collect();
    let score = |id: u32| pieces[id as usize].score;
    by_score.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    let mut priorities = vec![0; pieces.len()];
    let mut place = 0;
    for (i, &id) in by_score.iter().enumerate() {
        if i > 0 && score(by_score[i - 1]) != score(id) {
            place += 1;
        }
        priorities[id as usize] = place;
    }
    priorities
}

/// The fields of `ModelProto` that matter here, with the defaults of `sentencepiece_model.proto`.
struct Model<'a> {
    pieces: Vec<Piece<'a>>,
    model_type: u64,
    byte_fallback: bool,
    whitespace_as_suffix: bool,
    unk_surface: &'a str,
    bos: &'a str,
    eos: &'a str,
    pad: &'a str,
    has_character_map: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

impl<'a> Model<'a> {
    fn parse(bytes: &'a [u8], file: &str) -> Result<Self> {
        let mut model = Model {
            pieces: Vec::new(),
            model_type: 1,
            byte_fallback: false,
            whitespace_as_suffix: false,
            unk_surface: " \u{2047} ",
            bos: "<s>",
            eos: "</s>",
            pad: "<pad>",
            has_character_map: false,
            add_dummy_prefix: true,
            remove_extra_whitespaces: true,
            escape_whitespaces: true,
        };
        fields(bytes, file, "", &mut |field, value| {
            match (field, value) {
                (1, Value::Bytes(piece)) => {
                    let key = format!("pieces[{}]", model.pieces.len());
                    model.pieces.push(parse_piece(piece, file, &key)?);
                }
                (2, Value::Bytes(trainer)) => model.parse_trainer(trainer, file)?,
                (3, Value::Bytes(normalizer)) => model.parse_normalizer(normalizer, file)?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(model)
    }

    fn parse_trainer(&mut self, bytes: &'a [u8], file: &str) -> Result<()> {
        fields(bytes, file, "trainer_spec", &mut |field, value| {
            let text = |bytes| text(bytes, file, "trainer_spec");
            match (field, value) {
                (3, Value::Int(value)) => self.model_type = value,
                (24, Value::Int(value)) => self.whitespace_as_suffix = value != 0,
                (35, Value::Int(value)) => self.byte_fallback = value != 0,
                (44, Value::Bytes(value)) => self.unk_surface = text(value)?,
                (46, Value::Bytes(value)) => self.bos = text(value)?,
                (47, Value::Bytes(value)) => self.eos = text(value)?,
                (48, Value::Bytes(value)) => self.pad = text(value)?,
                _ => {}
            }
            Ok(())
        })
    }

    fn parse_normalizer(&mut self, bytes: &'a [u8], file: &str) -> Result<()> {
        fields(bytes, file, "normalizer_spec", &mut |field, value| {
            match (field, value) {
                (2, Value::Bytes(map)) => self.has_character_map = !map.is_empty(),
                (3, Value::Int(value)) => self.add_dummy_prefix = value != 0,
                (4, Value::Int(value)) => self.remove_extra_whitespaces = value != 0,
                (5, Value::Int(value)) => self.escape_whitespaces = value != 0,
                _ => {}
            }
            Ok(())
        })
    }

    /// Refuses what this library would encode differently from SentencePiece.
    fn check(&self, file: &str) -> Result<()> {
        let wrong = |key: &str, found: &str, expected: &str| Err(Error::format(file, key, found, expected));
        if self.pieces.is_empty() {
            return wrong("pieces", "none", "a SentencePiece vocabulary");
        }
        let kind = match self.model_type {
            2 => None,
            1 => Some("UNIGRAM"),
            3 => Some("WORD"),
            4 => Some("CHAR"),
            _ => Some("an unknown type"),
        };
        if let Some(found) = kind {
            return Err(Error::unsupported("SentencePiece model type", found, "BPE"));
        }
        if self.has_character_map {
            return wrong("normalizer_spec.precompiled_charsmap", "a character map", "none (`identity`)");
        }
        if self.remove_extra_whitespaces {
            return wrong("normalizer_spec.remove_extra_whitespaces", "true", "false");
        }
        if !self.escape_whitespaces {
            return wrong("normalizer_spec.escape_whitespaces", "false", "true");
        }
        if self.whitespace_as_suffix {
            return wrong("trainer_spec.treat_whitespace_as_suffix", "true", "false");
        }
        Ok(())
    }
}

fn parse_piece<'a>(bytes: &'a [u8], file: &str, key: &str) -> Result<Piece<'a>> {
    let mut piece = Piece { text: "", score: 0.0, kind: Kind::Normal };
    fields(bytes, file, key, &mut |field, value| {
        match (field, value) {
            (1, Value::Bytes(value)) => piece.text = text(value, file, key)?,
            (2, Value::Fixed32(value)) => piece.score = f32::from_bits(value),
            (3, Value::Int(value)) => piece.kind = kind(value, file, key)?,
            _ => {}
        }
        Ok(())
    })?;
    if piece.text.is_empty() {
        return Err(Error::format(file, key, "an empty piece", "text"));
    }
    Ok(piece)
}

/// The kind of a piece by its number in `sentencepiece_model.proto`, which GGUF shares.
pub(super) fn kind(number: u64, file: &str, key: &str) -> Result<Kind> {
    Ok(match number {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => return Err(Error::format(file, key, format!("type {number}"), "a type from 1 to 6")),
    })
}

fn text<'a>(bytes: &'a [u8], file: &str, key: &str) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| Error::format(file, key, error, "UTF-8"))
}

/// A value on the wire of Protocol Buffers.
enum Value<'a> {
    Int(u64),
    Fixed64,
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Calls `each` with the fields of a message (protobuf.dev/programming-guides/encoding). Allocates nothing and does not
/// recurse: nested messages are parsed by who knows their type.
fn fields<'a>(
    bytes: &'a [u8],
    file: &str,
    key: &str,
    each: &mut dyn FnMut(u64, Value<'a>) -> Result<()>,
) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let at = bytes.len() - rest.len();
        let Some((field, value)) = field(&mut rest) else {
            let key = format!("{key}{}byte {at}", if key.is_empty() { "" } else { " " });
            return Err(Error::format(
                file,
                key,
                "no whole field",
                "a Protocol Buffers message of a SentencePiece model",
            ));
        };
        each(field, value)?;
    }
    Ok(())
}

fn field<'a>(rest: &mut &'a [u8]) -> Option<(u64, Value<'a>)> {
    let tag = varint(rest)?;
    let value = match tag & 7 {
        0 => Value::Int(varint(rest)?),
        1 => {
            rest.split_off(..8)?;
            Value::Fixed64
        }
        2 => {
            let len = usize::try_from(varint(rest)?).ok()?;
            Value::Bytes(rest.split_off(..len)?)
        }
        5 => Value::Fixed32(u32::from_le_bytes(*rest.split_off(..4)?.first_chunk()?)),
        _ => return None,
    };
    (tag >> 3 != 0).then_some((tag >> 3, value))
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *rest.split_off_first()?;
        value |= u64::from(byte & 0x7F).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
