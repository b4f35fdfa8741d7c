//! The decoder: embedding, blocks, final norm, head; one forward pass, and one backward pass for many cotangents.
use crate::adapter::TablesOutline;
use crate::architectures::Description;
use crate::layers::{
    Angles, Backward, BackwardRows, Beside, BlockTrace, Choices, Forward, Matrix, Norm, PerLayerInputs,
    PerLayerInputsTrace, Vector, scaled, sums,
};
use crate::needs::Needs;
use crate::outline::{FusedMap, Map};
use crate::residency::Residence;
use crate::scope::InScope;
use crate::sink::{Embedding, Factor, LinearRows, Predictions, Scores, Sink, TableRows};
use crate::stop::Stop;
use crate::tables::{TableChanges, TokenRows};
use std::collections::{BTreeMap, BTreeSet};
use tanglescope_kernels::cost::Rates;
use tanglescope_kernels::{DType, FloatTensor, Kernels, RowSet, Segment, Span, TensorData, TensorMetadata, as_index};

/// A decoder-only transformer, with a LoRA adapter or without.
#[derive(Clone, Debug)]
pub struct Decoder<B: Kernels> {
    /// Dimensions and names.
    pub description: Description,
    /// Number type of activations and results; matrices of weights may be in the type that they are stored in.
    pub dtype: DType,
    /// Where the weights are.
    pub device: B::Device,
    /// SHA-256 of the base's config and weights.
    pub content_hash: String,
    /// SHA-256 of a saved adapter's config and weights.
    pub adapter_hash: Option<String>,
    /// Ways in which some of the base's weights are stored quantised: their values are the model's.
    pub quantised: BTreeSet<&'static str>,
    /// Bytes that the activations of a batch may take; no bound where there is none.
    pub activation_bytes: Option<usize>,
    /// `init_lora_weights` of an adapter for which a part of the base's weights was taken from them.
    pub taken_apart: Option<&'static str>,
    /// What the device does in a second: decides between the two Gram reductions of a map.
    pub rates: Rates,
    /// Asked before every block.
    pub stop: Stop,
    pub(crate) embedding: Embedding<B>,
    pub(crate) positions: Option<Embedding<B>>,
    pub(crate) per_layer: Option<Box<PerLayerInputs<B>>>,
    pub(crate) blocks: Vec<Residence<B>>,
    pub(crate) final_norm: Norm<B>,
    /// `None` where the head is the embedding.
    pub(crate) head: Option<Embedding<B>>,
    pub(crate) head_bias: Option<Vector<B>>,
    /// All linear maps, with the ranks of their adapter's factors.
    pub(crate) maps: Vec<Map>,
    /// An adapter's changes of all experts of a layer.
    pub(crate) fused: Vec<FusedMap>,
    /// Whether the checkpoint leaves the base's prefix out of its names.
    pub(crate) bare: bool,
    /// Base parameters that are the adapter's own copies.
    pub(crate) saved: BTreeSet<String>,
    /// An adapter's changes of the embedding and of the output matrix.
    pub(crate) tables: TableChanges<B>,
    /// The same without values.
    pub(crate) tables_outline: TablesOutline,
    /// Base parameters that the adapter has beside what it trains.
    pub(crate) wrapped: BTreeSet<String>,
}

/// A part of what the logits are the sum of: a product of inputs and a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogitPart {
    /// The bias, which one is multiplied with.
    Bias,
    /// An adapter's change: s·A y, and B.
    Change,
    /// The output matrix.
    Matrix,
}

/// What the inputs of parts of the logits are scaled with that are to have no part in a Gram: 2⁻⁶⁰ of it is below any rounding.
const NO_PART: f64 = 1.0 / (1u64 << 30) as f64;

/// How many of the top blocks keep what their vjp needs. The others keep their input and compute the rest again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing at all: no backward pass follows.
    Nothing,
    /// This many of the top blocks.
    Top(usize),
}

/// What the forward pass keeps of a block: its trace, or its input alone.
#[derive(Debug)]
enum KeptBlock<B: Kernels> {
    Trace(Box<BlockTrace<B>>),
    Input(FloatTensor<B>),
}

