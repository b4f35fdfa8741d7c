//! The command `tanglescope`.
use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(tanglescope_cli::run(std::env::args_os().collect()))
}
