//! A model that stays loaded.
use crate::call::{Telling, listener, run};
use crate::errors::{Failure, refused};
use crate::live::shared;
use crate::rows::{DataWords, Rows};
use clap::Parser;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;
use tanglescope::{HeldModel, LoadedModel, Measured, ReferenceModel, TokenMeasures};
use tanglescope_checkpoint::{Held, Tensors};
use tanglescope_cli::{cli, options};

/// Words that say which model.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct ModelWords {
    #[command(flatten)]
    model: cli::ModelArgs,
}

/// Words that say what of a model is measured.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct MeasuredWords {
    #[command(flatten)]
    measured: cli::Measured,
}

/// Words that say what is found of every pair.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct PairWords {
    #[command(flatten)]
    measured: cli::Measured,
    #[command(flatten)]
    measures: cli::AnalysisMeasures,
}

/// Words that say what is found of every two pairs.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct CoupleWords {
    #[command(flatten)]
    measured: cli::Measured,
    #[command(flatten)]
    measures: cli::CoupleMeasures,
}

fn parsed<T: Parser>(words: Vec<String>) -> Result<T, Failure> {
    T::try_parse_from(words).map_err(|e| refused(&e))
}

/// A loaded model.
#[pyclass(frozen, module = "tanglescope._native")]
pub struct Model {
    loaded: Mutex<Option<LoadedModel>>,
    closed: AtomicBool,
}

impl Model {
    /// The reference: another model that is loaded, or what words say.
    fn reference(
        &self,
        loaded: Option<&Self>,
        said: Option<ReferenceModel>,
        telling: &Telling,
    ) -> Result<Option<ReferenceModel>, Failure> {
        match loaded {
            None => Ok(said),
            Some(reference) if std::ptr::eq(reference, self) => Ok(Some(ReferenceModel::Itself)),
            Some(reference) => Ok(Some(reference.with(telling, |reference| Ok(reference.as_reference()?))?)),
        }
    }

    /// Does work with the model, one call at a time; waiting for the turn ends like the work itself.
    fn with<T>(
        &self,
        telling: &Telling,
        work: impl FnOnce(&mut LoadedModel) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut loaded = loop {
            match self.loaded.try_lock() {
                Ok(loaded) => break loaded,
                Err(TryLockError::Poisoned(loaded)) => break loaded.into_inner(),
                Err(TryLockError::WouldBlock) if telling.is_stopped() => {
                    return Err(Failure::Work(tanglescope::Error::Stopped));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(TURN),
            }
        };
        match loaded.as_mut() {
            Some(model) => work(model),
            None => Err(Failure::Input("the model is closed; load it again".to_owned())),
        }
    }

    fn new(loaded: LoadedModel) -> Self {
        Self { loaded: Mutex::new(Some(loaded)), closed: AtomicBool::new(false) }
    }
}

/// How long a call sleeps between two looks for its turn.
const TURN: Duration = Duration::from_millis(5);

fn measured(words: Vec<String>) -> Result<Measured, Failure> {
    options::measured(&parsed::<MeasuredWords>(words)?.measured)
}

#[pymethods]
impl Model {
    /// Loads the model that some words are of.
    #[staticmethod]
    fn load(py: Python<'_>, words: Vec<String>, progress: &Bound<'_, PyAny>) -> PyResult<Self> {
        run(py, listener(progress), |telling| {
            Ok(LoadedModel::load(&options::model(&parsed::<ModelWords>(words)?.model)?, telling)?)
        })
        .map(Self::new)
    }

