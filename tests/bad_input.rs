//! Whatever a host passes and whatever a file holds: a typed error that says what, where and why, or an answer; never a panic.
//!
//! The tests of `weights` cover the formats of files key by key. Here everything goes through the engine, up to tokens.

mod support;

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::engine::MAX_THREADS;
use mistral_core::kernels::CacheType;
use mistral_core::quant::Format;
use mistral_core::sampler::SamplingParams;
use mistral_core::session::MAX_CONTEXT;
use mistral_core::stop::{MAX_STOP_BYTES, MAX_STOPS};
use mistral_core::testing::{
    self, GgufFile, Random, TempFolder, TensorData, safetensors_bytes, write_random_gguf,
};
use mistral_core::{Control, Error, GenerateOptions, Model, ModelOptions, Result, SessionOptions};
use serde_json::Value;
use support::fixture;

/// Tokens of the vocabulary that `write_random_gguf` writes: three special ones, the bytes, and some words.
const VOCAB: usize = 272;

/// A model so small that opening it takes a fraction of a millisecond.
fn tiny() -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        dim: 8,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 4,
        hidden_dim: 12,
        vocab_size: VOCAB,
        norm_eps: 1e-5,
        max_context: 64,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense }; 1],
    }
}

/// The same with fewer weights: for tests that open it once for each byte of its file.
fn tiniest() -> ModelConfig {
    ModelConfig { dim: 4, head_dim: 2, hidden_dim: 4, tied_embeddings: true, ..tiny() }
}

fn temp() -> TempFolder {
    TempFolder::new_in(Path::new(env!("CARGO_TARGET_TMPDIR"))).unwrap()
}

/// One thread: the tests open models by the thousand.
fn options() -> ModelOptions {
    ModelOptions { threads: Some(1), ..ModelOptions::default() }
}

fn open(path: &Path, options: &ModelOptions) -> Result<Arc<Model>> {
    Model::open(path, options, &mut Control::none())
}

/// A GGUF file with a vocabulary, in a folder of its own.
fn gguf(config: &ModelConfig) -> (TempFolder, PathBuf) {
    let folder = temp();
    let path = folder.path().join("tiny.gguf");
    write_random_gguf(&path, config, Format::F32, 1).unwrap();
    (folder, path)
}

/// Hugging Face files with a tokenizer.
fn hugging_face() -> TempFolder {
    let folder = temp();
    let config = ModelConfig { vocab_size: 800, ..tiny() };
    testing::Model::random(&config, Format::F32, 1).write_hugging_face(folder.path()).unwrap();
    fs::copy(fixture("tokenizer/small.smollm.tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    folder
}

/// Opens `path` and, if that succeeds, generates two tokens.
fn exercise(path: &Path) -> Result<()> {
    let model = open(path, &options())?;
    let mut session = model.session(&SessionOptions { context: Some(8), cache_type: CacheType::F16 })?;
    let options = GenerateOptions { max_tokens: Some(2), ignore_eos: true, ..GenerateOptions::default() };
    let mut control = Control::none();
    let mut generation = session.generate(&[1, 5], &options, &mut control)?;
    while let Some(event) = generation.next(&mut control) {
        event?;
    }
    Ok(())
}

/// [`exercise`], which must not panic, and whose error must name `path` (or a part of it) unless it says what is not supported.
/// Returns whether there was an answer.
fn survives(path: &Path, what: &dyn Fn() -> String) -> bool {
    let result = catch_unwind(AssertUnwindSafe(|| exercise(path)));
    let result = result.unwrap_or_else(|_| panic!("{}: {}: a panic", path.display(), what()));
    let Err(error) = result else { return true };
    let message = error.to_string();
    let parent = path.parent().unwrap().display().to_string();
    match error {
        Error::Io { .. } | Error::Format { .. } => {
            assert!(message.contains(&parent), "{}: does not name the file: {message}", what());
        }
        Error::Unsupported { .. } | Error::Limit { .. } => {}
        _ => panic!("{}: an error of another kind: {error:?}", what()),
    }
    false
}

/// The error of opening `path`: it must contain all of `parts`.
fn refused(path: &Path, options: &ModelOptions, parts: &[&str]) {
    let message = open(path, options).map(drop).unwrap_err().to_string();
    for part in parts {
        assert!(message.contains(part), "no {part:?} in: {message}");
    }
}

#[test]
fn paths_that_hold_no_model() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let refused = |path: &Path, parts: &[&str]| refused(path, &options(), parts);
    refused(&at("nowhere"), &["nowhere"]);
    refused(Path::new(""), &[]);
    refused(&at("a\0b"), &[]);
    refused(folder.path(), &[&folder.path().display().to_string(), "no weights"]);
    for (name, content, part) in [
        ("empty.gguf", &b""[..], "end of the file"),
        ("text.gguf", b"a text that is no model", "magic"),
        ("empty.safetensors", b"", "header"),
        ("text.safetensors", b"a text that is no model", "header"),
        ("model.bin", b"\x80\x02}", "pickle"),
        ("model.onnx", b"", "unsupported file"),
    ] {
        fs::write(at(name), content).unwrap();
        refused(&at(name), &[name, part]);
    }
    #[cfg(unix)]
    {
        use std::os::unix::ffi::OsStrExt;
        refused(&folder.path().join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), &[]);
    }
}

