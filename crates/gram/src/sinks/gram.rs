//! The sink that reduces every parameter to the inner products of its gradients (docs/mathematics.md, section 4).
use crate::sinks::{indices, width};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use tanglescope_kernels::cost::{self, Rates, Reduction};
use tanglescope_kernels::{FloatTensor, Gram, Grams, Kernels, RowSet, TensorMetadata, as_index};
use tanglescope_model::layers::whole;
use tanglescope_model::{Embedding, Factor, HeadRows, InScope, Predictions, Scores, Sink, TableRows};

/// What the head leaves for the cross terms of a tied embedding.
struct TiedHead<B: Kernels> {
    name: String,
    y: FloatTensor<B>,
    scores: Scores<B>,
    predictions: Predictions,
    weights: Vec<Vec<(usize, f64)>>,
    set_rows: Vec<Vec<u32>>,
}

/// What is kept of the Grams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// One for each parameter.
    Parameters,
    /// Their sum.
    Total,
}

/// Grams of all parameters of each expert together, of every set, by block and expert.
pub(crate) type ByExpert = BTreeMap<(usize, usize), Vec<Gram>>;

/// What a sum over all parameters is kept under; no parameter has this name.
const TOTAL: &str = "";

/// A reduction of several parameters that share inputs.
type Shared<B> = fn(&FloatTensor<B>, &[&FloatTensor<B>], &RowSet) -> Vec<<B as Grams>::Pending>;

/// Bytes of partial sums that may stay on the device before the pass waits for them.
const PENDING_BYTES: usize = 256 << 20;

/// Gram[i, j] = ⟨∂L_i/∂p, ∂L_j/∂p⟩ of every parameter in scope, for every set of cotangents.
pub struct GramSink<'a, B: Kernels> {
    scope: &'a InScope,
    sets: Vec<Range<usize>>,
    rates: Rates,
    detail: Detail,
    found: HashMap<String, Vec<Gram>>,
    experts: ByExpert,
    /// Names and Grams that may still be sums on the device, and the bytes that they keep there.
    pending: (Vec<String>, Vec<B::Pending>, usize),
    tied: Option<TiedHead<B>>,
}

impl<'a, B: Kernels> GramSink<'a, B> {
    /// A sink for some sets of cotangents; the rates of the device decide between the two reductions.
    #[must_use]
    pub fn new(scope: &'a InScope, sets: &[Range<usize>], rates: Rates, detail: Detail) -> Self {
        let (found, pending) = (HashMap::new(), (Vec::new(), Vec::new(), 0));
        Self { scope, sets: sets.to_vec(), rates, detail, found, experts: BTreeMap::new(), pending, tied: None }
    }

    /// The Grams of every set, each in the scope's order of parameters.
    #[must_use]
    pub fn finish(self) -> Vec<Vec<Gram>> {
        self.finish_by_expert().0
    }

    /// The same, and the Grams of each expert's parameters together, by block and expert, where there is one for each parameter.
    #[must_use]
    pub(crate) fn finish_by_expert(mut self) -> (Vec<Vec<Gram>>, ByExpert) {
        self.collect();
        let zero = |set: &Range<usize>| vec![0.0; set.len() * set.len()];
        let names: Vec<&str> = match self.detail {
            Detail::Parameters => self.scope.parameters.iter().map(|p| p.name.as_str()).collect(),
            Detail::Total => vec![TOTAL],
        };
        let of = |b: usize, set: &Range<usize>| {
            let found = |name: &&str| self.found.get(*name).map_or_else(|| zero(set), |grams| grams[b].clone());
            names.iter().map(found).collect()
        };
        (self.sets.iter().enumerate().map(|(b, set)| of(b, set)).collect(), self.experts)
    }

    fn add(&mut self, name: &str, grams: B::Pending) {
        let (names, pending, bytes) = &mut self.pending;
        *bytes += B::pending_bytes(&grams);
        names.push(name.to_owned());
        pending.push(grams);
        if *bytes > PENDING_BYTES {
            self.collect();
        }
    }

    /// Waits for what is pending.
    fn collect(&mut self) {
        let (names, pending, _) = std::mem::take(&mut self.pending);
        for (name, grams) in names.iter().zip(B::collect(pending)) {
            self.add_known(name, grams);
        }
    }

    fn add_known(&mut self, name: &str, grams: Vec<Gram>) {
        // parts of one tensor have disjoint entries, so that their products add up; so have the parameters of an expert
        let name = match self.detail {
            Detail::Total => TOTAL,
            Detail::Parameters => {
                if let Some(expert) = self.scope.expert_of(name) {
                    add_to(self.experts.entry(expert).or_default(), &grams);
                }
                whole(name)
            }
        };
        match self.found.get_mut(name) {
            Some(sum) => add_to(sum, &grams),
            None => drop(self.found.insert(name.to_owned(), grams)),
        }
    }
}

/// Adds Grams to sums, which are of nothing at first.
fn add_to(sums: &mut Vec<Gram>, grams: &[Gram]) {
    if sums.is_empty() {
        sums.extend_from_slice(grams);
        return;
    }
    for (sum, gram) in sums.iter_mut().zip(grams) {
        sum.iter_mut().zip(gram).for_each(|(s, x)| *s += x);
    }
}

