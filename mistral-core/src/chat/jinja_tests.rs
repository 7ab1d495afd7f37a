use super::*;

const CHATML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

const INST: &str = "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}";

const LLAMA3: &str = r#"{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\n\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" + message.content + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
"#;

const HELLO: &str = r#"{"messages": [{"role": "user", "content": "Hello"}]}"#;

fn render(template: &str, request: &str) -> Result<String> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let request = ChatRequest::from_json(request)?;
    ChatTemplate::compile(template, &tokens)?.render(&request, RenderOptions::default())
}

fn render_at(template: &str, request: &str, local_time: i64) -> Result<String> {
    let options = RenderOptions { local_time: Some(local_time), ..RenderOptions::default() };
    ChatTemplate::compile(template, &[])?.render(&ChatRequest::from_json(request)?, options)
}

/// The conversation that ends with `message` of the assistant.
fn conversation(message: &str) -> String {
    format!(r#"{{"messages": [{{"role": "user", "content": "CONTINUE_HERE_0"}}, {message}]}}"#)
}

#[test]
fn chatml() {
    let expected = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
                    <|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(CHATML, HELLO).unwrap(), expected);
    let request = r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"role": "assistant", "content": "So ", "prefix": true}]}"#;
    let expected =
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\nSo ";
    assert_eq!(render(CHATML, request).unwrap(), expected);
}

