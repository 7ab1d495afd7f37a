//! Chat completions: a request of the Mistral and OpenAI APIs in, a response or a stream of chunks out.

mod grammar;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use crate::chat::jinja::ChatTemplate;
use crate::chat::request::{ChatRequest, CompletionOptions};
use crate::chat::response::{self, ResponseHead, TokenLogprob, Usage};
use crate::chat::{AnswerParser, ChatFormat, Fragment, ModelSettings, Prompt};
use crate::control::Control;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::generate::{Event, FinishReason, GenerateOptions};
use crate::marking;
use crate::sampler::SamplingParams;
use crate::session::{DEFAULT_CONTEXT, Session, SessionOptions};
use crate::text::{ChatOptions, Written};
use crate::tokenizer::{Tokenizer, TokenizerVersion};

/// Tokens that an answer may take where neither the request nor the context says less.
const DEFAULT_ANSWER: usize = 2048;

/// How a model reads a conversation.
#[derive(Debug)]
pub(crate) enum ChatStyle {
    /// One of Mistral's formats.
    Mistral(ChatFormat),
    /// The template that the model carries.
    Template(Box<ChatTemplate>),
    /// None that is known, and why.
    Unknown(String),
}

impl ChatStyle {
    /// Mistral's own tokenizers know their format; other models bring a template.
    pub fn choose(
        tokenizer: &Tokenizer,
        template: Option<&str>,
        version: Option<TokenizerVersion>,
    ) -> Result<Self> {
        if version.is_some() || tokenizer.version().is_some() {
            let mut format = ChatFormat::of(tokenizer, version)?;
            if let Some(section) = tokenizer.section("model_settings_builder") {
                format = format.with_settings(ModelSettings::from_section(section, "tekken.json")?);
            }
            return Ok(Self::Mistral(format));
        }
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token_text(id)).unwrap_or_default();
        let variables = [
            ("bos_token", text(tokenizer.bos())),
            ("eos_token", text(tokenizer.eos())),
            ("unk_token", text(tokenizer.unk())),
            ("pad_token", text(tokenizer.pad())),
        ];
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, text)| (*name, &**text)).collect();
        Ok(match template {
            // A template that does not compile spoils the chat, not the model.
            Some(source) => match ChatTemplate::compile(source, &variables) {
                Ok(template) => Self::Template(Box::new(template)),
                Err(error) => Self::Unknown(format!("its chat template does not compile: {error}")),
            },
            None => Self::Unknown("it carries no chat template, and its tokenizer no version".to_owned()),
        })
    }
}

impl Model {
    /// The tokens that the model reads for `request`.
    ///
    /// # Errors
    /// What is wrong with the request, by its path; [`Error::Unsupported`] where the model has no chat format.
    pub fn chat_encode(&self, request: &ChatRequest) -> Result<Vec<u32>> {
        self.chat_encode_with(request, &ChatOptions::default())
    }

    /// As [`Model::chat_encode`], with options.
    ///
    /// # Errors
    /// As [`Model::chat_encode`].
    pub fn chat_encode_with(&self, request: &ChatRequest, options: &ChatOptions) -> Result<Vec<u32>> {
        self.chat_prompt(request, options).map(|prompt| prompt.tokens)
    }

    fn chat_prompt(&self, request: &ChatRequest, options: &ChatOptions) -> Result<ChatPrompt> {
        let tokenizer = self.tokenizer()?;
        let version = self.answer_version()?;
        match self.chat_style()? {
            ChatStyle::Mistral(format) => {
                let prompt = format.clone().with_mode(options.mode).prompt(request)?;
                let tokens = prompt.to_tokens(tokenizer)?;
                let prefix = prompt.prefix().to_vec();
                let constraint_prefix = Prompt::of(prefix.clone()).to_tokens(tokenizer)?;
                Ok(ChatPrompt { tokens, prefix, constraint_prefix, version })
            }
            ChatStyle::Template(template) => {
                let prompt = template.prompt(request, options.render(request))?;
                let mut tokens = tokenizer.encode_with_special(&prompt.text);
                // Most templates write the token of the beginning themselves.
                if let Some(bos) =
                    tokenizer.bos().filter(|bos| tokenizer.adds_bos() && tokens.first() != Some(bos))
                {
                    tokens.insert(0, bos);
                }
                Ok(ChatPrompt { tokens, prefix: prompt.prefix, constraint_prefix: Vec::new(), version })
            }
            ChatStyle::Unknown(reason) => Err(self.no_chat(reason)),
        }
    }

