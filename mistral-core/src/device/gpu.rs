//! Adapters of wgpu: found, chosen and opened. One runtime for each adapter and process, shared by all models.

use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use burn::tensor::Device;
use burn::tensor::wgpu::wgpu::{self, Backends, DeviceType, Features, InstanceFlags};
use burn_cubecl::cubecl;
use cubecl::client::Client;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig};

use cubecl::wgpu::{MemoryConfiguration, RuntimeOptions, WgpuSetup, try_init_device};
use serde_json::{Value, json};

use super::{Opened, adapter_memory};
use crate::error::{Error, Result};

/// Made when it is first needed and never destroyed: Vulkan's loader does not like instances that come and go on several threads.
static INSTANCE: LazyLock<wgpu::Instance> = LazyLock::new(|| {
    wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
        flags: InstanceFlags::empty(),
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    })
});

/// The adapters that were opened. A runtime of CubeCL is never given back.
static OPEN: Mutex<Vec<Arc<Gpu>>> = Mutex::new(Vec::new());

/// What an adapter refused.
#[derive(Debug, Default)]
struct Faults {
    /// Something that it should not: nothing that it computes can be trusted any more.
    failed: OnceLock<String>,
    /// Memory, since this was last asked.
    shortage: Mutex<Option<String>>,
}

impl Faults {
    fn shortage(&self) -> MutexGuard<'_, Option<String>> {
        self.shortage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime would panic, on a thread of its own, and its host would read what was in memory before.
    fn on_error(&self, error: &wgpu::Error) {
        let mut shortage = self.shortage();
        if let wgpu::Error::OutOfMemory { .. } = error {
            shortage.get_or_insert(error.to_string());
        } else if shortage.is_none() {
            // What was not allocated cannot be used either: those errors say nothing new.
            let _ = self.failed.set(error.to_string());
        }
    }
}

/// An adapter with a runtime.
pub struct Gpu {
    device: Device,
    index: usize,
    info: Value,
    runtime: cubecl::Device,
    client: Client,
    faults: Arc<Faults>,
    /// Which of the kernels' checks it has passed.
    passed: Mutex<Vec<String>>,
    handle: wgpu::Device,
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gpu")
            .field("index", &self.index)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

impl Gpu {
    /// The adapter and its limits, as [`super::list`] gives them.
    pub fn info(&self) -> Value {
        self.info.clone()
    }

    /// The runtime, for tests that launch kernels of their own.
    #[cfg(test)]
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// What its tensors name, to launch kernels of one's own.
    pub(crate) fn runtime(&self) -> &cubecl::Device {
        &self.runtime
    }

    /// Bytes of its memory, where its driver says it.
    pub fn memory(&self) -> Option<u64> {
        self.info["memory_bytes"].as_u64()
    }

    /// The most bytes of one tensor.
    pub fn max_tensor_bytes(&self) -> u64 {
        let limits = self.handle.limits();
        limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
    }

    /// See [`Opened::check`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn check(&self) -> Result<()> {
        if let Some(reason) = self.faults.failed.get() {
            return Err(Error::Device { device: self.name(), reason: reason.clone() });
        }
        if self.faults.shortage().is_none() {
            return Ok(());
        }
        // Once everything that was waiting for the memory has failed too.
        let _ = cubecl::future::block_on(self.client.sync());
        let found = self.faults.shortage().take().unwrap_or_default();
        Err(Error::limit("device memory", found, format!("what {} gives", self.name())))
    }

    /// Waits until everything that it was asked to do is done, and [`Gpu::check`]s it.
    ///
    /// # Errors
    /// As [`Gpu::check`].
    pub fn settle(&self) -> Result<()> {
        let done = cubecl::future::block_on(self.client.sync());
        self.check()?;
        done.map_err(|error| Error::Device { device: self.name(), reason: error.to_string() })
    }

    /// Runs `task`, whose allocations are exactly as large as they need to be, and given back as soon as they are freed: of what stays.
    pub fn lasting<R: Send>(&self, task: impl FnOnce() -> R + Send) -> R {
        self.client.memory_dedicated_allocation((), |()| task())
    }

