//! The device `wgpu` beside the processor, and what happens where it fails. It needs a driver: Mesa's lavapipe, in software, is enough.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::kernels::Activation;
use mistral_core::placement::Need;
use mistral_core::quant::Format;
use mistral_core::testing::{self, TempFolder};
use mistral_core::{Control, Error, Model, ModelOptions, Session, SessionOptions, device, weights};
use support::max_diff;

/// f32 on both sides; only sums are made in another order. Relative to the largest logit.
const TOLERANCE: f32 = 2e-5;

fn config(dim: usize, vocab_size: usize, layers: usize) -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        dim,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        hidden_dim: 2 * dim,
        vocab_size,
        norm_eps: 1e-5,
        max_context: 512,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: true,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; layers],
    }
}

fn write(config: &ModelConfig, format: Format) -> (TempFolder, PathBuf) {
    let folder = TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap();
    let path = folder.path().join("model.gguf");
    testing::Model::random(config, format, 1).gguf().write(&path).unwrap();
    (folder, path)
}

fn options(device: &str) -> ModelOptions {
    ModelOptions { device: device.to_owned(), activation: Activation::F32, ..ModelOptions::default() }
}

fn open(path: &Path, options: &ModelOptions) -> Arc<Model> {
    Model::open(path, options, &mut Control::none()).unwrap_or_else(|e| panic!("{e}"))
}

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(64), ..SessionOptions::default() }).unwrap()
}

fn score(model: &Arc<Model>) -> Vec<f32> {
    session(model).score(&[1, 5, 9, 2, 60, 33, 7], &mut Control::none()).unwrap()
}

fn assert_equal(got: &[f32], want: &[f32], what: &str) {
    let largest = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let diff = max_diff(got, want);
    assert!(diff <= TOLERANCE * largest, "{what}: {diff:e} of {largest}");
}

