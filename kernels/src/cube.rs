//! What Vulkan and CUDA run: our CubeCL kernels, and burn's operations for the little that has none.
//!
//! [`Kernels`] is implemented for concrete backends, so that the device's code is generated in this crate
//! and nowhere else.
use crate::device::{Cuda, Vulkan};
use crate::{
    Activation, BlockGram, DType, FloatTensor, HeadCotangents, HeadOutput, Heads, Kernels, NormKind, Pending, RowSet,
    Segment, SoftCap, Span, TensorData, activation, attention, composed, gram, head, norm, product, rotary, sums, tile,
};
use burn_backend::BackendTypes;
use burn_cubecl::{CubeRuntime, tensor::CubeTensor};
use std::ops::Range;

/// `scale · x · op(w)`, plus `onto`.
fn matmul<R: CubeRuntime>(
    x: &CubeTensor<R>,
    w: &CubeTensor<R>,
    transposed: bool,
    scale: f64,
    onto: Option<CubeTensor<R>>,
) -> CubeTensor<R> {
    let y =
        if transposed { product::product(x, &product::turned(w), x.dtype) } else { product::product(x, w, x.dtype) };
    let (scaled, dtype) = (scale.to_bits() != 1.0f64.to_bits(), y.dtype);
    let scalar = || cubecl::prelude::InputScalar::new(scale, dtype);
    let y = if scaled { burn_cubecl::ops::numeric::mul_scalar(y, scalar()) } else { y };
    match onto {
        Some(onto) => burn_cubecl::ops::numeric::add(onto, y),
        None => y,
    }
}

/// The rows of a matrix that hold no values to copy.
fn weight_gradient<R: CubeRuntime>(x: &CubeTensor<R>, delta: &CubeTensor<R>, range: Range<usize>) -> CubeTensor<R> {
    let (x, delta) = (product::rows(x, range.clone()), product::rows(delta, range));
    product::product(&product::turned(&x), &delta, x.dtype)
}

fn wait<R: CubeRuntime>(device: &R::CubeDevice) {
    // what failed on the device is said by the next read
    let _ = futures_lite::future::block_on(R::client(device).sync());
}

fn memory_in_use<R: CubeRuntime>(device: &R::CubeDevice) -> Option<(u64, u64)> {
    R::client(device).memory_usage().ok().map(|usage| (usage.bytes_in_use, usage.bytes_reserved))
}

