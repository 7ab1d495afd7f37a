//! Logs that are damaged, cut, shared and rotated.

use std::fs;
use std::sync::Barrier;

use super::verify::Chain;
use super::*;
use crate::control::Control;
use crate::testing::{Random, TempFolder};

fn temp() -> TempFolder {
    TempFolder::new_in(&std::env::temp_dir()).unwrap()
}

fn fields(text: &str) -> Map<String, Value> {
    let fields = json!({"adapter_digests": [], "event": "test", "text": text});
    fields.as_object().unwrap().clone()
}

fn key(byte: u8) -> AuditKey {
    AuditKey::new(&[byte; 32]).unwrap()
}

fn check(path: &Path, options: &AuditVerifyOptions) -> Result<AuditReport> {
    verify(path, options, &mut Control::none())
}

fn message(path: &Path, options: &AuditVerifyOptions) -> String {
    let error = check(path, options).unwrap_err();
    assert!(matches!(error, Error::Integrity { .. } | Error::Signature { .. }), "{error}");
    error.to_string()
}

/// Appends `count` records to the log at `path`; its last checkpoint.
fn write(path: &Path, count: usize) -> Checkpoint {
    let log = AuditLog::open(&AuditOptions::new(path)).unwrap();
    let mut append = |i: usize| log.append(fields(&format!("entry {i} ß\u{1f600}\n\"\\\u{7f}"))).unwrap();
    (0..count).map(&mut append).last().unwrap()
}

#[test]
fn the_canonical_form_is_that_of_rfc_8785() {
    // The example of section 3.2.3: sorted by units of UTF-16, so U+1F600 comes before U+FB33.
    let value = json!({
        "\u{20ac}": 0, "\r": 1, "\u{fb33}": 2, "1": 3, "\u{1f600}": 4, "\u{80}": 5, "\u{f6}": 6,
    });
    let expected =
        "{\"\\r\":1,\"1\":3,\"\u{80}\":5,\"\u{f6}\":6,\"\u{20ac}\":0,\"\u{1f600}\":4,\"\u{fb33}\":2}";
    assert_eq!(record::canonical(&value).unwrap(), expected);
    // The string of section 3.2.2.
    let value = json!(["\u{20ac}$\u{f}\nA'B\"\\\\\"/", -3, true, null, {}]);
    let expected = "[\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\",-3,true,null,{}]";
    assert_eq!(record::canonical(&value).unwrap(), expected);
    for inexact in [json!(0.5), json!(1e300), json!(u64::MAX), json!((1u64 << 53) + 1)] {
        assert_eq!(record::canonical(&inexact), None, "{inexact}");
    }
    assert_eq!(record::canonical(&json!(1u64 << 53)).unwrap(), "9007199254740992");
}

#[test]
fn times_are_written_as_rfc_3339() {
    let at = |seconds, micros: u32| utc(UNIX_EPOCH + std::time::Duration::new(seconds, micros * 1000));
    assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(at(951_782_399, 999_999), "2000-02-28T23:59:59.999999Z");
    assert_eq!(at(951_782_400, 1), "2000-02-29T00:00:00.000001Z");
    assert_eq!(at(1_735_689_599, 0), "2024-12-31T23:59:59.000000Z");
}

#[test]
fn a_log_goes_on_where_it_ended() {
    let folder = temp();
    let path = folder.path().join("audit.jsonl");
    let (first, last) = (write(&path, 3), write(&path, 2));
    assert_eq!((first.seq, last.seq), (2, 4));
    let options = AuditVerifyOptions { checkpoints: vec![first, last.clone()], ..Default::default() };
    let report = check(&path, &options).unwrap();
    assert_eq!((report.records, report.first_seq, report.last, report.incomplete_bytes), (5, 0, last, 0));
}

