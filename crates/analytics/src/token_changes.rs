//! What one step on an objective does to every single token: the token-level matrix times the step's coefficients.
use crate::metrics::keys;
use polars_core::prelude::{DataFrame, PolarsResult};
use polars_lazy::prelude::col;
use std::collections::HashMap;
use tanglescope_objectives::{Needs, Objective};
use tanglescope_records::tables::tokens::{Array, arrays};
use tanglescope_records::tables::{column, frame};
use tanglescope_records::{Error, Leaf, Manifest, Records, Result, tables};

/// A response token.
struct Token {
    position: u32,
    id: u32,
    text: Option<String>,
    shared: bool,
    weight: Option<f64>,
}

/// Tokens of both responses of a pair.
#[derive(Default)]
struct Responses([Vec<Token>; 2]);

/// A step on an objective: the coefficients of both responses.
struct Step {
    objective: usize,
    d: [f64; 2],
}

/// Steps on objectives, by pair.
#[derive(Default)]
struct Steps {
    objectives: Vec<String>,
    of_pairs: HashMap<u64, Vec<Step>>,
}

/// One row a pair, objective and response token: the coefficient of ∇log p(token) in the descent direction −∇loss, and to first order
/// what log p(token) changes by for each unit of the step size, Σ_s C[token, s]·coefficient_s over the tokens s of both responses with the
/// token-level matrix C. The changes of a response's tokens sum to `delta_w` or `delta_l` of objectives.parquet.
///
/// A token's coefficient is `d_w` or −`d_l` of the pair times its weight in the objective's sums: one, whether it is a contrast token
/// (`sparse_hard`), α beyond the shorter response's length (`ld_dpo`), what the data gives (`weighted_dpo`). Both numbers are null under an
/// objective that moves other tokens too (`orpo_trl`), and where weights were not recorded.
///
/// `None` where the records lack tokens.parquet or objectives.parquet.
///
/// # Errors
/// Where a part is damaged or not written yet, or the records count pairs of groups, whose matrices are of other pairs.
pub fn token_changes(leaf: &Leaf) -> Result<Option<DataFrame>> {
    let tables = (leaf.table(tables::TOKENS)?, leaf.table(tables::POSITIONS)?, leaf.table(tables::OBJECTIVES)?);
    let (Some(matrices), Some(positions), Some(objectives)) = tables else { return Ok(None) };
    if let Some(Manifest::Analysis(manifest)) = Manifest::read(&leaf.folder)?
        && manifest.identity.all_pairs
    {
        let problem = "has all pairs of each group, and matrices of the best against the worst alone";
        return Err(Error::given(&leaf.folder, problem));
    }
    let steps = Steps::read(&objectives)?;
    let parsed: Vec<Option<Objective>> = steps.objectives.iter().map(|name| name.parse().ok()).collect();
    let mut rows = Vec::new();
    for matrices in matrices.parts() {
        let Some(positions) = positions.parts().iter().find(|part| part.file_name() == matrices.file_name()) else {
            let problem = "has no part of positions.parquet beside it: `tokens` is at work here or was ended; run it again to its end";
            return Err(Error::given(matrices, problem));
        };
        let responses = responses(&Records::of(vec![positions.clone()]))?;
        let part = Records::of(vec![matrices.clone()]);
        let mut blocks: HashMap<u64, HashMap<String, Array>> = HashMap::new();
        for array in arrays(&part.collect(part.scan()?)?)? {
            blocks.entry(array.pair).or_default().insert(array.block.clone(), array);
        }
        let mut pairs: Vec<u64> = responses.keys().copied().collect();
        pairs.sort_unstable();
        for pair in pairs {
            let Some(of_pair) = steps.of_pairs.get(&pair) else {
                let problem = format!("has no pair {pair}, which tokens.parquet has; run `analyze` again to its end");
                return Err(Error::given(&leaf.folder.join(tables::OBJECTIVES), problem));
            };
            let of_block = |name: &str| {
                let missing = || Error::given(matrices, format!("has no block {name} of pair {pair}"));
                blocks.get(&pair).and_then(|blocks| blocks.get(name)).ok_or_else(missing)
            };
            let (wl, ww, ll) = (of_block("wl")?, of_block("ww")?, of_block("ll")?);
            for step in of_pair {
                let weighed = parsed[step.objective].as_ref().and_then(|of| weights(of, &responses[&pair]));
                let coefficients = weighed.map(|[w, l]| {
                    let times = |weights: Vec<f64>, d: f64| weights.into_iter().map(|m| d * m).collect::<Vec<f64>>();
                    [times(w, step.d[0]), times(l, -step.d[1])]
                });
                let changes = coefficients.as_ref().map(|[w, l]| {
                    let (of_w, of_l) = (plus(ahead(ww, w), ahead(wl, l)), plus(back(wl, w), ahead(ll, l)));
                    [of_w, of_l]
                });
                for (branch, tokens) in responses[&pair].0.iter().enumerate() {
                    for (at, token) in tokens.iter().enumerate() {
                        let of = |values: &Option<[Vec<f64>; 2]>| values.as_ref().map(|of| of[branch][at]);
                        let name = &steps.objectives[step.objective];
                        rows.push((
                            (pair, ["w", "l"][branch], token.position, token.id, token.text.clone(), token.shared),
                            (name.clone(), of(&coefficients), of(&changes)),
                        ));
                    }
                }
            }
        }
    }
    let columns = vec![
        column("pair", &rows, |r| r.0.0),
        column("objective", &rows, |r| r.1.0.clone()),
        column("branch", &rows, |r| r.0.1.to_owned()),
        column("position", &rows, |r| r.0.2),
        column("token", &rows, |r| r.0.3),
        column("text", &rows, |r| r.0.4.clone()),
        column("shared", &rows, |r| r.0.5),
        column("coefficient", &rows, |r| r.1.1),
        column("change", &rows, |r| r.1.2),
    ];
    Ok(Some(frame(keys(leaf, rows.len()).into_iter().chain(columns).collect())))
}

