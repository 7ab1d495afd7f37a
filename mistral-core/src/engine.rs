//! A model that was opened: immutable, shared by its sessions.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Device;
use serde_json::{Value, json};

use crate::carried::{self, Alone, open_tokenizer};
use crate::completion::ChatStyle;
use crate::config::ModelConfig;
use crate::control::Control;
use crate::device;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::kernels::cpu::packed::arm_name;
use crate::kernels::cpu::pool::Pool;
use crate::loader::{self, LoadOptions};
use crate::quant::Format;
use crate::sampler::GENERATOR;
use crate::session::{Session, SessionOptions};
use crate::tokenizer::{Tokenizer, TokenizerVersion};
use crate::transformer::Transformer;
use crate::weights::{self, Checkpoint};

/// The most threads that a host may choose.
pub const MAX_THREADS: usize = 512;

/// How a model is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelOptions {
    /// `cpu` (the default) or `ndarray`.
    pub device: String,
    /// Threads of the engine; `None`: one for each processor that the process may use.
    pub threads: Option<usize>,
    /// Turn float weights into this block format while loading: `Q8_0`, `Q4_0` or `Q4_K`.
    pub quantize: Option<Format>,
    /// How activations meet block-quantised weights.
    pub activation: Activation,
    /// Bytes that weights and caches together may take; `None`: no bound.
    pub max_memory: Option<u64>,
    /// `false` opens the tokenizer alone.
    pub weights: bool,
    /// Mistral's chat format, where the files do not tell it.
    pub tokenizer_version: Option<TokenizerVersion>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            device: "cpu".to_owned(),
            threads: None,
            quantize: None,
            activation: Activation::Int8,
            max_memory: None,
            weights: true,
            tokenizer_version: None,
        }
    }
}

/// The transformer and its shape.
#[derive(Debug)]
pub struct Weights {
    /// The shape.
    pub config: ModelConfig,
    /// The layers on their device.
    pub transformer: Transformer,
    checkpoint: Checkpoint,
}

impl Weights {
    fn info(&self) -> Value {
        let ModelConfig { architecture, dim, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, .. } =
            &self.config;
        let mut formats = std::collections::BTreeMap::<&str, usize>::new();
        for (_, _, format) in self.checkpoint.names() {
            *formats.entry(format.name()).or_default() += 1;
        }
        let files =
            self.checkpoint.files().map(|f| json!({"path": f.path.display().to_string(), "bytes": f.bytes}));
        json!({
            "architecture": architecture, "dim": dim, "n_layers": self.config.layers.len(), "n_heads": n_heads,
            "n_kv_heads": n_kv_heads, "head_dim": head_dim, "hidden_dim": hidden_dim, "vocab_size": vocab_size,
            "max_context": self.config.max_context, "tied_embeddings": self.config.tied_embeddings,
            "files": files.collect::<Vec<_>>(), "bytes": self.checkpoint.total_bytes(), "formats": formats,
        })
    }
}

/// A model that was opened.
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    options: ModelOptions,
    device: Device,
    pool: Arc<Pool>,
    weights: Option<Weights>,
    tokenizer: Option<Arc<Tokenizer>>,
    chat_style: Option<ChatStyle>,
    eos_token_ids: Vec<u32>,
    memory: Arc<Memory>,
}

/// Bytes in use against the bound that the host set.
#[derive(Debug)]
struct Memory {
    used: AtomicU64,
    limit: u64,
}

