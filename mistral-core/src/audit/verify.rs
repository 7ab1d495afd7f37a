//! Whether a log is whole.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::record::{self, GENESIS, Link};
use super::{AuditKey, Checkpoint, MAX_LINE, files};
use crate::control::{Control, Progress};
use crate::error::{Error, Result};
use crate::provenance::hex;

/// What a log is verified against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditVerifyOptions {
    /// The log must have these records. One may be the record before the oldest that was kept.
    pub checkpoints: Vec<Checkpoint>,
    /// The key that must have signed the checkpoints.
    pub checkpoint_key: Option<AuditKey>,
    /// The log may end in the beginning of a record, as a crash leaves it.
    pub allow_incomplete: bool,
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditReport {
    /// The log.
    pub path: PathBuf,
    /// Its files.
    pub files: usize,
    /// Records in it.
    pub records: u64,
    /// The number of the first; 0 unless older files were removed.
    pub first_seq: u64,
    /// The last record: keep it to find out later whether the log was cut.
    pub last: Checkpoint,
    /// Bytes of a record that was not finished, if the options allow it.
    pub incomplete_bytes: u64,
    /// The `begin` records that have no `end`: calls that run, or ran when the process died.
    pub unfinished: Vec<u64>,
}

impl AuditReport {
    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        json!({
            "path": self.path.display().to_string(), "files": self.files, "records": self.records,
            "first_seq": self.first_seq, "checkpoint": self.last.to_json(),
            "incomplete_bytes": self.incomplete_bytes, "unfinished": self.unfinished,
        })
    }
}

/// Verifies the log at `path` and the files that were rotated away from it. Progress counts bytes in the phase `"audit"`.
///
/// Without a checkpoint, records that were cut off at the end and a chain that was computed anew from some record on cannot be told from a
/// log that ends there, or was always so.
///
/// # Errors
/// [`Error::Integrity`] names the file and line where the chain breaks, and the checkpoint that does not hold; [`Error::Signature`] for a
/// checkpoint that the key has not signed; [`Error::Argument`] for a key without checkpoints; [`Error::Io`], which is also that of what is no
/// regular file; [`Error::Cancelled`].
pub fn verify(
    path: impl AsRef<Path>,
    options: &AuditVerifyOptions,
    control: &mut Control<'_>,
) -> Result<AuditReport> {
    let path = path.as_ref();
    check_signatures(options)?;
    let files = files::all(path)?;
    let length = |path: &PathBuf| Ok(std::fs::metadata(path).map_err(|e| Error::io(path, e))?.len());
    let total = files.iter().map(length).sum::<Result<u64>>()?;
    let (mut chain, mut done, mut incomplete) = (Chain::new(options), 0, 0);
    for (number, file) in files.iter().enumerate() {
        let reader = files::open(file).map_err(|e| Error::io(file, e))?;
        let is_last = number + 1 == files.len();
        incomplete =
            chain.scan(file, &mut BufReader::with_capacity(1 << 16, reader), is_last, &mut |read| {
                done += read;
                control.step(Progress { phase: "audit", done, total: total.max(done) })
            })?;
    }
    let last = chain.finish(path)?;
    Ok(AuditReport {
        path: path.to_owned(),
        files: files.len(),
        records: chain.records,
        first_seq: chain.first_seq,
        last: Checkpoint { seq: last.seq, hash: last.hash, mac: None },
        incomplete_bytes: incomplete,
        unfinished: chain.unfinished.into_iter().collect(),
    })
}

fn check_signatures(options: &AuditVerifyOptions) -> Result<()> {
    let Some(key) = &options.checkpoint_key else { return Ok(()) };
    if options.checkpoints.is_empty() {
        return Err(Error::argument("checkpoint_key", "a key without checkpoints", "both or none"));
    }
    match options.checkpoints.iter().position(|checkpoint| !checkpoint.is_of(key)) {
        Some(i) => {
            Err(Error::signature(format!("checkpoints[{i}]"), "none that fits", "the HMAC under the key"))
        }
        None => Ok(()),
    }
}

/// The records that were read so far.
pub(super) struct Chain<'a> {
    options: &'a AuditVerifyOptions,
    last: Option<Link>,
    first_seq: u64,
    records: u64,
    unfinished: BTreeSet<u64>,
}

