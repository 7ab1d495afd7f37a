//! The files of a model, its signature, a saved session and an audit log.

use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use mistral_core::audit::{self, AuditLog, AuditOptions, AuditVerifyOptions};
use mistral_core::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use mistral_core::provenance::{self, VerifyOptions};
use mistral_core::quant::Format;
use mistral_core::testing::{GgufFile, GgufValue, Model as Tiny, TempFolder, safetensors_bytes};
use mistral_core::{Control, LoadOptions, Model, ModelOptions, Session, SessionOptions};
use p256::ecdsa::{DerSignature, Signature, SigningKey};
use p256::elliptic_curve::point::AffineCoordinates as _;
use p256::{ProjectivePoint, Scalar};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::targets::Target;

pub const TARGETS: [Target; 9] = [
    target("gguf", ggufs, GGUF, read_gguf, 3000),
    target("safetensors", safetensors, SAFETENSORS, read_safetensors, 2000),
    target("index", indices, SAFETENSORS, read_index, 1500),
    target("config", configs, CONFIG, read_config, 1500),
    target("params", params, CONFIG, read_params, 1500),
    target("session", sessions, &["\0", "\u{1}", "\u{7f}"], load_session, 2000),
    target("manifest", manifests, MANIFEST, read_manifest, 2000),
    target("signature", statements, STATEMENT, read_signature, 800),
    target("audit", logs, AUDIT, read_audit, 2000),
];

const fn target(
    name: &'static str,
    seeds: fn() -> Vec<Vec<u8>>,
    words: &'static [&'static str],
    run: fn(&[u8]) -> bool,
    rounds: u64,
) -> Target {
    // A model of a few kilobytes, its cache, and room for tables of vocabularies and tensors.
    Target { name, seeds, words, run, rounds, memory: 16 << 20 }
}

const GGUF: &[&str] = &[
    "GGUF",
    "general.architecture",
    "general.alignment",
    "llama.block_count",
    "llama.attention.head_count",
    "llama.embedding_length",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.model",
    "blk.0.attn_q.weight",
    "<0x-1>",
    "<0x0A>",
    "<0xFFF>",
    "\u{7f}\0\0\0\0\0\0\0",
    "\0\0\0\0",
];
const SAFETENSORS: &[&str] = &[
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"__metadata__\"",
    "\"weight_map\"",
    "model-00001-of-00002.safetensors",
    "../",
    "[0,18446744073709551615]",
    "[4294967296,4294967296]",
    "\"F16\"",
    "\"F8_E4M3\"",
    "model.layers.0.self_attn.q_proj.weight",
];
const CONFIG: &[&str] = &[
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_hidden_layers",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "layer_types",
    "vocab_size",
    "yarn",
    "dim",
    "n_heads",
    "moe",
    "num_experts",
    "quantization_config",
    "1e400",
    "-1",
    "18446744073709551615",
];
const MANIFEST: &[&str] =
    &["files", "name", "sha256", "bytes", "../", "weights.bin", "  ", " *", "\n", "\\", "a/b", "/"];
const STATEMENT: &[&str] = &[
    "_type",
    "subject",
    "predicateType",
    "predicate",
    "resources",
    "serialization",
    "algorithm",
    "sha256",
    "digest",
    "name",
    "ignore_paths",
    "allow_symlinks",
    "../",
    "https://model_signing/signature/v1.0",
];
const AUDIT: &[&str] =
    &["{\"", "\"seq\":", "\"prev_hash\":", "\"hash\":", "\n", "\r", "\"event\":\"begin\"", "1e3", "\\u0000"];

/// Where the files of this process lie.
static FOLDER: LazyLock<TempFolder> = LazyLock::new(|| {
    // In memory, where there is such a folder: a disk would be what limits the rounds.
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    TempFolder::new_in(&parent).expect("a folder for the files")
});

/// Removes them.
pub fn clean() {
    let _ = std::fs::remove_dir_all(FOLDER.path());
}

fn folder(name: &str) -> PathBuf {
    let path = FOLDER.path().join(name);
    std::fs::create_dir_all(&path).expect("a folder");
    path
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
}

fn shape() -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        dim: 32,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 16,
        hidden_dim: 32,
        vocab_size: 16,
        norm_eps: 1e-5,
        max_context: 64,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window: Some(4), feed_forward: FeedForwardConfig::Dense }],
    }
}

fn tiny(format: Format) -> Tiny {
    Tiny::random(&shape(), format, 1)
}

