//! The gate of gpt-oss's experts.
use tanglescope_kernels::{FloatTensor, Kernels};

/// gpt-oss's gate: `min(a, limit)·σ(α·min(a, limit))·(clamp(b, ±limit) + 1)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clamp {
    /// Where gate and up are cut.
    pub limit: f64,
    /// α.
    pub alpha: f64,
}

impl Clamp {
    /// Bounds of the gate, and of what it is multiplied with.
    fn bounds(self) -> [[f64; 2]; 2] {
        [[f64::NEG_INFINITY, self.limit], [-self.limit, self.limit]]
    }

    /// What `silu` is of, α times the cut gate, and what it is multiplied with, `(cut up + 1)/α`.
    pub(super) fn cut<B: Kernels>(self, up: &[FloatTensor<B>; 2]) -> [FloatTensor<B>; 2] {
        let [of_gate, of_up] = self.bounds();
        let gate = B::times_number(B::cut(up[0].clone(), of_gate), self.alpha);
        let up = B::add_number(B::cut(up[1].clone(), of_up), 1.0);
        [gate, B::times_number(up, self.alpha.recip())]
    }

    /// Cotangents of gate and up from those of what [`cut`](Self::cut) made of them.
    pub(super) fn vjp<B: Kernels>(
        self,
        up: &[FloatTensor<B>; 2],
        [da, db]: [FloatTensor<B>; 2],
        index: &[u32],
    ) -> [FloatTensor<B>; 2] {
        let [of_gate, of_up] = self.bounds();
        let da = B::cut_vjp(&up[0], of_gate, B::times_number(da, self.alpha), index);
        [da, B::cut_vjp(&up[1], of_up, B::times_number(db, self.alpha.recip()), index)]
    }
}
