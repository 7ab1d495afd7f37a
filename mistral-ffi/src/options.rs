//! Options as JSON objects: each key is known and of its type, or the error names it.

mod fields;

use mistral_core::audit::{AuditOptions, AuditVerifyOptions, Checkpoint, CheckpointOptions, SyncPolicy};
use mistral_core::chat::ValidationMode;
use mistral_core::chat::request::ChatRequest;
use mistral_core::generate::GenerateOptions;
use mistral_core::kernels::{Activation, CacheType};
use mistral_core::provenance::VerifyOptions;
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::tokenizer::TokenizerVersion;
use mistral_core::{ChatOptions, EmbedOptions, Limits, ModelOptions, Pooling, SessionOptions};
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use fields::{Fields, kind};

/// The most bytes of options or of a request that are read.
pub(crate) const MAX_JSON: usize = 64 << 20;

/// The options of [`mistral_encode`](crate::text::mistral_encode).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct EncodeOptions {
    pub(crate) bos: bool,
    pub(crate) special: bool,
}

/// The options of `mistral_model_open`.
pub(crate) fn model(text: Option<&str>) -> Outcome<ModelOptions> {
    let mut fields = Fields::read(text)?;
    let options = model_fields(&mut fields)?;
    fields.finish()?;
    Ok(options)
}

fn model_fields(fields: &mut Fields) -> Outcome<ModelOptions> {
    let mut options = ModelOptions::default();
    options.device = fields.text("device")?.unwrap_or(options.device);
    options.gpu_layers = fields.layers("gpu_layers")?;
    options.threads = fields.unsigned("threads")?;
    options.quantize = fields
        .choice("quantize", &[("q8_0", Format::Q8_0), ("q4_0", Format::Q4_0), ("q4_k", Format::Q4_K)])?;
    let activations = [("int8", Activation::Int8), ("f32", Activation::F32)];
    options.activation = fields.choice("activation", &activations)?.unwrap_or(options.activation);
    options.max_memory = fields.unsigned("max_memory")?;
    options.max_model_bytes = fields.unsigned("max_model_bytes")?;
    options.max_sessions = fields.unsigned("max_sessions")?;
    options.limits = fields.limits()?;
    options.lock_memory = fields.boolean("lock_memory", options.lock_memory)?;
    options.large_pages = fields.boolean("large_pages", options.large_pages)?;
    options.reproducible = fields.boolean("reproducible", options.reproducible)?;
    options.weights = fields.boolean("weights", options.weights)?;
    options.tokenizer_version = fields.version("tokenizer_version")?;
    options.verify = fields.object("verify")?.map(verification).transpose()?;
    options.audit = fields.object("audit")?.map(audit).transpose()?;
    Ok(options)
}

