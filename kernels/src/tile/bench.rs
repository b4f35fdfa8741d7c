//! The *tile* reduction of a block's maps and of low-rank factors.
use crate::bench::{Case, Shapes};
use crate::{Kernels, cost};

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let lora = shapes.lora.iter().flat_map(|&([n, m], r)| [("lora_A", [n, r]), ("lora_B", [r, m])]);
    let case = |(name, [n, m]): (&str, [usize; 2])| {
        let x = shapes.matrix::<B>(shapes.forward, n, device);
        let delta = shapes.matrix::<B>(shapes.rows.rows(), m, device);
        let rows = shapes.rows.clone();
        let cost = cost::tile(n, m, &rows, shapes.dtype);
        Case::new(format!("tile {name}"), cost, move || drop(B::gram_tile(&x, &delta, &rows, None)))
    };
    shapes.maps.iter().copied().chain(lora).map(case).collect()
}
