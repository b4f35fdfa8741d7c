//! The eigenvalues of a data set's Gram: in how many directions its gradients go.
use faer::{Mat, Side};
use std::collections::HashMap;
use std::fmt;
use tanglescope_records::tables::interference::Couple;

/// The Gram of all responses of a data set `[2N, 2N]`, and its eigenvalues.
#[derive(Clone, Debug)]
pub struct Spectrum {
    pairs: Vec<u64>,
    place: HashMap<u64, usize>,
    gram: Mat<f64>,
    eigenvalues: Vec<f64>,
    common: f64,
}

impl Spectrum {
    /// Of some pairs, whose products come one by one.
    #[must_use]
    pub fn of(pairs: &[u64]) -> Self {
        let place = pairs.iter().enumerate().map(|(at, pair)| (*pair, at)).collect();
        let n = 2 * pairs.len();
        Self { pairs: pairs.to_vec(), place, gram: Mat::zeros(n, n), eigenvalues: Vec::new(), common: 0.0 }
    }

    /// The pairs.
    pub(crate) fn pairs(&self) -> &[u64] {
        &self.pairs
    }

    /// The product of two responses, each by its pair's place and 0 for chosen, 1 for rejected; before the Gram is decomposed.
    pub(crate) fn product(&self, a: (usize, usize), b: (usize, usize)) -> f64 {
        self.gram[(2 * a.0 + a.1, 2 * b.0 + b.1)]
    }

    /// Adds the products of two pairs.
    pub fn add(&mut self, couple: &Couple) {
        let (Some(&a), Some(&b)) = (self.place.get(&couple.a), self.place.get(&couple.b)) else { return };
        for (at, inner) in couple.inner.iter().enumerate() {
            let (row, column) = (2 * a + at / 2, 2 * b + at % 2);
            self.gram[(row, column)] = *inner;
            self.gram[(column, row)] = *inner;
        }
    }

    /// Finds the eigenvalues, and gives the Gram's memory back. Those of a Gram are not negative: what rounding leaves below zero is zero.
    pub fn decompose(&mut self) {
        let gram = std::mem::replace(&mut self.gram, Mat::zeros(0, 0));
        let n = gram.nrows();
        let (sum, trace) = (gram.sum(), (0..n).map(|i| gram[(i, i)]).sum::<f64>());
        self.common = if trace > 0.0 { sum / n as f64 / trace } else { 0.0 };
        let found = gram.self_adjoint_eigenvalues(Side::Lower).unwrap_or_default();
        self.eigenvalues = found.into_iter().rev().map(|x| x.max(0.0)).collect();
    }

    /// In falling order.
    #[must_use]
    pub fn eigenvalues(&self) -> &[f64] {
        &self.eigenvalues
    }

    /// e to the entropy of the eigenvalues' shares: the number of directions that as many equal eigenvalues would have (Roy and Vetterli, EUSIPCO 2007).
    #[must_use]
    pub fn effective_rank(&self) -> f64 {
        let trace: f64 = self.eigenvalues.iter().sum();
        let shares = self.eigenvalues.iter().map(|x| x / trace).filter(|share| *share > 0.0);
        shares.map(|share| -share * share.ln()).sum::<f64>().exp()
    }

    /// ‖mean gradient‖² over the mean of ‖gradient‖²: 1 where all gradients are one, 1/2N where they are orthogonal and of one length.
    #[must_use]
    pub fn common_mode(&self) -> f64 {
        self.common
    }
}

impl fmt::Display for Spectrum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (all, largest) = (self.eigenvalues.len(), self.eigenvalues.first().copied().unwrap_or(0.0));
        let trace: f64 = self.eigenvalues.iter().sum();
        let share = if trace > 0.0 { 100.0 * largest / trace } else { 0.0 };
        writeln!(
            f,
            "gradients        effective rank {:.1} of {all}, largest eigenvalue {share:.1}%, common mode {:.1}%",
            self.effective_rank(),
            100.0 * self.common
        )
    }
}

#[cfg(test)]
mod tests {
    use super::Spectrum;
    use tanglescope_records::tables::interference::Couple;

    fn spectrum(couples: &[(u64, u64, [f64; 4])]) -> Spectrum {
        let mut found = Spectrum::of(&[3, 9]);
        couples.iter().for_each(|&(a, b, inner)| found.add(&Couple { a, b, inner }));
        found.decompose();
        found
    }

    #[test]
    fn orthogonal_gradients_and_one_gradient() {
        let apart = spectrum(&[(3, 3, [2.0, 0.0, 0.0, 2.0]), (3, 9, [0.0; 4]), (9, 9, [2.0, 0.0, 0.0, 2.0])]);
        assert!((apart.effective_rank() - 4.0).abs() < 1e-12 && (apart.common_mode() - 0.25).abs() < 1e-12);
        let one = spectrum(&[(3, 3, [2.0; 4]), (3, 9, [2.0; 4]), (9, 9, [2.0; 4])]);
        assert!((one.effective_rank() - 1.0).abs() < 1e-6 && (one.common_mode() - 1.0).abs() < 1e-12);
        assert!((one.eigenvalues()[0] - 8.0).abs() < 1e-12, "{:?}", one.eigenvalues());
    }
}
