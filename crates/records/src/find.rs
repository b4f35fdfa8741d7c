//! Where records are: folders of `analyze`, and the run=…/step=…/dataset=… folders of a sweep.
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::parts::{Table, read};
use crate::tables;
use polars_core::prelude::DataFrame;
use polars_io::HiveOptions;
use polars_lazy::prelude::{LazyFrame, ScanArgsParquet};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The records of one model on one data set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leaf {
    /// The training run that the model is of, or the folder's name.
    pub run: String,
    /// Steps that it was trained for, where the folder says so.
    pub step: Option<u64>,
    /// The data set.
    pub dataset: String,
    /// Where the tables are.
    pub folder: PathBuf,
}

/// The records in some folders and the folders in them, by run, step and data set.
///
/// # Errors
/// Where a folder cannot be read, or has no records.
pub fn find(folders: &[PathBuf]) -> Result<Vec<Leaf>> {
    for folder in folders {
        if find_some(std::slice::from_ref(folder))?.is_empty() {
            return Err(Error::given(
                folder,
                "has no records: no pairs.parquet with a part in it, or in any folder in it",
            ));
        }
    }
    find_some(folders)
}

/// The same, where not every folder needs to have records.
///
/// # Errors
/// Where a folder cannot be read. Folders without a part yet are left out.
pub fn find_some(folders: &[PathBuf]) -> Result<Vec<Leaf>> {
    if let Some(folder) = folders.iter().find(|folder| folder.to_str().is_none()) {
        return Err(Error::given(
            folder,
            "its path is not UTF-8, which the reader of tables needs; give the folder another name",
        ));
    }
    let mut leaves = folders_with(folders, tables::PAIRS)?.iter().map(|at| Leaf::of(at)).collect::<Result<Vec<_>>>()?;
    // of a run that is at work, or was killed, before its first part
    leaves.retain(|leaf| leaf.table(tables::PAIRS).is_ok_and(|pairs| pairs.is_some()));
    // shards of a run, its steps and its data sets stay one run; two sweeps of it are two
    let named: Vec<_> =
        leaves.iter().map(|leaf| (leaf.run.clone(), leaf.place(), (leaf.step, leaf.dataset.clone()))).collect();
    for (leaf, run) in leaves.iter_mut().zip(tell_apart(&named)) {
        leaf.run = run;
    }
    leaves.sort();
    Ok(leaves)
}

/// The folders that have a table, among some folders and all folders in them: each once, however it is spelled or linked to,
/// and as it was first come by.
///
/// # Errors
/// Where a folder cannot be read.
pub fn folders_with(folders: &[PathBuf], table: &str) -> Result<Vec<PathBuf>> {
    let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
    folders.iter().try_for_each(|folder| search(folder, table, &mut seen, &mut found))?;
    Ok(found)
}

fn search(folder: &Path, table: &str, seen: &mut BTreeSet<PathBuf>, found: &mut Vec<PathBuf>) -> Result<()> {
    // links may lead back to where they are
    if !seen.insert(folder.canonicalize().map_err(|e| Error::given(folder, e))?) {
        return Ok(());
    }
    if folder.join(table).exists() {
        found.push(folder.to_owned());
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::new(folder, e))?;
    let mut inner: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    inner.sort();
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    let is_table = |path: &Path| path.extension().is_some_and(|extension| extension == "parquet");
    inner.iter().filter(|path| !hidden(path) && !is_table(path)).try_for_each(|path| search(path, table, seen, found))
}

/// A path that stands for the same from wherever it is read; links in it stay as they are.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Names of things that each have a name, the folders that they are in, and what else tells them apart: where several have
/// all the same name and the rest equal too, as much of the path stands in front of the names as tells them apart.
#[must_use]
pub fn tell_apart<K: Ord>(named: &[(String, Vec<String>, K)]) -> Vec<String> {
    let mut by_name: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    named.iter().enumerate().for_each(|(at, (name, ..))| by_name.entry(name).or_default().push(at));
    let mut told = vec![String::new(); named.len()];
    for of in by_name.into_values() {
        let long = |at: usize, depth: usize| {
            let (name, place, _) = &named[at];
            let parents = place[place.len().saturating_sub(depth)..].iter();
            parents.chain([name]).map(String::as_str).collect::<Vec<_>>().join("/")
        };
        let apart = |depth: &usize| {
            let keys = of.iter().map(|&at| (long(at, *depth), &named[at].2));
            keys.collect::<BTreeSet<_>>().len() == of.len()
        };
        let most = of.iter().map(|&at| named[at].1.len()).max().unwrap_or(0);
        let depth = (0..most).find(apart).unwrap_or(most);
        of.iter().for_each(|&at| told[at] = long(at, depth));
    }
    told
}

impl Leaf {
    /// What a folder's path and manifest say of it.
    fn of(folder: &Path) -> Result<Self> {
        let names: Vec<String> = absolute(folder).iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let part = |key: &str| names.iter().rev().find_map(|name| name.strip_prefix(key)).map(str::to_owned);
        let dataset = match part("dataset=") {
            Some(name) => name,
            None => match Manifest::read(folder)? {
                Some(Manifest::Analysis(manifest)) => manifest.dataset().unwrap_or_default(),
                _ => String::new(),
            },
        };
        Ok(Self {
            run: part("run=").or_else(|| names.last().cloned()).unwrap_or_default(),
            step: part("step=").and_then(|step| step.parse().ok()),
            dataset,
            folder: folder.to_owned(),
        })
    }

