//! manifest.json: what a folder was made from, and by what plan, so that a run can go on and be made again.
use crate::error::{Error, Result};
use crate::identity::{Difference, Identity, difference};
use crate::settings::Settings;
use crate::whole::write_whole;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// The name of the file.
const NAME: &str = "manifest.json";

/// The manifest of a folder of any kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Manifest {
    /// Of `analyze` and `tokens`.
    Analysis(Box<AnalysisManifest>),
    /// Of `sweep`.
    Sweep(Box<SweepManifest>),
    /// Of `train`.
    Training(Box<TrainingManifest>),
}

/// A manifest of one kind.
pub trait OfFolder: Serialize + DeserializeOwned {
    /// What its `kind` says; those of analyses have none.
    const KIND: Option<&'static str>;
}

impl OfFolder for AnalysisManifest {
    const KIND: Option<&'static str> = None;
}

impl OfFolder for SweepManifest {
    const KIND: Option<&'static str> = Some("sweep");
}

impl OfFolder for TrainingManifest {
    const KIND: Option<&'static str> = Some("train");
}

#[derive(Deserialize)]
struct KindOnly {
    kind: Option<String>,
}

fn bytes(folder: &Path) -> Result<Option<Vec<u8>>> {
    let path = folder.join(NAME);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(&path, e)),
    }
}

fn parsed<T: DeserializeOwned>(folder: &Path, bytes: &[u8]) -> Result<T> {
    let refuse =
        |e| Error::new(&folder.join(NAME), format!("not a manifest of this kind of run ({e}); choose another folder"));
    serde_json::from_slice(bytes).map_err(refuse)
}

impl Manifest {
    /// The manifest of a folder, whatever made it; `None` where there is none.
    ///
    /// # Errors
    /// Where it cannot be read, or is no manifest of Tanglescope's.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let Some(bytes) = bytes(folder)? else { return Ok(None) };
        let KindOnly { kind } = parsed(folder, &bytes)?;
        let kind = kind.as_deref();
        Ok(Some(if kind == SweepManifest::KIND {
            Self::Sweep(parsed(folder, &bytes)?)
        } else if kind == TrainingManifest::KIND {
            Self::Training(parsed(folder, &bytes)?)
        } else {
            Self::Analysis(parsed(folder, &bytes)?)
        }))
    }
}

/// The manifest of a folder that something is written to; `None` where there is none.
///
/// # Errors
/// Where it cannot be read, or is one of another kind of run.
pub fn read<T: OfFolder>(folder: &Path) -> Result<Option<T>> {
    let Some(bytes) = bytes(folder)? else { return Ok(None) };
    let KindOnly { kind } = parsed(folder, &bytes)?;
    if kind.as_deref() != T::KIND {
        let (there, now) = (kind.as_deref().unwrap_or("analyze"), T::KIND.unwrap_or("analyze"));
        let problem = format!("is of a folder of `{there}`, not of `{now}`; choose another folder");
        return Err(Error::given(&folder.join(NAME), problem));
    }
    parsed(folder, &bytes).map(Some)
}

/// Refuses a folder that has results and no manifest: what they were made from is not known, so nothing can be added to them.
///
/// # Errors
/// Names what is there.
pub fn refuse_orphans(folder: &Path) -> Result<()> {
    // a table is a folder of parts
    let of_run = |name: &str| name.starts_with("checkpoint-") || name.ends_with(".parquet");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let has_some = |name: &String| std::fs::read_dir(folder.join(name)).is_ok_and(|mut inside| inside.next().is_some());
    match names.into_iter().find(|name| of_run(name) && has_some(name)) {
        None => Ok(()),
        Some(found) => {
            let problem =
                format!("has {found} and no manifest.json, which says what it was made from; choose another folder");
            Err(Error::given(folder, problem))
        }
    }
}

