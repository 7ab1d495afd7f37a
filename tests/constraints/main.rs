//! Output under a constraint, on tiny random models with every kind of tokenizer: whatever the weights and the seed, the answer obeys or was
//! cut off.

mod chat;
mod suite;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::testing::{self, TempFolder, write_random_gguf};
use mistral_core::tokenizer::{Tokenizer, TokenizerVersion};
use mistral_core::{
    ConstraintSpec, Control, Error, Event, FinishReason, GenerateOptions, Model, ModelOptions, SessionOptions,
};
use regex_automata::meta::Regex;
use serde_json::{Value, json};
use support::fixture;

/// The tokenizers: a file among the fixtures, and the name under which a model carries it.
const TOKENIZERS: [(&str, &str); 8] = [
    ("chat/tokenizer.model.v1", "tokenizer.model.v1"),
    ("chat/tokenizer.model.v7", "tokenizer.model.v7"),
    ("tokenizer/small.tekken.json", "tekken.json"),
    ("tokenizer/small.smollm.tokenizer.json", "tokenizer.json"),
    ("tokenizer/small.llama3.tokenizer.json", "tokenizer.json"),
    ("tokenizer/small.metaspace_first.tokenizer.json", "tokenizer.json"),
    ("tokenizer/small.prepend.tokenizer.json", "tokenizer.json"),
    ("tokenizer/small.prefix_space.tokenizer.json", "tokenizer.json"),
];

fn tiny(vocab_size: usize) -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        dim: 16,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 8,
        hidden_dim: 16,
        vocab_size,
        norm_eps: 1e-5,
        max_context: 4096,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 1],
    }
}

fn temp() -> TempFolder {
    TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

fn open(path: &Path, version: Option<TokenizerVersion>) -> Arc<Model> {
    let options = ModelOptions { threads: Some(1), tokenizer_version: version, ..ModelOptions::default() };
    Model::open(path, &options, &mut Control::none()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A random model with the tokenizer of a file; some rows of its output layer have no token.
fn model(file: &Path, name: &str, version: Option<TokenizerVersion>) -> Arc<Model> {
    let folder = temp();
    let tokenizer = Tokenizer::open(file).unwrap();
    let config = tiny(tokenizer.vocab_size() + 5);
    let random = testing::Model::random(&config, Format::F32, 1);
    std::fs::copy(file, folder.path().join(name)).unwrap();
    if name == "tokenizer.json" {
        random.write_hugging_face(folder.path()).unwrap();
        let mut config = testing::config_json(&config);
        config["eos_token_id"] = json!(tokenizer.eos().unwrap_or(2));
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    } else {
        random.write_native(folder.path()).unwrap();
    }
    open(folder.path(), version)
}

fn all_models() -> Vec<(String, Arc<Model>)> {
    let mut all: Vec<_> = TOKENIZERS
        .iter()
        .map(|(file, name)| ((*file).to_owned(), model(&fixture(file), name, None)))
        .collect();
    let folder = temp();
    let path = folder.path().join("bytes.gguf");
    write_random_gguf(&path, &tiny(300), Format::F32, 1).unwrap();
    all.push(("GGUF".to_owned(), open(&path, None)));
    all
}

fn sampled(temperature: f32, seed: u64) -> SamplingParams {
    SamplingParams {
        temperature,
        seed,
        logprobs: Some(1),
        frequency_penalty: 0.5,
        ..SamplingParams::default()
    }
}

const PROMPT: [u32; 3] = [1, 5, 7];

fn generate(model: &Arc<Model>, options: &GenerateOptions) -> Result<Vec<Event>, Error> {
    let mut session = model.session(&SessionOptions { context: Some(512), ..SessionOptions::default() })?;
    let mut control = Control::none();
    let mut generation = session.generate(&PROMPT, options, &mut control)?;
    std::iter::from_fn(|| generation.next(&mut control)).collect()
}

fn text(events: &[Event]) -> String {
    events.iter().map(|event| event.text.as_str()).collect()
}

fn finish(events: &[Event]) -> FinishReason {
    events.last().unwrap().finish_reason.unwrap()
}

/// Whether a whole text obeys, by other means than those that made it.
type Check = Box<dyn Fn(&str) -> bool>;

fn matches(pattern: &str) -> Check {
    let regex = Regex::new(&format!("^(?:{pattern})$")).unwrap();
    Box::new(move |text| regex.is_match(text))
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 4},
            "kind": {"enum": ["猫", " dog", null]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
        },
        "required": ["name", "kind", "tags"],
        "additionalProperties": false,
    })
}

fn obeys_the_schema(text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return false };
    let Value::Object(object) = &value else { return false };
    let name = object.get("name").and_then(Value::as_str).is_some_and(|name| name.chars().count() <= 4);
    let kind = object.get("kind").is_some_and(|kind| kind.is_null() || kind == "猫" || kind == " dog");
    let tags = object.get("tags").and_then(Value::as_array);
    object.len() == 3
        && name
        && kind
        && tags.is_some_and(|tags| tags.len() <= 2 && tags.iter().all(Value::is_boolean))
}

