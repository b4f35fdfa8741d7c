//! groups.parquet: the Gram of all responses of a row; and what objectives on groups make of it.
use crate::error::{Error, Result};
use crate::tables::{as_index, column, frame};
use polars_core::prelude::{DataFrame, PolarsResult};
use std::collections::BTreeMap;
use std::path::Path;
use tanglescope_objectives::{GroupObjective, ResponseMeasure, predicted};

/// A response of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupResponse {
    /// How good it is, where the row says.
    pub score: Option<f64>,
    /// log π(y|x).
    pub logp: f64,
    /// The same under the reference model, where there is one.
    pub reference: Option<f64>,
    /// Tokens.
    pub tokens: u32,
}

/// All responses of a row, in its order.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredGroup {
    /// Number of the row in the data.
    pub group: u64,
    /// The row's own `id`.
    pub id: Option<String>,
    /// The responses.
    pub responses: Vec<GroupResponse>,
    /// `[K, K]`: inner products of the gradients of their log-probabilities.
    pub gram: Vec<f64>,
}

/// A row of the table: two responses of a group, or one with itself.
struct Entry<'a> {
    of: &'a MeasuredGroup,
    i: usize,
    j: usize,
}

impl Entry<'_> {
    fn inner(&self, i: usize, j: usize) -> f64 {
        self.of.gram[i * self.of.responses.len() + j]
    }

    fn cosine(&self) -> Option<f64> {
        let size = (self.inner(self.i, self.i) * self.inner(self.j, self.j)).sqrt();
        (size > 0.0).then(|| (self.inner(self.i, self.j) / size).clamp(-1.0, 1.0))
    }
}

/// groups.parquet: a row for every two responses i ≤ j of a group.
#[must_use]
pub fn table(groups: &[MeasuredGroup]) -> DataFrame {
    let of_group = |of| {
        let all = |of: &MeasuredGroup| of.responses.len();
        (0..all(of)).flat_map(move |i| (i..all(of)).map(move |j| Entry { of, i, j }))
    };
    let rows: Vec<Entry<'_>> = groups.iter().flat_map(of_group).collect();
    let mut columns = vec![
        column("group", &rows, |r| r.of.group),
        column("id", &rows, |r| r.of.id.clone()),
        column("i", &rows, |r| as_index(r.i)),
        column("j", &rows, |r| as_index(r.j)),
        column("inner", &rows, |r| r.inner(r.i, r.j)),
        column("cosine", &rows, Entry::cosine),
        column("logp_i", &rows, |r| r.of.responses[r.i].logp),
        column("logp_j", &rows, |r| r.of.responses[r.j].logp),
        column("score_i", &rows, |r| r.of.responses[r.i].score),
        column("score_j", &rows, |r| r.of.responses[r.j].score),
        column("tokens_i", &rows, |r| r.of.responses[r.i].tokens),
        column("tokens_j", &rows, |r| r.of.responses[r.j].tokens),
    ];
    if rows.iter().all(|r| r.of.responses[r.i].reference.is_some()) {
        columns.push(column("ref_logp_i", &rows, |r| r.of.responses[r.i].reference));
        columns.push(column("ref_logp_j", &rows, |r| r.of.responses[r.j].reference));
    }
    frame(columns)
}

/// Reads rows of groups.parquet.
///
/// # Errors
/// Where a column is missing or of another type, or a group lacks a row.
pub fn measured(table: &DataFrame) -> Result<Vec<MeasuredGroup>> {
    let refuse = |problem: String| Error::new(Path::new("groups.parquet"), problem);
    read(table).map_err(|e| refuse(e.to_string()))?.ok_or_else(|| refuse("lacks rows of a group".to_owned()))
}

