//! The two number types of the CPU kernels, and the buffers that they are computed in.
use burn_backend::{Element, TensorMetadata};
use burn_flex::{FlexTensor, Layout};
use pulp::Simd;

/// `f32` or `f64`, with an exponential that vectorises in f32 and is the library's in f64.
pub trait Real:
    Element + num_traits::Float + bytemuck::Pod + std::ops::AddAssign + std::iter::Sum + Send + Sync
{
    /// eˣ; within 2 units in the last place for f32, zero below its smallest normal number. Fused products are a function's call where the
    /// processor's are not known of, as they are within `vectorised!`.
    fn exp_fast(self) -> Self;
    /// tanh x; for f32 within 2⁻²¹ of it, by the fast exponential.
    fn tanh_fast(self) -> Self;
    /// The error function.
    fn erf(self) -> Self;
    /// Rounds from f64.
    fn of(x: f64) -> Self;
    /// Widens to f64.
    fn wide(self) -> f64;
    /// As many as an instruction takes.
    type Vector<S: Simd>: bytemuck::Pod;
    /// All whole vectors of a slice.
    fn vectors<S: Simd>(x: &[Self]) -> &[Self::Vector<S>];
    /// The same value in every place.
    fn spread<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// a·b + c, rounded once where the processor can.
    fn fused<S: Simd>(simd: S, a: Self::Vector<S>, b: Self::Vector<S>, c: Self::Vector<S>) -> Self::Vector<S>;
}

/// A number type's vectors.
macro_rules! vectors {
    ($Vector:ident, $vectors:ident, $spread:ident, $fused:ident) => {
        type Vector<S: Simd> = S::$Vector;
        #[inline(always)]
        fn vectors<S: Simd>(x: &[Self]) -> &[S::$Vector] {
            S::$vectors(x).0
        }
        #[inline(always)]
        fn spread<S: Simd>(simd: S, x: Self) -> S::$Vector {
            simd.$spread(x)
        }
        #[inline(always)]
        fn fused<S: Simd>(simd: S, a: S::$Vector, b: S::$Vector, c: S::$Vector) -> S::$Vector {
            simd.$fused(a, b, c)
        }
    };
}

impl Real for f64 {
    vectors!(f64s, as_simd_f64s, splat_f64s, mul_add_f64s);