    /// The text that the model reads for `request`, control tokens by their names, as mistral-common shows it: of a SentencePiece
    /// vocabulary the pieces, with `▁` for a space and `<0x0A>` for a byte. For people, not for encoding.
    ///
    /// # Errors
    /// As [`Model::chat_encode`].
    pub fn chat_render(&self, request: &ChatRequest, options: &ChatOptions) -> Result<String> {
        match self.chat_style()? {
            ChatStyle::Mistral(format) => {
                format.clone().with_mode(options.mode).prompt(request)?.to_text(self.tokenizer()?)
            }
            ChatStyle::Template(template) => template.render(request, options.render(request)),
            ChatStyle::Unknown(reason) => Err(self.no_chat(reason)),
        }
    }

    /// Answers a chat-completions request. If it says `"stream": true`, `on_chunk` gets each `chat.completion.chunk` as it comes; the
    /// `chat.completion` that is returned is whole in any case.
    ///
    /// # Errors
    /// What is wrong with the request, by its path; [`Error::ContextFull`], [`Error::Cancelled`].
    pub fn chat(
        self: &Arc<Self>,
        request: &Value,
        on_chunk: &mut dyn FnMut(Value),
        control: &mut Control<'_>,
    ) -> Result<Value> {
        self.chat_request(&ChatRequest::from_value(request)?, on_chunk, control)
    }

    /// As [`Model::chat`], for a request that was read already: [`ChatRequest::from_json`] keeps all digits of its numbers.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat_request(
        self: &Arc<Self>,
        request: &ChatRequest,
        on_chunk: &mut dyn FnMut(Value),
        control: &mut Control<'_>,
    ) -> Result<Value> {
        let prompt = self.chat_encode(request)?.len();
        let asked = request.options.max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let answer = self.limits().output_tokens(asked)?.unwrap_or(DEFAULT_ANSWER);
        let longest = self.weights()?.config.max_context.max(1);
        let context = prompt.saturating_add(answer).clamp(1, longest.max(DEFAULT_CONTEXT.min(longest)));
        self.limits().check_prompt(prompt)?;
        let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
        let mut session = self.session(&options)?;
        control.within(self.limits().max_time, |control| session.answer(request, on_chunk, control))
    }

    pub(crate) fn no_chat(&self, reason: &str) -> Error {
        Error::unsupported("chat", format!("{} ({reason})", self.path().display()), "generate")
    }
}

impl Session {
    /// Answers a chat-completions request on this session: what the conversation shares with the session's timeline is not evaluated again, and
    /// `usage.prompt_tokens_details.cached_tokens` says how many tokens that were.
    ///
    /// # Errors
    /// As [`Model::chat`]. A conversation that does not fit leaves the session as it was.
    pub fn chat(
        &mut self,
        request: &Value,
        on_chunk: &mut dyn FnMut(Value),
        control: &mut Control<'_>,
    ) -> Result<Value> {
        self.chat_request(&ChatRequest::from_value(request)?, on_chunk, control)
    }

    /// As [`Session::chat`], for a request that was read already.
    ///
    /// # Errors
    /// As [`Session::chat`].
    pub fn chat_request(
        &mut self,
        request: &ChatRequest,
        on_chunk: &mut dyn FnMut(Value),
        control: &mut Control<'_>,
    ) -> Result<Value> {
        control.within(self.limits().max_time, |control| self.answer(request, on_chunk, control))
    }

    fn answer(
        &mut self,
        request: &ChatRequest,
        on_chunk: &mut dyn FnMut(Value),
        control: &mut Control<'_>,
    ) -> Result<Value> {
        let model = Arc::clone(self.model());
        let prompt = model.chat_prompt(request, &ChatOptions::default())?;
        let mut options = generate_options(&request.options);
        options.constraint_prefix.clone_from(&prompt.constraint_prefix);
        // Also where the format ends a prompt with plain text: that is not the answer's.
        options.begins_text = prompt.prefix.is_empty().then_some(true);
        grammar::constrain(&model, request, &mut options)?;
        self.check_room(prompt.tokens.len())?;
        let seed = options.sampling.seed;
        let mut reply = Reply::new(request);
        let mut host = Host { on_chunk, control };
        // The names of tool calls are read by the model in the next turn: they depend on what this one was given, not on the time.
        let named_by = Written::Tokens(&prompt.tokens).digest();
        let mut first_kept = None;
        for (index, n) in (0..request.options.n.unwrap_or(1)).enumerate() {
            options.sampling.seed = seed.wrapping_add(n);
            let kept = self.rewind_to_prefix(&prompt.tokens);
            first_kept.get_or_insert(kept);
            let generation = self.generate(&prompt.tokens[kept..], &options, host.control);
            let mut generation = generation.map_err(|error| of_request(error, request))?;
            let mut choice = Choice::new(&reply, &model, &prompt, (index, named_by ^ options.sampling.seed));
            reply.send(&mut host, index, response::first_delta(), None, Value::Null)?;
            for delta in choice.resume(&prompt.prefix) {
                reply.send(&mut host, index, delta, None, Value::Null)?;
            }
            while let Some(event) = generation.next(host.control) {
                let (deltas, mut logprobs) = choice.add(&event?);
                for delta in deltas {
                    reply.send(&mut host, index, delta, None, logprobs.take())?;
                }
            }
            reply.usage.completion += generation.generated() as u64;
            reply.end(&mut host, choice)?;
            if request.sidecar {
                reply.mark_last(&model, host.control)?;
            }
        }
        reply.usage.prompt = prompt.tokens.len() as u64;
        reply.finish(&mut host, first_kept.unwrap_or(0))
    }
}

