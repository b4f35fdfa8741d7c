//! The kernels of Tanglescope: everything that the engine asks of a device, behind one trait over burn's [`Backend`].
//!
//! Every tensor is a row-major matrix `[rows, features]` (or a vector `[features]`) of one floating-point type.
//! [`Kernels`] is implemented for burn's CPU backend [`Flex`] over plain slices, and for Vulkan and CUDA by CubeCL kernels,
//! one source each for both. Every kernel has a folder: `cpu.rs` is its CPU twin, `cube.rs` the device's source, `launch.rs`
//! says how that is spread over a device. [`composed`] has the same operations composed of burn's own, which is the
//! independent reference of the tests.
//!
//! The engine is generic over the trait and calls nothing else of a backend, so that a device's code is generated
//! here once and a change in the engine recompiles none of it.
use std::ops::Range;

pub use burn_backend::{Backend, DType, Element, Shape, TensorData, TensorMetadata, tensor::FloatTensor};
pub use burn_flex::{Flex, FlexDevice};

mod activation;
mod attention;
mod blocks;
pub mod composed;
pub mod cost;
mod cpu;
mod cube;
pub mod device;
mod gram;
mod head;
mod host;
mod norm;
mod pending;
mod product;
mod rotary;
mod rows;
mod sums;
mod tile;

pub use pending::Pending;
pub use rows::{HeadCotangents, Heads, RowSet, Segment, SoftCap, Span};

/// K×K inner products of one block of cotangents, row-major, summed in f64.
pub type BlockGram = Vec<f64>;

/// A row-wise normalisation: `y = x̂·gain + bias`, `x̂ = (x − μ)/√(σ² + ε)`, with μ = 0 for the RMS norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormKind {
    /// Whether the mean is taken off first (`LayerNorm`) or not (RMS norm).
    pub centred: bool,
    /// ε under the root.
    pub eps: f64,
}

/// Element-wise functions of feed-forward layers, under the names of Hugging Face configs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// `silu`, `swish`: x·σ(x).
    Silu,
    /// `gelu_new`, `gelu_pytorch_tanh`, `gelu_fast`: the tanh form of GELU.
    GeluTanh,
    /// `gelu`: x·Φ(x) with the error function.
    Gelu,
    /// `relu`.
    Relu,
}

/// What the log-probability head returns for `n` rows.
#[derive(Clone, Debug)]
pub struct HeadOutput<T, P> {
    /// log p(target) of each row, `[n]`.
    pub logp: Vec<f64>,
    /// log Σ exp(logits) of each row, `[n]`.
    pub log_normaliser: Vec<f64>,
    /// Entropy of each row's distribution in nats, `[n]`.
    pub entropy: Vec<f64>,
    /// Most probable token of each row, the first of equals, `[n]`.
    pub best: Vec<u32>,
    /// Place of the target among all tokens by probability, from 1, `[n]`; equals come after it.
    pub rank: Vec<u32>,
    /// ∂ log p(target) / ∂ hidden row, `[n, d]`.
    pub back: T,
    /// Gram of the output matrix for each block of cotangents, where asked for.
    pub gram: Option<P>,
}

/// The operations of the engine on a device. `T` below is [`FloatTensor<Self>`](FloatTensor).
///
/// Shapes are the caller's duty: the engine builds them from a validated model and batch, and an implementation may
/// panic on a mismatch.
pub trait Kernels: Backend {
    /// Grams of every block of cotangents, which may still be sums in the device's memory.
    type Pending: std::fmt::Debug;

    /// Waits for the device, and sums up what is pending in f64: `[item][block]`.
    fn collect(pending: Vec<Self::Pending>) -> Vec<Vec<BlockGram>>;

    /// Bytes that a pending result keeps on the device.
    fn pending_bytes(pending: &Self::Pending) -> usize;

    /// Waits until the device has done all that it was given.
    fn wait(device: &Self::Device);

    /// Bytes of the device's memory that are in use, and that are reserved; `None` where it is the host's.
    fn memory_in_use(device: &Self::Device) -> Option<(u64, u64)>;

    /// Copies host values to the device.
    fn upload(values: TensorData, device: &Self::Device) -> FloatTensor<Self>;

    /// Whether products take matrices of weights in a type narrower than that of the other factor, as they are stored.
    fn takes_stored(dtype: DType) -> bool;

    /// The tensor in another number type.
    fn cast(x: FloatTensor<Self>, dtype: DType) -> FloatTensor<Self>;

    /// Copies a tensor to the host, as f64.
    fn download(x: &FloatTensor<Self>) -> Vec<f64>;

