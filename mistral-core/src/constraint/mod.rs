//! Output that obeys a JSON Schema, a regular expression or a grammar: before each token, the set of tokens that may
//! follow.
//!
//! The work is done by the crate `llguidance` (Earley parsing over a lexer of derivatives; Brzozowski 1964), over the
//! bytes of the tokens and never over their text, so that a token which ends inside a UTF-8 character is handled like
//! any other. All limits are set here: a grammar that is too large, or a step that takes too much work, ends in an
//! error and not in a long wait.
//!
//! The table of the tokens ([`TokenTable`]) is built once for a model; a compiled [`Constraint`] serves any number of
//! answers, each with a [`ConstraintState`] of its own.

mod schema;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::error::{Error, Result};

/// The most bytes of a schema (as compact JSON) or a grammar.
pub const MAX_GRAMMAR_BYTES: usize = 1 << 20;

/// The most bytes of a regular expression.
pub const MAX_REGEX_BYTES: usize = 1 << 16;

/// Longer tokens are never allowed; the tables of `llguidance` end at 1,023 bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// The first byte of control tokens inside `llguidance`; no UTF-8 text has it.
const CONTROL_BYTE: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// The bytes of every token of a model, arranged for the computation of masks.
pub struct TokenTable {
    factory: ParserFactory,
    eos: Vec<u32>,
}

impl TokenTable {
    /// Arranges a vocabulary. `tokens[id]` are the bytes that token `id` adds to the text: none for a control token,
    /// which only a Lark grammar can ask for, as `<[id]>`. `eos`: the tokens that end an answer.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty vocabulary or an `eos` that is missing or not in it; [`Error::Limit`] for a
    /// vocabulary of more than 2²² bytes.
    pub fn new(mut tokens: Vec<Vec<u8>>, eos: &[u32]) -> Result<Self> {
        const MOST: usize = (1 << 22) - 1;
        let bytes: usize = tokens.iter().map(Vec::len).sum();
        if tokens.len().max(bytes) > MOST {
            return Err(Error::limit("vocabulary of a constraint", format!("{bytes} bytes"), MOST));
        }
        if let Some(wrong) = eos.iter().find(|&&id| id as usize >= tokens.len()) {
            return Err(Error::argument("eos", wrong, format!("a token below {}", tokens.len())));
        }
        let Some(&first_eos) = eos.first() else {
            return Err(Error::argument("eos", "no token", "the tokens that end an answer"));
        };
        for (id, token) in tokens.iter_mut().enumerate() {
            let unusable = token.first() == Some(&CONTROL_BYTE) || token.len() > MAX_TOKEN_BYTES;
            if unusable || eos.contains(&(id as u32)) {
                token.clear();
            }
        }
        let info = TokRxInfo::new(tokens.len() as u32, first_eos);
        let trie = TokTrie::from(&info, &tokens).with_eos_tokens(eos);
        let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let capabilities = InferenceCapabilities::default();
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&env, capabilities, &slices).map_err(|error| internal(&error))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, eos: eos.to_vec() })
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.factory.tok_env().tok_trie().vocab_size()
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTable").field("vocab_size", &self.vocab_size()).field("eos", &self.eos).finish()
    }
}

/// What one step and one grammar may cost: milliseconds for what is sensible, some tenths of a second for the most
/// ambiguous grammars that stay within the bounds.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // One to two kilobytes each.
        max_lexer_states: 50_000,
        max_grammar_size: 500_000,
        precompute_large_lexemes: true,
        // Otherwise errors contain the answer so far.
        verbose_errors: false,
    }
}

/// A compiled constraint.
#[derive(Clone)]
pub struct Constraint {
    start: ConstraintState,
}

impl Constraint {
    /// Any JSON object.
    ///
    /// # Errors
    /// As [`Constraint::json_schema`].
    pub fn json_object(table: &Arc<TokenTable>) -> Result<Self> {
        Self::json_schema(table, &serde_json::json!({"type": "object"}))
    }

    /// JSON that is valid under a schema (draft 4 to 2020-12; `$ref` within the schema), with its properties in the
    /// order of the schema and at most 64 whitespace characters in a row.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names the place of a keyword which cannot be enforced; [`Error::Argument`] for a
    /// schema that is wrong or that nothing can satisfy (one that only an endless value would satisfy is not found
    /// out); [`Error::Limit`] for one that is too large or too deep.
    pub fn json_schema(table: &Arc<TokenTable>, schema: &Value) -> Result<Self> {
        schema::check(schema)?;
        let grammar = GrammarWithLexer::from_json_schema(schema::with_options(schema));
        Self::compile(table, grammar, "schema")
    }

    /// Text that a regular expression matches as a whole (syntax of the crate `regex`, without look-around and
    /// back-references).
    ///
    /// # Errors
    /// [`Error::Argument`] for an expression that is wrong or matches nothing; [`Error::Limit`] for one that is too
    /// large.
    pub fn regex(table: &Arc<TokenTable>, regex: &str) -> Result<Self> {
        check_size("regex", regex.len(), MAX_REGEX_BYTES)?;
        let backslashes = regex.len() - regex.trim_end_matches('\\').len();
        if regex.is_empty() || backslashes % 2 == 1 {
            let found = if regex.is_empty() { "an empty one" } else { "a backslash at the end" };
            return Err(Error::argument("regex", found, "a regular expression"));
        }
        Self::compile(table, GrammarWithLexer::from_regex(regex), "regex")
    }

