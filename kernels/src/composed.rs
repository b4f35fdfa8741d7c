//! The kernels composed of burn's own operations: the reference that ours are tested against, and what devices run where
//! a kernel of our own would gain nothing. Formulas stand in docs/mathematics.md, section 3.
use crate::{Activation, BlockGram, DType, FloatTensor, Heads, NormKind, RowSet, Segment, SoftCap, Span, TensorData};
use burn_backend::Backend;
use burn_tensor::{Int, Tensor, TensorPrimitive, activation};
use std::ops::Range;

/// A burn tensor around a primitive.
fn wrap<B: Backend, const D: usize>(x: &FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x.clone()))
}

fn unwrap<B: Backend, const D: usize>(x: Tensor<B, D>) -> FloatTensor<B> {
    x.into_primitive().tensor()
}

fn int<B: Backend>(index: &[u32], device: &B::Device) -> Tensor<B, 1, Int> {
    let values: Vec<i32> = index.iter().map(|&i| i32::try_from(i).unwrap_or(i32::MAX)).collect();
    Tensor::from_data(TensorData::new(values, [index.len()]), device)
}

/// Host values in a given type.
fn floats<B: Backend, const D: usize>(
    values: Vec<f64>,
    shape: [usize; D],
    dtype: DType,
    device: &B::Device,
) -> Tensor<B, D> {
    Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (device, dtype))
}

fn host<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f64> {
    x.into_data().convert::<f64>().into_vec().unwrap_or_default()
}

/// See [`crate::Kernels::upload`].
pub fn upload<B: Backend>(values: TensorData, device: &B::Device) -> FloatTensor<B> {
    B::float_from_data(values, device)
}

/// See [`crate::Kernels::cast`].
pub fn cast<B: Backend>(x: FloatTensor<B>, dtype: DType) -> FloatTensor<B> {
    B::float_cast(x, dtype.into())
}

/// See [`crate::Kernels::download`].
pub fn download<B: Backend>(x: &FloatTensor<B>) -> Vec<f64> {
    let n = burn_backend::TensorMetadata::shape(x).num_elements();
    host(unwrap_any::<B>(x).reshape([n]))
}

fn unwrap_any<B: Backend>(x: &FloatTensor<B>) -> Tensor<B, 1> {
    let n = burn_backend::TensorMetadata::shape(x).num_elements();
    wrap::<B, 1>(&B::float_reshape(x.clone(), [n].into()))
}

/// See [`crate::Kernels::matmul`].
pub fn matmul<B: Backend>(
    x: &FloatTensor<B>,
    w: &FloatTensor<B>,
    transposed: bool,
    scale: f64,
    onto: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let w = wrap::<B, 2>(w);
    let y = wrap::<B, 2>(x).matmul(if transposed { w.transpose() } else { w });
    let y = if scale.to_bits() == 1.0f64.to_bits() { y } else { y * scale };
    unwrap(match onto {
        Some(onto) => wrap(&onto) + y,
        None => y,
    })
}

/// See [`crate::Kernels::weight_gradient`].
pub fn weight_gradient<B: Backend>(x: &FloatTensor<B>, delta: &FloatTensor<B>, rows: Range<usize>) -> FloatTensor<B> {
    let part = |t: &FloatTensor<B>| wrap::<B, 2>(t).slice([rows.clone()]);
    unwrap(part(x).transpose().matmul(part(delta)))
}

/// See [`crate::Kernels::add_bias`].
pub fn add_bias<B: Backend>(y: FloatTensor<B>, bias: &FloatTensor<B>) -> FloatTensor<B> {
    unwrap(wrap::<B, 2>(&y) + wrap::<B, 1>(bias).unsqueeze())
}

/// See [`crate::Kernels::add_scaled`].
pub fn add_scaled<B: Backend>(a: FloatTensor<B>, b: &FloatTensor<B>, scale: f64) -> FloatTensor<B> {
    B::float_add(a, B::float_mul_scalar(b.clone(), scale.into()))
}

