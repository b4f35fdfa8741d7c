//! The Gram of the output matrix on a device, from the head's own walk over the vocabulary: products of rows of exponentials are summed chunk by
//! chunk and brought to new maxima as the rows' other sums are; what targets add is put in at the end.
use super::cube::{UNITS, cotangent_products, rescale_products};
use super::launch::bound;
use crate::gram::{
    launch::{batch, parts},
    plan::Part,
};
use crate::on_chip::{empty, floats, ints};
use crate::pending::Pending;
use crate::product::launch::{product, product_onto, transposed};
use crate::rows::launch::gather;
use crate::{HeadCotangents, RowSet, SoftCap, as_index};
use burn_backend::DType;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use std::ops::Range;

/// Sets of cotangents that are formed together.
struct Together<R: CubeRuntime> {
    part: Part,
    /// The head's rows of each set.
    stretches: Vec<Range<usize>>,
    /// Products of those rows over the chunks so far, `[B, L, L]`.
    sums: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Together<R> {
    /// The head's row of each row of the batch of products; those beyond a set's own are its first.
    fn rows(&self) -> Vec<u32> {
        let longest = self.stretches.iter().map(Range::len).max().unwrap_or(0);
        let place = |of: &Range<usize>, i: usize| as_index(if i < of.len() { of.start + i } else { of.start });
        self.stretches.iter().flat_map(|of| (0..longest).map(move |i| place(of, i))).collect()
    }
}

/// The products of a walk.
pub(super) struct Walk<'a, R: CubeRuntime> {
    cotangents: &'a HeadCotangents<'a>,
    /// One backward row for every weighted row of each cotangent.
    set: RowSet,
    together: Vec<Together<R>>,
}

/// A unit a value.
fn grid<R: CubeRuntime>(of: &CubeTensor<R>) -> (CubeCount, CubeDim) {
    let cells = CubeDim::new_1d(as_index(UNITS));
    (calculate_cube_count_elemwise(&of.client, of.meta.num_elements(), cells), cells)
}

impl<'a, R: CubeRuntime> Walk<'a, R> {
    /// Before the first chunk.
    pub fn new(cotangents: &'a HeadCotangents<'a>) -> Self {
        let set = cotangents.rows();
        let of_part = |part: Part| {
            let stretches = part.sets().map(|set| cotangents.set_rows[set].clone()).collect();
            Together { part, stretches, sums: None }
        };
        let together = parts(&set).into_iter().map(of_part).collect();
        Self { cotangents, set, together }
    }

    /// Takes a chunk's exponentials in, with the rows' figures after it.
    pub fn add(&mut self, p: &CubeTensor<R>, figures: &dyn Fn() -> ArrayArg<R>) {
        for of in &mut self.together {
            let here = batch(p, &of.stretches);
            of.sums = Some(match of.sums.take() {
                None => product(&here, &transposed(&here), DType::F32),
                Some(sums) => {
                    let (grid, cells) = grid(&sums);
                    let rows = ints(&p.client, &of.rows());
                    let before = sums.clone().into_tensor_arg();
                    rescale_products::launch::<R>(&p.client, grid, cells, before, figures(), rows);
                    product_onto(&here, &transposed(&here), sums)
                }
            });
        }
    }

    /// The Grams, from the rows `y`, the rows of the output matrix that hold their targets' (and where in it), and the final figures.
    pub fn finish(
        self,
        y: &CubeTensor<R>,
        (of_targets, places): (&CubeTensor<R>, &[u32]),
        targets: &[u32],
        figures: &dyn Fn() -> ArrayArg<R>,
        cap: Option<SoftCap>,
    ) -> Pending<R> {
        let of_targets = gather(of_targets, places, None);
        let weights = self.cotangents.weights();
        let mut gram = Pending::nothing(&self.set);
        for Together { part, stretches, sums } in self.together {
            let Some(sums) = sums else { continue };
            let logits = product(&batch(y, &stretches), &transposed(&batch(&of_targets, &stretches)), DType::F32);
            let all = part.rows(&self.set);
            let (mut rows, mut of_rows) = (Vec::new(), Vec::new());
            for (own, stretch) in part.backward(&self.set).into_iter().zip(&stretches) {
                for row in all.clone().map(|i| own.start + i) {
                    let here = own.contains(&row);
                    rows.push(if here { self.set.index[row] } else { as_index(stretch.start) });
                    of_rows.push(if here { weights[row] } else { 0.0 });
                }
            }
            let starts: Vec<u32> = stretches.iter().map(|of| as_index(of.start)).collect();
            let out = empty(y, [stretches.len(), all.len(), all.len()], DType::F32);
            let (grid, cells) = grid(&out);
            cotangent_products::launch::<R>(
                &y.client,
                grid,
                cells,
                sums.into_tensor_arg(),
                logits.into_tensor_arg(),
                ints(&y.client, targets),
                figures(),
                ints(&y.client, &rows),
                floats(&y.client, &of_rows),
                ints(&y.client, &starts),
                out.clone().into_tensor_arg(),
                bound(cap),
                cap.is_some(),
            );
            let inputs = part.inputs(y, &self.set);
            gram = gram.plus(part.sums((&inputs, out), &self.set, &all));
        }
        gram
    }
}
