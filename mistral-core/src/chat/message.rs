//! The parts of a conversation, read from the `messages` and `tools` of a request.

use crate::chat::fields::{Field, quote};
use crate::chat::json::Json;
use crate::error::{Error, Result};

/// The id of a tool call that has none, as mistral-common writes it.
pub const NO_ID: &str = "null";

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The instructions.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
    /// The result of a tool.
    Tool,
}

impl Role {
    /// As a request writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said. [`None`] only from the assistant.
    pub content: Option<Content>,
    /// The calls of an assistant.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool answers.
    pub tool_call_id: Option<String>,
    /// The name of the tool that answers.
    pub name: Option<String>,
    /// The assistant's answer goes on from this message. The answer of a response begins with it, as that of Mistral's API does, and so do
    /// the deltas of a stream; outer white space that the chat format does not write is missing there too.
    pub prefix: bool,
}

impl Message {
    /// A message of plain text.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        let content = Some(Content::Text(text.into()));
        Self { role, content, tool_calls: Vec::new(), tool_call_id: None, name: None, prefix: false }
    }

    /// Whether there is content at all (an empty text is none, a list of one empty chunk is some).
    pub(super) fn has_content(&self) -> bool {
        match &self.content {
            None => false,
            Some(Content::Text(text)) => !text.is_empty(),
            Some(Content::Chunks(chunks)) => !chunks.is_empty(),
        }
    }

    /// The chunks, where the content is a list of them.
    pub(super) fn chunks(&self) -> &[Chunk] {
        match &self.content {
            Some(Content::Chunks(chunks)) => chunks,
            _ => &[],
        }
    }
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// One text.
    Text(String),
    /// Several parts.
    Chunks(Vec<Chunk>),
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Chunk {
    /// Text.
    Text(String),
    /// Reasoning.
    Think {
        /// The reasoning.
        text: String,
        /// Whether it has ended.
        closed: bool,
    },
    /// An image; known, so that the versions which take none refuse it by their own rule.
    Image,
    /// Audio, likewise.
    Audio,
}

impl Chunk {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Text(_) => "text",
            Self::Think { .. } => "thinking",
            Self::Image => "image",
            Self::Audio => "audio",
        }
    }
}

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// What the result refers to; [`NO_ID`] where there is none.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments, as JSON text.
    pub arguments: String,
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: String,
    /// The JSON Schema of its arguments, an object.
    pub parameters: Json,
    /// Whether the arguments must obey the schema.
    pub strict: bool,
    /// The tool as the caller wrote it, for the templates that dump it as it is.
    pub source: Json,
}

impl Tool {
    /// As the model reads it: without `strict`.
    pub fn to_json(&self) -> Json {
        let function = Json::Object(vec![
            ("name".into(), Json::String(self.name.clone())),
            ("description".into(), Json::String(self.description.clone())),
            ("parameters".into(), self.parameters.clone()),
        ]);
        Json::Object(vec![("type".into(), Json::String("function".into())), ("function".into(), function)])
    }

    pub(super) fn read(field: &Field<'_>) -> Result<Self> {
        field.only(&["type", "function"])?;
        function_type(field)?;
        let function = field.required("function")?;
        function.only(&["name", "description", "parameters", "strict"])?;
        let text = |key| function.optional(key).map(|f| f.string()).transpose();
        let parameters = match function.optional("parameters") {
            Some(parameters) => {
                parameters.object()?;
                parameters.value.clone()
            }
            None => Json::Object(Vec::new()),
        };
        Ok(Self {
            name: function.required("name")?.string()?.to_owned(),
            description: text("description")?.unwrap_or_default().to_owned(),
            parameters,
            strict: function.optional("strict").map(|f| f.boolean()).transpose()?.unwrap_or(false),
            source: field.value.clone(),
        })
    }
}

/// `"type": "function"`, which may be left out.
fn function_type(field: &Field<'_>) -> Result<()> {
    field.optional("type").map_or(Ok(()), |kind| kind.keyword(&[("function", ())]))
}

const ROLES: [(&str, Role); 5] = [
    ("system", Role::System),
    ("developer", Role::System),
    ("user", Role::User),
    ("assistant", Role::Assistant),
    ("tool", Role::Tool),
];

/// Fields that the API has and that no chat format can write.
const FOREIGN: [&str; 5] = ["refusal", "audio", "function_call", "annotations", "name"];

impl Message {
    pub(super) fn read(field: &Field<'_>) -> Result<Self> {
        field.object()?;
        let role = field.required("role")?.keyword(&ROLES)?;
        let known: &[&str] = match role {
            Role::System | Role::User => &["role", "content"],
            Role::Assistant => &["role", "content", "tool_calls", "prefix", "reasoning_content", "reasoning"],
            Role::Tool => &["role", "content", "tool_call_id", "name"],
        };
        refuse_foreign(field, known)?;
        let content = match (field.optional("content"), role) {
            (Some(content), _) => Some(read_content(&content, role)?),
            (None, Role::Assistant) => None,
            (None, _) => {
                return Err(field.required("content").err().unwrap_or_else(|| field.wrong("content")));
            }
        };
        let text = |key| field.optional(key).map(|f| f.string().map(str::to_owned)).transpose();
        let mut message = Self {
            role,
            content,
            tool_calls: Vec::new(),
            tool_call_id: text("tool_call_id")?,
            name: text("name")?,
            prefix: field.optional("prefix").map(|f| f.boolean()).transpose()?.unwrap_or(false),
        };
        if let Some(calls) = field.optional("tool_calls") {
            message.tool_calls = calls.array()?.iter().map(ToolCall::read).collect::<Result<_>>()?;
        }
        message.read_reasoning(field)?;
        Ok(message)
    }

