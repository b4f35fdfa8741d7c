//! What pairs do to each other under an objective, from the inner products of their gradients (docs/interference.md).
//!
//! A step on a batch B of pairs changes the log-probability i of pair a, to first order and for each unit of η, by
//! `1/|B| Σ_{b∈B} c_i(a, b)` with `c_i(a, b) = d_w,b ⟨g_a,i, g_b,w⟩ − d_l,b ⟨g_a,i, g_b,l⟩`: an own part (b = a), and that of others.
use std::collections::HashMap;
use tanglescope_records::tables::interference::{BatchEffect, Couple, Drag, PairEffect, SizeEffect};

/// The coefficients of one pair under an objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Number of the pair.
    pub pair: u64,
    /// d_w and d_l.
    pub d: [f64; 2],
}

/// Pairs that are listed for each pair, either way.
const LISTED: usize = 10;

/// What a pair has been found to get from others, and to do to them.
#[derive(Clone, Debug, Default)]
struct Sums {
    own: [f64; 2],
    others: [f64; 2],
    squares: [f64; 2],
    harm: f64,
    conflicts: usize,
    /// Others and what they do to this pair's chosen, the most negative first.
    dragged_by: Vec<(u64, f64)>,
    /// Others and what this pair does to their chosen.
    drags: Vec<(u64, f64)>,
}

/// What the pairs of a data set do to each other under one objective, or to those of another data set, as couples of them come by.
#[derive(Clone, Debug)]
pub struct Effects {
    objective: String,
    /// The pairs that are stepped on, their places, and their coefficients.
    sources: (Vec<u64>, HashMap<u64, usize>, Vec<[f64; 2]>),
    /// The pairs that are moved: the same, or those of the other data set.
    targets: (HashMap<u64, usize>, Vec<u64>),
    /// Whether both are the same.
    same: bool,
    /// Of the targets; what a source does to others is with the target of its place.
    sums: Vec<Sums>,
    /// Batches that each pair is in, by its place.
    batches_of: Vec<Vec<usize>>,
    sizes: Vec<usize>,
    /// Of each batch and pair: the own part and that of others.
    of_batches: Vec<Vec<[[f64; 2]; 2]>>,
}

/// What a step on `by` alone does to `of`: `[chosen, rejected]`, from products `[of w · by w, of w · by l, of l · by w, of l · by l]`.
fn contribution([ww, wl, lw, ll]: [f64; 4], [d_w, d_l]: [f64; 2]) -> [f64; 2] {
    [d_w * ww - d_l * wl, d_w * lw - d_l * ll]
}

fn note(list: &mut Vec<(u64, f64)>, other: u64, change: f64) {
    let at = list.partition_point(|(_, there)| *there <= change);
    if change < 0.0 && at < LISTED {
        list.insert(at, (other, change));
        list.truncate(LISTED);
    }
}

fn places(pairs: &[u64]) -> HashMap<u64, usize> {
    pairs.iter().enumerate().map(|(at, pair)| (*pair, at)).collect()
}

impl Effects {
    /// Of an objective by its name, the coefficients of all pairs, and some batches of pairs; on the pairs of another data set where there is one.
    #[must_use]
    pub fn new(objective: &str, coefficients: &[Coefficients], batches: &[Vec<u64>], others: Option<&[u64]>) -> Self {
        let sources: Vec<u64> = coefficients.iter().map(|of| of.pair).collect();
        let place = places(&sources);
        let mut batches_of = vec![Vec::new(); sources.len()];
        for (number, batch) in batches.iter().enumerate() {
            batch.iter().filter_map(|pair| place.get(pair)).for_each(|&at| batches_of[at].push(number));
        }
        let targets = others.map_or_else(|| sources.clone(), <[u64]>::to_vec);
        Self {
            objective: objective.to_owned(),
            sums: vec![Sums::default(); targets.len()],
            batches_of,
            sizes: batches.iter().map(Vec::len).collect(),
            of_batches: vec![vec![[[0.0; 2]; 2]; targets.len()]; batches.len()],
            sources: (sources, place, coefficients.iter().map(|of| of.d).collect()),
            same: others.is_none(),
            targets: (places(&targets), targets),
        }
    }

    /// Adds a couple of pairs: of one data set each comes once, a pair with itself too; of two, a pair of the first and one of the second.
    pub fn add(&mut self, couple: &Couple) {
        let [ww, wl, lw, ll] = couple.inner;
        if self.same {
            self.add_one(couple.a, couple.b, couple.inner);
        }
        if !self.same || couple.a != couple.b {
            self.add_one(couple.b, couple.a, [ww, lw, wl, ll]);
        }
    }

