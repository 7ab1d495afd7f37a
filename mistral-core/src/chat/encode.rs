//! Writes a conversation in Mistral's chat formats, v1 to v15 (mistral-common 1.13.1, `tokens/tokenizers/instruct.py`).
//!
//! A prompt is a list of fragments: control tokens, and stretches of text that are tokenized each for itself. Encoding and
//! rendering are two readings of that list.

use crate::chat::json::Json;
use crate::chat::message::{Chunk, Content, Message, NO_ID, Role, ToolCall};
use crate::chat::normalize::{Normalized, json_or_text, normalize};
use crate::chat::request::{ChatRequest, CompletionRequest};
use crate::chat::settings::ModelSettings;
use crate::chat::validate::{ValidationMode, validate};
use crate::error::{ChatRule, Error, Result};
use crate::tokenizer::{Tokenizer, TokenizerVersion as Version};

/// Written before the text of a gap's end, so that a tokenizer of SentencePiece puts its space before this sign instead.
const INFILL_MARK: &str = "☺";
/// Tokens that the mark and its space take.
const INFILL_MARK_TOKENS: usize = 2;

/// The chat format of a model.
#[derive(Clone, Debug)]
pub struct ChatFormat {
    version: Version,
    mode: ValidationMode,
    settings: Option<ModelSettings>,
}

/// A piece of a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// The beginning of the sequence.
    Bos,
    /// The end of an answer.
    Eos,
    /// A control token.
    Special(&'static str),
    /// Text, tokenized for itself.
    Text(String),
    /// The text after the gap of fill in the middle: without the space that SentencePiece puts before a text.
    Infill(String),
}

/// A request as a model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// From the beginning of the sequence to where the answer begins.
    pub fragments: Vec<Fragment>,
    /// How many of them, at the end, are the message that the answer goes on from.
    prefix: usize,
}

impl Prompt {
    /// A piece of a conversation.
    pub(crate) fn of(fragments: Vec<Fragment>) -> Self {
        Self { fragments, prefix: 0 }
    }

    /// The message that the answer goes on from; empty if it begins anew.
    pub fn prefix(&self) -> &[Fragment] {
        &self.fragments[self.fragments.len().saturating_sub(self.prefix)..]
    }

    /// The tokens.
    ///
    /// [`Error::Unsupported`] if the vocabulary lacks a control token of the format.
    pub fn to_tokens(&self, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        for fragment in &self.fragments {
            match fragment {
                Fragment::Bos => tokens.push(control(tokenizer.bos(), "of the beginning")?),
                Fragment::Eos => tokens.push(control(tokenizer.eos(), "of the end")?),
                // The reference reads a marker that the vocabulary of an old model lacks as unknown.
                Fragment::Special(name @ ("[SUFFIX]" | "[PREFIX]")) => {
                    tokens.push(control(tokenizer.special(name).or(tokenizer.unk()), name)?);
                }
                Fragment::Special(name) => tokens.push(control(tokenizer.special(name), name)?),
                Fragment::Text(text) => tokens.extend(tokenizer.encode(text)),
                Fragment::Infill(text) => {
                    let marked = tokenizer.encode(&format!("{INFILL_MARK}{text}"));
                    tokens.extend(marked.into_iter().skip(INFILL_MARK_TOKENS));
                }
            }
        }
        Ok(tokens)
    }

    /// The text, control tokens by their names, as the reference shows it: of a SentencePiece vocabulary the pieces. It is for
    /// people: the tokens of this text may be others.
    ///
    /// As [`Prompt::to_tokens`].
    pub fn to_text(&self, tokenizer: &Tokenizer) -> Result<String> {
        if tokenizer.writes_metaspace() {
            let tokens = self.to_tokens(tokenizer)?;
            let pieces = tokens.iter().filter_map(|&token| tokenizer.token_text(token));
            return Ok(pieces.map(|piece| piece.replace(' ', "▁")).collect());
        }
        let text = |fragment: &Fragment| match fragment {
            Fragment::Bos => "<s>".to_owned(),
            Fragment::Eos => "</s>".to_owned(),
            Fragment::Special(name) => (*name).to_owned(),
            Fragment::Text(text) | Fragment::Infill(text) => text.clone(),
        };
        Ok(self.fragments.iter().map(text).collect())
    }
}

