//! The audit log: what ran, when, on which model, as a chain of records that cannot be changed unseen.
//!
//! A record is a line of canonical JSON (RFC 8785). `hash` is the SHA-256 of the 32 bytes of `prev_hash` and the canonical record without
//! `hash`; so a record that was changed, removed or moved breaks the chain. Records that are cut off at the end, or a chain that was computed
//! anew, show against a [`Checkpoint`] that the host keeps elsewhere.
//!
//! Each call is written down twice: `begin` before anything is computed, `end` with what it came to. Prompts and answers are in it
//! as HMAC-SHA256 under the host's key (the prompt: the tokens of the timeline as 32-bit little-endian numbers; the answer: its text in UTF-8)
//! because the bare hash of a short text can be guessed; their text only if the host asks for it.

mod files;
mod record;
#[cfg(test)]
mod tests;
mod trail;
mod verify;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::provenance::{hex, unhex};
use record::Link;
pub(crate) use trail::{About, Attached, Call, Subject};
pub use verify::{AuditReport, AuditVerifyOptions, verify};

/// The longest line of a log.
const MAX_LINE: u64 = 256 << 20;
/// The shortest key that is taken, in bytes.
const MIN_KEY: usize = 16;
/// The shortest file that is rotated away.
const MIN_ROTATE: u64 = 4096;

/// When records go to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SyncPolicy {
    /// When the system writes them.
    #[default]
    Never,
    /// After every so many records: 1 is each.
    Every(u64),
}

/// A key of the host. It is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct AuditKey(Vec<u8>);

impl AuditKey {
    /// A key of at least 16 bytes.
    ///
    /// # Errors
    /// [`Error::Argument`] for a shorter one.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.len() < MIN_KEY {
            let found = format!("{} bytes", bytes.len());
            return Err(Error::argument("key", found, format!("at least {MIN_KEY}")));
        }
        Ok(Self(bytes.to_vec()))
    }

    fn mac(&self) -> Hmac<Sha256> {
        <Hmac<Sha256> as KeyInit>::new_from_slice(&self.0).expect("HMAC takes keys of every length")
    }
}

impl std::fmt::Debug for AuditKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditKey")
    }
}

impl Drop for AuditKey {
    fn drop(&mut self) {
        self.0.fill(0);
        // Without this, writes to memory that is about to be freed need not happen.
        std::hint::black_box(&self.0);
    }
}

/// Where and how a model or a session is audited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditOptions {
    /// The log: a regular file and no link, which goes on where it ended. `PATH.lock` beside it keeps other processes out, those forked from this one
    /// among them. Models and sessions that name the same log share it.
    pub path: PathBuf,
    /// Nothing runs that cannot be written down, and no answer is finished.
    pub required: bool,
    /// The key of the HMACs of prompts and answers; without one the log has none.
    pub key: Option<AuditKey>,
    /// Write down prompts and answers themselves.
    pub text: bool,
    /// Bytes after which a file is renamed to `PATH.1`, `PATH.2`, ... and a new one begun.
    pub rotate_bytes: Option<u64>,
    /// When records go to the disk.
    pub sync: SyncPolicy,
    /// Where to write checkpoints, and how.
    pub checkpoint: Option<CheckpointOptions>,
    /// What the host calls those for whom the model runs; at most 256 bytes.
    pub caller_ref: Option<String>,
}