#[test]
fn ten_thousand_damages_are_all_found() {
    let folder = temp();
    let path = folder.path().join("audit.jsonl");
    let checkpoint = write(&path, 1000);
    let whole = fs::read(&path).unwrap();
    let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
    let options = AuditVerifyOptions { checkpoints: vec![checkpoint], ..Default::default() };
    let is_whole = |bytes: &[u8]| {
        let mut chain = Chain::new(&options);
        chain.scan(&path, &mut &*bytes, true, &mut |_| Ok(())).is_ok() && chain.finish(&path).is_ok()
    };
    assert!(is_whole(&whole));
    let damage = |random: &mut Random| {
        let mut below = |n: usize| (random.bits() % n as u64) as usize;
        let (kind, i, j, at) = (below(8), below(lines.len()), below(lines.len()), below(whole.len()));
        let mut damaged = lines.clone();
        match kind {
            0..3 => {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << below(8);
                return bytes;
            }
            3 => _ = damaged.remove(i),
            4 => damaged.swap(i, if i == j { (i + 1) % lines.len() } else { j }),
            5 => damaged.insert(i, lines[j]),
            6 => return whole[..at].to_vec(),
            _ => damaged.truncate(i),
        }
        damaged.concat()
    };
    let (damage, is_whole, whole) = (&damage, &is_whole, &whole);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            scope.spawn(move || {
                let mut random = Random::new(seed);
                for round in 0..5000 {
                    let damaged = damage(&mut random);
                    assert!(damaged != *whole && !is_whole(&damaged), "seed {seed}, round {round}");
                }
            });
        }
    });
}

#[test]
fn a_crash_at_any_byte_leaves_a_log_that_goes_on() {
    let folder = temp();
    let path = folder.path().join("audit.jsonl");
    write(&path, 2);
    let whole = fs::read(&path).unwrap();
    let lenient = AuditVerifyOptions { allow_incomplete: true, ..Default::default() };
    let strict = AuditVerifyOptions::default();
    for cut in 0..=whole.len() {
        let log = folder.path().join(format!("{cut}.jsonl"));
        fs::write(&log, &whole[..cut]).unwrap();
        let records = whole[..cut].iter().filter(|byte| **byte == b'\n').count() as u64;
        let start = whole[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let torn = (cut - start) as u64;
        if records > 0 {
            let report = check(&log, &lenient).unwrap();
            assert_eq!((report.records, report.incomplete_bytes), (records, torn), "cut at {cut}");
            assert_eq!(check(&log, &strict).is_ok(), torn == 0, "cut at {cut}");
        }
        let recovered = u64::from(torn > 0);
        assert_eq!(write(&log, 1).seq, records + recovered, "cut at {cut}");
        let text = fs::read_to_string(&log).unwrap();
        assert_eq!(text.contains(&format!("\"dropped_bytes\":{torn},")), torn > 0, "cut at {cut}");
        assert_eq!(check(&log, &strict).unwrap().records, records + recovered + 1, "cut at {cut}");
    }
}

#[test]
fn threads_write_one_chain() {
    let folder = temp();
    let options =
        AuditOptions { rotate_bytes: Some(8192), ..AuditOptions::new(folder.path().join("audit.jsonl")) };
    let barrier = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (options, barrier) = (&options, &barrier);
            scope.spawn(move || {
                let log = AuditLog::open(options).unwrap();
                barrier.wait();
                for i in 0..100 {
                    log.append(fields(&format!("{thread} {i}"))).unwrap();
                }
            });
        }
    });
    let report = check(&options.path, &AuditVerifyOptions::default()).unwrap();
    assert_eq!(report.records, 400);
    assert!(report.files > 3, "{}", report.files);
}

#[test]
fn a_rotated_log_is_one_chain_and_may_lose_its_oldest_files_to_a_checkpoint() {
    let folder = temp();
    let options = AuditOptions {
        rotate_bytes: Some(4096),
        sync: SyncPolicy::Every(3),
        ..AuditOptions::new(folder.path().join("audit.jsonl"))
    };
    let open = || AuditLog::open(&options).unwrap();
    let log = open();
    let checkpoints: Vec<Checkpoint> =
        (0..60).map(|i| log.append(fields(&format!("{i}"))).unwrap()).collect();
    drop(log);
    let rotated = |n: u64| files::with_suffix(&options.path, &format!(".{n}"));
    assert!(rotated(3).exists() && !rotated(19).exists());
    assert_eq!(check(&options.path, &AuditVerifyOptions::default()).unwrap().records, 60);
    // A file that is not the oldest is missed.
    fs::rename(rotated(2), folder.path().join("kept")).unwrap();
    assert!(message(&options.path, &AuditVerifyOptions::default()).contains("expected record"));
    fs::rename(folder.path().join("kept"), rotated(2)).unwrap();
    // The oldest one may go where a checkpoint tells how it ended.
    let end = files::tail(&rotated(1)).unwrap().last.unwrap();
    fs::remove_file(rotated(1)).unwrap();
    assert!(message(&options.path, &AuditVerifyOptions::default()).contains("at the beginning"));
    let with = |checkpoints| AuditVerifyOptions { checkpoints, ..Default::default() };
    let before = checkpoints[end.seq as usize].clone();
    let report = check(&options.path, &with(vec![before.clone()])).unwrap();
    assert_eq!((report.first_seq, report.records), (end.seq + 1, 59 - end.seq));
    // After a crash between the two halves of a rotation.
    fs::rename(&options.path, rotated(20)).unwrap();
    assert_eq!(open().append(fields("on")).unwrap().seq, 60);
    check(&options.path, &with(vec![before, checkpoints[59].clone()])).unwrap();
}