fn control(id: Option<u32>, name: &str) -> Result<u32> {
    id.ok_or_else(|| Error::unsupported("control token", name, "the control tokens of this vocabulary"))
}

impl ChatFormat {
    /// The format of a version, for models without settings.
    pub fn new(version: Version) -> Self {
        Self { version, mode: ValidationMode::default(), settings: None }
    }

    /// The format of a model: the version that its tokenizer declares, unless another is given.
    ///
    /// [`Error::Unsupported`] if neither says one.
    pub fn of(tokenizer: &Tokenizer, version: Option<Version>) -> Result<Self> {
        let version = version.or(tokenizer.version()).ok_or_else(|| {
            Error::unsupported(
                "chat format",
                "a tokenizer that declares none",
                Version::ALL.map(Version::as_str).join(", "),
            )
        })?;
        let section = tokenizer.section("model_settings_builder").filter(|section| !section.is_null());
        let settings =
            section.map(|section| ModelSettings::from_section(section, "tekken.json")).transpose()?;
        Ok(Self { version, mode: ValidationMode::default(), settings })
    }

    /// With other rules about how a conversation ends.
    pub fn with_mode(mut self, mode: ValidationMode) -> Self {
        self.mode = mode;
        self
    }

    /// With the settings that the model knows (v15).
    pub fn with_settings(mut self, settings: ModelSettings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Writes a chat request.
    ///
    /// [`Error::Chat`] for a request that breaks a rule of the format.
    pub fn prompt(&self, request: &ChatRequest) -> Result<Prompt> {
        validate(request, self.version, self.mode)?;
        let conversation = normalize(&request.messages, self.version)?;
        let mut writer = Writer { version: self.version, fragments: vec![Fragment::Bos], last_message: 0 };
        let preamble = self.preamble(request)?;
        writer.conversation(&conversation, &preamble)?;
        let goes_on = conversation.messages.last().is_some_and(|message| message.prefix);
        let prefix = if goes_on { writer.fragments.len() - writer.last_message } else { 0 };
        Ok(Prompt { fragments: writer.fragments, prefix })
    }

    /// Writes a completion: fill in the middle for a request with a suffix, else plain text.
    ///
    /// [`Error::Chat`] where the format has no fill in the middle.
    pub fn completion(&self, request: &CompletionRequest) -> Result<Prompt> {
        match &request.suffix {
            Some(suffix) => self.fim(&request.prompt, suffix),
            None => Ok(Prompt {
                fragments: vec![Fragment::Bos, Fragment::Text(request.prompt.clone())],
                prefix: 0,
            }),
        }
    }

    /// Writes the text before and after a gap that the model fills.
    pub fn fim(&self, prompt: &str, suffix: &str) -> Result<Prompt> {
        if self.version < Version::V2 {
            return Err(Error::chat(
                ChatRule::Tokenizer,
                "suffix",
                "a suffix",
                "nothing: v1 has no fill in the middle",
            ));
        }
        let mut fragments = vec![Fragment::Bos, Fragment::Special("[SUFFIX]")];
        if !suffix.is_empty() {
            fragments.push(Fragment::Infill(suffix.to_owned()));
        }
        fragments.push(Fragment::Special("[PREFIX]"));
        fragments.push(Fragment::Text(prompt.to_owned()));
        Ok(Prompt { fragments, prefix: 0 })
    }

    /// The tools and settings, which stand before the last user message or (from v13) the first.
    fn preamble(&self, request: &ChatRequest) -> Result<Vec<Fragment>> {
        let mut fragments = Vec::new();
        if !request.tools.is_empty() && self.version >= Version::V2 {
            let tools = Json::Array(request.tools.iter().map(|tool| tool.to_json()).collect());
            fragments.push(Fragment::Special("[AVAILABLE_TOOLS]"));
            fragments.push(Fragment::Text(tools.dumps()));
            fragments.push(Fragment::Special("[/AVAILABLE_TOOLS]"));
        }
        if self.version >= Version::V15 {
            let settings = self.settings.as_ref().ok_or_else(|| {
                Error::chat(
                    ChatRule::Request,
                    "model",
                    "no `model_settings_builder`",
                    "a tokenizer of v15 with its settings",
                )
            })?;
            if let Some(settings) = settings.of_request(request)? {
                fragments.push(Fragment::Special("[MODEL_SETTINGS]"));
                fragments.push(Fragment::Text(settings.dumps()));
                fragments.push(Fragment::Special("[/MODEL_SETTINGS]"));
            }
        }
        Ok(fragments)
    }
}

struct Writer {
    version: Version,
    fragments: Vec<Fragment>,
    /// Where the last message begins.
    last_message: usize,
}

impl Writer {
    fn special(&mut self, name: &'static str) {
        self.fragments.push(Fragment::Special(name));
    }

