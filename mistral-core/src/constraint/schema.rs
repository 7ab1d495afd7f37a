//! What can be said about a JSON Schema before it is compiled: its size, and the keywords that cannot be enforced.

use regex_syntax::hir::{Class, Hir, HirKind};
use serde_json::{Map, Value};

use super::spec::{MAX_GRAMMAR_BYTES, check_size};
use crate::error::{Error, Result};

/// The deepest nesting of a schema: what `serde_json` reads.
const MAX_DEPTH: usize = 128;

/// Keywords of JSON Schema that would restrict the output and that `llguidance` does not enforce.
const NOT_ENFORCED: [&str; 18] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "$dynamicAnchor",
    "x-guidance",
];

/// Keywords whose value is a whole number.
const COUNTS: [&str; 6] =
    ["minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"];

/// What is enforced, for messages.
const ENFORCED: &str = "type, enum, const, anyOf, oneOf of disjoint schemas, allOf, $ref within the schema, properties, \
     patternProperties, additionalProperties, required, minProperties, maxProperties, items, prefixItems, minItems, maxItems, minLength, \
     maxLength, pattern, format, minimum, maximum, exclusiveMinimum, exclusiveMaximum, multipleOf";

/// What [`Multiple::MOST_STATES`] means for a host.
const MULTIPLES: &str = "multiples with a least common one of 10000 steps of the last place, fewer where there are places after the point";

/// Refuses schemas that are too large or too deep, or that say what cannot be enforced. Errors call the schema `name`.
pub(super) fn check(schema: &Value, name: &str) -> Result<()> {
    check_depth(schema, name)?;
    check_numbers(schema)?;
    let mut bytes = ByteCount(0);
    // Writing into a counter fails for nothing that a `Value` can hold.
    if serde_json::to_writer(&mut bytes, schema).is_err() {
        return Err(Error::argument(name, "a value that is not JSON", "a JSON Schema"));
    }
    check_size(name, bytes.0, MAX_GRAMMAR_BYTES)?;
    check_keywords(schema, name)?;
    check_multiples(schema, &mut Multiple { units: 1, places: 0 })
}

/// The schema with the options of `llguidance`. Unbounded whitespace would let a model stay between two tokens of
/// JSON for ever.
pub(super) fn with_options(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Object(object) => object.clone(),
        other => {
            // `true` and `false` are schemas too; anything else is for the compiler to refuse.
            let Value::Bool(_) = other else { return other.clone() };
            Map::from_iter([("allOf".to_owned(), Value::Array(vec![other.clone()]))])
        }
    };
    let whitespace = serde_json::json!({"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}"});
    schema.insert("x-guidance".to_owned(), whitespace);
    let mut schema = Value::Object(schema);
    write_counts(&mut schema);
    schema
}

