//! The log-probability head: log p of targets, entropy and arg-max by an online log-sum-exp over chunks of the vocabulary,
//! its vjp, and the Gram of the output matrix (docs/mathematics.md, sections 3 and 4).
pub(crate) mod cpu;
mod cube;
mod launch;

pub(crate) use launch::head;
