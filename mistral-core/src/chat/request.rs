//! The body of a chat completion, as the Mistral and OpenAI APIs define it.
//!
//! A field that is unknown, ill-typed or cannot be honoured is an error that names its path; `null` stands for an absent field.

use crate::chat::fields::{Field, quote};
use crate::chat::json::Json;
use crate::chat::message::{Message, Role, Tool};
use crate::chat::schema;
use crate::error::{ChatRule, Error, Result};

/// The most alternatives that one request may ask for.
const MAX_CHOICES: u64 = 128;
/// As many as `lookup.rs` takes.
const MAX_LOOKUP: u64 = 32;
/// The most alternatives of a token that one request may ask for.
const MAX_TOP_LOGPROBS: u64 = 20;
/// The most stop strings.
const MAX_STOPS: usize = 64;

/// A chat completion to make.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The name that the caller gives to the model; it comes back in the response.
    pub model: Option<String>,
    /// The conversation.
    pub messages: Vec<Message>,
    /// The functions that the model may call.
    pub tools: Vec<Tool>,
    /// Whether it must call one.
    pub tool_choice: ToolChoice,
    /// Whether it may call several at once.
    pub parallel_tool_calls: bool,
    /// What the answer must look like.
    pub response_format: ResponseFormat,
    /// How much the model reasons before it answers.
    pub reasoning_effort: Option<ReasoningEffort>,
    /// Seconds since 1970-01-01 in the host's local time, for the templates that write the date into the prompt.
    pub local_time: Option<i64>,
    /// How tokens are chosen, and when to stop.
    pub options: CompletionOptions,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether the last piece of a stream tells the usage.
    pub include_usage: bool,
    /// Whether each answer of the whole response comes with a mark that it was generated ([`crate::marking`]).
    pub sidecar: bool,
}

/// The options that chat and plain completions share; [`None`] leaves the choice to the engine.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CompletionOptions {
    /// The most tokens to generate.
    pub max_tokens: Option<u64>,
    /// 0 (greedy) to 2.
    pub temperature: Option<f64>,
    /// The probability mass to choose from, 0 to 1.
    pub top_p: Option<f64>,
    /// The number of tokens to choose from; 0: all.
    pub top_k: Option<u64>,
    /// The least probability, as a share of the greatest, 0 to 1.
    pub min_p: Option<f64>,
    /// Makes sampling repeatable.
    pub seed: Option<u64>,
    /// Alternatives; at least 1.
    pub n: Option<u64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Log-probabilities: [`None`] for none, else how many alternatives of each token.
    pub logprobs: Option<u64>,
    /// Subtracted from the logit of each token that has occurred, -2 to 2.
    pub presence_penalty: Option<f64>,
    /// Subtracted for each occurrence, -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Divides the logits of tokens that have occurred, 0.01 to 100.
    pub repetition_penalty: Option<f64>,
    /// Added to the logits of tokens, -100 to 100.
    pub logit_bias: Vec<(u32, f64)>,
    /// Go on after the end-of-sequence token.
    pub ignore_eos: bool,
    /// Guess at most so many tokens at a time, 0 to 32; 0 for none.
    pub prompt_lookup: u64,
}

/// Whether the model calls a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// As it likes.
    Auto,
    /// Never.
    None,
    /// At least one (`any` or `required`).
    Required,
    /// This one.
    Function(String),
}

/// What the answer must look like.
#[derive(Clone, Debug, PartialEq)]
pub enum ResponseFormat {
    /// Anything.
    Text,
    /// JSON: an object.
    JsonObject,
    /// JSON that obeys a schema.
    JsonSchema {
        /// The name that the caller gives to it.
        name: String,
        /// The schema, an object.
        schema: Json,
        /// Whether the schema is enforced.
        strict: bool,
    },
    /// Text that matches a regular expression as a whole.
    Regex(String),
    /// Text that a grammar in the Lark syntax derives.
    Lark(String),
}

/// How much the model reasons, for the models that were trained with the setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningEffort(&'static str);

impl ReasoningEffort {
    const ALL: [(&'static str, Self); 7] = [
        ("none", Self("none")),
        ("minimal", Self("minimal")),
        ("low", Self("low")),
        ("medium", Self("medium")),
        ("high", Self("high")),
        ("xhigh", Self("xhigh")),
        ("max", Self("max")),
    ];

    /// As a request writes it.
    pub fn as_str(self) -> &'static str {
        self.0
    }

