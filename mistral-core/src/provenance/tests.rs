//! Bundles of the reference implementation, and attacks on models, manifests and bundles: each is refused for its own reason.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{DerSignature, SigningKey};

use super::*;
use crate::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use crate::quant::Format;
use crate::testing::TempFolder;
use crate::weights::STEP;
use crate::{Model, ModelOptions};

const CURVES: [(&str, &str); 3] = [("p256", "P-256"), ("p384", "P-384"), ("p521", "P-521")];
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
const PREDICATE: &str = "https://model_signing/signature/v1.0";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/signing").join(name)
}

fn pem(name: &str) -> String {
    fs::read_to_string(fixture(&format!("{name}.pem"))).unwrap()
}

fn check(model: &Path, options: &VerifyOptions) -> Result<Report> {
    verify(model, options, &mut Control::none())
}

/// The kind of the error, and its message.
fn refusal(model: &Path, options: &VerifyOptions) -> (&'static str, String) {
    let error = check(model, options).unwrap_err();
    let kind = match &error {
        Error::Integrity { .. } => "integrity",
        Error::Signature { .. } => "signature",
        Error::Format { .. } => "format",
        Error::Argument { .. } => "argument",
        Error::Unsupported { .. } => "unsupported",
        Error::Io { .. } => "io",
        other => panic!("{other}"),
    };
    (kind, error.to_string())
}

fn assert_refused(model: &Path, options: &VerifyOptions, kind: &str, part: &str) {
    let (found, message) = refusal(model, options);
    assert!(found == kind && message.contains(part), "{kind}, {part}: {found}, {message}");
}

fn signed(name: &str, key: &str) -> VerifyOptions {
    let signature = Some(fixture(&format!("{name}.sig")));
    VerifyOptions { signature, keys: vec![pem(key)], ..VerifyOptions::default() }
}

/// The signer of the tests.
struct TestSigner(SigningKey);

impl TestSigner {
    fn new(seed: u8) -> Self {
        Self(SigningKey::from_slice(&[seed; 32]).unwrap())
    }

    fn public_pem(&self) -> String {
        // SubjectPublicKeyInfo of a point on P-256 (RFC 5480).
        let head = unhex_any("3059301306072a8648ce3d020106082a8648ce3d030107034200");
        let der = [&head[..], self.0.verifying_key().to_sec1_point(false).as_bytes()].concat();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der))
    }

    /// A bundle around `payload`, of type `kind`, named as the key of `hint`.
    fn bundle(&self, kind: &str, payload: &[u8], hint: &str) -> Value {
        let message =
            [format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).as_bytes(), payload].concat();
        let signature: DerSignature = self.0.sign(&message);
        json!({
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(payload), "payloadType": kind,
                "signatures": [{"sig": STANDARD.encode(signature.as_bytes()), "keyid": ""}],
            },
        })
    }
}

