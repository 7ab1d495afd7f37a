use super::*;

fn joined(events: &[AnswerEvent]) -> Vec<AnswerEvent> {
    let mut out: Vec<AnswerEvent> = Vec::new();
    for event in events {
        match (out.last_mut(), event) {
            (Some(AnswerEvent::Content(a)), AnswerEvent::Content(b)) => a.push_str(b),
            (Some(AnswerEvent::Reasoning(a)), AnswerEvent::Reasoning(b)) => a.push_str(b),
            (Some(AnswerEvent::Arguments { text: a, .. }), AnswerEvent::Arguments { text: b, .. }) => {
                a.push_str(b)
            }
            _ => out.push(event.clone()),
        }
    }
    out
}

/// Reads a text with markers whole, and in pieces of every size up to seven characters; all must agree.
fn read(version: Version, text: &str) -> (Vec<AnswerEvent>, Answer) {
    let whole = AnswerParser::new(Some(version), 7).read_rendered(text);
    let markers = ["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]", "[THINK]", "[/THINK]", "</s>"];
    let mut first = None;
    for size in 1..=7 {
        let mut parser = AnswerParser::new(Some(version), 7);
        let mut events = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            if let Some(marker) = markers.iter().find(|marker| rest.starts_with(**marker)) {
                events.extend(parser.control(marker));
                rest = &rest[marker.len()..];
                continue;
            }
            let until = markers.iter().filter_map(|marker| rest.find(marker)).min().unwrap_or(rest.len());
            let end = rest[..until].char_indices().nth(size).map_or(until, |(i, _)| i);
            events.extend(parser.text(&rest[..end]));
            rest = &rest[end..];
        }
        let (last, answer) = parser.finish();
        events.extend(last);
        assert_eq!(answer, whole, "{text} in pieces of {size}");
        let events = joined(&events);
        assert_eq!(*first.get_or_insert(events.clone()), events, "{text} in pieces of {size}");
    }
    (first.unwrap_or_default(), whole)
}

fn call(index: usize, id: &str, name: &str, arguments: &str) -> AnswerCall {
    AnswerCall { index, id: id.into(), name: name.into(), arguments: arguments.into() }
}

fn broken(index: usize, name: Option<&str>, text: &str, fault: CallFault) -> BrokenCall {
    BrokenCall { index, name: name.map(str::to_owned), text: text.into(), fault }
}

#[test]
fn content_alone() {
    for version in Version::ALL {
        let (events, answer) = read(version, "Bonjour, {\"a\": [1]} <b>[x]</b></s>ignored");
        assert_eq!(answer.content, "Bonjour, {\"a\": [1]} <b>[x]</b>");
        assert_eq!(events, [AnswerEvent::Content(answer.content.clone())]);
    }
    let answer = AnswerParser::new(None, 0).read_rendered("[TOOL_CALLS]x");
    assert_eq!(answer.content, "[TOOL_CALLS]x");
}

#[test]
fn calls_of_v11_and_later() {
    let text = "Let me see.[TOOL_CALLS]weather[CALL_ID]abcdefgh1[ARGS]{\"city\": \"Köln\"}[TOOL_CALLS]add[ARGS] {\"a\": 1} </s>";
    let (events, answer) = read(Version::V11, text);
    let id = new_id(7, 1);
    assert_eq!(answer.content, "Let me see.");
    assert_eq!(
        answer.calls,
        [call(0, "abcdefgh1", "weather", "{\"city\": \"Köln\"}"), call(1, &id, "add", "{\"a\": 1}")]
    );
    assert_eq!(answer.broken, []);
    assert_eq!(
        events[1..4],
        [
            AnswerEvent::CallBegin { index: 0, id: "abcdefgh1".into(), name: "weather".into() },
            AnswerEvent::Arguments { index: 0, text: "{\"city\": \"Köln\"}".into() },
            AnswerEvent::CallEnd { index: 0 },
        ]
    );
    let (_, answer) = read(Version::V13, "[TOOL_CALLS]f{\"a\": \"}\"}");
    assert_eq!(answer.calls, [call(0, &new_id(7, 0), "f", "{\"a\": \"}\"}")]);
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = AnswerParser::new(Some(Version::V13), 0);
    parser.control("[TOOL_CALLS]");
    assert_eq!(parser.text("f"), []);
    assert!(matches!(&parser.control("[ARGS]")[..], [AnswerEvent::CallBegin { .. }]));
    assert_eq!(parser.text("{\"a\": "), [AnswerEvent::Arguments { index: 0, text: "{\"a\":".into() }]);
    assert_eq!(parser.text("12}"), [AnswerEvent::Arguments { index: 0, text: " 12}".into() }]);
    assert_eq!(parser.text("\n"), []);
    assert_eq!(parser.finish().0, [AnswerEvent::CallEnd { index: 0 }]);
}

/// Found by fuzzing: what a host reads it into may have no such number, but JSON does.
#[test]
fn a_number_may_be_larger_than_any_type() {
    let text = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1e11111}}]";
    let (_, answer) = read(Version::V7, text);
    assert_eq!(answer.calls, [call(0, &new_id(7, 0), "f", "{\"a\": 1e11111}")]);
}