#[test]
fn folders_with_two_models() {
    let folder = hugging_face();
    assert!(open(folder.path(), &options()).is_ok());
    write_random_gguf(&folder.path().join("a.gguf"), &tiny(), Format::F32, 1).unwrap();
    refused(folder.path(), &options(), &["a.gguf", "model.safetensors"]);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    assert!(open(folder.path(), &options()).is_ok());
    write_random_gguf(&folder.path().join("b.gguf"), &tiny(), Format::F32, 1).unwrap();
    refused(folder.path(), &options(), &["a.gguf", "b.gguf"]);
}

#[test]
fn tensors_that_are_wrong() {
    let folder = temp();
    let path = folder.path().join("m.gguf");
    let write = |change: &dyn Fn(&mut GgufFile)| {
        let mut file = testing::Model::random(&tiny(), Format::F32, 1).gguf();
        change(&mut file);
        file.write(&path).unwrap();
    };
    write(&|_| {});
    exercise(&path).unwrap();
    let broken = |parts: &[&str]| refused(&path, &options(), &[parts, &["m.gguf", "expected"]].concat());
    write(&|file| file.tensors.retain(|tensor| tensor.name != "blk.0.ffn_up.weight"));
    broken(&["blk.0.ffn_up.weight", "no such tensor", "[12, 8]"]);
    write(&|file| file.tensors.push(TensorData::f32("blk.0.attn_q.bias", &[8], &[0.0; 8])));
    broken(&["blk.0.attn_q.bias", "[8]"]);
    write(&|file| file.tensors.iter_mut().for_each(|t| t.shape.reverse()));
    broken(&["shape"]);
    write(&|file| {
        file.tensors.iter_mut().filter(|t| t.name.contains("ffn_down")).for_each(|t| t.shape.insert(0, 1));
    });
    broken(&["blk.0.ffn_down.weight", "[1, 8, 12]", "[8, 12]"]);
    // The type stands after the name, the count and the two dimensions.
    write(&|_| {});
    let mut bytes = fs::read(&path).unwrap();
    let name = b"blk.0.attn_q.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 16;
    bytes[at] = 99;
    fs::write(&path, bytes).unwrap();
    refused(&path, &options(), &["blk.0.attn_q.weight", "type 99", "Q4_K"]);

    let folder = hugging_face();
    let path = folder.path().join("model.safetensors");
    let text = fs::read(&path).unwrap();
    let at = text.windows(5).position(|w| w == b"\"F32\"").unwrap();
    for dtype in ["I32", "U32"] {
        let mut bytes = text.clone();
        bytes[at + 1..at + 4].copy_from_slice(dtype.as_bytes());
        fs::write(&path, bytes).unwrap();
        refused(folder.path(), &options(), &["type of tensor", dtype]);
    }
    fs::write(&path, safetensors_bytes(&[TensorData::f32("model.norm.weight", &[8], &[1.0; 8])])).unwrap();
    refused(folder.path(), &options(), &["model.safetensors", "no such tensor"]);
}