fn unhex_any(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// A signed model in a folder that may be damaged: `model/`, `bundle.sig`, `manifest.json`.
struct Scene {
    folder: TempFolder,
    signer: TestSigner,
}

impl Scene {
    fn new() -> Self {
        let folder = TempFolder::new_in(&std::env::temp_dir()).unwrap();
        let scene = Self { folder, signer: TestSigner::new(7) };
        fs::create_dir_all(scene.model().join("part")).unwrap();
        for (name, content) in
            [("config.json", &b"{\"dim\": 8}"[..]), ("part/a", b""), ("weights", &[1, 2, 3, 255])]
        {
            fs::write(scene.model().join(name), content).unwrap();
        }
        scene.sign(&scene.statement());
        fs::write(scene.folder.path().join("manifest.json"), json!({"files": scene.files()}).to_string())
            .unwrap();
        scene
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    fn files(&self) -> Vec<Value> {
        let file = |name: &&str| {
            let content = fs::read(self.model().join(name)).unwrap();
            json!({"name": name, "sha256": hex(&Sha256::digest(&content)), "bytes": content.len()})
        };
        let names = Listing::read(&self.model(), &[], &Control::none()).unwrap().files;
        names.iter().map(|name| file(&name.as_str())).collect()
    }

    fn statement(&self) -> Value {
        let resource = |f: &Value| json!({"name": f["name"], "algorithm": "sha256", "digest": f["sha256"]});
        let resources: Vec<Value> = self.files().iter().map(resource).collect();
        json!({
            "_type": STATEMENT, "predicateType": PREDICATE,
            "subject": [{"name": "tiny", "digest": {"sha256": Self::subject(&resources)}}],
            "predicate": {
                "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": true, "ignore_paths": ["README"]},
                "resources": resources,
            },
        })
    }

    fn subject(resources: &[Value]) -> String {
        let digests: Vec<u8> =
            resources.iter().flat_map(|r| unhex_any(r["digest"].as_str().unwrap())).collect();
        hex(&Sha256::digest(digests))
    }

    /// Signs `statement` as model-signing would.
    fn sign(&self, statement: &Value) {
        let key = PublicKey::from_pem("key", &self.signer.public_pem()).unwrap();
        self.write(&self.signer.bundle(
            "application/vnd.in-toto+json",
            statement.to_string().as_bytes(),
            &key.id,
        ));
    }

    fn write(&self, bundle: &Value) {
        fs::write(self.folder.path().join("bundle.sig"), bundle.to_string()).unwrap();
    }

    fn bundle(&self) -> Value {
        serde_json::from_slice(&fs::read(self.folder.path().join("bundle.sig")).unwrap()).unwrap()
    }

    fn by_signature(&self) -> VerifyOptions {
        VerifyOptions {
            signature: Some(self.folder.path().join("bundle.sig")),
            keys: vec![self.signer.public_pem()],
            ..VerifyOptions::default()
        }
    }

    fn by_manifest(&self) -> VerifyOptions {
        VerifyOptions { manifest: Some(self.folder.path().join("manifest.json")), ..VerifyOptions::default() }
    }
}

#[test]
fn bundles_of_model_signing_verify_on_each_curve() {
    let all: Vec<String> = CURVES.iter().map(|(name, _)| pem(name)).collect();
    for (name, curve) in CURVES {
        let options = VerifyOptions { keys: all.clone(), ..signed(name, name) };
        let report = check(&fixture("model"), &options).unwrap();
        let signature = report.signature.as_ref().unwrap();
        assert_eq!((signature.curve, signature.model.as_str()), (curve, "model"));
        assert_eq!(hex(&report.digest), "06df5a2b61f42390c5035c8297d7db524b109a2e4e12757458b5c3c4699ef51e");
        let names: Vec<&str> = report.files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["config.json", "part/tokenizer.txt", "part.txt", "weights.bin"]);
        let json = report.to_json();
        assert_eq!((&json["bytes"], &json["signature"]["curve"]), (&json!(81), &json!(curve)));
        for (other, _) in CURVES.iter().filter(|(other, _)| *other != name) {
            assert_refused(&fixture("model"), &signed(name, other), "signature", "made with another key");
        }
    }
}

#[test]
fn a_single_file_is_signed_without_its_name() {
    let folder = TempFolder::new_in(&std::env::temp_dir()).unwrap();
    let renamed = folder.path().join("renamed.bin");
    fs::copy(fixture("model/weights.bin"), &renamed).unwrap();
    for model in [fixture("model/weights.bin"), renamed] {
        let report = check(&model, &signed("single_file", "p256")).unwrap();
        assert_eq!(report.files.len(), 1);
        assert_eq!(hex(&report.digest), "01c9f464780a1b6af4eb400fe2f2896cfb2169f5a65701439e4c2c4e213903ef");
    }
    assert_refused(&fixture("model"), &signed("single_file", "p256"), "signature", "single file");
    assert_refused(&fixture("model/config.json"), &signed("single_file", "p256"), "integrity", "SHA-256");
    // A file of a signed folder: the others are verified with it.
    assert_eq!(check(&fixture("model/weights.bin"), &signed("p384", "p384")).unwrap().files.len(), 4);
    assert_refused(&fixture("README.md"), &signed("p384", "p384"), "integrity", "nothing vouches for");
}

#[test]
fn what_the_signer_left_out_is_refused_unless_the_host_allows_it() {
    let options = signed("ignoring", "p256");
    assert_refused(&fixture("model"), &options, "integrity", "the signer left out");
    let report =
        check(&fixture("model"), &VerifyOptions { ignore: vec!["part.txt".to_owned()], ..options }).unwrap();
    assert_eq!((report.files.len(), report.ignored), (3, vec!["part.txt".to_owned()]));
}

