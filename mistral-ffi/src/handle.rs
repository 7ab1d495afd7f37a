//! Handles: numbers in the clothes of pointers, never dereferenced.
//!
//! A handle is a kind, a slot of that kind's table, the slot's generation and an epoch. A handle that was
//! freed, invented or passed as another type is therefore found out, not followed. The lowest four bits are
//! the kind, never 0, so a real pointer from an allocator is no handle either.
//!
//! A process that was forked holds tables whose locks and threads may be in any state. They are not touched:
//! the first object that the child makes starts new tables with the next epoch, and handles of an earlier
//! epoch are refused with `MISTRAL_E_FORKED`.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::buffer::Buffer;
use crate::failure::{Failure, Outcome};
use crate::generate::GenerationObject;
use crate::model::ModelObject;
use crate::session::SessionObject;
use crate::types::*;

const KIND_BITS: u32 = 4;
#[cfg(target_pointer_width = "64")]
const SLOT_BITS: u32 = 20;
#[cfg(target_pointer_width = "64")]
const GENERATION_BITS: u32 = 32;
#[cfg(target_pointer_width = "32")]
const SLOT_BITS: u32 = 12;
#[cfg(target_pointer_width = "32")]
const GENERATION_BITS: u32 = 14;
const EPOCH_BITS: u32 = usize::BITS - KIND_BITS - SLOT_BITS - GENERATION_BITS;

/// The most objects of one kind at a time.
const MAX_SLOTS: usize = 1 << SLOT_BITS;

static REGISTRY: AtomicPtr<Registry> = AtomicPtr::new(ptr::null_mut());

/// What a handle stands for.
pub(crate) trait Object: Send + Sync + Sized + 'static {
    /// The C type of its handle.
    type Handle;
    const KIND: usize;
    /// What messages call it.
    const NAME: &'static str;

    fn table(registry: &Registry) -> &Table<Self>;
}

macro_rules! object {
    ($object:ty, $handle:ty, $kind:literal, $name:literal, $table:ident) => {
        impl Object for $object {
            type Handle = $handle;
            const KIND: usize = $kind;
            const NAME: &'static str = $name;

            fn table(registry: &Registry) -> &Table<Self> {
                &registry.$table
            }
        }
    };
}

object!(Buffer, mistral_buf, 1, "buffer", buffers);
object!(mistral_core::CancelToken, mistral_cancel, 2, "cancel object", cancels);
object!(ModelObject, mistral_model, 3, "model", models);
object!(SessionObject, mistral_session, 4, "session", sessions);
object!(GenerationObject, mistral_generation, 5, "generation", generations);

/// All objects of the process.
pub(crate) struct Registry {
    process: u32,
    epoch: usize,
    buffers: Table<Buffer>,
    cancels: Table<mistral_core::CancelToken>,
    models: Table<ModelObject>,
    sessions: Table<SessionObject>,
    generations: Table<GenerationObject>,
}

/// The objects of one kind.
pub(crate) struct Table<T>(RwLock<Slots<T>>);

struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

struct Slot<T> {
    generation: usize,
    object: Option<Arc<T>>,
}

/// Takes `object` in and gives its handle.
pub(crate) fn insert<T: Object>(object: T) -> Outcome<*mut T::Handle> {
    let registry = Registry::own();
    let (slot, generation) = T::table(registry).insert(Arc::new(object)).ok_or_else(|| {
        Failure::from(mistral_core::Error::limit("handles", format!("one more {}", T::NAME), MAX_SLOTS))
    })?;
    let bits = ((registry.epoch << GENERATION_BITS | generation) << SLOT_BITS | slot) << KIND_BITS | T::KIND;
    Ok(ptr::without_provenance_mut(bits))
}

/// The object of a handle that came as the argument `name`.
pub(crate) fn get<T: Object>(name: &str, handle: *const T::Handle) -> Outcome<Arc<T>> {
    let (registry, slot, generation) = locate::<T>(name, handle)?;
    T::table(registry).get(slot, generation).ok_or_else(|| stale::<T>(name))
}

/// Like [`get`] where NULL means none.
pub(crate) fn get_optional<T: Object>(name: &str, handle: *const T::Handle) -> Outcome<Option<Arc<T>>> {
    if handle.is_null() { Ok(None) } else { get::<T>(name, handle).map(Some) }
}

/// Makes a handle invalid. Its object goes when the calls that are using it have ended.
pub(crate) fn remove<T: Object>(name: &str, handle: *const T::Handle) -> Outcome {
    if handle.is_null() {
        return Ok(());
    }
    let (registry, slot, generation) = locate::<T>(name, handle)?;
    T::table(registry).remove(slot, generation).map(drop).ok_or_else(|| stale::<T>(name))
}

fn locate<T: Object>(name: &str, handle: *const T::Handle) -> Outcome<(&'static Registry, usize, usize)> {
    let field = |shift: u32, bits: u32| (handle.addr() >> shift) & ((1 << bits) - 1);
    if handle.is_null() {
        return Err(Failure::null(name));
    }
    if field(0, KIND_BITS) != T::KIND {
        let message =
            format!("argument `{name}`: found something else, expected the handle of a {}", T::NAME);
        return Err(Failure::new(MISTRAL_E_HANDLE, message).part("argument", name));
    }
    let registry = Registry::current().ok_or_else(|| stale::<T>(name))?;
    let epoch = field(KIND_BITS + SLOT_BITS + GENERATION_BITS, EPOCH_BITS);
    if registry.process != std::process::id() || epoch < registry.epoch {
        let message = format!("argument `{name}`: the {} belongs to the parent of this process", T::NAME);
        return Err(Failure::new(MISTRAL_E_FORKED, message).part("argument", name));
    }
    if epoch > registry.epoch {
        return Err(stale::<T>(name));
    }
    Ok((registry, field(KIND_BITS, SLOT_BITS), field(KIND_BITS + SLOT_BITS, GENERATION_BITS)))
}

