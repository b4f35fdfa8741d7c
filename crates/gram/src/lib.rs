//! The engine: groups of token ids in, log-probabilities and K×K Grams of their gradients out.
//!
//! A [`Group`] is one prompt and its responses; a [`Cotangent`] is a weighted sum of one response's token
//! log-probabilities; a [`Request`] is a group and its cotangents. [`grams`] runs many requests as one batch: one forward pass over shared trunks and suffixes, one
//! backward pass for all cotangents, and no gradient is ever stored.
mod batch;
mod count;
mod gradients;
mod mean;
mod metric;
mod pass;
pub mod plan;
mod request;
mod routed;
mod schedule;
mod sinks;
mod token_matrix;
mod update;

pub use batch::{Batch, Cotangent, Group};
pub use count::{Count, count};
pub use gradients::{Gradients, Kept};
pub use mean::MeanGradients;
pub use metric::Metric;
pub use pass::{
    Companions, GroupResult, Wanted, grams, grams_across, grams_in_batches, run, token_logps, token_logps_in_batches,
};
pub use request::{Request, batches_of};
pub use routed::{Routed, RoutedLayer};
pub use schedule::Schedule;
pub use sinks::{Detail, DirectionalSink, GradientSink};
pub use token_matrix::{TokenMatrix, position_matrix, token_matrices, token_passes, token_rows};
pub use update::{Coefficients, Of, Update, update};