#[test]
fn manifests_and_signatures_verify_alone_and_together() {
    let scene = Scene::new();
    let both = VerifyOptions { manifest: scene.by_manifest().manifest, ..scene.by_signature() };
    for options in [scene.by_manifest(), scene.by_signature(), both.clone()] {
        let report = check(&scene.model(), &options).unwrap();
        assert_eq!(hex(&report.digest), scene.statement()["subject"][0]["digest"]["sha256"]);
        // A report is a manifest.
        let files = json!({"files": report.to_json()["files"]}).to_string();
        manifest::parse("report", files.as_bytes()).unwrap();
    }
    // Manifest and signature may lie in the folder.
    let inside = VerifyOptions {
        manifest: Some(scene.model().join("manifest.json")),
        signature: Some(scene.model().join("part/bundle.sig")),
        ..both.clone()
    };
    fs::copy(both.manifest.as_ref().unwrap(), inside.manifest.as_ref().unwrap()).unwrap();
    fs::copy(both.signature.as_ref().unwrap(), inside.signature.as_ref().unwrap()).unwrap();
    assert_eq!(check(&scene.model(), &inside).unwrap().ignored, ["manifest.json", "part/bundle.sig"]);
    fs::remove_file(scene.model().join("manifest.json")).unwrap();
    fs::remove_file(scene.model().join("part/bundle.sig")).unwrap();
    // They must agree on the files.
    let mut files = scene.files();
    files.pop();
    fs::write(both.manifest.as_ref().unwrap(), json!({"files": files}).to_string()).unwrap();
    assert_refused(&scene.model(), &both, "integrity", "nothing vouches for");
}

#[test]
fn what_sha256sum_writes_is_a_manifest() {
    let scene = Scene::new();
    let path = scene.folder.path().join("SHA256SUMS");
    let options = VerifyOptions { manifest: Some(path.clone()), ..VerifyOptions::default() };
    let line = |f: &Value, mark: &str| {
        format!("{} {mark}{}\n", f["sha256"].as_str().unwrap(), f["name"].as_str().unwrap())
    };
    let lines: String = scene.files().iter().zip([" ", "*", " "]).map(|(f, mark)| line(f, mark)).collect();
    fs::write(&path, &lines).unwrap();
    assert_eq!(check(&scene.model(), &options).unwrap().files.len(), 3);
    for (damaged, part) in [
        (lines.replace("  config", " config"), "no name"),
        (lines.replacen(&lines[..1], "g", 1), "no digest"),
        (format!("\\{lines}"), "no digest"),
        (lines.replace("part/a", "part/../part/a"), "leads out"),
        (format!("{lines}{lines}"), "comes twice"),
        (String::new(), "0 files"),
    ] {
        fs::write(&path, damaged).unwrap();
        assert_refused(&scene.model(), &options, "format", part);
    }
}

#[test]
fn a_changed_folder_is_refused() {
    type Damage = fn(&Path);
    let cases: [(&str, &str, Damage); 9] = [
        ("integrity", "no such file", |m| fs::remove_file(m.join("weights")).unwrap()),
        ("integrity", "no such file", |m| fs::rename(m.join("weights"), m.join("weight")).unwrap()),
        ("integrity", "no such file", |m| fs::remove_dir_all(m.join("part")).unwrap()),
        ("integrity", "nothing vouches for", |m| fs::write(m.join("part/b"), "").unwrap()),
        ("integrity", "the signer left out", |m| fs::write(m.join("README"), "").unwrap()),
        ("integrity", "SHA-256", |m| fs::write(m.join("weights"), [1, 2, 3, 254]).unwrap()),
        ("integrity", "SHA-256", |m| fs::write(m.join("part/a"), "x").unwrap()),
        ("integrity", "no such file", |m| {
            fs::remove_file(m.join("weights")).unwrap();
            fs::create_dir(m.join("weights")).unwrap();
        }),
        ("integrity", "SHA-256", |m| {
            fs::rename(m.join("weights"), m.join("x")).unwrap();
            fs::rename(m.join("config.json"), m.join("weights")).unwrap();
            fs::rename(m.join("x"), m.join("config.json")).unwrap();
        }),
    ];
    for (kind, part, damage) in cases {
        let scene = Scene::new();
        damage(&scene.model());
        assert_refused(&scene.model(), &scene.by_signature(), kind, part);
        assert_eq!(refusal(&scene.model(), &scene.by_manifest()).0, kind, "{part}");
    }
    // A manifest with lengths need not read the file.
    let scene = Scene::new();
    fs::write(scene.model().join("weights"), "longer").unwrap();
    assert_refused(&scene.model(), &scene.by_manifest(), "integrity", "6 bytes, expected 4");
}