/// Opens a model, and runs it where that can be done quickly.
fn run(path: &Path) -> bool {
    let options = ModelOptions { threads: Some(1), max_memory: Some(8 << 20), ..ModelOptions::default() };
    let Ok(model) = Model::open(path, &options, &mut Control::none()) else { return false };
    let mut control = Control::none();
    if let Ok(tokenizer) = model.tokenizer() {
        tokenizer.decode(&tokenizer.encode("a b"), false).expect("tokens of it");
    }
    let options = SessionOptions { context: Some(8), ..SessionOptions::default() };
    let Ok(mut session) = model.session(&options) else { return true };
    // Weights that are no numbers are refused while it runs.
    let _ = session.prefill(&[0, 1, 2], &mut control);
    model.info();
    true
}

fn with_vocabulary(mut file: GgufFile) -> GgufFile {
    let tokens = (0..16).map(|n| if n < 3 { format!("<{n}>") } else { format!("<0x{n:02X}>") }).collect();
    file.set("tokenizer.ggml.model", GgufValue::text("llama"));
    file.set("tokenizer.ggml.tokens", GgufValue::Texts(tokens));
    file.set("tokenizer.ggml.scores", GgufValue::F32s(vec![0.0; 16]));
    file.set("tokenizer.ggml.token_type", GgufValue::I32s([vec![2, 3, 3], vec![6; 13]].concat()));
    file.set("tokenizer.ggml.eos_token_id", GgufValue::U32(2));
    file
}

/// Two good files, and the attacks that others fell to.
fn ggufs() -> Vec<Vec<u8>> {
    let good = with_vocabulary(tiny(Format::F32).gguf());
    let mut seeds = vec![good.bytes(), with_vocabulary(tiny(Format::Q4_0).gguf()).bytes()];
    // Numbers of tensors and of keys that overflow when they are multiplied (CVE-2024-23496, CVE-2025-53630).
    for at in [8, 16] {
        for number in [u64::MAX, 1 << 61, i64::MAX as u64, 1 << 32] {
            let mut bytes = good.bytes();
            bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
            seeds.push(bytes);
        }
    }
    // A byte token that is none (it wrote before its buffer), lengths and alignments at the edge (CVE-2024-21802, -21825, -21836).
    for (key, value) in [
        ("tokenizer.ggml.tokens", GgufValue::Texts(vec!["<0x-1>".to_owned(); 16])),
        ("tokenizer.ggml.scores", GgufValue::F32s(Vec::new())),
        ("general.alignment", GgufValue::U32(0)),
        ("general.alignment", GgufValue::U32(1 << 31)),
        ("llama.attention.head_count", GgufValue::U32(0)),
        ("llama.block_count", GgufValue::U32(u32::MAX)),
        ("llama.embedding_length", GgufValue::U64(u64::MAX)),
    ] {
        let mut file = good.clone();
        file.set(key, value);
        seeds.push(file.bytes());
    }
    // Dimensions whose product wraps (CVE-2026-27940), in the first tensor's place in the table.
    let mut bytes = good.bytes();
    let name = good.tensors[0].name.as_bytes();
    if let Some(at) = bytes.windows(name.len()).rposition(|window| window == name) {
        let dimensions = at + name.len() + 4;
        bytes[dimensions..dimensions + 8].copy_from_slice(&(1u64 << 62).to_le_bytes());
        seeds.push(bytes);
    }
    seeds
}

fn read_gguf(input: &[u8]) -> bool {
    let path = folder("gguf").join("m.gguf");
    write(&path, input);
    run(&path)
}