impl AuditOptions {
    /// A log at `path`, not required, without key, rotation and checkpoints.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            required: false,
            key: None,
            text: false,
            rotate_bytes: None,
            sync: SyncPolicy::Never,
            checkpoint: None,
            caller_ref: None,
        }
    }

    /// Whether both describe the same log; what is attached to it may differ.
    fn same_log(&self, other: &Self) -> bool {
        self.key == other.key
            && self.rotate_bytes == other.rotate_bytes
            && self.sync == other.sync
            && self.checkpoint == other.checkpoint
    }

    fn check(&self) -> Result<()> {
        if let Some(bytes) = self.rotate_bytes.filter(|bytes| *bytes < MIN_ROTATE) {
            return Err(Error::argument("rotate_bytes", bytes, format!("at least {MIN_ROTATE}")));
        }
        if self.sync == SyncPolicy::Every(0) {
            return Err(Error::argument("sync_every", 0, "at least 1 record"));
        }
        if self.checkpoint.as_ref().is_some_and(|c| c.every == 0) {
            return Err(Error::argument("checkpoint.every", 0, "at least 1 record"));
        }
        check_caller_ref(self.caller_ref.as_deref())
    }

    /// The log by the path of its folder without links. A checkpoint must not take its place, nor that of its other files.
    fn place(&self) -> Result<PathBuf> {
        let log = files::place(&self.path).map_err(|e| failed(&self.path, e))?;
        let Some(checkpoint) = &self.checkpoint else { return Ok(log) };
        // One whose folder is not there is in no log's way.
        let Ok(place) = files::place(&checkpoint.path) else { return Ok(log) };
        if [&place, &files::with_suffix(&place, ".new")].into_iter().any(|file| files::belongs(file, &log)) {
            let expected = "a file that is none of the log's";
            return Err(Error::argument("checkpoint.path", checkpoint.path.display(), expected));
        }
        Ok(log)
    }
}

pub(crate) fn check_caller_ref(text: Option<&str>) -> Result<()> {
    match text.map(str::len).filter(|len| *len > 256) {
        Some(len) => Err(Error::argument("caller_ref", format!("{len} bytes"), "at most 256")),
        None => Ok(()),
    }
}

/// Where checkpoints are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// The file that holds the last one; keep it where the log's writer cannot change it.
    pub path: PathBuf,
    /// Records from one to the next; the end of the log is one too.
    pub every: u64,
    /// Signs them, by HMAC-SHA256.
    pub key: Option<AuditKey>,
}

/// What vouches for a log up to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The record.
    pub seq: u64,
    /// Its hash.
    pub hash: [u8; 32],
    /// The HMAC-SHA256 of both under a key of the host.
    pub mac: Option<[u8; 32]>,
}

impl Checkpoint {
    fn new(link: Link, key: Option<&AuditKey>) -> Self {
        let mac = key.map(|key| key.mac().chain_update(Self::message(link)).finalize().into_bytes().into());
        Self { seq: link.seq, hash: link.hash, mac }
    }

    /// The canonical `{"hash", "seq"}`, which is signed.
    fn message(link: Link) -> String {
        record::canonical(&json!({"seq": link.seq, "hash": hex(&link.hash)})).unwrap_or_default()
    }

    /// `{"seq", "hash", "mac"}`.
    pub fn to_json(&self) -> Value {
        json!({"seq": self.seq, "hash": hex(&self.hash), "mac": self.mac.map(|mac| hex(&mac))})
    }

    /// Reads what [`Checkpoint::to_json`] writes; `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn from_json(name: &str, value: &Value) -> Result<Self> {
        let bad = || Error::argument(name, "no checkpoint", r#"{"seq", "hash", "mac"}"#);
        let digest = |key: &str| value.get(key).and_then(Value::as_str).and_then(unhex);
        let mac = match value.get("mac") {
            None | Some(Value::Null) => None,
            Some(_) => Some(digest("mac").ok_or_else(bad)?),
        };
        let seq = value.get("seq").and_then(Value::as_u64).ok_or_else(bad)?;
        Ok(Self { seq, hash: digest("hash").ok_or_else(bad)?, mac })
    }

    /// Whether `key` has signed it.
    fn is_of(&self, key: &AuditKey) -> bool {
        let link = Link { seq: self.seq, hash: self.hash };
        let mac = key.mac().chain_update(Self::message(link));
        self.mac.is_some_and(|found| mac.verify_slice(&found).is_ok())
    }
}

/// An open log. Threads and sessions share it; each record is written whole.
#[derive(Debug)]
pub struct AuditLog {
    options: AuditOptions,
    writer: Mutex<Writer>,
    opened: Instant,
    /// The process that opened it: a child of `fork` has it in memory, and must leave it alone.
    process: u32,
}

/// The logs that a process has open, and those that it is closing. A child of `fork` has a list of its own behind that of its parent, whose lock
/// may be held for ever.
#[derive(Default)]
struct Open {
    process: u32,
    logs: Mutex<Vec<(PathBuf, Weak<AuditLog>)>>,
    closed: Condvar,
    child: OnceLock<Box<Self>>,
}

