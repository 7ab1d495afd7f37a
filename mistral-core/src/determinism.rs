//! Whether the same input gives the same tokens: what is promised, and a test of it on the machine at hand.
//!
//! | level | the same build, device, options and seed give the same tokens |
//! |---|---|
//! | D1 | every time |
//! | D2 | alone or while other sequences run, and however the prompt is cut into calls |
//! | D3 | with any number of threads |
//!
//! A device that promises them computes each output element by one fixed sequence of operations; so they cost nothing but the test. The same device
//! means the same instruction set and the same C library too: the promise is not made from one machine to another ([`report`] says which it is).

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::cache::KvCache;
use crate::control::{Control, Progress};
use crate::device;
use crate::engine::{Model, ModelOptions};
use crate::error::{Error, Result};
use crate::kernels::CacheType;
use crate::kernels::cpu::packed::arm_name;
use crate::kernels::cpu::pool::{self, Pool};
use crate::sampler::GENERATOR;
use crate::session::read;

/// The levels, in the order of their numbers.
pub const LEVELS: [&str; 3] = ["D1", "D2", "D3"];

/// Tokens of the test.
const TOKENS: usize = 8;

/// What the test of a model came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tested {
    milliseconds: u64,
}

/// The levels that every device of this build can be held to, by the name of the device.
pub fn of_devices() -> Value {
    device::names().into_iter().map(|name| (name.to_owned(), json!(levels(name)))).collect()
}

fn levels(device: &str) -> &'static [&'static str] {
    if device::is_reproducible(device) { &LEVELS } else { &[] }
}

/// Refuses a device that cannot promise what `reproducible` asks for.
pub(crate) fn check(options: &ModelOptions) -> Result<()> {
    if !options.reproducible || device::is_reproducible(&options.device) {
        return Ok(());
    }
    let found = format!("the device {}", options.device);
    Err(Error::unsupported("reproducible", found, "the device cpu or ndarray"))
}

/// What is guaranteed for a model, and where: tokens are compared between processes whose `scope` is the same.
pub(crate) fn report(options: &ModelOptions, tested: Option<Tested>) -> Value {
    let guaranteed = if options.reproducible { levels(&options.device) } else { &[] };
    json!({
        "reproducible": options.reproducible,
        "levels": guaranteed,
        "self_test": tested.map(|t| json!({"tokens": TOKENS, "milliseconds": t.milliseconds})),
        "scope": {
            "version": env!("CARGO_PKG_VERSION"), "device": options.device, "arch": std::env::consts::ARCH,
            "os": std::env::consts::OS, "kernels": arm_name(), "generator": GENERATOR,
        },
    })
}

/// Evaluates a few tokens in one pass on all threads, then cut up on one thread, and compares the logits bit for bit.
///
/// # Errors
/// [`Error::Device`] where they differ: a processor that computes wrongly, or a bug of this library; and what a pass can fail with.
pub(crate) fn test(model: &Model, control: &mut Control<'_>) -> Result<Tested> {
    let start = Instant::now();
    let vocab_size = model.vocab_size();
    let ids: Vec<u32> = (0..TOKENS).map(|i| (i * vocab_size / TOKENS) as u32).collect();
    let alone = Arc::new(
        Pool::new(1).map_err(|e| Error::limit("threads", format!("1 ({e})"), "what the system has"))?,
    );
    let mut step = |done| control.step(Progress { phase: "self-test", done, total: 2 });
    let whole = logits(model, model.pool(), &[&ids])?;
    step(1)?;
    let cut = logits(model, &alone, &[&ids[..5], &ids[5..6], &ids[6..7], &ids[7..]])?;
    step(2)?;
    compare(model, &whole, &cut)?;
    Ok(Tested { milliseconds: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX) })
}

fn compare(model: &Model, a: &[f32], b: &[f32]) -> Result<()> {
    let Some(i) = first_difference(a, b) else { return Ok(()) };
    let reason = format!(
        "is not reproducible: the logit of token {i} is {:e} in one pass, and {:e} token by token on one thread",
        a[i], b[i]
    );
    Err(Error::Device { device: model.options().device.clone(), reason })
}

fn first_difference(a: &[f32], b: &[f32]) -> Option<usize> {
    a.iter().zip(b).position(|(a, b)| a.to_bits() != b.to_bits())
}

/// The logits after the last of `chunks`, `[vocab_size]`.
fn logits(model: &Model, pool: &Arc<Pool>, chunks: &[&[u32]]) -> Result<Vec<f32>> {
    let weights = model.weights()?;
    let transformer = &weights.transformer;
    let mut cache = KvCache::new(&weights.config, TOKENS, TOKENS, CacheType::F16, model.device(), false)?;
    pool.scope(None, || {
        let mut last = Vec::new();
        for ids in chunks {
            let h = transformer.tok_embeddings.forward(ids)?;
            let h = transformer.forward(h, &mut cache, &mut pool::check)?; // [t, dim]
            last = read(transformer.logits(h.narrow(0, ids.len() - 1, 1)))?;
        }
        Ok(last)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_device_promises_is_refused() {
        let on = |device: &str, reproducible| ModelOptions {
            device: device.to_owned(),
            reproducible,
            ..ModelOptions::default()
        };
        let refused = check(&on("wgpu", true)).unwrap_err().to_string();
        assert!(refused.contains("reproducible") && refused.contains("wgpu"), "{refused}");
        assert!(check(&on("wgpu", false)).is_ok() && check(&on("cpu", true)).is_ok());
        assert_eq!(report(&on("cpu", false), None)["levels"], json!([]));
        assert_eq!(report(&on("cpu", true), None)["levels"], json!(LEVELS));
        assert_eq!(of_devices()["cpu"], json!(LEVELS));
    }

    #[test]
    fn logits_are_compared_by_their_bits() {
        assert_eq!(first_difference(&[1.0, -0.0], &[1.0, -0.0]), None);
        assert_eq!(first_difference(&[1.0, 0.0], &[1.0, -0.0]), Some(1));
        assert_eq!(first_difference(&[1.0, 2.0], &[1.0f32.next_up(), 2.0]), Some(0));
    }
}