/// Writes a folder's manifest whole or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write(folder: &Path, manifest: &impl OfFolder) -> Result<()> {
    let path = folder.join(NAME);
    let mut text = serde_json::to_vec_pretty(manifest).map_err(|e| Error::new(&path, e))?;
    text.push(b'\n');
    write_whole(&path, &text)
}

/// The repository and commit of the hub whose snapshot a path is of, as `org/name@commit`.
#[must_use]
pub fn hub_source(path: &Path) -> Option<String> {
    let parts: Vec<&str> = path
        .components()
        .filter_map(|part| if let Component::Normal(part) = part { part.to_str() } else { None })
        .collect();
    let at = parts.iter().position(|part| *part == "snapshots")?;
    let (_, name) = parts[at.checked_sub(1)?].split_once("--")?;
    Some(format!("{}@{}", name.replacen("--", "/", 1), parts.get(at + 1)?))
}

/// A path as text, which JSON has to be; what is none in it is marked.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// The same of a path that may be none.
#[allow(clippy::ref_option)] // serde hands it over that way
fn lossy_option<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(to)
}

/// A row that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedRow {
    /// Number of the row in the data, from 0.
    pub row: u64,
    /// Why.
    pub problem: String,
}

/// Rates of a device as they are written into files.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredRates {
    /// Floating-point operations of matrix products a second.
    pub operations_per_second: f64,
    /// Bytes read and written a second.
    pub bytes_per_second: f64,
    /// Whether inputs were factorised where that is cheaper.
    #[serde(default)]
    pub triangles: bool,
}

/// What decides the rows of an analysis, or of token matrices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnalysisIdentity {
    /// SHA-256 of the base model's weights and config.
    pub model: String,
    /// SHA-256 of a saved adapter, or the settings of a fresh one.
    pub adapter: Option<String>,
    /// SHA-256 of the reference model's weights and config, `base` under an adapter, or `self`.
    #[serde(default)]
    pub reference: Option<String>,
    /// How texts became tokens; `None` where no row is text.
    #[serde(default)]
    pub tokenize: Option<String>,
    /// SHA-256 of the token ids of all rows.
    pub data: String,
    /// The scope as given.
    pub scope: String,
    /// The padding token whose row of the embedding its places do not train; `None` where every row in scope is trained.
    #[serde(default)]
    pub padding_row: Option<u32>,
    /// Whether gradients go through the norms of columns of a `DoRA` adapter, which trainers hold fixed.
    #[serde(default)]
    pub through_dora_norm: bool,
    /// Number type.
    pub dtype: String,
    /// What is measured because an objective asks for it.
    #[serde(flatten)]
    pub beside: Beside,
    /// Whether every pair of a better and a worse response of a group is a pair.
    #[serde(default)]
    pub all_pairs: bool,
    /// SHA-256 of the probes.
    #[serde(default)]
    pub probes: Option<String>,
    /// The optimizer's state, by step and hash, in whose metric products are taken too.
    #[serde(default)]
    pub metric: Option<String>,
}

/// What is measured beside log-probabilities and Gram because an objective asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Beside {
    /// Gradients over contrast tokens.
    pub contrast: bool,
    /// Gradients over the tokens up to the shorter response's length.
    pub public: bool,
    /// Gradients over all tokens with weights that the data gives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weights: bool,
    /// The gradient of prompt and chosen response as one text.
    pub text: bool,
    /// The responses of the row before after each prompt.
    pub mismatched: bool,
}

impl Identity for AnalysisIdentity {
    fn called(field: &str) -> String {
        match field {
            "tokenize" => "recipe of tokens",
            "data" => "data or tokenisation",
            "contrast" => "measurement of contrast tokens",
            "public" => "measurement of the tokens up to the shorter response's length",
            "weights" => "measurement of tokens with the data's weights",
            "text" => "measurement of prompt and chosen response as one text",
            "mismatched" => "measurement of prompts with other rows' responses",
            "all_pairs" => "choice of pairs of a group",
            "probes" => "probe file",
            "metric" => "state of the optimizer",
            other => other,
        }
        .to_owned()
    }

