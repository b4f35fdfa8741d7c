//! tokens.parquet, positions.parquet and position_products.parquet: token-level matrices.
use crate::error::{Error, Result};
use crate::tables::{as_index, column, frame};
use polars_core::prelude::{DataFrame, PolarsResult};
use std::path::Path;

/// One matrix of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenMatrixRows {
    /// Number of the row in the data.
    pub pair: u64,
    /// Whose tokens are its rows and its columns: `wl`, `ww` or `ll`.
    pub block: &'static str,
    /// `inner[row][column]`.
    pub inner: Vec<Vec<f64>>,
}

/// A row of positions.parquet.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionRow {
    /// Number of the row in the data.
    pub pair: u64,
    /// `w` or `l`.
    pub branch: &'static str,
    /// Which token of the response, from 0.
    pub position: u32,
    /// Its id.
    pub token: u32,
    /// What it stands for; `None` without a tokenizer.
    pub text: Option<String>,
    /// Its log-probability.
    pub logp: f64,
    /// Whether the other response has it too, in a longest common subsequence.
    pub shared: bool,
    /// What the data says that it weighs; `None` where it says nothing.
    pub weight: Option<f64>,
}

/// tokens.parquet.
#[must_use]
pub fn matrices(blocks: &[TokenMatrixRows]) -> DataFrame {
    let entry = |block: &'static str, pair: u64| {
        move |(row, column, inner): (usize, usize, f64)| (pair, block, as_index(row), as_index(column), inner)
    };
    let of = |block: &TokenMatrixRows| {
        let rows = block.inner.iter().enumerate();
        let entries = rows.flat_map(|(r, row)| row.iter().enumerate().map(move |(c, inner)| (r, c, *inner)));
        entries.map(entry(block.block, block.pair)).collect::<Vec<_>>()
    };
    let rows: Vec<_> = blocks.iter().flat_map(of).collect();
    frame(vec![
        column("pair", &rows, |r| r.0),
        column("block", &rows, |r| r.1.to_owned()),
        column("row", &rows, |r| r.2),
        column("column", &rows, |r| r.3),
        column("inner", &rows, |r| r.4),
    ])
}

/// positions.parquet.
#[must_use]
pub fn positions(rows: &[PositionRow]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("branch", rows, |r| r.branch.to_owned()),
        column("position", rows, |r| r.position),
        column("token", rows, |r| r.token),
        column("text", rows, |r| r.text.clone()),
        column("logp", rows, |r| r.logp),
        column("shared", rows, |r| r.shared),
        column("weight", rows, |r| r.weight),
    ])
}

/// wl of a pair by the positions at which parameters are used.
#[derive(Clone, Debug, PartialEq)]
pub struct PositionProducts {
    /// Number of the row in the data.
    pub pair: u64,
    /// `inner[row][column]`: a position of prompt and chosen response, one of prompt and rejected response.
    pub inner: Vec<Vec<f64>>,
}

/// position_products.parquet.
#[must_use]
pub fn position_products(pairs: &[PositionProducts]) -> DataFrame {
    let mut rows: Vec<(u64, u32, u32, f64)> = Vec::new();
    for of in pairs {
        for (at, row) in of.inner.iter().enumerate() {
            rows.extend(
                row.iter().enumerate().map(|(column, inner)| (of.pair, as_index(at), as_index(column), *inner)),
            );
        }
    }
    frame(vec![
        column("pair", &rows, |r| r.0),
        column("row", &rows, |r| r.1),
        column("column", &rows, |r| r.2),
        column("inner", &rows, |r| r.3),
    ])
}

/// A matrix of tokens.parquet.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    /// Number of the row in the data.
    pub pair: u64,
    /// `wl`, `ww` or `ll`.
    pub block: String,
    /// Its width.
    pub columns: usize,
    /// Entries, row by row.
    pub values: Vec<f64>,
}

/// The matrices of a part of tokens.parquet.
///
/// # Errors
/// Where a column is missing or of another type.
pub fn arrays(matrices: &DataFrame) -> Result<Vec<Array>> {
    let read = || -> PolarsResult<Vec<Array>> {
        let (pair, block) = (matrices.column("pair")?.u64()?, matrices.column("block")?.str()?);
        let (columns, inner) = (matrices.column("column")?.u32()?, matrices.column("inner")?.f64()?);
        let mut all: Vec<Array> = Vec::new();
        for (((pair, block), column), inner) in pair.iter().zip(block.iter()).zip(columns.iter()).zip(inner.iter()) {
            let (Some(pair), Some(block), Some(column), Some(inner)) = (pair, block, column, inner) else { continue };
            if all.last().is_none_or(|last| (last.pair, last.block.as_str()) != (pair, block)) {
                all.push(Array { pair, block: block.to_owned(), columns: 0, values: Vec::new() });
            }
            if let Some(last) = all.last_mut() {
                last.columns = last.columns.max(column as usize + 1);
                last.values.push(inner);
            }
        }
        Ok(all)
    };
    read().map_err(|e| Error::new(Path::new("tokens.parquet"), e))
}
