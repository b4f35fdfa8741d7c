//! The sweeps that records are of: in which order their runs were given, and where each run trained.
use crate::error::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use tanglescope_records::{Leaf, Manifest, SweepManifest, absolute, find_some, folders_with, tables};

/// Manifests of sweeps, by the sweep's folder.
pub(crate) struct Sweeps(BTreeMap<PathBuf, SweepManifest>);

/// A path that is the same however a folder is spelled or linked to.
pub(crate) fn whole(folder: &Path) -> PathBuf {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

/// The sweep's folder and the run's name in it, of a record below `run=…`.
pub(crate) fn swept(leaf: &Leaf) -> Option<(PathBuf, String)> {
    // as the path is given: a run's folder may be a link to one without its name
    absolute(&leaf.folder).ancestors().find_map(|at| {
        let name = at.file_name()?.to_string_lossy().strip_prefix("run=")?.to_owned();
        Some((whole(at.parent()?), name))
    })
}

impl Sweeps {
    /// Those in some folders, and those that records are of whose own folders alone were given.
    pub fn of(folders: &[PathBuf], leaves: &[Leaf]) -> Result<Self> {
        let mut at: BTreeSet<PathBuf> =
            folders_with(folders, "manifest.json")?.iter().map(|folder| whole(folder)).collect();
        at.extend(leaves.iter().filter_map(|leaf| Some(swept(leaf)?.0)));
        let read = |folder: PathBuf| match Manifest::read(&folder) {
            Ok(Some(Manifest::Sweep(sweep))) => Some((folder, *sweep)),
            // other programs' files may have that name too
            _ => None,
        };
        Ok(Self(at.into_iter().filter_map(read).collect()))
    }

    /// The place of a record's run among those of its sweep, in the order in which they were given.
    pub fn place(&self, leaf: &Leaf) -> usize {
        let Some((sweep, name)) = swept(leaf) else { return 0 };
        let order = self.0.get(&sweep).map_or(&[][..], |sweep| sweep.order.as_slice());
        order.iter().position(|of| *of == name).unwrap_or(usize::MAX)
    }

    /// The folder of the run that a record is of, as its sweep knew it.
    pub fn run_folder(&self, leaf: &Leaf) -> Option<PathBuf> {
        let (sweep, name) = swept(leaf)?;
        Some(whole(&self.0.get(&sweep)?.runs.get(&name)?.folder))
    }

    /// The runs that trained here: their folders, and the names that sweeps gave them.
    pub fn trained(&self) -> impl Iterator<Item = (PathBuf, &str)> {
        let all = self.0.values().flat_map(|sweep| &sweep.runs).map(|(name, run)| (whole(&run.folder), name.as_str()));
        all.filter(|(folder, _)| folder.join(tables::STEPS).is_dir())
    }
}

/// The folders that a report of some folders is made from: those, and of the training runs that sweeps in them were of.
#[must_use]
pub fn sources(folders: &[PathBuf]) -> Vec<PathBuf> {
    // what cannot be read yet has no runs
    let sweeps = find_some(folders).ok().and_then(|leaves| Sweeps::of(folders, &leaves).ok());
    let runs = sweeps.iter().flat_map(Sweeps::trained).map(|(folder, _)| folder);
    folders.iter().cloned().chain(runs).collect()
}
