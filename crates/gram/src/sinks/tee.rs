//! Several sinks of one pass.
use tanglescope_kernels::{FloatTensor, Kernels, RowSet};
use tanglescope_model::{Embedding, Factor, HeadRows, Sink, TableRows};

/// Gives whatever a backward pass finds to each of some sinks; at most one of them wants the head's Gram.
pub struct Tee<'a, B: Kernels>(pub Vec<&'a mut dyn Sink<B>>);

impl<B: Kernels> Sink<B> for Tee<'_, B> {
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        self.0.iter_mut().for_each(|sink| sink.linear(x, factors, rows));
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        self.0.iter_mut().for_each(|sink| sink.vector(name, terms, rows));
    }

    fn wants_head_gram(&self) -> bool {
        self.0.iter().any(|sink| sink.wants_head_gram())
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, mut gram: Option<B::Pending>) {
        for sink in &mut self.0 {
            let gram = if sink.wants_head_gram() { gram.take() } else { None };
            sink.head(name, head, gram);
        }
    }

    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet) {
        self.0.iter_mut().for_each(|sink| sink.embedding(table, taken, rows));
    }
}
