//! The calls that need no loaded model, each with the words of its command.
use crate::arrow::Frame;
use crate::call::{listener, run, same_process};
use crate::errors::{Failure, raised, refused};
use clap::Parser;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tanglescope::{Folder, KeptModels, RunFolder, Shard};
use tanglescope_cli::cli::{Cli, Command};
use tanglescope_cli::hub::{self, RepositoryKind};
use tanglescope_cli::options::ReportTo;
use tanglescope_cli::{options, print};
use tanglescope_report::{Origin, Report, markdown};

/// The command that some words are, without the program's name.
fn command(words: Vec<String>) -> Result<Command, Failure> {
    let words = std::iter::once("tanglescope".to_owned()).chain(words);
    Ok(Cli::try_parse_from(words).map_err(|e| refused(&e))?.command)
}

/// Words of another command than the call's.
fn other<T>() -> Result<T, Failure> {
    Err(Failure::Input("these are words of another command".to_owned()))
}

/// Does something that is over in a moment, and turns its failure into an exception.
fn at_once<T>(py: Python<'_>, work: impl FnOnce() -> Result<T, Failure> + Send) -> PyResult<T>
where
    T: Send,
{
    same_process()?;
    py.detach(work).map_err(|failure| raised(py, &failure))
}

/// Runs the command line; returns its exit code.
#[pyfunction]
pub fn run_command(py: Python<'_>, words: Vec<OsString>) -> u8 {
    py.detach(|| tanglescope_cli::run(words))
}

/// The folder on this machine that a path or a name on the hub stands for.
#[pyfunction]
pub fn resolve(py: Python<'_>, path: PathBuf, kind: &str) -> PyResult<PathBuf> {
    let kind = match kind {
        "model" => RepositoryKind::Model,
        "adapter" => RepositoryKind::Adapter,
        "data" => RepositoryKind::Data(None),
        other => return Err(PyValueError::new_err(format!("`{other}` is no kind of repository"))),
    };
    at_once(py, || hub::resolve(&path, kind))
}

/// Models that stay loaded from one sweep to the next.
#[pyclass(frozen, module = "tanglescope._native")]
#[derive(Default)]
pub struct Kept(Mutex<KeptModels>);

#[pymethods]
impl Kept {
    #[new]
    fn new() -> Self {
        Self::default()
    }
}

/// A checkpoint by itself, as the i-th of n parts of a sweep: i, n, name of the run, step, folder.
type OneCheckpoint = (usize, usize, String, usize, PathBuf);

/// Measures checkpoints on data sets, or one of them; returns what was left out.
#[pyfunction]
pub fn sweep(
    py: Python<'_>,
    words: Vec<String>,
    one: Option<OneCheckpoint>,
    kept: Option<&Kept>,
    progress: &Bound<'_, PyAny>,
) -> PyResult<Vec<String>> {
    run(py, listener(progress), |telling| match command(words)? {
        Command::Sweep(args) => {
            let mut options = options::sweep(&args)?;
            if let Some((number, of, name, step, folder)) = one {
                options.shard = Shard { number, of, taken: true };
                options.runs = vec![RunFolder { name: Some(name), folder, step: Some(step) }];
            }
            let mut own = KeptModels::default();
            let mut held = kept.map(|kept| kept.0.lock().unwrap_or_else(PoisonError::into_inner));
            let kept = held.as_deref_mut().unwrap_or(&mut own);
            Ok(tanglescope::sweep_keeping(&options, kept, telling)?.left_out)
        }
        _ => other(),
    })
}

/// The checkpoints of runs: name of the run, step, folder.
#[pyfunction]
pub fn checkpoints(py: Python<'_>, runs: Vec<String>) -> PyResult<Vec<(String, usize, PathBuf)>> {
    at_once(py, || {
        let mut found = Vec::new();
        for run in &runs {
            let (name, steps) = tanglescope::checkpoints(&options::run(run)?)?;
            found.extend(steps.into_iter().map(|(step, folder)| (name.clone(), step, folder)));
        }
        Ok(found)
    })
}

/// Trains; returns the folder of the last checkpoint.
#[pyfunction]
pub fn train(py: Python<'_>, words: Vec<String>, progress: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    run(py, listener(progress), |telling| match command(words)? {
        Command::Train(args) => Ok(tanglescope::train(&options::train(&args)?, telling)?.checkpoint),
        _ => other(),
    })
}