    fn text(&mut self, text: impl Into<String>) {
        self.fragments.push(Fragment::Text(text.into()));
    }

    fn conversation(&mut self, conversation: &Normalized, preamble: &[Fragment]) -> Result<()> {
        let messages = &conversation.messages;
        let first_user = messages.iter().position(|m| m.role == Role::User);
        let last_user = messages.iter().rposition(|m| m.role == Role::User);
        if self.version == Version::V2 {
            check_single_results(&messages[last_user.unwrap_or(0)..])?;
        }
        // v2 writes the tools, calls and results of the last turn only; v1 puts the system prompt first.
        let preamble_at = if self.version >= Version::V13 { first_user } else { last_user };
        let system_at = if self.version == Version::V1 { first_user } else { last_user };
        for (i, message) in messages.iter().enumerate() {
            self.last_message = self.fragments.len();
            let past = self.version == Version::V2 && Some(i) < last_user;
            match message.role {
                Role::System => self.system(message)?,
                Role::User => {
                    if Some(i) == preamble_at {
                        self.fragments.extend_from_slice(preamble);
                    }
                    let system = conversation.system_prompt.as_deref().filter(|_| Some(i) == system_at);
                    self.user(message, system.unwrap_or_default());
                }
                Role::Assistant => self.assistant(message, past, i)?,
                Role::Tool if past => {}
                Role::Tool => self.result(message, i)?,
            }
        }
        Ok(())
    }

    fn system(&mut self, message: &Message) -> Result<()> {
        self.special("[SYSTEM_PROMPT]");
        self.content(message)?;
        self.special("[/SYSTEM_PROMPT]");
        Ok(())
    }

    fn user(&mut self, message: &Message, system: &str) {
        // The content of a user is one text: chunks of other kinds have been refused.
        let mut content = match &message.content {
            Some(Content::Text(text)) => text.clone(),
            _ => String::new(),
        };
        if !system.is_empty() {
            content = format!("{system}\n\n{content}");
        }
        if self.version == Version::V1 {
            return self.text(format!("[INST] {content} [/INST]"));
        }
        self.special("[INST]");
        self.text(content);
        self.special("[/INST]");
    }

    fn assistant(&mut self, message: &Message, past: bool, index: usize) -> Result<()> {
        let error =
            |rule, found, expected| Err(Error::chat(rule, format!("messages[{index}]"), found, expected));
        let calls = !message.tool_calls.is_empty();
        let content = message.has_content();
        if calls && self.version == Version::V1 {
            return error(ChatRule::Tokenizer, "tool calls", "none: v1 has no tools");
        }
        if calls && content && self.version < Version::V7 {
            return error(ChatRule::AssistantMessage, "content and tool calls after merging", "one of both");
        }
        if !calls && !content {
            return error(ChatRule::Tokenizer, "neither content nor tool calls", "an answer");
        }
        if calls && past {
            return Ok(());
        }
        if content {
            self.content(message)?;
        }
        if calls {
            self.calls(&message.tool_calls)?;
        }
        if !message.prefix {
            self.fragments.push(Fragment::Eos);
        }
        Ok(())
    }

