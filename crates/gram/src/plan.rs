//! Which groups run together: by length, up to a number of forward rows that memory allows.
use tanglescope_kernels::DType;
use tanglescope_model::architectures::Description;

/// Forward rows beyond which a larger batch no longer runs faster (docs/benchmarks.md).
pub const ENOUGH_ROWS: usize = 512;

/// Bytes that one forward row takes at the peak of a backward pass, for a pair that shares little of its prompt.
#[must_use]
pub fn bytes_per_row(model: &Description, dtype: DType) -> usize {
    let attention = 2 * model.heads.heads + 2 * model.heads.kv_heads;
    let kept = 2 * model.hidden + attention * model.heads.head_dim + 2 * model.mlp_width;
    // two cotangents' copies of the widest layer: δ of gate, up and down, and the residual stream
    let passing = 2 * (3 * model.mlp_width + 4 * model.hidden);
    (kept * model.layers + passing) * dtype.size()
}

/// Cuts groups of the given numbers of forward rows into batches of at most `most` rows each; a longer group runs
/// alone. Groups of like length come together; a batch lists its groups by number.
#[must_use]
pub fn batches(forward_rows: &[usize], most: usize) -> Vec<Vec<usize>> {
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
