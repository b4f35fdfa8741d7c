//! Inner products of vectors on the CPU, in f64.
use super::VectorGram;
use crate::host::real::{dims, dot_wide, values, vectorised, with_real};
use crate::rows::sums;
use crate::{Flex, Gram, RowSet};
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Inner products of the vectors of each set.
fn products<'a, V: Sync + 'a>(
    vectors: &'a [V],
    sets: &[Range<usize>],
    dot: impl Fn(&V, &V) -> f64 + Sync,
) -> Vec<Gram> {
    let of_set = |set: &Range<usize>| {
        let k = set.len();
        let mut gram = vec![0.0; k * k];
        for i in 0..k {
            for j in 0..=i {
                gram[i * k + j] = dot(&vectors[set.start + i], &vectors[set.start + j]);
                gram[j * k + i] = gram[i * k + j];
            }
        }
        gram
    };
    sets.par_iter().map(of_set).collect()
}

impl VectorGram for Flex {
    fn gram_vectors(terms: &FlexTensor, rows: &RowSet) -> Vec<Gram> {
        let sums = with_real!(terms, E => sums(values::<E>(terms), dims(terms)[1], &rows.offsets));
        products(&sums, &rows.sets, |a, b| a.iter().zip(b).map(|(x, y)| x * y).sum())
    }

    fn dots(x: &FlexTensor, vectors: &[Range<usize>], sets: &[Range<usize>]) -> Vec<Gram> {
        let width = dims(x)[1];
        with_real!(x, E => {
            let x = values::<E>(x);
            let of = |rows: &Range<usize>| &x[rows.start * width..rows.end * width];
            products(vectors, sets, |a, b| vectorised!(dot_wide(of(a), of(b))))
        })
    }
}
