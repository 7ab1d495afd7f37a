//! The small files beside the weights: tokenizer, chat template, generation settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::files::Files;
use super::gguf::Metadata;
use crate::config::{Fields, describe};
use crate::error::{Error, Result};

/// Largest configuration file that is read.
pub(crate) const MAX_CONFIG_BYTES: usize = 16 << 20;

/// Where the tokenizer of a checkpoint is.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// `tekken.json`.
    Tekken(PathBuf),
    /// A SentencePiece model; the suffix of the name (`.v3`) is the version of Mistral's instruction format.
    SentencePiece(PathBuf),
    /// `tokenizer.json` of Hugging Face.
    HuggingFace {
        /// The tokenizer.
        tokenizer_json: PathBuf,
        /// Its settings, where the folder has them.
        tokenizer_config: Option<PathBuf>,
    },
    /// The vocabulary inside of a GGUF file (keys `tokenizer.ggml.*`).
    Gguf(Arc<Metadata>),
}

/// A chat template in the Jinja language, as the checkpoint carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    /// `default`, or the name in a list of templates (`tool_use`).
    pub name: String,
    /// The template.
    pub source: String,
}

/// What the small files say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sidecar {
    pub tokenizer: Option<TokenizerSource>,
    pub chat_templates: Vec<ChatTemplate>,
    pub eos_token_ids: Vec<u32>,
    pub bos_token: Option<String>,
    pub eos_token: Option<String>,
}

impl Sidecar {
    /// Reads the files of a folder. `config` is its `config.json`, where it has one.
    pub fn of_folder(folder: &Path, config: Option<(&str, &Value)>, files: &Files) -> Result<Self> {
        let beside = |name: &str| files.beside(folder, name);
        let mut sidecar = Self::default();
        if let Some((file, value)) = config {
            let root = Fields::root(file, value)?;
            sidecar.add_eos(&root)?;
            if let Some(text) = root.object("text_config")? {
                sidecar.add_eos(&text)?;
            }
        }
        if let Some(path) = beside("generation_config.json") {
            let (file, value) = (path.display().to_string(), read_json(&path, MAX_CONFIG_BYTES, files)?);
            sidecar.add_eos(&Fields::root(&file, &value)?)?;
        }
        if let Some(path) = beside("tokenizer_config.json") {
            let (file, value) = (path.display().to_string(), read_json(&path, MAX_CONFIG_BYTES, files)?);
            let root = Fields::root(&file, &value)?;
            sidecar.bos_token = special_token(&root, "bos_token")?;
            sidecar.eos_token = special_token(&root, "eos_token")?;
            sidecar.chat_templates = chat_templates(&root)?;
        }
        // Files of their own, the newer places, win over tokenizer_config.json.
        if let Some(path) = beside("chat_template.json") {
            let (file, value) = (path.display().to_string(), read_json(&path, MAX_CONFIG_BYTES, files)?);
            sidecar.chat_templates = chat_templates(&Fields::root(&file, &value)?)?;
        }
        if let Some(path) = beside("chat_template.jinja") {
            let source = read_text(&path, MAX_CONFIG_BYTES, files)?;
            sidecar.chat_templates.retain(|template| template.name != "default");
            sidecar.chat_templates.insert(0, ChatTemplate { name: "default".to_owned(), source });
        }
        sidecar.tokenizer = find_tokenizer(folder, !sidecar.chat_templates.is_empty(), files);
        Ok(sidecar)
    }

    /// The source of the default chat template.
    pub fn chat_template(&self) -> Option<String> {
        let default = self.chat_templates.iter().find(|template| template.name == "default");
        default.or(self.chat_templates.first()).map(|template| template.source.clone())
    }

    /// Reads the keys of a GGUF file.
    pub fn of_gguf(metadata: &Arc<Metadata>) -> Result<Self> {
        let mut sidecar = Self::default();
        if metadata.contains("tokenizer.ggml.model") {
            sidecar.tokenizer = Some(TokenizerSource::Gguf(Arc::clone(metadata)));
        }
        const TEMPLATE: &str = "tokenizer.chat_template";
        if let Some(source) = metadata.str(TEMPLATE)? {
            let template = ChatTemplate { name: "default".to_owned(), source: source.to_owned() };
            sidecar.chat_templates.push(template);
        }
        for key in metadata.keys() {
            if let Some(name) = key.strip_prefix(TEMPLATE).and_then(|rest| rest.strip_prefix('.'))
                && let Some(source) = metadata.str(key)?
            {
                sidecar
                    .chat_templates
                    .push(ChatTemplate { name: name.to_owned(), source: source.to_owned() });
            }
        }
        for key in
            ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"]
        {
            if let Some(id) = metadata.u32(key)? {
                sidecar.add_id(id);
            }
        }
        sidecar.bos_token = token_text(metadata, "tokenizer.ggml.bos_token_id")?;
        sidecar.eos_token = token_text(metadata, "tokenizer.ggml.eos_token_id")?;
        Ok(sidecar)
    }

