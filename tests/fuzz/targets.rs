//! What is fuzzed: everything that comes from a host, a model file or a model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use mistral_core::chat::jinja::{ChatTemplate, RenderOptions};
use mistral_core::chat::request::{ChatRequest, CompletionRequest};
use mistral_core::chat::{Answer, AnswerEvent, AnswerParser, ChatFormat, ModelSettings, ValidationMode};
use mistral_core::constraint::{Constraint, ConstraintSpec, TokenTable};
use mistral_core::tokenizer::{Tokenizer, TokenizerVersion};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// Something that reads bytes.
pub struct Target {
    pub name: &'static str,
    /// Good inputs, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What its inputs are made of.
    pub words: &'static [&'static str],
    /// Reads an input; whether it was accepted. Panics where something is wrong.
    pub run: fn(&[u8]) -> bool,
    /// In a usual run of the tests.
    pub rounds: u64,
    /// Bytes that it may take, beyond 64 for each byte of the input.
    pub memory: usize,
}

/// What was wrong once, by the name of its target: read as it is, before the rounds.
pub const FOUND: [(&str, &str); 1] = [
    // 2 s and 187 MB, and twice the time for twice the length, while it was sought which byte such a text begins with.
    ("schema", r#"{"pattern": "\"\"", "maxLength": 65536}"#),
];

pub const TARGETS: [Target; 7] = [
    Target {
        name: "request",
        seeds: requests,
        words: REQUEST,
        run: read_request,
        rounds: 6000,
        memory: 4 << 20,
    },
    // All of a template's fuel as text is 32 MB; a buffer that grows to that is there twice for a moment, the new one up to twice as
    // large; 32 MB are for variables and output.
    Target {
        name: "template",
        seeds: templates,
        words: TEMPLATE,
        run: render,
        rounds: 12000,
        memory: 128 << 20,
    },
    // Lexer states of llguidance, each one to two kilobytes: see the limits of `constraint`.
    Target { name: "schema", seeds: schemas, words: SCHEMA, run: compile, rounds: 6000, memory: 128 << 20 },
    Target { name: "tekken", seeds: tekken, words: TEKKEN, run: load_tekken, rounds: 2000, memory: 8 << 20 },
    Target {
        name: "sentencepiece",
        seeds: sentencepiece,
        words: PIECES,
        run: load_sentencepiece,
        rounds: 3000,
        memory: 8 << 20,
    },
    Target {
        name: "huggingface",
        seeds: huggingface,
        words: HUGGING_FACE,
        run: load_huggingface,
        rounds: 1200,
        memory: 8 << 20,
    },
    Target {
        name: "answer",
        seeds: answers,
        words: ANSWER,
        run: read_answer,
        rounds: 40000,
        memory: 1 << 20,
    },
];

const REQUEST: &[&str] = &[
    "messages",
    "role",
    "content",
    "user",
    "assistant",
    "system",
    "tool",
    "tool_calls",
    "tool_call_id",
    "prefix",
    "tools",
    "function",
    "arguments",
    "parameters",
    "name",
    "type",
    "text",
    "thinking",
    "tool_choice",
    "response_format",
    "json_schema",
    "schema",
    "stop",
    "n",
    "logit_bias",
    "temperature",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "null",
    "true",
    "1e400",
    "-0",
    "\\ud800",
    "\\u0000",
    "é",
    "[INST]",
    "</s>",
    "▁",
    " ",
    "prompt",
    "suffix",
    "{\"a\": 1}",
    "123456789",
];

const TEMPLATE: &[&str] = &[
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
    "ns.x",
    "~",
    "+",
    "*",
    "|tojson",
    "|join",
    "|list",
    "|sort",
    "|unique",
    "|map('upper')",
    "|batch(3)",
    "|indent(9)",
    "|replace('a', x)",
    ".replace('', x)",
    ".split('')",
    "|reverse",
    "|items",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "f(x)",
    "messages",
    "range(9999)",
    "range(999999999)",
    "{% raw %}",
    "{% endraw %}",
    "{#",
    "#}",
    "'",
    "'aaaaaaaa'",
    "(",
    ")",
    "{%- ",
    " -%}",
    "é",
    "\n",
    "{% set y %}",
    "{% endset %}",
    "|length",
    "99",
    "==",
    "loop(x)",
    " recursive",
    "x[::-1]",
    "{% with a = [x, x] %}",
    "{% endwith %}",
    "dict(a=x)",
    "{'a': x}",
    "|string",
    "{% call f(x) %}",
    "{% endcall %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "cycler(x)",
    "joiner(x)",
    "|format(x)",
    "'%99999d'",
    "not ",
    " in ",
    " if ",
    " else ",
    "|tojson(indent=99)",
];

const SCHEMA: &[&str] = &[
    "type",
    "object",
    "array",
    "string",
    "integer",
    "number",
    "properties",
    "required",
    "items",
    "anyOf",
    "oneOf",
    "allOf",
    "not",
    "$ref",
    "#",
    "#/$defs/a",
    "$defs",
    "enum",
    "const",
    "pattern",
    "^[a-z]{1,9}$",
    "((a*)*)*",
    "(a|b|c){99}",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minimum",
    "maximum",
    "multipleOf",
    "additionalProperties",
    "patternProperties",
    "format",
    "date-time",
    "uuid",
    "uniqueItems",
    "prefixItems",
    "a",
    "é",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "1",
    "99999",
    "0.1",
    "true",
    "null",
];

const TEKKEN: &[&str] = &[
    "config",
    "pattern",
    "vocab",
    "rank",
    "token_bytes",
    "token_str",
    "special_tokens",
    "default_vocab_size",
    "default_num_special_tokens",
    "version",
    "v3",
    "v13",
    "v15",
    "model_settings_builder",
    "reasoning_effort",
    "image",
    "audio",
    "[^a]+|\\s+(?!\\S)|\\s+",
    "(a*)*",
    ".{1,999}",
    "AA==",
    "YQ==",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "1",
    "256",
    "4194304",
    "18446744073709551615",
    "null",
    "<s>",
];

const PIECES: &[&str] = &[
    "\n\u{b}\n\u{4}abcd\u{15}\0\0\0\0",
    "\n",
    "\u{12}",
    "\u{1a}",
    "\u{8}",
    "\u{18}",
    "\u{15}",
    "\0",
    "\u{7f}",
    "▁",
    "▁a",
    "<0x0A>",
    "<s>",
    "[INST]",
    "\u{ff}",
    "aa",
];

const HUGGING_FACE: &[&str] = &[
    "model",
    "vocab",
    "merges",
    "added_tokens",
    "id",
    "content",
    "special",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "type",
    "BPE",
    "Sequence",
    "ByteLevel",
    "Metaspace",
    "Split",
    "pattern",
    "Regex",
    "String",
    "(a*)*",
    "\\s+(?!\\S)",
    "behavior",
    "Isolated",
    "Replace",
    "Prepend",
    "Digits",
    "Punctuation",
    "unk_token",
    "byte_fallback",
    "▁",
    "a b",
    "Ġ",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "0",
    "4294967295",
    "null",
    "true",
];

const ANSWER: &[&str] = &[
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "[THINK]",
    "[/THINK]",
    "</s>",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ",",
    ":",
    "\"name\"",
    "\"arguments\"",
    "\"id\"",
    " ",
    "é",
    "f",
    "1",
    "{}",
    "\"x\"",
    "[{\"name\": \"f\", \"arguments\": {",
    "\n",
    "\\u00e9",
    "null",
];

pub fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn owned(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

fn requests() -> Vec<Vec<u8>> {
    let corpus = String::from_utf8(fixture("chat/corpus.jsonl")).expect("it is UTF-8");
    let request =
        |line| serde_json::from_str::<Value>(line).expect("it is JSON")["request"].to_string().into_bytes();
    corpus.lines().step_by(7).map(request).collect()
}

static TOKENIZER: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_tekken(&tekken()[0], "tekken.json").expect("a tokenizer"));

/// As one of the formats, or as a template: which is said by the length of the input, so that a change of its structure keeps it JSON.
fn read_request(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    if let Ok(request) = CompletionRequest::from_json(&text) {
        let prompt =
            ChatFormat::new(TokenizerVersion::V3).completion(&request).expect("every text can be completed");
        return prompt.to_tokens(&TOKENIZER).is_ok();
    }
    let Ok(request) = ChatRequest::from_json(&text) else { return false };
    let formats = TokenizerVersion::ALL.len() + 1;
    let Some(version) = TokenizerVersion::ALL.get(input.len() % formats) else {
        let template = ChatTemplate::compile(CHATML, &[]).expect("a template");
        return template.render(&request, RenderOptions::default()).is_ok();
    };
    let mode = if (input.len() / formats).is_multiple_of(2) {
        ValidationMode::Test
    } else {
        ValidationMode::Agnostic
    };
    let format = ChatFormat::new(*version).with_mode(mode).with_settings(ModelSettings::default());
    let Ok(prompt) = format.prompt(&request) else { return false };
    AnswerParser::new(Some(*version), 1).resume(prompt.prefix());
    prompt.to_tokens(&TOKENIZER).is_ok()
}

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

fn templates() -> Vec<Vec<u8>> {
    owned(&[
        CHATML,
        "{% macro f(x) %}{{ x|upper }}{% endmacro %}{% for m in messages recursive %}{{ f(m.content) }}{{ loop(m.parts) }}{% endfor %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{{ ns.n ~ m.content }}{% endfor %}",
        "{%- if tools %}{{ tools|tojson(indent=2) }}{% endif %}{% for k, v in {'a': 1}|items %}{{ k }}{{ v }}{% endfor %}",
        "{% set x = 'ab' * 50 %}{% set x = x ~ x %}{{ x.split('b')|join(x)|length }}{{ [x, x]|tojson }}",
        "{{ '%(a)s %5.2f %%'|format({'a': 'é'}) }}{{ '%s %-9d'|format('a', 7) }}{{ '{:é>9} {0[a]} {x:.3f}'.format('b', x=1.5) }}",
        "{% with a = [1, 2] %}{% for b in a[::-1] %}{{ b }}{% endfor %}{% endwith %}{{ messages|map(attribute='role')|join(',') }}",
    ])
}

fn render(input: &[u8]) -> bool {
    let request = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}, {\"role\": \"assistant\", \"content\": \"a b\"}, {\"role\": \"user\", \"content\": \"x\"}]}";
    let request = ChatRequest::from_json(request).expect("a request");
    let template = ChatTemplate::compile(&String::from_utf8_lossy(input), &[("bos_token", "<s>")]);
    template.and_then(|template| template.render(&request, RenderOptions::default())).is_ok()
}

fn schemas() -> Vec<Vec<u8>> {
    let schemas = [
        json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "^[a-z]+$"}, "n": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"]}),
        json!({"type": "array", "items": {"anyOf": [{"type": "null"}, {"enum": ["x", 1, true]}]}, "minItems": 1, "maxItems": 5}),
        json!({"$defs": {"a": {"type": "object", "properties": {"next": {"$ref": "#/$defs/a"}}}}, "$ref": "#/$defs/a"}),
        json!({"allOf": [{"type": "number"}, {"minimum": 0.5}], "multipleOf": 0.5}),
        json!({"type": "string", "format": "date-time", "minLength": 2, "maxLength": 40}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}, "patternProperties": {"^x": {"const": null}}}),
    ];
    schemas.iter().map(|schema| schema.to_string().into_bytes()).collect()
}

