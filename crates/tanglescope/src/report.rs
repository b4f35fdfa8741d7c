//! `tanglescope report`: one page, or Markdown with figures, from any set of record folders.
use crate::cli::{Report, ReportFormat};
use crate::error::{Error, Result};
use crate::output::write_whole;
use std::path::Path;
use tanglescope_report::{Origin, html, markdown};

/// Runs the command.
pub fn run(args: &Report) -> Result<()> {
    let origin = Origin { version: env!("CARGO_PKG_VERSION").to_owned(), command: std::env::args().collect() };
    write(args, origin)?;
    println!("{}", args.out.display());
    Ok(())
}

/// Writes the report whole or not at all.
pub fn write(args: &Report, origin: Origin) -> Result<()> {
    // a training run's folder beside records needs none itself
    if tanglescope_analytics::find_some(&args.folders).is_ok_and(|found| found.is_empty()) {
        tanglescope_analytics::find(&args.folders).map_err(|e| Error::option("FOLDER", e))?;
    }
    let report = tanglescope_report::Report::of(&args.folders, origin)?;
    report.left_out.iter().for_each(|what| eprintln!("left out: {what}"));
    match args.format {
        ReportFormat::Html => write_whole(&args.out, html(&report)?.as_bytes()),
        ReportFormat::Md => {
            let name = args.out.file_name().map_or("report.md".into(), |name| name.to_string_lossy().into_owned());
            let (text, figures) = markdown(&report, &name)?;
            let stem = args.out.file_stem().map_or("report".into(), |stem| stem.to_string_lossy().into_owned());
            let folder = args.out.parent().unwrap_or(Path::new("")).join(format!("{stem}-figures"));
            std::fs::create_dir_all(&folder).map_err(|e| Error::output(&folder, format!("cannot be made: {e}")))?;
            for (file, svg) in figures {
                write_whole(&folder.join(file), svg.as_bytes())?;
            }
            write_whole(&args.out, text.as_bytes())
        }
    }
}