#[test]
fn options_of_a_model_that_are_nonsense() {
    let (_folder, path) = gguf(&tiny());
    let with = |change: &dyn Fn(&mut ModelOptions), parts: &[&str]| {
        let mut options = options();
        change(&mut options);
        refused(&path, &options, parts);
    };
    for device in ["", "tpu", "CPU", "cpu:0", "wgpu ", "ndarray:1"] {
        with(&|o| o.device = device.to_owned(), &["device", device, "cpu"]);
    }
    for device in ["wgpu:99", "wgpu:no such adapter"] {
        let parts =
            if cfg!(feature = "wgpu") { ["device", device, "no"] } else { ["device", device, "not built"] };
        with(&|o| o.device = device.to_owned(), &parts);
    }
    for threads in [0, MAX_THREADS + 1, usize::MAX] {
        with(&|o| o.threads = Some(threads), &["threads", &threads.to_string(), "1 to"]);
    }
    let not_targets = Format::all().filter(|f| ![Format::Q8_0, Format::Q4_0, Format::Q4_K].contains(f));
    for format in not_targets {
        with(&|o| o.quantize = Some(format), &["quantize", format.name(), "q8_0, q4_0 or q4_k"]);
    }
    for bytes in [0, 1, path.metadata().unwrap().len() - 1] {
        with(&|o| o.max_memory = Some(bytes), &["max_memory", "weights", &format!("{bytes} bytes")]);
    }
    // The rows of this model are no whole blocks: nothing is quantised, and nothing fails.
    open(&path, &ModelOptions { quantize: Some(Format::Q4_K), ..options() }).unwrap();
    open(&path, &ModelOptions { threads: Some(MAX_THREADS), ..options() }).unwrap();
}

#[test]
fn contexts_that_are_nonsense() {
    let (_folder, path) = gguf(&tiny());
    let model = open(&path, &options()).unwrap();
    let session = |model: &Arc<Model>, context| {
        model.session(&SessionOptions { context: Some(context), cache_type: CacheType::F16 }).map(drop)
    };
    assert!(session(&model, 0).unwrap_err().to_string().contains("`context`: found 0"));
    for context in [MAX_CONTEXT + 1, 2_000_000_000, usize::MAX / 2, usize::MAX] {
        let error = session(&model, context).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        assert!(error.to_string().contains("context") && error.to_string().contains(&context.to_string()));
    }
    session(&model, 1).unwrap();

    let file = path.metadata().unwrap().len();
    // 4 numbers of 2 bytes, of one head, for keys and for values.
    let position = 4 * 2 * 2;
    let max_memory = Some(file + 100 * position);
    let model = open(&path, &ModelOptions { max_memory, ..options() }).unwrap();
    for _ in 0..3 {
        // Each gives back what it took.
        session(&model, 100).unwrap();
        let message = session(&model, 101).unwrap_err().to_string();
        assert!(message.contains("max_memory") && message.contains("KV cache"), "{message}");
    }
}

/// Two terabytes of cache: an error or, on a system that promises everything, a session; never the end of the process.
#[test]
fn a_cache_that_no_memory_holds() {
    let wide = ModelConfig { n_heads: 4, n_kv_heads: 4, head_dim: 4096, ..tiny() };
    let wide = ModelConfig { layers: vec![tiny().layers[0]; 2], ..wide };
    let (_folder, path) = gguf(&wide);
    let options = SessionOptions { context: Some(MAX_CONTEXT), cache_type: CacheType::F32 };
    if let Err(error) = open(&path, &self::options()).unwrap().session(&options) {
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        assert!(error.to_string().contains("context"), "{error}");
    }
}

#[test]
fn tokens_that_are_wrong_leave_the_session_as_it_was() {
    let (_folder, path) = gguf(&tiny());
    let model = open(&path, &options()).unwrap();
    let mut session =
        model.session(&SessionOptions { context: Some(8), ..SessionOptions::default() }).unwrap();
    let mut control = Control::none();
    let message = session.prefill(&[], &mut control).unwrap_err().to_string();
    assert!(message.contains("tokens"), "{message}");
    assert!(session.generate(&[], &GenerateOptions::default(), &mut control).is_err());
    session.prefill(&[1, 2, 3], &mut control).unwrap();
    let logits = session.logits().to_vec();
    let out_of_range = [[4, VOCAB as u32], [VOCAB as u32, 4], [u32::MAX, 0], [1 << 31, 0]];
    for ids in out_of_range {
        for error in [
            session.prefill(&ids, &mut control).unwrap_err(),
            session.score(&ids, &mut control).map(drop).unwrap_err(),
            session.generate(&ids, &GenerateOptions::default(), &mut control).map(drop).unwrap_err(),
        ] {
            let message = error.to_string();
            assert!(matches!(error, Error::Argument { .. }), "{message}");
            assert!(message.contains("tokens[") && message.contains(&format!("below {VOCAB}")), "{message}");
        }
    }
    for length in [6, 9, 5000] {
        let error = session.prefill(&vec![1; length], &mut control).unwrap_err();
        assert!(
            matches!(error, Error::ContextFull { needed, capacity: 8 } if needed == 3 + length),
            "{length}: {error}"
        );
    }
    assert!(session.score(&[], &mut control).is_err());
    assert_eq!((session.tokens(), session.logits()), (&[1, 2, 3][..], logits.as_slice()));
    session.prefill(&[4, 5, 6, 7, 8], &mut control).unwrap();
    assert!(matches!(
        session.prefill(&[9], &mut control),
        Err(Error::ContextFull { needed: 9, capacity: 8 })
    ));

    for ids in [&[VOCAB as u32][..], &[u32::MAX]] {
        assert!(matches!(model.tokenizer().unwrap().decode(ids, true), Err(Error::Argument { .. })));
    }
}

