//! Quantiles, intervals and correlations, as numpy and scipy compute them.
use rayon::slice::ParallelSliceMut;
use statrs::function::beta::beta_reg;
use statrs::function::erf::erfc;

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
        if values.is_empty() {
            return None;
        }
        values.par_sort_unstable_by(f64::total_cmp);
        let mean = mean(&values);
        let quartiles = [0.25, 0.5, 0.75].map(|share| quantile(&values, share));
        Some(Self { count: values.len(), mean, quartiles, interval: median_interval(&values) })
    }
}

/// The mean, summed in pieces so that the rounding of millions of terms stays small.
fn mean(values: &[f64]) -> f64 {
    let sums: f64 = values.chunks(1024).map(|chunk| chunk.iter().sum::<f64>()).sum();
    sums / values.len() as f64
}

/// The value below which a share of sorted values lies, interpolated linearly.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let low = floor(at);
    let high = (low + 1).min(sorted.len() - 1);
    let between = sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64);
    // there is nothing between two infinities, and no part of the way to one
    if between.is_nan() { sorted[low] } else { between }
}

/// The median of numbers in any order; NaN of nothing.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    if values.is_empty() { f64::NAN } else { quantile(&values, 0.5) }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn floor(x: f64) -> usize {
    x.max(0.0).floor() as usize
}

/// The 95 % percentile-bootstrap interval of the median of sorted values.
///
/// Its ends are those that infinitely many resamples would give, so nothing is drawn: the `k`-th smallest of `n` draws with
/// replacement is at most the `j`-th smallest value with probability P(Bin(n, j/n) ≥ k) = `I_{j/n}(k, n−k+1)` (Efron 1982,
/// section 10.3). An even `n` has two middle draws; the lower end is of the lower, the upper end of the upper one. Above
/// [`EXACT_UP_TO`] values the ends are the order statistics n/2 ± 1.96 √n/2.
fn median_interval(sorted: &[f64]) -> [f64; 2] {
    let n = sorted.len();
    if n > EXACT_UP_TO {
        let (middle, half) = (n as f64 / 2.0, Z * (n as f64).sqrt() / 2.0);
        return [sorted[floor(middle - half)], sorted[floor(middle + half).min(n - 1)]];
    }
    // P(the k-th smallest draw is at most the j-th smallest value), both from 1
    let at_most = |k: usize, j: usize| match j == n {
        true => 1.0,
        false => beta_reg(k as f64, (n - k + 1) as f64, j as f64 / n as f64),
    };
    let end = |k: usize, share: f64| {
        let ranks: Vec<usize> = (1..=n).collect();
        sorted[ranks.partition_point(|&j| at_most(k, j) < share).min(n - 1)]
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

/// Ranks from 1, of equal values the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    // −0 and 0 are equal
    let compare = |&a: &usize, &b: &usize| (values[a] + 0.0).total_cmp(&(values[b] + 0.0));
    order.par_sort_unstable_by(compare);
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for tied in order.chunk_by(|a, b| compare(a, b).is_eq()) {
        let rank = before as f64 + (tied.len() + 1) as f64 / 2.0;
        tied.iter().for_each(|&i| ranks[i] = rank);
        before += tied.len();
    }
    ranks
}

/// Spearman's rank correlation and its 95 % interval, by Fisher's transform with the standard error of Bonett and Wright
/// (2000); `None` for fewer than four pairs, or where one side does not vary.
pub(crate) fn spearman(a: &[f64], b: &[f64]) -> Option<[f64; 3]> {
    let n = a.len();
    if n < 4 {
        return None;
    }
    let (a, b) = (ranks(a), ranks(b));
    let middle = (n + 1) as f64 / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - middle) * (b - middle)).sum::<f64>();
    let size = product(&a, &a).sqrt() * product(&b, &b).sqrt();
    if size <= 0.0 {
        return None;
    }
    let rho = (product(&a, &b) / size).clamp(-1.0, 1.0);
    let half = Z * ((1.0 + rho * rho / 2.0) / (n - 3) as f64).sqrt();
    Some([rho, (rho.atanh() - half).tanh(), (rho.atanh() + half).tanh()])
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
    use super::{Spread, sign_test, spearman, wilson};
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

    #[test]
    fn one_number_is_its_own_spread_and_nothing_has_none() {
        let one = Spread::of(vec![3.0]).unwrap();
        assert_eq!((one.mean, one.quartiles, one.interval), (3.0, [3.0; 3], [3.0; 2]));
        assert_eq!(Spread::of(Vec::new()), None);
    }

    #[test]
    fn known_values_come_out() {
        // scipy.stats.spearmanr([1,2,3,4,5], [5,6,7,8,7]) = 0.820782681668123
        let [rho, low, high] = spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]).unwrap();
        assert!((rho - 0.820_782_681_668_123).abs() < 1e-14 && low < rho && rho < high && high <= 1.0);
        assert_eq!(spearman(&[1.0; 5], &[5.0, 6.0, 7.0, 8.0, 7.0]), None);
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
