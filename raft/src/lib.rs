//! Replication: openraft groups over the storage crate's log, the links between nodes, and the
//! controller. No openraft type leaves this crate, and payload is opaque bytes here.

pub mod controller;
pub mod transport;
