//! Writes model files for tests and benches, and breaks models. Hidden from the documentation, and no part of the stable interface.
//!
//! The names and layouts are written out here a second time on purpose: a writer that shared the tables of the reader could not
//! find their mistakes.

mod containers;
mod faults;
mod kernels;
mod model;
mod random;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub use crate::kernels::cpu::simd::prefetch;
pub use containers::{GgufFile, GgufValue, TensorData, gguf_id, safetensors_bytes};
pub use faults::{Fault, inject};
#[cfg(feature = "wgpu")]
pub use kernels::{Adapter, AdapterLimits, adapter_limits};
pub use kernels::{AttentionCase, KernelCase, NumbersCase, arms};
pub use model::{Model, config_json, params_json, tensor_shapes};
pub use random::{Random, write_random_gguf, write_random_gguf_with};

/// A folder that is removed with everything in it when the value goes.
pub struct TempFolder(PathBuf);

impl TempFolder {
    /// A new empty folder under `parent`, which the caller names because a library does not look for one.
    pub fn new_in(parent: &Path) -> std::io::Result<Self> {
        static COUNTER: AtomicUsize = AtomicUsize::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("mistral-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempFolder {
    fn drop(&mut self) {
        // What cannot be removed stays for the system to clean up; a test must not fail by it.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
