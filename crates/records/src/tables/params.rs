//! params.parquet: one row a pair and parameter tensor; means.parquet: one row a parameter tensor, over all pairs.
use crate::tables::{column, frame};
use polars_core::prelude::DataFrame;
use tanglescope_objectives::PairGram;

/// A row of params.parquet.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamRow {
    /// Number of the row in the data.
    pub pair: u64,
    /// Name of the parameter.
    pub param: String,
    /// Its block.
    pub layer: Option<u32>,
    /// Its module.
    pub module: String,
    /// Inner products of this parameter's gradients.
    pub gram: PairGram,
}

/// A row of means.parquet: a parameter's part of the mean gradients over all pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct MeanRow {
    /// Name of the parameter.
    pub param: String,
    /// Its block.
    pub layer: Option<u32>,
    /// Its module.
    pub module: String,
    /// Number of pairs that the means are over.
    pub pairs: u64,
    /// Inner products of this parameter's mean gradients.
    pub gram: PairGram,
}

/// params.parquet.
#[must_use]
pub fn table(rows: &[ParamRow]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("param", rows, |r| r.param.clone()),
        column("layer", rows, |r| r.layer),
        column("module", rows, |r| r.module.clone()),
        column("ww", rows, |r| r.gram.ww),
        column("wl", rows, |r| r.gram.wl),
        column("ll", rows, |r| r.gram.ll),
    ])
}

/// means.parquet.
#[must_use]
pub fn means(rows: &[MeanRow]) -> DataFrame {
    frame(vec![
        column("param", rows, |r| r.param.clone()),
        column("layer", rows, |r| r.layer),
        column("module", rows, |r| r.module.clone()),
        column("pairs", rows, |r| r.pairs),
        column("ww", rows, |r| r.gram.ww),
        column("wl", rows, |r| r.gram.wl),
        column("ll", rows, |r| r.gram.ll),
    ])
}
