//! Quantiles, intervals and correlations, as numpy and scipy compute them.
use rayon::slice::ParallelSliceMut;
use statrs::function::beta::beta_reg;
use statrs::function::erf::erfc;
use std::borrow::Cow;

/// Above this many values the ends of an interval are order statistics of the normal approximation.
pub(crate) const EXACT_UP_TO: usize = 100_000;

/// The 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// Where some numbers lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// Numbers.
    pub count: usize,
    /// Mean.
    pub mean: f64,
    /// A quarter, the median and three quarters, interpolated linearly between neighbours (numpy's default).
    pub quartiles: [f64; 3],
    /// 95 % interval of the median.
    pub interval: [f64; 2],
}

impl Spread {
    /// Of numbers in any order, none of them NaN; `None` of nothing.
    pub(crate) fn of(mut values: Vec<f64>) -> Option<Self> {
        let order = Order::of(values.len())?;
        let mean = mean(&values);
        put(&mut values, 0, &order.ranks());
        Some(order.spread(mean, |rank| values[rank]))
    }
}

/// Where a spread looks among so many sorted numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Order {
    /// Numbers.
    count: usize,
    /// Ranks, from 0, of the ends of the median's interval.
    interval: [usize; 2],
}

/// The shares below which the quartiles lie.
const QUARTERS: [f64; 3] = [0.25, 0.5, 0.75];

impl Order {
    /// `None` of nothing.
    pub(crate) fn of(count: usize) -> Option<Self> {
        (count > 0).then(|| Self { count, interval: median_interval(count) })
    }

    /// The ranks at which it looks, in order.
    pub(crate) fn ranks(self) -> Vec<usize> {
        let quartiles = QUARTERS.into_iter().flat_map(|share| between(self.count, share).0);
        let mut ranks: Vec<usize> = quartiles.chain(self.interval).collect();
        ranks.sort_unstable();
        ranks
    }

    /// The spread of numbers with this mean, each of which can be had by its rank.
    pub(crate) fn spread(self, mean: f64, at: impl Fn(usize) -> f64) -> Spread {
        let quartiles = QUARTERS.map(|share| quantile_by_rank(self.count, share, &at));
        Spread { count: self.count, mean, quartiles, interval: self.interval.map(&at) }
    }
}

/// Puts the values of some ranks, which are in order and counted from `first`, at their places; the others stay in no order.
fn put(values: &mut [f64], first: usize, ranks: &[usize]) {
    let Some(&rank) = ranks.get(ranks.len() / 2) else { return };
    let (before, _, after) = values.select_nth_unstable_by(rank - first, f64::total_cmp);
    let (lower, rest) = ranks.split_at(ranks.partition_point(|of| *of < rank));
    let higher = &rest[rest.partition_point(|of| *of == rank)..];
    rayon::join(|| put(before, first, lower), || put(after, rank + 1, higher));
}

/// The mean, summed in pieces so that the rounding of millions of terms stays small.
fn mean(values: &[f64]) -> f64 {
    let sums: f64 = values.chunks(1024).map(|chunk| chunk.iter().sum::<f64>()).sum();
    sums / values.len() as f64
}

/// The value below which a share of sorted values lies, interpolated linearly.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    quantile_by_rank(sorted.len(), share, |rank| sorted[rank])
}

/// The same of `n` values, each of which can be had by its rank.
fn quantile_by_rank(n: usize, share: f64, value: impl Fn(usize) -> f64) -> f64 {
    let (ranks, part) = between(n, share);
    let [low, high] = ranks.map(value);
    let between = low + (high - low) * part;
    // there is nothing between two infinities, and no part of the way to one
    if between.is_nan() { low } else { between }
}

/// The ranks between which a share of `n` values ends, and how far from the one to the other.
fn between(n: usize, share: f64) -> ([usize; 2], f64) {
    let at = share * (n - 1) as f64;
    let rank = floor(at);
    ([rank, (rank + 1).min(n - 1)], at - rank as f64)
}

/// The median of numbers in any order; NaN of nothing.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let (middle, _) = between(values.len(), 0.5);
    put(&mut values, 0, &middle);
    quantile(&values, 0.5)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) fn floor(x: f64) -> usize {
    x.max(0.0) as usize
}

/// The ranks of the ends of the 95 % percentile-bootstrap interval of the median of `n` values.
///
/// Its ends are those that infinitely many resamples would give, so nothing is drawn: the `k`-th smallest of `n` draws with
/// replacement is at most the `j`-th smallest value with probability P(Bin(n, j/n) ≥ k) = `I_{j/n}(k, n−k+1)` (Efron 1982,
/// section 10.3). An even `n` has two middle draws; the lower end is of the lower, the upper end of the upper one. Above
/// [`EXACT_UP_TO`] values the ends are the order statistics n/2 ± 1.96 √n/2.
fn median_interval(n: usize) -> [usize; 2] {
    if n > EXACT_UP_TO {
        let (middle, half) = (n as f64 / 2.0, Z * (n as f64).sqrt() / 2.0);
        return [floor(middle - half), floor(middle + half).min(n - 1)];
    }
    // P(the k-th smallest draw is at most the j-th smallest value), both from 1
    let at_most = |k: usize, j: usize| match j == n {
        true => 1.0,
        false => beta_reg(k as f64, (n - k + 1) as f64, j as f64 / n as f64),
    };
    let end = |k: usize, share: f64| {
        let ranks: Vec<usize> = (1..=n).collect();
        ranks.partition_point(|&j| at_most(k, j) < share).min(n - 1)
    };
    [end(n.div_ceil(2), 0.025), end(n / 2 + 1, 0.975)]
}

