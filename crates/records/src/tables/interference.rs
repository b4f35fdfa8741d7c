//! interference.parquet: how the gradients of every two pairs meet, by pair, by block, and by response of groups.
use crate::error::{Error, Result};
use crate::tables::{column, frame};
use polars_core::prelude::{DataFrame, PolarsResult};
use std::path::Path;

/// Inner products between the gradients of two pairs' responses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Couple {
    /// Number of the first pair.
    pub a: u64,
    /// Number of the second pair.
    pub b: u64,
    /// ⟨g_a,w, g_b,w⟩, ⟨g_a,w, g_b,l⟩, ⟨g_a,l, g_b,w⟩, ⟨g_a,l, g_b,l⟩.
    pub inner: [f64; 4],
}

/// The same over the parameters of one block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerCouple {
    /// The block; `None` for what is outside of blocks.
    pub layer: Option<u32>,
    /// The pairs, and their products over its parameters.
    pub couple: Couple,
}

/// The inner product of the gradients of two responses of groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResponseCouple {
    /// Number of the first group, and of its response.
    pub a: (u64, u32),
    /// The same of the second.
    pub b: (u64, u32),
    /// ⟨g_a, g_b⟩.
    pub inner: f64,
}

/// Names of the products' columns.
const INNER: [&str; 4] = ["ww", "wl", "lw", "ll"];

/// interference.parquet, or against.parquet.
#[must_use]
pub fn table(rows: &[Couple]) -> DataFrame {
    let mut columns = vec![column("a", rows, |r| r.a), column("b", rows, |r| r.b)];
    columns.extend((0..4).map(|k| column(INNER[k], rows, |r| r.inner[k])));
    frame(columns)
}

/// The same by block.
#[must_use]
pub fn by_layer(rows: &[LayerCouple]) -> DataFrame {
    let mut columns =
        vec![column("a", rows, |r| r.couple.a), column("b", rows, |r| r.couple.b), column("layer", rows, |r| r.layer)];
    columns.extend((0..4).map(|k| column(INNER[k], rows, |r| r.couple.inner[k])));
    frame(columns)
}

/// The same by response.
#[must_use]
pub fn by_response(rows: &[ResponseCouple]) -> DataFrame {
    frame(vec![
        column("a", rows, |r| r.a.0),
        column("response_a", rows, |r| r.a.1),
        column("b", rows, |r| r.b.0),
        column("response_b", rows, |r| r.b.1),
        column("inner", rows, |r| r.inner),
    ])
}

/// Reads rows of interference.parquet or against.parquet.
///
/// # Errors
/// Where a column is missing or of another type.
pub fn read(table: &DataFrame) -> Result<Vec<Couple>> {
    couples(table).map_err(|e| Error::new(Path::new("interference.parquet"), e))
}

fn couples(table: &DataFrame) -> PolarsResult<Vec<Couple>> {
    let numbers = |name: &str| -> PolarsResult<Vec<u64>> { Ok(table.column(name)?.u64()?.iter().flatten().collect()) };
    let reals = |name: &str| -> PolarsResult<Vec<f64>> {
        Ok(table.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
    };
    let (a, b) = (numbers("a")?, numbers("b")?);
    let inner = INNER.map(reals);
    let [ww, wl, lw, ll] = inner;
    let (ww, wl, lw, ll) = (ww?, wl?, lw?, ll?);
    let couple = |(i, (a, b)): (usize, (u64, u64))| Couple { a, b, inner: [ww[i], wl[i], lw[i], ll[i]] };
    Ok(a.into_iter().zip(b).enumerate().map(couple).collect())
}
