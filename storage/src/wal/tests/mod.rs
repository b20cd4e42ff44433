//! The log as its users see it, on the simulated disk and on real ones.

mod real;
mod support;
