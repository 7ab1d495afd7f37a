//! One program for all targets of tests/fuzz: the environment variable `FUZZ_TARGET` names the one that runs. `FUZZ_SEEDS` names a folder that the seeds are
//! written to, and nothing runs.
#![no_main]

#[path = "../../tests/fuzz/calls.rs"]
mod calls;
#[path = "../../tests/fuzz/files.rs"]
mod files;
#[path = "../../tests/fuzz/mutate.rs"]
mod mutate;
#[path = "../../tests/fuzz/targets.rs"]
mod targets;
#[path = "../../tests/ffi/support/tiny.rs"]
mod tiny;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use mistral_core::testing::TempFolder;
use mistral_core::{Control, Model, ModelOptions};
use mutate::Random;
use targets::Target;

fn target() -> &'static Target {
    static TARGET: OnceLock<&Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target");
        let all = || targets::TARGETS.iter().chain(&files::TARGETS).chain([&CALLS]);
        let target = all().find(|target| target.name == name).unwrap_or_else(|| panic!("no target {name}"));
        if let Some(folder) = std::env::var_os("FUZZ_SEEDS") {
            for (number, seed) in (target.seeds)().into_iter().enumerate() {
                std::fs::write(Path::new(&folder).join(format!("seed-{number}")), seed).expect("a seed");
            }
            std::process::exit(0);
        }
        target
    })
}

/// The C interface.
static CALLS: Target =
    Target { name: "calls", seeds: calls::seeds, words: &["\0"], run: call, rounds: 0, memory: 64 << 20 };

fn call(input: &[u8]) -> bool {
    static MODEL: OnceLock<usize> = OnceLock::new();
    let model = MODEL.get_or_init(|| {
        let folder = TempFolder::new_in(&std::env::temp_dir()).expect("a folder");
        let path = folder.path().join("tiny.gguf");
        tiny::write_tiny_model(&path);
        let options =
            ModelOptions { threads: Some(1), max_memory: Some(64 << 20), ..ModelOptions::default() };
        let model = Model::open(&path, &options, &mut Control::none()).expect("a model");
        mistral::testing::adopt(model).expose_provenance()
    });
    calls::run(std::ptr::with_exposed_provenance_mut(*model), input)
}

fuzz_target!(|input: &[u8]| {
    (target().run)(input);
});

// Half of the inputs are changed as libFuzzer does, half by their structure.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    static SEEDS: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    if seed % 2 == 0 {
        return fuzzer_mutate(data, size, max_size);
    }
    let others = SEEDS.get_or_init(|| (target().seeds)());
    let mut input = data[..size].to_vec();
    mutate::change(&mut input, others, target(), &mut Random::new(u64::from(seed), 1));
    input.truncate(max_size);
    data[..input.len()].copy_from_slice(&input);
    input.len()
});
