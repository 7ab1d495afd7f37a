//! Checkpoints on disk: safetensors and GGUF, memory-mapped, under Mistral's canonical tensor names.
//!
//! [`open`] finds the files, reads their headers and the configuration, and checks that every tensor of the model is there with
//! its shape, and none besides. The bytes of the weights are not read: a [`TensorView`] points into the mapped file.
//!
//! Model files must not be changed while they are open; see [`TensorView::shared`].

mod catalog;
mod digest;
mod files;
mod folder;
mod fp8;
pub mod gguf;
mod mmap;
mod names;
mod resolve;
mod safetensors;
mod sidecar;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::Value;

pub use fp8::Fp8Scale;
pub use gguf::Metadata as GgufMetadata;
pub use sidecar::{ChatTemplate, TokenizerSource};

use crate::config::{ModelConfig, ParsedConfig, gguf as gguf_config, hf, params};
use crate::control::{Control, Progress};
use crate::error::{Error, Result};
use crate::quant::Format;
use catalog::Catalog;
#[cfg(test)]
pub(crate) use digest::STEP;
pub(crate) use digest::sha256;
pub(crate) use files::{Files, MAX_ENTRIES};
use folder::{Layout, Weights};
pub(crate) use mmap::Mapped;
use names::Naming;
use resolve::Entry;
use sidecar::{MAX_CONFIG_BYTES, Sidecar, read_json};

/// Opens the checkpoint in a folder, or in a file beside its configuration.
///
/// A folder must hold one model: safetensors with Hugging Face names (`config.json`), or with Mistral's own (`params.json`), or one
/// GGUF model. Where Mistral publishes its own files and a conversion of them in one folder, its own are taken. Other mixtures
/// are refused, as is everything that could run code.
///
/// # Errors
/// Each names the file and the key or tensor: a path that does not open, a damaged or truncated file, a model or tensor type that
/// is not supported, a missing or superfluous tensor, a wrong shape; [`Error::Cancelled`].
pub fn open(path: &Path, control: &mut Control<'_>) -> Result<Checkpoint> {
    open_from(&Files::on_disk(), path, control)
}

/// As [`open`], from `files`.
pub(crate) fn open_from(files: &Files, path: &Path, control: &mut Control<'_>) -> Result<Checkpoint> {
    let layout = folder::find(path, files)?;
    match &layout.weights {
        Weights::Gguf(paths) => open_gguf(path, paths, files, control),
        Weights::Safetensors { .. } => open_safetensors(path, &layout, files, control),
    }
}

/// What a checkpoint carries beside its weights, for those who do not want these.
#[derive(Clone, Debug)]
pub struct Carried {
    /// The tokenizer.
    pub tokenizer: Option<TokenizerSource>,
    /// The source of the default chat template.
    pub chat_template: Option<String>,
    /// The tokens that end an answer, as the configuration names them.
    pub eos_token_ids: Vec<u32>,
}

/// What the small files of `folder` say, or else the GGUF model in it.
///
/// # Errors
/// As [`open`], for the files that are read.
pub(crate) fn carried_by_folder(folder: &Path, files: &Files) -> Result<Carried> {
    let config = files.beside(folder, "config.json");
    let config = config.as_deref().map(|path| ConfigFile::read(path, files)).transpose()?;
    let sidecar = Sidecar::of_folder(folder, config.as_ref().map(|f| (f.name.as_str(), &f.value)), files)?;
    if sidecar.tokenizer.is_none()
        && let Ok(Layout { weights: Weights::Gguf(paths), .. }) = folder::find(folder, files)
        && let Some(first) = paths.first()
    {
        return carried_by_gguf(first, files);
    }
    Ok(sidecar.into())
}

/// What the metadata of a GGUF file, which may have no tensors, says.
///
/// # Errors
/// As [`open`], for what stands before the tensors.
pub(crate) fn carried_by_gguf(file: &Path, files: &Files) -> Result<Carried> {
    Ok(Sidecar::of_gguf(&gguf::metadata_of(file, files)?)?.into())
}

/// Whether a file begins as GGUF does.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn is_gguf(file: &Path, files: &Files) -> Result<bool> {
    gguf::has_magic(file, files)
}

