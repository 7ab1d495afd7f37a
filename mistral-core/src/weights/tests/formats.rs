//! What is in the files is what comes out, whatever the container.

use super::*;
use crate::engine::ModelOptions;
use crate::quant::f8e4m3_to_f32;
use crate::session::SessionOptions;
use crate::testing::{GgufValue, Random, TensorData, safetensors_bytes};

/// The model in another rotary layout, by way of a file.
fn through(model: &Model, write: impl Fn(&Model, &Path)) -> Model {
    let folder = temp();
    write(model, folder.path());
    Model::from_checkpoint(&open_quietly(folder.path()).unwrap()).unwrap()
}

#[test]
fn containers_agree() {
    for config in [tiny(), tiny_mixtral(), tiny_ministral3(), tiny_windows()] {
        let model = Model::random(&config, Format::F32, 1);
        let hf = through(&model, |model, folder| model.write_hugging_face(folder).unwrap());
        assert_eq!(hf, model, "Hugging Face names change nothing");
        let native = through(&model, |model, folder| model.write_native(folder).unwrap());
        let gguf = through(&model, |model, folder| model.gguf().write(&folder.join("m.gguf")).unwrap());
        assert_eq!(native.tensors, gguf.tensors, "both are interleaved");
        let back = through(&native, |model, folder| model.write_hugging_face(folder).unwrap());
        assert_eq!(back.tensors, model.tensors, "and back again");
        for other in [native, gguf] {
            let mut found = other.config;
            assert_eq!(found.rope.style, RopeStyle::Interleaved);
            found.rope.style = config.rope.style;
            found.architecture.clone_from(&config.architecture);
            assert_eq!(found, config);
        }
    }
}

