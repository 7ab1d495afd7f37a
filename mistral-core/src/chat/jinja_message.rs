//! The messages of a request as chat templates take them.

use minijinja::Value;

use crate::chat::encode::Fragment;
use crate::chat::json::{Dialect, Json};
use crate::chat::message::{Chunk, Content, Message, NO_ID, Role};
use crate::error::{Error, Result};

/// What a template does with the content of a message, as far as its source tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reads {
    /// It asks whether there is any.
    pub none: bool,
    /// It takes a list of chunks.
    pub chunks: bool,
    /// It takes thinking as one of them.
    pub thinking: bool,
    /// It makes one text of what a tool says, and would write a list of chunks as Python does.
    pub tool_text: bool,
}

impl Reads {
    pub fn of(source: &str) -> Self {
        // `message['content']`, `message["content"]` and `message.content` are the same.
        let plain = source.replace(['\'', '"', ']'], "").replace('[', ".");
        let reads = |words: &[&str]| words.iter().any(|words| plain.contains(words));
        let thinking = reads(&["type == thinking"]);
        Self {
            none: reads(&["content is none", "content is not none"]),
            chunks: thinking || reads(&["type == text"]),
            thinking,
            tool_text: reads(&["content|string", "content | string"]),
        }
    }
}

/// The text of a message. Most templates expect one string; vLLM and llama.cpp join the text chunks with a newline.
pub(super) fn flat_content(message: &Message) -> String {
    match &message.content {
        None => String::new(),
        Some(Content::Text(text)) => text.clone(),
        Some(Content::Chunks(chunks)) => {
            let texts = chunks.iter().filter_map(|c| match c {
                Chunk::Text(text) => Some(text.as_str()),
                _ => None,
            });
            texts.collect::<Vec<_>>().join("\n")
        }
    }
}

pub(super) fn reasoning(message: &Message) -> String {
    let thoughts = message.chunks().iter().filter_map(|c| match c {
        Chunk::Think { text, .. } => Some(text.as_str()),
        _ => None,
    });
    thoughts.collect::<Vec<_>>().join("\n")
}

/// The content of a message as a template takes it. None at all is an empty text, as for vLLM, to all that do not ask for it: many add
/// to it.
fn content_value(message: &Message, reads: Reads) -> Value {
    let takes_chunks = reads.chunks && !(message.role == Role::Tool && reads.tool_text);
    let chunks: Vec<&Chunk> = match &message.content {
        None if reads.none => return Value::from(()),
        Some(Content::Chunks(chunks)) if takes_chunks && chunks.is_empty() => {
            return Value::from(Vec::<Value>::new());
        }
        Some(Content::Chunks(chunks)) if takes_chunks => {
            chunks.iter().filter(|c| is_given(c, reads)).collect()
        }
        _ => Vec::new(),
    };
    match chunks[..] {
        [] | [Chunk::Text(_)] => Value::from(flat_content(message)),
        _ => Value::from(chunks.into_iter().map(chunk_value).collect::<Vec<_>>()),
    }
}

/// Whether a chunk is in the list that a template gets.
fn is_given(chunk: &Chunk, reads: Reads) -> bool {
    match chunk {
        Chunk::Text(_) => true,
        Chunk::Think { text, .. } => reads.thinking && !text.is_empty(),
        Chunk::Image | Chunk::Audio => false,
    }
}

fn chunk_value(chunk: &Chunk) -> Value {
    let kind = ("type", Value::from(chunk.name()));
    match chunk {
        Chunk::Text(text) => Value::from_pairs([kind, ("text", Value::from(text.as_str()))]),
        Chunk::Think { text, closed } => {
            let closed = ("closed", Value::from(*closed));
            Value::from_pairs([kind, ("thinking", Value::from(text.as_str())), closed])
        }
        Chunk::Image | Chunk::Audio => Value::from_pairs([kind]),
    }
}

pub(super) fn message_value(message: &Message, index: usize, reads: Reads) -> Result<Value> {
    if let Some(media) = message.chunks().iter().find(|c| matches!(c, Chunk::Image | Chunk::Audio)) {
        return Err(Error::unsupported(
            "chunk",
            format!("{} in messages[{index}]", media.name()),
            "text, thinking",
        ));
    }
    let mut fields: Vec<(&str, Value)> =
        vec![("role", Value::from(message.role.as_str())), ("content", content_value(message, reads))];
    let thoughts = reasoning(message);
    if !thoughts.is_empty() && !reads.thinking {
        fields.push(("reasoning_content", Value::from(thoughts)));
    }
    if !message.tool_calls.is_empty() {
        let calls: Vec<Value> = message
            .tool_calls
            .iter()
            .map(|call| {
                // Templates dump the arguments themselves: an object, not the text of one.
                let arguments = match Json::parse(&call.arguments, Dialect::Python) {
                    Ok(object @ Json::Object(_)) => json_value(&object),
                    _ => Value::from(call.arguments.as_str()),
                };
                let function =
                    Value::from_pairs([("name", Value::from(call.name.as_str())), ("arguments", arguments)]);
                let mut fields = vec![("type", Value::from("function")), ("function", function)];
                if call.id != NO_ID {
                    fields.insert(0, ("id", Value::from(call.id.as_str())));
                }
                Value::from_pairs(fields)
            })
            .collect();
        fields.push(("tool_calls", Value::from(calls)));
    }
    fields.extend(message.tool_call_id.as_deref().map(|id| ("tool_call_id", Value::from(id))));
    fields.extend(message.name.as_deref().map(|name| ("name", Value::from(name))));
    Ok(Value::from_pairs(fields))
}

pub(super) fn json_value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Int(digits) => match digits.parse::<i128>() {
            Ok(i) => Value::from(i),
            Err(_) => Value::from(digits.parse::<f64>().unwrap_or(f64::NAN)),
        },
        Json::Float(f) => Value::from(*f),
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => Value::from(items.iter().map(json_value).collect::<Vec<_>>()),
        Json::Object(members) => Value::from_pairs(members.iter().map(|(k, v)| (k.clone(), json_value(v)))),
    }
}

/// The text at the end of a message, which an answer can go on from.
pub(super) fn last_text(message: &mut Message) -> Option<&mut String> {
    let text = match &mut message.content {
        Some(Content::Text(text)) => text,
        Some(Content::Chunks(chunks)) => match chunks.last_mut() {
            Some(Chunk::Text(text)) => text,
            _ => return None,
        },
        None => return None,
    };
    Some(text).filter(|text| !text.is_empty() && message.tool_calls.is_empty())
}

/// What a reader of answers makes the start of one of: thinking and texts, the last of them as it was `written`.
pub(super) fn prefix_fragments(message: &Message, written: &str) -> Vec<Fragment> {
    let mut before = message.clone();
    if let Some(text) = last_text(&mut before) {
        written.clone_into(text);
    }
    let mut fragments = Vec::new();
    let thoughts = reasoning(&before);
    if !thoughts.is_empty() {
        fragments.extend([
            Fragment::Special("[THINK]"),
            Fragment::Text(thoughts),
            Fragment::Special("[/THINK]"),
        ]);
    }
    fragments.push(Fragment::Text(flat_content(&before)));
    fragments
}