    /// What a step on one pair does to another, by their numbers.
    fn add_one(&mut self, moved: u64, by: u64, inner: [f64; 4]) {
        let (Some(&a), Some(&b)) = (self.targets.0.get(&moved), self.sources.1.get(&by)) else { return };
        let (change, own) = (contribution(inner, self.sources.2[b]), self.same && a == b);
        for &batch in &self.batches_of[b] {
            let sum = &mut self.of_batches[batch][a][usize::from(!own)];
            sum.iter_mut().zip(change).for_each(|(sum, change)| *sum += change);
        }
        if own {
            self.sums[a].own = change;
            return;
        }
        let of = &mut self.sums[a];
        of.others.iter_mut().zip(change).for_each(|(sum, change)| *sum += change);
        of.squares.iter_mut().zip(change).for_each(|(sum, change)| *sum += change * change);
        note(&mut of.dragged_by, by, change[0]);
        if self.same {
            // ⟨d_w,a g_a,w − d_l,a g_a,l, the same of b⟩
            let [d_w, d_l] = self.sources.2[a];
            of.conflicts += usize::from(d_w * change[0] - d_l * change[1] < 0.0);
            let source = &mut self.sums[b];
            source.harm += change[0];
            note(&mut source.drags, moved, change[0]);
        }
    }

    /// How many others there are to a pair.
    fn others(&self) -> f64 {
        let sources = self.sources.0.len();
        if self.same { (sources.max(2) - 1) as f64 } else { sources.max(1) as f64 }
    }

    /// A row a pair.
    #[must_use]
    pub fn pairs(&self) -> Vec<PairEffect> {
        let others = self.others();
        let row = |(of, &pair): (&Sums, &u64)| {
            let mean = of.others.map(|sum| sum / others);
            let spread = [0, 1].map(|i| (of.squares[i] / others - mean[i] * mean[i]).max(0.0).sqrt());
            PairEffect {
                pair,
                objective: self.objective.clone(),
                own: of.own,
                others: mean,
                spread,
                turned_at: [0, 1].map(|i| turned_at(of.own[i], mean[i], self.sources.0.len())),
                harm: self.same.then_some(of.harm / others),
                conflicts: self.same.then_some(of.conflicts as f64 / others),
            }
        };
        self.sums.iter().zip(&self.targets.1).map(row).collect()
    }

    /// For batches of 1, 2, 4 … pairs and of all of them, drawn at random: what a pair in one gets on average.
    #[must_use]
    pub fn sizes(&self) -> Vec<SizeEffect> {
        let n = self.sums.len();
        if !self.same || n == 0 {
            return Vec::new();
        }
        let mut sizes: Vec<usize> = std::iter::successors(Some(1), |b| Some(2 * b)).take_while(|b| *b < n).collect();
        sizes.push(n);
        let others = self.others();
        let row = |size: usize| {
            let (b, more) = (size as f64, (size - 1) as f64);
            let mean = |f: &dyn Fn(&Sums) -> f64| self.sums.iter().map(f).sum::<f64>() / n as f64;
            let total = |of: &Sums, i: usize| of.own[i] + more * of.others[i] / others;
            SizeEffect {
                objective: self.objective.clone(),
                batch_size: size as u64,
                own: [0, 1].map(|i| mean(&|of| of.own[i] / b)),
                others: [0, 1].map(|i| mean(&|of| more * of.others[i] / others / b)),
                falls: [0, 1].map(|i| mean(&|of| f64::from(u8::from(total(of, i) < 0.0)))),
                turned: [0, 1].map(|i| mean(&|of| f64::from(u8::from(total(of, i) * of.own[i] < 0.0)))),
            }
        };
        sizes.into_iter().map(row).collect()
    }

    /// The pairs that pull down each pair's chosen response most, and those whose it pulls down most.
    #[must_use]
    pub fn drags(&self) -> Vec<Drag> {
        let mut out = Vec::new();
        for (of, &pair) in self.sums.iter().zip(&self.targets.1) {
            for (direction, list) in [("dragged_by", &of.dragged_by), ("drags", &of.drags)] {
                let row = |&(other, change): &(u64, f64)| Drag {
                    pair,
                    objective: self.objective.clone(),
                    direction,
                    other,
                    change,
                };
                out.extend(list.iter().map(row));
            }
        }
        out
    }

    /// A row a batch and pair: of the pairs in it the own part too.
    #[must_use]
    pub fn batches(&self) -> Vec<BatchEffect> {
        let mut out = Vec::new();
        for (batch, (of_batch, size)) in self.of_batches.iter().zip(&self.sizes).enumerate() {
            for (at, (&[own, others], &pair)) in of_batch.iter().zip(&self.targets.1).enumerate() {
                let part = |sums: [f64; 2]| sums.map(|sum| sum / *size as f64);
                out.push(BatchEffect {
                    batch: batch as u64,
                    objective: self.objective.clone(),
                    pair,
                    member: self.same && self.batches_of[at].contains(&batch),
                    own: part(own),
                    others: part(others),
                });
            }
        }
        out
    }
}

