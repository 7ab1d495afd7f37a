//! Which files a path stands for: exactly one set of weights and its configuration.

use std::path::{Path, PathBuf};

use super::files::Files;
use super::safetensors::Index;
use crate::error::{Error, Result};

/// The files of one checkpoint.
pub(crate) struct Layout {
    pub folder: PathBuf,
    pub weights: Weights,
    pub config_json: Option<PathBuf>,
    pub params_json: Option<PathBuf>,
}

/// The files that hold tensors.
pub(crate) enum Weights {
    Safetensors {
        files: Vec<PathBuf>,
        index: Option<Index>,
    },
    /// In order of split number.
    Gguf(Vec<PathBuf>),
}

/// Finds the checkpoint that `path`, a folder or a file, stands for.
pub(crate) fn find(path: &Path, files: &Files) -> Result<Layout> {
    if files.is_folder(path)? {
        return Folder { path: path.to_owned(), names: files.names(path)?, files }.layout();
    }
    let folder = path.parent().unwrap_or(Path::new("")).to_owned();
    let file_name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let weights = single_file(path, &folder, &file_name, files)?;
    let (config_json, params_json) =
        (files.beside(&folder, "config.json"), files.beside(&folder, "params.json"));
    Ok(Layout { config_json, params_json, folder, weights })
}

fn single_file(path: &Path, folder: &Path, name: &str, files: &Files) -> Result<Weights> {
    let with_siblings = || match Shard::parse(name) {
        Some(shard) => (1..=shard.count).map(|number| folder.join(shard.sibling(number))).collect(),
        None => vec![path.to_owned()],
    };
    if name.ends_with(".gguf") {
        return Ok(Weights::Gguf(with_siblings()));
    }
    if name.ends_with(".safetensors") {
        return Ok(Weights::Safetensors { files: with_siblings(), index: None });
    }
    if name.ends_with(".safetensors.index.json") {
        let index = Index::read(path, files)?;
        return Ok(Weights::Safetensors { files: index.shards(), index: Some(index) });
    }
    if is_pickle(name) {
        return Err(pickle_error(name));
    }
    // Content stores keep files under names without a suffix.
    if super::gguf::has_magic(path, files)? {
        return Ok(Weights::Gguf(vec![path.to_owned()]));
    }
    Err(Error::unsupported("file", path.display(), "a folder, a .gguf file or a .safetensors file"))
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt", ".pkl"].iter().any(|suffix| name.ends_with(suffix))
}

fn pickle_error(name: impl ToString) -> Error {
    Error::unsupported(
        "weights",
        format!("{} (a Python pickle can run code when it is read)", name.to_string()),
        "safetensors, GGUF",
    )
}

/// A name of the form `stem-00001-of-00004.suffix`.
struct Shard<'a> {
    stem: &'a str,
    count: usize,
    suffix: &'a str,
}

impl<'a> Shard<'a> {
    /// More shards than this are refused: five digits are written, and files in the hundreds are the most published.
    const MAX: usize = 99_999;

    fn parse(name: &'a str) -> Option<Self> {
        let (rest, suffix) = name.rsplit_once('.')?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let digits = |text: &str| {
            (text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit()))
                .then(|| text.parse::<usize>().ok())
                .flatten()
        };
        let (number, count) = (digits(number)?, digits(count)?);
        (1..=count.min(Self::MAX)).contains(&number).then_some(Self { stem, count, suffix })
    }

    fn sibling(&self, number: usize) -> String {
        format!("{}-{number:05}-of-{:05}.{}", self.stem, self.count, self.suffix)
    }
}

/// A folder and the names in it, sorted.
struct Folder<'a> {
    path: PathBuf,
    names: Vec<String>,
    files: &'a Files,
}

/// One way to load a folder.
struct Set {
    files: Vec<PathBuf>,
    index: Option<Index>,
}

impl Set {
    fn is_complete(&self, files: &Files) -> bool {
        self.files.iter().all(|file| files.is_file(file))
    }
}

