//! Which groups run together, and what is kept of them: by length, up to what memory allows.
use tanglescope_kernels::DType;
use tanglescope_model::Keep;
use tanglescope_model::architectures::{Description, ExpertsKind};

/// Forward rows beyond which a larger batch no longer runs faster on a processor (docs/benchmarks.md).
const ENOUGH_ROWS: usize = 512;

/// Rows of an expert's beyond which its products no longer run much faster (docs/benchmarks.md).
const ENOUGH_ROWS_OF_EXPERT: usize = 128;

/// Forward rows beyond which a larger batch of a model no longer runs much faster: each of its experts meets a part of them.
#[must_use]
pub fn enough_rows(model: &Description) -> usize {
    let of_experts = |of: &ExpertsKind| ENOUGH_ROWS_OF_EXPERT * of.number / of.routing.per_row;
    model.experts.as_ref().map_or(ENOUGH_ROWS, |experts| of_experts(experts).max(ENOUGH_ROWS))
}

/// The same on a device: rows that fill a large GPU's products several times over.
pub const ENOUGH_ROWS_ON_DEVICE: usize = 8192;

/// The same where blocks come from files or from the host's memory: the reading of a pass is then a small part of it (docs/benchmarks.md), and a
/// device that multiplies 500 T numbers a second and copies 50 GB works on 10,000 rows as long as it copies 16 bits of a weight for them.
pub const ENOUGH_ROWS_OF_COPIES: usize = 16_384;

/// Backward rows beyond which a larger pass over single tokens no longer runs faster.
pub const ENOUGH_BACKWARD_ROWS: usize = 32_768;

/// Batches that run side by side on a processor, so that no core waits for another (docs/benchmarks.md).
pub const BATCHES_IN_FLIGHT: usize = 2;

/// The same on a device, which orders the work of one thread.
pub const BATCHES_IN_FLIGHT_ON_DEVICE: usize = 1;

/// Values that a block keeps of one forward row for its vjp, beside its input.
fn kept(model: &Description) -> usize {
    let specs = (0..model.layers()).map(|layer| model.attention_of(layer));
    let widest = specs.max_by_key(|of| (of.heads + of.kv_heads) * of.head_dim);
    let (spec, names) = (widest.unwrap_or(model.attention), &model.names);
    let attention = 2 * spec.heads + 2 * spec.kv_heads;
    // what norms of queries and keys, and norms after a layer, read
    let before_norms = if model.query_key_norm.is_some() { spec.heads + spec.kv_heads } else { 0 };
    let before_norms = before_norms + if model.value_norm { spec.kv_heads } else { 0 };
    let outputs = usize::from(names.after_attention.is_some()) + usize::from(names.after_mlp.is_some());
    let everywhere = model.blocks.iter().all(|block| block.sparse) && !beside_mlp(model);
    let dense = if everywhere { 0 } else { 2 * widest_mlp(model) };
    let feed_forward = model.experts.as_ref().map_or(0, |of| {
        let shared = of.shared.map_or(0, |shared| 2 * shared.width + model.hidden);
        of.routing.per_row * (2 * of.width + model.hidden) + shared + of.number
    });
    // side by side, both are kept, and the output of each before its norm
    let feed_forward =
        if beside_mlp(model) { dense + feed_forward + 2 * model.hidden } else { dense.max(feed_forward) };
    // and what queries are multiplied with, or come from
    let gates = if model.output_gate || model.latent.is_some() { 2 * spec.heads } else { 0 };
    // outputs of maps, before lengths of columns that an adapter has learned
    let units = model.column_norms.map_or(0, |_| {
        let kv = (spec.heads + 2 * spec.kv_heads) * spec.head_dim;
        kv * if model.output_gate { 2 } else { 1 } + 2 * model.hidden + 2 * widest_mlp(model)
    });
    let attention = (attention + before_norms + gates) * spec.head_dim + spec.heads;
    // what reads a block's input by token: its input, its output before the norm, and its gate
    let by_token = model.per_layer.map_or(0, |of| 2 * model.hidden + of.width);
    (1 + outputs) * model.hidden + attention.max(carried(model)) + feed_forward + by_token + units
}

/// Whether experts stand beside a feed-forward layer for all rows.
fn beside_mlp(model: &Description) -> bool {
    model.experts.as_ref().is_some_and(|experts| experts.beside_mlp)
}

/// Width of the widest feed-forward layer that is none of experts.
fn widest_mlp(model: &Description) -> usize {
    (0..model.layers()).map(|layer| model.mlp_width_of(layer)).max().unwrap_or(model.mlp_width)
}

