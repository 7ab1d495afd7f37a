//! Keys of signers: ECDSA on P-256, P-384 and P-521, as the host pins them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Verifier;
use p256::pkcs8::DecodePublicKey;
use sha2::{Digest, Sha256};

use super::hex;
use crate::error::{Error, Result};

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";
/// Characters in a line of PEM (RFC 7468).
const LINE: usize = 64;

/// A public key.
#[derive(Clone, Debug)]
pub(super) struct PublicKey {
    key: Key,
    /// The SHA-256, in hexadecimal digits, of the key as PEM: what signatures call it.
    pub id: String,
}

#[derive(Clone, Debug)]
enum Key {
    P256(p256::ecdsa::VerifyingKey),
    P384(p384::ecdsa::VerifyingKey),
    P521(p521::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo` as PEM. `name` is what errors call it.
    pub fn from_pem(name: &str, pem: &str) -> Result<Self> {
        let bad = |found: &str| Error::argument(name, found, "a public key as PEM (BEGIN PUBLIC KEY)");
        let body = pem.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
        let body = body.ok_or_else(|| bad("text of another kind"))?;
        let body: String = body.split_ascii_whitespace().collect();
        let der = STANDARD.decode(&body).map_err(|_| bad("damaged base64"))?;
        let p256 = || p256::ecdsa::VerifyingKey::from_public_key_der(&der).ok().map(Key::P256);
        let p384 = || p384::ecdsa::VerifyingKey::from_public_key_der(&der).ok().map(Key::P384);
        let p521 = || p521::ecdsa::VerifyingKey::from_public_key_der(&der).ok().map(Key::P521);
        let key = p256().or_else(p384).or_else(p521).ok_or_else(|| {
            Error::argument(name, "a key of another kind", "an ECDSA key on P-256, P-384 or P-521")
        })?;
        Ok(Self { key, id: id(&der) })
    }

    /// The curve.
    pub fn curve(&self) -> &'static str {
        match self.key {
            Key::P256(_) => "P-256",
            Key::P384(_) => "P-384",
            Key::P521(_) => "P-521",
        }
    }

    /// Whether `signature`, in DER, is this key's for `message`, which is hashed with the SHA-2 that goes with the curve.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.key {
            Key::P256(key) => p256::ecdsa::DerSignature::from_bytes(signature)
                .is_ok_and(|s| key.verify(message, &s).is_ok()),
            Key::P384(key) => p384::ecdsa::DerSignature::from_bytes(signature)
                .is_ok_and(|s| key.verify(message, &s).is_ok()),
            Key::P521(key) => p521::ecdsa::DerSignature::from_bytes(signature)
                .is_ok_and(|s| key.verify(message, &s).is_ok()),
        }
    }
}

/// The name of a key: the SHA-256 of the PEM that OpenSSL writes.
fn id(der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut pem = format!("{BEGIN}\n");
    for line in body.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    hex(&Sha256::digest(format!("{pem}{END}\n")))
}