impl<B: Kernels> Sink<B> for GramSink<'_, B> {
    fn linear(&mut self, x: &FloatTensor<B>, factors: &[Factor<'_, B>], rows: &RowSet) {
        let outputs: Vec<usize> = factors.iter().map(|f| width::<B>(f.delta)).collect();
        // rates may be of a manifest that another kind of device goes on with
        let rates = Rates { triangles: self.rates.triangles && B::is_host(), ..self.rates };
        let choice = cost::choose(width::<B>(x), &outputs, rows, x.dtype(), &rates);
        let (mut by_rows, mut by_triangle): (Vec<&Factor<'_, B>>, Vec<_>) = (Vec::new(), Vec::new());
        for (factor, reduction) in factors.iter().zip(choice) {
            match reduction {
                Reduction::Tile => self.add(&factor.name, B::gram_tile(x, factor.delta, rows, None)),
                Reduction::Gram => by_rows.push(factor),
                Reduction::Triangle => by_triangle.push(factor),
            }
        }
        // what these reductions make of the inputs is made once
        for (factors, reduce) in [(by_rows, B::gram_rows as Shared<B>), (by_triangle, B::gram_triangle)] {
            if !factors.is_empty() {
                let deltas: Vec<&FloatTensor<B>> = factors.iter().map(|f| f.delta).collect();
                for (factor, grams) in factors.iter().zip(reduce(x, &deltas, rows)) {
                    self.add(&factor.name, grams);
                }
            }
        }
    }

    fn vector(&mut self, name: &str, terms: &FloatTensor<B>, rows: &RowSet) {
        self.add(name, B::gram_vectors(terms, rows));
    }

    fn wants_head_gram(&self) -> bool {
        true
    }

    fn head(&mut self, name: &str, head: &HeadRows<'_, B>, gram: Option<B::Pending>) {
        if let Some(gram) = gram {
            self.add(name, gram);
        }
        self.tied = Some(TiedHead {
            name: name.to_owned(),
            y: head.y.clone(),
            scores: head.scores.clone(),
            predictions: head.predictions.clone(),
            weights: head.cotangents.weights.to_vec(),
            set_rows: head.cotangents.set_rows(),
        });
    }

    fn embedding(&mut self, table: &Embedding<B>, taken: &TableRows<'_, B>, rows: &RowSet) {
        let TableRows { trained: delta, ids, .. } = *taken;
        // distinct ids of each set; δ of a cotangent's rows summed by id: [K, ids] rows, set after set
        let mut distinct: Vec<Vec<u32>> = Vec::new();
        let (mut place, mut total) = (Vec::with_capacity(rows.rows()), 0);
        for set in &rows.sets {
            let mut of_id: HashMap<u32, usize> = HashMap::new();
            let mut order = Vec::new();
            for &row in &rows.index[rows.of_set(set)] {
                let id = ids[row as usize];
                of_id.entry(id).or_insert_with(|| {
                    order.push(id);
                    order.len() - 1
                });
            }
            for k in set.clone() {
                let first = total + (k - set.start) * order.len();
                place.extend(rows.of(k).map(|r| first + of_id[&ids[rows.index[r] as usize]]));
            }
            total += set.len() * order.len();
            distinct.push(order);
        }
        let place: Vec<u32> = place.into_iter().map(as_index).collect();
        let by_id = B::scatter_add(delta, &place, total);
        let tied = self.tied.take_if(|head| head.name == table.name);
        let (mut vectors, mut crosses, mut first) = (Vec::with_capacity(rows.cotangents()), Vec::new(), 0);
        for (b, (set, ids)) in rows.sets.iter().zip(&distinct).enumerate() {
            let (k, t) = (set.len(), ids.len());
            vectors.extend((0..k).map(|i| first + i * t..first + (i + 1) * t));
            if let Some(head) = &tied {
                let sums = B::gather(&by_id, &indices(first..first + k * t), None);
                let cross = head.cross(b, set, ids, &sums);
                let both = |at: usize| cross[at] + cross[at % k * k + at / k];
                crosses.push((0..k * k).map(both).collect());
            }
            first += k * t;
        }
        self.add(&table.name, B::dots(&by_id, &vectors, &rows.sets));
        if tied.is_some() {
            self.add_known(&table.name, crosses);
        }
    }
}

impl<B: Kernels> TiedHead<B> {
    /// ⟨head part of cotangent i, embedding part of cotangent j⟩ = `Σ_r c_r Σ_v e_r[v] (y_r · S_j[v])`, `S_j[v]` the sum
    /// of δ over the rows of j whose token is v.
    fn cross(&self, b: usize, set: &Range<usize>, ids: &[u32], sums: &FloatTensor<B>) -> Gram {
        let rows = &self.set_rows[b];
        let (k, t) = (set.len(), ids.len());
        let y = B::gather(&self.y, rows, None);
        let logits = B::download(&self.scores.logits_of(rows, ids));
        let along = B::download(&B::matmul(&y, sums, true, 1.0, None));
        let mut cross = vec![0.0; k * k];
        for i in 0..k {
            for &(r, c) in &self.weights[set.start + i] {
                let local = rows.partition_point(|&row| (row as usize) < r);
                for (v, &id) in ids.iter().enumerate() {
                    let e = self.predictions.cotangent(r, id as usize, logits[local * t + v]);
                    for j in 0..k {
                        cross[i * k + j] += c * e * along[local * k * t + j * t + v];
                    }
                }
            }
        }
        cross
    }
}