    /// `eos_token_id`: a number or a list of them.
    fn add_eos(&mut self, fields: &Fields<'_>) -> Result<()> {
        const KEY: &str = "eos_token_id";
        let ids = match fields.get(KEY) {
            None => return Ok(()),
            Some(Value::Array(list)) => list.as_slice(),
            Some(single) => std::slice::from_ref(single),
        };
        for id in ids {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
            self.add_id(id.ok_or_else(|| fields.bad(KEY, "a token id or a list of them"))?);
        }
        Ok(())
    }

    fn add_id(&mut self, id: u32) {
        if !self.eos_token_ids.contains(&id) {
            self.eos_token_ids.push(id);
        }
    }
}

/// Reads a JSON file of at most `max` bytes.
pub(crate) fn read_json(path: &Path, max: usize, files: &Files) -> Result<Value> {
    let text = read_text(path, max, files)?;
    // The parser itself bounds the depth of nesting.
    serde_json::from_str(&text).map_err(|e| {
        let place = format!("line {} column {}", e.line(), e.column());
        Error::format(path.display(), place, "text that is not JSON", "JSON")
    })
}

fn read_text(path: &Path, max: usize, files: &Files) -> Result<String> {
    let bytes = files.read(path, max, "configuration file")?;
    String::from_utf8(bytes).map_err(|e| {
        let place = format!("byte {}", e.utf8_error().valid_up_to());
        Error::format(path.display(), place, "invalid UTF-8", "UTF-8 text")
    })
}

/// Tekken before SentencePiece before Hugging Face: the first two are what the model was trained with. A bare `tokenizer.model`, which says
/// no version, gives way to a chat template and its tokenizer.
fn find_tokenizer(folder: &Path, has_template: bool, files: &Files) -> Option<TokenizerSource> {
    // Newest instruction format first; the bare name means the first one, or is a copy of the one with a suffix.
    const SENTENCEPIECE: [&str; 7] = [
        "tokenizer.model.v7m1",
        "tokenizer.model.v7",
        "tokenizer.model.v3m1",
        "tokenizer.model.v3",
        "tokenizer.model.v2",
        "tokenizer.model.v1",
        "tokenizer.model",
    ];
    let beside = |name: &str| files.beside(folder, name);
    if let Some(path) = beside("tekken.json") {
        return Some(TokenizerSource::Tekken(path));
    }
    let huggingface = beside("tokenizer.json").map(|tokenizer_json| TokenizerSource::HuggingFace {
        tokenizer_json,
        tokenizer_config: beside("tokenizer_config.json"),
    });
    let named = |path: &PathBuf| !path.ends_with("tokenizer.model") || !has_template || huggingface.is_none();
    match SENTENCEPIECE.iter().find_map(|name| beside(name)).filter(named) {
        Some(path) => Some(TokenizerSource::SentencePiece(path)),
        None => huggingface,
    }
}

/// A string, or an object with the string under `content`.
fn special_token(root: &Fields<'_>, key: &str) -> Result<Option<String>> {
    match root.get(key) {
        Some(Value::Object(_)) => {
            Ok(root.object(key)?.map(|o| o.text("content")).transpose()?.flatten().map(str::to_owned))
        }
        _ => Ok(root.text(key)?.map(str::to_owned)),
    }
}

/// `chat_template`: a string, or a list of objects with `name` and `template`.
fn chat_templates(root: &Fields<'_>) -> Result<Vec<ChatTemplate>> {
    const KEY: &str = "chat_template";
    match root.get(KEY) {
        None => Ok(Vec::new()),
        Some(Value::String(source)) => {
            Ok(vec![ChatTemplate { name: "default".to_owned(), source: source.clone() }])
        }
        Some(Value::Array(list)) => list
            .iter()
            .map(|entry| match (entry["name"].as_str(), entry["template"].as_str()) {
                (Some(name), Some(source)) => {
                    Ok(ChatTemplate { name: name.to_owned(), source: source.to_owned() })
                }
                _ => {
                    Err(root.bad(KEY, format!("objects with name and template (one is {})", describe(entry))))
                }
            })
            .collect(),
        Some(_) => Err(root.bad(KEY, "a template or a list of named templates")),
    }
}

/// The text of the token whose id stands under `key`.
fn token_text(metadata: &Metadata, key: &str) -> Result<Option<String>> {
    let (Some(id), Some(tokens)) = (metadata.u32(key)?, metadata.strings("tokenizer.ggml.tokens")?) else {
        return Ok(None);
    };
    match usize::try_from(id).ok().and_then(|id| tokens.clone().nth(id)) {
        Some(text) => Ok(Some(text?.to_owned())),
        None => Err(Error::format(metadata.file(), key, id, format!("a token id below {}", tokens.len()))),
    }
}