#[test]
fn checkpoints_show_what_was_cut_or_computed_anew() {
    let folder = temp();
    let (path, place) = (folder.path().join("audit.jsonl"), folder.path().join("checkpoint.json"));
    let options = AuditOptions {
        checkpoint: Some(CheckpointOptions { path: place.clone(), every: 4, key: Some(key(1)) }),
        ..AuditOptions::new(&path)
    };
    let log = AuditLog::open(&options).unwrap();
    let read = || {
        let value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
        Checkpoint::from_json("checkpoint", &value).unwrap()
    };
    for i in 0..6 {
        log.append(fields(&format!("{i}"))).unwrap();
    }
    assert_eq!(read().seq, 3);
    assert_eq!(log.checkpoint().unwrap().seq, 5);
    drop(log);
    let last = read();
    assert_eq!(last.seq, 5);
    let with = |checkpoint: &Checkpoint, by| AuditVerifyOptions {
        checkpoints: vec![checkpoint.clone()],
        checkpoint_key: Some(key(by)),
        ..Default::default()
    };
    check(&path, &with(&last, 1)).unwrap();
    assert!(message(&path, &with(&last, 2)).contains("HMAC"));
    assert!(message(&path, &with(&Checkpoint { seq: 4, ..last.clone() }, 1)).contains("HMAC"));
    assert!(message(&path, &with(&Checkpoint { mac: None, ..last.clone() }, 1)).contains("HMAC"));
    // Cut at a record, and written anew: whole chains, but not this one.
    let text = fs::read_to_string(&path).unwrap();
    let cut = text.match_indices('\n').nth(3).unwrap().0 + 1;
    fs::write(&path, &text[..cut]).unwrap();
    check(&path, &AuditVerifyOptions::default()).unwrap();
    assert!(message(&path, &with(&last, 1)).contains("record 5 too"));
    write(&path, 2);
    check(&path, &AuditVerifyOptions::default()).unwrap();
    assert!(message(&path, &with(&last, 1)).contains("another record 5"));
}

#[test]
fn a_log_that_cannot_be_written_says_so_and_stays_whole() {
    let folder = temp();
    let path = folder.path().join("audit.jsonl");
    let nowhere = AuditLog::open(&AuditOptions::new(folder.path().join("none/audit.jsonl"))).unwrap_err();
    assert!(matches!(nowhere, Error::Audit { .. }), "{nowhere}");
    let log = AuditLog::open(&AuditOptions::new(&path)).unwrap();
    log.append(fields("one")).unwrap();
    // A file that takes no more, and cannot be cut either.
    let file = std::mem::replace(&mut log.writer.lock().unwrap().file, File::open(&path).unwrap());
    assert!(matches!(log.append(fields("two")), Err(Error::Audit { .. })));
    log.writer.lock().unwrap().file = file;
    assert!(log.append(fields("three")).unwrap_err().to_string().contains("in part"));
    assert_eq!(check(&path, &AuditVerifyOptions::default()).unwrap().records, 1);
    // The same log with other options; another writer; a damaged end.
    let other = AuditOptions { sync: SyncPolicy::Every(1), ..AuditOptions::new(&path) };
    assert!(matches!(AuditLog::open(&other), Err(Error::Argument { .. })));
    drop(log);
    let lock = OpenOptions::new().append(true).open(files::with_suffix(&path, ".lock")).unwrap();
    lock.lock().unwrap();
    assert!(AuditLog::open(&other).unwrap_err().to_string().contains("another process"));
    drop(lock);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("one", "two")).unwrap();
    assert!(AuditLog::open(&other).unwrap_err().to_string().contains("verify it"));
}