/// The options of `mistral_audit_verify`.
pub(crate) fn audit_verify(text: Option<&str>) -> Outcome<AuditVerifyOptions> {
    let mut fields = Fields::read(text)?;
    let checkpoints = match fields.take("checkpoints") {
        None => Vec::new(),
        Some(Value::Array(list)) => {
            let read = |(i, value)| Checkpoint::from_json(&format!("checkpoints[{i}]"), value);
            list.iter().enumerate().map(read).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(Failure::argument("checkpoints", kind(&other), "a list of checkpoints")),
    };
    let options = AuditVerifyOptions {
        checkpoints,
        checkpoint_key: fields.audit_key("checkpoint_key")?,
        allow_incomplete: fields.boolean("allow_incomplete", false)?,
    };
    fields.finish()?;
    Ok(options)
}

/// The option `audit` of models and sessions.
fn audit(mut fields: Fields) -> Outcome<AuditOptions> {
    let path = fields.text("path")?;
    let mut options = AuditOptions::new(path.ok_or_else(|| Failure::argument("path", "nothing", "the log"))?);
    options.required = fields.boolean("required", options.required)?;
    options.key = fields.audit_key("key")?;
    options.text = fields.boolean("text", options.text)?;
    options.rotate_bytes = fields.unsigned("rotate_bytes")?;
    options.sync = fields.unsigned("sync_every")?.map_or(options.sync, SyncPolicy::Every);
    options.checkpoint = fields.object("checkpoint")?.map(checkpoint).transpose()?;
    options.caller_ref = fields.text("caller_ref")?;
    fields.finish()?;
    Ok(options)
}

fn checkpoint(mut fields: Fields) -> Outcome<CheckpointOptions> {
    let path =
        fields.text("path")?.ok_or_else(|| Failure::argument("checkpoint.path", "nothing", "a file"))?;
    let every = fields.unsigned("every")?.unwrap_or(1);
    let options = CheckpointOptions { path: path.into(), every, key: fields.audit_key("key")? };
    fields.finish()?;
    Ok(options)
}

/// The options of `mistral_verify`.
pub(crate) fn verify(text: Option<&str>) -> Outcome<VerifyOptions> {
    verification(Fields::read(text)?)
}

fn verification(mut fields: Fields) -> Outcome<VerifyOptions> {
    let options = VerifyOptions {
        manifest: fields.text("manifest")?.map(Into::into),
        signature: fields.text("signature")?.map(Into::into),
        keys: fields.strings("keys")?,
        ignore: fields.strings("ignore")?,
    };
    fields.finish()?;
    Ok(options)
}

/// The options of `mistral_chat_encode` and `mistral_chat_render`.
pub(crate) fn chat(text: Option<&str>) -> Outcome<ChatOptions> {
    let mut fields = Fields::read(text)?;
    let modes = [
        ("test", ValidationMode::Test),
        ("serving", ValidationMode::Serving),
        ("finetuning", ValidationMode::Finetuning),
        ("agnostic", ValidationMode::Agnostic),
    ];
    let mode = fields.choice("mode", &modes)?.unwrap_or_default();
    let local_time = fields.unsigned::<u32>("local_time")?.map(i64::from);
    fields.finish()?;
    Ok(ChatOptions { mode, local_time })
}

/// The options of `mistral_chat_parse`.
pub(crate) fn parse(text: Option<&str>) -> Outcome<Option<TokenizerVersion>> {
    let mut fields = Fields::read(text)?;
    let version = fields.version("tokenizer_version")?;
    fields.finish()?;
    Ok(version)
}

/// The options of `mistral_model_estimate`: the model, one session, and how many of them.
pub(crate) fn estimate(text: Option<&str>) -> Outcome<(ModelOptions, SessionOptions, usize)> {
    let mut fields = Fields::read(text)?;
    let model = model_fields(&mut fields)?;
    let session = SessionOptions {
        context: fields.unsigned("context")?,
        cache_type: fields.cache_type()?.unwrap_or_default(),
    };
    let sessions = fields.unsigned("sessions")?.unwrap_or(1);
    fields.finish()?;
    Ok((model, session, sessions))
}

/// The options of `mistral_session_new`.
pub(crate) fn session(text: Option<&str>) -> Outcome<(SessionOptions, Limits, Option<AuditOptions>)> {
    let mut fields = Fields::read(text)?;
    let context = fields.unsigned("context")?;
    let cache_type = fields.cache_type()?.unwrap_or_default();
    let limits = fields.limits()?;
    let audit = fields.object("audit")?.map(audit).transpose()?;
    fields.finish()?;
    Ok((SessionOptions { context, cache_type }, limits, audit))
}

/// The options of `mistral_session_save`: the key.
pub(crate) fn save(text: Option<&str>) -> Outcome<Option<Vec<u8>>> {
    let mut fields = Fields::read(text)?;
    let key = fields.key("key")?;
    fields.finish()?;
    Ok(key)
}

/// The options of `mistral_session_load`.
#[derive(Debug)]
pub(crate) struct LoadOptions {
    pub(crate) context: Option<usize>,
    pub(crate) cache_type: Option<CacheType>,
    pub(crate) limits: Limits,
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) audit: Option<AuditOptions>,
}

/// The options of `mistral_session_load`.
pub(crate) fn load(text: Option<&str>) -> Outcome<LoadOptions> {
    let mut fields = Fields::read(text)?;
    let options = LoadOptions {
        context: fields.unsigned("context")?,
        cache_type: fields.cache_type()?,
        limits: fields.limits()?,
        key: fields.key("key")?,
        audit: fields.object("audit")?.map(audit).transpose()?,
    };
    fields.finish()?;
    Ok(options)
}

