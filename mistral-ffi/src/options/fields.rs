//! An object of options while it is read: each key by its type.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use mistral_core::audit::AuditKey;
use mistral_core::kernels::CacheType;
use mistral_core::sampler::SamplingParams;
use mistral_core::tokenizer::TokenizerVersion;
use mistral_core::{ConstraintSpec, Limits};
use serde_json::{Map, Value};

use super::json;
use crate::failure::{Failure, Outcome};

/// The fields of an object that were not asked for yet, and the names of all that were.
pub(super) struct Fields {
    left: Map<String, Value>,
    known: Vec<&'static str>,
}

impl Fields {
    pub(super) fn read(text: Option<&str>) -> Outcome<Self> {
        let left = match text.map(|text| json("options", text)).transpose()? {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(map)) => map,
            Some(other) => return Err(Failure::argument("options", kind(&other), "a JSON object")),
        };
        Ok(Self { left, known: Vec::new() })
    }

    /// The fields of the object under `key`.
    pub(super) fn object(&mut self, key: &'static str) -> Outcome<Option<Self>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(left)) => Ok(Some(Self { left, known: Vec::new() })),
            Some(other) => Err(Failure::argument(key, kind(&other), "a JSON object")),
        }
    }

    /// Fails if a field is left that nobody asked for.
    pub(super) fn finish(self) -> Outcome {
        match self.left.keys().next() {
            None => Ok(()),
            Some(key) => {
                let name: String = key.chars().take(64).collect();
                Err(Failure::argument(&name, "an unknown key", format!("one of {}", self.known.join(", "))))
            }
        }
    }

    /// The field `key`; null means that it is not there.
    pub(super) fn take(&mut self, key: &'static str) -> Option<Value> {
        self.known.push(key);
        self.left.shift_remove(key).filter(|value| !value.is_null())
    }

    pub(super) fn boolean(&mut self, key: &'static str, default: bool) -> Outcome<bool> {
        match self.take(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(value),
            Some(other) => Err(Failure::argument(key, kind(&other), "true or false")),
        }
    }

    pub(super) fn unsigned<T: TryFrom<u64>>(&mut self, key: &'static str) -> Outcome<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match integer(&value) {
            Some(value) => Ok(Some(value)),
            None => Err(Failure::argument(key, kind(&value), integers::<T>())),
        }
    }

    /// A number of layers, `"all"` (more than there are) or `"auto"` (none).
    pub(super) fn layers(&mut self, key: &'static str) -> Outcome<Option<usize>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) if text == "auto" => Ok(None),
            Some(Value::String(text)) if text == "all" => Ok(Some(usize::MAX)),
            Some(value) => match integer(&value) {
                Some(count) => Ok(Some(count)),
                None => Err(Failure::argument(key, kind(&value), "\"auto\", \"all\" or a number of layers")),
            },
        }
    }

    pub(super) fn number(&mut self, key: &'static str) -> Outcome<Option<f32>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        float(&value).map(Some).ok_or_else(|| Failure::argument(key, kind(&value), "a number"))
    }

    pub(super) fn text(&mut self, key: &'static str) -> Outcome<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(Failure::argument(key, kind(&other), "a string")),
        }
    }

    /// What the answer must obey: one of four keys.
    pub(super) fn constraint(&mut self) -> Outcome<Option<ConstraintSpec>> {
        let mut specs = Vec::new();
        if self.boolean("json_object", false)? {
            specs.push(("json_object", ConstraintSpec::JsonObject));
        }
        match self.take("json_schema") {
            None => {}
            Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
                specs.push(("json_schema", ConstraintSpec::JsonSchema(schema)));
            }
            Some(other) => return Err(Failure::argument("json_schema", kind(&other), "a JSON Schema")),
        }
        let texts = [("regex", ConstraintSpec::Regex as fn(String) -> _), ("grammar", ConstraintSpec::Lark)];
        for (key, spec) in texts {
            match self.take(key) {
                None => {}
                Some(Value::String(text)) => specs.push((key, spec(text))),
                Some(other) => return Err(Failure::argument(key, kind(&other), "a string")),
            }
        }
        if let [(first, _), (second, _), ..] = specs[..] {
            return Err(Failure::argument(second, format!("`{first}` as well"), "one constraint"));
        }
        Ok(specs.pop().map(|(_, spec)| spec))
    }

    pub(super) fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Outcome<Option<T>> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let found = choices.iter().find(|(name, _)| value.as_str() == Some(name));
        found.map(|(_, choice)| Some(*choice)).ok_or_else(|| {
            let found = match &value {
                Value::String(text) => text.chars().take(64).collect(),
                other => kind(other),
            };
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            Failure::argument(key, found, format!("one of {}", names.join(", ")))
        })
    }

    pub(super) fn cache_type(&mut self) -> Outcome<Option<CacheType>> {
        self.choice(
            "cache_type",
            &[("f16", CacheType::F16), ("f32", CacheType::F32), ("q8_0", CacheType::Q8_0)],
        )
    }

    pub(super) fn limits(&mut self) -> Outcome<Limits> {
        Ok(Limits {
            max_prompt_tokens: self.unsigned("max_prompt_tokens")?,
            max_output_tokens: self.unsigned("max_output_tokens")?,
            max_time: self.unsigned("max_time_ms")?.map(Duration::from_millis),
        })
    }

    pub(super) fn sampling(&mut self) -> Outcome<SamplingParams> {
        let mut sampling = SamplingParams::greedy();
        sampling.temperature = self.number("temperature")?.unwrap_or(sampling.temperature);
        sampling.top_k = self.unsigned("top_k")?.unwrap_or(sampling.top_k);
        sampling.top_p = self.number("top_p")?.unwrap_or(sampling.top_p);
        sampling.min_p = self.number("min_p")?.unwrap_or(sampling.min_p);
        sampling.repetition_penalty =
            self.number("repetition_penalty")?.unwrap_or(sampling.repetition_penalty);
        sampling.presence_penalty = self.number("presence_penalty")?.unwrap_or(sampling.presence_penalty);
        sampling.frequency_penalty = self.number("frequency_penalty")?.unwrap_or(sampling.frequency_penalty);
        sampling.penalty_window = self.unsigned("penalty_window")?;
        sampling.logit_bias = self.logit_bias("logit_bias")?;
        sampling.seed = self.unsigned("seed")?.unwrap_or(sampling.seed);
        Ok(sampling)
    }

    /// A key in hexadecimal digits (where it has no others, and an even number of at least 32), or else in Base64. It is not quoted.
    pub(super) fn key(&mut self, name: &'static str) -> Outcome<Option<Vec<u8>>> {
        let expected = "text in hexadecimal digits or Base64, of at least 16 bytes";
        let text = match self.take(name) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(other) => return Err(Failure::argument(name, kind(&other), expected)),
        };
        let (pairs, odd) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
        let hex = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
        let hex = hex.collect::<Option<Vec<u8>>>().filter(|bytes| odd.is_empty() && bytes.len() >= 16);
        let key = hex.or_else(|| BASE64_STANDARD.decode(&text).ok());
        key.map(Some).ok_or_else(|| Failure::argument(name, "other text", expected))
    }

    pub(super) fn audit_key(&mut self, name: &'static str) -> Outcome<Option<AuditKey>> {
        Ok(self.key(name)?.map(|key| AuditKey::new(&key)).transpose()?)
    }

    pub(super) fn version(&mut self, key: &'static str) -> Outcome<Option<TokenizerVersion>> {
        self.choice(key, &TokenizerVersion::ALL.map(|version| (version.as_str(), version)))
    }

    /// One string, or a list of them.
    pub(super) fn strings(&mut self, key: &'static str) -> Outcome<Vec<String>> {
        let list = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::String(text)) => return Ok(vec![text]),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(Failure::argument(key, kind(&other), "a string or a list of strings")),
        };
        let text = |(i, value)| match value {
            Value::String(text) => Ok(text),
            other => Err(Failure::argument(&format!("{key}[{i}]"), kind(&other), "a string")),
        };
        list.into_iter().enumerate().map(text).collect()
    }

    pub(super) fn tokens(&mut self, key: &'static str) -> Outcome<Vec<u32>> {
        let list = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) => list,
            Some(other) => return Err(Failure::argument(key, kind(&other), "a list of tokens")),
        };
        let token = |(i, value)| {
            integer(&value)
                .ok_or_else(|| Failure::argument(&format!("{key}[{i}]"), kind(&value), integers::<u32>()))
        };
        list.into_iter().enumerate().map(token).collect()
    }

    /// An object from tokens, as strings, to numbers, as in the OpenAI API.
    pub(super) fn logit_bias(&mut self, key: &'static str) -> Outcome<Vec<(u32, f32)>> {
        let map = match self.take(key) {
            None => return Ok(Vec::new()),
            Some(Value::Object(map)) => map,
            Some(other) => {
                return Err(Failure::argument(key, kind(&other), "an object from tokens to numbers"));
            }
        };
        let entry = |(token, bias): (&String, &Value)| {
            let name: String = token.chars().take(64).collect();
            let id =
                token.parse().map_err(|_| Failure::argument(key, format!("the key `{name}`"), "a token"))?;
            let bias = float(bias)
                .ok_or_else(|| Failure::argument(&format!("{key}.{name}"), kind(bias), "a number"))?;
            Ok((id, bias))
        };
        map.iter().map(entry).collect()
    }

    /// How many alternatives to report; `true` reports the token's own log-probability only.
    pub(super) fn logprobs(&mut self, key: &'static str) -> Outcome<Option<usize>> {
        match self.take(key) {
            None | Some(Value::Bool(false)) => Ok(None),
            Some(Value::Bool(true)) => Ok(Some(0)),
            Some(value) => integer(&value).map(Some).ok_or_else(|| {
                Failure::argument(key, kind(&value), "true, false or the number of alternatives")
            }),
        }
    }
}

/// What a value is. Strings are not quoted: they may be text of a prompt.
pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn integer<T: TryFrom<u64>>(value: &Value) -> Option<T> {
    value.as_u64().and_then(|value| T::try_from(value).ok())
}

fn float(value: &Value) -> Option<f32> {
    value.as_f64().map(|value| value as f32).filter(|value| value.is_finite())
}

fn integers<T>() -> String {
    format!("an integer from 0 to 2^{} - 1", size_of::<T>() * 8)
}
