//! Tanglescope for Python, as `tanglescope._native`: models, rows and calls, whose Python face is python/tanglescope.
//!
//! Options come as the words of the command line, so that names, defaults and checks are the same in both. Work runs on a thread of
//! its own, while the caller's waits without the interpreter's lock, and looks for Ctrl-C.
mod arrow;
mod call;
mod commands;
mod errors;
mod live;
mod model;
mod objective;
mod rows;

use pyo3::prelude::*;

/// Models, rows and calls of Tanglescope.
#[pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::arrow::Frame;
    #[pymodule_export]
    use super::commands::{
        Kept, bench, checkpoints, devices, figures, inspect, objectives, report, resolve, run_command, summarize,
        summary, sweep, table, train, verify, watch,
    };
    #[pymodule_export]
    use super::model::Model;
    #[pymodule_export]
    use super::objective::Objective;
    #[pymodule_export]
    use super::rows::Rows;

    /// What is done once, when Python imports the module.
    #[pymodule_init]
    #[allow(clippy::unnecessary_wraps)] // as PyO3 asks for it
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        #[cfg(unix)]
        tanglescope_cli::without_a_display();
        Ok(())
    }

    /// Version of the engine.
    #[pymodule_export]
    #[allow(non_upper_case_globals)]
    const version: &str = env!("CARGO_PKG_VERSION");
}