/// The constraints of the matrix. Texts that begin with a space are what tokenizers with a space before the text could get wrong.
fn constraints() -> Vec<(ConstraintSpec, Check)> {
    let regexes = [" a[bc]{1,3}", "( ?é|猫 ?){2,4}", r"-?\d{1,3}(\.\d{2})?", "  ?x", "[^a]{1,6}"];
    let mut all: Vec<(ConstraintSpec, Check)> =
        regexes.iter().map(|regex| (ConstraintSpec::Regex((*regex).to_owned()), matches(regex))).collect();
    all.push((ConstraintSpec::JsonSchema(schema()), Box::new(obeys_the_schema)));
    let lark = "start: \"(\" start? \")\" | WORD\nWORD: /[a-z]{1,4}/".to_owned();
    let balanced = |text: &str| {
        let depth = text.bytes().take_while(|b| *b == b'(').count();
        let inner = &text[depth..];
        let word = inner.trim_end_matches(')');
        inner.len() - word.len() == depth
            && word.len() <= 4
            && word.bytes().all(|b| b.is_ascii_lowercase())
            && !(word.is_empty() && depth == 0)
    };
    all.push((ConstraintSpec::Lark(lark), Box::new(balanced)));
    let object = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    all.push((ConstraintSpec::JsonObject, Box::new(object)));
    all
}

/// Each tokenizer, each constraint, greedy and hot: a whole answer obeys, and the stream is what the tokens say.
#[test]
fn every_answer_obeys_or_is_cut_off() {
    let constraints = constraints();
    for (name, model) in all_models() {
        let tokenizer = model.tokenizer().unwrap();
        let mut whole = 0;
        for (spec, check) in &constraints {
            for (seed, temperature) in [(0, 0.0), (1, 1.0), (2, 3.0), (3, 30.0)] {
                let options = GenerateOptions {
                    sampling: sampled(temperature, seed),
                    max_tokens: Some(40),
                    constraint: Some(spec.clone()),
                    ignore_eos: seed == 1,
                    ..GenerateOptions::default()
                };
                let events = generate(&model, &options).unwrap_or_else(|e| panic!("{name} {spec:?}: {e}"));
                let text = text(&events);
                let mut tokens: Vec<u32> = events.iter().map(|event| event.token).collect();
                tokens.retain(|token| !model.eos_token_ids().contains(token));
                // The answer goes on from the text of the prompt.
                let decode = |tokens: &[u32]| tokenizer.decode(tokens, true).unwrap();
                assert_eq!(decode(&[&PROMPT[..], &tokens[..]].concat()), decode(&PROMPT) + &text, "{name}");
                assert!(events.iter().all(|event| event.logprob.is_some_and(|p| p <= 0.0)));
                match finish(&events) {
                    FinishReason::Stop => {
                        assert!(check(&text), "{name} {spec:?} {temperature}: {text:?}");
                        whole += 1;
                    }
                    reason => assert_eq!((reason, events.len()), (FinishReason::Length, 40), "{name}"),
                }
            }
        }
        // Those of the regular expressions must end.
        assert!(whole >= 20, "{name}: {whole} of {} answers came to an end", constraints.len() * 4);
    }
}

#[test]
fn stop_texts_and_tokens_end_an_answer_in_the_middle() {
    let model = model(&fixture("tokenizer/small.tekken.json"), "tekken.json", None);
    let options = GenerateOptions {
        stop: vec!["42".to_owned()],
        constraint: Some(ConstraintSpec::Regex("(a42)+b".to_owned())),
        ..GenerateOptions::default()
    };
    let events = generate(&model, &options).unwrap();
    assert_eq!((text(&events).as_str(), finish(&events)), ("a", FinishReason::Stop));
    let two = model.tokenizer().unwrap().encode("2");
    let options = GenerateOptions { stop: vec![], stop_tokens: two.clone(), ..options };
    let events = generate(&model, &options).unwrap();
    assert_eq!((events.last().unwrap().token, finish(&events)), (two[0], FinishReason::Stop));
}

/// A constraint that is whole ends the answer at once, and `ignore_eos` does not leave it early.
#[test]
fn the_end_of_the_constraint_is_the_end_of_the_answer() {
    let model = model(&fixture("tokenizer/small.tekken.json"), "tekken.json", None);
    let of = |regex: &str, ignore_eos| {
        let constraint = Some(ConstraintSpec::Regex(regex.to_owned()));
        let bias = vec![(2, 100.0)];
        let sampling = SamplingParams { logit_bias: bias, ..SamplingParams::greedy() };
        generate(&model, &GenerateOptions { constraint, ignore_eos, sampling, ..GenerateOptions::default() })
            .unwrap()
    };
    let whole = of("abc", false);
    assert_eq!((text(&whole).as_str(), finish(&whole)), ("abc", FinishReason::Stop));
    assert!(whole.iter().all(|event| event.token != 2), "the last event is the last of the text");
    assert_eq!(text(&of("a{1,50}", false)), "a");
    assert_eq!(text(&of("a{1,50}", true)), "a".repeat(50));
}

