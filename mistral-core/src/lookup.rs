//! Guesses at what follows, taken from the text itself: where its last tokens stood before, what came then may come again (prompt lookup
//! decoding, Saxena 2023; the verification is that of speculative decoding, Leviathan et al. 2023, arXiv:2211.17192).
//!
//! Guesses are evaluated together with the token before them, for little more than that token alone: a pass reads the weights once. A row of a
//! pass does not depend on the rows beside it, to the bit, and each token is chosen from its row as it would have been without guesses. So
//! the tokens are the same, whether the most probable one is taken or one is drawn, under a constraint or not; a wrong guess costs time.

use std::collections::VecDeque;

use zeroize::Zeroizing;

use crate::control::Control;
use crate::error::{Error, Result};
use crate::session::Session;

/// The most tokens that a host may have guessed at a time: their logits are all held, a vocabulary each.
pub const MOST: usize = 32;
/// The last tokens are looked for together with as many before them as match, up to this.
const LONGEST: usize = 4;
/// One token alone says too little.
const SHORTEST: usize = 2;
/// The first guess.
const BEGIN_WITH: usize = 2;

/// The guesses of one generation.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// Tokens to guess at most.
    most: usize,
    /// Tokens to guess next time: more after guesses that were right, fewer after wrong ones.
    length: usize,
    /// Tokens of the last guess, and how many of them were right.
    guessed: usize,
    right: usize,
    /// The guesses that are still to be confirmed, each with the logits after it.
    ahead: VecDeque<(u32, Zeroizing<Vec<f32>>)>,
}

impl Lookup {
    /// Guesses of at most `most` tokens; `None` for 0.
    ///
    /// # Errors
    /// [`Error::Argument`] for more than [`MOST`].
    pub fn new(most: usize) -> Result<Option<Self>> {
        if most > MOST {
            return Err(Error::argument("prompt_lookup", most, format!("at most {MOST}")));
        }
        let length = BEGIN_WITH.min(most);
        Ok((most > 0).then(|| Self { most, length, guessed: 0, right: 0, ahead: VecDeque::new() }))
    }

    /// Evaluates the last token of `session`, with guesses at up to `room` tokens after it, or takes its logits from earlier guesses.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn step(&mut self, session: &mut Session, room: usize, control: &mut Control<'_>) -> Result<()> {
        let token = session.tokens().last().copied();
        if let Some((guess, logits)) = self.ahead.pop_front()
            && Some(guess) == token
        {
            self.right += 1;
            session.confirm(logits);
            return Ok(());
        }
        self.ahead.clear();
        self.adapt();
        let guesses = guess(session.tokens(), self.length.min(room));
        let rows = session.step_with(&guesses, control)?;
        self.guessed = guesses.len();
        self.ahead = guesses.into_iter().zip(rows).collect();
        Ok(())
    }

    /// Twice as many after a guess that was right to its end, else one more than were right.
    fn adapt(&mut self) {
        if self.guessed > 0 {
            let all = self.right == self.guessed;
            self.length = if all { 2 * self.length } else { self.right + 1 }.min(self.most);
        }
        (self.guessed, self.right) = (0, 0);
    }
}

/// `most` tokens that came after the latest of the longest earlier runs of what is last in `tokens`; none where there was no such run. If it was
/// so late that there are not as many, the text goes round in a circle.
fn guess(tokens: &[u32], most: usize) -> Vec<u32> {
    let (mut longest, mut at) = (SHORTEST - 1, tokens.len());
    for end in (SHORTEST..tokens.len()).rev() {
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        let run = pairs.take(LONGEST).take_while(|(a, b)| a == b).count();
        if run > longest {
            (longest, at) = (run, end);
        }
        if run == LONGEST {
            break;
        }
    }
    tokens[at..].iter().copied().cycle().take(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_the_longest_run_is_guessed() {
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 8), [3, 4, 9, 1, 2, 3, 4, 9]);
        assert_eq!(guess(&[1, 2, 3, 4, 9, 1, 2], 2), [3, 4]);
        // The latest of equal runs, and a longer one before it.
        assert_eq!(guess(&[1, 2, 5, 1, 2, 6, 1, 2], 1), [6]);
        assert_eq!(guess(&[3, 1, 2, 5, 1, 2, 6, 3, 1, 2], 1), [5]);
        assert_eq!(guess(&[7, 7, 7], 4), [7; 4]);
        for nothing in [&[][..], &[1], &[1, 2], &[1, 2, 1], &[1, 2, 3, 4]] {
            assert!(guess(nothing, 4).is_empty(), "{nothing:?}");
        }
        assert!(guess(&[1, 2, 3, 1, 2], 0).is_empty());
    }

    #[test]
    fn guesses_grow_while_they_are_right() {
        let mut lookup = Lookup::new(10).unwrap().unwrap();
        let mut after = |guessed, right| {
            (lookup.guessed, lookup.right) = (guessed, right);
            lookup.adapt();
            lookup.length
        };
        assert_eq!([after(2, 2), after(4, 4), after(8, 8), after(10, 3), after(4, 0)], [4, 8, 10, 4, 1]);
        assert_eq!(after(0, 0), 1);
        assert!(Lookup::new(0).unwrap().is_none());
        assert!(Lookup::new(MOST + 1).unwrap_err().to_string().contains("prompt_lookup"));
    }
}
