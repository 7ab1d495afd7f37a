//! The bodies of chat-completion responses and stream chunks, as the Mistral and OpenAI APIs define them. Pure functions: the time
//! and the name of a response are the caller's.
//!
//! Beyond the APIs: `reasoning_content` beside `content`, and `broken_tool_calls` for calls that cannot be read.

use serde_json::{Map, Value, json};

use crate::chat::answer::{Answer, AnswerEvent};

/// What OpenAI's API writes for a probability of zero, whose logarithm JSON cannot.
const LEAST_LOGPROB: f64 = -9999.0;

/// What all chunks of a response share.
#[derive(Clone, Copy, Debug)]
pub struct ResponseHead<'a> {
    /// The name of the response.
    pub id: &'a str,
    /// Seconds since 1970-01-01.
    pub created: u64,
    /// The name of the model.
    pub model: &'a str,
}

/// Why an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model has ended it, or a stop string has.
    Stop,
    /// `max_tokens` is reached, or the context is full.
    Length,
    /// The model calls tools.
    ToolCalls,
    /// The model has called a tool in a way that cannot be read.
    Error,
}

impl FinishReason {
    /// The reason for an answer that the model ended (or a stop string), or that was cut off (`cut`).
    pub fn of(answer: &Answer, cut: bool) -> Self {
        match () {
            () if cut => Self::Length,
            () if !answer.broken.is_empty() => Self::Error,
            () if !answer.calls.is_empty() => Self::ToolCalls,
            () => Self::Stop,
        }
    }

    /// As the APIs write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::Error => "error",
        }
    }
}

/// The tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: u64,
    /// Of all answers.
    pub completion: u64,
}

impl Usage {
    /// The `usage` of a response.
    pub fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        })
    }
}

/// A token that was chosen, with its probability.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The natural logarithm of its probability.
    pub logprob: f64,
    /// The most probable tokens at its place, best first.
    pub top: Vec<(Vec<u8>, f64)>,
}

/// The `logprobs` of a choice or of a delta.
pub fn logprobs(tokens: &[TokenLogprob]) -> Value {
    let entry = |bytes: &[u8], logprob: f64| {
        let mut entry = Map::new();
        entry.insert("token".into(), String::from_utf8_lossy(bytes).into());
        entry.insert("logprob".into(), logprob.max(LEAST_LOGPROB).into());
        entry.insert("bytes".into(), bytes.into());
        entry
    };
    let content: Vec<Value> = tokens
        .iter()
        .map(|token| {
            let top: Vec<Value> =
                token.top.iter().map(|(bytes, p)| Value::Object(entry(bytes, *p))).collect();
            let mut entry = entry(&token.bytes, token.logprob);
            entry.insert("top_logprobs".into(), top.into());
            Value::Object(entry)
        })
        .collect();
    json!({ "content": content })
}

/// The message of an answer.
pub fn message(answer: &Answer) -> Value {
    let mut message = Map::new();
    message.insert("role".into(), "assistant".into());
    message.insert("content".into(), answer.content.as_str().into());
    if !answer.reasoning.is_empty() {
        message.insert("reasoning_content".into(), answer.reasoning.as_str().into());
    }
    if !answer.calls.is_empty() {
        let calls: Vec<Value> = answer
            .calls
            .iter()
            .map(|call| {
                let function = json!({ "name": call.name, "arguments": call.arguments });
                json!({ "id": call.id, "type": "function", "function": function, "index": call.index })
            })
            .collect();
        message.insert("tool_calls".into(), calls.into());
    }
    if !answer.broken.is_empty() {
        let broken: Vec<Value> = answer
            .broken
            .iter()
            .map(|call| {
                json!({ "index": call.index, "name": call.name, "text": call.text, "reason": call.fault.as_str() })
            })
            .collect();
        message.insert("broken_tool_calls".into(), broken.into());
    }
    Value::Object(message)
}

/// One alternative of a response; `logprobs` is null where none were asked for.
pub fn choice(index: usize, answer: &Answer, finish: FinishReason, logprobs: Value) -> Value {
    json!({ "index": index, "message": message(answer), "finish_reason": finish.as_str(), "logprobs": logprobs })
}

/// A whole response.
pub fn completion(head: ResponseHead<'_>, choices: Vec<Value>, usage: Usage) -> Value {
    let mut body = body(head, "chat.completion");
    body.insert("choices".into(), choices.into());
    body.insert("usage".into(), usage.to_json());
    Value::Object(body)
}