#[cfg(unix)]
#[test]
fn links_and_special_files_are_refused_although_the_signer_allows_them() {
    use std::os::unix::fs::symlink;
    let scene = Scene::new();
    let (model, outside) = (scene.model(), scene.folder.path().join("outside"));
    let options = scene.by_signature();
    fs::rename(model.join("weights"), &outside).unwrap();
    symlink(&outside, model.join("weights")).unwrap();
    assert_refused(&model, &options, "integrity", "symbolic link");
    assert_refused(&model.join("weights"), &options, "integrity", "symbolic link");
    fs::remove_file(model.join("weights")).unwrap();
    fs::rename(&outside, model.join("weights")).unwrap();
    fs::rename(model.join("part"), &outside).unwrap();
    symlink(&outside, model.join("part")).unwrap();
    assert_refused(&model, &options, "integrity", "symbolic link");
    assert_refused(&model.join("weights"), &options, "integrity", "symbolic link");
    fs::remove_file(model.join("part")).unwrap();
    fs::rename(&outside, model.join("part")).unwrap();
    check(&model, &options).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(model.join("socket")).unwrap();
    assert_refused(&model, &options, "integrity", "neither a file nor a folder");
    let ignore = vec!["socket".to_owned()];
    check(&model, &VerifyOptions { ignore, ..options }).unwrap();
}

#[test]
fn a_statement_that_says_something_else_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(&str, &str, Change); 16] = [
        ("signature", "predicate type https://model_signing/Digests/v0.1", |s| {
            s["predicateType"] = json!("https://model_signing/Digests/v0.1");
        }),
        ("signature", "statement type", |s| s["_type"] = json!("https://in-toto.io/Statement/v0.1")),
        ("integrity", "digest of the subject", |s| {
            s["subject"][0]["digest"]["sha256"] = json!("00".repeat(32))
        }),
        ("format", "not one subject", |s| s["subject"] = json!([s["subject"][0], s["subject"][0]])),
        ("format", "not one subject", |s| s["subject"] = json!([])),
        ("format", "leads out", |s| s["predicate"]["resources"][0]["name"] = json!("../config.json")),
        ("format", "leads out", |s| s["predicate"]["resources"][0]["name"] = json!("part/./a")),
        ("format", "absolute", |s| s["predicate"]["resources"][0]["name"] = json!("/etc/passwd")),
        ("format", "backslash or a colon", |s| s["predicate"]["resources"][0]["name"] = json!("c:x")),
        ("format", "backslash or a colon", |s| s["predicate"]["resources"][0]["name"] = json!("part\\a")),
        ("format", "empty name", |s| s["predicate"]["resources"][0]["name"] = json!("")),
        ("format", "empty part", |s| s["predicate"]["resources"][0]["name"] = json!("part//a")),
        ("format", "control", |s| s["predicate"]["resources"][0]["name"] = json!("a\0b")),
        ("unsupported", "blake3", |s| s["predicate"]["resources"][0]["algorithm"] = json!("blake3")),
        ("unsupported", "shards", |s| s["predicate"]["serialization"]["method"] = json!("shards")),
        ("format", "missing field `predicate`", |s| _ = s.as_object_mut().unwrap().shift_remove("predicate")),
    ];
    for (kind, part, change) in cases {
        let scene = Scene::new();
        let mut statement = scene.statement();
        change(&mut statement);
        scene.sign(&statement);
        assert_refused(&scene.model(), &scene.by_signature(), kind, part);
    }
    // The same file twice, under a subject that fits.
    let scene = Scene::new();
    let mut statement = scene.statement();
    let mut resources = statement["predicate"]["resources"].as_array().unwrap().clone();
    resources.push(resources[0].clone());
    statement["subject"][0]["digest"]["sha256"] = json!(Scene::subject(&resources));
    statement["predicate"]["resources"] = json!(resources);
    scene.sign(&statement);
    assert_refused(&scene.model(), &scene.by_signature(), "format", "comes twice");
}

