//! Keys and values of the tokens so far, allocated once for the chosen context.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};

use crate::config::ModelConfig;
use crate::device::{self, Opened};
use crate::error::{Error, Result};
use crate::kernels::{self, AttentionSpec, CacheSpec, CacheType};

/// The keys and values of one layer: a ring of as many positions as the layer can see.
#[derive(Clone, Debug)]
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

    /// Moves the positions that are held into new memory.
    fn own(&mut self, len: usize, written: usize) {
        let slots = self.slots(held(self.spec.capacity, len, written));
        for cache in [&mut self.k, &mut self.v] {
            let old = rows(cache.take().expect("a session that panicked is not used again"), &self.spec);
            let mut new = Tensor::zeros(old.dims(), (&old.device(), old.dtype()));
            for slots in &slots {
                let part = old.clone().slice([0..old.dims()[0], slots.clone()]);
                new = new.slice_assign([0..old.dims()[0], slots.clone()], part);
            }
            *cache = Some(new.flatten(0, 2));
        }
    }

    /// Appends keys and values of `positions` to `out`, each `[n_kv_heads, positions, head_dim]`.
    fn read(&self, positions: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
        let slots = self.slots(positions);
        for cache in [&self.k, &self.v] {
            let all = rows(cache.clone().expect("a session that panicked is not used again"), &self.spec);
            let part = |slots: &Range<usize>| all.clone().slice([0..self.spec.n_kv_heads, slots.clone()]);
            let parts: Vec<_> = slots.iter().map(part).collect();
            if parts.is_empty() {
                continue;
            }
            let device = format!("{:?}", all.device());
            let data = Tensor::cat(parts, 1).try_into_data();
            let data = data.map_err(|e| Error::Device { device, reason: e.to_string() })?;
            out.extend_from_slice(data.as_bytes());
        }
        Ok(())
    }

    /// Stores keys and values of `positions`, laid out as [`LayerCache::read`] gives them.
    fn write_rows(&mut self, positions: Range<usize>, bytes: &[u8]) {
        let (heads, count, width) = (self.spec.n_kv_heads, positions.len(), width(&self.spec));
        let slots = self.slots(positions);
        if count == 0 {
            return;
        }
        for (cache, bytes) in
            [&mut self.k, &mut self.v].into_iter().zip(bytes.chunks_exact(heads * count * width))
        {
            let mut all = rows(cache.take().expect("a session that panicked is not used again"), &self.spec);
            let shape = [heads, count, width / all.dtype().size()];
            let data = TensorData::from_bytes_vec(bytes.to_vec(), shape, all.dtype());
            let new = Tensor::<3, Int>::from_data(data, (&all.device(), all.dtype()));
            let mut from = 0;
            for slots in slots.clone() {
                let part = new.clone().slice([0..heads, from..from + slots.len()]);
                from += slots.len();
                all = all.slice_assign([0..heads, slots], part);
            }
            *cache = Some(all.flatten(0, 2));
        }
    }

    /// The slots of `positions` in their order: one run, or two where the ring begins anew.
    fn slots(&self, positions: Range<usize>) -> Vec<Range<usize>> {
        let (count, first) = (positions.len(), positions.start % self.spec.capacity);
        let before = count.min(self.spec.capacity - first);
        let runs = [first..first + before, 0..count - before];
        runs.into_iter().filter(|run| !run.is_empty()).collect()
    }
}

/// The positions that a ring of `capacity` holds when `len` are stored, of `written` that ever were.
fn held(capacity: usize, len: usize, written: usize) -> Range<usize> {
    written.saturating_sub(capacity).min(len)..len
}

/// Bytes of one head of one position.
fn width(spec: &CacheSpec) -> usize {
    spec.head_dim * spec.cache_type.bytes()
}

/// A cache as `[n_kv_heads, capacity, bytes or words]`.
fn rows(cache: Tensor<1, Int>, spec: &CacheSpec) -> Tensor<3, Int> {
    let width = width(spec) / cache.dtype().size();
    cache.reshape([spec.n_kv_heads, spec.capacity, width])
}