    /// The effort of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, effort)| *effort)
    }
}

/// Fields that chat and plain completions share.
const OPTION_FIELDS: [&str; 19] = [
    "model",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "random_seed",
    "n",
    "stop",
    "logprobs",
    "top_logprobs",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "ignore_eos",
    "prompt_lookup",
];

const STREAM_FIELDS: [&str; 2] = ["stream", "stream_options"];

const CHAT_FIELDS: [&str; 11] = [
    "messages",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "continue_final_message",
    "safe_prompt",
    "truncate_for_context_length",
    "sidecar",
    "local_time",
];

/// Fields of the APIs that a library on the host's own hardware cannot honour.
const FOREIGN_FIELDS: [&str; 25] = [
    "audio",
    "function_call",
    "functions",
    "guardrails",
    "metadata",
    "modalities",
    "moderation",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "prompt_logprobs",
    "prompt_mode",
    "safety_identifier",
    "service_tier",
    "store",
    "suffix",
    "top_a",
    "top_prompt_logprobs",
    "user",
    "verbosity",
    "web_search_options",
    "best_of",
    "echo",
    "min_tokens",
];

impl ChatRequest {
    /// Reads the JSON text of a request; numbers keep all their digits.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::read(&Json::from_request(text)?)
    }

    /// Reads a request that has been parsed already.
    pub fn from_value(value: &serde_json::Value) -> Result<Self> {
        Self::read(&Json::from(value))
    }

    /// Reads a request.
    pub fn read(value: &Json) -> Result<Self> {
        let root = Field::root(value);
        refuse_foreign(&root, &CHAT_FIELDS)?;
        let messages = root.required("messages")?.array()?;
        let tools = root.optional("tools").map(|f| f.array()).transpose()?.unwrap_or_default();
        let tools = tools.iter().map(Tool::read).collect::<Result<Vec<_>>>()?;
        let effort =
            root.optional("reasoning_effort").map(|f| f.keyword(&ReasoningEffort::ALL)).transpose()?;
        let (stream, include_usage) = read_stream(&root)?;
        let local_time =
            root.optional("local_time").map(|f| f.integer(0, u64::from(u32::MAX))).transpose()?;
        let mut request = Self {
            model: read_model(&root)?,
            messages: messages.iter().map(Message::read).collect::<Result<_>>()?,
            tool_choice: read_tool_choice(&root, &tools)?,
            tools,
            parallel_tool_calls: flag(&root, "parallel_tool_calls")?.unwrap_or(true),
            response_format: read_response_format(&root)?,
            reasoning_effort: effort,
            local_time: local_time.map(u64::cast_signed),
            options: read_options(&root)?,
            stream,
            include_usage,
            sidecar: flag(&root, "sidecar")?.unwrap_or(false),
        };
        for field in ["safe_prompt", "truncate_for_context_length"] {
            if flag(&root, field)? == Some(true) {
                return Err(Error::unsupported("field", field, "false"));
            }
        }
        if flag(&root, "continue_final_message")? == Some(true) {
            request.continue_final_message()?;
        }
        Ok(request)
    }

    fn continue_final_message(&mut self) -> Result<()> {
        match self.messages.last_mut() {
            Some(message) if message.role == Role::Assistant => {
                message.prefix = true;
                Ok(())
            }
            last => Err(Error::chat(
                ChatRule::MessageStructure,
                "continue_final_message",
                last.map_or_else(
                    || "no message".into(),
                    |m| format!("a last message of the role {}", m.role),
                ),
                "a last message of the assistant",
            )),
        }
    }
}

/// A completion of plain text, with or without a text after the gap.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// The name that the caller gives to the model.
    pub model: Option<String>,
    /// The text to continue.
    pub prompt: String,
    /// The text that follows what is generated (fill in the middle).
    pub suffix: Option<String>,
    /// How tokens are chosen, and when to stop.
    pub options: CompletionOptions,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether the last piece of a stream tells the usage.
    pub include_usage: bool,
}

impl CompletionRequest {
    /// Reads the JSON text of a request.
    pub fn from_json(text: &str) -> Result<Self> {
        Self::read(&Json::from_request(text)?)
    }

    /// Reads a request that has been parsed already.
    pub fn from_value(value: &serde_json::Value) -> Result<Self> {
        Self::read(&Json::from(value))
    }