/// The 95 % interval of a share, by Wilson's score.
#[must_use]
pub fn wilson(hits: usize, of: usize) -> [f64; 2] {
    let (n, p) = (of as f64, hits as f64 / of as f64);
    let centre = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let end = |x: f64| (x / (1.0 + Z * Z / n)).clamp(0.0, 1.0);
    [end(centre - half), end(centre + half)]
}

/// The ranks of some numbers: from 1, of equal numbers the mean of theirs.
pub(crate) struct Ranks {
    /// Of each number twice its rank, which is whole; 0 for what has none.
    twice: Vec<u32>,
    /// Numbers that have a rank.
    count: usize,
}

impl Ranks {
    /// Of numbers, of which NaN has none; `None` of more than 2³¹ − 1.
    pub(crate) fn of(values: Vec<f64>) -> Option<Self> {
        // −0 and 0 are equal
        let all = values.len();
        let known = values.into_iter().enumerate().filter(|(_, x)| !x.is_nan()).map(|(at, x)| (x + 0.0, at));
        let mut order: Vec<(f64, usize)> = known.collect();
        order.par_sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (mut twice, mut before) = (vec![0; all], 0);
        for tied in order.chunk_by(|a, b| a.0.total_cmp(&b.0).is_eq()) {
            let rank = u32::try_from(2 * before + tied.len() + 1).ok()?;
            tied.iter().for_each(|(_, at)| twice[*at] = rank);
            before += tied.len();
        }
        Some(Self { twice, count: before })
    }

    /// The same without those whose partner has no rank; nothing is sorted again.
    fn among(&self, partners: &Self) -> Cow<'_, [u32]> {
        let has_both = |at: &usize| self.twice[*at] > 0 && partners.twice[*at] > 0;
        let both = || (0..self.twice.len()).filter(has_both);
        if both().count() == self.count {
            return Cow::Borrowed(&self.twice);
        }
        // first how many have each rank, then which they have now
        let mut now = vec![0u32; 2 * self.count + 1];
        let place = |at: usize| self.twice[at] as usize;
        both().for_each(|at| now[place(at)] += 1);
        let mut before = 0;
        for tied in now.iter_mut().filter(|tied| **tied > 0) {
            let new = 2 * before + *tied + 1;
            before += *tied;
            *tied = new;
        }
        Cow::Owned((0..self.twice.len()).map(|at| if has_both(&at) { now[place(at)] } else { 0 }).collect())
    }
}

/// Spearman's rank correlation and its 95 % interval, by Fisher's transform with the standard error of Bonett and Wright
/// (2000), behind how many have both numbers; `None` for fewer than four, or where one side does not vary.
pub(crate) fn spearman(a: &Ranks, b: &Ranks) -> (usize, Option<[f64; 3]>) {
    let (a, b) = (a.among(b), b.among(a));
    let both = || a.iter().zip(b.iter()).filter(|(a, b)| **a > 0 && **b > 0);
    let n = both().count();
    if n < 4 {
        return (n, None);
    }
    let middle = (n + 1) as f64;
    let [mut aa, mut ab, mut bb] = [0.0; 3];
    for (a, b) in both() {
        let (a, b) = (f64::from(*a) - middle, f64::from(*b) - middle);
        aa += a * a;
        ab += a * b;
        bb += b * b;
    }
    let size = aa.sqrt() * bb.sqrt();
    if size <= 0.0 {
        return (n, None);
    }
    let rho = (ab / size).clamp(-1.0, 1.0);
    let half = Z * ((1.0 + rho * rho / 2.0) / (n - 3) as f64).sqrt();
    (n, Some([rho, (rho.atanh() - half).tanh(), (rho.atanh() + half).tanh()]))
}

