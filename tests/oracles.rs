//! Logits and greedy tokens of tiny random checkpoints against the reference implementations, on every device of this build.
//!
//! `tests/fixtures/models/README.md` says where the fixtures come from.

mod support;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeScaling};
use mistral_core::kernels::{Activation, CacheType};
use mistral_core::quant::Format;
use mistral_core::session::PREFILL_CHUNK;
use mistral_core::testing::{self, GgufFile, TempFolder, TensorData};
use mistral_core::{Control, GenerateOptions, Model, ModelOptions, Session, SessionOptions, device, weights};
use support::{fixture, max_diff, npy_f32, npy_tokens};

/// f32 against f32: the two implementations add in different orders, and logits are of the order of 1.
const F32_TOLERANCE: f32 = 1e-4;

/// The checkpoints; all but `dense_swa` (f32) and the FP8 one are in bf16, whose values the reference used in f32.
const CASES: [&str; 11] = [
    "dense_swa",
    "dense_headdim",
    "dense_headdim_fp8",
    "mixtral",
    "ministral_iswa",
    "ministral3_yarn",
    "mistral3_vision",
    "llama",
    "llama_linear",
    "llama_llama3",
    "llama_yarn",
];

/// A checkpoint. The Llama ones have one set of weights, and are put together in `target`.
fn folder(case: &str) -> PathBuf {
    static PUT_TOGETHER: Once = Once::new();
    let models = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oracles");
    PUT_TOGETHER.call_once(|| {
        for case in CASES.iter().filter(|case| case.starts_with("llama")) {
            std::fs::create_dir_all(models.join(case)).unwrap();
            for (from, name) in [(*case, "config.json"), ("llama", "model.safetensors")] {
                std::fs::copy(fixture("models").join(from).join(name), models.join(case).join(name)).unwrap();
            }
        }
    });
    if case.starts_with("llama") { models.join(case) } else { fixture("models").join(case) }
}

