//! The kernels on the CPU, over the slices of burn's Flex tensors.
//!
//! Chains of Flex operations reach a fifth of the matrix-product rate: its element-wise operations run on one thread,
//! and every result is cleared before it is written. Here each row-wise map is one vectorised loop over rows on all
//! cores, and products go straight into their result.
mod activation;
mod attention;
mod gram;
mod head;
mod norm;
mod product;
mod real;
mod rotary;
mod stored;

use crate::{
    Activation, BlockGram, DType, Flex, FlexDevice, FloatTensor, HeadOutput, Heads, Kernels, NormKind, RowSet, Segment,
    Span, TensorData,
};
use burn_backend::ops::FloatTensorOps;
use burn_flex::FlexTensor;
use rayon::prelude::*;
use real::{Real, dims, in_place, matrix, unwritten, values, vectorised, with_real};
use std::ops::Range;
use stored::Stored;

impl Kernels for Flex {
    fn upload(data: TensorData, _device: &FlexDevice) -> FlexTensor {
        FlexTensor::from_data(data)
    }

    fn takes_stored(dtype: DType) -> bool {
        dtype == DType::BF16
    }

    fn cast(x: FlexTensor, dtype: DType) -> FlexTensor {
        if x.dtype() == dtype { x } else { Self::float_cast(x, dtype.into()) }
    }

    fn download(x: &FlexTensor) -> Vec<f64> {
        if x.dtype() == DType::BF16 {
            return x.storage::<half::bf16>().iter().map(|v| v.to_f64()).collect();
        }
        with_real!(x, E => values::<E>(x).iter().map(|v| v.wide()).collect())
    }

    fn matmul(x: &FlexTensor, w: &FlexTensor, transposed: bool, scale: f64, onto: Option<FlexTensor>) -> FlexTensor {
        let [rows, k] = dims(x);
        let m = dims(w)[usize::from(!transposed)];
        with_real!(x, E => {
            let multiply = |onto: Option<&mut [E]>| {
                product::matmul(values::<E>(x), Stored::<E>::of(w), [rows, k, m], transposed, scale, onto)
            };
            match onto {
                Some(y) => in_place::<E>(y, |y| { multiply(Some(y)); }),
                None => matrix(multiply(None).unwrap_or_default(), [rows, m]),
            }
        })
    }

    fn weight_gradient(x: &FlexTensor, delta: &FlexTensor, rows: Range<usize>) -> FlexTensor {
        let (n, m) = (dims(x)[1], dims(delta)[1]);
        with_real!(x, E => {
            let part = |t: &FlexTensor, width: usize| values::<E>(t)[rows.start * width..rows.end * width].to_vec();
            let (x, delta) = (part(x, n), part(delta, m));
            let mut g = unwritten::<E>(n * m);
            let x = product::View::rows(&x, n).transposed();
            let delta = product::View::rows(&delta, m);
            let target = product::Target::rows(&mut g, m);
            product::product_parallel(target, [n, rows.len(), m], x, delta, 1.0, false);
            matrix(g, [n, m])
        })
    }

    fn add_bias(y: FlexTensor, bias: &FlexTensor) -> FlexTensor {
        with_real!(&y, E => {
            let bias = values::<E>(bias);
            in_place::<E>(y, |y| {
                y.par_chunks_mut(bias.len()).with_min_len(16).for_each(|row| {
                    vectorised(|| row.iter_mut().zip(bias).for_each(|(y, &b)| *y += b));
                });
            })
        })
    }

    fn add_scaled(a: FlexTensor, b: &FlexTensor, scale: f64) -> FlexTensor {
        with_real!(&a, E => {
            let (b, scale) = (values::<E>(b), E::of(scale));
            in_place::<E>(a, |a| {
                a.par_chunks_mut(4096).zip(b.par_chunks(4096)).for_each(|(a, b)| {
                    vectorised(|| a.iter_mut().zip(b).for_each(|(a, &b)| *a += scale * b));
                });
            })
        })
    }

