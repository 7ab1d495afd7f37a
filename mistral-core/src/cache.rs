//! Keys and values of the tokens so far, allocated once for the chosen context.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::backend::Bytes;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use region::LockGuard;

use crate::config::ModelConfig;
use crate::device::{self, Opened};
use crate::error::{Error, Result};
use crate::kernels::{self, Angles, AttentionSpec, CacheSpec, CacheType};

/// The keys and values of one layer: a ring of as many positions as the layer can see.
#[derive(Clone, Debug)]
pub struct LayerCache {
    /// Keeps the memory of both out of the swap, where the host asked for that. Before them, so that it is unlocked before it is freed.
    locks: Arc<Vec<Locked>>,
    /// `None` only while a kernel holds it (so that it changes it in place), or after one panicked.
    k: Option<Tensor<1, Int>>,
    v: Option<Tensor<1, Int>>,
    spec: CacheSpec,
    window: Option<usize>,
    on: Opened,
}

/// Memory that stays out of the swap until this goes.
struct Locked(#[expect(dead_code, reason = "it is held, and dropped")] LockGuard);

impl std::fmt::Debug for Locked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Locked")
    }
}

impl LayerCache {
    fn new(spec: CacheSpec, window: Option<usize>, on: Opened, lock: bool) -> Result<Self> {
        let bytes = layer_bytes(&spec).unwrap_or_default();
        let (stored, most) = (device::stored(&on.device), device::max_tensor_bytes(&on.device));
        if let Some(most) = most.filter(|most| bytes as u64 > *most) {
            let found = format!("{bytes} bytes of keys of a layer");
            return Err(Error::limit("context", found, format!("{most} bytes, the device's largest buffer")));
        }
        if lock && on.has_own_memory() {
            return Err(Error::unsupported("lock_memory", &on.name, "devices in the host's memory"));
        }
        let mut locks = Vec::new();
        let mut zeros = || match lock {
            true => locked(bytes, &on.device, &mut locks).map(Some),
            false if on.has_own_memory() => {
                Ok(Some(on.lasting(|| Tensor::zeros([bytes / stored.size()], (&on.device, stored)))))
            }
            false => Ok(Some(tensor_of(vec![0; bytes], &on.device))),
        };
        Ok(Self { k: zeros()?, v: zeros()?, spec, window, on, locks: Arc::new(locks) })
    }

    /// Overwrites `positions` with zeros, in place: nobody else may hold the memory.
    fn wipe(&mut self, positions: Range<usize>) {
        // Of more than the ring has, the first lie where the last do.
        let slots =
            self.slots(positions.start.max(positions.end.saturating_sub(self.spec.capacity))..positions.end);
        let (heads, width) = (self.spec.n_kv_heads, width(&self.spec));
        // A session that panicked has lost its memory already.
        for cache in [&mut self.k, &mut self.v] {
            let Some(mut all) = cache.take().map(|cache| rows(cache, &self.spec)) else { continue };
            for slots in &slots {
                let zero = Tensor::<3, Int>::zeros([1, 1, 1], (&all.device(), all.dtype()));
                let zeros = zero.expand([heads, slots.len(), width / all.dtype().size()]);
                all = all.slice_assign([0..heads, slots.clone()], zeros);
            }
            *cache = Some(all.flatten(0, 2));
        }
    }

    /// Stores `k` and `v: [t, n_kv_heads * head_dim]` at positions `start..start + t`, and attends from there, with `q: [t, n_heads * head_dim]`, over what is stored then:
    /// `[t, n_heads * head_dim]`. Queries are rotated by the first of the angles, keys by the second.
    pub fn attend(
        &mut self,
        start: usize,
        [q, k, v]: [Tensor<2>; 3],
        angles: [&Angles; 2],
        n_heads: usize,
        window: Option<usize>,
    ) -> Tensor<2> {
        let scale = 1.0 / (self.spec.head_dim as f32).sqrt();
        let spec = AttentionSpec { n_heads, start, window, scale, cache: self.spec.clone() };
        let taken = [&mut self.k, &mut self.v]
            .map(|cache| cache.take().expect("a session that panicked is not used again"));
        let (out, caches) = kernels::cached_attention([q, k, v], angles, taken, spec);
        [self.k, self.v] = caches.map(Some);
        out
    }

