//! The layers of a decoder, one a file: parameters, forward pass, vector–Jacobian product, and what it hands to a sink
//! (docs/mathematics.md, sections 3 and 4).
//!
//! Rows of the forward pass are `N`, backward rows `R`; a [`RowSet`] maps each backward row to the forward row whose
//! activations it uses. A layer keeps nothing itself: its forward pass returns what its vjp needs.
mod attention;
mod block;
mod delta_net;
mod experts;
mod feed_forward;
mod latent;
mod linear;
mod magnitude;
mod matrix;
mod mixer;
mod mlp;
mod mlp_and_experts;
mod norm;
mod one_of;
mod per_layer;
mod per_layer_inputs;
mod projection;
mod router;
mod sinks;
mod sublayer;
mod vector;

pub use attention::{Attention, AttentionTrace, Source};
pub use block::{Block, BlockTrace};
pub use delta_net::{DeltaNet, DeltaNetTrace};
pub use experts::{Clamp, ExpertNorms, Experts, ExpertsTrace, FusedLora, SharedExpert};
pub use feed_forward::{FeedForward, FeedForwardTrace};
pub use latent::{Latent, LatentDims};
pub use linear::{Linear, Lora, whole};
pub(crate) use linear::{bias_of, weight_of};
pub use magnitude::{ColumnNorms, Magnitude};
pub use matrix::Matrix;
pub use mixer::{Mixer, MixerTrace};
pub use mlp::{Mlp, MlpTrace};
pub use mlp_and_experts::{MlpAndExperts, MlpAndExpertsTrace};
pub use norm::Norm;
pub use per_layer::{PerLayer, PerLayerTrace};
pub use per_layer_inputs::{PerLayerInputs, PerLayerInputsTrace};
pub use projection::{Pieces, Projection};
pub use router::{Choices, Routing, RoutingRule};
pub use sinks::Sinks;
pub(crate) use sublayer::scaled;
pub use sublayer::{Layer, Sublayer, SublayerTrace};
pub use vector::Vector;

use crate::scope::InScope;
use crate::sink::Sink;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet, Segment, Span, TensorMetadata};

/// cos and sin of the forward rows' rotary angles, `[N, rotated pairs]` each.
pub type Angles<B> = (FloatTensor<B>, FloatTensor<B>);

/// What the layers of a block see in a forward pass.
pub struct Forward<'a, B: Kernels> {
    /// What attends to what.
    pub spans: &'a [Span],
    /// Of each of the model's rotary embeddings.
    pub angles: &'a [Angles<B>],
    /// Keys and values of the block that this one borrows them from, as they are attended to.
    pub lent: Option<&'a [FloatTensor<B>; 2]>,
    /// What the block reads of each row's token beside the residual stream, `[N, width]`.
    pub by_token: Option<&'a FloatTensor<B>>,
}

/// Cotangents that reach a block beside the residual stream, and leave it.
#[derive(Debug)]
pub struct Beside<B: Kernels> {
    /// Of its keys and values as they are attended to, from the blocks that borrow them, `[R, width]`.
    pub of_borrowers: Option<[FloatTensor<B>; 2]>,
    /// Of the keys and values that it borrows, `[R, width]`.
    pub to_lender: Option<[FloatTensor<B>; 2]>,
    /// Of what it reads of each row's token, `[R, width]`.
    pub by_token: Option<FloatTensor<B>>,
}

impl<B: Kernels> Default for Beside<B> {
    fn default() -> Self {
        Self { of_borrowers: None, to_lender: None, by_token: None }
    }
}

/// Rows of a backward pass at one block.
#[derive(Clone, Copy, Debug)]
pub struct BackwardRows<'a> {
    /// All rows that the cotangents reach.
    pub full: &'a RowSet,
    /// Their segments in attention; `active_from` is where `active` begins, or 0.
    pub segments: &'a [Segment],
    /// At the top block: the rows whose cotangent is not exactly zero.
    pub active: Option<&'a RowSet>,
}

impl BackwardRows<'_> {
    /// The rows whose cotangents come from above.
    pub(crate) fn here(&self) -> &RowSet {
        self.active.unwrap_or(self.full)
    }

    /// Cotangents of [`here`](Self::here), spread over all rows.
    pub(crate) fn spread<B: Kernels>(&self, delta: FloatTensor<B>) -> FloatTensor<B> {
        match self.active {
            None => delta,
            Some(active) => B::scatter_add(&delta, &places(self.full, active), self.full.rows()),
        }
    }
}

/// Row of `full` of each row of `active`, whose cotangents are the ends of the same cotangents' rows.
fn places(full: &RowSet, active: &RowSet) -> Vec<u32> {
    let cotangent_rows = |k: usize| {
        let (all, part) = (full.of(k), active.of(k));
        all.end - part.len()..all.end
    };
    (0..full.cotangents()).flat_map(cotangent_rows).map(tanglescope_kernels::as_index).collect()
}

/// A backward pass at one block: its rows, which parameters are wanted, and where they are delivered.
pub struct Backward<'a, B: Kernels> {
    /// Its rows.
    pub rows: BackwardRows<'a>,
    /// Of each of the model's rotary embeddings.
    pub angles: &'a [Angles<B>],
    /// The parameters that are delivered.
    pub scope: &'a InScope,
    /// Where to.
    pub sink: &'a mut dyn Sink<B>,
    /// What comes and goes beside the residual stream.
    pub beside: Beside<B>,
    /// What norms of columns are, where an adapter has learned lengths of them.
    pub column_norms: ColumnNorms,
}

/// Sums of the cotangents of keys, and of those of values.
pub(crate) fn sums<B: Kernels>(
    [keys, values]: [FloatTensor<B>; 2],
    others: &[FloatTensor<B>; 2],
) -> [FloatTensor<B>; 2] {
    [B::add_scaled(keys, &others[0], 1.0), B::add_scaled(values, &others[1], 1.0)]
}

/// A parameter-holding part of a layer.
pub enum Part<'a, B: Kernels> {
    /// A linear map.
    Linear(&'a mut Linear<B>),
    /// A linear map of one of many experts.
    Expert(&'a mut Linear<B>),
    /// An adapter's changes of all experts of a layer: of gate and up, and of down.
    Fused(&'a mut [Option<FusedLora<B>>; 2]),
    /// A norm.
    Norm(&'a mut Norm<B>),
    /// Other numbers.
    Vector(&'a mut Vector<B>),
}

/// Takes the parts of a layer one by one, in the order of the forward pass.
pub type Visitor<'a, B> = dyn FnMut(Part<'_, B>) + 'a;

/// Rows and columns.
fn dims<B: Kernels>(x: &FloatTensor<B>) -> [usize; 2] {
    let shape = x.shape();
    [shape[0], shape[1]]
}