/// See [`crate::Kernels::gather`].
pub fn gather<B: Backend>(x: &FloatTensor<B>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<B> {
    let x = wrap::<B, 2>(x);
    let (device, dtype) = (x.device(), x.dtype());
    let rows = x.select(0, int(index, &device));
    unwrap(match weights {
        Some(w) => rows * floats(w.to_vec(), [w.len(), 1], dtype, &device),
        None => rows,
    })
}

/// See [`crate::Kernels::scatter_add`].
pub fn scatter_add<B: Backend>(x: &FloatTensor<B>, index: &[u32], rows: usize) -> FloatTensor<B> {
    // a product with a 0/1 matrix: atomic adds would sum in an order that changes from run to run
    let x = wrap::<B, 2>(x);
    let mut places = vec![0.0; rows * index.len()];
    for (column, &row) in index.iter().enumerate() {
        places[row as usize * index.len() + column] = 1.0;
    }
    let (device, dtype) = (x.device(), x.dtype());
    unwrap(floats::<B, 2>(places, [rows, index.len()], dtype, &device).matmul(x))
}

/// x̂ and 1/√(σ² + ε).
fn normalised<B: Backend>(x: Tensor<B, 2>, kind: NormKind) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let x = if kind.centred { x.clone() - x.mean_dim(1) } else { x };
    let inverse = (x.clone() * x.clone()).mean_dim(1).add_scalar(kind.eps).sqrt().recip();
    (x * inverse.clone(), inverse)
}

/// See [`crate::Kernels::norm`].
pub fn norm<B: Backend>(
    x: &FloatTensor<B>,
    gain: &FloatTensor<B>,
    bias: Option<&FloatTensor<B>>,
    kind: NormKind,
) -> FloatTensor<B> {
    let y = normalised(wrap::<B, 2>(x), kind).0 * wrap::<B, 1>(gain).unsqueeze();
    unwrap(match bias {
        Some(bias) => y + wrap::<B, 1>(bias).unsqueeze(),
        None => y,
    })
}

/// See [`crate::Kernels::segment_sums`].
pub fn segment_sums<B: Backend>(x: &FloatTensor<B>, offsets: &[usize]) -> Vec<Vec<f64>> {
    let x = wrap::<B, 2>(x);
    let sum = |ends: &[usize]| match ends[0] == ends[1] {
        true => vec![0.0; x.dims()[1]],
        false => host(x.clone().slice([ends[0]..ends[1]]).sum_dim(0)),
    };
    offsets.windows(2).map(sum).collect()
}

/// f(x) and f′(x).
fn value_and_slope<B: Backend>(f: Activation, x: Tensor<B, 2>) -> [Tensor<B, 2>; 2] {
    match f {
        Activation::Silu => {
            let s = activation::sigmoid(x.clone());
            let slope = s.clone() * (x.clone() * s.clone().neg().add_scalar(1.0)).add_scalar(1.0);
            [x * s, slope]
        }
        Activation::GeluTanh => {
            let c = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            let square = x.clone() * x.clone();
            let s = activation::sigmoid(x.clone() * square.clone().mul_scalar(0.044_715 * c).add_scalar(c));
            let du = square.mul_scalar(3.0 * 0.044_715 * c).add_scalar(c);
            let value = x * s.clone();
            [value.clone(), s.clone() + value * s.neg().add_scalar(1.0) * du]
        }
        Activation::Gelu => {
            let phi = x.clone().mul_scalar(std::f64::consts::FRAC_1_SQRT_2).erf().add_scalar(1.0).mul_scalar(0.5);
            let density =
                (x.clone() * x.clone()).mul_scalar(-0.5).exp().mul_scalar(1.0 / (2.0 * std::f64::consts::PI).sqrt());
            [x.clone() * phi.clone(), phi + x * density]
        }
        Activation::Relu => {
            let (zeros, off) = (x.zeros_like(), x.clone().lower_equal_elem(0.0));
            let ones = x.ones_like().mask_where(off.clone(), zeros.clone());
            [x.mask_where(off, zeros), ones]
        }
    }
}

/// See [`crate::Kernels::activate`].
pub fn activate<B: Backend>(f: Activation, a: &FloatTensor<B>, b: Option<&FloatTensor<B>>) -> FloatTensor<B> {
    let [h, _] = value_and_slope(f, wrap::<B, 2>(a));
    unwrap(match b {
        Some(b) => h * wrap(b),
        None => h,
    })
}

/// See [`crate::Kernels::rotary`].
pub fn rotary<B: Backend>(
    x: FloatTensor<B>,
    cos: &FloatTensor<B>,
    sin: &FloatTensor<B>,
    index: Option<&[u32]>,
    head_dim: usize,
    inverse: bool,
) -> FloatTensor<B> {
    let x = wrap::<B, 2>(&x);
    let [rows, width] = x.dims();
    let (heads, half) = (width / head_dim, wrap::<B, 2>(cos).dims()[1]);
    let angle = |t: &FloatTensor<B>| {
        let t = index.map_or_else(|| t.clone(), |index| gather::<B>(t, index, None));
        wrap::<B, 2>(&t).reshape([rows, 1, half])
    };
    let (cos, sin) = (angle(cos), angle(sin));
    let sin = if inverse { sin.neg() } else { sin };
    let x = x.reshape([rows, heads, head_dim]);
    let low = x.clone().slice([0..rows, 0..heads, 0..half]);
    let high = x.clone().slice([0..rows, 0..heads, half..2 * half]);
    let mut parts = vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin];
    if 2 * half < head_dim {
        parts.push(x.slice([0..rows, 0..heads, 2 * half..head_dim]));
    }
    unwrap(Tensor::cat(parts, 2).reshape([rows, width]))
}

