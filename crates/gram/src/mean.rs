//! The Gram of a data set's mean gradients: of log π(chosen) and of log π(rejected), over all pairs.
use crate::batch::{Batch, Group};
use crate::pass::ForwardPass;
use crate::request::Request;
use crate::sinks::{SumSink, Tee};
use tanglescope_kernels::{FloatTensor, Gram, Kernels, TensorMetadata};
use tanglescope_model::{Decoder, InScope};

/// Sums of both gradients over the pairs that were added; each takes as much memory as the parameters in scope.
pub struct MeanGradients<'a, B: Kernels> {
    scope: &'a InScope,
    sums: [SumSink<B>; 2],
    pairs: usize,
}

impl<'a, B: Kernels> MeanGradients<'a, B> {
    /// Of no pair yet.
    #[must_use]
    pub fn new(scope: &'a InScope) -> Self {
        Self { scope, sums: [SumSink::new(), SumSink::new()], pairs: 0 }
    }

    /// Adds pairs, which run as one batch: the first branch of each group is chosen, the second rejected.
    pub fn add(&mut self, model: &Decoder<B>, groups: &[&Group]) {
        let mut requests = Request::all(groups.iter().copied());
        requests.iter_mut().for_each(|request| request.cotangents.truncate(2));
        let batch = Batch::new(&requests);
        for (branch, sum) in self.sums.iter_mut().enumerate() {
            let of = |k: usize| if k % 2 == branch { 1.0 } else { 0.0 };
            sum.weigh((0..2 * groups.len()).map(of).collect());
        }
        let [chosen, rejected] = &mut self.sums;
        ForwardPass::new(model, self.scope, &batch, false).backward(&mut Tee(vec![chosen, rejected]));
        self.pairs += groups.len();
    }

    /// The 2 × 2 Gram of each parameter's mean gradients, in the scope's order.
    #[must_use]
    pub fn grams(&self) -> Vec<Gram> {
        let [chosen, rejected] = self.sums.each_ref().map(|sum| &sum.gradient);
        let n = self.pairs.max(1) as f64;
        let of = |name: &str| {
            let product = |a: Option<&FloatTensor<B>>, b: Option<&FloatTensor<B>>| match (a, b) {
                (Some(a), Some(b)) => inner::<B>(a, b) / (n * n),
                _ => 0.0,
            };
            let (w, l) = (chosen.get(name), rejected.get(name));
            let wl = product(w, l);
            vec![product(w, w), wl, wl, product(l, l)]
        };
        self.scope.parameters.iter().map(|parameter| of(&parameter.name)).collect()
    }
}

/// ⟨a, b⟩ of two tensors of one shape: products on the device, sums of columns there, and their sum in f64.
fn inner<B: Kernels>(a: &FloatTensor<B>, b: &FloatTensor<B>) -> f64 {
    let shape = a.shape();
    let (columns, all) = (shape[shape.num_dims() - 1], shape.num_elements());
    let product = B::reshape(B::times(a.clone(), b.clone()), [all / columns, columns]);
    B::download(&B::segment_sums(&product, &[0, all / columns])).iter().sum()
}
