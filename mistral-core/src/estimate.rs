//! What a model would take, told from the headers of its files.

use std::path::Path;

use serde_json::{Value, json};

use crate::cache::KvCache;
use crate::control::Control;
use crate::device;
use crate::engine::{self, ModelOptions};
use crate::error::{Error, Result};
use crate::placement::Need;
use crate::session::{PREFILL_CHUNK, SessionOptions};
use crate::weights;

/// What [`Model::open`](crate::Model::open) of `path` and `sessions` sessions would take, as JSON: `weights_bytes` (the files), `cache_bytes` (of
/// one session), `total_bytes` (what counts against `max_memory`), and what the model is: `format`, `files`, `architecture`, `n_layers`,
/// `vocab_size`, `max_context`. Of a device with memory of its own, or `auto`, also `gpu_layers`, as many as are asked for or all, and
/// `device_bytes`, what these take of its memory with one session, at most. Only headers and configuration are read, and no device is opened.
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
    let mut estimate = json!({
        "format": checkpoint.container(), "files": files, "architecture": config.architecture,
        "n_layers": config.layers.len(), "vocab_size": config.vocab_size, "max_context": config.max_context,
        "weights_bytes": weights, "context": context, "cache_type": session.cache_type.name(), "cache_bytes": cache,
        "sessions": sessions, "total_bytes": weights.saturating_add(caches),
    });
    if !device::is_host(&options.device) {
        let need = Need::of(&checkpoint, options.quantize, (context, PREFILL_CHUNK), session.cache_type)?;
        let layers = options.gpu_layers.unwrap_or(usize::MAX).min(need.layers.len());
        estimate["gpu_layers"] = json!(layers);
        estimate["device_bytes"] = json!(need.with(layers));
    }
    Ok(estimate)
}
