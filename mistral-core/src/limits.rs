//! Bounds that a host sets on single calls.

use std::time::Duration;

use crate::error::{Error, Result};

/// What one call may take; `None`: no bound of this kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Tokens that one call may be given: those of a prompt, or of a whole conversation.
    pub max_prompt_tokens: Option<usize>,
    /// Tokens that one answer may have. A call that asks for more is refused; one that asks for no number ends there.
    pub max_output_tokens: Option<usize>,
    /// How long one call may take. It ends with [`Error::Limit`] where it could be cancelled, and the session keeps what was evaluated.
    pub max_time: Option<Duration>,
}

impl Limits {
    /// Both bounds at once.
    pub fn and(self, other: Self) -> Self {
        Self {
            max_prompt_tokens: least(self.max_prompt_tokens, other.max_prompt_tokens),
            max_output_tokens: least(self.max_output_tokens, other.max_output_tokens),
            max_time: least(self.max_time, other.max_time),
        }
    }

    /// Refuses a prompt of too many tokens.
    pub(crate) fn check_prompt(&self, tokens: usize) -> Result<()> {
        match self.max_prompt_tokens {
            Some(limit) if tokens > limit => Err(Error::limit("max_prompt_tokens", tokens, limit)),
            _ => Ok(()),
        }
    }

    /// How many tokens an answer may have for which `asked` were asked.
    pub(crate) fn output_tokens(&self, asked: Option<usize>) -> Result<Option<usize>> {
        match (asked, self.max_output_tokens) {
            (Some(asked), Some(limit)) if asked > limit => {
                Err(Error::limit("max_output_tokens", asked, limit))
            }
            (asked, limit) => Ok(asked.or(limit)),
        }
    }
}

fn least<T: Ord>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
