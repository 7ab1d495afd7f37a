use serde_json::{Value, json};

use super::*;

const EOS: u32 = 256;
const CONTROL: u32 = 257;

/// A vocabulary of all bytes, an end, a control token and some longer tokens, among them halves of characters.
fn table() -> Arc<TokenTable> {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.extend([vec![], vec![]]);
    let longer: [&[u8]; 9] =
        [b"{\"", b"\":", b"true", b"null", b"abc", b"\":\"", b"12", b"\xe7\x8c", b"a\xe7"];
    tokens.extend(longer.map(<[u8]>::to_vec));
    Arc::new(TokenTable::new(tokens, &[EOS]).unwrap())
}

fn allowed(state: &mut ConstraintState) -> Vec<u32> {
    let mask = state.mask().unwrap().expect("a mask").to_vec();
    (0..state.table.vocab_size() as u32)
        .filter(|&token| mask[token as usize / 32] >> (token % 32) & 1 == 1)
        .collect()
}

fn feed(state: &mut ConstraintState, text: &str) -> Result<()> {
    text.bytes().try_for_each(|byte| state.accept(u32::from(byte)))
}

/// Whether the constraint takes this text, whole.
fn takes(constraint: &Constraint, text: &str) -> bool {
    let mut state = constraint.start();
    feed(&mut state, text).is_ok() && state.may_stop()
}

fn regex(table: &Arc<TokenTable>, regex: &str) -> Result<Constraint> {
    Constraint::new(table, &ConstraintSpec::Regex(regex.to_owned()))
}

fn lark(table: &Arc<TokenTable>, grammar: &str) -> Result<Constraint> {
    Constraint::new(table, &ConstraintSpec::Lark(grammar.to_owned()))
}

fn json_schema(table: &Arc<TokenTable>, schema: &Value) -> Result<Constraint> {
    Constraint::new(table, &ConstraintSpec::JsonSchema(schema.clone()))
}

fn schema(schema: Value) -> Result<Constraint> {
    json_schema(&table(), &schema)
}

/// Answers of randomly chosen allowed tokens; the end as soon as it is allowed and a coin says so.
fn random_answer(constraint: &Constraint, table: &TokenTable, seed: u64) -> Option<Vec<u8>> {
    let mut random = seed;
    let mut state = constraint.start();
    let mut text = Vec::new();
    for _ in 0..400 {
        let choices = allowed(&mut state);
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut token = choices[(random >> 33) as usize % choices.len()];
        if choices.contains(&EOS) && random & (1 << 32) != 0 {
            token = EOS;
        }
        state.accept(token).unwrap();
        if token == EOS {
            return Some(text);
        }
        text.extend(table.factory.tok_env().tok_trie().token(token));
    }
    None
}

#[test]
fn random_answers_obey_the_schema() {
    let table = table();
    let shape = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "kind": {"enum": ["猫", "dog", null]},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        },
        "required": ["name", "age", "kind", "tags"],
        "additionalProperties": false,
    });
    let constraint = json_schema(&table, &shape).unwrap();
    let mut finished = 0;
    for seed in 0..200 {
        let Some(text) = random_answer(&constraint, &table, seed) else { continue };
        let value: Value = serde_json::from_slice(&text).unwrap();
        let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["name", "age", "kind", "tags"]);
        assert!(value["name"].as_str().unwrap().chars().count() <= 5);
        assert!((0..=120).contains(&value["age"].as_i64().unwrap()));
        assert!(["猫", "dog"].map(|kind| json!(kind)).contains(&value["kind"]) || value["kind"].is_null());
        let tags = value["tags"].as_array().unwrap();
        assert!(tags.len() <= 3 && tags.iter().all(Value::is_boolean));
        finished += 1;
    }
    assert!(finished > 20, "{finished} answers came to an end");
}

