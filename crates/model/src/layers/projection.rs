//! Linear maps of one input whose outputs are pieces: queries, keys and values, or gate and up; stored as a matrix a piece, or
//! joined in one.
use super::linear::{Changed, LinearCotangent};
use super::{Backward, Linear, Part, Visitor, dims};
use tanglescope_kernels::{FloatTensor, Kernels};

/// Linear maps of one input whose outputs are pieces: queries, keys and values, or gate and up.
#[derive(Clone, Debug)]
pub struct Projection<B: Kernels> {
    /// The maps.
    pub maps: Vec<Linear<B>>,
    /// How the pieces lie in the output of each.
    pub pieces: Vec<Pieces>,
}

/// How pieces lie in the output of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// It is one.
    Whole,
    /// Columns of these widths.
    Columns(Vec<usize>),
    /// One head's part of every piece, of these widths, then the next head's.
    ByHead(Vec<usize>),
}

impl Pieces {
    /// Their number.
    fn number(&self) -> usize {
        match self {
            Self::Whole => 1,
            Self::Columns(widths) | Self::ByHead(widths) => widths.len(),
        }
    }

    pub(crate) fn split<B: Kernels>(&self, output: FloatTensor<B>) -> Vec<FloatTensor<B>> {
        match self {
            Self::Whole => vec![output],
            Self::Columns(widths) => B::split_columns(&output, widths),
            Self::ByHead(widths) => {
                let [rows, width] = dims::<B>(&output);
                let heads = width / widths.iter().sum::<usize>();
                let by_head = B::reshape(output, [rows * heads, width / heads]);
                let split = B::split_columns(&by_head, widths).into_iter().zip(widths);
                split.map(|(piece, width)| B::reshape(piece, [rows, heads * width])).collect()
            }
        }
    }

    pub(crate) fn join<B: Kernels>(&self, pieces: Vec<FloatTensor<B>>) -> FloatTensor<B> {
        match self {
            Self::Whole => pieces.into_iter().next().unwrap_or_else(|| unreachable!("an output has a piece")),
            Self::Columns(_) => B::join_columns(&pieces),
            Self::ByHead(widths) => {
                let [rows, width] = dims::<B>(&pieces[0]);
                let heads = width / widths[0];
                let by_head = pieces.into_iter().zip(widths).map(|(p, width)| B::reshape(p, [rows * heads, *width]));
                let joined = B::join_columns(&by_head.collect::<Vec<_>>());
                B::reshape(joined, [rows, heads * widths.iter().sum::<usize>()])
            }
        }
    }
}

/// What the forward pass of a projection leaves of the change of each map that has an adapter.
pub(crate) type Low<B> = Vec<Option<Changed<B>>>;

impl<B: Kernels> Projection<B> {
    /// Maps whose outputs are a piece each.
    #[must_use]
    pub fn of_whole(maps: Vec<Linear<B>>) -> Self {
        Self { pieces: vec![Pieces::Whole; maps.len()], maps }
    }

    /// The pieces, `[N, width]` each, and what the vjp needs.
    pub(crate) fn forward(&self, x: &FloatTensor<B>) -> (Vec<FloatTensor<B>>, Low<B>) {
        let (outputs, low): (Vec<_>, Vec<_>) = self.maps.iter().map(|map| map.forward(x, None)).unzip();
        let pieces = outputs.into_iter().zip(&self.pieces).flat_map(|(output, pieces)| pieces.split::<B>(output));
        (pieces.collect(), low)
    }

    /// Cotangents of the maps' outputs from those of the pieces.
    pub(crate) fn joined(&self, pieces: Vec<FloatTensor<B>>) -> Vec<FloatTensor<B>> {
        let mut rest = pieces.into_iter();
        self.pieces.iter().map(|of| of.join::<B>(rest.by_ref().take(of.number()).collect())).collect()
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
