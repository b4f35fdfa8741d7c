//! Which of the two exact Gram reductions of a linear map is cheaper, by counted floating-point operations.
//!
//! With `R` backward rows over `N` forward rows, `K` cotangents, and a parameter `[m, n]`:
//!
//! - *tile* forms each cotangent's gradient tile by tile: `2·R·m·n` for the products `δᵀx` and `K(K+1)·m·n` for the
//!   inner products of the tiles;
//! - *gram* forms `x·xᵀ` over the forward rows and `δ·δᵀ` over the backward rows, the lower halves only, and
//!   multiplies them in place: `N(N+1)·n + R(R+1)·m + R(R+1)`.

/// A Gram reduction of a linear map (docs/mathematics.md, section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduction {
    /// Gradient tiles of all cotangents, multiplied tile by tile.
    Tile,
    /// Row Gram matrices of inputs and cotangents, multiplied entry by entry.
    Gram,
}

/// Sizes of one block of cotangents at one linear map.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Backward rows of the block.
    pub backward_rows: usize,
    /// Forward rows of the block.
    pub forward_rows: usize,
    /// Cotangents of the block.
    pub cotangents: usize,
    /// Width of δ.
    pub outputs: usize,
    /// Width of x.
    pub inputs: usize,
}

impl Work {
    /// Operations of the *tile* reduction.
    #[must_use]
    pub fn tile_operations(&self) -> f64 {
        let (r, k) = (self.backward_rows as f64, self.cotangents as f64);
        (2.0 * r + k * (k + 1.0)) * self.outputs as f64 * self.inputs as f64
    }

    /// Operations of the *gram* reduction, `x·xᵀ` included.
    #[must_use]
    pub fn gram_operations(&self) -> f64 {
        let (r, n) = (self.backward_rows as f64, self.forward_rows as f64);
        n * (n + 1.0) * self.inputs as f64 + r * (r + 1.0) * (self.outputs as f64 + 1.0)
    }

    /// The reduction with fewer operations.
    ///
    /// ```
    /// use tanglescope_kernels::cost::{Reduction, Work};
    /// let short = Work { backward_rows: 60, forward_rows: 40, cotangents: 2, outputs: 576, inputs: 576 };
    /// assert_eq!(short.cheapest(), Reduction::Gram);
    /// let rank16 = Work { outputs: 16, ..short };
    /// assert_eq!(rank16.cheapest(), Reduction::Tile);
    /// ```
    #[must_use]
    pub fn cheapest(&self) -> Reduction {
        if self.tile_operations() <= self.gram_operations() { Reduction::Tile } else { Reduction::Gram }
    }
}
