//! Whether a model is the one that someone vouched for: its files against a manifest of their SHA-256, or against a signature
//! of OpenSSF Model Signing, offline, with keys that the host pins.
//!
//! All the files of the manifest and of the signature must be there, and in a folder no others: no link, nothing unsigned, unless
//! the host names it. [`verify`] reports; [`ModelOptions::verify`](crate::ModelOptions) makes it a condition of opening a model, which then is
//! read from the very maps whose digests were computed.
//!
//! A manifest is worth what the place is worth where the host keeps it: beside the model it shows accidents, not attacks.

mod bundle;
mod keys;
mod manifest;
mod names;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Metadata;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::control::{Control, Progress};
use crate::error::{Error, Result};
use crate::weights::{FileInfo, Files, MAX_ENTRIES, Mapped, sha256};
use keys::PublicKey;
use names::Listing;

/// The largest manifest or bundle that is read: enough for as many files as a folder may have.
const MAX_CLAIM_BYTES: usize = 64 << 20;

/// What a model is verified against: a manifest, a signature, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyOptions {
    /// A manifest: `{"files": [{"name", "sha256", "bytes"}]}`, where `bytes` may be left out, or what `sha256sum` writes.
    pub manifest: Option<PathBuf>,
    /// A signature of OpenSSF Model Signing: a Sigstore bundle, version 0.3, made with a bare key.
    pub signature: Option<PathBuf>,
    /// The public keys, as PEM, one of which must have made the signature: ECDSA on P-256, P-384 or P-521.
    pub keys: Vec<String>,
    /// Names in the folder, of files or of folders with all that is in them, that may be there although nothing vouches for them. A model
    /// that is opened does not see them. Manifest and signature may always lie in the folder.
    pub ignore: Vec<String>,
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The model, as the host named it.
    pub path: PathBuf,
    /// Its files, in the order of their names' parts.
    pub files: Vec<VerifiedFile>,
    /// The SHA-256 over the digests of the files in their order: what a signature has as the digest of its subject.
    pub digest: [u8; 32],
    /// The manifest.
    pub manifest: Option<PathBuf>,
    /// The signature.
    pub signature: Option<VerifiedSignature>,
    /// What lies in the folder, was not verified, and was allowed to.
    pub ignored: Vec<String>,
}

/// A file of a model that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedFile {
    /// Its name in the folder of the model, with `/` between its parts.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its digest.
    pub sha256: [u8; 32],
}

/// A signature that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedSignature {
    /// The bundle.
    pub path: PathBuf,
    /// `P-256`, `P-384` or `P-521`.
    pub curve: &'static str,
    /// The key that made it: the SHA-256 of its PEM, in hexadecimal digits.
    pub key: String,
    /// What the signer calls the model.
    pub model: String,
    /// What the signer says to have left out. It excuses nothing: see [`VerifyOptions::ignore`].
    pub ignore_paths: Vec<String>,
}

impl Report {
    /// What an audit record says of it.
    pub(crate) fn summary(&self) -> Value {
        json!({"digest": hex(&self.digest), "key": self.signature.as_ref().map(|signature| &signature.key)})
    }

    /// The report as JSON; its `files` make a manifest.
    pub fn to_json(&self) -> Value {
        let files = self.files.iter();
        let files = files.map(|f| json!({"name": f.name, "sha256": hex(&f.sha256), "bytes": f.bytes}));
        let signature = self.signature.as_ref().map(|s| {
            json!({
                "path": s.path.display().to_string(), "curve": s.curve, "key": s.key, "model": s.model,
                "ignore_paths": s.ignore_paths,
            })
        });
        json!({
            "path": self.path.display().to_string(),
            "digest": hex(&self.digest),
            "bytes": self.files.iter().map(|f| f.bytes).sum::<u64>(),
            "files": files.collect::<Vec<_>>(),
            "manifest": self.manifest.as_ref().map(|path| path.display().to_string()),
            "signature": signature,
            "ignored": self.ignored,
        })
    }
}

