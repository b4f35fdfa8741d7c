//! The kernels on the CPU, over the slices of burn's Flex tensors.
//!
//! Chains of Flex operations reach a fifth of the matrix-product rate: its element-wise operations run on one thread,
//! and every result is cleared before it is written. Here each row-wise map is one vectorised loop over rows on all
//! cores, and products go straight into their result.
use crate::host::real::{Real, dims, dot_wide, in_place, matrix, unwritten, values, vectorised, with_real};
use crate::host::stored::Stored;
use crate::product::cpu as product;
use crate::{
    Activation, BlockGram, DType, Flex, FlexDevice, FloatTensor, HeadCotangents, HeadOutput, Heads, Kernels, NormKind,
    RowSet, Segment, SoftCap, Span, TensorData, activation, attention, gram, head, norm, rotary, tile,
};
use burn_backend::ops::FloatTensorOps;
use burn_flex::FlexTensor;
use rayon::prelude::*;
use std::ops::Range;

/// Sums of rows over each cotangent, in f64.
fn sums<E: Real>(x: &[E], width: usize, offsets: &[usize]) -> Vec<Vec<f64>> {
    let of = |ends: &[usize]| {
        let mut sums = vec![0.0; width];
        for row in x[ends[0] * width..ends[1] * width].chunks_exact(width) {
            sums.iter_mut().zip(row).for_each(|(s, v)| *s += v.wide());
        }
        sums
    };
    offsets.par_windows(2).map(of).collect()
}

/// Inner products of the vectors of each block.
fn products<'a, V: Sync + 'a>(
    vectors: &'a [V],
    blocks: &[Range<usize>],
    dot: impl Fn(&V, &V) -> f64 + Sync,
) -> Vec<BlockGram> {
    let of_block = |block: &Range<usize>| {
        let k = block.len();
        let mut gram = vec![0.0; k * k];
        for i in 0..k {
            for j in 0..=i {
                gram[i * k + j] = dot(&vectors[block.start + i], &vectors[block.start + j]);
                gram[j * k + i] = gram[i * k + j];
            }
        }
        gram
    };
    blocks.par_iter().map(of_block).collect()
}

impl Kernels for Flex {
    type Pending = Vec<BlockGram>;

    fn collect(pending: Vec<Self::Pending>) -> Vec<Vec<BlockGram>> {
        pending
    }

    fn pending_bytes(_pending: &Self::Pending) -> usize {
        0
    }

    fn wait(_device: &FlexDevice) {}

