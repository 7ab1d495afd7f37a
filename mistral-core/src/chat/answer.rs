//! Reads a model's answer back, piece by piece: reasoning, content, tool calls.
//!
//! From v11 on a call is `[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}` and the next `[TOOL_CALLS]` begins another; before, one JSON array
//! follows the marker. `[THINK]…[/THINK]` is reasoning; a call ends it.

use crate::chat::calls::{CallScanner, Scanned};
use crate::chat::encode::Fragment;
use crate::chat::json::{Dialect, Json};
use crate::error::Result;
use crate::tokenizer::{Tokenizer, TokenizerVersion as Version};

/// What a piece of an answer adds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerEvent {
    /// Reasoning.
    Reasoning(String),
    /// Content.
    Content(String),
    /// A tool call begins.
    CallBegin {
        /// Its place among the calls.
        index: usize,
        /// What its result must refer to.
        id: String,
        /// The function.
        name: String,
    },
    /// Text of the arguments of a call.
    Arguments {
        /// The call.
        index: usize,
        /// The next piece of the JSON.
        text: String,
    },
    /// A call ends; it is in [`Answer::calls`].
    CallEnd {
        /// The call.
        index: usize,
    },
    /// A call cannot be read; it is in [`Answer::broken`]. It may have begun.
    CallBroken {
        /// The call.
        index: usize,
        /// Why.
        fault: CallFault,
    },
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What the model says.
    pub content: String,
    /// What it thought before; several stretches are lines apart.
    pub reasoning: String,
    /// The calls that can be made.
    pub calls: Vec<AnswerCall>,
    /// The calls that cannot be read.
    pub broken: Vec<BrokenCall>,
}

/// A call that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerCall {
    /// Its place among the calls, broken ones included.
    pub index: usize,
    /// The model's own id, or a new one of nine letters and digits.
    pub id: String,
    /// The function.
    pub name: String,
    /// A JSON object, as the model wrote it.
    pub arguments: String,
}

/// A call that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokenCall {
    /// Its place among the calls.
    pub index: usize,
    /// The function, if the call came so far.
    pub name: Option<String>,
    /// What the model wrote of the arguments; before v11, and without a name, what follows the marker.
    pub text: String,
    /// Why.
    pub fault: CallFault,
}

/// Why a call cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFault {
    /// The answer ended in the midst of it.
    Truncated,
    /// It is not of the form that the model was trained on.
    Malformed,
}

impl CallFault {
    /// In one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
        }
    }
}

/// Reads an answer as it comes.
#[derive(Debug)]
pub struct AnswerParser {
    version: Option<Version>,
    seed: u64,
    state: State,
    answer: Answer,
    calls: usize,
    events: Vec<AnswerEvent>,
}

#[derive(Debug)]
enum State {
    Content,
    Reasoning,
    Name(String),
    Id {
        name: String,
        id: String,
    },
    Arguments(Call),
    /// Before v11.
    Json(CallScanner),
    /// After that, before the content that follows: white space is not the beginning of content.
    AfterCalls,
    /// After the end of the sequence.
    Done,
}

/// A call whose arguments are being read.
#[derive(Debug)]
struct Call {
    id: String,
    name: String,
    arguments: String,
    /// White space that is not the end of the arguments if more follows.
    space: String,
    in_string: bool,
    escaped: bool,
}

impl AnswerParser {
    /// For an answer in the format of a version; [`None`] for models that have none, whose answers are content. The ids that
    /// calls lack are made from `seed`.
    pub fn new(version: Option<Version>, seed: u64) -> Self {
        let (answer, events) = (Answer::default(), Vec::new());
        Self { version, seed, state: State::Content, answer, calls: 0, events }
    }

    /// Reads the message that the answer goes on from ([`crate::chat::Prompt::prefix`]): it is a part of the answer.
    pub fn resume(&mut self, prefix: &[Fragment]) -> Vec<AnswerEvent> {
        for fragment in prefix {
            match fragment {
                Fragment::Bos => {}
                Fragment::Eos => self.state = State::Done,
                Fragment::Special(name) => self.read_control(name),
                Fragment::Text(text) | Fragment::Infill(text) => self.read_text(text),
            }
        }
        std::mem::take(&mut self.events)
    }

    /// Reads text.
    pub fn text(&mut self, text: &str) -> Vec<AnswerEvent> {
        self.read_text(text);
        std::mem::take(&mut self.events)
    }

    /// Reads a control token by its name.
    pub fn control(&mut self, name: &str) -> Vec<AnswerEvent> {
        self.read_control(name);
        std::mem::take(&mut self.events)
    }

    /// Ends the answer: the last events, and the whole of it.
    pub fn finish(mut self) -> (Vec<AnswerEvent>, Answer) {
        self.end_call();
        (self.events, self.answer)
    }

