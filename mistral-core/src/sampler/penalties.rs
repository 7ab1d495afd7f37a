//! Penalties for tokens that were seen: counted as they come, applied to those tokens only.

use std::collections::{BTreeMap, VecDeque};

use super::SamplingParams;
use super::select::finite;

#[derive(Clone, Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    window: Option<usize>,
    /// The tokens inside the window, oldest first, and whether each is of the answer; unused without a window.
    recent: VecDeque<(u32, bool)>,
    counts: BTreeMap<u32, Count>,
}

/// How often a token stands inside the window.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    prompt: u32,
    answer: u32,
}

impl Penalties {
    pub(super) fn new(params: &SamplingParams) -> Self {
        Self {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
            window: params.penalty_window,
            recent: VecDeque::new(),
            counts: BTreeMap::new(),
        }
    }

    /// Whether a token that was seen is treated unlike others.
    pub(super) fn active(&self) -> bool {
        self.window != Some(0) && (self.repetition, self.presence, self.frequency) != (1.0, 0.0, 0.0)
    }

    pub(super) fn push(&mut self, token: u32, of_answer: bool) {
        if !self.active() {
            return;
        }
        let count = self.counts.entry(token).or_default();
        let side = if of_answer { &mut count.answer } else { &mut count.prompt };
        *side = side.saturating_add(1);
        let Some(window) = self.window else { return };
        self.recent.push_back((token, of_answer));
        if self.recent.len() > window {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((token, of_answer)) = self.recent.pop_front() else { return };
        let Some(count) = self.counts.get_mut(&token) else { return };
        let side = if of_answer { &mut count.answer } else { &mut count.prompt };
        *side -= 1;
        if count.prompt == 0 && count.answer == 0 {
            self.counts.remove(&token);
        }
    }

    /// `logits`: [vocab_size].
    pub(super) fn apply(&self, logits: &mut [f32]) {
        for (&token, count) in &self.counts {
            let logit = &mut logits[token as usize];
            let repeated = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            let frequency = self.frequency * count.answer as f32;
            let presence = if count.answer > 0 { self.presence } else { 0.0 };
            *logit = finite(repeated - frequency - presence);
        }
    }
}
