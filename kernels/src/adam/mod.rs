//! A step of AdamW (Loshchilov and Hutter, 2019) over one tensor.
mod cpu;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor};

/// What a step goes by; numbers of one precision, as trainers have them.
#[derive(Clone, Copy, Debug)]
pub struct AdamStep {
    /// η.
    pub rate: f64,
    /// β₁.
    pub beta1: f32,
    /// β₂.
    pub beta2: f32,
    /// ε.
    pub epsilon: f32,
    /// λ.
    pub weight_decay: f32,
    /// t: how many steps there were, with this one.
    pub steps: usize,
}

impl AdamStep {
    /// 1 − β₁ᵗ and 1 − β₂ᵗ: the weights of all gradients so far in each moment.
    #[must_use]
    pub fn weights(&self) -> [f64; 2] {
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        [self.beta1, self.beta2].map(|beta| f64::from(1.0 - beta.powi(steps)))
    }

    /// 1 − β₁ and 1 − β₂: the weights of this step's gradient.
    #[must_use]
    pub fn shares(&self) -> [f64; 2] {
        [self.beta1, self.beta2].map(|beta| f64::from(1.0 - beta))
    }
}

/// Adam's steps.
pub trait Adam: Backend {
    /// `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`, `x ← (1 − ηλ)x − η·m̂/(√v̂ + ε)` with `m̂ = m/(1 − β₁ᵗ)`, `v̂ = v/(1 − β₂ᵗ)`,
    /// entry by entry over tensors of equal shapes. Returns x, and m and v.
    fn adam_step(
        x: FloatTensor<Self>,
        moments: [FloatTensor<Self>; 2],
        gradient: &FloatTensor<Self>,
        step: &AdamStep,
    ) -> (FloatTensor<Self>, [FloatTensor<Self>; 2]);
}
