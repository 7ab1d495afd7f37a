//! Devices by name, chosen at run time.

use burn::tensor::Device;

use crate::error::{Error, Result};

/// The names that [`open`] accepts in this build.
pub fn names() -> Vec<&'static str> {
    let mut names = vec!["cpu"];
    if cfg!(feature = "ndarray") {
        names.push("ndarray");
    }
    names
}

/// Whether the device computes every output element by one fixed sequence of operations, whatever runs beside it: what
/// [`crate::determinism`] promises for it. A device is not until the tests of that hold on it.
pub fn is_reproducible(name: &str) -> bool {
    ["cpu", "ndarray"].contains(&name) && names().contains(&name)
}

/// The device called `name`: `cpu` (Burn's Flex), or `ndarray` (Burn's NdArray).
///
/// # Errors
/// [`Error::Unsupported`] for a device that this build does not have, which names those it has.
pub fn open(name: &str) -> Result<Device> {
    match name {
        "cpu" => Ok(Device::flex()),
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "deprecated upstream, and asked for by those who compare the two")]
        "ndarray" => Ok(Device::ndarray()),
        other => {
            let not_built =
                ["ndarray", "wgpu"].iter().any(|d| other == *d || other.starts_with(&format!("{d}:")));
            let found =
                if not_built { format!("{other} (not built into this library)") } else { other.to_owned() };
            Err(Error::unsupported("device", found, names().join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_device_is_named_with_those_that_there_are() {
        let message = open("wgpu:1").unwrap_err().to_string();
        assert!(
            message.contains("wgpu:1") && message.contains("not built") && message.contains("cpu"),
            "{message}"
        );
        assert!(open("tpu").is_err() && open("").is_err());
        assert!(open("cpu").is_ok());
    }
}
