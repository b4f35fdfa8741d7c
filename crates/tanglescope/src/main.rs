//! The command line of Tanglescope.
fn main() {}
