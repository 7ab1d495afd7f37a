//! What is written down of a call.

use std::sync::Arc;
use std::time::Instant;

use hmac::{Hmac, Mac};
use serde_json::{Map, Value, json};
use sha2::Sha256;

use super::record::MAX_INTEGER;
use super::{AuditLog, AuditOptions};
use crate::error::{Error, Result};
use crate::provenance::hex;

/// What runs.
#[derive(Debug)]
pub(crate) struct Subject {
    /// The digest of the model, in hexadecimal digits.
    pub model_digest: String,
    pub device: String,
    /// The build of the library.
    pub build_id: String,
    /// Answers are text; those of a model without a tokenizer are tokens.
    pub has_text: bool,
}

/// A log to which the calls of a model or of a session are written.
#[derive(Clone, Debug)]
pub(crate) struct Attached {
    log: Arc<AuditLog>,
    options: Arc<AuditOptions>,
    subject: Arc<Subject>,
}

impl Attached {
    pub fn new(options: &AuditOptions, subject: Arc<Subject>) -> Result<Self> {
        Ok(Self { log: AuditLog::open(options)?, options: Arc::new(options.clone()), subject })
    }

    pub fn log(&self) -> &Arc<AuditLog> {
        &self.log
    }

    /// Writes that the model was opened.
    pub fn opened(&self, verified: Option<Value>) -> Result<()> {
        let mut fields = self.common("open");
        fields.insert("verified".to_owned(), verified.unwrap_or_default());
        self.write(fields).map(drop)
    }

    /// Writes that a call begins.
    ///
    /// # Errors
    /// [`Error::Audit`] where the log is required and cannot be written: the call must not run.
    pub fn begin(&self, call: &str, about: About<'_>) -> Result<Call> {
        let mut fields = self.common("begin");
        let mac = self.options.key.as_ref().map(|key| key.mac());
        let digest = mac.clone().zip(about.prompt).map(|(mut mac, prompt)| {
            prompt.into_iter().flatten().for_each(|token| mac.update(&token.to_le_bytes()));
            hex(&mac.finalize().into_bytes())
        });
        fields.insert("call".to_owned(), call.into());
        fields.insert("prompt_hmac".to_owned(), digest.into());
        fields.insert("prompt_tokens".to_owned(), (about.prompt_tokens as u64).min(MAX_INTEGER).into());
        fields.insert("options".to_owned(), about.options);
        fields.insert("seed".to_owned(), about.seed.map(|seed| seed.to_string()).into());
        if let Some(reference) = about.caller_ref {
            fields.insert("caller_ref".to_owned(), reference.into());
        }
        if self.options.text {
            let text = about.prompt.and_then(|prompt| (about.text)(&prompt.concat()));
            fields.insert("prompt".to_owned(), text.into());
        }
        let begin_seq = self.write(fields.clone())?;
        fields.insert("begin_seq".to_owned(), begin_seq.into());
        let text = self.options.text.then(String::new);
        Ok(Call {
            attached: self.clone(),
            fields,
            output: mac,
            text,
            tokens: 0,
            started: Instant::now(),
            open: true,
        })
    }

    fn common(&self, event: &str) -> Map<String, Value> {
        let Subject { model_digest, device, build_id, .. } = &*self.subject;
        let fields = json!({
            "event": event, "lib_version": env!("CARGO_PKG_VERSION"), "build_id": build_id,
            "model_digest": model_digest, "adapter_digests": [], "device": device,
            "caller_ref": self.options.caller_ref,
        });
        if let Value::Object(fields) = fields { fields } else { Map::new() }
    }

    /// The number of the record; none where it could not be written and need not be.
    fn write(&self, fields: Map<String, Value>) -> Result<Option<u64>> {
        match self.log.append(fields) {
            Ok(checkpoint) => Ok(Some(checkpoint.seq)),
            Err(error) if self.options.required => Err(error),
            Err(_) => Ok(None),
        }
    }
}

/// What is known of a call before it runs.
pub(crate) struct About<'a> {
    /// All that the model sees before its first own token: the timeline, and the tokens of the call. `None`: the call will be refused because
    /// they are too many, and nobody has looked whether they are there.
    pub prompt: Option<[&'a [u32]; 2]>,
    /// How many they are, or are said to be.
    pub prompt_tokens: usize,
    pub options: Value,
    pub seed: Option<u64>,
    pub caller_ref: Option<&'a str>,
    /// The text of a prompt, if it is to be written down.
    pub text: &'a dyn Fn(&[u32]) -> Option<String>,
}

/// A call that was begun. One that is dropped before its end was abandoned, and that is written as well.
#[derive(Debug)]
pub(crate) struct Call {
    attached: Attached,
    fields: Map<String, Value>,
    output: Option<Hmac<Sha256>>,
    text: Option<String>,
    tokens: u64,
    started: Instant,
    open: bool,
}

impl Call {
    /// A token of the answer, and the bytes of the text that became certain with it.
    pub fn token(&mut self, token: u32, text: &[u8]) {
        self.tokens += 1;
        if let Some(output) = &mut self.output {
            match self.attached.subject.has_text {
                true => output.update(text),
                false => output.update(&token.to_le_bytes()),
            }
        }
        if let Some(whole) = &mut self.text {
            whole.push_str(&String::from_utf8_lossy(text));
        }
    }

    /// Writes what the call came to.
    ///
    /// # Errors
    /// [`Error::Audit`] where the log is required and cannot be written.
    pub fn end<T>(mut self, result: &Result<T>, finish_reason: Option<&str>) -> Result<()> {
        self.close(result.as_ref().map_or_else(Error::kind, |_| "ok"), finish_reason)
    }

    fn close(&mut self, status: &str, finish_reason: Option<&str>) -> Result<()> {
        self.open = false;
        let mut fields = std::mem::take(&mut self.fields);
        let digest = self.output.take().map(|mac| hex(&mac.finalize().into_bytes()));
        for (key, value) in [
            ("event", json!("end")),
            ("output_hmac", json!(digest)),
            ("output_tokens", json!(self.tokens)),
            ("finish_reason", json!(finish_reason)),
            ("status", json!(status)),
            ("duration_ns", json!(self.started.elapsed().as_nanos().to_string())),
        ] {
            fields.insert(key.to_owned(), value);
        }
        fields.shift_remove("prompt");
        if let Some(text) = self.text.take() {
            fields.insert("output".to_owned(), text.into());
        }
        self.attached.write(fields).map(drop)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.open {
            // A destructor has nobody to tell.
            drop(self.close("abandoned", None));
        }
    }
}