/// Writes counts such as `3.0`, which are whole numbers to JSON Schema, in the way that `llguidance` reads. Where the same
/// keys stand in a constant, the number stays the same.
fn write_counts(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                let whole = value.as_f64().filter(|n| COUNTS.contains(&key.as_str()) && n.fract() == 0.0);
                // Beyond this a count of anything is as good as none.
                match whole.filter(|n| (0.0..1e15).contains(n)) {
                    Some(count) => *value = (count as u64).into(),
                    None => write_counts(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(write_counts),
        _ => {}
    }
}

fn check_depth(schema: &Value, name: &str) -> Result<()> {
    let mut pending = vec![(schema, 1)];
    while let Some((value, depth)) = pending.pop() {
        if depth > MAX_DEPTH {
            return Err(Error::limit(
                format!("depth of {name}"),
                format!("more than {MAX_DEPTH}"),
                MAX_DEPTH,
            ));
        }
        match value {
            Value::Object(object) => pending.extend(object.values().map(|child| (child, depth + 1))),
            Value::Array(items) => pending.extend(items.iter().map(|child| (child, depth + 1))),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses numbers of more than 18 digits, wherever they stand: `llguidance` computes with bounds of 64 bits, and near their ends
/// it would recurse until the stack ends. The walk is bounded by [`check_depth`].
fn check_numbers(value: &Value) -> Result<()> {
    const LARGEST: f64 = 1e18;
    match value {
        Value::Number(number) if number.as_f64().is_none_or(|number| number.abs() >= LARGEST) => {
            Err(Error::unsupported("number in a schema", number, "numbers of up to 18 digits"))
        }
        Value::Array(items) => items.iter().try_for_each(check_numbers),
        Value::Object(members) => members.values().try_for_each(check_numbers),
        _ => Ok(()),
    }
}

/// Walks the schemas inside a schema, definitions included: a definition that nothing uses is rare, and a clear
/// refusal costs less than an answer that breaks a rule.
fn check_keywords(schema: &Value, name: &str) -> Result<()> {
    let mut pending = vec![(name.to_owned(), schema)];
    while let Some((path, value)) = pending.pop() {
        let Value::Object(object) = value else { continue };
        for (keyword, value) in object {
            if NOT_ENFORCED.contains(&keyword.as_str()) {
                return Err(Error::unsupported(format!("keyword at {path}"), keyword, ENFORCED));
            }
            let path = format!("{path}.{keyword}");
            match (keyword.as_str(), value) {
                ("pattern", Value::String(pattern)) => check_pattern(pattern, &path)?,
                ("patternProperties", Value::Object(map)) => {
                    map.keys().try_for_each(|pattern| check_pattern(pattern, &path))?;
                }
                _ => {}
            }
            match (keyword.as_str(), value) {
                ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(map)) => {
                    pending.extend(map.iter().map(|(name, child)| (format!("{path}.{name}"), child)));
                }
                ("anyOf" | "oneOf" | "allOf" | "prefixItems" | "items", Value::Array(list)) => {
                    pending
                        .extend(list.iter().enumerate().map(|(at, child)| (format!("{path}[{at}]"), child)));
                }
                ("items" | "additionalItems" | "additionalProperties", child) => pending.push((path, child)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Refuses a pattern with a class that has the control characters and not the quotation mark or the backslash: `derivre` 0.3 (`json_quote`) lets these two stand,
/// escaped, wherever all control characters may. What cannot be parsed is for the compiler to refuse.
fn check_pattern(pattern: &str, path: &str) -> Result<()> {
    let Ok(pattern) = regex_syntax::parse(pattern) else { return Ok(()) };
    let mut pending = vec![&pattern];
    while let Some(part) = pending.pop() {
        if let HirKind::Class(class) = part.kind()
            && (0..0x20).all(|code| code == b'\n' || has(class, code))
            && !(has(class, b'"') && has(class, b'\\'))
        {
            let supported = "classes that exclude a control character as well, such as [^\"\\x00]";
            return Err(Error::unsupported(
                format!("class at {path}"),
                "one that excludes a quotation mark or a backslash",
                supported,
            ));
        }
        pending.extend(inside(part));
    }
    Ok(())
}

fn inside(part: &Hir) -> &[Hir] {
    match part.kind() {
        HirKind::Repetition(repetition) => std::slice::from_ref(&*repetition.sub),
        HirKind::Capture(capture) => std::slice::from_ref(&*capture.sub),
        HirKind::Concat(parts) | HirKind::Alternation(parts) => parts,
        _ => &[],
    }
}

fn has(class: &Class, code: u8) -> bool {
    match class {
        Class::Unicode(class) => class.iter().any(|r| (r.start()..=r.end()).contains(&char::from(code))),
        Class::Bytes(class) => class.iter().any(|r| (r.start()..=r.end()).contains(&code)),
    }
}

/// `units` × 10^-`places`.
struct Multiple {
    units: u64,
    places: u32,
}

impl Multiple {
    /// States that a lexer may need to tell multiples from other numbers: some tenths of a second of work.
    const MOST_STATES: u64 = 10_000;
    /// Places after the point: `derivre` computes with 32 bits.
    const MOST_PLACES: u32 = 8;

    /// As `llguidance` reads a number; nothing for one with too many digits.
    fn of(mut number: f64) -> Option<Self> {
        let mut places = 0;
        while number.fract() != 0.0 && places < Self::MOST_PLACES {
            number *= 10.0;
            places += 1;
        }
        let fits = number.fract() == 0.0 && (0.0..=Self::MOST_STATES as f64).contains(&number);
        fits.then_some(Self { units: number as u64, places })
    }

    /// Makes this the least multiple of both; false if there would be too many states.
    fn join(&mut self, other: &Self) -> bool {
        let places = self.places.max(other.places);
        let scaled = |a: &Self| u128::from(a.units) * 10u128.pow(places - a.places);
        let (a, b) = (scaled(self), scaled(other));
        let mut units = a / greatest_divisor(a, b) * b;
        self.places = places;
        while self.places > 0 && units.is_multiple_of(10) {
            units /= 10;
            self.places -= 1;
        }
        self.units = u64::try_from(units).unwrap_or(u64::MAX);
        self.units.saturating_mul(u64::from(self.places) + 1) <= Self::MOST_STATES
    }
}

fn greatest_divisor(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Refuses `multipleOf` where the numbers that stand together (`allOf` makes one of several) take too many states. The walk is bounded by [`check_depth`]; where the
/// keyword stands in a constant, that is seen as a schema, too.
fn check_multiples(schema: &Value, all: &mut Multiple) -> Result<()> {
    match schema {
        Value::Array(items) => items.iter().try_for_each(|item| check_multiples(item, all)),
        Value::Object(members) => members.iter().try_for_each(|(key, value)| {
            let number = value.as_f64().filter(|number| key == "multipleOf" && *number > 0.0);
            let Some(number) = number else { return check_multiples(value, all) };
            match Multiple::of(number) {
                Some(multiple) if all.join(&multiple) => Ok(()),
                _ => Err(Error::limit("multipleOf in a schema", number, MULTIPLES)),
            }
        }),
        _ => Ok(()),
    }
}

/// Counts what is written to it.
struct ByteCount(usize);

impl std::io::Write for ByteCount {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
