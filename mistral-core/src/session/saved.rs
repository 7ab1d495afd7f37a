//! A session as bytes: its tokens, and the keys and values of the positions in use.
//!
//! | bytes | what (numbers are little-endian) |
//! |---|---|
//! | 0..8 | `MISTRALS` |
//! | 8..12 | the version of this layout |
//! | 12..16 | 1 if the host gave a key, else 0 |
//! | 16..48 | [`Model::digest`] |
//! | 48..80 | SHA-256 of everything else that the keys and values depend on: shape, device, `quantize`, `activation` |
//! | 80..88 | type of the cache: 0 f16, 1 f32, 2 q8_0 |
//! | 88..120 | context, tokens, evaluated tokens, positions that were ever written |
//! | then | the tokens, four bytes each |
//! | then | the positions that are held: of each layer keys, then values, `[n_kv_heads, positions, head_dim]` |
//! | last 32 | HMAC-SHA-256 (RFC 2104) of all before, under the host's key, or a public one that only detects damage |
//!
//! Reading believes nothing before the last 32 bytes are right, and allocates nothing before every number was held against the model.

use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::{MAX_CONTEXT, PREFILL_CHUNK, Session, SessionOptions};
use crate::cache::KvCache;
use crate::control::Control;
use crate::engine::Model;
use crate::error::{Error, Result};
use crate::kernels::CacheType;

const MAGIC: &[u8; 8] = b"MISTRALS";
/// Changes with the layout of the bytes, and with what the keys and values of a model are: the order of the rotation, [`PREFILL_CHUNK`].
const VERSION: u32 = 1;
pub(super) const HEADER: usize = 120;
const TAG: usize = 32;
/// Bytes of a key at least.
const MIN_KEY: usize = 16;
const PUBLIC_KEY: &[u8] = b"a mistral session without a key";
/// Their numbers in a saved session.
const CACHE_TYPES: [CacheType; 3] = [CacheType::F16, CacheType::F32, CacheType::Q8_0];
/// What errors call the bytes.
const BLOB: &str = "the saved session";

/// How a saved session is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions<'a> {
    /// Positions; `None`: as many as the session had.
    pub context: Option<usize>,
    /// The type that the cache must have; `None`: whichever it has.
    pub cache_type: Option<CacheType>,
    /// The key that it was saved with.
    pub key: Option<&'a [u8]>,
}

/// The numbers of a saved session.
struct Shape {
    cache_type: CacheType,
    context: usize,
    tokens: usize,
    evaluated: usize,
    written: usize,
}

impl Session {
    /// The session as bytes, for [`Session::load`]: tokens, and the keys and values of the positions in use; not the logits, which the last
    /// token gives again, nor the state of [`Session::sample`]. They are bound to the model ([`Model::digest`], which the first call
    /// computes: it reads all files) and authenticated with `key`, of at least 16 bytes. Without one, damage is found, and forgery is not.
    /// The bytes hold the conversation, and are not encrypted.
    ///
    /// # Errors
    /// [`Error::Argument`] for a short key, [`Error::Cancelled`], [`Error::Limit`] where memory ends, [`Error::Device`].
    pub fn save(&self, key: Option<&[u8]>, control: &mut Control<'_>) -> Result<Vec<u8>> {
        self.check_whole()?;
        let mut mac = new_mac(key)?;
        let shape = Shape {
            cache_type: self.cache_type,
            context: self.cache.capacity,
            tokens: self.tokens.len(),
            evaluated: self.cache.len,
            written: self.cache.written,
        };
        let digest = self.model.digest(control)?;
        let len = shape.len(&self.model)?;
        let mut out = Vec::new();
        // One more, for hosts that put a NUL behind it.
        let given = out.try_reserve_exact(len + 1);
        given.map_err(|_| Error::limit("saved session", format!("{len} bytes"), "what the system has"))?;
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u32::from(key.is_some()).to_le_bytes());
        out.extend_from_slice(&digest);
        out.extend_from_slice(&settings(&self.model)?);
        let Shape { cache_type, context, tokens, evaluated, written } = shape;
        let number = CACHE_TYPES.iter().position(|known| *known == cache_type).unwrap_or_default();
        let numbers = [number, context, tokens, evaluated, written];
        numbers.iter().for_each(|&number| out.extend_from_slice(&(number as u64).to_le_bytes()));
        self.tokens.iter().for_each(|token| out.extend_from_slice(&token.to_le_bytes()));
        self.cache.read(&mut out)?;
        mac.update(&out);
        out.extend_from_slice(&mac.finalize().into_bytes());
        Ok(out)
    }

    /// The session that [`Session::save`] gave `blob` of, on the same model, opened with the same options. It goes on bit for bit as the
    /// saved one; the last token is evaluated again with what comes next.
    ///
    /// # Errors
    /// [`Error::Format`] for what is no saved session, [`Error::Unsupported`] for one of another version or type of cache,
    /// [`Error::Integrity`] for one that is damaged, was saved with another key, or belongs to another model, each before anything is
    /// allocated; [`Error::ContextFull`] if `context` is too small, and as [`Session::new`].
    pub fn load(
        model: Arc<Model>,
        blob: &[u8],
        options: &LoadOptions<'_>,
        control: &mut Control<'_>,
    ) -> Result<Self> {
        let body = authenticate(blob, options.key)?;
        if body[16..48] != model.digest(control)? {
            return Err(Error::integrity(BLOB, "one of another model", "one of this model's files"));
        }
        if body[48..80] != settings(&model)? {
            let expected = "one of this model on this device, with these options";
            return Err(Error::integrity(BLOB, "one of the model with other settings", expected));
        }
        let shape = Shape::read(&body[80..HEADER])?;
        if options.cache_type.is_some_and(|wanted| wanted != shape.cache_type) {
            let found = format!("another than that of {BLOB}");
            return Err(Error::unsupported("cache type", found, shape.cache_type.name()));
        }
        let expected = shape.len(&model)?;
        if blob.len() != expected {
            return Err(Error::format(BLOB, "its length", blob.len(), format!("{expected} bytes")));
        }
        let (tokens, rows) = body[HEADER..].split_at(4 * shape.tokens);
        let context = options.context.unwrap_or(shape.context);
        // The last token may wait for a position.
        if shape.tokens.max(1) - 1 > context || shape.evaluated > context {
            return Err(Error::ContextFull { needed: shape.tokens, capacity: context });
        }
        let vocab_size = model.vocab_size();
        let tokens = tokens.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        if let Some((i, token)) = tokens.clone().enumerate().find(|(_, id)| *id as usize >= vocab_size) {
            return Err(Error::format(BLOB, format!("token {i}"), token, format!("one below {vocab_size}")));
        }
        let new = SessionOptions { context: Some(context), cache_type: shape.cache_type };
        let mut session = Self::new(model, &new)?;
        session.tokens.extend(tokens);
        session.restore(&shape, rows)?;
        Ok(session)
    }

    fn restore(&mut self, shape: &Shape, rows: &[u8]) -> Result<()> {
        let config = &self.model.weights()?.config;
        let stored = (shape.evaluated, shape.written);
        self.cache.write_all(KvCache::held(config, shape.context, PREFILL_CHUNK, stored), rows);
        (self.cache.len, self.cache.written) = stored;
        // Logits are not stored: the last token gives them.
        self.cache.rewind(shape.evaluated.min(shape.tokens.saturating_sub(1)));
        Ok(())
    }
}