#[test]
fn any_object_is_an_object() {
    let constraint = Constraint::new(&table(), &ConstraintSpec::JsonObject).unwrap();
    assert!(takes(&constraint, r#"{}"#));
    assert!(takes(&constraint, r#"{ "a": [1, {"b": null}], "c": "é\n" }"#));
    for wrong in ["[]", "1", "{\"a\":}", "{", "x", "{}{}"] {
        assert!(!takes(&constraint, wrong), "{wrong}");
    }
}

#[test]
fn whitespace_has_an_end() {
    let constraint = Constraint::new(&table(), &ConstraintSpec::JsonObject).unwrap();
    assert!(takes(&constraint, &format!("{{{}}}", " ".repeat(64))));
    assert!(!takes(&constraint, &format!("{{{}}}", " ".repeat(65))));
}

#[test]
fn a_regex_matches_as_a_whole() {
    let constraint = regex(&table(), r"[a-c]{2,3}/é\d").unwrap();
    assert!(takes(&constraint, "ab/é7"));
    assert!(takes(&constraint, "abc/é7"));
    assert!(!takes(&constraint, "a/é7"));
    assert!(!takes(&constraint, "ab/é77"));
}

#[test]
fn a_grammar_can_ask_for_control_tokens() {
    let table = table();
    let constraint = lark(&table, &format!("start: <[{CONTROL}]> \"ok\"+")).unwrap();
    let mut state = constraint.start();
    assert_eq!(allowed(&mut state), [CONTROL]);
    state.accept(CONTROL).unwrap();
    feed(&mut state, "okok").unwrap();
    assert!(state.may_stop() && !state.is_complete());
    let json = Constraint::new(&table, &ConstraintSpec::JsonObject).unwrap();
    assert!(!allowed(&mut json.start()).contains(&CONTROL));
}

#[test]
fn tokens_may_end_inside_a_character() {
    let table = table();
    let constraint = regex(&table, "a猫").unwrap();
    let mut state = constraint.start();
    // "a" and "a\xe7".
    assert_eq!(allowed(&mut state), [u32::from(b'a'), 266]);
    state.accept(266).unwrap();
    assert_eq!(allowed(&mut state), [0x8c]);
    state.accept(0x8c).unwrap();
    state.accept(0xab).unwrap();
    assert!(state.is_complete());
}

#[test]
fn the_end_is_allowed_where_the_answer_may_end() {
    let constraint = regex(&table(), "ab?").unwrap();
    let mut state = constraint.start();
    assert!(!state.may_stop());
    assert!(state.accept(EOS).is_err());
    feed(&mut state, "a").unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'b'), EOS]);
    assert!(state.may_stop() && !state.is_complete());
    feed(&mut state, "b").unwrap();
    assert!(state.may_stop() && state.is_complete());
    assert_eq!(allowed(&mut state), [EOS]);
    state.accept(EOS).unwrap();
    assert!(state.is_complete());
    assert!(state.mask().is_err());
    assert!(state.accept(EOS).is_err());
}

#[test]
fn a_token_off_the_grammar_is_refused_and_changes_nothing() {
    let constraint = regex(&table(), "ab").unwrap();
    let mut state = constraint.start();
    feed(&mut state, "a").unwrap();
    for wrong in [u32::from(b'x'), u32::from(b'a'), CONTROL, EOS, 0xff, 9_999, u32::MAX] {
        let error = state.accept(wrong).unwrap_err().to_string();
        let expected =
            format!("argument `token`: found {wrong}, expected a token that the constraint allows");
        assert_eq!(error, expected);
    }
    assert_eq!(allowed(&mut state), [u32::from(b'b')]);
    feed(&mut state, "b").unwrap();
    assert!(state.is_complete());
}

#[test]
fn tokens_can_be_taken_back() {
    let constraint = regex(&table(), "a[xy]z?").unwrap();
    let mut state = constraint.start();
    feed(&mut state, "ax").unwrap();
    state.accept(EOS).unwrap();
    state.rollback(2).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'x'), u32::from(b'y')]);
    feed(&mut state, "yz").unwrap();
    assert!(state.is_complete());
    state.rollback(1).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'z'), EOS]);
    assert!(matches!(state.rollback(3), Err(Error::Argument { .. })));
    state.rollback(2).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'a')]);
}

#[test]
fn answers_do_not_touch_each_other() {
    let constraint = regex(&table(), "(ab|cd)+").unwrap();
    let (mut one, mut two) = (constraint.start(), constraint.start());
    feed(&mut one, "a").unwrap();
    feed(&mut two, "c").unwrap();
    let mut fork = one.clone();
    feed(&mut fork, "b").unwrap();
    assert_eq!(allowed(&mut one), [u32::from(b'b')]);
    assert_eq!(allowed(&mut two), [u32::from(b'd')]);
    assert!(fork.may_stop());
}

