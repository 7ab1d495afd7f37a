//! A machine-readable mark that a text was generated: a small JSON object beside the text, which says so, by which model and when, and of which text.
//!
//! It is what Article 50(2) of Regulation (EU) 2024/1689 asks of those who provide such systems, as far as a text can have it: the text itself is not changed, so a
//! mark is lost where nobody keeps it. It is not signed; a record of the audit log is what proves that the answer was given.

use std::time::SystemTime;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::audit::utc;
use crate::control::Control;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::provenance::hex;

/// What the field `schema` says.
pub const SCHEMA: &str = "mistral.sidecar/1";

/// IPTC's term for what a model has made, which C2PA and others use.
const SOURCE: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";

/// The mark of `text`, which `model` generated now. Names the model by [`Model::digest`], which the first call computes.
///
/// # Errors
/// As [`Model::digest`].
pub fn mark(model: &Model, text: &str, control: &mut Control<'_>) -> Result<Value> {
    let name = model.path().file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(json!({
        "schema": SCHEMA,
        "ai_generated": true,
        "digital_source_type": SOURCE,
        "created": utc(SystemTime::now()),
        "model": {"name": name, "sha256": hex(&model.digest(control)?)},
        "generator": {"name": "mistral", "version": env!("CARGO_PKG_VERSION")},
        "output": {
            "media_type": "text/plain; charset=utf-8", "bytes": text.len(), "sha256": hex(&Sha256::digest(text)),
        },
    }))
}

/// Whether `mark` is the mark of `text`.
///
/// # Errors
/// [`Error::Integrity`] for that of another text; [`Error::Format`] for what is no mark.
pub fn check(mark: &Value, text: &str) -> Result<()> {
    if mark["schema"] != SCHEMA || mark["ai_generated"] != true {
        return Err(Error::format("mark", "schema", "another", SCHEMA));
    }
    let output = &mark["output"];
    if output["bytes"] != text.len() || output["sha256"] != hex(&Sha256::digest(text)) {
        return Err(Error::integrity("mark", "that of another text", "the mark of this text"));
    }
    Ok(())
}
