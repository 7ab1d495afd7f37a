//! Reads the JSON array of tool calls that models of v2 to v7 write, as it comes:
//! `[{"name": "f", "arguments": {…}, "id": "…"}, …]`.

use crate::chat::answer::CallFault;
use crate::chat::json::{Dialect, Json};

/// Longer names and ids are no names and ids.
const MAX_FIELD: usize = 1 << 12;

/// What has been read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scanned {
    /// A call has a name, and an id if it will have one.
    Begin { id: Option<String>, name: String },
    /// Text of its arguments.
    Arguments(String),
    /// The call is whole.
    End,
    /// The array has ended, and this follows.
    After(String),
}

/// A call that is not whole.
#[derive(Debug)]
pub(super) struct Unfinished {
    /// [`Scanned::Begin`] was there.
    pub begun: bool,
    pub name: Option<String>,
    pub text: String,
    pub fault: CallFault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Start,
    /// In the array, before a call or the end.
    BeforeCall,
    AfterCall,
    BeforeKey,
    Key,
    BeforeColon,
    BeforeValue,
    Value,
    /// What stands here is no call, nor can one follow.
    Lost,
    Ended,
}

/// Reads calls character by character.
#[derive(Debug)]
pub(super) struct CallScanner {
    /// The format has ids: a call begins when its id is known, which may be after its arguments, so that the id that the host
    /// sees is the one that the model means.
    ids: bool,
    place: Place,
    /// One object instead of an array.
    single: bool,
    /// Brackets open in the value.
    depth: usize,
    in_string: bool,
    escaped: bool,
    key: String,
    /// The value that is being read, or the text that could not be.
    value: String,
    call: Fields,
    out: Vec<Scanned>,
}

#[derive(Debug, Default)]
struct Fields {
    name: Option<String>,
    id: Option<String>,
    /// What has been read of the arguments and not been passed on.
    arguments: String,
    has_arguments: bool,
    begun: bool,
    /// The text of the call, for what cannot be read.
    text: String,
}

impl CallScanner {
    pub fn new(ids: bool) -> Self {
        Self {
            ids,
            place: Place::Start,
            single: false,
            depth: 0,
            in_string: false,
            escaped: false,
            key: String::new(),
            value: String::new(),
            call: Fields::default(),
            out: Vec::new(),
        }
    }

    /// Whether a string is open.
    pub fn in_string(&self) -> bool {
        self.in_string || self.place == Place::Key
    }

    pub fn push(&mut self, text: &str) -> Vec<Scanned> {
        for (i, c) in text.char_indices() {
            if self.place == Place::Ended {
                self.out.push(Scanned::After(text[i..].to_owned()));
                break;
            }
            self.step(c);
        }
        self.pass_arguments();
        std::mem::take(&mut self.out)
    }

    /// The text has ended: the call that is not whole.
    pub fn finish(self) -> Option<Unfinished> {
        let fault = match self.place {
            Place::Ended => return None,
            Place::Lost => CallFault::Malformed,
            _ => CallFault::Truncated,
        };
        Some(Unfinished { begun: self.call.begun, name: self.call.name, text: self.call.text, fault })
    }

    fn step(&mut self, c: char) {
        self.call.text.push(c);
        let space = matches!(c, ' ' | '\t' | '\n' | '\r');
        match (self.place, c) {
            (Place::Value, _) => self.value(c),
            (Place::Key, _) => self.key(c),
            (Place::Lost | Place::Ended, _) => {}
            (_, _) if space => {}
            (Place::Start, '[') => self.place = Place::BeforeCall,
            (Place::Start, '{') => {
                self.single = true;
                self.place = Place::BeforeKey;
            }
            (Place::BeforeCall, '{') => {
                self.call = Fields { text: "{".into(), ..Fields::default() };
                self.place = Place::BeforeKey;
            }
            (Place::BeforeCall | Place::AfterCall, ']') => self.place = Place::Ended,
            (Place::AfterCall, ',') => self.place = Place::BeforeCall,
            (Place::BeforeKey, '"') => {
                self.key.clear();
                self.place = Place::Key;
            }
            (Place::BeforeKey, '}') => self.end_call(),
            (Place::BeforeColon, ':') => self.place = Place::BeforeValue,
            (Place::BeforeValue, _) if self.key == "arguments" && self.call.has_arguments => self.lose(),
            (Place::BeforeValue, _) => {
                self.value.clear();
                (self.depth, self.in_string, self.escaped) = (0, false, false);
                self.call.has_arguments |= self.key == "arguments";
                self.place = Place::Value;
                self.value(c);
            }
            _ => self.lose(),
        }
    }

