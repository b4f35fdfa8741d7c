//! The same composed of burn's operations.
use crate::reference::{unwrap, wrap};
use crate::{FloatTensor, NormKind};
use burn_backend::Backend;
use burn_tensor::Tensor;

/// x̂ and 1/√(σ² + ε).
fn normalised<B: Backend>(x: Tensor<B, 2>, kind: NormKind) -> (Tensor<B, 2>, Tensor<B, 2>) {
    let x = if kind.centred { x.clone() - x.mean_dim(1) } else { x };
    let inverse = (x.clone() * x.clone()).mean_dim(1).add_scalar(kind.eps).sqrt().recip();
    (x * inverse.clone(), inverse)
}

/// See [`Norm::norm`](super::Norm::norm).
#[must_use]
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