#[test]
fn a_bundle_that_was_tampered_with_is_refused() {
    type Change = fn(&mut Value);
    let cases: [(&str, &str, Change); 13] = [
        ("format", "mediaType", |b| b["mediaType"] = json!("application/vnd.dev.sigstore.bundle.v0.2+json")),
        ("signature", "payload type", |b| b["dsseEnvelope"]["payloadType"] = json!("text/plain")),
        ("signature", "0 signatures", |b| b["dsseEnvelope"]["signatures"] = json!([])),
        ("signature", "2 signatures", |b| {
            let one = b["dsseEnvelope"]["signatures"][0].clone();
            b["dsseEnvelope"]["signatures"] = json!([one, one]);
        }),
        ("signature", "made with another key", |b| {
            b["verificationMaterial"]["publicKey"]["hint"] = json!("00")
        }),
        ("signature", "does not fit", |b| b["dsseEnvelope"]["payload"] = json!(STANDARD.encode("{}"))),
        ("signature", "does not fit", |b| b["dsseEnvelope"]["signatures"][0]["sig"] = json!("")),
        ("format", "payload", |b| b["dsseEnvelope"]["payload"] = json!("%")),
        ("format", "no such field", |b| b["dsseEnvelope"] = Value::Null),
        ("format", "publicKey", |b| b["verificationMaterial"] = json!({})),
        ("format", "unknown field", |b| b["extra"] = json!(1)),
        ("unsupported", "certificate", |b| {
            b["verificationMaterial"] = json!({"certificate": {"rawBytes": ""}})
        }),
        ("unsupported", "message", |b| b["messageSignature"] = json!({})),
    ];
    let scene = Scene::new();
    let whole = scene.bundle();
    for (kind, part, change) in cases {
        let mut bundle = whole.clone();
        change(&mut bundle);
        scene.write(&bundle);
        assert_refused(&scene.model(), &scene.by_signature(), kind, part);
    }
    // A signature over another type of payload, honestly declared.
    let payload = scene.statement().to_string();
    scene.write(&scene.signer.bundle("application/json", payload.as_bytes(), ""));
    assert_refused(&scene.model(), &scene.by_signature(), "signature", "payload type");
    // One of another signer, who claims the name of the pinned key.
    let hint = whole["verificationMaterial"]["publicKey"]["hint"].as_str().unwrap();
    scene.write(&TestSigner::new(8).bundle("application/vnd.in-toto+json", payload.as_bytes(), hint));
    assert_refused(&scene.model(), &scene.by_signature(), "signature", "does not fit");
    // Without the name of a key, as old bundles are: any pinned key may fit.
    let mut bundle = whole.clone();
    bundle["verificationMaterial"] = json!({"publicKey": {}});
    scene.write(&bundle);
    let keys = vec![TestSigner::new(8).public_pem(), scene.signer.public_pem()];
    check(&scene.model(), &VerifyOptions { keys, ..scene.by_signature() }).unwrap();
    let keys = vec![TestSigner::new(8).public_pem()];
    assert_refused(
        &scene.model(),
        &VerifyOptions { keys, ..scene.by_signature() },
        "signature",
        "does not fit",
    );
    scene.write(&whole);
    let file = OpenOptions::new().write(true).open(scene.folder.path().join("bundle.sig")).unwrap();
    for length in (0..whole.to_string().len() as u64).rev() {
        file.set_len(length).unwrap();
        assert_refused(&scene.model(), &scene.by_signature(), "format", "bundle");
    }
}

