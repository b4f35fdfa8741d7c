//! Short causal convolutions, each channel with weights of its own (docs/mathematics.md, section 3).
//!
//! `yₜ = Σ_a w[a] ∘ xₜ₋ₐ` over the rows of a sequence; its vjp is the same sum over the rows behind, `dxₜ = Σ_a w[a] ∘ δₜ₊ₐ`.
pub mod bench;
mod cpu;
mod cube;
mod launch;
pub mod reference;

use crate::{Backend, FloatTensor, Segment, Span, as_index};

/// Stands for no row, where a sequence does not reach so far.
pub const NO_ROW: u32 = u32::MAX;

/// Sums of weighted rows. `w[m·taps]` holds the taps of each channel as checkpoints have them: the row's own weight last.
pub trait Convolve: Backend {
    /// `Σ_a w[·, a] ∘ x[sources[·, a]]`, `[N, m]`, with `sources[N, taps]` from [`rows_before`] or [`rows_behind`].
    fn convolve(x: &FloatTensor<Self>, w: &FloatTensor<Self>, taps: usize, sources: &[u32]) -> FloatTensor<Self>;

    /// Terms `[R, m·taps]` whose sums over a cotangent's rows are the gradient of w: `δ ∘ x[sources[·, a]]`.
    fn convolve_terms(
        x: &FloatTensor<Self>,
        taps: usize,
        delta: &FloatTensor<Self>,
        sources: &[u32],
    ) -> FloatTensor<Self>;
}

/// The row at a position of a sequence of two stretches.
fn row_at([prefix, own]: [&std::ops::Range<usize>; 2], position: usize) -> u32 {
    as_index(if position < prefix.len() { prefix.start + position } else { own.start + position - prefix.len() })
}

/// Row a before each of the `rows` forward rows, `[rows, taps]`, a from 0 on.
#[must_use]
pub fn rows_before(spans: &[Span], rows: usize, taps: usize) -> Vec<u32> {
    let mut sources = vec![NO_ROW; rows * taps];
    for span in spans {
        for (i, row) in span.own.clone().enumerate() {
            let position = span.prefix.len() + i;
            for a in 0..taps.min(position + 1) {
                sources[row * taps + a] = row_at([&span.prefix, &span.own], position - a);
            }
        }
    }
    sources
}

/// Forward row a before each backward row, `[R, taps]`.
#[must_use]
pub fn forward_rows_before(segments: &[Segment], taps: usize) -> Vec<u32> {
    let mut sources = Vec::new();
    for segment in segments {
        for position in 0..segment.len() {
            let before = |a: usize| match position.checked_sub(a) {
                Some(position) => row_at([&segment.prefix, &segment.own], position),
                None => NO_ROW,
            };
            sources.extend((0..taps).map(before));
        }
    }
    sources
}

/// Backward row a behind each backward row, `[R, taps]`.
#[must_use]
pub fn rows_behind(segments: &[Segment], taps: usize) -> Vec<u32> {
    let mut first = 0;
    let mut sources = Vec::new();
    for segment in segments {
        let end = first + segment.len();
        let behind = |row: usize| (0..taps).map(move |a| if row + a < end { as_index(row + a) } else { NO_ROW });
        sources.extend((first..end).flat_map(behind));
        first = end;
    }
    sources
}
