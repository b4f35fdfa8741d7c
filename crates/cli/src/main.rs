//! The command line of Tanglescope: arguments, progress, tables; the work is the library's.
mod cli;
mod console;
mod demo;
mod error;
mod hub;
mod options;
mod print;
mod table;
mod train_config;

use clap::CommandFactory;
use cli::{Cli, Command, Format, TableFormat};
use console::Console;
use error::{Error, Result};
use std::io::Write;
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

fn main() -> ExitCode {
    keep_memory();
    match train_config::parse().and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            error.exit_code()
        }
    }
}

/// Prints what was found, for people or for programs.
fn say(json: bool, found: &impl std::fmt::Display, value: impl FnOnce() -> serde_json::Value) {
    if json { println!("{:#}", value()) } else { print!("{found}") }
}

fn run(Cli { json, command }: Cli) -> Result<()> {
    let console = &Console::default();
    match command {
        Command::Analyze(args) => {
            let options = options::analyze(&args)?;
            if args.dry.dry_run {
                let (estimate, reference) = options.estimate(console)?;
                print::batches(&estimate);
                if reference {
                    println!("and a forward pass of the reference over the same rows");
                }
                print::nothing_written(&args.out);
                return Ok(());
            }
            let found = tanglescope::analyze(&options, console)?;
            say(json, &found.summary, || found.summary.json());
        }
        Command::Tokens(args) => {
            let options = options::tokens(&args)?;
            if args.dry.dry_run {
                print::tokens(&options.estimate(console)?);
                print::nothing_written(&args.out);
                return Ok(());
            }
            let found = tanglescope::tokens(&options, console)?;
            say(json, &found.shares, || found.shares.json());
        }
        Command::Sweep(args) => {
            let options = options::sweep(&args)?;
            if args.dry.dry_run {
                print::sweep(&options.estimate(console)?);
                print::nothing_written(&args.out);
                return Ok(());
            }
            complete(&tanglescope::sweep(&options, console)?)?;
        }
        Command::Train(args) => {
            let options = options::train(&args)?;
            if args.dry.dry_run {
                print::train(&options.estimate(console)?);
                print::nothing_written(&args.out);
                return Ok(());
            }
            println!("{}", tanglescope::train(&options, console)?.checkpoint.display());
        }
        Command::Verify(args) => {
            let options = options::verify(&args)?;
            if args.dry.dry_run {
                let (estimate, passes) = options.estimate(console)?;
                print::batches(&estimate);
                println!(
                    "and for each pair {passes} forward passes of each response in f64 on the CPU, and two gradients kept whole"
                );
                return Ok(());
            }
            let listener = if json { Console::default() } else { Console::with_checks() };
            let found = tanglescope::verify(&options, &listener)?;
            print::verification(&found, json);
            if found.failed() > 0 {
                let failed = found.failed();
                return Err(Error::Failed(format!(
                    "{failed} checks failed: do not rely on results of this model here"
                )));
            }
        }
        Command::Bench(args) => {
            let options = options::bench(&args)?;
            if args.dry.dry_run {
                print::batches(&options.estimate(console)?);
                println!("{} times, after once to warm up, and every kernel by itself", args.repeats);
                return Ok(());
            }
            let found = tanglescope::bench(&options, console)?;
            if json || args.format == Format::Json {
                println!("{:#}", serde_json::json!(found));
            } else {
                print::bench(&found);
            }
        }
        Command::Summarize(args) => {
            let format = if json { TableFormat::Json } else { args.format };
            if format == TableFormat::Parquet && args.out.is_none() {
                return Err(Error::Input("--format parquet: is not for printing; add --out FILE".to_owned()));
            }
            let mut found = tanglescope::summarize(&options::summarize(&args), console)?;
            let bytes = table::encode(&mut found, format)?;
            match &args.out {
                None => {
                    let written = std::io::stdout().write_all(&bytes);
                    written.map_err(|e| Error::Failed(format!("standard output: {e}")))?;
                }
                Some(path) => tanglescope_records::write_whole(path, &bytes).map_err(tanglescope::Error::from)?,
            }
        }
        Command::Report(args) => {
            println!("{}", tanglescope::report(&options::report(&args), console)?.display());
        }
        Command::Objectives => print::objectives(json),
        Command::Devices(args) => print::devices(&tanglescope::devices(), json || args.format == Format::Json),
        Command::Demo(args) => demo::run(&args)?,
        Command::Completions(args) => {
            clap_complete::generate(args.shell, &mut Cli::command(), "tanglescope", &mut std::io::stdout());
        }
        Command::Man(args) => man(&args.out)?,
    }
    Ok(())
}

/// Refuses a sweep that left something out, once the rest of it is there.
fn complete(found: &tanglescope::SweepOutcome) -> Result<()> {
    match found.left_out.len() {
        0 => Ok(()),
        _ => Err(Error::Failed(format!("left out, for reasons above: {}", found.left_out.join("; ")))),
    }
}

/// Writes a manual page for every command.
fn man(out: &Path) -> Result<()> {
    let written = std::fs::create_dir_all(out).and_then(|()| clap_mangen::generate_to(Cli::command(), out));
    written.map_err(|e| Error::Failed(format!("{}: cannot be written: {e}", out.display())))
}