#[test]
fn an_answer_goes_on_where_its_beginning_ends() {
    let prefix =
        |text: &str| conversation(&format!(r#"{{"role": "assistant", "content": {text}, "prefix": true}}"#));
    let trims = CHATML.replace("message['content']", "message['content'] | trim");
    // Texts of the template itself among them, and white space.
    for (text, given) in
        [("|", "|"), ("end", "end"), ("im_end|>", "im_end|>"), (r" a\n ", " a\n "), (" ", " ")]
    {
        let request = prefix(&format!("\"{text}\""));
        for (template, given) in [(CHATML, given), (trims.as_str(), given.trim())] {
            let text = render(template, &request).unwrap();
            assert_eq!(text.rsplit_once("assistant\n").unwrap().1, given, "{template}");
        }
    }
    // The last chunk, also where it is in a list of them.
    let chunks = prefix(r#"[{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]"#);
    let lists = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c.type == 'text' %}[{{ c.text }}]{% endif %}{% endfor %}{% endif %}{% endfor %}";
    assert!(render(CHATML, &chunks).unwrap().ends_with("assistant\na\nb "));
    assert_eq!(render(lists, &chunks).unwrap(), "CONTINUE_HERE_0[a][b ");
    for template in [
        "{{ messages[1].content | upper }}",
        "x",
        "{{ messages[1].content.split('b')[1] }}",
        "{{ messages[1].role }}",
    ] {
        let error = render(template, &prefix(r#""abc""#)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{template}: {error}");
    }
    for content in ["\"\"", "null", "[]"] {
        assert!(matches!(render(CHATML, &prefix(content)), Err(Error::Unsupported { .. })), "{content}");
    }
}

/// As transformers and vLLM have it.
#[test]
fn content_that_is_absent() {
    let call = r#"{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}"#;
    for (template, expected) in [
        ("{% if messages[1]['content'] is none %}none{% else %}some{% endif %}", "none"),
        ("{% if messages[1].content is not none %}some{% else %}none{% endif %}", "none"),
        ("<{{ messages[1].content + '>' }}", "<>"),
        ("<{{ messages[1]['content'] }}>", "<>"),
    ] {
        assert_eq!(render(template, &conversation(call)).unwrap(), expected, "{template}");
    }
}

/// A template that takes chunks gets them; thinking reaches the model or is refused.
#[test]
fn chunks_of_content() {
    const CHUNKS: &str = "{% for m in messages[1:] %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}{% if c['type'] == 'text' %}({{ c['text'] }}){% elif c['type'] == 'thinking' %}<{{ c['thinking'] }}{% if c.get('closed', true) %}>{% endif %}{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}{% endif %}{{ m.reasoning_content }}{% endfor %}";
    let text_only = CHUNKS.replace("'thinking'", "'other'");
    let tool = format!(
        "{{% if messages[1].role == 'tool' %}}{{{{ messages[1].content|string }}}}{{% else %}}{CHUNKS}{{% endif %}}"
    );
    let of_kind = "{% if messages[1].content is string %}text{% elif messages[1]['type'] == 'text' %}{% else %}list{% endif %}";
    let none = r#"{"role": "user", "content": []}"#;
    let said = r#"{"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}"#;
    let field = "{{ messages[1].reasoning_content }}|{{ messages[1].content }}";
    let texts =
        r#"{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}"#;
    let one = r#"{"role": "assistant", "content": [{"type": "text", "text": "a"}]}"#;
    let thinks = r#"{"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "closed": false}, {"type": "text", "text": "a"}]}"#;
    let beside = r#"{"role": "assistant", "content": "a", "reasoning_content": "t"}"#;
    let empty = r#"{"role": "assistant", "content": "a", "reasoning_content": ""}"#;
    let system = r#"{"role": "system", "content": [{"type": "thinking", "thinking": "t"}]}"#;
    for (template, message, expected) in [
        (CHUNKS, texts, Some("(a)(b)")),
        (CHUNKS, one, Some("a")),
        (CHUNKS, thinks, Some("<t(a)")),
        (CHUNKS, beside, Some("<t>(a)")),
        (CHUNKS, empty, Some("a")),
        (CHUNKS, system, Some("<t>")),
        (&text_only, texts, Some("(a)(b)")),
        (&text_only, beside, Some("at")),
        (field, beside, Some("t|a")),
        (field, thinks, Some("t|a")),
        (field, texts, Some("|a\nb")),
        (field, system, None),
        (of_kind, none, Some("list")),
        (of_kind, one, Some("text")),
        (&tool, said, Some("a\nb")),
        (CHUNKS, said, Some("(a)(b)")),
        (CHATML, thinks, None),
        (CHATML, beside, None),
        (CHATML, system, None),
    ] {
        match (render(template, &conversation(message)), expected) {
            (Ok(text), Some(expected)) => assert_eq!(text, expected, "{template}, {message}"),
            (Err(Error::Unsupported { found, .. }), None) => {
                assert!(found.contains("messages[1]"), "{found}")
            }
            (other, _) => panic!("{template}, {message}: {other:?}"),
        }
    }
    assert!(render(CHATML, &conversation(empty)).is_ok());
}

#[test]
fn inst() {
    assert_eq!(render(INST, HELLO).unwrap(), "<s>[INST] Hello [/INST]");
    let request =
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "secret"}]}"#;
    let error = render(INST, request).unwrap_err().to_string();
    assert!(error.contains("Conversation roles must alternate") && error.contains("line 1"), "{error}");
}

#[test]
fn llama3_with_tools() {
    let request = r#"{"messages": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Wetter in Köln?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "a", "type": "function", "function": {"name": "w", "arguments": "{\"ort\":\"Köln\",\"n\":[1,2.0]}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "22 <b>"}],
        "tools": [{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}]}"#;
    let expected = "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n{\n    \"type\": \"function\",\n    \"function\": {\n        \"name\": \"w\",\n        \"parameters\": {\n            \"type\": \"object\"\n        }\n    }\n}\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWetter in Köln?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n{\"name\": \"w\", \"parameters\": {\"ort\": \"Köln\", \"n\": [1, 2.0]}}<|eot_id|><|start_header_id|>ipython<|end_header_id|>\n\n22 <b><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
    assert_eq!(render(LLAMA3, request).unwrap(), expected);
    let request = ChatRequest::from_json(HELLO).unwrap();
    let template = ChatTemplate::compile(LLAMA3, &[("bos_token", "")]).unwrap();
    let options = RenderOptions { local_time: Some(1_709_210_096), no_generation_prompt: true };
    let text = template.render(&request, options).unwrap();
    assert!(text.contains("Today Date: 29 Feb 2024") && text.ends_with("Hello<|eot_id|>"), "{text}");
}

