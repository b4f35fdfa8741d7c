//! One page, or Markdown with figures, from any set of record folders.
use crate::error::{Error, Result};
use crate::folder::{Kind, expect};
use crate::listener::Listener;
use crate::records::make_folder;
use std::path::{Path, PathBuf};
use tanglescope_records::{tables, write_whole};
use tanglescope_report::{Origin, Report, html, markdown};

/// Formats of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportFormat {
    /// One HTML file with everything in it.
    Html,
    /// Markdown, with figures as SVG in a folder beside it.
    Markdown,
}

/// Options of [`report`].
#[derive(Clone, Debug)]
pub struct ReportOptions {
    /// Folders of records: of [`analyze`](crate::analyze()) or [`sweep`](crate::sweep()), with those of [`tokens`](crate::tokens())
    /// and of training runs where there are some.
    pub folders: Vec<PathBuf>,
    /// The file.
    pub out: PathBuf,
    /// What it is.
    pub format: ReportFormat,
    /// The command line, for the report's header.
    pub command: Vec<String>,
}

impl ReportOptions {
    /// A page of some folders.
    #[must_use]
    pub fn new(folders: &[PathBuf], out: impl Into<PathBuf>) -> Self {
        Self { folders: folders.to_vec(), out: out.into(), format: ReportFormat::Html, command: Vec::new() }
    }
}

/// Writes a report whole or not at all; returns its file.
///
/// # Errors
/// Where a folder has no records, a part of them is damaged, or the file cannot be written.
pub fn report(options: &ReportOptions, listener: &dyn Listener) -> Result<PathBuf> {
    // a training run's folder needs no records itself
    let runs = tanglescope_records::folders_with(&options.folders, tables::STEPS);
    if tanglescope_records::find_some(&options.folders).is_ok_and(|found| found.is_empty())
        && runs.is_ok_and(|runs| runs.is_empty())
    {
        options.folders.iter().try_for_each(|folder| expect(Kind::Records, "folders", folder))?;
        tanglescope_records::find(&options.folders).map_err(|e| Error::option("folders", e))?;
    }
    let origin = Origin { version: env!("CARGO_PKG_VERSION").to_owned(), command: options.command.clone() };
    let report = Report::of(&options.folders, origin)?;
    report.left_out.iter().for_each(|what| listener.left_out(&format!("left out: {what}")));
    let out = &options.out;
    match options.format {
        ReportFormat::Html => write_whole(out, html(&report, None)?.as_bytes())?,
        ReportFormat::Markdown => {
            let name = out.file_name().map_or("report.md".into(), |name| name.to_string_lossy().into_owned());
            let (text, figures) = markdown(&report, &name)?;
            let stem = out.file_stem().map_or("report".into(), |stem| stem.to_string_lossy().into_owned());
            let folder = out.parent().unwrap_or(Path::new("")).join(format!("{stem}-figures"));
            make_folder(&folder)?;
            for (file, svg) in figures {
                write_whole(&folder.join(file), svg.as_bytes())?;
            }
            write_whole(out, text.as_bytes())?;
        }
    }
    Ok(out.clone())
}
