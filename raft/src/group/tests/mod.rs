//! Tests of groups: upstream's storage suite, and whole replicas on simulated disks.

mod cluster;
mod rest;
mod restart;
mod stopping;
mod suite;
