//! Devices by name, chosen at run time.

#[cfg(feature = "wgpu")]
mod adapter_memory;
#[cfg(feature = "wgpu")]
mod gpu;

use burn::tensor::{DType, Device};
use serde_json::{Value, json};

use crate::error::{Error, Result};

#[cfg(feature = "wgpu")]
pub use gpu::Gpu;

/// The kinds of devices in this build; [`list`] tells which of them this machine has.
pub fn names() -> Vec<&'static str> {
    let mut names = vec!["cpu"];
    if cfg!(feature = "ndarray") {
        names.push("ndarray");
    }
    if cfg!(feature = "wgpu") {
        names.push("wgpu");
    }
    names
}

/// Whether the device computes every output element by one fixed sequence of operations, whatever runs beside it: what
/// [`crate::determinism`] promises for it. A device is not until the tests of that hold on it.
pub fn is_reproducible(name: &str) -> bool {
    is_host(name) && names().contains(&name)
}

/// The devices of this machine that this build can open: objects with a `name` for [`open`] and a `kind`; those of wgpu with what their
/// driver says of them.
pub fn list() -> Vec<Value> {
    let host = names().into_iter().filter(|name| *name != "wgpu");
    #[allow(unused_mut, reason = "changed where there is wgpu")]
    let mut devices: Vec<Value> = host.map(|name| json!({"name": name, "kind": name})).collect();
    #[cfg(feature = "wgpu")]
    devices.extend(gpu::list());
    devices
}

/// What a model runs on.
#[derive(Clone, Debug)]
pub struct Opened {
    /// Where its tensors are.
    pub device: Device,
    /// What [`open`] would have to be told to get it again: `cpu`, `wgpu:1`.
    pub name: String,
    /// Why `auto` chose it.
    pub reason: Option<String>,
    /// The first layer of a model that is on the device; those before it are on the processor.
    pub first_layer: usize,
    /// The adapter, if it is one.
    #[cfg(feature = "wgpu")]
    pub gpu: Option<std::sync::Arc<Gpu>>,
}

impl Opened {
    fn host(device: Device, name: &str) -> Self {
        Self {
            device,
            name: name.to_owned(),
            reason: None,
            first_layer: 0,
            #[cfg(feature = "wgpu")]
            gpu: None,
        }
    }

    /// With the layers of a model from `first` on; those before it stay on the processor.
    pub fn with_first_layer(mut self, first: usize) -> Self {
        self.first_layer = first;
        self
    }

    /// Where a layer of a model is: here, or on the processor.
    pub fn on_layer(&self, layer: usize) -> Self {
        if layer < self.first_layer { Self::host(Device::flex(), "cpu") } else { self.clone() }
    }

    /// Whether its tensors are not in the host's memory.
    pub fn has_own_memory(&self) -> bool {
        stored(&self.device) != DType::U8
    }

    /// Bytes of memory that the device has of its own, if it has any and says so.
    pub fn memory(&self) -> Option<u64> {
        #[cfg(feature = "wgpu")]
        return self.gpu.as_ref().and_then(|gpu| gpu.memory());
        #[cfg(not(feature = "wgpu"))]
        None
    }

    /// Fails if the device was lost, or refused something that it was asked to do: nothing that it computed since can be trusted.
    ///
    /// # Errors
    /// [`Error::Device`] with what its driver said.
    pub fn check(&self) -> Result<()> {
        #[cfg(feature = "wgpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.check();
        }
        Ok(())
    }

    /// Waits for the device, and checks it.
    ///
    /// # Errors
    /// As [`Opened::check`]; [`Error::Limit`] if it has not the memory for what it was given.
    pub fn settle(&self) -> Result<()> {
        #[cfg(feature = "wgpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.settle();
        }
        Ok(())
    }

    /// Runs `task`, which makes tensors that stay.
    pub fn lasting<R: Send>(&self, task: impl FnOnce() -> R + Send) -> R {
        #[cfg(feature = "wgpu")]
        if let Some(gpu) = &self.gpu {
            return gpu.lasting(task);
        }
        task()
    }

    /// What a host may want to know of it, as JSON.
    pub fn info(&self) -> Value {
        #[allow(unused_mut, reason = "changed where there is wgpu")]
        let mut info = json!({"name": self.name, "reason": self.reason, "first_layer": self.first_layer});
        #[cfg(feature = "wgpu")]
        if let Some(gpu) = &self.gpu {
            info["adapter"] = gpu.info();
        }
        info
    }
}

