//! Every kernel at the shapes of one transformer block of a model and of one batch: what `tanglescope bench` and the criterion
//! benches time. A kernel's cases are in its folder.
use crate::cost::Cost;
use crate::{
    Activation, AttentionSpec, DType, DeltaSpec, FloatTensor, HeadCotangents, Kernels, NormKind, RowSet, Segment, Span,
    TensorData,
};

/// The shapes of one block, and of the rows that go through it.
#[derive(Clone, Debug)]
pub struct Shapes<'a> {
    /// Number type.
    pub dtype: DType,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub mlp_width: usize,
    /// Its function.
    pub activation: Activation,
    /// The norms.
    pub norm: NormKind,
    /// Attention.
    pub attention: AttentionSpec,
    /// Pairs of a head's values that are rotated, where there is a rotary embedding.
    pub rotary_pairs: Option<usize>,
    /// The gated delta rule and taps of its convolution, where there is one.
    pub delta: Option<(DeltaSpec, usize)>,
    /// Experts, how many a row goes through, and their width, where there are any.
    pub experts: Option<(usize, usize, usize)>,
    /// Tokens of the head.
    pub vocabulary: usize,
    /// The linear maps, by name: values of input and output.
    pub maps: Vec<(&'a str, [usize; 2])>,
    /// A map with an adapter, and the rank of that.
    pub lora: Option<([usize; 2], usize)>,
    /// Rows of the forward pass.
    pub forward: usize,
    /// Rows of the backward pass.
    pub rows: &'a RowSet,
    /// What attends to what.
    pub spans: &'a [Span],
    /// The cotangents' rows in attention.
    pub segments: &'a [Segment],
    /// Predicted tokens.
    pub targets: &'a [u32],
    /// What of the head's rows each cotangent weights.
    pub head: HeadCotangents<'a>,
}

/// A call to time.
pub struct Case {
    /// The kernel, and what it is of.
    pub name: String,
    /// What it asks of the device.
    pub cost: Cost,
    /// Runs it once.
    pub run: Box<dyn FnMut()>,
}

/// The cases of one kernel; their tensors are made when it is called.
type Cases<B> = fn(&Shapes<'_>, &<B as burn_backend::BackendTypes>::Device) -> Vec<Case>;

/// All kernels, one after the other.
#[must_use]
pub fn all<B: Kernels>() -> [Cases<B>; 12] {
    [
        crate::product::bench::cases::<B>,
        crate::codes::bench::cases::<B>,
        crate::tile::bench::cases::<B>,
        crate::gram::bench::cases::<B>,
        crate::norm::bench::cases::<B>,
        crate::activation::bench::cases::<B>,
        crate::rotary::bench::cases::<B>,
        crate::attention::bench::cases::<B>,
        crate::delta::bench::cases::<B>,
        crate::convolution::bench::cases::<B>,
        crate::grouped::bench::cases::<B>,
        crate::head::bench::cases::<B>,
    ]
}

impl Case {
    pub(crate) fn new(name: impl Into<String>, cost: Cost, run: impl FnMut() + 'static) -> Self {
        Self { name: name.into(), cost, run: Box::new(run) }
    }
}

/// Values of a matrix without a pattern that a cache could like.
#[must_use]
pub fn matrix<B: Kernels>(shape: [usize; 2], dtype: DType, device: &B::Device) -> FloatTensor<B> {
    let value = |i: usize| ((i.wrapping_mul(0x9E37_79B9) >> 8) & 0xFFFF) as f32 / 32768.0 - 1.0;
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(value).collect();
    B::upload(TensorData::new(values, shape).convert_dtype(dtype), device)
}

impl Shapes<'_> {
    pub(crate) fn matrix<B: Kernels>(&self, rows: usize, columns: usize, device: &B::Device) -> FloatTensor<B> {
        matrix::<B>([rows, columns], self.dtype, device)
    }

    /// The bytes of values that are read and written, for kernels that only move them.
    pub(crate) fn moved(&self, values: usize) -> Cost {
        Cost { operations: 0.0, bytes: (values * self.dtype.size()) as f64 }
    }
}
