//! What an answer must obey: the response format and the tools of a request, as a grammar in the syntax of the
//! model's chat format.

use std::fmt::Write;

use serde_json::Value;

use super::ChatStyle;
use crate::chat::json::Json;
use crate::chat::request::{ChatRequest, ResponseFormat, ToolChoice};
use crate::constraint::{Composed, ConstraintSpec, Part};
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::generate::GenerateOptions;
use crate::tokenizer::{Tokenizer, TokenizerVersion as Version};

/// A bias that leaves a token no chance.
const NEVER: f32 = -100.0;

/// Puts into `options` what the request asks of its answers.
///
/// # Errors
/// A field that the model cannot honour, by its path. Schemas are checked when the generation begins.
pub(super) fn constrain(model: &Model, request: &ChatRequest, options: &mut GenerateOptions) -> Result<()> {
    let tokenizer = model.tokenizer()?;
    let calls = tokenizer.special("[TOOL_CALLS]");
    let template = !matches!(model.chat_style()?, ChatStyle::Mistral(_));
    // Some templates write Mistral's own formats.
    let version = model.answer_version()?.filter(|_| !template || calls.is_some());
    if let (ToolChoice::None, Some(calls), Some(_), false) =
        (&request.tool_choice, calls, version, request.tools.is_empty())
    {
        options.sampling.logit_bias.retain(|(biased, _)| *biased != calls);
        options.sampling.logit_bias.push((calls, NEVER));
    }
    let composed = match version {
        Some(version) => Grammar::new(tokenizer, version).of_request(request)?,
        None => of_template(request)?,
    };
    let goes_on = request.messages.last().is_some_and(|message| message.prefix);
    if template && goes_on && composed.as_ref().is_some_and(|composed| composed.trigger.is_none()) {
        let found = "response_format or tool_choice, and a message that a template's answer goes on from";
        return Err(Error::unsupported("fields", found, "one of both"));
    }
    options.constraint = composed.map(ConstraintSpec::Composed);
    Ok(())
}

/// For the templates of others, in whose answers no call is seen.
fn of_template(request: &ChatRequest) -> Result<Option<Composed>> {
    let refused = |field: &str, supported: &str| Err(Error::unsupported("field", field, supported));
    let auto = matches!(request.tool_choice, ToolChoice::Auto | ToolChoice::None);
    if !auto {
        return refused("tool_choice", "auto or none, as calls of this model's template are read as text");
    }
    if let Some(i) = request.tools.iter().position(|tool| tool.strict) {
        return refused(&format!("tools[{i}].function.strict"), "false, with this model's template");
    }
    if !request.parallel_tool_calls && !request.tools.is_empty() {
        return refused("parallel_tool_calls", "true, with this model's template");
    }
    let answer = answer(request)?;
    Ok(answer.map(|answer| Composed {
        grammar: "start: @answer\n".to_owned(),
        parts: vec![answer],
        trigger: None,
    }))
}

/// The grammar called `answer` for the response format.
fn answer(request: &ChatRequest) -> Result<Option<Part>> {
    let (path, spec) = match &request.response_format {
        ResponseFormat::Text => return Ok(None),
        ResponseFormat::JsonObject => ("response_format", ConstraintSpec::JsonObject),
        ResponseFormat::JsonSchema { schema, .. } => {
            let path = "response_format.json_schema.schema";
            (path, ConstraintSpec::JsonSchema(value(schema, path)?))
        }
        ResponseFormat::Regex(regex) => ("response_format.regex", ConstraintSpec::Regex(regex.clone())),
        ResponseFormat::Lark(lark) => ("response_format.lark", ConstraintSpec::Lark(lark.clone())),
    };
    Ok(Some(Part { name: "answer".to_owned(), path: path.to_owned(), spec }))
}

/// A grammar in the making.
struct Grammar<'t> {
    tokenizer: &'t Tokenizer,
    version: Version,
    rules: String,
    parts: Vec<Part>,
}

impl<'t> Grammar<'t> {
    fn new(tokenizer: &'t Tokenizer, version: Version) -> Self {
        Self { tokenizer, version, rules: String::new(), parts: Vec::new() }
    }

    /// The grammar for a request, unless its answers are free.
    fn of_request(mut self, request: &ChatRequest) -> Result<Option<Composed>> {
        let required = matches!(request.tool_choice, ToolChoice::Required | ToolChoice::Function(_));
        if self.version < Version::V2 && required {
            return Err(Error::unsupported("field", "tool_choice", "none: v1 has no tools"));
        }
        let may_call = self.version >= Version::V2
            && request.tool_choice != ToolChoice::None
            && !request.tools.is_empty();
        if may_call {
            self.calls(request)?;
        }
        let answer = answer(request)?.filter(|_| !required);
        let start = match (&answer, may_call) {
            (None, false) => return Ok(None),
            // The text before a call is free: the grammar begins with the call.
            (None, true) if !required => {
                self.rule("start", "calls");
                let trigger = self.tokenizer.special("[TOOL_CALLS]");
                return Ok(Some(Composed { grammar: self.rules, parts: self.parts, trigger }));
            }
            (None, true) => "calls",
            (Some(_), false) => "@answer",
            (Some(_), true) => "(@answer | calls)",
        };
        match self.reasoning() {
            true => self.rule("start", &format!("reasoning? {start}")),
            false => self.rule("start", start),
        }
        self.parts.extend(answer);
        Ok(Some(Composed { grammar: self.rules, parts: self.parts, trigger: None }))
    }