#[test]
fn options_of_a_generation_that_are_nonsense() {
    let (_folder, path) = gguf(&tiny());
    let model = open(&path, &options()).unwrap();
    let mut session =
        model.session(&SessionOptions { context: Some(8), ..SessionOptions::default() }).unwrap();
    let mut check = |name: &str, change: &dyn Fn(&mut GenerateOptions)| {
        let mut options = GenerateOptions::default();
        change(&mut options);
        let error = session.generate(&[1], &options, &mut Control::none()).map(drop).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Argument { .. } | Error::Limit { .. }), "{message}");
        assert!(message.contains(&format!("`{name}")), "{name}: {message}");
        assert!(session.tokens().is_empty(), "{name}: the session changed");
    };
    type Set = fn(&mut SamplingParams, f32);
    let numbers: [(&str, Set, &[f32]); 6] = [
        ("temperature", |p, x| p.temperature = x, &[-0.1, 1e9]),
        ("top_p", |p, x| p.top_p = x, &[-0.1, 1.1]),
        ("min_p", |p, x| p.min_p = x, &[-0.1, 1.1]),
        ("repetition_penalty", |p, x| p.repetition_penalty = x, &[0.0, -1.0]),
        ("presence_penalty", |p, x| p.presence_penalty = x, &[-2.1, 2.1]),
        ("frequency_penalty", |p, x| p.frequency_penalty = x, &[-2.1, 2.1]),
    ];
    for (name, set, bad) in numbers {
        for value in bad.iter().copied().chain([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            check(name, &|o| set(&mut o.sampling, value));
        }
    }
    check("logprobs", &|o| o.sampling.logprobs = Some(usize::MAX));
    check("logit_bias[0]", &|o| o.sampling.logit_bias = vec![(VOCAB as u32, 0.0)]);
    check("logit_bias[1]", &|o| o.sampling.logit_bias = vec![(1, 0.0), (u32::MAX, 0.0)]);
    check("logit_bias[1]", &|o| o.sampling.logit_bias = vec![(1, 0.0), (1, 0.0)]);
    check("logit_bias[0]", &|o| o.sampling.logit_bias = vec![(1, f32::NAN)]);
    check("max_tokens", &|o| o.max_tokens = Some(0));
    check("stop_tokens[1]", &|o| o.stop_tokens = vec![1, VOCAB as u32]);
    check("stop_tokens[0]", &|o| o.stop_tokens = vec![u32::MAX]);
    check("stop", &|o| o.stop = vec!["x".to_owned(); MAX_STOPS + 1]);
    check("stop", &|o| o.stop = vec!["x".repeat(MAX_STOP_BYTES + 1)]);
    check("stop[1]", &|o| o.stop = vec!["x".to_owned(), String::new()]);

    // A model without a vocabulary has no texts to stop at.
    let folder = temp();
    testing::Model::random(&tiny(), Format::F32, 1).write_native(folder.path()).unwrap();
    let model = open(folder.path(), &self::options()).unwrap();
    assert!(matches!(model.tokenizer(), Err(Error::Unsupported { .. })));
    let mut session =
        model.session(&SessionOptions { context: Some(8), ..SessionOptions::default() }).unwrap();
    let options = GenerateOptions { stop: vec!["x".to_owned()], ..GenerateOptions::default() };
    let message = session.generate(&[1], &options, &mut Control::none()).map(drop).unwrap_err().to_string();
    assert!(message.contains("stop") && message.contains("tokenizer"), "{message}");
}

/// Weights that are no numbers open, as nobody reads them all before they are used, and give an error when they are.
#[test]
fn weights_that_are_no_numbers() {
    let folder = temp();
    for (name, value) in [
        ("output.weight", f32::NAN),
        ("norm.weight", f32::INFINITY),
        ("layers.0.attention.wv.weight", f32::NAN),
    ] {
        let mut model = testing::Model::random(&tiny(), Format::F32, 1);
        let tensor = model.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
        tensor.bytes[4..8].copy_from_slice(&value.to_le_bytes());
        model.write_native(folder.path()).unwrap();
        let model = open(folder.path(), &options()).unwrap();
        let mut session =
            model.session(&SessionOptions { context: Some(8), ..SessionOptions::default() }).unwrap();
        for _ in 0..2 {
            let error = session.prefill(&[1, 2], &mut Control::none()).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::Format { .. }), "{name}: {message}");
            assert!(
                message.contains(&folder.path().display().to_string()) && message.contains("logit"),
                "{message}"
            );
            assert!(session.logits().is_empty());
        }
    }
}