    fn serves(field: &str, there: &Value, _now: &Value) -> bool {
        ["contrast", "public", "weights", "text", "mismatched"].contains(&field) && *there == Value::Bool(true)
    }
}

/// How rows are cut into parts and batches.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchPlan {
    /// Consecutive usable rows of a part.
    pub rows_per_part: usize,
    /// Forward rows of a batch.
    pub forward_rows_per_batch: usize,
    /// Backward rows of a pass over single tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backward_rows_per_pass: Option<usize>,
    /// Rates of the device that decided between the Gram reductions of each map.
    pub rates: StoredRates,
}

/// manifest.json of `analyze` and `tokens`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AnalysisManifest {
    /// Version of the program.
    pub tanglescope: String,
    /// The command line.
    pub command: Vec<String>,
    /// Folder of the model.
    #[serde(serialize_with = "lossy")]
    pub model: PathBuf,
    /// Folder of the adapter.
    #[serde(serialize_with = "lossy_option")]
    pub adapter: Option<PathBuf>,
    /// Ways in which weights of the model are stored quantised: what is measured is the function of their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quantised: Vec<String>,
    /// The data file.
    #[serde(serialize_with = "lossy")]
    pub data: PathBuf,
    /// What came from the hub: repository and commit of the model, the adapter and the data.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hub: BTreeMap<String, String>,
    /// Usable rows.
    pub pairs: usize,
    /// Rows that were left out, and why.
    pub skipped: Vec<SkippedRow>,
    /// Devices that rows were computed on.
    pub devices: Vec<String>,
    /// Seed of a fresh adapter.
    pub seed: Option<u64>,
    /// What decides the rows.
    pub identity: AnalysisIdentity,
    /// How they are cut.
    pub plan: BatchPlan,
    /// The objectives of objectives.parquet, as they were given.
    #[serde(default)]
    pub objectives: Vec<String>,
    /// How products between pairs are cut, where those are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interference: Option<InterferencePlan>,
}

/// How the products between pairs are cut into parts, and what of them decides their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterferencePlan {
    /// Consecutive rows of a window; a part has the products of two windows.
    pub pairs_per_window: usize,
    /// Number type that gradients are kept in until they meet.
    pub kept: String,
    /// The data set that the first one's pairs meet, where it is another.
    #[serde(default)]
    pub against: Option<AgainstData>,
}

/// The second data set of products between pairs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgainstData {
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// SHA-256 of the token ids of its rows.
    pub data: String,
}

/// What decides the products between pairs.
#[derive(Serialize)]
struct InterferenceIdentity<'a> {
    kept: &'a str,
    against: Option<&'a str>,
}

impl Identity for InterferenceIdentity<'_> {
    fn called(field: &str) -> String {
        if field == "kept" { "number type that gradients are kept in" } else { "second data set" }.to_owned()
    }
}

impl InterferencePlan {
    /// Why other products cannot go where these are.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<Difference> {
        fn of(plan: &InterferencePlan) -> InterferenceIdentity<'_> {
            InterferenceIdentity { kept: &plan.kept, against: plan.against.as_ref().map(|of| of.data.as_str()) }
        }
        difference(&of(self), &of(now))
    }
}

impl AnalysisManifest {
    /// Name of the data set: of the repository that it came from, or of its file without extensions.
    pub(crate) fn dataset(&self) -> Option<String> {
        // a snapshot's folder is called by its commit
        if let Some(name) = self.hub.get("data").and_then(|source| source.split(['/', '@']).nth(1)) {
            return Some(name.to_owned());
        }
        let name = self.data.file_name()?.to_string_lossy().into_owned();
        Some(name.split_once('.').map_or(name.clone(), |(name, _)| name.to_owned()))
    }
}