/// Checks a model and data; returns the checks as JSON.
#[pyfunction]
pub fn verify(py: Python<'_>, words: Vec<String>, progress: &Bound<'_, PyAny>) -> PyResult<String> {
    run(py, listener(progress), |telling| match command(words)? {
        Command::Verify(args) => {
            let found = tanglescope::verify(&options::verify(&args)?, telling)?;
            Ok(serde_json::json!(found.checks).to_string())
        }
        _ => other(),
    })
}

/// Measures the machine; returns the figures as JSON.
#[pyfunction]
pub fn bench(py: Python<'_>, words: Vec<String>, progress: &Bound<'_, PyAny>) -> PyResult<String> {
    run(py, listener(progress), |telling| match command(words)? {
        Command::Bench(args) => {
            Ok(serde_json::json!(tanglescope::bench(&options::bench(&args)?, telling)?).to_string())
        }
        _ => other(),
    })
}

/// What records amount to.
#[pyfunction]
pub fn summarize(py: Python<'_>, words: Vec<String>, progress: &Bound<'_, PyAny>) -> PyResult<Frame> {
    run(py, listener(progress), |telling| match command(words)? {
        Command::Summarize(args) => Ok(tanglescope::summarize(&options::summarize(&args), telling)?),
        _ => other(),
    })
    .map(Frame::new)
}

/// Writes a report; returns its file.
#[pyfunction]
pub fn report(py: Python<'_>, words: Vec<String>, progress: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    run(py, listener(progress), |telling| match command(words)? {
        Command::Report(args) => match options::report(&args)? {
            ReportTo::File(file) => Ok(tanglescope::report(&file, telling)?),
            ReportTo::Watched(_) => other(),
        },
        _ => other(),
    })
}

/// Shows a report while its records are written, until the call is interrupted.
#[pyfunction]
pub fn watch(py: Python<'_>, words: Vec<String>, progress: &Bound<'_, PyAny>) -> PyResult<()> {
    run(py, listener(progress), |telling| match command(words)? {
        Command::Report(args) => match options::report(&args)? {
            ReportTo::Watched(watched) => Ok(tanglescope::watch(&watched, telling)?),
            ReportTo::File(_) => other(),
        },
        _ => other(),
    })
}

/// The figures of some records as names and SVG.
#[pyfunction]
pub fn figures(py: Python<'_>, folders: Vec<PathBuf>) -> PyResult<Vec<(String, String)>> {
    run(py, None, |_| {
        let origin = Origin { version: env!("CARGO_PKG_VERSION").to_owned(), command: Vec::new() };
        let of = |error| Failure::Work(tanglescope::Error::Report(error));
        let report = Report::of(&folders, origin).map_err(of)?;
        Ok(markdown(&report, "report.md").map_err(of)?.1)
    })
}

/// What a folder is, as JSON.
#[pyfunction]
pub fn inspect(py: Python<'_>, path: PathBuf) -> PyResult<String> {
    at_once(py, || {
        let found = tanglescope::inspect(&hub::resolve_either(&path)?)?;
        let mut text = String::new();
        print::inspection(&mut text, &found, true);
        Ok(text)
    })
}

/// The devices of this machine, as JSON.
#[pyfunction]
pub fn devices(py: Python<'_>) -> PyResult<String> {
    at_once(py, || {
        let mut text = String::new();
        print::devices(&mut text, &tanglescope::devices(), true);
        Ok(text)
    })
}

/// The catalogue of objectives, as JSON.
#[pyfunction]
pub fn objectives() -> String {
    let mut text = String::new();
    print::objectives(&mut text, true);
    text
}

/// A table of a folder of records, or none where it was not written.
#[pyfunction]
pub fn table(py: Python<'_>, folder: PathBuf, name: &str) -> PyResult<Option<Frame>> {
    let found = at_once(py, || Ok(Folder::new(&folder).table(name)?))?;
    Ok(found.map(Frame::new))
}

/// What an analysis found, in a few lines and as JSON.
#[pyfunction]
pub fn summary(py: Python<'_>, folder: PathBuf) -> PyResult<(String, String)> {
    let found = at_once(py, || Ok(Folder::new(Path::new(&folder)).summary()?))?;
    Ok((found.to_string(), found.json().to_string()))
}
