//! What a batch asks of a device, counted before it runs (docs/mathematics.md, section 6).
use crate::batch::Batch;
use std::ops::Range;
use tanglescope_kernels::cost::{self, Cost, Rates};
use tanglescope_kernels::{DType, RowSet};
use tanglescope_model::{InScope, Map, Outline, Reads};

/// The cost of a batch, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Products of the forward pass with weights.
    pub forward: Cost,
    /// Products of the backward pass with weights.
    pub backward: Cost,
    /// Attention, forward and backward.
    pub attention: Cost,
    /// The head: logits, its gradient, and its Gram where the output matrix is in scope.
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

/// Products of `rows` rows with a map, and with its adapter.
fn products(map: &Map, rows: usize, dtype: DType) -> Cost {
    let [n, m] = map.shape;
    let low = |r: usize| cost::product(rows, n, r, dtype) + cost::product(rows, r, m, dtype);
    cost::product(rows, n, m, dtype) + map.rank.map(low).unwrap_or_default()
}

/// Whether each part of a block has a parameter in scope.
struct Wanted {
    /// Norms of what attention reads, and of queries and keys.
    attention_norm: bool,
    after_attention: bool,
    feed_forward_norm: bool,
    after_feed_forward: bool,
    maps: Vec<bool>,
}

fn wanted(outline: &Outline, scope: &InScope, layer: usize, maps: &[&Map]) -> Wanted {
    let names = &outline.description.names;
    let norm = |name: Option<&'static str>| {
        let Some(name) = name else { return false };
        let path = format!("{}.{layer}.{name}", names.blocks);
        scope.contains(&format!("{path}.weight")) || scope.contains(&format!("{path}.bias"))
    };
    let of_map = |map: &&Map| {
        let parts = ["weight", "bias", "lora_A.weight", "lora_B.weight"];
        parts.iter().any(|part| scope.contains(&format!("{}.{part}", map.path)))
    };
    Wanted {
        attention_norm: norm(names.attention_norm)
            || names.query_key_norms.is_some_and(|n| n.map(Some).into_iter().any(norm)),
        after_attention: norm(names.after_attention),
        feed_forward_norm: norm(names.mlp_norm),
        after_feed_forward: norm(names.after_mlp),
        maps: maps.iter().map(of_map).collect(),
    }
}

/// The cost of a batch. `scope` is the outline's own.
#[must_use]
pub fn count(outline: &Outline, scope: &InScope, batch: &Batch, dtype: DType, rates: &Rates) -> Count {
    let of = &outline.description;
    let (forward, full, active) = (batch.tokens.len(), &batch.full, &batch.active);
    let mut count = Count::default();
    let blocks: Vec<Vec<&Map>> =
        (0..of.layers()).map(|layer| outline.maps.iter().filter(|map| map.layer == layer).collect()).collect();
    let wants: Vec<Wanted> =
        blocks.iter().enumerate().map(|(layer, maps)| wanted(outline, scope, layer, maps)).collect();
    let table = |name: &str| scope.contains(&format!("{name}.weight")) && !scope.head_only();
    let embedded = table(&of.names.embedding) || of.names.positions.is_some_and(table);
    let of_layer = |w: &Wanted| w.after_attention || w.feed_forward_norm || w.after_feed_forward;
    let any = |w: &Wanted| w.attention_norm || of_layer(w) || w.maps.contains(&true);
    let lowest = if embedded { Some(0) } else { wants.iter().position(any) };
    let width = of.heads.heads * of.heads.head_dim;
    // queries and the keys that they see
    let pairs = |n: usize, before: usize, window: Option<usize>| match window {
        None => n as f64 * before as f64 + n as f64 * (n as f64 + 1.0) / 2.0,
        Some(window) => (before + 1..=before + n).map(|seen| seen.min(window) as f64).sum(),
    };
    for (layer, (maps, wants)) in blocks.iter().zip(&wants).enumerate() {
        let window = of.blocks[layer].window;
        let of_spans: f64 = batch.spans.iter().map(|span| pairs(span.own.len(), span.prefix.len(), window)).sum();
        let of_segments: f64 = batch.segments.iter().map(|segment| pairs(segment.len(), 0, window)).sum();
        for map in maps {
            count.forward += products(map, forward, dtype);
        }
        count.attention += Cost { operations: 4.0 * of_spans * width as f64, bytes: 0.0 };
        let Some(lowest) = lowest.filter(|&lowest| layer >= lowest) else { continue };
        let below = layer > lowest || embedded;
        let reads = |input: Reads| maps.iter().zip(&wants.maps).any(|(map, wanted)| *wanted && map.reads == input);
        let above_attention = below || wants.attention_norm;
        let above_mixed = above_attention || reads(Reads::Attention);
        let above_feed_forward = above_mixed || wants.after_attention || reads(Reads::Mixed);
        let above_inner = above_feed_forward || wants.feed_forward_norm || reads(Reads::FeedForward);
        let rows_of = |input: Reads| -> &RowSet {
            if layer + 1 == of.layers() && input != Reads::Attention { active } else { full }
        };
        for map in maps {
            let needed = match map.reads {
                Reads::Attention => above_attention,
                Reads::Mixed => above_mixed,
                Reads::FeedForward => above_feed_forward || wants.feed_forward_norm,
                Reads::Inner => above_inner,
            };
            if needed {
                count.backward += products(map, rows_of(map.reads).rows(), dtype);
            }
        }
        if above_mixed {
            count.attention += Cost { operations: 10.0 * of_segments * width as f64, bytes: 0.0 };
        }
        for input in [Reads::Attention, Reads::Mixed, Reads::FeedForward, Reads::Inner] {
            let rows = rows_of(input);
            let mut outputs = Vec::new();
            let of_input = maps.iter().filter(|map| map.reads == input);
            for map in of_input {
                let has = |part: &str| scope.contains(&format!("{}.{part}", map.path));
                outputs.extend(has("weight").then_some(map.shape[1]));
                outputs.extend(map.rank.filter(|_| has("lora_A.weight")));
                if let Some(r) = map.rank.filter(|_| has("lora_B.weight")) {
                    count.reductions += cost::reductions(r, &[map.shape[1]], rows, dtype, rates);
                }
            }
            if let Some(map) = maps.iter().find(|map| map.reads == input).filter(|_| !outputs.is_empty()) {
                count.reductions += cost::reductions(map.shape[0], &outputs, rows, dtype, rates);
            }
        }
    }
    let predictions = batch.targets.len();
    count.head = cost::product(predictions, of.hidden, of.vocabulary, dtype) * 2.0;
    let head = if of.tied { &of.names.embedding } else { &of.names.head };
    if scope.contains(&format!("{head}.weight")) {
        // p·pᵀ up to its diagonal
        let of_block = |rows: &Range<usize>| cost::product(rows.len(), of.vocabulary, rows.len() + 1, dtype) * 0.5;
        batch.predictions.iter().for_each(|rows| count.head += of_block(rows));
    }
    count
}
