//! A model that was opened: immutable, shared by its sessions.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Device;

use crate::carried::open_tokenizer;
use crate::config::ModelConfig;
use crate::control::Control;
use crate::device;
use crate::error::{Error, Result};
use crate::kernels::Activation;
use crate::kernels::cpu::pool::Pool;
use crate::loader::{self, LoadOptions};
use crate::quant::Format;
use crate::session::{Session, SessionOptions};
use crate::tokenizer::Tokenizer;
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
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            device: "cpu".to_owned(),
            threads: None,
            quantize: None,
            activation: Activation::Int8,
            max_memory: None,
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
}

/// A model that was opened.
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    device_name: String,
    device: Device,
    pool: Arc<Pool>,
    weights: Option<Weights>,
    checkpoint: Option<Checkpoint>,
    tokenizer: Option<Arc<Tokenizer>>,
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
        let pool = Arc::new(new_pool(options.threads)?);
        check_quantize(options.quantize)?;
        let checkpoint = weights::open(path, control)?;
        let memory =
            Arc::new(Memory { used: AtomicU64::new(0), limit: options.max_memory.unwrap_or(u64::MAX) });
        memory.take("weights", checkpoint.total_bytes())?;
        let load = LoadOptions {
            device: device.clone(),
            quantize: options.quantize,
            activation: options.activation,
        };
        let transformer = pool.scope(|| loader::load(&checkpoint, &load, control))?;
        let tokenizer =
            checkpoint.tokenizer().map(|source| open_tokenizer(&source)).transpose()?.map(Arc::new);
        let mut eos_token_ids = checkpoint.eos_token_ids().to_vec();
        if let Some(eos) = tokenizer.as_ref().and_then(|t| t.eos()).filter(|eos| !eos_token_ids.contains(eos))
        {
            eos_token_ids.push(eos);
        }
        Ok(Arc::new(Self {
            path: path.to_owned(),
            device_name: options.device.clone(),
            device,
            pool,
            weights: Some(Weights { config: checkpoint.config.clone(), transformer }),
            checkpoint: Some(checkpoint),
            tokenizer,
            eos_token_ids,
            memory,
        }))
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
                "encode, decode, chat_encode",
            )
        })
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
