//! The tokenizer that a checkpoint carries, opened.

use std::path::Path;

use crate::error::{Error, Result};
use crate::tokenizer::{GgufVocab, MAX_FILE, Tokenizer};
use crate::weights::{self, Carried, Files, GgufMetadata, TokenizerSource};

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

/// A tokenizer without the weights that it is for.
pub struct Alone {
    pub tokenizer: Tokenizer,
    /// For tokenizers that declare no format of Mistral's.
    pub chat_template: Option<String>,
    /// The tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
}

/// The tokenizer of a tokenizer file, a GGUF file, or a folder with or without weights.
///
/// # Errors
/// As [`Tokenizer::open`], and those of a GGUF file.
pub fn tokenizer_alone(path: &Path, files: &Files) -> Result<Alone> {
    let is_folder = matches!(files.is_folder(path), Ok(true));
    let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
    let file = match is_folder {
        true => {
            let has_template = || Ok(weights::carried_by_folder(path, files)?.chat_template.is_some());
            Tokenizer::choose(&files.names(path)?, has_template)?.map(|name| path.join(name))
        }
        false => Some(path.to_owned()).filter(|_| !matches!(weights::is_gguf(path, files), Ok(true))),
    };
    let Some(file) = file else {
        let carried = match is_folder {
            true => weights::carried_by_folder(path, files)?,
            false => weights::carried_by_gguf(path, files)?,
        };
        let Some(source) = &carried.tokenizer else {
            let expected =
                "tekken.json, tokenizer.model[.v*], tokenizer.json, or a GGUF file with a vocabulary";
            return Err(Error::format(path.display(), "tokenizer", "none", expected));
        };
        return Ok(Alone::new(open_tokenizer(source, files)?, carried));
    };
    let read = |path: &Path| files.read(path, MAX_FILE, "tokenizer file");
    let config = || files.beside(folder, "tokenizer_config.json").as_deref().map(read).transpose();
    let tokenizer = Tokenizer::from_file(&read(&file)?, &file.display().to_string(), config)?;
    // The small files beside it speak of the models that bring a template.
    if tokenizer.version().is_some() {
        let eos_token_ids = tokenizer.eos().into_iter().collect();
        return Ok(Alone { tokenizer, chat_template: None, eos_token_ids });
    }
    Ok(Alone::new(tokenizer, weights::carried_by_folder(folder, files)?))
}

impl Alone {
    fn new(tokenizer: Tokenizer, carried: Carried) -> Self {
        let known = |id: &u32| (*id as usize) < tokenizer.vocab_size();
        let mut eos_token_ids: Vec<u32> = carried.eos_token_ids.into_iter().filter(known).collect();
        eos_token_ids.extend(tokenizer.eos().filter(|eos| !eos_token_ids.contains(eos)));
        Self { tokenizer, chat_template: carried.chat_template, eos_token_ids }
    }
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