#[test]
fn reasoning() {
    let (events, answer) = read(Version::V13, "[THINK]Hm, [maybe].[/THINK]Yes.");
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("Hm, [maybe].", "Yes."));
    assert_eq!(events, [AnswerEvent::Reasoning("Hm, [maybe].".into()), AnswerEvent::Content("Yes.".into())]);
    let (_, answer) = read(Version::V13, "[THINK]a[/THINK]b[THINK]c[TOOL_CALLS]f[ARGS]{}</s>");
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("a\nc", "b"));
    assert_eq!(answer.calls.len(), 1);
    let (_, answer) = read(Version::V15, "[THINK]never closed");
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("never closed", ""));
}

#[test]
fn calls_before_v11() {
    let text = "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\": [1, \"]}\"]}, \"id\": \"abcdefgh1\"}, {\"id\": \"abcdefgh2\", \"name\": \"g\", \"arguments\": {}}]";
    for version in [Version::V3, Version::V7] {
        let (events, answer) = read(version, text);
        assert_eq!(
            answer.calls,
            [call(0, "abcdefgh1", "f", "{\"a\": [1, \"]}\"]}"), call(1, "abcdefgh2", "g", "{}")]
        );
        assert_eq!(events.len(), 6, "{events:?}");
    }
    let (_, answer) =
        read(Version::V2, "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}]\n\n Done.");
    assert_eq!(answer.calls, [call(0, &new_id(7, 0), "f", "{\"a\": 1}")]);
    assert_eq!(answer.content, "Done.");
    let (_, answer) = read(Version::V7, "Wait.[TOOL_CALLS]{\"name\": \"f\", \"arguments\": {}} more");
    assert_eq!((answer.calls.len(), answer.content.as_str()), (1, "Wait. more"));
    // An id where the format has none is not the model's: the call may have begun before it.
    let (_, answer) = read(Version::V2, text);
    assert_eq!(answer.calls[0].id, new_id(7, 0));
    // v2 has no ids: arguments are passed on at once.
    let mut parser = AnswerParser::new(Some(Version::V2), 0);
    parser.control("[TOOL_CALLS]");
    let events = parser.text("[{\"name\": \"f\", \"arguments\": {\"a\"");
    assert!(
        matches!(&events[..], [AnswerEvent::CallBegin { .. }, AnswerEvent::Arguments { .. }]),
        "{events:?}"
    );
}

#[test]
fn markers_in_strings_are_text() {
    let text = "[TOOL_CALLS]f[ARGS]{\"a\": \"[TOOL_CALLS] \\\" </s>\"}</s>";
    let answer = AnswerParser::new(Some(Version::V13), 7).read_rendered(text);
    assert_eq!(answer.calls, [call(0, &new_id(7, 0), "f", "{\"a\": \"[TOOL_CALLS] \\\" </s>\"}")]);
    let text = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": \"[TOOL_CALLS]\"}}]";
    assert_eq!(AnswerParser::new(Some(Version::V7), 7).read_rendered(text).calls.len(), 1);
}

#[test]
fn broken_calls() {
    use CallFault::{Malformed, Truncated};
    for (version, text, expected) in [
        (Version::V13, "[TOOL_CALLS]f[ARGS]{\"a\": \"x", broken(0, Some("f"), "{\"a\": \"x", Truncated)),
        (Version::V13, "[TOOL_CALLS]f", broken(0, Some("f"), "", Truncated)),
        (Version::V13, "[TOOL_CALLS]f[ARGS]", broken(0, Some("f"), "", Truncated)),
        (Version::V13, "[TOOL_CALLS]f[ARGS]{'a': 1}", broken(0, Some("f"), "{'a': 1}", Malformed)),
        (Version::V13, "[TOOL_CALLS]f[ARGS]{} x", broken(0, Some("f"), "{} x", Malformed)),
        (Version::V13, "[TOOL_CALLS]f[ARGS]{\"a\": NaN}", broken(0, Some("f"), "{\"a\": NaN}", Malformed)),
        (Version::V13, "[TOOL_CALLS]f[ARGS][1]", broken(0, Some("f"), "[1]", Malformed)),
        (Version::V11, "[TOOL_CALLS][ARGS]{}", broken(0, None, "{}", Malformed)),
        (Version::V11, "[TOOL_CALLS]", broken(0, None, "", Truncated)),
        (
            Version::V7,
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a",
            broken(0, Some("f"), "{\"name\": \"f\", \"arguments\": {\"a", Truncated),
        ),
        (
            Version::V2,
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a",
            broken(0, Some("f"), "{\"a", Truncated),
        ),
        (Version::V3, "[TOOL_CALLS]no json", broken(0, None, "no json", Malformed)),
        (Version::V3, "[TOOL_CALLS][{\"name\": 3}]", broken(0, None, "{\"name\": 3}]", Malformed)),
        (
            Version::V3,
            "[TOOL_CALLS][{\"name\": \"f\"}]",
            broken(0, Some("f"), "{\"name\": \"f\"}]", Malformed),
        ),
        (Version::V3, "[TOOL_CALLS][", broken(0, None, "[", Truncated)),
        (
            Version::V3,
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": [1]}]",
            broken(0, Some("f"), "[1]", Malformed),
        ),
    ] {
        let (events, answer) = read(version, text);
        assert_eq!(answer.broken, [expected], "{text}");
        assert_eq!(answer.calls, [], "{text}");
        assert!(
            events.iter().any(|event| matches!(event, AnswerEvent::CallBroken { index: 0, .. })),
            "{text}"
        );
    }
    let (_, answer) = read(Version::V13, "[TOOL_CALLS]f[ARGS]{[TOOL_CALLS]g[ARGS]{}");
    assert_eq!((answer.broken.len(), answer.calls[0].index), (1, 1));
}