/// Verifies the model at `path`, a folder or a file. Where it is a file, the others of the manifest lie beside it, and what else lies there
/// is not looked at.
///
/// Reads every file once; progress counts its bytes in the phase `"verify"`.
///
/// # Errors
/// [`Error::Integrity`] for a file that is missing, unexpected, a link, or another than it should be; [`Error::Signature`] for a signature that
/// none of the keys has made, or that is one of something else; [`Error::Format`] for what is no manifest or bundle, and for names that lead
/// out of the folder or come twice; [`Error::Argument`], [`Error::Unsupported`], [`Error::Io`], [`Error::Cancelled`].
pub fn verify(path: impl AsRef<Path>, options: &VerifyOptions, control: &mut Control<'_>) -> Result<Report> {
    let verified = Verified::read(path.as_ref(), options, control)?;
    verified.check_unchanged()?;
    Ok(verified.report)
}

/// A model that was verified, and its files as they were then.
pub(crate) struct Verified {
    pub report: Report,
    pub files: Files,
    stamps: Vec<(PathBuf, Stamp)>,
}

impl Verified {
    /// As [`verify`]; keeps the maps of all files.
    pub fn read(path: &Path, options: &VerifyOptions, control: &mut Control<'_>) -> Result<Self> {
        let vouchers = Vouchers::read(path, options)?;
        let ignored = vouchers.check_names(path, options, control)?;
        let root = folder_of(path, vouchers.is_folder);
        let length = |name: &String| {
            let path = root.join(name);
            Ok(std::fs::metadata(&path).map_err(|e| Error::io(path, e))?.len())
        };
        let (mut done, total) = (0, vouchers.names.iter().map(length).sum::<Result<u64>>()?);
        control.step(Progress { phase: "verify", done, total })?;
        let (mut files, mut maps, mut stamps, mut all) =
            (Vec::new(), BTreeMap::new(), Vec::new(), Sha256::new());
        for name in &vouchers.names {
            let path = root.join(name);
            let (mapped, metadata) = Mapped::open_with_metadata(&path)?;
            let bytes = mapped.bytes().len() as u64;
            vouchers.check_length(name, &path, bytes)?;
            let sha256 = sha256(&mapped, &mut |step| {
                done += step;
                // A file may have grown since its length was asked for.
                control.step(Progress { phase: "verify", done, total: total.max(done) })
            })?;
            vouchers.check_digest(name, &path, &sha256)?;
            all.update(sha256);
            files.push(VerifiedFile { name: name.clone(), bytes, sha256 });
            stamps.push((path.clone(), Stamp::of(&metadata)));
            maps.insert(path, mapped);
        }
        let report = Report {
            path: path.to_owned(),
            files,
            digest: all.finalize().into(),
            manifest: options.manifest.clone(),
            signature: vouchers.signature,
            ignored,
        };
        Ok(Self { report, files: Files::held(root.to_owned(), maps), stamps })
    }

    /// The digests of these files, if all are among those that were verified.
    pub fn digests(&self, files: impl Iterator<Item = FileInfo>) -> Option<Vec<[u8; 32]>> {
        let known: BTreeMap<&PathBuf, [u8; 32]> = self
            .stamps
            .iter()
            .map(|(path, _)| path)
            .zip(self.report.files.iter().map(|f| f.sha256))
            .collect();
        files.map(|file| known.get(&file.path).copied()).collect()
    }

    /// Fails if one of the files has been written to or replaced since its digest was computed. What was replaced would not be used, as the
    /// maps are those of the files that were verified; what is written to a file shows in its map.
    pub fn check_unchanged(&self) -> Result<()> {
        for (path, stamp) in &self.stamps {
            let now = std::fs::symlink_metadata(path).map_err(|e| Error::io(path, e))?;
            if Stamp::of(&now) != *stamp {
                let found = "a file that changed while it was used";
                return Err(Error::integrity(path.display(), found, "the file that was verified"));
            }
        }
        Ok(())
    }
}

