//! What a batch asks of a device, counted before it runs (docs/mathematics.md, section 6).
use crate::batch::Batch;
use std::collections::BTreeSet;
use tanglescope_kernels::cost::{self, Cost, Rates};
use tanglescope_kernels::head::{head_cost, head_gram_cost};
use tanglescope_kernels::{DType, RowSet, Segment};
use tanglescope_model::architectures::{Description, ExpertsKind};
use tanglescope_model::{BlockNeeds, InScope, LowRank, Map, Needs, Outline, Reads, TablesOutline};

/// The cost of a batch, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Products of the forward pass with weights.
    pub forward: Cost,
    /// Products of the backward pass with weights.
    pub backward: Cost,
    /// Attention, forward and backward.
    pub attention: Cost,
    /// The head: logits, their gradient, and the Gram of the output matrix where it is in scope.
    pub head: Cost,
    /// Gram reductions of linear maps.
    pub reductions: Cost,
}

impl Count {
    /// All stages.
    #[must_use]
    pub fn total(&self) -> Cost {
        self.forward + self.backward + self.attention + self.head + self.reductions
    }

    /// Seconds at a device's rates. Row-wise maps are left out: they are few operations, and hide behind products only in
    /// part, so that this is a lower bound.
    #[must_use]
    pub fn seconds(&self, rates: &Rates) -> f64 {
        [self.forward, self.backward, self.attention, self.head, self.reductions].map(|c| rates.seconds(c)).iter().sum()
    }

    /// The sum of two.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            forward: self.forward + other.forward,
            backward: self.backward + other.backward,
            attention: self.attention + other.attention,
            head: self.head + other.head,
            reductions: self.reductions + other.reductions,
        }
    }
}

/// The inputs of a block's maps, in the order of the forward pass.
const INPUTS: [Reads; 8] = [
    Reads::MixerInput,
    Reads::QueryLatent,
    Reads::KeyLatent,
    Reads::AttentionOutput,
    Reads::MlpInput,
    Reads::MlpHidden,
    Reads::BlockOutput,
    Reads::PerLayerInput,
];

/// Products of `rows` rows with a map, and with its adapter.
fn forward(map: &Map, rows: usize, dtype: DType) -> Cost {
    let [n, m] = map.shape;
    let low = |r: usize| cost::product(rows, n, r, dtype) + cost::product(rows, r, m, dtype);
    // an expert's bias is a map of the number one
    let bias = if map.routed && map.bias { cost::product(rows, 1, m, dtype) } else { Cost::default() };
    cost::product(rows, n, m, dtype) + bias + map.rank.map(low).unwrap_or_default()
}

/// Whether the cotangents of the outputs of maps that read an input are formed, and those of that input.
fn needed(needs: BlockNeeds, input: Reads) -> [bool; 2] {
    match input {
        Reads::MixerInput => [needs.mixer.latent, needs.mixer.input],
        Reads::QueryLatent | Reads::KeyLatent => [needs.mixer.hidden, needs.mixer.latent],
        Reads::AttentionOutput => [needs.mixer.output, needs.mixer.hidden],
        Reads::MlpInput => [needs.mlp.hidden, needs.mlp.input],
        Reads::MlpHidden => [needs.mlp.output, needs.mlp.hidden],
        Reads::BlockOutput => [needs.per_layer.hidden, needs.per_layer.input],
        Reads::PerLayerInput => [needs.per_layer.output, needs.per_layer.hidden],
        // beside the blocks
        Reads::Embedded => [false; 2],
    }
}

/// Products of `rows` cotangents with a map and its adapter: `δ·Wᵀ` where the input's cotangent is formed, `δ·Bᵀ` there and
/// where A is in scope.
fn backward(map: &Map, scope: &InScope, [output, input]: [bool; 2], rows: usize, dtype: DType) -> Cost {
    let [n, m] = map.shape;
    let mut sum = Cost::default();
    if output && input {
        sum += cost::product(rows, m, n, dtype);
    }
    if let Some(r) =
        map.rank.filter(|_| output && (input || scope.contains(&format!("{}.lora_A.weight", map.adapter_path))))
    {
        sum += cost::product(rows, m, r, dtype);
        if input {
            sum += cost::product(rows, r, n, dtype);
        }
    }
    sum
}