    /// Bytes that the runtime holds of the adapter's memory, in use or not.
    pub fn reserved_bytes(&self) -> u64 {
        self.client.memory_report(cubecl::MemoryScope::Device).usage().bytes_reserved
    }

    /// Runs `check`, unless this adapter has passed the check called `name`.
    ///
    /// # Errors
    /// Those of the check.
    pub fn once(&self, name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
        let passed = || self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        if !passed().iter().any(|other| other == name) {
            check()?;
            passed().push(name.to_owned());
        }
        Ok(())
    }

    /// Loses the device, as a driver that was reset does: for tests.
    pub fn lose(&self) {
        self.handle.destroy();
        // The loss is told when the device is polled.
        let _ = self.handle.poll(wgpu::PollType::wait_indefinitely());
    }

    fn name(&self) -> String {
        format!("wgpu:{}", self.index)
    }

    fn opened(self: Arc<Self>, reason: Option<String>) -> Opened {
        Opened { device: self.device.clone(), name: self.name(), reason, first_layer: 0, gpu: Some(self) }
    }
}

/// The adapter that `device` is, if it is one.
pub fn find(device: &Device) -> Option<Arc<Gpu>> {
    let open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    open.iter().find(|gpu| gpu.device == *device).cloned()
}

/// Held while the driver is asked for adapters and devices: one thread at a time.
static DRIVER: Mutex<()> = Mutex::new(());

/// Each adapter once, real ones first.
fn adapters() -> Vec<wgpu::Adapter> {
    let _driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    let backends = Backends::VULKAN | Backends::METAL | Backends::DX12;
    let mut adapters = cubecl::future::block_on(INSTANCE.enumerate_adapters(backends));
    adapters.sort_by_key(|adapter| rank(adapter.get_info().device_type));
    adapters
}