#[test]
fn resumes_a_prefix() {
    let mut parser = AnswerParser::new(Some(Version::V13), 0);
    parser.resume(&[Fragment::Special("[THINK]"), Fragment::Text("so".into())]);
    parser.text(" far");
    parser.control("[/THINK]");
    parser.text("Yes");
    let (_, answer) = parser.finish();
    assert_eq!((answer.reasoning.as_str(), answer.content.as_str()), ("so far", "Yes"));
}

const PIECES: [&str; 26] = [
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
    "[{\"name\": \"f\", \"arguments\": {\"a\": ",
    "\n",
    "NaN",
];

fn random(state: &mut u64, below: usize) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize % below
}

/// Whatever a model writes, reading it ends, and the calls that it finds can be made.
#[test]
fn any_text() {
    let mut state = 1;
    for round in 0..20_000 {
        let text: String = (0..round % 24).map(|_| PIECES[random(&mut state, PIECES.len())]).collect();
        for version in Version::ALL {
            let answer = AnswerParser::new(Some(version), 1).read_rendered(&text);
            for call in &answer.calls {
                assert!(serde_json::from_str::<serde_json::Value>(&call.arguments).is_ok(), "{text}");
            }
        }
    }
}

/// Puts an answer together from its events, as a host does that reads the stream.
fn from_events(events: &[AnswerEvent]) -> (Answer, Vec<(usize, CallFault)>) {
    let (mut answer, mut broken) = (Answer::default(), Vec::new());
    let mut open: Option<AnswerCall> = None;
    for event in events {
        match event {
            AnswerEvent::Content(text) => answer.content.push_str(text),
            AnswerEvent::Reasoning(text) => answer.reasoning.push_str(text),
            AnswerEvent::CallBegin { index, id, name } => {
                assert_eq!(open.replace(call(*index, id, name, "")), None, "one call at a time");
            }
            AnswerEvent::Arguments { index, text } => {
                let call = open.as_mut().expect("arguments belong to a call that has begun");
                assert_eq!(call.index, *index);
                call.arguments.push_str(text);
            }
            AnswerEvent::CallEnd { index } => {
                let call = open.take().expect("a call that has begun ends");
                assert_eq!(call.index, *index);
                answer.calls.push(call);
            }
            AnswerEvent::CallBroken { index, fault } => {
                open = None;
                broken.push((*index, *fault));
            }
        }
    }
    assert_eq!(open, None, "every call ends");
    (answer, broken)
}

/// However an answer is cut into pieces, its events are the same, and add up to it.
#[test]
fn any_text_in_any_pieces() {
    let mut state = 3;
    for round in 0..6000 {
        let pieces: Vec<&str> = (0..round % 24).map(|_| PIECES[random(&mut state, PIECES.len())]).collect();
        for version in [Version::V2, Version::V3, Version::V7, Version::V11, Version::V15] {
            let mut first = None;
            for _ in 0..3 {
                let mut parser = AnswerParser::new(Some(version), 1);
                let (mut events, mut waiting) = (Vec::new(), String::new());
                for piece in &pieces {
                    if random(&mut state, 2) == 0 || PIECES[..6].contains(piece) {
                        events.extend(parser.text(&std::mem::take(&mut waiting)));
                    }
                    match PIECES[..6].contains(piece) {
                        true => events.extend(parser.control(piece)),
                        false => waiting.push_str(piece),
                    }
                    if random(&mut state, 3) == 0 && waiting.len() > 1 {
                        let cut = waiting.floor_char_boundary(1 + random(&mut state, waiting.len() - 1));
                        events.extend(parser.text(&waiting[..cut]));
                        waiting.drain(..cut);
                    }
                }
                events.extend(parser.text(&waiting));
                let (last, answer) = parser.finish();
                events.extend(last);
                let (read, broken) = from_events(&events);
                let faults: Vec<_> = answer.broken.iter().map(|call| (call.index, call.fault)).collect();
                assert_eq!(
                    (&read.content, &read.reasoning, &read.calls),
                    (&answer.content, &answer.reasoning, &answer.calls),
                    "{version} {pieces:?}"
                );
                assert_eq!(broken, faults, "{version} {pieces:?}");
                let events = joined(&events);
                assert_eq!(
                    first.get_or_insert((events.clone(), answer.clone())),
                    &(events, answer),
                    "{version} {pieces:?}"
                );
            }
        }
    }
}
