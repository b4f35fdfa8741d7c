//! Which of the exact Gram reductions of a linear map is cheapest, by counted operations and bytes.
//!
//! With `R` backward rows over `N` forward rows, `K` cotangents, and a parameter `[m, n]`, they are formed in squares of
//! `T × T` values, so that a row is read once for every square of the other side:
//!
//! - *tile* forms each cotangent's gradient tile by tile: `2·R·m·n` operations for the products `δᵀx` and `K(K+1)·m·n` for
//!   the inner products of the tiles; it reads `2·R·m·n/T` values;
//! - *gram* forms `δ·δᵀ` over the backward rows, the lower half only, and multiplies it with `x·xᵀ` in place:
//!   `R(R+1)·(m+1)` operations and `R²·m/T` values, and `N(N+1)·n` operations and `N²·n/T` values for `x·xᵀ` over the
//!   forward rows, once for all parameters that share the input.
//!
//! - *triangle* is *tile* over `L[N, w]` in the place of x, w the lesser of N and n: the lower triangular factor of `x = L·Q`, whose Q has orthonormal rows,
//!   so that `δᵀx` and `δᵀL` have the same inner products. Row r of a set has no more than r + 1 values there. Factorising takes
//!   `2·w²·(max(N, n) − w/3)` operations in f64, once for all parameters that share the input.
//!
//! A reduction takes as long as the slower of its operations and its bytes, at the two [`Rates`] of the device.
use crate::{DType, RowSet};
use std::ops::{Add, AddAssign, Mul};

/// A Gram reduction of a linear map (docs/mathematics.md, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Gradient tiles of all cotangents, multiplied tile by tile.
    Tile,
    /// Row Gram matrices of inputs and cotangents, multiplied entry by entry.
    Gram,
    /// *Tile* over the triangular factor of the inputs.
    Triangle,
}

/// What a device does in a second, in one number type. `tanglescope bench` measures both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations of matrix products.
    pub operations: f64,
    /// Bytes read and written by copies.
    pub bytes: f64,
    /// Whether it factorises inputs: a processor.
    pub triangles: bool,
}

impl Rates {
    /// Two cores of a server processor: what is assumed of a processor that was not measured.
    pub const CPU: Self = Self { operations: 2e11, bytes: 2e10, triangles: true };
    /// A data-centre GPU without matrix units: what is assumed of a device that was not measured.
    pub const GPU: Self = Self { operations: 4e13, bytes: 2e12, triangles: false };

    /// Seconds that something takes.
    #[must_use]
    pub fn seconds(&self, cost: Cost) -> f64 {
        (cost.operations / self.operations).max(cost.bytes / self.bytes)
    }
}

/// What something asks of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations.
    pub operations: f64,
    /// Bytes read and written.
    pub bytes: f64,
}