fn rank(kind: DeviceType) -> usize {
    match kind {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

fn kind_name(kind: DeviceType) -> &'static str {
    ["discrete", "integrated", "virtual", "other", "software"][rank(kind)]
}

/// The adapters of this machine.
pub fn list() -> Vec<Value> {
    let named = |(index, adapter): (usize, &wgpu::Adapter)| {
        let mut info = describe(adapter);
        info["name"] = json!(format!("wgpu:{index}"));
        info
    };
    adapters().iter().enumerate().map(named).collect()
}

fn describe(adapter: &wgpu::Adapter) -> Value {
    let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
    json!({
        "kind": "wgpu",
        "adapter": info.name,
        "backend": format!("{:?}", info.backend).to_lowercase(),
        "driver": format!("{} {}", info.driver, info.driver_info).trim(),
        "type": kind_name(info.device_type),
        "vendor_id": info.vendor,
        "device_id": info.device,
        "memory_bytes": adapter_memory::bytes(adapter),
        "limits": {
            "max_buffer_bytes": limits.max_buffer_size,
            "max_storage_binding_bytes": limits.max_storage_buffer_binding_size,
            "max_workgroup_memory_bytes": limits.max_compute_workgroup_storage_size,
            "max_workgroup_units": limits.max_compute_invocations_per_workgroup,
            "subgroup_units": [info.subgroup_min_size, info.subgroup_max_size],
        },
        "f16": features.contains(Features::SHADER_F16),
        "subgroups": features.contains(Features::SUBGROUP),
    })
}

/// The adapter called `name`: `wgpu`, `wgpu:` and its number, or `wgpu:` and a part of its name.
///
/// # Errors
/// See [`super::open`].
pub fn open(name: &str) -> Result<Opened> {
    let failed = |reason: String| Error::Device { device: name.to_owned(), reason };
    let adapters = adapters();
    if adapters.is_empty() {
        return Err(failed("no adapter: no driver for Vulkan, Metal or DirectX 12 was found".to_owned()));
    }
    let wanted = name.strip_prefix("wgpu").unwrap_or(name).trim_start_matches(':');
    let names: Vec<String> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
    let index = match wanted.parse::<usize>() {
        _ if wanted.is_empty() => Some(0),
        Ok(index) => Some(index).filter(|index| *index < names.len()),
        Err(_) => names.iter().position(|name| name.to_lowercase().contains(&wanted.to_lowercase())),
    };
    let Some(index) = index else {
        let list: Vec<String> =
            names.iter().enumerate().map(|(i, name)| format!("wgpu:{i} ({name})")).collect();
        return Err(failed(format!("no such adapter; there are {}", list.join(", "))));
    };
    Ok(runtime(&adapters[index], index).map_err(failed)?.opened(None))
}

/// A real graphics processor with `needed` bytes of memory, or why there is none.
pub fn choose(needed: u64) -> std::result::Result<Opened, String> {
    let mut reasons = Vec::new();
    for (index, adapter) in adapters().iter().enumerate() {
        let info = adapter.get_info();
        let memory = adapter_memory::bytes(adapter);
        if info.device_type == DeviceType::Cpu {
            reasons.push(format!("{} is software", info.name));
        } else if memory.is_some_and(|memory| memory < needed) {
            let memory = memory.unwrap_or_default();
            reasons.push(format!("{} has {memory} bytes of memory, {needed} are needed", info.name));
        } else {
            match runtime(adapter, index) {
                Ok(gpu) => return Ok(gpu.opened(Some(format!("{} has the memory", info.name)))),
                Err(reason) => reasons.push(format!("{}: {reason}", info.name)),
            }
        }
    }
    if reasons.is_empty() {
        Err("there is no graphics processor".to_owned())
    } else {
        Err(reasons.join("; "))
    }
}

/// The runtime of an adapter: the one that there is, or a new one if there is none or it has failed.
fn runtime(adapter: &wgpu::Adapter, index: usize) -> std::result::Result<Arc<Gpu>, String> {
    let info = describe(adapter);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(gpu) = open.iter().find(|gpu| gpu.info == info && gpu.faults.failed.get().is_none()) {
        return Ok(Arc::clone(gpu));
    }
    configure();
    let gpu = Arc::new(start(adapter, index, info)?);
    open.push(Arc::clone(&gpu));
    Ok(gpu)
}

/// CubeCL as this library wants it, unless the host has configured it: nothing from files or the environment, no file written, one queue.
fn configure() {
    let mut config = CubeClRuntimeConfig::default();
    config.streaming.policy = cubecl::config::streaming::StreamPolicy::Single;
    // Nothing is kept in files; without a folder it would look for one, from the working folder up.
    config.environment.path = cubecl::config::cache::CacheConfig::Directory(PathBuf::new());
    let _ = CubeClRuntimeConfig::try_set(config);
}

fn start(adapter: &wgpu::Adapter, index: usize, info: Value) -> std::result::Result<Gpu, String> {
    let features = adapter.features()
        & (Features::SUBGROUP | Features::SHADER_F16 | Features::SHADER_INT64 | Features::TIMESTAMP_QUERY);
    let driver = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    let request = adapter.request_device(&wgpu::DeviceDescriptor {
        label: None,
        required_features: features,
        required_limits: adapter.limits(),
        memory_hints: wgpu::MemoryHints::MemoryUsage,
        ..wgpu::DeviceDescriptor::default()
    });
    let (handle, queue) = cubecl::future::block_on(request).map_err(|error| error.to_string())?;
    drop(driver);
    let setup = WgpuSetup {
        instance: INSTANCE.clone(),
        adapter: adapter.clone(),
        device: handle.clone(),
        queue,
        backend: adapter.get_info().backend,
    };
    let options = RuntimeOptions { tasks_max: 32, memory_config: MemoryConfiguration::default() };
    let device = try_init_device(setup, options).map_err(|error| error.to_string())?;
    let runtime = cubecl::Device::Wgpu(device.clone());
    let client = runtime.client();
    let faults = Arc::new(Faults::default());
    let told = Arc::clone(&faults);
    handle.on_uncaptured_error(Arc::new(move |error: wgpu::Error| told.on_error(&error)));
    Ok(Gpu { device: device.into(), index, info, runtime, client, faults, passed: Mutex::default(), handle })
}
