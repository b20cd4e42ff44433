//! Real processes, injected faults, and checkers of the histories they leave.
//!
//! ```text
//! campaign ──> run                        many runs │ one
//! run ──> nemesis ──> cluster              what happens to nodes │ the nodes
//!  │ └──> workload ──> kafka               what clients do │ one of their protocols
//!  │         └──> history <── check        what clients saw │ what that proves
//!  └───> report          └─── generate
//! ```
//!
//! `history` is the format alone; `check` knows nothing of how a history came about, so that one of
//! a simulation is judged by the same rules as one of real processes; `generate` makes histories
//! that are valid by construction, to prove the checkers with.

pub mod campaign;
pub mod check;
pub mod cluster;
pub mod generate;
pub mod history;
pub mod kafka;
pub mod nemesis;
pub mod report;
pub mod run;
pub mod workload;
