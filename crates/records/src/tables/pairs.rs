//! pairs.parquet: one row a pair.
use crate::tables::{column, frame};
use polars_core::prelude::{Column, DataFrame};
use tanglescope_objectives::{ChosenText, PairGram, Rounding};

/// A row of pairs.parquet.
#[derive(Clone, Debug, PartialEq)]
pub struct PairRow {
    /// Number of the row in the data.
    pub pair: u64,
    /// The row's own `id`.
    pub id: Option<String>,
    /// Tokens of the prompt, of both responses, and of the shared trunk.
    pub tokens: PairLengths,
    /// log π(chosen | prompt).
    pub logp_chosen: f64,
    /// log π(rejected | prompt).
    pub logp_rejected: f64,
    /// The same under the reference model, chosen first, where there is one.
    pub reference: Option<[f64; 2]>,
    /// Insertions, deletions and exchanges of tokens that make one response the other.
    pub edit_distance: u32,
    /// Inner products over all parameters in scope.
    pub gram: PairGram,
    /// The same in the metric of Adam's step, where it was measured.
    pub in_metric: Option<PairGram>,
    /// What else the same pass measured.
    pub companions: Companions,
    /// Of a pair of a larger group: the group's row, and which of its responses are chosen and rejected.
    pub group: Option<(u64, [u32; 2])>,
    /// Sums over contrast tokens, those that the responses do not share, where an objective asks for them.
    pub contrast: Option<PartSums>,
    /// Sums over the tokens up to the shorter response's length, where an objective asks for them.
    pub public: Option<PartSums>,
    /// Sums over all tokens with weights that the data gives, where an objective asks for them.
    pub weighted: Option<PartSums>,
    /// Prompt and chosen response as one text, where an objective asks for it.
    pub text: Option<TextSums>,
    /// log π − log π_ref of the responses of the row before after this prompt, where an objective asks for them.
    pub mismatched: Option<[f64; 2]>,
}

impl PairRow {
    /// log π(chosen)/|w| − log π(rejected)/|l|: the logarithm of the ratio of the tokens' geometric mean probabilities.
    fn margin_by_length(&self) -> f64 {
        self.logp_chosen / f64::from(self.tokens.chosen) - self.logp_rejected / f64::from(self.tokens.rejected)
    }
}

/// Log-probability of a pair's prompt and chosen response as one text, and its gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TextSums {
    /// Of all its tokens but the first.
    pub text: ChosenText,
    /// ⟨its gradient, gradient of log π(response)⟩, chosen first.
    pub inner: [f64; 2],
}

/// Measures of a pair beside its gradients (docs/mathematics.md, section 10).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Companions {
    /// Inner products of the sums of last hidden states over both responses' rows: chosen with itself, with rejected, rejected
    /// with itself.
    pub hidden: [f64; 3],
    /// Mean entropy of the predictions of both responses' tokens, in nats.
    pub entropy: [f64; 2],
    /// Mean Rényi entropy of order 2, −log Σp², of the predictions of both responses' tokens, in nats.
    pub renyi: [f64; 2],
    /// Mean probability of the most probable token in the predictions of both responses' tokens.
    pub argmax_mass: [f64; 2],
    /// Mean place of both responses' tokens among all tokens by probability, from 1.
    pub rank: [f64; 2],
    /// Share of both responses' tokens that are the most probable ones.
    pub accuracy: [f64; 2],
    /// ‖g_w − g_l‖ over the output matrix alone; `None` where it is not in scope by itself.
    pub head: Option<f64>,
    /// Part of wl that the last block's parameters make; `None` where none of them is in scope or wl is zero.
    pub last_layer: Option<f64>,
    /// How alike both responses' rows are spread over experts, 0 to 1, and the pair's rows whose choice of experts is within rounding of
    /// another; `None` where the model has no experts.
    pub routing: Option<(f64, u32)>,
}

impl Companions {
    /// CHES score (Razin et al., arXiv 2410.08847, definition 2): `⟨Σh_w, Σh_l⟩ − ‖Σh_w‖²`.
    #[must_use]
    pub fn ches(&self) -> f64 {
        self.hidden[1] - self.hidden[0]
    }

    /// The same with each sum over its response's tokens: `⟨Σh_w, Σh_l⟩/(|w||l|) − ‖Σh_w‖²/|w|²` (ibid., definition 3).
    #[must_use]
    pub fn ches_by_length(&self, tokens: &PairLengths) -> f64 {
        let (w, l) = (f64::from(tokens.chosen), f64::from(tokens.rejected));
        self.hidden[1] / (w * l) - self.hidden[0] / (w * w)
    }
}

