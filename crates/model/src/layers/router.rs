//! Which experts each row goes to, and how much each counts: the choice is piecewise constant, and the gradient goes through the
//! weights of the chosen (docs/mathematics.md, section 3).

/// How a row's experts are chosen and weighted from its logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of a row.
    pub per_row: usize,
    /// What the weights are.
    pub rule: RoutingRule,
    /// Factor on the weights.
    pub scale: f64,
}

/// What the weights of the chosen experts are, those with the highest logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RoutingRule {
    /// Their part of the softmax over all experts.
    Softmax,
    /// The softmax over the chosen alone.
    SoftmaxOfChosen,
    /// For each of the chosen its part of the softmax over the experts that were not chosen before it, without those whose logit is further below its own than
    /// `tolerance` times the larger of its own and their size (Phi-3.5-MoE's mixer of sparse choices).
    SoftmaxOfClose {
        /// How far below, as a part.
        tolerance: f64,
    },
    /// The sigmoid of each; it, plus a correction that trains without a gradient, decides which are chosen.
    Sigmoid {
        /// Whether the weights of the chosen are divided by their sum.
        renormalised: bool,
        /// Experts stand in so many groups,
        groups: usize,
        /// of which those with the largest sum of their two highest are chosen from.
        best_groups: usize,
    },
}

/// What a router decided for some rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// Number of experts.
    pub experts: usize,
    /// Experts of a row, k.
    pub per_row: usize,
    /// Experts of each row, the highest first, `[N, k]`.
    pub chosen: Vec<u32>,
    /// How far each row is from another choice: the lowest score that was chosen less the highest that was not, over the largest by
    /// size, `[N]`; infinite where there is no other choice.
    pub margins: Vec<f64>,
}

impl Choices {
    /// Experts of a row.
    #[must_use]
    pub fn of(&self, row: usize) -> &[u32] {
        &self.chosen[row * self.per_row..(row + 1) * self.per_row]
    }
}

/// The experts of some rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    /// Number of experts.
    experts: usize,
    routing: Routing,
    /// Experts of each row, the highest first, `[N, k]`.
    chosen: Vec<u32>,
    /// See [`Choices::margins`].
    margins: Vec<f64>,
    /// Their weights, `[N, k]`, without the factors.
    weights: Vec<f64>,
    /// A factor on the weight of each row's experts, `[N, k]`; of nothing where there is none.
    factors: Vec<f64>,
    /// The softmax over all experts, `[N, E]`, or one for each of the chosen, `[N, k, E]`, or the sigmoids of the chosen, `[N, k]`, where the weights depend on them.
    probabilities: Vec<f64>,
    /// Place of each row's experts among the rows sorted by expert, `[N, k]`.
    places: Vec<u32>,
    /// First sorted row of each expert, and their number.
    offsets: Vec<usize>,
}

/// The backward rows of some cotangents, sorted by expert.
#[derive(Clone, Debug, PartialEq)]
pub struct BackwardRoutes {
    /// Backward row of each sorted row, `[R·k]`.
    pub rows: Vec<u32>,
    /// The forward pass's sorted row, `[R·k]`.
    pub places: Vec<u32>,
    /// Its expert's weight, `[R·k]`.
    pub weights: Vec<f64>,
    /// First sorted row of each expert, and their number.
    pub offsets: Vec<usize>,
    /// Sorted row of each backward row's experts, `[R, k]`.
    pub of_row: Vec<u32>,
}

impl BackwardRoutes {
    /// Sorted rows of an expert.
    pub fn of_expert(&self, expert: usize) -> std::ops::Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }
}