/// See [`crate::Kernels::split_columns`].
pub fn split_columns<B: Backend>(x: &FloatTensor<B>, widths: &[usize]) -> Vec<FloatTensor<B>> {
    let x = wrap::<B, 2>(x);
    let mut start = 0;
    widths
        .iter()
        .map(|w| {
            start += w;
            unwrap(x.clone().slice([0..x.dims()[0], start - w..start]))
        })
        .collect()
}

/// See [`crate::Kernels::join_columns`].
pub fn join_columns<B: Backend>(parts: &[FloatTensor<B>]) -> FloatTensor<B> {
    unwrap(Tensor::cat(parts.iter().map(wrap::<B, 2>).collect(), 1))
}

/// Rows of two ranges of a `[rows, heads·h]` matrix as `[heads, rows, h]`, key-value heads repeated for their queries.
fn by_head<B: Backend>(x: &FloatTensor<B>, rows: [&Range<usize>; 2], h: usize, repeat: usize) -> Tensor<B, 3> {
    let x = wrap::<B, 2>(x);
    let parts: Vec<Tensor<B, 2>> =
        rows.into_iter().filter(|r| !r.is_empty()).map(|r| x.clone().slice([r.clone()])).collect();
    let x = Tensor::cat(parts, 0);
    let [n, width] = x.dims();
    let x = x.reshape([n, width / h, h]).swap_dims(0, 1);
    if repeat == 1 {
        return x;
    }
    x.reshape([width / h, 1, n, h]).repeat_dim(1, repeat).reshape([width / h * repeat, n, h])
}

/// Causal softmax of scores `[heads, queries, keys]`, and the slope of their soft bound; query i sees keys up to
/// `keys − queries + i`, within the window.
fn probabilities<B: Backend>(q: Tensor<B, 3>, k: Tensor<B, 3>, heads: Heads) -> (Tensor<B, 3>, Option<Tensor<B, 3>>) {
    let scores = q.matmul(k.swap_dims(1, 2)) * heads.scale;
    let (scores, slope) = match heads.cap {
        None => (scores, None),
        Some(SoftCap(cap)) => {
            // burn's own tanh on the CPU is right to 1e-8 only
            let t = activation::sigmoid(scores * (2.0 / cap)) * 2.0 - 1.0;
            (t.clone() * cap, Some((t.clone() * t).neg().add_scalar(1.0)))
        }
    };
    let [_, queries, keys] = scores.dims();
    let (device, dtype) = (scores.device(), scores.dtype());
    // finite, so that no backend computes ∞ − ∞; e^-1e4 is zero in every type
    let unseen = |at: usize| {
        let (position, key) = (keys - queries + at / keys, at % keys);
        key > position || key < heads.first_seen(position)
    };
    let mask = (0..queries * keys).map(|at| if unseen(at) { -1.0e4 } else { 0.0 }).collect();
    (activation::softmax(scores + floats(mask, [1, queries, keys], dtype, &device), 2), slope)
}

/// See [`crate::Kernels::attention`].
pub fn attention<B: Backend>(
    q: &FloatTensor<B>,
    k: &FloatTensor<B>,
    v: &FloatTensor<B>,
    spans: &[Span],
    heads: Heads,
) -> FloatTensor<B> {
    let h = heads.head_dim;
    let repeat = heads.heads / heads.kv_heads;
    let mut out = wrap::<B, 2>(q).zeros_like();
    let width = heads.heads * h;
    for span in spans.iter().filter(|s| !s.own.is_empty()) {
        let rows = [&span.prefix, &span.own];
        let query = by_head::<B>(q, [&(0..0), &span.own], h, 1);
        let (p, _) = probabilities(query, by_head(k, rows, h, repeat), heads);
        let o = p.matmul(by_head(v, rows, h, repeat)).swap_dims(0, 1).reshape([span.own.len(), width]);
        out = out.slice_assign([span.own.clone(), 0..width], o);
    }
    unwrap(out)
}

