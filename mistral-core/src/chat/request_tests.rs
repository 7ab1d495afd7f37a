use super::*;

const USER: &str = "\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]";

fn with(field: &str) -> Result<ChatRequest> {
    ChatRequest::from_json(&format!("{{{USER}, {field}}}"))
}

fn message(message: &str) -> Result<ChatRequest> {
    ChatRequest::from_json(&format!("{{\"messages\": [{message}]}}"))
}

/// The path that an error names.
fn path_of(error: Error) -> String {
    match error {
        Error::Argument { name, .. } => name,
        Error::Unsupported { found, .. } => found,
        Error::Limit { what, .. } => what,
        Error::Chat { path, .. } => path,
        other => panic!("{other}"),
    }
}

#[test]
fn every_field() {
    let request = with(
        "\"model\": \"m\", \"max_tokens\": 5, \"temperature\": 0, \"top_p\": 0.9, \"top_k\": 4, \"min_p\": 0.05, \"random_seed\": 18446744073709551615,
         \"n\": 2, \"stop\": [\"a\", \"b\"], \"logprobs\": true, \"top_logprobs\": 3, \"presence_penalty\": -1, \"frequency_penalty\": 1.5,
         \"repetition_penalty\": 1.1, \"logit_bias\": {\"7\": -100}, \"ignore_eos\": true, \"prompt_lookup\": 8, \"stream\": true, \"stream_options\": {\"include_usage\": true},
         \"parallel_tool_calls\": false, \"reasoning_effort\": \"high\", \"safe_prompt\": false, \"user\": null, \"tools\": [{\"function\": {\"name\": \"f\"}}],
         \"tool_choice\": {\"type\": \"function\", \"function\": {\"name\": \"f\"}}",
    )
    .unwrap();
    let expected = CompletionOptions {
        max_tokens: Some(5),
        temperature: Some(0.0),
        top_p: Some(0.9),
        top_k: Some(4),
        min_p: Some(0.05),
        seed: Some(u64::MAX),
        n: Some(2),
        stop: vec!["a".into(), "b".into()],
        logprobs: Some(3),
        presence_penalty: Some(-1.0),
        frequency_penalty: Some(1.5),
        repetition_penalty: Some(1.1),
        logit_bias: vec![(7, -100.0)],
        ignore_eos: true,
        prompt_lookup: 8,
    };
    assert_eq!(request.options, expected);
    assert_eq!(request.tool_choice, ToolChoice::Function("f".into()));
    assert_eq!(request.reasoning_effort.map(ReasoningEffort::as_str), Some("high"));
    assert_eq!(request.tools[0].parameters, Json::Object(Vec::new()));
    assert!(request.stream && request.include_usage && !request.parallel_tool_calls);
    assert_eq!(with("\"stop\": \"x\"").unwrap().options.stop, ["x"]);
    assert_eq!(with("\"max_completion_tokens\": 3").unwrap().options.max_tokens, Some(3));
    let value = serde_json::json!({ "messages": [{ "role": "user", "content": "Hi" }], "seed": 3 });
    assert_eq!(ChatRequest::from_value(&value).unwrap().options.seed, Some(3));
}

#[test]
fn wrong_fields_are_named() {
    for (field, path) in [
        ("\"x\": 1", "x"),
        ("\"temperature\": \"1\"", "temperature"),
        ("\"temperature\": 2.5", "temperature"),
        ("\"top_p\": -0.1", "top_p"),
        ("\"max_tokens\": 1.5", "max_tokens"),
        ("\"max_tokens\": -1", "max_tokens"),
        ("\"max_tokens\": 1, \"max_completion_tokens\": 1", "max_completion_tokens"),
        ("\"seed\": 1, \"random_seed\": 1", "random_seed"),
        ("\"n\": 0", "n"),
        ("\"stop\": [\"a\", 1]", "stop[1]"),
        ("\"stop\": \"\"", "stop"),
        ("\"top_logprobs\": 2", "top_logprobs"),
        ("\"logit_bias\": {\"a\": 1}", "logit_bias.a"),
        ("\"logit_bias\": {\"1\": 101}", "logit_bias.1"),
        ("\"stream\": 1", "stream"),
        ("\"stream_options\": {\"include_usage\": true}", "stream_options"),
        ("\"tools\": {}", "tools"),
        ("\"tools\": [{\"type\": \"web\", \"function\": {\"name\": \"f\"}}]", "tools[0].type"),
        ("\"tools\": [{\"function\": {}}]", "tools[0].function.name"),
        (
            "\"tools\": [{\"function\": {\"name\": \"f\", \"parameters\": []}}]",
            "tools[0].function.parameters",
        ),
        ("\"tool_choice\": \"maybe\"", "tool_choice"),
        ("\"tool_choice\": \"any\"", "tool_choice"),
        ("\"tool_choice\": {\"function\": {\"name\": \"g\"}}", "tool_choice.function.name"),
        ("\"response_format\": {\"type\": \"xml\"}", "response_format.type"),
        ("\"response_format\": {\"type\": \"json_schema\"}", "response_format.json_schema"),
        (
            "\"response_format\": {\"type\": \"json_schema\", \"json_schema\": {\"name\": \"n\", \"schema\": {\"items\": {\"type\": 1}}}}",
            "response_format.json_schema.schema.items.type",
        ),
        ("\"reasoning_effort\": \"huge\"", "reasoning_effort"),
        ("\"safe_prompt\": true", "safe_prompt"),
        ("\"user\": \"u\"", "user"),
        ("\"prompt_logprobs\": 1", "prompt_logprobs"),
        ("\"repetition_penalty\": 0", "repetition_penalty"),
        ("\"continue_final_message\": true", "continue_final_message"),
    ] {
        assert_eq!(path_of(with(field).unwrap_err()), path, "{field}");
    }
    assert_eq!(path_of(ChatRequest::from_json("{}").unwrap_err()), "messages");
    assert_eq!(path_of(ChatRequest::from_json("[]").unwrap_err()), "request");
    assert_eq!(path_of(ChatRequest::from_json("{\"a\"").unwrap_err()), "request");
}