#[test]
fn what_cannot_be_honoured_is_refused_before_anything_is_evaluated() {
    let model = model(&fixture("tokenizer/small.tekken.json"), "tekken.json", None);
    let mut deep = json!({"type": "null"});
    for _ in 0..300 {
        deep = json!({"items": deep});
    }
    let large: Vec<String> = (0..60_000).map(|i| format!("value number {i}")).collect();
    let lark = |text: &str| ConstraintSpec::Lark(text.to_owned());
    let regex = |text: &str| ConstraintSpec::Regex(text.to_owned());
    for (spec, name, unsupported) in [
        (ConstraintSpec::JsonSchema(json!({"not": {}})), "json_schema", true),
        (
            ConstraintSpec::JsonSchema(json!({"type": "integer", "minimum": 2, "maximum": 1})),
            "json_schema",
            false,
        ),
        (ConstraintSpec::JsonSchema(deep), "json_schema", false),
        (ConstraintSpec::JsonSchema(json!({"enum": large})), "json_schema", false),
        (regex(&"(".repeat(30_000)), "regex", false),
        (regex(r"(?=a)b"), "regex", false),
        (lark("start: start"), "grammar", false),
        (lark("start: nothing"), "grammar", false),
        (lark(&format!("start: {}\"a\"{}", "(".repeat(100_000), ")".repeat(100_000))), "grammar", false),
    ] {
        let mut session = model.session(&SessionOptions::default()).unwrap();
        let shown: String = format!("{spec:?}").chars().take(80).collect();
        let options = GenerateOptions { constraint: Some(spec), ..GenerateOptions::default() };
        let start = Instant::now();
        let Err(error) = session.generate(&[1, 2], &options, &mut Control::none()).map(drop) else {
            panic!("accepted {shown}")
        };
        // Not a measurement: a minute is a hang.
        assert!(start.elapsed().as_secs() < 60, "{shown}");
        let kind = matches!(error, Error::Unsupported { .. });
        assert!(
            kind == unsupported && (kind || matches!(error, Error::Argument { .. } | Error::Limit { .. }))
        );
        assert!(error.to_string().contains(name), "{shown}: {error}");
        assert!(session.tokens().is_empty(), "{shown}");
    }
}

/// Expressions and grammars that make naive matchers work without end: an answer, or a limit.
#[test]
fn heavy_constraints_end_soon() {
    let model = model(&fixture("tokenizer/small.tekken.json"), "tekken.json", None);
    let regexes = [
        "(a|aa)+b",
        "(.*a.{30}){4}",
        "(x+x+)+y",
        "(a*)*(b*)*c",
        "(((a{1,1000}){1,1000}){1,1000}){1,1000}",
        "(?s:.*)",
    ];
    let lark = ["start: e\ne: e e | \"a\" | e e e", "start: x\nx: \"a\" x \"a\" | \"a\""];
    let long = ["(a?){50}".repeat(1500), "[a-z]{0,50}[0-9]{0,50}".repeat(500)];
    let regexes = regexes.map(str::to_owned).into_iter().chain(long).map(ConstraintSpec::Regex);
    for spec in regexes.chain(lark.iter().map(|text| ConstraintSpec::Lark((*text).to_owned()))) {
        let options = GenerateOptions {
            sampling: sampled(1.0, 5),
            max_tokens: Some(200),
            constraint: Some(spec.clone()),
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        let start = Instant::now();
        let shown: String = format!("{spec:?}").chars().take(80).collect();
        match generate(&model, &options) {
            Ok(events) => assert!(matches!(finish(&events), FinishReason::Stop | FinishReason::Length)),
            Err(error) => {
                assert!(matches!(error, Error::Limit { .. } | Error::Argument { .. }), "{shown}: {error}")
            }
        }
        assert!(start.elapsed().as_secs() < 60, "{shown}");
    }
}

#[test]
fn a_prefix_belongs_to_the_answer() {
    for (file, name) in [TOKENIZERS[1], TOKENIZERS[2]] {
        let model = model(&fixture(file), name, None);
        let of = |text: &str| {
            let options = GenerateOptions {
                constraint: Some(ConstraintSpec::Regex("ab cd ef".to_owned())),
                constraint_prefix: model.tokenizer().unwrap().encode(text),
                ..GenerateOptions::default()
            };
            generate(&model, &options).map(|events| self::text(&events))
        };
        assert_eq!(of("ab c").unwrap(), "d ef", "{name}");
        assert!(of("ab x").unwrap_err().to_string().contains("constraint_prefix"), "{name}");
        assert!(of("ab cd ef").unwrap_err().to_string().contains("constraint_prefix"), "{name}");
    }
}
