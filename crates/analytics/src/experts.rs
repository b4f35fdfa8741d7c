//! routing.parquet by block and expert.
use crate::metrics::keys;
use crate::params::{known, total_wl};
use polars_core::prelude::{Column, DataFrame, DataType, PolarsResult, SortMultipleOptions};
use polars_lazy::prelude::col;
use std::collections::BTreeMap;
use tanglescope_records::tables::{self, column, frame};
use tanglescope_records::{Leaf, Result};

/// One row an expert of a block: the rows that went to it of chosen and of rejected responses, over all pairs, the share of its block's
/// that those are, the sums over pairs `ww`, `wl`, `ll` of its parameters in scope, and `wl_share`, the part of the wl of all parameters
/// in scope that is theirs. `None` without routing.parquet.
///
/// # Errors
/// Where a part is damaged.
pub fn experts(leaf: &Leaf) -> Result<Option<DataFrame>> {
    let Some(routing) = leaf.table(tables::ROUTING)? else { return Ok(None) };
    let total = leaf.table(tables::PARAMS)?.map(|params| total_wl(&params)).transpose()?;
    let rows = |name: &str| col(name).cast(DataType::UInt64).sum();
    let query = routing
        .scan()?
        .group_by([col("layer"), col("expert")])
        .agg([
            rows("rows_chosen"),
            rows("rows_rejected"),
            col("wl").count().alias("measured"),
            known("ww").sum(),
            known("wl").sum(),
            known("ll").sum(),
        ])
        .sort(["layer", "expert"], SortMultipleOptions::default());
    let found = routing.collect(query)?;
    let share = |name: &str| -> PolarsResult<Vec<f64>> {
        let (layers, rows) = (found.column("layer")?.u32()?, found.column(name)?.u64()?);
        let mut of: BTreeMap<Option<u32>, u64> = BTreeMap::new();
        layers.iter().zip(rows.iter()).for_each(|(layer, rows)| *of.entry(layer).or_default() += rows.unwrap_or(0));
        let each = layers.iter().zip(rows.iter());
        Ok(each.map(|(layer, rows)| rows.unwrap_or(0) as f64 / of[&layer].max(1) as f64).collect())
    };
    let columns = || -> PolarsResult<Vec<Column>> {
        let measured = found.column("measured")?.cast(&DataType::UInt64)?;
        let measured: Vec<bool> = measured.u64()?.iter().map(|n| n.unwrap_or(0) > 0).collect();
        let of_gram = |name: &str| -> PolarsResult<Vec<Option<f64>>> {
            let values = found.column(name)?.f64()?;
            Ok(values.iter().zip(&measured).map(|(value, measured)| value.filter(|_| *measured)).collect())
        };
        let wl_share: Vec<Option<f64>> =
            of_gram("wl")?.into_iter().map(|wl| Some(wl? / total.filter(|total| *total != 0.0)?)).collect();
        let mut columns: Vec<Column> = Vec::new();
        for name in ["layer", "expert", "rows_chosen", "rows_rejected"] {
            columns.push(found.column(name)?.clone());
        }
        columns.push(column("share_chosen", &share("rows_chosen")?, |s| *s));
        columns.push(column("share_rejected", &share("rows_rejected")?, |s| *s));
        for name in ["ww", "wl", "ll"] {
            columns.push(column(name, &of_gram(name)?, |x| *x));
        }
        columns.push(column("wl_share", &wl_share, |x| *x));
        Ok(columns)
    };
    let columns = columns().map_err(|e| routing.blame(e))?;
    Ok(Some(frame(keys(leaf, found.height()).into_iter().chain(columns).collect())))
}