/// Gram reductions of the parameters in scope of maps that read one input.
fn reductions(maps: &[&Map], scope: &InScope, rows: &RowSet, dtype: DType, rates: &Rates) -> Cost {
    let (mut sum, mut outputs) = (Cost::default(), Vec::new());
    for map in maps {
        let has = |factor: &str| scope.contains(&format!("{}.{factor}.weight", map.adapter_path));
        outputs.extend(scope.contains(&map.weight_name()).then_some(map.shape[1]));
        outputs.extend(map.rank.filter(|_| has("lora_A")));
        if let Some(r) = map.rank.filter(|_| has("lora_B")) {
            sum += cost::reductions(r, &[map.shape[1]], rows, dtype, rates);
        }
    }
    if let Some(map) = maps.first().filter(|_| !outputs.is_empty()) {
        sum += cost::reductions(map.shape[0], &outputs, rows, dtype, rates);
    }
    sum
}

/// Products that take sinks of attention from heads to values, or back.
fn of_sinks(of: &Description, rows: usize, dtype: DType) -> Cost {
    let (heads, width) = (of.attention.heads, of.attention.heads * of.attention.head_dim);
    if of.names.sinks.is_none() { Cost::default() } else { cost::product(rows, heads, width, dtype) }
}

/// Name of a block's sinks; no parameter's where it has none.
fn sinks_name(of: &Description, layer: usize) -> String {
    of.names.sinks.map_or_else(String::new, |name| format!("{}.{layer}.{name}", of.names.blocks))
}

/// A part of the rows of each cotangent: what an expert meets on average.
fn thinned(rows: &RowSet, part: f64) -> RowSet {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a part of a number of rows
    let offsets: Vec<usize> = rows.offsets.iter().map(|&offset| (offset as f64 * part).round() as usize).collect();
    let index = rows.index[..offsets.last().copied().unwrap_or(0)].to_vec();
    RowSet { index, offsets, sets: rows.sets.clone() }
}

/// The cross terms of a tied output matrix: logits of the tokens that the rows of a set of cotangents have, and the head's rows against their sums
/// of cotangents, for each cotangent.
fn tied(batch: &Batch, [hidden, width]: [usize; 2], dtype: DType) -> Cost {
    let set_cost = |(cotangents, predictions): (&std::ops::Range<usize>, Vec<u32>)| {
        let rows = &batch.full.index[batch.full.of_set(cotangents)];
        let tokens = rows.iter().map(|&row| batch.tokens[row as usize]).collect::<BTreeSet<_>>().len();
        let product = |width: usize, n: usize| cost::product(predictions.len(), width, n, dtype);
        product(width, tokens) + product(hidden, cotangents.len() * tokens)
    };
    let sets = batch.full.sets.iter().zip(batch.head_cotangents().set_rows());
    sets.map(set_cost).fold(Cost::default(), |sum, cost| sum + cost)
}

/// Products and reductions of an adapter's changes of the embedding and of the output matrix, beside the head's own.
fn of_tables(outline: &Outline, scope: &InScope, batch: &Batch, dtype: DType, rates: &Rates) -> Count {
    let (of, mut count) = (&outline.description, Count::default());
    let TablesOutline { embedding, head, embedding_tokens, head_tokens } = &outline.tables;
    let has = |low_rank: &LowRank| [0, 1].map(|at| scope.contains(&low_rank.names[at]));
    let (predictions, of_predictions) = (batch.targets.len(), batch.of_predictions().0);
    if let Some(low_rank) = embedding {
        let (r, [a, b]) = (low_rank.rank, has(low_rank));
        count.forward += cost::product(batch.tokens.len(), r, of.hidden, dtype);
        if a {
            count.backward += cost::product(batch.full.rows(), of.hidden, r, dtype);
        }
        if b {
            count.reductions += cost::reductions(r, &[of.hidden], &batch.full, dtype, rates);
        }
    }
    if let Some(low_rank) = head {
        let (r, [a, b]) = (low_rank.rank, has(low_rank));
        // the logits' own, and one where each Gram of a part of them is wanted; the inputs of B where it is
        let wanted = outline.logit_matrices().filter(|name| scope.contains(name)).count();
        for _ in 0..1 + wanted + usize::from(b) {
            count.forward += cost::product(predictions, of.hidden, r, dtype);
        }
        count.backward += cost::product(predictions, r, of.hidden, dtype);
        if a {
            count.reductions += cost::reductions(of.hidden, &[r], &of_predictions, dtype, rates);
        }
    }
    for own in [embedding_tokens, head_tokens].into_iter().flatten().filter(|own| scope.contains(&own.name)) {
        let (n, is_embedding) = (own.tokens.len(), Some(own) == embedding_tokens.as_ref());
        let rows = match (is_embedding, own.of_head) {
            (true, true) => batch.full.and(&of_predictions, batch.tokens.len()).0,
            (true, false) => batch.full.clone(),
            (false, _) => of_predictions.clone(),
        };
        if own.of_head {
            let width = of.hidden + head.as_ref().map_or(0, |head| head.rank) + usize::from(of.head_bias);
            count.backward += cost::product(predictions, width, n, dtype);
        }
        count.reductions += cost::reductions(n, &[of.hidden], &rows, dtype, rates);
    }
    count
}