    /// A copy of the positions that are held, in memory of its own.
    fn copy(&self, len: usize, written: usize) -> Result<Self> {
        let slots = self.slots(held(self.spec.capacity, len, written));
        let held = |cache: &Option<Tensor<1, Int>>| {
            rows(cache.clone().expect("a session that panicked is not used again"), &self.spec)
        };
        let mut copy = Self::new(self.spec.clone(), self.window, self.on.clone(), !self.locks.is_empty())?;
        for (from, to) in [(&self.k, &mut copy.k), (&self.v, &mut copy.v)] {
            let (old, heads) = (held(from), self.spec.n_kv_heads);
            let mut new = rows(to.take().expect("it was just made"), &self.spec);
            for slots in &slots {
                let part = old.clone().slice([0..heads, slots.clone()]);
                new = new.slice_assign([0..heads, slots.clone()], part);
            }
            *to = Some(new.flatten(0, 2));
        }
        Ok(copy)
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
    spec.cache_type.row_bytes(spec.head_dim)
}

/// A cache as `[n_kv_heads, capacity, bytes or words]`.
fn rows(cache: Tensor<1, Int>, spec: &CacheSpec) -> Tensor<3, Int> {
    let width = width(spec) / cache.dtype().size();
    cache.reshape([spec.n_kv_heads, spec.capacity, width])
}

/// Those who share the memory of a cache.
#[derive(Debug)]
struct Sharing {
    holders: usize,
    /// One past the last position that any of them has written there.
    dirty: usize,
}

/// The cache of a session. A clone shares its memory until one of the two is about to write ([`KvCache::own`]). What was stored is overwritten
/// with zeros when it is forgotten ([`KvCache::forget`]), and when the last who shares it goes.
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
    /// One past the last position that is not known to be zero, as [`KvCache::written`] but that this one never falls by itself.
    dirty: usize,
    sharing: Arc<Mutex<Sharing>>,
}

impl Clone for KvCache {
    fn clone(&self) -> Self {
        self.shared().holders += 1;
        Self {
            layers: self.layers.clone(),
            len: self.len,
            capacity: self.capacity,
            written: self.written,
            dirty: self.dirty,
            sharing: Arc::clone(&self.sharing),
        }
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        self.leave(Vec::new());
    }
}

impl KvCache {
    /// An empty cache for `capacity` positions, of which at most `chunk` are written at a time.
    ///
    /// A layer with a window keeps `window + chunk` positions: the first query of a chunk still sees its whole window after the chunk was written.
    ///
    /// # Errors
    /// [`Error::Limit`] if the size overflows or the system does not have as much, [`Error::Unsupported`] for a type that the device does not have.
    pub fn new(
        config: &ModelConfig,
        capacity: usize,
        chunk: usize,
        cache_type: CacheType,
        device: &Opened,
        lock: bool,
    ) -> Result<Self> {
        let too_large = || Error::limit("context", capacity, "what fits into the address space");
        let all = Self::bytes(config, capacity, chunk, cache_type).ok_or_else(too_large)?;
        if device.has_own_memory() && cache_type == CacheType::Q8_0 {
            return Err(Error::unsupported("cache_type on a GPU", cache_type.name(), "f16, f32"));
        }
        // A device with memory of its own says itself what it has not.
        let on_host = if device.has_own_memory() {
            device.first_layer.min(config.layers.len())
        } else {
            config.layers.len()
        };
        reserve(all / config.layers.len().max(1) * on_host)?;
        let layers = config.layers.iter().enumerate().map(|(i, layer)| {
            let spec = layer_spec(config, layer.window, capacity, chunk, cache_type);
            LayerCache::new(spec, layer.window, device.on_layer(i), lock)
        });
        let layers = layers.collect::<Result<_>>()?;
        device.settle()?;
        Ok(Self {
            layers,
            len: 0,
            capacity,
            written: 0,
            dirty: 0,
            sharing: Arc::new(Mutex::new(Sharing { holders: 1, dirty: 0 })),
        })
    }

    fn shared(&self) -> MutexGuard<'_, Sharing> {
        // Its numbers are right at every step.
        self.sharing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody else holds the memory.
    fn is_alone(&self) -> bool {
        self.shared().holders == 1
    }

    /// Takes `layers` instead of those that are held, which the last holder overwrites. Under the lock, so that the tensors of the others are gone by then.
    fn leave(&mut self, layers: Vec<LayerCache>) {
        let dirty = self.dirty.max(self.written);
        let sharing = Arc::clone(&self.sharing);
        let mut sharing = sharing.lock().unwrap_or_else(PoisonError::into_inner);
        sharing.holders -= 1;
        sharing.dirty = sharing.dirty.max(dirty);
        let mut old = std::mem::replace(&mut self.layers, layers);
        if sharing.holders == 0 {
            old.iter_mut().for_each(|layer| layer.wipe(0..sharing.dirty));
        }
        drop(old);
    }

    /// Bytes that are locked in memory.
    pub fn locked(&self) -> usize {
        let locked = self.layers.iter().filter(|layer| !layer.locks.is_empty());
        locked.map(|layer| layer_bytes(&layer.spec).map_or(0, |bytes| 2 * bytes)).sum()
    }

