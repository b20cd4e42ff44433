//! The log as its users see it, on simulated disks and on real ones.

mod crash_points;
mod damage;
mod double_crash;
mod faults;
mod fixtures;
mod full;
mod model;
mod planted;
mod real;
mod support;