impl Folder<'_> {
    fn layout(self) -> Result<Layout> {
        let config_json = self.file("config.json");
        let params_json = self.file("params.json");
        let ggufs = self.gguf_files()?;
        if let Some(gguf) = ggufs.first() {
            if let Some(other) = self.names.iter().find(|name| name.ends_with(".safetensors")) {
                let found = format!("weights in two formats: {} and {other}", gguf.display());
                return Err(self.error(found, "one of them, or the path of the file itself"));
            }
            return Ok(Layout { folder: self.path, weights: Weights::Gguf(ggufs), config_json, params_json });
        }
        // Mistral publishes folders that hold its own files and a Hugging Face conversion of the same model: its own
        // are the original. Each set needs its own configuration to be preferred.
        let native = self.native_set()?;
        let is_complete = |set: &Option<Set>| set.as_ref().is_some_and(|set| set.is_complete(self.files));
        let set = if params_json.is_some() && is_complete(&native) {
            native
        } else {
            let hf = self.hf_set()?;
            let hf_fits = config_json.is_some() && is_complete(&hf);
            if native.is_some() && !hf_fits { native } else { hf }
        };
        let Some(Set { files, index }) = set else { return Err(self.nothing_to_load()) };
        Ok(Layout {
            folder: self.path,
            weights: Weights::Safetensors { files, index },
            config_json,
            params_json,
        })
    }

    /// The GGUF model of the folder, split or not; vision projectors of llama.cpp (`mmproj*`) are not models.
    fn gguf_files(&self) -> Result<Vec<PathBuf>> {
        let is_model = |name: &&String| name.ends_with(".gguf") && !name.starts_with("mmproj");
        let names: Vec<&String> = self.names.iter().filter(is_model).collect();
        let [first, ..] = names.as_slice() else { return Ok(Vec::new()) };
        let expected: Vec<String> = match Shard::parse(first) {
            Some(shard) => (1..=shard.count).map(|number| shard.sibling(number)).collect(),
            None => vec![(*first).clone()],
        };
        if let Some(stranger) = names.iter().find(|name| !expected.contains(name)) {
            return Err(self.error(
                format!("several models: {first} and {stranger}"),
                "one, or the path of the file itself",
            ));
        }
        Ok(expected.iter().map(|name| self.path.join(name)).collect())
    }

    /// `consolidated.safetensors`, or `consolidated-*.safetensors` with or without an index.
    fn native_set(&self) -> Result<Option<Set>> {
        self.set("consolidated", |name| name.starts_with("consolidated") && name.ends_with(".safetensors"))
    }

    /// `model.safetensors`, or shards with or without an index; any other single safetensors file will do too.
    fn hf_set(&self) -> Result<Option<Set>> {
        if let Some(set) =
            self.set("model", |name| name.starts_with("model-") && Shard::parse(name).is_some())?
        {
            return Ok(Some(set));
        }
        let others: Vec<&String> = self
            .names
            .iter()
            .filter(|name| name.ends_with(".safetensors") && !name.starts_with("consolidated"))
            .collect();
        match others.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(Set { files: vec![self.path.join(only)], index: None })),
            [first, second, ..] => Err(self.error(
                format!("several safetensors files: {first} and {second}"),
                "model.safetensors, an index, or the path of the file itself",
            )),
        }
    }

    fn set(&self, stem: &str, is_shard: impl Fn(&str) -> bool) -> Result<Option<Set>> {
        if let Some(file) = self.file(&format!("{stem}.safetensors")) {
            return Ok(Some(Set { files: vec![file], index: None }));
        }
        if let Some(path) = self.file(&format!("{stem}.safetensors.index.json")) {
            let index = Index::read(&path, self.files)?;
            return Ok(Some(Set { files: index.shards(), index: Some(index) }));
        }
        let shards: Vec<&str> = self.names.iter().map(String::as_str).filter(|name| is_shard(name)).collect();
        let Some(first) = shards.first() else { return Ok(None) };
        let files = match Shard::parse(first) {
            Some(shard) => {
                let all: Vec<String> = (1..=shard.count).map(|number| shard.sibling(number)).collect();
                if let Some(stranger) = shards.iter().find(|name| !all.iter().any(|known| known == *name)) {
                    let found = format!("shards of different sets: {first} and {stranger}");
                    return Err(self.error(found, "the shards of one set"));
                }
                all
            }
            None => shards.iter().map(|name| (*name).to_owned()).collect(),
        };
        Ok(Some(Set { files: files.iter().map(|name| self.path.join(name)).collect(), index: None }))
    }

    fn file(&self, name: &str) -> Option<PathBuf> {
        self.names.iter().any(|known| known == name).then(|| self.path.join(name))
    }

    fn error(&self, found: impl ToString, expected: impl ToString) -> Error {
        Error::format(self.path.display(), "the folder", found, expected)
    }

    fn nothing_to_load(&self) -> Error {
        match self.names.iter().find(|name| is_pickle(name)) {
            Some(pickle) => pickle_error(self.path.join(pickle).display()),
            None => self.error(
                format!("no weights among {} entries", self.names.len()),
                "model.safetensors, consolidated.safetensors, shards of either, or one .gguf file",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names() {
        let shard = Shard::parse("model-00002-of-00004.safetensors").unwrap();
        assert_eq!((shard.stem, shard.count, shard.suffix), ("model", 4, "safetensors"));
        assert_eq!(shard.sibling(4), "model-00004-of-00004.safetensors");
        for name in
            ["model.safetensors", "model-00005-of-00004.gguf", "model-00000-of-00004.gguf", "m-1-of-2.gguf"]
        {
            assert!(Shard::parse(name).is_none(), "{name}");
        }
    }
}
