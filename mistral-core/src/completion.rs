//! Chat completions: a request of the Mistral and OpenAI APIs in, a response or a stream of chunks out.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::chat::jinja::{ChatTemplate, RenderOptions};
use crate::chat::request::{ChatRequest, CompletionOptions, ResponseFormat};
use crate::chat::{ChatFormat, ModelSettings};
use crate::control::Control;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::generate::{Event, FinishReason, GenerateOptions};
use crate::sampler::SamplingParams;
use crate::session::{DEFAULT_CONTEXT, Session, SessionOptions};
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
        let tokenizer = self.tokenizer()?;
        match self.chat_style()? {
            ChatStyle::Mistral(format) => format.prompt(request)?.to_tokens(tokenizer),
            ChatStyle::Template(template) => {
                let text = template.render(request, RenderOptions::default())?;
                let mut tokens = tokenizer.encode_with_special(&text);
                // Most templates write the token of the beginning themselves.
                if let Some(bos) =
                    tokenizer.bos().filter(|bos| tokenizer.adds_bos() && tokens.first() != Some(bos))
                {
                    tokens.insert(0, bos);
                }
                Ok(tokens)
            }
            ChatStyle::Unknown(reason) => Err(self.no_chat(reason)),
        }
    }

    /// The text that the model reads for `request`, control tokens by their names; for people, not for encoding.
    ///
    /// # Errors
    /// As [`Model::chat_encode`].
    pub fn chat_render(&self, request: &ChatRequest) -> Result<String> {
        match self.chat_style()? {
            ChatStyle::Mistral(format) => Ok(format.prompt(request)?.to_text()),
            ChatStyle::Template(template) => template.render(request, RenderOptions::default()),
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
        let request = ChatRequest::from_value(request)?;
        let prompt = self.chat_encode(&request)?.len();
        let answer =
            request.options.max_tokens.map_or(DEFAULT_ANSWER, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let longest = self.weights()?.config.max_context.max(1);
        let context = prompt.saturating_add(answer).clamp(1, longest.max(DEFAULT_CONTEXT.min(longest)));
        let options = SessionOptions { context: Some(context), ..SessionOptions::default() };
        self.session(&options)?.chat_request(&request, on_chunk, control)
    }

    fn no_chat(&self, reason: &str) -> Error {
        Error::unsupported("chat", format!("{} ({reason})", self.path().display()), "generate")
    }
}

impl Session {
    /// Answers a chat-completions request on this session: what the conversation shares with the session's timeline is not evaluated again.
    ///
    /// # Errors
    /// As [`Model::chat`].
    pub fn chat(
        &mut self,
        request: &Value,
        on_chunk: &mut dyn FnMut(Value),
        control: &mut Control<'_>,
    ) -> Result<Value> {
        self.chat_request(&ChatRequest::from_value(request)?, on_chunk, control)
    }

    fn chat_request(
        &mut self,
        request: &ChatRequest,
        on_chunk: &mut dyn FnMut(Value),
        control: &mut Control<'_>,
    ) -> Result<Value> {
        let model = Arc::clone(self.model());
        let prompt = model.chat_encode(request)?;
        refuse_unhonoured(request)?;
        let mut reply = Reply::new(request);
        let mut completion_tokens = 0;
        let mut cached = 0;
        for index in 0..request.options.n.unwrap_or(1) {
            let options = generate_options(&request.options, index);
            let kept = self.rewind_to_prefix(&prompt);
            cached = if index == 0 { kept } else { cached };
            let mut generation = self.generate(&prompt[kept..], &options, control)?;
            reply.begin(index);
            reply.send(on_chunk, json!({"role": "assistant", "content": ""}), None);
            while let Some(event) = generation.next(control) {
                reply.add(event?, &model, on_chunk);
            }
            completion_tokens += generation.generated();
        }
        Ok(reply.finish(prompt.len(), cached, completion_tokens))
    }
}

/// Fields that are understood, and that this model or build does not do.
fn refuse_unhonoured(request: &ChatRequest) -> Result<()> {
    match request.response_format {
        ResponseFormat::Text => Ok(()),
        _ => Err(Error::unsupported("field `response_format`", "another type than text", "text")),
    }
}

/// The options of choice `index`: each has a seed of its own.
fn generate_options(options: &CompletionOptions, index: u64) -> GenerateOptions {
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
            seed: options.seed.unwrap_or(plain.seed).wrapping_add(index),
            logprobs: options.logprobs.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            ..plain
        },
        max_tokens: options.max_tokens.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        stop: options.stop.clone(),
        ignore_eos: options.ignore_eos,
        ..GenerateOptions::default()
    }
}

