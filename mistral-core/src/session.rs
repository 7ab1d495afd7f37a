//! One timeline of tokens on a model: what was evaluated, and the logits after it.

use std::sync::Arc;

use burn::tensor::Tensor;

use crate::cache::KvCache;
use crate::control::{Control, Progress};
use crate::engine::{Admission, Model};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generation};
use crate::kernels::CacheType;
use crate::kernels::cpu::pool;

/// Tokens evaluated in one pass: enough to reuse each weight that was read, few enough for the activations to stay in the cache.
pub const PREFILL_CHUNK: usize = 256;

/// Positions of a session whose host chose no number (fewer if the model was made for fewer).
pub const DEFAULT_CONTEXT: usize = 4096;

/// The most positions that a host may choose.
pub const MAX_CONTEXT: usize = 1 << 24;

/// How a session is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionOptions {
    /// Positions; `None`: [`DEFAULT_CONTEXT`], or what the model was made for if that is less.
    pub context: Option<usize>,
    /// How keys and values are stored.
    pub cache_type: CacheType,
}

/// One sequence of tokens and its cache. Sessions of one model are independent and may run on different threads.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    cache: KvCache,
    /// All tokens of the timeline; those from `cache.len` on are not evaluated yet.
    tokens: Vec<u32>,
    /// Logits after the last evaluated token; empty before the first, and where a call ended before it computed them.
    logits: Vec<f32>,
    /// A pass panicked: the cache may be torn.
    poisoned: bool,
    _admission: Admission,
}

/// Which rows of a pass go through the output layer.
enum Want {
    Nothing,
    Last,
    All,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// [`Error::Argument`] for a context of zero, [`Error::Limit`] for one beyond [`MAX_CONTEXT`] or beyond the memory that the model's options allow, and
    /// [`Error::Unsupported`] on a model opened without weights.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let config = &model.weights()?.config;
        let context = options.context.unwrap_or(DEFAULT_CONTEXT.min(config.max_context));
        if context == 0 {
            return Err(Error::argument("context", 0, "at least 1 position"));
        }
        if context > MAX_CONTEXT {
            return Err(Error::limit("context", context, MAX_CONTEXT));
        }
        let bytes = KvCache::bytes(config, context, PREFILL_CHUNK, options.cache_type)
            .ok_or_else(|| Error::limit("context", context, "what fits into the address space"))?;
        let admission = model.admit("KV cache", bytes as u64)?;
        let cache = KvCache::new(config, context, PREFILL_CHUNK, options.cache_type, model.device())?;
        Ok(Self {
            model,
            cache,
            tokens: Vec::new(),
            logits: Vec::new(),
            poisoned: false,
            _admission: admission,
        })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The tokens of the timeline, those that generation produced included.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Positions that the session may hold.
    pub fn capacity(&self) -> usize {
        self.cache.capacity
    }

    /// The logits after the last evaluated token, `[vocab_size]`; empty before the first, and after a call that was cancelled between two
    /// passes.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Forgets everything; the memory stays allocated.
    pub fn reset(&mut self) {
        self.tokens.clear();
        self.logits.clear();
        self.cache.len = 0;
        self.cache.written = 0;
    }

    /// Appends `ids` and evaluates them; afterwards [`Session::logits`] holds the logits of the last position.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt or a token outside the vocabulary and [`Error::ContextFull`], both before anything is done;
    /// [`Error::Cancelled`] leaves the tokens evaluated until then; [`Error::Format`] where the logits are no numbers, as damaged weights make
    /// them.
    pub fn prefill(&mut self, ids: &[u32], control: &mut Control<'_>) -> Result<()> {
        let keep = self.append(ids)?;
        if self.tokens.is_empty() {
            return Err(Error::argument("tokens", "none", "at least one token"));
        }
        // A call that was cancelled evaluated the last token, and not its logits: once more.
        if self.cache.len == self.tokens.len() && self.logits.is_empty() {
            self.cache.len -= 1;
        }
        self.evaluate(&Want::Last, keep, control).map(drop)
    }

