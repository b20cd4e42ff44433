//! Tests of groups: upstream's storage suite, and whole replicas on simulated disks.

mod cluster;
mod copies;
mod descriptors;
mod elections;
mod identity;
mod recover;
mod rest;
mod restart;
mod starvation;
mod stopping;
mod succession;
mod suite;
