//! Replication: openraft groups over the storage crate's log, the links between nodes, and the
//! controller. No openraft type leaves this crate, and payload is opaque bytes here.

pub mod controller;
pub mod transport;

mod codec;
mod config;
mod group;
mod idle;
mod node;
mod restore;
mod room;
mod runtime;
#[cfg(any(test, feature = "sim"))]
pub mod testkit;
mod types;
mod view;

pub use codec::CodecError;
pub use config::{RaftConfig, RaftConfigError};
pub use group::recover;
pub use group::{
    Group, HighWatermark, KV_FAMILY, Leadership, Members, MembershipError, OpenError, ProposeError,
    ReadError, StopError, TrimError,
};
pub use node::{DeleteError, Node, NodeStats};
pub use types::{Applied, Proposal};
pub use view::{Committed, Home, View, ViewError};
