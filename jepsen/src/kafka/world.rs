//! Nodes that are no processes: those of a simulation, which clients reach without sockets.

use std::fmt;
use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;

/// Where such nodes are, and what time it is there.
pub trait World: fmt::Debug + Send + Sync {
    /// A connection to a node, or why there is none.
    fn connect(&self, node: u32) -> BoxFuture<'_, io::Result<Box<dyn Line>>>;

    /// Milliseconds since 1970, as records bear them.
    fn now_millis(&self) -> i64;
}

/// A connection in such a world.
pub trait Line: fmt::Debug + Send {
    /// Says a request, and hears the answer: each without the length that stands before it on a
    /// wire. After an error nothing more can be said.
    fn exchange(&mut self, request: Bytes) -> BoxFuture<'_, io::Result<Bytes>>;
}
