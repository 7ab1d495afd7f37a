//! What a model would take, told from the headers of its files.

use std::path::Path;

use serde_json::{Value, json};

use crate::cache::KvCache;
use crate::control::Control;
use crate::engine::{self, ModelOptions};
use crate::error::{Error, Result};
use crate::session::{PREFILL_CHUNK, SessionOptions};
use crate::weights;

/// What [`Model::open`](crate::Model::open) of `path` and `sessions` sessions would take, as JSON: `weights_bytes` (the files), `cache_bytes` (of
/// one session), `total_bytes` (what counts against `max_memory`), and what the model is: `format`, `files`, `architecture`, `n_layers`,
/// `vocab_size`, `max_context`. Only headers and configuration are read.
///
/// # Errors
/// Those of opening the model and the sessions, as far as they show without the weights and the tokenizer; limits included.
pub fn estimate(
    path: impl AsRef<Path>,
    options: &ModelOptions,
    session: &SessionOptions,
    sessions: usize,
) -> Result<Value> {
    engine::check(options)?;
    let checkpoint = weights::open(path.as_ref(), &mut Control::none())?;
    let config = &checkpoint.config;
    let context = session.context_for(config)?;
    let too_large = || Error::limit("context", context, "what fits into the address space");
    let cache =
        KvCache::bytes(config, context, PREFILL_CHUNK, session.cache_type).ok_or_else(too_large)? as u64;
    let caches = cache.checked_mul(sessions as u64).ok_or_else(too_large)?;
    engine::admits(options, &checkpoint, caches, sessions)?;
    let mut files = Vec::new();
    for file in checkpoint.files() {
        files.push(json!({"path": file.path.display().to_string(), "bytes": file.bytes}));
    }
    let weights = checkpoint.total_bytes();
    Ok(json!({
        "format": checkpoint.container(), "files": files, "architecture": config.architecture,
        "n_layers": config.layers.len(), "vocab_size": config.vocab_size, "max_context": config.max_context,
        "weights_bytes": weights, "context": context, "cache_type": session.cache_type.name(), "cache_bytes": cache,
        "sessions": sessions, "total_bytes": weights.saturating_add(caches),
    }))
}