impl Shape {
    fn read(bytes: &[u8]) -> Result<Self> {
        let mut numbers = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes));
        let mut next = |name: &str, least: usize, most: usize| {
            let found = numbers.next().unwrap_or_default();
            let fits = usize::try_from(found).ok().filter(|n| (least..=most).contains(n));
            fits.ok_or_else(|| Error::format(BLOB, name, found, format!("{least} to {most}")))
        };
        let cache_type = CACHE_TYPES[next("type of the cache", 0, CACHE_TYPES.len() - 1)?];
        let context = next("context", 1, MAX_CONTEXT)?;
        let tokens = next("tokens", 0, context + 1)?;
        let evaluated = next("evaluated tokens", 0, tokens.min(context))?;
        let written = next("written positions", evaluated, context)?;
        Ok(Self { cache_type, context, tokens, evaluated, written })
    }

    /// Bytes of a saved session of this shape.
    fn len(&self, model: &Model) -> Result<usize> {
        let config = &model.weights()?.config;
        let held = KvCache::held(config, self.context, PREFILL_CHUNK, (self.evaluated, self.written));
        let position = 2 * config.n_kv_heads * self.cache_type.row_bytes(config.head_dim);
        let rows = held
            .map(|positions| positions.len())
            .try_fold(0usize, |sum, count| sum.checked_add(count.checked_mul(position)?));
        let all = rows.and_then(|rows| rows.checked_add(HEADER + 4 * self.tokens + TAG));
        all.ok_or_else(|| Error::limit("saved session", "its positions", "what fits into the address space"))
    }
}

/// The bytes before the tag, if that is right.
fn authenticate<'a>(blob: &'a [u8], key: Option<&[u8]>) -> Result<&'a [u8]> {
    let mut mac = new_mac(key)?;
    let Some((body, tag)) = blob.split_last_chunk::<TAG>().filter(|(body, _)| body.len() >= HEADER) else {
        let expected = format!("at least {} bytes", HEADER + TAG);
        return Err(Error::format(BLOB, "its length", blob.len(), expected));
    };
    if &body[..8] != MAGIC {
        return Err(Error::format(BLOB, "its first bytes", "something else", "those of a saved session"));
    }
    let number = |at: usize| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
    if number(8) != VERSION {
        return Err(Error::unsupported("version of a saved session", number(8), VERSION));
    }
    let with_key = number(12) != 0;
    if with_key != key.is_some() {
        let [found, expected] =
            [with_key, key.is_some()].map(|with| if with { "one with a key" } else { "one without a key" });
        return Err(Error::integrity(BLOB, found, expected));
    }
    mac.update(body);
    // In constant time.
    match mac.verify_slice(tag) {
        Ok(()) => Ok(body),
        Err(_) => Err(Error::integrity(BLOB, "another digest", "the digest of its contents under this key")),
    }
}

pub(super) fn new_mac(key: Option<&[u8]>) -> Result<Hmac<Sha256>> {
    if let Some(key) = key.filter(|key| key.len() < MIN_KEY) {
        return Err(Error::argument(
            "key",
            format!("{} bytes", key.len()),
            format!("at least {MIN_KEY} bytes"),
        ));
    }
    let made = Hmac::new_from_slice(key.unwrap_or(PUBLIC_KEY));
    made.map_err(|e| Error::Internal(format!("a key of any length is one: {e}")))
}

/// What keys and values depend on beside the files. The shape is written as this version of the library describes it.
fn settings(model: &Model) -> Result<[u8; 32]> {
    let (config, options) = (&model.weights()?.config, model.options());
    let device = &model.device().name;
    let all = format!("{config:?} {device} {:?} {:?}", options.quantize, options.activation);
    Ok(Sha256::digest(all).into())
}
