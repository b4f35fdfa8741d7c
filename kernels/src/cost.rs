//! Which of the two exact Gram reductions of a linear map is cheaper, by counted floating-point operations.
//!
//! With `R` backward rows over `N` forward rows, `K` cotangents, and a parameter `[m, n]`:
//!
//! - *tile* forms each cotangent's gradient tile by tile: `2·R·m·n` for the products `δᵀx` and `K(K+1)·m·n` for the
//!   inner products of the tiles;
//! - *gram* forms `δ·δᵀ` over the backward rows, the lower half only, and multiplies it with `x·xᵀ` in place:
//!   `R(R+1)·(m+1)`, and `N(N+1)·n` for `x·xᵀ` over the forward rows, once for all parameters that share the input.
use crate::RowSet;

/// A Gram reduction of a linear map (docs/mathematics.md, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Gradient tiles of all cotangents, multiplied tile by tile.
    Tile,
    /// Row Gram matrices of inputs and cotangents, multiplied entry by entry.
    Gram,
}

/// The cheaper reduction of each linear map `[outputs[i], inputs]` that meets one input, summed over all blocks.
///
/// ```
/// use tanglescope_kernels::{RowSet, cost::{Reduction, choose}};
/// let rows = RowSet { index: (0..60).chain(0..60).collect(), offsets: vec![0, 60, 120], blocks: vec![0..2] };
/// // few rows against a wide matrix, and many against a low-rank factor
/// assert_eq!(choose(576, &[576], &rows), [Reduction::Gram]);
/// assert_eq!(choose(576, &[16], &rows), [Reduction::Tile]);
/// // once x·xᵀ is formed for a wide matrix, it serves the factor too
/// assert_eq!(choose(576, &[576, 16], &rows), [Reduction::Gram, Reduction::Gram]);
/// ```
#[must_use]
pub fn choose(inputs: usize, outputs: &[usize], rows: &RowSet) -> Vec<Reduction> {
    let n = inputs as f64;
    let (mut tile, mut own, mut shared) = (vec![0.0; outputs.len()], vec![0.0; outputs.len()], 0.0);
    for block in &rows.blocks {
        let (r, k) = (rows.of_block(block).len() as f64, block.len() as f64);
        let forward = rows.forward_range(block).len() as f64;
        shared += forward * (forward + 1.0) * n;
        for (i, &m) in outputs.iter().enumerate() {
            let m = m as f64;
            tile[i] += (2.0 * r + k * (k + 1.0)) * m * n;
            own[i] += r * (r + 1.0) * (m + 1.0);
        }
    }
    let saved: f64 = tile.iter().zip(&own).map(|(tile, own)| (tile - own).max(0.0)).sum();
    let gram = |(tile, own): (&f64, &f64)| if saved > shared && tile > own { Reduction::Gram } else { Reduction::Tile };
    tile.iter().zip(&own).map(gram).collect()
}
