//! From records to a report: one HTML file that opens from the disk and needs nothing else, or Markdown with figures.
//!
//! [`Report::of`] gathers what is shown; [`html()`] and [`markdown()`] show it.
mod between;
mod columns;
mod error;
mod finding;
mod gather;
mod html;
mod markdown;
mod palette;
mod sweeps;
mod texts;
mod training;

pub use between::HeatMap;
pub use error::{Error, Result};
pub use finding::Finding;
pub use gather::{Origin, Report};
pub use html::html;
pub use markdown::markdown;
pub use sweeps::sources;
