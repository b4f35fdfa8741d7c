//! routing.parquet: one row a pair, block and expert that some row went to.
use crate::tables::{column, frame};
use polars_core::prelude::DataFrame;
use tanglescope_objectives::PairGram;

/// A row of routing.parquet.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutingRow {
    /// Number of the row in the data.
    pub pair: u64,
    /// The block.
    pub layer: u32,
    /// The expert.
    pub expert: u32,
    /// Rows that predict the chosen and the rejected response's tokens and go to the expert.
    pub rows: [u32; 2],
    /// Inner products of the gradients of the expert's parameters in scope, where there are any.
    pub gram: Option<PairGram>,
}

/// routing.parquet.
#[must_use]
pub fn table(rows: &[RoutingRow]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("layer", rows, |r| r.layer),
        column("expert", rows, |r| r.expert),
        column("rows_chosen", rows, |r| r.rows[0]),
        column("rows_rejected", rows, |r| r.rows[1]),
        column("ww", rows, |r| r.gram.map(|gram| gram.ww)),
        column("wl", rows, |r| r.gram.map(|gram| gram.wl)),
        column("ll", rows, |r| r.gram.map(|gram| gram.ll)),
    ])
}
