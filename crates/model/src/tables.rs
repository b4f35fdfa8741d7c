//! What an adapter changes of the embedding and of the output matrix: low-rank changes of either, and rows of single tokens.
//!
//! Of an embedding, `x = E[token] + s·A[token]·B`: B meets `(s·A[token], δ)`, and rows of A the cotangent s·δ·Bᵀ. Of the output matrix,
//! `z = W y + s·B(A y)`, so that with e the cotangents of the logits B is an output matrix of inputs s·A y, and A meets (y, s·eᵀB).
//! A row that stands for a token's own (PEFT's `trainable_token_indices`) has its gradient where the token is read, and where it
//! may be predicted if it is the output matrix's too: a map of inputs one-hot over such tokens, and e there.
use crate::layers::Matrix;
use crate::parameters::NamedVisitor;
use crate::scope::InScope;
use crate::sink::{Embedding, Factor, LinearRows, Predictions, Scores, Sink, TableRows};
use std::collections::HashMap;
use tanglescope_kernels::{DType, FloatTensor, Kernels, RowSet, TensorMetadata, as_index};

/// A learned low-rank change of the embedding or of the output matrix.
#[derive(Clone, Debug)]
pub(crate) struct TableLora<B: Kernels> {
    /// Names of A and B.
    pub names: [String; 2],
    /// Of the embedding `[vocabulary, r]`, of the output matrix `[hidden, r]`.
    pub a: FloatTensor<B>,
    /// Of the embedding `[r, hidden]`, of the output matrix `[vocabulary, r]`.
    pub b: FloatTensor<B>,
    /// s.
    pub scale: f64,
}

/// Rows that stand for those of single tokens.
#[derive(Clone, Debug)]
pub(crate) struct TokenRows<B: Kernels> {
    /// Name of the parameter.
    pub name: String,
    /// Which tokens, each once.
    pub tokens: Vec<u32>,
    /// Their rows, `[tokens, hidden]`.
    pub rows: FloatTensor<B>,
    /// Whether they stand for rows of the output matrix too.
    pub of_head: bool,
}

/// What an adapter changes of the embedding and of the output matrix.
#[derive(Clone, Debug)]
pub(crate) struct TableChanges<B: Kernels> {
    pub embedding: Option<TableLora<B>>,
    pub head: Option<TableLora<B>>,
    /// Rows of the embedding, and of the output matrix where that is tied to it.
    pub embedding_tokens: Option<TokenRows<B>>,
    /// Rows of the output matrix alone.
    pub head_tokens: Option<TokenRows<B>>,
}

impl<B: Kernels> Default for TableChanges<B> {
    fn default() -> Self {
        Self { embedding: None, head: None, embedding_tokens: None, head_tokens: None }
    }
}

impl<B: Kernels> TableChanges<B> {
    /// Rows that stand for some of the output matrix's.
    pub fn of_head(&self) -> Option<&TokenRows<B>> {
        self.head_tokens.as_ref().or(self.embedding_tokens.as_ref()).filter(|tokens| tokens.of_head)
    }

    /// Calls a function with each parameter's name and tensor.
    pub fn visit(&mut self, f: &mut NamedVisitor<'_, B>) {
        for lora in [&mut self.embedding, &mut self.head].into_iter().flatten() {
            f(&lora.names[0], true, &mut lora.a);
            f(&lora.names[1], true, &mut lora.b);
        }
        for tokens in [&mut self.embedding_tokens, &mut self.head_tokens].into_iter().flatten() {
            f(&tokens.name, false, &mut tokens.rows);
        }
    }
}

impl<B: Kernels> TableLora<B> {
    /// s·A of some tokens, `[N, r]`.
    fn of_tokens(&self, tokens: &[u32]) -> FloatTensor<B> {
        B::times_number(B::gather(&self.a, tokens, None), self.scale)
    }

    /// Adds its part to rows of the embedding.
    pub fn onto(&self, rows: FloatTensor<B>, tokens: &[u32]) -> FloatTensor<B> {
        B::matmul(&self.of_tokens(tokens), &self.b, false, 1.0, Some(rows))
    }