    fn content(&mut self, message: &Message) -> Result<()> {
        match &message.content {
            None => {}
            Some(Content::Text(text)) if message.role == Role::Assistant && self.version >= Version::V2 => {
                self.text(text.trim_end_matches(' '));
            }
            Some(Content::Text(text)) => self.text(text.as_str()),
            Some(Content::Chunks(chunks)) => {
                for chunk in chunks {
                    match chunk {
                        Chunk::Text(text) => self.text(text.as_str()),
                        Chunk::Think { text, closed } => self.think(text, *closed, message.role)?,
                        Chunk::Image | Chunk::Audio => {
                            return Err(Error::unsupported("chunk", chunk.name(), "text, thinking"));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn think(&mut self, text: &str, closed: bool, role: Role) -> Result<()> {
        if self.version < Version::V13 {
            let path = format!("a {role} message");
            return Err(Error::chat(
                ChatRule::Tokenizer,
                path,
                "a chunk of the type thinking",
                "text: reasoning begins with v13",
            ));
        }
        self.special("[THINK]");
        self.text(text);
        if closed {
            self.special("[/THINK]");
        }
        Ok(())
    }

    fn calls(&mut self, calls: &[ToolCall]) -> Result<()> {
        if self.version < Version::V11 {
            let calls = calls.iter().map(|call| self.call_json(call)).collect::<Result<_>>()?;
            self.special("[TOOL_CALLS]");
            self.text(Json::Array(calls).dumps());
            return Ok(());
        }
        for call in calls {
            self.special("[TOOL_CALLS]");
            self.text(call.name.as_str());
            if self.version == Version::V11 && has_id(call) {
                self.special("[CALL_ID]");
                self.text(call.id.as_str());
            }
            self.special("[ARGS]");
            self.text(arguments_json(call)?.dumps());
        }
        Ok(())
    }

    fn call_json(&self, call: &ToolCall) -> Result<Json> {
        let mut members = vec![
            ("name".to_owned(), Json::String(call.name.clone())),
            ("arguments".to_owned(), arguments_json(call)?),
        ];
        if self.version >= Version::V3 && has_id(call) {
            members.push(("id".to_owned(), Json::String(call.id.clone())));
        }
        Ok(Json::Object(members))
    }

    fn result(&mut self, message: &Message, index: usize) -> Result<()> {
        let Some(Content::Text(text)) = &message.content else {
            return Err(Error::Internal(format!("messages[{index}]: a result that is no text")));
        };
        let id = message.tool_call_id.clone().unwrap_or_default();
        self.special("[TOOL_RESULTS]");
        match self.version {
            Version::V1 => {
                let expected = "none: v1 has no tools";
                return Err(Error::chat(
                    ChatRule::Tokenizer,
                    format!("messages[{index}]"),
                    "a tool's result",
                    expected,
                ));
            }
            Version::V2 => {
                let name = message.name.clone().map_or(Json::Null, Json::String);
                let result = vec![("name".to_owned(), name), ("content".to_owned(), value_of(text)?)];
                self.text(Json::Array(vec![Json::Object(result)]).dumps());
            }
            Version::V3 => {
                let result =
                    vec![("content".to_owned(), value_of(text)?), ("call_id".to_owned(), Json::String(id))];
                self.text(Json::Object(result).dumps());
            }
            Version::V7 | Version::V11 => {
                self.text(id);
                self.special("[TOOL_CONTENT]");
                self.text(text.as_str());
            }
            Version::V13 | Version::V15 => self.text(text.as_str()),
        }
        self.special("[/TOOL_RESULTS]");
        Ok(())
    }
}

fn has_id(call: &ToolCall) -> bool {
    !call.id.is_empty() && call.id != NO_ID
}

/// The arguments as JSON: a string where they are not.
fn arguments_json(call: &ToolCall) -> Result<Json> {
    value_of(&call.arguments)
}

fn value_of(text: &str) -> Result<Json> {
    Ok(json_or_text(text)?.unwrap_or_else(|| Json::String(text.to_owned())))
}

/// v2 has room for one result in a turn.
fn check_single_results(messages: &[Message]) -> Result<()> {
    let mut calls = false;
    let mut results = 0;
    for message in messages {
        match message.role {
            Role::Tool if calls => results += 1,
            Role::Tool => {}
            Role::Assistant => (calls, results) = (!message.tool_calls.is_empty(), 0),
            _ => (calls, results) = (false, 0),
        }
        if results > 1 {
            let rule = ChatRule::UnsupportedFeature;
            return Err(Error::chat(
                rule,
                "messages",
                "several results for one message",
                "one: v2 has room for one",
            ));
        }
    }
    Ok(())
}