static TABLE: LazyLock<Arc<TokenTable>> = LazyLock::new(|| {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    tokens.extend([b"{\"".to_vec(), b"\": ".to_vec(), b"\"}".to_vec(), b"ab".to_vec(), Vec::new()]);
    Arc::new(TokenTable::new(tokens, &[260]).expect("a vocabulary"))
});

/// Compiles a schema and follows it for some tokens.
fn compile(input: &[u8]) -> bool {
    let Ok(schema) = serde_json::from_slice::<Value>(input) else { return false };
    let Ok(constraint) = Constraint::new(&TABLE, &ConstraintSpec::JsonSchema(schema)) else { return false };
    let mut state = constraint.start();
    for step in 0..12 {
        let Ok(Some(mask)) = state.mask() else { break };
        let allowed: Vec<u32> = (0..261).filter(|t| mask[*t as usize / 32] >> (t % 32) & 1 == 1).collect();
        assert!(!allowed.is_empty() || state.is_complete(), "nothing may follow");
        let Some(token) = allowed.get((input.len() + step) % allowed.len().max(1)) else { break };
        if state.accept(*token).is_err() {
            break;
        }
    }
    true
}

const SPECIALS: [&str; 22] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
    "[ARGS]",
    "[CALL_ID]",
    "[THINK]",
    "[/THINK]",
    "[MODEL_SETTINGS]",
    "[/MODEL_SETTINGS]",
    "[SUFFIX]",
    "[PREFIX]",
    "<pad>",
];

