//! Where a backward pass delivers: a sink gets each parameter's inputs and cotangents and reduces them at once.
use crate::layers::Matrix;
use tanglescope_kernels::{FloatTensor, HeadCotangents, Kernels, RowSet, SoftCap, TensorMetadata, as_index};

/// A table whose rows are added to the residual stream.
#[derive(Clone, Debug)]
pub struct Embedding<B: Kernels> {
    /// Name of the parameter in the checkpoint.
    pub name: String,
    /// `[rows, hidden]`.
    pub table: Matrix<B>,
}

/// Two matrices whose product `y·wᵀ` is the logits.
#[derive(Clone, Debug)]
pub struct Scores<B: Kernels> {
    /// `[P, d]`.
    pub y: FloatTensor<B>,
    /// `[V, d]`.
    pub w: Matrix<B>,
}

impl<B: Kernels> Scores<B> {
    /// Logits of some rows for the whole vocabulary, `[rows.len(), V]`.
    #[must_use]
    pub fn logits(&self, rows: &[u32]) -> FloatTensor<B> {
        B::matmul_with(&B::gather(&self.y, rows, None), &self.w.weight(), true, 1.0, None)
    }

    /// Logits of some rows for some tokens, `[rows.len(), tokens.len()]`.
    #[must_use]
    pub fn logits_of(&self, rows: &[u32], tokens: &[u32]) -> FloatTensor<B> {
        let of_tokens = self.w.rows(tokens, self.y.dtype());
        B::matmul(&B::gather(&self.y, rows, None), &of_tokens, true, 1.0, None)
    }
}

/// A linear parameter `[n, m]` that meets the cotangent `delta`, `[R, m]`.
pub struct Factor<'a, B: Kernels> {
    /// Name of the parameter.
    pub name: String,
    /// Cotangent of its output.
    pub delta: &'a FloatTensor<B>,
}

/// What a linear parameter meets: inputs `x[N, n]`, cotangents `delta[R, m]` of its output, and whose they are.
pub(crate) struct LinearRows<B: Kernels> {
    pub x: FloatTensor<B>,
    pub delta: FloatTensor<B>,
    pub rows: RowSet,
}

impl<B: Kernels> LinearRows<B> {
    /// What the same cotangents meet in two places.
    pub fn and(&self, other: &Self) -> Self {
        let (first, more) = (self.x.shape()[0], other.x.shape()[0]);
        let (rows, [own, others]) = self.rows.and(&other.rows, first);
        let joined = |a: &FloatTensor<B>, b: &FloatTensor<B>, [of_a, of_b]: [&[u32]; 2], all: usize| {
            B::add_scaled(B::scatter_add(a, of_a, all), &B::scatter_add(b, of_b, all), 1.0)
        };
        let places: Vec<u32> = (0..as_index(first + more)).collect();
        let (of_x, of_inputs) = places.split_at(first);
        Self {
            x: joined(&self.x, &other.x, [of_x, of_inputs], first + more),
            delta: joined(&self.delta, &other.delta, [&own, &others], rows.index.len()),
            rows,
        }
    }

    /// Hands it to a sink, as a parameter's.
    pub fn deliver(&self, name: &str, sink: &mut dyn Sink<B>) {
        sink.linear(&self.x, &[Factor { name: name.to_owned(), delta: &self.delta }], &self.rows);
    }
}

/// What the rows of the head predict: row i predicts `targets[i]`.
#[derive(Clone, Debug)]
pub struct Predictions {
    /// Predicted tokens, `[P]`.
    pub targets: Vec<u32>,
    /// log p(target), `[P]`.
    pub logp: Vec<f64>,
    /// log Σ exp(logits), `[P]`.
    pub log_normaliser: Vec<f64>,
    /// A soft cap on the logits.
    pub cap: Option<SoftCap>,
}

impl Predictions {
    /// e of a row and token: ∂ log p(target) / ∂ logit before the cap, `([token = target] − p)·slope`.
    #[must_use]
    pub fn cotangent(&self, row: usize, token: usize, logit: f64) -> f64 {
        let z = self.cap.map_or(logit, |cap| cap.capped(logit));
        // 1 − p by a subtraction has no digit right where p is near one
        let e = match self.targets[row] as usize == token {
            true => -self.logp[row].exp_m1(),
            false => -(z - self.log_normaliser[row]).exp(),
        };
        e * self.cap.map_or(1.0, |cap| cap.slope(z))
    }
}

/// The rows of the head.
pub struct HeadRows<'a, B: Kernels> {
    /// Inputs of the parameter, the output matrix or the bias of the logits: `[P, d]`, or ones `[P, 1]`.
    pub y: &'a FloatTensor<B>,
    /// What each row predicts.
    pub predictions: &'a Predictions,
    /// The inputs and the output matrix where there is no bias.
    pub scores: &'a Scores<B>,
    /// Each cotangent's rows and weights, and the sets that share a Gram.
    pub cotangents: HeadCotangents<'a>,
}

/// Rows of a table that are added to the residual stream: row `ids[n]` to forward row n.
pub struct TableRows<'a, B: Kernels> {
    /// Cotangents of the table's rows as they were used, `[R, hidden]`.
    pub delta: &'a FloatTensor<B>,
    /// The same, zero in rows of the padding token where its row is not trained.
    pub trained: &'a FloatTensor<B>,
    /// Which row of the table each forward row took, `[N]`.
    pub ids: &'a [u32],
}

/// Takes what a backward pass finds at each parameter in scope, and nothing else. δ of a row belongs to the cotangent of that
/// row.
pub trait Sink<B: Kernels> {
    /// Linear maps of one input `x[N, n]`: ∂L_k/∂W = Σ_{r of k} x[ρ(r)]ᵀ δ_r.
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet);

    /// A vector parameter: ∂L_k/∂p = Σ_{r of k} terms_r, `terms[R, m]`.
    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet);

    /// Whether the Gram of the output matrix, where it is in scope, is to be formed with the head.
    fn wants_head_gram(&self) -> bool;

    /// The output matrix, or the bias of the logits: `∂L_k/∂W[v] = Σ_i c_i e_i[v] y_i`, and its Gram where it was wanted.
    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, gram: Option<B::Pending>);

    /// A table of which rows are added to forward rows: `∂L_k/∂W[v] = Σ_{r of k, ids[ρ(r)] = v} δ_r`; a gradient that trains leaves
    /// out what `taken.trained` does. Where the table is the output matrix too, this is called after [`head`](Sink::head) with
    /// the same name.
    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet);
}