impl Steps {
    fn read(objectives: &Records) -> Result<Self> {
        let rows = objectives.collect(objectives.scan()?.select(["pair", "objective", "d_w", "d_l"].map(col)))?;
        let read = || -> PolarsResult<Self> {
            let (pair, objective) = (rows.column("pair")?.u64()?, rows.column("objective")?.str()?);
            let (d_w, d_l) = (rows.column("d_w")?.f64()?, rows.column("d_l")?.f64()?);
            let mut all = Self::default();
            for row in 0..rows.height() {
                let (Some(pair), Some(name)) = (pair.get(row), objective.get(row)) else { continue };
                let (Some(w), Some(l)) = (d_w.get(row), d_l.get(row)) else { continue };
                let objective = all.objectives.iter().position(|known| known == name).unwrap_or_else(|| {
                    all.objectives.push(name.to_owned());
                    all.objectives.len() - 1
                });
                all.of_pairs.entry(pair).or_default().push(Step { objective, d: [w, l] });
            }
            Ok(all)
        };
        read().map_err(|e| objectives.blame(e))
    }
}

/// The tokens of a part's pairs.
fn responses(positions: &Records) -> Result<HashMap<u64, Responses>> {
    let rows = positions.collect(positions.scan()?)?;
    let read = || -> PolarsResult<HashMap<u64, Responses>> {
        let (pair, branch) = (rows.column("pair")?.u64()?, rows.column("branch")?.str()?);
        let (position, id) = (rows.column("position")?.u32()?, rows.column("token")?.u32()?);
        let (text, shared) = (rows.column("text")?.str()?, rows.column("shared")?.bool()?);
        // of earlier versions there are no weights
        let weight = rows.column("weight").and_then(|weight| weight.f64().cloned()).ok();
        let mut all: HashMap<u64, Responses> = HashMap::new();
        for row in 0..rows.height() {
            let (Some(pair), Some(position), Some(id)) = (pair.get(row), position.get(row), id.get(row)) else {
                continue;
            };
            all.entry(pair).or_default().0[usize::from(branch.get(row) == Some("l"))].push(Token {
                position,
                id,
                text: text.get(row).map(str::to_owned),
                shared: shared.get(row) == Some(true),
                weight: weight.as_ref().and_then(|weight| weight.get(row)),
            });
        }
        Ok(all)
    };
    read().map_err(|e| positions.blame(e))
}

/// What each token of both responses weighs in an objective's sums.
fn weights(objective: &Objective, responses: &Responses) -> Option<[Vec<f64>; 2]> {
    let shorter = responses.0.iter().map(Vec::len).min().unwrap_or(0);
    let of = |token: &Token| match objective.needs() {
        Needs::Text | Needs::Training => None,
        Needs::Contrast => Some(f64::from(u8::from(!token.shared))),
        Needs::Tail if token.position as usize >= shorter => objective.tail(),
        Needs::Weights => token.weight,
        Needs::Pair | Needs::Gram | Needs::Entropy | Needs::Head | Needs::Batch | Needs::Mismatched | Needs::Tail => {
            Some(1.0)
        }
    };
    let [w, l] = responses.0.each_ref().map(|tokens| tokens.iter().map(of).collect::<Option<Vec<f64>>>());
    Some([w?, l?])
}

/// A matrix times coefficients of its columns.
fn ahead(matrix: &Array, coefficients: &[f64]) -> Vec<f64> {
    let row = |row: &[f64]| row.iter().zip(coefficients).map(|(inner, c)| inner * c).sum();
    matrix.values.chunks_exact(matrix.columns.max(1)).map(row).collect()
}

/// The transpose of a matrix times coefficients of its rows.
fn back(matrix: &Array, coefficients: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; matrix.columns];
    for (row, c) in matrix.values.chunks_exact(matrix.columns.max(1)).zip(coefficients) {
        sums.iter_mut().zip(row).for_each(|(sum, inner)| *sum += inner * c);
    }
    sums
}

fn plus(a: Vec<f64>, b: Vec<f64>) -> Vec<f64> {
    a.into_iter().zip(b).map(|(a, b)| a + b).collect()
}