/// The cache of a session. A clone shares its memory until one of the two is about to write ([`KvCache::own`]).
#[derive(Clone, Debug)]
pub struct KvCache {
    /// One entry a layer.
    pub layers: Vec<LayerCache>,
    /// Positions stored: the next token's position.
    pub len: usize,
    /// Positions that may be stored.
    pub capacity: usize,
    /// One past the last position that was ever written: what a ring has overwritten.
    pub written: usize,
    /// Held by this cache and by those that share its memory.
    sharing: Arc<()>,
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
        device: &Opened,
    ) -> Result<Self> {
        let too_large = || Error::limit("context", capacity, "what fits into the address space");
        let all = Self::bytes(config, capacity, chunk, cache_type).ok_or_else(too_large)?;
        // A device with memory of its own says itself what it has not.
        let on_host = if device.has_own_memory() {
            device.first_layer.min(config.layers.len())
        } else {
            config.layers.len()
        };
        reserve(all / config.layers.len().max(1) * on_host)?;
        let layers = config.layers.iter().enumerate().map(|(i, layer)| {
            let on = device.on_layer(i);
            let (stored, most) = (device::stored(&on.device), device::max_tensor_bytes(&on.device));
            let spec = layer_spec(config, layer.window, capacity, chunk, cache_type);
            let bytes = layer_bytes(&spec).ok_or_else(too_large)?;
            if let Some(most) = most.filter(|most| bytes as u64 > *most) {
                let found = format!("{bytes} bytes of keys of a layer");
                return Err(Error::limit(
                    "context",
                    found,
                    format!("{most} bytes, the device's largest buffer"),
                ));
            }
            let zeros = || Some(on.lasting(|| Tensor::zeros([bytes / stored.size()], (&on.device, stored))));
            Ok(LayerCache { k: zeros(), v: zeros(), spec, window: layer.window })
        });
        let layers = layers.collect::<Result<_>>()?;
        device.settle()?;
        Ok(Self { layers, len: 0, capacity, written: 0, sharing: Arc::default() })
    }

    /// Gives a cache that shares its memory with a clone memory of its own, into which the positions in use are copied. The kernels never
    /// write to shared memory either, but they would copy all of it, used or not, and could not say that the system has no more.
    ///
    /// # Errors
    /// [`Error::Limit`] if the system does not have as much.
    pub fn own(&mut self) -> Result<()> {
        if Arc::strong_count(&self.sharing) == 1 {
            return Ok(());
        }
        reserve(self.size())?;
        for layer in &mut self.layers {
            layer.own(self.len, self.written);
        }
        self.sharing = Arc::default();
        Ok(())
    }

    /// Goes back to `len` positions, or to none where a ring has overwritten what the token there sees.
    pub fn rewind(&mut self, len: usize) {
        self.len = if self.can_rewind(len) { len } else { 0 };
        if self.len == 0 {
            self.written = 0;
        }
    }

    /// Bytes of all layers.
    pub fn size(&self) -> usize {
        // They were allocated, so their sum does not overflow.
        self.layers.iter().map(|layer| layer_bytes(&layer.spec).map_or(0, |bytes| 2 * bytes)).sum()
    }

    /// Which positions each layer of a cache of `capacity` holds when `len` are stored and `written` were; [`KvCache::read`] gives those.
    pub fn held(
        config: &ModelConfig,
        capacity: usize,
        chunk: usize,
        (len, written): (usize, usize),
    ) -> impl Iterator<Item = Range<usize>> {
        config.layers.iter().map(move |layer| held(ring(layer.window, capacity, chunk), len, written))
    }

    /// Appends the positions that are held to `out`: for each layer the keys, then the values, `[n_kv_heads, positions, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Device`] if they cannot be read.
    pub fn read(&self, out: &mut Vec<u8>) -> Result<()> {
        self.layers
            .iter()
            .try_for_each(|layer| layer.read(held(layer.spec.capacity, self.len, self.written), out))
    }

    /// Stores what [`KvCache::read`] gave: `positions` of each layer, out of `bytes`.
    pub fn write_all(&mut self, positions: impl Iterator<Item = Range<usize>>, mut bytes: &[u8]) {
        for (layer, positions) in self.layers.iter_mut().zip(positions) {
            let (mine, rest) =
                bytes.split_at(2 * layer.spec.n_kv_heads * positions.len() * width(&layer.spec));
            layer.write_rows(positions, mine);
            bytes = rest;
        }
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

/// Positions that a layer keeps.
fn ring(window: Option<usize>, capacity: usize, chunk: usize) -> usize {
    window.map_or(capacity, |window| window.saturating_add(chunk).min(capacity))
}

fn layer_spec(
    config: &ModelConfig,
    window: Option<usize>,
    capacity: usize,
    chunk: usize,
    cache_type: CacheType,
) -> CacheSpec {
    let capacity = ring(window, capacity, chunk);
    CacheSpec { n_kv_heads: config.n_kv_heads, capacity, head_dim: config.head_dim, cache_type }
}

fn layer_bytes(spec: &CacheSpec) -> Option<usize> {
    let elements = spec.n_kv_heads.checked_mul(spec.capacity)?.checked_mul(spec.head_dim)?;
    elements.checked_mul(spec.cache_type.bytes()).filter(|&bytes| bytes <= isize::MAX as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;

    fn layer(device: &str) -> LayerCache {
        let spec = CacheSpec { n_kv_heads: 2, capacity: 5, head_dim: 4, cache_type: CacheType::F32 };
        let device = device::open(device, 0).unwrap().device;
        let stored = device::stored(&device);
        let zeros = || Some(Tensor::zeros([2 * 5 * 4 * 4 / stored.size()], (&device, stored)));
        LayerCache { k: zeros(), v: zeros(), spec, window: Some(3) }
    }

    /// Keys of `count` positions whose numbers are all different; the values are their negatives.
    fn rows(layer: &LayerCache, count: usize, sign: f32) -> Tensor<2> {
        let device = layer.k.as_ref().unwrap().device();
        let numbers: Vec<f32> = (0..count * 8).map(|i| sign * (i as f32 + 1.0)).collect();
        Tensor::from_data(TensorData::new(numbers, [count, 8]), &device)
    }

    fn bytes(layer: &LayerCache, positions: Range<usize>) -> Vec<u8> {
        let mut out = Vec::new();
        layer.read(positions, &mut out).unwrap();
        out
    }

    /// The first number of keys and values of each head and position.
    fn first(layer: &LayerCache, positions: Range<usize>) -> Vec<f32> {
        let bytes = bytes(layer, positions);
        bytes.chunks_exact(16).map(|head| f32::from_le_bytes(head[..4].try_into().unwrap())).collect()
    }

    #[test]
    fn a_kernel_does_not_write_to_what_is_shared() {
        for device in device::names() {
            let mut one = layer(device);
            one.write(0, rows(&one, 3, 1.0), rows(&one, 3, -1.0));
            let (two, before) = (one.clone(), bytes(&one, 0..5));
            one.write(1, rows(&one, 3, 100.0), rows(&one, 3, 100.0));
            assert_eq!(bytes(&two, 0..5), before, "{device}");
            assert_ne!(bytes(&one, 0..5), before, "{device}");
        }
    }

    #[test]
    fn a_ring_is_read_and_stored_in_the_order_of_its_positions() {
        for device in device::names() {
            let mut one = layer(device);
            one.write(0, rows(&one, 5, 1.0), rows(&one, 5, -1.0));
            one.write(5, rows(&one, 2, 10.0), rows(&one, 2, -10.0));
            // Positions 3 to 6: keys of head 0, of head 1, then values.
            let keys = [25.0, 33.0, 10.0, 90.0, 29.0, 37.0, 50.0, 130.0];
            let expected: Vec<f32> = keys.iter().copied().chain(keys.map(|key| -key)).collect();
            assert_eq!(first(&one, 3..7), expected, "{device}");
            for from in [3, 4, 5, 6, 7] {
                let mut two = layer(device);
                two.write_rows(from..7, &bytes(&one, from..7));
                assert_eq!(bytes(&two, from..7), bytes(&one, from..7), "{device} {from}");
            }
            let mut own = one.clone();
            own.own(7, 7);
            assert_eq!(bytes(&own, 2..7), bytes(&one, 2..7), "{device}");
        }
    }
}
