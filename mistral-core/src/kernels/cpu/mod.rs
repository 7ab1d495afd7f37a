//! Kernels for the processor, on slices: shared by every backend whose tensors lie in host memory.

mod ahead;
pub mod attention;
pub mod cache;
pub mod dense;
pub mod elementwise;
pub mod packed;
pub mod pool;
pub mod simd;
