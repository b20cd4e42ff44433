//! What a run looked like, for people and for programs: one HTML page that needs nothing besides
//! itself, and the same as JSON.
//!
//! Everything but the verdict and what the harness knows of itself is taken from the history, so
//! that a report can be made of any history.

mod found;
mod page;
mod plot;
mod summary;

pub use found::found;
pub use page::page;
pub use summary::{Fault, Leader, Second, Succession, Summary, figures, percentile, summarize};
