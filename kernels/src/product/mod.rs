//! Matrix products: those of weights, and those that other kernels are made of.
pub(crate) mod cpu;
mod launch;

pub(crate) use launch::{columns, product, product_into, rows, turned};
