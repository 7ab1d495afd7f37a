//! What every launch needs, and sums over a cube.

use burn::tensor::DType;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::ir::features::Plane;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::server::{MemoryLayout, MemoryLayoutDescriptor};
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
    all_new_floats(like, [shape]).remove(0)
}

/// Several of them in one piece of memory: to allocate is a quarter of what a launch costs the host.
pub fn all_new_floats(
    like: &CubeTensor,
    shapes: impl IntoIterator<Item = [usize; 2]> + Clone,
) -> Vec<CubeTensor> {
    let layout = |shape: [usize; 2]| MemoryLayoutDescriptor::contiguous(shape.into(), DType::F32.size());
    let places = like.client.empty_tensors(shapes.clone().into_iter().map(layout).collect());
    let tensor = |(shape, place): ([usize; 2], MemoryLayout)| {
        let (client, device) = (like.client.clone(), like.device.clone());
        CubeTensor::new_contiguous(client, device, shape.into(), place.memory, DType::F32)
    };
    shapes.into_iter().zip(places).map(tensor).collect()
}

/// A contiguous tensor, counted in vectors of `size` elements.
pub fn vectors(x: CubeTensor, size: usize) -> CubeTensor {
    let count = x.meta.shape().num_elements() / size;
    CubeTensor::new_contiguous(x.client, x.device, [count].into(), x.handle, x.dtype)
}

/// How many words are read at once of rows of `count`.
pub fn words_at_once(count: usize) -> usize {
    [4, 2, 1].into_iter().find(|size| count.is_multiple_of(*size)).unwrap_or(1)
}

/// Whether a kernel on `x`'s device can have `count` buffers, and one of numbers.
pub fn has_buffers(x: &CubeTensor, count: u32) -> bool {
    #[cfg(test)]
    if tests::FEW_BUFFERS.get() {
        return count < 8;
    }
    x.client.properties().hardware.max_bindings > count
}

/// Whether units of `x`'s device can add up without memory.
pub fn planes(x: &CubeTensor) -> bool {
    #[cfg(test)]
    if let Some(planes) = tests::PLANES.get() {
        return planes;
    }
    x.client.properties().features.plane.contains(Plane::Ops)
}

/// The largest (`max`) or the sum of a `value` of each of the cube's `units`, which lets all of them wait. `room` has as many numbers, and the
/// square root of that more.
#[cube]
pub fn over_cube(
    value: f32,
    room: &mut Shared<[f32]>,
    #[comptime] units: u32,
    #[comptime] max: bool,
    #[comptime] planes: bool,
) -> f32 {
    sync_cube();
    if comptime!(planes) {
        let ours = if comptime!(max) { plane_max(value) } else { plane_sum(value) };
        if UNIT_POS_PLANE == 0u32 {
            room[PLANE_POS as usize] = ours;
        }
        sync_cube();
        fold(room, 0u32, units.runtime().div_ceil(PLANE_DIM), max)
    } else {
        let root = comptime!(units.isqrt());
        room[UNIT_POS as usize] = value;
        sync_cube();
        if UNIT_POS < root {
            let ours = fold(room, UNIT_POS * root, root, max);
            room[(units + UNIT_POS) as usize] = ours;
        }
        sync_cube();
        fold(room, units, root, max)
    }
}

/// The largest or the sum of `count` numbers.
#[cube]
fn fold(room: &mut Shared<[f32]>, from: u32, count: u32, #[comptime] max: bool) -> f32 {
    let mut all = room[from as usize];
    for i in 1..count {
        let next = room[(from + i) as usize];
        all = if comptime!(max) { clamp_min(all, next) } else { all + next };
    }
    all
}

#[cfg(test)]
pub mod tests {
    use std::cell::Cell;

    thread_local! {
        /// What [`super::planes`] says, whatever the adapter has.
        pub static PLANES: Cell<Option<bool>> = const { Cell::new(None) };
        /// Whether [`super::has_buffers`] says what WebGPU promises, whatever the adapter has.
        pub static FEW_BUFFERS: Cell<bool> = const { Cell::new(false) };
    }
}
