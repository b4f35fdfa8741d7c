//! Softmax attention over trunk and suffixes, and its vjp for many cotangents (docs/mathematics.md, section 3).
pub(crate) mod cpu;
mod cube;
mod launch;

pub(crate) use launch::{attention, attention_vjp};
