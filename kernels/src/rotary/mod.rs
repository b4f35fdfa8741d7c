//! Rotary position embedding: the halves of every head turned by the row's angles (docs/mathematics.md, section 3).
pub(crate) mod cpu;
mod cube;
mod launch;

pub(crate) use launch::rotary;
