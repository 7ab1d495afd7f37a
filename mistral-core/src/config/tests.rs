//! Configurations as they are published, and what is refused.

use serde_json::{Value, json};

use super::*;

const HF: Evidence = Evidence { vocab_size: Some(512), has_output: true, rope_style: RopeStyle::HalfSplit };

fn hf(value: &Value) -> Result<ParsedConfig> {
    hf::parse("config.json", value, HF)
}

fn params(value: &Value) -> Result<ParsedConfig> {
    params::parse("params.json", value, Evidence { rope_style: RopeStyle::Interleaved, ..HF })
}

/// `base` with the keys of `changes` set.
fn with(base: &Value, changes: Value) -> Value {
    let mut value = base.clone();
    for (key, change) in changes.as_object().unwrap() {
        value[key] = change.clone();
    }
    value
}

fn mistral_7b() -> Value {
    json!({
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 14336, "max_position_embeddings": 32768, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
        "sliding_window": null, "tie_word_embeddings": false, "vocab_size": 32768,
    })
}

fn ministral3() -> Value {
    json!({
        "architectures": ["Ministral3ForCausalLM"], "model_type": "ministral3", "hidden_size": 3072, "head_dim": 128,
        "intermediate_size": 9216, "max_position_embeddings": 262144, "num_attention_heads": 32,
        "num_hidden_layers": 26, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "vocab_size": 131072,
        "rope_parameters": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
            "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1000000.0,
            "rope_type": "yarn", "type": "yarn",
        },
    })
}

fn native_7b() -> Value {
    json!({
        "dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
        "norm_eps": 1e-5, "vocab_size": 32000,
    })
}

fn attention_factor(config: &ParsedConfig) -> f32 {
    match config.model.rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } => attention_factor,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn hugging_face_dense() {
    let config = hf(&mistral_7b()).unwrap();
    assert_eq!((config.has_vision, config.fp8_block), (false, None));
    let model = config.model;
    assert_eq!((model.dim, model.n_heads, model.n_kv_heads, model.head_dim), (4096, 32, 8, 128));
    assert_eq!((model.hidden_dim, model.vocab_size, model.max_context), (14336, 32768, 32768));
    assert_eq!(
        model.rope,
        RopeConfig { theta: 1e6, style: RopeStyle::HalfSplit, scaling: RopeScaling::None }
    );
    assert_eq!(model.layers, vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 32]);
    assert!(!model.tied_embeddings);
}

#[test]
fn the_output_layer_decides_about_tying() {
    for declared in [true, false] {
        let value = with(&mistral_7b(), json!({"tie_word_embeddings": declared}));
        for has_output in [true, false] {
            let config = hf::parse("config.json", &value, Evidence { has_output, ..HF }).unwrap();
            assert_eq!(config.model.tied_embeddings, !has_output);
        }
    }
}

#[test]
fn hugging_face_defaults_of_the_class() {
    // The text part of Pixtral as published: transformers leaves out what equals the default.
    let text = json!({
        "head_dim": 128, "hidden_size": 5120, "intermediate_size": 14336, "is_composition": true,
        "max_position_embeddings": 1024000, "model_type": "mistral", "num_hidden_layers": 40,
        "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": null,
        "vocab_size": 131072,
    });
    let value = json!({
        "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": text,
        "vision_config": {"model_type": "pixtral"},
    });
    let config = hf(&value).unwrap();
    assert!(config.has_vision);
    assert_eq!((config.model.n_heads, config.model.head_dim, config.model.rope.theta), (32, 128, 1e9));
    // Absent is the default of the class; null is none.
    let mut value = mistral_7b();
    value.as_object_mut().unwrap().remove("sliding_window");
    assert_eq!(hf(&value).unwrap().model.layers[0].window, Some(4096));
    let llama = with(&value, json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}));
    assert_eq!(hf(&llama).unwrap().model.layers[0].window, None);
    let value = with(&mistral_7b(), json!({"num_key_value_heads": null, "head_dim": null}));
    assert_eq!(hf(&value).unwrap().model.n_kv_heads, 32);
}