#[test]
fn constraints_go_between_threads() {
    fn sendable<T: Send>() {}
    sendable::<Constraint>();
    sendable::<ConstraintState>();
    sendable::<Arc<TokenTable>>();
}

/// The least integer ended the process, by endless recursion: its negative does not exist.
#[test]
fn numbers_at_the_end_of_64_bits_are_refused() {
    for number in [json!(i64::MIN), json!(i64::MAX), json!(u64::MAX), json!(-1e19), json!(1e300)] {
        for wrong in [json!({"enum": [number]}), json!({"type": "integer", "minimum": number})] {
            assert!(matches!(schema(wrong), Err(Error::Unsupported { .. })), "{number}");
        }
    }
    assert!(schema(json!({"enum": [-99_999_999_999_999_999_i64, 999_999_999_999_999_872_i64]})).is_ok());
}

#[test]
fn keywords_that_are_not_enforced_are_named_with_their_place() {
    let wrong = json!({"properties": {"a": {"anyOf": [{"type": "null"}, {"not": {"type": "string"}}]}}});
    let Err(Error::Unsupported { what, found, .. }) = schema(wrong) else { panic!("accepted") };
    assert_eq!((what.as_str(), found.as_str()), ("keyword at json_schema.properties.a.anyOf[1]", "not"));
    for (keyword, value) in [
        ("uniqueItems", json!(true)),
        ("contains", json!({})),
        ("if", json!({})),
        ("dependentRequired", json!({})),
        ("x-guidance", json!({"lenient": true})),
    ] {
        let wrong = json!({"$defs": {"b": {"items": {keyword: value}}}, "$ref": "#/$defs/b"});
        let Err(Error::Unsupported { what, found, .. }) = schema(wrong) else { panic!("accepted {keyword}") };
        assert_eq!((what.as_str(), found.as_str()), ("keyword at json_schema.$defs.b.items", keyword));
    }
    // Names of properties and values are no keywords.
    assert!(schema(json!({"properties": {"not": {"const": {"if": 1}}}})).is_ok());
}

#[test]
fn schemas_that_nothing_satisfies_or_that_are_wrong_are_refused() {
    for wrong in [
        json!(false),
        json!({"type": "integer", "minimum": 5, "maximum": 3}),
        json!({"type": "string", "minLength": 3, "maxLength": 2}),
        json!({"type": "string", "pattern": "^a$", "minLength": 3}),
        json!({"allOf": [{"type": "string"}, {"type": "null"}]}),
        json!({"enum": []}),
        json!({"type": "elephant"}),
        json!({"type": 7}),
        json!({"enum": "x"}),
        json!({"properties": []}),
        json!({"minLength": -1}),
        json!({"minLength": "ééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééé"}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "format": "idn-email"}),
        json!({"$ref": "#/nowhere"}),
        json!({"$ref": "https://example.com/schema"}),
        json!({"$ref": "#"}),
        json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        json!(null),
        json!([1]),
        json!("text"),
    ] {
        let shown = wrong.to_string();
        match schema(wrong) {
            Err(Error::Argument { name, found, .. }) => {
                assert_eq!(name, "json_schema");
                assert!(!found.contains("backtrace") && found.len() < 400, "{shown}: {found}");
            }
            other => panic!("{shown}: {other:?}"),
        }
    }
}

