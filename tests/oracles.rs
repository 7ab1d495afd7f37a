//! Logits and greedy tokens of tiny random checkpoints against the reference implementations, on every device of this build.
//!
//! `tests/fixtures/models/README.md` says where the fixtures come from.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mistral_core::kernels::CacheType;
use mistral_core::session::PREFILL_CHUNK;
use mistral_core::testing::{self, TempFolder, TensorData};
use mistral_core::{Control, GenerateOptions, Model, ModelOptions, Session, SessionOptions, device, weights};
use support::{fixture, max_diff, npy_f32, npy_tokens};

/// f32 against f32: the two implementations add in different orders, and logits are of the order of 1.
const F32_TOLERANCE: f32 = 1e-4;

/// The text checkpoints; all but `dense_swa` (f32) and the FP8 one are in bf16, whose values the reference used in f32.
const CASES: [&str; 6] =
    ["dense_swa", "dense_headdim", "dense_headdim_fp8", "mixtral", "ministral_iswa", "ministral3_yarn"];

fn folder(case: &str) -> PathBuf {
    fixture("models").join(case)
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
        let ids = npy_tokens(&folder(case).join("input_ids.npy"));
        let want = npy_f32(&folder(case).join("logits.npy"));
        for device in device::names() {
            let got = score(&open(&folder(case), device), &ids);
            let diff = max_diff(&got, &want);
            assert!(diff <= F32_TOLERANCE, "{case} on {device}: {diff:e}");
        }
    }
}

#[test]
fn greedy_tokens_equal_the_reference() {
    let ids = npy_tokens(&folder("dense_swa").join("input_ids.npy"));
    let text = std::fs::read_to_string(folder("dense_swa").join("greedy.json")).unwrap();
    let want: Vec<u32> =
        serde_json::from_value(serde_json::from_str::<serde_json::Value>(&text).unwrap()["greedy"].take())
            .unwrap();
    assert_eq!(want.len(), 16);
    for device in device::names() {
        assert_eq!(greedy(&open(&folder("dense_swa"), device), &ids, 16), want, "{device}");
    }
}

/// One pass, uneven chunks and single tokens, with the windows of 16 and 8 crossed: the same numbers, bit for bit.
#[test]
fn prefill_equals_chunks_and_single_tokens() {
    for case in CASES {
        let model = open(&folder(case), "cpu");
        let ids = npy_tokens(&folder(case).join("input_ids.npy"));
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
    let options = SessionOptions { context: Some(ids.len() + 1), cache_type: CacheType::F16 };
    let (mut whole, mut single) = (model.session(&options).unwrap(), model.session(&options).unwrap());
    whole.prefill(&ids, &mut Control::none()).unwrap();
    for id in &ids {
        single.prefill(&[*id], &mut Control::none()).unwrap();
    }
    assert_eq!(whole.logits(), single.logits());
}

/// The same weights under native names (with the pairs of the rotation side by side), in a GGUF file, and as f32.
#[test]
fn hf_native_and_gguf_forms_are_equal() {
    for case in ["dense_swa", "dense_headdim", "mixtral", "ministral_iswa", "ministral3_yarn"] {
        let ids = npy_tokens(&folder(case).join("input_ids.npy"));
        let want = score(&open(&folder(case), "cpu"), &ids);
        let temp = TempFolder::new_in(&std::env::temp_dir()).unwrap();
        let checkpoint = weights::open(&folder(case), &mut Control::none()).unwrap();
        let copy = testing::Model::from_checkpoint(&checkpoint).unwrap();
        for form in ["native", "gguf", "f32"] {
            let path = temp.path().join(form);
            std::fs::create_dir(&path).unwrap();
            match form {
                "native" => copy.write_native(&path),
                "gguf" => copy.gguf().write(&path.join("model.gguf")),
                _ => in_f32(&copy).write_hugging_face(&path),
            }
            .unwrap();
            let got = score(&open(&path, "cpu"), &ids);
            // The same products; only the order of the components inside a head differs.
            let diff = max_diff(&got, &want);
            assert!(diff <= 2e-5, "{case} as {form}: {diff:e}");
        }
    }
}

fn in_f32(model: &testing::Model) -> testing::Model {
    let tensors = model.tensors.iter().map(|tensor| {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.format.dequantize(&tensor.bytes, &mut values).unwrap();
        TensorData::f32(&tensor.name, &tensor.shape, &values)
    });
    testing::Model { config: model.config.clone(), tensors: tensors.collect() }
}

#[test]
fn a_vision_checkpoint_answers_text() {
    let model = open(&folder("mistral3_vision"), "cpu");
    assert_eq!(greedy(&model, &[1, 3, 300, 301, 4], 8).len(), 8);
}