impl<'a> Chain<'a> {
    pub fn new(options: &'a AuditVerifyOptions) -> Self {
        Self { options, last: None, first_seq: 0, records: 0, unfinished: BTreeSet::new() }
    }

    /// Reads a file; returns the bytes of a record at its end that is not whole. `step` is told of the bytes that were read.
    pub fn scan(
        &mut self,
        file: &Path,
        reader: &mut dyn BufRead,
        is_last: bool,
        step: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<u64> {
        let (mut line, mut count, mut unreported) = (Vec::new(), 0, 0);
        loop {
            line.clear();
            let mut part = Read::take(&mut *reader, MAX_LINE);
            let read = part.read_until(b'\n', &mut line).map_err(|e| Error::io(file, e))? as u64;
            count += 1;
            unreported += read;
            if read == 0 || count % 64 == 0 {
                step(std::mem::take(&mut unreported))?;
            }
            if read == 0 {
                return Ok(0);
            }
            let place = || format!("{}: line {count}", file.display());
            match line.strip_suffix(b"\n") {
                Some(record) => self.add(record, &place)?,
                None if is_last && self.options.allow_incomplete && record::may_begin(&line) => {
                    return Ok(read);
                }
                None => {
                    let found = format!("{read} bytes without an end of line");
                    return Err(Error::integrity(place(), found, "a whole record"));
                }
            }
        }
    }

    fn add(&mut self, line: &[u8], place: &dyn Fn() -> String) -> Result<()> {
        let (fields, link) = record::unseal(line)
            .map_err(|what| Error::integrity(place(), what, "a record as it was written"))?;
        let prev = fields.get("prev_hash").and_then(Value::as_str).unwrap_or_default();
        if self.last.is_none() && link.seq > 0 {
            self.begin_at(link.seq, prev, place)?;
        }
        let expected = self.last.map_or(GENESIS, |last| last.hash);
        if link.seq != record::next_seq(self.last) || prev != hex(&expected) {
            let wanted = record::next_seq(self.last);
            return Err(Error::integrity(
                place(),
                format!("record {}", link.seq),
                format!("record {wanted} of the chain"),
            ));
        }
        for checkpoint in self.options.checkpoints.iter().filter(|c| c.seq == link.seq) {
            if checkpoint.hash != link.hash {
                let found = format!("another record {}", link.seq);
                return Err(Error::integrity(place(), found, "the one of the checkpoint"));
            }
        }
        self.note(&fields, link.seq);
        self.last = Some(link);
        self.records += 1;
        Ok(())
    }

    /// Begins with a record that is not the first: a checkpoint must say what came before.
    fn begin_at(&mut self, seq: u64, prev: &str, place: &dyn Fn() -> String) -> Result<()> {
        let before = self.options.checkpoints.iter().find(|c| c.seq + 1 == seq && hex(&c.hash) == prev);
        let Some(before) = before else {
            let expected = "record 0, or the record after a checkpoint";
            return Err(Error::integrity(place(), format!("record {seq} at the beginning"), expected));
        };
        self.last = Some(Link { seq: before.seq, hash: before.hash });
        self.first_seq = seq;
        Ok(())
    }

    fn note(&mut self, fields: &Map<String, Value>, seq: u64) {
        match fields.get("event").and_then(Value::as_str) {
            Some("begin") => _ = self.unfinished.insert(seq),
            Some("end") => {
                if let Some(begin) = fields.get("begin_seq").and_then(Value::as_u64) {
                    self.unfinished.remove(&begin);
                }
            }
            _ => {}
        }
    }

    pub fn finish(&self, path: &Path) -> Result<Link> {
        let Some(last) = self.last.filter(|_| self.records > 0) else {
            return Err(Error::integrity(path.display(), "no record", "at least one"));
        };
        let lost = self.options.checkpoints.iter().find(|c| c.seq > last.seq || c.seq + 1 < self.first_seq);
        match lost {
            Some(checkpoint) => {
                let found = format!("records {} to {}", self.first_seq, last.seq);
                let expected = format!("record {} too, as a checkpoint says", checkpoint.seq);
                Err(Error::integrity(path.display(), found, expected))
            }
            None => Ok(last),
        }
    }
}
