//! The crates behind the command line, on random checkpoints and on files that nobody should trust. One program for all of them,
//! since each links what the engine links.
#[path = "../support/mod.rs"]
mod support;

mod architectures;
mod checkpoints;
mod engine;
mod formats;
mod loaded;
mod recipes;
mod stopping;
mod untrusted;
