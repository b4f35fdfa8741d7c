//! The command line, end to end, as a user runs it.
#[path = "../support/mod.rs"]
mod support;

mod analytics;
mod analyze;
mod bad_input;
mod bench;
mod command_line;
mod cuda;
mod field;
mod groups;
mod hub;
mod inspect;
mod interference;
mod objectives;
mod report;
mod shards;
mod streams;
mod sweep;
mod tokens;
mod training;
mod vulkan;
mod watch;
