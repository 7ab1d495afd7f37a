//! One timeline of tokens on a model: what was evaluated, and the logits after it.

mod saved;
#[cfg(test)]
mod saved_tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::Tensor;
use zeroize::{Zeroize, Zeroizing};

use crate::audit::{About, Attached, AuditOptions, Call};
use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::control::{Control, Progress};
use crate::engine::{Admission, Model};
use crate::error::{Error, Result};
use crate::generate::{GenerateOptions, Generation};
use crate::kernels::CacheType;
use crate::kernels::cpu::pool;
use crate::limits::Limits;
use crate::sampler::{SampledToken, Sampler, SamplingParams};

pub use saved::LoadOptions;

/// Tokens evaluated in one pass: enough to reuse each weight that was read, few enough for the activations to stay in the cache.
pub const PREFILL_CHUNK: usize = 128;

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

impl SessionOptions {
    /// The positions that a session has on a model of this shape.
    pub(crate) fn context_for(&self, config: &ModelConfig) -> Result<usize> {
        match self.context.unwrap_or(DEFAULT_CONTEXT.min(config.max_context)) {
            0 => Err(Error::argument("context", 0, "at least 1 position")),
            context if context > MAX_CONTEXT => Err(Error::limit("context", context, MAX_CONTEXT)),
            context => Ok(context),
        }
    }
}

/// One sequence of tokens and its cache. Sessions of one model are independent and may run on different threads.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    cache: KvCache,
    /// All tokens of the timeline; those from `cache.len` on are not evaluated yet.
    /// They are overwritten when they are forgotten, and never moved: there is room for all.
    tokens: Zeroizing<Vec<u32>>,
    /// Logits after the last evaluated token; empty before the first, and where a call ended before it computed them.
    logits: Zeroizing<Vec<f32>>,
    cache_type: CacheType,
    limits: Limits,
    audit: Option<Attached>,
    /// Of [`Session::sample`], between its calls.
    steps: Option<Box<Steps>>,
    prompt: Work,
    decode: Work,
    /// A pass panicked: the cache may be torn.
    poisoned: bool,
    _admission: Admission,
}

/// A sampler that goes on with the next token, and the tokens that it has seen.
#[derive(Clone, Debug)]
struct Steps {
    sampler: Sampler,
    seen: usize,
}

/// Tokens that were evaluated, and the time that it took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// The tokens.
    pub tokens: u64,
    /// The time, by a clock that is never set.
    pub time: Duration,
    /// In how many passes.
    pub passes: u64,
}

impl Work {
    fn add(&mut self, tokens: usize, time: Duration) {
        self.tokens += tokens as u64;
        self.time += time;
        self.passes += tokens.div_ceil(PREFILL_CHUNK) as u64;
    }

    /// Tokens a second; 0 where nothing was done.
    pub fn per_second(&self) -> f64 {
        if self.time.is_zero() { 0.0 } else { self.tokens as f64 / self.time.as_secs_f64() }
    }
}

/// What a session holds and has done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SessionStats {
    /// Tokens of the timeline.
    pub tokens: usize,
    /// Those of them whose keys and values are in the cache; the others are evaluated with what comes next.
    pub evaluated: usize,
    /// Positions in all.
    pub context: usize,
    /// How keys and values are stored.
    pub cache_type: CacheType,
    /// Bytes of the cache; forks share them until one of them goes on.
    pub cache_bytes: usize,
    /// Those of them that are locked in memory: all or none.
    pub locked_bytes: usize,
    /// Passes over more than one token, since the session was made.
    pub prompt: Work,
    /// Passes over one token, and over one with guesses at what follows.
    pub decode: Work,
}

/// Which rows of a pass go through the output layer.
enum Want {
    Nothing,
    Last,
    All,
    /// All; those after the first are of guesses.
    Guesses,
    /// None: the normed hidden states of all rows instead.
    States,
}

impl Session {
    /// An empty session.
    ///
    /// # Errors
    /// [`Error::Argument`] for a context of zero, [`Error::Limit`] for one beyond [`MAX_CONTEXT`] or beyond the memory that the model's options allow, and
    /// [`Error::Unsupported`] on a model opened without weights.
    pub fn new(model: Arc<Model>, options: &SessionOptions) -> Result<Self> {
        let config = &model.weights()?.config;
        let context = options.context_for(config)?;
        let bytes = KvCache::bytes(config, context, PREFILL_CHUNK, options.cache_type)
            .ok_or_else(|| Error::limit("context", context, "what fits into the address space"))?;
        let admission = model.admit_session(bytes as u64, 4 * (context as u64 + 1))?;
        let lock = model.options().lock_memory;
        let cache = KvCache::new(config, context, PREFILL_CHUNK, options.cache_type, model.device(), lock)?;
        Ok(Self {
            limits: model.limits(),
            audit: model.attached().cloned(),
            model,
            cache,
            tokens: timeline(context)?,
            logits: Zeroizing::default(),
            cache_type: options.cache_type,
            steps: None,
            prompt: Work::default(),
            decode: Work::default(),
            poisoned: false,
            _admission: admission,
        })
    }