/// A chunk of a stream: a delta of an alternative, and at its end the reason.
pub fn chunk(
    head: ResponseHead<'_>,
    index: usize,
    delta: Value,
    finish: Option<FinishReason>,
    logprobs: Value,
) -> Value {
    let mut body = body(head, "chat.completion.chunk");
    let finish = finish.map(FinishReason::as_str);
    let choice = json!({ "index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs });
    body.insert("choices".into(), vec![choice].into());
    Value::Object(body)
}

/// The last chunk of a stream whose request asked for the usage.
pub fn usage_chunk(head: ResponseHead<'_>, usage: Usage) -> Value {
    let mut body = body(head, "chat.completion.chunk");
    body.insert("choices".into(), Value::Array(Vec::new()));
    body.insert("usage".into(), usage.to_json());
    Value::Object(body)
}

/// The delta that begins an answer.
pub fn first_delta() -> Value {
    json!({ "role": "assistant", "content": "" })
}

/// The delta of an event; [`None`] for the end of a call, which the APIs do not announce.
pub fn delta(event: &AnswerEvent) -> Option<Value> {
    Some(match event {
        AnswerEvent::Content(text) => json!({ "content": text }),
        AnswerEvent::Reasoning(text) => json!({ "reasoning_content": text }),
        AnswerEvent::CallBegin { index, id, name } => {
            let function = json!({ "name": name, "arguments": "" });
            json!({ "tool_calls": [{ "index": index, "id": id, "type": "function", "function": function }] })
        }
        AnswerEvent::Arguments { index, text } => {
            json!({ "tool_calls": [{ "index": index, "function": { "arguments": text } }] })
        }
        AnswerEvent::CallEnd { .. } => return None,
        AnswerEvent::CallBroken { index, fault } => {
            json!({ "broken_tool_calls": [{ "index": index, "reason": fault.as_str() }] })
        }
    })
}

fn body(head: ResponseHead<'_>, object: &str) -> Map<String, Value> {
    let mut body = Map::new();
    body.insert("id".into(), head.id.into());
    body.insert("object".into(), object.into());
    body.insert("created".into(), head.created.into());
    body.insert("model".into(), head.model.into());
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::answer::AnswerParser;
    use crate::chat::request::ChatRequest;
    use crate::tokenizer::TokenizerVersion;

    const HEAD: ResponseHead<'_> = ResponseHead { id: "r1", created: 1, model: "m" };

    fn answer(text: &str) -> Answer {
        AnswerParser::new(Some(TokenizerVersion::V13), 0).read_rendered(text)
    }

    #[test]
    fn a_response() {
        let answer = answer("[THINK]t[/THINK]Hi");
        let choice = choice(0, &answer, FinishReason::of(&answer, false), Value::Null);
        let response = completion(HEAD, vec![choice], Usage { prompt: 3, completion: 2 });
        let expected = "{\"id\":\"r1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\
            \"message\":{\"role\":\"assistant\",\"content\":\"Hi\",\"reasoning_content\":\"t\"},\"finish_reason\":\"stop\",\
            \"logprobs\":null}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}";
        assert_eq!(response.to_string(), expected);
    }

    #[test]
    fn finish_reasons() {
        for (text, cut, expected) in [
            ("Hi", false, "stop"),
            ("Hi", true, "length"),
            ("[TOOL_CALLS]f[ARGS]{}", false, "tool_calls"),
            ("[TOOL_CALLS]f[ARGS]{", false, "error"),
            ("[TOOL_CALLS]f[ARGS]{", true, "length"),
        ] {
            assert_eq!(FinishReason::of(&answer(text), cut).as_str(), expected, "{text}");
        }
    }

    /// What comes out can go in again as history.
    #[test]
    fn a_message_is_a_message() {
        let message = message(&answer("[THINK]t[/THINK]Hi[TOOL_CALLS]f[ARGS]{\"a\": 1}"));
        let request = json!({ "messages": [{ "role": "user", "content": "x" }, message] });
        let request = ChatRequest::from_value(&request).unwrap();
        assert_eq!(request.messages[1].tool_calls[0].arguments, "{\"a\": 1}");
    }

    #[test]
    fn deltas_add_up() {
        let mut parser = AnswerParser::new(Some(TokenizerVersion::V13), 0);
        let mut events = parser.text("Hi");
        events.extend(parser.control("[TOOL_CALLS]"));
        events.extend(parser.text("f"));
        events.extend(parser.control("[ARGS]"));
        events.extend(parser.text("{\"a\""));
        events.extend(parser.text(": 1}"));
        let (last, answer) = parser.finish();
        events.extend(last);
        let deltas: Vec<Value> = events.iter().filter_map(delta).collect();
        assert_eq!(deltas[0], json!({ "content": "Hi" }));
        assert_eq!(deltas[1]["tool_calls"][0]["id"], answer.calls[0].id.as_str());
        let pieces =
            deltas[2..].iter().map(|d| d["tool_calls"][0]["function"]["arguments"].as_str().unwrap());
        assert_eq!(pieces.collect::<String>(), answer.calls[0].arguments);
        let chunk = chunk(HEAD, 0, deltas[0].clone(), Some(FinishReason::ToolCalls), Value::Null);
        assert_eq!(chunk["choices"][0]["finish_reason"], "tool_calls");
        assert_eq!(usage_chunk(HEAD, Usage::default())["choices"], json!([]));
    }

    #[test]
    fn probabilities() {
        let token = TokenLogprob {
            bytes: b"a\xff".to_vec(),
            logprob: -0.5,
            top: vec![(b"b".to_vec(), f64::NEG_INFINITY)],
        };
        let expected = json!({ "content": [{ "token": "a\u{fffd}", "logprob": -0.5, "bytes": [97, 255],
            "top_logprobs": [{ "token": "b", "logprob": -9999.0, "bytes": [98] }] }] });
        assert_eq!(logprobs(&[token]), expected);
    }
}
