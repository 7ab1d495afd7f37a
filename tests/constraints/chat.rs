//! Response formats and tools in every chat format: what the grammar lets through, the reader of answers reads.

use mistral_core::chat::request::ChatRequest;
use mistral_core::tokenizer::TokenizerVersion as Version;

use super::*;

/// A model for each format that has tools, with what it is called.
fn formats() -> Vec<(String, Arc<Model>)> {
    let mut all = Vec::new();
    for version in [Version::V2, Version::V3, Version::V7] {
        let name = format!("tokenizer.model.{}", version.as_str());
        all.push((name.clone(), model(&fixture(&format!("chat/{name}")), &name, None)));
    }
    let tekkens =
        [(Version::V3, 20), (Version::V7, 20), (Version::V11, 34), (Version::V13, 36), (Version::V15, 38)];
    for (version, specials) in tekkens {
        all.push((format!("tekken {}", version.as_str()), tekken(version, specials)));
    }
    all
}

/// The Tekken file of a version, made of the newest one: older ones have fewer control tokens.
fn tekken(version: Version, specials: usize) -> Arc<Model> {
    let mut file: Value =
        serde_json::from_slice(&std::fs::read(fixture("chat/tekken.json")).unwrap()).unwrap();
    file["config"]["version"] = version.as_str().into();
    file["special_tokens"].as_array_mut().unwrap().truncate(specials);
    if version != Version::V15 {
        file.as_object_mut().unwrap().remove("model_settings_builder");
    }
    let folder = temp();
    let path = folder.path().join("tekken.json");
    std::fs::write(&path, file.to_string()).unwrap();
    model(&path, "tekken.json", None)
}

fn tools() -> Value {
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "description": "A tool.", "parameters": parameters}});
    json!([
        tool(
            "get",
            json!({
                "type": "object", "required": ["city", "days"], "additionalProperties": false,
                "properties": {"city": {"enum": ["Zürich", "Rabat"]}, "days": {"type": "integer", "minimum": 1, "maximum": 14}},
            })
        ),
        tool(
            "get_weather",
            json!({
                "$defs": {"flag": {"type": "boolean"}}, "required": ["flags"], "additionalProperties": false,
                "properties": {"flags": {"type": "array", "items": {"$ref": "#/$defs/flag"}, "maxItems": 2}},
            })
        ),
        tool("no-arguments", json!({"type": "object", "properties": {}, "additionalProperties": false})),
    ])
}

/// Whether a call is one of [`tools`], by its schema.
fn is_right(call: &Value) -> bool {
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    let object = arguments.as_object().unwrap();
    match call["function"]["name"].as_str().unwrap() {
        "get" => {
            let city = object.get("city").is_some_and(|city| city == "Zürich" || city == "Rabat");
            let days = object.get("days").and_then(Value::as_u64);
            object.len() == 2 && city && days.is_some_and(|days| (1..=14).contains(&days))
        }
        "get_weather" => {
            let flags = object.get("flags").and_then(Value::as_array);
            object.len() == 1 && flags.is_some_and(|f| f.len() <= 2 && f.iter().all(Value::is_boolean))
        }
        "no-arguments" => object.is_empty(),
        _ => false,
    }
}

fn request(seed: u64, more: Value) -> Value {
    let mut request = json!({
        "messages": [{"role": "user", "content": "What is the weather?"}],
        "temperature": 2.0, "seed": seed, "max_tokens": 200,
    });
    for (key, value) in more.as_object().unwrap() {
        request[key] = value.clone();
    }
    request
}

/// The answer, which the stream must agree with.
fn ask(model: &Arc<Model>, request: &Value) -> Result<Value, Error> {
    let mut streamed = request.clone();
    streamed["stream"] = true.into();
    let mut content = String::new();
    let mut on_chunk = |chunk: Value| {
        content += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
    };
    let answer = model.chat(&streamed, &mut on_chunk, &mut Control::none())?;
    assert_eq!(answer["choices"][0]["message"]["content"], content);
    Ok(answer["choices"][0].clone())
}

