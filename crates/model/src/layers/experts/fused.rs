//! An adapter of all experts of a layer as one matrix.
use super::maps::{rows_of, slice, stretches};
use crate::layers::router::{BackwardRoutes, Routes};
use crate::layers::{Backward, dims};
use crate::sink::Factor;
use tanglescope_kernels::{FloatTensor, Kernels, Weight};

/// Low-rank changes that an adapter has for all experts of a layer in one pair of tensors: PEFT's `target_parameters`.
#[derive(Clone, Debug)]
pub struct FusedLora<B: Kernels> {
    /// Path of the module, as the adapter has it.
    pub name: String,
    /// A of each expert as `[in, r]`.
    pub a: Vec<FloatTensor<B>>,
    /// B of each expert as `[r, out]`, for gate and for up, or for down.
    pub b: Vec<Vec<FloatTensor<B>>>,
    /// s.
    pub scale: f64,
}

impl<B: Kernels> FusedLora<B> {
    /// Name of an expert's part of A.
    pub(crate) fn a_name(&self, expert: usize) -> String {
        format!("{}.lora_A.weight#{expert}", self.name)
    }

    /// Name of an expert's part of B, of one of the pieces.
    pub(crate) fn b_name(&self, expert: usize, piece: usize) -> String {
        format!("{}.lora_B.weight#{expert}.{piece}", self.name)
    }

    fn rank(&self) -> usize {
        dims::<B>(&self.a[0])[1]
    }

    /// s·x·A of rows sorted by expert.
    pub(super) fn low(&self, x: &FloatTensor<B>, offsets: &[usize]) -> FloatTensor<B> {
        let a = stretches(self.a.iter().map(|a| Some((Weight::Plain(a), self.scale))), offsets);
        B::grouped(x, &a, false, self.rank(), None)
    }

    /// Adds low·B of a piece.
    pub(super) fn onto(
        &self,
        piece: usize,
        low: &FloatTensor<B>,
        y: FloatTensor<B>,
        offsets: &[usize],
    ) -> FloatTensor<B> {
        let width = dims::<B>(&y)[1];
        B::grouped(
            low,
            &stretches(self.b[piece].iter().map(|b| Some((Weight::Plain(b), 1.0))), offsets),
            false,
            width,
            Some(y),
        )
    }

    /// s·Σ δ·Bᵀ over the pieces.
    pub(super) fn low_delta(&self, deltas: &[&FloatTensor<B>], offsets: &[usize]) -> FloatTensor<B> {
        let of = deltas.iter().zip(&self.b).fold(None, |sum, (delta, b)| {
            let b = stretches(b.iter().map(|b| Some((Weight::Plain(b), self.scale))), offsets);
            Some(B::grouped(delta, &b, true, self.rank(), sum))
        });
        of.unwrap_or_else(|| unreachable!("there is a piece"))
    }

    /// Cotangent of the input.
    pub(super) fn input(&self, low_delta: &FloatTensor<B>, dx: FloatTensor<B>, offsets: &[usize]) -> FloatTensor<B> {
        let width = dims::<B>(&dx)[1];
        B::grouped(
            low_delta,
            &stretches(self.a.iter().map(|a| Some((Weight::Plain(a), 1.0))), offsets),
            true,
            width,
            Some(dx),
        )
    }

    /// Whether a part of it is in scope.
    pub(super) fn in_scope(&self, pass: &Backward<'_, B>) -> [bool; 2] {
        [pass.scope.contains(&self.a_name(0)), pass.scope.contains(&self.b_name(0, 0))]
    }

    pub(super) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> FusedLora<C> {
        FusedLora {
            name: self.name.clone(),
            a: self.a.iter().map(f).collect(),
            b: self.b.iter().map(|b| b.iter().map(f).collect()).collect(),
            scale: self.scale,
        }
    }
}

/// Delivers the factors of an adapter of all experts, expert by expert, for the cotangents of its pieces.
pub(super) fn deliver_fused<B: Kernels>(
    fused: &FusedLora<B>,
    (input, low): (&FloatTensor<B>, &FloatTensor<B>),
    (low_delta, deltas): (&FloatTensor<B>, &[&FloatTensor<B>]),
    (forward, backward): (&Routes, &BackwardRoutes),
    pass: &mut Backward<'_, B>,
) {
    let (all, [wants_a, wants_b]) = (pass.rows, fused.in_scope(pass));
    for expert in 0..fused.a.len() {
        let Some(rows) = rows_of(expert, forward, backward, all.here()) else { continue };
        let (own, inputs) = (backward.of_expert(expert), forward.of_expert(expert));
        if wants_a {
            let delta = slice::<B>(low_delta, own.clone());
            let factor = Factor { name: fused.a_name(expert), delta: &delta };
            pass.sink.linear(&slice::<B>(input, inputs.clone()), &[factor], &rows);
        }
        if wants_b {
            let deltas: Vec<FloatTensor<B>> = deltas.iter().map(|delta| slice::<B>(delta, own.clone())).collect();
            let of = |(piece, delta)| Factor { name: fused.b_name(expert, piece), delta };
            let factors: Vec<Factor<'_, B>> = deltas.iter().enumerate().map(of).collect();
            pass.sink.linear(&slice::<B>(low, inputs), &factors, &rows);
        }
    }
}