impl Routing {
    /// Chooses the experts of rows from their logits, `[N, experts]`; of equal ones the first. `correction` is added to sigmoids
    /// where they decide.
    #[must_use]
    pub fn routes(self, logits: &[f64], experts: usize, correction: Option<&[f64]>) -> Routes {
        let k = self.per_row;
        let rows = logits.len() / experts;
        let (mut chosen, mut weights) = (Vec::with_capacity(rows * k), Vec::with_capacity(rows * k));
        let (mut probabilities, mut margins) = (Vec::new(), Vec::with_capacity(rows));
        for z in logits.chunks_exact(experts) {
            let (order, margin) = match self.rule {
                RoutingRule::Sigmoid { groups, best_groups, .. } => {
                    let corrected = |(e, z): (usize, &f64)| sigmoid(*z) + correction.map_or(0.0, |of| of[e]);
                    let mut scores: Vec<f64> = z.iter().enumerate().map(corrected).collect();
                    let of_groups = keep_groups(&mut scores, groups, best_groups);
                    let (order, margin) = highest(&scores, k);
                    (order, margin.min(of_groups))
                }
                RoutingRule::Softmax | RoutingRule::SoftmaxOfChosen | RoutingRule::SoftmaxOfClose { .. } => {
                    highest(z, k)
                }
            };
            margins.push(margin);
            match self.rule {
                RoutingRule::Softmax => {
                    let p = softmax(z.iter().copied());
                    weights.extend(order.iter().map(|&e| self.scale * p[e as usize]));
                    probabilities.extend(p);
                }
                RoutingRule::SoftmaxOfClose { tolerance } => {
                    for (j, &e) in order.iter().enumerate() {
                        let p = softmax_of_close(z, &order[..j], z[e as usize], tolerance);
                        weights.push(self.scale * p[e as usize]);
                        probabilities.extend(p);
                    }
                }
                RoutingRule::SoftmaxOfChosen => {
                    let p = softmax(order.iter().map(|&e| z[e as usize]));
                    weights.extend(p.into_iter().map(|p| self.scale * p));
                }
                RoutingRule::Sigmoid { renormalised, .. } => {
                    let s: Vec<f64> = order.iter().map(|&e| sigmoid(z[e as usize])).collect();
                    let sum = if renormalised { s.iter().sum::<f64>() + LEAST_SUM } else { 1.0 };
                    weights.extend(s.iter().map(|s| self.scale * s / sum));
                    probabilities.extend(s);
                }
            }
            chosen.extend(order);
        }
        let (offsets, places) = sorted(&chosen, experts);
        let factors = Vec::new();
        Routes { experts, routing: self, chosen, margins, weights, factors, probabilities, places, offsets }
    }
}

/// First sorted place of each expert, and each entry's place: entries of an expert keep their order.
fn sorted(experts_of: &[u32], experts: usize) -> (Vec<usize>, Vec<u32>) {
    let mut offsets = vec![0; experts + 1];
    experts_of.iter().for_each(|&e| offsets[e as usize + 1] += 1);
    for e in 0..experts {
        offsets[e + 1] += offsets[e];
    }
    let mut next = offsets.clone();
    let place = |&e: &u32| {
        next[e as usize] += 1;
        tanglescope_kernels::as_index(next[e as usize] - 1)
    };
    let places = experts_of.iter().map(place).collect();
    (offsets, places)
}

/// What transformers adds to a sum of sigmoids before it divides by it.
const LEAST_SUM: f64 = 1e-20;

/// The experts with the k highest scores, the highest first, and how far the next one is.
fn highest(scores: &[f64], k: usize) -> (Vec<u32>, f64) {
    let mut order: Vec<u32> = (0..tanglescope_kernels::as_index(scores.len())).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
    let margin = match (&order[..k], order.get(k)) {
        ([.., last], Some(next)) => {
            let size = scores.iter().filter(|s| s.is_finite()).fold(f64::MIN_POSITIVE, |size, s| size.max(s.abs()));
            (scores[*last as usize] - scores[*next as usize]) / size
        }
        _ => f64::INFINITY,
    };
    order.truncate(k);
    (order, margin)
}

