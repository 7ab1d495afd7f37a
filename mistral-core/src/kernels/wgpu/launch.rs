//! What every launch needs.

use burn::tensor::DType;
use burn_cubecl::cubecl::prelude::CubeCount;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

/// The most cubes in the first dimension; WebGPU promises 65535. Kernels go on in the third.
pub const MAX_CUBES_X: u32 = 32768;

/// `first` cubes, `second` times.
pub fn cubes(first: usize, second: usize) -> CubeCount {
    let x = first.min(MAX_CUBES_X as usize);
    CubeCount::Static(x as u32, second as u32, first.div_ceil(MAX_CUBES_X as usize) as u32)
}

/// An f32 tensor beside `like`, not written yet.
pub fn new_floats(like: &CubeTensor, shape: [usize; 2]) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), DType::F32)
}