#[test]
fn python_dialect() {
    for (template, expected) in [
        ("{{ ' a b '.strip().split(' ')[1] }}", "b"),
        ("{{ 'abc'.startswith('a') }} {{ none }} {{ 'x'|upper }}", "True None X"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "013",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "1",
        ),
        (
            "{{ 'x'|int }} {{ ' 1_0 '|int }} {{ '2.9'|int }} {{ 'x'|int(7) }} {{ 'ff'|int(0, 16) }} {{ true|int }}",
            "0 10 2 7 255 1",
        ),
        ("{{ 'x'|float }} {{ '2.5'|float }} {{ 3|float }}", "0.0 2.5 3.0"),
        ("{{ {'b': 1, 'a': ['é', none, true]}|tojson }}", "{\"b\": 1, \"a\": [\"é\", null, true]}"),
        (
            "{{ {'b': 1, 'a': '<é>'}|tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}",
            "{\"a\":\"<\\u00e9>\",\"b\":1}",
        ),
        (
            "{% for m in messages %}\n    {%- generation %}\n{{ m.content }}{% endgeneration %}\n{% endfor %}",
            "Hello",
        ),
        ("{% macro f(x) %}<{{ x }}>{% endmacro %}{{ f('a') }}{{ messages[::-1][0]['role'] }}", "<a>user"),
        ("{{ messages[0].missing }}|{{ missing is defined }}", "|False"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ '%-3s|%05.1f|100%%'|format('e', 2.25) }}", "e  |002.2|100%"),
        (
            "{{ '{:é>4}|{:.2f}|{{}}'.format(7, 1.5) }} {{ '{0[a]}{1.b}{x}'.format({'a': 1}, {'b': 2}, x=3) }}",
            "ééé7|1.50|{} 123",
        ),
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
    ] {
        assert_eq!(render(template, HELLO).unwrap(), expected, "{template}");
    }
}

/// Lists that share their elements, sixty levels of them, in the blocks that bind a variable.
fn sharing(open: &str, close: &str) -> String {
    let end = if open.ends_with('[') { "]" } else { "" };
    let level = format!("{{% {open}[a, a]{end} %}}");
    level.repeat(60) + "{{ a ~ '' }}" + &close.repeat(60)
}

#[test]
fn stops_what_has_no_end() {
    let doubling = "{% set x = 'aaaaaaaa' %}".to_owned() + &"{% set x = x ~ x %}".repeat(60);
    let deep =
        "{% set ns = namespace(x=[]) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for template in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% for m in messages recursive %}{{ loop([m]) }}{% endfor %}",
        "{{ 'x' * 999999999 }}",
        "{% set y = 'y' * 99999 %}{{ y.replace('', y)|length }}",
        "{% set y = 'y,' * 9999 %}{{ y.split(',')|join(y)|length }}",
        "{{ 'x'|indent(999999999)|length }}{{ '%999999999d'|format(1) }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace(x=1) %}{% set ns.x = [ns] %}{{ ns ~ '' }}",
        "{% set a = namespace() %}{% set b = namespace(x=a) %}{% set a.x = b %}{{ a }}",
        "{% set ns = namespace(x=messages) %}{% for i in range(60000) %}{% set ns.x = ns.x[0:] %}{% endfor %}{{ ns.x }}",
        "{% macro f(x, n) %}{{ f([x, x, x, x, x, x, x, x], n) }}{% endmacro %}{{ f([1], 1) }}",
        "{% for x in [1] recursive %}{{ loop([[x, x, x, x, x, x, x, x]]) }}{{ x ~ '' }}{% endfor %}",
        "{% include 'chat_template' %}",
        "{% extends 'chat_template' %}",
        "{% set x %}{{ 'x' * 9999999 }}{% endset %}{{ [x, x, x, x, x, x, x, x] ~ '' }}",
        "{% for i in range(1000000000) %}x{% endfor %}",
        "{{ range(1000000000)|list|length }}",
        "{{ range(100000)|list * 99 }}",
        "{{ 'x'.center(999999999) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x'.zfill(999999999) }}",
        "{{ '{:99999999999}'.format(1) }}",
        "{{ '{:.99999999}'.format(1.5) }}",
        "{{ '{:é>99999999d}'.format(1) }}",
        "{% set x = 'x' * 99 %}{% set x = x * 99 %}{% set f = '{0}' * 99 %}{{ f.format(x)|length }}",
        "{% set x = 'x' * 99 %}{% set x = x * 99 %}{% set f = '%(x)s' * 99 %}{{ f|format({'x': x})|length }}",
        "{{ '%(é)s'|format({'é': 1}) }}",
        "{{ '{0[é]}'.format({'é': 1}) }}",
        "{{ 'a' ~ 'b' * 99 * 99 * 99 * 99 }}",
        "{% set x = [1] %}{% for i in range(60) %}{% set x = x + x %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro a() %}{{ b() }}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
        "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        "{% set ns = namespace(d={}) %}{% for i in range(60) %}{% set ns.d = dict(a=ns.d, b=ns.d) %}{% endfor %}{{ ns.d }}",
        "{% set x = range(9999)|join(',') %}{% for i in range(9999) %}{% set y = x.split(',') %}{% endfor %}",
        "{% set x = range(9999)|join(',') %}{{ x|replace(',', x)|length }}",
        "{% for i in range(9999) %}{{ messages|tojson(indent=9999) }}{% endfor %}",
        "{% for i in range(99999) %}{% set x = range(99999)|sort|unique|list %}{% endfor %}",
        &doubling,
        &sharing("with a = ", "{% endwith %}"),
        &sharing("for a in [", "{% endfor %}"),
        deep,
    ] {
        let result = render(template, HELLO).map(|text| text.len());
        let Err(error) = result else { panic!("{template}: {result:?}") };
        assert!(
            matches!(error, Error::Limit { .. } | Error::Argument { .. } | Error::Unsupported { .. }),
            "{template}: {error}"
        );
    }
    assert!(matches!(render(&"x".repeat(MAX_SOURCE + 1), HELLO), Err(Error::Limit { .. })));
    let nested = "{{ ".to_owned() + &"(".repeat(100_000) + "1" + &")".repeat(100_000) + " }}";
    assert!(matches!(render(&nested, HELLO), Err(Error::Limit { .. })));
}

