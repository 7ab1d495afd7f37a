//! Pre-tokenisation: where merges may not cross.
//!
//! The patterns of tokenizers are regular expressions but for one idiom, `\s+(?!\S)|\s+`: of a run of white space that
//! is followed by text, the last character is left for the next match. Here the pattern runs on an automaton, which
//! takes time linear in the text whatever the pattern, and the idiom is done by hand. A pattern with any other
//! look-around is refused: a backtracking engine would let a tokenizer file choose how long encoding takes.

use std::sync::Mutex;

use regex_automata::meta::{Cache, Regex};
use regex_automata::{Anchored, Input, PatternID};

/// The longest pattern that is compiled; published ones are under 500 bytes.
const MAX_PATTERN: usize = 8192;
/// Search caches kept for reuse: as many as threads usually encode at once.
const MAX_CACHES: usize = 16;
/// The pattern of `\s+` after the rest, where the idiom was cut off.
const SPACES: PatternID = PatternID::new_unchecked(1);

/// What becomes of a match. The names are those of Hugging Face's `tokenizers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behavior {
    /// Each match and each stretch between matches is a piece.
    Isolated,
    /// Matches vanish.
    Removed,
    /// A match ends the piece before it.
    MergedWithPrevious,
    /// A match begins a piece.
    MergedWithNext,
}

/// One step of pre-tokenisation.
pub(super) enum Splitter {
    /// By matches of a pattern.
    Pattern(Box<Pattern>),
    /// Before each space that follows something else than a space. Merging the words one by one equals merging the
    /// whole text where no token has a space after another character, and is much faster.
    Words,
}

/// A compiled pattern.
pub(super) struct Pattern {
    regex: Regex,
    behavior: Behavior,
    /// Matches are the stretches between the pattern's matches.
    invert: bool,
    caches: Mutex<Vec<Cache>>,
}

impl Splitter {
    /// Splits at matches of `pattern`; `Err` with the reason why it cannot.
    pub(super) fn pattern(pattern: &str, behavior: Behavior, invert: bool) -> Result<Self, String> {
        if pattern.len() > MAX_PATTERN {
            return Err(format!("a pattern of {} bytes", pattern.len()));
        }
        let idiom = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)"];
        let head = idiom.iter().find_map(|idiom| pattern.strip_suffix(idiom));
        let regex = match head {
            Some(head) => Regex::new_many(&[head, r"\s+"]),
            None => Regex::new(pattern),
        };
        let regex = regex.map_err(|error| match error.syntax_error() {
            Some(reason) => reason.to_string(),
            None => error.to_string(),
        })?;
        Ok(Self::Pattern(Box::new(Pattern { regex, behavior, invert, caches: Mutex::default() })))
    }

    /// Calls `each` with the pieces of `text`, in order.
    fn each<'t>(&self, text: &'t str, each: &mut dyn FnMut(&'t str)) {
        match self {
            Self::Pattern(pattern) => pattern.each(text, each),
            Self::Words => each_word(text, each),
        }
    }
}

/// Calls `each` with the pieces of `text` after all of `splitters`, each of which splits what its predecessor left.
pub(super) fn split<'t>(splitters: &[Splitter], text: &'t str, each: &mut dyn FnMut(&'t str)) {
    match splitters.split_first() {
        None => each(text),
        Some((first, [])) => first.each(text, each),
        // As deep as there are splitters, which the loaders bound.
        Some((first, rest)) => first.each(text, &mut |piece| split(rest, piece, each)),
    }
}

fn each_word<'t>(text: &'t str, each: &mut dyn FnMut(&'t str)) {
    let bytes = text.as_bytes();
    let mut start = 0;
    for at in 1..bytes.len() {
        if bytes[at] == b' ' && bytes[at - 1] != b' ' {
            each(&text[start..at]);
            start = at;
        }
    }
    if start < text.len() {
        each(&text[start..]);
    }
}