/// Whom an answer goes to.
struct Host<'h, 'c> {
    on_chunk: &'h mut dyn FnMut(Value),
    control: &'h mut Control<'c>,
}

impl Host<'_, '_> {
    /// Gives a chunk to the host, which may stop the call from within, also at the last one.
    fn take(&mut self, chunk: Value) -> Result<()> {
        (self.on_chunk)(chunk);
        self.control.check()
    }
}

/// Names a field of the request where an error names an option of the generation.
fn of_request(error: Error, request: &ChatRequest) -> Error {
    match error {
        Error::Argument { name, found, expected } if name == "constraint_prefix" => {
            let last = request.messages.len().saturating_sub(1);
            Error::argument(format!("messages[{last}].content"), found, expected)
        }
        other => other,
    }
}

/// The options of the first choice; each has a seed of its own.
fn generate_options(options: &CompletionOptions) -> GenerateOptions {
    let float = |value: Option<f64>, default: f32| value.map_or(default, |v| v as f32);
    let plain = SamplingParams::greedy();
    GenerateOptions {
        sampling: SamplingParams {
            temperature: float(options.temperature, plain.temperature),
            top_k: options.top_k.map_or(plain.top_k, |k| u32::try_from(k).unwrap_or(u32::MAX)),
            top_p: float(options.top_p, plain.top_p),
            min_p: float(options.min_p, plain.min_p),
            repetition_penalty: float(options.repetition_penalty, plain.repetition_penalty),
            presence_penalty: float(options.presence_penalty, plain.presence_penalty),
            frequency_penalty: float(options.frequency_penalty, plain.frequency_penalty),
            logit_bias: options.logit_bias.iter().map(|&(token, bias)| (token, bias as f32)).collect(),
            seed: options.seed.unwrap_or(plain.seed),
            logprobs: options.logprobs.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            ..plain
        },
        max_tokens: options.max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        stop: options.stop.clone(),
        ignore_eos: options.ignore_eos,
        prompt_lookup: usize::try_from(options.prompt_lookup).unwrap_or(usize::MAX),
        ..GenerateOptions::default()
    }
}

/// A request as the model reads it.
struct ChatPrompt {
    tokens: Vec<u32>,
    /// The start of the answer, where the request gives it.
    prefix: Vec<Fragment>,
    /// Its tokens, where a constraint can bind an answer that goes on.
    constraint_prefix: Vec<u32>,
    /// The format in which the answer is read back.
    version: Option<TokenizerVersion>,
}

/// A response in the making.
struct Reply {
    id: String,
    created: u64,
    model: String,
    stream: bool,
    include_usage: bool,
    logprobs: bool,
    choices: Vec<Value>,
    usage: Usage,
}