#[test]
fn adapters_are_listed_with_what_their_driver_says() {
    let list = device::list();
    let adapter = list.iter().find(|device| device["name"] == "wgpu:0").expect("an adapter");
    for key in ["adapter", "backend", "driver", "type"] {
        assert!(adapter[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {adapter}");
    }
    assert!(adapter["limits"]["max_storage_binding_bytes"].as_u64() >= Some(1 << 27), "{adapter}");
    if adapter["backend"] == "vulkan" {
        assert!(adapter["memory_bytes"].as_u64() > Some(1 << 28), "{adapter}");
    }
    let name = adapter["adapter"].as_str().unwrap();
    for name in ["wgpu".to_owned(), "wgpu:0".to_owned(), format!("wgpu:{}", name.to_uppercase())] {
        assert_eq!(device::open(&name, 0).unwrap().name, "wgpu:0");
    }
    for name in ["wgpu:99", "wgpu:no such adapter"] {
        let error = device::open(name, 0).unwrap_err();
        assert!(matches!(&error, Error::Device { .. }) && error.to_string().contains("wgpu:0"), "{error}");
    }
}

#[test]
fn auto_says_what_it_chose_and_why() {
    let (_folder, path) = write(&config(128, 64, 1), Format::Q4_0);
    let info = open(&path, &options("auto")).info();
    let software =
        device::list().iter().all(|device| device["type"].is_null() || device["type"] == "software");
    let reason = info["device_info"]["reason"].as_str().unwrap();
    if software {
        assert!(info["device"] == "cpu" && reason.contains("software"), "{info}");
    } else {
        assert!(info["device"].as_str().unwrap().starts_with("wgpu:"), "{info}");
    }
}

/// Runs the ignored test `name` in a process of its own.
fn child(name: &str, environment: &[(&str, &str)], limit: Option<u64>) {
    let program = std::env::current_exe().unwrap();
    let mut command = match limit {
        None => Command::new(&program),
        Some(kib) => {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("ulimit -v {kib}; exec \"$@\"")).arg("sh").arg(&program);
            shell
        }
    };
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn without_a_driver_there_is_an_error_and_auto_takes_the_processor() {
    let nothing = [("VK_DRIVER_FILES", "/nonexistent.json"), ("VK_ICD_FILENAMES", "/nonexistent.json")];
    child("in_a_process_without_a_driver", &nothing, None);
}

#[test]
#[ignore = "runs in a process without a driver"]
fn in_a_process_without_a_driver() {
    assert!(device::list().iter().all(|device| device["kind"] != "wgpu"));
    for name in ["wgpu", "wgpu:0"] {
        let error = device::open(name, 0).unwrap_err();
        assert!(error.to_string().contains("no adapter"), "{error}");
    }
    let (_folder, path) = write(&config(128, 64, 1), Format::Q4_0);
    let error = Model::open(&path, &options("wgpu"), &mut Control::none()).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error}");
    assert_eq!(open(&path, &options("auto")).info()["device"], "cpu");
}

#[test]
fn a_lost_device_is_an_error_and_can_be_opened_again() {
    // A runtime is shared by the models of a process: in one of its own nobody else loses it.
    child("in_a_process_that_loses_its_device", &[], None);
}

#[test]
#[ignore = "runs in a process of its own"]
fn in_a_process_that_loses_its_device() {
    let (_folder, path) = write(&config(128, 64, 2), Format::Q4_0);
    let model = open(&path, &options("wgpu"));
    let before = score(&model);
    let mut one = session(&model);
    one.prefill(&[1, 2, 3], &mut Control::none()).unwrap();
    model.device().gpu.as_ref().unwrap().lose();
    for _ in 0..2 {
        let error = one.prefill(&[4], &mut Control::none()).unwrap_err();
        assert!(matches!(error, Error::Device { .. }), "{error}");
    }
    assert!(model.session(&SessionOptions::default()).is_err());
    let again = open(&path, &options("wgpu"));
    assert_eq!(score(&again), before);
}

#[test]
fn memory_that_ends_is_an_error_and_the_device_lives() {
    // A device in software takes its memory from the process: 3 GiB of addresses in all.
    child("in_a_process_without_memory", &[], Some(3 << 20));
}

#[test]
#[ignore = "runs in a process with little memory"]
fn in_a_process_without_memory() {
    if device::list().iter().any(|device| device["name"] == "wgpu:0" && device["type"] != "software") {
        return; // What a real adapter has, a process cannot limit.
    }
    let (_folder, path) = write(&ModelConfig { max_context: 1 << 20, ..config(128, 64, 24) }, Format::Q4_0);
    let model = open(&path, &options("wgpu"));
    let before = score(&model);
    // 24 layers with 2 × 100 MiB: each fits, and all of them do not.
    let context = SessionOptions { context: Some(100 << 13), ..SessionOptions::default() };
    let error = model.session(&context).unwrap_err();
    assert!(matches!(&error, Error::Limit { what, .. } if what == "device memory"), "{error}");
    assert_eq!(score(&model), before);
}

#[test]
fn layers_are_split_between_the_device_and_the_processor() {
    let (_folder, path) = write(&config(128, 64, 3), Format::Q4_0);
    let want = score(&open(&path, &options("cpu")));
    for (count, first) in [(0, 4), (1, 2), (2, 1), (3, 0), (usize::MAX, 0)] {
        let model = open(&path, &ModelOptions { gpu_layers: Some(count), ..options("wgpu") });
        assert_eq!(model.device().first_layer, first);
        assert_equal(&score(&model), &want, &format!("{count} layers"));
        let mut single = session(&model);
        for id in [1, 5, 9, 2, 60, 33, 7] {
            single.prefill(&[id], &mut Control::none()).unwrap();
        }
        assert_equal(single.logits(), &want[want.len() - 64..], &format!("{count} layers, single tokens"));
    }
}

/// A matrix of more bytes than an adapter may bind at once goes there in parts.
#[test]
fn large_matrices_are_cut() {
    let most = device::open("wgpu", 0).unwrap().gpu.unwrap().max_tensor_bytes();
    if most > 1 << 28 {
        return; // A real adapter: nothing that a test could write is too large for it.
    }
    let config = config(1024, most as usize / 4096 + 4099, 1);
    let (_folder, path) = write(&config, Format::F32);
    let [got, want] = ["wgpu", "cpu"].map(|device| {
        let model = open(&path, &options(device));
        let mut session = session(&model);
        session.prefill(&[1, 7], &mut Control::none()).unwrap();
        session.logits().to_vec()
    });
    assert_equal(&got, &want, "a matrix in two parts");
}

/// Weights and caches, 15% and 200 MB: what is promised, and what `gpu_layers` counts with.
#[test]
fn memory_stays_below_what_was_estimated() {
    child("in_a_process_that_counts_memory", &[], None);
}

#[test]
#[ignore = "runs in a process of its own"]
fn in_a_process_that_counts_memory() {
    let (_folder, path) = write(&config(1024, 4096, 8), Format::Q8_0);
    let checkpoint = weights::open(&path, &mut Control::none()).unwrap();
    let need = Need::of(&checkpoint, None, (64, 256), Default::default()).unwrap();
    let model = open(&path, &options("wgpu"));
    score(&model);
    let gpu = model.device().gpu.as_ref().unwrap();
    let (held, most) = (gpu.reserved_bytes(), need.with(8));
    let weights: u64 = need.layers.iter().sum::<u64>() + need.output;
    assert!(held <= most, "{held} bytes held, {most} promised, {weights} of weights and caches");
}
