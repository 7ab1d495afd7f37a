//! The chat templates that model files carry: Jinja, by the conventions of Hugging Face's `apply_chat_template`.
//!
//! A template is a program from an untrusted file. It runs with fuel (each instruction and each byte that it makes costs some),
//! a bound on recursion, on its own size and on what it writes, and sees nothing but the request.

use std::cell::RefCell;
use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, State, UndefinedBehavior, Value};

use crate::chat::encode::Fragment;
use crate::chat::guard::{self, MAX_NESTING};
use crate::chat::jinja_message::{
    Reads, flat_content, json_value, last_text, message_value, prefix_fragments, reasoning,
};
use crate::chat::json::{Json, Style};
use crate::chat::message::{Chunk, Message, Role};
use crate::chat::request::ChatRequest;
use crate::chat::strftime::{self, strftime};
use crate::error::{Error, Result};
use crate::tokenizer::TokenizerVersion;

/// The longest template, in bytes.
const MAX_SOURCE: usize = 1 << 20;
/// Fuel that every render has: instructions, or 64 bytes of data each.
const BASE_FUEL: u64 = 500_000;
/// Fuel for each byte of the request: templates walk over the messages a few times.
const FUEL_PER_BYTE: u64 = 4;
/// Nested blocks, loops and (ten levels each) macro calls.
const MAX_RECURSION: usize = 150;
/// What a template may write beyond eight times the request.
const BASE_OUTPUT: usize = 1 << 20;
/// Name of the template in the environment.
const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    reads: Reads,
    variables: Vec<(String, String)>,
}

/// The prompt that a template makes of a request.
#[derive(Debug)]
pub(crate) struct TemplatePrompt {
    pub text: String,
    /// The start of the answer, where the request gives one, as it can be read back: the text as it stands at the end of the prompt.
    pub prefix: Vec<Fragment>,
}

/// What a template is given beside the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RenderOptions {
    /// Seconds since 1970-01-01 in the host's local time, for the templates that write the date into the prompt. Without it
    /// those fall back on what they do where there is no clock, or fail.
    pub local_time: Option<i64>,
    /// End after the last message, instead of opening the assistant's answer.
    pub no_generation_prompt: bool,
}

