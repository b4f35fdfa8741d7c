//! The tables of a folder: rows as types, and as the data frames that they become (docs/formats.md).
//!
//! One file a table, or a table and what is read back of it. Reals are `f64`, numbers of rows `u64`, counts `u32`.
pub mod groups;
pub mod interference;
pub mod objectives;
pub mod pairs;
pub mod params;
pub mod probes;
pub mod responses;
pub mod routing;
pub mod tokens;
pub mod training;

use polars_core::prelude::{Column, DataFrame};

/// One row a pair.
pub const PAIRS: &str = "pairs.parquet";
/// One row a pair and parameter tensor.
pub const PARAMS: &str = "params.parquet";
/// One row a pair, block and expert that some row went to.
pub const ROUTING: &str = "routing.parquet";
/// One row a pair: its tokens.
pub const RESPONSES: &str = "responses.parquet";
/// One row a pair and objective.
pub const OBJECTIVES: &str = "objectives.parquet";
/// One row a parameter tensor: the Gram of the mean gradients.
pub const MEANS: &str = "means.parquet";
/// One row for every two responses of a group.
pub const GROUPS: &str = "groups.parquet";
/// One row a response of a group and objective on groups.
pub const GROUP_OBJECTIVES: &str = "group_objectives.parquet";
/// One row a pair and probe.
pub const PROBES: &str = "probes.parquet";
/// One row a pair, probe and objective.
pub const PROBE_OBJECTIVES: &str = "probe_objectives.parquet";
/// One row a pair and entry of its token-level matrices.
pub const TOKENS: &str = "tokens.parquet";
/// One row a pair, branch and response token.
pub const POSITIONS: &str = "positions.parquet";
/// One row a pair and two positions at which parameters are used.
pub const POSITION_PRODUCTS: &str = "position_products.parquet";
/// One row for every two pairs: the inner products of their gradients.
pub const INTERFERENCE: &str = "interference.parquet";
/// The same by block.
pub const INTERFERENCE_LAYERS: &str = "interference_layers.parquet";
/// One row for every two responses of groups.
pub const INTERFERENCE_RESPONSES: &str = "interference_responses.parquet";
/// One row for every pair of the data and pair of a second data set.
pub const AGAINST: &str = "against.parquet";
/// The same by block.
pub const AGAINST_LAYERS: &str = "against_layers.parquet";
/// One row for every two responses of groups of the two data sets.
pub const AGAINST_RESPONSES: &str = "against_responses.parquet";
/// One row a pair and objective: what steps on itself and on others do to it.
pub const EFFECTS: &str = "effects.parquet";
/// The same of the pairs of a second data set.
pub const AGAINST_EFFECTS: &str = "against_effects.parquet";
/// One row an objective and size of random batches.
pub const BATCH_SIZES: &str = "batch_sizes.parquet";
/// One row a pair, objective and pair that pulls its chosen response down, or that it pulls down.
pub const DRAGS: &str = "drags.parquet";
/// One row a batch, objective and pair.
pub const BATCHES: &str = "batches.parquet";
/// One row an eigenvalue of the data set's Gram.
pub const SPECTRUM: &str = "spectrum.parquet";
/// One row a pair: its place among pairs that move the model alike.
pub const CLUSTERS: &str = "clusters.parquet";
/// One row a training step and pair.
pub const STEPS: &str = "steps.parquet";
/// One row a training step and response whose change was predicted.
pub const PREDICTIONS: &str = "predictions.parquet";

/// A number of rows, columns or tokens as tables have it.
#[track_caller]
pub(crate) fn as_index(n: usize) -> u32 {
    u32::try_from(n).unwrap_or_else(|_| panic!("{n} is more than the 32 bits of a column hold"))
}

/// A column of a value of every row.
pub fn column<R, T>(name: &str, rows: &[R], value: impl Fn(&R) -> T) -> Column
where
    Vec<T>: Into<Values>,
{
    let values: Values = rows.iter().map(value).collect::<Vec<T>>().into();
    values.column(name)
}

/// The types of column that the tables use.
#[derive(Clone, Debug)]
#[allow(missing_docs)] // a list of the types a row has, with nulls and without
pub enum Values {
    U64(Vec<u64>),
    U64Null(Vec<Option<u64>>),
    U32(Vec<u32>),
    U32Null(Vec<Option<u32>>),
    F64(Vec<f64>),
    F64Null(Vec<Option<f64>>),
    Text(Vec<String>),
    TextNull(Vec<Option<String>>),
    Bool(Vec<bool>),
}

macro_rules! values {
    ($($variant:ident: $t:ty),*) => {
        $(impl From<Vec<$t>> for Values {
            fn from(values: Vec<$t>) -> Self { Self::$variant(values) }
        })*
        impl Values {
            fn column(self, name: &str) -> Column {
                match self { $(Self::$variant(values) => Column::new(name.into(), values)),* }
            }
        }
    };
}
values!(U64: u64, U64Null: Option<u64>, U32: u32, U32Null: Option<u32>, F64: f64, F64Null: Option<f64>, Text: String, TextNull: Option<String>, Bool: bool);

/// A table of columns that are of the same rows.
#[must_use]
pub fn frame(columns: Vec<Column>) -> DataFrame {
    DataFrame::new_infer_height(columns).unwrap_or_else(|e| unreachable!("columns of one list of rows: {e}"))
}