#[test]
fn sliding_windows() {
    let windows = |changes| {
        hf(&with(&mistral_7b(), changes))
            .map(|config| config.model.layers.iter().map(|layer| layer.window).collect::<Vec<_>>())
    };
    assert_eq!(windows(json!({"sliding_window": 4096})).unwrap(), vec![Some(4096); 32]);
    let off = json!({"sliding_window": 4096, "use_sliding_window": false});
    assert_eq!(windows(off).unwrap(), vec![None; 32]);
    let list = windows(json!({"sliding_window": [null, 8, 8, 8]})).unwrap();
    assert_eq!((list.len(), list[0], list[3], list[4], list[31]), (32, None, Some(8), None, Some(8)));
    let types: Vec<_> =
        (0..32).map(|n| if n % 4 == 0 { "full_attention" } else { "sliding_attention" }).collect();
    assert_eq!(windows(json!({"sliding_window": 8, "layer_types": types})).unwrap(), list);
    for (changes, key) in [
        (json!({"sliding_window": 0}), "sliding_window"),
        (json!({"sliding_window": -1}), "sliding_window"),
        (json!({"sliding_window": "8"}), "sliding_window"),
        (json!({"sliding_window": [8, 8, 8]}), "length divides the 32 layers"),
        (json!({"sliding_window": []}), "length divides"),
        (json!({"sliding_window": [0]}), "one is 0"),
        (json!({"sliding_window": 8, "layer_types": ["full_attention"]}), "layer_types"),
        (json!({"sliding_window": null, "layer_types": types}), "sliding_window"),
        (json!({"layer_types": vec!["linear_attention"; 32]}), "linear_attention"),
    ] {
        let message = windows(changes).unwrap_err().to_string();
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn hugging_face_yarn() {
    let config = hf(&ministral3()).unwrap();
    assert_eq!(config.model.query_scaling, Some(QueryScaling { beta: 0.1, original_max_position: 16384 }));
    assert_eq!(
        config.model.rope.scaling,
        RopeScaling::Yarn {
            factor: 16.0,
            original_max_position: 16384,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
        }
    );
    let factor = |change: &dyn Fn(&mut Value)| {
        let mut value = ministral3();
        change(&mut value["rope_parameters"]);
        attention_factor(&hf(&value).unwrap())
    };
    let full = 0.1 * 16f32.ln() + 1.0;
    assert_eq!(factor(&|rope| rope["attention_factor"] = json!(1.5)), 1.5);
    assert_eq!(factor(&|rope| rope["mscale_all_dim"] = json!(0.0)), full);
    assert_eq!(factor(&|rope| drop(rope.as_object_mut().unwrap().remove("mscale"))), full);
    let quotient = factor(&|rope| rope["mscale_all_dim"] = json!(0.5));
    assert!((quotient - full / (0.05 * 16f32.ln() + 1.0)).abs() < 1e-6);
    assert_eq!(factor(&|rope| rope["factor"] = json!(1.0)), 1.0);
    // Query scaling at top level.
    let mut value = ministral3();
    value["rope_parameters"].as_object_mut().unwrap().remove("llama_4_scaling_beta");
    assert_eq!(hf(&value).unwrap().model.query_scaling, None);
    value["llama_4_scaling"] = json!({"beta": 0.2, "original_max_position_embeddings": 8192});
    let scaling = hf(&value).unwrap().model.query_scaling;
    assert_eq!(scaling, Some(QueryScaling { beta: 0.2, original_max_position: 8192 }));
}

#[test]
fn hugging_face_rope_scaling() {
    let scaling = |rope: Value| {
        hf(&with(&mistral_7b(), json!({"rope_scaling": rope}))).map(|config| config.model.rope.scaling)
    };
    assert_eq!(scaling(json!(null)).unwrap(), RopeScaling::None);
    assert_eq!(
        scaling(json!({"type": "linear", "factor": 2.0})).unwrap(),
        RopeScaling::Linear { factor: 2.0 }
    );
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let expected = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position: 8192,
    };
    assert_eq!(scaling(llama3.clone()).unwrap(), expected);
    for (rope, expected) in [
        (json!({"type": "dynamic", "factor": 2.0}), "dynamic"),
        (json!({"type": "longrope"}), "longrope"),
        (json!({"type": "linear"}), "rope_scaling.factor: found nothing"),
        (json!({"type": "linear", "factor": 0}), "rope_scaling.factor: found 0"),
        (json!({"type": "linear", "factor": 1e99}), "rope_scaling.factor"),
        (json!({"type": "yarn", "factor": 2.0, "truncate": false}), "rope_scaling.truncate"),
        (with(&llama3, json!({"high_freq_factor": 1.0})), "rope_scaling.high_freq_factor"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (json!({"full_attention": {}}), "full_attention"),
        (json!([]), "rope_scaling: found a list of 0"),
    ] {
        let message = scaling(rope).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn absent_rotary_parameters() {
    let explicit = hf(&ministral3()).unwrap();
    let mut absent = ministral3();
    absent.as_object_mut().unwrap().remove("rope_parameters");
    assert_eq!(hf(&absent).unwrap(), explicit);
    let null = json!({"rope_parameters": null, "rope_scaling": {}});
    assert_eq!(hf(&with(&absent, null)).unwrap(), explicit);
    let wrapped = json!({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": absent});
    assert_eq!(hf(&wrapped).unwrap().model, explicit.model);
    // What is there replaces the whole default.
    let plain = |changes| {
        let model = hf(&with(&absent, changes)).unwrap().model;
        assert_eq!((model.rope.scaling, model.query_scaling), (RopeScaling::None, None));
        model.rope.theta
    };
    assert_eq!(plain(json!({"rope_parameters": {}})), 1e4);
    assert_eq!(plain(json!({"rope_parameters": {"rope_type": "default"}, "rope_theta": 1e8})), 1e8);
    assert_eq!(plain(json!({"rope_scaling": {"rope_type": "default"}})), 1e4);
    // The other classes have no such default.
    for (class, theta) in [("Mistral", 1e4), ("Ministral", 1e4), ("Mixtral", 1e6), ("Llama", 1e4)] {
        let class = json!({"architectures": [format!("{class}ForCausalLM")], "model_type": null});
        assert_eq!(plain(class), theta);
    }
}

#[test]
fn rope_scaling_wins_over_rope_parameters() {
    let parameters = json!({"rope_type": "llama3", "rope_theta": 5e5});
    let linear = RopeScaling::Linear { factor: 4.0 };
    let rope = |theta: Value, scaling: Value| {
        let changes =
            json!({"rope_theta": theta, "rope_parameters": parameters.clone(), "rope_scaling": scaling});
        hf(&with(&mistral_7b(), changes)).map(|config| (config.model.rope.theta, config.model.rope.scaling))
    };
    let scaling = json!({"type": "linear", "factor": 4.0});
    assert_eq!(rope(json!(1e6), scaling.clone()).unwrap(), (1e6, linear.clone()));
    assert_eq!(rope(json!(null), scaling.clone()).unwrap(), (1e4, linear.clone()));
    assert_eq!(rope(json!(1e6), with(&scaling, json!({"rope_theta": 7e5}))).unwrap(), (7e5, linear));
    for nothing in [json!({}), json!(null)] {
        let message = rope(json!(1e6), nothing).unwrap_err().to_string();
        assert!(message.contains("rope_parameters.low_freq_factor: found nothing"), "{message}");
    }
}

#[test]
fn the_trained_context_at_top_level_wins() {
    let outer = |value: &Value| {
        let changes = json!({"original_max_position_embeddings": 64});
        hf(&with(value, changes)).unwrap().model
    };
    let original = |scaling| match scaling {
        RopeScaling::Yarn { original_max_position, factor, .. } => (original_max_position, factor),
        RopeScaling::Llama3 { original_max_position, factor, .. } => (original_max_position, factor),
        other => panic!("{other:?}"),
    };
    let model = outer(&ministral3());
    assert_eq!(original(model.rope.scaling), (64, 16.0));
    assert_eq!(model.query_scaling, Some(QueryScaling { beta: 0.1, original_max_position: 64 }));
    let yarn = with(&mistral_7b(), json!({"rope_scaling": {"type": "yarn", "factor": 2.0}}));
    assert_eq!(original(outer(&yarn).rope.scaling), (64, 2.0));
    assert_eq!(original(hf(&yarn).unwrap().model.rope.scaling), (32768, 2.0));
    // Without a factor it is the quotient of the two contexts.
    let yarn = with(&mistral_7b(), json!({"rope_scaling": {"type": "yarn"}}));
    assert_eq!(original(outer(&yarn).rope.scaling), (64, 512.0));
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    let llama3 = with(&mistral_7b(), json!({"rope_scaling": llama3}));
    assert_eq!(original(outer(&llama3).rope.scaling), (64, 8.0));
}

#[test]
fn hugging_face_mixtral() {
    let mixtral = with(
        &mistral_7b(),
        json!({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}),
    );
    let expected = FeedForwardConfig::Moe { n_experts: 8, n_experts_per_tok: 2 };
    assert_eq!(hf(&mixtral).unwrap().model.layers[31].feed_forward, expected);
    for changes in [
        json!({"num_experts_per_tok": 9}),
        json!({"num_experts_per_tok": 0}),
        json!({"num_local_experts": 1e9}),
    ] {
        assert!(hf(&with(&mixtral, changes)).is_err());
    }
}

#[test]
fn fp8_blocks_and_other_quantisation() {
    let block = |config| {
        hf(&with(&mistral_7b(), json!({"quantization_config": config}))).map(|config| config.fp8_block)
    };
    assert_eq!(block(json!({"quant_method": "fp8", "weight_block_size": null})).unwrap(), None);
    assert_eq!(
        block(json!({"quant_method": "fp8", "weight_block_size": [128, 64]})).unwrap(),
        Some((128, 64))
    );
    assert_eq!(
        block(json!({"quant_method": "compressed-tensors", "format": "float-quantized"})).unwrap(),
        None
    );
    let groups = |groups| {
        let format = "float-quantized";
        json!({"quant_method": "compressed-tensors", "format": format, "config_groups": groups})
    };
    let blocks = |rows| json!({"targets": ["Linear"], "weights": {"strategy": "block", "block_structure": [rows, 96]}});
    let channel = json!({"weights": {"strategy": "channel", "block_structure": null}});
    assert_eq!(block(groups(json!({"group_0": blocks(64)}))).unwrap(), Some((64, 96)));
    let mixed = json!({"group_0": channel, "group_1": blocks(64), "group_2": channel, "group_3": blocks(64)});
    assert_eq!(block(groups(mixed)).unwrap(), Some((64, 96)));
    assert_eq!(block(groups(json!({"group_0": channel, "group_1": {"weights": null}}))).unwrap(), None);
    for (config, expected) in [
        (
            groups(json!({"group_0": blocks(64), "group_1": blocks(32)})),
            "config_groups.group_1.weights.block_structure: found a list of 2, expected (64, 96)",
        ),
        (
            groups(json!({"a": {"weights": {"strategy": "block"}}})),
            "a.weights.block_structure: found nothing",
        ),
        (groups(json!({"a": blocks(0)})), "a.weights.block_structure: found a list of 2"),
        (json!({"quant_method": "fp8", "weight_block_size": [128]}), "weight_block_size"),
        (json!({"quant_method": "fp8", "weight_block_size": [0, 128]}), "weight_block_size"),
        (json!({"quant_method": "awq"}), "awq"),
        (
            json!({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
            "nvfp4-pack-quantized",
        ),
    ] {
        assert!(block(config).unwrap_err().to_string().contains(expected));
    }
}

#[test]
fn hugging_face_refusals() {
    for (changes, expected) in [
        (json!({"architectures": ["Mistral4ForCausalLM"]}), "unsupported model: Mistral4ForCausalLM"),
        (json!({"architectures": ["VoxtralForConditionalGeneration"]}), "unsupported model: Voxtral"),
        (json!({"architectures": ["Mamba2ForCausalLM"]}), "unsupported model: Mamba2ForCausalLM"),
        (json!({"architectures": ["GPT2LMHeadModel"]}), "supported: MistralForCausalLM"),
        (json!({"architectures": null, "model_type": "mistral4"}), "model_type `mistral4`"),
        (json!({"architectures": null, "model_type": null}), "architectures: found null"),
        (json!({"architectures": []}), "architectures"),
        (json!({"architectures": "MistralForCausalLM"}), "architectures"),
        (json!({"model_type": "llama"}), "model_type: found \"llama\", expected `mistral`"),
        (json!({"architectures": ["Mistral3ForConditionalGeneration"]}), "text_config"),
        (
            json!({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {"model_type": "mistral4"}}),
            "Mistral3ForConditionalGeneration over text model `mistral4`",
        ),
        (
            json!({"architectures": ["LlavaForConditionalGeneration"], "text_config": {"model_type": "llama"}}),
            "`llama`",
        ),
        // The default of LlavaConfig.
        (json!({"architectures": ["LlavaForConditionalGeneration"], "text_config": {}}), "`llama`"),
        (json!({"hidden_act": "gelu"}), "hidden_act: gelu"),
        (json!({"attention_bias": true}), "attention_bias"),
        (json!({"mlp_bias": true}), "mlp_bias"),
        (json!({"kv_lora_rank": 512}), "kv_lora_rank"),
    ] {
        let message = hf(&with(&mistral_7b(), changes)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn numbers_out_of_bounds() {
    let counts = [
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "vocab_size",
        "max_position_embeddings",
    ];
    for key in counts {
        for wrong in [json!(0), json!(-1), json!(1.5), json!(u64::MAX), json!("8"), json!([8]), json!(true)] {
            let message = hf(&with(&mistral_7b(), json!({key: wrong}))).unwrap_err().to_string();
            assert!(
                message.starts_with(&format!("config.json: {key}: found {}", describe(&wrong))),
                "{message}"
            );
        }
    }
    for key in ["rms_norm_eps", "rope_theta"] {
        for wrong in [json!(0.0), json!(-1.0), json!(1e300), json!("1"), json!({})] {
            let message = hf(&with(&mistral_7b(), json!({key: wrong}))).unwrap_err().to_string();
            assert!(message.starts_with(&format!("config.json: {key}: found")), "{message}");
        }
    }
    for (changes, expected) in [
        (
            json!({"num_key_value_heads": 7}),
            "num_key_value_heads: found 7, expected a divisor of num_attention_heads (32)",
        ),
        (json!({"num_attention_heads": 24, "num_key_value_heads": 8}), "num_attention_heads: found 24"),
        (json!({"head_dim": 127}), "head_dim: found 127, expected an even number"),
    ] {
        let message = hf(&with(&mistral_7b(), changes)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    let nested = json!({
        "architectures": ["Mistral3ForConditionalGeneration"], "text_config": with(&mistral_7b(), json!({"hidden_size": 0})),
    });
    assert!(hf(&nested).unwrap_err().to_string().contains("config.json: text_config.hidden_size: found 0"));
    assert!(hf(&json!([])).unwrap_err().to_string().contains("a JSON object"));
}

#[test]
fn native_defaults() {
    let config = params(&native_7b()).unwrap().model;
    assert_eq!((config.rope.theta, config.max_context, config.layers[0].window), (1e6, 128_000, None));
    // Mistral 7B v0.1.
    let config = params(&with(&native_7b(), json!({"sliding_window": 4096}))).unwrap().model;
    assert_eq!((config.rope.theta, config.layers[31].window), (1e4, Some(4096)));
    // Ministral 8B hides its pattern.
    let hidden =
        json!({"sliding_window": null, "_sliding_window": [null, 32768, 32768, 32768], "rope_theta": 1e8});
    let config = params(&with(&native_7b(), hidden)).unwrap().model;
    assert_eq!(
        (config.rope.theta, config.layers[4].window, config.layers[5].window),
        (1e8, None, Some(32768))
    );
    let vocab = |changes| params(&with(&native_7b(), changes)).map(|config| config.model.vocab_size);
    assert_eq!(vocab(json!({})).unwrap(), 32000);
    assert_eq!(vocab(json!({"vocab_size": -1})).unwrap(), 512);
    assert_eq!(vocab(json!({"vocab_size": null})).unwrap(), 512);
    assert!(vocab(json!({"vocab_size": 0})).is_err());
    let context = json!({"max_seq_len": 32768});
    assert_eq!(params(&with(&native_7b(), context)).unwrap().model.max_context, 32768);
}

#[test]
fn native_yarn_and_mixtral() {
    let yarn = |apply_scale: Value| {
        let yarn = json!({
            "original_max_position_embeddings": 16384, "factor": 16, "apply_scale": apply_scale, "beta": 32, "alpha": 1,
        });
        let scaling = json!({"original_max_position_embeddings": 16384, "beta": 0.1});
        params(&with(&native_7b(), json!({"yarn": yarn, "llama_4_scaling": scaling}))).unwrap()
    };
    assert_eq!(attention_factor(&yarn(json!(false))), 1.0);
    assert_eq!(attention_factor(&yarn(json!(true))), 0.1 * 16f32.ln() + 1.0);
    assert_eq!(attention_factor(&yarn(json!(null))), 0.1 * 16f32.ln() + 1.0);
    let model = yarn(json!(false)).model;
    assert_eq!(model.query_scaling, Some(QueryScaling { beta: 0.1, original_max_position: 16384 }));
    let moe = json!({"moe": {"num_experts": 8, "num_experts_per_tok": 2}});
    let expected = FeedForwardConfig::Moe { n_experts: 8, n_experts_per_tok: 2 };
    assert_eq!(params(&with(&native_7b(), moe)).unwrap().model.layers[0].feed_forward, expected);
}

#[test]
fn native_refusals() {
    for (changes, expected) in [
        (json!({"kv_lora_rank": 512}), "multi-head latent attention"),
        (json!({"multimodal": {"whisper_model_args": {}}}), "Voxtral"),
        (json!({"model_type": "mamba"}), "mamba"),
        (json!({"activation": "gelu"}), "gelu"),
        (json!({"quantization": {"qformat_weight": "nvfp4"}}), "nvfp4"),
        (
            json!({"moe": {"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1}}),
            "moe.num_shared_experts",
        ),
        (json!({"lora": {"rank": 64}}), "LoRA"),
        (json!({"n_layers": 0}), "params.json: n_layers: found 0"),
        (json!({"n_layers": 1u64 << 40}), "params.json: n_layers"),
        (json!({"norm_eps": null}), "params.json: norm_eps"),
        (
            json!({"yarn": {"factor": 2.0}}),
            "params.json: yarn.original_max_position_embeddings: found nothing",
        ),
    ] {
        let message = params(&with(&native_7b(), changes)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
    assert!(params(&with(&native_7b(), json!({"vision_encoder": {"hidden_size": 8}}))).unwrap().has_vision);
}
