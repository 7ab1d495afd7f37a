//! Which files a path stands for.

use serde_json::json;

use super::formats::read_tensors;
use super::*;
use crate::control::CancelToken;
use crate::testing::{GgufFile, GgufValue, TensorData, safetensors_bytes};

#[test]
fn nothing_to_open() {
    let folder = temp();
    let path = folder.path();
    let missing = path.join("nowhere");
    assert!(matches!(open_quietly(&missing), Err(Error::Io { path, .. }) if path == missing));
    assert!(refusal(path).contains("no weights among 0 entries"));
    std::fs::write(path.join("config.json"), "{}").unwrap();
    assert!(refusal(path).contains("no weights among 1 entries"));
    std::fs::write(path.join("pytorch_model.bin"), "").unwrap();
    assert!(refusal(path).contains("pickle"));
    assert!(refusal(&path.join("pytorch_model.bin")).contains("pickle"));
    assert!(refusal(&path.join("config.json")).contains("unsupported file"));
    std::fs::write(path.join("empty.gguf"), "").unwrap();
    assert!(refusal(&path.join("empty.gguf")).contains("the end of the file at byte 0"));
    std::fs::write(path.join("model.safetensors"), "").unwrap();
    assert!(refusal(&path.join("model.safetensors")).contains("safetensors header"));
}

#[test]
fn weights_need_a_configuration() {
    let folder = temp();
    write_hf(&Model::random(&tiny(), Format::F32, 1), folder.path());
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    assert!(refusal(folder.path()).contains("neither config.json nor params.json"));
    std::fs::write(folder.path().join("config.json"), "{\"a\":").unwrap();
    assert!(refusal(folder.path()).contains("config.json: line 1 column 5"));
    std::fs::write(folder.path().join("config.json"), [b'"', 0xff, b'"']).unwrap();
    assert!(refusal(folder.path()).contains("byte 1: found invalid UTF-8"));
    std::fs::write(folder.path().join("config.json"), "[".repeat(100_000)).unwrap();
    assert!(refusal(folder.path()).contains("config.json"), "nesting is bounded");
}

#[test]
fn both_sets_of_one_model() {
    // As Mistral publishes it: its own files and a conversion. Different seeds tell which was loaded.
    let folder = temp();
    let (native, hf) = (Model::random(&tiny(), Format::F32, 1), Model::random(&tiny(), Format::F32, 2));
    native.write_native(folder.path()).unwrap();
    hf.write_hugging_face(folder.path()).unwrap();
    let found = |path: &Path| {
        let checkpoint = open_quietly(path).unwrap();
        let bytes = checkpoint.tensor("norm.weight", &[8]).unwrap().bytes.to_vec();
        (bytes, checkpoint.config.rope.style)
    };
    let norm = |model: &Model| model.tensors.iter().find(|t| t.name == "norm.weight").unwrap().bytes.clone();
    assert_eq!(found(folder.path()), (norm(&native), RopeStyle::Interleaved));
    assert_eq!(found(&folder.path().join("model.safetensors")), (norm(&hf), RopeStyle::HalfSplit));
    assert_eq!(
        found(&folder.path().join("consolidated.safetensors")),
        (norm(&native), RopeStyle::Interleaved)
    );
    std::fs::remove_file(folder.path().join("params.json")).unwrap();
    assert_eq!(found(folder.path()), (norm(&hf), RopeStyle::HalfSplit));
}