    /// Takes the weights of a model that another library holds, by name; the folder has its config.json and tokenizer.
    #[staticmethod]
    #[allow(clippy::too_many_arguments)] // as Python's keywords
    fn held(
        py: Python<'_>,
        called: &str,
        folder: PathBuf,
        tensors: Vec<(String, Bound<'_, PyAny>)>,
        adapter: Option<PathBuf>,
        words: Vec<String>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<Self> {
        let of = |(name, tensor): (String, Bound<'_, PyAny>)| -> PyResult<(String, Vec<usize>, Held)> {
            let (shape, held) =
                shared(&tensor).map_err(|e| PyValueError::new_err(format!("tensor `{name}`: {}", e.value(py))))?;
            Ok((name, shape, held))
        };
        let tensors: Vec<_> = tensors.into_iter().map(of).collect::<PyResult<_>>()?;
        run(py, listener(progress), |telling| {
            let measured = measured(words)?;
            let model = tanglescope::Error::from;
            let tensors = Tensors::held(Path::new(called), tensors).map_err(|e| model(e.into()))?;
            let held = HeldModel::new(called, &folder, tensors).map_err(model)?;
            Ok(LoadedModel::held(Arc::new(held), adapter, measured, telling)?)
        })
        .map(Self::new)
    }

    /// Puts another saved adapter on the base, or none.
    fn load_adapter(&self, py: Python<'_>, adapter: Option<PathBuf>, progress: &Bound<'_, PyAny>) -> PyResult<()> {
        run(py, listener(progress), |telling| {
            self.with(telling, |model| Ok(model.load_adapter(adapter.as_deref(), telling)?))
        })
    }

    /// Gives its memory back.
    fn close(&self, py: Python<'_>) {
        self.closed.store(true, Ordering::Relaxed);
        py.detach(|| *self.loaded.lock().unwrap_or_else(PoisonError::into_inner) = None);
    }

    /// Whether it was closed.
    #[getter]
    fn closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Device, number type, architecture and sizes, as JSON.
    fn describe(&self, py: Python<'_>) -> PyResult<String> {
        run(py, None, |telling| {
            self.with(telling, |model| {
                let outline = model.outline()?;
                let [base, adapter] = model.hashes();
                Ok(serde_json::json!({
                    "device": model.runs_on(),
                    "layers": outline.description.layers(),
                    "hidden": outline.description.hidden,
                    "vocabulary": outline.description.vocabulary,
                    "positions": outline.description.max_positions,
                    "model_hash": base,
                    "adapter_hash": adapter,
                })
                .to_string())
            })
        })
    }

    /// Reads the data that some words are of, with the model's tokenizer.
    fn rows(
        &self,
        py: Python<'_>,
        words: Vec<String>,
        called: Option<String>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<Rows> {
        let rows = run(py, listener(progress), |telling| {
            let data = DataWords::options(words, called)?;
            self.with(telling, |model| Ok(model.rows(&data, telling)?))
        })?;
        Ok(Rows::new(rows))
    }

    /// Measures every pair of some rows into a folder.
    #[allow(clippy::too_many_arguments)] // as Python's keywords
    fn analyze(
        &self,
        py: Python<'_>,
        rows: &Rows,
        words: Vec<String>,
        reference: Option<&Self>,
        out: PathBuf,
        shard: Option<String>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let rows = rows.rows.clone();
        run(py, listener(progress), |telling| {
            let words: PairWords = parsed(words)?;
            let measured = options::measured(&words.measured)?;
            let mut measures = options::pair_measures(&words.measures)?;
            measures.reference = self.reference(reference, measures.reference, telling)?;
            self.with(telling, |model| {
                model.measure(&measured, telling)?;
                model.analyze(&rows, &measures, &options::destination(&out, shard.as_deref())?, telling)?;
                Ok(())
            })
        })
    }

    /// Measures the products between the pairs of some rows into a folder.
    #[allow(clippy::too_many_arguments)] // as Python's keywords
    fn interference(
        &self,
        py: Python<'_>,
        rows: &Rows,
        words: Vec<String>,
        reference: Option<&Self>,
        out: PathBuf,
        shard: Option<String>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let rows = rows.rows.clone();
        run(py, listener(progress), |telling| {
            let words: CoupleWords = parsed(words)?;
            let measured = options::measured(&words.measured)?;
            let mut measures = options::model_measures(&words.measures.of_pairs)?;
            measures.reference = self.reference(reference, measures.reference, telling)?;
            let between = options::between(&words.measures.between, None)?;
            self.with(telling, |model| {
                model.measure(&measured, telling)?;
                let to = options::destination(&out, shard.as_deref())?;
                model.interference(&rows, &measures, &between, &to, telling)?;
                Ok(())
            })
        })
    }

    /// Measures the token-level matrices of some rows into a folder.
    #[allow(clippy::too_many_arguments)] // as Python's keywords
    fn tokens(
        &self,
        py: Python<'_>,
        rows: &Rows,
        words: Vec<String>,
        positions: bool,
        out: PathBuf,
        shard: Option<String>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let rows = rows.rows.clone();
        run(py, listener(progress), |telling| {
            let measured = measured(words)?;
            self.with(telling, |model| {
                model.measure(&measured, telling)?;
                let measures = TokenMeasures { npy: false, positions };
                model.tokens(&rows, measures, &options::destination(&out, shard.as_deref())?, telling)?;
                Ok(())
            })
        })
    }

    /// The Gram `[K, K]` of some responses to a prompt as bytes of f64, and log π of each.
    fn gram<'py>(
        &self,
        py: Python<'py>,
        prompt: Vec<u32>,
        responses: Vec<Vec<u32>>,
        words: Vec<String>,
        progress: &Bound<'_, PyAny>,
    ) -> PyResult<(Bound<'py, PyBytes>, Vec<f64>)> {
        let found = run(py, listener(progress), |telling| {
            let measured = measured(words)?;
            self.with(telling, |model| {
                model.measure(&measured, telling)?;
                Ok(model.gram(&prompt, &responses, telling)?)
            })
        })?;
        let bytes: Vec<u8> = found.inner.iter().flat_map(|x| x.to_ne_bytes()).collect();
        Ok((PyBytes::new(py, &bytes), found.logp))
    }
}
