//! One HTTP/2 connection per node address, made when first needed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::service::interceptor::InterceptedService;
use tonic::transport::Endpoint;

use crate::credentials::{Credentials, Naming};
use crate::error::Error;

/// A connection on which each call says who makes it.
pub(crate) type Channel = InterceptedService<tonic::transport::Channel, Naming>;

/// Bytes of an HTTP/2 frame that this side takes.
const FRAME: u32 = 256 << 10;
/// Unread bytes that one stream, and all streams of one connection, may have under way.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// A connection that is silent for this long is tried, and given up if it stays silent.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Connections of one part of a client. A consumer has its own, lest unread records hold up the
/// answers to others.
#[derive(Clone, Debug)]
pub(crate) struct Connections {
    connect_timeout: Duration,
    naming: Naming,
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
}

impl Connections {
    pub(crate) fn new(connect_timeout: Duration, credentials: Option<Credentials>) -> Self {
        Self {
            connect_timeout,
            naming: Naming(credentials),
            channels: Arc::default(),
        }
    }

    /// The same settings, none of the connections.
    pub(crate) fn fresh(&self) -> Self {
        Self::new(self.connect_timeout, self.naming.0.clone())
    }

    /// A connection that is up, or was when last looked at; else the reason why there is none.
    pub(crate) async fn get(&self, address: &str) -> Result<Channel, String> {
        if let Some(channel) = self.lock().get(address) {
            return Ok(channel.clone());
        }
        if self.naming.0.is_some() {
            let near = is_on_this_machine(address).await;
            if !near.map_err(|error| format!("{address}: {error}"))? {
                return Err(format!(
                    "{address}: the password would go there in the open, for it is not on this \
                     machine: make a tunnel to it"
                ));
            }
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|_| Error::Address(address.to_owned()).to_string())?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .max_frame_size(FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| format!("{address}: {}", cause(&error)))?;
        let channel = InterceptedService::new(channel, self.naming.clone());
        self.lock().insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// Forgets a connection that failed, so that the next user makes another.
    pub(crate) fn forget(&self, address: &str) {
        self.lock().remove(address);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether what is said to an address stays on this machine.
async fn is_on_this_machine(address: &str) -> std::io::Result<bool> {
    let mut found = tokio::net::lookup_host(address).await?;
    Ok(found.all(|found| found.ip().to_canonical().is_loopback()))
}

/// The innermost cause, which is the one that says something.
fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_goes_nowhere_but_to_this_machine() {
        let patience = Duration::from_millis(50);
        let known = Connections::new(patience, Some(Credentials::new("alice", "secret")));
        // An address for examples (RFC 5737), where nobody is; nor is anybody asked.
        let why = known.get("192.0.2.1:7400").await.unwrap_err();
        assert!(why.contains("make a tunnel"), "{why}");
        for here in [
            "127.0.0.1:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
            "localhost:1",
        ] {
            assert!(is_on_this_machine(here).await.unwrap(), "{here}");
        }
        // Nor to one of which it is not known yet where that is: the next look may find it elsewhere.
        assert!(is_on_this_machine("nowhere").await.is_err());
        let why = known.get("nowhere").await.unwrap_err();
        assert!(why.starts_with("nowhere: "), "{why}");
    }
}