/// Which file a path stood for, and when it was last written to.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    bytes: u64,
    modified: Option<std::time::SystemTime>,
    #[cfg(unix)]
    inode: (u64, u64, i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;
        Self {
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            inode: (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The files of a model by name, as a manifest or a signature has them.
#[derive(Debug)]
struct Claim {
    /// The file that says it, for errors.
    source: String,
    files: BTreeMap<String, Expected>,
}

#[derive(Clone, Copy, Debug)]
struct Expected {
    sha256: [u8; 32],
    bytes: Option<u64>,
}

impl Claim {
    /// Refuses names that are none of a file in the folder, and those that come twice.
    fn new(source: &str, entries: Vec<(String, Expected)>) -> Result<Self> {
        if entries.is_empty() || entries.len() > MAX_ENTRIES {
            let found = format!("{} files", entries.len());
            return Err(Error::format(source, "files", found, format!("1 to {MAX_ENTRIES}")));
        }
        let mut files = BTreeMap::new();
        for (name, expected) in entries {
            let shown = || name.chars().take(256).collect::<String>().escape_debug().to_string();
            if let Some(fault) = names::fault(&name) {
                return Err(Error::format(
                    source,
                    shown(),
                    fault,
                    "the name of a file in the folder of the model",
                ));
            }
            if files.contains_key(&name) {
                return Err(Error::format(source, shown(), "a name that comes twice", "each file once"));
            }
            files.insert(name, expected);
        }
        Ok(Self { source: source.to_owned(), files })
    }

    fn expected(&self, name: &str, path: &Path) -> Result<&Expected> {
        self.files.get(name).ok_or_else(|| {
            let expected = format!("the files of {}", self.source);
            Error::integrity(path.display(), "a file that nothing vouches for", expected)
        })
    }
}

/// All that vouches for a model.
struct Vouchers {
    claims: Vec<Claim>,
    signature: Option<VerifiedSignature>,
    is_folder: bool,
    /// The names of all files, in the order of their parts.
    names: Vec<String>,
}

impl Vouchers {
    fn read(path: &Path, options: &VerifyOptions) -> Result<Self> {
        check_options(options)?;
        let is_folder = std::fs::metadata(path).map_err(|e| Error::io(path, e))?.is_dir();
        let read = |file: &Path, what| Files::on_disk().read(file, MAX_CLAIM_BYTES, what);
        let (mut claims, mut signature) = (Vec::new(), None);
        if let Some(file) = &options.manifest {
            claims.push(manifest::parse(&file.display().to_string(), &read(file, "manifest")?)?);
        }
        if let Some(file) = &options.signature {
            let key = |(i, pem): (usize, &String)| PublicKey::from_pem(&format!("keys[{i}]"), pem);
            let keys = options.keys.iter().enumerate().map(key).collect::<Result<Vec<_>>>()?;
            let own_name = path.file_name().filter(|_| !is_folder).and_then(|name| name.to_str());
            let signed =
                bundle::open(&file.display().to_string(), &read(file, "signature")?, &keys, own_name)?;
            claims.push(signed.claim);
            signature = Some(VerifiedSignature {
                path: file.clone(),
                curve: signed.key.curve(),
                key: signed.key.id,
                model: signed.model,
                ignore_paths: signed.ignore_paths,
            });
        }
        let names: BTreeSet<&String> = claims.iter().flat_map(|claim| claim.files.keys()).collect();
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        // As model-signing sorts: `a/b` before `a.b`.
        names.sort_by(|a, b| a.split('/').cmp(b.split('/')));
        Ok(Self { claims, signature, is_folder, names })
    }

    /// Fails unless the files are there, and in a folder no others but those that may be ignored, which are returned.
    fn check_names(
        &self,
        path: &Path,
        options: &VerifyOptions,
        control: &Control<'_>,
    ) -> Result<Vec<String>> {
        if !self.is_folder {
            let root = folder_of(path, false);
            let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            for claim in &self.claims {
                claim.expected(&name, path)?;
            }
            self.names.iter().try_for_each(|name| names::check_file(root, name))?;
            return Ok(Vec::new());
        }
        let is_listed =
            |name: &String| self.names.binary_search_by(|n| n.split('/').cmp(name.split('/'))).is_ok();
        let own = [&options.manifest, &options.signature].into_iter().flatten();
        let own = own.filter_map(|file| names::inside(path, file)).filter(|name| !is_listed(name));
        let skip: Vec<String> = options.ignore.iter().cloned().chain(own).collect();
        if let Some(name) = self.names.iter().find(|name| names::is_under(name, &options.ignore)) {
            let found = format!("{name}, which the manifest or the signature lists");
            return Err(Error::argument("ignore", found, "names that nothing vouches for"));
        }
        let listing = Listing::read(path, &skip, control)?;
        if let Some(name) = self.names.iter().find(|name| !listing.files.contains(*name)) {
            return Err(names::missing(&path.join(name)));
        }
        match listing.files.iter().find(|name| !is_listed(name)) {
            Some(name) => Err(self.unexpected(&path.join(name), name)),
            None => Ok(listing.skipped),
        }
    }

    fn unexpected(&self, path: &Path, name: &str) -> Error {
        let left_out = self.signature.as_ref().is_some_and(|s| names::is_under(name, &s.ignore_paths));
        let found = match left_out {
            true => "a file that the signer left out, and the option `ignore` does not name",
            false => "a file that nothing vouches for",
        };
        let sources: Vec<&str> = self.claims.iter().map(|claim| claim.source.as_str()).collect();
        Error::integrity(path.display(), found, format!("only the files of {}", sources.join(" and ")))
    }

    fn check_length(&self, name: &str, path: &Path, bytes: u64) -> Result<()> {
        for claim in &self.claims {
            let expected = claim.expected(name, path)?.bytes.unwrap_or(bytes);
            if bytes != expected {
                let expected = format!("{expected}, as {} says", claim.source);
                return Err(Error::integrity(path.display(), format!("{bytes} bytes"), expected));
            }
        }
        Ok(())
    }

    fn check_digest(&self, name: &str, path: &Path, found: &[u8; 32]) -> Result<()> {
        for claim in &self.claims {
            let expected = claim.expected(name, path)?.sha256;
            if *found != expected {
                let expected = format!("{}, as {} says", hex(&expected), claim.source);
                return Err(Error::integrity(path.display(), format!("SHA-256 {}", hex(found)), expected));
            }
        }
        Ok(())
    }
}

fn check_options(options: &VerifyOptions) -> Result<()> {
    match (&options.manifest, &options.signature, options.keys.is_empty()) {
        (None, None, _) => {
            Err(Error::argument("verify", "neither a manifest nor a signature", "one of them"))
        }
        (_, Some(_), true) => {
            Err(Error::argument("keys", "none", "the public keys that a signature may be of"))
        }
        (_, None, false) => Err(Error::argument("keys", "keys without a signature", "both or none")),
        _ => match options.ignore.iter().enumerate().find_map(|(i, name)| Some((i, names::fault(name)?))) {
            Some((i, fault)) => Err(Error::argument(format!("ignore[{i}]"), fault, "a name in the folder")),
            None => Ok(()),
        },
    }
}

/// The folder that the names of a model are relative to.
fn folder_of(path: &Path, is_folder: bool) -> &Path {
    if is_folder { path } else { path.parent().unwrap_or(Path::new("")) }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What 64 lower-case hexadecimal digits stand for.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| (!byte.is_ascii_uppercase()).then(|| char::from(byte).to_digit(16)).flatten();
    let mut bytes = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}
