//! A model that was opened: immutable, shared by its sessions.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::audit::{Attached, AuditLog, AuditOptions, Subject};
use crate::carried::{self, Alone, open_tokenizer};
use crate::completion::ChatStyle;
use crate::config::ModelConfig;
use crate::constraint::TokenTable;
use crate::control::Control;
use crate::determinism;
use crate::device::{self, Opened};
use crate::error::{Error, Result};
use crate::kernels::cpu::packed::{LargePages, arm_name};
use crate::kernels::cpu::pool::Pool;
use crate::kernels::{Activation, CacheType};
use crate::limits::Limits;
use crate::loader::{self, LoadOptions};
use crate::placement::{self, Need};
use crate::provenance::{Report, Verified, VerifyOptions, hex};
use crate::quant::Format;
use crate::sampler::GENERATOR;
use crate::session::{DEFAULT_CONTEXT, PREFILL_CHUNK, Session, SessionOptions};
use crate::tokenizer::{Tokenizer, TokenizerVersion};
use crate::transformer::Transformer;
use crate::weights::{self, Checkpoint, Files};

/// The most threads that a host may choose.
pub const MAX_THREADS: usize = 512;

/// How a model is opened.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelOptions {
    /// `cpu` (the default), or another of [`device::open`].
    pub device: String,
    /// How many of a model's layers go to a device with memory of its own, the last ones first, the others to the processor; `None`: as many
    /// as fit.
    pub gpu_layers: Option<usize>,
    /// Threads of the engine; `None`: one for each processor that the process may use.
    pub threads: Option<usize>,
    /// Turn float weights into this block format while loading: `Q8_0`, `Q4_0` or `Q4_K`.
    pub quantize: Option<Format>,
    /// How activations meet block-quantised weights.
    pub activation: Activation,
    /// Bytes that weights and caches together may take; `None`: no bound.
    pub max_memory: Option<u64>,
    /// Bytes that the files with weights may have; `None`: no bound.
    pub max_model_bytes: Option<u64>,
    /// Sessions that there may be at a time, those that a chat or an embedding makes for itself included; `None`: no bound.
    pub max_sessions: Option<usize>,
    /// Bounds on each call on the model and on its sessions; not on opening it.
    pub limits: Limits,
    /// Promise that the same input gives the same tokens ([`crate::determinism`]), and test it before the model is used.
    pub reproducible: bool,
    /// Keep the keys and values of sessions out of the swap: a session that the system does not let be locked is refused.
    pub lock_memory: bool,
    /// On Linux, move the weights to large pages once the model is open, on a thread of its own: tokens take longer while that goes on, and are sooner
    /// there afterwards.
    pub large_pages: bool,
    /// `false` opens the tokenizer alone.
    pub weights: bool,
    /// Mistral's chat format, where the files do not tell it.
    pub tokenizer_version: Option<TokenizerVersion>,
    /// Open the model only if its files are those that a manifest or a signature vouches for; and then read it from what was verified.
    pub verify: Option<VerifyOptions>,
    /// Write down what runs, on the model and on sessions that have no log of their own.
    pub audit: Option<AuditOptions>,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            device: "cpu".to_owned(),
            gpu_layers: None,
            threads: None,
            quantize: None,
            activation: Activation::Int8,
            max_memory: None,
            max_model_bytes: None,
            max_sessions: None,
            limits: Limits::default(),
            reproducible: false,
            lock_memory: false,
            large_pages: true,
            weights: true,
            tokenizer_version: None,
            verify: None,
            audit: None,
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
    /// Of the files, once someone has asked for them.
    digests: OnceLock<Vec<[u8; 32]>>,
    large_pages: Option<LargePages>,
}

impl Weights {
    fn info(&self) -> Value {
        let ModelConfig { architecture, dim, n_heads, n_kv_heads, head_dim, hidden_dim, vocab_size, .. } =
            &self.config;
        let mut formats = std::collections::BTreeMap::<&str, usize>::new();
        for (_, _, format) in self.checkpoint.names() {
            *formats.entry(format.name()).or_default() += 1;
        }
        let digests = self.digests.get();
        let (moved, of) = self.large_pages.as_ref().map_or((0, 0), LargePages::progress);
        let files = self.checkpoint.files().enumerate().map(|(i, f)| {
            let sha256 = digests.map(|all| hex(&all[i]));
            json!({"path": f.path.display().to_string(), "bytes": f.bytes, "sha256": sha256})
        });
        json!({
            "architecture": architecture, "dim": dim, "n_layers": self.config.layers.len(), "n_heads": n_heads,
            "n_kv_heads": n_kv_heads, "head_dim": head_dim, "hidden_dim": hidden_dim, "vocab_size": vocab_size,
            "max_context": self.config.max_context, "tied_embeddings": self.config.tied_embeddings,
            "files": files.collect::<Vec<_>>(), "bytes": self.checkpoint.total_bytes(), "formats": formats,
            "large_pages": {"bytes": moved, "of": of},
        })
    }
}