/// Bytes that were admitted; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Model {
    /// Opens the checkpoint at `path`, a folder or a file.
    ///
    /// # Errors
    /// What is wrong with the path, the files or the options, by name; [`Error::Cancelled`].
    pub fn open(
        path: impl AsRef<Path>,
        options: &ModelOptions,
        control: &mut Control<'_>,
    ) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let device = device::open(&options.device)?;
        // Nothing runs on the threads of a tokenizer.
        let threads = if options.weights { options.threads } else { options.threads.or(Some(1)) };
        let pool = Arc::new(new_pool(threads)?);
        check_quantize(options.quantize)?;
        if !options.weights {
            return Self::open_tokenizer(path, options, device, pool);
        }
        let checkpoint = weights::open(path, control)?;
        let memory = Arc::new(Memory::new(options.max_memory));
        memory.take("weights", checkpoint.total_bytes())?;
        let load = LoadOptions {
            device: device.clone(),
            quantize: options.quantize,
            activation: options.activation,
        };
        let transformer = pool.scope(|| loader::load(&checkpoint, &load, control))?;
        let tokenizer =
            checkpoint.tokenizer().map(|source| open_tokenizer(&source)).transpose()?.map(Arc::new);
        let chat_style = tokenizer
            .as_deref()
            .map(|t| ChatStyle::choose(t, checkpoint.chat_template().as_deref(), options.tokenizer_version))
            .transpose()?;
        let mut eos_token_ids = checkpoint.eos_token_ids().to_vec();
        let eos = tokenizer.as_ref().and_then(|t| t.eos());
        eos_token_ids.extend(eos.filter(|eos| !eos_token_ids.contains(eos)));
        let config = checkpoint.config.clone();
        Ok(Arc::new(Self {
            path: path.to_owned(),
            options: options.clone(),
            device,
            pool,
            weights: Some(Weights { config, transformer, checkpoint }),
            tokenizer,
            chat_style,
            eos_token_ids,
            memory,
        }))
    }

    /// A tokenizer file, or the one of a folder or GGUF file, without weights: for counting and preparing tokens.
    fn open_tokenizer(
        path: &Path,
        options: &ModelOptions,
        device: Device,
        pool: Arc<Pool>,
    ) -> Result<Arc<Self>> {
        let Alone { tokenizer, chat_template, eos_token_ids } = carried::tokenizer_alone(path)?;
        let chat_style = ChatStyle::choose(&tokenizer, chat_template.as_deref(), options.tokenizer_version)?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            options: options.clone(),
            device,
            pool,
            weights: None,
            eos_token_ids,
            tokenizer: Some(Arc::new(tokenizer)),
            chat_style: Some(chat_style),
            memory: Arc::new(Memory::new(options.max_memory)),
        }))
    }

    /// What the model is and how it runs here, as JSON: shape, files, formats, device, tokenizer, chat format.
    pub fn info(&self) -> Value {
        let tokenizer = self.tokenizer.as_deref().map(|t| {
            let chat = match &self.chat_style {
                Some(ChatStyle::Mistral(format)) => Some(format!("mistral {}", format.version().as_str())),
                Some(ChatStyle::Template(_)) => Some("template".to_owned()),
                _ => None,
            };
            json!({
                "vocab_size": t.vocab_size(), "bos_token_id": t.bos(), "eos_token_ids": self.eos_token_ids,
                "version": t.version().map(TokenizerVersion::as_str), "chat_format": chat,
            })
        });
        json!({
            "path": self.path.display().to_string(),
            "device": self.options.device,
            "threads": self.pool.threads(),
            "kernels": arm_name(),
            "activation": if self.options.activation == Activation::Int8 { "int8" } else { "f32" },
            "generator": GENERATOR,
            "tokenizer": tokenizer,
            "weights": self.weights.as_ref().map(Weights::info),
        })
    }

    /// A new, empty timeline.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(self: &Arc<Self>, options: &SessionOptions) -> Result<Session> {
        Session::new(Arc::clone(self), options)
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model came without one.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::unsupported(
                "call on a model without a tokenizer",
                self.path.display(),
                "tokens; or a folder with tekken.json, tokenizer.model or tokenizer.json",
            )
        })
    }

    /// The weights.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the model was opened without them.
    pub fn weights(&self) -> Result<&Weights> {
        self.weights.as_ref().ok_or_else(|| {
            Error::unsupported(
                "call on a model opened without weights",
                self.path.display(),
                "encode, decode, chat_encode, chat_render, chat_parse, fim_encode",
            )
        })
    }

    pub(crate) fn chat_style(&self) -> Result<&ChatStyle> {
        self.tokenizer()?;
        self.chat_style.as_ref().ok_or_else(|| Error::Internal("a tokenizer without a chat style".to_owned()))
    }

    /// Where the model was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows of the output layer; the tokenizer's size where there are no weights.
    pub fn vocab_size(&self) -> usize {
        match (&self.weights, &self.tokenizer) {
            (Some(weights), _) => weights.config.vocab_size,
            (None, Some(tokenizer)) => tokenizer.vocab_size(),
            (None, None) => 0,
        }
    }

    /// The tokens that end an answer.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    /// Bytes of weights that one decoded token reads: every matrix once, and of a mixture the experts that a token uses.
    ///
    /// # Errors
    /// As [`Model::weights`].
    pub fn bytes_per_token(&self) -> Result<u64> {
        Ok(self.weights()?.transformer.bytes_per_token())
    }

    /// Threads of the engine.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    pub(crate) fn admit(&self, what: &str, bytes: u64) -> Result<Admission> {
        self.memory.take(what, bytes)?;
        Ok(Admission { memory: Arc::clone(&self.memory), bytes })
    }
}

impl Memory {
    fn new(limit: Option<u64>) -> Self {
        Self { used: AtomicU64::new(0), limit: limit.unwrap_or(u64::MAX) }
    }

    fn take(&self, what: &str, bytes: u64) -> Result<()> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.try_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => {
                let found = format!("{bytes} bytes for the {what} beside {used} in use");
                Err(Error::limit("max_memory", found, format!("{} bytes", self.limit)))
            }
        }
    }
}

fn new_pool(threads: Option<usize>) -> Result<Pool> {
    let threads = match threads {
        None => std::thread::available_parallelism().map_or(1, usize::from),
        Some(threads) if (1..=MAX_THREADS).contains(&threads) => threads,
        Some(threads) => return Err(Error::argument("threads", threads, format!("1 to {MAX_THREADS}"))),
    };
    Pool::new(threads).map_err(|e| Error::limit("threads", format!("{threads} ({e})"), "what the system has"))
}

fn check_quantize(format: Option<Format>) -> Result<()> {
    match format {
        None | Some(Format::Q8_0 | Format::Q4_0 | Format::Q4_K) => Ok(()),
        Some(other) => Err(Error::argument("quantize", other.name(), "q8_0, q4_0 or q4_k")),
    }
}