/// The error of opening the log.
fn refused(options: &AuditOptions) -> Error {
    let error = AuditLog::open(options).unwrap_err();
    assert!(matches!(error, Error::Audit { .. } | Error::Argument { .. }), "{error:?}");
    error
}

#[test]
fn what_is_no_log_stays_as_it_is() {
    let folder = temp();
    let path = folder.path().join("audit.jsonl");
    write(&path, 2);
    let log = fs::read_to_string(&path).unwrap();
    let binary = [&b"\0\x01\x02binary"[..]; 100].concat();
    for (content, expected) in [
        (br#"{"precious": "configuration, no newline at end"}"#.to_vec(), "is no log"),
        (b"hello".to_vec(), "is no log"),
        (b"hello\n".to_vec(), "verify it"),
        (binary, "is no log"),
        (format!("{log}hello").into_bytes(), "is no log"),
        (format!("hello\n{log}").into_bytes(), "it begins with"),
        (format!("hello\n{log}{{\"adapter").into_bytes(), "it begins with"),
    ] {
        fs::write(&path, &content).unwrap();
        let error = refused(&AuditOptions::new(&path)).to_string();
        assert!(error.contains(&path.display().to_string()) && error.contains(expected), "{error}");
        assert_eq!(fs::read(&path).unwrap(), content);
        // What cannot be continued is not said to be whole.
        let lenient = AuditVerifyOptions { allow_incomplete: true, ..Default::default() };
        assert!(check(&path, &lenient).is_err());
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_and_not_waited_for() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    for name in ["pipe", "piped.lock"] {
        assert!(process::Command::new("mkfifo").arg(at(name)).status().unwrap().success());
    }
    fs::create_dir(at("folder")).unwrap();
    for name in ["pipe", "folder", "piped"] {
        assert!(refused(&AuditOptions::new(at(name))).to_string().contains("not a regular file"), "{name}");
    }
    for name in ["pipe", "folder"] {
        let error = check(&at(name), &AuditVerifyOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("not a regular file"));
    }
}

#[cfg(unix)]
#[test]
fn a_log_with_two_names_has_one_writer() {
    let folder = temp();
    let at = |name: &str| folder.path().join(name);
    let options = AuditOptions { rotate_bytes: Some(4096), ..AuditOptions::new(at("log")) };
    let log = AuditLog::open(&options).unwrap();
    std::os::unix::fs::symlink(at("log"), at("symbolic")).unwrap();
    std::os::unix::fs::symlink(folder.path(), at("folder")).unwrap();
    fs::hard_link(at("log"), at("hard")).unwrap();
    assert!(refused(&AuditOptions::new(at("symbolic"))).to_string().contains("a symbolic link"));
    assert!(refused(&AuditOptions::new(at("hard"))).to_string().contains("under another name"));
    let same = AuditOptions { path: at("folder/log"), ..options.clone() };
    assert!(Arc::ptr_eq(&AuditLog::open(&same).unwrap(), &log));
    // The file that rotation begins is locked like the first.
    (0..30).for_each(|i| _ = log.append(fields(&format!("{i}"))).unwrap());
    fs::hard_link(at("log"), at("other")).unwrap();
    assert!(refused(&AuditOptions::new(at("other"))).to_string().contains("under another name"));
    drop(log);
    AuditLog::open(&AuditOptions::new(at("other"))).unwrap();
}

#[cfg(unix)]
#[test]
fn a_log_that_is_being_closed_is_waited_for() {
    let folder = temp();
    let place = folder.path().join("checkpoint");
    let options = AuditOptions {
        checkpoint: Some(CheckpointOptions { path: place.clone(), every: 1000, key: None }),
        ..AuditOptions::new(folder.path().join("log"))
    };
    let log = AuditLog::open(&options).unwrap();
    log.append(fields("one")).unwrap();
    // The last checkpoint waits for a reader of this pipe, and with it the end of the log.
    let pipe = files::with_suffix(&place, ".new");
    assert!(process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let weak = Arc::downgrade(&log);
    std::thread::scope(|scope| {
        scope.spawn(|| drop(log));
        while weak.strong_count() > 0 {
            std::thread::yield_now();
        }
        let opening = scope.spawn(|| AuditLog::open(&options));
        std::thread::sleep(std::time::Duration::from_millis(100));
        let waits = !opening.is_finished();
        fs::read(&pipe).unwrap();
        let log = opening.join().unwrap().unwrap();
        assert!(waits);
        assert_eq!(log.append(fields("two")).unwrap().seq, 1);
    });
}

#[test]
fn a_child_leaves_the_log_of_its_parent_alone() {
    let folder = temp();
    let options = AuditOptions::new(folder.path().join("log"));
    let log = AuditLog::open(&options).unwrap();
    log.append(fields("one")).unwrap();
    // What a child would hold beyond the end of the log.
    let clones = |writer: &Writer| [&writer.lock, &writer.file].map(|file| file.try_clone().unwrap());
    let inherited = clones(&log.writer.lock().unwrap());
    drop(log);
    let path = options.place().unwrap();
    let writer = Writer::open(&path, &options).unwrap();
    drop(inherited);
    // The parent's, as a child has it: `held` is the parent.
    let held = clones(&writer);
    let of_parent = AuditLog {
        options: options.clone(),
        writer: Mutex::new(writer),
        opened: Instant::now(),
        process: process::id() + 1,
    };
    assert!(of_parent.append(fields("two")).unwrap_err().to_string().contains("another process"));
    drop(of_parent);
    assert!(refused(&options).to_string().contains("another process"));
    drop(held);
    assert_eq!(AuditLog::open(&options).unwrap().append(fields("two")).unwrap().seq, 1);
}

#[test]
fn a_checkpoint_does_not_take_the_place_of_the_log() {
    let folder = temp();
    let with = |log: &str, checkpoint: &str| AuditOptions {
        checkpoint: Some(CheckpointOptions { path: folder.path().join(checkpoint), every: 1, key: None }),
        ..AuditOptions::new(folder.path().join(log))
    };
    fs::create_dir(folder.path().join("sub")).unwrap();
    write(&folder.path().join("log"), 1);
    let before = fs::read(folder.path().join("log")).unwrap();
    for name in ["log", "log.lock", "log.7", "log.new", "sub/../log", "./log.1"] {
        assert!(refused(&with("log", name)).to_string().contains("`checkpoint.path`"), "{name}");
    }
    assert!(refused(&with("log.new", "log")).to_string().contains("`checkpoint.path`"));
    assert_eq!(fs::read(folder.path().join("log")).unwrap(), before);
    for name in ["log.07", "log.checkpoint", "sub/log"] {
        AuditLog::open(&with("log", name)).unwrap().append(fields("on")).unwrap();
        check(&folder.path().join("log"), &AuditVerifyOptions::default()).unwrap();
    }
}

#[test]
fn options_are_refused_by_their_names() {
    let folder = temp();
    let options = AuditOptions::new(folder.path().join("log"));
    let sync = AuditOptions { sync: SyncPolicy::Every(0), ..options.clone() };
    assert!(refused(&sync).to_string().contains("`sync_every`"));
    let checkpoint = CheckpointOptions { path: folder.path().join("checkpoint"), every: 0, key: None };
    let checkpoint = AuditOptions { checkpoint: Some(checkpoint), ..options.clone() };
    assert!(refused(&checkpoint).to_string().contains("`checkpoint.every`"));
    write(&options.path, 1);
    let keyed = AuditVerifyOptions { checkpoint_key: Some(key(1)), ..Default::default() };
    let error = check(&options.path, &keyed).unwrap_err();
    assert!(matches!(&error, Error::Argument { name, .. } if name == "checkpoint_key"), "{error}");
}

#[test]
fn rotated_files_have_the_names_that_rotation_gives() {
    let folder = temp();
    let options = AuditOptions { rotate_bytes: Some(4096), ..AuditOptions::new(folder.path().join("log")) };
    let log = AuditLog::open(&options).unwrap();
    let fill = || (0..30).try_for_each(|i| log.append(fields(&format!("{i}"))).map(drop));
    fill().unwrap();
    let named = |suffix: &str| files::with_suffix(&options.path, suffix);
    for suffix in [".01", ".+1", ".0", ".18446744073709551616"] {
        fs::copy(named(".1"), named(suffix)).unwrap();
    }
    assert_eq!(check(&options.path, &AuditVerifyOptions::default()).unwrap().records, 30);
    fs::write(named(".18446744073709551615"), "").unwrap();
    let error = fill().unwrap_err();
    assert!(
        matches!(&error, Error::Audit { reason, .. } if reason.contains(".18446744073709551615")),
        "{error}"
    );
    fs::remove_file(named(".18446744073709551615")).unwrap();
    fill().unwrap();
    check(&options.path, &AuditVerifyOptions::default()).unwrap();
}