    /// The folders that the run's own is in.
    fn place(&self) -> Vec<String> {
        let mut names: Vec<String> =
            absolute(&self.folder).iter().skip(1).map(|name| name.to_string_lossy().into_owned()).collect();
        let run = names.iter().rposition(|name| name.starts_with("run="));
        names.truncate(run.unwrap_or(names.len().saturating_sub(1)));
        names
    }

    /// A name for messages.
    #[must_use]
    pub fn title(&self) -> String {
        let step = self.step.map_or(String::new(), |step| format!(", step {step}"));
        format!("{}{step}, {}", self.run, self.dataset)
    }

    /// A table of these records; `None` where it was not written.
    ///
    /// # Errors
    /// Where a part is damaged.
    pub fn table(&self, name: &str) -> Result<Option<Records>> {
        let mut parts = Table::at(&self.folder, name).parts()?;
        if self.folder.join(name).is_file() {
            parts.push(self.folder.join(name));
        }
        Ok((!parts.is_empty()).then_some(Records { parts }))
    }

    /// The pairs of these records.
    ///
    /// # Errors
    /// Where there are none, or a part is damaged.
    pub fn pairs(&self) -> Result<Records> {
        let path = self.folder.join(tables::PAIRS);
        self.table(tables::PAIRS)?.ok_or_else(|| Error::new(&path, "has no parts"))
    }
}

/// A table that is read as it is needed.
#[derive(Clone, Debug)]
pub struct Records {
    parts: Vec<PathBuf>,
}

impl Records {
    /// A table of some files.
    #[must_use]
    pub fn of(parts: Vec<PathBuf>) -> Self {
        Self { parts }
    }

    /// Its files, in the order of their rows.
    #[must_use]
    pub fn parts(&self) -> &[PathBuf] {
        &self.parts
    }

    /// All rows.
    ///
    /// # Errors
    /// Where a file has another schema than the first.
    pub fn scan(&self) -> Result<LazyFrame> {
        let paths = self.parts.iter().map(|path| path.to_string_lossy().as_ref().into()).collect();
        // what run=…, step=… and dataset=… say is known from the path already
        let hive_options = HiveOptions::new_disabled();
        let args = ScanArgsParquet { glob: false, hive_options, ..ScanArgsParquet::default() };
        LazyFrame::scan_parquet_files(paths, args).map_err(|e| self.blame(e))
    }

    /// What a query on [`scan`](Self::scan) gives.
    ///
    /// # Errors
    /// Names the part that is damaged.
    pub fn collect(&self, query: LazyFrame) -> Result<DataFrame> {
        let streaming = query.collect_with_engine(polars_lazy::prelude::Engine::Streaming);
        streaming.map(polars_core::query_result::QueryResult::unwrap_single).map_err(|e| self.blame(e))
    }

    /// Those of some columns that a query on [`scan`](Self::scan) has: records of earlier versions, and of fewer options, have fewer.
    ///
    /// # Errors
    /// Names the part that is damaged.
    pub fn having<'a>(&self, query: &mut LazyFrame, names: &[&'a str]) -> Result<Vec<&'a str>> {
        let schema = query.collect_schema().map_err(|e| self.blame(e))?;
        Ok(names.iter().copied().filter(|name| schema.get(name).is_some()).collect())
    }

    /// What went wrong with a query, and in which part: the first that cannot be read by itself, or the first of all.
    pub fn blame(&self, error: impl ToString) -> Error {
        let damaged = self.parts.iter().find_map(|path| read(path).err());
        damaged.unwrap_or_else(|| Error::new(self.parts.first().map_or(Path::new(""), PathBuf::as_path), error))
    }
}

#[cfg(test)]
mod tests {
    use super::find_some;
    use crate::{Table, tables};
    use polars_core::df;
    use std::path::Path;

    /// A folder with records: one part of pairs.parquet.
    fn records(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        let table = Table::create(folder, tables::PAIRS).unwrap();
        table.write(0, df!("pair" => [0u64]).unwrap()).unwrap();
    }

    #[test]
    fn records_of_one_run_in_two_places_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let make = |names: &[&str]| {
            let _ = std::fs::remove_dir_all(folder.path().join("all"));
            for name in names {
                records(&folder.path().join("all").join(name));
            }
            let leaves = find_some(&[folder.path().join("all")]).unwrap();
            leaves.iter().map(|leaf| (leaf.run.clone(), leaf.step)).collect::<Vec<_>>()
        };
        let named =
            |names: &[(&str, Option<u64>)]| names.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect::<Vec<_>>();
        // shards and steps of one run stay one run
        let [one, two] = ["x/run=a/step=1/dataset=d", "y/run=a/step=2/dataset=d"];
        assert_eq!(make(&[one, two]), named(&[("a", Some(1)), ("a", Some(2))]));
        let again = "y/run=a/step=1/dataset=d";
        assert_eq!(make(&[one, two, again]), named(&[("x/a", Some(1)), ("y/a", Some(1)), ("y/a", Some(2))]));
        assert_eq!(make(&["lora/x/out", "full/x/out"]), named(&[("full/x/out", None), ("lora/x/out", None)]));
    }

    #[test]
    fn one_folder_under_several_spellings_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("b/out");
        records(&at);
        let other = folder.path().join("out");
        records(&other);
        let spelled = [at.clone(), at.join("../out"), folder.path().join("b/../b/out"), folder.path().join("b")];
        assert_eq!(find_some(&spelled).unwrap().len(), 1);
        // others that sort between two spellings of it
        assert_eq!(find_some(&[at.clone(), other, at.join("../../b/out")]).unwrap().len(), 2);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&at, folder.path().join("link")).unwrap();
            std::os::unix::fs::symlink(folder.path(), at.join("back")).unwrap();
            assert_eq!(find_some(&[folder.path().join("link"), at]).unwrap().len(), 2);
        }
    }
}
