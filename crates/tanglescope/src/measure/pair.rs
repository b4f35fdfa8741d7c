//! One pair of a row: its rows of the tables.
use super::items::{Item, part_of};
use std::collections::HashMap;
use tanglescope_data::TextTokens;
use tanglescope_gram::{GroupResult, RoutedLayer};
use tanglescope_kernels::as_index;
use tanglescope_model::{InScope, Location, Parameter, ParameterKind};
use tanglescope_objectives::PairGram;
use tanglescope_records::manifest::Beside;
use tanglescope_records::tables::pairs::{Companions, PairLengths, PairRow, PartSums, TextSums};
use tanglescope_records::tables::responses::{ResponseTokens, ResponsesRow};
use tanglescope_records::tables::routing::RoutingRow;

/// A pair of a row, and what is known of it beside the row's results.
pub struct MeasuredPair<'a> {
    /// The row.
    pub item: &'a Item,
    /// Of chosen and rejected.
    pub branches: [usize; 2],
    /// Its number.
    pub number: u64,
    /// Its cotangents among the row's: of both log-probabilities, and of both sums over each part.
    pub which: Vec<usize>,
    /// Token log-probabilities of the row's branches under the reference.
    pub reference: Option<&'a Vec<Vec<f64>>>,
    /// What is measured because an objective asks for it.
    pub beside: Beside,
    /// Of the parts that are summed apart.
    pub masks: &'a [Masks],
    /// Prompt and chosen response as one text.
    pub text: Option<TextSums>,
    /// log π − log π_ref of other responses after the prompt.
    pub mismatched: Option<[f64; 2]>,
}