    fn memory_in_use(_device: &FlexDevice) -> Option<(u64, u64)> {
        None
    }

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
                    vectorised!(row.iter_mut().zip(bias).for_each(|(y, &b)| *y += b));
                });
            })
        })
    }

    fn add_scaled(a: FlexTensor, b: &FlexTensor, scale: f64) -> FlexTensor {
        with_real!(&a, E => {
            let (b, scale) = (values::<E>(b), E::of(scale));
            in_place::<E>(a, |a| {
                a.par_chunks_mut(4096).zip(b.par_chunks(4096)).for_each(|(a, b)| {
                    vectorised!(a.iter_mut().zip(b).for_each(|(a, &b)| *a += scale * b));
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
            matrix(norm::cpu::forward(values::<E>(x), values(gain), bias, kind), dims(x))
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
            in_place::<E>(onto, |dx| norm::cpu::vjp(values::<E>(x), values(gain), kind, d, index, dx))
        })
    }

    fn norm_gain_terms(x: &FlexTensor, kind: NormKind, delta: &FlexTensor, index: &[u32]) -> FlexTensor {
        let width = dims(x)[1];
        with_real!(x, E => {
            matrix(norm::cpu::gain_terms(values::<E>(x), width, kind, values(delta), index), dims(delta))
        })
    }

    fn segment_sums(x: &FlexTensor, offsets: &[usize]) -> FlexTensor {
        let width = dims(x)[1];
        with_real!(x, E => {
            let sums = sums(values::<E>(x), width, offsets);
            matrix(sums.into_iter().flatten().map(E::of).collect(), [offsets.len() - 1, width])
        })
    }

    fn gram_vectors(terms: &FlexTensor, rows: &RowSet) -> Vec<BlockGram> {
        let sums = with_real!(terms, E => sums(values::<E>(terms), dims(terms)[1], &rows.offsets));
        products(&sums, &rows.blocks, |a, b| a.iter().zip(b).map(|(x, y)| x * y).sum())
    }

    fn dots(x: &FlexTensor, vectors: &[Range<usize>], blocks: &[Range<usize>]) -> Vec<BlockGram> {
        let width = dims(x)[1];
        with_real!(x, E => {
            let x = values::<E>(x);
            let of = |rows: &Range<usize>| &x[rows.start * width..rows.end * width];
            products(vectors, blocks, |a, b| vectorised!(dot_wide(of(a), of(b))))
        })
    }

    fn activate(f: Activation, a: &FlexTensor, b: Option<&FlexTensor>) -> FlexTensor {
        with_real!(a, E => {
            matrix(activation::cpu::forward(f, values::<E>(a), b.map(values::<E>), dims(a)[1]), dims(a))
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
            let (da, db) = activation::cpu::vjp(f, values::<E>(a), b, values(delta), index, dims(a)[1]);
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
            let (angles, half) = ((values::<E>(cos), values::<E>(sin)), dims(cos)[1]);
            in_place::<E>(x, |x| rotary::cpu::rotate(x, width, [head_dim, half], angles, index, inverse))
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

    fn attention(
        q: &FlexTensor,
        k: &FlexTensor,
        v: &FlexTensor,
        spans: &[Span],
        heads: Heads,
    ) -> (FlexTensor, FlexTensor) {
        let rows = dims(q)[0];
        with_real!(q, E => {
            let qkv = (values::<E>(q), values::<E>(k), values::<E>(v));
            let (out, normaliser) = attention::cpu::forward(qkv, rows, spans, heads);
            (matrix(out, dims(q)), matrix(normaliser, [rows, heads.heads]))
        })
    }

    fn attention_vjp(
        [q, k, v]: [&FlexTensor; 3],
        (_, normaliser): (&FlexTensor, &FlexTensor),
        delta: &FlexTensor,
        segments: &[Segment],
        heads: Heads,
    ) -> [FlexTensor; 3] {
        let rows = dims(delta)[0];
        with_real!(q, E => {
            let qkv = (values::<E>(q), values::<E>(k), values::<E>(v));
            let [dq, dk, dv] = attention::cpu::vjp(qkv, values(normaliser), values(delta), segments, heads);
            let kv = heads.kv_heads * heads.head_dim;
            [matrix(dq, [rows, heads.heads * heads.head_dim]), matrix(dk, [rows, kv]), matrix(dv, [rows, kv])]
        })
    }

    fn head(
        y: &FlexTensor,
        w: &FlexTensor,
        targets: &[u32],
        cap: Option<SoftCap>,
        cotangents: Option<&HeadCotangents<'_>>,
    ) -> HeadOutput<FloatTensor<Self>, Vec<BlockGram>> {
        let d = dims(w)[1];
        with_real!(y, E => {
            let walk = head::cpu::walk(values::<E>(y), Stored::of(w), d, targets, cap, cotangents);
            HeadOutput {
                logp: walk.logp,
                log_normaliser: walk.log_normaliser,
                entropy: walk.entropy,
                best: walk.best,
                rank: walk.rank,
                back: matrix(walk.back, [targets.len(), d]),
                gram: walk.gram,
            }
        })
    }

    fn gram_tile(x: &FlexTensor, delta: &FlexTensor, rows: &RowSet) -> Vec<BlockGram> {
        with_real!(x, E => tile::cpu::tile(values::<E>(x), dims(x)[1], values(delta), dims(delta)[1], rows))
    }

    fn gram_rows(x: &FlexTensor, deltas: &[&FlexTensor], rows: &RowSet) -> Vec<Vec<BlockGram>> {
        with_real!(x, E => {
            let deltas: Vec<(&[E], usize)> = deltas.iter().map(|d| (values(d), dims(d)[1])).collect();
            gram::cpu::rows(values::<E>(x), dims(x)[1], &deltas, rows)
        })
    }
}