impl From<Sidecar> for Carried {
    fn from(sidecar: Sidecar) -> Self {
        let chat_template = sidecar.chat_template();
        Self { tokenizer: sidecar.tokenizer, chat_template, eos_token_ids: sidecar.eos_token_ids }
    }
}

/// An open model: its configuration, and its tensors under canonical names (`layers.0.attention.wq.weight`).
#[derive(Debug)]
pub struct Checkpoint {
    /// The shape of the text model.
    pub config: ModelConfig,
    files: Vec<Mapped>,
    entries: BTreeMap<String, Entry>,
    sidecar: Sidecar,
    container: &'static str,
}

/// A file with weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Where it is.
    pub path: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
}

/// A tensor in a mapped file. The bytes may begin at any address: safetensors does not align them.
#[derive(Clone)]
pub struct TensorView<'a> {
    /// The name in the file; several tensors of a mixture may share one.
    pub name: String,
    /// The file.
    pub file: &'a Path,
    /// How the elements are stored.
    pub format: Format,
    /// Row-major, slowest dimension first (torch order): `[out, in]` for a matrix.
    pub shape: Vec<usize>,
    /// The elements, as long as `format` and `shape` say.
    pub bytes: &'a [u8],
    /// The scales of FP8 weights; always there for [`Format::F8E4M3`], never otherwise.
    pub scale: Option<Fp8Scale>,
    mapped: &'a Mapped,
    range: Range<usize>,
}

impl TensorView<'_> {
    /// The bytes of the tensor as an owner that keeps the map alive, without a copy.
    ///
    /// The file must not be truncated while any owner lives: reading lost pages of a map ends the process.
    pub fn shared(&self) -> Bytes {
        self.mapped.shared(self.range.clone())
    }
}

impl Checkpoint {
    /// The tensor of a canonical name.
    ///
    /// # Errors
    /// [`Error::Format`] if there is no such tensor, or if its shape is another.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let Some(entry) = self.entries.get(name) else {
            let file = self.files.first().map(Mapped::name).unwrap_or_default();
            return Err(Error::format(file, name, "no such tensor", format!("one of shape {shape:?}")));
        };
        let mapped = &self.files[entry.file];
        if entry.shape != shape {
            let found = format!("shape {:?}", entry.shape);
            return Err(Error::format(mapped.name(), &entry.source, found, format!("shape {shape:?}")));
        }
        Ok(TensorView {
            name: entry.source.clone(),
            file: mapped.path(),
            format: entry.format,
            shape: entry.shape.clone(),
            bytes: &mapped.bytes()[entry.range.clone()],
            scale: entry.scale.clone(),
            mapped,
            range: entry.range.clone(),
        })
    }

    /// Whether there is a tensor of this canonical name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The canonical names of all tensors of the text model with their shapes and storage formats, sorted by name.
    pub fn names(&self) -> impl Iterator<Item = (&str, &[usize], Format)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.shape.as_slice(), entry.format))
    }

    /// The files with weights.
    pub fn files(&self) -> impl Iterator<Item = FileInfo> {
        self.files
            .iter()
            .map(|file| FileInfo { path: file.path().to_owned(), bytes: file.bytes().len() as u64 })
    }

    /// `gguf` or `safetensors`.
    pub fn container(&self) -> &'static str {
        self.container
    }

    /// The sum of the lengths of the files with weights.
    pub fn total_bytes(&self) -> u64 {
        self.files().map(|file| file.bytes).sum()
    }

    /// Which tokenizer the checkpoint carries. In a folder Tekken is preferred to SentencePiece, that to Hugging Face's.
    pub fn tokenizer(&self) -> Option<TokenizerSource> {
        self.sidecar.tokenizer.clone()
    }

    /// The source of the default chat template, where the checkpoint carries one.
    pub fn chat_template(&self) -> Option<String> {
        self.sidecar.chat_template()
    }

    /// All chat templates that the checkpoint carries.
    pub fn chat_templates(&self) -> &[ChatTemplate] {
        &self.sidecar.chat_templates
    }

    /// The tokens that end an answer, as the configuration names them; the tokenizer may know more.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.sidecar.eos_token_ids
    }

    /// The text of the token that begins a sequence, for chat templates.
    pub fn bos_token(&self) -> Option<&str> {
        self.sidecar.bos_token.as_deref()
    }

    /// The text of the token that ends a sequence, for chat templates.
    pub fn eos_token(&self) -> Option<&str> {
        self.sidecar.eos_token.as_deref()
    }

    /// Lets the system drop the pages of a tensor that has been copied elsewhere. Reading it again is slow, not wrong.
    pub fn release(&self, view: &TensorView<'_>) {
        view.mapped.release(view.range.clone());
    }
}

