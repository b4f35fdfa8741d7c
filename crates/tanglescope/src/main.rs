//! Tanglescope measures gradient entanglement in preference-tuned language models.
mod analyze;
mod cli;
mod demo;
mod device;
mod error;
mod manifest;
mod options;
mod progress;
mod verify;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

/// Keeps freed memory for the next result; the system's gives large blocks back and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Analyze(args) => analyze::run(&args).map(|summary| print!("{summary}")),
        Command::Verify(args) => verify::run(&args),
        Command::Devices => {
            device::list();
            Ok(())
        }
        Command::Demo(args) => demo::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}