/// A folder with a good model in the names of Hugging Face.
fn hugging_face(name: &str) -> PathBuf {
    let path = folder(name);
    if !path.join("config.json").exists() {
        tiny(Format::F32).write_hugging_face(&path).expect("a model");
    }
    path
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn safetensors() -> Vec<Vec<u8>> {
    let good = read(&hugging_face("good").join("model.safetensors"));
    let mut lying = good.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    vec![good, lying, safetensors_bytes(&[])]
}

fn read_safetensors(input: &[u8]) -> bool {
    let path = hugging_face("safetensors");
    write(&path.join("model.safetensors"), input);
    run(&path)
}

fn indices() -> Vec<Vec<u8>> {
    let path = hugging_face("sharded");
    let shard = path.join("model-00001-of-00001.safetensors");
    std::fs::copy(hugging_face("good").join("model.safetensors"), &shard).expect("a copy");
    std::fs::remove_file(path.join("model.safetensors"))
        .or_else(|e| if shard.exists() { Ok(()) } else { Err(e) })
        .expect("the only file");
    let header = read(&shard);
    let len = u64::from_le_bytes(header[..8].try_into().expect("eight bytes")) as usize;
    let tensors: Value = serde_json::from_slice(&header[8..8 + len]).expect("a header");
    let names = tensors.as_object().expect("an object").keys().filter(|name| *name != "__metadata__");
    let map: serde_json::Map<String, Value> =
        names.map(|name| (name.clone(), "model-00001-of-00001.safetensors".into())).collect();
    vec![json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into_bytes()]
}

fn read_index(input: &[u8]) -> bool {
    let path = FOLDER.path().join("sharded");
    write(&path.join("model.safetensors.index.json"), input);
    run(&path)
}

fn configs() -> Vec<Vec<u8>> {
    let mut seeds = vec![read(&hugging_face("good").join("config.json"))];
    for case in ["llama_yarn", "ministral_iswa", "mixtral", "ministral3_yarn"] {
        seeds.push(crate::targets::fixture(&format!("models/{case}/config.json")));
    }
    seeds
}

fn read_config(input: &[u8]) -> bool {
    let path = hugging_face("config");
    write(&path.join("config.json"), input);
    run(&path)
}

fn native(name: &str) -> PathBuf {
    let path = folder(name);
    if !path.join("params.json").exists() {
        tiny(Format::F32).write_native(&path).expect("a model");
    }
    path
}

fn params() -> Vec<Vec<u8>> {
    let mut seeds = vec![read(&native("good-native").join("params.json"))];
    for case in ["dense_swa", "ministral_iswa", "mixtral"] {
        seeds.push(crate::targets::fixture(&format!("models/native/{case}.json")));
    }
    seeds
}

fn read_params(input: &[u8]) -> bool {
    let path = native("params");
    write(&path.join("params.json"), input);
    run(&path)
}

const KEY: [u8; 32] = [7; 32];
/// What of a saved session says whose it is.
const WHOSE: usize = 80;
const TAG: usize = 32;

static MODEL: LazyLock<Arc<Model>> = LazyLock::new(|| {
    let options = ModelOptions { threads: Some(1), max_memory: Some(8 << 20), ..ModelOptions::default() };
    Model::open(hugging_face("good"), &options, &mut Control::none()).expect("a model")
});

static SAVED: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let options = SessionOptions { context: Some(16), ..SessionOptions::default() };
    let mut session = MODEL.session(&options).expect("a session");
    session.prefill(&[1, 2, 3, 4, 5, 6, 7], &mut Control::none()).expect("tokens");
    session.save(Some(&KEY), &mut Control::none()).expect("a saved session")
});

/// What follows the parts that say whose a session is; those and the tag are put on again, as somebody who has the key can.
fn sessions() -> Vec<Vec<u8>> {
    vec![SAVED[WHOSE..SAVED.len() - TAG].to_vec()]
}

fn load_session(input: &[u8]) -> bool {
    let mut blob = [&SAVED[..WHOSE], input].concat();
    let mut mac = Hmac::<Sha256>::new_from_slice(&KEY).expect("a key");
    mac.update(&blob);
    blob.extend_from_slice(&mac.finalize().into_bytes());
    let options = LoadOptions { key: Some(&KEY), ..LoadOptions::default() };
    let Ok(mut session) = Session::load(Arc::clone(&MODEL), &blob, &options, &mut Control::none()) else {
        return false;
    };
    let _ = session.prefill(&[1], &mut Control::none());
    session.save(Some(&KEY), &mut Control::none()).expect("it was loaded");
    true
}

/// A model of one file, and what is said of it.
fn claimed(name: &str, claim: &[u8]) -> (PathBuf, PathBuf) {
    let path = folder(name);
    let (model, claim_path) = (path.join("model"), path.join("claim"));
    if !model.exists() {
        std::fs::create_dir(&model).expect("a folder");
        write(&model.join("weights.bin"), b"weights");
    }
    write(&claim_path, claim);
    (model, claim_path)
}

/// The SHA-256 of the file.
fn digest() -> String {
    use sha2::Digest as _;
    Sha256::digest(b"weights").iter().map(|byte| format!("{byte:02x}")).collect()
}

fn manifests() -> Vec<Vec<u8>> {
    let digest = digest();
    vec![
        json!({"files": [{"name": "weights.bin", "sha256": digest, "bytes": 7}]}).to_string().into_bytes(),
        format!("{digest}  weights.bin\n").into_bytes(),
        format!("{digest} *../model/weights.bin\n").into_bytes(),
        format!("{digest}  weights.bin\n{digest}  weights.bin\n").into_bytes(),
    ]
}

