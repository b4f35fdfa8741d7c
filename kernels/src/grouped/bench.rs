//! Products of the experts of a block, each with its share of the rows.
use super::Stretch;
use crate::bench::{Case, Shapes};
use crate::{Kernels, Weight, cost};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let Some((experts, per_row, width)) = shapes.experts else { return Vec::new() };
    let (d, rows) = (shapes.hidden, shapes.forward * per_row);
    let x = shapes.matrix::<B>(rows, d, device);
    let matrices: Vec<_> = (0..experts).map(|_| shapes.matrix::<B>(d, width, device)).collect();
    let run = move || {
        let of =
            |(e, w)| Stretch { rows: e * rows / experts..(e + 1) * rows / experts, w: Weight::Plain(w), scale: 1.0 };
        let stretches: Vec<Stretch<'_, B>> = matrices.iter().enumerate().map(of).collect();
        drop(B::grouped(&x, &stretches, false, width, None));
    };
    vec![Case::new(format!("products of {experts} experts"), cost::product(rows, d, width, shapes.dtype), run)]
}
