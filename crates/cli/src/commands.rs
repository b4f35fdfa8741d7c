//! The commands: from arguments to options, to a call of the library, to what is printed.
use crate::cli::{self, Cli, Command, Format, TableFormat};
use crate::console::Console;
use crate::error::{Error, Result};
use crate::{demo, options, print, table};
use clap::CommandFactory;
use std::io::Write;
use std::path::Path;

/// Runs a command to its end.
pub fn run(Cli { json, command }: Cli) -> Result<()> {
    let console = &Console::default();
    match command {
        Command::Analyze(args) => analyze(&args, json, console),
        Command::Tokens(args) => tokens(&args, json, console),
        Command::Sweep(args) => sweep(&args, console),
        Command::Train(args) => train(&args, console),
        Command::Verify(args) => verify(&args, json),
        Command::Bench(args) => bench(&args, json, console),
        Command::Summarize(args) => summarize(&args, json, console),
        Command::Report(args) => {
            println!("{}", tanglescope::report(&options::report(&args), console)?.display());
            Ok(())
        }
        Command::Objectives => {
            print::objectives(json);
            Ok(())
        }
        Command::Devices(args) => {
            print::devices(&tanglescope::devices(), json || args.format == Format::Json);
            Ok(())
        }
        Command::Demo(args) => demo::run(&args),
        Command::Completions(args) => {
            clap_complete::generate(args.shell, &mut Cli::command(), "tanglescope", &mut std::io::stdout());
            Ok(())
        }
        Command::Man(args) => man(&args.out),
    }
}

/// Prints what was found, for people or for programs.
fn say(json: bool, found: &impl std::fmt::Display, value: impl FnOnce() -> serde_json::Value) {
    if json { println!("{:#}", value()) } else { print!("{found}") }
}

fn analyze(args: &cli::Analyze, json: bool, console: &Console) -> Result<()> {
    let options = options::analyze(args)?;
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
    Ok(())
}

fn tokens(args: &cli::Tokens, json: bool, console: &Console) -> Result<()> {
    let options = options::tokens(args)?;
    if args.dry.dry_run {
        print::tokens(&options.estimate(console)?);
        print::nothing_written(&args.out);
        return Ok(());
    }
    let found = tanglescope::tokens(&options, console)?;
    say(json, &found.shares, || found.shares.json());
    Ok(())
}

fn sweep(args: &cli::Sweep, console: &Console) -> Result<()> {
    let options = options::sweep(args)?;
    if args.dry.dry_run {
        print::sweep(&options.estimate(console)?);
        print::nothing_written(&args.out);
        return Ok(());
    }
    complete(&tanglescope::sweep(&options, console)?)
}

/// Ends a sweep that left something out with an error, once the rest is there.
pub fn complete(found: &tanglescope::SweepOutcome) -> Result<()> {
    match found.left_out.len() {
        0 => Ok(()),
        _ => Err(Error::Failed(format!("left out, for reasons above: {}", found.left_out.join("; ")))),
    }
}

fn train(args: &cli::Train, console: &Console) -> Result<()> {
    let options = options::train(args)?;
    if args.dry.dry_run {
        print::train(&options.estimate(console)?);
        print::nothing_written(&args.out);
        return Ok(());
    }
    println!("{}", tanglescope::train(&options, console)?.checkpoint.display());
    Ok(())
}

/// Ends with an error where a check failed.
fn verify(args: &cli::Verify, json: bool) -> Result<()> {
    let options = options::verify(args)?;
    if args.dry.dry_run {
        let (estimate, passes) = options.estimate(&Console::default())?;
        print::batches(&estimate);
        println!(
            "and for each pair {passes} forward passes of each response in f64 on the CPU, and two gradients kept whole"
        );
        return Ok(());
    }
    let listener = if json { Console::default() } else { Console::with_checks() };
    let found = tanglescope::verify(&options, &listener)?;
    print::verification(&found, json);
    match found.failed() {
        0 => Ok(()),
        failed => Err(Error::Failed(format!("{failed} checks failed: do not rely on results of this model here"))),
    }
}

fn bench(args: &cli::Bench, json: bool, console: &Console) -> Result<()> {
    let options = options::bench(args)?;
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
    Ok(())
}

fn summarize(args: &cli::Summarize, json: bool, console: &Console) -> Result<()> {
    let format = if json { TableFormat::Json } else { args.format };
    if format == TableFormat::Parquet && args.out.is_none() {
        return Err(Error::Input("--format parquet: is not for printing; add --out FILE".to_owned()));
    }
    let mut found = tanglescope::summarize(&options::summarize(args), console)?;
    let bytes = table::encode(&mut found, format)?;
    match &args.out {
        None => {
            let written = std::io::stdout().write_all(&bytes);
            written.map_err(|e| Error::Failed(format!("standard output: {e}")))
        }
        Some(path) => Ok(tanglescope_records::write_whole(path, &bytes).map_err(tanglescope::Error::from)?),
    }
}

/// Writes a manual page for every command.
fn man(out: &Path) -> Result<()> {
    let written = std::fs::create_dir_all(out).and_then(|()| clap_mangen::generate_to(Cli::command(), out));
    written.map_err(|e| Error::Failed(format!("{}: cannot be written: {e}", out.display())))
}
