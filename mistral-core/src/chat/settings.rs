//! The settings that a model of v15 reads before the first message, and which of them a model knows: the section
//! `model_settings_builder` of its Tekken file.

use crate::chat::json::Json;
use crate::chat::request::{ChatRequest, ReasoningEffort, ResponseFormat};
use crate::error::{ChatRule, Error, Result};

/// The settings that a model knows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelSettings {
    /// The efforts that it was trained with, and the one it takes when a request names none.
    reasoning_effort: Option<(Vec<ReasoningEffort>, ReasoningEffort)>,
    /// It reads the schema of the answer.
    json_schema: bool,
}

impl ModelSettings {
    /// Reads the section of a Tekken file; `file` is what errors call it.
    pub fn from_section(section: &serde_json::Value, file: &str) -> Result<Self> {
        let section = Json::from(section);
        let wrong = |key: &str, expected: &str| {
            let key = format!("model_settings_builder.{key}");
            Error::format(file, key, "something else", expected)
        };
        let mut settings = Self::default();
        for (key, value) in section.members().ok_or_else(|| wrong("", "an object"))? {
            match (key.as_str(), value) {
                (_, Json::Null) => {}
                ("reasoning_effort", value) => {
                    let effort = |value: &Json| value.as_str().and_then(ReasoningEffort::from_name);
                    let values = value.get("values").and_then(Json::as_array).unwrap_or_default();
                    let values: Option<Vec<_>> = values.iter().map(effort).collect();
                    let default = value.get("default").and_then(effort);
                    let (Some(values), Some(default)) = (values, default) else {
                        return Err(wrong(key, "`values` and a `default` that are efforts"));
                    };
                    settings.reasoning_effort = Some((values, default));
                }
                ("json_schema", _) => settings.json_schema = true,
                _ => return Err(wrong(key, "reasoning_effort or json_schema")),
            }
        }
        Ok(settings)
    }

    /// The settings of a request, in the order of their names; [`None`] where the model knows none.
    pub(super) fn of_request(&self, request: &ChatRequest) -> Result<Option<Json>> {
        let mut members = Vec::new();
        if let Some(schema) = self.schema(request) {
            members.push(("json_schema".to_owned(), schema));
        }
        let error = |found: &str, expected: String| {
            Err(Error::chat(ChatRule::Request, "reasoning_effort", found, expected))
        };
        match (&self.reasoning_effort, request.reasoning_effort) {
            (None, None) => {}
            (None, Some(_)) => return error("an effort", "nothing: this model has no such setting".into()),
            (Some((values, default)), effort) => {
                let effort = effort.unwrap_or(*default);
                if !values.contains(&effort) {
                    let known: Vec<_> = values.iter().map(|v| v.as_str()).collect();
                    return error(effort.as_str(), format!("one of {}", known.join(", ")));
                }
                members.push(("reasoning_effort".to_owned(), Json::String(effort.as_str().into())));
            }
        }
        Ok((!members.is_empty()).then_some(Json::Object(members)))
    }

    fn schema(&self, request: &ChatRequest) -> Option<Json> {
        match &request.response_format {
            _ if !self.json_schema => None,
            ResponseFormat::JsonSchema { schema, .. } => Some(schema.clone()),
            ResponseFormat::JsonObject => {
                let kind = |name: &str| Json::Object(vec![("type".into(), Json::String(name.into()))]);
                let either = Json::Array(vec![kind("object"), kind("array")]);
                Some(Json::Object(vec![("anyOf".into(), either)]))
            }
            _ => None,
        }
    }
}
