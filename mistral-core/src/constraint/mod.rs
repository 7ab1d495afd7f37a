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
//!
//! `llguidance` puts a panic hook before the one of the process when it is first used: its own panics, which it
//! catches, print nothing, and all others go on to the hook that was there.

mod schema;
mod spec;
mod state;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use llguidance::Matcher;
use llguidance::api::GrammarWithLexer;

pub use spec::{Composed, ConstraintSpec, MAX_GRAMMAR_BYTES, MAX_REGEX_BYTES, Part};
pub use state::ConstraintState;
pub use table::TokenTable;

use crate::error::{Error, Result};

/// A compiled constraint.
#[derive(Clone)]
pub struct Constraint {
    start: ConstraintState,
}

impl Constraint {
    /// Compiles a constraint for the tokens of a model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] that names the place of a keyword which cannot be enforced; [`Error::Argument`] for a
    /// schema, expression or grammar that is wrong or that nothing can satisfy (one that only an endless text would
    /// satisfy is not found out); [`Error::Limit`] for one that is too large or too deep. They call it `json_schema`,
    /// `regex` or `grammar`, and a part of a composed one by its path.
    pub fn new(table: &Arc<TokenTable>, spec: &ConstraintSpec) -> Result<Self> {
        let ConstraintSpec::Composed(composed) = spec else {
            return compile(table, vec![spec.source(spec.name())?], spec.name(), None);
        };
        let whole = compile(table, composed.sources()?, spec.name(), composed.trigger);
        // The compiler does not tell which part was wrong.
        if let Err(Error::Argument { .. } | Error::Limit { .. }) = &whole {
            for part in &composed.parts {
                compile(table, vec![part.spec.source(&part.path)?], &part.path, None)?;
            }
        }
        whole
    }

    /// The state at the beginning of an answer. States share nothing that changes.
    pub fn start(&self) -> ConstraintState {
        self.start.clone()
    }
}

impl fmt::Debug for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

/// Compiles grammars, of which the first may refer to the others; `name` is what errors call them.
fn compile(
    table: &Arc<TokenTable>,
    grammars: Vec<GrammarWithLexer>,
    name: &str,
    trigger: Option<u32>,
) -> Result<Constraint> {
    let refused = |reason: &str| Error::argument(name, reason, "something that output can obey");
    let parser = table.parser(grammars).map_err(|reason| {
        let too_much = TOO_MUCH.iter().any(|words| reason.starts_with(words));
        if too_much { Error::limit(format!("work of {name}"), reason, WORK) } else { refused(&reason) }
    })?;
    let mut start = ConstraintState::new(table.clone(), Matcher::new(Ok(parser)));
    // A constraint that leads nowhere shows here, and the caches are warm for the first token.
    start.mask().map_err(|error| match error {
        Error::Limit { .. } => error,
        _ => refused("nothing satisfies it"),
    })?;
    start.wait_for(trigger);
    Ok(Constraint { start })
}

/// What the limits of [`table`] leave room for, for messages.
const WORK: &str = "a constraint of fewer parts, or of shorter texts";

/// How `llguidance` says that it gave up at one of the limits of [`table`].
const TOO_MUCH: [&str; 5] = [
    "fuel exhausted",
    "lexer precomputation failed",
    "initial lexer configuration (grammar) too big",
    "grammar size (number of symbols) too big",
    "schema too large",
];

/// The first line of what `llguidance` says, at a bounded length.
fn reason(error: &dyn fmt::Display) -> String {
    let message = error.to_string();
    let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
    line.chars().take(300).collect()
}