/// A pair's log-probabilities summed over some of its tokens, and the gradients of the two sums.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PartSums {
    /// Of the policy, chosen first.
    pub logps: [f64; 2],
    /// Of the reference.
    pub reference: [f64; 2],
    /// `inner[i][j]`: ⟨gradient of the sum over some tokens of response i, gradient of log π(response j)⟩.
    pub inner: [[f64; 2]; 2],
}

/// Lengths in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairLengths {
    /// The prompt.
    pub prompt: u32,
    /// The preferred response.
    pub chosen: u32,
    /// The other response.
    pub rejected: u32,
    /// What the two input sequences have in common.
    pub trunk: u32,
    /// What a limit on lengths took away of the prompt, and of both responses, chosen first.
    pub truncated: [u32; 3],
}

/// Names of the columns of [`PartSums`] over contrast tokens: the sums, the reference's, and `inner` row by row.
pub(crate) const CONTRAST: [&str; 8] = [
    "contrast_logp_chosen",
    "contrast_logp_rejected",
    "ref_contrast_logp_chosen",
    "ref_contrast_logp_rejected",
    "contrast_w_w",
    "contrast_w_l",
    "contrast_l_w",
    "contrast_l_l",
];

/// The same of the tokens up to the shorter response's length.
pub(crate) const PUBLIC: [&str; 8] = [
    "public_logp_chosen",
    "public_logp_rejected",
    "ref_public_logp_chosen",
    "ref_public_logp_rejected",
    "public_w_w",
    "public_w_l",
    "public_l_w",
    "public_l_l",
];

/// The same of all tokens with weights that the data gives.
pub(crate) const WEIGHTED: [&str; 8] = [
    "weighted_logp_chosen",
    "weighted_logp_rejected",
    "ref_weighted_logp_chosen",
    "ref_weighted_logp_rejected",
    "weighted_w_w",
    "weighted_w_l",
    "weighted_l_w",
    "weighted_l_l",
];

/// Names of the columns of [`PairRow::in_metric`].
pub(crate) const IN_METRIC: [&str; 3] = ["adam_ww", "adam_wl", "adam_ll"];

/// Names of the columns of [`TextSums`].
pub(crate) const TEXT: [&str; 4] = ["text_logp", "text_tokens", "text_w", "text_l"];

/// Names of the columns of [`PairRow::mismatched`].
pub(crate) const MISMATCHED: [&str; 2] = ["mismatched_ratio_chosen", "mismatched_ratio_rejected"];

impl PartSums {
    fn values(&self) -> [f64; 8] {
        let ([a, b], [c, d], [[e, f], [g, h]]) = (self.logps, self.reference, self.inner);
        [a, b, c, d, e, f, g, h]
    }

    pub(crate) fn of([a, b, c, d, e, f, g, h]: [f64; 8]) -> Self {
        Self { logps: [a, b], reference: [c, d], inner: [[e, f], [g, h]] }
    }
}

impl TextSums {
    fn values(&self) -> [f64; 4] {
        [self.text.logp, self.text.tokens, self.inner[0], self.inner[1]]
    }

    pub(crate) fn of([logp, tokens, w, l]: [f64; 4]) -> Self {
        Self { text: ChosenText { logp, tokens }, inner: [w, l] }
    }
}

