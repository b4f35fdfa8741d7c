//! Which pairs of a data set move the model alike: a dendrogram of the directions that their steps take.
use crate::spectrum::Spectrum;
use kodama::{Method, linkage};
use tanglescope_records::tables::interference::ClusterPlace;

/// The pairs in the order of a dendrogram's leaves, so that pairs alike stand together.
///
/// Two pairs are as far apart as 1 − cos(δ_a, δ_b) with δ = g_w − g_l, the direction of a step with d_w = d_l; clusters as their pairs on average
/// (UPGMA: Sokal and Michener 1958). A pair whose δ is zero is at a distance of 1 from all.
///
/// With each pair stands what a step of length 1 that lowers the mean margin fastest takes from its own: ⟨δ, δ̄⟩/‖δ̄‖, the anchor gap of Cho et al.
/// (arXiv 2602.04909) for each unit of their radius, to first order, with all pairs as the batch.
#[must_use]
pub fn clusters(of: &Spectrum) -> Vec<ClusterPlace> {
    let pairs = of.pairs();
    let inner = |a: usize, b: usize| {
        let at = |i: usize, j: usize| of.product((a, i), (b, j));
        at(0, 0) - at(0, 1) - at(1, 0) + at(1, 1)
    };
    let squares: Vec<f64> = (0..pairs.len()).map(|a| inner(a, a)).collect();
    let mut apart: Vec<f64> = (0..pairs.len())
        .flat_map(|a| (a + 1..pairs.len()).map(move |b| (a, b)))
        .map(|(a, b)| {
            let size = (squares[a] * squares[b]).sqrt();
            if size > 0.0 { (1.0 - inner(a, b) / size).max(0.0) } else { 1.0 }
        })
        .collect();
    let n = pairs.len() as f64;
    // ⟨δ, δ̄⟩ of each pair, and ‖δ̄‖
    let with_mean: Vec<f64> =
        (0..pairs.len()).map(|a| (0..pairs.len()).map(|b| inner(a, b)).sum::<f64>() / n).collect();
    let mean = with_mean.iter().sum::<f64>() / n;
    // directions that cancel leave rounding
    let mean = (mean > f64::EPSILON * squares.iter().sum::<f64>()).then(|| mean.sqrt());
    let joined = linkage(&mut apart, pairs.len(), Method::Average);
    // leaves of each cluster in order, each with the distance at which it met the one before it
    let mut leaves: Vec<Vec<(usize, Option<f64>)>> = (0..pairs.len()).map(|at| vec![(at, None)]).collect();
    for step in joined.steps() {
        let mut left = std::mem::take(&mut leaves[step.cluster1]);
        let mut right = std::mem::take(&mut leaves[step.cluster2]);
        right[0].1 = Some(step.dissimilarity);
        left.append(&mut right);
        leaves.push(left);
    }
    let order = leaves.pop().unwrap_or_default();
    let place = |(place, (at, distance)): (u64, (usize, Option<f64>))| {
        let anchor_gap = mean.map(|mean| with_mean[at] / mean);
        ClusterPlace { pair: pairs[at], place, distance, anchor_gap }
    };
    (0..).zip(order).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::clusters;
    use crate::Spectrum;
    use tanglescope_records::tables::interference::Couple;

    /// Gradients of chosen are entries 0 to 3, those of rejected zero.
    fn of(gradients: &[[f64; 2]]) -> Spectrum {
        let pairs: Vec<u64> = (0..gradients.len() as u64).map(|n| 10 * n).collect();
        let mut found = Spectrum::of(&pairs);
        for (b, of_b) in gradients.iter().enumerate() {
            for (a, of_a) in gradients[..=b].iter().enumerate() {
                let inner = [of_a[0] * of_b[0] + of_a[1] * of_b[1], 0.0, 0.0, 0.0];
                found.add(&Couple { a: pairs[a], b: pairs[b], inner });
            }
        }
        found
    }

    #[test]
    fn pairs_of_one_direction_stand_together() {
        let found = clusters(&of(&[[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0], [2.0, 0.0]]));
        let order: Vec<u64> = found.iter().map(|of| of.pair).collect();
        let firsts: Vec<bool> = order.iter().map(|pair| pair % 20 == 0).collect();
        assert!(firsts == [true, true, true, false, false] || firsts == [false, false, true, true, true], "{order:?}");
        // within a direction nothing is apart; between the two, which are at right angles, a distance of 1
        let apart: Vec<f64> = found.iter().filter_map(|of| of.distance).filter(|d| *d > 1e-12).collect();
        assert!(apart.len() == 1 && (apart[0] - 1.0).abs() < 1e-12, "{apart:?}");
        assert_eq!(found[0].distance, None);
        assert_eq!(found.iter().map(|of| of.place).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_step_along_the_mean_direction_takes_as_much_from_each_margin() {
        let apart = clusters(&of(&[[1.0, 0.0], [2.0, 2.0]]));
        // δ̄ = (1.5, 1)
        let of_pair = |pair: u64| apart.iter().find(|of| of.pair == pair).unwrap().anchor_gap.unwrap();
        assert!(
            (of_pair(0) - 1.5 / 3.25f64.sqrt()).abs() < 1e-14 && (of_pair(10) - 5.0 / 3.25f64.sqrt()).abs() < 1e-14
        );
        assert!(clusters(&of(&[[0.1, 0.0], [0.2, 0.0], [-0.3, 0.0]])).iter().all(|of| of.anchor_gap.is_none()));
    }

    #[test]
    fn one_pair_and_pairs_without_a_direction() {
        assert_eq!(clusters(&of(&[[1.0, 0.0]])).len(), 1);
        assert_eq!(clusters(&of(&[])).len(), 0);
        let zeros = clusters(&of(&[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]));
        assert!(zeros.iter().any(|of| of.distance.is_some_and(|apart| apart >= 1.0)));
    }
}
