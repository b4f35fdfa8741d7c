//! Revisions of a repository as the steps of a run: found by name, fetched one at a time, and given back.
use super::{Failure, Hub, Id, MODELS, at, is_commit, is_inside, refused};
use crate::console::tell;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tanglescope_checkpoint::brief;
use tanglescope_records::write_whole;

/// A branch or a tag that is a step of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its name.
    pub name: String,
    /// The step that the name says.
    pub step: usize,
    /// The commit that it is.
    pub commit: String,
}

/// What the hub says of a repository's branches and tags.
#[derive(Deserialize)]
struct Refs {
    #[serde(default)]
    branches: Vec<Ref>,
    #[serde(default)]
    tags: Vec<Ref>,
}

#[derive(Deserialize)]
struct Ref {
    name: String,
    #[serde(rename = "targetCommit")]
    commit: String,
}

/// What stands in a step's folder once all data sets are measured there.
#[derive(Serialize, Deserialize, PartialEq, Eq)]
struct Measured {
    repository: String,
    revision: String,
    commit: String,
    /// What was asked for, as text.
    asked: String,
}

/// Name of the file that it is in.
const MEASURED: &str = "revision.json";

/// The step in a revision's name: the number behind `step`, or the last one.
fn step_in(name: &str) -> Option<usize> {
    let numbers = |text: &str| -> Vec<usize> {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    match name.rsplit_once("step") {
        Some((_, behind)) if !numbers(behind).is_empty() => numbers(behind).first().copied(),
        _ => numbers(name).last().copied(),
    }
}

/// Revisions that a pattern names, by step.
fn chosen(refs: BTreeMap<String, String>, pattern: &glob::Pattern, id: &Id) -> Result<Vec<Revision>> {
    let mut found: Vec<Revision> = Vec::new();
    for (name, commit) in refs.into_iter().filter(|(name, _)| pattern.matches(name)) {
        if !is_inside(&name) || !is_commit(&commit) {
            return Err(refused(id, format!("the hub names a revision `{}` that is none", brief(&name))));
        }
        let Some(step) = step_in(&name) else {
            tell!("{id}: revision {name} is left out: its name has no number of a step");
            continue;
        };
        if let Some(other) = found.iter().find(|other| other.step == step) {
            let problem =
                format!("revisions {} and {name} are both step {step}; choose them apart with --revisions", other.name);
            return Err(refused(id, problem));
        }
        found.push(Revision { name, step, commit });
    }
    found.sort_by_key(|revision| revision.step);
    if found.is_empty() {
        return Err(refused(id, format!("no revision with a step in its name matches --revisions `{pattern}`")));
    }
    Ok(found)
}

impl Hub {
    /// Branches and tags of a model's repository with their commits; those in the cache where nothing may be asked.
    fn refs(&self, id: &Id) -> Result<BTreeMap<String, String>> {
        if self.offline {
            let folder = self.cache.join(id.folder_name(MODELS)).join("refs");
            let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            let read = |entry: std::fs::DirEntry| {
                let commit = std::fs::read_to_string(entry.path()).ok()?;
                Some((entry.file_name().into_string().ok()?, commit.trim().to_owned()))
            };
            return Ok(entries.filter_map(read).collect());
        }
        let refuse = |failure: Failure| self.refusal(id, &failure);
        let Refs { branches, tags } = self.json(&format!("models/{}/refs", id.name)).map_err(refuse)?;
        Ok(branches.into_iter().chain(tags).map(|of| (of.name, of.commit)).collect())
    }

    /// Takes a snapshot out of the cache, with the contents that no other has.
    fn give_back(snapshot: &Path, revision: &Revision) -> Result<()> {
        let Some(folder) = snapshot.parent().and_then(Path::parent) else { return Ok(()) };
        let blobs = |snapshot: &Path| -> BTreeSet<PathBuf> {
            let mut left = vec![snapshot.to_owned()];
            let mut found = BTreeSet::new();
            while let Some(inside) = left.pop() {
                for entry in std::fs::read_dir(&inside).into_iter().flatten().flatten() {
                    let path = entry.path();
                    match entry.file_type() {
                        Ok(kind) if kind.is_dir() => left.push(path),
                        _ => found.extend(path.canonicalize()),
                    }
                }
            }
            found
        };
        let own = blobs(snapshot);
        std::fs::remove_dir_all(snapshot).map_err(|e| at(snapshot, e))?;
        let others = std::fs::read_dir(folder.join("snapshots")).into_iter().flatten().flatten();
        let kept: BTreeSet<PathBuf> = others.flat_map(|entry| blobs(&entry.path())).collect();
        for blob in own.difference(&kept) {
            std::fs::remove_file(blob).map_err(|e| at(blob, e))?;
        }
        let name = folder.join("refs").join(&revision.name);
        match std::fs::remove_file(&name) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(at(&name, e)),
            _ => Ok(()),
        }
    }
}