/// What a forward pass leaves for the backward pass.
#[derive(Debug)]
pub struct Trace<B: Kernels> {
    /// Of each block, until the backward pass has taken it.
    blocks: Vec<Option<KeptBlock<B>>>,
    /// What attends to what, for blocks that are computed again.
    spans: Vec<Span>,
    angles: Vec<Angles<B>>,
    /// Keys and values that blocks lend to others, as they are attended to.
    lent: BTreeMap<usize, [FloatTensor<B>; 2]>,
    /// What each block reads of a token beside the residual stream, where it does.
    by_token: Vec<FloatTensor<B>>,
    per_layer: Option<PerLayerInputsTrace<B>>,
    /// Output of the last block, `[N, hidden]`.
    last: FloatTensor<B>,
    /// What the routers of blocks with experts decided; of nothing where nothing is kept.
    routed: Vec<(usize, Choices)>,
}

impl<B: Kernels> Trace<B> {
    /// What the routers of blocks with experts decided, block by block.
    #[must_use]
    pub fn routed(&self) -> &[(usize, Choices)] {
        &self.routed
    }
}

/// What rows that stand for tokens' own meet where those are predicted, until it is known what they meet where they are read.
pub struct TokensPredicted<B: Kernels>(Option<LinearRows<B>>);

/// Rows of tokens to run.
#[derive(Clone, Copy, Debug)]
pub struct ForwardRows<'a> {
    /// Token of each row.
    pub tokens: &'a [u32],
    /// Its position in its sequence.
    pub positions: &'a [u32],
    /// Tokens of its whole sequence, the last one included.
    pub lengths: &'a [u32],
    /// What attends to what.
    pub spans: &'a [Span],
}

impl<B: Kernels> Decoder<B> {
    /// Name of the output matrix.
    #[must_use]
    pub fn head_name(&self) -> &str {
        &self.head.as_ref().unwrap_or(&self.embedding).name
    }

    /// The output matrix, `[V, hidden]`.
    fn head_table(&self) -> Matrix<B> {
        let table = &self.head.as_ref().unwrap_or(&self.embedding).table;
        match self.tables.of_head() {
            Some(tokens) => tokens.table(table, self.dtype),
            None => table.clone(),
        }
    }

    /// The parts of the logits with the names of their matrices, the output matrix last.
    #[must_use]
    pub fn logit_parts(&self) -> Vec<(LogitPart, &str)> {
        let bias = self.head_bias.as_ref().map(|bias| (LogitPart::Bias, bias.name.as_str()));
        let change = self.tables.head.as_ref().map(|head| (LogitPart::Change, head.names[1].as_str()));
        bias.into_iter().chain(change).chain([(LogitPart::Matrix, self.head_name())]).collect()
    }

    /// Inputs of a part of the logits, of the inputs of the head `y[P, hidden]`.
    #[must_use]
    pub fn logit_inputs(&self, part: LogitPart, y: &FloatTensor<B>) -> FloatTensor<B> {
        match (part, &self.tables.head) {
            (LogitPart::Bias, _) => B::upload_like(vec![1.0; y.shape()[0]], &[y.shape()[0], 1], y),
            (LogitPart::Change, Some(lora)) => lora.low(y),
            _ => y.clone(),
        }
    }

    /// What the logits of inputs of the head are the product of: those and the output matrix, or, where the logits have more parts, the inputs
    /// of all side by side and their matrices; those of all but `only` are near zero there, and the matrices as much larger.
    #[must_use]
    pub fn scores(&self, y: &FloatTensor<B>, only: Option<LogitPart>) -> Scores<B> {
        let parts = self.logit_parts();
        if parts.len() == 1 {
            return Scores { y: y.clone(), w: self.head_table() };
        }
        // in f16 there is no room for the powers
        let dtype = if self.dtype == DType::F16 { DType::F32 } else { self.dtype };
        let wide = |x: FloatTensor<B>, factor: f64| scaled::<B>(B::cast(x, dtype), factor);
        let matrix = |part: LogitPart| match (part, &self.head_bias, &self.tables.head) {
            (LogitPart::Bias, Some(bias), _) => B::reshape(bias.values.clone(), [self.description.vocabulary, 1]),
            (LogitPart::Change, _, Some(lora)) => lora.b.clone(),
            _ => self.head_table().numbers(dtype),
        };
        let of = |(part, _): &(LogitPart, &str)| {
            let factor = if only.is_none_or(|only| only == *part) { 1.0 } else { NO_PART };
            (wide(self.logit_inputs(*part, y), factor), wide(matrix(*part), factor.recip()))
        };
        let (inputs, matrices): (Vec<_>, Vec<_>) = parts.iter().rev().map(of).unzip();
        Scores { y: B::join_columns(&inputs), w: Matrix::Plain(B::join_columns(&matrices)) }
    }