    /// Delivers A and B for the cotangents of rows of the embedding; `trained` leaves out those of a row that is not trained.
    pub fn deliver(
        &self,
        (delta, tokens, rows): (&FloatTensor<B>, &[u32], &RowSet),
        trained: &dyn Fn(&FloatTensor<B>) -> Option<FloatTensor<B>>,
        (scope, sink): (&InScope, &mut dyn Sink<B>),
    ) {
        let [a, b] = &self.names;
        if scope.contains(b) {
            sink.linear(&self.of_tokens(tokens), &[Factor { name: b.clone(), delta }], rows);
        }
        if scope.contains(a) {
            let delta = B::matmul(delta, &self.b, true, self.scale, None);
            let kept = trained(&delta);
            let table = Embedding { name: a.clone(), table: Matrix::Plain(self.a.clone()) };
            sink.embedding(
                &table,
                &TableRows { delta: &delta, trained: kept.as_ref().unwrap_or(&delta), ids: tokens },
                rows,
            );
        }
    }

    /// s·A y, what B of the output matrix reads.
    pub fn low(&self, y: &FloatTensor<B>) -> FloatTensor<B> {
        B::matmul(y, &self.a, false, self.scale, None)
    }
}

impl<B: Kernels> TokenRows<B> {
    fn places(&self) -> HashMap<u32, usize> {
        self.tokens.iter().enumerate().map(|(place, token)| (*token, place)).collect()
    }

    /// Rows of tokens, from a table where they are not its own.
    pub fn of_tokens(&self, table: &Matrix<B>, tokens: &[u32], dtype: DType) -> FloatTensor<B> {
        let places = self.places();
        let place = |token: &u32| places.get(token).copied();
        let weights: Vec<f64> = tokens.iter().map(|token| f64::from(u8::from(place(token).is_some()))).collect();
        let others: Vec<f64> = weights.iter().map(|weight| 1.0 - weight).collect();
        let own: Vec<u32> = tokens.iter().map(|token| as_index(place(token).unwrap_or(0))).collect();
        let every: Vec<u32> = (0..as_index(tokens.len())).collect();
        let theirs = B::gather(&table.rows(tokens, dtype), &every, Some(&others));
        B::add_scaled(theirs, &B::gather(&self.rows, &own, Some(&weights)), 1.0)
    }

    /// A table with them in it.
    pub fn table(&self, table: &Matrix<B>, dtype: DType) -> Matrix<B> {
        let all: Vec<u32> = (0..as_index(table.dims()[0])).collect();
        Matrix::Plain(self.of_tokens(table, &all, dtype))
    }

    /// What they meet where tokens are read: one-hot inputs, and the cotangents of rows of the embedding.
    pub fn read(&self, delta: FloatTensor<B>, tokens: &[u32], rows: &RowSet) -> LinearRows<B> {
        let (places, n) = (self.places(), self.tokens.len());
        let mut x = vec![0.0; tokens.len() * n];
        for (row, token) in tokens.iter().enumerate() {
            if let Some(place) = places.get(token) {
                x[row * n + place] = 1.0;
            }
        }
        LinearRows { x: B::upload_like(x, &[tokens.len(), n], &delta), delta, rows: rows.clone() }
    }

    /// What they meet where tokens are predicted: e of each prediction at the tokens, and the inputs of the output matrix, each with its
    /// weight in a cotangent. `rows` are the predictions of each cotangent.
    pub fn predicted(
        &self,
        y: &FloatTensor<B>,
        scores: &Scores<B>,
        predictions: &Predictions,
        (rows, weights): (RowSet, &[f64]),
    ) -> LinearRows<B> {
        let n = self.tokens.len();
        let of_tokens = scores.w.rows(&self.tokens, scores.y.dtype());
        let mut e = B::download(&B::matmul(&scores.y, &of_tokens, true, 1.0, None));
        for (row, e) in e.chunks_exact_mut(n).enumerate() {
            for (logit, token) in e.iter_mut().zip(&self.tokens) {
                *logit = predictions.cotangent(row, *token as usize, *logit);
            }
        }
        let x = B::upload_like(e, &[predictions.targets.len(), n], y);
        LinearRows { x, delta: B::gather(y, &rows.index, Some(weights)), rows }
    }
}