/// A model that was opened.
#[derive(Debug)]
pub struct Model {
    path: PathBuf,
    options: ModelOptions,
    device: Opened,
    pool: Arc<Pool>,
    weights: Option<Weights>,
    tokenizer: Option<Arc<Tokenizer>>,
    chat_style: Option<ChatStyle>,
    eos_token_ids: Vec<u32>,
    /// For constrained output; made when it is first asked for.
    token_table: Mutex<Option<Arc<TokenTable>>>,
    memory: Arc<Memory>,
    verified: Option<Report>,
    tested: Option<determinism::Tested>,
    audit: Option<Attached>,
}

/// What is in use against the bounds that the host set.
#[derive(Debug)]
struct Memory {
    used: AtomicU64,
    limit: u64,
    sessions: AtomicUsize,
    max_sessions: usize,
}

/// A session that was admitted, and its bytes; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Admission {
    memory: Arc<Memory>,
    bytes: u64,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.sessions.fetch_sub(1, Ordering::Relaxed);
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
        check(options)?;
        // Nothing runs on the threads of a tokenizer.
        let threads = if options.weights { options.threads } else { options.threads.or(Some(1)) };
        let pool = Arc::new(new_pool(threads)?);
        let verified =
            options.verify.as_ref().map(|verify| Verified::read(path, verify, control)).transpose()?;
        if !options.weights {
            if options.audit.is_some() {
                return Err(Error::argument("audit", "a model without weights", "one that runs"));
            }
            return Self::open_tokenizer(path, options, verified.as_ref(), pool);
        }
        let disk = Files::on_disk();
        let files = verified.as_ref().map_or(&disk, |verified| &verified.files);
        let checkpoint = weights::open_from(files, path, control)?;
        let memory = Arc::new(Memory::new(options));
        memory.take_weights(&checkpoint, options)?;
        let device = open_device(&checkpoint, options)?;
        let load = LoadOptions {
            device: device.clone(),
            quantize: options.quantize,
            activation: options.activation,
        };
        let cancel = control.cancel_token();
        let (transformer, memory_of_weights) =
            pool.scope(cancel, || loader::load(&checkpoint, &load, control))?;
        let large_pages = options.large_pages.then(|| memory_of_weights.into_large_pages());
        #[cfg(feature = "wgpu")]
        loader::warm(&transformer, &checkpoint.config, &device, control)?;
        let tokenizer =
            checkpoint.tokenizer().map(|source| open_tokenizer(&source, files)).transpose()?.map(Arc::new);
        let chat_style = tokenizer
            .as_deref()
            .map(|t| ChatStyle::choose(t, checkpoint.chat_template().as_deref(), options.tokenizer_version))
            .transpose()?;
        let mut eos_token_ids = checkpoint.eos_token_ids().to_vec();
        let eos = tokenizer.as_ref().and_then(|t| t.eos());
        eos_token_ids.extend(eos.filter(|eos| !eos_token_ids.contains(eos)));
        let config = checkpoint.config.clone();
        // Now that everything was read, and before any of it is used.
        verified.as_ref().map(Verified::check_unchanged).transpose()?;
        let digests =
            verified.as_ref().and_then(|verified| verified.digests(checkpoint.files())).map(OnceLock::from);
        let digests = digests.unwrap_or_default();
        let mut model = Self {
            path: path.to_owned(),
            options: options.clone(),
            device,
            pool,
            weights: Some(Weights { config, transformer, checkpoint, digests, large_pages }),
            tokenizer,
            chat_style,
            eos_token_ids,
            token_table: Mutex::new(None),
            memory,
            verified: verified.map(|verified| verified.report),
            tested: None,
            audit: None,
        };
        model.tested = options.reproducible.then(|| determinism::test(&model, control)).transpose()?;
        if let Some(audit) = &options.audit {
            let attached = Attached::new(audit, model.subject(control)?)?;
            attached.opened(model.verified.as_ref().map(Report::summary))?;
            model.audit = Some(attached);
        }
        Ok(Arc::new(model))
    }

    /// A tokenizer file, or the one of a folder or GGUF file, without weights: for counting and preparing tokens.
    fn open_tokenizer(
        path: &Path,
        options: &ModelOptions,
        verified: Option<&Verified>,
        pool: Arc<Pool>,
    ) -> Result<Arc<Self>> {
        let disk = Files::on_disk();
        let files = verified.map_or(&disk, |verified| &verified.files);
        let Alone { tokenizer, chat_template, eos_token_ids } = carried::tokenizer_alone(path, files)?;
        verified.map(Verified::check_unchanged).transpose()?;
        let chat_style = ChatStyle::choose(&tokenizer, chat_template.as_deref(), options.tokenizer_version)?;
        Ok(Arc::new(Self {
            path: path.to_owned(),
            options: options.clone(),
            device: device::open("cpu", 0)?,
            pool,
            weights: None,
            eos_token_ids,
            tokenizer: Some(Arc::new(tokenizer)),
            chat_style: Some(chat_style),
            token_table: Mutex::new(None),
            memory: Arc::new(Memory::new(options)),
            verified: verified.map(|verified| verified.report.clone()),
            tested: None,
            audit: None,
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
            "device": self.device.name,
            "device_info": self.device.info(),
            "threads": self.pool.threads(),
            "kernels": arm_name(),
            "activation": if self.options.activation == Activation::Int8 { "int8" } else { "f32" },
            "generator": GENERATOR,
            "determinism": determinism::report(&self.options, self.tested),
            "tokenizer": tokenizer,
            "weights": self.weights.as_ref().map(Weights::info),
            "verified": self.verified.as_ref().map(Report::to_json),
            "audit": self.audit.as_ref().map(|audit| audit.log().info()),
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

    /// The layers, for tests that break them.
    pub(crate) fn transformer_mut(&mut self) -> Option<&mut Transformer> {
        self.weights.as_mut().map(|weights| &mut weights.transformer)
    }

    pub(crate) fn chat_style(&self) -> Result<&ChatStyle> {
        self.tokenizer()?;
        self.chat_style.as_ref().ok_or_else(|| Error::Internal("a tokenizer without a chat style".to_owned()))
    }

    /// What was verified when the model was opened, if the options asked for it.
    pub fn verified(&self) -> Option<&Report> {
        self.verified.as_ref()
    }

    /// The log to which the model is written, if the options asked for one.
    pub fn audit(&self) -> Option<&Arc<AuditLog>> {
        self.audit.as_ref().map(Attached::log)
    }

    pub(crate) fn attached(&self) -> Option<&Attached> {
        self.audit.as_ref()
    }

    /// What records say of the model.
    pub(crate) fn subject(&self, control: &mut Control<'_>) -> Result<Arc<Subject>> {
        let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
        Ok(Arc::new(Subject {
            model_digest: hex(&self.digest(control)?),
            device: self.device.name.clone(),
            build_id: format!("{}, {arch}-{os}, {}", env!("CARGO_PKG_VERSION"), arm_name()),
            has_text: self.tokenizer.is_some(),
        }))
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

    /// The tokens arranged for constrained output; made at the first call, which takes some tenths of a second.
    ///
    /// # Errors
    /// As [`Model::tokenizer`], and [`Error::Unsupported`] for a model without a token that ends an answer.
    pub fn token_table(&self) -> Result<Arc<TokenTable>> {
        let tokenizer = self.tokenizer()?;
        let mut made = self.token_table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = &*made {
            return Ok(Arc::clone(table));
        }
        let size = self.vocab_size();
        let eos: Vec<u32> = self.eos_token_ids.iter().copied().filter(|&id| (id as usize) < size).collect();
        if eos.is_empty() {
            let found = format!("{}: no token ends an answer", self.path.display());
            return Err(Error::unsupported("constraint", found, "models with an end-of-sequence token"));
        }
        // A token for what cannot be spelled is no text that a model may choose; rows without a token have none.
        let bytes = |id: u32| tokenizer.token_bytes(id).filter(|_| Some(id) != tokenizer.unk());
        let ids = 0..size as u32;
        let tokens = ids.clone().map(|id| bytes(id).unwrap_or_default().into_owned()).collect();
        let leading = ids.filter_map(|id| {
            let first =
                tokenizer.token_bytes_at_start(id).filter(|first| bytes(id).is_some_and(|b| b != *first))?;
            Some((id, first.into_owned()))
        });
        let table = Arc::new(TokenTable::new(tokens, &eos)?.with_leading(leading));
        *made = Some(Arc::clone(&table));
        Ok(table)
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

    /// What the model runs on.
    pub fn device(&self) -> &Opened {
        &self.device
    }

    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Admits a session whose cache takes `bytes`, and whose tokens take `tokens`.
    pub(crate) fn admit_session(&self, bytes: u64, tokens: u64) -> Result<Admission> {
        // Where windows are short a context of millions has a small cache, and more bytes of tokens than of keys.
        self.memory.fits("tokens", tokens)?;
        self.memory.take_session()?;
        // Gives the session back if there is no room for its bytes.
        let mut admission = Admission { memory: Arc::clone(&self.memory), bytes: 0 };
        self.memory.take("KV cache", bytes)?;
        admission.bytes = bytes;
        Ok(admission)
    }

    /// The bounds of every call.
    pub fn limits(&self) -> Limits {
        self.options.limits
    }

    pub(crate) fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// What the model is, to the bit: the SHA-256 of the SHA-256 of its files with weights. The first call reads them all (see
    /// [`Checkpoint::digests`]), the later ones know it, and [`Model::info`] then tells it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on a model opened without weights; [`Error::Cancelled`].
    pub fn digest(&self, control: &mut Control<'_>) -> Result<[u8; 32]> {
        let Weights { checkpoint, digests, .. } = self.weights()?;
        let known = match digests.get() {
            Some(known) => known,
            None => {
                let found = checkpoint.digests(control)?;
                digests.get_or_init(|| found)
            }
        };
        Ok(Sha256::digest(known.concat()).into())
    }
}

impl Memory {
    fn new(options: &ModelOptions) -> Self {
        Self {
            used: AtomicU64::new(0),
            limit: options.max_memory.unwrap_or(u64::MAX),
            sessions: AtomicUsize::new(0),
            max_sessions: options.max_sessions.unwrap_or(usize::MAX),
        }
    }

    fn take_weights(&self, checkpoint: &Checkpoint, options: &ModelOptions) -> Result<()> {
        let bytes = checkpoint.total_bytes();
        match options.max_model_bytes {
            Some(limit) if bytes > limit => Err(Error::limit("max_model_bytes", bytes, limit)),
            _ => self.take("weights", bytes),
        }
    }

    fn take_session(&self) -> Result<()> {
        let fits = |count: usize| (count < self.max_sessions).then_some(count + 1);
        match self.sessions.try_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(count) => {
                Err(Error::limit("max_sessions", format!("one more beside {count}"), self.max_sessions))
            }
        }
    }

    /// Fails as [`Memory::take`] would.
    fn fits(&self, what: &str, bytes: u64) -> Result<()> {
        let used = self.used.load(Ordering::Relaxed);
        let fits = used.checked_add(bytes).is_some_and(|sum| sum <= self.limit);
        if fits { Ok(()) } else { Err(self.refusal(what, bytes, used)) }
    }

    fn refusal(&self, what: &str, bytes: u64, used: u64) -> Error {
        let found = format!("{bytes} bytes for the {what} beside {used} in use");
        Error::limit("max_memory", found, format!("{} bytes", self.limit))
    }

    fn take(&self, what: &str, bytes: u64) -> Result<()> {
        let fits = |used: u64| used.checked_add(bytes).filter(|&sum| sum <= self.limit);
        match self.used.try_update(Ordering::Relaxed, Ordering::Relaxed, fits) {
            Ok(_) => Ok(()),
            Err(used) => Err(self.refusal(what, bytes, used)),
        }
    }
}

fn check_threads(threads: Option<usize>) -> Result<()> {
    match threads.filter(|threads| !(1..=MAX_THREADS).contains(threads)) {
        None => Ok(()),
        Some(threads) => Err(Error::argument("threads", threads, format!("1 to {MAX_THREADS}"))),
    }
}

fn new_pool(threads: Option<usize>) -> Result<Pool> {
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    Pool::new(threads).map_err(|e| Error::limit("threads", format!("{threads} ({e})"), "what the system has"))
}

/// The device of a model, and which layers go there.
fn open_device(checkpoint: &Checkpoint, options: &ModelOptions) -> Result<Opened> {
    let context = DEFAULT_CONTEXT.min(checkpoint.config.max_context);
    let need = Need::of(checkpoint, options.quantize, (context, PREFILL_CHUNK), CacheType::default())?;
    let wanted = options.gpu_layers.unwrap_or(usize::MAX);
    let opened = device::open(&options.device, need.with(wanted))?;
    placement::place(opened, &need, options.gpu_layers)
}

/// Refuses options that no model could be opened with.
pub(crate) fn check(options: &ModelOptions) -> Result<()> {
    device::check(&options.device)?;
    check_threads(options.threads)?;
    check_quantize(options.quantize)?;
    determinism::check(options)
}

/// Refuses what the bounds of `options` do not admit: weights, and `sessions` with `caches` bytes in all.
pub(crate) fn admits(
    options: &ModelOptions,
    checkpoint: &Checkpoint,
    caches: u64,
    sessions: usize,
) -> Result<()> {
    let memory = Memory::new(options);
    memory.take_weights(checkpoint, options)?;
    memory.take("KV caches", caches)?;
    if sessions > memory.max_sessions {
        return Err(Error::limit("max_sessions", sessions, memory.max_sessions));
    }
    Ok(())
}

fn check_quantize(format: Option<Format>) -> Result<()> {
    match format {
        None | Some(Format::Q8_0 | Format::Q4_0 | Format::Q4_K) => Ok(()),
        Some(other) => Err(Error::argument("quantize", other.name(), "q8_0, q4_0 or q4_k")),
    }
}