fn open_safetensors(
    path: &Path,
    layout: &Layout,
    files: &Files,
    control: &mut Control<'_>,
) -> Result<Checkpoint> {
    let Weights::Safetensors { files: shards, index } = &layout.weights else {
        return Err(Error::Internal("not a safetensors layout".to_owned()));
    };
    announce(shards, files, control)?;
    let mut catalog = Catalog::default();
    for shard in shards {
        control.check()?;
        safetensors::add_file(&mut catalog, shard, files)?;
    }
    if let Some(index) = index {
        index.check(&catalog)?;
    }
    let naming = Naming::detect(&catalog);
    let config_json = layout.config_json.as_deref().map(|path| ConfigFile::read(path, files)).transpose()?;
    let config = match (naming, &layout.params_json, &config_json) {
        (Naming::Native, Some(params_json), _) | (_, Some(params_json), None) => {
            let file = ConfigFile::read(params_json, files)?;
            params::parse(&file.name, &file.value, resolve::evidence(&catalog, naming)?)?
        }
        (_, _, Some(file)) => hf::parse(&file.name, &file.value, resolve::evidence(&catalog, naming)?)?,
        (_, None, None) => {
            let found = "neither config.json nor params.json";
            return Err(Error::format(
                layout.folder.display(),
                "the folder",
                found,
                "the configuration of the model",
            ));
        }
    };
    let config_json = config_json.as_ref().map(|f| (f.name.as_str(), &f.value));
    let sidecar = Sidecar::of_folder(&layout.folder, config_json, files)?;
    finish(path, catalog, naming, config, sidecar, control)
}

fn open_gguf(path: &Path, paths: &[PathBuf], files: &Files, control: &mut Control<'_>) -> Result<Checkpoint> {
    announce(paths, files, control)?;
    let mut catalog = Catalog::default();
    let metadata = gguf::add_files(&mut catalog, paths, files, control)?;
    let factors = catalog.tensors.get(resolve::ROPE_FACTORS);
    let factors = factors.map(|tensor| catalog.floats(resolve::ROPE_FACTORS, tensor)).transpose()?;
    let config = gguf_config::parse(&*metadata, factors, resolve::evidence(&catalog, Naming::Gguf)?)?;
    finish(path, catalog, Naming::Gguf, config, Sidecar::of_gguf(&metadata)?, control)
}

/// Reports that loading begins: the bytes to come are those of the weights, of which none is read here.
fn announce(paths: &[PathBuf], files: &Files, control: &mut Control<'_>) -> Result<()> {
    let total = paths.iter().map(|path| files.len(path)).sum::<Result<u64>>()?;
    control.step(Progress { phase: "load", done: 0, total })
}

fn finish(
    path: &Path,
    catalog: Catalog,
    naming: Naming,
    config: ParsedConfig,
    sidecar: Sidecar,
    control: &Control<'_>,
) -> Result<Checkpoint> {
    let entries = resolve::resolve(&catalog, naming, &config, &path.display().to_string(), control)?;
    let vocab_size = config.model.vocab_size;
    if let Some(id) =
        sidecar.eos_token_ids.iter().find(|id| usize::try_from(**id).is_ok_and(|id| id >= vocab_size))
    {
        let expected = format!("token ids below {vocab_size}");
        return Err(Error::format(path.display(), "eos_token_id", id, expected));
    }
    let container = if naming == Naming::Gguf { "gguf" } else { "safetensors" };
    Ok(Checkpoint { config: config.model, files: catalog.files, entries, sidecar, container })
}

/// A configuration file that has been read.
struct ConfigFile {
    name: String,
    value: Value,
}

impl ConfigFile {
    fn read(path: &Path, files: &Files) -> Result<Self> {
        Ok(Self { name: path.display().to_string(), value: read_json(path, MAX_CONFIG_BYTES, files)? })
    }
}

#[cfg(test)]
mod tests;
