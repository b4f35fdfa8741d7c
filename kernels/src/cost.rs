//! Which of the two exact Gram reductions of a linear map is cheaper, by counted operations and bytes.
//!
//! With `R` backward rows over `N` forward rows, `K` cotangents, and a parameter `[m, n]`, both are formed in squares of
//! `T × T` values, so that a row is read once for every square of the other side:
//!
//! - *tile* forms each cotangent's gradient tile by tile: `2·R·m·n` operations for the products `δᵀx` and `K(K+1)·m·n` for
//!   the inner products of the tiles; it reads `2·R·m·n/T` values;
//! - *gram* forms `δ·δᵀ` over the backward rows, the lower half only, and multiplies it with `x·xᵀ` in place:
//!   `R(R+1)·(m+1)` operations and `R²·m/T` values, and `N(N+1)·n` operations and `N²·n/T` values for `x·xᵀ` over the
//!   forward rows, once for all parameters that share the input.
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
}

/// What a device does in a second, in one number type. `tanglescope bench` measures both.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Floating-point operations of matrix products.
    pub operations: f64,
    /// Bytes read and written by copies.
    pub bytes: f64,
}

impl Rates {
    /// Two cores of a server processor: what is assumed of a processor that was not measured.
    pub const CPU: Self = Self { operations: 2e11, bytes: 2e10 };
    /// A data-centre GPU without matrix units: what is assumed of a device that was not measured.
    pub const GPU: Self = Self { operations: 4e13, bytes: 2e12 };

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

/// The cheaper reduction of each linear map `[outputs[i], inputs]` that meets one input.
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
    let seconds = |m: &usize| (rates.seconds(tile(inputs, *m, rows, dtype)), rates.seconds(gram(*m, rows, dtype)));
    let each: Vec<(f64, f64)> = outputs.iter().map(seconds).collect();
    let saved: f64 = each.iter().map(|(tile, own)| (tile - own).max(0.0)).sum();
    let pays = saved > rates.seconds(gram_of_input(inputs, rows, dtype));
    let reduction = |(tile, own): &(f64, f64)| if pays && tile > own { Reduction::Gram } else { Reduction::Tile };
    each.iter().map(reduction).collect()
}

/// What the chosen reductions of the linear maps of one input cost together.
#[must_use]
pub fn reductions(inputs: usize, outputs: &[usize], rows: &RowSet, dtype: DType, rates: &Rates) -> Cost {
    let choice = choose(inputs, outputs, rows, dtype, rates);
    let shared = choice.contains(&Reduction::Gram).then(|| gram_of_input(inputs, rows, dtype));
    let each = outputs.iter().zip(choice).map(|(&m, choice)| match choice {
        Reduction::Tile => tile(inputs, m, rows, dtype),
        Reduction::Gram => gram(m, rows, dtype),
    });
    each.fold(shared.unwrap_or_default(), Add::add)
}
