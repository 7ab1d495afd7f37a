//! What an answer must obey, as a host says it.

use llguidance::api::GrammarWithLexer;
use serde_json::{Value, json};

use super::schema;
use crate::error::{Error, Result};

/// The most bytes of a schema (as compact JSON) or a grammar.
pub const MAX_GRAMMAR_BYTES: usize = 1 << 20;

/// The most bytes of a regular expression.
pub const MAX_REGEX_BYTES: usize = 1 << 16;

/// What an answer must obey.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstraintSpec {
    /// A JSON object, whatever is in it.
    JsonObject,
    /// JSON that is valid under a schema (draft 4 to 2020-12; `$ref` within the schema), with its properties in the
    /// order of the schema and at most 64 whitespace characters in a row. A keyword that cannot be enforced is
    /// refused.
    JsonSchema(Value),
    /// Text that a regular expression matches as a whole (syntax of the crate `regex`, without look-around and
    /// back-references).
    Regex(String),
    /// Text of a context-free grammar in the variant of Lark's syntax that `llguidance` documents; `<[id]>` asks for
    /// a token by its number.
    Lark(String),
    /// Several of these in one grammar.
    Composed(Composed),
}

/// A Lark grammar in which `@name` stands for another constraint.
#[derive(Clone, Debug, PartialEq)]
pub struct Composed {
    /// The grammar.
    pub grammar: String,
    /// The others.
    pub parts: Vec<Part>,
    /// Everything is allowed until this token comes; it is the first of the grammar.
    pub trigger: Option<u32>,
}

/// A constraint inside a grammar.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// What the grammar calls it, without the `@`.
    pub name: String,
    /// What errors call it: the path of a field.
    pub path: String,
    /// The constraint, which is not composed itself.
    pub spec: ConstraintSpec,
}

impl ConstraintSpec {
    /// What errors and records call the constraint.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
            Self::Regex(_) => "regex",
            Self::Lark(_) | Self::Composed(_) => "grammar",
        }
    }

    /// The grammar of a constraint that is not composed, after the checks that need no compiler.
    pub(super) fn source(&self, path: &str) -> Result<GrammarWithLexer> {
        match self {
            Self::JsonObject => Ok(GrammarWithLexer::from_json_schema(schema::with_options(&json!({
                "type": "object"
            })))),
            Self::JsonSchema(value) => {
                schema::check(value, path)?;
                Ok(GrammarWithLexer::from_json_schema(schema::with_options(value)))
            }
            Self::Regex(regex) => {
                check_size(path, regex.len(), MAX_REGEX_BYTES)?;
                let backslashes = regex.len() - regex.trim_end_matches('\\').len();
                if regex.is_empty() || backslashes % 2 == 1 {
                    let found = if regex.is_empty() { "an empty one" } else { "a backslash at the end" };
                    return Err(Error::argument(path, found, "a regular expression"));
                }
                Ok(GrammarWithLexer::from_regex(regex))
            }
            Self::Lark(grammar) => {
                check_size(path, grammar.len(), MAX_GRAMMAR_BYTES)?;
                check_schemas(grammar, path)?;
                Ok(GrammarWithLexer::from_lark(grammar.clone()))
            }
            Self::Composed(_) => {
                Err(Error::argument(path, "a composed constraint", "one that is not composed"))
            }
        }
    }
}

impl Composed {
    /// The grammar and its parts, each under its name.
    pub(super) fn sources(&self) -> Result<Vec<GrammarWithLexer>> {
        let mut all = vec![ConstraintSpec::Lark(self.grammar.clone()).source("grammar")?];
        for part in &self.parts {
            let source = part.spec.source(&part.path)?;
            all.push(GrammarWithLexer { name: Some(part.name.clone()), ..source });
        }
        Ok(all)
    }
}

/// Checks the schemas that a Lark grammar holds (`%json {…}`). What is none is for the compiler to refuse.
fn check_schemas(grammar: &str, path: &str) -> Result<()> {
    for (at, directive) in grammar.match_indices("%json") {
        let text = &grammar[at + directive.len()..];
        if let Some(Ok(schema)) = serde_json::Deserializer::from_str(text).into_iter().next() {
            schema::check(&schema, path)?;
        }
    }
    Ok(())
}

pub(super) fn check_size(name: &str, bytes: usize, most: usize) -> Result<()> {
    if bytes > most {
        return Err(Error::limit(name, format!("{bytes} bytes"), format!("{most} bytes")));
    }
    Ok(())
}