/// The bytes, a few merges, and the control tokens of every format.
fn tekken() -> Vec<Vec<u8>> {
    use base64::Engine as _;
    let merges = ["he", "ll", "hell", "hello", " h", "é", "  ", "\n\n", "12"];
    let bytes = (0..=255).map(|byte| vec![byte]).chain(merges.iter().map(|text| text.as_bytes().to_vec()));
    let token = |(rank, bytes): (usize, Vec<u8>)| json!({"rank": rank, "token_bytes": base64::engine::general_purpose::STANDARD.encode(bytes), "token_str": null});
    let vocab: Vec<Value> = bytes.enumerate().map(token).collect();
    let specials: Vec<Value> = SPECIALS
        .iter()
        .enumerate()
        .map(|(rank, name)| json!({"rank": rank, "token_str": name, "is_control": true}))
        .collect();
    let config = json!({"pattern": "\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "num_vocab_tokens": vocab.len(),
        "default_vocab_size": vocab.len() + 30, "default_num_special_tokens": 30, "version": "v15"});
    let effort = json!({"type": "enum", "values": ["none", "high"], "accepts_none": true, "default": "none"});
    let file = json!({"config": config, "special_tokens": specials, "model_settings_builder": {"reasoning_effort": effort}, "vocab": vocab});
    vec![file.to_string().into_bytes()]
}