fn read(table: &DataFrame) -> PolarsResult<Option<Vec<MeasuredGroup>>> {
    let reals = |name: &str| -> PolarsResult<Vec<Option<f64>>> { Ok(table.column(name)?.f64()?.iter().collect()) };
    let counts = |name: &str| -> PolarsResult<Vec<u32>> { Ok(table.column(name)?.u32()?.iter().flatten().collect()) };
    let groups: Vec<u64> = table.column("group")?.u64()?.iter().flatten().collect();
    let (i, j, inner) = (counts("i")?, counts("j")?, reals("inner")?);
    let (logps, scores, tokens) = (reals("logp_i")?, reals("score_i")?, counts("tokens_i")?);
    let references = if table.column("ref_logp_i").is_ok() { reals("ref_logp_i")? } else { vec![None; groups.len()] };
    let ids = table.column("id")?;
    let ids: Vec<Option<String>> = ids.str()?.iter().map(|id| id.map(str::to_owned)).collect();
    let mut rows: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    groups.iter().enumerate().for_each(|(row, group)| rows.entry(*group).or_default().push(row));
    let of_group = |(group, rows): (u64, Vec<usize>)| {
        let own: Vec<usize> = rows.iter().copied().filter(|&row| i[row] == j[row]).collect();
        let k = own.len();
        let mut gram = vec![f64::NAN; k * k];
        for &row in &rows {
            let (a, b) = (i[row] as usize, j[row] as usize);
            *gram.get_mut(a * k + b)? = inner[row]?;
            *gram.get_mut(b * k + a)? = inner[row]?;
        }
        let response = |row: usize| {
            let (score, reference, tokens) = (scores[row], references[row], tokens[row]);
            Some(GroupResponse { score, logp: logps[row]?, reference, tokens })
        };
        let responses = own.iter().map(|&row| response(row)).collect::<Option<_>>()?;
        (rows.len() == k * (k + 1) / 2).then(|| MeasuredGroup { group, id: ids[rows[0]].clone(), responses, gram })
    };
    Ok(rows.into_iter().map(of_group).collect())
}

/// `group_objectives.parquet`: the weight of every response's gradient, and the predicted change of its log-probability. Groups
/// without scores have none.
#[must_use]
pub fn outcomes(groups: &[MeasuredGroup], objectives: &[GroupObjective]) -> DataFrame {
    let mut rows: Vec<(u64, String, u32, f64, f64)> = Vec::new();
    for of in groups {
        let measure = |response: &GroupResponse| {
            let GroupResponse { score, logp, reference, tokens } = *response;
            Some(ResponseMeasure { score: score?, logp, reference, tokens })
        };
        let Some(responses) = of.responses.iter().map(measure).collect::<Option<Vec<_>>>() else { continue };
        for objective in objectives {
            let Some(d) = objective.weights(&responses) else { continue };
            let deltas = predicted(&of.gram, &d);
            let each = (0..).zip(d).zip(deltas);
            rows.extend(each.map(|((k, d), delta)| (of.group, objective.to_string(), k, d, delta)));
        }
    }
    frame(vec![
        column("group", &rows, |r| r.0),
        column("objective", &rows, |r| r.1.clone()),
        column("response", &rows, |r| r.2),
        column("d", &rows, |r| r.3),
        column("delta", &rows, |r| r.4),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_back_as_they_were() {
        let response = |score, logp| GroupResponse { score: Some(score), logp, reference: Some(-1.0), tokens: 3 };
        let groups = vec![
            MeasuredGroup {
                group: 7,
                id: Some("a".to_owned()),
                responses: vec![response(1.0, -2.0), response(0.0, -3.0), response(0.5, -1.0)],
                gram: vec![4.0, 1.0, 2.0, 1.0, 9.0, 3.0, 2.0, 3.0, 16.0],
            },
            MeasuredGroup {
                group: 9,
                id: None,
                responses: vec![response(0.0, -2.0), response(1.0, -3.0)],
                gram: vec![1.0, 0.0, 0.0, 0.0],
            },
        ];
        let table = table(&groups);
        assert_eq!(table.height(), 9);
        assert_eq!(measured(&table).unwrap(), groups);
        // a zero gradient has no angle
        assert_eq!(table.column("cosine").unwrap().f64().unwrap().get(7), None);
        let outcomes = outcomes(&groups, &["dr_grpo".parse().unwrap()]);
        let deltas: Vec<f64> = outcomes.column("delta").unwrap().f64().unwrap().iter().flatten().collect();
        // d = (1/6, −1/6, 0)
        assert!((deltas[0] - 0.5).abs() < 1e-15 && (deltas[1] + 8.0 / 6.0).abs() < 1e-15);
    }
}
