//! Soft caps on attention scores and logits.

/// A soft cap on scores or logits, `s ↦ c·tanh(s/c)` (Gemma 2, arXiv 2408.00118, section 2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftCap(pub f64);

impl SoftCap {
    /// As a device's kernels take it, which are told beside it whether there is one.
    #[allow(clippy::cast_possible_truncation)]
    pub(crate) fn bound(cap: Option<Self>) -> f32 {
        cap.map_or(1.0, |cap| cap.0 as f32)
    }

    /// The capped value.
    #[must_use]
    pub fn capped(self, value: f64) -> f64 {
        self.0 * (value / self.0).tanh()
    }

    /// Slope of the cap where it has a value: `1 − tanh²`.
    #[must_use]
    pub fn slope(self, capped: f64) -> f64 {
        1.0 - (capped / self.0).powi(2)
    }
}
