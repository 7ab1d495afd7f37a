//! The rules that a conversation must obey before it is written in a format; they are those of mistral-common 1.13.1
//! (`protocol/instruct/validator.py`), in its order, so that the first error is the same.

use std::collections::HashSet;

use crate::chat::message::{Chunk, Message, NO_ID, Role, Tool, ToolCall};
use crate::chat::request::ChatRequest;
use crate::chat::schema;
use crate::error::{ChatRule, Error, Result};
use crate::tokenizer::TokenizerVersion as Version;

/// What a conversation is for; the rules differ in how it may end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ValidationMode {
    /// A model's name is required, and every call needs its result.
    Serving,
    /// It ends with the assistant.
    Finetuning,
    /// The usual one for local models.
    #[default]
    Test,
    /// No rule about the end.
    Agnostic,
}

/// Checks a request against the rules of a version.
pub(super) fn validate(request: &ChatRequest, version: Version, mode: ValidationMode) -> Result<()> {
    if mode == ValidationMode::Serving && request.model.is_none() {
        return Err(Error::chat(
            ChatRule::Request,
            "model",
            "nothing",
            "the name of a model in serving mode",
        ));
    }
    let rules = Rules { version, mode };
    rules.structure(&request.messages)?;
    for (i, message) in request.messages.iter().enumerate() {
        rules.content(message, i, i + 1 == request.messages.len())?;
    }
    for (i, tool) in request.tools.iter().enumerate() {
        check_tool(tool, i)?;
    }
    match request.reasoning_effort {
        Some(_) if version < Version::V15 => Err(Error::chat(
            ChatRule::Request,
            "reasoning_effort",
            "an effort",
            format!("nothing: the format {version} has no such setting"),
        )),
        _ => Ok(()),
    }
}

struct Rules {
    version: Version,
    mode: ValidationMode,
}

fn structure_error(path: impl ToString, found: impl ToString, expected: impl ToString) -> Error {
    Error::chat(ChatRule::MessageStructure, path, found, expected)
}

impl Rules {
    fn structure(&self, messages: &[Message]) -> Result<()> {
        let Some(last) = messages.last() else {
            return Err(structure_error("messages", "no message", "at least one"));
        };
        if messages.len() == 1 && !matches!(last.role, Role::User | Role::System) {
            let found = format!("only a message of the role {}", last.role);
            return Err(structure_error("messages[0].role", found, "user or system"));
        }
        if self.mode == ValidationMode::Finetuning || messages.len() > 1 {
            self.last_message(last, messages.len() - 1)?;
        }
        check_order(messages)?;
        match self.version >= Version::V11 {
            true => self.results_by_id(messages),
            false => self.number_of_results(messages),
        }
    }

    fn last_message(&self, last: &Message, index: usize) -> Result<()> {
        let path = format!("messages[{index}]");
        match self.mode {
            ValidationMode::Agnostic => Ok(()),
            ValidationMode::Finetuning => {
                if last.role != Role::Assistant {
                    return Err(structure_error(
                        format!("{path}.role"),
                        last.role,
                        "assistant, for finetuning",
                    ));
                }
                if last.prefix {
                    return Err(structure_error(format!("{path}.prefix"), "true", "false, for finetuning"));
                }
                if self.version >= Version::V3 {
                    for (i, call) in last.tool_calls.iter().enumerate() {
                        self.tool_call(call, true, &format!("{path}.tool_calls[{i}]"))?;
                    }
                }
                Ok(())
            }
            _ if last.role == Role::Assistant && !last.prefix => Err(structure_error(
                format!("{path}.role"),
                "assistant",
                "user, tool, or assistant with prefix",
            )),
            _ => Ok(()),
        }
    }

