//! The tokenizer that a checkpoint carries, opened.

use std::path::Path;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::tokenizer::{GgufVocab, MAX_FILE, Tokenizer};
use crate::weights::{self, Files, GgufMetadata, TokenizerSource};

/// Opens the tokenizer that `source` names.
pub fn open_tokenizer(source: &TokenizerSource, files: &Files) -> Result<Tokenizer> {
    let read = |path: &Path| files.read(path, MAX_FILE, "tokenizer file");
    match source {
        TokenizerSource::Tekken(path) | TokenizerSource::SentencePiece(path) => {
            Tokenizer::from_file(&read(path)?, &path.display().to_string(), || Ok(None))
        }
        TokenizerSource::HuggingFace { tokenizer_json, tokenizer_config } => {
            let config = tokenizer_config.as_deref().map(read).transpose()?;
            let file = tokenizer_json.display().to_string();
            Tokenizer::from_hf(&read(tokenizer_json)?, config.as_deref(), &file)
        }
        TokenizerSource::Gguf(metadata) => from_gguf(metadata),
    }
}

/// The tokenizer, and the chat template if there is one, of a tokenizer file, a GGUF file, or a folder with or without weights.
///
/// # Errors
/// As [`Tokenizer::open`], and those of a GGUF file.
pub fn tokenizer_alone(path: &Path) -> Result<(Tokenizer, Option<String>)> {
    let is_gguf = path.extension().is_some_and(|suffix| suffix == "gguf");
    if is_gguf {
        let checkpoint = weights::open(path, &mut Control::none())?;
        let source = checkpoint.tokenizer().ok_or_else(|| {
            Error::format(path.display(), "tokenizer.ggml.model", "no such key", "a vocabulary in the file")
        })?;
        return Ok((open_tokenizer(&source, &Files::on_disk())?, checkpoint.chat_template()));
    }
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    Ok((Tokenizer::open(path)?, weights::chat_template_beside(folder)?))
}

fn from_gguf(metadata: &GgufMetadata) -> Result<Tokenizer> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let texts = |name: &str| match metadata.strings(&key(name))? {
        Some(strings) => strings.collect::<Result<Vec<&str>>>(),
        None => Ok(Vec::new()),
    };
    let id = |name: &str| metadata.u32(&key(&format!("{name}_token_id")));
    let vocab = GgufVocab {
        model: metadata.str(&key("model"))?.unwrap_or_default(),
        pre: metadata.str(&key("pre"))?,
        tokens: texts("tokens")?,
        scores: metadata.f32s(&key("scores"))?.unwrap_or_default(),
        token_types: metadata.i32s(&key("token_type"))?.unwrap_or_default(),
        merges: texts("merges")?,
        bos: id("bos")?,
        eos: id("eos")?,
        unk: id("unknown")?,
        pad: id("padding")?,
        add_bos: metadata.bool(&key("add_bos_token"))?,
        add_space_prefix: metadata.bool(&key("add_space_prefix"))?,
    };
    Tokenizer::from_gguf(vocab, metadata.file())
}