#[test]
fn wrong_messages_are_named() {
    for (text, path) in [
        ("1", "messages[0]"),
        ("{\"content\": \"x\"}", "messages[0].role"),
        ("{\"role\": \"robot\", \"content\": \"x\"}", "messages[0].role"),
        ("{\"role\": \"user\"}", "messages[0].content"),
        ("{\"role\": \"user\", \"content\": 1}", "messages[0].content"),
        ("{\"role\": \"user\", \"content\": \"x\", \"prefix\": true}", "messages[0].prefix"),
        ("{\"role\": \"user\", \"content\": \"x\", \"name\": \"n\"}", "messages[0].name"),
        ("{\"role\": \"user\", \"content\": [{\"text\": \"x\"}]}", "messages[0].content[0].type"),
        ("{\"role\": \"user\", \"content\": [{\"type\": \"text\"}]}", "messages[0].content[0].text"),
        ("{\"role\": \"user\", \"content\": [{\"type\": \"video\"}]}", "messages[0].content[0].type"),
        (
            "{\"role\": \"user\", \"content\": [{\"type\": \"thinking\", \"thinking\": \"x\"}]}",
            "messages[0].content[0].type",
        ),
        (
            "{\"role\": \"assistant\", \"content\": [{\"type\": \"image_url\"}]}",
            "messages[0].content[0].type",
        ),
        (
            "{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\"}}]}",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            "{\"role\": \"assistant\", \"tool_calls\": [{\"function\": {\"name\": \"f\", \"arguments\": 1}}]}",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            "{\"role\": \"assistant\", \"content\": \"x\", \"reasoning\": \"a\", \"reasoning_content\": \"b\"}",
            "messages[0].reasoning",
        ),
    ] {
        assert_eq!(path_of(message(text).unwrap_err()), path, "{text}");
    }
}

#[test]
fn messages_of_other_apis() {
    use crate::chat::message::{Chunk, Content};
    let text =
        "{\"role\": \"assistant\", \"content\": \"a\", \"reasoning_content\": \"r\", \"refusal\": null}";
    let thinking = Chunk::Think { text: "r".into(), closed: true };
    let expected = Some(Content::Chunks(vec![thinking.clone(), Chunk::Text("a".into())]));
    assert_eq!(message(text).unwrap().messages[0].content, expected);
    let text = "{\"role\": \"assistant\", \"content\": [{\"type\": \"thinking\", \"thinking\": [{\"type\": \"text\", \"text\": \"r\"}]}]}";
    assert_eq!(message(text).unwrap().messages[0].content, Some(Content::Chunks(vec![thinking])));
    let text = "{\"role\": \"developer\", \"content\": \"s\"}";
    assert_eq!(message(text).unwrap().messages[0].role, Role::System);
    let request = ChatRequest::from_json(
        "{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}], \"continue_final_message\": true}",
    );
    assert!(request.unwrap().messages[1].prefix);
}

#[test]
fn completions() {
    let request =
        CompletionRequest::from_json("{\"prompt\": \"a\", \"suffix\": \"b\", \"max_tokens\": 3}").unwrap();
    assert_eq!(
        (request.prompt.as_str(), request.suffix.as_deref(), request.options.max_tokens),
        ("a", Some("b"), Some(3))
    );
    assert_eq!(path_of(CompletionRequest::from_json("{\"prompt\": [1]}").unwrap_err()), "prompt");
    assert_eq!(
        path_of(CompletionRequest::from_json("{\"prompt\": \"a\", \"messages\": []}").unwrap_err()),
        "messages"
    );
}

/// No error repeats what a user says, however it is misplaced.
#[test]
fn errors_keep_secrets() {
    let secret = "the patient's name";
    for text in [
        format!("{{\"role\": \"user\", \"content\": {{\"{secret}\": 1}}}}"),
        format!(
            "{{\"role\": \"assistant\", \"content\": [{{\"type\": \"text\", \"text\": [\"{secret}\"]}}]}}"
        ),
        format!("{{\"role\": \"tool\", \"content\": \"{secret}\", \"tool_call_id\": 3}}"),
    ] {
        assert!(!message(&text).unwrap_err().to_string().contains("patient"), "{text}");
    }
}
