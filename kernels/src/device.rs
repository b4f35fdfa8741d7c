//! The devices that a run can be put on, found without starting one that is not there.
#[cfg(any(feature = "vulkan", feature = "cuda"))]
use crate::{
    Activation, BlockGram, FloatTensor, HeadOutput, Heads, Kernels, NormKind, RowSet, Segment, Span, TensorData,
    composed,
};
#[cfg(any(feature = "vulkan", feature = "cuda"))]
use std::ops::Range;

#[cfg(feature = "cuda")]
pub use burn_cuda::{Cuda, CudaDevice};
#[cfg(feature = "vulkan")]
pub use burn_wgpu::{Vulkan, WgpuDevice};

/// Methods of a concrete type, so that the device's code is generated in this crate and nowhere else.
#[cfg(any(feature = "vulkan", feature = "cuda"))]
macro_rules! composed_kernels {
    ($device:ty; $($name:ident($($arg:ident: $t:ty),*) -> $out:ty;)*) => {
        impl Kernels for $device {
            $(fn $name($($arg: $t),*) -> $out { composed::$name::<Self>($($arg),*) })*
        }
    };
    ($device:ty) => {
        composed_kernels! { $device;
            upload(values: TensorData, device: &<Self as burn_backend::BackendTypes>::Device) -> FloatTensor<Self>;
            download(x: &FloatTensor<Self>) -> Vec<f64>;
            matmul(x: &FloatTensor<Self>, w: &FloatTensor<Self>, transposed: bool, scale: f64, onto: Option<FloatTensor<Self>>) -> FloatTensor<Self>;
            weight_gradient(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: Range<usize>) -> FloatTensor<Self>;
            add_bias(y: FloatTensor<Self>, bias: &FloatTensor<Self>) -> FloatTensor<Self>;
            add_scaled(a: FloatTensor<Self>, b: &FloatTensor<Self>, scale: f64) -> FloatTensor<Self>;
            gather(x: &FloatTensor<Self>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<Self>;
            scatter_add(x: &FloatTensor<Self>, index: &[u32], rows: usize) -> FloatTensor<Self>;
            norm(x: &FloatTensor<Self>, gain: &FloatTensor<Self>, bias: Option<&FloatTensor<Self>>, kind: NormKind) -> FloatTensor<Self>;
            norm_vjp(x: &FloatTensor<Self>, gain: &FloatTensor<Self>, kind: NormKind, delta: &FloatTensor<Self>, index: &[u32], onto: Option<FloatTensor<Self>>) -> FloatTensor<Self>;
            norm_gain_terms(x: &FloatTensor<Self>, kind: NormKind, delta: &FloatTensor<Self>, index: &[u32]) -> FloatTensor<Self>;
            segment_sums(x: &FloatTensor<Self>, offsets: &[usize]) -> Vec<Vec<f64>>;
            activate(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>) -> FloatTensor<Self>;
            activate_vjp(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>, delta: &FloatTensor<Self>, index: &[u32]) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);
            rotary(x: FloatTensor<Self>, cos: &FloatTensor<Self>, sin: &FloatTensor<Self>, index: Option<&[u32]>, head_dim: usize, inverse: bool) -> FloatTensor<Self>;
            split_columns(x: &FloatTensor<Self>, widths: &[usize]) -> Vec<FloatTensor<Self>>;
            join_columns(parts: &[FloatTensor<Self>]) -> FloatTensor<Self>;
            attention(q: &FloatTensor<Self>, k: &FloatTensor<Self>, v: &FloatTensor<Self>, spans: &[Span], heads: Heads) -> FloatTensor<Self>;
            attention_vjp(q: &FloatTensor<Self>, k: &FloatTensor<Self>, v: &FloatTensor<Self>, delta: &FloatTensor<Self>, segments: &[Segment], heads: Heads) -> [FloatTensor<Self>; 3];
            head(y: &FloatTensor<Self>, w: &FloatTensor<Self>, targets: &[u32], blocks: &[Range<usize>]) -> HeadOutput<FloatTensor<Self>>;
            gram_tile(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: &RowSet) -> Vec<BlockGram>;
            gram_rows(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Vec<BlockGram>>;
        }
    };
}

#[cfg(feature = "vulkan")]
composed_kernels!(Vulkan);
#[cfg(feature = "cuda")]
composed_kernels!(Cuda);