    fn gather(x: &FlexTensor, index: &[u32], weights: Option<&[f64]>) -> FlexTensor {
        let width = dims(x)[1];
        if x.dtype() == DType::BF16 {
            let x = x.storage::<half::bf16>();
            let rows = index.iter().flat_map(|&row| x[row as usize * width..][..width].iter().copied()).collect();
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

    fn norm(x: &FlexTensor, gain: &FlexTensor, bias: Option<&FlexTensor>, kind: NormKind) -> FlexTensor {
        with_real!(x, E => {
            let bias = bias.map(values::<E>);
            matrix(norm::forward(values::<E>(x), values(gain), bias, kind), dims(x))
        })
    }

    fn norm_vjp(
        x: &FlexTensor,
        gain: &FlexTensor,
        kind: NormKind,
        delta: &FlexTensor,
        index: &[u32],
        onto: Option<FlexTensor>,
    ) -> FlexTensor {
        with_real!(x, E => {
            let d = values::<E>(delta);
            let onto = onto.unwrap_or_else(|| matrix(vec![E::of(0.0); d.len()], dims(delta)));
            in_place::<E>(onto, |dx| norm::vjp(values::<E>(x), values(gain), kind, d, index, dx))
        })
    }

    fn norm_gain_terms(x: &FlexTensor, kind: NormKind, delta: &FlexTensor, index: &[u32]) -> FlexTensor {
        let width = dims(x)[1];
        with_real!(x, E => {
            matrix(norm::gain_terms(values::<E>(x), width, kind, values(delta), index), dims(delta))
        })
    }

    fn segment_sums(x: &FlexTensor, offsets: &[usize]) -> Vec<Vec<f64>> {
        let width = dims(x)[1];
        with_real!(x, E => {
            let x = values::<E>(x);
            offsets.par_windows(2).map(|ends| {
                let mut sums = vec![0.0; width];
                for row in x[ends[0] * width..ends[1] * width].chunks_exact(width) {
                    sums.iter_mut().zip(row).for_each(|(s, v)| *s += v.wide());
                }
                sums
            }).collect()
        })
    }

    fn activate(f: Activation, a: &FlexTensor, b: Option<&FlexTensor>) -> FlexTensor {
        with_real!(a, E => {
            matrix(activation::forward(f, values::<E>(a), b.map(values::<E>), dims(a)[1]), dims(a))
        })
    }

    fn activate_vjp(
        f: Activation,
        a: &FlexTensor,
        b: Option<&FlexTensor>,
        delta: &FlexTensor,
        index: &[u32],
    ) -> (FlexTensor, Option<FlexTensor>) {
        with_real!(a, E => {
            let b = b.map(values::<E>);
            let (da, db) = activation::vjp(f, values::<E>(a), b, values(delta), index, dims(a)[1]);
            (matrix(da, dims(delta)), db.map(|db| matrix(db, dims(delta))))
        })
    }

    fn rotary(
        x: FlexTensor,
        cos: &FlexTensor,
        sin: &FlexTensor,
        index: Option<&[u32]>,
        head_dim: usize,
        inverse: bool,
    ) -> FlexTensor {
        let width = dims(&x)[1];
        with_real!(&x, E => {
            let angles = (values::<E>(cos), values::<E>(sin));
            in_place::<E>(x, |x| rotary::rotate(x, width, head_dim, angles, index, inverse))
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

    fn attention(q: &FlexTensor, k: &FlexTensor, v: &FlexTensor, spans: &[Span], heads: Heads) -> FlexTensor {
        with_real!(q, E => {
            let qkv = (values::<E>(q), values::<E>(k), values::<E>(v));
            matrix(attention::forward(qkv, dims(q)[0], spans, heads), dims(q))
        })
    }

    fn attention_vjp(
        q: &FlexTensor,
        k: &FlexTensor,
        v: &FlexTensor,
        delta: &FlexTensor,
        segments: &[Segment],
        heads: Heads,
    ) -> [FlexTensor; 3] {
        let rows = dims(delta)[0];
        with_real!(q, E => {
            let qkv = (values::<E>(q), values::<E>(k), values::<E>(v));
            let [dq, dk, dv] = attention::vjp(qkv, values(delta), segments, heads);
            let kv = heads.kv_heads * heads.head_dim;
            [matrix(dq, [rows, heads.heads * heads.head_dim]), matrix(dk, [rows, kv]), matrix(dv, [rows, kv])]
        })
    }

    fn head(y: &FlexTensor, w: &FlexTensor, targets: &[u32], blocks: &[Range<usize>]) -> HeadOutput<FloatTensor<Self>> {
        let d = dims(w)[1];
        with_real!(y, E => {
            let walk = head::walk(values::<E>(y), Stored::of(w), d, targets, blocks);
            HeadOutput {
                logp: walk.logp,
                log_normaliser: walk.log_normaliser,
                back: matrix(walk.back, [targets.len(), d]),
                products: walk.products,
            }
        })
    }

    fn gram_tile(x: &FlexTensor, delta: &FlexTensor, rows: &RowSet) -> Vec<BlockGram> {
        with_real!(x, E => gram::tile(values::<E>(x), dims(x)[1], values(delta), dims(delta)[1], rows))
    }

    fn gram_rows(x: &FlexTensor, deltas: &[&FlexTensor], rows: &RowSet) -> Vec<Vec<BlockGram>> {
        with_real!(x, E => {
            let deltas: Vec<(&[E], usize)> = deltas.iter().map(|d| (values(d), dims(d)[1])).collect();
            gram::rows(values::<E>(x), dims(x)[1], &deltas, rows)
        })
    }
}
