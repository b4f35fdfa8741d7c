//! What token-level matrices amount to.
use polars_core::prelude::{DataFrame, PolarsResult};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use tanglescope_records::{Error, Result};

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
            // a square below zero is of a gradient that rounding hides
            if size.is_nan() || size <= 0.0 {
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