/// Leaves the groups with the largest sums of their two highest scores, and makes the scores of the others the lowest; how far the
/// next group is.
fn keep_groups(scores: &mut [f64], groups: usize, best: usize) -> f64 {
    if groups == best {
        return f64::INFINITY;
    }
    let size = scores.len() / groups;
    let of_group = |group: &[f64]| highest(group, 2.min(size)).0.iter().map(|&e| group[e as usize]).sum::<f64>();
    let (kept, margin) = highest(&scores.chunks_exact(size).map(of_group).collect::<Vec<_>>(), best);
    for (group, scores) in scores.chunks_exact_mut(size).enumerate() {
        if !kept.contains(&tanglescope_kernels::as_index(group)) {
            scores.fill(f64::NEG_INFINITY);
        }
    }
    margin
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn softmax(z: impl Iterator<Item = f64> + Clone) -> Vec<f64> {
    let top = z.clone().fold(f64::NEG_INFINITY, f64::max);
    let e: Vec<f64> = z.map(|z| (z - top).exp()).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

/// The softmax over logits that are not far below the highest of those that are left; zero for others.
fn softmax_of_close(z: &[f64], taken: &[u32], top: f64, tolerance: f64) -> Vec<f64> {
    let close = |(e, &z): (usize, &f64)| {
        let left = !taken.iter().any(|&taken| taken as usize == e);
        let near = (top - z) / z.abs().max(top) <= tolerance;
        if left && near { (z - top).exp() } else { 0.0 }
    };
    let e: Vec<f64> = z.iter().enumerate().map(close).collect();
    let sum: f64 = e.iter().sum();
    e.into_iter().map(|e| e / sum).collect()
}

impl Routes {
    /// The same with a factor on the weight of each expert.
    #[must_use]
    pub fn times(self, factors: &[f64]) -> Self {
        Self { factors: self.chosen.iter().map(|&e| factors[e as usize]).collect(), ..self }
    }

    /// Weight of a row's expert, by its place in `[N, k]`.
    fn weight(&self, at: usize) -> f64 {
        self.weights[at] * self.factors.get(at).unwrap_or(&1.0)
    }

    /// Sorted rows of an expert.
    pub fn of_expert(&self, expert: usize) -> std::ops::Range<usize> {
        self.offsets[expert]..self.offsets[expert + 1]
    }

    /// What was decided.
    pub fn choices(&self) -> Choices {
        let Self { experts, routing, chosen, margins, .. } = self;
        Choices { experts: *experts, per_row: routing.per_row, chosen: chosen.clone(), margins: margins.clone() }
    }

    /// First sorted row of each expert, and their number.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Row and weight of each sorted row.
    pub fn rows(&self) -> Vec<u32> {
        let k = self.routing.per_row;
        let mut rows = vec![0; self.places.len()];
        self.places
            .iter()
            .enumerate()
            .for_each(|(at, &place)| rows[place as usize] = tanglescope_kernels::as_index(at / k));
        rows
    }

    /// The sorted rows of each row's j-th expert, and its weights.
    pub fn choice(&self, j: usize) -> (Vec<u32>, Vec<f64>) {
        let k = self.routing.per_row;
        (
            self.places.iter().skip(j).step_by(k).copied().collect(),
            (j..self.weights.len()).step_by(k).map(|at| self.weight(at)).collect(),
        )
    }

    /// Backward rows over these forward rows, `index[R]`.
    pub fn backward(&self, index: &[u32]) -> BackwardRoutes {
        let k = self.routing.per_row;
        let of = |row: u32| row as usize * k..(row as usize + 1) * k;
        let experts: Vec<u32> = index.iter().flat_map(|&row| self.chosen[of(row)].iter().copied()).collect();
        let (offsets, of_row) = sorted(&experts, self.experts);
        let mut out = BackwardRoutes {
            rows: vec![0; of_row.len()],
            places: vec![0; of_row.len()],
            weights: vec![0.0; of_row.len()],
            offsets,
            of_row,
        };
        for (at, &place) in out.of_row.iter().enumerate() {
            let from = index[at / k] as usize * k + at % k;
            out.rows[place as usize] = tanglescope_kernels::as_index(at / k);
            out.places[place as usize] = self.places[from];
            out.weights[place as usize] = self.weight(from);
        }
        out
    }

    /// How each row's output changes with the factor of each expert, `[R, experts]`, from the slopes that [`vjp`](Self::vjp) takes.
    pub fn factor_terms(&self, index: &[u32], slopes: &[f64]) -> Vec<f64> {
        let (k, experts) = (self.routing.per_row, self.experts);
        let mut out = vec![0.0; index.len() * experts];
        for ((&row, slopes), out) in index.iter().zip(slopes.chunks_exact(k)).zip(out.chunks_exact_mut(experts)) {
            for (j, slope) in slopes.iter().enumerate() {
                let at = row as usize * k + j;
                out[self.chosen[at] as usize] = slope * self.weights[at];
            }
        }
        out
    }

    /// Cotangents of the logits, `[R, experts]`, from those of the weights of each backward row's experts, `slopes[R, k]`.
    pub fn vjp(&self, index: &[u32], slopes: &[f64]) -> Vec<f64> {
        let (k, experts, scale) = (self.routing.per_row, self.experts, self.routing.scale);
        let mut out = vec![0.0; index.len() * experts];
        for ((&row, slopes), out) in index.iter().zip(slopes.chunks_exact(k)).zip(out.chunks_exact_mut(experts)) {
            let of = row as usize * k..(row as usize + 1) * k;
            let (chosen, weights) = (&self.chosen[of.clone()], &self.weights[of.clone()]);
            let with_factors: Vec<f64>;
            let slopes = match self.factors.get(of) {
                None => slopes,
                Some(factors) => {
                    with_factors = slopes.iter().zip(factors).map(|(s, f)| s * f).collect();
                    &with_factors
                }
            };
            let mean: f64 = slopes.iter().zip(weights).map(|(s, w)| s * w).sum();
            match self.routing.rule {
                RoutingRule::Softmax => {
                    let p = &self.probabilities[row as usize * experts..][..experts];
                    out.iter_mut().zip(p).for_each(|(out, p)| *out = -p * mean);
                    chosen.iter().zip(slopes.iter().zip(weights)).for_each(|(&e, (s, w))| out[e as usize] += s * w);
                }
                RoutingRule::SoftmaxOfClose { .. } => {
                    let all = &self.probabilities[row as usize * k * experts..][..k * experts];
                    for (p, ((&e, w), s)) in all.chunks_exact(experts).zip(chosen.iter().zip(weights).zip(slopes)) {
                        out.iter_mut().zip(p).for_each(|(out, p)| *out -= s * w * p);
                        out[e as usize] += s * w;
                    }
                }
                RoutingRule::Sigmoid { renormalised, .. } => {
                    let s = &self.probabilities[row as usize * k..][..k];
                    let sum = if renormalised { s.iter().sum::<f64>() + LEAST_SUM } else { 1.0 };
                    let pull = if renormalised { mean } else { 0.0 };
                    for ((&e, s), slope) in chosen.iter().zip(s).zip(slopes) {
                        out[e as usize] = (scale * slope - pull) / sum * s * (1.0 - s);
                    }
                }
                RoutingRule::SoftmaxOfChosen => {
                    let of = chosen.iter().zip(slopes.iter().zip(weights));
                    of.for_each(|(&e, (s, w))| out[e as usize] = w * (s - mean / scale));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The cotangents of the logits are slopes of Σ s·w, away from ties.
        #[test]
        fn logits_have_the_slopes_of_the_weights(
            z in proptest::collection::vec(-3.0f64..3.0, 7), slopes in proptest::collection::vec(-2.0f64..2.0, 3),
            scale in 0.5f64..3.0, kind in 0usize..5,
        ) {
            let sigmoid = |renormalised| RoutingRule::Sigmoid { renormalised, groups: 1, best_groups: 1 };
            let close = RoutingRule::SoftmaxOfClose { tolerance: 0.9 };
            let rule = [RoutingRule::SoftmaxOfChosen, RoutingRule::Softmax, sigmoid(true), sigmoid(false), close][kind];
            let routing = Routing { per_row: 3, rule, scale };
            let mut sorted = z.clone();
            sorted.sort_by(f64::total_cmp);
            prop_assume!(sorted.windows(2).all(|pair| pair[1] - pair[0] > 1e-3));
            let value = |z: &[f64]| -> f64 {
                let routes = routing.routes(z, 7, None);
                slopes.iter().zip(&routes.weights).map(|(s, w)| s * w).sum()
            };
            let got = routing.routes(&z, 7, None).vjp(&[0], &slopes);
            for i in 0..7 {
                let moved = |by: f64| {
                    let mut z = z.clone();
                    z[i] += by;
                    value(&z)
                };
                let want = (moved(1e-6) - moved(-1e-6)) / 2e-6;
                // a difference of step 1e-6 is right to 1e-12 times the third derivative, and to rounding over the step
                prop_assert!((got[i] - want).abs() <= 1e-8, "{i}: {} {want}", got[i]);
            }
        }
    }

    /// At a tie the choice changes and the weights jump: the gradient is that of the first of the two, and of that choice alone.
    #[test]
    fn at_a_tie_the_first_is_chosen() {
        let routing = Routing { per_row: 1, rule: RoutingRule::Softmax, scale: 1.0 };
        let at = |z: [f64; 3]| routing.routes(&z, 3, None).chosen[0];
        assert_eq!([at([1.0, 1.0, 0.0]), at([1.0, 1.0 + 1e-9, 0.0]), at([1.0, 1.0 - 1e-9, 0.0])], [0, 1, 0]);
        let margin = |z: [f64; 3]| routing.routes(&z, 3, None).choices().margins[0];
        assert_eq!(
            [margin([1.0, 1.0, 0.0]), margin([-4.0, 1.0, 3.0])].map(f64::to_bits),
            [0.0f64, 0.5].map(f64::to_bits)
        );
    }

    /// A correction changes the choice and not the weights; experts of a group that is not among the best are not chosen.
    #[test]
    fn corrections_and_groups_decide_the_choice() {
        let rule = RoutingRule::Sigmoid { renormalised: false, groups: 2, best_groups: 1 };
        let routing = Routing { per_row: 1, rule, scale: 1.0 };
        let z = [3.0, -9.0, 1.0, 1.0];
        let of = |correction: Option<&[f64]>| routing.routes(&z, 4, correction);
        // 0.95 + 0.00 against 0.73 + 0.73
        assert_eq!(of(None).chosen, [2]);
        let corrected = of(Some(&[0.0, 0.6, 0.0, 0.0]));
        assert_eq!(corrected.chosen, [0]);
        assert_eq!(corrected.weights[0].to_bits(), sigmoid(3.0).to_bits());
    }

    #[test]
    fn rows_are_sorted_by_expert_and_found_again() {
        let routing = Routing { per_row: 2, rule: RoutingRule::SoftmaxOfChosen, scale: 1.0 };
        let routes = routing.routes(&[3.0, 2.0, 1.0, 0.0, 1.0, 5.0, 4.0, 0.0, 3.0], 3, None);
        assert_eq!(routes.chosen, [0, 1, 2, 1, 0, 2]);
        assert_eq!(routes.offsets, [0, 2, 4, 6]);
        assert_eq!(routes.rows(), [0, 2, 0, 1, 1, 2]);
        let backward = routes.backward(&[2, 0, 2]);
        assert_eq!(backward.offsets, [0, 3, 4, 6]);
        assert_eq!(backward.rows, [0, 1, 2, 1, 0, 2]);
        assert_eq!(backward.places, [1, 0, 1, 2, 5, 5]);
    }
}