static OPEN: OnceLock<Open> = OnceLock::new();

impl Open {
    fn new() -> Self {
        Self { process: process::id(), ..Self::default() }
    }

    /// That of this process.
    fn own() -> &'static Self {
        let mut open = OPEN.get_or_init(Self::new);
        while open.process != process::id() {
            open = open.child.get_or_init(|| Box::new(Self::new()));
        }
        open
    }
}

impl AuditLog {
    /// Opens the log of `options`, or joins those who have it open in this process with the same options. One that is being closed is waited
    /// for.
    ///
    /// The beginning of a record that a crash left at its end is cut off, and a record says so. A file that is no log stays as it is.
    ///
    /// # Errors
    /// [`Error::Audit`] if it cannot be opened, is no log, is written by another process or under another name, or ends with a damaged
    /// record; [`Error::Argument`].
    pub fn open(options: &AuditOptions) -> Result<Arc<Self>> {
        options.check()?;
        let path = options.place()?;
        let open = Open::own();
        let mut logs = open.logs.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((_, log)) = logs.iter().find(|(known, _)| *known == path) {
            if let Some(log) = log.upgrade() {
                // Before `log`, which takes this lock where it is the last to go.
                drop(logs);
                let expected = "those with which the log is open";
                let differs = || Error::argument("audit", "other options for one log", expected);
                return if log.options.same_log(options) { Ok(log) } else { Err(differs()) };
            }
            logs = open.closed.wait(logs).unwrap_or_else(PoisonError::into_inner);
        }
        let writer = Mutex::new(Writer::open(&path, options)?);
        let (options, opened, process) = (options.clone(), Instant::now(), open.process);
        let log = Arc::new(Self { options, writer, opened, process });
        logs.push((path, Arc::downgrade(&log)));
        Ok(log)
    }

    /// Writes a record: `fields`, and what every record has.
    pub(crate) fn append(&self, mut fields: Map<String, Value>) -> Result<Checkpoint> {
        if self.process != process::id() {
            return Err(failed(&self.options.path, "another process writes it"));
        }
        fields.insert("utc".to_owned(), utc(SystemTime::now()).into());
        fields.insert("monotonic_ns".to_owned(), self.opened.elapsed().as_nanos().to_string().into());
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let link = writer.append(fields, &self.options)?;
        Ok(self.checkpoint_at(link))
    }

    /// Where it is and how far it has come.
    pub(crate) fn info(&self) -> Value {
        let path = self.options.path.display().to_string();
        json!({"path": path, "checkpoint": self.checkpoint().as_ref().map(Checkpoint::to_json)})
    }

    /// What vouches for the log as it is now; `None` while it is empty.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.last.map(|link| self.checkpoint_at(link))
    }

    fn checkpoint_at(&self, link: Link) -> Checkpoint {
        Checkpoint::new(link, self.options.checkpoint.as_ref().and_then(|c| c.key.as_ref()))
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        if self.process != process::id() {
            return;
        }
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        // Nobody is left to be told; the records are written, and a stale checkpoint is still true.
        drop(writer.close(&self.options));
        let open = Open::own();
        let mut logs = open.logs.lock().unwrap_or_else(PoisonError::into_inner);
        logs.retain(|(path, _)| *path != writer.path);
        open.closed.notify_all();
    }
}

#[derive(Debug)]
struct Writer {
    path: PathBuf,
    file: File,
    /// Where the last whole record ends.
    len: u64,
    last: Option<Link>,
    unsynced: u64,
    since_checkpoint: u64,
    /// A record that could not be written could not be taken back either.
    torn: bool,
    /// Locked as long as the log is open; the system lets go of it however the process ends.
    lock: File,
}

