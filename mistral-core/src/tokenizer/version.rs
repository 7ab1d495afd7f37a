//! The generations of Mistral's chat format, which a tokenizer file carries in its text or in its name.

use crate::error::{Error, Result};

/// A generation of Mistral's tokenizers and chat formats, ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TokenizerVersion {
    /// `[INST]` as plain text.
    V1,
    /// `[INST]` as a control token, tools.
    V2,
    /// Tool calls with identifiers.
    V3,
    /// System prompts in place.
    V7,
    /// One control token for each part of a tool call.
    V11,
    /// No call identifiers, reasoning.
    V13,
    /// Model settings.
    V15,
}

impl TokenizerVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 7] = [Self::V1, Self::V2, Self::V3, Self::V7, Self::V11, Self::V13, Self::V15];

    /// The name in files: `v7`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
            Self::V3 => "v3",
            Self::V7 => "v7",
            Self::V11 => "v11",
            Self::V13 => "v13",
            Self::V15 => "v15",
        }
    }

    /// Parses `v7`; [`Error::Unsupported`] for anything else.
    pub fn parse(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == name).ok_or_else(|| {
            Error::unsupported(
                "tokenizer version",
                format!("`{name}`"),
                Self::ALL.map(Self::as_str).join(", "),
            )
        })
    }

    /// The version in the name of a SentencePiece file, by the rule of `mistral-common`: `….model.v3` and
    /// `….model.v7m1` (a multimodal revision follows the `m`) say it, a bare `….model` is v1.
    ///
    /// Names of other forms say nothing: `None`.
    pub fn from_file_name(file: &str) -> Result<Option<Self>> {
        let name = file.rsplit(['/', '\\']).next().unwrap_or(file);
        if name.ends_with(".model") {
            return Ok(Some(Self::V1));
        }
        let Some((_, suffix)) = name.rsplit_once(".model.") else { return Ok(None) };
        let version = suffix.split('m').next().unwrap_or(suffix);
        Self::parse(version).map(Some)
    }
}

impl std::fmt::Display for TokenizerVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_carry_the_version() {
        let version = |name| TokenizerVersion::from_file_name(name).unwrap();
        assert_eq!(version("tokenizer.model"), Some(TokenizerVersion::V1));
        assert_eq!(version("a/tokenizer.model.v3"), Some(TokenizerVersion::V3));
        assert_eq!(version("mistral_instruct_tokenizer_241114.model.v7m1"), Some(TokenizerVersion::V7));
        assert_eq!(version("tokenizer.bin"), None);
        assert!(TokenizerVersion::from_file_name("tokenizer.model.v9").is_err());
    }

    #[test]
    fn versions_are_ordered() {
        assert!(TokenizerVersion::ALL.is_sorted());
        assert!(TokenizerVersion::V11 > TokenizerVersion::V7);
    }
}
