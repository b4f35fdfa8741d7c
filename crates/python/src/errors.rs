//! Errors as Python's exceptions: those of python/tanglescope/_errors.py, with the command line's sentence.
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use regex::Regex;
use std::path::Path;
use std::sync::LazyLock;
use tanglescope::Error;
use tanglescope_cli::Error as CommandError;

/// What ended a call.
pub type Failure = CommandError;

/// What an exception says beside its sentence.
#[derive(Default)]
struct Fields {
    file: Option<String>,
    row: Option<u64>,
    tensor: Option<String>,
    key: Option<String>,
    option: Option<String>,
}

impl Fields {
    fn file(path: &Path) -> Self {
        Self { file: Some(path.display().to_string()), ..Self::default() }
    }

    fn option(option: &str) -> Self {
        // a flag of the command line is a value here
        let keyword = if option == "tf32" { "dtype" } else { option };
        Self { option: Some(keyword.to_owned()), ..Self::default() }
    }
}

/// A text of the library, or of the command line, with options as Python's keywords.
pub fn with_keywords(text: &str) -> String {
    static VALUE: LazyLock<Regex> = LazyLock::new(|| pattern_of("option `([a-z0-9_]+)` = "));
    static NAME: LazyLock<Regex> = LazyLock::new(|| pattern_of("option `([a-z0-9_]+)`"));
    static FLAG: LazyLock<Regex> = LazyLock::new(|| pattern_of(r"--([a-z][a-z0-9-]*)"));
    let text = VALUE.replace_all(text, "$1=");
    let text = NAME.replace_all(&text, |found: &regex::Captures<'_>| match &found[1] {
        "tf32" => "dtype=tf32".to_owned(),
        name => format!("`{name}`"),
    });
    FLAG.replace_all(&text, |found: &regex::Captures<'_>| format!("`{}`", found[1].replace('-', "_"))).into_owned()
}

fn pattern_of(text: &str) -> Regex {
    Regex::new(text).unwrap_or_else(|e| unreachable!("the pattern is one: {e}"))
}

/// The exception's class, and what it says beside its sentence.
fn of_library(error: &Error) -> (&'static str, Fields) {
    use tanglescope_data::Error as Data;
    use tanglescope_model::Error as Model;
    const INPUT: &str = "InputError";
    const OTHER: &str = "TanglescopeError";
    match error {
        Error::Option { option, .. } | Error::Model(Model::Option { option, .. }) => (INPUT, Fields::option(option)),
        Error::Device { .. } => ("DeviceError", Fields::option("device")),
        Error::Output { path, .. } | Error::Model(Model::Output { path, .. }) => (OTHER, Fields::file(path)),
        Error::Model(Model::Key { path, key, .. }) => {
            ("Unsupported", Fields { key: Some(key.clone()), ..Fields::file(path) })
        }
        Error::Model(Model::Tensor { path, tensor, .. }) => {
            (INPUT, Fields { tensor: Some(tensor.clone()), ..Fields::file(path) })
        }
        Error::Model(Model::File { path, .. }) | Error::Data(Data::File { path, .. }) => (INPUT, Fields::file(path)),
        Error::Model(Model::Scope { .. }) => (INPUT, Fields::option("scope")),
        Error::Data(Data::Row { path, row, .. }) => (INPUT, Fields { row: Some(*row), ..Fields::file(path) }),
        other if other.is_bad_input() => (INPUT, Fields::default()),
        _ => (OTHER, Fields::default()),
    }
}

/// An exception of the package, by its name.
fn exception(py: Python<'_>, class: &str, text: &str, fields: Fields) -> PyResult<PyErr> {
    let class = py.import("tanglescope._errors")?.getattr(class)?;
    let Fields { file, row, tensor, key, option } = fields;
    let named = PyDict::new(py);
    named.set_item("file", file)?;
    named.set_item("row", row)?;
    named.set_item("tensor", tensor)?;
    named.set_item("key", key)?;
    named.set_item("option", option)?;
    Ok(PyErr::from_value(class.call((text,), Some(&named))?))
}

/// The exception for what ended a call.
pub fn raised(py: Python<'_>, failure: &Failure) -> PyErr {
    let (class, fields, text) = match failure {
        CommandError::Work(error) => {
            let (class, fields) = of_library(error);
            (class, fields, error.to_string())
        }
        CommandError::Input(text) => ("InputError", Fields::default(), text.clone()),
        CommandError::Failed(text) => ("TanglescopeError", Fields::default(), text.clone()),
    };
    let text = with_keywords(&text);
    exception(py, class, &text, fields).unwrap_or_else(|other| other)
}

/// The exception for a fault of the engine.
pub fn broken(py: Python<'_>, said: &str) -> PyErr {
    let text = format!("a fault of tanglescope, please report it: {said}");
    exception(py, "TanglescopeError", &text, Fields::default()).unwrap_or_else(|_| PyRuntimeError::new_err(text))
}

/// What a parser of options says, as bad input.
pub fn refused(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("For more information") && !line.starts_with("Usage:"));
    let text = lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    CommandError::Input(text.strip_prefix("error: ").unwrap_or(&text).to_owned())
}
