//! Keys and values of the tokens so far, allocated once for the chosen context.

use burn::tensor::{DType, Device, Int, Tensor};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::kernels::{self, AttentionSpec, CacheSpec, CacheType};

/// The keys and values of one layer: a ring of as many positions as the layer can see.
#[derive(Debug)]
pub struct LayerCache {
    /// `None` only while a kernel holds it (so that it changes it in place), or after one panicked.
    k: Option<Tensor<1, Int>>,
    v: Option<Tensor<1, Int>>,
    spec: CacheSpec,
    window: Option<usize>,
}

impl LayerCache {
    /// Stores `k`, `v: [t, n_kv_heads * head_dim]` at positions `start..start + t`.
    pub fn write(&mut self, start: usize, k: Tensor<2>, v: Tensor<2>) {
        for (cache, rows) in [(&mut self.k, k), (&mut self.v, v)] {
            let taken = cache.take().expect("a session that panicked is not used again");
            *cache = Some(kernels::cache_write(taken, rows, &self.spec, start));
        }
    }

    /// Attention of `q: [t, n_heads * head_dim]` at positions `start..start + t` over what is stored.
    pub fn attend(&self, q: Tensor<2>, start: usize, n_heads: usize, window: Option<usize>) -> Tensor<2> {
        let scale = 1.0 / (self.spec.head_dim as f32).sqrt();
        let spec = AttentionSpec { n_heads, start, window, scale, cache: self.spec.clone() };
        let [k, v] =
            [&self.k, &self.v].map(|c| c.clone().expect("a session that panicked is not used again"));
        kernels::attention(q, k, v, spec)
    }
}

/// The cache of a session.
#[derive(Debug)]
pub struct KvCache {
    /// One entry a layer.
    pub layers: Vec<LayerCache>,
    /// Positions stored: the next token's position.
    pub len: usize,
    /// Positions that may be stored.
    pub capacity: usize,
    /// One past the last position that was ever written: what a ring has overwritten.
    pub written: usize,
}

impl KvCache {
    /// An empty cache for `capacity` positions, of which at most `chunk` are written at a time.
    ///
    /// A layer with a window keeps `window + chunk` positions: the first query of a chunk still sees its whole window after the chunk was written.
    ///
    /// # Errors
    /// [`Error::Limit`] if the size overflows or the system does not have as much.
    pub fn new(
        config: &ModelConfig,
        capacity: usize,
        chunk: usize,
        cache_type: CacheType,
        device: &Device,
    ) -> Result<Self> {
        let too_large = || Error::limit("context", capacity, "what fits into the address space");
        reserve(Self::bytes(config, capacity, chunk, cache_type).ok_or_else(too_large)?)?;
        let layers = config.layers.iter().map(|layer| {
            let spec = layer_spec(config, layer.window, capacity, chunk, cache_type);
            let bytes = layer_bytes(&spec).ok_or_else(too_large)?;
            let zeros = || Some(Tensor::zeros([bytes], (device, DType::U8)));
            Ok(LayerCache { k: zeros(), v: zeros(), spec, window: layer.window })
        });
        Ok(Self { layers: layers.collect::<Result<_>>()?, len: 0, capacity, written: 0 })
    }

    /// Whether the keys and values that the token at position `len` sees are all still there: a ring may have overwritten them.
    pub fn can_rewind(&self, len: usize) -> bool {
        self.layers.iter().all(|layer| {
            let oldest = self.written.saturating_sub(layer.spec.capacity);
            let first_visible = layer.window.map_or(0, |window| (len + 1).saturating_sub(window));
            len <= self.len && oldest <= first_visible
        })
    }

    /// Bytes that [`KvCache::new`] would allocate, or `None` if that overflows.
    pub fn bytes(
        config: &ModelConfig,
        capacity: usize,
        chunk: usize,
        cache_type: CacheType,
    ) -> Option<usize> {
        config.layers.iter().try_fold(0usize, |sum, layer| {
            let spec = layer_spec(config, layer.window, capacity, chunk, cache_type);
            sum.checked_add(layer_bytes(&spec)?.checked_mul(2)?)
        })
    }
}

/// Fails if the system does not give `bytes` at once: a tensor that cannot be allocated would end the process.
fn reserve(bytes: usize) -> Result<()> {
    let mut memory = Vec::<u8>::new();
    let given = memory.try_reserve_exact(bytes);
    // An allocation that nobody looks at may be left out.
    std::hint::black_box(&memory);
    given.map_err(|_| {
        Error::limit("context", format!("{bytes} bytes of keys and values"), "what the system has")
    })
}

fn layer_spec(
    config: &ModelConfig,
    window: Option<usize>,
    capacity: usize,
    chunk: usize,
    cache_type: CacheType,
) -> CacheSpec {
    let capacity = window.map_or(capacity, |window| window.saturating_add(chunk).min(capacity));
    CacheSpec { n_kv_heads: config.n_kv_heads, capacity, head_dim: config.head_dim, cache_type }
}

fn layer_bytes(spec: &CacheSpec) -> Option<usize> {
    let elements = spec.n_kv_heads.checked_mul(spec.capacity)?.checked_mul(spec.head_dim)?;
    elements.checked_mul(spec.cache_type.bytes()).filter(|&bytes| bytes <= isize::MAX as usize)
}