/// See [`crate::Kernels::attention_vjp`].
pub fn attention_vjp<B: Backend>(
    q: &FloatTensor<B>,
    k: &FloatTensor<B>,
    v: &FloatTensor<B>,
    delta: &FloatTensor<B>,
    segments: &[Segment],
    heads: Heads,
) -> [FloatTensor<B>; 3] {
    let (h, repeat) = (heads.head_dim, heads.heads / heads.kv_heads);
    let mut parts: [Vec<Tensor<B, 2>>; 3] = [Vec::new(), Vec::new(), Vec::new()];
    let mut offset = 0;
    for segment in segments.iter().filter(|s| !s.is_empty()) {
        let n = segment.len();
        let rows = [&segment.prefix, &segment.own];
        let d = by_head::<B>(delta, [&(0..0), &(offset..offset + n)], h, 1);
        let (query, key, value) =
            (by_head::<B>(q, rows, h, 1), by_head::<B>(k, rows, h, repeat), by_head::<B>(v, rows, h, repeat));
        let (p, slope) = probabilities(query.clone(), key.clone(), heads);
        let dp = d.clone().matmul(value.swap_dims(1, 2));
        let ds = p.clone() * (dp.clone() - (dp * p.clone()).sum_dim(2)) * heads.scale;
        let ds = slope.map_or(ds.clone(), |slope| ds * slope);
        // query heads back onto their key-value head
        let share = |y: Tensor<B, 3>| {
            let y = y.reshape([heads.kv_heads, repeat, n, h]).sum_dim(1).reshape([heads.kv_heads, n, h]);
            y.swap_dims(0, 1).reshape([n, heads.kv_heads * h])
        };
        parts[0].push(ds.clone().matmul(key).swap_dims(0, 1).reshape([n, heads.heads * h]));
        parts[1].push(share(ds.swap_dims(1, 2).matmul(query)));
        parts[2].push(share(p.swap_dims(1, 2).matmul(d)));
        offset += n;
    }
    parts.map(|p| unwrap(Tensor::cat(p, 0)))
}

fn pairwise_products<B: Backend>(gradients: &[Option<Tensor<B, 2>>]) -> BlockGram {
    let k = gradients.len();
    let mut gram = vec![0.0; k * k];
    for i in 0..k {
        for j in 0..=i {
            let (Some(a), Some(b)) = (&gradients[i], &gradients[j]) else { continue };
            // row sums on the device, the sum of rows in f64
            let sum = host((a.clone() * b.clone()).sum_dim(1)).iter().sum();
            gram[i * k + j] = sum;
            gram[j * k + i] = sum;
        }
    }
    gram
}

/// See [`crate::Kernels::gram_tile`].
pub fn gram_tile<B: Backend>(x: &FloatTensor<B>, delta: &FloatTensor<B>, rows: &RowSet) -> Vec<BlockGram> {
    rows.blocks
        .iter()
        .map(|block| {
            // a cotangent of zero has no rows
            let gradients: Vec<Option<Tensor<B, 2>>> = block
                .clone()
                .map(|k| {
                    let of = rows.of(k);
                    (!of.is_empty()).then(|| {
                        let input = wrap::<B, 2>(&gather::<B>(x, &rows.index[of.clone()], None));
                        wrap::<B, 2>(delta).slice([of]).transpose().matmul(input)
                    })
                })
                .collect();
            pairwise_products(&gradients)
        })
        .collect()
}

/// See [`crate::Kernels::gram_rows`].
pub fn gram_rows<B: Backend>(x: &FloatTensor<B>, deltas: &[&FloatTensor<B>], rows: &RowSet) -> Vec<Vec<BlockGram>> {
    let mut out: Vec<Vec<BlockGram>> = deltas.iter().map(|_| Vec::new()).collect();
    for block in &rows.blocks {
        let of = rows.of_block(block);
        if of.is_empty() {
            out.iter_mut().for_each(|out| out.push(vec![0.0; block.len() * block.len()]));
            continue;
        }
        let input = wrap::<B, 2>(&gather::<B>(x, &rows.index[of.clone()], None));
        let xx = input.clone().matmul(input.transpose());
        for (delta, out) in deltas.iter().zip(&mut out) {
            let d = wrap::<B, 2>(delta).slice([of.clone()]);
            let product = host(d.clone().matmul(d.transpose()) * xx.clone());
            let (k, width) = (block.len(), of.len());
            let mut gram = vec![0.0; k * k];
            for i in 0..k {
                for j in 0..k {
                    let (a, b) = (rows.of(block.start + i), rows.of(block.start + j));
                    gram[i * k + j] = a
                        .map(|r| (r - of.start) * width)
                        .map(|r| product[r + b.start - of.start..r + b.end - of.start].iter().sum::<f64>())
                        .sum();
                }
            }
            out.push(gram);
        }
    }
    out
}