/// Opens every beginning of the file at `path` and runs `model`.
fn cut(path: &Path, model: &Path) {
    let bytes = fs::read(path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    for end in (0..bytes.len()).rev() {
        file.set_len(end as u64).unwrap();
        let answered = survives(model, &|| format!("cut at {end} of {}", bytes.len()));
        // All but the padding after the last tensor is needed.
        assert!(!answered || end + 32 > bytes.len(), "cut at {end} of {}", bytes.len());
    }
    fs::write(path, bytes).unwrap();
    exercise(model).unwrap();
}

/// Flips bits of the file at `path` and runs `model`: first one in each byte, then, `times` times, a few at random places. Returns
/// the share of the flips of the first kind that gave an answer.
fn flip(path: &Path, times: usize, model: &Path) -> f64 {
    let bytes = fs::read(path).unwrap();
    let mut file = File::options().write(true).open(path).unwrap();
    let mut answers = |flips: &[(usize, u8)]| {
        let mut write = |at: usize, byte: u8| {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[byte]).unwrap();
        };
        flips.iter().for_each(|&(at, bit)| write(at, bytes[at] ^ bit));
        let answered = survives(model, &|| format!("flips at {flips:?}"));
        flips.iter().for_each(|&(at, _)| write(at, bytes[at]));
        answered
    };
    let mut random = Random::new(1);
    let mut any_bit = || 1u8 << (random.bits() % 8);
    let answered = (0..bytes.len()).filter(|at| answers(&[(*at, any_bit())])).count();
    for _ in 0..times {
        let flips: Vec<_> = (0..2 + random.bits() % 3)
            .map(|_| (random.bits() as usize % bytes.len(), 1 << (random.bits() % 8)))
            .collect();
        answers(&flips);
    }
    exercise(model).unwrap();
    answered as f64 / bytes.len() as f64
}

#[test]
fn a_damaged_gguf() {
    let (_folder, path) = gguf(&tiniest());
    cut(&path, &path);
    let answered = flip(&path, 2000, &path);
    // Weights may change unseen, names and shapes may not.
    assert!((0.3..0.95).contains(&answered), "{answered}");
}

#[test]
fn damaged_safetensors_and_their_configuration() {
    let folder = temp();
    // Without a tokenizer, which would be read anew each time: so a few tokens do.
    let config = ModelConfig { vocab_size: 16, tied_embeddings: false, ..tiniest() };
    testing::Model::random(&config, Format::F32, 1).write_hugging_face(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    cut(&path, folder.path());
    let answered = flip(&path, 1000, folder.path());
    assert!((0.3..0.99).contains(&answered), "{answered}");
    let config = folder.path().join("config.json");
    cut(&config, folder.path());
    flip(&config, 1000, folder.path());
}

/// Leaves of a tokenizer the bytes and a few merges: its file is damaged byte by byte.
fn shorten(path: &Path) {
    const TOKENS: u64 = 300;
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    let gone = vocab.values().filter(|id| id.as_u64() >= Some(TOKENS)).count();
    vocab.retain(|_, id| id.as_u64() < Some(TOKENS));
    let merges = json["model"]["merges"].as_array_mut().unwrap();
    merges.truncate(merges.len() - gone);
    json["added_tokens"].as_array_mut().unwrap().last_mut().unwrap()["id"] = TOKENS.into();
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_damaged_tokenizer() {
    let folder = hugging_face();
    let tokenizer = folder.path().join("tokenizer.json");
    shorten(&tokenizer);
    flip(&tokenizer, 200, folder.path());
    let bytes = fs::read(&tokenizer).unwrap();
    for end in (0..bytes.len() - 1).rev().step_by(101) {
        fs::write(&tokenizer, &bytes[..end]).unwrap();
        assert!(!survives(folder.path(), &|| format!("tokenizer.json cut at {end}")));
    }
    for bad in [&b"\xff"[..], b"{\"model\": \"\xc3\"}", b"null", b"[]", b"{}", b""] {
        fs::write(&tokenizer, bad).unwrap();
        assert!(!survives(folder.path(), &|| format!("tokenizer.json: {bad:?}")));
    }
}
