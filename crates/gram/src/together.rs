//! Several sinks of one pass.
use crate::turn::Begun;
use tanglescope_kernels::{FloatTensor, Kernels, RowSet};
use tanglescope_model::{Embedding, Factor, HeadRows, Sink};

/// Gives whatever a backward pass finds to each of some sinks of the same scope.
pub struct Together<'a, 'b, B: Kernels> {
    /// The sinks; at least one, and at most one that wants the head's Gram.
    pub sinks: Vec<&'a mut dyn Sink<B>>,
    /// The turn to begin a batch, and the block after which it is given on.
    pub turn: Option<(usize, Begun<'b>)>,
}

impl<B: Kernels> Sink<B> for Together<'_, '_, B> {
    fn wants(&self, name: &str) -> bool {
        self.sinks[0].wants(name)
    }

    fn head_only(&self) -> bool {
        self.sinks[0].head_only()
    }

    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        self.sinks.iter_mut().for_each(|sink| sink.linear(x, factors, rows));
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        self.sinks.iter_mut().for_each(|sink| sink.vector(name, terms, rows));
    }

    fn passed(&mut self, layer: usize) {
        self.turn.take_if(|(last, _)| layer <= *last);
    }

    fn wants_head_gram(&self) -> bool {
        self.sinks.iter().any(|sink| sink.wants_head_gram())
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, mut gram: Option<B::Pending>) {
        for sink in &mut self.sinks {
            let gram = if sink.wants_head_gram() { gram.take() } else { None };
            sink.head(name, head, gram);
        }
    }

    fn embedding(&mut self, table: &Embedding<B>, delta: &FloatTensor<B>, ids: &[u32], rows: &RowSet) {
        self.sinks.iter_mut().for_each(|sink| sink.embedding(table, delta, ids, rows));
    }
}
