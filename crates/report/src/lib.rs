//! From records to a report: one HTML file that opens from the disk and needs nothing else, or Markdown with figures.
//!
//! [`Report::of`] gathers what is shown; [`html()`] and [`markdown()`] show it.
mod columns;
mod error;
mod gather;
mod html;
mod markdown;
mod palette;
mod texts;
mod training;

pub use error::{Error, Result};
pub use gather::{Origin, Report};
pub use html::html;
pub use markdown::markdown;
