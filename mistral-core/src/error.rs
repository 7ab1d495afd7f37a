//! The one error type: what failed, where, what was found and what was expected.

use std::path::{Path, PathBuf};

/// The result of every fallible operation of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. The message names the file, key or argument, what was found and what was expected; it never
/// contains text of a prompt or of an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to open, read or map a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is damaged, or breaks the rules of its format.
    #[error("{file}: {key}: found {found}, expected {expected}")]
    Format {
        /// The file, as the caller named it.
        file: String,
        /// The key, tensor or position in it.
        key: String,
        /// What stands there.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// Contents do not match their digest, or belong to something else.
    #[error("{what}: found {found}, expected {expected}")]
    Integrity {
        /// What was checked.
        what: String,
        /// What it is.
        found: String,
        /// What it would have to be.
        expected: String,
    },
    /// An argument or option of a call is wrong.
    #[error("argument `{name}`: found {found}, expected {expected}")]
    Argument {
        /// The argument, or the path of a field in a request (`messages[2].role`).
        name: String,
        /// What was given.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// A chat request breaks a rule of the format that the model was trained on.
    #[error("{rule}: `{path}`: found {found}, expected {expected}")]
    Chat {
        /// The rule.
        rule: ChatRule,
        /// The part of the request (`messages[2].role`).
        path: String,
        /// What stands there.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// Correct, but not something that this library (or this model) does.
    #[error("unsupported {what}: {found}; supported: {supported}")]
    Unsupported {
        /// The kind of thing: `architecture`, `tensor type`, `device`.
        what: String,
        /// What was asked for.
        found: String,
        /// What there is instead.
        supported: String,
    },
    /// A bound on size, time or work was reached.
    #[error("limit `{what}`: found {found}, at most {limit}")]
    Limit {
        /// The bound.
        what: String,
        /// What was asked for.
        found: String,
        /// The bound's value.
        limit: String,
    },
    /// The tokens do not fit into the context of the session.
    #[error("context full: {needed} positions needed, {capacity} in the context")]
    ContextFull {
        /// Positions that the call needs, those in use included.
        needed: usize,
        /// Positions of the session.
        capacity: usize,
    },
    /// The host cancelled the call.
    #[error("cancelled")]
    Cancelled,
    /// The device could not be opened or failed.
    #[error("device `{device}`: {reason}")]
    Device {
        /// The device, as the caller named it.
        device: String,
        /// What happened.
        reason: String,
    },
    /// A signature is missing, is wrong, or is one of something else.
    #[error("signature in {file}: found {found}, expected {expected}")]
    Signature {
        /// The file with the signature.
        file: String,
        /// What stands there.
        found: String,
        /// What would have been right.
        expected: String,
    },
    /// Another call is using the same object.
    #[error("{what} is busy in another call")]
    Busy {
        /// The object.
        what: String,
    },
    /// The audit log could not be opened or written.
    #[error("audit log {log}: {reason}")]
    Audit {
        /// The log.
        log: String,
        /// What happened.
        reason: String,
    },
    /// A bug of this library; the object that was in use must be freed.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// The kind of the error in one word, without anything of what it is about.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Format { .. } => "format",
            Self::Argument { .. } | Self::Chat { .. } => "argument",
            Self::Unsupported { .. } => "unsupported",
            Self::Limit { .. } => "limit",
            Self::ContextFull { .. } => "context_full",
            Self::Cancelled => "cancelled",
            Self::Device { .. } => "device",
            Self::Integrity { .. } => "integrity",
            Self::Signature { .. } => "signature",
            Self::Busy { .. } => "busy",
            Self::Audit { .. } => "audit",
            Self::Internal(_) => "internal",
        }
    }

    /// An [`Error::Io`] for `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_owned(), source }
    }

    /// An [`Error::Format`].
    pub fn format(
        file: impl ToString,
        key: impl ToString,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Format {
            file: file.to_string(),
            key: key.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }

    /// An [`Error::Integrity`].
    pub fn integrity(what: impl ToString, found: impl ToString, expected: impl ToString) -> Self {
        Self::Integrity { what: what.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    /// An [`Error::Argument`].
    pub fn argument(name: impl ToString, found: impl ToString, expected: impl ToString) -> Self {
        Self::Argument { name: name.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    /// An [`Error::Chat`].
    pub fn chat(rule: ChatRule, path: impl ToString, found: impl ToString, expected: impl ToString) -> Self {
        Self::Chat { rule, path: path.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(what: impl ToString, found: impl ToString, supported: impl ToString) -> Self {
        Self::Unsupported {
            what: what.to_string(),
            found: found.to_string(),
            supported: supported.to_string(),
        }
    }

    /// An [`Error::Signature`].
    pub fn signature(file: impl ToString, found: impl ToString, expected: impl ToString) -> Self {
        Self::Signature { file: file.to_string(), found: found.to_string(), expected: expected.to_string() }
    }

    /// An [`Error::Limit`].
    pub fn limit(what: impl ToString, found: impl ToString, limit: impl ToString) -> Self {
        Self::Limit { what: what.to_string(), found: found.to_string(), limit: limit.to_string() }
    }
}

/// The rules that a chat request can break. The names are those of mistral-common's exceptions, so that a host that moves
/// from it finds the classes that it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChatRule {
    /// The request as a whole.
    Request,
    /// The order and number of the messages, of tool calls and of their results.
    MessageStructure,
    /// A system message.
    SystemPrompt,
    /// A user message.
    UserMessage,
    /// An assistant message.
    AssistantMessage,
    /// The result of a tool.
    ToolMessage,
    /// A tool call in an assistant message.
    FunctionCall,
    /// The definition of a tool.
    Tool,
    /// The schema of a tool's parameters.
    ToolSchema,
    /// Something that this version of the format cannot write.
    Tokenizer,
    /// Something that this version of the format has only in part.
    UnsupportedFeature,
}

impl ChatRule {
    /// The name of the exception that mistral-common raises for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Request => "InvalidRequestException",
            Self::MessageStructure => "InvalidMessageStructureException",
            Self::SystemPrompt => "InvalidSystemPromptException",
            Self::UserMessage => "InvalidUserMessageException",
            Self::AssistantMessage => "InvalidAssistantMessageException",
            Self::ToolMessage => "InvalidToolMessageException",
            Self::FunctionCall => "InvalidFunctionCallException",
            Self::Tool => "InvalidToolException",
            Self::ToolSchema => "InvalidToolSchemaException",
            Self::Tokenizer => "TokenizerException",
            Self::UnsupportedFeature => "UnsupportedTokenizerFeatureException",
        }
    }
}

impl std::fmt::Display for ChatRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
