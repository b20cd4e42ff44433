//! The Trilog server and command line: one binary.
//!
//! Modules point downward only: `cli` over `dev` over `boot`, which alone sees everything; below
//! it the edges (`http` and the dialects), which never import one another; `config`, `listen` and `meter`
//! see none of them.

pub mod access;
pub mod admin;
pub mod boot;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dev;
pub mod group;
pub mod http;
pub mod kafka;
pub mod listen;
pub mod meter;
pub mod partition;
pub mod transaction;
pub mod view;
