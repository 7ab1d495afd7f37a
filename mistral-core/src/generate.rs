//! From logits to a stream of text: sampling, stop conditions, events.

use std::ops::DerefMut;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::audit::{Call, check_caller_ref};
use crate::constraint::{Constraint, ConstraintSpec, ConstraintState};
use crate::control::Control;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::kernels::ROWS_ALIKE;
use crate::lookup::{self, Lookup};
use crate::sampler::{SampledToken, Sampler, SamplingParams, TokenLogprob};
use crate::session::Session;
use crate::stop::StopMatcher;
use crate::tokenizer::StreamDecoder;
use crate::tokenizer::Tokenizer;

/// A token and all guesses at what follows it: each row is what it would be alone.
const _: () = assert!(lookup::MOST < ROWS_ALIKE);

/// What a generation does, beyond its prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// How tokens are chosen; greedy by default.
    pub sampling: SamplingParams,
    /// Tokens to generate at most; `None`: until a stop or the end of the context.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// Tokens that end the answer, beside the model's own.
    pub stop_tokens: Vec<u32>,
    /// Go on after the model's own end-of-sequence tokens.
    pub ignore_eos: bool,
    /// Guess at most so many tokens at a time from the text so far, and evaluate them together ([prompt lookup](https://github.com/apoorvumang/prompt-lookup-decoding));
    /// 0, the default: none; at most 32. The tokens are the same, sooner where the answer repeats what stands before it, as when a document is
    /// quoted or corrected. The logits of all guesses are held: a vocabulary of f32 each.
    pub prompt_lookup: usize,
    /// Write control tokens (`[TOOL_CALLS]`) as text.
    pub show_special: bool,
    /// What the host calls those for whom it runs, for the audit log; at most 256 bytes. `None`: what the log's options say.
    pub caller_ref: Option<String>,
    /// What the answer must obey. Once nothing can follow under it, the answer ends ([`FinishReason::Stop`]); where
    /// another end comes first, the text is the beginning of one that obeys. With [`GenerateOptions::ignore_eos`], the
    /// model ends the answer only where nothing else may follow.
    pub constraint: Option<ConstraintSpec>,
    /// Tokens at the end of the prompt that the constraint takes for the beginning of the answer.
    pub constraint_prefix: Vec<u32>,
    /// Whether a text begins with the answer: the tokenizers that put a space before each text (SentencePiece) take it off again. `None`: where
    /// the tokens before it are none or end with one that is no text.
    pub begins_text: Option<bool>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            sampling: SamplingParams::greedy(),
            max_tokens: None,
            stop: Vec::new(),
            stop_tokens: Vec::new(),
            ignore_eos: false,
            prompt_lookup: 0,
            show_special: false,
            caller_ref: None,
            constraint: None,
            constraint_prefix: Vec::new(),
            begins_text: None,
        }
    }
}

impl GenerateOptions {
    /// What an audit record says of them: no text of the host; fractions, and numbers that it has not checked, as text.
    pub(crate) fn record(&self) -> Value {
        let sampling = &self.sampling;
        json!({
            "temperature": sampling.temperature.to_string(), "top_k": sampling.top_k,
            "top_p": sampling.top_p.to_string(), "min_p": sampling.min_p.to_string(),
            "repetition_penalty": sampling.repetition_penalty.to_string(),
            "presence_penalty": sampling.presence_penalty.to_string(),
            "frequency_penalty": sampling.frequency_penalty.to_string(),
            "penalty_window": sampling.penalty_window.map(|n| n.to_string()),
            "logprobs": sampling.logprobs.map(|n| n.to_string()),
            "logit_bias": sampling.logit_bias.len(), "stop": self.stop.len(), "stop_tokens": self.stop_tokens.len(),
            "max_tokens": self.max_tokens.map(|n| n.to_string()), "ignore_eos": self.ignore_eos,
            "prompt_lookup": self.prompt_lookup, "show_special": self.show_special,
            "constraint": self.constraint.as_ref().map(ConstraintSpec::name),
        })
    }
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended its answer, or a stop text or token came.
    Stop,
    /// [`GenerateOptions::max_tokens`] was reached.
    Length,
    /// The session has no position left.
    ContextFull,
}

impl FinishReason {
    /// `"stop"`, `"length"`, `"context_full"`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContextFull => "context_full",
        }
    }
}

/// One step of a generation: exactly one for each sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Text that became certain with this token: whole characters, often empty, never part of a stop text.
    pub text: String,
    /// The token.
    pub token: u32,
    /// Its log-probability in the model's own distribution, if the options ask for it.
    pub logprob: Option<f32>,
    /// The most probable tokens beside it, if the options ask for them.
    pub top_logprobs: Vec<TokenLogprob>,
    /// On the last event: why.
    pub finish_reason: Option<FinishReason>,
}

