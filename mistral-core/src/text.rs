//! What a model does without its weights: preparing tokens, and reading back what was written.

use crate::chat::jinja::RenderOptions;
use crate::chat::request::ChatRequest;
use crate::chat::{Answer, AnswerParser, ChatFormat, ValidationMode};
use crate::completion::ChatStyle;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::tokenizer::TokenizerVersion;

/// How a conversation is checked, and what its template is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChatOptions {
    /// The rules of how a conversation may end, in Mistral's formats.
    pub mode: ValidationMode,
    /// Seconds since 1970-01-01 in the host's local time, for the templates that write the date into the prompt; else what the request says.
    pub local_time: Option<i64>,
}

impl ChatOptions {
    pub(crate) fn render(self, request: &ChatRequest) -> RenderOptions {
        RenderOptions { local_time: self.local_time.or(request.local_time), ..RenderOptions::default() }
    }
}

/// What a model has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written<'a> {
    /// Its text, control tokens by their names.
    Text(&'a str),
    /// Its tokens.
    Tokens(&'a [u32]),
}

impl Model {
    /// The tokens from which a model of the Codestral family writes what stands between `prompt` and `suffix`. The answer ends with
    /// the end of the sequence.
    ///
    /// # Errors
    /// [`Error::Chat`] for a format, [`Error::Unsupported`] for a vocabulary without fill in the middle.
    pub fn fim_encode(&self, prompt: &str, suffix: &str) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer()?;
        let format = match self.chat_style()? {
            ChatStyle::Mistral(format) => format.clone(),
            // A file of another maker does not tell the version, but the tokens that this takes are the same in all.
            _ if ["[SUFFIX]", "[PREFIX]"].iter().all(|name| tokenizer.special(name).is_some()) => {
                ChatFormat::new(TokenizerVersion::V3)
            }
            _ => {
                let path = self.path().display();
                let expected = "vocabularies with [SUFFIX] and [PREFIX]";
                return Err(Error::unsupported("fill in the middle", path, expected));
            }
        };
        format.fim(prompt, suffix)?.to_tokens(tokenizer)
    }

    /// Reads an answer back: reasoning, content, tool calls, and those that are broken. `version` is the format to read it in, the
    /// model's own if none is given. Calls without an id get one that depends on the answer alone.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token that does not exist; [`Error::Unsupported`] without a tokenizer.
    pub fn chat_parse(&self, written: Written<'_>, version: Option<TokenizerVersion>) -> Result<Answer> {
        let tokenizer = self.tokenizer()?;
        let version = version.or(self.answer_version()?);
        let parser = AnswerParser::new(version, written.digest());
        match (written, version) {
            (Written::Tokens(tokens), _) => {
                let end = tokens.iter().position(|token| self.eos_token_ids().contains(token));
                parser.read_tokens(tokenizer, &tokens[..end.unwrap_or(tokens.len())])
            }
            (Written::Text(text), Some(_)) => Ok(parser.read_rendered(text)),
            (Written::Text(text), None) => {
                let names = self.eos_token_ids().iter().filter_map(|id| tokenizer.token_text(*id));
                let end = names.filter_map(|name| text.find(&*name)).min();
                Ok(parser.read_rendered(&text[..end.unwrap_or(text.len())]))
            }
        }
    }

    /// The format in which the model's answers are read back; none where all of an answer is content.
    pub(crate) fn answer_version(&self) -> Result<Option<TokenizerVersion>> {
        Ok(match self.chat_style()? {
            ChatStyle::Mistral(format) => Some(format.version()),
            ChatStyle::Template(template) => template.answer_version(),
            ChatStyle::Unknown(_) => None,
        })
    }
}

impl Written<'_> {
    /// FNV-1a, 64 bits.
    pub(crate) fn digest(&self) -> u64 {
        let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let start = 0xcbf2_9ce4_8422_2325;
        match self {
            Self::Text(text) => text.bytes().fold(start, add),
            Self::Tokens(tokens) => tokens.iter().flat_map(|token| token.to_le_bytes()).fold(start, add),
        }
    }
}
