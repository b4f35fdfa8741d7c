//! Models, adapters and data sets of the Hugging Face hub, through the cache, token, endpoint and offline variables that
//! `huggingface_hub` reads.
mod revisions;
mod transfer;

pub use revisions::sweep_revisions;

use crate::console::tell;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::env::var;
use std::path::{Component, Path, PathBuf};
use tanglescope_checkpoint::{brief, file_names, shards};
use tanglescope_data::wanted;
use transfer::{Failure, Transfer, is_what_was_asked};

/// A repository that cannot be used as it was named.
fn refused(id: &Id, problem: impl std::fmt::Display) -> Error {
    Error::Input(format!("{id}: {problem}"))
}

/// A file of the cache that cannot be read or written.
fn at(path: &Path, problem: impl std::fmt::Display) -> Error {
    Error::Failed(format!("{}: {problem}", path.display()))
}

/// What a repository is fetched as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepositoryKind<'a> {
    /// Config, weights and tokenizer.
    Model,
    /// A PEFT adapter.
    Adapter,
    /// The files of a part of a data set.
    Data(Option<&'a str>),
}

/// Files of a model beside its weights that are read where they are there.
const BESIDE_WEIGHTS: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"];

/// A repository by its name: `org/name`, or `org/name@revision`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Id {
    name: String,
    revision: String,
}

