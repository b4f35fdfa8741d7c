//! Rows of a batch: the forward rows of every group (trunk, then suffixes) and the backward rows of every cotangent
//! (docs/mathematics.md, section 2).
use crate::request::Request;
use std::ops::Range;
use tanglescope_kernels::{HeadCotangents, RowSet, Segment, Span, as_index};
use tanglescope_model::ForwardRows;
use tanglescope_model::architectures::Description;

/// One prompt and its responses, as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Tokens before the response; at least one.
    pub prompt: Vec<u32>,
    /// Tokens of each branch's response; at least one each.
    pub responses: Vec<Vec<u32>>,
    /// Whether each branch runs by itself, without a trunk: what a model computes at a position may depend on how long
    /// the whole sequence is.
    pub apart: bool,
}

impl Group {
    /// Branches that share what they begin with.
    #[must_use]
    pub fn new(prompt: Vec<u32>, responses: Vec<Vec<u32>>) -> Self {
        Self { prompt, responses, apart: false }
    }

    /// A group for a model: branches are kept apart where one is longer than the sequences up to which the model's
    /// functions do not depend on the length.
    #[must_use]
    pub fn of(model: &Description, prompt: Vec<u32>, responses: Vec<Vec<u32>>) -> Self {
        let longest = prompt.len() + responses.iter().map(Vec::len).max().unwrap_or(0);
        let apart = model.same_up_to().is_some_and(|length| longest > length);
        Self { prompt, responses, apart }
    }

    /// Tokens that all input sequences (prompt and response without its last token) begin with, and share the rows of.
    pub(crate) fn trunk_len(&self) -> usize {
        if self.apart {
            return 0;
        }
        let inputs = |r: &Vec<u32>| r.len().saturating_sub(1);
        let shortest = self.responses.iter().map(inputs).min().unwrap_or(0);
        let alike = |at: &usize| self.responses.iter().all(|r| r[*at] == self.responses[0][*at]);
        self.prompt.len() + (0..shortest).take_while(alike).count()
    }

    /// Rows of the forward pass.
    #[must_use]
    pub fn forward_rows(&self) -> usize {
        let trunk = self.trunk_len();
        trunk + self.responses.iter().map(|r| self.prompt.len() + r.len() - 1 - trunk).sum::<usize>()
    }
}

/// A weighted sum of one branch's token log-probabilities, whose gradient is wanted.
#[derive(Clone, Debug, PartialEq)]
pub struct Cotangent {
    /// Which response.
    pub branch: usize,
    /// Weight of each of its tokens.
    pub weights: Vec<f64>,
}

impl Cotangent {
    /// The sum over the tokens of a branch that a mask keeps.
    #[must_use]
    pub fn over(branch: usize, mask: &[bool]) -> Self {
        Self { branch, weights: mask.iter().map(|kept| f64::from(u8::from(*kept))).collect() }
    }

    /// log π(y|x) of every branch of a group: all weights one.
    #[must_use]
    pub fn log_probabilities(group: &Group) -> Vec<Self> {
        group.responses.iter().enumerate().map(|(branch, r)| Self { branch, weights: vec![1.0; r.len()] }).collect()
    }
}

/// Rows of several groups and their cotangents, run as one.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token of each forward row.
    pub tokens: Vec<u32>,
    /// Position of each forward row in its sequence.
    pub positions: Vec<u32>,
    /// Tokens of each forward row's whole sequence.
    pub lengths: Vec<u32>,
    /// What attends to what.
    pub spans: Vec<Span>,
    /// Forward row of each prediction: group by group, branch by branch, token by token.
    pub predicting: Vec<u32>,
    /// Predicted token of each prediction.
    pub targets: Vec<u32>,
    /// Predictions of each group's branches.
    pub branches: Vec<Vec<Range<usize>>>,
    /// Forward rows of each group: of its trunk, and of each branch's suffix.
    pub rows: Vec<(Range<usize>, Vec<Range<usize>>)>,
    /// All backward rows; one set a group, or one for all groups of a joined batch.
    pub full: RowSet,
    /// One segment a cotangent.
    pub segments: Vec<Segment>,
    /// Backward rows from each cotangent's first weighted token on.
    pub active: RowSet,
    /// Prediction and weight behind each active row.
    pub sources: Vec<(u32, f64)>,
    /// Predictions and weights of each cotangent.
    pub weights: Vec<Vec<(usize, f64)>>,
}

