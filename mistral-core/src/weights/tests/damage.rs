//! Files that are damaged, incomplete or made to attack: always a typed error or a model, never a panic.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

use super::formats::read_tensors;
use super::*;
use crate::testing::{GgufFile, GgufValue, TensorData, safetensors_bytes};

/// Opens a file and touches everything in it.
fn exercise(path: &Path) -> bool {
    let Ok(checkpoint) = open_quietly(path) else { return false };
    for (name, shape, _) in checkpoint.names() {
        let view = checkpoint.tensor(name, shape).unwrap();
        std::hint::black_box(view.bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    }
    if let Some(TokenizerSource::Gguf(metadata)) = checkpoint.tokenizer() {
        for key in metadata.keys() {
            if let Ok(Some(strings)) = metadata.strings(key) {
                std::hint::black_box(strings.filter(Result::is_ok).count());
            }
            std::hint::black_box((metadata.f32s(key).is_ok(), metadata.i32s(key).is_ok()));
        }
    }
    true
}

fn one_layer(config: ModelConfig) -> ModelConfig {
    ModelConfig { layers: config.layers[..1].to_vec(), ..config }
}

fn small_gguf() -> GgufFile {
    let mut file = Model::random(&one_layer(tiny_ministral3()), Format::F32, 1).gguf();
    file.set("tokenizer.ggml.model", GgufValue::text("llama"));
    file.set("tokenizer.ggml.tokens", GgufValue::Texts((0..16).map(|n| n.to_string()).collect()));
    file.set("tokenizer.ggml.scores", GgufValue::F32s(vec![0.0; 16]));
    file.set("tokenizer.ggml.eos_token_id", GgufValue::U32(2));
    file
}

/// Opens every beginning of a file, and the file with every bit of its first `header` bytes flipped. The file is changed in
/// place: to write it anew each time would wait for the disk.
fn damage(path: &Path, header: usize) {
    let bytes = std::fs::read(path).unwrap();
    let opened = flip_every_bit(path, header, path);
    // Numbers such as an epsilon may change unseen; structure may not.
    assert!(opened < header * 8 / 2, "{opened} of {} flips went unseen", header * 8);
    let file = File::options().write(true).open(path).unwrap();
    for end in (0..bytes.len()).rev() {
        file.set_len(end as u64).unwrap();
        // All but the padding after the last tensor is needed.
        assert!(!exercise(path) || end + 32 > bytes.len(), "cut at {end} of {}", bytes.len());
    }
    std::fs::write(path, bytes).unwrap();
    assert!(exercise(path));
}

/// Flips each bit of the first `len` bytes of a file in turn and opens `model`; returns how often that succeeded.
fn flip_every_bit(path: &Path, len: usize, model: &Path) -> usize {
    let bytes = std::fs::read(path).unwrap();
    let mut file = File::options().write(true).open(path).unwrap();
    let mut write = |at: usize, byte: u8| {
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    let mut opened = 0;
    for bit in 0..len * 8 {
        write(bit / 8, bytes[bit / 8] ^ 1 << (bit % 8));
        opened += usize::from(exercise(model));
        write(bit / 8, bytes[bit / 8]);
    }
    opened
}

#[test]
fn damaged_gguf() {
    let folder = temp();
    let path = folder.path().join("m.gguf");
    small_gguf().write(&path).unwrap();
    let data: usize = small_gguf().tensors.iter().map(|t| t.bytes.len().next_multiple_of(32)).sum();
    damage(&path, path.metadata().unwrap().len() as usize - data);
}

#[test]
fn damaged_safetensors() {
    let folder = temp();
    let path = write_hf(&Model::random(&one_layer(tiny()), Format::F32, 1), folder.path());
    let bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    damage(&path, header);
}

#[test]
fn damaged_configurations() {
    for native in [false, true] {
        let folder = temp();
        let model = Model::random(&one_layer(tiny_ministral3()), Format::F32, 1);
        let name = if native { "params.json" } else { "config.json" };
        if native { model.write_native(folder.path()) } else { model.write_hugging_face(folder.path()) }
            .unwrap();
        let path = folder.path().join(name);
        let len = path.metadata().unwrap().len();
        flip_every_bit(&path, len as usize, folder.path());
        let file = File::options().write(true).open(&path).unwrap();
        for end in (0..len).rev() {
            file.set_len(end).unwrap();
            assert!(!exercise(folder.path()), "cut at {end}");
        }
    }
}

#[test]
fn each_tensor_missing_or_misshapen() {
    for config in [tiny(), tiny_mixtral()] {
        let folder = temp();
        let path = write_hf(&Model::random(&config, Format::F32, 1), folder.path());
        let tensors = read_tensors(&path);
        for number in 0..tensors.len() {
            let name = &tensors[number].name;
            let mut fewer = tensors.clone();
            fewer.remove(number);
            std::fs::write(&path, safetensors_bytes(&fewer)).unwrap();
            if name == "lm_head.weight" {
                // The presence of the output layer decides whether the embeddings are tied.
                assert!(open_quietly(&path).unwrap().config.tied_embeddings);
            } else {
                let message = refusal(&path);
                assert!(message.contains(&format!("{name}: found no such tensor")), "{message}");
            }
            let mut misshapen = tensors.clone();
            misshapen[number].shape.push(1);
            std::fs::write(&path, safetensors_bytes(&misshapen)).unwrap();
            let message = refusal(&path);
            assert!(message.contains(&format!("{name}: found shape")), "{message}");
        }
        let mut more = tensors.clone();
        more.push(TensorData::f32("model.layers.2.self_attn.q_proj.bias", &[8], &[0.0; 8]));
        std::fs::write(&path, safetensors_bytes(&more)).unwrap();
        assert!(refusal(&path).contains("model.layers.2.self_attn.q_proj.bias: found a tensor of shape [8]"));
        let mut harmless = tensors;
        harmless.push(TensorData::f32("model.layers.0.self_attn.rotary_emb.inv_freq", &[2], &[0.0; 2]));
        harmless.push(TensorData::f32("model.layers.0.self_attn.k_scale", &[1], &[1.0]));
        std::fs::write(&path, safetensors_bytes(&harmless)).unwrap();
        assert!(open_quietly(&path).is_ok());
    }
}

#[test]
fn a_table_without_rows() {
    let model = Model::random(&ModelConfig { tied_embeddings: true, ..tiny() }, Format::F32, 1);
    for (config, weights, table) in [
        ("config.json", "model.safetensors", "model.embed_tokens.weight"),
        ("params.json", "consolidated.safetensors", "tok_embeddings.weight"),
    ] {
        let folder = temp();
        let path = folder.path().join(weights);
        match config {
            "config.json" => model.write_hugging_face(folder.path()).unwrap(),
            _ => model.write_native(folder.path()).unwrap(),
        }
        let config = folder.path().join(config);
        let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
        value.as_object_mut().unwrap().remove("vocab_size");
        std::fs::write(&config, value.to_string()).unwrap();
        assert_eq!(open_quietly(folder.path()).unwrap().config.vocab_size, 16);
        let mut tensors = read_tensors(&path);
        let tensor = tensors.iter_mut().find(|tensor| tensor.name == table).unwrap();
        tensor.shape[0] = 0;
        tensor.bytes.clear();
        std::fs::write(&path, safetensors_bytes(&tensors)).unwrap();
        let message = refusal(folder.path());
        assert!(message.contains(&format!("{weights}: {table}: found shape [0, 8]")), "{message}");
    }
}

#[test]
fn unknown_types() {
    let folder = temp();
    let path = write_hf(&Model::random(&tiny(), Format::F32, 1), folder.path());
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(5).position(|w| w == b"\"F32\"").unwrap();
    bytes[at + 1] = b'I';
    std::fs::write(&path, bytes).unwrap();
    let message = refusal(&path);
    assert!(message.contains("unsupported type of tensor") && message.contains("I32"), "{message}");

    let mut file = Model::random(&tiny(), Format::F32, 1).gguf();
    let mut bytes = file.bytes();
    // The type stands after name, count and the two dimensions of the first tensor.
    let name = b"token_embd.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
    assert_eq!(bytes[at..at + 4], [0; 4]);
    let path = folder.path().join("m.gguf");
    for (id, shown) in [(10, "Q2_K"), (4, "type 4"), (250, "type 250")] {
        bytes[at] = id;
        std::fs::write(&path, &bytes).unwrap();
        let message = refusal(&path);
        assert!(message.contains("token_embd.weight") && message.contains(shown), "{message}");
    }
    file.tensors[1].format = Format::F16;
    file.tensors[1].bytes.truncate(16);
    file.write(&path).unwrap();
    assert!(open_quietly(&path).is_ok(), "norms may be half precision");
    file.tensors[1].format = Format::Q8_0;
    file.write(&path).unwrap();
    assert!(refusal(&path).contains("whole blocks of 32"));
}

/// A GGUF header with the given counts, then `rest`.
fn crafted(version: u32, tensors: u64, entries: u64, rest: &[u8]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes.extend(rest);
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// An entry of the tensor table.
fn table_row(name: &str, dims: &[u64], id: u32, offset: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
    bytes.extend(id.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn attacks_on_gguf() {
    let pad = [0u8; 256];
    let key = |rest: &[u8]| [text("k"), rest.to_vec(), pad.to_vec()].concat();
    let array =
        |kind: u32, len: u64| [&9u32.to_le_bytes()[..], &kind.to_le_bytes(), &len.to_le_bytes()].concat();
    let row = |dims: &[u64], id, offset| [table_row("t", dims, id, offset), pad.to_vec()].concat();
    let two_keys = [text("k"), [7u32.to_le_bytes().to_vec(), vec![1]].concat()].concat().repeat(2);
    let two_rows = [table_row("t", &[8], 0, 0), table_row("t", &[8], 0, 32), pad.to_vec()].concat();
    let alignment = |n: u32| {
        [text("general.alignment"), 4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec(), row(&[8], 0, 0)]
            .concat()
    };
    let name = [(1u64 << 40).to_le_bytes().to_vec(), pad.to_vec()].concat();
    let bad_name = [1u64.to_le_bytes().to_vec(), vec![0xff], pad.to_vec()].concat();
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"GGML".to_vec(), "magic"),
        (b"GGUF\0\0\0\x03".to_vec(), "big-endian"),
        (crafted(1, 0, 0, &[]), "GGUF version"),
        (crafted(4, 0, 0, &[]), "GGUF version"),
        (crafted(3, u64::MAX, 0, &pad), "tensor count"),
        (crafted(3, 0, u64::MAX, &pad), "metadata count"),
        (crafted(3, 1 << 61, 0, &pad), "tensor count"),
        (crafted(3, 0, 1, &name), "a string of 1099511627776 bytes"),
        (crafted(3, 0, 1, &bad_name), "invalid UTF-8"),
        (crafted(3, 0, 1, &[0u8; 64]), "metadata key at byte 24: found 0 bytes"),
        (crafted(3, 0, 1, &key(&13u32.to_le_bytes())), "value type 13"),
        (crafted(3, 0, 1, &key(&[7, 0, 0, 0, 2])), "a byte other than 0 and 1"),
        (crafted(3, 0, 1, &key(&array(9, 1))), "array of arrays"),
        (crafted(3, 0, 1, &key(&array(4, u64::MAX / 2))), "an array of 9223372036854775807"),
        (crafted(3, 0, 1, &key(&array(10, 1 << 61))), "an array of 2305843009213693952"),
        (crafted(3, 0, 1, &key(&array(8, u64::MAX))), "an array of 18446744073709551615"),
        (crafted(3, 0, 1, &key(&[array(8, 2), u64::MAX.to_le_bytes().to_vec()].concat())), "a string of"),
        (crafted(3, 0, 2, &[two_keys, pad.to_vec()].concat()), "k: found a second value"),
        (crafted(3, 2, 0, &two_rows), "a second tensor of this name"),
        (crafted(3, 1, 1, &alignment(0)), "general.alignment"),
        (crafted(3, 1, 1, &alignment(24)), "general.alignment"),
        (crafted(3, 1, 1, &alignment(1 << 31)), "data up to byte"),
        (crafted(3, 1, 0, &row(&[], 0, 0)), "0 dimensions"),
        (crafted(3, 1, 0, &row(&[1; 5], 0, 0)), "5 dimensions"),
        (crafted(3, 1, 0, &row(&[8, 0], 0, 0)), "dimension 0"),
        (crafted(3, 1, 0, &row(&[u64::MAX], 0, 0)), "shape [18446744073709551615] of type F32"),
        (crafted(3, 1, 0, &row(&[1 << 32, 1 << 32], 0, 0)), "shape"),
        (crafted(3, 1, 0, &row(&[1 << 61, 8], 0, 0)), "shape"),
        (crafted(3, 1, 0, &row(&[1 << 62], 0, 0)), "shape"),
        (crafted(3, 1, 0, &row(&[33], 8, 0)), "whole blocks of 32"),
        (crafted(3, 1, 0, &row(&[8], 0, 8)), "data at offset 8"),
        (crafted(3, 1, 0, &row(&[8], 0, u64::MAX)), "data at offset"),
        (crafted(3, 1, 0, &row(&[1 << 20], 0, 0)), "4194304 bytes of data"),
        (crafted(3, 1, 0, &row(&[64], 0, 0)), "data up to byte"),
    ];
    let folder = temp();
    let path = folder.path().join("m.gguf");
    for (bytes, expected) in cases {
        std::fs::write(&path, bytes).unwrap();
        let message = refusal(&path);
        assert!(message.contains(expected), "{message}: not {expected}");
        assert!(message.contains("m.gguf"), "{message}: no file");
    }
}

#[test]
fn gguf_metadata_of_the_wrong_type() {
    let folder = temp();
    let path = folder.path().join("m.gguf");
    let whole = small_gguf();
    for (key, value, expected) in [
        ("general.architecture", GgufValue::U32(3), "a string"),
        ("general.architecture", GgufValue::text("deepseek2"), "deepseek2"),
        ("general.architecture", GgufValue::text("mistral4"), "mistral4"),
        ("mistral3.block_count", GgufValue::U32(0), "a whole number from 1"),
        ("mistral3.block_count", GgufValue::I32(-1), "a whole number from 0"),
        ("mistral3.block_count", GgufValue::U32(2), "no such tensor"),
        ("mistral3.block_count", GgufValue::U64(u64::MAX), "a whole number from 1"),
        ("mistral3.embedding_length", GgufValue::F32(8.0), "a whole number"),
        ("mistral3.attention.head_count", GgufValue::U32s(vec![2, 4]), "different values for each layer"),
        (
            "mistral3.attention.head_count_kv",
            GgufValue::U32(3),
            "a divisor of mistral3.attention.head_count (2)",
        ),
        ("mistral3.attention.value_length", GgufValue::U32(6), "the width of a head, 4"),
        ("mistral3.attention.key_length", GgufValue::U32(5), "an even number"),
        ("mistral3.attention.layer_norm_rms_epsilon", GgufValue::F32(f32::NAN), "a finite number above 0"),
        ("mistral3.rope.scaling.type", GgufValue::text("longrope"), "none, linear, yarn"),
        ("mistral3.attention.sliding_window_pattern", GgufValue::Bools(vec![true; 3]), "a list of 1"),
        ("tokenizer.ggml.eos_token_id", GgufValue::U32(16), "a token id below 16"),
        ("tokenizer.ggml.tokens", GgufValue::Texts(vec![String::new(); 15]), "shape [15, 8]"),
    ] {
        let mut file = whole.clone();
        file.set(key, value);
        file.write(&path).unwrap();
        let message = refusal(&path);
        assert!(message.contains(expected), "{key}: {message}");
    }
    for key in ["general.architecture", "mistral3.context_length", "mistral3.attention.head_count"] {
        let mut file = whole.clone();
        file.entries.retain(|(known, _)| known != key);
        file.write(&path).unwrap();
        assert!(refusal(&path).contains(&format!("{key}: found nothing")), "{key}");
    }
}
