//! The tables of token-level matrices, and what they amount to (docs/formats.md).
use crate::error::{Error, Result};
use crate::tables::{column, frame};
use polars_core::prelude::{DataFrame, PolarsResult};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

/// One matrix of a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenBlock {
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
}

/// tokens.parquet.
#[must_use]
pub fn matrices(blocks: &[TokenBlock]) -> DataFrame {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let entry = |block: &'static str, pair: u64| {
        move |(row, column, inner): (usize, usize, f64)| (pair, block, number(row), number(column), inner)
    };
    let of = |block: &TokenBlock| {
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
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let mut rows: Vec<(u64, u32, u32, f64)> = Vec::new();
    for of in pairs {
        for (at, row) in of.inner.iter().enumerate() {
            rows.extend(row.iter().enumerate().map(|(column, inner)| (of.pair, number(at), number(column), *inner)));
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

/// Mean cosines of the tokens' gradients, chosen against rejected, by whether both responses have the tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    pairs: usize,
    /// Sum of cosines and their number: both tokens shared, both contrast, one of each.
    sums: [(f64, usize); 3],
    /// Tokens that are certain, and have no gradient.
    undefined: usize,
}

impl Shares {
    /// Adds a part of tokens.parquet and the part of positions.parquet with the same pairs.
    ///
    /// # Errors
    /// Where a column is missing or of another type.
    pub fn add(&mut self, matrices: &DataFrame, positions: &DataFrame) -> Result<()> {
        self.add_columns(matrices, positions).map_err(|e| Error::new(Path::new("tokens.parquet"), e))
    }

    fn add_columns(&mut self, matrices: &DataFrame, positions: &DataFrame) -> PolarsResult<()> {
        let mut shared: HashMap<(u64, bool, u32), bool> = HashMap::new();
        let (pair, branch) = (positions.column("pair")?.u64()?, positions.column("branch")?.str()?);
        let (position, is_shared) = (positions.column("position")?.u32()?, positions.column("shared")?.bool()?);
        for row in 0..positions.height() {
            if let (Some(pair), Some(branch), Some(position), Some(is)) =
                (pair.get(row), branch.get(row), position.get(row), is_shared.get(row))
            {
                shared.insert((pair, branch == "w", position), is);
            }
        }
        let (pair, block) = (matrices.column("pair")?.u64()?, matrices.column("block")?.str()?);
        let (rows, columns) = (matrices.column("row")?.u32()?, matrices.column("column")?.u32()?);
        let inner = matrices.column("inner")?.f64()?;
        let mut squares: HashMap<(u64, bool, u32), f64> = HashMap::new();
        let mut crossed = Vec::new();
        for at in 0..matrices.height() {
            let (Some(pair), Some(block), Some(row), Some(column), Some(inner)) =
                (pair.get(at), block.get(at), rows.get(at), columns.get(at), inner.get(at))
            else {
                continue;
            };
            match block {
                "wl" => crossed.push((pair, row, column, inner)),
                _ if row == column => drop(squares.insert((pair, block == "ww", row), inner)),
                _ => {}
            }
        }
        for (pair, row, column, inner) in &crossed {
            let (w, l) = ((*pair, true, *row), (*pair, false, *column));
            let size = squares.get(&w).copied().unwrap_or(0.0).sqrt() * squares.get(&l).copied().unwrap_or(0.0).sqrt();
            if size <= 0.0 {
                self.undefined += 1;
                continue;
            }
            let kind = match (shared.get(&w), shared.get(&l)) {
                (Some(true), Some(true)) => 0,
                (Some(false), Some(false)) => 1,
                _ => 2,
            };
            self.sums[kind].0 += inner / size;
            self.sums[kind].1 += 1;
        }
        self.pairs += crossed.iter().map(|entry| entry.0).collect::<std::collections::BTreeSet<_>>().len();
        Ok(())
    }
}

/// Kinds of entries, in the order in which their sums are kept.
const KINDS: [&str; 3] = ["shared, shared", "contrast, contrast", "mixed"];

impl Shares {
    /// What [`Display`](fmt::Display) writes, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let mean = |(sum, count): (f64, usize)| (count > 0).then(|| sum / count as f64);
        let kinds = KINDS.into_iter().zip(self.sums);
        let kinds =
            kinds.map(|(kind, of)| (kind.replace(", ", "_"), json!({"mean_cosine": mean(of), "entries": of.1})));
        json!({"pairs": self.pairs, "no_cosine": self.undefined, "kinds": kinds.collect::<Map<_, _>>()})
    }
}

impl fmt::Display for Shares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pairs                   {}", self.pairs)?;
        writeln!(f, "mean cosine of a chosen and a rejected token's gradients")?;
        for (name, (sum, count)) in KINDS.into_iter().zip(self.sums) {
            match count {
                0 => writeln!(f, "  {name:<20}  none")?,
                _ => writeln!(f, "  {name:<20}  {:.4} over {count} entries", sum / count as f64)?,
            }
        }
        if self.undefined > 0 {
            writeln!(f, "  no cosine             {} entries with a zero gradient", self.undefined)?;
        }
        Ok(())
    }
}
