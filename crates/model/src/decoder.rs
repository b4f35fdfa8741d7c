//! The decoder: embedding, blocks, final norm, head; one forward pass, and one backward pass for many cotangents.
use crate::architectures::Description;
use crate::layers::{
    Angles, Backward, BackwardRows, Beside, BlockTrace, Choices, Forward, Norm, PerLayerInputs, PerLayerInputsTrace,
    Vector, scaled, sums,
};
use crate::needs::Needs;
use crate::outline::{FusedMap, Map};
use crate::residency::{OnDevice, Residence};
use crate::scope::InScope;
use crate::sink::{Embedding, Sink, TableRows};
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
    /// What the device does in a second: decides between the two Gram reductions of a map.
    pub rates: Rates,
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
}

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
    blocks: Vec<KeptBlock<B>>,
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
    fn block(&self, layer: usize) -> OnDevice<'_, B> {
        self.blocks[layer].on_device(self.dtype, &self.device)
    }

    /// Name of the output matrix.
    #[must_use]
    pub fn head_name(&self) -> &str {
        &self.head.as_ref().unwrap_or(&self.embedding).name
    }

    /// Name of the logits' bias, where there is one.
    #[must_use]
    pub fn head_bias_name(&self) -> Option<&str> {
        self.head_bias.as_ref().map(|bias| bias.name.as_str())
    }

    /// The output matrix, `[V, hidden]`.
    #[must_use]
    pub fn head(&self) -> &FloatTensor<B> {
        &self.head.as_ref().unwrap_or(&self.embedding).table
    }

    /// Two matrices whose product `y·wᵀ` is the logits of inputs of the head: those and the output matrix, or, where the logits have a
    /// bias, `[s·y, t·1]` and `[W/s, b/t]`, with powers of two for s and t.
    #[must_use]
    pub fn scores(&self, y: &FloatTensor<B>, [s, t]: [f64; 2]) -> [FloatTensor<B>; 2] {
        let Some(bias) = &self.head_bias else { return [y.clone(), self.head().clone()] };
        let (rows, tokens) = (y.shape()[0], self.description.vocabulary);
        // in f16 there is no room for the powers
        let dtype = if self.dtype == DType::F16 { DType::F32 } else { self.dtype };
        let wide = |x: &FloatTensor<B>, factor: f64| scaled::<B>(B::cast(x.clone(), dtype), factor);
        let y = wide(y, s);
        let ones = B::upload_like(vec![t; rows], &[rows, 1], &y);
        let bias = B::reshape(wide(&bias.values, t.recip()), [tokens, 1]);
        [B::join_columns(&[y, ones]), B::join_columns(&[wide(self.head(), s.recip()), bias])]
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
        for layer in 0..self.blocks.len() {
            let pass = self.seen_by(layer, (spans, &angles), &lent, &by_token);
            let (y, trace) = self.block(layer).forward(&x, &pass);
            if self.description.lends(layer) {
                lent.extend(trace.keys_and_values().map(|of| (layer, of)));
            }
            if keep != Keep::Nothing {
                routed.extend(trace.choices().map(|choices| (layer, choices)));
            }
            match keep {
                Keep::Nothing => {}
                Keep::Top(top) if self.blocks.len() - layer <= top => blocks.push(KeptBlock::Trace(Box::new(trace))),
                Keep::Top(_) => blocks.push(KeptBlock::Input(x)),
            }
            x = y;
        }
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
        self.scaled(self.rows_of(&self.embedding, tokens))
    }

    /// Rows of a table, in the model's number type.
    fn rows_of(&self, of: &Embedding<B>, ids: &[u32]) -> FloatTensor<B> {
        B::cast(B::gather(&of.table, ids, None), self.dtype)
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
    /// delivers every one on the way. `passed` is told of each block whose vjp is done, and whose trace is given back.
    pub fn backward(
        &self,
        trace: Trace<B>,
        delta: &FloatTensor<B>,
        forward: ForwardRows<'_>,
        rows: BackwardRows<'_>,
        (scope, sink): (&InScope, &mut dyn Sink<B>),
        passed: &mut dyn FnMut(usize),
    ) {
        let needs = Needs::of(&self.description, scope);
        if !needs.final_norm {
            return;
        }
        let delta = &scaled::<B>(delta.clone(), self.description.logit_scale);
        let Trace { blocks, spans, angles, lent, by_token, per_layer, last, .. } = trace;
        let mut pass = Backward { rows, angles: &angles, scope, sink, beside: Beside::default() };
        let Some(lowest) = needs.lowest() else {
            return self.final_norm.deliver(&last, delta, rows.here(), &mut pass);
        };
        let mut stream = Some(self.final_norm.vjp(&last, delta, rows.here(), None, &mut pass));
        drop(last);
        let top = self.blocks.len() - 1;
        // below the top block every row's cotangent is filled by attention
        let filled: Vec<Segment> = rows.segments.iter().map(|s| Segment { active_from: 0, ..s.clone() }).collect();
        let below_top = BackwardRows { segments: &filled, active: None, ..rows };
        let mut of_lent: BTreeMap<usize, [FloatTensor<B>; 2]> = BTreeMap::new();
        let mut of_tokens = Vec::new();
        for (layer, kept) in blocks.into_iter().enumerate().skip(lowest).rev() {
            let Some(delta) = stream.take() else { break };
            pass.rows = if layer == top { rows } else { below_top };
            pass.beside = Beside { of_borrowers: of_lent.remove(&layer), ..Beside::default() };
            let block = self.block(layer);
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
        }
        pass.rows = below_top;
        if let (Some(of), Some(trace), true) = (&self.per_layer, &per_layer, needs.by_token) {
            of_tokens.reverse();
            let source: (&dyn Fn() -> FloatTensor<B>, _) = (&|| self.embedded(forward.tokens), forward.tokens);
            let trained = |delta: &FloatTensor<B>| self.without_padding(delta, forward.tokens, rows.full);
            stream = of.vjp(trace, source, &of_tokens, (stream, needs.embeddings), &trained, &mut pass);
        }
        let Some(delta) = stream.filter(|_| needs.embeddings) else { return };
        if scope.contains(&self.embedding.name) {
            let (delta, ids) = (self.scaled(delta.clone()), forward.tokens);
            let trained = self.without_padding(&delta, ids, rows.full);
            let taken = TableRows { delta: &delta, trained: trained.as_ref().unwrap_or(&delta), ids };
            pass.sink.embedding(&self.embedding, &taken, rows.full);
        }
        if let Some(table) = self.positions.as_ref().filter(|table| scope.contains(&table.name)) {
            // positions are added as they are
            let ids = self.position_rows(forward.positions);
            let taken = TableRows { delta: &delta, trained: &delta, ids: &ids };
            pass.sink.embedding(table, &taken, rows.full);
        }
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
