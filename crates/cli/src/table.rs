//! A table in any of the usual formats.
use crate::cli::TableFormat;
use crate::error::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};
use polars_core::prelude::{AnyValue, ChunkApply, Column, DataFrame, DataType, IntoColumn, PlSmallStr};
use polars_io::prelude::{CsvWriter, JsonFormat, JsonWriter, ParquetWriter, SerWriter};
use std::borrow::Cow;

/// A table in a format.
pub fn encode(table: &mut DataFrame, format: TableFormat) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let written = match format {
        TableFormat::Csv => CsvWriter::new(&mut bytes).finish(&mut as_text(table)),
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

/// A table whose texts no spreadsheet takes for formulas: those that begin like one have an apostrophe in front.
fn as_text(table: &DataFrame) -> DataFrame {
    let mut table = table.clone();
    let texts: Vec<PlSmallStr> =
        table.columns().iter().filter(|c| *c.dtype() == DataType::String).map(|c| c.name().clone()).collect();
    for name in texts {
        let quoted = |column: &Column| {
            let texts = column.str().map(|texts| {
                let of = |text: &str| match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
                    true => format!("'{text}").into(),
                    false => Cow::Owned(text.to_owned()),
                };
                texts.apply_values(of).into_column()
            });
            texts.unwrap_or_else(|_| column.clone())
        };
        // the column is there
        drop(table.apply(&name, quoted));
    }
    table
}

/// A table for reading; columns that are empty throughout are left out.
fn printed(table: &DataFrame, preset: &str) -> String {
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
