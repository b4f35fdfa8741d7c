//! What a cube of attention is given: tensors, a tile of rows in one head, and how products become scores and weights.
// what the macro makes of a kernel's arguments, and indices on a device (32 bits there)
#![allow(clippy::trivially_copy_pass_by_ref, clippy::used_underscore_binding, clippy::cast_possible_truncation)]
use crate::on_chip::{soft_cap, soft_cap_slope};
use cubecl::prelude::Tensor as Matrix;
use cubecl::prelude::*;

/// Queries and keys a tile.
pub(super) const SIDE: usize = 64;
/// Score of a key that a query does not see: its exponential is zero.
pub(super) const UNSEEN: f32 = -1.0e30;
/// Numbers of the task of a tile of a span.
pub(super) const OF_SPAN: usize = 5;
/// Numbers of the task of a tile of a segment.
pub(super) const OF_SEGMENT: usize = 7;

/// `q[N, heads·h]`, `k` and `v` `[N, kv_heads·h]`.
#[derive(CubeType, CubeLaunch)]
pub(super) struct Inputs<T: CubePrimitive> {
    pub q: Matrix<T>,
    pub k: Matrix<T>,
    pub v: Matrix<T>,
}

/// What the vjp reads: forward rows of q, k, v and the normaliser, backward rows of δ and of δ·o.
#[derive(CubeType, CubeLaunch)]
pub(super) struct BackInputs<T: CubePrimitive> {
    pub q: Matrix<T>,
    pub k: Matrix<T>,
    pub v: Matrix<T>,
    /// `[R, heads·h]`.
    pub delta: Matrix<T>,
    /// log Σ exp of a row's scores, `[N, heads]`.
    normaliser: Matrix<f32>,
    /// `[R, heads]`.
    products: Matrix<f32>,
}

#[cube]
impl<T: CubePrimitive> BackInputs<T> {
    /// The normaliser and δ·o of a row of a segment, zero where there is none.
    pub fn of_row(&self, tile: &SegmentTile, local: usize, head: usize) -> (f32, f32) {
        let mut normal = 0.0f32;
        let mut product = 0.0f32;
        if local < tile.count {
            normal = self.normaliser[tile.rows.at(local) * self.normaliser.stride(0) + head];
            product = self.products[(tile.offset + local) * self.products.stride(0) + head];
        }
        (normal, product)
    }
}

/// Rows of a sequence: those of a prefix, then its own.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Rows {
    prefix: usize,
    pub prefix_len: usize,
    pub own: usize,
}

#[cube]
impl Rows {
    /// The first numbers of every task: a prefix, its length, the first of the rows behind it.
    fn read(tasks: &Array<u32>, task: usize) -> Self {
        let prefix = tasks[task] as usize;
        let prefix_len = tasks[task + 1] as usize;
        let own = tasks[task + 2] as usize;
        Rows { prefix, prefix_len, own }
    }

    /// Rows without a prefix.
    pub fn from(own: usize) -> Self {
        Rows { prefix: 0usize, prefix_len: 0usize, own }
    }

    /// Row of a position.
    pub fn at(&self, local: usize) -> usize {
        select(local < self.prefix_len, self.prefix + local, self.own + local - self.prefix_len)
    }
}

/// A tile of a span's own rows.
#[derive(CubeType, Clone, Copy)]
pub(super) struct SpanTile {
    pub rows: Rows,
    /// The tile's first row, counted from the span's own first.
    pub first: usize,
    /// Where the tile's rows end.
    pub end: usize,
}

#[cube]
impl SpanTile {
    /// The one of this cube: a span's rows, the tile's first row among its own, and their end.
    pub fn read(tasks: &Array<u32>) -> Self {
        let task = CUBE_POS_X as usize * OF_SPAN;
        let rows = Rows::read(tasks, task);
        let first = tasks[task + 3] as usize;
        let end = tasks[task + 4] as usize;
        SpanTile { rows, first, end }
    }

    /// The span's own rows.
    pub fn queries(&self) -> Rows {
        Rows::from(self.rows.own)
    }
}

/// A tile of a segment's rows.
#[derive(CubeType, Clone, Copy)]
pub(super) struct SegmentTile {
    /// Forward rows.
    pub rows: Rows,
    /// The segment's first backward row.
    pub offset: usize,
    /// The segment's rows.
    pub count: usize,
    /// The first row whose cotangent is not zero.
    pub active: usize,
    /// The tile's first row.
    pub first: usize,
}

#[cube]
impl SegmentTile {
    /// The one of this cube: a segment's forward rows, its first backward row, its rows, its first active row, and the tile's first row.
    pub fn read(tasks: &Array<u32>) -> Self {
        let task = CUBE_POS_X as usize * OF_SEGMENT;
        let rows = Rows::read(tasks, task);
        let offset = tasks[task + 3] as usize;
        let count = tasks[task + 4] as usize;
        let active = tasks[task + 5] as usize;
        let first = tasks[task + 6] as usize;
        SegmentTile { rows, offset, count, active, first }
    }

    /// Backward rows.
    pub fn backward(&self) -> Rows {
        Rows::from(self.offset)
    }
}

/// How products of queries and keys become scores and weights.
#[derive(CubeType, CubeLaunch, Clone, Copy)]
pub(super) struct Scoring {
    scale: f32,
    cap: f32,
    /// Positions that a query sees, its own included.
    window: u32,
    #[cube(comptime)]
    pub capped: bool,
}

#[cube]
impl Scoring {
    /// Score of a product.
    pub fn score(&self, product: f32) -> f32 {
        soft_cap(product * self.scale, self.cap, self.capped)
    }

    /// Whether the query at a position sees the key at another.
    pub fn sees(&self, query: usize, key: usize) -> bool {
        key <= query && key + self.window as usize > query
    }

    /// First key, at the start of a tile of 64, of the keys that the query at a position sees.
    pub fn first_tile(&self, position: usize) -> usize {
        let window = self.window as usize;
        select(position + 1 > window, (position + 1 - min(window, position + 1)) / SIDE * SIDE, 0usize)
    }

    /// The position behind the last query that sees the key at a position.
    pub fn end_of_queries(&self, key: usize) -> usize {
        key + self.window as usize
    }

    /// P of a query and a key from their product, and the factor of dP − δ·o in dS; zero where the key is not seen.
    pub fn weight_and_slope(&self, product: f32, normal: f32, seen: bool) -> (f32, f32) {
        let score = self.score(product);
        // an unseen key's score may be anything, and its exponential infinite
        let probability = (select(seen, score - normal, UNSEEN)).exp();
        let of_score = self.scale * soft_cap_slope(score, self.cap, self.capped);
        (probability, probability * of_score)
    }

    /// P and dS = s·P∘(dP − δ·o) of a query and a key from their product and dP.
    pub fn back(&self, product: f32, dp: f32, normal: f32, of_row: f32, seen: bool) -> (f32, f32) {
        let (probability, slope) = self.weight_and_slope(product, normal, seen);
        (probability, slope * (dp - of_row))
    }
}
