//! Stop strings over streamed text: what may be shown already, and where the answer ends.

use crate::error::{Error, Result};

/// The most stop strings of one answer.
pub const MAX_STOPS: usize = 64;

/// The most bytes of one stop string.
pub const MAX_STOP_BYTES: usize = 1024;

/// What [`StopMatcher::push`] makes of a piece of text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStep {
    /// Text that may be shown: part of no stop string, whatever follows.
    pub text: String,
    /// The index of the stop string that ends the answer, once one has appeared.
    pub stop: Option<usize>,
}

/// Finds stop strings in text that comes in pieces, also where one reaches over several pieces, and holds back only
/// what could be the beginning of one.
///
/// The answer ends with the stop string that is complete first, as if the text came byte by byte, so it does not
/// depend on how the text is cut; of several that end at the same place the longest counts. Each byte advances one
/// automaton per stop string (Knuth, Morris, Pratt 1977): the time is proportional to the text.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    patterns: Vec<Pattern>,
    /// Text that has not been shown.
    held: String,
    stopped: Option<usize>,
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// For each n, the length of the longest proper suffix of the first n + 1 bytes that begins the pattern.
    fallback: Vec<usize>,
    /// How many bytes of the pattern the text seen so far ends with.
    matched: usize,
}

impl StopMatcher {
    /// A matcher for these stop strings; without any, all text passes.
    ///
    /// # Errors
    /// [`Error::Limit`] for more than [`MAX_STOPS`] strings or one longer than [`MAX_STOP_BYTES`];
    /// [`Error::Argument`] for an empty one.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self> {
        if stops.len() > MAX_STOPS {
            return Err(Error::limit("stop", format!("{} strings", stops.len()), MAX_STOPS));
        }
        for (index, stop) in stops.iter().map(AsRef::as_ref).enumerate() {
            if stop.is_empty() {
                return Err(Error::argument(format!("stop[{index}]"), "an empty string", "text"));
            }
            if stop.len() > MAX_STOP_BYTES {
                let found = format!("{} bytes", stop.len());
                return Err(Error::limit(format!("stop[{index}]"), found, format!("{MAX_STOP_BYTES} bytes")));
            }
        }
        let patterns = stops.iter().map(|stop| Pattern::new(stop.as_ref().as_bytes())).collect();
        Ok(Self { patterns, held: String::new(), stopped: None })
    }

    /// Takes the next piece of text. After a stop string has appeared, everything is swallowed.
    pub fn push(&mut self, piece: &str) -> StopStep {
        if self.stopped.is_some() {
            return StopStep { text: String::new(), stop: self.stopped };
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (index, &byte) in piece.as_bytes().iter().enumerate() {
            if let Some((stop, length)) = self.advance(byte) {
                // A stop string begins and ends where characters do, since both are valid UTF-8.
                self.held.truncate(before + index + 1 - length);
                self.stopped = Some(stop);
                return StopStep { text: std::mem::take(&mut self.held), stop: self.stopped };
            }
        }
        let keep = self.patterns.iter().map(|pattern| pattern.matched).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        StopStep { text: std::mem::replace(&mut self.held, rest), stop: None }
    }

    /// Ends the text: gives what was held back, as no stop string can follow any more.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Moves all patterns over one byte; the longest that it completes, and its length.
    fn advance(&mut self, byte: u8) -> Option<(usize, usize)> {
        let mut found: Option<(usize, usize)> = None;
        for (index, pattern) in self.patterns.iter_mut().enumerate() {
            let length = pattern.bytes.len();
            if pattern.advance(byte) && found.is_none_or(|(_, longest)| length > longest) {
                found = Some((index, length));
            }
        }
        found
    }
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut fallback = vec![0; bytes.len()];
        for end in 1..bytes.len() {
            let mut length = fallback[end - 1];
            while length > 0 && bytes[length] != bytes[end] {
                length = fallback[length - 1];
            }
            fallback[end] = length + usize::from(bytes[length] == bytes[end]);
        }
        Self { bytes: bytes.to_vec(), fallback, matched: 0 }
    }

    /// Whether the text ends with the pattern after `byte`. Not called again once it has.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule of the documentation, spelt out: the first end, and there the longest stop string.
    fn reference(text: &str, stops: &[String]) -> (String, Option<usize>) {
        for end in 1..=text.len() {
            let ending = |stop: &String| text.as_bytes()[..end].ends_with(stop.as_bytes());
            let found = (0..stops.len()).filter(|&index| ending(&stops[index]));
            if let Some(stop) = found.max_by_key(|&index| (stops[index].len(), std::cmp::Reverse(index))) {
                return (text[..end - stops[stop].len()].to_owned(), Some(stop));
            }
        }
        (text.to_owned(), None)
    }

    /// The longest end of `text` that begins a stop string but is not all of it.
    fn reference_held(text: &str, stops: &[String]) -> usize {
        let begins = |n: usize| {
            stops
                .iter()
                .any(|stop| n < stop.len() && stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..]))
        };
        (0..=text.len()).rev().find(|&n| begins(n)).unwrap_or(0)
    }

    /// A small generator for the property test (Knuth's MMIX constants).
    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound
        }

        fn text(&mut self, alphabet: &[char], most: usize) -> String {
            (0..1 + self.below(most)).map(|_| alphabet[self.below(alphabet.len())]).collect()
        }
    }

    #[test]
    fn random_texts_in_random_pieces_agree_with_the_rule() {
        let alphabets: [&[char]; 2] = [&['a', 'b'], &['é', 'è', '猫', '😀', 'a']];
        let mut random = Lcg(1);
        let (mut stopped, mut passed) = (0, 0);
        for round in 0..20_000 {
            let alphabet = alphabets[round % 2];
            let stops: Vec<String> = (0..random.below(4)).map(|_| random.text(alphabet, 5)).collect();
            let text = random.text(alphabet, 24);
            let (expected, expected_stop) = reference(&text, &stops);
            let mut matcher = StopMatcher::new(&stops).unwrap();
            let (mut shown, mut seen, mut stop) = (String::new(), String::new(), None);
            let mut characters = text.chars().peekable();
            while characters.peek().is_some() {
                let length = 1 + random.below(4);
                let piece: String = characters.by_ref().take(length).collect();
                seen.push_str(&piece);
                let step = matcher.push(&piece);
                shown.push_str(&step.text);
                stop = step.stop;
                if stop.is_none() {
                    assert_eq!(seen.len() - shown.len(), reference_held(&seen, &stops), "{seen:?} {stops:?}");
                }
            }
            shown.push_str(&matcher.finish());
            assert_eq!((&shown, stop), (&expected, expected_stop), "{text:?} {stops:?}");
            *(if stop.is_some() { &mut stopped } else { &mut passed }) += 1;
        }
        assert!(stopped > 5_000 && passed > 5_000, "{stopped} stopped, {passed} passed");
    }

    #[test]
    fn a_stop_over_three_pieces_is_never_shown() {
        let mut matcher = StopMatcher::new(&["</s>"]).unwrap();
        assert_eq!(matcher.push("Hi<"), StopStep { text: "Hi".into(), stop: None });
        assert_eq!(matcher.push("/s"), StopStep::default());
        assert_eq!(matcher.push("> more"), StopStep { text: String::new(), stop: Some(0) });
        assert_eq!(matcher.push("still"), StopStep { text: String::new(), stop: Some(0) });
        assert_eq!(matcher.finish(), "");
    }

    #[test]
    fn a_false_beginning_is_shown_with_what_follows() {
        let mut matcher = StopMatcher::new(&["aab"]).unwrap();
        assert_eq!(matcher.push("aaa").text, "a");
        assert_eq!(matcher.push("c").text, "aac");
        assert_eq!(matcher.push("xa").text, "x");
        assert_eq!(matcher.finish(), "a");
    }

    #[test]
    fn nonsense_stops_are_refused_by_index() {
        let error = StopMatcher::new(&["a", ""]).unwrap_err().to_string();
        assert_eq!(error, "argument `stop[1]`: found an empty string, expected text");
        let error = StopMatcher::new(&["x".repeat(1025)]).unwrap_err().to_string();
        assert_eq!(error, "limit `stop[0]`: found 1025 bytes, at most 1024 bytes");
        assert!(matches!(StopMatcher::new(&["a"; 65]), Err(Error::Limit { .. })));
        assert!(StopMatcher::new(&["x".repeat(1024)]).is_ok());
    }
}
