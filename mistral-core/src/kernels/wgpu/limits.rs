//! What an adapter can do at most, through the compiler that our kernels go through: for benchmarks, which compare with it.

use std::time::Instant;

use burn::tensor::DType;
use burn_cubecl::CubeDevice;
use burn_cubecl::cubecl;
use burn_cubecl::cubecl::client::Client;
use burn_cubecl::cubecl::ir::{ElemType, FloatKind};
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::launch;

/// Units of a cube, and cubes of a launch: more than any adapter runs at once.
const UNITS: u32 = 256;
const CUBES: u32 = 4096;
/// Chains of multiplications of a unit, which do not wait for each other, and steps of each.
const CHAINS: usize = 8;
const STEPS: u32 = 512;

/// Seconds of work before something is measured.
const WARM: f64 = 0.1;
/// Launches that are waited for together.
const LAUNCHES: u32 = 8;
/// Steps of a loop that are written out, and reads that do not wait for each other.
const AHEAD: u32 = 8;

/// What an adapter does at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// GB/s at which its memory is read.
    pub reading: f64,
    /// Billions of products that are added up each second in f32.
    pub f32_products: f64,
    /// In f16, where the adapter has it.
    pub f16_products: Option<f64>,
}

impl Limits {
    /// Measures them; `bytes` are read.
    pub fn measure(device: &CubeDevice, bytes: usize) -> Self {
        let client = device.client();
        let words =
            |count| empty_device_contiguous_dtype(client.clone(), device.clone(), [count].into(), DType::U32);
        let half = client.properties().supports_type(ElemType::Float(FloatKind::F16));
        let results = words((2 * CUBES * UNITS) as usize);
        Self {
            reading: reading(&words(bytes / 16 * 4), &results),
            f32_products: products::<f32>(&results),
            f16_products: half.then(|| products::<half::f16>(&results)),
        }
    }
}

fn reading(memory: &CubeTensor, out: &CubeTensor) -> f64 {
    let quads = memory.meta.shape()[0] / 4;
    let seconds = best(&memory.client, &|| {
        read::launch(
            &memory.client,
            CubeCount::Static(CUBES, 1, 1),
            CubeDim::new_1d(UNITS),
            launch::vectors(memory.clone(), 4).into_buffer_arg(),
            out.clone().into_buffer_arg(),
            quads as u32,
        );
    });
    let at_once = (AHEAD * CUBES * UNITS) as usize;
    16.0 * (quads / at_once * at_once) as f64 / seconds / 1e9
}

fn products<F: Float>(out: &CubeTensor) -> f64 {
    let seconds = best(&out.client, &|| {
        multiply::launch::<F>(
            &out.client,
            CubeCount::Static(CUBES, 1, 1),
            CubeDim::new_1d(UNITS),
            launch::vectors(out.clone(), 2).into_buffer_arg(),
            1.0,
        );
    });
    // Two numbers a chain.
    f64::from(CUBES * UNITS) * f64::from(STEPS) * 2.0 * CHAINS as f64 / seconds / 1e9
}

/// The shortest of five times that `launch` takes, after others that compile it.
fn best(client: &Client, launch: &dyn Fn()) -> f64 {
    let wait = || drop(cubecl::future::block_on(client.sync()));
    // An adapter that had nothing to do wakes up slowly.
    let (start, mut launches) = (Instant::now(), 0);
    while start.elapsed().as_secs_f64() < WARM {
        launch();
        wait();
        launches = LAUNCHES.min(launches + 1);
    }
    let times = (0..5).map(|_| {
        let start = Instant::now();
        (0..launches).for_each(|_| launch());
        wait();
        start.elapsed().as_secs_f64() / f64::from(launches)
    });
    times.fold(f64::INFINITY, f64::min)
}

#[cube(launch)]
fn read(memory: &[Vector<u32, Const<4>>], out: &mut [u32], quads: u32) {
    let mut all = Vector::<u32, Const<4>>::new(0u32);
    let mut at = CUBE_POS_X * UNITS + UNIT_POS;
    while at + (AHEAD - 1u32) * CUBES * UNITS < quads {
        #[unroll]
        for _ in 0..AHEAD {
            all ^= memory[at as usize];
            at += CUBES * UNITS;
        }
    }
    let word = all.extract(0usize) ^ all.extract(1usize) ^ all.extract(2usize) ^ all.extract(3usize);
    // Of one unit, which the compiler cannot know to be the only one that is needed.
    if word != 1u32 {
        out[CUBE_POS_X as usize] = word;
    }
}

#[cube(launch)]
fn multiply<F: Float>(out: &mut [Vector<F, Const<2>>], by: f32) {
    let by = Vector::<F, Const<2>>::new(F::cast_from(by));
    let mut chains = Array::<Vector<F, Const<2>>>::new(CHAINS);
    #[unroll]
    for i in 0..CHAINS {
        chains[i] = Vector::<F, Const<2>>::new(F::cast_from(i as u32));
    }
    for _ in 0..STEPS / AHEAD {
        #[unroll]
        for _ in 0..AHEAD {
            #[unroll]
            for i in 0..CHAINS {
                chains[i] = fma(chains[i], by, by);
            }
        }
    }
    let mut all = chains[0];
    #[unroll]
    for i in 1..CHAINS {
        all += chains[i];
    }
    out[(CUBE_POS_X * UNITS + UNIT_POS) as usize] = all;
}
