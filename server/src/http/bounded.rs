//! A listener that no client can wear down.
//!
//! There is a fixed number of connections, and each ends when its time is up, however slowly or
//! busily its peer behaves: a limit on progress could be met a byte at a time, a limit on life
//! cannot.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// Enough for every scraper, probe and person, each of which needs one at a time.
const CONNECTIONS: usize = 64;

/// Longer than any answer takes; a scraper that reuses connections makes a new one each time.
const LIFETIME: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Bounded {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    lifetime: Duration,
}

impl Bounded {
    pub(super) fn new(listener: TcpListener) -> Self {
        Self::with_limits(listener, CONNECTIONS, LIFETIME)
    }

    fn with_limits(listener: TcpListener, connections: usize, lifetime: Duration) -> Self {
        Self {
            listener,
            slots: Arc::new(Semaphore::new(connections)),
            lifetime,
        }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Mortal;
    type Addr = SocketAddr;

    /// The next connection, once there is a slot for it; until then it waits in the kernel, which
    /// bounds them too.
    async fn accept(&mut self) -> (Mortal, SocketAddr) {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
        let (stream, from) = axum::serve::Listener::accept(&mut self.listener).await;
        let mortal = Mortal {
            stream,
            end: Box::pin(tokio::time::sleep(self.lifetime)),
            _slot: slot,
        };
        (mortal, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection with its end in sight.
#[derive(Debug)]
pub(super) struct Mortal {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Mortal {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().poll(cx) {
            Poll::Pending => Ok(()),
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl AsyncRead for Mortal {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Mortal {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use axum::serve::Listener;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn listen(connections: usize, lifetime: Duration) -> Bounded {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Bounded::with_limits(listener, connections, lifetime)
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_time_even_while_its_peer_is_busy() {
        let mut bounded = listen(1, Duration::from_millis(50)).await;
        let mut client = TcpStream::connect(bounded.local_addr().unwrap())
            .await
            .unwrap();
        let (mut served, _) = bounded.accept().await;
        let drip = tokio::spawn(async move { while client.write_all(b"x").await.is_ok() {} });
        let mut buffer = [0; 16];
        let error = loop {
            match served.read(&mut buffer).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(served);
        drip.await.unwrap();
    }

    #[tokio::test]
    async fn a_slot_is_free_again_when_its_connection_is_gone() {
        let mut bounded = listen(1, Duration::from_mins(1)).await;
        let address = bounded.local_addr().unwrap();
        let first = TcpStream::connect(address).await.unwrap();
        let (served, _) = bounded.accept().await;
        let _second = TcpStream::connect(address).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(20), bounded.accept()).await;
        assert!(waiting.is_err(), "there is no slot for a second connection");
        drop((first, served));
        let (_served, _) = bounded.accept().await;
    }
}
