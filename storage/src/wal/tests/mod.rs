//! The log as its users see it, on simulated disks and on real ones.

mod crash_points;
mod double_crash;
mod model;
mod real;
mod support;