#[test]
fn two_formats_or_two_models() {
    let folder = temp();
    let model = Model::random(&tiny(), Format::F32, 1);
    model.gguf().write(&folder.path().join("a.gguf")).unwrap();
    assert!(open_quietly(folder.path()).is_ok());
    model.gguf().write(&folder.path().join("mmproj-a.gguf")).unwrap();
    assert!(open_quietly(folder.path()).is_ok(), "a vision projector is not a second model");
    model.gguf().write(&folder.path().join("b.gguf")).unwrap();
    assert!(refusal(folder.path()).contains("several models: a.gguf and b.gguf"));
    std::fs::remove_file(folder.path().join("b.gguf")).unwrap();
    write_hf(&model, folder.path());
    let message = refusal(folder.path());
    assert!(message.contains("a.gguf") && message.contains("model.safetensors"), "{message}");
    assert!(open_quietly(&folder.path().join("a.gguf")).is_ok());
    std::fs::remove_file(folder.path().join("a.gguf")).unwrap();
    std::fs::rename(folder.path().join("model.safetensors"), folder.path().join("x.safetensors")).unwrap();
    assert!(open_quietly(folder.path()).is_ok(), "one file of another name");
    std::fs::copy(folder.path().join("x.safetensors"), folder.path().join("y.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("several safetensors files: x.safetensors and y.safetensors"));
}

/// Splits the model of a folder into two shards.
fn write_shards(folder: &Path) -> [Vec<TensorData>; 2] {
    let path = write_hf(&Model::random(&tiny(), Format::F32, 1), folder);
    let mut first = read_tensors(&path);
    let second = first.split_off(first.len() / 2);
    std::fs::remove_file(path).unwrap();
    for (number, shard) in [&first, &second].into_iter().enumerate() {
        std::fs::write(folder.join(shard_name(number)), safetensors_bytes(shard)).unwrap();
    }
    [first, second]
}

fn shard_name(number: usize) -> String {
    format!("model-{:05}-of-00002.safetensors", number + 1)
}

#[test]
fn shards() {
    let folder = temp();
    let shards = write_shards(folder.path());
    let whole = Model::random(&tiny(), Format::F32, 1);
    let check = |path: &Path| {
        let checkpoint = open_quietly(path).unwrap();
        assert_eq!(checkpoint.files().count(), 2);
        assert_eq!(Model::from_checkpoint(&checkpoint).unwrap(), whole);
    };
    check(folder.path());
    check(&folder.path().join(shard_name(1)));
    let index_path = folder.path().join("model.safetensors.index.json");
    let write_index = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut map = json!({});
        for (number, shard) in shards.iter().enumerate() {
            for tensor in shard {
                map[&tensor.name] = json!(shard_name(number));
            }
        }
        change(&mut map);
        std::fs::write(&index_path, json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    };
    write_index(&|_| {});
    check(folder.path());
    check(&index_path);
    write_index(&|map| map["x.weight"] = json!(shard_name(0)));
    assert!(refusal(folder.path()).contains("x.weight: found no such tensor"));
    write_index(&|map| map["lm_head.weight"] = json!(shard_name(1)));
    assert!(
        refusal(folder.path())
            .contains("lm_head.weight: found the tensor in model-00001-of-00002.safetensors")
    );
    write_index(&|map| drop(map.as_object_mut().unwrap().remove("lm_head.weight")));
    assert!(refusal(folder.path()).contains("the index does not list"));
    for outside in ["../x.safetensors", "/x.safetensors", "", "..", "a\\b"] {
        write_index(&|map| map["lm_head.weight"] = json!(outside));
        assert!(refusal(folder.path()).contains("weight_map.lm_head.weight"), "{outside}");
    }
    write_index(&|_| {});
    std::fs::remove_file(folder.path().join(shard_name(1))).unwrap();
    assert!(refusal(folder.path()).contains("model-00002-of-00002.safetensors"));
    std::fs::copy(folder.path().join(shard_name(0)), folder.path().join(shard_name(1))).unwrap();
    assert!(refusal(folder.path()).contains("a second tensor of this name"));
}

#[test]
fn split_gguf() {
    let whole = Model::random(&tiny(), Format::F32, 1).gguf();
    let middle = whole.tensors.len() / 2;
    let part = |number: u16, entries: &[(String, GgufValue)], tensors: &[TensorData]| {
        let mut file = GgufFile { entries: entries.to_vec(), tensors: tensors.to_vec() };
        file.set("split.no", GgufValue::U16(number));
        file.set("split.count", GgufValue::U16(2));
        file
    };
    let folder = temp();
    let paths = [1, 2].map(|number| folder.path().join(format!("m-0000{number}-of-00002.gguf")));
    part(0, &whole.entries, &whole.tensors[..middle]).write(&paths[0]).unwrap();
    part(1, &[], &whole.tensors[middle..]).write(&paths[1]).unwrap();
    for path in [folder.path(), &paths[0], &paths[1]] {
        let checkpoint = open_quietly(path).unwrap();
        assert_eq!(checkpoint.files().count(), 2);
        assert_eq!(checkpoint.total_bytes(), paths.iter().map(|p| p.metadata().unwrap().len()).sum::<u64>());
    }
    part(0, &[], &whole.tensors[middle..]).write(&paths[1]).unwrap();
    assert!(refusal(folder.path()).contains("split.no: found 0, expected 1"));
    std::fs::rename(&paths[0], folder.path().join("alone.gguf")).unwrap();
    assert!(refusal(&folder.path().join("alone.gguf")).contains("split.count: found 2, expected 1"));
}

#[test]
fn progress_and_cancellation() {
    let folder = temp();
    let path = write_hf(&Model::random(&tiny(), Format::F32, 1), folder.path());
    let mut seen = Vec::new();
    let mut report = |progress: Progress| seen.push(progress);
    open(&path, &mut Control::none().with_progress(&mut report)).unwrap();
    let total = path.metadata().unwrap().len();
    assert_eq!(seen, [Progress { phase: "load", done: 0, total }]);
    let cancel = CancelToken::new();
    cancel.cancel();
    let result = open(&path, &mut Control::none().with_cancel(&cancel));
    assert!(matches!(result, Err(Error::Cancelled)));
}