#[test]
fn interleaving_moves_rows_as_mistral_does() {
    // view(heads, 2, head_dim / 2, in).transpose(1, 2): rows 0 1 2 3 of a head become 0 2 1 3.
    let model = Model::random(&tiny(), Format::F32, 2);
    let native = through(&model, |model, folder| model.write_native(folder).unwrap());
    let wq = |model: &Model| {
        let tensor = model.tensors.iter().find(|t| t.name == "layers.1.attention.wq.weight").unwrap();
        tensor.bytes.chunks_exact(8 * 4).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let (split, interleaved) = (wq(&model), wq(&native));
    let order = [0, 2, 1, 3, 4, 6, 5, 7];
    assert_eq!(interleaved, order.map(|row| split[row].clone()));
}

#[test]
fn stacked_experts_of_every_block_format() {
    let config = ModelConfig { dim: 256, hidden_dim: 512, head_dim: 128, ..tiny_mixtral() };
    for format in Format::all().filter(|format| format.gguf_id().is_some()) {
        let mut model = Model::random(&config, format, 3);
        model.config.rope.style = RopeStyle::Interleaved;
        let folder = temp();
        model.gguf().write(&folder.path().join("m.gguf")).unwrap();
        let found = Model::from_checkpoint(&open_quietly(folder.path()).unwrap()).unwrap();
        assert_eq!(found.tensors, model.tensors, "{format:?}");
    }
}

#[test]
fn one_gguf_tensor_for_each_expert() {
    let model = Model::random(&tiny_mixtral(), Format::F32, 4);
    let mut file = model.gguf();
    let stacked = std::mem::take(&mut file.tensors);
    for tensor in stacked {
        match tensor.name.strip_suffix("_exps.weight") {
            None => file.tensors.push(tensor),
            Some(stem) => {
                let n_experts = tensor.shape[0];
                for (expert, bytes) in tensor.bytes.chunks_exact(tensor.bytes.len() / n_experts).enumerate() {
                    file.tensors.push(TensorData {
                        name: format!("{stem}.{expert}.weight"),
                        shape: tensor.shape[1..].to_vec(),
                        bytes: bytes.to_vec(),
                        format: tensor.format,
                    });
                }
            }
        }
    }
    let folder = temp();
    file.write(&folder.path().join("m.gguf")).unwrap();
    let found = Model::from_checkpoint(&open_quietly(folder.path()).unwrap()).unwrap();
    let whole = through(&model, |model, folder| model.gguf().write(&folder.join("m.gguf")).unwrap());
    assert_eq!(found, whole);
}

#[test]
fn fused_experts_of_hugging_face() {
    let config = tiny_mixtral();
    let model = Model::random(&config, Format::F32, 5);
    let folder = temp();
    model.write_hugging_face(folder.path()).unwrap();
    let get = |name: String| model.tensors.iter().find(|t| t.name == name).unwrap().clone();
    let mut tensors = Vec::new();
    let plain = |name: &str| !name.contains("feed_forward");
    for tensor in model.tensors.iter().filter(|t| plain(&t.name)) {
        let name = tensor
            .name
            .replace("tok_embeddings", "embed_tokens")
            .replace("attention_norm", "input_layernorm");
        let name = name.replace("ffn_norm", "post_attention_layernorm").replace("attention.w", "self_attn.");
        let name = ["q", "k", "v", "o"]
            .iter()
            .fold(name, |name, x| name.replace(&format!("self_attn.{x}."), &format!("self_attn.{x}_proj.")));
        let is_output = name == "output.weight";
        tensors.push(tensor.named(if is_output {
            "lm_head.weight".to_owned()
        } else {
            format!("model.{name}")
        }));
    }
    for layer in 0..2 {
        let canonical = format!("layers.{layer}.feed_forward");
        let name = format!("model.layers.{layer}.mlp");
        tensors.push(get(format!("{canonical}.gate.weight")).named(format!("{name}.gate.weight")));
        let expert = |e: usize, w: &str| get(format!("{canonical}.experts.{e}.{w}.weight")).bytes;
        let gate_up = (0..3).flat_map(|e| [expert(e, "w1"), expert(e, "w3")].concat()).collect();
        let down = (0..3).flat_map(|e| expert(e, "w2")).collect();
        let format = Format::F32;
        for (suffix, shape, bytes) in
            [("gate_up_proj", vec![3, 24, 8], gate_up), ("down_proj", vec![3, 8, 12], down)]
        {
            tensors.push(TensorData { name: format!("{name}.experts.{suffix}"), format, shape, bytes });
        }
    }
    std::fs::write(folder.path().join("model.safetensors"), safetensors_bytes(&tensors)).unwrap();
    let found = Model::from_checkpoint(&open_quietly(folder.path()).unwrap()).unwrap();
    assert_eq!(found, model);
}

#[test]
fn prefixes_and_vision_towers() {
    let model = Model::random(&tiny(), Format::F32, 6);
    for (prefix, head) in [
        ("language_model.model.", "language_model.lm_head.weight"),
        ("model.language_model.", "lm_head.weight"),
        ("", "lm_head.weight"),
    ] {
        let folder = temp();
        let path = write_hf(&model, folder.path());
        let plain = Model::from_checkpoint(&open_quietly(&path).unwrap()).unwrap();
        let mut tensors: Vec<TensorData> = read_tensors(&path)
            .into_iter()
            .map(|t| match t.name.strip_prefix("model.") {
                Some(rest) => t.named(format!("{prefix}{rest}")),
                None => t.named(head),
            })
            .collect();
        tensors.push(TensorData::f32("vision_tower.patch_conv.weight", &[2, 3], &[0.5; 6]));
        tensors.push(TensorData::f32("multi_modal_projector.linear_1.weight", &[2], &[0.5; 2]));
        std::fs::write(&path, safetensors_bytes(&tensors)).unwrap();
        let message = refusal(&path);
        assert!(message.contains("no place for") && message.contains("multi_modal_projector"), "{message}");
        let text = crate::testing::config_json(&model.config);
        let config = serde_json::json!({
            "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "text_config": text,
            "vision_config": {}, "tie_word_embeddings": true,
        });
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        assert_eq!(Model::from_checkpoint(&open_quietly(&path).unwrap()).unwrap(), plain, "{prefix}");
    }
}

/// The tensors of a safetensors file, read by the crate itself.
pub(super) fn read_tensors(path: &Path) -> Vec<TensorData> {
    let bytes = std::fs::read(path).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| TensorData {
            name,
            format: Format::F32,
            shape: view.shape().to_vec(),
            bytes: view.data().to_vec(),
        })
        .collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// A Hugging Face model in which `wk` of layer 0 (`[4, 8]`) is FP8 with the given scale tensors.
fn write_fp8(folder: &Path, scales: &[TensorData], block: Option<[usize; 2]>) -> PathBuf {
    let model = Model::random(&tiny(), Format::F32, 7);
    let path = write_hf(&model, folder);
    let mut tensors = read_tensors(&path);
    for tensor in &mut tensors {
        if tensor.name == "model.layers.0.self_attn.k_proj.weight" {
            tensor.format = Format::F8E4M3;
            tensor.bytes = (0..32).collect();
        }
    }
    tensors.extend_from_slice(scales);
    std::fs::write(&path, safetensors_bytes(&tensors)).unwrap();
    let mut config = crate::testing::config_json(&model.config);
    config["quantization_config"] = serde_json::json!({"quant_method": "fp8", "weight_block_size": block});
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    path
}

#[test]
fn fp8_scales() {
    const BASE: &str = "model.layers.0.self_attn.k_proj.";
    let bf16 = |x: f32| half::bf16::from_f32(x).to_le_bytes().to_vec();
    let activation = TensorData::f32(format!("{BASE}activation_scale"), &[], &[0.25]);
    let scalar = TensorData {
        name: format!("{BASE}weight_scale_inv"),
        format: Format::BF16,
        shape: vec![],
        bytes: bf16(0.5),
    };
    let rows = TensorData::f32(format!("{BASE}weight_scale"), &[4, 1], &[1.0, 2.0, 3.0, 4.0]);
    let blocks = TensorData::f32(format!("{BASE}weight_scale_inv"), &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let values = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    for (scales, block, expected) in [
        (vec![scalar, activation], None, Fp8Scale::Scalar(0.5)),
        (vec![rows], None, Fp8Scale::PerRow(vec![1.0, 2.0, 3.0, 4.0])),
        (vec![blocks.clone()], Some([3, 3]), Fp8Scale::Block { rows: 3, cols: 3, values }),
    ] {
        let folder = temp();
        let path = write_fp8(folder.path(), &scales, block);
        let checkpoint = open_quietly(&path).unwrap();
        let view = checkpoint.tensor("layers.0.attention.wk.weight", &[4, 8]).unwrap();
        assert_eq!((view.format, view.scale), (Format::F8E4M3, Some(expected)));
        assert_eq!(view.bytes, (0..32).collect::<Vec<u8>>());
    }
    for (scales, block, expected) in [
        (vec![], None, "FP8 weights without a scale"),
        (vec![blocks.clone()], Some([2, 2]), "[2, 4] for blocks of 2x2 (declared)"),
        (vec![blocks.clone()], None, "[1, 1] for blocks of 128x128 (usual, as no size is declared)"),
        (vec![TensorData::f32(format!("{BASE}weight_scale"), &[3], &[1.0; 3])], None, "shape [3]"),
        (vec![TensorData::f32(format!("{BASE}weight_scale"), &[], &[f32::NAN])], None, "NaN"),
        (
            vec![blocks, TensorData::f32(format!("{BASE}weight_scale"), &[1], &[1.0])],
            Some([3, 3]),
            "no place for",
        ),
    ] {
        let folder = temp();
        let message = refusal(&write_fp8(folder.path(), &scales, block));
        assert!(message.contains(expected) && message.contains("model.safetensors"), "{message}");
    }
}

#[test]
fn native_fp8_scale() {
    let mut model = Model::random(&tiny(), Format::F32, 8);
    let wo = model.tensors.iter_mut().find(|t| t.name == "layers.1.attention.wo.weight").unwrap();
    wo.format = Format::F8E4M3;
    wo.bytes.truncate(64);
    model.tensors.push(TensorData::f32("layers.1.attention.wo.qscale_weight", &[], &[0.125]));
    model.tensors.push(TensorData::f32("layers.1.attention.wo.qscale_act", &[], &[0.5]));
    let folder = temp();
    model.write_native(folder.path()).unwrap();
    let checkpoint = open_quietly(folder.path()).unwrap();
    let view = checkpoint.tensor("layers.1.attention.wo.weight", &[8, 8]).unwrap();
    assert_eq!(view.scale, Some(Fp8Scale::Scalar(0.125)));
}

/// The logits of the model at `path` after three tokens.
fn logits(path: &Path) -> Vec<f32> {
    let options = ModelOptions { threads: Some(1), ..ModelOptions::default() };
    let model = crate::engine::Model::open(path, &options, &mut Control::none()).unwrap();
    let mut session = model.session(&SessionOptions::default()).unwrap();
    session.prefill(&[3, 15, 0], &mut Control::none()).unwrap();
    session.logits().to_vec()
}

/// Logits of a model whose table has these tensors, with Mistral's names or Hugging Face's.
fn logits_with(table: &[TensorData], tied: bool, native: bool, block: Option<(usize, usize)>) -> Vec<f32> {
    let mut model = Model::random(&ModelConfig { tied_embeddings: tied, ..tiny() }, Format::F32, 15);
    model.tensors.retain(|tensor| tensor.name != "tok_embeddings.weight");
    let folder = temp();
    if native {
        model.tensors.extend_from_slice(table);
        model.write_native(folder.path()).unwrap();
    } else {
        let path = write_hf(&model, folder.path());
        let mut tensors = read_tensors(&path);
        let name = |name: &str| name.replace("tok_embeddings", "model.embed_tokens");
        tensors.extend(table.iter().map(|tensor| tensor.named(name(&tensor.name))));
        std::fs::write(path, safetensors_bytes(&tensors)).unwrap();
        let mut config = crate::testing::config_json(&model.config);
        config["quantization_config"] =
            serde_json::json!({"quant_method": "fp8", "weight_block_size": block.map(|(r, c)| [r, c])});
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    }
    logits(folder.path())
}

#[test]
fn a_table_in_fp8_is_the_same_as_in_f32() {
    const NAME: &str = "tok_embeddings.weight";
    let codes = Random::new(16).tensor(NAME, Format::F8E4M3, &[16, 8]);
    let spread = |count: usize| (1..=count).map(|n| n as f32 * 3e-4).collect::<Vec<_>>();
    let block = Fp8Scale::Block { rows: 5, cols: 3, values: spread(12) };
    for (scale, scale_name, shape, block) in [
        (Fp8Scale::Scalar(2e-3), "tok_embeddings.qscale_weight", vec![], None),
        (Fp8Scale::Scalar(2e-3), "tok_embeddings.weight_scale_inv", vec![], None),
        (Fp8Scale::PerRow(spread(16)), "tok_embeddings.weight_scale", vec![16, 1], None),
        (block, "tok_embeddings.weight_scale_inv", vec![4, 3], Some((5, 3))),
    ] {
        let value = |(i, code): (usize, &u8)| f8e4m3_to_f32(*code) * scale.at(i / 8, i % 8, 8);
        let values: Vec<f32> = codes.bytes.iter().enumerate().map(value).collect();
        let plain = TensorData::f32(NAME, &[16, 8], &values);
        let scales = TensorData::f32(scale_name, &shape, scale.values());
        let native = scale_name.contains("qscale");
        for tied in [false, true] {
            let expected = logits_with(std::slice::from_ref(&plain), tied, native, block);
            let found = logits_with(&[codes.clone(), scales.clone()], tied, native, block);
            // A tied output layer multiplies by the scale after the sum, or before: not the same to the last bit.
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= if tied { 1e-5 } else { 0.0 };
            assert!(found.iter().zip(&expected).all(close), "{scale:?} {tied}: {found:?}, not {expected:?}");
        }
    }
}

#[test]
fn rotary_factors_of_gguf() {
    let mut file = Model::random(&tiny(), Format::F32, 9).gguf();
    file.tensors.push(TensorData::f32("rope_freqs.weight", &[2], &[1.0, 8.0]));
    let folder = temp();
    let path = folder.path().join("m.gguf");
    file.write(&path).unwrap();
    let scaling = open_quietly(&path).unwrap().config.rope.scaling;
    assert_eq!(scaling, RopeScaling::Factors(vec![1.0, 8.0]));
    file.tensors.pop();
    file.tensors.push(TensorData::f32("rope_freqs.weight", &[3], &[1.0, 8.0, 8.0]));
    file.write(&path).unwrap();
    assert!(refusal(&path).contains("rope_freqs.weight"));
}

#[test]
fn views_share_the_map_and_survive_a_release() {
    let model = Model::random(&tiny(), Format::F32, 10);
    let folder = temp();
    let path = write_hf(&model, folder.path());
    let checkpoint = open_quietly(&path).unwrap();
    let view = checkpoint.tensor("output.weight", &[16, 8]).unwrap();
    let (address, before) = (view.bytes.as_ptr(), view.bytes.to_vec());
    let shared = view.shared();
    assert_eq!(shared.as_ptr(), address, "no copy");
    checkpoint.release(&view);
    assert_eq!(view.bytes, before);
    drop(checkpoint);
    assert_eq!(shared, before, "the owner keeps the map");
    let message = open_quietly(&path).unwrap().tensor("output.weight", &[8, 16]).err().unwrap().to_string();
    assert!(message.contains("lm_head.weight: found shape [16, 8], expected shape [8, 16]"), "{message}");
}

#[test]
fn what_stands_beside_the_weights() {
    let folder = temp();
    let path = folder.path();
    Model::random(&tiny(), Format::F32, 11).write_hugging_face(path).unwrap();
    let write = |name: &str, text: &str| std::fs::write(path.join(name), text).unwrap();
    assert!(open_quietly(path).unwrap().tokenizer().is_none());
    write("tokenizer.json", "{}");
    write("generation_config.json", r#"{"eos_token_id": [2, 5]}"#);
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>",
            "chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#,
    );
    let checkpoint = open_quietly(path).unwrap();
    assert!(matches!(
        checkpoint.tokenizer(),
        Some(TokenizerSource::HuggingFace { tokenizer_config: Some(_), .. })
    ));
    assert_eq!(checkpoint.eos_token_ids(), [2, 5]);
    assert_eq!(checkpoint.chat_template().as_deref(), Some("D"));
    assert_eq!((checkpoint.bos_token(), checkpoint.eos_token()), (Some("<s>"), Some("</s>")));
    write("chat_template.jinja", "J");
    // A bare name says no version: the template that lies there is what the model is asked with.
    write("tokenizer.model", "");
    let checkpoint = open_quietly(path).unwrap();
    assert!(matches!(checkpoint.tokenizer(), Some(TokenizerSource::HuggingFace { .. })));
    write("tokenizer.model.v3", "");
    let checkpoint = open_quietly(path).unwrap();
    assert_eq!(checkpoint.chat_template().as_deref(), Some("J"));
    assert_eq!(checkpoint.chat_templates().len(), 2);
    let Some(TokenizerSource::SentencePiece(file)) = checkpoint.tokenizer() else {
        panic!("not SentencePiece")
    };
    assert!(file.ends_with("tokenizer.model.v3"));
    write("tekken.json", "{}");
    assert!(matches!(open_quietly(path).unwrap().tokenizer(), Some(TokenizerSource::Tekken(_))));
    write("generation_config.json", r#"{"eos_token_id": 16}"#);
    assert!(refusal(path).contains("eos_token_id: found 16, expected token ids below 16"));
}

#[test]
fn the_vocabulary_of_gguf() {
    let mut file = Model::random(&tiny(), Format::F32, 12).gguf();
    let tokens: Vec<String> = (0..16).map(|n| format!("t{n}")).collect();
    file.set("tokenizer.ggml.model", GgufValue::text("gpt2"));
    file.set("tokenizer.ggml.tokens", GgufValue::Texts(tokens.clone()));
    file.set("tokenizer.ggml.scores", GgufValue::F32s(vec![0.5; 16]));
    file.set("tokenizer.ggml.token_type", GgufValue::I32s(vec![1; 16]));
    file.set("tokenizer.ggml.eos_token_id", GgufValue::U32(2));
    file.set("tokenizer.ggml.eot_token_id", GgufValue::U32(3));
    file.set("tokenizer.ggml.add_bos_token", GgufValue::Bool(true));
    file.set("tokenizer.chat_template", GgufValue::text("{{ x }}"));
    let folder = temp();
    file.write(&folder.path().join("m.gguf")).unwrap();
    let checkpoint = open_quietly(folder.path()).unwrap();
    assert_eq!(checkpoint.eos_token_ids(), [2, 3]);
    assert_eq!(checkpoint.eos_token(), Some("t2"));
    assert_eq!(checkpoint.chat_template().as_deref(), Some("{{ x }}"));
    let Some(TokenizerSource::Gguf(metadata)) = checkpoint.tokenizer() else { panic!("no vocabulary") };
    let found = metadata.strings("tokenizer.ggml.tokens").unwrap().unwrap();
    assert_eq!(found.len(), 16);
    assert_eq!(found.collect::<Result<Vec<_>>>().unwrap(), tokens);
    assert_eq!(metadata.f32s("tokenizer.ggml.scores").unwrap().unwrap(), [0.5; 16]);
    assert_eq!(metadata.i32s("tokenizer.ggml.token_type").unwrap().unwrap(), [1; 16]);
    assert_eq!(metadata.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert!(metadata.str("tokenizer.ggml.tokens").unwrap_err().to_string().contains("an array of 16 String"));
}

/// The configuration that a GGUF file has after `changes`; a value of `None` removes the key.
fn gguf_config(changes: &[(&str, Option<GgufValue>)]) -> ModelConfig {
    changed_gguf(changes).unwrap()
}

fn changed_gguf(changes: &[(&str, Option<GgufValue>)]) -> Result<ModelConfig> {
    let mut file = Model::random(&tiny_ministral3(), Format::F32, 13).gguf();
    for (key, value) in changes {
        let key = format!("mistral3.{key}");
        match value {
            Some(value) => file.set(&key, value.clone()),
            None => file.entries.retain(|(known, _)| *known != key),
        }
    }
    let folder = temp();
    let path = folder.path().join("m.gguf");
    file.write(&path).unwrap();
    Ok(open_quietly(&path)?.config)
}

#[test]
fn mathematics_of_other_architectures_in_gguf() {
    let number = GgufValue::F32;
    for (key, value, is_neutral) in [
        ("attention.causal", GgufValue::Bool(true), true),
        ("attention.causal", GgufValue::Bool(false), false),
        ("logit_scale", number(0.0), true),
        ("logit_scale", number(1.0), true),
        ("logit_scale", number(0.0625), false),
        ("attn_logit_softcapping", number(0.0), true),
        ("attn_logit_softcapping", number(50.0), false),
        ("final_logit_softcapping", number(0.0), true),
        ("final_logit_softcapping", number(30.0), false),
    ] {
        match changed_gguf(&[(key, Some(value))]) {
            Ok(_) => assert!(is_neutral, "{key}"),
            Err(error) => {
                let message = error.to_string();
                assert!(
                    !is_neutral && message.contains(&format!("unsupported mistral3.{key}: ")),
                    "{message}"
                );
            }
        }
    }
}

#[test]
fn the_magnitude_of_yarn_in_gguf() {
    let magnitude = |log_multiplier: Option<f32>, attn_factor: Option<f32>| {
        let config = gguf_config(&[
            ("rope.scaling.yarn_attn_factor", None),
            ("rope.scaling.yarn_log_multiplier", log_multiplier.map(GgufValue::F32)),
            ("rope.scaling.attn_factor", attn_factor.map(GgufValue::F32)),
        ]);
        match config.rope.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            other => panic!("{other:?}"),
        }
    };
    let full = 0.1 * 16f32.ln() + 1.0;
    assert_eq!(magnitude(Some(1.0), None), 1.0, "Ministral 3 as converted");
    assert_eq!(magnitude(Some(0.0), None), full);
    assert_eq!(magnitude(None, None), full);
    assert_eq!(magnitude(Some(0.5), None), full / (0.05 * 16f32.ln() + 1.0));
    assert_eq!(magnitude(Some(1.0), Some(0.5)), 0.5);
}

#[test]
fn query_scaling_and_context_extension_in_gguf() {
    let config = gguf_config(&[("attention.temperature_length", None)]);
    let expected = QueryScaling { beta: 0.1, original_max_position: 4 };
    assert_eq!(config.query_scaling, Some(expected), "the trained context of YaRN, as in llama.cpp");
    let plain = [
        ("attention.temperature_scale", Some(GgufValue::F32(0.0))),
        ("rope.scaling.type", None),
        ("rope.scaling.factor", Some(GgufValue::F32(2.0))),
    ];
    let config = gguf_config(&plain);
    assert_eq!((config.query_scaling, config.rope.scaling), (None, RopeScaling::Linear { factor: 2.0 }));
    let zero = [("rope.scaling.type", None), ("rope.scaling.factor", Some(GgufValue::F32(0.0)))];
    assert_eq!(gguf_config(&zero).rope.scaling, RopeScaling::None);
    let none = [("rope.scaling.type", Some(GgufValue::text("none")))];
    assert_eq!(gguf_config(&none).rope.scaling, RopeScaling::None);
}

#[test]
fn windows_in_gguf() {
    let windows = |value: GgufValue, pattern: Option<GgufValue>| {
        let config = gguf_config(&[
            ("attention.sliding_window", Some(value)),
            ("attention.sliding_window_pattern", pattern),
        ]);
        config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>()
    };
    assert_eq!(windows(GgufValue::U32(0), None), [None, None]);
    assert_eq!(windows(GgufValue::U32(8), None), [Some(8), Some(8)]);
    assert_eq!(windows(GgufValue::U32s(vec![0, 8]), None), [None, Some(8)]);
    assert_eq!(windows(GgufValue::U32(8), Some(GgufValue::Bools(vec![true, false]))), [Some(8), None]);
    assert_eq!(
        windows(GgufValue::U32(8), Some(GgufValue::U32(2))),
        [Some(8), None],
        "the last of a period is full"
    );
}

#[test]
fn streamed_random_models() {
    let config = ModelConfig { dim: 256, hidden_dim: 512, head_dim: 128, vocab_size: 300, ..tiny_mixtral() };
    let folder = temp();
    let path = folder.path().join("m.gguf");
    crate::testing::write_random_gguf(&path, &config, Format::Q4_K, 1).unwrap();
    let checkpoint = open_quietly(&path).unwrap();
    assert_eq!(checkpoint.config.layers, config.layers);
    assert_eq!(checkpoint.tensor("output.weight", &[300, 256]).unwrap().format, Format::Q4_K);
    assert_eq!(checkpoint.eos_token(), Some("</s>"));
}