/// Checked options with the state of a generation, before it has a session.
struct Prepared {
    sampler: Sampler,
    stops: StopMatcher,
    end_tokens: Vec<u32>,
    max_tokens: usize,
    constraint: Option<ConstraintState>,
    ignore_eos: bool,
    lookup: Option<Lookup>,
    decoder: Option<StreamDecoder<Arc<Tokenizer>>>,
    /// Tokens that have a text.
    text_tokens: usize,
}

/// A running generation; it holds its session: by reference from [`Session::generate`], or whatever owner it was
/// made with. Call [`Generation::next`] until it returns `None`.
pub struct Generation<S> {
    session: S,
    state: Prepared,
    generated: usize,
    finish: Option<FinishReason>,
    /// What the audit log has of it, until it ends.
    call: Option<Call>,
}

impl<S: DerefMut<Target = Session>> Generation<S> {
    /// Appends `ids` to the timeline of `session` and starts what follows.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn new(
        mut session: S,
        ids: &[u32],
        options: &GenerateOptions,
        control: &mut Control<'_>,
    ) -> Result<Self> {
        // Of tokens that are too many none is looked at: a wrong count reaches beyond those that are there.
        let last = if session.check_length(ids.len()).is_ok() { ids.last() } else { None };
        let before = last.or(session.tokens().last()).copied();
        let mut state = Prepared::new(session.model(), options, before)?;
        let most = session.limits().output_tokens(options.max_tokens)?;
        state.max_tokens = most.unwrap_or(usize::MAX);
        let mut call = session.begin("generate", ids, Some(options))?;
        let begun = session.extend(ids, control).and_then(|()| state.sampler.accept_prompt(session.tokens()));
        if let Some(call) = call.take_if(|_| begun.is_err()) {
            call.end(&begun, None)?;
        }
        begun?;
        Ok(Self { session, state, generated: 0, finish: None, call })
    }

    /// The next event, or `None` after the last.
    ///
    /// # Errors
    /// [`Error::Cancelled`] and device failures end the generation; the session keeps what was evaluated.
    #[allow(clippy::should_implement_trait, reason = "it takes a control, which an iterator cannot")]
    pub fn next(&mut self, control: &mut Control<'_>) -> Option<Result<Event>> {
        if self.finish.is_some() {
            return None;
        }
        let event = self.step(control);
        let event = self.record(event);
        match &event {
            Ok(event) => self.finish = event.finish_reason,
            // Whatever failed, there is nothing to go on from.
            Err(_) => self.finish = Some(FinishReason::Stop),
        }
        Some(event)
    }

    /// Writes what the audit log has of an event; where it must be written and cannot, there is no event.
    fn record(&mut self, event: Result<Event>) -> Result<Event> {
        let Some(mut call) = self.call.take() else { return event };
        let reason = match &event {
            Err(_) => None,
            Ok(event) => {
                call.token(event.token, event.text.as_bytes());
                event.finish_reason.map(FinishReason::as_str)
            }
        };
        if event.is_ok() && reason.is_none() {
            self.call = Some(call);
            return event;
        }
        call.end(&event, reason).and(event)
    }

    /// What holds the session.
    pub fn holder_mut(&mut self) -> &mut S {
        &mut self.session
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> usize {
        self.generated
    }

    fn step(&mut self, control: &mut Control<'_>) -> Result<Event> {
        control.check()?;
        if self.generated > 0 {
            match &mut self.state.lookup {
                None => self.session.step(control)?,
                Some(lookup) => {
                    let room = self.state.max_tokens - self.generated;
                    lookup.step(&mut self.session, room, control)?;
                }
            }
        }
        let sampled = self.state.sample(self.session.logits())?;
        self.session.push(sampled.token);
        self.generated += 1;
        let ended = self.state.ends(sampled.token);
        let (mut text, stopped) = self.state.text_of(sampled.token, ended)?;
        let finish_reason = if ended || stopped || self.state.is_complete() {
            Some(FinishReason::Stop)
        } else if self.generated >= self.state.max_tokens {
            Some(FinishReason::Length)
        } else if self.session.is_full() {
            Some(FinishReason::ContextFull)
        } else {
            None
        };
        if finish_reason.is_some() && !stopped {
            text += &self.state.rest();
        }
        let (logprob, top_logprobs) = (sampled.logprob, sampled.top_logprobs);
        Ok(Event { text, token: sampled.token, logprob, top_logprobs, finish_reason })
    }
}

