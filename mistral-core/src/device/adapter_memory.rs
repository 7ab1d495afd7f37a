//! How much memory an adapter has, which WebGPU does not say: asked of Vulkan.

use burn::tensor::wgpu::wgpu::{Adapter, hal::api::Vulkan};

/// Flags of Vulkan's specification: `VK_MEMORY_HEAP_DEVICE_LOCAL_BIT`.
const DEVICE_LOCAL: u32 = 1;

/// Bytes of the adapter's own memory, where its driver says it.
pub fn bytes(adapter: &Adapter) -> Option<u64> {
    // SAFETY: the handle is borrowed from wgpu for this call, and nothing of it is destroyed or kept.
    let guard = unsafe { adapter.as_hal::<Vulkan>() }?;
    let instance = guard.shared_instance().raw_instance();
    // SAFETY: wgpu made both handles from each other, and the guard keeps them alive.
    let memory = unsafe { instance.get_physical_device_memory_properties(guard.raw_physical_device()) };
    let heaps = memory.memory_heaps.iter().take(memory.memory_heap_count as usize);
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}