/// pairs.parquet. The columns of a reference, and of what an objective asks for, are there where every row has them.
#[must_use]
pub fn table(rows: &[PairRow], rounding: Rounding) -> DataFrame {
    let mut columns = vec![
        column("pair", rows, |r| r.pair),
        column("id", rows, |r| r.id.clone()),
        column("prompt_tokens", rows, |r| r.tokens.prompt),
        column("chosen_tokens", rows, |r| r.tokens.chosen),
        column("rejected_tokens", rows, |r| r.tokens.rejected),
        column("trunk_tokens", rows, |r| r.tokens.trunk),
        column("truncated_tokens", rows, |r| r.tokens.truncated[0]),
        column("chosen_truncated_tokens", rows, |r| r.tokens.truncated[1]),
        column("rejected_truncated_tokens", rows, |r| r.tokens.truncated[2]),
        column("edit_distance", rows, |r| r.edit_distance),
        column("logp_chosen", rows, |r| r.logp_chosen),
        column("logp_rejected", rows, |r| r.logp_rejected),
    ];
    let reference: Option<Vec<[f64; 2]>> = rows.iter().map(|r| r.reference).collect();
    if let Some(reference) = reference {
        columns.push(column("ref_logp_chosen", &reference, |r| r[0]));
        columns.push(column("ref_logp_rejected", &reference, |r| r[1]));
    }
    columns.extend([
        column("ww", rows, |r| r.gram.ww),
        column("wl", rows, |r| r.gram.wl),
        column("ll", rows, |r| r.gram.ll),
        column("cosine", rows, |r| r.gram.cosine()),
        column("norm_ratio", rows, |r| r.gram.norm_ratio()),
        column("band_low", rows, |r| r.gram.band().map(|band| band.0)),
        column("band_high", rows, |r| r.gram.band().map(|band| band.1)),
        column("regime_dpo", rows, move |r| r.gram.regime(1.0, 1.0, rounding).name().to_owned()),
        column("common_mode", rows, |r| r.gram.common_mode()),
        column("differential_mode", rows, |r| r.gram.differential_mode()),
        column("last_layer_share", rows, |r| r.companions.last_layer),
        column("hidden_ww", rows, |r| r.companions.hidden[0]),
        column("hidden_wl", rows, |r| r.companions.hidden[1]),
        column("hidden_ll", rows, |r| r.companions.hidden[2]),
        column("ches", rows, |r| r.companions.ches()),
        column("ches_by_length", rows, |r| r.companions.ches_by_length(&r.tokens)),
        column("entropy_chosen", rows, |r| r.companions.entropy[0]),
        column("entropy_rejected", rows, |r| r.companions.entropy[1]),
        column("renyi_chosen", rows, |r| r.companions.renyi[0]),
        column("renyi_rejected", rows, |r| r.companions.renyi[1]),
        column("argmax_mass_chosen", rows, |r| r.companions.argmax_mass[0]),
        column("argmax_mass_rejected", rows, |r| r.companions.argmax_mass[1]),
        column("rank_chosen", rows, |r| r.companions.rank[0]),
        column("rank_rejected", rows, |r| r.companions.rank[1]),
        column("accuracy_chosen", rows, |r| r.companions.accuracy[0]),
        column("accuracy_rejected", rows, |r| r.companions.accuracy[1]),
        column("margin_by_length", rows, PairRow::margin_by_length),
        column("head_differential", rows, |r| r.companions.head),
    ]);
    if let Some(grams) = rows.iter().map(|r| r.in_metric).collect::<Option<Vec<_>>>() {
        columns.extend([
            column(IN_METRIC[0], &grams, |g| g.ww),
            column(IN_METRIC[1], &grams, |g| g.wl),
            column(IN_METRIC[2], &grams, |g| g.ll),
            column("adam_cosine", &grams, PairGram::cosine),
            column("adam_norm_ratio", &grams, PairGram::norm_ratio),
            column("adam_band_low", &grams, |g| g.band().map(|band| band.0)),
            column("adam_band_high", &grams, |g| g.band().map(|band| band.1)),
            column("adam_regime_dpo", &grams, move |g| g.regime(1.0, 1.0, rounding).name().to_owned()),
        ]);
    }
    if rows.iter().any(|r| r.companions.routing.is_some()) {
        columns.push(column("routing_overlap", rows, |r| r.companions.routing.map(|of| of.0)));
        columns.push(column("router_ties", rows, |r| r.companions.routing.map(|of| of.1)));
    }
    if rows.iter().any(|r| r.group.is_some()) {
        columns.push(column("group", rows, |r| r.group.map_or(r.pair, |(group, _)| group)));
        let of = |k: usize, r: &PairRow| r.group.map_or(u32::from(k == 1), |(_, responses)| responses[k]);
        columns.push(column("chosen_response", rows, |r| of(0, r)));
        columns.push(column("rejected_response", rows, |r| of(1, r)));
    }
    columns.extend(where_all(rows, &CONTRAST, |r| r.contrast.map(|c| c.values())));
    columns.extend(where_all(rows, &PUBLIC, |r| r.public.map(|c| c.values())));
    columns.extend(where_all(rows, &WEIGHTED, |r| r.weighted.map(|c| c.values())));
    columns.extend(where_all(rows, &TEXT, |r| r.text.map(|t| t.values())));
    columns.extend(where_all(rows, &MISMATCHED, |r| r.mismatched));
    frame(columns)
}

/// The columns of some numbers that every row has; none where one has not.
fn where_all<const N: usize>(
    rows: &[PairRow],
    names: &[&str; N],
    of: impl Fn(&PairRow) -> Option<[f64; N]>,
) -> Vec<Column> {
    let Some(values) = rows.iter().map(of).collect::<Option<Vec<_>>>() else { return Vec::new() };
    names.iter().enumerate().map(|(at, name)| column(name, &values, |values| values[at])).collect()
}
