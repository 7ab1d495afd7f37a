//! Tokens that are found in the text as they stand, before anything else is done to it.

use aho_corasick::{AhoCorasick, MatchKind};
use regex_automata::util::look::LookMatcher;

use crate::error::{Error, Result};

/// A token to look for.
#[derive(Clone, Debug, Default)]
pub(super) struct Added {
    pub(super) text: String,
    pub(super) id: u32,
    /// White space before it belongs to it.
    pub(super) lstrip: bool,
    /// White space after it belongs to it.
    pub(super) rstrip: bool,
    /// Only where no character of a word (`\w` of Unicode: letters, marks, digits, underscores and joiners) touches it.
    pub(super) single_word: bool,
}

/// A stretch of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// Finds tokens in text: the leftmost, and of those the longest.
pub(super) struct Matcher {
    automaton: AhoCorasick,
    tokens: Vec<Added>,
}

impl Matcher {
    /// `None` if there is nothing to find.
    pub(super) fn new(tokens: Vec<Added>, file: &str) -> Result<Option<Self>> {
        let tokens: Vec<Added> = tokens.into_iter().filter(|token| !token.text.is_empty()).collect();
        if tokens.is_empty() {
            return Ok(None);
        }
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|token| &token.text))
            .map_err(|error| {
                Error::format(file, "special tokens", error, "a set that can be searched for")
            })?;
        Ok(Some(Self { automaton, tokens }))
    }

    /// Calls `each` with the tokens in `text` and the stretches between them, none of them empty.
    pub(super) fn split<'t>(&self, text: &'t str, each: &mut dyn FnMut(Fragment<'t>)) {
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            let token = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if start < done || (token.single_word && touches_a_word(text, start, end)) {
                continue;
            }
            if token.lstrip {
                start = done + text[done..start].trim_end().len();
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                each(Fragment::Text(&text[done..start]));
            }
            each(Fragment::Token(token.id));
            done = end;
        }
        if done < text.len() {
            each(Fragment::Text(&text[done..]));
        }
    }
}

fn touches_a_word(text: &str, start: usize, end: usize) -> bool {
    let look = LookMatcher::new();
    let begins = look.is_word_start_half_unicode(text.as_bytes(), start);
    let ends = look.is_word_end_half_unicode(text.as_bytes(), end);
    // Neither fails: the tables of Unicode are compiled in.
    !(begins.unwrap_or(true) && ends.unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(tokens: Vec<Added>, text: &str) -> Vec<Fragment<'_>> {
        let mut fragments = Vec::new();
        Matcher::new(tokens, "f").unwrap().unwrap().split(text, &mut |fragment| fragments.push(fragment));
        fragments
    }

    fn added(text: &str, id: u32) -> Added {
        Added { text: text.into(), id, ..Added::default() }
    }

    #[test]
    fn leftmost_then_longest() {
        use Fragment::{Text, Token};
        let tokens = vec![added("<s>", 1), added("<s><s>", 2), added("s>x", 3)];
        assert_eq!(split(tokens, "a<s><s>b<s>x"), [Text("a"), Token(2), Text("b"), Token(1), Text("x")]);
        assert!(Matcher::new(vec![added("", 1)], "f").unwrap().is_none());
    }

    #[test]
    fn tokens_may_take_white_space_along() {
        use Fragment::{Text, Token};
        let strip = Added { lstrip: true, rstrip: true, ..added("<m>", 1) };
        assert_eq!(split(vec![strip], " <m> \n<m>\u{a0}a"), [Token(1), Token(1), Text("a")]);
        let word = Added { single_word: true, ..added("to", 1) };
        assert_eq!(split(vec![word], "to tone"), [Token(1), Text(" tone")]);
        // Right: whether the regex \w of Rust, which `tokenizers` asks, matches the character beside it.
        for (beside, touches) in [
            ("a", true),
            ("é", true),
            ("猫", true),
            ("_", true),
            ("7", true),
            ("\u{301}", true),
            ("\u{93f}", true),
            ("\u{20dd}", true),
            ("\u{203f}", true),
            ("\u{200d}", true),
            ("\u{24b6}", true),
            ("½", false),
            ("²", false),
            ("-", false),
            ("。", false),
        ] {
            for text in [format!("to{beside}"), format!("{beside}to")] {
                let word = Added { single_word: true, ..added("to", 1) };
                assert_eq!(!split(vec![word], &text).contains(&Token(1)), touches, "{text:?}");
            }
        }
    }
}