/// A response in the making.
struct Reply {
    id: String,
    created: u64,
    model: String,
    stream: bool,
    include_usage: bool,
    index: u64,
    choices: Vec<Choice>,
    logprobs: bool,
}

#[derive(Default)]
struct Choice {
    text: String,
    logprobs: Vec<Value>,
    finish_reason: Option<FinishReason>,
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
            index: 0,
            choices: Vec::new(),
            logprobs: request.options.logprobs.is_some(),
        }
    }

    fn begin(&mut self, index: u64) {
        self.index = index;
        self.choices.push(Choice::default());
    }

    fn add(&mut self, event: Event, model: &Model, on_chunk: &mut dyn FnMut(Value)) {
        let logprobs = self.logprobs.then(|| logprob_entry(&event, model));
        let Some(choice) = self.choices.last_mut() else { return };
        choice.text += &event.text;
        choice.logprobs.extend(logprobs.clone());
        choice.finish_reason = event.finish_reason;
        if !event.text.is_empty() || logprobs.is_some() {
            self.send(on_chunk, json!({"content": event.text}), logprobs);
        }
        if event.finish_reason.is_some() {
            self.send(on_chunk, json!({}), None);
        }
    }

    /// A piece of the stream; the one with an empty delta tells why the choice ended.
    fn send(&self, on_chunk: &mut dyn FnMut(Value), delta: Value, logprobs: Option<Value>) {
        if !self.stream {
            return;
        }
        let ended = delta.as_object().is_some_and(serde_json::Map::is_empty);
        let reason = self.choices.last().and_then(|c| c.finish_reason).filter(|_| ended);
        let mut choice =
            json!({"index": self.index, "delta": delta, "finish_reason": reason.map(finish_name)});
        if let Some(entry) = logprobs {
            choice["logprobs"] = json!({"content": [entry]});
        }
        on_chunk(self.envelope("chat.completion.chunk", vec![choice]));
    }

    fn envelope(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices})
    }

    fn finish(self, prompt: usize, cached: usize, completion: usize) -> Value {
        let choices = self.choices.iter().zip(0u64..).map(|(choice, index)| {
            let reason = choice.finish_reason.map(finish_name);
            let message = json!({"role": "assistant", "content": choice.text});
            let mut value = json!({"index": index, "message": message, "finish_reason": reason});
            if self.logprobs {
                value["logprobs"] = json!({"content": choice.logprobs});
            }
            value
        });
        let mut response = self.envelope("chat.completion", choices.collect());
        response["usage"] = json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        });
        response
    }
}

/// The API knows no full context: it is a length that was reached.
fn finish_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::ContextFull => "length",
    }
}

fn logprob_entry(event: &Event, model: &Model) -> Value {
    let text = |token: u32| {
        let bytes = model.tokenizer().ok().and_then(|t| t.token_bytes(token)).unwrap_or_default();
        (String::from_utf8_lossy(&bytes).into_owned(), bytes.to_vec())
    };
    let entry = |token: u32, logprob: f32| {
        let (text, bytes) = text(token);
        json!({"token": text, "logprob": logprob, "bytes": bytes})
    };
    let mut value = entry(event.token, event.logprob.unwrap_or_default());
    value["top_logprobs"] = event.top_logprobs.iter().map(|t| entry(t.token, t.logprob)).collect();
    value
}