    fn rule(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    /// Writes the rule for reasoning, if the format has any.
    fn reasoning(&mut self) -> bool {
        let tokens = (self.tokenizer.special("[THINK]"), self.tokenizer.special("[/THINK]"));
        let (Some(begin), Some(end)) = tokens else { return false };
        if self.version < Version::V13 {
            return false;
        }
        self.rule("reasoning", &format!("<[{begin}]> THOUGHT? <[{end}]>"));
        self.rule("THOUGHT", "/(?s:.+)/");
        true
    }

    /// Writes the rules for the calls that a request allows. A call by name is one call.
    fn calls(&mut self, request: &ChatRequest) -> Result<()> {
        let named = match &request.tool_choice {
            ToolChoice::Function(name) => Some(name.as_str()),
            _ => None,
        };
        let mut names = Vec::new();
        for (i, tool) in request.tools.iter().enumerate() {
            if named.is_some_and(|name| name != tool.name) {
                continue;
            }
            let path = format!("tools[{i}].function.parameters");
            let spec = ConstraintSpec::JsonSchema(arguments(&tool.parameters, &path)?);
            self.parts.push(Part { name: format!("tool{i}"), path, spec });
            let call = match self.version >= Version::V11 {
                true => format!("{}{} @tool{i}", literal(&tool.name), self.before_arguments()?),
                false => format!("{} @tool{i}", literal(&before_arguments_json(&tool.name))),
            };
            self.rule(&format!("call{i}"), &call);
            names.push(format!("call{i}"));
        }
        let (marker, any) = (self.control("[TOOL_CALLS]")?, names.join(" | "));
        let several = named.is_none() && request.parallel_tool_calls;
        if self.version >= Version::V11 {
            self.rule("call", &format!("{marker} SPACE? ({any})"));
            self.rule("calls", if several { "call+" } else { "call" });
        } else {
            let id = if self.version >= Version::V3 { "ID?" } else { "" };
            self.rule("call", &format!("({any}) {id} \"}}\""));
            self.rule("ID", r#"/, "id": "[A-Za-z0-9]{9}"/"#);
            let more = if several { "(\", \" call)*" } else { "" };
            self.rule("calls", &format!("{marker} SPACE? \"[\" call {more} \"]\""));
        }
        // SentencePiece puts one before a text.
        self.rule("SPACE", "\" \"");
        Ok(())
    }

    /// From v11 on: what stands between the name and the arguments.
    fn before_arguments(&self) -> Result<String> {
        let arguments = self.control("[ARGS]")?;
        match self.tokenizer.special("[CALL_ID]").filter(|_| self.version == Version::V11) {
            Some(id) => Ok(format!(" (<[{id}]> SPACE? /[A-Za-z0-9]{{9}}/)? {arguments} SPACE?")),
            None => Ok(format!(" {arguments} SPACE?")),
        }
    }

    fn control(&self, name: &str) -> Result<String> {
        let id = self.tokenizer.special(name).ok_or_else(|| {
            Error::unsupported("control token", name, "the control tokens of this vocabulary")
        })?;
        Ok(format!("<[{id}]>"))
    }
}

/// Up to v7: the beginning of a call, as the model was trained to write it.
fn before_arguments_json(name: &str) -> String {
    format!("{{\"name\": {}, \"arguments\": ", Value::from(name))
}

/// A text as Lark writes it.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// The schema of a tool's arguments, which are an object whether it says so or not.
fn arguments(parameters: &Json, path: &str) -> Result<Value> {
    let mut schema = value(parameters, path)?;
    let Value::Object(members) = &mut schema else {
        return Err(Error::argument(path, parameters.kind(), "an object"));
    };
    let may_be_object = match members.get("type") {
        None => true,
        Some(Value::Array(types)) => types.iter().any(|kind| kind == "object"),
        Some(kind) => kind == "object",
    };
    if !may_be_object {
        return Err(Error::argument(format!("{path}.type"), "another type", "object"));
    }
    members.insert("type".to_owned(), "object".into());
    Ok(schema)
}

fn value(json: &Json, path: &str) -> Result<Value> {
    // Deeper than the parser goes, or a number that JSON has not.
    serde_json::from_str(&json.dumps())
        .map_err(|_| Error::argument(path, "a value too deep, or no JSON", "a JSON Schema"))
}
