//! The engine: groups of token ids in, log-probabilities and K×K Grams of their gradients out.
//!
//! A [`Group`] is one prompt and its responses; a [`Cotangent`] is a weighted sum of one response's token
//! log-probabilities. [`grams`] runs many groups as one batch: one forward pass over shared trunks and suffixes, one
//! backward pass for all cotangents, and no gradient is ever stored.
mod along_sink;
mod batch;
mod count;
mod engine;
mod gradient_sink;
mod gram_sink;
mod mean;
pub mod plan;
mod sum_sink;
mod together;
mod token_matrix;
mod turn;
mod update;

pub use along_sink::AlongSink;
pub use batch::{Batch, Cotangent, Group};
pub use count::{Count, count};
pub use engine::{
    Companions, ForwardPass, GroupResult, grams, grams_across, grams_of_batches, run, token_logps,
    token_logps_of_batches, total_across,
};
pub use gradient_sink::GradientSink;
pub use gram_sink::GramSink;
pub use mean::MeanGradients;
pub use sum_sink::SumSink;
pub use token_matrix::{TokenMatrix, position_matrix, token_matrices, token_passes, token_rows};
pub use update::{Coefficients, Of, Update, update};