#[test]
fn large_unions_are_within_the_limits() {
    let of = |i: usize| json!({"type": "object", "properties": {"kind": {"const": format!("k{i}")}}, "required": ["kind"]});
    let constraint = schema(json!({"anyOf": (0..150).map(of).collect::<Vec<_>>()})).unwrap();
    assert!(takes(&constraint, r#"{"kind":"k7"}"#) && takes(&constraint, r#"{"kind":"k149"}"#));
    assert!(!takes(&constraint, r#"{"kind":"k150"}"#));
}

#[test]
fn a_whole_number_may_have_a_point() {
    let constraint =
        schema(json!({"items": {"type": "string", "maxLength": 2.0}, "minItems": 1.0, "type": "array"}))
            .unwrap();
    assert!(
        takes(&constraint, r#"["ab"]"#) && !takes(&constraint, r#"["abc"]"#) && !takes(&constraint, "[]")
    );
    assert!(schema(json!({"type": "string", "maxLength": 2.5})).is_err());
}

#[test]
fn boolean_and_recursive_schemas_work() {
    assert!(takes(&schema(json!(true)).unwrap(), "[1, \"a\", {}]"));
    let list = json!({
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": false,
    });
    let constraint = schema(list).unwrap();
    assert!(takes(&constraint, r#"{"next":{"next":{"next":null}}}"#));
    assert!(!takes(&constraint, r#"{"next":{"next":1}}"#));
}

/// Runs in the two megabytes of stack that a thread has.
#[test]
fn hostile_input_ends_in_an_error_soon() {
    let table = table();
    let mut deep = json!({"type": "integer"});
    for _ in 0..60 {
        deep = json!({"type": "array", "items": deep, "properties": {"a": true}});
    }
    assert!(json_schema(&table, &deep).is_ok());
    for _ in 0..200 {
        deep = json!({"items": deep});
    }
    assert!(matches!(json_schema(&table, &deep), Err(Error::Limit { .. })));
    let large = json!({"const": "x".repeat(MAX_GRAMMAR_BYTES)});
    assert!(matches!(json_schema(&table, &large), Err(Error::Limit { .. })));
    for wrong in ["", "(", "a\\", "[", "(?=a)", "a{5,2}", &"(".repeat(20_000), &"(a".repeat(20_000)] {
        assert!(regex(&table, wrong).is_err(), "{}", wrong.chars().take(20).collect::<String>());
    }
    assert!(matches!(regex(&table, &"a".repeat(MAX_REGEX_BYTES + 1)), Err(Error::Limit { .. })));
    let nested_groups = format!("{}a{}", "(".repeat(20_000), ")".repeat(20_000));
    assert!(regex(&table, &nested_groups).is_err());
    for wrong in [
        "",
        "start",
        "start: nowhere",
        "start: start",
        "x: \"a\"",
        "start: \"a",
        "start: /(/",
        "start: %json { \"not\": {} }",
    ] {
        assert!(
            matches!(lark(&table, wrong), Err(Error::Argument { .. } | Error::Unsupported { .. })),
            "{wrong}"
        );
    }
    let nested = format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000));
    assert!(lark(&table, &nested).is_err());
    // Whatever becomes of these: no panic, no hang.
    for heavy in ["((a{0,1000}){0,1000}){0,1000}", "(a|aa)+b", "(.*a.{30}){4}", "(x+x+)+y"] {
        if let Ok(constraint) = regex(&table, heavy) {
            let mut state = constraint.start();
            let _ = feed(&mut state, &"a".repeat(200));
            let _ = state.mask();
        }
    }
}

#[test]
fn ambiguous_grammars_end_in_a_limit() {
    let mut table = table();
    Arc::get_mut(&mut table).unwrap().factory.limits_mut().max_items_in_row = 200;
    let constraint = lark(&table, "start: e\ne: e e | \"a\" | e e e").unwrap();
    let mut state = constraint.start();
    let mut failed = None;
    for _ in 0..5_000 {
        if let Err(error) = state.accept(u32::from(b'a')).and_then(|()| state.mask().map(|_| ())) {
            failed = Some(error);
            break;
        }
    }
    assert!(matches!(failed, Some(Error::Limit { .. })), "{failed:?}");
    // A failed state stays failed and does not panic.
    assert!(state.mask().is_err() && state.accept(u32::from(b'a')).is_err() && state.rollback(1).is_err());
}

#[test]
fn tables_are_checked() {
    assert!(matches!(TokenTable::new(Vec::new(), &[]), Err(Error::Argument { .. })));
    assert!(matches!(TokenTable::new(vec![vec![b'a']], &[]), Err(Error::Argument { .. })));
    assert!(matches!(TokenTable::new(vec![vec![b'a']], &[1]), Err(Error::Argument { .. })));
    assert!(matches!(TokenTable::new(vec![vec![b'a'; 1 << 22]], &[0]), Err(Error::Limit { .. })));
    // Too long, or marked like a control token: never allowed, and harmless.
    let tokens = vec![vec![], vec![b'a'; 5_000], vec![0xff, b'['], b"a".to_vec(), b"a".to_vec()];
    let table = Arc::new(TokenTable::new(tokens, &[0]).unwrap());
    let constraint = regex(&table, "a+").unwrap();
    assert_eq!(allowed(&mut constraint.start()), [3, 4]);
}

/// A vocabulary whose tokens 267 and 268 are " a" and " " in the middle of a text, and "a" and nothing at its start.
fn spaced_table() -> Arc<TokenTable> {
    let mut tokens: Vec<Vec<u8>> = (0..=255u8).map(|byte| vec![byte]).collect();
    tokens.extend([vec![], vec![], b" a".to_vec(), b" ".to_vec(), b" xyz".to_vec()]);
    let leading = [(260, b"xyz".to_vec()), (258, b"a".to_vec()), (259, vec![])];
    Arc::new(TokenTable::new(tokens, &[EOS]).unwrap().with_leading(leading))
}

#[test]
fn a_space_that_the_tokenizer_drops_is_no_part_of_the_answer() {
    let (space_a, space, unspellable) = (258, 259, 260);
    let constraint = regex(&spaced_table(), "a a?|xyz").unwrap();
    let mut state = constraint.start();
    // " xyz" is "xyz" at the start, which no token spells.
    assert_eq!(allowed(&mut state), [u32::from(b'a'), u32::from(b'x'), space_a, space]);
    assert!(state.accept(unspellable).is_err() && state.accept(u32::from(b' ')).is_err());
    state.accept(space).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'a'), u32::from(b'x')]);
    state.rollback(1).unwrap();
    state.accept(space_a).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b' '), space_a, space]);
    state.accept(space_a).unwrap();
    assert!(state.is_complete());
    state.rollback(2).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'a'), u32::from(b'x'), space_a, space]);

    // A control token is no text: the start is after it, unless its name shows.
    let constraint = lark(&spaced_table(), &format!("start: <[{CONTROL}]> \"a\"")).unwrap();
    let (mut hidden, mut shown) = (constraint.start(), constraint.start().show_special(true));
    hidden.accept(CONTROL).unwrap();
    shown.accept(CONTROL).unwrap();
    assert_eq!(allowed(&mut hidden), [u32::from(b'a'), space_a, space]);
    assert_eq!(allowed(&mut shown), [u32::from(b'a')]);
}