impl Cost {
    /// Of nothing.
    pub const NOTHING: Self = Self { operations: 0.0, bytes: 0.0 };
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { operations: self.operations + other.operations, bytes: self.bytes + other.bytes }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Mul<f64> for Cost {
    type Output = Self;

    fn mul(self, times: f64) -> Self {
        Self { operations: self.operations * times, bytes: self.bytes * times }
    }
}

/// Side of the squares that products are formed in.
const T: f64 = 64.0;

/// A product `[m, k] · [k, n]`: `2·m·k·n` operations; each factor and the result once.
#[must_use]
pub fn product(m: usize, k: usize, n: usize, dtype: DType) -> Cost {
    let [m, k, n] = [m, k, n].map(|x| x as f64);
    Cost { operations: 2.0 * m * k * n, bytes: (m * k + k * n + m * n) * dtype.size() as f64 }
}

/// *tile* of a parameter `[m, n]`, summed over all sets.
pub(crate) fn tile(n: usize, m: usize, rows: &RowSet, dtype: DType) -> Cost {
    let (n, m) = (n as f64, m as f64);
    let of_set = |set: &std::ops::Range<usize>| {
        let (r, k) = (rows.of_set(set).len() as f64, set.len() as f64);
        let operations = (2.0 * r + k * (k + 1.0)) * m * n;
        Cost { operations, bytes: 2.0 * r * m * n / T * dtype.size() as f64 }
    };
    rows.sets.iter().map(of_set).fold(Cost::default(), Add::add)
}

/// The part of *gram* that every parameter `[m, n]` has for itself, summed over all sets.
pub(crate) fn gram(m: usize, rows: &RowSet, dtype: DType) -> Cost {
    let m = m as f64;
    let of_set = |set: &std::ops::Range<usize>| {
        let r = rows.of_set(set).len() as f64;
        Cost { operations: r * (r + 1.0) * (m + 1.0), bytes: r * r * m / T * dtype.size() as f64 }
    };
    rows.sets.iter().map(of_set).fold(Cost::default(), Add::add)
}

/// The part of *gram* that parameters of one input share, summed over all sets.
pub(crate) fn gram_of_input(n: usize, rows: &RowSet, dtype: DType) -> Cost {
    let of_set = |set: &std::ops::Range<usize>| {
        let (forward, n) = (rows.forward_range(set).len() as f64, n as f64);
        let operations = forward * (forward + 1.0) * n;
        Cost { operations, bytes: forward * forward * n / T * dtype.size() as f64 }
    };
    rows.sets.iter().map(of_set).fold(Cost::default(), Add::add)
}

/// Operations of a product in the time of one of a factorisation, which is in f64 and has less to each step.
const OF_FACTORISING: f64 = 10.0;

/// The part of *triangle* that every parameter `[m, n]` has for itself, summed over all sets.
pub(crate) fn triangle(n: usize, m: usize, rows: &RowSet, dtype: DType) -> Cost {
    let of_set = |set: &std::ops::Range<usize>| {
        let forward = rows.forward_range(set);
        let width = forward.len().min(n);
        let of = &rows.index[rows.of_set(set)];
        let values = of.iter().map(|&r| width.min(r as usize + 1 - forward.start) as f64).sum::<f64>();
        let (k, m, width) = (set.len() as f64, m as f64, width as f64);
        let operations = (2.0 * values + k * (k + 1.0) * width) * m;
        Cost { operations, bytes: 2.0 * values * m / T * dtype.size() as f64 }
    };
    rows.sets.iter().map(of_set).fold(Cost::default(), Add::add)
}

/// The part of *triangle* that parameters of one input share, summed over all sets.
pub(crate) fn triangle_of_input(n: usize, rows: &RowSet) -> Cost {
    let of_set = |set: &std::ops::Range<usize>| {
        let forward = rows.forward_range(set).len();
        let [width, longer] = [forward.min(n), forward.max(n)].map(|x| x as f64);
        let operations = 2.0 * width * width * (longer - width / 3.0);
        Cost { operations, bytes: 2.0 * width * longer * size_of::<f64>() as f64 }
    };
    rows.sets.iter().map(of_set).fold(Cost::default(), Add::add)
}

/// The cheapest reduction of each linear map `[outputs[i], inputs]` that meets one input.
///
/// ```
/// use tanglescope_kernels::{DType, RowSet, cost::{Rates, Reduction, choose}};
/// let rows = RowSet { index: (0..60).chain(0..60).collect(), offsets: vec![0, 60, 120], sets: vec![0..2] };
/// let choose = |outputs: &[usize]| choose(576, outputs, &rows, DType::F32, &Rates::CPU);
/// // few rows against a wide matrix, and many against a low-rank factor
/// assert_eq!(choose(&[576]), [Reduction::Gram]);
/// assert_eq!(choose(&[16]), [Reduction::Tile]);
/// // once x·xᵀ is formed for a wide matrix, it serves the factor too
/// assert_eq!(choose(&[576, 16]), [Reduction::Gram, Reduction::Gram]);
/// ```
#[must_use]
pub fn choose(inputs: usize, outputs: &[usize], rows: &RowSet, dtype: DType, rates: &Rates) -> Vec<Reduction> {
    best(inputs, outputs, rows, dtype, rates).0
}

/// What the chosen reductions of the linear maps of one input cost together.
#[must_use]
pub fn reductions(inputs: usize, outputs: &[usize], rows: &RowSet, dtype: DType, rates: &Rates) -> Cost {
    best(inputs, outputs, rows, dtype, rates).1
}

/// The reductions whose time is least together, with what they cost.
fn best(inputs: usize, outputs: &[usize], rows: &RowSet, dtype: DType, rates: &Rates) -> (Vec<Reduction>, Cost) {
    use Reduction::{Gram, Tile, Triangle};
    let of = |reduction: Reduction, m: usize| match reduction {
        Tile => tile(inputs, m, rows, dtype),
        Gram => gram(m, rows, dtype),
        Triangle => triangle(inputs, m, rows, dtype),
    };
    let shared = |reduction: &Reduction| match reduction {
        Tile => Cost::NOTHING,
        Gram => gram_of_input(inputs, rows, dtype),
        Triangle => triangle_of_input(inputs, rows),
    };
    let triangles = rates.triangles && rows.forward_ranges_apart();
    let offered: &[&[Reduction]] = match triangles {
        true => &[&[Tile], &[Tile, Gram], &[Tile, Triangle], &[Tile, Gram, Triangle]],
        false => &[&[Tile], &[Tile, Gram]],
    };
    // the last offer has all that are in any
    let all = offered.last().copied().unwrap_or_default();
    let each = |&m: &usize| all.iter().map(|&reduction| (reduction, rates.seconds(of(reduction, m)))).collect();
    let each: Vec<Vec<(Reduction, f64)>> = outputs.iter().map(each).collect();
    let of_offer = |offer: &&[Reduction]| {
        let least = |each: &Vec<(Reduction, f64)>| {
            let of_offer = each.iter().filter(|(reduction, _)| offer.contains(reduction));
            *of_offer.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or(&each[0])
        };
        let chosen: Vec<(Reduction, f64)> = each.iter().map(least).collect();
        let used = offer.iter().filter(|reduction| chosen.iter().any(|(of, _)| of == *reduction));
        let slower = |reduction: &Reduction| if *reduction == Triangle { OF_FACTORISING } else { 1.0 };
        let seconds = used.map(|reduction| rates.seconds(shared(reduction) * slower(reduction))).sum::<f64>();
        (
            chosen.iter().map(|(reduction, _)| *reduction).collect::<Vec<_>>(),
            seconds + chosen.iter().map(|of| of.1).sum::<f64>(),
        )
    };
    // the first of those that take as long: without what is shared
    let of_all = offered.iter().map(of_offer).min_by(|a, b| a.1.total_cmp(&b.1));
    let chosen = of_all.map_or_else(Vec::new, |(chosen, _)| chosen);
    let own = outputs.iter().zip(&chosen).map(|(&m, &reduction)| of(reduction, m));
    let used = [Gram, Triangle].into_iter().filter(|reduction| chosen.contains(reduction)).map(|of| shared(&of));
    let cost = used.chain(own).fold(Cost::NOTHING, Add::add);
    (chosen, cost)
}
