//! In which order a run sees its examples.
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Examples of a step, counted from 0, in the order in which they come. Every epoch is a new permutation, drawn from the seed
/// and the epoch's number alone, so that a run can go on anywhere; its last step may be short.
pub fn of_step(step: usize, examples: usize, per_step: usize, seed: u64) -> Vec<usize> {
    let steps = steps_per_epoch(examples, per_step);
    let (epoch, within) = (step / steps, step % steps);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    // a stream of its own for every epoch
    random.set_stream(epoch as u64);
    let mut order: Vec<usize> = (0..examples).collect();
    order.shuffle(&mut random);
    order[within * per_step..examples.min((within + 1) * per_step)].to_vec()
}

/// The batches of a first epoch.
#[must_use]
pub fn batches_of_epoch(examples: usize, per_step: usize, seed: u64) -> Vec<Vec<usize>> {
    (0..steps_per_epoch(examples, per_step)).map(|step| of_step(step, examples, per_step, seed)).collect()
}

/// Steps of an epoch.
pub fn steps_per_epoch(examples: usize, per_step: usize) -> usize {
    examples.div_ceil(per_step).max(1)
}

#[cfg(test)]
mod tests {
    use super::{of_step, steps_per_epoch};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_epoch_has_every_example_once(examples in 1usize..50, per_step in 1usize..20, epoch in 0usize..3, seed: u64) {
            let steps = steps_per_epoch(examples, per_step);
            let mut seen: Vec<usize> = (0..steps).flat_map(|s| of_step(epoch * steps + s, examples, per_step, seed)).collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..examples).collect::<Vec<_>>());
        }
    }

    #[test]
    fn epochs_differ() {
        assert_ne!(of_step(0, 30, 30, 1), of_step(1, 30, 30, 1));
    }
}
