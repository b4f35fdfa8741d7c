//! The expert that every row goes through.
use super::maps::row_products;
use crate::layers::linear::{Changed, deliver, input_of};
use crate::layers::{Backward, Forward, Layer, Linear, Mlp, MlpTrace};
use crate::needs::LayerNeeds;
use tanglescope_kernels::{FloatTensor, Kernels, as_index};

/// `σ(gate x)·mlp(x)`, or `mlp(x)`.
#[derive(Clone, Debug)]
pub struct SharedExpert<B: Kernels> {
    /// The expert.
    pub mlp: Mlp<B>,
    /// To one number a row.
    pub gate: Option<Linear<B>>,
}

/// What its forward pass leaves.
#[derive(Debug)]
pub(super) struct SharedTrace<B: Kernels> {
    mlp: MlpTrace<B>,
    gate: Option<GateTrace<B>>,
}

#[derive(Debug)]
struct GateTrace<B: Kernels> {
    low: Option<Changed<B>>,
    /// σ(gate x) of each row.
    open: Vec<f64>,
    /// What it multiplies, `[N, hidden]`.
    output: FloatTensor<B>,
}

impl<B: Kernels> SharedExpert<B> {
    pub(super) fn forward(
        &self,
        x: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        rows: &Forward<'_, B>,
    ) -> (FloatTensor<B>, SharedTrace<B>) {
        let Some(gate) = &self.gate else {
            let (y, mlp) = self.mlp.forward(x, onto, rows);
            return (y, SharedTrace { mlp, gate: None });
        };
        let (output, mlp) = self.mlp.forward(x, None, rows);
        let (z, low) = gate.forward(x, None);
        let open: Vec<f64> = B::download(&z).into_iter().map(|z| 1.0 / (1.0 + (-z).exp())).collect();
        let y = B::gather(&output, &(0..as_index(open.len())).collect::<Vec<_>>(), Some(&open));
        let y = match onto {
            Some(onto) => B::add_scaled(y, &onto, 1.0),
            None => y,
        };
        (y, SharedTrace { mlp, gate: Some(GateTrace { low, open, output }) })
    }

    pub(super) fn vjp(
        &self,
        trace: &SharedTrace<B>,
        x: &dyn Fn() -> FloatTensor<B>,
        delta: &FloatTensor<B>,
        onto: Option<FloatTensor<B>>,
        needs: LayerNeeds,
        pass: &mut Backward<'_, B>,
    ) -> Option<FloatTensor<B>> {
        let (Some(gate), Some(of_gate)) = (&self.gate, &trace.gate) else {
            return self.mlp.vjp(&trace.mlp, x, delta, onto, needs, pass);
        };
        let rows = pass.rows;
        let index = &rows.here().index;
        let open: Vec<f64> = index.iter().map(|&row| of_gate.open[row as usize]).collect();
        let gated = B::gather(delta, &(0..as_index(open.len())).collect::<Vec<_>>(), Some(&open));
        let through = self.mlp.vjp(&trace.mlp, x, &gated, onto, needs, pass);
        if !needs.hidden {
            return None;
        }
        let products = row_products::<B>(delta.clone(), B::gather(&of_gate.output, index, None));
        let dz: Vec<f64> = products.into_iter().zip(&open).map(|(s, t)| s * t * (1.0 - t)).collect();
        let dz = B::upload_like(dz, &[open.len(), 1], delta);
        let of = [gate.cotangent(&dz, of_gate.low.as_ref(), needs.input, pass)];
        deliver(&of, x, rows.here(), pass);
        if needs.input { input_of(&of, through) } else { None }
    }
}