impl Writer {
    fn open(path: &Path, options: &AuditOptions) -> Result<Self> {
        let fail = |e: std::io::Error| failed(path, e);
        let lock = files::open_own(&files::with_suffix(path, ".lock")).map_err(fail)?;
        files::lock(&lock, "another process writes it").map_err(fail)?;
        let file = files::open_own(path).map_err(fail)?;
        files::lock_itself(&file).map_err(fail)?;
        let tail = files::tail(path)?;
        let mut last = tail.last;
        if last.is_none()
            && let Some(number) = files::rotated(path)?.pop()
        {
            last = files::tail(&files::with_suffix(path, &format!(".{number}")))?.last;
        }
        let mut writer = Self {
            path: path.to_owned(),
            file,
            len: tail.whole,
            last,
            unsynced: 0,
            since_checkpoint: 0,
            torn: false,
            lock,
        };
        if !tail.torn.is_empty() {
            writer.file.set_len(tail.whole).map_err(fail)?;
            let digest = hex(&Sha256::digest(&tail.torn));
            let fields = json!({
                "event": "recover", "dropped_bytes": tail.torn.len(), "dropped_sha256": digest,
                "utc": utc(SystemTime::now()), "lib_version": env!("CARGO_PKG_VERSION"),
            });
            let Value::Object(fields) = fields else { return Err(Error::Internal("an object".to_owned())) };
            writer.append(fields, options)?;
        }
        Ok(writer)
    }

    fn append(&mut self, fields: Map<String, Value>, options: &AuditOptions) -> Result<Link> {
        if self.torn {
            return Err(failed(&self.path, "an earlier record was written in part"));
        }
        let (line, link) = record::seal(fields, self.last);
        if options.rotate_bytes.is_some_and(|most| self.len > 0 && self.len + line.len() as u64 > most) {
            self.rotate(options).map_err(|e| failed(&self.path, e))?;
        }
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            self.torn = self.file.set_len(self.len).is_err();
            return Err(failed(&self.path, error));
        }
        self.len += line.len() as u64;
        self.last = Some(link);
        self.unsynced += 1;
        self.since_checkpoint += 1;
        if matches!(options.sync, SyncPolicy::Every(n) if self.unsynced >= n) {
            self.sync().map_err(|e| failed(&self.path, e))?;
        }
        if options.checkpoint.as_ref().is_some_and(|c| self.since_checkpoint >= c.every) {
            self.write_checkpoint(options)?;
        }
        Ok(link)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.file.sync_data()?;
        self.unsynced = 0;
        Ok(())
    }

    /// Gives the file its number and begins another.
    fn rotate(&mut self, options: &AuditOptions) -> std::io::Result<()> {
        if options.sync != SyncPolicy::Never {
            self.sync()?;
        }
        let numbers = files::rotated(&self.path).map_err(|e| std::io::Error::other(e.to_string()))?;
        let last = numbers.last().copied().unwrap_or_default();
        let number = last.checked_add(1).ok_or_else(|| {
            std::io::Error::other(format!("there is a file `.{last}`, and no number after it to rotate to"))
        })?;
        std::fs::rename(&self.path, files::with_suffix(&self.path, &format!(".{number}")))?;
        let file = OpenOptions::new().create_new(true).append(true).open(&self.path)?;
        files::lock_itself(&file)?;
        files::unlock(&std::mem::replace(&mut self.file, file));
        self.len = 0;
        Ok(())
    }

    /// Writes the checkpoint beside its place and moves it there: it is whole at any time.
    fn write_checkpoint(&mut self, options: &AuditOptions) -> Result<()> {
        let (Some(place), Some(link)) = (&options.checkpoint, self.last) else { return Ok(()) };
        let text = Checkpoint::new(link, place.key.as_ref()).to_json().to_string();
        let new = files::with_suffix(&place.path, ".new");
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &place.path));
        written.map_err(|e| failed(&place.path, e))?;
        self.since_checkpoint = 0;
        Ok(())
    }

    fn close(&mut self, options: &AuditOptions) -> Result<()> {
        let synced = if options.sync == SyncPolicy::Never { Ok(()) } else { self.sync() };
        let closed = synced.map_err(|e| failed(&self.path, e)).and_then(|()| self.write_checkpoint(options));
        files::unlock(&self.file);
        files::unlock(&self.lock);
        closed
    }
}

fn failed(path: &Path, reason: impl ToString) -> Error {
    Error::Audit { log: path.display().to_string(), reason: reason.to_string() }
}

/// RFC 3339, to the microsecond.
pub(crate) fn utc(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:06}Z", since.subsec_micros())
}

/// Year, month and day of a day since 1970-01-01 (Howard Hinnant, `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    (year + era * 400 + u64::from(month <= 2), month, day)
}
