//! The same composed of burn's operations.
use super::Pairs;
use crate::FloatTensor;
use crate::reference::{unwrap, wrap};
use crate::rows::reference::gather;
use burn_backend::Backend;
use burn_tensor::Tensor;

/// See [`Rotary::rotary`](super::Rotary::rotary).
#[must_use]
pub fn rotary<B: Backend>(
    x: FloatTensor<B>,
    cos: &FloatTensor<B>,
    sin: &FloatTensor<B>,
    index: Option<&[u32]>,
    (head_dim, pairs): (usize, Pairs),
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
    let rotated = x.clone().slice([0..rows, 0..heads, 0..2 * half]);
    // [first or second of a pair, pair]
    let apart = match pairs {
        Pairs::Halves => rotated.reshape([rows, heads, 2, half]),
        Pairs::Neighbours => rotated.reshape([rows, heads, half, 2]).swap_dims(2, 3),
    };
    let of = |which: usize| apart.clone().slice([0..rows, 0..heads, which..which + 1, 0..half]).squeeze_dim::<3>(2);
    let (low, high) = (of(0), of(1));
    let turned = vec![low.clone() * cos.clone() - high.clone() * sin.clone(), high * cos + low * sin];
    let turned = Tensor::stack::<4>(turned, 2);
    let turned = if pairs == Pairs::Neighbours { turned.swap_dims(2, 3) } else { turned };
    let mut parts = vec![turned.reshape([rows, heads, 2 * half])];
    if 2 * half < head_dim {
        parts.push(x.slice([0..rows, 0..heads, 2 * half..head_dim]));
    }
    unwrap(Tensor::cat(parts, 2).reshape([rows, width]))
}