    /// `scale · x[N, k] · w`, plus `onto` where given; `w` is `[k, m]`, or `[m, k]` when `transposed`, in the type of `x`
    /// or as [stored](Self::takes_stored).
    fn matmul(
        x: &FloatTensor<Self>,
        w: &FloatTensor<Self>,
        transposed: bool,
        scale: f64,
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;

    /// `xᵀ[n, rows] · δ[rows, m]`: the gradient of a weight stored `[n, m]`, over the given rows of both.
    fn weight_gradient(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: Range<usize>) -> FloatTensor<Self>;

    /// Adds a vector `[m]` to every row of `y[N, m]`.
    fn add_bias(y: FloatTensor<Self>, bias: &FloatTensor<Self>) -> FloatTensor<Self>;

    /// `a + scale·b`, of equal shapes.
    fn add_scaled(a: FloatTensor<Self>, b: &FloatTensor<Self>, scale: f64) -> FloatTensor<Self>;

    /// Rows of `x` by index, each times its weight where weights are given: `[index.len(), features]`. Without weights
    /// `x` may be as [stored](Self::takes_stored), and so is the result.
    fn gather(x: &FloatTensor<Self>, index: &[u32], weights: Option<&[f64]>) -> FloatTensor<Self>;

    /// Zeros `[rows, features]` with row r of `x` added to row `index[r]`.
    fn scatter_add(x: &FloatTensor<Self>, index: &[u32], rows: usize) -> FloatTensor<Self>;

    /// Normalised rows times `gain`, plus `bias`.
    fn norm(
        x: &FloatTensor<Self>,
        gain: &FloatTensor<Self>,
        bias: Option<&FloatTensor<Self>>,
        kind: NormKind,
    ) -> FloatTensor<Self>;

    /// Cotangent of the norm's input for backward rows δ over forward rows `x[index]`, plus `onto` where given.
    fn norm_vjp(
        x: &FloatTensor<Self>,
        gain: &FloatTensor<Self>,
        kind: NormKind,
        delta: &FloatTensor<Self>,
        index: &[u32],
        onto: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self>;

    /// `δ ∘ x̂[index]`, whose sums over a cotangent's rows are the gradient of the gain.
    fn norm_gain_terms(
        x: &FloatTensor<Self>,
        kind: NormKind,
        delta: &FloatTensor<Self>,
        index: &[u32],
    ) -> FloatTensor<Self>;

    /// Sums of `x[R, m]` over each cotangent's rows: `[K, m]`, in f32 on a device.
    fn segment_sums(x: &FloatTensor<Self>, offsets: &[usize]) -> FloatTensor<Self>;

    /// Grams of vector parameters: of the sums of `terms[R, m]` over each cotangent's rows.
    fn gram_vectors(terms: &FloatTensor<Self>, rows: &RowSet) -> Self::Pending;

    /// Inner products of each block's vectors; vector k is rows `vectors[k]` of `x`, as many for all of a block.
    fn dots(x: &FloatTensor<Self>, vectors: &[Range<usize>], blocks: &[Range<usize>]) -> Self::Pending;

    /// `f(a)`, times `b` for a gated layer.
    fn activate(f: Activation, a: &FloatTensor<Self>, b: Option<&FloatTensor<Self>>) -> FloatTensor<Self>;

    /// Cotangents of `a` and `b` for backward rows δ over forward rows `index`.
    fn activate_vjp(
        f: Activation,
        a: &FloatTensor<Self>,
        b: Option<&FloatTensor<Self>>,
        delta: &FloatTensor<Self>,
        index: &[u32],
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>);

    /// Rotates the two halves of the first `2·a` values of every head of `x[N, heads·h]` by the angles of its row, or back
    /// when `inverse` (which is also the vjp), and leaves the others. `cos`, `sin` are `[forward rows, a]`; `index` maps
    /// rows of `x` to theirs.
    fn rotary(
        x: FloatTensor<Self>,
        cos: &FloatTensor<Self>,
        sin: &FloatTensor<Self>,
        index: Option<&[u32]>,
        head_dim: usize,
        inverse: bool,
    ) -> FloatTensor<Self>;

    /// Columns of `x` cut into pieces of the given widths.
    fn split_columns(x: &FloatTensor<Self>, widths: &[usize]) -> Vec<FloatTensor<Self>>;

    /// Matrices of equally many rows side by side.
    fn join_columns(parts: &[FloatTensor<Self>]) -> FloatTensor<Self>;

    /// Softmax attention over the spans, `[N, heads·h]`, and log Σ exp of each row's scores, `[N, heads]`; rows outside
    /// every span are zero.
    fn attention(
        q: &FloatTensor<Self>,
        k: &FloatTensor<Self>,
        v: &FloatTensor<Self>,
        spans: &[Span],
        heads: Heads,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// Cotangents of q, k, v for backward rows δ, one causal segment a cotangent, from what the forward pass returned.
    fn attention_vjp(
        qkv: [&FloatTensor<Self>; 3],
        forward: (&FloatTensor<Self>, &FloatTensor<Self>),
        delta: &FloatTensor<Self>,
        segments: &[Segment],
        heads: Heads,
    ) -> [FloatTensor<Self>; 3];

    /// Log-probability of each row's target under logits `y · wᵀ`, softly bounded where a cap is given, its gradient, and the
    /// Gram of `w` where asked for.
    /// The vocabulary (rows of `w[V, d]`, in the type of `y` or as [stored](Self::takes_stored)) is walked in chunks;
    /// logits of all rows and all tokens never exist together.
    fn head(
        y: &FloatTensor<Self>,
        w: &FloatTensor<Self>,
        targets: &[u32],
        cap: Option<SoftCap>,
        cotangents: Option<&HeadCotangents<'_>>,
    ) -> HeadOutput<FloatTensor<Self>, Self::Pending>;

    /// The *tile* reduction: Grams of `Σ_r δ_k[r] x[index[r]]ᵀ` for every block of cotangents.
    fn gram_tile(x: &FloatTensor<Self>, delta: &FloatTensor<Self>, rows: &RowSet) -> Self::Pending;

    /// The *gram* reduction, one result for each of several parameters that share their input.
    fn gram_rows(x: &FloatTensor<Self>, deltas: &[&FloatTensor<Self>], rows: &RowSet) -> Vec<Self::Pending>;
}
