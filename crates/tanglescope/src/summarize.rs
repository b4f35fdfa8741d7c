//! `tanglescope summarize`: what records amount to, as a table in any of the usual formats.
use crate::cli::{Compat, Summarize, SummaryBy, TableFormat};
use crate::error::{Error, Result};
use crate::manifest::Manifest;
use crate::output::write_whole;
use comfy_table::{CellAlignment, Table, presets};
use polars_core::prelude::{AnyValue, DataFrame};
use polars_io::prelude::{CsvWriter, JsonFormat, JsonWriter, ParquetWriter, SerWriter};
use std::io::Write;
use std::path::{Path, PathBuf};
use tanglescope_analytics::{self as analytics, By, Leaf};

/// Runs the command.
pub fn run(args: &Summarize) -> Result<()> {
    if args.format == TableFormat::Parquet && args.out.is_none() {
        return Err(Error::option("--format parquet", "is not for printing; add --out FILE"));
    }
    let leaves = records(&args.folders)?;
    let mut table = match (&args.compat, &args.against) {
        (Some(Compat::Official), _) => official(&leaves)?,
        (None, Some(other)) => against(&leaves, other)?,
        (None, None) => summary(&leaves, args.by)?,
    };
    let bytes = encode(&mut table, args.format)?;
    match &args.out {
        None => std::io::stdout().write_all(&bytes).map_err(|e| Error::Failed(format!("standard output: {e}"))),
        Some(path) => write_whole(path, &bytes),
    }
}

/// The records of folders that were named; one without any is bad input.
fn records(folders: &[PathBuf]) -> Result<Vec<Leaf>> {
    analytics::find(folders).map_err(|e| Error::option("FOLDER", e))
}

/// The published script's columns, which say of a row only its step.
fn official(leaves: &[Leaf]) -> Result<DataFrame> {
    let differs = |of: fn(&Leaf) -> &str| leaves.iter().any(|leaf| of(leaf) != of(&leaves[0]));
    let what = if differs(|leaf| &leaf.run) { Some("runs") } else { None };
    match what.or(differs(|leaf| &leaf.dataset).then_some("data sets")) {
        None => Ok(analytics::official(leaves)?),
        Some(what) => {
            let problem = format!(
                "these are records of several {what}, and its rows say only their step; name the folders of one"
            );
            Err(Error::option("--compat official", problem))
        }
    }
}

/// The rows of all records under each other.
pub fn summary(leaves: &[Leaf], by: SummaryBy) -> Result<DataFrame> {
    let of = |leaf: &Leaf| -> Result<Option<DataFrame>> {
        Ok(match by {
            SummaryBy::Run => Some(analytics::digest(leaf)?),
            SummaryBy::Metric => Some(analytics::metrics(leaf)?),
            SummaryBy::Regime => Some(analytics::regimes(leaf)?),
            SummaryBy::Objective => analytics::outcomes(leaf)?,
            SummaryBy::Layer => analytics::params(leaf, By::Layer)?,
            SummaryBy::Module => analytics::params(leaf, By::Module)?,
            SummaryBy::Mean => analytics::means(leaf)?,
            SummaryBy::Relation => Some(analytics::relations(leaf)?),
            SummaryBy::Bin => Some(analytics::bins(leaf)?),
            SummaryBy::Outlier => Some(analytics::outliers(leaf)?),
        })
    };
    let missing = match by {
        SummaryBy::Layer | SummaryBy::Module => "params.parquet",
        SummaryBy::Mean => "means.parquet; analyze and sweep write it with --mean-gradients",
        _ => "objectives.parquet; analyze with --objective writes it",
    };
    let mut tables = Vec::new();
    for leaf in leaves {
        match of(leaf)? {
            Some(rows) => tables.push(rows),
            None => eprintln!("{}: has no {missing}", leaf.folder.display()),
        }
    }
    stacked(tables)?.ok_or_else(|| Error::Failed("there is nothing to summarize".to_owned()))
}

/// The rows of tables under each other; `None` of no table.
fn stacked(tables: Vec<DataFrame>) -> Result<Option<DataFrame>> {
    let mut tables = tables.into_iter();
    let Some(mut whole) = tables.next() else { return Ok(None) };
    for rows in tables {
        whole.vstack_mut(&rows).map_err(|e| Error::Failed(e.to_string()))?;
    }
    Ok(Some(whole))
}

