//! Tests of groups: upstream's storage suite, and whole replicas on simulated disks.

mod cluster;
mod copies;
mod restart;
mod stopping;
mod suite;
