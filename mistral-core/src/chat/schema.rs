//! Whether a value is a JSON Schema of draft 7: the rules of its meta-schema (json-schema.org/draft-07/schema).

use crate::chat::json::Json;
use crate::chat::pyregex::is_python_regex;

/// Where a value is not a schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotASchema {
    /// The JSON path.
    pub path: String,
    /// What stands there.
    pub found: String,
    /// What would have been right.
    pub expected: &'static str,
}

const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

/// Checks a schema that stands at `path` of a request.
pub fn check(schema: &Json, path: &str) -> Result<(), NotASchema> {
    if matches!(schema, Json::Bool(_)) {
        return Ok(());
    }
    let Some(members) = schema.members() else { return Err(wrong(schema, path, "an object or a boolean")) };
    for (key, value) in members {
        check_keyword(key, value, &format!("{path}.{key}"))?;
    }
    Ok(())
}

fn check_keyword(key: &str, value: &Json, path: &str) -> Result<(), NotASchema> {
    match key {
        "$id" | "$schema" | "$ref" | "$comment" | "title" | "description" | "format" | "contentMediaType"
        | "contentEncoding" => require(value.as_str().is_some(), value, path, "a string"),
        "readOnly" | "uniqueItems" => require(matches!(value, Json::Bool(_)), value, path, "a boolean"),
        "examples" | "enum" => require(value.as_array().is_some(), value, path, "an array"),
        "multipleOf" => require(number(value).is_some_and(|n| n > 0.0), value, path, "a number above 0"),
        "maximum" | "exclusiveMaximum" | "minimum" | "exclusiveMinimum" => {
            require(number(value).is_some(), value, path, "a number")
        }
        "maxLength" | "minLength" | "maxItems" | "minItems" | "maxProperties" | "minProperties" => {
            let whole = number(value).is_some_and(|n| n >= 0.0 && n.fract() == 0.0);
            require(whole, value, path, "a whole number from 0")
        }
        "pattern" => check_pattern(value, path),
        "additionalItems"
        | "contains"
        | "additionalProperties"
        | "propertyNames"
        | "if"
        | "then"
        | "else"
        | "not" => check(value, path),
        "allOf" | "anyOf" | "oneOf" => check_schemas(value, path),
        "items" if value.as_array().is_some() => check_schemas(value, path),
        "items" => check(value, path),
        "required" => require(distinct_strings(value), value, path, "an array of different strings"),
        "definitions" | "properties" => check_each(value, path, check),
        "patternProperties" => {
            for (pattern, _) in value.members().unwrap_or_default() {
                check_pattern(&Json::String(pattern.clone()), path)?;
            }
            check_each(value, path, check)
        }
        "dependencies" => check_each(value, path, |value, path| match value {
            Json::Array(_) => require(distinct_strings(value), value, path, "an array of different strings"),
            _ => check(value, path),
        }),
        "type" => check_type(value, path),
        _ => Ok(()),
    }
}

fn wrong(value: &Json, path: &str, expected: &'static str) -> NotASchema {
    NotASchema { path: path.into(), found: value.kind().into(), expected }
}

fn require(holds: bool, value: &Json, path: &str, expected: &'static str) -> Result<(), NotASchema> {
    if holds { Ok(()) } else { Err(wrong(value, path, expected)) }
}

fn number(value: &Json) -> Option<f64> {
    match value {
        Json::Int(digits) => digits.parse().ok(),
        Json::Float(f) => Some(*f),
        _ => None,
    }
}

fn check_schemas(value: &Json, path: &str) -> Result<(), NotASchema> {
    let items = value.as_array().filter(|items| !items.is_empty());
    let items = items.ok_or_else(|| wrong(value, path, "an array of schemas"))?;
    items.iter().enumerate().try_for_each(|(i, item)| check(item, &format!("{path}[{i}]")))
}

fn check_each(
    value: &Json,
    path: &str,
    rule: impl Fn(&Json, &str) -> Result<(), NotASchema>,
) -> Result<(), NotASchema> {
    let members = value.members().ok_or_else(|| wrong(value, path, "an object of schemas"))?;
    members.iter().try_for_each(|(key, value)| rule(value, &format!("{path}.{key}")))
}

fn distinct_strings(value: &Json) -> bool {
    let Some(items) = value.as_array() else { return false };
    let mut names: Vec<&str> = items.iter().filter_map(Json::as_str).collect();
    let all_strings = names.len() == items.len();
    names.sort_unstable();
    names.dedup();
    all_strings && names.len() == items.len()
}

fn check_type(value: &Json, path: &str) -> Result<(), NotASchema> {
    let known = |item: &Json| item.as_str().is_some_and(|name| TYPES.contains(&name));
    let holds = match value {
        Json::Array(items) => !items.is_empty() && items.iter().all(known) && distinct_strings(value),
        _ => known(value),
    };
    require(holds, value, path, "the name of a JSON type, or an array of different ones")
}

fn check_pattern(value: &Json, path: &str) -> Result<(), NotASchema> {
    let Some(pattern) = value.as_str() else { return Err(wrong(value, path, "a string")) };
    require(is_python_regex(pattern), value, path, "a regular expression")
}