impl MeasuredPair<'_> {
    /// Its row of pairs.parquet; `last` is the last block.
    pub fn row(&self, result: &GroupResult, scope: &InScope, last: usize) -> PairRow {
        let Self { item, branches, which, reference, .. } = self;
        let [w, l] = *branches;
        let total = part_of(&result.total(), which);
        let inner = |row: usize| [0, 1].map(|k| total[row * which.len() + k]);
        let of_part = |(n, masks): (usize, &Masks)| {
            let logps = masked(&result.token_logps, *branches, masks);
            let reference = masked(reference.as_ref()?, *branches, masks);
            Some(PartSums { logps, reference, inner: [inner(2 + 2 * n), inner(3 + 2 * n)] })
        };
        let mut parts = self.masks.iter().enumerate().map(of_part);
        let contrast = self.beside.contrast.then(|| parts.next()).flatten().flatten();
        let public = self.beside.public.then(|| parts.next()).flatten().flatten();
        let weighted = self.beside.weights.then(|| parts.next()).flatten().flatten();
        let (chosen, rejected) = (&item.group.responses[w], &item.group.responses[l]);
        let cut = |branch: usize| item.cut.responses[item.responses[branch]];
        let tokens = PairLengths {
            prompt: as_index(item.group.prompt.len()),
            chosen: as_index(chosen.len()),
            rejected: as_index(rejected.len()),
            trunk: as_index(result.trunk_tokens),
            truncated: [item.cut.prompt, cut(w), cut(l)].map(as_index),
        };
        let gram = PairGram::of(&total);
        let hidden = part_of(&result.companions.hidden, branches);
        let average = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let ranks = |k: usize| average(&result.companions.ranks[k].iter().map(|&r| f64::from(r)).collect::<Vec<_>>());
        let first = |k: usize| {
            average(&result.companions.ranks[k].iter().map(|&r| f64::from(u8::from(r == 1))).collect::<Vec<_>>())
        };
        PairRow {
            pair: self.number,
            id: item.id.clone(),
            tokens,
            logp_chosen: result.logp(w),
            logp_rejected: result.logp(l),
            reference: reference.map(|of| branches.map(|k| of[k].iter().sum())),
            edit_distance: as_index(strsim::generic_levenshtein(chosen, rejected)),
            gram,
            in_metric: result.in_metric.as_ref().map(|gram| PairGram::of(&part_of(gram, &self.branches))),
            companions: Companions {
                hidden: [hidden[0], hidden[1], hidden[3]],
                entropy: branches.map(|k| average(&result.companions.entropies[k])),
                renyi: branches.map(|k| average(&result.companions.renyi[k])),
                argmax_mass: branches.map(|k| average(&result.companions.argmax_mass[k])),
                rank: branches.map(ranks),
                accuracy: branches.map(first),
                head: self.of_head(result, scope),
                last_layer: self.of_layer(result, scope, last, gram.wl),
                routing: result.companions.routed.as_ref().map(|of| (of.overlap(*branches), of.ties_of(*branches))),
            },
            group: item.scores.as_ref().map(|_| (item.row, branches.map(|k| as_index(item.responses[k])))),
            contrast,
            public,
            weighted,
            text: self.text,
            mismatched: self.mismatched,
        }
    }

    /// ‖g_w − g_l‖ over the output matrix, where it is in scope and no other parameter is the same tensor.
    fn of_head(&self, result: &GroupResult, scope: &InScope) -> Option<f64> {
        let (_, gram) = scope.parameters.iter().zip(&result.grams).find(|(p, _)| is_output_matrix(p))?;
        let of = PairGram::of(&part_of(gram, &self.branches));
        Some(2.0 * of.differential_mode())
    }

    /// Part of wl that a block's parameters make.
    fn of_layer(&self, result: &GroupResult, scope: &InScope, layer: usize, wl: f64) -> Option<f64> {
        let of_layer = scope.parameters.iter().zip(&result.grams).filter(|(p, _)| p.layer == Some(layer));
        let parts: Vec<f64> = of_layer.map(|(_, gram)| part_of(gram, &self.branches)[1]).collect();
        (!parts.is_empty() && wl != 0.0).then(|| parts.iter().sum::<f64>() / wl)
    }

    /// Its rows of routing.parquet: every expert that a row went to, or that has a gradient.
    pub fn routing(&self, result: &GroupResult) -> Vec<RoutingRow> {
        let Some(routed) = &result.companions.routed else { return Vec::new() };
        let grams: HashMap<(usize, usize), PairGram> =
            result.experts.iter().map(|(of, gram)| (*of, PairGram::of(&part_of(gram, &self.branches)))).collect();
        let of_layer = |layer: &RoutedLayer| -> Vec<RoutingRow> {
            let [w, l] = self.branches.map(|branch| &layer.rows[branch]);
            let of = |(expert, (w, l)): (usize, (&u32, &u32))| RoutingRow {
                pair: self.number,
                layer: as_index(layer.layer),
                expert: as_index(expert),
                rows: [*w, *l],
                gram: grams.get(&(layer.layer, expert)).copied(),
            };
            w.iter().zip(l).enumerate().map(of).filter(|row| row.rows != [0, 0] || row.gram.is_some()).collect()
        };
        routed.layers.iter().flat_map(of_layer).collect()
    }

    /// Both responses, token by token.
    pub fn responses(&self, result: &GroupResult, tokenizer: Option<&TextTokens>) -> ResponsesRow {
        let tokens = |k: usize| {
            let ids = &self.item.group.responses[k];
            ResponseTokens {
                ids: ids.clone(),
                text: tokenizer.map(|tokenizer| ids.iter().map(|&id| tokenizer.text(id).unwrap_or_default()).collect()),
                logps: result.token_logps[k].clone(),
                entropies: result.companions.entropies[k].clone(),
                ranks: result.companions.ranks[k].clone(),
            }
        };
        let [chosen, rejected] = self.branches.map(tokens);
        let prompt = tokenizer.map(|tokenizer| tokenizer.join(&self.item.group.prompt));
        ResponsesRow { pair: self.number, prompt, chosen, rejected }
    }
}

/// Some tokens of both responses.
pub type Masks = [Vec<f64>; 2];

/// Log-probabilities of two branches, summed over the tokens that the masks keep.
fn masked(token_logps: &[Vec<f64>], branches: [usize; 2], masks: &Masks) -> [f64; 2] {
    let sum = |k: usize| -> f64 {
        // what has no weight adds nothing, an infinite log-probability neither
        let kept = token_logps[branches[k]].iter().zip(&masks[k]).filter(|(_, weight)| **weight != 0.0);
        kept.map(|(logp, weight)| weight * logp).sum()
    };
    [sum(0), sum(1)]
}

/// Whether a parameter is the output matrix by itself; a tied one is the embedding.
pub fn is_output_matrix(parameter: &Parameter) -> bool {
    let Parameter { location, kind, name, .. } = parameter;
    *location == Location::Head && *kind == ParameterKind::Base && name.ends_with("weight")
}
