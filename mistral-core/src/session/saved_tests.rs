//! Saved sessions that are damaged, forged or another's: refused by a typed error, before anything is allocated.

use std::path::Path;
use std::sync::Arc;

use hmac::Mac;

use super::saved::{HEADER, new_mac};
use super::{LoadOptions, MAX_CONTEXT, Session, SessionOptions};
use crate::config::{FeedForwardConfig, LayerConfig, ModelConfig, RopeConfig, RopeScaling, RopeStyle};
use crate::control::Control;
use crate::engine::{Model, ModelOptions};
use crate::error::{Error, Result};
use crate::kernels::{Activation, CacheType};
use crate::quant::Format;
use crate::testing::{self, TempFolder};

const KEY: &[u8] = b"sixteen bytes or";

/// A model of a few weights; `seed` makes another of the same shape. It takes one session at a time.
fn open(seed: u64, options: &ModelOptions) -> Arc<Model> {
    open_with(seed, options, None)
}

fn open_with(seed: u64, options: &ModelOptions, window: Option<usize>) -> Arc<Model> {
    let config = ModelConfig {
        architecture: "llama".to_owned(),
        dim: 8,
        n_heads: 2,
        n_kv_heads: 1,
        head_dim: 4,
        hidden_dim: 12,
        vocab_size: 16,
        norm_eps: 1e-5,
        max_context: 64,
        rope: RopeConfig { theta: 1e4, style: RopeStyle::Interleaved, scaling: RopeScaling::None },
        query_scaling: None,
        tied_embeddings: false,
        layers: vec![LayerConfig { window, feed_forward: FeedForwardConfig::Dense }; 1],
    };
    let folder =
        TempFolder::new_in(Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tmp").as_path()).unwrap();
    let path = folder.path().join("tiny.gguf");
    testing::Model::random(&config, Format::F32, seed).gguf().write(&path).unwrap();
    let options = ModelOptions { threads: Some(1), max_sessions: Some(1), ..options.clone() };
    // The file may go: its map stays.
    Model::open(&path, &options, &mut Control::none()).unwrap()
}

fn model() -> Arc<Model> {
    open(1, &ModelOptions::default())
}

/// A session of three tokens, saved.
fn saved(model: &Arc<Model>, key: Option<&[u8]>) -> Vec<u8> {
    let options = SessionOptions { context: Some(8), ..SessionOptions::default() };
    let mut session = model.session(&options).unwrap();
    session.prefill(&[1, 2, 3], &mut Control::none()).unwrap();
    session.save(key, &mut Control::none()).unwrap()
}

fn load(model: &Arc<Model>, blob: &[u8], key: Option<&[u8]>) -> Result<Session> {
    let options = LoadOptions { key, ..LoadOptions::default() };
    Session::load(Arc::clone(model), blob, &options, &mut Control::none())
}

fn is_refused(result: Result<Session>, what: &str) {
    match result.map(drop) {
        Err(Error::Integrity { .. } | Error::Format { .. } | Error::Unsupported { .. }) => {}
        other => panic!("{what}: {other:?}"),
    }
}

/// `blob` with `change` made, and a right tag: what someone without a key can write who knows the format.
fn forged(blob: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut body = blob[..blob.len() - 32].to_vec();
    change(&mut body);
    let mut mac = new_mac(None).unwrap();
    mac.update(&body);
    body.extend_from_slice(&mac.finalize().into_bytes());
    body
}

#[test]
fn every_bit_counts() {
    let model = model();
    for key in [None, Some(KEY)] {
        let mut blob = saved(&model, key);
        for at in 0..blob.len() * 8 {
            blob[at / 8] ^= 1 << (at % 8);
            is_refused(load(&model, &blob, key), &format!("bit {at}"));
            blob[at / 8] ^= 1 << (at % 8);
        }
        assert_eq!(load(&model, &blob, key).unwrap().tokens(), [1, 2, 3]);
    }
}

#[test]
fn every_cut_is_found() {
    let model = model();
    let blob = saved(&model, None);
    for length in 0..blob.len() {
        is_refused(load(&model, &blob[..length], None), &format!("{length} bytes"));
        // And with a tag that fits what is left.
        if length >= 32 {
            let cut = forged(&blob[..length], |_| ());
            is_refused(load(&model, &cut, None), &format!("{length} forged bytes"));
        }
    }
    is_refused(load(&model, &[&blob[..], &[0]].concat(), None), "one byte more");
    is_refused(load(&model, &forged(&blob, |body| body.push(0)), None), "one forged byte more");
}

#[test]
fn another_key_or_none_is_refused() {
    let model = model();
    let (open, closed) = (saved(&model, None), saved(&model, Some(KEY)));
    let integrity = |result: Result<Session>| {
        let error = result.map(drop).unwrap_err();
        assert!(matches!(error, Error::Integrity { .. }), "{error}");
        error.to_string()
    };
    integrity(load(&model, &closed, Some(b"another sixteen!")));
    assert!(integrity(load(&model, &closed, None)).contains("with a key"));
    // Who cannot make a tag with the key could leave the key out.
    assert!(integrity(load(&model, &open, Some(KEY))).contains("without a key"));
    integrity(load(&model, &forged(&closed, |body| body[12] = 1), Some(KEY)));
    for result in [load(&model, &open, Some(b"fifteen bytes !")).map(drop), {
        model.session(&SessionOptions::default()).unwrap().save(Some(b""), &mut Control::none()).map(drop)
    }] {
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains("`key`") && message.contains("16") && !message.contains("fifteen"),
            "{message}"
        );
    }
}

