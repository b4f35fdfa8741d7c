//! The gated delta rule of a block, and its vjp.
use super::{DeltaInputs, DeltaSpec};
use crate::Kernels;
use crate::bench::{Case, Shapes, matrix};
use crate::cost::Cost;

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let Some((spec, _)) = shapes.delta else { return Vec::new() };
    let DeltaSpec { key_heads, value_heads, key_dim, value_dim } = spec;
    let (keys, values) = (key_heads * key_dim, value_heads * value_dim);
    let of = |rows, width| matrix::<B>([rows, width], B::carried(), device);
    // keys of at most a length of one, decays of at most 0
    let small = |x| B::times_number(x, (key_dim as f64).sqrt().recip());
    let (q, k, v) = (of(shapes.forward, keys), small(of(shapes.forward, keys)), of(shapes.forward, values));
    let gate = |low| B::add_number(of(shapes.forward, value_heads), low);
    let (decay, beta) = (gate(-1.0), B::times_number(gate(1.0), 0.5));
    let delta = of(shapes.rows.rows(), values);
    let bytes = |rows: usize, widths: usize| (rows * widths * B::carried().size()) as f64;
    let (spans, segments) = (shapes.spans.to_vec(), shapes.segments.to_vec());
    let cost = Cost { bytes: bytes(shapes.forward, 2 * keys + 3 * values), ..spec.cost(&spans) };
    let cost_vjp = Cost { bytes: bytes(shapes.rows.rows(), 4 * keys + 6 * values), ..spec.cost_vjp(&segments) };
    let inputs = [q, k, v, decay, beta];
    let run = move |[q, k, v, decay, beta]: &[crate::FloatTensor<B>; 5], spans: &[crate::Span]| {
        B::delta_rule(&DeltaInputs { q, k, v, decay, beta }, spans, spec)
    };
    let (out, errors) = run(&inputs, &spans);
    let again = inputs.clone();
    vec![
        Case::new("delta rule", cost, move || drop(run(&again, &spans))),
        Case::new("delta rule, vjp", cost_vjp, move || {
            let [q, k, v, decay, beta] = &inputs;
            let inputs = DeltaInputs { q, k, v, decay, beta };
            drop(B::delta_rule_vjp(&inputs, (&out, &errors), &delta, &segments, spec));
        }),
    ]
}