impl ChatTemplate {
    /// Compiles the template of a model file; `variables` are its special tokens by the name that templates know them
    /// under (`bos_token`, `eos_token`, …).
    ///
    /// [`Error::Format`] with the line for what is not a template.
    pub fn compile(source: &str, variables: &[(&str, &str)]) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Error::limit("bytes of the chat template", source.len(), MAX_SOURCE));
        }
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| Error::Internal(format!("syntax of templates: {e}")))?);
        env.set_undefined_behavior(UndefinedBehavior::Lenient);
        env.set_recursion_limit(MAX_RECURSION);
        env.remove_global("debug");
        env.add_filter("tojson", tojson);
        env.add_filter("int", int);
        env.add_filter("float", float);
        guard::install(&mut env, 0);
        env.add_template_owned(NAME, guard::prepare(source)?).map_err(|e| compile_error(&e))?;
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Ok(Self { env, source: source.to_owned(), reads: Reads::of(source), variables })
    }

    /// Writes a request as the prompt that the template makes of it, special tokens in their text form.
    ///
    /// [`Error::Limit`] for a template that runs, recurses, writes or allocates without end; [`Error::Argument`] for a
    /// request that the template refuses; [`Error::Unsupported`] for tools, a reasoning effort or thinking that it does not mention.
    pub fn render(&self, request: &ChatRequest, options: RenderOptions) -> Result<String> {
        self.prompt(request, options).map(|prompt| prompt.text)
    }

    /// As [`ChatTemplate::render`], with the start of the answer.
    pub(crate) fn prompt(&self, request: &ChatRequest, options: RenderOptions) -> Result<TemplatePrompt> {
        self.refuse_unmentioned(request)?;
        if !request.messages.last().is_some_and(|m| m.role == Role::Assistant && m.prefix) {
            let text = self.write(request, !options.no_generation_prompt, options)?;
            return Ok(TemplatePrompt { text, prefix: Vec::new() });
        }
        // As `continue_final_message` of transformers does: what the template writes before the mark is the prompt.
        let mark = self.mark(request);
        let mut marked = request.clone();
        let given = marked.messages.last_mut().and_then(last_text).map(|text| {
            let given = text.clone();
            text.extend([mark.as_str(), "\t"]);
            given
        });
        let prompt = match given {
            Some(given) => cut_at(self.write(&marked, false, options)?, &given, &mark),
            None => None,
        };
        let prompt = prompt.zip(request.messages.last()).map(|((text, written), message)| TemplatePrompt {
            text,
            prefix: prefix_fragments(message, &written),
        });
        prompt.ok_or_else(|| {
            Error::unsupported("field", "prefix", "templates that write the text of the assistant unchanged")
        })
    }

    /// A text that is nowhere in the request or the template.
    fn mark(&self, request: &ChatRequest) -> String {
        let request = format!("{request:?}");
        let marks = (0..=u64::MAX).map(|n| format!("CONTINUE_HERE_{n}"));
        let mut new = marks.filter(|mark| !request.contains(mark) && !self.source.contains(mark));
        new.next().unwrap_or_default()
    }

    fn write(&self, request: &ChatRequest, generate: bool, options: RenderOptions) -> Result<String> {
        let size = request_size(request);
        let context = self.context(request, generate)?;

        let raised = std::sync::Arc::new(std::sync::Mutex::new(None::<String>));
        let mut env = self.env.clone();
        guard::install(&mut env, size);
        env.set_fuel(Some(BASE_FUEL + FUEL_PER_BYTE * size as u64));
        let slot = raised.clone();
        env.add_function("raise_exception", move |message: String| -> Result<Value, minijinja::Error> {
            *slot.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(message);
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception"))
        });
        if let Some(time) = options.local_time {
            env.add_function("strftime_now", move |format: String| strftime(&format, time));
        }
        let template = env.get_template(NAME).map_err(|e| compile_error(&e))?;
        let output = RefCell::new(Bounded { bytes: Vec::new(), limit: BASE_OUTPUT + 8 * size, full: false });
        let result = template.render_captured_to(context, &mut *output.borrow_mut()).map(|_| ());
        let output = output.into_inner();
        let raised = raised.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        result.map_err(|e| self.render_error(&e, raised.as_deref(), &output))?;
        String::from_utf8(output.bytes)
            .map_err(|_| Error::Internal("a template wrote a broken character".into()))
    }

    /// The format of Mistral's in which answers to this template come, by the control tokens that it writes; none for the
    /// templates of others, whose answers are content.
    pub fn answer_version(&self) -> Option<TokenizerVersion> {
        let writes = |name: &str| self.source.contains(name);
        match () {
            () if writes("[THINK]") => Some(TokenizerVersion::V13),
            () if !writes("[TOOL_CALLS]") => None,
            () if !writes("[ARGS]") => Some(TokenizerVersion::V3),
            () if writes("[CALL_ID]") => Some(TokenizerVersion::V11),
            () => Some(TokenizerVersion::V13),
        }
    }

    /// What the template would pass over in silence is an error.
    fn refuse_unmentioned(&self, request: &ChatRequest) -> Result<()> {
        let unmentioned = |word: &str| !self.source.contains(word);
        if !request.tools.is_empty() && unmentioned("tools") {
            return Err(Error::unsupported(
                "field",
                "tools",
                "what the chat template of this model mentions",
            ));
        }
        if request.reasoning_effort.is_some() && unmentioned("reasoning_effort") {
            let there = "what the chat template of this model mentions";
            return Err(Error::unsupported("field", "reasoning_effort", there));
        }
        let thinks = |chunk: &Chunk| matches!(chunk, Chunk::Think { text, .. } if !text.is_empty());
        for (i, message) in request.messages.iter().enumerate() {
            // A field of the assistant's messages, in those templates that know it.
            let field = message.role == Role::Assistant && !unmentioned("reasoning_content");
            if !self.reads.thinking && !field && message.chunks().iter().any(thinks) {
                let there = "what the chat template of this model mentions";
                return Err(Error::unsupported("chunk", format!("thinking in messages[{i}]"), there));
            }
        }
        Ok(())
    }

    fn context(&self, request: &ChatRequest, generate: bool) -> Result<Value> {
        let messages = request.messages.iter().enumerate().map(|(i, m)| message_value(m, i, self.reads));
        let messages: Vec<Value> = messages.collect::<Result<_>>()?;
        let mut context: Vec<(String, Value)> = vec![
            ("messages".into(), Value::from(messages)),
            ("add_generation_prompt".into(), Value::from(generate)),
        ];
        let tools: Vec<Value> = request.tools.iter().map(|tool| json_value(&tool.source)).collect();
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(tools) };
        context.push(("tools".into(), tools));
        if let Some(effort) = request.reasoning_effort {
            context.push(("reasoning_effort".into(), Value::from(effort.as_str())));
        }
        context.extend(self.variables.iter().map(|(k, v)| (k.clone(), Value::from(v.as_str()))));
        Ok(Value::from_pairs(context))
    }

    /// Says where a template failed, without a word of the conversation: names and keywords of the template only.
    fn render_error(&self, error: &minijinja::Error, raised: Option<&str>, output: &Bounded) -> Error {
        if output.full {
            return Error::limit("bytes that the chat template writes", "more", output.limit);
        }
        if error.kind() == ErrorKind::OutOfFuel {
            return Error::limit("work of the chat template", "more", "the fuel for a request of this size");
        }
        if error.detail() == Some("recursion limit exceeded") {
            return Error::limit("recursion of the chat template", "more", MAX_RECURSION);
        }
        if let Some(found) = error.detail().filter(|detail| guard::REFUSALS.contains(detail)) {
            return Error::limit(
                "values of the chat template",
                found,
                "the size of the request and some more",
            );
        }
        let place = format!("chat template, line {}", error.line().unwrap_or(0));
        if let Some(message) = raised {
            let known = self.source.contains(message);
            let message = if known { message } else { "an exception about the conversation" };
            return Error::argument(
                "messages",
                format!("refused by the {place}: {message}"),
                "a conversation that it takes",
            );
        }
        if error.detail() == Some(strftime::UNSUPPORTED) {
            let found = format!("another one in the {place}");
            return Error::unsupported("field of strftime", found, strftime::FIELDS);
        }
        if error.kind() == ErrorKind::UnknownFunction
            && error.detail().is_some_and(|d| d.contains("strftime_now"))
        {
            return Error::argument(
                "local_time",
                "nothing",
                "the time, which the chat template writes into the prompt",
            );
        }
        let speaks_of_the_template = matches!(
            error.kind(),
            ErrorKind::UnknownFilter
                | ErrorKind::UnknownFunction
                | ErrorKind::UnknownMethod
                | ErrorKind::UnknownTest
                | ErrorKind::TemplateNotFound
                | ErrorKind::MissingArgument
                | ErrorKind::TooManyArguments
        );
        let detail = error.detail().filter(|_| speaks_of_the_template).unwrap_or("an operation failed");
        Error::argument(
            "messages",
            format!("{:?} in the {place}: {detail}", error.kind()),
            "a conversation that it takes",
        )
    }
}

