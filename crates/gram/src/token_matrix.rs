//! The token-level matrix: one cotangent a response token (docs/mathematics.md, section 9).
use crate::batch::{Batch, Cotangent, Group};
use crate::pass::{Wanted, grams_in_batches, run};
use crate::request::Request;
use crate::schedule::Schedule;
use crate::sinks::{Detail, GramSink};
use tanglescope_kernels::Kernels;
use tanglescope_model::{Decoder, InScope};

/// ⟨∇log p(token i), ∇log p(token j)⟩ of all response tokens of a group.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenMatrix {
    /// Log-probability of each token of each branch's response.
    pub token_logps: Vec<Vec<f64>>,
    /// `[K, K]`, K the tokens of all branches in their order, summed over all parameters in scope.
    pub inner: Vec<f64>,
}

impl TokenMatrix {
    /// The matrix of two branches: rows are tokens of `a`, columns of `b`.
    #[must_use]
    pub fn block(&self, a: usize, b: usize) -> Vec<Vec<f64>> {
        let lengths: Vec<usize> = self.token_logps.iter().map(Vec::len).collect();
        let first = |branch: usize| lengths[..branch].iter().sum::<usize>();
        let (k, columns) = (lengths.iter().sum::<usize>(), first(b)..first(b) + lengths[b]);
        let row = |i: usize| self.inner[i * k..][columns.clone()].to_vec();
        (first(a)..first(a) + lengths[a]).map(row).collect()
    }
}

/// The part of each pair of places in wl, ww and ll: `Σ_p ⟨∂L_a/∂p at place i of a, ∂L_b/∂p at place j of b⟩`, places being the
/// positions of prompt and response at which every parameter is used once (docs/mathematics.md, section 9).
///
/// One pass with the cotangents of both log-probabilities, as for the Gram; `[K, K]`, K the positions of all branches' inputs in
/// their order, and how many each branch has.
pub fn position_matrix<B: Kernels>(model: &Decoder<B>, scope: &InScope, group: &Group) -> (Vec<f64>, Vec<usize>) {
    let batch = Batch::new(&[Request::log_probabilities(group)]).by_position();
    let mut sink = GramSink::new(scope, &batch.full.sets, model.rates, Detail::Total);
    run(model, scope, &batch, &mut sink);
    let inner = sink.finish().into_iter().flatten().next().unwrap_or_default();
    (inner, group.responses.iter().map(|response| group.prompt.len() + response.len() - 1).collect())
}

/// One cotangent for every response token.
fn cotangents(group: &Group) -> Vec<Cotangent> {
    let one = |branch: usize, of: usize, t: usize| {
        let weights = (0..of).map(|i| f64::from(u8::from(i == t))).collect();
        Cotangent { branch, weights }
    };
    let tokens = group.responses.iter().enumerate();
    tokens.flat_map(|(branch, r)| (0..r.len()).map(move |t| one(branch, r.len(), t))).collect()
}

/// Backward rows that a token's cotangent reaches.
fn rows_of_tokens(group: &Group) -> Vec<usize> {
    group.responses.iter().flat_map(|r| (0..r.len()).map(|t| group.prompt.len() + t)).collect()
}

/// Backward rows of a group's matrix in one pass.
#[must_use]
pub fn token_rows(group: &Group) -> usize {
    rows_of_tokens(group).iter().sum()
}

/// The matrices of groups, in their order, in passes of at most `most` backward rows, `at_once` of them side by side; `done`
/// is told which groups are through.
///
/// A matrix of more rows is put together from passes over every two parts of its tokens.
pub fn token_matrices<B: Kernels>(
    model: &Decoder<B>,
    scope: &InScope,
    groups: &[&Group],
    (most, at_once): (usize, usize),
    done: impl Fn(&[usize]) + Sync,
) -> Vec<TokenMatrix> {
    let rows: Vec<usize> = groups.iter().map(|group| token_rows(group)).collect();
    let (whole, in_parts): (Vec<usize>, Vec<usize>) = (0..groups.len()).partition(|&g| rows[g] <= most);
    let request = |&g: &usize| Request { group: groups[g], cotangents: cotangents(groups[g]) };
    let requests: Vec<Request<'_>> = whole.iter().map(request).collect();
    let lengths: Vec<usize> = whole.iter().map(|&g| rows[g]).collect();
    let schedule = Schedule::by_length(&lengths, most, at_once);
    let found = grams_in_batches(model, scope, &requests, &schedule, &Wanted::plain(Detail::Total), |batch| {
        done(&batch.iter().map(|&i| whole[i]).collect::<Vec<_>>());
    });
    let found = found.into_iter().map(|result| TokenMatrix { inner: result.total(), token_logps: result.token_logps });
    let mut out: Vec<(usize, TokenMatrix)> = whole.iter().copied().zip(found).collect();
    for g in in_parts {
        out.push((g, by_parts(model, scope, groups[g], most)));
        done(&[g]);
    }
    out.sort_by_key(|(g, _)| *g);
    out.into_iter().map(|(_, matrix)| matrix).collect()
}

/// The tokens of each pass of a matrix: all of them where they have at most `most` rows; else those of every two parts, each
/// part at most half of `most` rows, or one token.
fn tokens_of_passes(rows: &[usize], most: usize) -> Vec<Vec<usize>> {
    if rows.iter().sum::<usize>() <= most {
        return vec![(0..rows.len()).collect()];
    }
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (token, &rows) in rows.iter().enumerate() {
        match parts.last_mut() {
            Some(part) if rows <= room => part.push(token),
            _ => {
                parts.push(vec![token]);
                room = most / 2;
            }
        }
        room = room.saturating_sub(rows);
    }
    let twos = parts.iter().enumerate().flat_map(|(a, first)| parts[a + 1..].iter().map(move |b| (first, b)));
    twos.map(|(first, second)| [first.as_slice(), second].concat()).collect()
}

/// The cotangents of each pass of a group's matrix, for counting what it costs.
#[must_use]
pub fn token_passes(group: &Group, most: usize) -> Vec<Vec<Cotangent>> {
    let all = cotangents(group);
    let passes = tokens_of_passes(&rows_of_tokens(group), most);
    passes.into_iter().map(|tokens| tokens.into_iter().map(|token| all[token].clone()).collect()).collect()
}

/// A matrix from passes over every two parts of its tokens.
fn by_parts<B: Kernels>(model: &Decoder<B>, scope: &InScope, group: &Group, most: usize) -> TokenMatrix {
    let all = cotangents(group);
    let k = all.len();
    let (mut inner, mut token_logps) = (vec![0.0; k * k], Vec::new());
    for tokens in tokens_of_passes(&rows_of_tokens(group), most) {
        let chosen: Vec<Cotangent> = tokens.iter().map(|&token| all[token].clone()).collect();
        let request = Request { group, cotangents: chosen };
        let schedule = Schedule::together(1);
        let result =
            grams_in_batches(model, scope, &[request], &schedule, &Wanted::plain(Detail::Total), |_| ()).remove(0);
        let total = result.total();
        for (i, &row) in tokens.iter().enumerate() {
            for (j, &column) in tokens.iter().enumerate() {
                inner[row * k + column] = total[i * tokens.len() + j];
            }
        }
        token_logps = result.token_logps;
    }
    TokenMatrix { token_logps, inner }
}