/// The options of `mistral_generate` and `mistral_generation_new`.
pub(crate) fn generate(text: Option<&str>) -> Outcome<GenerateOptions> {
    let mut fields = Fields::read(text)?;
    let mut options = GenerateOptions { sampling: fields.sampling()?, ..GenerateOptions::default() };
    options.sampling.logprobs = fields.logprobs("logprobs")?;
    options.max_tokens = fields.unsigned("max_tokens")?;
    options.stop = fields.strings("stop")?;
    options.stop_tokens = fields.tokens("stop_tokens")?;
    options.ignore_eos = fields.boolean("ignore_eos", false)?;
    options.prompt_lookup = fields.unsigned("prompt_lookup")?.unwrap_or(0);
    options.show_special = fields.boolean("show_special", false)?;
    options.caller_ref = fields.text("caller_ref")?;
    options.constraint = fields.constraint()?;
    fields.finish()?;
    Ok(options)
}

/// The options of `mistral_sample`.
pub(crate) fn sample(text: Option<&str>) -> Outcome<SamplingParams> {
    let mut fields = Fields::read(text)?;
    let sampling = fields.sampling()?;
    fields.finish()?;
    Ok(sampling)
}

/// The options of `mistral_embed`.
pub(crate) fn embed(text: Option<&str>) -> Outcome<EmbedOptions> {
    let mut fields = Fields::read(text)?;
    let poolings = [("mean", Pooling::Mean), ("last", Pooling::Last)];
    let options = EmbedOptions {
        pooling: fields.choice("pooling", &poolings)?.unwrap_or_default(),
        normalize: fields.boolean("normalize", true)?,
    };
    fields.finish()?;
    Ok(options)
}

/// The options of `mistral_encode`.
pub(crate) fn encode(text: Option<&str>) -> Outcome<EncodeOptions> {
    let mut fields = Fields::read(text)?;
    let options =
        EncodeOptions { bos: fields.boolean("bos", false)?, special: fields.boolean("special", false)? };
    fields.finish()?;
    Ok(options)
}

/// The options of `mistral_decode`: whether control tokens give their names.
pub(crate) fn decode(text: Option<&str>) -> Outcome<bool> {
    let mut fields = Fields::read(text)?;
    let special = fields.boolean("special", false)?;
    fields.finish()?;
    Ok(special)
}

/// A chat-completions request, its numbers with all their digits.
pub(crate) fn request(text: &str) -> Outcome<ChatRequest> {
    check_size("request", text)?;
    Ok(ChatRequest::from_json(text)?)
}

fn check_size(name: &str, text: &str) -> Outcome {
    if text.len() <= MAX_JSON {
        return Ok(());
    }
    let found = format!("{} bytes", text.len());
    Err(mistral_core::Error::limit(name, found, format!("{MAX_JSON} bytes")).into())
}

