//! Rows by index, and sums over rows: what gathers, embeddings and vector parameters need of a device.
mod cube;
mod launch;

pub(crate) use launch::{dots, gather, gram_vectors, scatter_add, segment_sums};