fn sentencepiece() -> Vec<Vec<u8>> {
    vec![fixture("tokenizer/small.model.v3")]
}

fn huggingface() -> Vec<Vec<u8>> {
    ["llama3", "metaspace_first", "metaspace_split", "prefix_space", "prepend", "smollm"]
        .map(|name| fixture(&format!("tokenizer/small.{name}.tokenizer.json")))
        .to_vec()
}

fn load_tekken(input: &[u8]) -> bool {
    use_tokenizer(Tokenizer::from_tekken(input, "tekken.json"))
}

fn load_sentencepiece(input: &[u8]) -> bool {
    use_tokenizer(Tokenizer::from_sentencepiece(input, "tokenizer.model.v3"))
}

fn load_huggingface(input: &[u8]) -> bool {
    use_tokenizer(Tokenizer::from_hf(input, None, "tokenizer.json"))
}

/// Whatever a file says, its tokenizer encodes every text into tokens that exist.
fn use_tokenizer(tokenizer: mistral_core::Result<Tokenizer>) -> bool {
    let Ok(tokenizer) = tokenizer else { return false };
    for text in [
        "hello  world\n\n12345 é▁🤖",
        "<s>[INST] a</s>",
        "",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ] {
        for tokens in [tokenizer.encode(text), tokenizer.encode_with_special(text)] {
            tokenizer.decode(&tokens, false).expect("tokens of it");
            tokenizer.decode(&tokens, true).expect("tokens of it");
        }
    }
    let format = ChatFormat::of(&tokenizer, Some(TokenizerVersion::V3));
    let request = ChatRequest::from_json("{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}]}")
        .expect("a request");
    if let Ok(prompt) = format.and_then(|format| format.prompt(&request)) {
        drop((prompt.to_tokens(&tokenizer), prompt.to_text(&tokenizer)));
    }
    true
}