/// manifest.json of `sweep`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepManifest {
    /// Version of the program.
    pub tanglescope: String,
    /// What kind of folder this is: `sweep`.
    pub kind: String,
    /// The command line.
    pub command: Vec<String>,
    /// The scope as given.
    pub scope: String,
    /// Number type.
    pub dtype: String,
    /// Seed of the sample and of fresh adapters.
    pub seed: u64,
    /// Rows drawn of each data set; all where it is `None`.
    pub pairs: Option<usize>,
    /// Names of the runs in the order in which they were given; none in sweeps of earlier versions.
    #[serde(default)]
    pub order: Vec<String>,
    /// The runs, by name.
    pub runs: BTreeMap<String, SweptRun>,
    /// The data sets, by name.
    pub data: BTreeMap<String, SweptData>,
}

/// A run of a sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweptRun {
    /// Its folder.
    #[serde(serialize_with = "lossy")]
    pub folder: PathBuf,
    /// Steps of its checkpoints.
    pub steps: Vec<usize>,
}

/// A data set of a sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweptData {
    /// The file or folder.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// SHA-256 of its files.
    pub file: String,
    /// The usable rows of the sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Vec<SampledRow>>,
}

/// A row that was drawn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledRow {
    /// Number of the row in the data, from 0.
    pub row: u64,
    /// The row's own `id`.
    pub id: Option<String>,
}

/// What decides the rows of a sweep: data sets that both sweeps have are the same files.
#[derive(Serialize)]
struct SweepIdentity {
    scope: String,
    dtype: String,
    sample_of_pairs: String,
    #[serde(flatten)]
    files: BTreeMap<String, String>,
}

impl Identity for SweepIdentity {
    fn called(field: &str) -> String {
        if field == "sample_of_pairs" { "sample of pairs" } else { field }.to_owned()
    }

    fn serves(_field: &str, there: &Value, _now: &Value) -> bool {
        // a data set that is added
        there.is_null()
    }
}

impl SweepManifest {
    fn identity(&self) -> SweepIdentity {
        SweepIdentity {
            scope: self.scope.clone(),
            dtype: self.dtype.clone(),
            sample_of_pairs: self.pairs.map_or("all".to_owned(), |n| format!("{n}, seed {}", self.seed)),
            files: self.data.iter().map(|(name, of)| (format!("file as data set `{name}`"), of.file.clone())).collect(),
        }
    }

    /// Why another sweep cannot go into this one's folder.
    #[must_use]
    pub fn difference(&self, now: &Self) -> Option<Difference> {
        difference(&self.identity(), &now.identity())
    }
}

/// What decides the numbers of a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingIdentity {
    /// SHA-256 of the base model's weights and config.
    pub model: String,
    /// SHA-256 of a saved adapter, or the settings of a fresh one.
    pub adapter: Option<String>,
    /// How texts became tokens; `None` where no row is text.
    #[serde(default)]
    pub tokenize: Option<String>,
    /// SHA-256 of the token ids of the pairs.
    pub data: String,
    /// The same of those held out, where they have a file of their own.
    pub eval_data: Option<String>,
    /// Share of the pairs that is held out.
    pub eval_fraction: Option<f64>,
    /// The scope as given.
    pub scope: String,
    /// The padding token whose row of the embedding its places do not train; `None` where every row in scope is trained.
    #[serde(default)]
    pub padding_row: Option<u32>,
    /// Number type.
    pub dtype: String,
    /// The objective as it was given.
    pub objective: String,
    /// SHA-256 of the reference model, `base`, `self`, or none.
    pub reference: Option<String>,
    /// Steps between evaluations.
    pub eval_every: usize,
    /// Steps between checkpoints.
    pub save_every: usize,
    /// How it trains.
    #[serde(flatten)]
    pub settings: Settings,
}

impl Identity for TrainingIdentity {
    fn called(field: &str) -> String {
        if field == "tokenize" { "recipe of tokens".to_owned() } else { field.replace('_', " ") }
    }
}

