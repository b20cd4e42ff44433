//! Connections of HTTP clients: few at a time, and none for long.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::listen::{Bounds, Connection, Listener};

/// Enough for every scraper, probe and person, each of which needs one at a time.
const CONNECTIONS: usize = 64;

/// Longer than any answer takes; a scraper that reuses connections makes a new one each time.
const LIFETIME: Duration = Duration::from_secs(20);

pub(super) fn bounded(listener: TcpListener) -> Listener {
    let bounds = Bounds {
        lifetime: Some(LIFETIME),
        ..Bounds::new(CONNECTIONS)
    };
    Listener::new(listener, bounds)
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        self.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Listener::local_addr(self)
    }
}