impl Id {
    /// The repository that a path names, where it is none on this machine.
    fn of(path: &Path) -> Option<Self> {
        let text = path.to_str()?;
        let (name, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
        };
        let parts: Vec<&str> = name.split('/').collect();
        let is_id = parts.len() == 2 && parts.into_iter().all(plain) && !revision.is_empty();
        (is_id && !path.exists()).then(|| Self { name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// Whether a name leads nowhere but inside the folder that it is put into.
fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Whether a text is the hash of a commit.
fn is_commit(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What models are under, on the hub and in the cache.
const MODELS: &str = "models";

impl Id {
    /// Its folder in the cache, as one of a kind.
    fn folder_name(&self, kind: &str) -> String {
        format!("{kind}--{}", self.name.replace('/', "--"))
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == "main" { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

/// A folder on this machine with what a path or the name of a repository stands for.
///
/// # Errors
/// Where a repository is not there, is not to be had, or cannot be kept.
pub fn resolve(path: &Path, kind: RepositoryKind<'_>) -> Result<PathBuf> {
    match Id::of(path) {
        None => Ok(path.to_owned()),
        Some(id) => Hub::new()?.fetch(&id, kind),
    }
}

/// The same of a model or of an adapter, whichever it is.
///
/// # Errors
/// Where a repository is not there, is not to be had, or cannot be kept.
pub fn resolve_either(path: &Path) -> Result<PathBuf> {
    match Id::of(path) {
        None => Ok(path.to_owned()),
        Some(id) => Hub::new()?.fetch_either(&id),
    }
}

/// Whether a variable is set to what `huggingface_hub` takes for yes.
fn is_on(name: &str) -> bool {
    var(name).is_ok_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str()))
}

/// A variable's value, where it has one that is not empty.
fn set(name: &str) -> Option<String> {
    var(name).ok().filter(|value| !value.is_empty())
}

/// The folder under which everything of Hugging Face is kept.
fn home() -> Option<PathBuf> {
    let folder = |name: &str| set(name).map(PathBuf::from);
    folder("HF_HOME")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(std::env::home_dir()?.join(".cache/huggingface")))
}

fn cache_folder() -> Result<PathBuf> {
    let named = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE")).map(PathBuf::from);
    let folder = named.or_else(|| Some(home()?.join("hub")));
    folder.ok_or_else(|| Error::Failed("there is no home folder to keep downloads in; set HF_HOME".to_owned()))
}

fn token() -> Option<String> {
    let clean = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let set = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"].into_iter().find_map(|name| clean(var(name).ok()?));
    let path = || var("HF_TOKEN_PATH").map(PathBuf::from).ok().or_else(|| Some(home()?.join("token")));
    set.or_else(|| clean(std::fs::read_to_string(path()?).ok()?))
}

/// What the hub says of a repository.
#[derive(Deserialize)]
struct RepositoryInfo {
    sha: String,
    siblings: Vec<Sibling>,
}

/// A file of a repository.
#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The hub, and the cache of what was fetched from it.
struct Hub {
    transfer: Transfer,
    cache: PathBuf,
    endpoint: String,
    offline: bool,
}

impl Hub {
    fn new() -> Result<Self> {
        let cache = cache_folder()?;
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let transfer = Transfer::new(&endpoint, token()).map_err(Error::Input)?;
        Ok(Self { transfer, cache, endpoint, offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE") })
    }

    /// What the hub answers, as what it is.
    fn json<T: DeserializeOwned>(&self, path: &str) -> std::result::Result<T, Failure> {
        let text = self.transfer.text(&format!("{}/api/{path}", self.endpoint))?;
        serde_json::from_str(&text).map_err(|e| Failure::Answer(format!("{path}: not what a hub answers: {e}")))
    }

    fn fetch(&self, id: &Id, kind: RepositoryKind<'_>) -> Result<PathBuf> {
        let kind_of = match kind {
            RepositoryKind::Data(_) => "datasets",
            RepositoryKind::Model | RepositoryKind::Adapter => MODELS,
        };
        let cached = Cached { folder: self.cache.join(id.folder_name(kind_of)), id };
        if self.offline {
            let problem = "HF_HUB_OFFLINE is set";
            return cached.snapshot(kind).ok_or_else(|| self.missing(id, problem));
        }
        let info: RepositoryInfo =
            match self.json(&format!("{kind_of}/{}/revision/{}", id.name, id.revision.replace('/', "%2F"))) {
                Ok(info) => info,
                Err(Failure::Unreachable(problem)) => {
                    let Some(folder) = cached.snapshot(kind) else {
                        return Err(self.missing(id, &format!("{} cannot be reached ({problem})", self.endpoint)));
                    };
                    tell!("{id}: the hub cannot be reached; the copy in the cache is used");
                    return Ok(folder);
                }
                Err(error) => return Err(self.refusal(id, &error)),
            };
        let odd = info.siblings.iter().find(|file| !is_inside(&file.rfilename));
        if !is_commit(&info.sha) || odd.is_some() {
            let name = odd.map_or(&info.sha, |file| &file.rfilename);
            return Err(refused(
                id,
                format!("the hub names `{}`, which is no name of a file or a commit", brief(name)),
            ));
        }
        let names: BTreeSet<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        let snapshot = cached.folder.join("snapshots").join(&info.sha);
        // the files of one commit, whatever the name stands for a moment later
        let start = if kind_of == MODELS { String::new() } else { format!("{kind_of}/") };
        let files = format!("{}/{start}{}/resolve/{}", self.endpoint, id.name, info.sha);
        let first = self.first(id, kind, &names)?;
        for name in &first {
            self.file(&files, &cached, &snapshot, name)?;
        }
        if let Some(index) = first.iter().find(|name| name.ends_with(".index.json")) {
            let named = shards(&snapshot.join(index)).map_err(|e| Error::Failed(e.to_string()))?;
            for name in named.keys() {
                self.file(&files, &cached, &snapshot, name)?;
            }
        }
        if id.revision != info.sha {
            cached.name(&info.sha)?;
        }
        Ok(snapshot)
    }

    /// The same of a model, or of an adapter where it has none.
    fn fetch_either(&self, id: &Id) -> Result<PathBuf> {
        self.fetch(id, RepositoryKind::Model)
            .or_else(|problem| self.fetch(id, RepositoryKind::Adapter).map_err(|_| problem))
    }

    /// The files that are wanted of those that there are; shards are named by the index among them.
    fn first(&self, id: &Id, kind: RepositoryKind<'_>, names: &BTreeSet<String>) -> Result<Vec<String>> {
        let weights = |stem: &str| {
            let [[safetensors, _], [torch, _]] = file_names(stem);
            let problem =
                || refused(id, format!("has no {safetensors} and no {torch}, nor an index of shards of either"));
            file_names(stem).into_iter().flatten().find(|name| names.contains(name)).ok_or_else(problem)
        };
        let (config, stem) = match kind {
            RepositoryKind::Model => ("config.json", "model"),
            RepositoryKind::Adapter => ("adapter_config.json", "adapter_model"),
            RepositoryKind::Data(split) => {
                let all: Vec<String> = names.iter().cloned().collect();
                let found = wanted(&all, split);
                let problem = || match split {
                    Some(split) => format!("has no data files of a part `{split}`"),
                    None => "has no data files (data sets that a script makes are not run)".to_owned(),
                };
                return if found.is_empty() { Err(refused(id, problem())) } else { Ok(found) };
            }
        };
        if !names.contains(config) {
            return Err(refused(id, format!("has no {config} on {}: it is no such repository", self.endpoint)));
        }
        let mut wanted = vec![config.to_owned()];
        if kind == RepositoryKind::Model {
            wanted.extend(BESIDE_WEIGHTS.into_iter().filter(|name| names.contains(*name)).map(str::to_owned));
        }
        wanted.push(weights(stem)?);
        Ok(wanted)
    }

    /// Brings a file into the snapshot: as it is in the cache, or from the hub, from where an earlier download broke off.
    fn file(&self, files: &str, cached: &Cached<'_>, snapshot: &Path, name: &str) -> Result<()> {
        let (id, place) = (cached.id, snapshot.join(name));
        if place.exists() {
            return Ok(());
        }
        let refuse = |failure: Failure| self.refusal(id, &failure);
        let url = format!("{files}/{name}");
        let about = self.transfer.about(&url).map_err(refuse)?;
        let blob = cached.folder.join("blobs").join(&about.etag);
        let (part, lock) = (blob.with_extension("part"), blob.with_extension("lock"));
        std::fs::create_dir_all(blob.parent().unwrap_or(&blob)).map_err(|e| at(&blob, e))?;
        // a second process waits, and finds it there
        let held = std::fs::File::create(&lock).and_then(|file| file.lock().map(|()| file));
        let _held = held.map_err(|e| at(&lock, e))?;
        let length = |path: &Path| std::fs::metadata(path).ok().map(|of| of.len());
        if length(&blob).is_none_or(|length| about.size.is_some_and(|size| size != length)) {
            let size = about.size.map_or_else(String::new, |size| format!(", {:.1} MB", size as f64 / 1e6));
            tell!("{id}: {name}{size}");
            // a part that is longer than all of it is of something else
            if length(&part).is_some_and(|length| about.size.is_some_and(|size| length > size)) {
                std::fs::remove_file(&part).map_err(|e| at(&part, e))?;
            }
            if length(&part).is_none_or(|length| about.size != Some(length)) {
                self.transfer.download(&url, &about, &part).map_err(refuse)?;
            }
            if !is_what_was_asked(&part, &about).map_err(|e| at(&part, e))? {
                std::fs::remove_file(&part).map_err(|e| at(&part, e))?;
                let problem = "did not arrive as it is on the hub, and was not kept; run the command again";
                return Err(Error::Failed(format!("{id}: {name}: {problem}")));
            }
            std::fs::rename(&part, &blob).map_err(|e| at(&part, e))?;
        }
        if place.exists() { Ok(()) } else { link(&blob, &place) }
    }

    fn missing(&self, id: &Id, problem: &str) -> Error {
        let place = self.cache.display();
        let what = "is no folder here, and not whole in the cache";
        refused(id, format!("{what} ({place}), and {problem}; fetch it first where the hub can be reached"))
    }

    fn refusal(&self, id: &Id, failure: &Failure) -> Error {
        let problem = match failure {
            Failure::Status(401 | 403) => {
                "the hub does not let this user at it: it is private, gated or not there. Accept its terms on its \
                 page, and log in with `hf auth login` or set HF_TOKEN"
                    .to_owned()
            }
            Failure::Status(404) => format!("is no folder here, and no repository or revision of {}", self.endpoint),
            Failure::Status(429) => {
                "the hub asks to be left alone for a while (too many requests); try again in some minutes".to_owned()
            }
            other => format!("cannot be fetched from {}: {other}", self.endpoint),
        };
        refused(id, problem)
    }
}

/// What of a repository is in the cache.
struct Cached<'a> {
    folder: PathBuf,
    id: &'a Id,
}

impl Cached<'_> {
    /// The snapshot of the revision, where it has all that is wanted.
    fn snapshot(&self, kind: RepositoryKind<'_>) -> Option<PathBuf> {
        let named = std::fs::read_to_string(self.folder.join("refs").join(&self.id.revision));
        let commit = named.map_or_else(|_| self.id.revision.clone(), |commit| commit.trim().to_owned());
        let snapshot = self.folder.join("snapshots").join(commit);
        let has = |name: &str| snapshot.join(name).exists();
        let weights = |stem: &str| {
            let all = |index: &str| shards(&snapshot.join(index)).is_ok_and(|named| named.keys().all(|name| has(name)));
            file_names(stem).iter().any(|[single, index]| has(single) || all(index))
        };
        let whole = match kind {
            RepositoryKind::Model => has("config.json") && weights("model"),
            RepositoryKind::Adapter => has("adapter_config.json") && weights("adapter_model"),
            RepositoryKind::Data(_) => snapshot.is_dir(),
        };
        whole.then_some(snapshot)
    }

    /// Remembers which commit a revision is.
    fn name(&self, commit: &str) -> Result<()> {
        let path = self.folder.join("refs").join(&self.id.revision);
        let written =
            path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, commit));
        written.map_err(|e| at(&path, e))
    }
}

/// A relative link, as the cache has them, or a copy where the system has no links.
fn link(blob: &Path, place: &Path) -> Result<()> {
    let refuse = |e: std::io::Error| at(place, e);
    std::fs::create_dir_all(place.parent().unwrap_or(place)).map_err(refuse)?;
    // a link to what is no longer there
    if place.symlink_metadata().is_ok() {
        std::fs::remove_file(place).map_err(refuse)?;
    }
    #[cfg(unix)]
    {
        let depth =
            place.components().count() - blob.parent().and_then(Path::parent).map_or(0, |p| p.components().count());
        let up: PathBuf = std::iter::repeat_n("..", depth - 1).collect();
        let name = blob.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(up.join("blobs").join(name), place).map_err(refuse)
    }
    #[cfg(not(unix))]
    std::fs::copy(blob, place).map(drop).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::Id;
    use std::path::Path;

    #[test]
    fn names_of_repositories_are_told_from_paths() {
        let of = |text: &str| Id::of(Path::new(text));
        let id = of("org/name").unwrap();
        assert_eq!((id.name.as_str(), id.revision.as_str()), ("org/name", "main"));
        assert_eq!(of("org/na.me-2@v1/x").unwrap().revision, "v1/x");
        for path in ["name", "/org/name", "./org/name", "org/name/more", "../org", "org/na me", "src/main.rs", "org/@x"]
        {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