    /// Like [`Session::prefill`], and returns the logits of every position of `ids`: `[ids.len(), vocab_size]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn score(&mut self, ids: &[u32], control: &mut Control<'_>) -> Result<Vec<f32>> {
        let before = self.append(ids)?;
        if ids.is_empty() {
            return Err(Error::argument("tokens", "none", "at least one token"));
        }
        let all = self.evaluate(&Want::All, before, control)?;
        // A token that generation left unevaluated came before `ids`.
        let keep = ids.len() * self.model.vocab_size();
        Ok(all[all.len() - keep..].to_vec())
    }

    /// Appends `ids` and streams what follows. `ids` may be empty where the timeline is not.
    ///
    /// # Errors
    /// As [`Session::prefill`], and [`Error::Argument`] for options out of range.
    pub fn generate(
        &mut self,
        ids: &[u32],
        options: &GenerateOptions,
        control: &mut Control<'_>,
    ) -> Result<Generation<&mut Self>> {
        Generation::new(self, ids, options, control)
    }

    /// Keeps of the timeline what it shares with `tokens`, at most all but the last of them; returns how many that are.
    pub(crate) fn rewind_to_prefix(&mut self, tokens: &[u32]) -> usize {
        let evaluated = &self.tokens[..self.cache.len];
        let shared = evaluated.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let kept = shared.min(tokens.len().saturating_sub(1));
        let kept = if self.cache.can_rewind(kept) { kept } else { 0 };
        self.tokens.truncate(kept);
        self.cache.len = kept;
        self.logits.clear();
        kept
    }

    /// Appends one token that was sampled; it is evaluated with what comes next.
    pub(crate) fn push(&mut self, token: u32) {
        self.tokens.push(token);
    }

    /// Whether one more token can be evaluated.
    pub(crate) fn is_full(&self) -> bool {
        self.tokens.len() >= self.cache.capacity
    }

    /// Evaluates what [`Session::push`] left.
    pub(crate) fn step(&mut self, control: &mut Control<'_>) -> Result<()> {
        self.evaluate(&Want::Last, self.tokens.len(), control).map(drop)
    }

    /// Appends `ids` and returns the length of the timeline before.
    fn append(&mut self, ids: &[u32]) -> Result<usize> {
        let vocab_size = self.model.vocab_size();
        if let Some(i) = ids.iter().position(|&id| id as usize >= vocab_size) {
            let expected = format!("a token below {vocab_size}");
            return Err(Error::argument(format!("tokens[{i}]"), ids[i], expected));
        }
        let before = self.tokens.len();
        let needed = before.saturating_add(ids.len());
        if needed > self.cache.capacity {
            return Err(Error::ContextFull { needed, capacity: self.cache.capacity });
        }
        self.tokens.extend_from_slice(ids);
        Ok(before)
    }

    /// Evaluates the tokens from `cache.len` on, a chunk at a time. When it fails, the timeline keeps the tokens that were evaluated, and the first
    /// `keep`, which the host knows to be there.
    fn evaluate(&mut self, want: &Want, keep: usize, control: &mut Control<'_>) -> Result<Vec<f32>> {
        if self.poisoned {
            return Err(Error::Internal("an earlier call on this session failed inside a kernel".to_owned()));
        }
        self.poisoned = true;
        let pool = Arc::clone(self.model.pool());
        let cancel = control.cancel_token();
        let result = pool.scope(cancel, || self.evaluate_chunks(want, control));
        self.poisoned = false;
        if result.is_err() {
            self.tokens.truncate(self.cache.len.max(keep));
        }
        result
    }

    fn evaluate_chunks(&mut self, want: &Want, control: &mut Control<'_>) -> Result<Vec<f32>> {
        let (first, total) = (self.cache.len, self.tokens.len());
        let vocab_size = self.model.vocab_size();
        let mut all = Vec::new();
        while self.cache.len < total {
            let end = total.min(self.cache.len + PREFILL_CHUNK);
            let rows = match want {
                Want::All => Want::All,
                _ if end == total => Want::Last,
                _ => Want::Nothing,
            };
            let logits = self.pass(end, &rows)?;
            self.logits.clear();
            self.check_finite(&logits)?;
            if let Some(last) = logits.len().checked_sub(vocab_size) {
                self.logits.extend_from_slice(&logits[last..]);
            }
            if matches!(want, Want::All) {
                all.extend_from_slice(&logits);
            }
            if total - first > 1 {
                let (done, total) = ((end - first) as u64, (total - first) as u64);
                control.step(Progress { phase: "prefill", done, total })?;
            }
        }
        Ok(all)
    }

    fn check_finite(&self, logits: &[f32]) -> Result<()> {
        let Some(i) = logits.iter().position(|logit| !logit.is_finite()) else { return Ok(()) };
        let key = format!("the logit of token {}", i % self.model.vocab_size());
        let expected = "a finite number: the weights are damaged, or too large for the type of the cache";
        Err(Error::format(self.model.path().display(), key, logits[i], expected))
    }

    /// One forward pass over the tokens up to `end`; if it is cancelled, it was not there.
    fn pass(&mut self, end: usize, want: &Want) -> Result<Vec<f32>> {
        let transformer = &self.model.weights()?.transformer;
        let start = self.cache.len;
        let h = transformer.tok_embeddings.forward(&self.tokens[start..end])?;
        let h = transformer.forward(h, &mut self.cache, &mut pool::check)?; // [t, dim]
        let h = match want {
            Want::Nothing => return Ok(Vec::new()),
            Want::Last => h.narrow(0, end - start - 1, 1),
            Want::All => h,
        };
        let logits = read(transformer.logits(h));
        pool::check().inspect_err(|_| self.cache.len = start)?;
        logits
    }
}

fn read(logits: Tensor<2>) -> Result<Vec<f32>> {
    let device = format!("{:?}", logits.device());
    let data = logits.try_into_data();
    data.map_err(|e| Error::Device { device: device.clone(), reason: e.to_string() })?
        .try_into_vec()
        .map_err(|e| Error::Device { device, reason: format!("logits could not be read: {e:?}") })
}