    #[inline(always)]
    fn exp_fast(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn tanh_fast(self) -> Self {
        self.tanh()
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
}

impl Real for f32 {
    vectors!(f32s, as_simd_f32s, splat_f32s, mul_add_f32s);

    /// Cephes' `expf`: x = n·ln 2 + r with |r| ≤ ln 2 / 2, a polynomial for eʳ, n into the exponent bits.
    #[inline(always)]
    fn exp_fast(self) -> Self {
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        /// Adding and taking off 1.5·2²³ rounds to the nearest integer.
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = rounded - ROUND;
        let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
        let mut p = 1.987_569_1e-4f32;
        p = p.mul_add(r, 1.398_199_9e-3);
        p = p.mul_add(r, 8.333_452e-3);
        p = p.mul_add(r, 4.166_579_6e-2);
        p = p.mul_add(r, 1.666_666_5e-1);
        p = p.mul_add(r, 0.5);
        let y = (p * r).mul_add(r, r) + 1.0;
        // neighbours of ROUND are 1 apart, so that the bits differ by n, which is between −126 and 127
        let n = rounded.to_bits().wrapping_sub(ROUND.to_bits());
        let bits = n.wrapping_add(127) << 23;
        let y = y * f32::from_bits(bits);
        if self < -87.0 { 0.0 } else { y }
    }
    #[inline(always)]
    fn tanh_fast(self) -> Self {
        1.0 - 2.0 / ((2.0 * self).exp_fast() + 1.0)
    }
    fn erf(self) -> Self {
        libm::erff(self)
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
}

/// Runs a body for the number type of a tensor: `with_real!(tensor, E => expression)`.
macro_rules! with_real {
    ($tensor:expr, $E:ident => $body:expr) => {
        match burn_backend::TensorMetadata::dtype($tensor) {
            burn_backend::DType::F32 => {
                type $E = f32;
                $body
            }
            burn_backend::DType::F64 => {
                type $E = f64;
                $body
            }
            other => unreachable!("the CPU kernels run in f32 and f64, not {other:?}"),
        }
    };
}
pub(crate) use with_real;

/// The values of a tensor; the kernels only ever make contiguous ones.
pub fn values<E: Real>(x: &FlexTensor) -> &[E] {
    &x.storage::<E>()[..x.shape().num_elements()]
}

/// `[rows, features]` of a matrix.
pub fn dims(x: &FlexTensor) -> [usize; 2] {
    let shape = x.shape();
    [shape[0], shape[1]]
}

/// Wraps values as a matrix without copying them.
pub fn matrix<E: Real>(values: Vec<E>, dims: [usize; 2]) -> FlexTensor {
    let bytes = burn_backend::Bytes::from_elems(values);
    FlexTensor::new(bytes, Layout::contiguous(dims.into()), E::dtype())
}

/// Changes a tensor's values in place, copying them first only where they are shared.
pub fn in_place<E: Real>(mut x: FlexTensor, change: impl FnOnce(&mut [E])) -> FlexTensor {
    let n = x.shape().num_elements();
    change(&mut x.storage_mut::<E>()[..n]);
    x
}

/// Memory that is about to be written whole. Not clearing it first saves a pass over every result.
#[allow(unsafe_code, clippy::uninit_vec)]
pub fn unwritten<E: Real>(n: usize) -> Vec<E> {
    let mut v = Vec::with_capacity(n);
    // SAFETY: E is f32 or f64, for which every bit pattern is a value, the capacity is n, and every caller writes all
    // n entries before reading one.
    unsafe { v.set_len(n) };
    v
}

/// Folds lanes, a power of two and at most 32, by halves: one after the other, each would wait for the one before. The halves are written out, since
/// lanes of a loop that is not unrolled are in memory (a product of 576 values: 28 ns, and 80 with `half /= 2`).
#[inline(always)]
fn folded<T: Copy, const LANES: usize>(mut lanes: [T; LANES], fold: impl Fn(T, T) -> T) -> T {
    const { assert!(LANES.is_power_of_two() && LANES <= 32) };
    for half in [16, 8, 4, 2, 1] {
        if half < LANES {
            for i in 0..half {
                lanes[i] = fold(lanes[i], lanes[i + half]);
            }
        }
    }
    lanes[0]
}

/// Σ a·b in the working type, over 16 lanes.
#[inline(always)]
pub fn dot<E: Real>(a: &[E], b: &[E]) -> E {
    const LANES: usize = 16;
    let mut sums = [E::of(0.0); LANES];
    let (a_body, a_tail) = a.as_chunks::<LANES>();
    let (b_body, b_tail) = b.as_chunks::<LANES>();
    for (x, y) in a_body.iter().zip(b_body) {
        for i in 0..LANES {
            sums[i] += x[i] * y[i];
        }
    }
    let mut total = folded(sums, |x, y| x + y);
    for (&x, &y) in a_tail.iter().zip(b_tail) {
        total += x * y;
    }
    total
}

/// Σ a in the working type over lanes.
#[inline(always)]
pub fn sum<E: Real>(a: &[E]) -> E {
    const LANES: usize = 32;
    let mut sums = [E::of(0.0); LANES];
    let (body, tail) = a.as_chunks::<LANES>();
    for x in body {
        for i in 0..LANES {
            sums[i] += x[i];
        }
    }
    tail.iter().fold(folded(sums, |x, y| x + y), |sum, &x| sum + x)
}

/// The highest of some values and `least`.
#[inline(always)]
pub fn highest<E: Real>(a: &[E], least: E) -> E {
    const LANES: usize = 16;
    let higher = |a: E, b: E| if b > a { b } else { a };
    let mut high = [least; LANES];
    let (body, tail) = a.as_chunks::<LANES>();
    for x in body {
        for i in 0..LANES {
            high[i] = higher(high[i], x[i]);
        }
    }
    for (high, &x) in high.iter_mut().zip(tail) {
        *high = higher(*high, x);
    }
    folded(high, higher)
}

/// Turns values into exp(x − shift), and returns their sum. Those after the last whole vector are computed as one too: one by one they
/// would take as long as the rest of a row of an attention.
#[inline(always)]
pub fn exponentiate<E: Real>(x: &mut [E], shift: E) -> E {
    let mut sums = [E::of(0.0); EXPONENTIALS];
    let (body, tail) = x.as_chunks_mut::<EXPONENTIALS>();
    for x in body {
        exponentiate_vector(x, &mut sums, shift);
    }
    if !tail.is_empty() {
        let mut last = [E::neg_infinity(); EXPONENTIALS];
        last[..tail.len()].copy_from_slice(tail);
        exponentiate_vector(&mut last, &mut sums, shift);
        tail.copy_from_slice(&last[..tail.len()]);
    }
    folded(sums, |x, y| x + y)
}

/// Values of a vector of exponentials.
const EXPONENTIALS: usize = 16;

#[inline(always)]
fn exponentiate_vector<E: Real>(x: &mut [E; EXPONENTIALS], sums: &mut [E; EXPONENTIALS], shift: E) {
    for (x, sum) in x.iter_mut().zip(sums) {
        *x = (*x - shift).exp_fast();
        *sum += *x;
    }
}

/// Σ a·b with every product widened to f64 first.
#[inline(always)]
pub fn dot_wide<E: Real>(a: &[E], b: &[E]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0f64; LANES];
    let (a_body, a_tail) = a.as_chunks::<LANES>();
    let (b_body, b_tail) = b.as_chunks::<LANES>();
    for (x, y) in a_body.iter().zip(b_body) {
        for i in 0..LANES {
            sums[i] += x[i].wide() * y[i].wide();
        }
    }
    let mut total = folded(sums, |x, y| x + y);
    for (&x, &y) in a_tail.iter().zip(b_tail) {
        total += x.wide() * y.wide();
    }
    total
}

/// What a closure that is called once takes with it.
pub struct Once;

/// Runs a loop compiled for the widest vectors of this processor (`pulp` finds out at run time). The closure is always
/// inlined: made a function of its own, it would be compiled for the oldest processors. It takes something with it that is given away once:
/// one that could be called again is called by a function that the compiler writes, and inlines only where it is short.
macro_rules! vectorised {
    ($body:expr) => {{
        let once = crate::host::real::Once;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let crate::host::real::Once = { once };
                $body
            },
        )
    }};
}
pub(crate) use vectorised;

#[cfg(test)]
mod tests {
    use super::Real;
    use proptest::prelude::*;

    proptest! {
        /// 2 ulp: the polynomial is within 1, the scaling exact, the sum rounds once more.
        #[test]
        fn fast_exponential_agrees_with_the_library(x in -86.9f32..87.9) {
            let (got, want) = (x.exp_fast(), x.exp());
            prop_assert!((got - want).abs() <= 2.0 * f32::EPSILON * want, "{x}: {got} {want}");
        }

        /// The exponential's 2 ulp, the sum's and the quotient's half each, on a quotient of at most 2; and the last difference.
        #[test]
        fn fast_hyperbolic_tangent_agrees_with_the_library(x in -100f32..100.0) {
            prop_assert!((x.tanh_fast() - x.tanh()).abs() <= 2f32.powi(-21), "{x}: {} {}", x.tanh_fast(), x.tanh());
        }
    }

    #[test]
    fn fast_exponential_of_a_masked_score_is_zero() {
        assert_eq!(f32::NEG_INFINITY.exp_fast().to_bits(), 0);
    }
}
