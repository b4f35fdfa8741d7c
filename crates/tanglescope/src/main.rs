//! Tanglescope measures gradient entanglement in preference-tuned language models.
mod analysis;
mod analyze;
mod bench;
mod checkpoints;
mod cli;
mod demo;
mod device;
mod dry_run;
mod error;
mod hub;
mod manifest;
mod objectives;
mod options;
mod output;
mod progress;
mod rates;
mod report;
mod summarize;
mod sweep;
mod tokens;
mod train;
mod train_config;
mod verify;

use clap::CommandFactory;
use cli::{Cli, Command, Format, TableFormat};
use std::path::Path;
use std::process::ExitCode;

/// Keeps freed memory for the next result; the system's gives large blocks back and faults them in again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps memory that is free for good: giving it back and faulting it in again took a tenth of a pass's time.
#[allow(unsafe_code)]
fn keep_memory() {
    /// `mi_option_purge_delay`: milliseconds until free memory is given back; none for a negative number.
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    // SAFETY: sets a number in the allocator, before any other thread is there.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}

/// Prints what was found, for people or for programs.
fn say(json: bool, found: &impl std::fmt::Display, value: impl FnOnce() -> serde_json::Value) {
    if json { println!("{:#}", value()) } else { print!("{found}") }
}

/// Writes a manual page for every command.
fn man(out: &Path) -> error::Result<()> {
    let written = std::fs::create_dir_all(out).and_then(|()| clap_mangen::generate_to(Cli::command(), out));
    written.map_err(|e| error::Error::output(out, format!("cannot be written: {e}")))
}

fn main() -> ExitCode {
    keep_memory();
    let Cli { json, command } = match train_config::parse() {
        Ok(cli) => cli,
        Err(error) => {
            eprintln!("error: {error}");
            return error.exit_code();
        }
    };
    let result = match command {
        Command::Analyze(args) if args.dry.dry_run => analyze::dry_run(&args),
        Command::Analyze(args) => analyze::run(&args).map(|summary| say(json, &summary, || summary.json())),
        Command::Report(args) => report::run(&args),
        Command::Summarize(mut args) => {
            args.format = if json { TableFormat::Json } else { args.format };
            summarize::run(&args)
        }
        Command::Sweep(args) => sweep::run(&args),
        Command::Tokens(args) if args.dry.dry_run => tokens::dry_run(&args),
        Command::Tokens(args) => tokens::run(&args).map(|shares| say(json, &shares, || shares.json())),
        Command::Train(args) if args.dry.dry_run => train::dry_run(&args),
        Command::Train(args) => train::run(&args),
        Command::Verify(args) => verify::run(&args, json),
        Command::Objectives => {
            objectives::list(json);
            Ok(())
        }
        Command::Devices(mut args) => {
            args.format = if json { Format::Json } else { args.format };
            device::list(args);
            Ok(())
        }
        Command::Bench(mut args) => {
            args.format = if json { Format::Json } else { args.format };
            bench::run(&args)
        }
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => {
            clap_complete::generate(args.shell, &mut Cli::command(), "tanglescope", &mut std::io::stdout());
            Ok(())
        }
        Command::Man(args) => man(&args.out),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}