    /// With `limits` beside those of the model: the tighter of both hold.
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = self.model.limits().and(limits);
        self
    }

    /// With a log of its own instead of the model's.
    ///
    /// # Errors
    /// [`Error::Audit`] if the log cannot be opened, and [`Error::Argument`] for the options.
    pub fn with_audit(mut self, options: &AuditOptions) -> Result<Self> {
        self.audit = Some(Attached::new(options, self.model.subject(&mut Control::none())?)?);
        Ok(self)
    }

    /// Writes that a call begins, if there is a log. Of tokens that are too many for the call, which will refuse them, it says only how many they
    /// are.
    pub(crate) fn begin(
        &self,
        call: &str,
        ids: &[u32],
        options: Option<&GenerateOptions>,
    ) -> Result<Option<Call>> {
        let Some(audit) = &self.audit else { return Ok(None) };
        let text = |tokens: &[u32]| self.model.tokenizer().ok()?.decode(tokens, false).ok();
        let about = About {
            prompt: self.check_length(ids.len()).is_ok().then_some([&self.tokens[..], ids]),
            prompt_tokens: self.tokens.len().saturating_add(ids.len()),
            options: options.map(GenerateOptions::record).unwrap_or_default(),
            seed: options.map(|options| options.sampling.seed),
            caller_ref: options.and_then(|options| options.caller_ref.as_deref()),
            text: &text,
        };
        audit.begin(call, about).map(Some)
    }

    /// Runs `body` between the records of its beginning and of its end.
    fn recorded<R>(
        &mut self,
        call: &str,
        ids: &[u32],
        body: impl FnOnce(&mut Self) -> Result<R>,
    ) -> Result<R> {
        let begun = self.begin(call, ids, None)?;
        let result = body(self);
        let ended = begun.map_or(Ok(()), |begun| begun.end(&result, None));
        result.and_then(|result| ended.map(|()| result))
    }

    /// The bounds of each call.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// A second session with the same timeline, logits and state of [`Session::sample`], which goes on by itself: neither sees what the other
    /// does from here on. The two share the memory of the cache until one of them evaluates a token; it then copies the positions in use. The
    /// whole cache counts against the bounds of the model at once.
    ///
    /// # Errors
    /// [`Error::Limit`] for one session too many, or where memory ends.
    pub fn fork(&self) -> Result<Self> {
        self.check_whole()?;
        let admission =
            self.model.admit_session(self.cache.size() as u64, 4 * (self.cache.capacity as u64 + 1))?;
        let mut tokens = timeline(self.cache.capacity)?;
        tokens.extend_from_slice(&self.tokens);
        Ok(Self {
            model: Arc::clone(&self.model),
            cache: self.cache.clone(),
            tokens,
            logits: self.logits.clone(),
            cache_type: self.cache_type,
            limits: self.limits,
            audit: self.audit.clone(),
            steps: self.steps.clone(),
            prompt: Work::default(),
            decode: Work::default(),
            poisoned: false,
            _admission: admission,
        })
    }

    /// Keeps the first `count` tokens of the timeline. The last of them is evaluated again with what comes next, for its logits: a session that
    /// was trimmed goes on as one that was prefilled with these tokens. Where a layer with a window has overwritten keys that they need,
    /// all of them are evaluated again, as part of the next call.
    ///
    /// # Errors
    /// [`Error::Argument`] for more tokens than there are.
    pub fn trim(&mut self, count: usize) -> Result<()> {
        if count > self.tokens.len() {
            return Err(Error::argument("count", count, format!("at most the {} tokens", self.tokens.len())));
        }
        if count < self.tokens.len() {
            self.forget(count);
            self.cache.rewind(count.saturating_sub(1).min(self.cache.len));
            self.cache.forget();
            self.steps = None;
        }
        Ok(())
    }

    /// What the session holds and has done.
    pub fn stats(&self) -> SessionStats {
        SessionStats {
            tokens: self.tokens.len(),
            evaluated: self.cache.len,
            context: self.cache.capacity,
            cache_type: self.cache_type,
            cache_bytes: self.cache.size(),
            locked_bytes: self.cache.locked(),
            prompt: self.prompt,
            decode: self.decode,
        }
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
        self.forget(0);
        self.cache.rewind(0);
        self.cache.forget();
        self.steps = None;
    }

    /// Appends `ids` and evaluates them; afterwards [`Session::logits`] holds the logits of the last position.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty prompt or a token outside the vocabulary and [`Error::ContextFull`], both before anything is done;
    /// [`Error::Cancelled`] leaves the tokens evaluated until then; [`Error::Format`] where the logits are no numbers, as damaged weights make
    /// them.
    pub fn prefill(&mut self, ids: &[u32], control: &mut Control<'_>) -> Result<()> {
        self.recorded("prefill", ids, |session| session.extend(ids, control))
    }

    /// [`Session::prefill`], as a part of a call that is recorded.
    pub(crate) fn extend(&mut self, ids: &[u32], control: &mut Control<'_>) -> Result<()> {
        let keep = self.append(ids)?;
        if self.tokens.is_empty() {
            return Err(Error::argument("tokens", "none", "at least one token"));
        }
        // A call that was cancelled evaluated the last token, and not its logits: once more.
        if self.cache.len == self.tokens.len() && self.logits.is_empty() {
            self.cache.rewind(self.cache.len - 1);
        }
        self.evaluate(&Want::Last, keep, control).map(drop)
    }

    /// Whether [`Session::logits`] are those after the last token of the timeline; [`Session::prefill`] of no token makes them so.
    pub fn is_settled(&self) -> bool {
        self.cache.len == self.tokens.len() && !self.logits.is_empty()
    }

    /// Chooses the next token from the logits after the last one, and appends it. It is not evaluated yet: the next call does that first, so
    /// `sample` can be called in a loop, and so can `prefill`, `sample`, `prefill`.
    ///
    /// The same seed gives the tokens that [`Session::generate`] gives: the random numbers go on from call to call while `params` stay the same,
    /// and begin anew with other ones, and after the timeline was cut.
    ///
    /// # Errors
    /// [`Error::Argument`] for a setting out of range or an empty timeline, [`Error::ContextFull`] where the last token does not fit any
    /// more, and what [`Session::prefill`] says.
    pub fn sample(&mut self, params: &SamplingParams, control: &mut Control<'_>) -> Result<SampledToken> {
        let audited = self.audit.is_some();
        let options =
            audited.then(|| GenerateOptions { sampling: params.clone(), ..GenerateOptions::default() });
        let mut call = self.begin("sample", &[], options.as_ref())?;
        let result = self.steps_of(params).and_then(|mut steps| {
            let sampled = self.sample_with(&mut steps, control);
            self.steps = Some(steps);
            sampled
        });
        if let (Some(call), Ok(sampled)) = (&mut call, &result) {
            let bytes = self.model.tokenizer().ok().and_then(|t| t.token_bytes(sampled.token));
            call.token(sampled.token, &bytes.unwrap_or_default());
        }
        call.map_or(Ok(()), |call| call.end(&result, None)).and(result)
    }

    /// Those that are under way with `params`, or new ones.
    fn steps_of(&mut self, params: &SamplingParams) -> Result<Box<Steps>> {
        match self.steps.take_if(|steps| steps.sampler.params() == params) {
            Some(steps) => Ok(steps),
            None => {
                let sampler = Sampler::new(params.clone(), self.model.vocab_size())?;
                Ok(Box::new(Steps { sampler, seen: 0 }))
            }
        }
    }

    fn sample_with(&mut self, steps: &mut Steps, control: &mut Control<'_>) -> Result<SampledToken> {
        self.extend(&[], control)?;
        // What came from elsewhere since the last call, and at first everything.
        steps.sampler.accept_prompt(&self.tokens[steps.seen..])?;
        steps.seen = self.tokens.len();
        let sampled = steps.sampler.sample(&self.logits, None)?;
        steps.sampler.accept(sampled.token)?;
        self.push(sampled.token);
        steps.seen += 1;
        Ok(sampled)
    }

    /// Like [`Session::prefill`], and returns the logits of every position of `ids`: `[ids.len(), vocab_size]`.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn score(&mut self, ids: &[u32], control: &mut Control<'_>) -> Result<Vec<f32>> {
        self.recorded("score", ids, |session| session.score_rows(ids, control))
    }

    fn score_rows(&mut self, ids: &[u32], control: &mut Control<'_>) -> Result<Vec<f32>> {
        let before = self.append(ids)?;
        if ids.is_empty() {
            return Err(Error::argument("tokens", "none", "at least one token"));
        }
        let all = self.evaluate(&Want::All, before, control)?;
        // A token that generation left unevaluated came before `ids`.
        let keep = ids.len() * self.model.vocab_size();
        Ok(all[all.len() - keep..].to_vec())
    }

    /// Appends `ids` and returns their hidden states after the last norm: `[ids.len(), dim]`.
    pub(crate) fn states(&mut self, ids: &[u32], control: &mut Control<'_>) -> Result<Vec<f32>> {
        self.recorded("embed", ids, |session| {
            let before = session.append(ids)?;
            session.evaluate(&Want::States, before, control)
        })
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
        self.cache.rewind(shared.min(tokens.len().saturating_sub(1)));
        self.cache.forget();
        self.forget(self.cache.len);
        self.steps = None;
        self.cache.len
    }

    /// Whether a prompt of `tokens` can be evaluated from the beginning.
    pub(crate) fn check_room(&self, tokens: usize) -> Result<()> {
        self.limits.check_prompt(tokens)?;
        if tokens > self.cache.capacity {
            return Err(Error::ContextFull { needed: tokens, capacity: self.cache.capacity });
        }
        Ok(())
    }

    /// Overwrites the tokens from `count` on, and the logits.
    fn forget(&mut self, count: usize) {
        let count = count.min(self.tokens.len());
        self.tokens[count..].zeroize();
        self.tokens.truncate(count);
        self.logits.zeroize();
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

    /// Evaluates what [`Session::push`] left and, after it, as many of `guesses` at what follows as there is room for. These are no part of the
    /// timeline; returned are the logits after each of them, for [`Session::confirm`].
    pub(crate) fn step_with(
        &mut self,
        guesses: &[u32],
        control: &mut Control<'_>,
    ) -> Result<Vec<Zeroizing<Vec<f32>>>> {
        let (len, room) = (self.tokens.len(), self.cache.capacity.saturating_sub(self.tokens.len()));
        let guesses = &guesses[..guesses.len().min(room)];
        if guesses.is_empty() {
            return self.step(control).map(|()| Vec::new());
        }
        self.tokens.extend_from_slice(guesses);
        let rows = self.evaluate(&Want::Guesses, len, control).map(Zeroizing::new);
        self.tokens[len..].zeroize();
        self.tokens.truncate(len);
        // What the cache has of the guesses stays there: it is confirmed, or written again, or forgotten with the rest.
        self.cache.rewind(len.min(self.cache.len));
        let rows = rows?;
        let rows = rows.chunks_exact(self.model.vocab_size()).map(|row| Zeroizing::new(row.to_vec()));
        let mut rows: Vec<_> = rows.collect();
        let ahead = rows.split_off(rows.len() - guesses.len());
        self.logits = rows.pop().unwrap_or_default();
        Ok(ahead)
    }

    /// The token that was pushed last is the guess that `logits` come after: its keys and values are in the cache.
    pub(crate) fn confirm(&mut self, logits: Zeroizing<Vec<f32>>) {
        self.cache.len += 1;
        self.logits = logits;
        self.decode.tokens += 1;
    }

    /// Whether so many tokens may be appended.
    pub(crate) fn check_length(&self, count: usize) -> Result<()> {
        self.limits.check_prompt(count)?;
        let needed = self.tokens.len().saturating_add(count);
        if needed > self.cache.capacity {
            return Err(Error::ContextFull { needed, capacity: self.cache.capacity });
        }
        Ok(())
    }

    /// Appends `ids` and returns the length of the timeline before.
    fn append(&mut self, ids: &[u32]) -> Result<usize> {
        // The length first: where a host counts wrongly, as with a negative number, there are no such tokens to look at.
        self.check_length(ids.len())?;
        let before = self.tokens.len();
        let vocab_size = self.model.vocab_size();
        if let Some(i) = ids.iter().position(|&id| id as usize >= vocab_size) {
            let expected = format!("a token below {vocab_size}");
            return Err(Error::argument(format!("tokens[{i}]"), ids[i], expected));
        }
        self.tokens.extend_from_slice(ids);
        Ok(before)
    }

    fn check_whole(&self) -> Result<()> {
        if self.poisoned {
            return Err(Error::Internal("an earlier call on this session failed inside a kernel".to_owned()));
        }
        Ok(())
    }

    /// Evaluates the tokens from `cache.len` on, a chunk at a time. When it fails, the timeline keeps the tokens that were evaluated, and the first
    /// `keep`, which the host knows to be there.
    fn evaluate(&mut self, want: &Want, keep: usize, control: &mut Control<'_>) -> Result<Vec<f32>> {
        self.check_whole()?;
        if self.cache.len == self.tokens.len() {
            return Ok(Vec::new());
        }
        let (start, before) = (Instant::now(), self.cache.len);
        self.poisoned = true;
        let pool = Arc::clone(self.model.pool());
        let (cancel, limit) = (control.cancel_token(), self.limits.max_time);
        let result =
            control.within(limit, |control| pool.scope(cancel, || self.evaluate_chunks(want, control)));
        self.poisoned = false;
        match self.cache.len - before {
            0 => {}
            _ if matches!(want, Want::Guesses) => self.decode.add(1, start.elapsed()),
            1 => self.decode.add(1, start.elapsed()),
            done => self.prompt.add(done, start.elapsed()),
        }
        if result.is_err() {
            let kept = self.cache.len.max(keep).min(self.tokens.len());
            self.tokens[kept..].zeroize();
            self.tokens.truncate(kept);
        }
        result
    }

    fn evaluate_chunks(&mut self, want: &Want, control: &mut Control<'_>) -> Result<Vec<f32>> {
        self.cache.own()?;
        let (first, total) = (self.cache.len, self.tokens.len());
        let vocab_size = self.model.vocab_size();
        let mut all = Vec::new();
        while self.cache.len < total {
            let end = total.min(self.cache.len + PREFILL_CHUNK);
            let rows = match want {
                Want::Last if end < total => &Want::Nothing,
                want => want,
            };
            let logits = self.pass(end, rows, control)?;
            self.logits.clear();
            if matches!(want, Want::States) {
                all.extend_from_slice(&logits);
                continue;
            }
            self.check_finite(&logits)?;
            if let Some(last) = logits.len().checked_sub(vocab_size) {
                self.logits.extend_from_slice(&logits[last..]);
            }
            if matches!(want, Want::All | Want::Guesses) {
                all.extend_from_slice(&logits);
            }
            if total - first > 1 && !matches!(want, Want::Guesses) {
                let (done, total) = ((end - first) as u64, (total - first) as u64);
                control.step(Progress { phase: "prefill", done, total })?;
            }
        }
        Ok(all)
    }

    fn check_finite(&self, logits: &[f32]) -> Result<()> {
        // Without a branch for each, so that it takes a vector at a time.
        let finite = |run: &[f32]| run.iter().fold(true, |all, logit| all & logit.is_finite());
        if logits.chunks(1024).all(finite) {
            return Ok(());
        }
        let i = logits.iter().position(|logit| !logit.is_finite()).unwrap_or_default();
        let key = format!("the logit of token {}", i % self.model.vocab_size());
        let expected = "a finite number: the weights are damaged, or too large for the type of the cache";
        Err(Error::format(self.model.path().display(), key, logits[i], expected))
    }

    /// One forward pass over the tokens up to `end`; if it is cancelled, it was not there.
    fn pass(&mut self, end: usize, want: &Want, control: &Control<'_>) -> Result<Vec<f32>> {
        let transformer = &self.model.weights()?.transformer;
        let start = self.cache.len;
        // The pool first: it may have left out work for a token that is no longer triggered.
        let mut check = || pool::check().and_then(|()| control.check());
        let h = transformer.tok_embeddings.forward(&self.tokens[start..end])?;
        let h = transformer.forward(h, &mut self.cache, &mut check)?; // [t, dim]
        let rows = match want {
            Want::Nothing => return Ok(Vec::new()),
            Want::Last => transformer.logits(h.narrow(0, end - start - 1, 1)),
            Want::All | Want::Guesses => transformer.logits(h),
            Want::States => transformer.norm.forward(h),
        };
        let rows = read(rows).and_then(|rows| self.model.device().check().map(|()| rows));
        check().inspect_err(|_| self.cache.len = start)?;
        rows
    }
}

pub(crate) fn read(rows: Tensor<2>) -> Result<Vec<f32>> {
    let device = format!("{:?}", rows.device());
    let data = rows.try_into_data();
    data.map_err(|e| Error::Device { device: device.clone(), reason: e.to_string() })?
        .try_into_vec()
        .map_err(|e| Error::Device { device, reason: format!("a result could not be read: {e:?}") })
}

/// Room for the tokens of `context` positions, and for one that waits for its own.
fn timeline(context: usize) -> Result<Zeroizing<Vec<u32>>> {
    let mut tokens = Zeroizing::new(Vec::new());
    match tokens.try_reserve_exact(context + 1) {
        Ok(()) => Ok(tokens),
        Err(_) => {
            Err(Error::limit("context", format!("{context} positions"), "what the system has memory for"))
        }
    }
}
