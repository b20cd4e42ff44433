//! What a transport needs of a network: to connect, and to be connected to.

use std::fmt;
use std::io;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connected byte stream.
pub(super) trait Conn: AsyncRead + AsyncWrite + Send + Unpin {
    /// The two directions, for a task each.
    fn split(self: Box<Self>) -> (ReadHalf, WriteHalf);
}

pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;
pub(super) type BoxConn = Box<dyn Conn>;

/// One node's access to a network.
pub(super) trait Net: Send + Sync + fmt::Debug {
    /// Connects to a listener's address.
    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<BoxConn>>;
    /// The next connection, with a description of where it came from.
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxConn, String)>>;
    /// Where this node listens.
    fn address(&self) -> String;
}