#[test]
fn every_flipped_bit_of_a_signed_model_is_found() {
    let scene = Scene::new();
    let manifest = scene.by_manifest().manifest.unwrap();
    let bundle = scene.by_signature().signature.unwrap();
    let targets: Vec<PathBuf> = ["config.json", "weights"]
        .iter()
        .map(|name| scene.model().join(name))
        .chain([bundle, manifest])
        .collect();
    let options = VerifyOptions { manifest: scene.by_manifest().manifest, ..scene.by_signature() };
    let mut flips = 0;
    for path in &targets {
        let whole = fs::read(path).unwrap();
        // In place: file systems write a file out that was emptied and written again.
        let mut file = OpenOptions::new().write(true).open(path).unwrap();
        let mut put = |at: usize, byte: u8| {
            file.seek(SeekFrom::Start(at as u64)).unwrap();
            file.write_all(&[byte]).unwrap();
        };
        for (at, byte) in whole.iter().enumerate() {
            for bit in 0..8 {
                put(at, byte ^ (1 << bit));
                flips += 1;
                assert!(
                    check(&scene.model(), &options).is_err(),
                    "bit {bit} of byte {at} of {}",
                    path.display()
                );
            }
            put(at, *byte);
        }
    }
    check(&scene.model(), &options).unwrap();
    assert!(flips > 10_000, "{flips}");
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let scene = Scene::new();
    let key = scene.signer.public_pem();
    let with = |keys: Vec<&str>| VerifyOptions {
        keys: keys.into_iter().map(str::to_owned).collect(),
        ..scene.by_signature()
    };
    for (options, part) in [
        (VerifyOptions::default(), "neither a manifest nor a signature"),
        (with(vec![]), "`keys`"),
        (VerifyOptions { keys: vec![key.clone()], ..scene.by_manifest() }, "keys without a signature"),
        (with(vec![&key, "secret"]), "`keys[1]`: found text of another kind"),
        (with(vec![&key.replace("MFkw", "M%kw")]), "damaged base64"),
        (with(vec![&key.replace("MFkw", "MFkx")]), "a key of another kind"),
        (with(vec!["-----BEGIN PRIVATE KEY-----\nsecret\n-----END PRIVATE KEY-----"]), "another kind"),
        (VerifyOptions { ignore: vec!["../x".to_owned()], ..scene.by_manifest() }, "`ignore[0]`"),
        (VerifyOptions { ignore: vec!["part".to_owned()], ..scene.by_manifest() }, "`ignore`"),
    ] {
        let (kind, message) = refusal(&scene.model(), &options);
        assert!(
            kind == "argument" && message.contains(part) && !message.contains("secret"),
            "{part}: {message}"
        );
    }
    let nowhere =
        VerifyOptions { manifest: Some(scene.folder.path().join("none")), ..VerifyOptions::default() };
    assert_refused(&scene.model(), &nowhere, "io", "none");
    assert_refused(&scene.folder.path().join("none"), &scene.by_manifest(), "io", "none");
}

#[test]
fn verifying_reports_its_progress_and_can_be_cancelled() {
    let scene = Scene::new();
    // Longer than one step, so that it is cancelled in the middle of a file.
    fs::write(scene.model().join("weights"), vec![7; STEP + 1]).unwrap();
    scene.sign(&scene.statement());
    let (token, seen) = (crate::CancelToken::new(), AtomicUsize::new(0));
    let mut last = Progress { phase: "", done: 0, total: 0 };
    let mut report = |progress| last = progress;
    verify(scene.model(), &scene.by_signature(), &mut Control::none().with_progress(&mut report)).unwrap();
    let total = STEP as u64 + 11;
    assert_eq!(last, Progress { phase: "verify", done: total, total });
    let mut stop = |progress: Progress| {
        if progress.done > 0 && progress.done < total && seen.fetch_add(1, Ordering::Relaxed) > 0 {
            token.cancel();
        }
    };
    let mut control = Control::none().with_cancel(&token).with_progress(&mut stop);
    let result = verify(scene.model(), &scene.by_signature(), &mut control);
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
}

#[test]
fn what_was_verified_is_what_is_read() {
    let scene = Scene::new();
    let (model, options) = (scene.model(), scene.by_signature());
    let weights = model.join("weights");
    // Another file is moved to the place of the one that was verified.
    let verified = Verified::read(&model, &options, &mut Control::none()).unwrap();
    fs::write(model.join("other"), [9; 4]).unwrap();
    fs::rename(model.join("other"), &weights).unwrap();
    fs::write(model.join("added"), "").unwrap();
    assert_eq!(verified.files.map(&weights).unwrap().bytes(), [1, 2, 3, 255]);
    assert_eq!(verified.files.read(&weights, 4, "file").unwrap(), [1, 2, 3, 255]);
    assert_eq!(verified.files.names(&model).unwrap(), ["config.json", "weights"]);
    assert!(
        !verified.files.is_file(&model.join("added")) && verified.files.map(&model.join("added")).is_err()
    );
    assert!(verified.check_unchanged().unwrap_err().to_string().contains("changed while it was used"));
    // The file itself is written to.
    let scene = Scene::new();
    let verified = Verified::read(&scene.model(), &scene.by_signature(), &mut Control::none()).unwrap();
    verified.check_unchanged().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(20)); // more than a tick of the clock of the file system
    fs::write(scene.model().join("weights"), [1, 2, 3, 254]).unwrap();
    assert!(verified.check_unchanged().unwrap_err().to_string().contains("changed while it was used"));
}

