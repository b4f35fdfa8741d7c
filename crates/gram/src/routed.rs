//! What routers decided about a group: how its branches' rows are spread over experts, and which decisions hang by a rounding.
use crate::batch::Batch;
use std::ops::Range;
use tanglescope_kernels::DType;
use tanglescope_kernels::device::is_in_tf32;
use tanglescope_model::Choices;

/// The decisions of the routers of all blocks with experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// Block by block.
    pub layers: Vec<RoutedLayer>,
    /// Rows of the trunk whose decision in some block is within rounding of another.
    pub trunk_ties: u32,
    /// The same of each branch's own rows.
    pub ties: Vec<u32>,
}

/// The decisions of a block's router.
#[derive(Clone, Debug, PartialEq)]
pub struct RoutedLayer {
    /// The block.
    pub layer: usize,
    /// Rows that predict a branch's tokens and go to an expert: by branch, then by expert.
    pub rows: Vec<Vec<u32>>,
}

/// Roundings of the largest score within which two are called equal: scores are rounded sums of rounded rows, which carry the roundings
/// of all blocks below.
const ROUNDINGS: f64 = 8.0;

/// Unit roundoff of a type.
fn unit_roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(-53),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
        // the scores are products, whose factors may be tf32
        _ if is_in_tf32() => 2f64.powi(-11),
        _ => 2f64.powi(-24),
    }
}

impl Routed {
    /// Of a batch's group; `None` where no block has experts.
    pub(crate) fn of(routed: &[(usize, Choices)], batch: &Batch, group: usize, dtype: DType) -> Option<Self> {
        if routed.is_empty() {
            return None;
        }
        let bound = ROUNDINGS * unit_roundoff(dtype);
        let tied = |row: &usize| routed.iter().any(|(_, choices)| choices.margins[*row] <= bound);
        let ties = |rows: &Range<usize>| tanglescope_kernels::as_index(rows.clone().filter(tied).count());
        let (trunk, suffixes) = &batch.rows[group];
        let layer = |(layer, choices): &(usize, Choices)| {
            let of_branch = |predictions: &Range<usize>| {
                let mut rows = vec![0; choices.experts];
                for row in &batch.predicting[predictions.clone()] {
                    choices.of(*row as usize).iter().for_each(|&expert| rows[expert as usize] += 1);
                }
                rows
            };
            RoutedLayer { layer: *layer, rows: batch.branches[group].iter().map(of_branch).collect() }
        };
        Some(Self {
            layers: routed.iter().map(layer).collect(),
            trunk_ties: ties(trunk),
            ties: suffixes.iter().map(ties).collect(),
        })
    }

    /// How alike two branches are routed: over blocks, the mean of what the shares of their rows' places that each expert has have in
    /// common, `Σ_e min(a_e, b_e)`; 1 where they are spread alike, 0 where no expert meets both.
    #[must_use]
    pub fn overlap(&self, [a, b]: [usize; 2]) -> f64 {
        let of = |layer: &RoutedLayer| -> f64 {
            let total = |branch: usize| f64::from(layer.rows[branch].iter().sum::<u32>().max(1));
            let share = |branch: usize| layer.rows[branch].iter().map(move |&rows| f64::from(rows) / total(branch));
            share(a).zip(share(b)).map(|(a, b)| a.min(b)).sum()
        };
        self.layers.iter().map(of).sum::<f64>() / self.layers.len() as f64
    }

    /// Rows of the trunk and of two branches whose decision in some block is within rounding of another.
    #[must_use]
    pub fn ties_of(&self, branches: [usize; 2]) -> u32 {
        self.trunk_ties + branches.map(|branch| self.ties[branch]).iter().sum::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Group;
    use crate::request::Request;

    /// A prompt of two tokens and responses of two and of one: rows 0 and 1 are the trunk, row 2 the first response's.
    #[test]
    fn rows_are_counted_where_they_predict_and_ties_wherever_they_are() {
        let group = Group::new(vec![1, 2], vec![vec![3, 4], vec![5]]);
        let batch = Batch::new(&[Request::log_probabilities(&group)]);
        let choices =
            Choices { experts: 3, per_row: 1, chosen: vec![2, 0, 1], margins: vec![0.0, 1e-3, f64::INFINITY] };
        let of = |dtype| Routed::of(&[(4, choices.clone())], &batch, 0, dtype).unwrap();
        let routed = of(DType::F32);
        // row 1 predicts the first token of both, row 2 the second of the first
        assert_eq!(routed.layers, [RoutedLayer { layer: 4, rows: vec![vec![1, 1, 0], vec![1, 0, 0]] }]);
        assert_eq!(routed.overlap([0, 1]).to_bits(), 0.5f64.to_bits());
        assert_eq!((routed.ties_of([0, 1]), of(DType::BF16).ties_of([0, 1])), (1, 2));
        assert!(Routed::of(&[], &batch, 0, DType::F32).is_none());
    }
}
