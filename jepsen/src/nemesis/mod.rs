//! What goes wrong, when, and to whom: a schedule that follows from the seed alone, and the hand
//! that carries it out.
//!
//! ```text
//! probe ──> schedule ──> strike        what this machine can do │ what is to happen │ doing it
//! ```

mod damage;
mod probe;
mod schedule;
mod strike;

pub use probe::{Means, Skipped};
pub use schedule::{Fault, Plan, Scheduled, schedule};
pub use strike::{Done, Nemesis};