    /// Up to v7 calls and results are only counted.
    fn number_of_results(&self, messages: &[Message]) -> Result<()> {
        let unequal =
            |i: usize| structure_error(format!("messages[{i}]"), "not as many results as calls", "one each");
        let mut open = 0i64;
        for (i, message) in messages.iter().enumerate().skip(1) {
            match message.role {
                Role::Tool => open -= 1,
                Role::Assistant if open != 0 => return Err(unequal(i)),
                Role::Assistant => open = message.tool_calls.len() as i64,
                _ => {}
            }
        }
        match self.mode {
            ValidationMode::Serving if open != 0 => Err(unequal(messages.len() - 1)),
            ValidationMode::Finetuning if open < 0 => Err(unequal(messages.len() - 1)),
            _ => Ok(()),
        }
    }

    /// From v11 on a result answers the call of its id.
    fn results_by_id(&self, messages: &[Message]) -> Result<()> {
        let mut expected: HashSet<&str> = HashSet::new();
        let mut seen: HashSet<Option<&str>> = HashSet::new();
        for (i, message) in messages.iter().enumerate().skip(1) {
            if message.role == Role::Tool {
                let id = message.tool_call_id.as_deref();
                let path = format!("messages[{i}].tool_call_id");
                if seen.contains(&id) {
                    return Err(structure_error(path, "a second result of one call", "one result for each"));
                }
                if id.is_none_or(|id| !expected.contains(id)) {
                    return Err(structure_error(
                        path,
                        "the id of no open call",
                        "the id of a call before it",
                    ));
                }
                seen.insert(id);
            } else if message.role == Role::Assistant {
                if expected.len() != seen.len() {
                    return Err(structure_error(
                        format!("messages[{i}]"),
                        "not as many results as calls",
                        "one each",
                    ));
                }
                expected.clear();
                seen.clear();
                for (j, call) in message.tool_calls.iter().enumerate() {
                    if !expected.insert(&call.id) {
                        let path = format!("messages[{i}].tool_calls[{j}].id");
                        return Err(structure_error(path, "the id of another call", "an id for each call"));
                    }
                }
            }
        }
        if self.mode == ValidationMode::Serving && expected.len() != seen.len() {
            return Err(structure_error("messages", "not as many results as calls", "one each"));
        }
        Ok(())
    }

    fn content(&self, message: &Message, index: usize, last: bool) -> Result<()> {
        let path = format!("messages[{index}]");
        self.chunks(message, &path)?;
        match message.role {
            Role::User | Role::System => Ok(()),
            Role::Assistant => self.assistant(message, last, &path),
            Role::Tool => self.tool_result(message, &path),
        }
    }

    fn chunks(&self, message: &Message, path: &str) -> Result<()> {
        let v = self.version;
        let rule = match message.role {
            Role::User => ChatRule::UserMessage,
            Role::System => ChatRule::SystemPrompt,
            Role::Assistant => ChatRule::AssistantMessage,
            Role::Tool => ChatRule::ToolMessage,
        };
        let takes = |chunk: &Chunk| match (chunk, message.role) {
            (Chunk::Text(_), _) => true,
            (Chunk::Think { .. }, Role::Assistant) => v >= Version::V11,
            (Chunk::Think { .. }, Role::System) => v >= Version::V7 && v < Version::V15,
            (Chunk::Think { .. }, _) => false,
            (Chunk::Image, Role::User) => v >= Version::V3,
            (Chunk::Audio, Role::User | Role::System) => v >= Version::V7,
            (Chunk::Image | Chunk::Audio, Role::Tool) => v >= Version::V15,
            (Chunk::Image | Chunk::Audio, _) => false,
        };
        match message.chunks().iter().position(|chunk| !takes(chunk)) {
            None => Ok(()),
            Some(i) => Err(Error::chat(
                rule,
                format!("{path}.content[{i}]"),
                format!("a chunk of the type {}", message.chunks()[i].name()),
                format!("what a {} message takes in the format {v}", message.role),
            )),
        }
    }

    fn assistant(&self, message: &Message, last: bool, path: &str) -> Result<()> {
        let error = |found, expected| Err(Error::chat(ChatRule::AssistantMessage, path, found, expected));
        if self.version < Version::V7 {
            match (message.has_content(), !message.tool_calls.is_empty()) {
                (true, true) => return error("content and tool calls", "one of both"),
                (false, false) => return error("neither content nor tool calls", "one of both"),
                _ => {}
            }
        }
        for (i, call) in message.tool_calls.iter().enumerate() {
            self.tool_call(call, last, &format!("{path}.tool_calls[{i}]"))?;
        }
        if message.prefix && !last { error("a prefix", "a prefix only in the last message") } else { Ok(()) }
    }

