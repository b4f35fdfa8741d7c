//! Products with codes of four bits, at the shapes of a block's maps, forward and back.
use super::{CodeSpec, Coded};
use crate::bench::{Case, Shapes};
use crate::{DType, Kernels, TensorData, cost};

/// Inputs that share a factor.
const BLOCK: usize = 64;

/// See [`crate::bench`].
#[must_use]
pub fn cases<B: Kernels>(shapes: &Shapes<'_>, device: &B::Device) -> Vec<Case> {
    let (dtype, forward, backward) = (shapes.dtype, shapes.forward, shapes.rows.rows());
    let fills_words = |&&(_, [n, _]): &&(&str, [usize; 2])| n.is_multiple_of(8);
    let mut cases = Vec::new();
    for &(name, [n, m]) in shapes.maps.iter().filter(fills_words) {
        let spec = CodeSpec {
            rows: m,
            columns: n,
            bits: 4,
            block: BLOCK,
            has_least: false,
            second: 1.0,
            rounded: DType::BF16,
        };
        let [factors, _, table] = spec.places();
        // small numbers without a pattern
        let word = |at: usize| match at {
            at if at < factors => crate::as_index(at & 0xffff).wrapping_mul(0x9e37_79b9),
            at if at < table => 0.01f32.to_bits(),
            at => ((at - table) as f32 / 8.0 - 1.0).to_bits(),
        };
        let words = TensorData::new((0..spec.words()).map(word).collect::<Vec<u32>>(), [spec.words()]);
        let w = Coded::<B>::new(B::upload(words, device), spec, true);
        let (x, delta) = (shapes.matrix::<B>(forward, n, device), shapes.matrix::<B>(backward, m, device));
        let again = w.clone();
        let run = move || drop(B::matmul_coded(&x, &w, false, 1.0, None));
        cases.push(Case::new(format!("product {name}, 4 bits"), cost::product(forward, n, m, dtype), run));
        let run = move || drop(B::matmul_coded(&delta, &again, true, 1.0, None));
        let cost = cost::product(backward, m, n, dtype);
        cases.push(Case::new(format!("product {name}, 4 bits, transposed"), cost, run));
    }
    cases
}