impl Batch {
    /// Lays out requests, one after the other.
    #[must_use]
    pub fn new<'a, 'b: 'a>(requests: impl IntoIterator<Item = &'a Request<'b>>) -> Self {
        let mut batch = Self::default();
        batch.full.offsets.push(0);
        batch.active.offsets.push(0);
        for Request { group, cotangents } in requests {
            batch.add(group, cotangents);
        }
        batch
    }

    fn add(&mut self, group: &Group, cotangents: &[Cotangent]) {
        let (prompt, trunk_len) = (group.prompt.len(), group.trunk_len());
        let start = self.tokens.len();
        let mut suffixes = Vec::with_capacity(group.responses.len());
        let mut branches = Vec::with_capacity(group.responses.len());
        for (k, response) in group.responses.iter().enumerate() {
            let sequence: Vec<u32> = group.prompt.iter().chain(&response[..response.len() - 1]).copied().collect();
            let trunk = start..start + trunk_len;
            if k == 0 {
                self.tokens.extend(&sequence[..trunk_len]);
                self.positions.extend(0..as_index(trunk_len));
                // the rotary angles of a trunk are the same for sequences of every length, or it has no rows
                self.lengths.resize(self.tokens.len(), as_index(sequence.len() + 1));
                self.spans.push(Span { prefix: 0..0, own: trunk.clone() });
            }
            let first = self.tokens.len();
            self.tokens.extend(&sequence[trunk_len..]);
            self.positions.extend(as_index(trunk_len)..as_index(sequence.len()));
            self.lengths.resize(self.tokens.len(), as_index(sequence.len() + 1));
            let own = first..self.tokens.len();
            if !own.is_empty() {
                self.spans.push(Span { prefix: trunk, own: own.clone() });
            }
            suffixes.push(own);
            let predictions = self.targets.len();
            for (t, &token) in response.iter().enumerate() {
                let at = prompt - 1 + t;
                self.predicting.push(as_index(if at < trunk_len { start + at } else { first + at - trunk_len }));
                self.targets.push(token);
            }
            branches.push(predictions..self.targets.len());
        }
        let first_cotangent = self.weights.len();
        for Cotangent { branch, weights } in cotangents {
            let weighted = |w: &f64| *w != 0.0;
            let (from, reach) = match (weights.iter().position(weighted), weights.iter().rposition(weighted)) {
                (Some(a), Some(b)) => (prompt - 1 + a, prompt + b),
                _ => (0, 0),
            };
            let own = &suffixes[*branch];
            let segment = Segment {
                prefix: start..start + trunk_len.min(reach),
                own: own.start..own.start + reach.saturating_sub(trunk_len),
                active_from: from,
            };
            let rows: Vec<u32> = segment.prefix.clone().chain(segment.own.clone()).map(as_index).collect();
            self.full.index.extend(&rows);
            self.full.offsets.push(self.full.index.len());
            self.active.index.extend(&rows[from..]);
            self.active.offsets.push(self.active.index.len());
            let first = branches[*branch].start;
            self.sources.extend((from..reach).map(|at| {
                let t = at + 1 - prompt;
                (as_index(first + t), weights[t])
            }));
            let used = weights.iter().enumerate().filter(|(_, w)| weighted(w));
            self.weights.push(used.map(|(t, w)| (first + t, *w)).collect());
            self.segments.push(segment);
        }
        let set = first_cotangent..self.weights.len();
        self.full.sets.push(set.clone());
        self.active.sets.push(set);
        self.branches.push(branches);
        self.rows.push((start..start + trunk_len, suffixes));
    }

    /// The rows that run.
    pub(crate) fn forward_rows(&self) -> ForwardRows<'_> {
        let Self { tokens, positions, lengths, spans, .. } = self;
        ForwardRows { tokens, positions, lengths, spans }
    }

    /// The predictions of each cotangent, as rows of the head's inputs, and their weights in it.
    pub(crate) fn of_predictions(&self) -> (RowSet, Vec<f64>) {
        let (index, weights) = self.sources.iter().copied().unzip();
        (RowSet { index, offsets: self.active.offsets.clone(), sets: self.active.sets.clone() }, weights)
    }

    /// The cotangents as the head takes them.
    pub(crate) fn head_cotangents(&self) -> HeadCotangents<'_> {
        HeadCotangents { weights: &self.weights, sets: &self.full.sets }
    }

    /// The same rows, each a cotangent of its own to the sinks: Grams are then over the places in the sequences at which parameters
    /// are used, not over tokens that are predicted. What runs is the same.
    pub(crate) fn by_position(mut self) -> Self {
        let sets: Vec<Range<usize>> = self.full.sets.iter().map(|set| self.full.of_set(set)).collect();
        let mut weights = vec![Vec::new(); self.full.rows()];
        let (mut active, mut before) = (vec![0; self.full.rows()], 0);
        for (k, of_k) in self.weights.iter().enumerate() {
            let rows = self.full.of(k);
            for (prediction, weight) in of_k {
                let at = self.full.index[rows.clone()].iter().position(|row| *row == self.predicting[*prediction]);
                weights[rows.start + at.unwrap_or(0)].push((*prediction, *weight));
            }
            // the last of a cotangent's rows are active
            let used = self.active.of(k).len();
            active[rows.end - used..rows.end].fill(1);
        }
        self.full.offsets = (0..=self.full.rows()).collect();
        self.active.offsets = std::iter::once(0)
            .chain(active.into_iter().map(|one| {
                before += one;
                before
            }))
            .collect();
        self.full.sets.clone_from(&sets);
        self.active.sets = sets;
        self.weights = weights;
        self
    }

    /// The same rows with one Gram over the cotangents of all groups, each group still with a trunk of its own.
    pub(crate) fn joined(mut self) -> Self {
        self.full.sets = vec![0..self.weights.len()];
        self.active.sets.clone_from(&self.full.sets);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Group {
        Group::new(vec![5, 6], vec![vec![7, 8, 9], vec![7, 3]])
    }

    #[test]
    fn responses_that_begin_alike_share_more_than_the_prompt() {
        assert_eq!(group().trunk_len(), 3);
        assert_eq!(group().forward_rows(), 4);
    }

    #[test]
    fn rows_are_the_trunk_then_the_suffixes() {
        let group = group();
        let batch = Batch::new(&[Request::log_probabilities(&group)]);
        assert_eq!(batch.tokens, [5, 6, 7, 8]);
        assert_eq!(batch.positions, [0, 1, 2, 3]);
        assert_eq!(batch.predicting, [1, 2, 3, 1, 2]);
        assert_eq!(batch.targets, [7, 8, 9, 7, 3]);
        assert_eq!(batch.full.index, [0, 1, 2, 3, 0, 1, 2]);
        assert_eq!(batch.active.index, [1, 2, 3, 1, 2]);
        assert_eq!(batch.full.sets, [0..2]);
    }

    #[test]
    fn a_token_cotangent_reaches_only_the_row_that_predicts_it() {
        let group = group();
        let one = vec![Cotangent { branch: 0, weights: vec![0.0, 2.0, 0.0] }];
        let batch = Batch::new(&[Request { group: &group, cotangents: one }]);
        assert_eq!(batch.full.index, [0, 1, 2]);
        assert_eq!(batch.active.index, [2]);
        assert_eq!(batch.sources, [(1, 2.0)]);
    }
}
