//! Rows of the data as they run.
use tanglescope_data::{Candidates, Cut, Pair};
use tanglescope_gram::{Group, GroupResult};
use tanglescope_kernels::as_index;
use tanglescope_model::architectures::Description;
use tanglescope_records::tables::groups::{GroupResponse, MeasuredGroup};

/// A row of the data as it runs: its responses as branches, the best first and the worst second, and the pairs among them.
pub struct Item {
    /// Number of the row.
    pub row: u64,
    /// The row's own `id`.
    pub id: Option<String>,
    /// Tokens that the prompt and each response of the row lost to a limit on lengths.
    pub cut: Cut,
    /// Its tokens.
    pub group: Group,
    /// Which response of the row each branch is.
    pub responses: Vec<usize>,
    /// Weights of the tokens of chosen and rejected, where the row has them.
    pub weights: Option<[Vec<f64>; 2]>,
    /// Of a group: the score of each branch.
    pub scores: Option<Vec<Option<f64>>>,
    /// Branches of chosen and rejected, and the pair's number.
    pub pairs: Vec<([usize; 2], u64)>,
}

impl Item {
    /// `first` is the number of the row's first pair where rows have several.
    fn new(model: &Description, pair: Pair, first: Option<u64>) -> Self {
        let Pair { row, id, tokens, cut, group, weights, .. } = pair;
        let Some(Candidates { responses, scores, best, worst }) = group else {
            let pairs = vec![([0, 1], first.unwrap_or(row))];
            let group = Group::of(model, tokens.prompt, vec![tokens.chosen, tokens.rejected]);
            return Self { row, id, cut, group, responses: vec![0, 1], weights, scores: None, pairs };
        };
        let mut order = vec![best, worst];
        order.extend((0..responses.len()).filter(|k| ![best, worst].contains(k)));
        let branch_scores: Vec<Option<f64>> = order.iter().map(|&k| scores.as_ref().map(|scores| scores[k])).collect();
        let pairs = match first {
            None => vec![([0, 1], row)],
            Some(first) => (0u64..).zip(ordered(&order, &branch_scores)).map(|(n, pair)| (pair, first + n)).collect(),
        };
        let branches = order.iter().map(|&k| responses[k].clone()).collect();
        let group = Group::of(model, tokens.prompt, branches);
        Self { row, id, cut, group, responses: order, weights: None, scores: Some(branch_scores), pairs }
    }

    /// The rows of a part; `first` is the number of its first pair where rows have several.
    pub fn all(model: &Description, rows: Vec<Pair>, first: Option<u64>) -> Vec<Self> {
        let mut next = first;
        let of = |pair| {
            let item = Self::new(model, pair, next);
            next = next.map(|next| next + item.pairs.len() as u64);
            item
        };
        rows.into_iter().map(of).collect()
    }

    /// The group as the table has it, its responses in the row's order.
    pub fn measured(&self, result: &GroupResult, reference: Option<&Vec<Vec<f64>>>) -> MeasuredGroup {
        let (k, total) = (self.responses.len(), result.total());
        let cotangents = total.len().isqrt();
        let mut branch = vec![0; k];
        self.responses.iter().enumerate().for_each(|(at, &response)| branch[response] = at);
        let response = |&at: &usize| GroupResponse {
            score: self.scores.as_ref().and_then(|scores| scores[at]),
            logp: result.logp(at),
            reference: reference.map(|of| of[at].iter().sum()),
            tokens: as_index(self.group.responses[at].len()),
        };
        let products = branch.iter().flat_map(|a| branch.iter().map(move |b| (a, b)));
        MeasuredGroup {
            group: self.row,
            id: self.id.clone(),
            responses: branch.iter().map(response).collect(),
            gram: products.map(|(a, b)| total[a * cotangents + b]).collect(),
        }
    }
}

/// Every two branches of which one is better: by score, or by the row's order where it has none.
fn ordered(order: &[usize], scores: &[Option<f64>]) -> Vec<[usize; 2]> {
    let better = |a: usize, b: usize| match (scores[a], scores[b]) {
        (Some(a), Some(b)) => a > b,
        _ => order[a] < order[b],
    };
    let all = (0..order.len()).flat_map(|a| (0..order.len()).map(move |b| [a, b]));
    all.filter(|[a, b]| a != b && better(*a, *b)).collect()
}

/// Some rows and columns of a Gram `[K, K]`.
pub fn part_of(gram: &[f64], which: &[usize]) -> Vec<f64> {
    let k = gram.len().isqrt();
    which.iter().flat_map(|&i| which.iter().map(move |&j| gram[i * k + j])).collect()
}