fn part(name: &str, path: &str, spec: ConstraintSpec) -> Part {
    Part { name: name.into(), path: path.into(), spec }
}

#[test]
fn a_constraint_can_wait_for_a_token() {
    let parts = vec![part("arguments", "tools[0]", ConstraintSpec::JsonSchema(json!({"const": 1})))];
    let grammar = format!("start: <[{CONTROL}]> \"f\" @arguments");
    let spec = ConstraintSpec::Composed(Composed { grammar, parts, trigger: Some(CONTROL) });
    let constraint = Constraint::new(&table(), &spec).unwrap();
    let mut state = constraint.start();
    assert_eq!(state.mask().unwrap(), None);
    assert!(state.may_stop() && !state.is_complete());
    feed(&mut state, "any {text").unwrap();
    state.accept(0xff).unwrap();
    assert_eq!(state.mask().unwrap(), None);
    state.accept(CONTROL).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'f')]);
    assert!(!state.may_stop() && state.accept(EOS).is_err());
    feed(&mut state, "f1").unwrap();
    assert!(state.is_complete());
    state.rollback(2).unwrap();
    assert_eq!(allowed(&mut state), [u32::from(b'f')]);
    state.rollback(1).unwrap();
    assert_eq!(state.mask().unwrap(), None);
    // The end is for the host to see as long as everything is allowed.
    state.accept(EOS).unwrap();
    assert!(!state.has_ended() && state.may_stop());
}

#[test]
fn a_part_that_is_wrong_is_named_by_its_path() {
    let wrong = |spec| {
        let parts = vec![
            part("good", "a", ConstraintSpec::JsonObject),
            part("bad", "tools[1].function.parameters", spec),
        ];
        let grammar = "start: @good @bad".to_owned();
        Constraint::new(&table(), &ConstraintSpec::Composed(Composed { grammar, parts, trigger: None }))
    };
    let Err(Error::Argument { name, .. }) = wrong(ConstraintSpec::JsonSchema(json!(false))) else {
        panic!("accepted")
    };
    assert_eq!(name, "tools[1].function.parameters");
    let Err(Error::Argument { name, .. }) = wrong(ConstraintSpec::Regex("(".into())) else {
        panic!("accepted")
    };
    assert_eq!(name, "tools[1].function.parameters");
    let schema = json!({"items": {"uniqueItems": true}});
    let Err(Error::Unsupported { what, .. }) = wrong(ConstraintSpec::JsonSchema(schema)) else {
        panic!("accepted")
    };
    assert_eq!(what, "keyword at tools[1].function.parameters.items");
}