#[test]
fn another_model_is_refused() {
    let model = model();
    let blob = saved(&model, None);
    let error = load(&open(2, &ModelOptions::default()), &blob, None).unwrap_err();
    assert!(
        matches!(error, Error::Integrity { .. }) && error.to_string().contains("another model"),
        "{error}"
    );
    for options in [
        ModelOptions { activation: Activation::F32, ..ModelOptions::default() },
        ModelOptions { quantize: Some(Format::Q8_0), ..ModelOptions::default() },
        ModelOptions { device: "ndarray".to_owned(), ..ModelOptions::default() },
    ] {
        let error = load(&open(1, &options), &blob, None).unwrap_err();
        assert!(
            matches!(error, Error::Integrity { .. }) && error.to_string().contains("settings"),
            "{error}"
        );
    }
    // The same files elsewhere are the same model.
    load(&open(1, &ModelOptions::default()), &blob, None).unwrap();
    let wanted = LoadOptions { cache_type: Some(CacheType::F32), ..LoadOptions::default() };
    let error = Session::load(Arc::clone(&model), &blob, &wanted, &mut Control::none()).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
}

/// Found by fuzzing: where windows are short the cache of millions of positions is small, and the room for their tokens is not.
#[test]
fn a_saved_context_takes_no_more_than_max_memory() {
    let model = open_with(1, &ModelOptions { max_memory: Some(1 << 20), ..ModelOptions::default() }, Some(4));
    let blob = saved(&model, None);
    let with_context = |context: u64| {
        forged(&blob, |body| body[HEADER - 32..HEADER - 24].copy_from_slice(&context.to_le_bytes()))
    };
    load(&model, &with_context(1 << 16), None).unwrap();
    let error = load(&model, &with_context(1 << 20), None).unwrap_err();
    assert!(matches!(error, Error::Limit { .. }) && error.to_string().contains("max_memory"), "{error}");
}

#[test]
fn another_version_is_named() {
    let model = model();
    let newer = forged(&saved(&model, None), |body| body[8] = 2);
    let message = load(&model, &newer, None).unwrap_err().to_string();
    assert!(message.contains("version") && message.contains('2'), "{message}");
    let message = load(&model, b"not a session at all, but text", None).unwrap_err().to_string();
    assert!(message.contains("the saved session"), "{message}");
    let other = forged(&saved(&model, None), |body| body[0] = b'X');
    assert!(matches!(load(&model, &other, None), Err(Error::Format { .. })));
}

/// Numbers that do not fit the model, each other or the length, with a right tag.
#[test]
fn hostile_numbers_are_refused() {
    let model = model();
    let blob = saved(&model, None);
    for (field, name) in ["type", "context", "tokens", "evaluated", "written"].iter().enumerate() {
        let at = HEADER - 40 + 8 * field;
        let old = u64::from_le_bytes(blob[at..at + 8].try_into().unwrap());
        for new in
            [0, 1, 2, 7, 9, 64, 1 << 24, (1 << 24) + 1, 1 << 31, 1 << 32, 1 << 62, u64::MAX / 2, u64::MAX]
        {
            let hostile = forged(&blob, |body| body[at..at + 8].copy_from_slice(&new.to_le_bytes()));
            match load(&model, &hostile, None).map(drop) {
                Err(Error::Format { .. }) => {}
                // Another context, and more that was written once, are possible.
                Ok(()) if *name == "context" && (3..=MAX_CONTEXT as u64).contains(&new) => {}
                Ok(()) if *name == "written" && (3..=8).contains(&new) => {}
                Ok(()) if new == old => {}
                other => panic!("{name} {old} -> {new}: {other:?}"),
            }
        }
    }
    for token in [16u32, u32::MAX] {
        let hostile =
            forged(&blob, |body| body[HEADER + 4..HEADER + 8].copy_from_slice(&token.to_le_bytes()));
        let message = load(&model, &hostile, None).unwrap_err().to_string();
        assert!(message.contains("token 1") && message.contains(&token.to_string()), "{message}");
    }
    // Keys that are no numbers are found where they give logits.
    let hostile = forged(&blob, |body| body[HEADER + 12..].fill(0xff));
    let mut session = load(&model, &hostile, None).unwrap();
    assert!(matches!(session.prefill(&[1], &mut Control::none()), Err(Error::Format { .. })));
}

/// RFC 4231, test case 1.
#[test]
fn the_tag_is_hmac_sha_256() {
    let mut mac = new_mac(Some(&[0x0b; 20])).unwrap();
    mac.update(b"Hi There");
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
}