    /// Reads a request.
    pub fn read(value: &Json) -> Result<Self> {
        let root = Field::root(value);
        refuse_foreign(&root, &["prompt", "suffix"])?;
        let (stream, include_usage) = read_stream(&root)?;
        Ok(Self {
            model: read_model(&root)?,
            prompt: root.required("prompt")?.string()?.to_owned(),
            suffix: root.optional("suffix").map(|f| f.string().map(str::to_owned)).transpose()?,
            options: read_options(&root)?,
            stream,
            include_usage,
        })
    }
}

fn refuse_foreign(root: &Field<'_>, own: &[&str]) -> Result<()> {
    let known: Vec<&str> = own.iter().chain(&OPTION_FIELDS).chain(&STREAM_FIELDS).copied().collect();
    for key in FOREIGN_FIELDS.iter().filter(|key| !known.contains(*key)) {
        if root.optional(key).is_some() {
            return Err(Error::unsupported("field", key, known.join(", ")));
        }
    }
    let null_ok: Vec<&str> = known.iter().chain(&FOREIGN_FIELDS).copied().collect();
    match root.object()?.iter().find(|(key, _)| !null_ok.contains(&key.as_str())) {
        Some(_) => root.only(&known),
        None => Ok(()),
    }
}

fn flag(root: &Field<'_>, key: &str) -> Result<Option<bool>> {
    root.optional(key).map(|f| f.boolean()).transpose()
}

fn read_model(root: &Field<'_>) -> Result<Option<String>> {
    root.optional("model").map(|f| f.string().map(str::to_owned)).transpose()
}

fn read_stream(root: &Field<'_>) -> Result<(bool, bool)> {
    let stream = flag(root, "stream")?.unwrap_or(false);
    let Some(options) = root.optional("stream_options") else { return Ok((stream, false)) };
    options.only(&["include_usage"])?;
    if !stream {
        return Err(options.refused("options without `stream`", "\"stream\": true"));
    }
    Ok((stream, flag(&options, "include_usage")?.unwrap_or(false)))
}

fn read_options(root: &Field<'_>) -> Result<CompletionOptions> {
    let integer = |key, min, max| root.optional(key).map(|f| f.integer(min, max)).transpose();
    let number = |key, min, max| root.optional(key).map(|f| f.number(min, max)).transpose();
    Ok(CompletionOptions {
        max_tokens: one_of(root, "max_tokens", "max_completion_tokens")?
            .map(|f| f.integer(0, u64::from(u32::MAX)))
            .transpose()?,
        temperature: number("temperature", 0.0, 2.0)?,
        top_p: number("top_p", 0.0, 1.0)?,
        top_k: integer("top_k", 0, u64::from(u32::MAX))?,
        min_p: number("min_p", 0.0, 1.0)?,
        seed: one_of(root, "seed", "random_seed")?.map(|f| f.integer(0, u64::MAX)).transpose()?,
        n: integer("n", 1, MAX_CHOICES)?,
        stop: read_stop(root)?,
        logprobs: read_logprobs(root)?,
        presence_penalty: number("presence_penalty", -2.0, 2.0)?,
        frequency_penalty: number("frequency_penalty", -2.0, 2.0)?,
        repetition_penalty: number("repetition_penalty", 0.01, 100.0)?,
        logit_bias: read_logit_bias(root)?,
        ignore_eos: flag(root, "ignore_eos")?.unwrap_or(false),
        prompt_lookup: integer("prompt_lookup", 0, MAX_LOOKUP)?.unwrap_or(0),
    })
}

/// Two names of one field.
fn one_of<'a>(root: &Field<'a>, name: &str, other: &str) -> Result<Option<Field<'a>>> {
    match (root.optional(name), root.optional(other)) {
        (Some(_), Some(second)) => Err(second.refused(format!("`{name}` as well"), "one of both")),
        (first, second) => Ok(first.or(second)),
    }
}

fn read_stop(root: &Field<'_>) -> Result<Vec<String>> {
    let Some(field) = root.optional("stop") else { return Ok(Vec::new()) };
    let stops = match field.value {
        Json::String(_) => vec![field],
        Json::Array(items) if items.len() <= MAX_STOPS => field.array()?,
        Json::Array(items) => return Err(Error::limit("stop", items.len(), MAX_STOPS)),
        _ => return Err(field.wrong("a string or an array of strings")),
    };
    stops
        .iter()
        .map(|stop| match stop.string()? {
            "" => Err(stop.refused("an empty string", "some text")),
            text => Ok(text.to_owned()),
        })
        .collect()
}

