//! Rows by index and sums over rows on the CPU.
use super::Rows;
use crate::host::real::{Real, dims, matrix, unwritten, values, with_real};
use crate::{DType, Flex, TensorData};
use burn_flex::FlexTensor;
use rayon::prelude::*;

/// Sums of rows over each cotangent, in f64.
pub(crate) fn sums<E: Real>(x: &[E], width: usize, offsets: &[usize]) -> Vec<Vec<f64>> {
    let of = |ends: &[usize]| {
        let mut sums = vec![0.0; width];
        for row in x[ends[0] * width..ends[1] * width].chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += v.wide());
        }
        sums
    };
    offsets.par_windows(2).map(of).collect()
}

impl Rows for Flex {
    fn gather(x: &FlexTensor, index: &[u32], weights: Option<&[f64]>) -> FlexTensor {
        let width = dims(x)[1];
        if x.dtype() == DType::BF16 {
            let x = x.storage::<half::bf16>();
            let row = |(i, &row): (usize, &u32)| {
                let weight = weights.map_or(1.0, |weights| weights[i]);
                x[row as usize * width..][..width].iter().map(move |v| half::bf16::from_f64(v.to_f64() * weight))
            };
            let rows = index.iter().enumerate().flat_map(row).collect();
            return FlexTensor::from_data(TensorData::new::<half::bf16, _>(rows, [index.len(), width]));
        }
        with_real!(x, E => {
            let x = values::<E>(x);
            let mut out = unwritten::<E>(index.len() * width);
            out.par_chunks_mut(width).zip(index).enumerate().with_min_len(16).for_each(|(i, (to, &row))| {
                let from = &x[row as usize * width..][..width];
                match weights {
                    None => to.copy_from_slice(from),
                    Some(w) => to.iter_mut().zip(from).for_each(|(to, &v)| *to = v * E::of(w[i])),
                }
            });
            matrix(out, [index.len(), width])
        })
    }

    fn scatter_add(x: &FlexTensor, index: &[u32], rows: usize) -> FlexTensor {
        let width = dims(x)[1];
        with_real!(x, E => {
            let mut out = vec![E::of(0.0); rows * width];
            for (from, &row) in values::<E>(x).chunks_exact(width).zip(index) {
                let to = &mut out[row as usize * width..][..width];
                to.iter_mut().zip(from).for_each(|(to, &v)| *to += v);
            }
            matrix(out, [rows, width])
        })
    }

    fn place_rows(parts: &[(FlexTensor, &[u32])], rows: usize) -> FlexTensor {
        let width = dims(&parts[0].0)[1];
        with_real!(&parts[0].0, E => {
            let mut out = vec![E::of(0.0); rows * width];
            for (part, places) in parts {
                for (from, &row) in values::<E>(part).chunks_exact(width).zip(*places) {
                    out[row as usize * width..][..width].copy_from_slice(from);
                }
            }
            matrix(out, [rows, width])
        })
    }

    fn segment_sums(x: &FlexTensor, offsets: &[usize]) -> FlexTensor {
        let width = dims(x)[1];
        with_real!(x, E => {
            let sums = sums(values::<E>(x), width, offsets);
            matrix(sums.into_iter().flatten().map(E::of).collect(), [offsets.len() - 1, width])
        })
    }

    fn split_columns(x: &FlexTensor, widths: &[usize]) -> Vec<FlexTensor> {
        let [rows, width] = dims(x);
        let mut start = 0;
        with_real!(x, E => widths.iter().map(|&w| {
            let mut out = Vec::with_capacity(rows * w);
            for row in values::<E>(x).chunks_exact(width) {
                out.extend_from_slice(&row[start..start + w]);
            }
            start += w;
            matrix(out, [rows, w])
        }).collect())
    }

    fn join_columns(parts: &[FlexTensor]) -> FlexTensor {
        let rows = dims(&parts[0])[0];
        let width = parts.iter().map(|p| dims(p)[1]).sum();
        with_real!(&parts[0], E => {
            let mut out = Vec::with_capacity(rows * width);
            for row in 0..rows {
                for part in parts {
                    let w = dims(part)[1];
                    out.extend_from_slice(&values::<E>(part)[row * w..][..w]);
                }
            }
            matrix(out, [rows, width])
        })
    }
}