/// Values of a row that are kept for all blocks: what each reads of a token, before its norm and behind it, and its cotangent.
fn for_all_blocks(model: &Description) -> usize {
    model.per_layer.map_or(0, |of| 3 * of.width * model.layers())
}

/// Values of a row in a mixer by the gated delta rule: its channels and gates as they are, and what is carried, twice as wide on the CPU.
fn carried(model: &Description) -> usize {
    model.delta.as_ref().map_or(0, |of| {
        let [keys, values] = of.widths();
        let channels = 2 * keys + values;
        channels + values + 2 * (channels + 2 * values + 5 * of.spec.value_heads)
    })
}

/// Values of one backward row on its way through the widest layer: δ of gate, up and down, and the residual stream.
fn passing(model: &Description) -> usize {
    let experts = model.experts.as_ref().map_or(0, |of| of.routing.per_row * (3 * of.width + 2 * model.hidden));
    (3 * widest_mlp(model)).max(experts).max(2 * carried(model)) + 4 * model.hidden
}

/// Backward rows for each forward row, of a pair that shares little of its prompt.
pub const BACKWARD_ROWS_PER_ROW: usize = 2;

/// Bytes of a backward row in the largest tensor of a pass, at the widest layer.
#[must_use]
pub fn widest_bytes_per_backward_row(model: &Description, dtype: DType) -> usize {
    let heads = |layer| model.attention_of(layer).heads * model.attention_of(layer).head_dim;
    let attention = (0..model.layers()).map(heads).max().unwrap_or(0);
    let experts = model.experts.as_ref().map_or(0, |of| of.routing.per_row * of.width.max(model.hidden));
    widest_mlp(model).max(attention).max(experts).max(carried(model)).max(model.hidden) * dtype.size()
}

/// Bytes that one forward row takes at the peak of a backward pass that computes nothing twice, for a pair that shares
/// little of its prompt.
#[must_use]
pub fn bytes_per_row(model: &Description, dtype: DType) -> usize {
    ((model.hidden + kept(model)) * model.layers() + for_all_blocks(model) + BACKWARD_ROWS_PER_ROW * passing(model))
        * dtype.size()
}

/// Bytes that one forward row takes at the least: of each block only the input is kept.
#[must_use]
pub fn least_bytes_per_row(model: &Description, dtype: DType) -> usize {
    (model.hidden * model.layers() + kept(model) + for_all_blocks(model) + BACKWARD_ROWS_PER_ROW * passing(model))
        * dtype.size()
}

/// Bytes that one backward row takes at the peak of a pass over single tokens, whose forward rows are few beside it.
#[must_use]
pub fn bytes_per_backward_row(model: &Description, dtype: DType) -> usize {
    2 * passing(model) * dtype.size()
}

/// How many of the top blocks keep what their vjp needs, so that a batch of some rows stays within some bytes. What the
/// others need is computed again from their input.
#[must_use]
pub fn keep(model: &Description, dtype: DType, forward: usize, backward: usize, bytes: Option<usize>) -> Keep {
    let Some(bytes) = bytes else { return Keep::Top(model.layers()) };
    let of_row = model.hidden * model.layers() + kept(model) + for_all_blocks(model);
    let least = forward * of_row + backward * passing(model);
    let left = (bytes / dtype.size()).saturating_sub(least);
    Keep::Top((left / (forward * kept(model)).max(1)).min(model.layers()))
}

/// Cuts groups of the given numbers of forward rows into batches of at most `most` rows each; a longer group runs
/// alone. Groups of like length come together; a batch lists its groups by number.
#[must_use]
pub(crate) fn batches(forward_rows: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..forward_rows.len()).collect();
    order.sort_by_key(|&g| (forward_rows[g], g));
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for g in order {
        match out.last_mut() {
            Some(batch) if forward_rows[g] <= room => batch.push(g),
            _ => {
                out.push(vec![g]);
                room = most;
            }
        }
        room = room.saturating_sub(forward_rows[g]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::batches;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_group_runs_once_and_no_batch_of_several_is_too_large(
            rows in proptest::collection::vec(1usize..300, 0..40),
            most in 1usize..400,
        ) {
            let batches = batches(&rows, most);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..rows.len()).collect::<Vec<_>>());
            for batch in batches {
                prop_assert!(batch.len() == 1 || batch.iter().map(|&g| rows[g]).sum::<usize>() <= most);
            }
        }
    }
}