/// Comparisons of records that belong together, with what is compared in front: two records alone, whatever they are of, and of
/// more those of the same data set and step.
fn against(leaves: &[Leaf], other: &Path) -> Result<DataFrame> {
    let others = records(&[other.to_owned()])?;
    let mut tables = Vec::new();
    for leaf in leaves {
        let of_data: Vec<&Leaf> = others.iter().filter(|other| other.dataset == leaf.dataset).collect();
        let of_step: Vec<&Leaf> = of_data.iter().copied().filter(|other| other.step == leaf.step).collect();
        let alone = others.iter().filter(|_| leaves.len() == 1 && others.len() == 1).collect::<Vec<_>>();
        let before = match (alone.as_slice(), of_data.as_slice(), of_step.as_slice()) {
            ([one], ..) | (_, [one], _) | (.., [one]) => one,
            (.., []) => continue,
            _ => {
                let problem = format!("has several records that belong to {}; name the folder of one", leaf.title());
                return Err(Error::option(format!("--against {}", other.display()), problem));
            }
        };
        same_rows(before, leaf)?;
        tables.push(analytics::compare(before, leaf)?);
    }
    let none = "has no records of the same data set and step";
    stacked(tables)?.ok_or_else(|| Error::option(format!("--against {}", other.display()), none))
}

/// Refuses records whose pairs are counted in two ways, and says where equal numbers may be of other texts.
fn same_rows(before: &Leaf, after: &Leaf) -> Result<()> {
    let (Some(first), Some(second)) = (Manifest::read(&before.folder)?, Manifest::read(&after.folder)?) else {
        return Ok(());
    };
    let (first, second) = (first.identity, second.identity);
    if first.all_pairs != second.all_pairs {
        let problem =
            "has all pairs of each group, and the other only the best against the worst: their numbers differ";
        let all = if first.all_pairs { before } else { after };
        return Err(Error::output(&all.folder, problem));
    }
    if first.data != second.data {
        eprintln!(
            "{} and {}: not the same token ids; pairs are matched by row number, and refused where their ids differ",
            before.folder.display(),
            after.folder.display()
        );
    }
    Ok(())
}

/// A table in a format.
fn encode(table: &mut DataFrame, format: TableFormat) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = match format {
        TableFormat::Csv => CsvWriter::new(&mut bytes).finish(table),
        TableFormat::Json => JsonWriter::new(&mut bytes).with_json_format(JsonFormat::Json).finish(table),
        TableFormat::Parquet => ParquetWriter::new(&mut bytes).finish(table).map(|_| ()),
        TableFormat::Table => {
            bytes = printed(table, presets::NOTHING).into_bytes();
            Ok(())
        }
        TableFormat::Md => {
            bytes = printed(table, presets::ASCII_MARKDOWN).into_bytes();
            Ok(())
        }
    };
    written.map_err(|e| Error::Failed(e.to_string()))?;
    if format == TableFormat::Json {
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// A table for reading; columns that are empty throughout are left out.
pub fn printed(table: &DataFrame, preset: &str) -> String {
    let columns: Vec<_> = table.columns().iter().filter(|column| column.null_count() < table.height().max(1)).collect();
    let mut out = Table::new();
    out.load_preset(preset).set_header(columns.iter().map(|column| column.name().as_str()));
    for row in 0..table.height() {
        let cell =
            |column: &&polars_core::prelude::Column| column.get(row).map_or(String::new(), |value| shown(&value));
        out.add_row(columns.iter().map(cell));
    }
    for (at, column) in columns.iter().enumerate() {
        if column.dtype().is_primitive_numeric()
            && let Some(column) = out.column_mut(at)
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = out.lines().map(|line| line.trim_end().to_owned()).collect();
    format!("{}\n", lines.join("\n"))
}

/// A value with as many digits as are read.
fn shown(value: &AnyValue<'_>) -> String {
    match value {
        AnyValue::Null => String::new(),
        AnyValue::String(text) => (*text).to_owned(),
        AnyValue::StringOwned(text) => text.to_string(),
        AnyValue::Float64(x) => match x.abs() {
            0.0 => "0".to_owned(),
            size if (1e-3..1e5).contains(&size) => {
                let digits = if size < 10.0 {
                    4
                } else if size < 1000.0 {
                    2
                } else {
                    0
                };
                format!("{x:.digits$}")
            }
            _ => format!("{x:.3e}"),
        },
        other => other.to_string(),
    }
}
