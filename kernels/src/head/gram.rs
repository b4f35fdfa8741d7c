//! The Gram of the output matrix on a device, from the head's own walk over the vocabulary: products of rows of exponentials are summed chunk by
//! chunk and brought to new maxima as the rows' other sums are; what targets add is put in at the end.
use super::cube::{UNITS, cotangent_products, rescale_products};
use crate::gram::{
    launch::{batch, parts, reshaped},
    plan::Part,
};
use crate::layout::stretch;
use crate::on_chip::{empty, floats, ints, width_of};
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
    /// The head's rows that the cotangents of each set weight.
    rows: Vec<Vec<u32>>,
    /// Products of those rows over the chunks so far, `[B, L, L]`.
    sums: Option<CubeTensor<R>>,
}

impl<R: CubeRuntime> Together<R> {
    /// The same for each of them, filled up to the most with its first.
    fn filled(&self) -> Vec<u32> {
        let longest = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let fill = |of: &Vec<u32>, i: usize| of.get(i).or(of.first()).copied().unwrap_or(0);
        self.rows.iter().flat_map(|of| (0..longest).map(move |i| fill(of, i))).collect()
    }

    /// Those rows of a matrix, `[B, L, width]`.
    fn of(&self, x: &CubeTensor<R>) -> CubeTensor<R> {
        let stretches: Option<Vec<Range<usize>>> =
            self.rows.iter().map(|rows| if rows.is_empty() { Some(0..0) } else { stretch(rows) }).collect();
        if let Some(stretches) = stretches {
            return batch(x, &stretches);
        }
        let filled = self.filled();
        let shape = [self.rows.len(), filled.len() / self.rows.len(), width_of(x)];
        reshaped(gather(x, &filled, None), shape)
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
        let set_rows = cotangents.set_rows();
        let of_part = |part: Part| Together { rows: set_rows[part.sets()].to_vec(), part, sums: None };
        let together = parts(&set).into_iter().map(of_part).collect();
        Self { cotangents, set, together }
    }

    /// Takes a chunk's exponentials in, with the rows' figures after it.
    pub fn add(&mut self, p: &CubeTensor<R>, figures: &dyn Fn() -> ArrayArg<R>) {
        for of in &mut self.together {
            let here = of.of(p);
            of.sums = Some(match of.sums.take() {
                None => product(&here, &transposed(&here), DType::F32),
                Some(sums) => {
                    let (grid, cells) = grid(&sums);
                    let rows = ints(&p.client, &of.filled());
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
        for mut of in self.together {
            let Some(sums) = of.sums.take() else { continue };
            let logits = product(&of.of(y), &transposed(&of.of(&of_targets)), DType::F32);
            let all = of.part.rows(&self.set);
            // the head's row of each backward row, its place among those of its set, and its weight; none beyond a set's own
            let (mut rows, mut places, mut of_rows) = (Vec::new(), Vec::new(), Vec::new());
            for (own, set_rows) in of.part.backward(&self.set).into_iter().zip(&of.rows) {
                for row in all.clone().map(|i| own.start + i) {
                    let here = own.contains(&row).then(|| self.set.index[row]);
                    let row_of_head = here.or(set_rows.first().copied()).unwrap_or(0);
                    rows.push(row_of_head);
                    places.push(as_index(set_rows.partition_point(|&other| other < row_of_head)));
                    of_rows.push(here.map_or(0.0, |_| weights[row]));
                }
            }
            let out = empty(y, [of.rows.len(), all.len(), all.len()], DType::F32);
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
                ints(&y.client, &places),
                floats(&y.client, &of_rows),
                out.clone().into_tensor_arg(),
                SoftCap::bound(cap),
                cap.is_some(),
            );
            let inputs = of.part.inputs(y, &self.set);
            gram = gram.plus(of.part.sums((&inputs, out), &self.set, &all));
        }
        gram
    }
}