/// Any JSON that is the argument `name`.
pub(crate) fn json(name: &str, text: &str) -> Outcome<Value> {
    check_size(name, text)?;
    // Its own message may quote a key of the request: line and column say enough.
    serde_json::from_str(text).map_err(|e| {
        let found = format!("a mistake in line {}, column {}", e.line(), e.column());
        Failure::argument(name, found, "one JSON object")
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mistral_core::ConstraintSpec;

    use super::*;
    use crate::types::MISTRAL_E_ARGUMENT;

    fn message<T>(outcome: Outcome<T>) -> String {
        let failure = outcome.err().expect("the options are wrong");
        assert_eq!(failure.status, MISTRAL_E_ARGUMENT);
        failure.to_string()
    }

    #[test]
    fn every_key_reaches_its_option() {
        let options = generate(Some(
            r#"{"temperature": 0.5, "top_k": 40, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1,
                "presence_penalty": -1, "frequency_penalty": 1.5, "penalty_window": 64, "logit_bias": {"7": -100},
                "seed": 18446744073709551615, "logprobs": 3, "max_tokens": 9, "stop": ["a", "b"],
                "stop_tokens": [1, 2], "ignore_eos": true, "prompt_lookup": 10, "show_special": true}"#,
        ))
        .unwrap();
        let sampling = &options.sampling;
        assert_eq!(
            (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p),
            (0.5, 40, 0.9, 0.1)
        );
        assert_eq!((sampling.repetition_penalty, sampling.presence_penalty), (1.1, -1.0));
        assert_eq!((sampling.frequency_penalty, sampling.penalty_window), (1.5, Some(64)));
        assert_eq!((&sampling.logit_bias[..], sampling.seed), (&[(7, -100.0)][..], u64::MAX));
        assert_eq!((sampling.logprobs, options.max_tokens), (Some(3), Some(9)));
        assert_eq!((options.stop, options.stop_tokens), (vec!["a".to_owned(), "b".to_owned()], vec![1, 2]));
        assert!(options.ignore_eos && options.show_special && options.prompt_lookup == 10);
        for (text, spec) in [
            (r#"{"json_object": true}"#, ConstraintSpec::JsonObject),
            (
                r#"{"json_schema": {"type": "null"}}"#,
                ConstraintSpec::JsonSchema(serde_json::json!({"type": "null"})),
            ),
            (r#"{"json_schema": true, "json_object": false}"#, ConstraintSpec::JsonSchema(Value::Bool(true))),
            (r#"{"regex": "a+"}"#, ConstraintSpec::Regex("a+".to_owned())),
            (r#"{"grammar": "start: \"a\""}"#, ConstraintSpec::Lark("start: \"a\"".to_owned())),
        ] {
            assert_eq!(generate(Some(text)).unwrap().constraint, Some(spec), "{text}");
        }

        let options = model(Some(
            r#"{"device": "ndarray", "threads": 3, "quantize": "q4_k", "activation": "f32", "max_memory": 5,
                "weights": false, "tokenizer_version": "v7",
                "verify": {"manifest": "m", "signature": "s", "keys": ["k"], "ignore": "i"}}"#,
        ))
        .unwrap();
        let verified = options.verify.as_ref().unwrap();
        assert_eq!(
            (verified.manifest.as_deref(), &verified.keys[..]),
            (Some("m".as_ref()), &["k".to_owned()][..])
        );
        assert_eq!(
            (verified.signature.as_deref(), &verified.ignore[..]),
            (Some("s".as_ref()), &["i".to_owned()][..])
        );
        assert_eq!((options.device.as_str(), options.threads), ("ndarray", Some(3)));
        assert_eq!((options.quantize, options.activation), (Some(Format::Q4_K), Activation::F32));
        assert_eq!((options.max_memory, options.weights), (Some(5), false));
        assert_eq!(options.tokenizer_version, Some(TokenizerVersion::V7));

        let limits = r#""max_prompt_tokens": 3, "max_output_tokens": 4, "max_time_ms": 5"#;
        let options = session(Some(&format!(r#"{{"context": 12, "cache_type": "f32", {limits}}}"#))).unwrap();
        assert_eq!(options.0, SessionOptions { context: Some(12), cache_type: CacheType::F32 });
        let expected = Limits {
            max_prompt_tokens: Some(3),
            max_output_tokens: Some(4),
            max_time: Some(Duration::from_millis(5)),
        };
        assert_eq!(options.1, expected);
        let options =
            model(Some(&format!(r#"{{"max_model_bytes": 1, "max_sessions": 2, {limits}}}"#))).unwrap();
        assert_eq!((options.max_model_bytes, options.max_sessions), (Some(1), Some(2)));
        assert_eq!(options.limits, expected);
        let options =
            estimate(Some(r#"{"quantize": "q8_0", "context": 7, "cache_type": "f32", "sessions": 9}"#))
                .unwrap();
        assert_eq!((options.0.quantize, options.2), (Some(Format::Q8_0), 9));
        assert_eq!(options.1, SessionOptions { context: Some(7), cache_type: CacheType::F32 });
        let options = embed(Some(r#"{"pooling": "last", "normalize": false}"#)).unwrap();
        assert_eq!(options, EmbedOptions { pooling: Pooling::Last, normalize: false });
        assert_eq!(embed(None).unwrap(), EmbedOptions::default());
        let options = sample(Some(r#"{"temperature": 1, "seed": 3}"#)).unwrap();
        assert_eq!(options, SamplingParams { seed: 3, ..SamplingParams::default() });
        assert!(message(sample(Some(r#"{"max_tokens": 1}"#))).contains("max_tokens"));
        assert_eq!(encode(Some(r#"{"bos": true}"#)).unwrap(), EncodeOptions { bos: true, special: false });
        let options = chat(Some(r#"{"mode": "serving", "local_time": 5}"#)).unwrap();
        assert_eq!(options, ChatOptions { mode: ValidationMode::Serving, local_time: Some(5) });
        assert_eq!(parse(Some(r#"{"tokenizer_version": "v11"}"#)).unwrap(), Some(TokenizerVersion::V11));
    }

    #[test]
    fn no_options_and_nulls_are_the_defaults() {
        assert_eq!(generate(None).unwrap(), GenerateOptions::default());
        assert_eq!(generate(Some("null")).unwrap(), GenerateOptions::default());
        let options = session(Some(r#"{"context": null}"#)).unwrap();
        assert_eq!(options, (SessionOptions::default(), Limits::default(), None));
        assert_eq!(generate(Some(r#"{"stop": "x", "logprobs": true}"#)).unwrap().sampling.logprobs, Some(0));
    }

    #[test]
    fn a_wrong_key_or_value_is_named() {
        for (text, parts) in [
            (r#"{"contxt": 1}"#, ["`contxt`", "unknown key", "context, cache_type"]),
            (r#"{"context": -1}"#, ["`context`", "-1", "integer"]),
            (r#"{"context": 1.5}"#, ["`context`", "1.5", "integer"]),
            (r#"{"context": "12"}"#, ["`context`", "a string", "integer"]),
            (r#"{"cache_type": "q8"}"#, ["`cache_type`", "q8", "f16, f32, q8_0"]),
            ("[1]", ["`options`", "a list of 1", "object"]),
            ("{", ["`options`", "line 1", "JSON"]),
            ("{} {}", ["`options`", "column 4", "JSON"]),
        ] {
            let message = message(session(Some(text)));
            assert!(parts.iter().all(|part| message.contains(part)), "{message}");
        }
        assert!(message(chat(Some(r#"{"mode": "train"}"#))).contains("`mode`"));
        assert!(message(parse(Some(r#"{"version": "v7"}"#))).contains("`version`"));
        for (text, name) in [
            (r#"{"stop": [1]}"#, "`stop[0]`"),
            (r#"{"stop": 1}"#, "`stop`"),
            (r#"{"stop_tokens": [0, -1]}"#, "`stop_tokens[1]`"),
            (r#"{"stop_tokens": [4294967296]}"#, "`stop_tokens[0]`"),
            (r#"{"logit_bias": {"x": 1}}"#, "`logit_bias`"),
            (r#"{"logit_bias": {"1": "x"}}"#, "`logit_bias.1`"),
            (r#"{"logprobs": -1}"#, "`logprobs`"),
            (r#"{"temperature": 1e300}"#, "`temperature`"),
            (r#"{"ignore_eos": 1}"#, "`ignore_eos`"),
            (r#"{"json_schema": "text"}"#, "`json_schema`"),
            (r#"{"regex": 1}"#, "`regex`"),
            (r#"{"grammar": []}"#, "`grammar`"),
            (r#"{"json_object": 1}"#, "`json_object`"),
            (r#"{"json_object": true, "regex": "a"}"#, "`regex`"),
            (r#"{"grammar": "start: \"a\"", "json_schema": {}}"#, "`grammar`"),
        ] {
            assert!(message(generate(Some(text))).contains(name), "{text}");
        }
    }

    #[test]
    fn a_key_is_hexadecimal_or_base64() {
        let key = |text: &str| load(Some(&format!(r#"{{"key": "{text}"}}"#))).map(|options| options.key);
        assert_eq!(key("000102030405060708090A0b0c0d0e0f").unwrap(), Some((0..16).collect()));
        assert_eq!(key("AAECAwQFBgcICQoLDA0ODw==").unwrap(), Some((0..16).collect()));
        // Too short for a key: the engine says so.
        assert_eq!(key("AAECAw==").unwrap(), Some((0..4).collect()));
        assert_eq!(save(Some(r#"{"key": null}"#)).unwrap(), None);
        for bad in ["the secret", "AAECAwQFBgcICQoLDA0ODw", "000102030405060708090a0b0c0d0e0?"] {
            let message = message(key(bad));
            assert!(message.contains("`key`") && message.contains("Base64") && !message.contains(bad));
        }
        assert!(message(save(Some(r#"{"key": 7}"#))).contains("`key`"));
    }

    #[test]
    fn text_of_a_prompt_is_not_quoted() {
        let secret = format!(r#"{{"temperature": "the secret", "stop": {}}}"#, "[".repeat(200));
        assert!(!message(generate(Some(&secret))).contains("secret"));
        assert!(!message(generate(Some(r#"{"top_p": "the secret"}"#))).contains("secret"));
    }
}