#[test]
fn the_end_can_be_put_off() {
    let constraint = regex(&table(), "ab?").unwrap();
    let mut state = constraint.start();
    feed(&mut state, "a").unwrap();
    let without: Vec<u32> = state.mask_without_end().unwrap().unwrap().to_vec();
    assert!(without[EOS as usize / 32] >> (EOS % 32) & 1 == 0 && without[usize::from(b'b') / 32] != 0);
    feed(&mut state, "b").unwrap();
    // Nothing else may follow.
    let only = state.mask_without_end().unwrap().unwrap();
    assert!(only[EOS as usize / 32] >> (EOS % 32) & 1 == 1);
}

#[test]
fn multiples_take_bounded_work() {
    for (multiple, takes_it, refuses_it) in
        [(json!(7), "91", "92"), (json!(0.25), "1.75", "1.8"), (json!(9999), "19998", "19999")]
    {
        let constraint = schema(json!({"type": "number", "multipleOf": multiple})).unwrap();
        assert!(takes(&constraint, takes_it) && !takes(&constraint, refuses_it), "{multiple}");
    }
    // One automaton for both, with a state for each remainder.
    let both = |a, b| schema(json!({"type": "integer", "allOf": [{"multipleOf": a}, {"multipleOf": b}]}));
    assert!(takes(&both(64, 100).unwrap(), "1600"));
    for refused in [
        both(9973, 9967),
        schema(json!({"multipleOf": 65356})),
        schema(json!({"multipleOf": 6_535_600})),
        schema(json!({"multipleOf": 1e-9})),
        schema(json!({"items": {"multipleOf": 0.12345}})),
        lark(&table(), "start: \"a\" x\nx: %json {\"multiple\\u004ff\": 6535600}\n"),
    ] {
        assert!(matches!(refused, Err(Error::Limit { .. })), "{refused:?}");
    }
}

#[test]
fn what_takes_too_much_work_to_compile_ends_in_a_limit() {
    let most = 1_000_000_000;
    for (schema, fine) in [
        (json!({"pattern": "\"", "maxLength": 100}), true),
        (json!({"pattern": "ab", "maxLength": most}), true),
        (json!({"pattern": "\"", "maxLength": most}), false),
        (json!({"pattern": "\"", "maxLength": most, "type": "string"}), false),
        (json!({"items": {"anyOf": [{"type": "null"}, {"pattern": "\"\"", "maxLength": most}]}}), false),
    ] {
        let constraint = json_schema(&table(), &schema);
        let as_expected =
            if fine { constraint.is_ok() } else { matches!(constraint, Err(Error::Limit { .. })) };
        assert!(as_expected, "{schema}: {constraint:?}");
    }
    let part = Part {
        name: "answer".to_owned(),
        path: "response_format".to_owned(),
        spec: ConstraintSpec::JsonSchema(json!({"pattern": "\"", "maxLength": most})),
    };
    let grammar = "start: @answer\n".to_owned();
    let composed = ConstraintSpec::Composed(Composed { grammar, parts: vec![part], trigger: None });
    let refused = Constraint::new(&table(), &composed).unwrap_err().to_string();
    assert!(refused.starts_with("limit `work of response_format`: found fuel exhausted"), "{refused}");
}

#[test]
fn classes_that_would_not_be_obeyed_are_refused() {
    for (pattern, fine) in [
        ("^[^\"]{1}$", false),
        ("^(a|[^\\\\]b)+$", false),
        ("^[^<>\"]*$", false),
        ("^[^\\n\"]$", false),
        ("^[^\"\\x00]$", true),
        ("^[^/]$", true),
        ("^.[^\\n]$", true),
        ("^[a-z ]$", true),
    ] {
        let in_value = schema(json!({"type": "string", "pattern": pattern}));
        let in_key = schema(json!({"type": "object", "patternProperties": {(pattern): {}}}));
        for constraint in [&in_value, &in_key] {
            assert_eq!(constraint.is_ok(), fine, "{pattern}: {constraint:?}");
            assert!(fine || matches!(constraint, Err(Error::Unsupported { .. })), "{pattern}");
        }
    }
    let constraint = schema(json!({"type": "string", "pattern": "^[^\"\\x00]$"})).unwrap();
    assert!(takes(&constraint, "\"a\"") && !takes(&constraint, "\"\\\"\""));
}
