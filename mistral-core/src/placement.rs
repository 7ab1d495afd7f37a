//! What a model takes of a device's memory, and which of its layers go there.

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::device::Opened;
use crate::error::{Error, Result};
use crate::kernels::{self, CacheType};
use crate::quant::Format;
use crate::weights::Checkpoint;

/// What activations, staging and the memory of the runtime itself take beside weights and caches: a share of these, and bytes.
const SHARE: f64 = 0.15;
const FIXED: u64 = 200 << 20;

/// Bytes that a model takes on a device with memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// Of each layer: its weights, and its keys and values for one session.
    pub layers: Vec<u64>,
    /// Of the output layer.
    pub output: u64,
}

impl Need {
    /// Of `checkpoint`, for a session of `context` positions that are written at most `chunk` at a time.
    ///
    /// # Errors
    /// [`Error::Limit`] if a size overflows.
    pub fn of(
        checkpoint: &Checkpoint,
        quantize: Option<Format>,
        (context, chunk): (usize, usize),
        cache_type: CacheType,
    ) -> Result<Self> {
        let config = &checkpoint.config;
        let too_large = || Error::limit("context", context, "what fits into the address space");
        let mut layers = vec![0; config.layers.len()];
        for (bytes, layer) in layers.iter_mut().zip(&config.layers) {
            let alone = ModelConfig { layers: vec![*layer], ..config.clone() };
            *bytes = KvCache::bytes(&alone, context, chunk, cache_type).ok_or_else(too_large)? as u64;
        }
        let output = if config.tied_embeddings { "tok_embeddings.weight" } else { "output.weight" };
        let mut of_output = 0;
        for (name, shape, format) in checkpoint.names() {
            let bytes = stored_bytes(shape, format, quantize);
            let layer = name.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
            match layer.and_then(|layer: usize| layers.get_mut(layer)) {
                Some(sum) => *sum += bytes,
                None if name == output => of_output += bytes,
                None => {}
            }
        }
        Ok(Self { layers, output: of_output })
    }

    /// With the last `count` layers on the device: everything that it then takes, at most.
    pub fn with(&self, count: usize) -> u64 {
        let layers = &self.layers[self.layers.len().saturating_sub(count)..];
        let bytes = layers.iter().sum::<u64>() + if count == 0 { 0 } else { self.output };
        if count == 0 { 0 } else { bytes + (bytes as f64 * SHARE) as u64 + FIXED }
    }

    /// As many of the last layers as fit into `memory`.
    pub fn fit(&self, memory: u64) -> usize {
        (0..=self.layers.len()).rev().find(|&count| self.with(count) <= memory).unwrap_or(0)
    }
}

/// Bytes of a tensor in the form in which a device multiplies it.
fn stored_bytes(shape: &[usize], format: Format, quantize: Option<Format>) -> u64 {
    let elements: usize = shape.iter().product();
    let cols = shape.last().copied().unwrap_or(1).max(1);
    let quantize = quantize
        .filter(|to| shape.len() == 2 && !format.is_quantized() && cols.is_multiple_of(to.block_len()));
    let format = kernels::device_form(quantize.unwrap_or(format));
    let row = format.row_bytes(cols).unwrap_or(0);
    (elements / cols) as u64 * row as u64
}

/// Which layers of a model go to `opened`: `wanted` of them if the host has said how many, else all, or as many as fit.
///
/// # Errors
/// [`Error::Limit`] where not as many fit as the host wants.
pub fn place(opened: Opened, need: &Need, wanted: Option<usize>) -> Result<Opened> {
    if !opened.has_own_memory() {
        return Ok(opened);
    }
    let total = need.layers.len();
    let (count, memory) = match (wanted, opened.memory()) {
        (Some(wanted), memory) => (wanted.min(total), memory),
        (None, None) => (total, None),
        (None, Some(memory)) => (need.fit(memory), Some(memory)),
    };
    if let Some(memory) = memory.filter(|memory| need.with(count) > *memory) {
        let found = format!("{count} layers, which take {} bytes", need.with(count));
        return Err(Error::limit("gpu_layers", found, format!("{} in {memory} bytes", need.fit(memory))));
    }
    // The output layer comes after the last: it goes where that one goes.
    Ok(opened.with_first_layer(if count == 0 { total + 1 } else { total - count }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_layers_go_first_and_the_output_with_them() {
        let need = Need { layers: vec![10 << 20; 4], output: 20 << 20 };
        assert_eq!(need.with(0), 0);
        assert_eq!(need.with(1), (30 << 20) * 115 / 100 + FIXED);
        assert_eq!(need.fit(0), 0);
        assert_eq!(need.fit(need.with(3)), 3);
        assert_eq!(need.fit(need.with(3) - 1), 2);
        assert_eq!(need.fit(u64::MAX), 4);
    }
}
