//! Short convolutions on the CPU, a row a task.
use super::{Convolve, NO_ROW};
use crate::Flex;
use crate::host::real::{Real, dims, matrix, unwritten, values, vectorised, with_real};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// The weights of each tap, `[taps, m]`, from those of each channel.
fn by_tap<E: Real>(w: &[E], taps: usize) -> Vec<E> {
    (0..taps).flat_map(|a| w.iter().skip(taps - 1 - a).step_by(taps).copied()).collect()
}

fn convolve<E: Real>(x: &[E], w: &[E], taps: usize, width: usize, sources: &[u32]) -> Vec<E> {
    let w = by_tap(w, taps);
    let mut y = vec![E::of(0.0); sources.len() / taps * width];
    y.par_chunks_mut(width).zip(sources.par_chunks(taps)).with_min_len(16).for_each(|(y, sources)| {
        vectorised!({
            for (w, &source) in w.chunks_exact(width).zip(sources).filter(|(_, source)| **source != NO_ROW) {
                let x = &x[source as usize * width..][..width];
                for i in 0..width {
                    y[i] += w[i] * x[i];
                }
            }
        });
    });
    y
}

fn terms<E: Real>(x: &[E], taps: usize, delta: &[E], width: usize, sources: &[u32]) -> Vec<E> {
    let mut out = unwritten(delta.len() * taps);
    let rows = out.par_chunks_mut(width * taps).zip(delta.par_chunks(width)).zip(sources.par_chunks(taps));
    rows.with_min_len(16).for_each(|((out, delta), sources)| {
        for (a, &source) in sources.iter().enumerate() {
            let to = out.iter_mut().skip(taps - 1 - a).step_by(taps);
            match source {
                NO_ROW => to.for_each(|to| *to = E::of(0.0)),
                row => to
                    .zip(delta.iter().zip(&x[row as usize * width..][..width]))
                    .for_each(|(to, (&delta, &x))| *to = delta * x),
            }
        }
    });
    out
}

impl Convolve for Flex {
    fn convolve(x: &FlexTensor, w: &FlexTensor, taps: usize, sources: &[u32]) -> FlexTensor {
        let width = dims(x)[1];
        with_real!(x, E => {
            matrix(convolve(values::<E>(x), values(w), taps, width, sources), [sources.len() / taps, width])
        })
    }

    fn convolve_terms(x: &FlexTensor, taps: usize, delta: &FlexTensor, sources: &[u32]) -> FlexTensor {
        let [rows, width] = dims(delta);
        with_real!(x, E => {
            matrix(terms(values::<E>(x), taps, values(delta), width, sources), [rows, width * taps])
        })
    }
}