    /// Reads a whole answer in tokens.
    ///
    /// [`crate::Error::Argument`] for a token that does not exist.
    pub fn read_tokens(mut self, tokenizer: &Tokenizer, tokens: &[u32]) -> Result<Answer> {
        let mut decoder = tokenizer.decoder(true);
        for &token in tokens {
            if tokenizer.is_control(token) {
                let rest = decoder.finish();
                self.read_text(&rest);
                let name = tokenizer.token_text(token).unwrap_or_default();
                match Some(token) == tokenizer.eos() {
                    true => self.read_control("</s>"),
                    false => self.read_control(&name),
                }
            } else {
                let text = decoder.push(token)?;
                self.read_text(&text);
            }
        }
        let rest = decoder.finish();
        self.read_text(&rest);
        Ok(self.finish().1)
    }

    /// Reads a whole answer in text, where control tokens stand by their names. Inside the strings of arguments they are text.
    pub fn read_rendered(mut self, text: &str) -> Answer {
        let names: &[&str] = match self.version {
            None | Some(Version::V1) => &["</s>"],
            Some(version) if version < Version::V11 => &["[TOOL_CALLS]", "</s>"],
            Some(_) => &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]", "</s>"],
        };
        let mut rest = text;
        while let Some(start) = rest.find(['[', '<']) {
            self.read_text(&rest[..start]);
            rest = &rest[start..];
            let name = names.iter().find(|name| rest.starts_with(**name)).filter(|_| !self.in_json_string());
            match name {
                Some(name) => self.read_control(name),
                None => self.read_text(&rest[..1]),
            }
            rest = &rest[name.map_or(1, |name| name.len())..];
        }
        self.read_text(rest);
        self.finish().1
    }

    fn in_json_string(&self) -> bool {
        match &self.state {
            State::Arguments(call) => call.in_string,
            State::Json(scanner) => scanner.in_string(),
            _ => false,
        }
    }

    fn read_control(&mut self, name: &str) {
        if matches!(self.state, State::Done) {
            return;
        }
        let tools = self.version.is_some_and(|version| version >= Version::V2);
        match name {
            "[TOOL_CALLS]" if tools => {
                self.end_call();
                self.state = match self.version {
                    Some(version) if version < Version::V11 => {
                        State::Json(CallScanner::new(version >= Version::V3))
                    }
                    _ => State::Name(String::new()),
                };
            }
            "[CALL_ID]" => {
                if let State::Name(name) = &mut self.state {
                    self.state = State::Id { name: std::mem::take(name), id: String::new() };
                }
            }
            "[ARGS]" => self.begin_arguments(),
            "[THINK]" => {
                self.end_call();
                if !self.answer.reasoning.is_empty() {
                    self.add_reasoning("\n");
                }
                self.state = State::Reasoning;
            }
            "[/THINK]" => {
                self.end_call();
                self.state = State::Content;
            }
            "</s>" => {
                self.end_call();
                self.state = State::Done;
            }
            // Others have no place in an answer, and no text.
            _ => {}
        }
    }

    fn read_text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match &mut self.state {
            State::Done => {}
            State::Content => self.add_content(text),
            State::AfterCalls => {
                let text = if self.answer.content.is_empty() { text.trim_start() } else { text };
                if !text.is_empty() {
                    self.state = State::Content;
                    self.add_content(text);
                }
            }
            State::Reasoning => self.add_reasoning(text),
            State::Id { id, .. } => id.push_str(text),
            State::Name(name) => match text.find('{') {
                // Some models leave `[ARGS]` out.
                Some(start) => {
                    name.push_str(&text[..start]);
                    self.begin_arguments();
                    self.add_arguments(&text[start..]);
                }
                None => name.push_str(text),
            },
            State::Arguments(_) => self.add_arguments(text),
            State::Json(scanner) => {
                let scanned = scanner.push(text);
                self.take_scanned(scanned);
            }
        }
    }

    fn add_content(&mut self, text: &str) {
        self.answer.content.push_str(text);
        match self.events.last_mut() {
            Some(AnswerEvent::Content(last)) => last.push_str(text),
            _ => self.events.push(AnswerEvent::Content(text.to_owned())),
        }
    }

    fn add_reasoning(&mut self, text: &str) {
        self.answer.reasoning.push_str(text);
        match self.events.last_mut() {
            Some(AnswerEvent::Reasoning(last)) => last.push_str(text),
            _ => self.events.push(AnswerEvent::Reasoning(text.to_owned())),
        }
    }

    fn begin_arguments(&mut self) {
        let (name, id) = match &mut self.state {
            State::Name(name) => (std::mem::take(name), String::new()),
            State::Id { name, id } => (std::mem::take(name), std::mem::take(id)),
            _ => return,
        };
        let name = name.trim().to_owned();
        let id = match id.trim() {
            "" => new_id(self.seed, self.calls),
            id => id.to_owned(),
        };
        if !name.is_empty() {
            self.events.push(AnswerEvent::CallBegin {
                index: self.calls,
                id: id.clone(),
                name: name.clone(),
            });
        }
        let (arguments, space) = (String::new(), String::new());
        self.state = State::Arguments(Call { id, name, arguments, space, in_string: false, escaped: false });
    }

    fn add_arguments(&mut self, text: &str) {
        let State::Arguments(call) = &mut self.state else { return };
        for c in text.chars() {
            (call.in_string, call.escaped) = match (call.in_string, c) {
                (true, _) if call.escaped => (true, false),
                (true, '\\') => (true, true),
                (_, '"') => (!call.in_string, false),
                (inside, _) => (inside, false),
            };
        }
        let whole = std::mem::take(&mut call.space) + text;
        let whole = if call.arguments.is_empty() { whole.trim_start() } else { &whole };
        let kept = whole.trim_end();
        if kept.len() < whole.len() && !(call.arguments.is_empty() && kept.is_empty()) {
            call.space = whole[kept.len()..].to_owned();
        }
        if kept.is_empty() {
            return;
        }
        call.arguments.push_str(kept);
        if !call.name.is_empty() {
            self.events.push(AnswerEvent::Arguments { index: self.calls, text: kept.to_owned() });
        }
    }

    fn take_scanned(&mut self, scanned: Vec<Scanned>) {
        for part in scanned {
            match part {
                Scanned::Begin { id, name } => {
                    let id = id.unwrap_or_else(|| new_id(self.seed, self.calls));
                    let call = AnswerCall {
                        index: self.calls,
                        id: id.clone(),
                        name: name.clone(),
                        arguments: String::new(),
                    };
                    self.answer.calls.push(call);
                    self.events.push(AnswerEvent::CallBegin { index: self.calls, id, name });
                }
                Scanned::Arguments(text) => {
                    if let Some(call) = self.answer.calls.last_mut() {
                        call.arguments.push_str(&text);
                    }
                    self.events.push(AnswerEvent::Arguments { index: self.calls, text });
                }
                Scanned::End => {
                    let index = self.calls;
                    let fault = self.answer.calls.last().and_then(|call| fault_of(&call.arguments));
                    match fault {
                        None => {
                            self.events.push(AnswerEvent::CallEnd { index });
                            self.calls += 1;
                        }
                        // The value is whole: it cannot become right.
                        Some(_) => self.break_begun(CallFault::Malformed),
                    }
                }
                Scanned::After(text) => {
                    self.state = State::AfterCalls;
                    self.read_text(&text);
                }
            }
        }
    }

    /// The call that was begun last is broken.
    fn break_begun(&mut self, fault: CallFault) {
        if let Some(call) = self.answer.calls.pop() {
            self.break_call(Some(call.name), call.arguments, fault);
        }
    }

    fn break_call(&mut self, name: Option<String>, text: String, fault: CallFault) {
        let index = self.calls;
        self.answer.broken.push(BrokenCall { index, name, text, fault });
        self.events.push(AnswerEvent::CallBroken { index, fault });
        self.calls += 1;
    }

    /// Ends the call that is being read, if there is one.
    fn end_call(&mut self) {
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content | State::AfterCalls | State::Reasoning => {}
            State::Done => self.state = State::Done,
            State::Name(name) | State::Id { name, .. } => {
                let name = Some(name.trim().to_owned()).filter(|name| !name.is_empty());
                self.break_call(name, String::new(), CallFault::Truncated);
            }
            State::Arguments(call) => match fault_of(&call.arguments) {
                _ if call.name.is_empty() => self.break_call(None, call.arguments, CallFault::Malformed),
                Some(fault) => self.break_call(Some(call.name), call.arguments, fault),
                None => {
                    let index = self.calls;
                    let Call { id, name, arguments, .. } = call;
                    self.answer.calls.push(AnswerCall { index, id, name, arguments });
                    self.events.push(AnswerEvent::CallEnd { index });
                    self.calls += 1;
                }
            },
            State::Json(scanner) => match scanner.finish() {
                None => {}
                Some(call) if call.begun => self.break_begun(call.fault),
                Some(call) => self.break_call(call.name, call.text, call.fault),
            },
        }
    }
}

/// What is wrong with the arguments of a call: not even `NaN`, which the reference lets pass, is JSON to every host.
fn fault_of(arguments: &str) -> Option<CallFault> {
    match Json::parse(arguments, Dialect::Strict) {
        Ok(Json::Object(_)) => None,
        Ok(_) => Some(CallFault::Malformed),
        Err(e) if e.truncated => Some(CallFault::Truncated),
        Err(_) => Some(CallFault::Malformed),
    }
}

/// Nine letters and digits, the form of Mistral's own ids (SplitMix64, Steele et al. 2014).
pub fn new_id(seed: u64, index: usize) -> String {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let mut id = String::new();
    for _ in 0..9 {
        id.push(char::from(ALPHABET[(z % 62) as usize]));
        z /= 62;
    }
    id
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