fn calls(choice: &Value) -> &[Value] {
    choice["message"]["tool_calls"].as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn a_required_call_is_a_call_of_a_tool_under_its_schema() {
    for (name, model) in formats() {
        let mut called = std::collections::BTreeSet::new();
        let mut several = false;
        for seed in 0..12 {
            let choice =
                ask(&model, &request(seed, json!({"tools": tools(), "tool_choice": "any"}))).unwrap();
            assert_eq!(choice["message"]["content"], "", "{name}");
            assert!(calls(&choice).iter().all(is_right), "{name}: {choice}");
            if choice["finish_reason"] != "length" {
                assert_eq!(choice["finish_reason"], "tool_calls", "{name}: {choice}");
                assert!(!calls(&choice).is_empty() && choice["message"].get("broken_tool_calls").is_none());
            }
            several |= calls(&choice).len() > 1;
            called.extend(calls(&choice).iter().map(|call| call["function"]["name"].to_string()));
        }
        assert!(called.len() == 3 && several, "{name}: {called:?}");
    }
}

#[test]
fn a_named_call_and_one_call_at_a_time() {
    for (name, model) in formats() {
        let named = json!({"type": "function", "function": {"name": "get_weather"}});
        for (choice, parallel) in [(named.clone(), true), (named, false), ("required".into(), false)] {
            for seed in 0..3 {
                let more = json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": parallel});
                let answer = ask(&model, &request(seed, more)).unwrap();
                if answer["message"].get("reasoning_content").is_some() && answer["finish_reason"] == "length"
                {
                    // It was still thinking.
                    continue;
                }
                assert_eq!(calls(&answer).len(), 1, "{name}: {answer}");
                assert_eq!(answer["finish_reason"], "tool_calls", "{name}");
                assert!(is_right(&calls(&answer)[0]), "{name}: {answer}");
                let called = &calls(&answer)[0]["function"]["name"];
                assert!(choice == "required" || called == "get_weather", "{name}: {called}");
            }
        }
    }
}

/// With `auto`, text is free, and a call that begins is bound; with `none`, none begins, not even where the host would have it.
#[test]
fn text_is_free_until_a_call_begins() {
    for (name, model) in formats() {
        let marker = model.tokenizer().unwrap().special("[TOOL_CALLS]").unwrap();
        let end = model.eos_token_ids()[0];
        let auto = json!({"tools": tools(), "parallel_tool_calls": false, "max_tokens": 20,
            "logit_bias": {end.to_string(): -100}});
        let free = ask(&model, &request(3, auto.clone())).unwrap();
        assert_eq!(free["finish_reason"], "length", "{name}");
        assert_eq!((calls(&free).len(), free["message"].get("broken_tool_calls")), (0, None), "{name}");
        assert_eq!(free["message"]["content"], unbound(&model, &request(3, auto.clone())), "{name}");

        let mut eager = auto;
        eager["max_tokens"] = 200.into();
        eager["logit_bias"] = json!({marker.to_string(): 100});
        let bound = ask(&model, &request(3, eager.clone())).unwrap();
        assert!(calls(&bound).len() == 1 && is_right(&calls(&bound)[0]), "{name}: {bound}");
        eager["tool_choice"] = "none".into();
        let none = ask(&model, &request(3, eager)).unwrap();
        assert_eq!((calls(&none).len(), none["message"].get("broken_tool_calls")), (0, None), "{name}");
    }
}

/// What the model says to a request if nothing binds it.
fn unbound(model: &Arc<Model>, request: &Value) -> String {
    let prompt = model.chat_encode(&ChatRequest::from_value(request).unwrap()).unwrap();
    let bias = request["logit_bias"].as_object().unwrap().iter();
    let sampling = SamplingParams {
        temperature: request["temperature"].as_f64().unwrap() as f32,
        seed: request["seed"].as_u64().unwrap(),
        logit_bias: bias.map(|(id, bias)| (id.parse().unwrap(), bias.as_f64().unwrap() as f32)).collect(),
        ..SamplingParams::default()
    };
    let max_tokens = request["max_tokens"].as_u64().map(|n| n as usize);
    let options = GenerateOptions { sampling, max_tokens, ..GenerateOptions::default() };
    let mut session = model.session(&SessionOptions::default()).unwrap();
    let mut control = Control::none();
    let mut generation = session.generate(&prompt, &options, &mut control).unwrap();
    std::iter::from_fn(|| generation.next(&mut control)).map(|event| event.unwrap().text).collect()
}

#[test]
fn response_formats_are_honoured() {
    for (name, model) in formats() {
        let mut whole = 0;
        for seed in 0..8 {
            let schema = json!({"name": "animal", "schema": schema(), "strict": seed % 2 == 0});
            let format = json!({"type": "json_schema", "json_schema": schema});
            let regex = json!({"type": "regex", "regex": "[ab]{3}/\\d"});
            let lark = json!({"type": "lark", "lark": "start: \"yes\" | \"no\""});
            let tools = json!({"response_format": format, "tools": tools()});
            let object = json!({"response_format": {"type": "json_object"}});
            let is_object =
                |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
            let checks: [(Value, Check); 5] = [
                (json!({"response_format": format}), Box::new(obeys_the_schema)),
                (json!({"response_format": regex}), matches("[ab]{3}/\\d")),
                (json!({"response_format": lark}), matches("yes|no")),
                (object, Box::new(is_object)),
                (tools, Box::new(obeys_the_schema)),
            ];
            for (more, check) in checks {
                let choice = ask(&model, &request(seed, more.clone())).unwrap();
                let content = choice["message"]["content"].as_str().unwrap();
                match choice["finish_reason"].as_str().unwrap() {
                    "stop" => {
                        assert!(check(content), "{name} {more}: {choice}");
                        whole += 1;
                    }
                    "tool_calls" => assert!(calls(&choice).iter().all(is_right), "{name}: {choice}"),
                    reason => assert_eq!(reason, "length", "{name}: {choice}"),
                }
            }
        }
        assert!(whole >= 16, "{name}: {whole} answers came to an end");
    }
}

/// A model that thinks may think first; what it thinks is no part of what must obey.
#[test]
fn reasoning_comes_before_the_answer() {
    let model = tekken(Version::V13, 36);
    let tokenizer = model.tokenizer().unwrap();
    let (begin, end) = (tokenizer.special("[THINK]").unwrap(), tokenizer.special("[/THINK]").unwrap());
    let bias = json!({begin.to_string(): 100, end.to_string(): 10});
    for (more, reason) in [
        (json!({"response_format": {"type": "regex", "regex": "[ab]{3}"}}), "stop"),
        (json!({"tools": tools(), "tool_choice": "any", "parallel_tool_calls": false}), "tool_calls"),
    ] {
        let mut more = more;
        more["logit_bias"] = bias.clone();
        let choice = ask(&model, &request(1, more)).unwrap();
        assert_eq!(choice["finish_reason"], reason, "{choice}");
        assert!(!choice["message"]["reasoning_content"].as_str().unwrap().is_empty(), "{choice}");
        let content = choice["message"]["content"].as_str().unwrap();
        assert!(matches("([ab]{3})?")(content), "{choice}");
    }
}

#[test]
fn an_answer_goes_on_from_its_beginning() {
    for (name, model) in formats() {
        let format = json!({"type": "regex", "regex": "The answer is (yes|no)\\."});
        let of = |beginning: &str| {
            let messages = json!([{"role": "user", "content": "Is it?"},
                {"role": "assistant", "content": beginning, "prefix": true}]);
            ask(&model, &request(0, json!({"messages": messages, "response_format": format})))
        };
        let content = of("The answer").unwrap()["message"]["content"].clone();
        assert!(matches("The answer is (yes|no)\\.")(content.as_str().unwrap()), "{name}: {content}");
        let error = of("An answer").unwrap_err().to_string();
        assert!(error.contains("messages[1].content"), "{name}: {error}");
    }
}

fn ask_plain(model: &Arc<Model>, request: &Value) -> Result<Value, Error> {
    model.chat(request, &mut |_| (), &mut Control::none())
}

/// Text that is held back for a stop text belongs before the control token that follows, and no stop text reaches over one.
#[test]
fn a_control_token_ends_what_a_stop_text_may_match() {
    let model = tekken(Version::V13, 36);
    let id = |name: &str| model.tokenizer().unwrap().special(name).unwrap();
    let (calls, args, think) = (id("[TOOL_CALLS]"), id("[ARGS]"), id("[THINK]"));
    let of = |lark: String, stop: &str| {
        let more = json!({"response_format": {"type": "lark", "lark": lark}, "stop": [stop]});
        ask(&model, &request(0, more)).unwrap()
    };
    let call =
        |before: &str, name: &str| format!("start: \"{before}\" <[{calls}]> \"{name}\" <[{args}]> \"{{}}\"");
    for (before, name) in [("Calling U", "f"), ("Us", "er:")] {
        let choice = of(call(before, name), "User:");
        assert_eq!(choice["message"]["content"], before, "{choice}");
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert_eq!(self::calls(&choice)[0]["function"]["name"], name, "{choice}");
    }
    let choice = of(format!("start: \"x U\" <[{think}]> \"thought\""), "User:");
    assert_eq!(
        (&choice["message"]["content"], &choice["message"]["reasoning_content"]),
        (&json!("x U"), &json!("thought"))
    );
    // After the control token, texts match anew.
    let choice = of(format!("start: \"Us\" <[{think}]> \"a User: b\""), "User:");
    assert_eq!(
        (&choice["message"]["content"], &choice["message"]["reasoning_content"]),
        (&json!("Us"), &json!("a "))
    );
}

#[test]
fn every_choice_obeys() {
    let model = tekken(Version::V7, 20);
    let format = json!({"type": "regex", "regex": "[a-z]{8}"});
    let answer = ask_plain(&model, &request(0, json!({"n": 3, "response_format": format}))).unwrap();
    let texts: Vec<&str> = answer["choices"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["message"]["content"].as_str().unwrap())
        .collect();
    assert!(texts.len() == 3 && texts.iter().all(|text| matches("[a-z]{8}")(text)), "{texts:?}");
    assert!(texts[0] != texts[1] && texts[1] != texts[2], "{texts:?}");
}

#[test]
fn what_a_request_cannot_have_is_named_by_its_path() {
    let wrong_tool = |parameters: Value| {
        let function = json!({"name": "f", "parameters": parameters});
        json!([tools()[0], {"type": "function", "function": function}])
    };
    let format = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    let (new, template) = (tekken(Version::V13, 36), template());
    let old = model(&fixture("chat/tokenizer.model.v1"), "tokenizer.model.v1", None);
    let prefix =
        json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{", "prefix": true}]);
    for (model, more, path) in [
        (
            &new,
            format(json!({"properties": {"a": {"uniqueItems": true}}})),
            "response_format.json_schema.schema.properties.a",
        ),
        (
            &new,
            format(json!({"allOf": [{"type": "null"}, {"type": "array"}]})),
            "response_format.json_schema.schema",
        ),
        (&new, json!({"response_format": {"type": "regex", "regex": "("}}), "response_format.regex"),
        (&new, json!({"response_format": {"type": "lark", "lark": "start"}}), "response_format.lark"),
        (&new, json!({"tools": wrong_tool(json!({"not": {}}))}), "tools[1].function.parameters"),
        (&new, json!({"tools": wrong_tool(json!({"type": "string"}))}), "tools[1].function.parameters.type"),
        (
            &new,
            json!({"tools": wrong_tool(json!({"$ref": "#/nowhere"})), "tool_choice": "any"}),
            "tools[1].function.parameters",
        ),
        (&old, json!({"tools": tools(), "tool_choice": "any"}), "tool_choice"),
        (&template, json!({"tools": tools(), "tool_choice": "required"}), "tool_choice"),
        (&template, json!({"tools": tools(), "parallel_tool_calls": false}), "parallel_tool_calls"),
        (
            &template,
            json!({"messages": prefix, "response_format": {"type": "json_object"}}),
            "response_format",
        ),
    ] {
        let error = ask_plain(model, &request(0, more.clone())).expect_err(path);
        let typed = matches!(error, Error::Argument { .. } | Error::Unsupported { .. });
        assert!(typed && error.to_string().contains(path), "{path}: {error}");
    }
    let format = json!({"response_format": {"type": "regex", "regex": "[ab]{3}"}, "tools": tools()});
    let choice = ask(&template, &request(0, format)).unwrap();
    assert!(matches("[ab]{3}")(choice["message"]["content"].as_str().unwrap()), "{choice}");
}

/// A model with a chat template of its own that writes the tools.
fn template() -> Arc<Model> {
    let folder = temp();
    let tokenizer = fixture("tokenizer/small.smollm.tokenizer.json");
    let config = tiny(Tokenizer::open(&tokenizer).unwrap().vocab_size());
    testing::Model::random(&config, Format::F32, 1).write_hugging_face(folder.path()).unwrap();
    let mut json = testing::config_json(&config);
    json["eos_token_id"] = json!(2);
    std::fs::write(folder.path().join("config.json"), json.to_string()).unwrap();
    std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    let source = "{{ tools | tojson }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
    open(folder.path(), None)
}