fn read_logprobs(root: &Field<'_>) -> Result<Option<u64>> {
    let wanted = flag(root, "logprobs")?.unwrap_or(false);
    let Some(field) = root.optional("top_logprobs") else { return Ok(wanted.then_some(0)) };
    let top = field.integer(0, MAX_TOP_LOGPROBS)?;
    if !wanted && top > 0 {
        return Err(field.refused("a number without `logprobs`", "\"logprobs\": true"));
    }
    Ok(wanted.then_some(top))
}

fn read_logit_bias(root: &Field<'_>) -> Result<Vec<(u32, f64)>> {
    let Some(field) = root.optional("logit_bias") else { return Ok(Vec::new()) };
    field
        .object()?
        .iter()
        .map(|(key, value)| {
            let entry = field.child(key, value);
            let token = key.parse().map_err(|_| entry.refused(quote(key), "the id of a token as key"))?;
            Ok((token, entry.number(-100.0, 100.0)?))
        })
        .collect()
}

fn read_tool_choice(root: &Field<'_>, tools: &[Tool]) -> Result<ToolChoice> {
    let Some(field) = root.optional("tool_choice") else { return Ok(ToolChoice::Auto) };
    if matches!(field.value, Json::String(_)) {
        let words = [("auto", 0), ("none", 1), ("any", 2), ("required", 2)];
        return match field.keyword(&words)? {
            0 => Ok(ToolChoice::Auto),
            1 => Ok(ToolChoice::None),
            _ if tools.is_empty() => Err(field.refused("a required call without `tools`", "tools to call")),
            _ => Ok(ToolChoice::Required),
        };
    }
    if field.value.members().is_none() {
        return Err(field.wrong("auto, none, any, required or an object that names a function"));
    }
    field.only(&["type", "function"])?;
    field.optional("type").map_or(Ok(()), |kind| kind.keyword(&[("function", ())]))?;
    let function = field.required("function")?;
    function.only(&["name"])?;
    let name = function.required("name")?;
    if !tools.iter().any(|tool| Some(tool.name.as_str()) == name.value.as_str()) {
        name.string()?;
        return Err(name.refused("a name that is not in `tools`", "the name of a tool"));
    }
    Ok(ToolChoice::Function(name.string()?.to_owned()))
}

fn read_response_format(root: &Field<'_>) -> Result<ResponseFormat> {
    let Some(field) = root.optional("response_format") else { return Ok(ResponseFormat::Text) };
    let kind = field.optional("type");
    let kind = kind.as_ref().map_or(Ok("text"), |kind| kind.string())?;
    let text = |key: &str| -> Result<String> {
        field.only(&["type", key])?;
        Ok(field.required(key)?.string()?.to_owned())
    };
    match kind {
        "regex" => return text("regex").map(ResponseFormat::Regex),
        "lark" => return text("lark").map(ResponseFormat::Lark),
        _ => field.only(&["type", "json_schema"])?,
    }
    let schema = field.optional("json_schema").map(|f| read_json_schema(&f)).transpose()?;
    match (kind, schema) {
        ("text", None) => Ok(ResponseFormat::Text),
        ("json_object", None) => Ok(ResponseFormat::JsonObject),
        ("json_schema", Some(schema)) => Ok(schema),
        ("json_schema", None) => {
            Err(field.required("json_schema").err().unwrap_or_else(|| field.wrong("a schema")))
        }
        ("text" | "json_object", Some(_)) => {
            Err(field.refused(format!("`json_schema` beside the type {kind}"), "the type json_schema"))
        }
        (other, _) => Err(field
            .child("type", field.value)
            .refused(quote(other), "one of text, json_object, json_schema, regex, lark")),
    }
}

fn read_json_schema(field: &Field<'_>) -> Result<ResponseFormat> {
    field.only(&["name", "description", "schema", "strict"])?;
    field.optional("description").map(|f| f.string()).transpose()?;
    let schema = field.required("schema")?;
    schema.object()?;
    schema::check(schema.value, &schema.path)
        .map_err(|e| Error::argument(e.path, e.found, format!("{} (JSON Schema draft 7)", e.expected)))?;
    Ok(ResponseFormat::JsonSchema {
        name: field.required("name")?.string()?.to_owned(),
        schema: schema.value.clone(),
        strict: flag(field, "strict")?.unwrap_or(false),
    })
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