/// Two-sided p-value of the sign test: that of `n` signs this many or fewer are of the rarer kind, by chance.
pub(crate) fn sign_test(rises: usize, falls: usize) -> f64 {
    let (n, rare) = (rises + falls, rises.min(falls));
    if n == 0 || 2 * rare == n {
        return 1.0;
    }
    if n > EXACT_UP_TO {
        // the normal approximation with its correction for continuity
        let z = (n as f64 / 2.0 - rare as f64 - 0.5) / (n as f64).sqrt() * 2.0;
        return erfc(z / std::f64::consts::SQRT_2);
    }
    // 2 P(Bin(n, 1/2) ≤ rare) = 2 (1 − I_{1/2}(rare + 1, n − rare))
    (2.0 * beta_reg((n - rare) as f64, (rare + 1) as f64, 0.5)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::{Order, Ranks, Spread, sign_test, spearman, wilson};
    use proptest::prelude::{prop, prop_assert_eq, proptest};
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_interval_is_where_resampling_ends() {
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let values: Vec<f64> = (0..51).map(|_| random.random::<f64>()).collect();
        let mut medians: Vec<f64> =
            (0..20_000).map(|_| super::median((0..51).map(|_| values[random.random_range(0..51)]).collect())).collect();
        medians.sort_by(f64::total_cmp);
        let share = |x: f64| medians.iter().filter(|m| **m <= x).count() as f64 / 20_000.0;
        let [low, high] = Spread::of(values).unwrap().interval;
        // the first values at which the shares are reached; 20,000 draws give a share to 0.0011 (one standard deviation)
        assert!(share(low) >= 0.025 - 0.004 && share(low.next_down()) <= 0.025 + 0.004);
        assert!(share(high) >= 0.975 - 0.004 && share(high.next_down()) <= 0.975 + 0.004);
    }

    #[test]
    fn above_the_limit_the_interval_hardly_moves() {
        let values = |n: usize| (0..n).map(|i| i as f64 / n as f64).collect::<Vec<f64>>();
        let [below, above] = [100_000, 100_001].map(|n| Spread::of(values(n)).unwrap().interval);
        assert!((below[0] - above[0]).abs() < 5e-5 && (below[1] - above[1]).abs() < 5e-5, "{below:?} {above:?}");
    }

    proptest! {
        /// Ranks among those that have a partner are the ranks of these alone.
        #[test]
        fn what_has_no_partner_does_not_count(
            values in prop::collection::vec((prop::option::of(-3i32..3), prop::option::of(-3i32..3)), 0..40),
        ) {
            let column = |of: &[(Option<i32>, Option<i32>)], second: bool| {
                let value = |(a, b): &(Option<i32>, Option<i32>)| if second { *b } else { *a }.map_or(f64::NAN, f64::from);
                let values: Vec<f64> = of.iter().map(value).collect();
                Ranks::of(values).unwrap()
            };
            let whole: Vec<_> = values.iter().copied().filter(|(a, b)| a.is_some() && b.is_some()).collect();
            prop_assert_eq!(spearman(&column(&values, false), &column(&values, true)), spearman(&column(&whole, false), &column(&whole, true)));
        }

        /// What is known of ranks alone is what is known of all values.
        #[test]
        fn a_spread_looks_only_at_its_ranks(values in prop::collection::vec(-1.0f64..1.0, 1..200)) {
            let mut sorted = values.clone();
            sorted.sort_by(f64::total_cmp);
            let order = Order::of(values.len()).unwrap();
            let ranks = order.ranks();
            let known = |rank| if ranks.contains(&rank) { sorted[rank] } else { f64::NAN };
            let spread = Spread::of(values).unwrap();
            prop_assert_eq!(order.spread(spread.mean, known), spread);
        }
    }

    #[test]
    fn one_number_is_its_own_spread_and_nothing_has_none() {
        let one = Spread::of(vec![3.0]).unwrap();
        assert_eq!((one.mean, one.quartiles, one.interval), (3.0, [3.0; 3], [3.0; 2]));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn known_values_come_out() {
        let ranks = |values: &[f64]| Ranks::of(values.to_vec()).unwrap();
        // scipy.stats.spearmanr([1,2,3,4,5], [5,6,7,8,7]) = 0.820782681668123
        let (count, found) = spearman(&ranks(&[1.0, 2.0, 3.0, 4.0, 5.0]), &ranks(&[5.0, 6.0, 7.0, 8.0, 7.0]));
        let [rho, low, high] = found.unwrap();
        assert!(count == 5 && (rho - 0.820_782_681_668_123).abs() < 1e-14 && low < rho && rho < high && high <= 1.0);
        assert_eq!(spearman(&ranks(&[1.0; 5]), &ranks(&[5.0, 6.0, 7.0, 8.0, 7.0])), (5, None));
        // scipy.stats.binomtest(3, 10).pvalue = 0.34375
        assert!((sign_test(3, 7) - 0.34375).abs() < 1e-13);
        assert_eq!((sign_test(0, 0), sign_test(4, 4)), (1.0, 1.0));
        // scipy.stats.binomtest(99_500, 200_000).pvalue; the normal approximation is off by O(1/n)
        assert!((sign_test(99_500, 100_500) - 0.025_493_890_667).abs() < 5e-6, "{}", sign_test(99_500, 100_500));
        // scipy.stats.binomtest(3, 10).proportion_ci(method="wilson")
        let [low, high] = wilson(3, 10);
        assert!(
            (low - 0.107_791_267_406_301).abs() < 1e-13 && (high - 0.603_221_852_538_855).abs() < 1e-13,
            "{low} {high}"
        );
    }
}