/// The cost of a batch. `scope` is the outline's own.
#[must_use]
pub fn count(outline: &Outline, scope: &InScope, batch: &Batch, dtype: DType, rates: &Rates) -> Count {
    let of = &outline.description;
    let needs = Needs::of(of, scope);
    let mut count = Count::default();
    for map in outline.maps.iter().filter(|map| map.reads == Reads::Embedded) {
        count.forward += forward(map, batch.tokens.len(), dtype);
        count.backward += backward(map, scope, [needs.by_token, needs.embeddings], batch.full.rows(), dtype);
        count.reductions += reductions(&[map], scope, &batch.full, dtype, rates);
    }
    let filled: Vec<Segment> = batch.segments.iter().map(Segment::filled).collect();
    for (layer, needs) in needs.blocks.iter().enumerate() {
        let (here, segments) = match layer + 1 == of.layers() {
            true => (batch.active.rows(), &batch.segments),
            false => (batch.full.rows(), &filled),
        };
        let (forward_cost, vjp_cost) = match of.delta_of(layer) {
            Some(delta) => (delta.spec.cost(&batch.spans), delta.spec.cost_vjp(segments)),
            None => {
                let attention = of.attention_of(layer);
                (attention.cost(&batch.spans), attention.cost_vjp(segments))
            }
        };
        count.attention += forward_cost;
        if needs.mixer.hidden {
            count.attention += vjp_cost;
        }
        count.forward += of_sinks(of, batch.tokens.len(), dtype);
        if needs.mixer.hidden && scope.contains(&sinks_name(of, layer)) {
            count.backward += of_sinks(of, here, dtype);
        }
        for input in INPUTS {
            let (routed, maps): (Vec<&Map>, Vec<&Map>) = outline
                .maps
                .iter()
                .filter(|map| map.layer == Some(layer) && map.reads == input)
                .partition(|map| map.routed);
            // at the top, rows whose cotangent is zero are left out until attention fills them
            let top = layer + 1 == of.layers() && !input.before_mixing();
            let rows = if top { &batch.active } else { &batch.full };
            let needed = needed(*needs, input);
            for map in &maps {
                count.forward += forward(map, batch.tokens.len(), dtype);
                count.backward += backward(map, scope, needed, rows.rows(), dtype);
            }
            count.reductions += reductions(&maps, scope, rows, dtype, rates);
            if let Some(of_experts) = of.experts_of(layer).filter(|_| !routed.is_empty()) {
                let (number, per_row) = (of_experts.number, of_experts.routing.per_row);
                // every row meets as many experts, whichever they are
                for map in &routed[..routed.len() / number] {
                    count.forward += forward(map, batch.tokens.len() * per_row, dtype);
                    count.backward += backward(map, scope, needed, rows.rows() * per_row, dtype);
                }
                let share = thinned(rows, per_row as f64 / number as f64);
                for maps in routed.chunks(routed.len() / number) {
                    count.reductions += reductions(maps, scope, &share, dtype, rates);
                }
            }
        }
        if let Some(experts) = of.experts_of(layer).filter(|_| needs.mlp.hidden) {
            let router = format!("{}.{layer}.{}.weight", of.names.blocks, experts.router);
            let factors = format!("{}.{layer}.{}", of.names.blocks, ExpertsKind::FACTORS);
            // how each weight, and what opens the shared expert, change the output along each row's cotangent
            if needs.mlp.input || scope.contains(&router) || scope.contains(&factors) {
                count.backward += cost::product(here * experts.routing.per_row, of.hidden, 1, dtype);
            }
            if experts.shared.is_some_and(|shared| shared.gate.is_some()) {
                count.backward += cost::product(here, of.hidden, 1, dtype);
            }
        }
    }
    count = count.plus(&of_tables(outline, scope, batch, dtype, rates));
    let low = outline.tables.head.as_ref().map(|head| head.rank);
    let width = of.hidden + low.unwrap_or(0) + usize::from(of.head_bias);
    count.head += head_cost(batch.targets.len(), width, of.vocabulary, dtype);
    for _ in outline.logit_matrices().filter(|name| scope.contains(name)) {
        count.head += head_gram_cost(&batch.head_cotangents(), of.vocabulary, dtype);
        // where the logits have several parts, the Gram of each is a pass of its own
        if low.is_some() || of.head_bias {
            count.head += head_cost(batch.targets.len(), width, of.vocabulary, dtype);
        }
    }
    if scope.contains(&outline.head_name()) && of.tied && !scope.head_only() {
        count.head += tied(batch, [of.hidden, width], dtype);
    }
    count
}
