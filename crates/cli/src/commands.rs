//! The commands: from arguments to options, to a call of the library, to what is printed.
use crate::cli::{self, Cli, Command, Format, TableFormat};
use crate::console::{Console, print, print_json, print_text};
use crate::error::{Error, Result};
use crate::hub;
use crate::options::ReportTo;
use crate::print::line;
use crate::{demo, options, print, table};
use clap::CommandFactory;
use std::path::Path;

/// Runs a command to its end.
pub fn run(Cli { json, command }: Cli) -> Result<()> {
    let console = &Console::default();
    match command {
        Command::Analyze(args) => analyze(&args, json, console),
        Command::Tokens(args) => tokens(&args, json, console),
        Command::Interference(args) => interference(&args, json, console),
        Command::Rows(args) => rows(&args, json, console),
        Command::Sweep(args) => sweep(&args, json, console),
        Command::Train(args) => train(&args, json, console),
        Command::Verify(args) => verify(&args, json),
        Command::Bench(args) => bench(&args, json, console),
        Command::Summarize(args) => summarize(&args, json, console),
        Command::Report(args) => {
            let report = match options::report(&args)? {
                ReportTo::Watched(watched) => return Ok(tanglescope::watch(&watched, console)?),
                ReportTo::File(file) => tanglescope::report(&file, console)?,
            };
            say(json, &format_args!("{}\n", report.display()), || serde_json::json!({"report": report}))
        }
        Command::Objectives => print_text(|out| print::objectives(out, json)),
        Command::Inspect(args) => {
            let path = hub::resolve_either(&args.path)?;
            let found = tanglescope::inspect(&path)?;
            print_text(|out| print::inspection(out, &found, json))
        }
        Command::Devices(args) => {
            let found = tanglescope::devices();
            print_text(|out| print::devices(out, &found, json || args.format == Format::Json))
        }
        Command::Demo(args) => demo::run(&args, json),
        Command::Completions(args) => {
            let mut script = Vec::new();
            clap_complete::generate(args.shell, &mut Cli::command(), "tanglescope", &mut script);
            let script = String::from_utf8_lossy(&script);
            say(json, &script, || serde_json::json!({"shell": args.shell.to_string(), "script": script}))
        }
        Command::Man(args) => {
            man(&args.out)?;
            if json { print_json(&serde_json::json!({"out": args.out})) } else { Ok(()) }
        }
    }
}

/// Prints what was found, for people or for programs.
fn say(json: bool, found: &impl std::fmt::Display, value: impl FnOnce() -> serde_json::Value) -> Result<()> {
    if json { print_json(&value()) } else { print(found.to_string().as_bytes()) }
}

/// Prints what a dry run found, for people or for programs.
fn say_dry(
    json: bool,
    folder: Option<&Path>,
    value: impl FnOnce() -> serde_json::Value,
    text: impl FnOnce(&mut String),
) -> Result<()> {
    if json {
        return print_json(&value());
    }
    print_text(|out| {
        text(out);
        if let Some(folder) = folder {
            print::nothing_written(out, folder);
        }
    })
}

fn analyze(args: &cli::Analyze, json: bool, console: &Console) -> Result<()> {
    let options = options::analyze(args)?;
    if args.dry.dry_run {
        let (estimate, reference) = options.estimate(console)?;
        let value = || serde_json::json!({"passes": print::estimate_json(&estimate), "reference": reference});
        return say_dry(json, Some(&args.out), value, |out| {
            print::batches(out, &estimate);
            if reference {
                line!(out, "and a forward pass of the reference over the same rows");
            }
        });
    }
    let found = tanglescope::analyze(&options, console)?;
    say(json, &found.summary, || found.summary.json())
}

fn tokens(args: &cli::Tokens, json: bool, console: &Console) -> Result<()> {
    let options = options::tokens(args)?;
    if args.dry.dry_run {
        let estimate = options.estimate(console)?;
        return say_dry(json, Some(&args.out), || print::tokens_json(&estimate), |out| print::tokens(out, &estimate));
    }
    let found = tanglescope::tokens(&options, console)?;
    say(json, &found.shares, || found.shares.json())
}

