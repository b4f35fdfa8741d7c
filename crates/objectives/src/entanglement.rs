//! What follows from a pair's Gram alone: cosine, regime, disentanglement band (docs/mathematics.md, section 1).

/// Inner products of the gradients of a pair: g_w of log π(chosen), g_l of log π(rejected).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairGram {
    /// ‖g_w‖².
    pub ww: f64,
    /// ⟨g_w, g_l⟩.
    pub wl: f64,
    /// ‖g_l‖².
    pub ll: f64,
}

/// What one small step on an objective does to log π(chosen) and log π(rejected), to first order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Regime {
    /// Chosen up, rejected down.
    Ideal,
    /// Both up.
    BothUp,
    /// Both down.
    BothDown,
    /// Chosen down, rejected up.
    Inverted,
    /// Neither moves.
    None,
}

/// How far a difference of two inner products is from zero by rounding alone, relative to their size.
///
/// An inner product of gradients is off by some ten roundings of the type that they are computed in, relative to the gradients'
/// lengths: rows of activations are rounded once an operation, and the errors of some hundred operations add up as their root.
/// Of a difference of two such products that is sixteen unit roundoffs. In f64 the margin is 1e-12, which leaves room for sums
/// in another order, as other batches have them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding(f64);

impl Rounding {
    /// Of f64.
    pub const F64: Self = Self(1e-12);

    /// Of a number type by its name: f64, f32, tf32, bf16 or f16.
    #[must_use]
    pub fn of(dtype: &str) -> Self {
        // half the distance from 1 to the next number
        let unit = |bits: i32| 0.5f64.powi(bits);
        match dtype {
            "f32" => Self(16.0 * unit(24)),
            // tf32 has f16's bits behind the point
            "f16" | "tf32" => Self(16.0 * unit(11)),
            "bf16" => Self(16.0 * unit(8)),
            _ => Self::F64,
        }
    }
}

impl Regime {
    /// The regimes, in the order in which they are shown.
    pub const ALL: [Self; 5] = [Self::Ideal, Self::BothUp, Self::BothDown, Self::Inverted, Self::None];

    /// The regime of a name in tables.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|regime| regime.name() == name)
    }

    /// The regime of two changes, log π(chosen) first, each the difference of two terms; a difference that rounding explains is
    /// zero.
    #[must_use]
    pub fn of(changes: [[f64; 2]; 2], Rounding(margin): Rounding) -> Self {
        let sign =
            |[a, b]: [f64; 2]| if (a - b).abs() <= margin * (a.abs() + b.abs()) { 0.0 } else { (a - b).signum() };
        let [up_w, up_l] = changes.map(sign);
        // a single zero counts as the ideal sign
        match (up_w >= 0.0, up_l > 0.0) {
            _ if up_w == 0.0 && up_l == 0.0 => Self::None,
            (true, false) => Self::Ideal,
            (true, true) => Self::BothUp,
            (false, false) => Self::BothDown,
            (false, true) => Self::Inverted,
        }
    }

    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ideal => "ideal",
            Self::BothUp => "both-up",
            Self::BothDown => "both-down",
            Self::Inverted => "inverted",
            Self::None => "none",
        }
    }
}

impl PairGram {
    /// The inner products of g_w and g_l, the first two of the K cotangents of a Gram `[K, K]`.
    #[must_use]
    pub fn of(gram: &[f64]) -> Self {
        Self { ww: gram[0], wl: gram[1], ll: gram[gram.len().isqrt() + 1] }
    }

    /// ‖g_w + g_l‖/2: what both log-probabilities have in common.
    #[must_use]
    pub fn common_mode(&self) -> f64 {
        // the square is not negative but for rounding
        0.5 * (self.ww + 2.0 * self.wl + self.ll).max(0.0).sqrt()
    }

    /// ‖g_w − g_l‖/2: what tells them apart.
    #[must_use]
    pub fn differential_mode(&self) -> f64 {
        0.5 * (self.ww - 2.0 * self.wl + self.ll).max(0.0).sqrt()
    }

    /// ln c = ½ ln(‖g_l‖/‖g_w‖): the calibration that moves d_w/d_l = 1 to the centre of the band, d_w·c and d_l/c;
    /// `None` where a gradient is zero (Chen et al., arXiv 2604.18239).
    #[must_use]
    pub fn calibration(&self) -> Option<f64> {
        // norms are roots of squares: a quarter of the squares' logarithms
        (self.ww > 0.0 && self.ll > 0.0).then(|| 0.25 * (self.ll.ln() - self.ww.ln()))
    }

    /// wl / √(ww·ll), within ±1; `None` where a gradient is zero.
    #[must_use]
    pub fn cosine(&self) -> Option<f64> {
        let size = self.ww.sqrt() * self.ll.sqrt();
        (size > 0.0).then(|| (self.wl / size).clamp(-1.0, 1.0))
    }

    /// ‖g_l‖ / ‖g_w‖; `None` where both are zero.
    #[must_use]
    pub fn norm_ratio(&self) -> Option<f64> {
        Some(self.ll.sqrt() / self.ww.sqrt()).filter(|ratio| !ratio.is_nan())
    }

    /// The d_w/d_l for which a margin loss is ideal (Chen et al., arXiv 2604.18239): all of them where the cosine is
    /// not positive; `None` where a gradient is zero.
    #[must_use]
    pub fn band(&self) -> Option<(f64, f64)> {
        let (cosine, ratio) = (self.cosine()?, self.norm_ratio()?);
        Some(if cosine > 0.0 { (cosine * ratio, ratio / cosine) } else { (0.0, f64::INFINITY) })
    }

