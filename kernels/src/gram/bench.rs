//! The *gram* reduction of a block's maps.
use crate::bench::{Case, Shapes};
use crate::{Kernels, cost};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let case = |&(name, [n, m]): &(&str, [usize; 2])| {
        let x = shapes.matrix::<B>(shapes.forward, n, device);
        let delta = shapes.matrix::<B>(shapes.rows.rows(), m, device);
        let rows = shapes.rows.clone();
        let cost = cost::gram(m, &rows, shapes.dtype) + cost::gram_of_input(n, &rows, shapes.dtype);
        Case::new(format!("gram {name}"), cost, move || drop(B::gram_rows(&x, &[&delta], &rows)))
    };
    shapes.maps.iter().map(case).collect()
}