#[test]
fn templates_of_mistral_tell_how_answers_are_read() {
    for (source, version) in [
        ("{{ '[TOOL_CALLS]' }}[", Some("v3")),
        ("[TOOL_CALLS][CALL_ID][ARGS]", Some("v11")),
        ("[TOOL_CALLS][ARGS]", Some("v13")),
        ("[THINK]", Some("v13")),
        ("<tool_call>", None),
    ] {
        let template = ChatTemplate::compile(source, &[]).unwrap();
        assert_eq!(template.answer_version().map(TokenizerVersion::as_str), version, "{source}");
    }
}

#[test]
fn refuses_and_explains() {
    for (template, part) in [
        ("{% if %}", "line 1"),
        ("\n{{ messages|nonsense }}", "nonsense"),
        ("{{ strftime_now('%Y') }}", "local_time"),
        ("{% include 'x' %}", "TemplateNotFound"),
        ("{{ raise_exception('no ' ~ messages[0].content) }}", "an exception about the conversation"),
        ("{{ messages[0].content.x.y }}", "UndefinedError"),
    ] {
        let error = render(template, HELLO).unwrap_err().to_string();
        assert!(error.contains(part) && !error.contains("Hello"), "{template}: {error}");
    }
    let error = render_at("{{ strftime_now('%-q') }}", HELLO, 0).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("line 1"), "{error}");
    assert_eq!(render_at("{{ strftime_now('%-d %B') }}", HELLO, 0).unwrap(), "1 January");
    let tools = r#"{"messages": [{"role": "user", "content": "x"}], "tools": [{"function": {"name": "f"}}]}"#;
    assert!(matches!(render(CHATML, tools), Err(Error::Unsupported { .. })));
    let effort = r#"{"messages": [{"role": "user", "content": "x"}], "reasoning_effort": "high"}"#;
    assert!(matches!(render(CHATML, effort), Err(Error::Unsupported { .. })));
    let image = r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}"#;
    assert!(matches!(render(CHATML, image), Err(Error::Unsupported { .. })));
}

/// Templates of random pieces: text or an error, in bounded time.
#[test]
fn any_template() {
    let pieces = [
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{% if m %}",
        "{% elif x %}",
        "{% else %}",
        "{% endif %}",
        "{% set x = ",
        "x",
        "[x, x]",
        " %}",
        "{{ ",
        " }}",
        "{% set ns.x = ",
        "{% set ns = namespace(x=1) %}",
        "ns",
        "ns.x",
        "~",
        "+",
        "|tojson",
        "|join",
        "|list",
        "{% macro f(a) %}",
        "{% endmacro %}",
        "f(x)",
        "messages",
        "range(9999)",
        "{% raw %}",
        "{% endraw %}",
        "{#",
        "#}",
        "'",
        "(",
        ")",
        "{%- ",
        " -%}",
        "é",
        "\n",
        "{% set y %}",
        "{% endset %}",
        "|length",
        "*",
        "100",
        "==",
    ];
    let request = ChatRequest::from_json(HELLO).unwrap();
    let mut state = 7u64;
    let mut rendered = 0;
    for round in 0..6000 {
        let mut source = String::new();
        for _ in 0..round % 30 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            source.push_str(pieces[(state >> 33) as usize % pieces.len()]);
        }
        let text =
            ChatTemplate::compile(&source, &[]).and_then(|t| t.render(&request, RenderOptions::default()));
        rendered += usize::from(text.is_ok());
    }
    assert!(rendered > 300, "{rendered}");
}