/// A scene whose model runs.
fn runnable() -> Scene {
    let scene = Scene::new();
    fs::remove_dir_all(scene.model()).unwrap();
    fs::create_dir(scene.model()).unwrap();
    let layer = LayerConfig { window: None, feed_forward: FeedForwardConfig::Dense };
    let rope = RopeConfig { theta: 1e4, style: RopeStyle::HalfSplit, scaling: RopeScaling::None };
    let config = ModelConfig {
        architecture: "mistral".to_owned(),
        dim: 8,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 4,
        hidden_dim: 12,
        vocab_size: 16,
        norm_eps: 1e-5,
        max_context: 64,
        rope,
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![layer],
    };
    crate::testing::Model::random(&config, Format::F32, 3).write_hugging_face(&scene.model()).unwrap();
    scene.sign(&scene.statement());
    scene
}

fn open(scene: &Scene, at_load: &mut dyn FnMut()) -> Result<std::sync::Arc<Model>> {
    let options =
        ModelOptions { threads: Some(1), verify: Some(scene.by_signature()), ..ModelOptions::default() };
    let mut report = |progress: Progress| {
        // The first word of loading: all was verified, and nothing else read.
        if progress.phase == "load" && progress.done == 0 {
            at_load();
        }
    };
    Model::open(scene.model(), &options, &mut Control::none().with_progress(&mut report))
}

#[test]
fn a_model_opens_only_as_it_was_verified() {
    let scene = runnable();
    let weights = scene.model().join("model.safetensors");
    let model = open(&scene, &mut || ()).unwrap();
    assert_eq!(model.info()["verified"]["files"].as_array().unwrap().len(), 2);
    assert_eq!(model.verified().unwrap().signature.as_ref().unwrap().model, "tiny");
    let refused = |scene: &Scene, at_load: &mut dyn FnMut(), part: &str| {
        let error = open(scene, at_load).unwrap_err();
        assert!(matches!(error, Error::Integrity { .. }) && error.to_string().contains(part), "{error}");
    };
    // Swapped, and rewritten in place, between the two.
    let mut other = fs::read(&weights).unwrap();
    *other.last_mut().unwrap() ^= 1;
    refused(
        &scene,
        &mut || {
            fs::write(scene.model().join("other"), &other).unwrap();
            fs::rename(scene.model().join("other"), &weights).unwrap();
        },
        "changed while it was used",
    );
    refused(&scene, &mut || (), "SHA-256");
    let scene = runnable();
    std::thread::sleep(std::time::Duration::from_millis(20)); // more than a tick of the clock of the file system
    refused(
        &scene,
        &mut || fs::write(scene.model().join("model.safetensors"), &other).unwrap(),
        "changed while it was used",
    );
    // What the host ignores is not there for the model either: a tokenizer that nobody signed.
    let scene = runnable();
    let tokenizer = fixture("../tokenizer/small.tekken.json");
    fs::copy(&tokenizer, scene.model().join("tekken.json")).unwrap();
    refused(&scene, &mut || (), "nothing vouches for");
    let verify = VerifyOptions { ignore: vec!["tekken.json".to_owned()], ..scene.by_signature() };
    let options = ModelOptions { threads: Some(1), verify: Some(verify), ..ModelOptions::default() };
    let model = Model::open(scene.model(), &options, &mut Control::none()).unwrap();
    assert!(model.tokenizer().is_err());
}

#[test]
fn a_tokenizer_alone_opens_only_as_it_was_verified() {
    let scene = Scene::new();
    fs::remove_dir_all(scene.model()).unwrap();
    fs::create_dir(scene.model()).unwrap();
    fs::copy(fixture("../tokenizer/small.tekken.json"), scene.model().join("tekken.json")).unwrap();
    let content = fs::read(scene.model().join("tekken.json")).unwrap();
    let manifest = scene.by_manifest().manifest.unwrap();
    fs::write(&manifest, format!("{}  tekken.json\n", hex(&Sha256::digest(&content)))).unwrap();
    let options =
        ModelOptions { weights: false, verify: Some(scene.by_manifest()), ..ModelOptions::default() };
    for path in [scene.model(), scene.model().join("tekken.json")] {
        let model = Model::open(&path, &options, &mut Control::none()).unwrap();
        assert!(model.tokenizer().is_ok() && model.verified().is_some());
    }
    fs::write(scene.model().join("tekken.json"), [&content[..], b" "].concat()).unwrap();
    assert!(matches!(
        Model::open(scene.model(), &options, &mut Control::none()),
        Err(Error::Integrity { .. })
    ));
}
