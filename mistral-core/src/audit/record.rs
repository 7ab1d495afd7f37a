//! Records: one line of canonical JSON each (RFC 8785), chained by their hashes.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::provenance::{hex, unhex};

/// What comes before the first record.
pub(super) const GENESIS: [u8; 32] = [0; 32];
/// Integers beyond this are not exact in every reader of JSON.
pub(super) const MAX_INTEGER: u64 = 1 << 53;

/// A place in a chain: a record and all that come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub seq: u64,
    pub hash: [u8; 32],
}

/// The number that comes after a link.
pub(super) fn next_seq(last: Option<Link>) -> u64 {
    last.map_or(0, |link| link.seq + 1)
}

/// Makes of `fields` the record that follows `last`: its line, and its link.
pub(super) fn seal(mut fields: Map<String, Value>, last: Option<Link>) -> (String, Link) {
    let prev = last.map_or(GENESIS, |link| link.hash);
    let seq = next_seq(last);
    fields.insert("seq".to_owned(), seq.into());
    fields.insert("prev_hash".to_owned(), hex(&prev).into());
    let mut record = Value::Object(fields);
    let hash = hash(&prev, &canonical(&record).unwrap_or_default());
    record["hash"] = hex(&hash).into();
    let line = canonical(&record).unwrap_or_default() + "\n";
    (line, Link { seq, hash })
}

/// Reads the line of a record, without its end; `Err` says what is wrong with it. What it follows is for the caller to check.
pub(super) fn unseal(line: &[u8]) -> Result<(Map<String, Value>, Link), &'static str> {
    let record: Value = serde_json::from_slice(line).map_err(|_| "a line that is not JSON")?;
    if canonical(&record).is_none_or(|text| text.as_bytes() != line) {
        return Err("a line that is not canonical");
    }
    let Value::Object(mut fields) = record else { return Err("a line that is no record") };
    let claimed = fields.shift_remove("hash").as_ref().and_then(Value::as_str).and_then(unhex);
    let prev = fields.get("prev_hash").and_then(Value::as_str).and_then(unhex);
    let (Some(claimed), Some(prev), Some(seq)) = (claimed, prev, fields.get("seq").and_then(Value::as_u64))
    else {
        return Err("a record without seq, prev_hash and hash");
    };
    let rest = Value::Object(fields);
    if hash(&prev, &canonical(&rest).unwrap_or_default()) != claimed {
        return Err("a record that does not have its hash");
    }
    let Value::Object(fields) = rest else { return Err("a line that is no record") };
    Ok((fields, Link { seq, hash: claimed }))
}

/// How records begin: with the least of the keys of what runs, and of a repair.
const BEGINNINGS: [&[u8]; 2] = [br#"{"adapter_digests":["#, br#"{"dropped_bytes":"#];

/// Whether `torn`, which ends too early for a record, may be the beginning of one.
pub(super) fn may_begin(torn: &[u8]) -> bool {
    BEGINNINGS.iter().any(|start| start.iter().zip(torn).all(|(a, b)| a == b))
}

fn hash(prev: &[u8; 32], canonical: &str) -> [u8; 32] {
    Sha256::new().chain_update(prev).chain_update(canonical).finalize().into()
}

/// The canonical form of RFC 8785. `None` for numbers that records do not hold: fractions and large integers are text in them, so that
/// no reader rounds them.
pub(super) fn canonical(value: &Value) -> Option<String> {
    let mut text = String::new();
    write(&mut text, value)?;
    Some(text)
}

fn write(out: &mut String, value: &Value) -> Option<()> {
    match value {
        Value::Number(number) => {
            let exact = number.as_i64().is_some_and(|n| n.unsigned_abs() <= MAX_INTEGER);
            out.push_str(&number.as_i64().filter(|_| exact)?.to_string());
        }
        Value::Array(list) => {
            out.push('[');
            for (i, value) in list.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write(out, value)?;
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            // As JavaScript compares strings.
            entries.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            out.push('{');
            for (i, (key, value)) in entries.into_iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                write(out, &Value::String(key.clone()))?;
                out.push(':');
                write(out, value)?;
            }
            out.push('}');
        }
        // What serde_json escapes, and how, is what the RFC says.
        plain => out.push_str(&plain.to_string()),
    }
    Some(())
}