/// Measures revisions of a repository one after the other: `part` is which of them are done here, `folder` of a step where its results are,
/// `asked` what is asked for of each, on data sets of the names `data`, and `measure` does it with a step and the folder of its files, and says
/// what it left out. Of what was fetched, the last `keep` stay in the cache. Returns all that was left out.
///
/// # Errors
/// Where there are no such revisions, or one cannot be fetched or measured.
pub fn sweep_revisions(
    repository: &Path,
    pattern: &str,
    keep: Option<usize>,
    (asked, data): (&str, &[&str]),
    part: impl Fn(Vec<Revision>) -> Vec<Revision>,
    folder: impl Fn(usize) -> PathBuf,
    mut measure: impl FnMut(usize, &Path) -> Result<Vec<String>>,
) -> Result<Vec<String>> {
    let id = Id::of(repository).ok_or_else(|| {
        Error::Input(format!("--revisions: `{}` is no repository of the hub; expected org/name", repository.display()))
    })?;
    let pattern = glob::Pattern::new(pattern).map_err(|e| Error::Input(format!("--revisions `{pattern}`: {e}")))?;
    let hub = Hub::new()?;
    let (mut fetched, mut left_out) = (Vec::<(PathBuf, Revision)>::new(), Vec::new());
    for revision in part(chosen(hub.refs(&id)?, &pattern, &id)?) {
        let place = folder(revision.step).join(MEASURED);
        let now = Measured {
            repository: id.name.clone(),
            revision: revision.name.clone(),
            commit: revision.commit.clone(),
            asked: asked.to_owned(),
        };
        let there = std::fs::read(&place).ok().and_then(|text| serde_json::from_slice::<Measured>(&text).ok());
        let has =
            |folder: &Path| data.iter().all(|name| folder.join(format!("dataset={name}/manifest.json")).is_file());
        if there.is_some_and(|there| there == now) && place.parent().is_some_and(has) {
            tell!("{id}: {} is measured already", revision.name);
            continue;
        }
        let of = Id { name: id.name.clone(), revision: revision.commit.clone() };
        let was_there = hub.cache.join(id.folder_name(MODELS)).join("snapshots").join(&revision.commit).exists();
        let files = match hub.fetch_either(&of) {
            Ok(files) => files,
            Err(problem) => {
                tell!("{id}: revision {} is left out: {problem}", revision.name);
                left_out.push(format!("step {}", revision.step));
                continue;
            }
        };
        if !was_there {
            fetched.push((files.clone(), revision.clone()));
        }
        let missed = measure(revision.step, &files)?;
        if missed.is_empty() {
            let text = serde_json::to_vec_pretty(&now).map_err(|e| at(&place, e))?;
            write_whole(&place, &text).map_err(tanglescope::Error::from)?;
        }
        left_out.extend(missed);
        while keep.is_some_and(|keep| fetched.len() > keep) {
            let (snapshot, revision) = fetched.remove(0);
            Hub::give_back(&snapshot, &revision)?;
        }
    }
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use super::step_in;

    #[test]
    fn the_step_of_a_revision_is_in_its_name() {
        let steps = [
            ("step1000", Some(1000)),
            ("step0", Some(0)),
            ("stage1-step7000-tokens30B", Some(7000)),
            ("global_step_20", Some(20)),
            ("checkpoint-50", Some(50)),
            ("v2-epoch3", Some(3)),
            ("main", None),
        ];
        for (name, step) in steps {
            assert_eq!(step_in(name), step, "{name}");
        }
    }
}
