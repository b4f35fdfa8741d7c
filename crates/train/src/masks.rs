//! The masks of objective `sparse`: one number in [0, 1] for every token of every training pair.
//!
//! This is our reading of Yuan et al., arXiv 2410.13828, section 5: DPO on log-ratios whose tokens are weighted by a mask m,
//! learned jointly with the model, plus λ‖m‖₁. Masks start at 1, where the loss is DPO's, and move by projected gradient
//! steps whenever their pair is trained on.

/// Masks of every example's chosen and rejected tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Masks(pub Vec<[Vec<f64>; 2]>);

impl Masks {
    /// All ones, for responses of the given lengths.
    pub fn ones(lengths: impl Iterator<Item = [usize; 2]>) -> Self {
        Self(lengths.map(|of| of.map(|n| vec![1.0; n])).collect())
    }

    /// Σ m over both responses of an example.
    pub fn size(&self, example: usize) -> f64 {
        self.0[example].iter().flatten().sum()
    }

    /// A projected step against the loss's slope `−d_w·r_w + λ` along each chosen token's mask and `d_l·r_l + λ` along each
    /// rejected one's, r the tokens' log-ratios.
    pub fn step(&mut self, example: usize, [d_w, d_l]: [f64; 2], ratios: &[Vec<f64>; 2], lam: f64, rate: f64) {
        for (branch, d) in [-d_w, d_l].into_iter().enumerate() {
            for (m, ratio) in self.0[example][branch].iter_mut().zip(&ratios[branch]) {
                *m = (*m - rate * (d * ratio + lam)).clamp(0.0, 1.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Masks;

    #[test]
    fn tokens_that_do_not_help_the_margin_are_masked_out() {
        let mut masks = Masks::ones([[2, 1]].into_iter());
        // a chosen token whose log-ratio is high helps, one at 0 costs λ alone
        masks.step(0, [0.5, 0.5], &[vec![2.0, 0.0], vec![-2.0]], 0.1, 5.0);
        assert_eq!(masks.0[0], [vec![1.0, 0.5], vec![1.0]]);
        masks.step(0, [0.5, 0.5], &[vec![2.0, 0.0], vec![2.0]], 0.1, 5.0);
        assert_eq!(masks.0[0], [vec![1.0, 0.0], vec![0.0]]);
    }
}
