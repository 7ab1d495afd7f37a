//! How far an answer has come under its constraint.

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::StopReason;
use llguidance::toktrie::SimpleVob;

use super::table::{Leading, TokenTable};
use crate::error::{Error, Result};

/// How far an answer has come under its constraint.
pub struct ConstraintState {
    pub(super) table: Arc<TokenTable>,
    matcher: Matcher,
    mask: SimpleVob,
    /// The token that the constraint waits for: until it comes, everything is allowed.
    trigger: Option<u32>,
    /// No token with text has come, so that the tokenizer drops a space before the next.
    at_start: bool,
    /// Control tokens are a part of the text.
    show_special: bool,
    /// A token that ends the answer was accepted.
    ended: bool,
    /// What each accepted token did, so that it can be taken back.
    steps: Vec<Step>,
}

#[derive(Clone, Copy)]
struct Step {
    did: Did,
    /// [`ConstraintState::at_start`] before it.
    at_start: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Did {
    /// It is none of the constraint's business: text before the trigger, or none.
    Nothing,
    Matched,
    /// It was the token that the constraint waited for.
    Triggered(u32),
    Ended,
}

impl ConstraintState {
    pub(super) fn new(table: Arc<TokenTable>, matcher: Matcher) -> Self {
        Self {
            table,
            matcher,
            mask: SimpleVob::new(),
            trigger: None,
            at_start: true,
            show_special: false,
            ended: false,
            steps: Vec::new(),
        }
    }

    pub(super) fn wait_for(&mut self, trigger: Option<u32>) {
        self.trigger = trigger;
    }

    /// For a reader that sees the names of control tokens in the text: a space after one is not dropped.
    pub fn show_special(mut self, show: bool) -> Self {
        self.show_special = show;
        self
    }

    /// The text so far is in the prompt. Whether what follows is read as a text of its own, so that a space at its beginning is dropped
    /// once more, is `begins`.
    pub fn begin_text(&mut self, begins: bool) {
        self.at_start = begins;
    }

    /// The tokens that may follow, one bit each: the lowest bit of the first word is token 0. The tokens that end the
    /// answer are among them where it may end. `None`: every token may follow.
    ///
    /// # Errors
    /// [`Error::Limit`] where the step takes too much work; [`Error::Argument`] at a dead end, or after the end of
    /// the answer.
    pub fn mask(&mut self) -> Result<Option<&[u32]>> {
        if self.ended {
            return Err(Error::argument("constraint", "an answer that has ended", "an answer that goes on"));
        }
        if self.trigger.is_some() {
            return Ok(None);
        }
        self.mask = self.matcher.compute_mask_or_eos().map_err(|error| failure(&error))?;
        if self.at_start {
            self.table.at_the_beginning(&mut self.mask);
        }
        Ok(Some(self.mask.as_slice()))
    }

    /// Like [`ConstraintState::mask`], without the tokens that end the answer where others may follow.
    ///
    /// # Errors
    /// As [`ConstraintState::mask`].
    pub fn mask_without_end(&mut self) -> Result<Option<&[u32]>> {
        if self.mask()?.is_none() {
            return Ok(None);
        }
        let mut inner = self.mask.clone();
        self.table.eos.iter().for_each(|&eos| inner.disallow_token(eos));
        if !inner.is_zero() {
            self.mask = inner;
        }
        Ok(Some(self.mask.as_slice()))
    }

    /// Advances by one token.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token that may not follow: the state is as before; [`Error::Limit`] where the step
    /// takes too much work.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        if self.ended || token as usize >= self.table.vocab_size() {
            return Err(refused(token));
        }
        let did = if self.trigger.is_some_and(|trigger| trigger != token) {
            Did::Nothing
        } else if self.table.eos.contains(&token) {
            if !self.may_stop() {
                return Err(refused(token));
            }
            self.ended = true;
            Did::Ended
        } else {
            self.match_token(token)?
        };
        self.steps.push(Step { did, at_start: self.at_start });
        self.at_start &= self.table.is_control(token) && !self.show_special;
        Ok(())
    }

    fn match_token(&mut self, token: u32) -> Result<Did> {
        let read_as = match self.table.leading(token).filter(|_| self.at_start) {
            None => token,
            Some(Leading::Like(other)) => other,
            Some(Leading::Nothing) => return Ok(Did::Nothing),
            Some(Leading::Unspellable) => return Err(refused(token)),
        };
        match self.matcher.try_consume_tokens(&[read_as]) {
            Ok(0) => Err(refused(token)),
            Ok(_) => Ok(self.trigger.take().map_or(Did::Matched, Did::Triggered)),
            Err(error) => Err(failure(&error)),
        }
    }

    /// Whether the answer may end here.
    pub fn may_stop(&mut self) -> bool {
        self.is_complete() || self.trigger.is_some() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether the answer must end here: it is whole, and nothing can follow.
    pub fn is_complete(&self) -> bool {
        let complete =
            matches!(self.matcher.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence);
        self.ended || (complete && self.trigger.is_none())
    }

    /// Whether a token that ends the answer was accepted; while the constraint waits for its trigger, that is for the host to see.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Takes back the last `tokens` tokens (for speculation).
    ///
    /// # Errors
    /// [`Error::Argument`] for more tokens than were accepted.
    pub fn rollback(&mut self, tokens: usize) -> Result<()> {
        let Some(kept) = self.steps.len().checked_sub(tokens) else {
            return Err(Error::argument("tokens", tokens, format!("at most {}", self.steps.len())));
        };
        let matched = |step: &&Step| matches!(step.did, Did::Matched | Did::Triggered(_));
        let matched = self.steps[kept..].iter().filter(matched).count();
        self.matcher.rollback(matched).map_err(|error| failure(&error))?;
        for step in self.steps.drain(kept..).rev() {
            self.at_start = step.at_start;
            match step.did {
                Did::Ended => self.ended = false,
                Did::Triggered(token) => self.trigger = Some(token),
                Did::Nothing | Did::Matched => {}
            }
        }
        Ok(())
    }
}

impl Clone for ConstraintState {
    fn clone(&self) -> Self {
        Self {
            table: self.table.clone(),
            // A plain clone would share the lexer, and a lock, between answers.
            matcher: self.matcher.deep_clone(),
            mask: SimpleVob::new(),
            steps: self.steps.clone(),
            ..*self
        }
    }
}

impl fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintState")
            .field("accepted", &self.steps.len())
            .field("ended", &self.ended)
            .finish()
    }
}

fn refused(token: u32) -> Error {
    Error::argument("token", token, "a token that the constraint allows")
}

/// Why the matcher failed, without its own words: they may contain text of the answer.
fn failure(error: &dyn fmt::Display) -> Error {
    let message = error.to_string().to_ascii_lowercase();
    if message.starts_with("lexer error") || message.starts_with("parser error") {
        return Error::limit("work of a constraint", "more in this answer", "the limits of `constraint`");
    }
    Error::argument("constraint", "a dead end", "a constraint under which a token can follow")
}