    /// Text of a context-free grammar in the variant of Lark's syntax that `llguidance` documents.
    ///
    /// # Errors
    /// [`Error::Argument`] for a grammar that is wrong or that nothing can satisfy; [`Error::Limit`] for one that is
    /// too large.
    pub fn lark(table: &Arc<TokenTable>, grammar: &str) -> Result<Self> {
        check_size("grammar", grammar.len(), MAX_GRAMMAR_BYTES)?;
        Self::compile(table, GrammarWithLexer::from_lark(grammar.to_owned()), "grammar")
    }

    /// The state at the beginning of an answer. States share nothing that changes.
    pub fn start(&self) -> ConstraintState {
        self.start.clone()
    }

    fn compile(table: &Arc<TokenTable>, grammar: GrammarWithLexer, name: &str) -> Result<Self> {
        let refused = |reason: &str| Error::argument(name, reason, "something that output can obey");
        let parser = table.factory.create_parser(TopLevelGrammar::from_grammar(grammar));
        let parser = parser.map_err(|error| refused(&reason(&error)))?;
        let matcher = Matcher::new(Ok(parser));
        let mut start = ConstraintState {
            table: table.clone(),
            matcher,
            mask: SimpleVob::new(),
            ended: false,
            accepted: 0,
        };
        // A constraint that leads nowhere shows here, and the caches are warm for the first token.
        start.mask().map_err(|error| match error {
            Error::Limit { .. } => error,
            _ => refused("nothing satisfies it"),
        })?;
        Ok(Self { start })
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

/// How far an answer has come under its constraint.
pub struct ConstraintState {
    table: Arc<TokenTable>,
    matcher: Matcher,
    mask: SimpleVob,
    /// Whether a token that ends the answer was accepted.
    ended: bool,
    /// Tokens accepted, that one included.
    accepted: usize,
}

impl ConstraintState {
    /// The tokens that may follow, one bit each: the lowest bit of the first word is token 0. The tokens that end the
    /// answer are among them where it may end.
    ///
    /// # Errors
    /// [`Error::Limit`] where the step takes too much work; [`Error::Argument`] at a dead end, or after the end of
    /// the answer.
    pub fn mask(&mut self) -> Result<&[u32]> {
        if self.ended {
            return Err(Error::argument("constraint", "an answer that has ended", "an answer that goes on"));
        }
        match self.matcher.compute_mask_or_eos() {
            Ok(mask) => self.mask = mask,
            Err(error) => return Err(failure(&error)),
        }
        Ok(self.mask.as_slice())
    }

    /// Advances by one token.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token that may not follow: the state is as before; [`Error::Limit`] where the step
    /// takes too much work.
    pub fn accept(&mut self, token: u32) -> Result<()> {
        let refused = || Error::argument("token", token, "a token that the constraint allows");
        if self.ended || token as usize >= self.table.vocab_size() {
            return Err(refused());
        }
        if self.table.eos.contains(&token) {
            if !self.may_stop() {
                return Err(refused());
            }
            self.ended = true;
        } else {
            match self.matcher.try_consume_tokens(&[token]) {
                Ok(0) => return Err(refused()),
                Ok(_) => {}
                Err(error) => return Err(failure(&error)),
            }
        }
        self.accepted += 1;
        Ok(())
    }

    /// Whether the answer may end here.
    pub fn may_stop(&mut self) -> bool {
        self.ended || self.is_complete() || self.matcher.is_accepting().unwrap_or(false)
    }

    /// Whether the answer must end here: it is whole, and nothing can follow.
    pub fn is_complete(&self) -> bool {
        self.ended
            || matches!(self.matcher.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence)
    }

    /// Takes back the last `tokens` tokens (for speculation).
    ///
    /// # Errors
    /// [`Error::Argument`] for more tokens than were accepted.
    pub fn rollback(&mut self, tokens: usize) -> Result<()> {
        if tokens > self.accepted {
            return Err(Error::argument("tokens", tokens, format!("at most {}", self.accepted)));
        }
        let ending = usize::from(self.ended && tokens > 0);
        self.matcher.rollback(tokens - ending).map_err(|error| failure(&error))?;
        self.ended &= ending == 0;
        self.accepted -= tokens;
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
            ended: self.ended,
            accepted: self.accepted,
        }
    }
}

impl fmt::Debug for ConstraintState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConstraintState")
            .field("accepted", &self.accepted)
            .field("ended", &self.ended)
            .finish()
    }
}

fn check_size(name: &str, bytes: usize, most: usize) -> Result<()> {
    if bytes > most {
        return Err(Error::limit(name, format!("{bytes} bytes"), format!("{most} bytes")));
    }
    Ok(())
}

/// The first line of what `llguidance` says, at a bounded length.
fn reason(error: &dyn fmt::Display) -> String {
    let message = error.to_string();
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    line.chars().take(300).collect()
}

/// Why the matcher failed, without its own words: they may contain text of the answer.
fn failure(error: &dyn fmt::Display) -> Error {
    let message = error.to_string().to_ascii_lowercase();
    if message.starts_with("lexer error") || message.starts_with("parser error") {
        return Error::limit("work of a constraint", "more in this answer", "the limits of `constraint`");
    }
    Error::argument("constraint", "a dead end", "a constraint under which a token can follow")
}

fn internal(error: &dyn fmt::Display) -> Error {
    Error::Internal(format!("the table of tokens: {}", reason(error)))
}
