//! Tests of whole clusters: simulated in one process under a seed, and as real processes.

pub mod fuzz;