/// manifest.json of `train`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingManifest {
    /// Version of the program.
    pub tanglescope: String,
    /// What kind of folder this is: `train`.
    pub kind: String,
    /// The command line.
    pub command: Vec<String>,
    /// Folder of the model.
    #[serde(serialize_with = "lossy")]
    pub model: PathBuf,
    /// Folder of the adapter that training began from.
    #[serde(serialize_with = "lossy_option")]
    pub adapter: Option<PathBuf>,
    /// The data file.
    #[serde(serialize_with = "lossy")]
    pub data: PathBuf,
    /// Pairs that are trained on.
    pub pairs: usize,
    /// Pairs that are held out.
    pub held_out: usize,
    /// Rows of the data that were left out, and why.
    pub skipped: Vec<SkippedRow>,
    /// The same of the evaluation data.
    pub eval_skipped: Vec<SkippedRow>,
    /// Devices that steps were computed on.
    pub devices: Vec<String>,
    /// Times that every pair is seen.
    pub epochs: f64,
    /// What decides the numbers.
    pub identity: TrainingIdentity,
    /// Forward rows that run together.
    pub forward_rows_per_batch: usize,
    /// Batches that run side by side.
    pub at_once: usize,
    /// Rates of the device that decided between the Gram reductions of each map.
    pub rates: StoredRates,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sweep(files: &[(&str, &str)], pairs: Option<usize>) -> SweepManifest {
        let data = |(name, file): &(&str, &str)| {
            ((*name).to_owned(), SweptData { path: PathBuf::from("/d"), file: (*file).to_owned(), sample: None })
        };
        SweepManifest {
            tanglescope: "0.1.0".to_owned(),
            kind: "sweep".to_owned(),
            command: Vec::new(),
            scope: "lora".to_owned(),
            dtype: "f32".to_owned(),
            seed: 3,
            pairs,
            order: Vec::new(),
            runs: BTreeMap::new(),
            data: files.iter().map(data).collect(),
        }
    }

    #[test]
    fn a_sweep_takes_more_data_sets_and_refuses_other_files_and_samples() {
        let there = sweep(&[("a_b", "1")], Some(20));
        assert_eq!(there.difference(&sweep(&[("a_b", "1"), ("c", "2")], Some(20))), None);
        assert_eq!(there.difference(&sweep(&[("c", "2")], Some(20))), None);
        assert_eq!(there.difference(&sweep(&[("a_b", "2")], Some(20))).unwrap().what, "file as data set `a_b`");
        let sample = there.difference(&sweep(&[("a_b", "1")], None)).unwrap();
        assert_eq!(
            (sample.what.as_str(), sample.there.as_str(), sample.now.as_str()),
            ("sample of pairs", "20, seed 3", "all")
        );
    }

    #[test]
    fn a_snapshot_says_what_it_is_of() {
        let path = Path::new("/cache/hub/models--org--na--me/snapshots/abc/config.json");
        assert_eq!(hub_source(path).as_deref(), Some("org/na--me@abc"));
        assert_eq!(hub_source(Path::new("/models/mine")), None);
    }

    #[test]
    fn a_manifest_is_read_as_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), None);
        let written = sweep(&[("a", "1")], None);
        write(folder.path(), &written).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap(), Some(Manifest::Sweep(Box::new(written.clone()))));
        assert_eq!(read::<SweepManifest>(folder.path()).unwrap(), Some(written));
        let refused = read::<TrainingManifest>(folder.path()).unwrap_err().to_string();
        assert!(
            refused.ends_with("manifest.json: is of a folder of `sweep`, not of `train`; choose another folder"),
            "{refused}"
        );
        std::fs::write(folder.path().join(NAME), "[").unwrap();
        assert!(Manifest::read(folder.path()).unwrap_err().to_string().contains("not a manifest"));
    }
}