impl Prepared {
    /// `before` is the token before the first.
    fn new(model: &Arc<Model>, options: &GenerateOptions, before: Option<u32>) -> Result<Self> {
        let vocab_size = model.vocab_size();
        if let Some(i) = options.stop_tokens.iter().position(|&t| t as usize >= vocab_size) {
            let expected = format!("a token below {vocab_size}");
            return Err(Error::argument(format!("stop_tokens[{i}]"), options.stop_tokens[i], expected));
        }
        check_caller_ref(options.caller_ref.as_deref())?;
        if options.max_tokens == Some(0) {
            return Err(Error::argument("max_tokens", 0, "at least 1"));
        }
        if !options.stop.is_empty() && model.tokenizer().is_err() {
            return Err(Error::argument("stop", "stop texts", "none: the model has no tokenizer"));
        }
        let mut end_tokens = options.stop_tokens.clone();
        if !options.ignore_eos {
            end_tokens.extend(model.eos_token_ids());
        }
        let begins_text = options.begins_text.unwrap_or_else(|| {
            let bytes = model.tokenizer().ok().zip(before).and_then(|(t, before)| t.token_bytes(before));
            bytes.is_none_or(|bytes| bytes.is_empty())
        });
        let decoder = model.tokenizer().ok().map(|tokenizer| {
            let decoder = StreamDecoder::new(Arc::clone(tokenizer), !options.show_special);
            if begins_text { decoder } else { decoder.going_on() }
        });
        Ok(Self {
            sampler: Sampler::new(options.sampling.clone(), vocab_size)?,
            stops: StopMatcher::new(&options.stop)?,
            end_tokens,
            max_tokens: usize::MAX,
            constraint: constraint(model, options, begins_text)?,
            ignore_eos: options.ignore_eos,
            lookup: Lookup::new(options.prompt_lookup)?,
            text_tokens: model.tokenizer().map_or(0, |t| t.vocab_size()),
            decoder,
        })
    }

    /// Chooses the next token under the constraint.
    fn sample(&mut self, logits: &[f32]) -> Result<SampledToken> {
        let mask = match &mut self.constraint {
            None => None,
            Some(constraint) if self.ignore_eos => constraint.mask_without_end()?,
            Some(constraint) => constraint.mask()?,
        };
        let sampled = self.sampler.sample(logits, mask)?;
        self.sampler.accept(sampled.token)?;
        if let Some(constraint) = &mut self.constraint {
            constraint.accept(sampled.token)?;
        }
        Ok(sampled)
    }

    /// Whether a token that was chosen ends the answer and is no part of it.
    fn ends(&self, token: u32) -> bool {
        self.end_tokens.contains(&token) || self.constraint.as_ref().is_some_and(ConstraintState::has_ended)
    }

    /// Whether the constraint lets nothing follow.
    fn is_complete(&self) -> bool {
        self.constraint.as_ref().is_some_and(ConstraintState::is_complete)
    }

    /// The text that `token` makes certain, and whether a stop text came.
    fn text_of(&mut self, token: u32, ended: bool) -> Result<(String, bool)> {
        let Some(decoder) = self.decoder.as_mut().filter(|_| !ended) else {
            return Ok((String::new(), false));
        };
        // The output layer of some models has more rows than the tokenizer has tokens.
        let known = (token as usize) < self.text_tokens;
        let text = if known { decoder.push(token)? } else { String::new() };
        let parts = known && decoder.parts_text_at(token);
        let mut step = self.stops.push(&text);
        // What was held back stands before the control token: no stop text reaches over it.
        if parts && step.stop.is_none() {
            step.text += &self.stops.finish();
        }
        Ok((step.text, step.stop.is_some()))
    }

    /// The text that was held back in case a stop text or a longer character followed.
    fn rest(&mut self) -> String {
        let Some(decoder) = self.decoder.as_mut() else { return String::new() };
        let step = self.stops.push(&decoder.finish());
        if step.stop.is_some() { step.text } else { step.text + &self.stops.finish() }
    }
}

/// The state at the beginning of the answer, after what the prompt has of it.
fn constraint(
    model: &Arc<Model>,
    options: &GenerateOptions,
    begins_text: bool,
) -> Result<Option<ConstraintState>> {
    let Some(spec) = &options.constraint else { return Ok(None) };
    let mut state = Constraint::new(&model.token_table()?, spec)?.start().show_special(options.show_special);
    for &token in &options.constraint_prefix {
        state.accept(token).map_err(|error| match error {
            Error::Argument { .. } => Error::argument(
                "constraint_prefix",
                "a text that breaks it",
                "the beginning of one that obeys it",
            ),
            other => other,
        })?;
    }
    state.begin_text(begins_text);
    if state.is_complete() && !options.constraint_prefix.is_empty() {
        return Err(Error::argument("constraint_prefix", "a whole answer", "the beginning of one"));
    }
    Ok(Some(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_kind_of_a_constraint_and_quotes_nothing() {
        let regex = ConstraintSpec::Regex("canary".to_owned());
        let stop = vec!["canary".to_owned()];
        let options = GenerateOptions { constraint: Some(regex), stop, ..GenerateOptions::default() };
        let record = options.record();
        assert_eq!((&record["constraint"], &record["stop"]), (&json!("regex"), &json!(1)));
        assert!(!record.to_string().contains("canary"), "{record}");
    }
}