fn answers() -> Vec<Vec<u8>> {
    owned(&[
        "Hi.[TOOL_CALLS]f[ARGS]{\"a\": [1, \"]}\"]}[TOOL_CALLS]g[ARGS]{}</s>",
        "[THINK]Hm.[/THINK]Yes.",
        "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"id\": \"abcdefgh1\"}, {\"name\": \"g\", \"arguments\": {}}]\n",
        "[TOOL_CALLS]f[CALL_ID]abcdefgh1[ARGS]{\"x\": \"\\u00e9\"}",
    ])
}

/// Reads an answer whole, and its pieces as they may come; both must say the same. Of which version it is, is said by its length.
fn read_answer(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let version = TokenizerVersion::ALL.get(input.len() % (TokenizerVersion::ALL.len() + 1)).copied();
    let whole = in_pieces(version, &text, usize::MAX);
    assert_eq!(in_pieces(version, &text, 1), whole);
    assert_eq!(in_pieces(version, &text, 5), whole);
    for call in AnswerParser::new(version, 1).read_rendered(&text).calls {
        // By its grammar: a number may be larger than any type that a host reads it into.
        serde_json::from_str::<BTreeMap<String, IgnoredAny>>(&call.arguments)
            .expect("arguments are an object");
    }
    let tokens: Vec<u32> =
        input.iter().map(|byte| u32::from(*byte) % TOKENIZER.vocab_size() as u32).collect();
    AnswerParser::new(Some(TokenizerVersion::V15), 1)
        .read_tokens(&TOKENIZER, &tokens)
        .expect("these tokens exist");
    !whole.calls.is_empty()
}

fn in_pieces(version: Option<TokenizerVersion>, text: &str, size: usize) -> Answer {
    let mut parser = AnswerParser::new(version, 1);
    let mut arguments = 0;
    let mut rest = text;
    while !rest.is_empty() {
        let (until, marker) = ANSWER[..6]
            .iter()
            .filter_map(|marker| rest.find(marker).map(|at| (at, *marker)))
            .min()
            .unwrap_or((rest.len(), ""));
        let (mut said, next) = rest.split_at(until);
        while !said.is_empty() {
            let (piece, left) = said.split_at(said.ceil_char_boundary(size.min(said.len())));
            arguments += argument_bytes(&parser.text(piece));
            said = left;
        }
        if !marker.is_empty() {
            arguments += argument_bytes(&parser.control(marker));
        }
        rest = &next[marker.len()..];
    }
    let (events, answer) = parser.finish();
    arguments += argument_bytes(&events);
    let read: usize = answer.calls.iter().map(|call| call.arguments.len()).sum();
    assert!(arguments >= read, "the arguments of calls were streamed");
    answer
}

fn argument_bytes(events: &[AnswerEvent]) -> usize {
    let bytes = |event: &AnswerEvent| match event {
        AnswerEvent::Arguments { text, .. } => text.len(),
        _ => 0,
    };
    events.iter().map(bytes).sum()
}