    /// The terms of ΔL_w = d_w·ww − d_l·wl and of ΔL_l = d_w·wl − d_l·ll, per unit of step size.
    #[must_use]
    pub fn changes(&self, d_w: f64, d_l: f64) -> [[f64; 2]; 2] {
        [[d_w * self.ww, d_l * self.wl], [d_w * self.wl, d_l * self.ll]]
    }

    /// The regime for coefficients of the two gradients; `(1, 1)` is the paper's condition for DPO (Yuan et al.,
    /// arXiv 2410.13828, section 3).
    ///
    /// ```
    /// use tanglescope_objectives::{PairGram, Regime, Rounding};
    /// let gram = PairGram { ww: 1.0, wl: 2.0, ll: 9.0 };
    /// assert_eq!(gram.regime(1.0, 1.0, Rounding::F64), Regime::BothDown);
    /// assert_eq!(gram.regime(3.0, 1.0, Rounding::F64), Regime::Ideal); // inside the band
    /// ```
    #[must_use]
    pub fn regime(&self, d_w: f64, d_l: f64, rounding: Rounding) -> Regime {
        Regime::of(self.changes(d_w, d_l), rounding)
    }

    /// How far, in logarithms, d_w/d_l is inside the disentanglement band: −ln ρ − |ln(d_w‖g_w‖ / (d_l‖g_l‖))|, negative
    /// outside and infinite where every ratio is inside; `None` unless both coefficients are positive and both gradients
    /// are not zero (Chen et al., arXiv 2604.18239).
    #[must_use]
    pub fn band_slack(&self, d_w: f64, d_l: f64) -> Option<f64> {
        let cosine = self.cosine().filter(|_| d_w > 0.0 && d_l > 0.0)?;
        if cosine <= 0.0 {
            return Some(f64::INFINITY);
        }
        let off_centre = d_w.ln() - d_l.ln() + 0.5 * (self.ww.ln() - self.ll.ln());
        Some(-cosine.ln() - off_centre.abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The paper's inequalities, with cosines away from the borders.
        #[test]
        fn dpo_regimes_are_the_papers_conditions(w in 0.1f64..10.0, l in 0.1f64..10.0, cosine in -0.99f64..0.99) {
            let gram = PairGram { ww: w * w, wl: cosine * w * l, ll: l * l };
            let PairGram { ww, wl, ll } = gram;
            prop_assume!((wl - ww).abs() > 1e-9 && (wl - ll).abs() > 1e-9);
            let want = if wl <= ww.min(ll) {
                Regime::Ideal
            } else if ww <= wl && wl <= ll {
                Regime::BothDown
            } else {
                Regime::BothUp
            };
            prop_assert_eq!(gram.regime(1.0, 1.0, Rounding::F64), want);
        }

        #[test]
        fn positive_coefficients_inside_the_band_are_ideal(
            w in 0.1f64..10.0, l in 0.1f64..10.0, cosine in 0.01f64..0.99, t in 0.01f64..0.99,
        ) {
            let gram = PairGram { ww: w * w, wl: cosine * w * l, ll: l * l };
            let (low, high) = gram.band().unwrap();
            prop_assert_eq!(gram.regime(low + t * (high - low), 1.0, Rounding::F64), Regime::Ideal);
            prop_assert_eq!(gram.regime(low * 0.99, 1.0, Rounding::F64), Regime::BothDown);
            prop_assert_eq!(gram.regime(high * 1.01, 1.0, Rounding::F64), Regime::BothUp);
        }
    }

    proptest! {
        /// The slack's sign is the band, whatever the sizes of the coefficients.
        #[test]
        fn slack_is_positive_where_the_regime_is_ideal(
            w in 0.1f64..10.0, l in 0.1f64..10.0, cosine in -0.99f64..0.99, d_w in 0.01f64..10.0, d_l in 0.01f64..10.0,
        ) {
            let gram = PairGram { ww: w * w, wl: cosine * w * l, ll: l * l };
            let slack = gram.band_slack(d_w, d_l).unwrap();
            prop_assume!(slack.abs() > 1e-9);
            prop_assert_eq!(slack > 0.0, gram.regime(d_w, d_l, Rounding::F64) == Regime::Ideal);
            prop_assert_eq!(gram.band_slack(-d_w, d_l), None);
        }
    }

    #[test]
    fn identical_gradients_have_cosine_one_and_no_regime() {
        let gram = PairGram { ww: 0.3, wl: 0.3, ll: 0.3 };
        assert_eq!(gram.cosine(), Some(1.0));
        assert_eq!(gram.regime(1.0, 1.0, Rounding::F64), Regime::None);
    }

    /// Equal but for rounding is equal, and what is more is not.
    #[test]
    fn a_difference_is_zero_by_the_rounding_of_its_type() {
        for (dtype, epsilon) in [("f64", 2.2e-16), ("f32", 1.2e-7), ("f16", 9.8e-4), ("tf32", 9.8e-4), ("bf16", 7.8e-3)]
        {
            let rounding = Rounding::of(dtype);
            let off = |by: f64| PairGram { ww: 0.3, wl: 0.3 * (1.0 - by), ll: 0.3 };
            assert_eq!(off(4.0 * epsilon).regime(1.0, 1.0, rounding), Regime::None, "{dtype}");
            let more = if dtype == "f64" { 1e-11 } else { 40.0 * epsilon };
            assert_eq!(off(more).regime(1.0, 1.0, rounding), Regime::Ideal, "{dtype}");
        }
    }

    #[test]
    fn zero_gradients_give_nothing_and_no_nan() {
        let gram = PairGram::default();
        assert_eq!((gram.cosine(), gram.norm_ratio(), gram.band()), (None, None, None));
        assert_eq!(PairGram { ll: 1.0, ..gram }.norm_ratio(), Some(f64::INFINITY));
    }
}