    fn key(&mut self, c: char) {
        match c {
            '"' => self.place = Place::BeforeColon,
            // The three keys have no escapes.
            _ if self.key.len() > MAX_FIELD || c == '\\' => self.lose(),
            _ => self.key.push(c),
        }
    }

    fn value(&mut self, c: char) {
        if self.in_string {
            match c {
                _ if self.escaped => self.escaped = false,
                '\\' => self.escaped = true,
                '"' => self.in_string = false,
                _ => {}
            }
        } else {
            match c {
                '"' => self.in_string = true,
                '{' | '[' => self.depth += 1,
                '}' | ']' | ',' if self.depth == 0 => return self.end_value(c),
                '}' | ']' => self.depth -= 1,
                _ => {}
            }
        }
        if self.key == "arguments" {
            self.call.arguments.push(c);
        } else if self.value.len() > MAX_FIELD {
            return self.lose();
        }
        self.value.push(c);
    }

    /// At the sign after a value.
    fn end_value(&mut self, c: char) {
        let text = match Json::parse(&self.value, Dialect::Python) {
            Ok(Json::String(text)) => Some(text),
            Ok(_) => None,
            Err(_) => {
                self.pass_arguments();
                return self.lose();
            }
        };
        match (self.key.as_str(), text) {
            ("name", Some(name)) => self.call.name = Some(name),
            // In a format without ids a call may have begun before this one comes.
            ("id", Some(id)) => self.call.id = Some(id).filter(|_| self.ids),
            ("name" | "id", None) => return self.lose(),
            // Arguments in a string: their text.
            ("arguments", Some(text)) => self.call.arguments = text,
            _ => {}
        }
        // Here and not only at the end of a piece, so that a call which is lost later has begun however the text came.
        self.pass_arguments();
        match c {
            ',' => self.place = Place::BeforeKey,
            '}' => self.end_call(),
            _ => self.lose(),
        }
        self.value.clear();
    }

    fn end_call(&mut self) {
        if self.call.name.is_none() || !self.call.has_arguments {
            return self.lose();
        }
        self.begin();
        self.out.push(Scanned::Arguments(std::mem::take(&mut self.call.arguments).trim().to_owned()));
        self.out.retain(|part| *part != Scanned::Arguments(String::new()));
        self.out.push(Scanned::End);
        self.call = Fields::default();
        self.place = if self.single { Place::Ended } else { Place::AfterCall };
    }

    fn begin(&mut self) {
        if let (false, Some(name)) = (self.call.begun, self.call.name.clone()) {
            self.call.begun = true;
            self.out.push(Scanned::Begin { id: self.call.id.clone(), name });
        }
    }

    /// Passes on what there is of the arguments, if the call can begin already.
    fn pass_arguments(&mut self) {
        let known = self.call.name.is_some() && (self.call.id.is_some() || !self.ids);
        let object = self.call.begun || self.call.arguments.trim_start().starts_with('{');
        if self.place == Place::Value && self.key == "arguments" && known && object {
            self.begin();
            let arguments = std::mem::take(&mut self.call.arguments);
            // White space at the end may not belong to the object.
            let kept = arguments.trim_end().len();
            self.call.arguments = arguments[kept..].to_owned();
            if kept > 0 {
                self.out.push(Scanned::Arguments(arguments[..kept].to_owned()));
            }
        }
    }

    fn lose(&mut self) {
        self.place = Place::Lost;
        self.in_string = false;
    }
}