/// The size of a random batch from which on others turn the sign of what a pair gets from itself; none up to n.
fn turned_at(own: f64, others: f64, n: usize) -> Option<u64> {
    if own * others >= 0.0 {
        return None;
    }
    // own + (B − 1)·others changes its sign where B − 1 is beyond −own/others
    let beyond = (-own / others).floor() + 2.0;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a count below n
    (beyond <= n as f64).then_some(beyond as u64)
}

#[cfg(test)]
mod tests {
    use super::{Coefficients, Effects};
    use proptest::prelude::*;
    use tanglescope_records::tables::interference::Couple;

    /// Gradients of chosen and rejected of some pairs, three entries each, and coefficients.
    fn pairs() -> impl Strategy<Value = Vec<([[f64; 3]; 2], [f64; 2])>> {
        let entry = || -2.0f64..2.0;
        let gradient = move || [entry(), entry(), entry()];
        proptest::collection::vec(([gradient(), gradient()], [0.1f64..1.0, 0.1f64..1.0]), 2..8)
    }

    fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    proptest! {
        /// A step on a batch, taken along the mean of its pairs' gradients, against the sum of own part and others; and means over all batches of
        /// a size against what is said of random ones.
        #[test]
        fn own_and_others_are_the_step_of_the_batch(pairs in pairs(), pick in any::<u32>()) {
            let n = pairs.len();
            let batch: Vec<u64> = (0..n as u64).filter(|at| pick >> at & 1 == 1).collect();
            prop_assume!(!batch.is_empty());
            let coefficients: Vec<Coefficients> =
                pairs.iter().enumerate().map(|(pair, (_, d))| Coefficients { pair: pair as u64, d: *d }).collect();
            let mut effects = Effects::new("dpo", &coefficients, std::slice::from_ref(&batch), None);
            for b in 0..n {
                for a in 0..=b {
                    let ([aw, al], [bw, bl]) = (pairs[a].0, pairs[b].0);
                    let inner = [dot(&aw, &bw), dot(&aw, &bl), dot(&al, &bw), dot(&al, &bl)];
                    effects.add(&Couple { a: a as u64, b: b as u64, inner });
                }
            }
            let direction = |of: &[u64]| {
                let mut sum = [0.0; 3];
                for &b in of {
                    let ([w, l], [d_w, d_l]) = pairs[usize::try_from(b).unwrap()];
                    (0..3).for_each(|e| sum[e] += (d_w * w[e] - d_l * l[e]) / of.len() as f64);
                }
                sum
            };
            let step = direction(&batch);
            for row in effects.batches() {
                let at = usize::try_from(row.pair).unwrap();
                prop_assert_eq!(row.member, batch.contains(&row.pair));
                for i in 0..2 {
                    let want = dot(&pairs[at].0[i], &step);
                    prop_assert!((row.own[i] + row.others[i] - want).abs() < 1e-12);
                    prop_assert!(row.member || row.own[i] == 0.0);
                }
            }
            // all pairs together are one batch
            let (all, sizes) = (direction(&(0..n as u64).collect::<Vec<_>>()), effects.sizes());
            let last = sizes.last().unwrap();
            prop_assert_eq!(last.batch_size, n as u64);
            for i in 0..2 {
                let mean = pairs.iter().map(|(g, _)| dot(&g[i], &all)).sum::<f64>() / n as f64;
                prop_assert!((last.own[i] + last.others[i] - mean).abs() < 1e-12);
            }
            // a filter by harm takes away what pulls the others' chosen down
            let rows = effects.pairs();
            let harm: f64 = rows.iter().map(|row| row.harm.unwrap()).sum();
            let others: f64 = rows.iter().map(|row| row.others[0]).sum();
            prop_assert!((harm - others).abs() < 1e-11);
        }
    }

    #[test]
    fn others_turn_a_sign_from_a_batch_size_on() {
        let d = [1.0, 0.0];
        let coefficients: Vec<Coefficients> = (0..5).map(|pair| Coefficients { pair, d }).collect();
        let mut effects = Effects::new("sft", &coefficients, &[], None);
        for b in 0..5u64 {
            for a in 0..=b {
                effects.add(&Couple { a, b, inner: [if a == b { 1.0 } else { -0.4 }, 0.0, 0.0, 0.0] });
            }
        }
        let row = &effects.pairs()[0];
        // 1 − 0.4·3 is the first below zero
        assert_eq!(row.turned_at, [Some(4), None]);
        assert_eq!((row.harm, row.conflicts), (Some(-0.4), Some(1.0)));
        assert_eq!(effects.drags().len(), 5 * 8);
        let falls: Vec<f64> = effects.sizes().iter().map(|size| size.falls[0]).collect();
        assert_eq!(falls, [0.0, 0.0, 1.0, 1.0]);
    }
}