    fn tool_call(&self, call: &ToolCall, last: bool, path: &str) -> Result<()> {
        let error =
            |found, expected| Err(Error::chat(ChatRule::FunctionCall, format!("{path}.id"), found, expected));
        if self.version >= Version::V13 {
            if call.id.is_empty() || call.id == NO_ID {
                return error("no id", "an id");
            }
        } else if self.version >= Version::V3 {
            let may_miss = last && matches!(self.mode, ValidationMode::Finetuning | ValidationMode::Agnostic);
            match call.id == NO_ID {
                true if may_miss => {}
                true => return error("no id", "an id"),
                false if !is_short_id(&call.id) => return error("another id", "9 letters and digits"),
                false => {}
            }
        }
        if is_function_name(&call.name) {
            return Ok(());
        }
        let path = format!("{path}.function.name");
        Err(Error::chat(ChatRule::FunctionCall, path, "another name", FUNCTION_NAME))
    }

    fn tool_result(&self, message: &Message, path: &str) -> Result<()> {
        if message.name.as_deref().is_some_and(|name| !is_function_name(name)) {
            let path = format!("{path}.name");
            return Err(Error::chat(ChatRule::ToolMessage, path, "another name", FUNCTION_NAME));
        }
        let path = format!("{path}.tool_call_id");
        let id = message.tool_call_id.as_deref();
        if self.version >= Version::V13 {
            return match id {
                None | Some("" | NO_ID) => {
                    Err(Error::chat(ChatRule::ToolMessage, path, "no id", "the id of a call"))
                }
                Some(_) => Ok(()),
            };
        }
        match id {
            _ if self.version < Version::V3 => Ok(()),
            None => Err(Error::chat(ChatRule::Request, path, "nothing", "the id of a call")),
            Some(id) if !is_short_id(id) => {
                Err(Error::chat(ChatRule::ToolMessage, path, "another id", "9 letters and digits"))
            }
            Some(_) => Ok(()),
        }
    }
}

fn check_order(messages: &[Message]) -> Result<()> {
    for (i, pair) in messages.windows(2).enumerate() {
        let follows = match pair[0].role {
            Role::System => pair[1].role != Role::Tool,
            Role::User => pair[1].role != Role::Tool,
            Role::Assistant | Role::Tool => pair[1].role != Role::System,
        };
        if !follows {
            let found = format!("{} after {}", pair[1].role, pair[0].role);
            return Err(structure_error(format!("messages[{}].role", i + 1), found, "another role there"));
        }
    }
    Ok(())
}

fn check_tool(tool: &Tool, index: usize) -> Result<()> {
    let path = format!("tools[{index}].function");
    schema::check(&tool.parameters, &format!("{path}.parameters")).map_err(|e| {
        Error::chat(ChatRule::ToolSchema, e.path, e.found, format!("{} (JSON Schema draft 7)", e.expected))
    })?;
    if is_function_name(&tool.name) {
        return Ok(());
    }
    Err(Error::chat(ChatRule::Tool, format!("{path}.name"), "another name", FUNCTION_NAME))
}

const FUNCTION_NAME: &str = "1 to 64 letters, digits, underscores and dashes";

/// The reference's regular expressions end in `$`, which Python lets match before a newline at the end as well.
fn without_newline(text: &str) -> &str {
    text.strip_suffix('\n').unwrap_or(text)
}

fn is_function_name(name: &str) -> bool {
    let name = without_newline(name).as_bytes();
    (1..=64).contains(&name.len())
        && name.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-'))
}

fn is_short_id(id: &str) -> bool {
    let id = without_newline(id).as_bytes();
    id.len() == 9 && id.iter().all(u8::is_ascii_alphanumeric)
}