fn temp() -> TempFolder {
    TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

fn ids(case: &str) -> Vec<u32> {
    npy_tokens(&fixture("models").join(case).join("input_ids.npy"))
}

fn logits(case: &str) -> Vec<f32> {
    npy_f32(&fixture("models").join(case).join("logits.npy"))
}

fn open(path: &Path, device: &str) -> Arc<Model> {
    let options = ModelOptions { device: device.to_owned(), ..ModelOptions::default() };
    Model::open(path, &options, &mut Control::none()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn session(model: &Arc<Model>) -> Session {
    model.session(&SessionOptions { context: Some(128), cache_type: CacheType::F32 }).unwrap()
}

fn score(model: &Arc<Model>, ids: &[u32]) -> Vec<f32> {
    session(model).score(ids, &mut Control::none()).unwrap()
}

fn greedy(model: &Arc<Model>, ids: &[u32], count: usize) -> Vec<u32> {
    let options = GenerateOptions { max_tokens: Some(count), ignore_eos: true, ..GenerateOptions::default() };
    let (mut session, mut control) = (session(model), Control::none());
    let mut generation = session.generate(ids, &options, &mut control).unwrap();
    std::iter::from_fn(|| generation.next(&mut control)).map(|event| event.unwrap().token).collect()
}

#[test]
fn logits_equal_the_reference_on_every_device() {
    for case in CASES {
        let (ids, want) = (ids(case), logits(case));
        for device in device::names() {
            let got = score(&open(&folder(case), device), &ids);
            let diff = max_diff(&got, &want);
            assert!(diff <= F32_TOLERANCE, "{case} on {device}: {diff:e}");
        }
    }
}

#[test]
fn greedy_tokens_equal_the_reference() {
    for case in CASES {
        let text = std::fs::read(fixture("models").join(case).join("greedy.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let want: Vec<u32> = serde_json::from_value(json["greedy"].take()).unwrap();
        assert_eq!(want.len(), 16);
        for device in device::names() {
            assert_eq!(greedy(&open(&folder(case), device), &ids(case), 16), want, "{case} on {device}");
        }
    }
}

/// One pass, uneven chunks and single tokens, with the windows of 16 and 8 crossed: the same numbers, bit for bit.
#[test]
fn prefill_equals_chunks_and_single_tokens() {
    for case in CASES {
        let model = open(&folder(case), "cpu");
        let ids = ids(case);
        let (whole, vocab_size) = (score(&model, &ids), model.vocab_size());
        for sizes in [vec![1], vec![7, 1, 13]] {
            let (mut session, mut at) = (session(&model), 0);
            for size in sizes.iter().cycle() {
                let end = (at + size).min(ids.len());
                session.prefill(&ids[at..end], &mut Control::none()).unwrap();
                assert_eq!(
                    session.logits(),
                    &whole[(end - 1) * vocab_size..end * vocab_size],
                    "{case} {sizes:?} {end}"
                );
                at = end;
                if at == ids.len() {
                    break;
                }
            }
        }
    }
}

/// More tokens than one pass takes, through a ring that is shorter than the sequence.
#[test]
fn a_ring_that_wraps_equals_single_tokens() {
    let model = open(&folder("ministral_iswa"), "cpu");
    let ids: Vec<u32> = (0..3 * PREFILL_CHUNK as u32 + 5).map(|i| 3 + i * 7 % 500).collect();
    for cache_type in [CacheType::F16, CacheType::Q8_0] {
        let options = SessionOptions { context: Some(ids.len() + 1), cache_type };
        let (mut whole, mut single) = (model.session(&options).unwrap(), model.session(&options).unwrap());
        whole.prefill(&ids, &mut Control::none()).unwrap();
        for id in &ids {
            single.prefill(&[*id], &mut Control::none()).unwrap();
        }
        assert_eq!(whole.logits(), single.logits(), "{cache_type:?}");
    }
}

/// The same weights under native names (with the pairs of the rotation side by side), in a GGUF file, and as f32.
#[test]
fn hf_native_and_gguf_forms_are_equal() {
    for case in [
        "dense_swa",
        "dense_headdim",
        "mixtral",
        "ministral_iswa",
        "ministral3_yarn",
        "llama",
        "llama_llama3",
    ] {
        let ids = ids(case);
        let want = score(&open(&folder(case), "cpu"), &ids);
        let temp = temp();
        let mut copy = copy(case);
        for form in ["f32", "native", "gguf"] {
            let path = temp.path().join(form);
            std::fs::create_dir(&path).unwrap();
            match form {
                "f32" => in_f32(&copy).write_hugging_face(&path).unwrap(),
                // `params.json` has no words for this scaling.
                "native" if case == "llama_llama3" => continue,
                "native" => copy.write_native(&path).unwrap(),
                _ => gguf(&mut copy).write(&path.join("model.gguf")).unwrap(),
            }
            let got = score(&open(&path, "cpu"), &ids);
            // The same products; only the order of the components inside a head differs.
            let diff = max_diff(&got, &want);
            assert!(diff <= 2e-5, "{case} as {form}: {diff:e}");
        }
    }
}

fn copy(case: &str) -> testing::Model {
    let checkpoint = weights::open(&folder(case), &mut Control::none()).unwrap();
    testing::Model::from_checkpoint(&checkpoint).unwrap()
}

/// Llama 3's scaling is a tensor of divisors there, as llama.cpp's converter writes it.
fn gguf(model: &mut testing::Model) -> GgufFile {
    let scaling = std::mem::replace(&mut model.config.rope.scaling, RopeScaling::None);
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } = scaling
    else {
        model.config.rope.scaling = scaling;
        return model.gguf();
    };
    let (head_dim, original) = (model.config.head_dim, original_max_position as f32);
    let divisors: Vec<f32> = (0..head_dim / 2)
        .map(|i| {
            let wavelength =
                std::f32::consts::TAU * model.config.rope.theta.powf(2.0 * i as f32 / head_dim as f32);
            if wavelength < original / high_freq_factor {
                return 1.0;
            }
            if wavelength > original / low_freq_factor {
                return factor;
            }
            let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        })
        .collect();
    let mut file = model.gguf();
    file.tensors.push(TensorData::f32("rope_freqs.weight", &[divisors.len()], &divisors));
    file
}

/// The files of `mistral-inference`, Mistral's own engine: its `params.json` and names, and for one case its logits.
#[test]
fn native_files_are_those_of_mistral() {
    for case in ["dense_swa", "ministral_iswa", "mixtral"] {
        let native = fixture("models/native");
        let text = std::fs::read(native.join(case).with_extension("json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let temp = temp();
        copy(case).write_native(temp.path()).unwrap();
        std::fs::write(temp.path().join("params.json"), file["params"].to_string()).unwrap();
        let checkpoint = weights::open(temp.path(), &mut Control::none()).unwrap();
        let names: serde_json::Value =
            checkpoint.names().map(|(name, shape, _)| (name.to_owned(), serde_json::json!(shape))).collect();
        assert_eq!(names, file["tensors"], "{case}");
        let want = match case {
            "dense_swa" => npy_f32(&native.join("dense_swa.logits.npy")),
            _ => logits(case),
        };
        let diff = max_diff(&score(&open(temp.path(), "cpu"), &ids(case)), &want);
        assert!(diff <= F32_TOLERANCE, "{case}: {diff:e}");
    }
}

/// A GGUF file of each type of tensor against the same numbers in f32.
#[test]
fn every_type_of_gguf_runs_as_its_numbers() {
    let layer = LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense };
    let config = ModelConfig {
        dim: 256,
        head_dim: 64,
        hidden_dim: 512,
        vocab_size: 64,
        layers: vec![layer; 2],
        ..copy("llama").config
    };
    let temp = temp();
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 64).collect();
    for format in Format::all().filter(|format| format.gguf_id().is_some()) {
        let model = testing::Model::random(&config, format, 1);
        let [path, plain] = [temp.path().join("model.gguf"), temp.path().join("plain.gguf")];
        model.gguf().write(&path).unwrap();
        in_f32(&model).gguf().write(&plain).unwrap();
        let want = score(&open(&plain, "cpu"), &ids);
        for device in device::names() {
            let options = ModelOptions {
                device: device.to_owned(),
                activation: Activation::F32,
                ..ModelOptions::default()
            };
            let opened = Model::open(&path, &options, &mut Control::none()).unwrap();
            let got = score(&opened, &ids);
            let (diff, largest) = (max_diff(&got, &want), want.iter().fold(0f32, |m, x| m.max(x.abs())));
            // The expanded numbers are the same, to the bit: only sums differ.
            assert!(diff <= 2e-5 * largest, "{format:?} on {device}: {diff:e} of {largest}");
            if device == "wgpu" && is_expanded(format) {
                continue;
            }
            // As many bytes as in the file but for the headers of packed groups: no copy in f32.
            let stored: usize =
                model.tensors.iter().filter(|t| t.shape.len() > 1).map(|t| t.bytes.len()).sum();
            let stored = stored - 64 * format.row_bytes(config.dim).unwrap();
            let used = opened.bytes_per_token().unwrap();
            assert!(
                (stored as u64..=stored as u64 * 13 / 10).contains(&used),
                "{format:?}: {used} for {stored}"
            );
        }
    }
}

/// Whether the device `wgpu` has no kernel for the format, and holds it in f32.
fn is_expanded(format: Format) -> bool {
    use Format::*;
    [Q2_K, Q3_K, IQ1_S, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, TQ1_0, TQ2_0].contains(&format)
}

fn in_f32(model: &testing::Model) -> testing::Model {
    let tensors = model.tensors.iter().map(|tensor| {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.format.dequantize(&tensor.bytes, &mut values).unwrap();
        TensorData::f32(&tensor.name, &tensor.shape, &values)
    });
    testing::Model { config: model.config.clone(), tensors: tensors.collect() }
}