impl Pattern {
    fn each<'t>(&self, text: &'t str, each: &mut dyn FnMut(&'t str)) {
        let cached = self.caches.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).pop();
        let mut cache = cached.unwrap_or_else(|| self.regex.create_cache());
        self.each_with(&mut cache, text, each);
        let mut caches = self.caches.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if caches.len() < MAX_CACHES {
            caches.push(cache);
        }
    }

    fn each_with<'t>(&self, cache: &mut Cache, text: &'t str, each: &mut dyn FnMut(&'t str)) {
        // The piece under construction is text[open..]; text[..done] has been looked at.
        let mut open = 0;
        let mut done = 0;
        let mut search = 0;
        while let Some((start, end)) = self.find(cache, text, search) {
            search = end;
            if start == end {
                // An empty match splits nothing; look on from the next character.
                search += text[end..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            self.segment(text, &mut open, done, start, false, each);
            self.segment(text, &mut open, start, end, true, each);
            done = end;
        }
        self.segment(text, &mut open, done, text.len(), false, each);
        if open < text.len() {
            each(&text[open..]);
        }
    }

    /// Takes text[start..end], which did or did not match, into account; pieces that end with it go to `each`.
    fn segment<'t>(
        &self,
        text: &'t str,
        open: &mut usize,
        start: usize,
        end: usize,
        matched: bool,
        each: &mut dyn FnMut(&'t str),
    ) {
        if start == end {
            return;
        }
        // (a piece ends before the segment, after the segment)
        let (before, after) = match (self.behavior, matched != self.invert) {
            (Behavior::Isolated | Behavior::Removed, _) => (true, true),
            (Behavior::MergedWithPrevious, true) => (false, true),
            (Behavior::MergedWithNext, true) => (true, false),
            (Behavior::MergedWithPrevious | Behavior::MergedWithNext, false) => (false, false),
        };
        if before && *open < start {
            each(&text[*open..start]);
            *open = start;
        }
        if after {
            let removed = self.behavior == Behavior::Removed && matched != self.invert;
            if !removed {
                each(&text[*open..end]);
            }
            *open = end;
        }
    }

    /// The next match at or after `from`.
    fn find(&self, cache: &mut Cache, text: &str, from: usize) -> Option<(usize, usize)> {
        if from >= text.len() {
            return None;
        }
        let input = Input::new(text).span(from..text.len());
        // Most patterns leave no gap between matches, and to look for one here takes no search for its start.
        let here = self.regex.search_with(cache, &input.clone().anchored(Anchored::Yes));
        let found = here.or_else(|| self.regex.search_with(cache, &input))?;
        let (start, mut end) = (found.start(), found.end());
        if found.pattern() == SPACES && end < text.len() {
            // The run is as long as it can be, so a character that is no space follows: `\s+(?!\S)` gives one back.
            let last = text[start..end].chars().next_back().map_or(0, char::len_utf8);
            if end - last > start {
                end -= last;
            }
        }
        Some((start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::gguf;

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        split(std::slice::from_ref(splitter), text, &mut |piece| pieces.push(piece.to_owned()));
        pieces
    }

    /// The matches of a backtracking engine that knows look-around, and what lies between them.
    fn reference(regex: &fancy_regex::Regex, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let mut done = 0;
        for found in regex.find_iter(text) {
            let found = found.unwrap();
            pieces.extend((done < found.start()).then(|| text[done..found.start()].to_owned()));
            pieces.push(found.as_str().to_owned());
            done = found.end();
        }
        pieces.extend((done < text.len()).then(|| text[done..].to_owned()));
        pieces
    }

    #[test]
    fn the_patterns_split_as_a_backtracking_engine_does() {
        let alphabet: Vec<char> = "aB \t\n\r\u{a0}\u{3000}'sLé1٣½.,/中のǅʰ\u{301}🎉_".chars().collect();
        let mut state = 1u64;
        let mut texts = vec![String::new()];
        for _ in 0..3000 {
            let mut text = String::new();
            for _ in 0..(state >> 40) % 24 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                text.push(alphabet[(state >> 33) as usize % alphabet.len()]);
            }
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            texts.push(text);
        }
        for pattern in [gguf::TEKKEN, gguf::LLAMA3, gguf::QWEN2, gguf::GPT4O, gguf::GPT2] {
            let splitter = Splitter::pattern(pattern, Behavior::Isolated, false).unwrap();
            let regex = fancy_regex::Regex::new(pattern).unwrap();
            for text in &texts {
                assert_eq!(pieces(&splitter, text), reference(&regex, text), "{pattern} on {text:?}");
            }
        }
    }

    #[test]
    fn behaviors_are_those_of_hugging_face() {
        let on_digits =
            |behavior, invert| pieces(&Splitter::pattern("[0-9]", behavior, invert).unwrap(), "a12bc3");
        assert_eq!(on_digits(Behavior::Isolated, false), ["a", "1", "2", "bc", "3"]);
        assert_eq!(on_digits(Behavior::Removed, false), ["a", "bc"]);
        assert_eq!(on_digits(Behavior::Removed, true), ["1", "2", "3"]);
        assert_eq!(on_digits(Behavior::MergedWithPrevious, false), ["a1", "2", "bc3"]);
        assert_eq!(on_digits(Behavior::MergedWithNext, false), ["a", "1", "2bc", "3"]);
        let empty = Splitter::pattern("x*", Behavior::Isolated, false).unwrap();
        assert_eq!(pieces(&empty, "aéxx b"), ["aé", "xx", " b"]);
    }

    #[test]
    fn other_look_around_is_refused() {
        for pattern in [r"a(?=b)", r"\p{N}{1,3}(?=(?:\p{N}{3})*)", "(", r"\p{Nope}"] {
            assert!(Splitter::pattern(pattern, Behavior::Isolated, false).is_err(), "{pattern}");
        }
        assert!(Splitter::pattern(&"a".repeat(MAX_PATTERN + 1), Behavior::Isolated, false).is_err());
    }
}
