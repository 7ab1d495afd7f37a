//! Hugging Face's `tokenizer.json`.

use super::Tokenizer;
use crate::error::{Error, Result};

pub(super) fn load(_: &[u8], _: Option<&[u8]>, file: &str) -> Result<Tokenizer> {
    Err(Error::unsupported(
        "tokenizer format",
        format!("tokenizer.json in {file}"),
        "Tekken, SentencePiece, GGUF",
    ))
}