    /// Cotangents of the inputs of the head, of those of what [`scores`](Self::scores) gives; and of what B of the output matrix's change reads.
    #[must_use]
    pub fn head_cotangents(&self, back: FloatTensor<B>, dtype: DType) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
        let rank = self.tables.head.as_ref().map(|lora| lora.a.shape()[1]);
        let widths = [self.description.hidden].into_iter().chain(rank).chain(self.head_bias.as_ref().map(|_| 1));
        let widths: Vec<usize> = widths.collect();
        if widths.len() == 1 {
            return (back, None);
        }
        let mut parts = B::split_columns(&B::cast(back, dtype), &widths).into_iter();
        let (Some(matrix), low) = (parts.next(), parts.next()) else { unreachable!("the widths are several") };
        match (&self.tables.head, low) {
            (Some(lora), Some(low)) => {
                (B::matmul(&low, &lora.a, true, lora.scale, Some(matrix)), Some(B::times_number(low, lora.scale)))
            }
            _ => (matrix, None),
        }
    }

    /// Forward pass over rows of tokens; what the backward pass needs is kept if asked for.
    ///
    /// Tokens and positions have to be within the model's vocabulary and positions.
    pub fn forward(&self, rows: ForwardRows<'_>, keep: Keep) -> Trace<B> {
        let ForwardRows { tokens, positions, lengths, spans } = rows;
        let mut x = self.embedded(tokens);
        let inputs = self.per_layer.as_ref().map(|of| of.forward(&x, self.rows_of(&of.table, tokens)));
        let (by_token, per_layer) = inputs.map_or((Vec::new(), None), |(inputs, trace)| (inputs, Some(trace)));
        if let Some(table) = &self.positions {
            x = B::add_scaled(x, &self.rows_of(table, &self.position_rows(positions)), 1.0);
        }
        let angles = self.angles(positions, lengths);
        let mut lent = BTreeMap::new();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        let mut routed = Vec::new();
        let order: Vec<usize> = (0..self.blocks.len()).collect();
        self.each_block(&order, &mut |layer, block| {
            let pass = self.seen_by(layer, (spans, &angles), &lent, &by_token);
            let (y, trace) = block.forward(&x, &pass);
            if self.description.lends(layer) {
                lent.extend(trace.keys_and_values().map(|of| (layer, of)));
            }
            if keep != Keep::Nothing {
                routed.extend(trace.choices().map(|choices| (layer, choices)));
            }
            match keep {
                Keep::Nothing => {}
                Keep::Top(top) if self.blocks.len() - layer <= top => {
                    blocks.push(Some(KeptBlock::Trace(Box::new(trace))));
                }
                Keep::Top(_) => blocks.push(Some(KeptBlock::Input(x.clone()))),
            }
            x = y;
            true
        });
        Trace { blocks, spans: spans.to_vec(), angles, lent, by_token, per_layer, last: x, routed }
    }

    /// What a block sees, with what comes to it beside the residual stream.
    fn seen_by<'a>(
        &self,
        layer: usize,
        (spans, angles): (&'a [Span], &'a [Angles<B>]),
        lent: &'a BTreeMap<usize, [FloatTensor<B>; 2]>,
        by_token: &'a [FloatTensor<B>],
    ) -> Forward<'a, B> {
        let lender = self.description.blocks[layer].lender;
        let lent = lender.and_then(|lender| lent.get(&lender));
        Forward { spans, angles, lent, by_token: by_token.get(layer) }
    }

    /// Rows of the token embedding, as they are added to the residual stream.
    fn embedded(&self, tokens: &[u32]) -> FloatTensor<B> {
        let rows = match &self.tables.embedding_tokens {
            Some(own) => own.of_tokens(&self.embedding.table, tokens, self.dtype),
            None => self.rows_of(&self.embedding, tokens),
        };
        self.scaled(match &self.tables.embedding {
            Some(lora) => lora.onto(rows, tokens),
            None => rows,
        })
    }

    /// Rows of a table, in the model's number type.
    fn rows_of(&self, of: &Embedding<B>, ids: &[u32]) -> FloatTensor<B> {
        of.table.rows(ids, self.dtype)
    }

    /// Rows of learned positions.
    fn position_rows(&self, positions: &[u32]) -> Vec<u32> {
        let first = as_index(self.description.first_position);
        positions.iter().map(|position| position + first).collect()
    }

    /// cos and sin of the angles of each rotary embedding.
    fn angles(&self, positions: &[u32], lengths: &[u32]) -> Vec<Angles<B>> {
        let tables = self.description.ropes.iter().map(|rope| {
            let (cos, sin) = rope.tables(positions, lengths);
            let shape = [positions.len(), rope.pairs];
            let upload = |t: Vec<f64>| B::upload(TensorData::new(t, shape).convert_dtype(self.dtype), &self.device);
            (upload(cos), upload(sin))
        });
        tables.collect()
    }

    /// Rows of the token embedding, or their cotangents, times the embedding's factor.
    fn scaled(&self, rows: FloatTensor<B>) -> FloatTensor<B> {
        scaled::<B>(rows, self.description.embedding_scale)
    }

    /// Inputs of the head at some forward rows, with the factor on the logits, `[rows.len(), hidden]`.
    #[must_use]
    pub fn head_inputs(&self, trace: &Trace<B>, rows: &[u32]) -> FloatTensor<B> {
        let normed = self.final_norm.forward(&B::gather(&trace.last, rows, None));
        scaled::<B>(normed, self.description.logit_scale)
    }

    /// Carries the cotangents of the head's inputs, `delta[R_active, hidden]`, down to the lowest parameter in scope, and
    /// delivers every one on the way. `predicted` is what [`deliver_head`](Self::deliver_head) left; `passed` is told of each block whose vjp is done, and whose trace is given back.
    pub fn backward(
        &self,
        trace: Trace<B>,
        delta: &FloatTensor<B>,
        (forward, rows): (ForwardRows<'_>, BackwardRows<'_>),
        (scope, sink): (&InScope, &mut dyn Sink<B>),
        TokensPredicted(of_tokens_predicted): TokensPredicted<B>,
        passed: &mut dyn FnMut(usize),
    ) {
        let needs = Needs::of(&self.description, scope);
        if !needs.final_norm {
            return;
        }
        let delta = &scaled::<B>(delta.clone(), self.description.logit_scale);
        let Trace { blocks, spans, angles, lent, by_token, per_layer, last, .. } = trace;
        let column_norms = self.description.column_norms.unwrap_or_default();
        let mut pass = Backward { rows, angles: &angles, scope, sink, beside: Beside::default(), column_norms };
        let Some(lowest) = needs.lowest() else {
            return self.final_norm.deliver(&last, delta, rows.here(), &mut pass);
        };
        let mut stream = Some(self.final_norm.vjp(&last, delta, rows.here(), None, &mut pass));
        drop(last);
        let top = self.blocks.len() - 1;
        // below the top block every row's cotangent is filled by attention
        let filled: Vec<Segment> = rows.segments.iter().map(Segment::filled).collect();
        let below_top = BackwardRows { segments: &filled, active: None, ..rows };
        let mut of_lent: BTreeMap<usize, [FloatTensor<B>; 2]> = BTreeMap::new();
        let mut of_tokens = Vec::new();
        let mut blocks = blocks;
        let order: Vec<usize> = (lowest..self.blocks.len()).rev().collect();
        self.each_block(&order, &mut |layer, block| {
            let (Some(delta), Some(kept)) = (stream.take(), blocks[layer].take()) else { return false };
            pass.rows = if layer == top { rows } else { below_top };
            pass.beside = Beside { of_borrowers: of_lent.remove(&layer), ..Beside::default() };
            let trace = match kept {
                KeptBlock::Trace(trace) => *trace,
                KeptBlock::Input(x) => block.forward(&x, &self.seen_by(layer, (&spans, &angles), &lent, &by_token)).1,
            };
            stream = block.vjp(trace, delta, needs.blocks[layer], &mut pass);
            of_tokens.extend(pass.beside.by_token.take().filter(|_| needs.by_token));
            if let (Some(lender), Some(own)) = (self.description.blocks[layer].lender, pass.beside.to_lender.take()) {
                let sum = match of_lent.remove(&lender) {
                    Some(others) => sums::<B>(own, &others),
                    None => own,
                };
                of_lent.insert(lender, sum);
            }
            passed(layer);
            true
        });
        pass.rows = below_top;
        if let (Some(of), Some(trace), true) = (&self.per_layer, &per_layer, needs.by_token) {
            of_tokens.reverse();
            let source: (&dyn Fn() -> FloatTensor<B>, _) = (&|| self.embedded(forward.tokens), forward.tokens);
            let trained = |delta: &FloatTensor<B>| self.without_padding(delta, forward.tokens, rows.full);
            stream = of.vjp(trace, source, &of_tokens, (stream, needs.embeddings), &trained, &mut pass);
        }
        let Some(delta) = stream.filter(|_| needs.embeddings) else { return };
        self.deliver_embedding(&delta, forward.tokens, of_tokens_predicted, rows.full, &mut pass);
        if let Some(table) = self.positions.as_ref().filter(|table| scope.contains(&table.name)) {
            // positions are added as they are
            let ids = self.position_rows(forward.positions);
            let taken = TableRows { delta: &delta, trained: &delta, ids: &ids };
            pass.sink.embedding(table, &taken, rows.full);
        }
    }

    /// Delivers the embedding, and what an adapter changes of it, for the cotangents of the residual stream that it begins.
    fn deliver_embedding(
        &self,
        delta: &FloatTensor<B>,
        tokens: &[u32],
        predicted: Option<LinearRows<B>>,
        rows: &RowSet,
        pass: &mut Backward<'_, B>,
    ) {
        let TableChanges { embedding, embedding_tokens, .. } = &self.tables;
        let delta = &self.scaled(delta.clone());
        let trained = |delta: &FloatTensor<B>| self.without_padding(delta, tokens, rows);
        if pass.scope.contains(&self.embedding.name) {
            let kept = trained(delta);
            let taken = TableRows { delta, trained: kept.as_ref().unwrap_or(delta), ids: tokens };
            pass.sink.embedding(&self.embedding, &taken, rows);
        }
        if let Some(lora) = embedding {
            lora.deliver((delta, tokens, rows), &trained, (pass.scope, pass.sink));
        }
        if let Some(own) = embedding_tokens.as_ref().filter(|own| pass.scope.contains(&own.name)) {
            let read = own.read(trained(delta).unwrap_or_else(|| delta.clone()), tokens, rows);
            let both = predicted.map(|predicted| read.and(&predicted));
            both.as_ref().unwrap_or(&read).deliver(&own.name, pass.sink);
        }
    }

    /// Delivers what an adapter changes of the output matrix beside what [`logit_parts`](Self::logit_parts) are: A, for the cotangents of
    /// what B reads, and rows of its own. `rows` are the predictions of each cotangent, with their weights in it.
    pub fn deliver_head(
        &self,
        (y, low): (&FloatTensor<B>, Option<&FloatTensor<B>>),
        (scores, predictions): (&Scores<B>, &Predictions),
        (rows, weights): (&RowSet, &[f64]),
        (scope, sink): (&InScope, &mut dyn Sink<B>),
    ) -> TokensPredicted<B> {
        if let (Some(lora), Some(low)) = (&self.tables.head, low)
            && scope.contains(&lora.names[0])
        {
            let delta = B::gather(low, &rows.index, Some(weights));
            sink.linear(y, &[Factor { name: lora.names[0].clone(), delta: &delta }], rows);
        }
        let met = |own: &TokenRows<B>| {
            let wanted = own.of_head && scope.contains(&own.name);
            wanted.then(|| own.predicted(y, scores, predictions, (rows.clone(), weights)))
        };
        if let Some(own) = &self.tables.head_tokens
            && let Some(met) = met(own)
        {
            met.deliver(&own.name, sink);
        }
        TokensPredicted(self.tables.embedding_tokens.as_ref().and_then(met))
    }

    /// Cotangents without those of the padding token, where the model does not train its row; `None` where there are none.
    fn without_padding(&self, delta: &FloatTensor<B>, tokens: &[u32], rows: &RowSet) -> Option<FloatTensor<B>> {
        let padding = self.description.padding_row?;
        let is_padding = |row: &u32| tokens[*row as usize] == padding;
        rows.index.iter().any(is_padding).then(|| {
            let keep: Vec<f64> = rows.index.iter().map(|row| f64::from(u8::from(!is_padding(row)))).collect();
            B::gather(delta, &(0..as_index(keep.len())).collect::<Vec<_>>(), Some(&keep))
        })
    }
}