    /// Gives a cache that shares its memory with a clone memory of its own, into which the positions in use are copied. The kernels never
    /// write to shared memory either, but they would copy all of it, used or not, and could not say that the system has no more.
    ///
    /// # Errors
    /// [`Error::Limit`] if the system does not have as much.
    pub fn own(&mut self) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        reserve(self.size())?;
        let copies = self.layers.iter().map(|layer| layer.copy(self.len, self.written));
        let copies = copies.collect::<Result<_>>()?;
        self.leave(copies);
        self.dirty = self.len;
        self.sharing = Arc::new(Mutex::new(Sharing { holders: 1, dirty: 0 }));
        Ok(())
    }

    /// Goes back to `len` positions, or to none where a ring has overwritten what the token there sees. The others stay until they are written again,
    /// or forgotten.
    pub fn rewind(&mut self, len: usize) {
        self.dirty = self.dirty.max(self.written);
        self.len = if self.can_rewind(len) { len } else { 0 };
        if self.len == 0 {
            self.written = 0;
        }
    }

    /// Overwrites what lies beyond the positions that are stored, unless the memory is shared: then the last who holds it does.
    pub fn forget(&mut self) {
        let dirty_by_others = self.shared().dirty;
        self.dirty = self.dirty.max(self.written).max(dirty_by_others);
        if self.len < self.dirty && self.is_alone() {
            let forgotten = self.len..self.dirty;
            self.layers.iter_mut().for_each(|layer| layer.wipe(forgotten.clone()));
            self.dirty = self.len;
            self.shared().dirty = self.len;
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

/// Zeroed bytes that the system keeps out of its swap, and what keeps them there.
fn locked(bytes: usize, device: &Device, locks: &mut Vec<Locked>) -> Result<Tensor<1, Int>> {
    let memory = vec![0u8; bytes];
    let lock = region::lock(memory.as_ptr(), bytes.max(1)).map_err(|error| {
        let found = format!("{bytes} bytes of keys and values ({error})");
        Error::limit("lock_memory", found, "what the system lets the process lock (ulimit -l)")
    })?;
    locks.push(Locked(lock));
    Ok(tensor_of(memory, device))
}

/// A tensor that is made of this memory, not of a copy: what comes from the system as zeros takes no pages before it is written to.
fn tensor_of(memory: Vec<u8>, device: &Device) -> Tensor<1, Int> {
    let len = memory.len();
    let data = TensorData::from_bytes(Bytes::from_elems(memory), [len], DType::U8);
    Tensor::from_data(data, (device, DType::U8))
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
    // No element takes more than eight bytes, so that those of a row do not overflow.
    spec.head_dim.checked_mul(8)?;
    let rows = spec.n_kv_heads.checked_mul(spec.capacity)?;
    rows.checked_mul(width(spec)).filter(|&bytes| bytes <= isize::MAX as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RopeStyle;
    use crate::device;

    fn layer(device: &str) -> LayerCache {
        let spec = CacheSpec { n_kv_heads: 2, capacity: 5, head_dim: 4, cache_type: CacheType::F32 };
        LayerCache::new(spec, Some(3), device::open(device, 0).unwrap(), false).unwrap()
    }

    /// Keys of `count` positions whose numbers are all different; the values are their negatives.
    fn rows(layer: &LayerCache, count: usize, sign: f32) -> Tensor<2> {
        let device = layer.k.as_ref().unwrap().device();
        let numbers: Vec<f32> = (0..count * 8).map(|i| sign * (i as f32 + 1.0)).collect();
        Tensor::from_data(TensorData::new(numbers, [count, 8]), &device)
    }

    /// Stores keys that are not rotated.
    fn write(layer: &mut LayerCache, start: usize, k: Tensor<2>, v: Tensor<2>) {
        let (shape, device) = ([k.dims()[0], layer.spec.head_dim / 2], k.device());
        let (cos, sin) = (Tensor::ones(shape, &device), Tensor::zeros(shape, &device));
        let taken = [&mut layer.k, &mut layer.v].map(|cache| cache.take().unwrap());
        let angles = Angles { cos, sin, style: RopeStyle::Interleaved };
        let written = kernels::cache_write_rotated(taken, [k, v], &angles, &layer.spec, start);
        [layer.k, layer.v] = written.map(Some);
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
            let (k, v) = (rows(&one, 3, 1.0), rows(&one, 3, -1.0));
            write(&mut one, 0, k, v);
            let (two, before) = (one.clone(), bytes(&one, 0..5));
            let (k, v) = (rows(&one, 3, 100.0), rows(&one, 3, 100.0));
            write(&mut one, 1, k, v);
            assert_eq!(bytes(&two, 0..5), before, "{device}");
            assert_ne!(bytes(&one, 0..5), before, "{device}");
        }
    }

    #[test]
    fn a_ring_is_read_and_stored_in_the_order_of_its_positions() {
        for device in device::names() {
            let mut one = layer(device);
            let (k, v) = (rows(&one, 5, 1.0), rows(&one, 5, -1.0));
            write(&mut one, 0, k, v);
            let (k, v) = (rows(&one, 2, 10.0), rows(&one, 2, -10.0));
            write(&mut one, 5, k, v);
            // Positions 3 to 6: keys of head 0, of head 1, then values.
            let keys = [25.0, 33.0, 10.0, 90.0, 29.0, 37.0, 50.0, 130.0];
            let expected: Vec<f32> = keys.iter().copied().chain(keys.map(|key| -key)).collect();
            assert_eq!(first(&one, 3..7), expected, "{device}");
            for from in [3, 4, 5, 6, 7] {
                let mut two = layer(device);
                two.write_rows(from..7, &bytes(&one, from..7));
                assert_eq!(bytes(&two, from..7), bytes(&one, from..7), "{device} {from}");
            }
            let own = one.copy(7, 7).unwrap();
            assert_eq!(bytes(&own, 2..7), bytes(&one, 2..7), "{device}");
        }
    }

    fn cache(device: &str, lock: bool) -> Result<KvCache> {
        let layers = vec![LayerCache::new(layer(device).spec, Some(3), device::open(device, 0)?, lock)?];
        let sharing = Arc::new(Mutex::new(Sharing { holders: 1, dirty: 0 }));
        Ok(KvCache { layers, len: 0, capacity: 20, written: 0, dirty: 0, sharing })
    }

    fn store(cache: &mut KvCache, count: usize) {
        let (layer, start) = (&mut cache.layers[0], cache.len);
        let (k, v) = (rows(layer, count, 1.0), rows(layer, count, -1.0));
        write(layer, start, k, v);
        cache.len += count;
        cache.written = cache.written.max(cache.len);
    }

    #[test]
    fn what_is_forgotten_is_overwritten() {
        for device in device::names() {
            let mut one = cache(device, false).unwrap();
            store(&mut one, 4);
            one.rewind(2);
            one.forget();
            let kept = bytes(&one.layers[0], 0..2);
            assert!(kept.iter().any(|&byte| byte != 0), "{device}");
            let rest = bytes(&one.layers[0], 2..5);
            assert!(rest.iter().all(|&byte| byte == 0), "{device}: {rest:?}");
            // Around the ring, and back to nothing.
            store(&mut one, 3);
            store(&mut one, 4);
            one.rewind(0);
            one.forget();
            assert!(bytes(&one.layers[0], 0..5).iter().all(|&byte| byte == 0), "{device}");
        }
    }

    #[test]
    fn shared_memory_is_kept_until_its_last_holder_goes() {
        for device in device::names() {
            let mut one = cache(device, false).unwrap();
            store(&mut one, 4);
            let before = bytes(&one.layers[0], 0..5);
            let mut two = one.clone();
            two.rewind(0);
            two.forget();
            assert_eq!(bytes(&one.layers[0], 0..5), before, "{device}: the other still needs it");
            // The other goes on in memory of its own, and this one has what was shared to itself.
            two.own().unwrap();
            assert!(bytes(&two.layers[0], 0..5).iter().all(|&byte| byte == 0), "{device}");
            assert!(one.is_alone() && two.is_alone(), "{device}");
            let three = one.clone();
            drop(one);
            assert_eq!(bytes(&three.layers[0], 0..5), before, "{device}");
            assert!(three.is_alone(), "{device}");
        }
    }

    #[test]
    fn the_last_holder_overwrites_what_all_have_written() {
        for device in device::names() {
            let mut one = cache(device, false).unwrap();
            store(&mut one, 5);
            let mut two = one.clone();
            two.rewind(0);
            two.forget();
            drop(one);
            assert!(two.len == 0 && two.is_alone(), "{device}");
            assert_eq!(two.shared().dirty, 5, "{device}");
            two.rewind(0);
            two.forget();
            assert!(bytes(&two.layers[0], 0..5).iter().all(|&byte| byte == 0), "{device}");
        }
    }

    #[test]
    fn memory_is_locked_where_the_system_lets_it_be() {
        match cache("cpu", true) {
            Ok(mut locked) => {
                assert_eq!(locked.locked(), 2 * 2 * 5 * 4 * 4);
                store(&mut locked, 3);
                let mut other = locked.clone();
                store(&mut other, 0);
                other.own().unwrap();
                assert_eq!(other.locked(), locked.locked());
                assert_eq!(bytes(&other.layers[0], 0..3), bytes(&locked.layers[0], 0..3));
            }
            Err(error) => assert!(error.to_string().contains("lock_memory"), "{error}"),
        }
        assert_eq!(cache("cpu", false).unwrap().locked(), 0);
    }
}