fn compile_error(error: &minijinja::Error) -> Error {
    let line = error.line().unwrap_or(0);
    Error::format(
        "chat template",
        format!("line {line}"),
        error.detail().unwrap_or("an error"),
        "a Jinja template",
    )
}

/// Ends a prompt before the mark that followed `given`, the text that the answer goes on from; and `given` as it was written.
fn cut_at(mut text: String, given: &str, mark: &str) -> Option<(String, String)> {
    let end = text.rfind(mark)?;
    // A template that trims the text took the tab after the mark, and would have taken the space before it.
    let trims = !text[end + mark.len()..].starts_with('\t');
    text.truncate(end);
    let written = [given, given.trim_start()].into_iter().find(|given| text.ends_with(given))?;
    let kept = if trims { written.trim_end() } else { written };
    text.truncate(end - (written.len() - kept.len()));
    Some((text, kept.to_owned()))
}

/// Text and arguments of a request, in bytes.
fn request_size(request: &ChatRequest) -> usize {
    let message = |m: &Message| {
        let calls: usize = m.tool_calls.iter().map(|c| c.name.len() + c.arguments.len() + 64).sum();
        flat_content(m).len() + reasoning(m).len() + calls + 64
    };
    let tools: usize = request.tools.iter().map(|tool| tool.source.dumps().len()).sum();
    request.messages.iter().map(message).sum::<usize>() + tools
}

