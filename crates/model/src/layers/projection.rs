//! Linear maps of one input whose outputs are pieces: queries, keys and values, or gate and up; stored as a matrix a piece, or
//! joined in one.
use super::linear::LinearCotangent;
use super::{Backward, Linear, Part, Visitor, dims};
use tanglescope_kernels::{FloatTensor, Kernels};

/// Linear maps of one input whose outputs are pieces: queries, keys and values, or gate and up.
#[derive(Clone, Debug)]
pub struct Projection<B: Kernels> {
    /// A map a piece, or one.
    pub maps: Vec<Linear<B>>,
    /// How the pieces lie in the maps' outputs.
    pub pieces: Pieces,
}

/// How the pieces of a projection lie in the outputs of its maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// Each is the output of a map.
    Separate,
    /// Columns of one map's output, of these widths.
    Columns(Vec<usize>),
    /// One head's part of every piece, `head_dim` columns each, then the next head's.
    ByHead {
        /// Number of pieces.
        pieces: usize,
        /// Columns of one head in one piece.
        head_dim: usize,
    },
}

/// What the forward pass of a projection leaves: s·x·A of each map that has an adapter.
pub(crate) type Low<B> = Vec<Option<FloatTensor<B>>>;

impl<B: Kernels> Projection<B> {
    /// The pieces, `[N, width]` each, and what the vjp needs.
    pub(crate) fn forward(&self, x: &FloatTensor<B>) -> (Vec<FloatTensor<B>>, Low<B>) {
        let (outputs, low): (Vec<_>, Vec<_>) = self.maps.iter().map(|map| map.forward(x, None)).unzip();
        let pieces = match &self.pieces {
            Pieces::Separate => outputs,
            Pieces::Columns(widths) => B::split_columns(&outputs[0], widths),
            Pieces::ByHead { pieces, head_dim } => {
                let [rows, width] = dims::<B>(&outputs[0]);
                let heads = width / (pieces * head_dim);
                let by_head = B::reshape(outputs[0].clone(), [rows * heads, pieces * head_dim]);
                let split = B::split_columns(&by_head, &vec![*head_dim; *pieces]).into_iter();
                split.map(|piece| B::reshape(piece, [rows, heads * head_dim])).collect()
            }
        };
        (pieces, low)
    }

    /// Cotangents of the maps' outputs from those of the pieces.
    pub(crate) fn joined(&self, pieces: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
        match &self.pieces {
            Pieces::Separate => pieces,
            Pieces::Columns(_) => vec![B::join_columns(&pieces)],
            Pieces::ByHead { head_dim, .. } => {
                let [rows, width] = dims::<B>(&pieces[0]);
                let (heads, number) = (width / head_dim, pieces.len());
                let by_head = pieces.into_iter().map(|p| B::reshape(p, [rows * heads, *head_dim]));
                let joined = B::join_columns(&by_head.collect::<Vec<_>>());
                vec![B::reshape(joined, [rows, number * width])]
            }
        }
    }

    /// The maps with the cotangents of their outputs; `input` says whether that of the input is wanted.
    pub(crate) fn cotangents<'a>(
        &'a self,
        deltas: &'a [FloatTensor<B>],
        low: &'a Low<B>,
        input: bool,
        pass: &Backward<'_, B>,
    ) -> Vec<LinearCotangent<'a, B>> {
        let maps = self.maps.iter().zip(deltas).zip(low);
        maps.map(|((map, delta), low)| map.cotangent(delta, low.as_ref(), input, pass)).collect()
    }

    pub(crate) fn visit(&mut self, f: &mut Visitor<'_, B>) {
        self.maps.iter_mut().for_each(|map| f(Part::Linear(map)));
    }

    pub(crate) fn convert<C: Kernels>(&self, f: &impl Fn(&FloatTensor<B>) -> FloatTensor<C>) -> Projection<C> {
        Projection { maps: self.maps.iter().map(|map| map.convert(f)).collect(), pieces: self.pieces.clone() }
    }
}