fn interference(args: &cli::Interference, json: bool, console: &Console) -> Result<()> {
    let options = options::interference(args)?;
    if args.dry.dry_run {
        let estimate = options.estimate(console)?;
        return say_dry(
            json,
            Some(&args.out),
            || print::interference_json(&estimate),
            |out| print::interference(out, &estimate),
        );
    }
    let found = tanglescope::interference(&options, console)?;
    let spectrum = found.spectrum.as_ref();
    let text = format!("{}{}", found.summary, spectrum.map(ToString::to_string).unwrap_or_default());
    say(json, &text, || {
        let mut value = found.summary.json();
        if let Some(of) = spectrum {
            value["effective_rank"] = serde_json::json!(of.effective_rank());
            value["common_mode"] = serde_json::json!(of.common_mode());
        }
        value
    })
}

fn rows(args: &cli::Rows, json: bool, console: &Console) -> Result<()> {
    let found = tanglescope::rows(&options::rows_of(args)?, console)?;
    say(json, &print::Rows(&found), || serde_json::json!(found))
}

/// Measures revisions of a repository as the steps of a run.
fn sweep_revisions(args: &cli::Sweep, pattern: &str, json: bool, console: &Console) -> Result<()> {
    let options = options::sweep(args)?;
    let [run] = &options.runs[..] else {
        return Err(Error::Input("--revisions: are of one repository; expected one RUN, org/name".to_owned()));
    };
    if args.dry.dry_run {
        return Err(Error::Input(
            "--dry-run: what revisions take is known once they are fetched; fetch one, and ask of its folder"
                .to_owned(),
        ));
    }
    let name = run.name.clone().or_else(|| Some(run.folder.file_name()?.to_string_lossy().into_owned()));
    let name = name.map(|name| name.split('@').next().unwrap_or_default().to_owned()).unwrap_or_default();
    if options.model.is_none() && options.reference == Some(tanglescope::ReferenceModel::Start) {
        let problem = "--reference start: what revisions were trained from is not known; add --model";
        return Err(Error::Input(problem.to_owned()));
    }
    // what decides the results, and not where and how fast they are made
    let measured = tanglescope::Measured { device: None, memory: None, ..options.measured.clone() };
    let data = options.data.iter().map(|(name, path)| Ok((name, contents(path)?))).collect::<Result<Vec<_>>>()?;
    let asked = format!(
        "{data:?} {:?} {measured:?} {:?} {:?} {:?} {:?} {:?}",
        options.model, options.rows, options.pairs, options.objectives, options.mean_gradients, options.reference
    );
    let names: Vec<&str> = options.data.iter().map(|(name, _)| name.as_str()).collect();
    let left_out = hub::sweep_revisions(
        &run.folder,
        pattern,
        args.keep,
        (&asked, &names),
        |revisions| options.shard.part(revisions),
        |step| options.out.join(format!("run={name}")).join(format!("step={step}")),
        |step, files| {
            let run = tanglescope::RunFolder { name: Some(name.clone()), folder: files.to_owned(), step: Some(step) };
            let shard = tanglescope::Shard { taken: true, ..options.shard };
            let one = tanglescope::SweepOptions { runs: vec![run], shard, ..options.clone() };
            Ok(tanglescope::sweep(&one, console)?.left_out)
        },
    )?;
    let found = tanglescope::SweepOutcome { out: options.out, left_out };
    if json {
        print_json(&serde_json::json!({"out": found.out, "left_out": found.left_out}))?;
    }
    complete(&found)
}

/// SHA-256 of a file, or of the files of a folder.
fn contents(path: &Path) -> Result<Vec<String>> {
    let fail = |e: &dyn std::fmt::Display| Error::Failed(format!("{}: {e}", path.display()));
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        let entries = std::fs::read_dir(path).map_err(|e| fail(&e))?.flatten().map(|entry| entry.path());
        files = entries.filter(|path| path.is_file()).collect();
        files.sort();
    }
    files.iter().map(|file| tanglescope_checkpoint::file_hash(file).map_err(|e| fail(&e))).collect()
}