fn read_manifest(input: &[u8]) -> bool {
    let (model, manifest) = claimed("manifest", input);
    let options = VerifyOptions { manifest: Some(manifest), ..VerifyOptions::default() };
    provenance::verify(model, &options, &mut Control::none()).is_ok()
}

static SIGNER: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_slice(&KEY).expect("a key"));

static PEM: LazyLock<String> = LazyLock::new(|| {
    // SubjectPublicKeyInfo of a point on P-256 (RFC 5480).
    let head = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
    let der = [&head[..], SIGNER.verifying_key().to_sec1_point(false).as_bytes()].concat();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
});

/// Statements, which are then signed, and whole bundles, which are read as they are.
fn statements() -> Vec<Vec<u8>> {
    use sha2::Digest as _;
    let digest = digest();
    let over: String =
        Sha256::digest(Sha256::digest(b"weights")).iter().map(|byte| format!("{byte:02x}")).collect();
    let resource = json!({"name": "weights.bin", "algorithm": "sha256", "digest": digest});
    let statement = |resources: Value| {
        json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "model", "digest": {"sha256": over}}],
            "predicateType": "https://model_signing/signature/v1.0",
            "predicate": {
                "resources": resources,
                "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": []},
            },
        })
        .to_string()
        .into_bytes()
    };
    let escape = json!({"name": "../model/weights.bin", "algorithm": "sha256", "digest": digest});
    vec![
        statement(json!([resource])),
        statement(json!([resource, resource])),
        statement(json!([escape])),
        crate::targets::fixture("signing/p256.sig"),
        crate::targets::fixture("signing/ignoring.sig"),
    ]
}

/// A signature that verifies, with the same nonce for each: that gives the key away, and costs a few multiplications (FIPS 186-5, 6.4.1).
fn sign(message: &[u8]) -> DerSignature {
    use p256::elliptic_curve::ops::Reduce as _;
    use sha2::Digest as _;
    static NONCE: LazyLock<(Scalar, Scalar)> = LazyLock::new(|| {
        let nonce = Scalar::from(7_u64);
        let point = (ProjectivePoint::GENERATOR * nonce).to_affine();
        (Scalar::reduce(&point.x()), nonce.invert().expect("it is not zero"))
    });
    let (r, inverse) = *NONCE;
    let s = inverse * (Scalar::reduce(&Sha256::digest(message)) + r * **SIGNER.as_nonzero_scalar());
    Signature::from_scalars(r, s).expect("two numbers that are not zero").to_der()
}

/// The envelope of DSSE around a statement, and its signature.
fn bundle(statement: &[u8]) -> Vec<u8> {
    const TYPE: &str = "application/vnd.in-toto+json";
    let mut message = format!("DSSEv1 {} {TYPE} {} ", TYPE.len(), statement.len()).into_bytes();
    message.extend_from_slice(statement);
    let signature = sign(&message);
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": STANDARD.encode(statement),
            "payloadType": TYPE,
            "signatures": [{"sig": STANDARD.encode(signature.as_bytes()), "keyid": ""}],
        },
    })
    .to_string()
    .into_bytes()
}

fn read_signature(input: &[u8]) -> bool {
    let whole = input.windows(14).any(|window| window == b"\"dsseEnvelope\"");
    let (model, signature) = claimed("signature", &if whole { input.to_vec() } else { bundle(input) });
    let options =
        VerifyOptions { signature: Some(signature), keys: vec![PEM.clone()], ..VerifyOptions::default() };
    provenance::verify(model, &options, &mut Control::none()).is_ok()
}

/// A log of a few calls.
fn logs() -> Vec<Vec<u8>> {
    let path = folder("good-log").join("audit.jsonl");
    if !path.exists() {
        let options = SessionOptions { context: Some(16), ..SessionOptions::default() };
        let session = MODEL.session(&options).expect("a session");
        let mut session = session.with_audit(&AuditOptions::new(&path)).expect("a log");
        for token in 0..4 {
            session.prefill(&[token], &mut Control::none()).expect("a token");
        }
    }
    vec![read(&path)]
}

/// Verifies a log, and goes on with it.
fn read_audit(input: &[u8]) -> bool {
    // A log is continued by the process that has it open.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let path = folder("log").join("audit.jsonl");
    write(&path, input);
    let options = AuditVerifyOptions { allow_incomplete: true, ..AuditVerifyOptions::default() };
    let good = audit::verify(&path, &options, &mut Control::none()).is_ok();
    let opened = AuditLog::open(&AuditOptions::new(&path));
    assert!(opened.is_ok() || !good, "a log that verifies cannot be continued: {opened:?}");
    good
}
