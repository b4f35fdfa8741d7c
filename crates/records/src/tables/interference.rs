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

/// What a pair gets from itself and from others under an objective, and what it does to them: log-probabilities of chosen and rejected, for each
/// unit of η.
#[derive(Clone, Debug, PartialEq)]
pub struct PairEffect {
    /// Number of the pair.
    pub pair: u64,
    /// The objective as it was given.
    pub objective: String,
    /// By a step on the pair alone.
    pub own: [f64; 2],
    /// By a step on another pair alone: the mean over all others.
    pub others: [f64; 2],
    /// Standard deviation over all others.
    pub spread: [f64; 2],
    /// Size of a random batch from which on others turn the sign of what it gets from itself.
    pub turned_at: [Option<u64>; 2],
    /// What a step on the pair alone does to the chosen response of another: the mean over all others; negative where it pulls down.
    pub harm: Option<f64>,
    /// Share of the others whose own step goes against its.
    pub conflicts: Option<f64>,
}

/// What a pair in a random batch gets on average.
#[derive(Clone, Debug, PartialEq)]
pub struct SizeEffect {
    /// The objective as it was given.
    pub objective: String,
    /// Pairs of the batch.
    pub batch_size: u64,
    /// From itself.
    pub own: [f64; 2],
    /// From the others.
    pub others: [f64; 2],
    /// Share of pairs whose log-probability falls.
    pub falls: [f64; 2],
    /// Share of pairs whose sign the others turn.
    pub turned: [f64; 2],
}

/// A pair that pulls down another's chosen response.
#[derive(Clone, Debug, PartialEq)]
pub struct Drag {
    /// Number of the pair.
    pub pair: u64,
    /// The objective as it was given.
    pub objective: String,
    /// `dragged_by`: a step on `other` lowers its chosen response; `drags`: a step on it lowers that of `other`.
    pub direction: &'static str,
    /// Number of the other pair.
    pub other: u64,
    /// By how much, for each unit of η.
    pub change: f64,
}

/// What a batch does to a pair.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchEffect {
    /// Number of the batch.
    pub batch: u64,
    /// The objective as it was given.
    pub objective: String,
    /// Number of the pair.
    pub pair: u64,
    /// Whether it is in the batch.
    pub member: bool,
    /// From itself.
    pub own: [f64; 2],
    /// From the others of the batch.
    pub others: [f64; 2],
}

/// A pair's place in the order of a dendrogram's leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClusterPlace {
    /// Number of the pair.
    pub pair: u64,
    /// Its place, from 0.
    pub place: u64,
    /// How far apart the clusters are that meet between it and the one before it, as 1 − cosine; `None` of the first.
    pub distance: Option<f64>,
    /// ⟨δ, δ̄⟩/‖δ̄‖ of its δ = g_w − g_l and the mean δ̄ over all pairs; `None` where δ̄ is zero.
    pub anchor_gap: Option<f64>,
}

/// clusters.parquet.
#[must_use]
pub fn clusters(rows: &[ClusterPlace]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("place", rows, |r| r.place),
        column("distance", rows, |r| r.distance),
        column("anchor_gap", rows, |r| r.anchor_gap),
    ])
}

/// effects.parquet, or against_effects.parquet.
#[must_use]
pub fn effects(rows: &[PairEffect]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("objective", rows, |r| r.objective.clone()),
        column("own_w", rows, |r| r.own[0]),
        column("own_l", rows, |r| r.own[1]),
        column("others_w", rows, |r| r.others[0]),
        column("others_l", rows, |r| r.others[1]),
        column("spread_w", rows, |r| r.spread[0]),
        column("spread_l", rows, |r| r.spread[1]),
        column("turned_at_w", rows, |r| r.turned_at[0]),
        column("turned_at_l", rows, |r| r.turned_at[1]),
        column("harm", rows, |r| r.harm),
        column("conflicts", rows, |r| r.conflicts),
    ])
}

/// batch_sizes.parquet.
#[must_use]
pub fn batch_sizes(rows: &[SizeEffect]) -> DataFrame {
    frame(vec![
        column("objective", rows, |r| r.objective.clone()),
        column("batch_size", rows, |r| r.batch_size),
        column("own_w", rows, |r| r.own[0]),
        column("own_l", rows, |r| r.own[1]),
        column("others_w", rows, |r| r.others[0]),
        column("others_l", rows, |r| r.others[1]),
        column("falls_w", rows, |r| r.falls[0]),
        column("falls_l", rows, |r| r.falls[1]),
        column("turned_w", rows, |r| r.turned[0]),
        column("turned_l", rows, |r| r.turned[1]),
    ])
}

/// drags.parquet.
#[must_use]
pub fn drags(rows: &[Drag]) -> DataFrame {
    frame(vec![
        column("pair", rows, |r| r.pair),
        column("objective", rows, |r| r.objective.clone()),
        column("direction", rows, |r| r.direction.to_owned()),
        column("other", rows, |r| r.other),
        column("change", rows, |r| r.change),
    ])
}

/// batches.parquet.
#[must_use]
pub fn batches(rows: &[BatchEffect]) -> DataFrame {
    frame(vec![
        column("batch", rows, |r| r.batch),
        column("objective", rows, |r| r.objective.clone()),
        column("pair", rows, |r| r.pair),
        column("member", rows, |r| r.member),
        column("own_w", rows, |r| r.own[0]),
        column("own_l", rows, |r| r.own[1]),
        column("others_w", rows, |r| r.others[0]),
        column("others_l", rows, |r| r.others[1]),
    ])
}

/// spectrum.parquet, from eigenvalues in falling order.
#[must_use]
pub fn spectrum(eigenvalues: &[f64]) -> DataFrame {
    let trace: f64 = eigenvalues.iter().sum();
    let rows: Vec<(u64, f64)> = (1..).zip(eigenvalues.iter().copied()).collect();
    frame(vec![
        column("rank", &rows, |r| r.0),
        column("eigenvalue", &rows, |r| r.1),
        column("share", &rows, |r| if trace > 0.0 { Some(r.1 / trace) } else { None }),
    ])
}

/// Pair, d_w and d_l of the rows of an objective in objectives.parquet.
///
/// # Errors
/// Where a column is missing or of another type.
pub fn coefficients(outcomes: &DataFrame, objective: &str) -> Result<Vec<(u64, [f64; 2])>> {
    let of = || -> PolarsResult<Vec<(u64, [f64; 2])>> {
        let reals = |name: &str| -> PolarsResult<Vec<f64>> {
            Ok(outcomes.column(name)?.f64()?.iter().map(|x| x.unwrap_or(f64::NAN)).collect())
        };
        let (d_w, d_l) = (reals("d_w")?, reals("d_l")?);
        let rows = outcomes.column("pair")?.u64()?.iter().zip(outcomes.column("objective")?.str()?.iter());
        let rows = rows.enumerate().filter(|(_, (_, name))| *name == Some(objective));
        Ok(rows.filter_map(|(row, (pair, _))| Some((pair?, [d_w[row], d_l[row]]))).collect())
    };
    of().map_err(|e| Error::new(Path::new("objectives.parquet"), e))
}