fn stale<T: Object>(name: &str) -> Failure {
    let message = format!("argument `{name}`: the {} was freed already, or never existed", T::NAME);
    Failure::new(MISTRAL_E_HANDLE, message).part("argument", name)
}

impl Registry {
    /// The objects of this process, or of the parent that it was forked from.
    fn current() -> Option<&'static Self> {
        // SAFETY: a registry is never freed once it was published.
        unsafe { REGISTRY.load(Ordering::Acquire).as_ref() }
    }

    /// The objects of this process: new tables in a process that has none of its own.
    fn own() -> &'static Self {
        let process = std::process::id();
        let found = Self::current();
        if let Some(registry) = found.filter(|registry| registry.process == process) {
            return registry;
        }
        let epoch = found.map_or(0, |registry| (registry.epoch + 1) & ((1 << EPOCH_BITS) - 1));
        let new = Box::into_raw(Box::new(Self {
            process,
            epoch,
            buffers: Table::new(),
            cancels: Table::new(),
            models: Table::new(),
            sessions: Table::new(),
            generations: Table::new(),
        }));
        let expected = found.map_or(ptr::null_mut(), |registry| ptr::from_ref(registry).cast_mut());
        match REGISTRY.compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: `new` was published and is never freed.
            Ok(_) => unsafe { &*new },
            // Another thread was first.
            Err(winner) => {
                // SAFETY: `new` came from a box and was not published; `winner` is never freed.
                unsafe {
                    drop(Box::from_raw(new));
                    &*winner
                }
            }
        }
    }
}

impl<T> Table<T> {
    const fn new() -> Self {
        Self(RwLock::new(Slots { slots: Vec::new(), free: Vec::new() }))
    }

    /// The slot and generation of `object`; `None` if the table is full.
    fn insert(&self, object: Arc<T>) -> Option<(usize, usize)> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = table.free.pop() {
            table.slots[slot].object = Some(object);
            return Some((slot, table.slots[slot].generation));
        }
        let slot = table.slots.len();
        if slot == MAX_SLOTS {
            return None;
        }
        table.slots.push(Slot { generation: 1, object: Some(object) });
        Some((slot, 1))
    }

    fn get(&self, slot: usize, generation: usize) -> Option<Arc<T>> {
        let table = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let slot = table.slots.get(slot).filter(|slot| slot.generation == generation)?;
        slot.object.clone()
    }

    fn remove(&self, slot: usize, generation: usize) -> Option<Arc<T>> {
        let mut table = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let entry = table.slots.get_mut(slot).filter(|slot| slot.generation == generation)?;
        let object = entry.object.take()?;
        entry.generation += 1;
        // A slot whose generations are used up is not used again.
        if entry.generation < 1 << GENERATION_BITS {
            table.free.push(slot);
        }
        Some(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_used_again_has_another_generation() {
        let table = Table::new();
        let first = table.insert(Arc::new(1)).unwrap();
        let second = table.insert(Arc::new(2)).unwrap();
        assert_ne!(first.0, second.0);
        assert_eq!(table.remove(first.0, first.1).as_deref(), Some(&1));
        assert!(table.remove(first.0, first.1).is_none());
        let third = table.insert(Arc::new(3)).unwrap();
        assert_eq!((third.0, third.1), (first.0, first.1 + 1));
        assert!(table.get(first.0, first.1).is_none());
        assert_eq!(table.get(third.0, third.1).as_deref(), Some(&3));
        assert!(table.get(second.0 + 1, 1).is_none());
    }

    #[test]
    fn a_slot_retires_with_its_last_generation() {
        let table = Table::new();
        let (slot, _) = table.insert(Arc::new(())).unwrap();
        let last = (1 << GENERATION_BITS) - 1;
        table.0.write().unwrap().slots[slot].generation = last;
        assert!(table.remove(slot, last).is_some());
        assert_ne!(table.insert(Arc::new(())).unwrap().0, slot);
    }

    #[test]
    fn handles_of_another_type_and_invented_ones_are_refused() {
        let cancel = insert(mistral_core::CancelToken::new()).unwrap();
        assert!(get::<mistral_core::CancelToken>("cancel", cancel).is_ok());
        assert_eq!(get::<Buffer>("buf", cancel.cast()).err().map(|f| f.status), Some(MISTRAL_E_HANDLE));
        let number = Box::new(7u64);
        let real = ptr::from_ref(&*number).cast();
        assert_eq!(
            get::<mistral_core::CancelToken>("cancel", real).err().map(|f| f.status),
            Some(MISTRAL_E_HANDLE)
        );
        assert!(remove::<mistral_core::CancelToken>("cancel", cancel).is_ok());
        assert_eq!(
            remove::<mistral_core::CancelToken>("cancel", cancel).err().map(|f| f.status),
            Some(MISTRAL_E_HANDLE)
        );
    }
}
