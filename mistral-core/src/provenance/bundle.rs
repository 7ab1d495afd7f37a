//! Signatures of OpenSSF Model Signing, verified offline: a Sigstore bundle (v0.3) around a DSSE envelope around an in-toto statement
//! (v1) whose predicate lists the files (`https://model_signing/signature/v1.0`).
//!
//! Nothing that the bundle says is believed before its signature was verified with a key that the host pinned; and of what was
//! signed, only the digests are: `ignore_paths` and `allow_symlinks` excuse nothing.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use sha2::{Digest, Sha256};

use super::keys::PublicKey;
use super::{Claim, Expected, hex, unhex};
use crate::error::{Error, Result};

const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

/// What a signature vouches for.
#[derive(Debug)]
pub(super) struct Signed {
    pub claim: Claim,
    /// What the signer calls the model.
    pub model: String,
    /// The key that made it.
    pub key: PublicKey,
    /// What the signer left out.
    pub ignore_paths: Vec<String>,
}

// Unknown fields are refused outside of the signature: nothing there is without effect that looks as if it had one.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Option<Envelope>,
    message_signature: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Material {
    public_key: Option<KeyName>,
    certificate: Option<IgnoredAny>,
    x509_certificate_chain: Option<IgnoredAny>,
    #[serde(rename = "tlogEntries")]
    _tlog_entries: Option<IgnoredAny>,
    #[serde(rename = "timestampVerificationData")]
    _timestamps: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KeyName {
    hint: Option<String>,
    #[serde(rename = "rawBytes")]
    _raw_bytes: Option<IgnoredAny>,
    #[serde(rename = "keyDetails")]
    _key_details: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signature {
    sig: String,
    #[serde(rename = "keyid")]
    _keyid: Option<String>,
}

/// The head of an in-toto statement; what a predicate is depends on its type.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(rename = "_type")]
    kind: String,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Statement {
    subject: Vec<Subject>,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: String,
    digest: SubjectDigest,
}

#[derive(Deserialize)]
struct SubjectDigest {
    sha256: String,
}

#[derive(Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

/// Verifies the bundle `file` with one of `keys`. Where the model is a file, `own_name` is its name.
///
/// # Errors
/// [`Error::Format`] for what is no bundle, [`Error::Signature`] for one that no key of the host has made or that signs something else,
/// [`Error::Unsupported`] for the kinds of bundles that need more than a key.
pub(super) fn open(file: &str, bytes: &[u8], keys: &[PublicKey], own_name: Option<&str>) -> Result<Signed> {
    let bundle: Bundle = read(file, "bundle", bytes)?;
    if bundle.media_type != MEDIA_TYPE {
        return Err(Error::format(file, "mediaType", bundle.media_type, MEDIA_TYPE));
    }
    let (key, payload) = verified_payload(file, bundle, keys)?;
    let head: Head = read(file, "payload", &payload)?;
    if head.kind != STATEMENT_TYPE {
        return Err(Error::signature(file, format!("the statement type {}", head.kind), STATEMENT_TYPE));
    }
    if head.predicate_type != PREDICATE_TYPE {
        let found = format!("the predicate type {}", head.predicate_type);
        return Err(Error::signature(file, found, PREDICATE_TYPE));
    }
    let Statement { subject, predicate } = read(file, "payload", &payload)?;
    let Ok([subject]) = <[Subject; 1]>::try_from(subject) else {
        return Err(Error::format(file, "subject", "not one subject", "one: the model"));
    };
    let claim = claim(file, &subject.digest.sha256, &predicate, own_name)?;
    let ignore_paths = predicate.serialization.ignore_paths;
    Ok(Signed { claim, model: subject.name, key, ignore_paths })
}

/// The payload, once a key of the host has vouched for it.
fn verified_payload(file: &str, bundle: Bundle, keys: &[PublicKey]) -> Result<(PublicKey, Vec<u8>)> {
    let material = bundle.verification_material;
    let needs =
        |what: &str| Error::unsupported(format!("signature in {file}"), what, "one made with a bare key");
    if material.certificate.is_some() || material.x509_certificate_chain.is_some() {
        return Err(needs("one made with a certificate"));
    }
    if bundle.message_signature.is_some() {
        return Err(needs("a signature of a message"));
    }
    let missing =
        |key: &str| Error::format(file, key, "no such field", "a bundle with a public key and an envelope");
    let envelope = bundle.dsse_envelope.ok_or_else(|| missing("dsseEnvelope"))?;
    let hint = material.public_key.ok_or_else(|| missing("verificationMaterial.publicKey"))?.hint;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(Error::signature(
            file,
            format!("the payload type {}", envelope.payload_type),
            PAYLOAD_TYPE,
        ));
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(Error::signature(file, format!("{} signatures", envelope.signatures.len()), "one"));
    };
    let decode =
        |key: &str, text: &str| STANDARD.decode(text).map_err(|e| Error::format(file, key, e, "base64"));
    let payload = decode("payload", &envelope.payload)?;
    let signature = decode("sig", &signature.sig)?;
    let named = |key: &&PublicKey| hint.as_ref().is_none_or(|hint| *hint == key.id);
    let mut candidates = keys.iter().filter(named).peekable();
    if candidates.peek().is_none() {
        return Err(Error::signature(file, "one made with another key", "one of a key that the host pins"));
    }
    let message = pre_authentication_encoding(&payload);
    match candidates.find(|key| key.verifies(&message, &signature)) {
        Some(key) => Ok((key.clone(), payload)),
        None => Err(Error::signature(file, "one that does not fit", "that of the key for this payload")),
    }
}

/// What DSSE signs: type and payload with their lengths.
fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// The files of the predicate, whose digests must have `subject` as theirs.
fn claim(file: &str, subject: &str, predicate: &Predicate, own_name: Option<&str>) -> Result<Claim> {
    if predicate.serialization.method != "files" {
        let found = format!("{} in {file}", predicate.serialization.method);
        return Err(Error::unsupported("serialization of a signed model", found, "files"));
    }
    let (mut entries, mut all) = (Vec::new(), Sha256::new());
    for Resource { name, algorithm, digest } in &predicate.resources {
        if algorithm != "sha256" {
            let found = format!("{algorithm} in {file}");
            return Err(Error::unsupported("digest of a signed file", found, "sha256"));
        }
        let bad = || Error::format(file, name, "no digest", "a SHA-256: 64 hexadecimal digits");
        let sha256 = unhex(digest).ok_or_else(bad)?;
        all.update(sha256);
        entries.push((name.clone(), Expected { sha256, bytes: None }));
    }
    let all = hex(&all.finalize());
    if subject != all {
        let what = format!("signature in {file}: digest of the subject");
        return Err(Error::integrity(what, subject, format!("{all}, that of the resources")));
    }
    // A model of one file is signed as the path from it to itself.
    if let [(name, _)] = entries.as_mut_slice()
        && name == "."
    {
        let expected = "that of the files in a folder";
        let own_name = own_name.ok_or_else(|| Error::signature(file, "that of a single file", expected))?;
        own_name.clone_into(name);
    }
    Claim::new(file, entries)
}

fn read<T: DeserializeOwned>(file: &str, part: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|e| Error::format(file, part, e, "a Sigstore bundle of OpenSSF Model Signing"))
}