macro_rules! implement {
    ($backend:ty, $runtime:ty) => {
        impl Kernels for $backend {
            type Pending = Pending<$runtime>;

            fn collect(pending: Vec<Self::Pending>) -> Vec<Vec<BlockGram>> {
                pending.into_iter().map(Pending::collect).collect()
            }

            fn pending_bytes(pending: &Self::Pending) -> usize {
                pending.bytes()
            }

            fn wait(device: &Self::Device) {
                wait::<$runtime>(device);
            }

            fn memory_in_use(device: &Self::Device) -> Option<(u64, u64)> {
                memory_in_use::<$runtime>(device)
            }

            fn upload(values: TensorData, device: &<Self as BackendTypes>::Device) -> FloatTensor<Self> {
                composed::upload::<Self>(values, device)
            }

            fn takes_stored(_dtype: DType) -> bool {
                false
            }

            fn cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self> {
                if x.dtype == dtype { x } else { composed::cast::<Self>(x, dtype) }
            }

            fn download(x: &FloatTensor<Self>) -> Vec<f64> {
                composed::download::<Self>(x)
            }

            fn matmul(
                x: &FloatTensor<Self>,
                w: &FloatTensor<Self>,
                transposed: bool,
                scale: f64,
                onto: Option<FloatTensor<Self>>,
            ) -> FloatTensor<Self> {
                matmul(x, w, transposed, scale, onto)
            }

            fn weight_gradient(
                x: &FloatTensor<Self>,
                delta: &FloatTensor<Self>,
                rows: Range<usize>,
            ) -> FloatTensor<Self> {
                weight_gradient(x, delta, rows)
            }

            fn add_bias(y: FloatTensor<Self>, bias: &FloatTensor<Self>) -> FloatTensor<Self> {
                composed::add_bias::<Self>(y, bias)
            }

            fn add_scaled(a: FloatTensor<Self>, b: &FloatTensor<Self>, scale: f64) -> FloatTensor<Self> {
                composed::add_scaled::<Self>(a, b, scale)
            }

            fn gather(x: &FloatTensor<Self>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<Self> {
                sums::gather(x, index, weights)
            }

            fn scatter_add(x: &FloatTensor<Self>, index: &[u32], rows: usize) -> FloatTensor<Self> {
                sums::scatter_add(x, index, rows)
            }

            fn norm(
                x: &FloatTensor<Self>,
                gain: &FloatTensor<Self>,
                bias: Option<&FloatTensor<Self>>,
                kind: NormKind,
            ) -> FloatTensor<Self> {
                norm::norm(x, gain, bias, kind)
            }

            fn norm_vjp(
                x: &FloatTensor<Self>,
                gain: &FloatTensor<Self>,
                kind: NormKind,
                delta: &FloatTensor<Self>,
                index: &[u32],
                onto: Option<FloatTensor<Self>>,
            ) -> FloatTensor<Self> {
                norm::norm_vjp(x, gain, kind, delta, index, onto)
            }

            fn norm_gain_terms(
                x: &FloatTensor<Self>,
                kind: NormKind,
                delta: &FloatTensor<Self>,
                index: &[u32],
            ) -> FloatTensor<Self> {
                norm::norm_gain_terms(x, kind, delta, index)
            }

            fn segment_sums(x: &FloatTensor<Self>, offsets: &[usize]) -> FloatTensor<Self> {
                sums::segment_sums(x, offsets)
            }

            fn gram_vectors(terms: &FloatTensor<Self>, rows: &RowSet) -> Self::Pending {
                sums::gram_vectors(terms, rows)
            }

            fn dots(x: &FloatTensor<Self>, vectors: &[Range<usize>], blocks: &[Range<usize>]) -> Self::Pending {
                sums::dots(x, vectors, blocks)
            }

            fn activate(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>) -> FloatTensor<Self> {
                activation::activate(f, a, b)
            }

            fn activate_vjp(
                f: Activation,
                a: &FloatTensor<Self>,
                b: Option<&FloatTensor<Self>>,
                delta: &FloatTensor<Self>,
                index: &[u32],
            ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
                activation::activate_vjp(f, a, b, delta, index)
            }

            fn rotary(
                x: FloatTensor<Self>,
                cos: &FloatTensor<Self>,
                sin: &FloatTensor<Self>,
                index: Option<&[u32]>,
                head_dim: usize,
                inverse: bool,
            ) -> FloatTensor<Self> {
                rotary::rotary(x, cos, sin, index, head_dim, inverse)
            }

            fn split_columns(x: &FloatTensor<Self>, widths: &[usize]) -> Vec<FloatTensor<Self>> {
                let ends = widths.iter().scan(0, |end, width| {
                    *end += width;
                    Some(*end - width..*end)
                });
                ends.map(|columns| product::columns(x, columns)).collect()
            }

            fn join_columns(parts: &[FloatTensor<Self>]) -> FloatTensor<Self> {
                composed::join_columns::<Self>(parts)
            }

            fn attention(
                q: &FloatTensor<Self>,
                k: &FloatTensor<Self>,
                v: &FloatTensor<Self>,
                spans: &[Span],
                heads: Heads,
            ) -> (FloatTensor<Self>, FloatTensor<Self>) {
                attention::attention(q, k, v, spans, heads)
            }

            fn attention_vjp(
                qkv: [&FloatTensor<Self>; 3],
                forward: (&FloatTensor<Self>, &FloatTensor<Self>),
                delta: &FloatTensor<Self>,
                segments: &[Segment],
                heads: Heads,
            ) -> [FloatTensor<Self>; 3] {
                attention::attention_vjp(qkv, forward, delta, segments, heads)
            }

            fn head(
                y: &FloatTensor<Self>,
                w: &FloatTensor<Self>,
                targets: &[u32],
                cap: Option<SoftCap>,
                cotangents: Option<&HeadCotangents<'_>>,
            ) -> HeadOutput<FloatTensor<Self>, Self::Pending> {
                head::head(y, w, targets, cap, cotangents)
            }

            fn gram_tile(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: &RowSet) -> Self::Pending {
                tile::gram_tile(x, delta, rows)
            }

            fn gram_rows(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Self::Pending> {
                gram::gram_rows(x, deltas, rows)
            }
        }
    };
}

implement!(Vulkan, burn_wgpu::WgpuRuntime);
implement!(Cuda, cubecl::cuda::CudaRuntime);
