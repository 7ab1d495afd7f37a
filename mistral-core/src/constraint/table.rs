//! The tokens of a model, arranged for the computation of masks.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use llguidance::api::{GrammarInit, GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::earley::regexvec::{RegexVec, StateID};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{ParserFactory, TokenParser, panic_utils};

use super::reason;
use crate::error::{Error, Result};

/// Longer tokens are never allowed; the tables of `llguidance` end at 1,023 bytes.
const MAX_TOKEN_BYTES: usize = 512;

/// The first byte of control tokens inside `llguidance`; no UTF-8 text has it.
const CONTROL_BYTE: u8 = TokTrie::SPECIAL_TOKEN_MARKER;

/// The bytes of every token of a model, arranged for the computation of masks.
pub struct TokenTable {
    pub(super) factory: ParserFactory,
    pub(super) eos: Vec<u32>,
    /// The tokens that are another text at the beginning, ascending, and what each is then.
    leading: Vec<(u32, Leading)>,
}

/// What a token is at the beginning of a text, where a tokenizer drops the space that it put there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leading {
    /// No text at all.
    Nothing,
    /// The text of this token.
    Like(u32),
    /// A text that no token has: it is not allowed there.
    Unspellable,
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
        let internal = |error| Error::Internal(format!("the table of tokens: {}", reason(&error)));
        let mut factory = ParserFactory::new(&env, capabilities, &slices).map_err(internal)?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Self { factory, eos: eos.to_vec(), leading: Vec::new() })
    }

    /// With tokens that are another text at the beginning of an answer, as where the tokenizer drops a space that it
    /// put there. Where no other token has that text, the token is not allowed there.
    pub fn with_leading(mut self, tokens: impl IntoIterator<Item = (u32, Vec<u8>)>) -> Self {
        let trie = self.factory.tok_env().tok_trie();
        let leading = |(id, bytes): (u32, Vec<u8>)| {
            let is = match bytes.is_empty() {
                true => Leading::Nothing,
                false => trie.token_id_at_bytes(&bytes).map_or(Leading::Unspellable, Leading::Like),
            };
            (id, is)
        };
        self.leading = tokens.into_iter().map(leading).collect();
        self.leading.sort_unstable_by_key(|(id, _)| *id);
        self
    }

    /// A parser for grammars, of which the first may refer to the others; or what `llguidance` says against them.
    pub(super) fn parser(&self, grammars: Vec<GrammarWithLexer>) -> Result<TokenParser, String> {
        let grammar = GrammarInit::Serialized(TopLevelGrammar { grammars, max_tokens: None });
        let (env, limits) = (self.factory.tok_env().clone(), self.factory.limits());
        let parser = panic_utils::catch_unwind(AssertUnwindSafe(|| {
            let (grammar, lexer) = grammar.to_internal(Some(env), limits.clone())?;
            let mut states = lexer.to_regex_vec(&mut limits.clone())?;
            let start = states.initial_state(&lexer.all_lexemes());
            if !first_bytes_within(&mut states, start, limits.initial_lexer_fuel) {
                return Ok(None);
            }
            self.factory.create_parser_from_init_default(GrammarInit::Internal(grammar, lexer)).map(Some)
        }));
        match parser {
            Ok(Some(parser)) => Ok(parser),
            Ok(None) => Err("fuel exhausted when looking for the first bytes".to_owned()),
            Err(error) => Err(reason(&error)),
        }
    }

    /// The number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.factory.tok_env().tok_trie().vocab_size()
    }

    /// Whether a token has no text.
    pub(super) fn is_control(&self, token: u32) -> bool {
        self.factory.tok_env().tok_trie().token(token).is_empty()
    }

    /// What a token is at the beginning, if it is another text there.
    pub(super) fn leading(&self, token: u32) -> Option<Leading> {
        let at = self.leading.binary_search_by_key(&token, |(id, _)| *id).ok()?;
        Some(self.leading[at].1)
    }

    /// Turns the mask of a state into that of the same state at the beginning of a text.
    pub(super) fn at_the_beginning(&self, mask: &mut SimpleVob) {
        let later = mask.clone();
        for &(token, leading) in &self.leading {
            let allowed = match leading {
                Leading::Nothing => true,
                Leading::Like(other) => later.is_allowed(other),
                Leading::Unspellable => false,
            };
            mask.set(token as usize, allowed);
        }
    }
}

impl fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenTable").field("vocab_size", &self.vocab_size()).field("eos", &self.eos).finish()
    }
}

/// Whether a lexer can find out within `fuel` which bytes may come first. `llguidance` 1.9 does that without a bound, and
/// whether there is a text with a quotation mark among N characters takes it time and memory that grow with N.
fn first_bytes_within(states: &mut RegexVec, start: StateID, fuel: u64) -> bool {
    states.set_fuel(fuel);
    (0..=u8::MAX).for_each(|byte| {
        states.transition(start, byte);
    });
    !states.has_error()
}

/// What one step and one grammar may cost: milliseconds for what is sensible, some tenths of a second for the most
/// ambiguous grammars that stay within the bounds.
fn limits() -> ParserLimits {
    ParserLimits {
        // What a union of some hundred objects needs; a row of an ambiguous grammar costs their square.
        max_items_in_row: 1_000,
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