/// `tojson` as Hugging Face defines it: `json.dumps` with `ensure_ascii=False`, nothing escaped for HTML.
fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    args: Kwargs,
) -> Result<Value, minijinja::Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => args.get::<Option<Value>>("indent")?,
    };
    let separators = args.get::<Option<Vec<String>>>("separators")?;
    let mut style = Style {
        ensure_ascii: args.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: args.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent: indent.filter(|i| !i.is_none() && !i.is_undefined()).map(indentation).transpose()?,
        ..Style::default()
    };
    args.assert_all_used()?;
    if style.indent.is_some() {
        style.item_separator = ",".into();
    }
    if let Some([item, key]) = separators.as_deref() {
        style.item_separator.clone_from(item);
        style.key_separator.clone_from(key);
    }
    let text = value_json(state, value, 0)?.dumps_with(&style);
    state.consume_fuel(text.len() as u64 / 16)?;
    Ok(Value::from_safe_string(text))
}

/// `int` of Jinja2: what is no number is the default, not an error.
fn int(value: &Value, default: Option<Value>, base: Option<u32>) -> Value {
    let digits = value.as_str().map(plain_number);
    let parsed = match &digits {
        Some(digits) => {
            i128::from_str_radix(digits, base.filter(|b| (2..=36).contains(b)).unwrap_or(10)).ok()
        }
        None if value.kind() == ValueKind::Bool => Some(i128::from(value.is_true())),
        None => i128::try_from(value.clone()).ok().filter(|_| value.is_integer()),
    };
    let number = match &digits {
        Some(digits) => digits.parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    };
    // Beyond 2^127 the cast saturates.
    let parsed = parsed.or(number.filter(|n| n.is_finite()).map(|n| n as i128));
    parsed.map(Value::from).or(default).unwrap_or_else(|| Value::from(0))
}

/// `float` of Jinja2, likewise.
fn float(value: &Value, default: Option<Value>) -> Value {
    let parsed = match value.as_str() {
        Some(text) => plain_number(text).parse::<f64>().ok(),
        None if value.kind() == ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        None => f64::try_from(value.clone()).ok(),
    };
    parsed.map(Value::from).or(default).unwrap_or_else(|| Value::from(0.0))
}

/// A number as Python reads it: white space around it, underscores between its digits.
fn plain_number(text: &str) -> String {
    let text = text.trim();
    let separated = text.split('_').all(|part| !part.is_empty());
    if separated { text.replace('_', "") } else { text.to_owned() }
}

fn indentation(indent: Value) -> Result<String, minijinja::Error> {
    match (indent.as_str(), usize::try_from(indent.clone())) {
        (Some(text), _) if text.len() <= 16 => Ok(text.to_owned()),
        (None, Ok(spaces)) if spaces <= 16 => Ok(" ".repeat(spaces)),
        _ => Err(minijinja::Error::new(ErrorKind::InvalidOperation, "indent of more than 16 characters")),
    }
}

fn value_json(state: &State, value: &Value, depth: usize) -> Result<Json, minijinja::Error> {
    let refuse = |what: &'static str| Err(minijinja::Error::new(ErrorKind::BadSerialization, what));
    if depth > MAX_NESTING {
        return refuse("value nested too deeply");
    }
    // A value that is shared a thousand times is written a thousand times.
    state.consume_fuel(1)?;
    match value.kind() {
        ValueKind::None => Ok(Json::Null),
        ValueKind::Bool => Ok(Json::Bool(value.is_true())),
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(text.len() as u64 / 64)?;
            Ok(Json::String(text.to_owned()))
        }
        ValueKind::Number => match i128::try_from(value.clone()) {
            Ok(i) if value.is_integer() => Ok(Json::Int(i.to_string())),
            _ => f64::try_from(value.clone()).map(Json::Float),
        },
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            items.map(|item| value_json(state, &item, depth + 1)).collect::<Result<_, _>>().map(Json::Array)
        }
        ValueKind::Map => {
            let mut members = Vec::new();
            for key in value.try_iter()? {
                let Some(name) = key.as_str() else { return refuse("object with a key that is no string") };
                members.push((name.to_owned(), value_json(state, &value.get_item(&key)?, depth + 1)?));
            }
            Ok(Json::Object(members))
        }
        _ => refuse("value that JSON does not know"),
    }
}

/// Takes what a template writes, up to a limit.
struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
    full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            self.full = true;
            return Err(io::Error::other("the template writes too much"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "jinja_tests.rs"]
mod tests;
