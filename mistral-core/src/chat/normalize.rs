//! Brings a conversation into the form that the formats write: one message for each run of a role, texts joined, arguments as
//! `json.dumps` writes them. The rules are those of mistral-common 1.13.1 (`protocol/instruct/normalize.py`).

use std::collections::HashMap;

use crate::chat::json::{Dialect, Json};
use crate::chat::message::{Chunk, Content, Message, Role, ToolCall};
use crate::error::{ChatRule, Error, Result};
use crate::tokenizer::TokenizerVersion as Version;

/// What stands between the texts of messages that become one.
const MESSAGE_SEPARATOR: &str = "\n\n";

/// A conversation as a format writes it.
#[derive(Debug)]
pub(super) struct Normalized {
    /// Up to v3: all system messages, for the user's message that carries them.
    pub system_prompt: Option<String>,
    pub messages: Vec<Message>,
}

pub(super) fn normalize(messages: &[Message], version: Version) -> Result<Normalized> {
    let normalizer = Normalizer { version };
    let system_prompt = match version >= Version::V7 {
        true => None,
        false => normalizer.system_prompt(messages)?,
    };
    Ok(Normalized { system_prompt, messages: normalizer.merge_runs(messages)? })
}

struct Normalizer {
    version: Version,
}

impl Normalizer {
    fn chunk_separator(&self) -> &'static str {
        if self.version >= Version::V15 { "" } else { MESSAGE_SEPARATOR }
    }

    fn system_prompt(&self, messages: &[Message]) -> Result<Option<String>> {
        let mut prompts = Vec::new();
        for message in messages.iter().filter(|m| m.role == Role::System && m.has_content()) {
            prompts.push(self.text_of(message)?);
        }
        Ok((!prompts.is_empty()).then(|| prompts.join(MESSAGE_SEPARATOR)))
    }

    fn merge_runs(&self, messages: &[Message]) -> Result<Vec<Message>> {
        let mut merged: Vec<Message> = Vec::new();
        // The calls that the next results answer, in their order.
        let mut call_ids: Vec<String> = Vec::new();
        for run in messages.chunk_by(|a, b| a.role == b.role) {
            match run[0].role {
                Role::System if self.version < Version::V7 => {}
                Role::System => {
                    for message in run {
                        let content = self.join(&[message])?;
                        merged.push(Message { content: Some(content), ..Message::text(Role::System, "") });
                    }
                }
                Role::User => {
                    let content = self.join(&run.iter().collect::<Vec<_>>())?;
                    merged.push(Message { content: Some(content), ..Message::text(Role::User, "") });
                }
                Role::Assistant => {
                    let message = self.merge_assistant(run)?;
                    call_ids.extend(message.tool_calls.iter().map(|call| call.id.clone()));
                    merged.push(message);
                }
                Role::Tool => {
                    merged.extend(self.results(run, &call_ids)?);
                    call_ids.clear();
                }
            }
        }
        // Up to v3 a conversation begins with the user, who carries the system prompt.
        let user_is_first =
            merged.first().is_some_and(|m| m.role == Role::User || self.version >= Version::V7);
        if !user_is_first {
            merged.insert(0, Message::text(Role::User, ""));
        }
        Ok(merged)
    }

    fn merge_assistant(&self, run: &[Message]) -> Result<Message> {
        let content = self.join(&run.iter().collect::<Vec<_>>())?;
        let calls = run.iter().flat_map(|message| &message.tool_calls);
        let calls =
            calls.map(|call| Ok(ToolCall { arguments: normal_json(&call.arguments)?, ..call.clone() }));
        Ok(Message {
            content: Some(content),
            tool_calls: calls.collect::<Result<_>>()?,
            prefix: run.iter().any(|message| message.prefix),
            ..Message::text(Role::Assistant, "")
        })
    }

    fn results(&self, run: &[Message], call_ids: &[String]) -> Result<Vec<Message>> {
        let mut results = Vec::new();
        for message in run {
            let text = self.text_of(message)?;
            let text = if self.version < Version::V7 { normal_json(&text)? } else { text };
            results.push(Message { content: Some(Content::Text(text)), ..message.clone() });
        }
        if self.version >= Version::V11 {
            let place: HashMap<&str, usize> =
                call_ids.iter().enumerate().map(|(i, id)| (id.as_str(), i)).collect();
            results.sort_by_key(|m| {
                place.get(m.tool_call_id.as_deref().unwrap_or_default()).copied().unwrap_or(usize::MAX)
            });
        }
        Ok(results)
    }

    /// The content of one message of a kind that takes only text.
    fn text_of(&self, message: &Message) -> Result<String> {
        match self.join(&[message])? {
            Content::Text(text) => Ok(text),
            Content::Chunks(_) => Err(Error::Internal(format!("a chunk in a {} message", message.role))),
        }
    }

    /// Joins the text of messages: one text if there is nothing else.
    fn join(&self, messages: &[&Message]) -> Result<Content> {
        let mut chunks: Vec<Chunk> = Vec::new();
        let mut text = String::new();
        let mut open = false; // text has begun since the last chunk of another kind
        for message in messages {
            let mut new_message = open;
            let mut add = |part: &str, open: &mut bool, text: &mut String| {
                if part.is_empty() {
                    return;
                }
                if *open {
                    text.push_str(if new_message { MESSAGE_SEPARATOR } else { self.chunk_separator() });
                }
                new_message = false;
                *open = true;
                text.push_str(part);
            };
            match &message.content {
                None => {}
                Some(Content::Text(part)) => add(part, &mut open, &mut text),
                Some(Content::Chunks(parts)) => {
                    for part in parts {
                        match part {
                            Chunk::Text(part) => add(part, &mut open, &mut text),
                            Chunk::Image | Chunk::Audio => {
                                let found = format!("{} in a {} message", part.name(), message.role);
                                return Err(Error::unsupported("chunk", found, "text, thinking"));
                            }
                            other => {
                                if open {
                                    chunks.push(Chunk::Text(std::mem::take(&mut text)));
                                }
                                open = false;
                                chunks.push(other.clone());
                            }
                        }
                    }
                }
            }
        }
        if chunks.is_empty() {
            return Ok(Content::Text(text));
        }
        if open {
            chunks.push(Chunk::Text(text));
        }
        Ok(Content::Chunks(chunks))
    }
}

/// JSON as `json.dumps` writes it; other text unchanged, no text as an empty object.
fn normal_json(text: &str) -> Result<String> {
    if text.is_empty() {
        return Ok("{}".into());
    }
    Ok(json_or_text(text)?.map_or_else(|| text.to_owned(), |json| json.dumps()))
}

/// The JSON in a text, if it is JSON. [`Error::Chat`] for JSON that Python reads neither.
pub(super) fn json_or_text(text: &str) -> Result<Option<Json>> {
    match Json::parse(text, Dialect::Python) {
        Ok(json) => Ok(Some(json)),
        Err(e) if e.is_limit() => Err(Error::chat(
            ChatRule::Request,
            "messages",
            e.reason,
            "JSON of a moderate size in tool calls and results",
        )),
        Err(_) => Ok(None),
    }
}