impl Reply {
    fn new(request: &ChatRequest) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self {
            id: format!("chatcmpl-{:x}-{count:x}", now.as_nanos()),
            created: now.as_secs(),
            model: request.model.clone().unwrap_or_default(),
            stream: request.stream,
            include_usage: request.include_usage,
            logprobs: request.options.logprobs.is_some(),
            choices: Vec::new(),
            usage: Usage::default(),
        }
    }

    fn head(&self) -> ResponseHead<'_> {
        ResponseHead { id: &self.id, created: self.created, model: &self.model }
    }

    /// A piece of the stream, if one was asked for.
    fn send(
        &self,
        host: &mut Host<'_, '_>,
        index: usize,
        delta: Value,
        finish: Option<response::FinishReason>,
        logprobs: Value,
    ) -> Result<()> {
        if !self.stream {
            return Ok(());
        }
        host.take(response::chunk(self.head(), index, delta, finish, logprobs))
    }

    /// The last pieces of a choice, and its place in the whole.
    fn end(&mut self, host: &mut Host<'_, '_>, choice: Choice<'_>) -> Result<()> {
        let (events, answer) = choice.parser.finish();
        for delta in events.iter().filter_map(response::delta) {
            self.send(host, choice.index, delta, None, Value::Null)?;
        }
        // The APIs know no full context: it is a length that was reached.
        let cut = matches!(choice.finish, Some(FinishReason::Length | FinishReason::ContextFull));
        let finish = response::FinishReason::of(&answer, cut);
        self.send(host, choice.index, Value::Object(Map::new()), Some(finish), Value::Null)?;
        let logprobs = if self.logprobs { response::logprobs(&choice.logprobs) } else { Value::Null };
        self.choices.push(response::choice(choice.index, &answer, finish, logprobs));
        Ok(())
    }

    /// Puts its mark beside the last choice.
    fn mark_last(&mut self, model: &Model, control: &mut Control<'_>) -> Result<()> {
        let Some(choice) = self.choices.last_mut() else { return Ok(()) };
        let text = choice["message"]["content"].as_str().unwrap_or_default();
        choice["sidecar"] = marking::mark(model, text, control)?;
        Ok(())
    }

    fn finish(mut self, host: &mut Host<'_, '_>, cached: usize) -> Result<Value> {
        if self.stream && self.include_usage {
            host.take(response::usage_chunk(self.head(), self.usage))?;
        }
        let choices = std::mem::take(&mut self.choices);
        let mut whole = response::completion(self.head(), choices, self.usage);
        whole["usage"]["prompt_tokens_details"] = json!({"cached_tokens": cached});
        Ok(whole)
    }
}

/// One alternative while it comes.
struct Choice<'m> {
    index: usize,
    model: &'m Model,
    parser: AnswerParser,
    wants_logprobs: bool,
    logprobs: Vec<TokenLogprob>,
    finish: Option<FinishReason>,
}

impl<'m> Choice<'m> {
    /// `seed` gives the names of its tool calls.
    fn new(reply: &Reply, model: &'m Model, prompt: &ChatPrompt, (index, seed): (usize, u64)) -> Self {
        let parser = AnswerParser::new(prompt.version, seed);
        Self { index, model, parser, wants_logprobs: reply.logprobs, logprobs: Vec::new(), finish: None }
    }

    /// Reads the start of the answer that the request gives; returns its deltas.
    fn resume(&mut self, prefix: &[Fragment]) -> Vec<Value> {
        self.parser.resume(prefix).iter().filter_map(response::delta).collect()
    }

    /// Reads the text and the control token of an event; returns the deltas that it completes, and its log-probability.
    fn add(&mut self, event: &Event) -> (Vec<Value>, Value) {
        self.finish = event.finish_reason;
        let mut events = if event.text.is_empty() { Vec::new() } else { self.parser.text(&event.text) };
        if let Some(name) = self.control_name(event) {
            events.extend(self.parser.control(&name));
        }
        let deltas: Vec<Value> = events.iter().filter_map(response::delta).collect();
        if !self.wants_logprobs {
            return (deltas, Value::Null);
        }
        self.logprobs.push(token_logprob(event, self.model));
        let logprobs = response::logprobs(&self.logprobs[self.logprobs.len() - 1..]);
        (if deltas.is_empty() { vec![json!({"content": ""})] } else { deltas }, logprobs)
    }

    /// The control token of an event that is a part of the answer, such as `[TOOL_CALLS]`.
    fn control_name(&self, event: &Event) -> Option<String> {
        let tokenizer = self.model.tokenizer().ok()?;
        let ends = self.model.eos_token_ids().contains(&event.token);
        let name = tokenizer.token_text(event.token).filter(|_| tokenizer.is_control(event.token) && !ends);
        name.map(std::borrow::Cow::into_owned)
    }
}

fn token_logprob(event: &Event, model: &Model) -> TokenLogprob {
    let bytes = |token: u32| {
        let bytes = model.tokenizer().ok().and_then(|t| t.token_bytes(token)).unwrap_or_default();
        bytes.into_owned()
    };
    TokenLogprob {
        bytes: bytes(event.token),
        logprob: f64::from(event.logprob.unwrap_or_default()),
        top: event.top_logprobs.iter().map(|t| (bytes(t.token), f64::from(t.logprob))).collect(),
    }
}
