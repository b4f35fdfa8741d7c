//! What the CPU kernels share: number types and buffers, and weights as they are stored.
pub(crate) mod real;
pub(crate) mod stored;
