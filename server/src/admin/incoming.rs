//! Connections of native clients, bounded and counted.

use std::io;

use futures::{Stream, stream};
use metrics::gauge;
use tokio::net::TcpListener;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::listen::{Bounds, Connection, Listener};

/// Connections as they come, no more than `most` at once.
pub(super) fn accept(
    listener: TcpListener,
    most: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let bounds = Bounds {
        gauge: gauge!("trilog_connections", "dialect" => "native"),
        dialect: Some("native"),
        ..Bounds::new(most)
    };
    stream::unfold(Listener::new(listener, bounds), |listener| async move {
        let (connection, _) = listener.next().await;
        Some((Ok(connection), listener))
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream().connect_info()
    }
}
