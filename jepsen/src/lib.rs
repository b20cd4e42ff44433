//! Real processes, injected faults, and checkers of the histories they leave.
//!
//! ```text
//! generate ──> history <── check        what clients saw │ what that proves
//! ```
//!
//! `history` is the format alone; `check` knows nothing of how a history came about, so that one of
//! a simulation is judged by the same rules as one of real processes; `generate` makes histories
//! that are valid by construction, to prove the checkers with.

pub mod check;
pub mod generate;
pub mod history;