    /// `reasoning_content` or `reasoning` (one string beside the content): a thinking chunk before the rest.
    fn read_reasoning(&mut self, field: &Field<'_>) -> Result<()> {
        let first = field.optional("reasoning_content");
        let second = field.optional("reasoning");
        if let (Some(a), Some(b)) = (&first, &second)
            && a.string()? != b.string()?
        {
            return Err(b.refused("another text than `reasoning_content`", "one of both fields"));
        }
        let Some(reasoning) = first.or(second) else { return Ok(()) };
        let chunk = Chunk::Think { text: reasoning.string()?.to_owned(), closed: true };
        let mut chunks = vec![chunk];
        match self.content.take() {
            None => {}
            Some(Content::Text(text)) => chunks.push(Chunk::Text(text)),
            Some(Content::Chunks(rest)) => {
                if rest.iter().any(|c| matches!(c, Chunk::Think { .. })) {
                    return Err(reasoning.refused("a thinking chunk in `content` as well", "one of both"));
                }
                chunks.extend(rest);
            }
        }
        self.content = Some(Content::Chunks(chunks));
        Ok(())
    }
}

fn refuse_foreign(field: &Field<'_>, known: &[&str]) -> Result<()> {
    for key in FOREIGN.iter().filter(|key| !known.contains(*key)) {
        if let Some(found) = field.optional(key) {
            return Err(Error::unsupported("field", &found.path, known.join(", ")));
        }
    }
    let all: Vec<&str> = known.iter().chain(&FOREIGN).copied().collect();
    field.only(&all)
}

fn read_content(field: &Field<'_>, role: Role) -> Result<Content> {
    match field.value {
        Json::String(text) => Ok(Content::Text(text.clone())),
        Json::Array(_) => {
            let chunks = field.array()?;
            Ok(Content::Chunks(chunks.iter().map(|c| read_chunk(c, role)).collect::<Result<_>>()?))
        }
        _ => Err(field.wrong("a string or an array of chunks")),
    }
}

fn read_chunk(field: &Field<'_>, role: Role) -> Result<Chunk> {
    field.object()?;
    let kind = field.required("type")?;
    let chunk = match kind.string()? {
        "text" => {
            field.only(&["type", "text"])?;
            Chunk::Text(field.required("text")?.string()?.to_owned())
        }
        "thinking" => read_thinking(field)?,
        "image_url" | "image" => Chunk::Image,
        "input_audio" | "audio_url" => Chunk::Audio,
        found @ ("document_url" | "reference" | "file") => {
            return Err(Error::unsupported("chunk", format!("{found} at {}", kind.path), "text, thinking"));
        }
        found => return Err(kind.refused(quote(found), "text or thinking")),
    };
    let allowed = match (&chunk, role) {
        (Chunk::Text(_), _) => true,
        (Chunk::Think { .. }, role) => matches!(role, Role::System | Role::Assistant),
        (Chunk::Image, role) => matches!(role, Role::User | Role::Tool),
        (Chunk::Audio, role) => role != Role::Assistant,
    };
    if allowed {
        Ok(chunk)
    } else {
        Err(kind.refused(chunk.name(), format!("a chunk that a {role} message takes")))
    }
}

/// Mistral's API writes `thinking` as a list of text chunks, mistral-common as one string.
fn read_thinking(field: &Field<'_>) -> Result<Chunk> {
    field.only(&["type", "thinking", "closed"])?;
    let thinking = field.required("thinking")?;
    let text = match thinking.value {
        Json::String(text) => text.clone(),
        Json::Array(_) => {
            let mut text = String::new();
            for part in thinking.array()? {
                part.only(&["type", "text"])?;
                part.required("type")?.keyword(&[("text", ())])?;
                text += part.required("text")?.string()?;
            }
            text
        }
        _ => return Err(thinking.wrong("a string or an array of text chunks")),
    };
    let closed = field.optional("closed").map(|f| f.boolean()).transpose()?.unwrap_or(true);
    Ok(Chunk::Think { text, closed })
}

impl ToolCall {
    fn read(field: &Field<'_>) -> Result<Self> {
        // `index` comes back in the answers of the APIs; the place in the array says the same.
        field.only(&["id", "type", "function", "index"])?;
        function_type(field)?;
        if let Some(index) = field.optional("index") {
            index.integer(0, u64::from(u32::MAX))?;
        }
        let id = field.optional("id").map(|f| f.string()).transpose()?.unwrap_or(NO_ID).to_owned();
        let function = field.required("function")?;
        function.only(&["name", "arguments"])?;
        let name = function.required("name")?.string()?.to_owned();
        let arguments = match function.value.get("arguments") {
            Some(Json::String(text)) => text.clone(),
            Some(object @ Json::Object(_)) => object.dumps(),
            Some(Json::Null) => "{}".into(),
            Some(other) => return Err(function.child("arguments", other).wrong("a string or an object")),
            None => {
                return Err(function
                    .required("arguments")
                    .err()
                    .unwrap_or_else(|| function.wrong("arguments")));
            }
        };
        Ok(Self { id, name, arguments })
    }
}
