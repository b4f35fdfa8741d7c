//! Numbers that carry their slopes along log π(chosen) and log π(rejected) (forward differentiation), so that a loss is
//! written once, as in its paper, and its coefficients follow from it to rounding.
use std::ops::{Add, Div, Mul, Neg, Sub};

/// A value and its two slopes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dual {
    pub value: f64,
    /// ∂/∂log π(chosen).
    pub w: f64,
    /// ∂/∂log π(rejected).
    pub l: f64,
}

impl Dual {
    /// log π(chosen).
    pub fn chosen(value: f64) -> Self {
        Self { value, w: 1.0, l: 0.0 }
    }

    /// log π(rejected).
    pub fn rejected(value: f64) -> Self {
        Self { value, w: 0.0, l: 1.0 }
    }

    /// A function of this number, from its value and slope here. A slope of exactly zero stays zero.
    fn map(self, value: f64, slope: f64) -> Self {
        let along = |part: f64| if slope == 0.0 { 0.0 } else { slope * part };
        Self { value, w: along(self.w), l: along(self.l) }
    }

    pub fn square(self) -> Self {
        self.map(self.value * self.value, 2.0 * self.value)
    }

    pub fn exp(self) -> Self {
        let e = self.value.exp();
        self.map(e, e)
    }

    /// max(0, x), with slope 0 at 0.
    pub fn positive_part(self) -> Self {
        if self.value > 0.0 { self } else { self.map(0.0, 0.0) }
    }

    /// ln(1 − eˣ) for x < 0.
    pub fn ln_1m_exp(self) -> Self {
        let x = self.value;
        let value = if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() };
        self.map(value, -1.0 / (-x).exp_m1())
    }
}

/// 1 / (1 + e⁻ˣ), without overflow.
pub fn sigmoid_of(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// 1 / (1 + e⁻ˣ).
pub fn sigmoid(x: Dual) -> Dual {
    let (up, down) = (sigmoid_of(x.value), sigmoid_of(-x.value));
    x.map(up, up * down)
}

/// ln σ(x), without overflow.
pub fn log_sigmoid(x: Dual) -> Dual {
    let v = x.value;
    let value = if v >= 0.0 { -(-v).exp().ln_1p() } else { v - v.exp().ln_1p() };
    x.map(value, sigmoid_of(-v))
}

macro_rules! operators {
    ($($op:ident $name:ident ($a:ident, $b:ident) => $value:expr;)*) => {$(
        impl $op for Dual {
            type Output = Dual;
            fn $name(self, other: Dual) -> Dual {
                let ($a, $b) = (self, other);
                $value
            }
        }
        impl $op<f64> for Dual {
            type Output = Dual;
            fn $name(self, other: f64) -> Dual {
                $op::$name(self, Dual { value: other, w: 0.0, l: 0.0 })
            }
        }
        impl $op<Dual> for f64 {
            type Output = Dual;
            fn $name(self, other: Dual) -> Dual {
                $op::$name(Dual { value: self, w: 0.0, l: 0.0 }, other)
            }
        }
    )*};
}
operators! {
    Add add(a, b) => Dual { value: a.value + b.value, w: a.w + b.w, l: a.l + b.l };
    Sub sub(a, b) => Dual { value: a.value - b.value, w: a.w - b.w, l: a.l - b.l };
    Mul mul(a, b) => Dual {
        value: a.value * b.value,
        w: a.w * b.value + a.value * b.w,
        l: a.l * b.value + a.value * b.l,
    };
}

impl Div<f64> for Dual {
    type Output = Dual;
    fn div(self, by: f64) -> Dual {
        Dual { value: self.value / by, w: self.w / by, l: self.l / by }
    }
}

impl Neg for Dual {
    type Output = Dual;
    fn neg(self) -> Dual {
        Dual { value: -self.value, w: -self.w, l: -self.l }
    }
}