/// The elements of tensors that hold stored bytes: bytes in host memory, words on devices that know no bytes.
pub fn stored(device: &Device) -> DType {
    #[cfg(feature = "wgpu")]
    if gpu::find(device).is_some() {
        return DType::U32;
    }
    let _ = device;
    DType::U8
}

/// The most bytes of one tensor on `device`, if it has a bound of its own.
pub fn max_tensor_bytes(device: &Device) -> Option<u64> {
    #[cfg(feature = "wgpu")]
    if let Some(gpu) = gpu::find(device) {
        return Some(gpu.max_tensor_bytes());
    }
    let _ = device;
    None
}

/// The device called `name`: `cpu` (Burn's Flex), `ndarray` (Burn's NdArray), `wgpu` (the first adapter), `wgpu:N`, `wgpu:` and a part of an
/// adapter's name, or `auto`: a graphics processor that has `needed` bytes of memory, else `cpu`.
///
/// # Errors
/// [`Error::Unsupported`] for a device that this build does not have, which names those it has; [`Error::Device`] for one that this machine
/// does not have, or that does not open.
pub fn open(name: &str, needed: u64) -> Result<Opened> {
    check(name)?;
    match name {
        "cpu" => Ok(Opened::host(Device::flex(), name)),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "deprecated upstream, and asked for by those who compare the two")]
        "ndarray" => Ok(Opened::host(Device::ndarray(), name)),
        #[cfg(feature = "wgpu")]
        _ if is_wgpu(name) => gpu::open(name),
        _ => Ok(auto(needed)),
    }
}

/// Refuses what is no name of a device in this build.
///
/// # Errors
/// [`Error::Unsupported`], which names those that there are.
pub fn check(name: &str) -> Result<()> {
    let built = names();
    if name == "auto" || built.contains(&name) || is_wgpu(name) && built.contains(&"wgpu") {
        return Ok(());
    }
    let not_built = name == "ndarray" || is_wgpu(name);
    let mut found: String = name.chars().take(64).collect();
    if not_built {
        found += " (not built into this library)";
    }
    Err(Error::unsupported("device", found, format!("auto, {}", built.join(", "))))
}

/// Whether `name` is that of a device whose tensors lie in host memory.
pub fn is_host(name: &str) -> bool {
    ["cpu", "ndarray"].contains(&name)
}

fn is_wgpu(name: &str) -> bool {
    name == "wgpu" || name.starts_with("wgpu:")
}

#[cfg(feature = "wgpu")]
fn auto(needed: u64) -> Opened {
    gpu::choose(needed)
        .unwrap_or_else(|reason| Opened { reason: Some(reason), ..Opened::host(Device::flex(), "cpu") })
}

#[cfg(not(feature = "wgpu"))]
fn auto(_needed: u64) -> Opened {
    Opened {
        reason: Some("no other is built into this library".to_owned()),
        ..Opened::host(Device::flex(), "cpu")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_device_is_named_with_those_that_there_are() {
        let message = open("tpu:1", 0).unwrap_err().to_string();
        assert!(message.contains("tpu:1") && message.contains("cpu"), "{message}");
        assert!(open("tpu", 0).is_err() && open("", 0).is_err());
        assert!(open("cpu", 0).is_ok());
        #[cfg(not(feature = "wgpu"))]
        {
            let message = open("wgpu:1", 0).unwrap_err().to_string();
            assert!(message.contains("wgpu:1") && message.contains("not built"), "{message}");
        }
    }
}
