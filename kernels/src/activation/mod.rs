//! Element-wise functions of feed-forward layers, with their vjp (docs/mathematics.md, section 3).
pub(crate) mod cpu;
mod cube;
mod launch;

pub(crate) use launch::{activate, activate_vjp};