fn sweep(args: &cli::Sweep, json: bool, console: &Console) -> Result<()> {
    if let Some(pattern) = &args.revisions {
        return sweep_revisions(args, pattern, json, console);
    }
    let options = options::sweep(args)?;
    if args.dry.dry_run {
        let estimate = options.estimate(console)?;
        return say_dry(json, Some(&args.out), || print::sweep_json(&estimate), |out| print::sweep(out, &estimate));
    }
    let found = tanglescope::sweep(&options, console)?;
    if json {
        print_json(&serde_json::json!({"out": found.out, "left_out": found.left_out}))?;
    }
    complete(&found)
}

/// Ends a sweep that left something out with an error, once the rest is there.
pub fn complete(found: &tanglescope::SweepOutcome) -> Result<()> {
    match found.left_out.len() {
        0 => Ok(()),
        _ => Err(Error::Failed(format!("left out, for reasons above: {}", found.left_out.join("; ")))),
    }
}

fn train(args: &cli::Train, json: bool, console: &Console) -> Result<()> {
    let options = options::train(args)?;
    if args.dry.dry_run {
        let estimate = options.estimate(console)?;
        return say_dry(json, Some(&args.out), || print::train_json(&estimate), |out| print::train(out, &estimate));
    }
    let checkpoint = tanglescope::train(&options, console)?.checkpoint;
    say(json, &format_args!("{}\n", checkpoint.display()), || serde_json::json!({"checkpoint": checkpoint}))
}

/// Ends with an error where a check failed.
fn verify(args: &cli::Verify, json: bool) -> Result<()> {
    let options = options::verify(args)?;
    if args.dry.dry_run {
        let (estimate, passes) = options.estimate(&Console::default())?;
        let value =
            || serde_json::json!({"passes": print::estimate_json(&estimate), "forward_passes_a_response": passes});
        return say_dry(json, None, value, |out| {
            print::batches(out, &estimate);
            line!(
                out,
                "and for each pair {passes} forward passes of each response in f64 on the CPU, and two gradients kept whole"
            );
        });
    }
    let listener = if json { Console::default() } else { Console::with_checks() };
    let found = tanglescope::verify(&options, &listener)?;
    print_text(|out| print::verification(out, &found, json))?;
    match found.failed() {
        0 => Ok(()),
        failed => Err(Error::Failed(format!("{failed} checks failed: do not rely on results of this model here"))),
    }
}

fn bench(args: &cli::Bench, json: bool, console: &Console) -> Result<()> {
    let options = options::bench(args)?;
    if args.dry.dry_run {
        let (estimate, repeats) = (options.estimate(console)?, args.repeats);
        let value = || serde_json::json!({"pass": print::estimate_json(&estimate), "repeats": repeats});
        return say_dry(json || args.format == Format::Json, None, value, |out| {
            print::batches(out, &estimate);
            line!(out, "{repeats} times, after once to warm up, and every kernel by itself");
        });
    }
    let found = tanglescope::bench(&options, console)?;
    if json || args.format == Format::Json {
        return print_json(&serde_json::json!(found));
    }
    print_text(|out| print::bench(out, &found))
}

fn summarize(args: &cli::Summarize, json: bool, console: &Console) -> Result<()> {
    let format = if json { TableFormat::Json } else { args.format };
    if format == TableFormat::Parquet && args.out.is_none() {
        return Err(Error::Input("--format parquet: is not for printing; add --out FILE".to_owned()));
    }
    let mut found = tanglescope::summarize(&options::summarize(args), console)?;
    let bytes = table::encode(&mut found, format)?;
    match &args.out {
        None => print(&bytes),
        Some(path) => Ok(tanglescope_records::write_whole(path, &bytes).map_err(tanglescope::Error::from)?),
    }
}

/// Writes a manual page for every command.
fn man(out: &Path) -> Result<()> {
    let written = std::fs::create_dir_all(out).and_then(|()| clap_mangen::generate_to(Cli::command(), out));
    written.map_err(|e| Error::Failed(format!("{}: cannot be written: {e}", out.display())))
}
