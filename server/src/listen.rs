//! Listeners that no client can wear down, for every edge.
//!
//! There is a fixed number of connections; further ones wait in the kernel, which bounds them too.
//! A connection says something soon or ends, and may have a time after which it ends however
//! slowly or busily its peer behaves: a limit on progress could be met a byte at a time, a limit
//! on life cannot.

mod memory;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use metrics::{Gauge, counter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

pub use memory::{Crowded, RequestClaim, RequestMemory};
use tls::Metered;
pub use tls::{Tls, TlsError, TlsFiles, show_handshakes};

/// After an accept that failed for want of descriptors, most likely.
const BREATH: Duration = Duration::from_millis(100);
/// How long a connection may take to say its first word.
const GREETING: Duration = Duration::from_secs(10);

/// How connections are bounded.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections at once.
    pub connections: usize,
    /// How long a connection may take to say its first word.
    pub greeting: Duration,
    /// How long a connection lives; none: as long as its peer.
    pub lifetime: Option<Duration>,
    /// Counts those that are open.
    pub gauge: Gauge,
    /// Under which dialect those that ended are counted, if they are.
    pub dialect: Option<&'static str>,
}

impl Bounds {
    #[must_use]
    pub fn new(connections: usize) -> Self {
        Self {
            connections,
            greeting: GREETING,
            lifetime: None,
            gauge: Gauge::noop(),
            dialect: None,
        }
    }
}

/// A listener with bounds.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    slots: Arc<Semaphore>,
    bounds: Bounds,
}

impl Listener {
    #[must_use]
    pub fn new(socket: TcpListener, bounds: Bounds) -> Self {
        Self {
            socket,
            slots: Arc::new(Semaphore::new(bounds.connections)),
            bounds,
        }
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// The next connection, once there is a slot for it.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost if the future is dropped.
    pub async fn next(&self) -> (Connection, SocketAddr) {
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok();
        let (stream, from) = loop {
            match self.socket.accept().await {
                Ok(accepted) => break accepted,
                Err(_) => tokio::time::sleep(BREATH).await,
            }
        };
        // Small answers must not wait for acknowledgements of earlier ones.
        let _ = stream.set_nodelay(true);
        self.bounds.gauge.increment(1.0);
        let end = match self.bounds.lifetime {
            Some(lifetime) => lifetime.min(self.bounds.greeting),
            None => self.bounds.greeting,
        };
        let connection = Connection {
            stream: Stream::Plain(stream),
            life: Life {
                end: Some(Box::pin(tokio::time::sleep(end))),
                greeted: false,
                lifetime: self.bounds.lifetime,
                gauge: self.bounds.gauge.clone(),
                dialect: self.bounds.dialect,
                ended_by: "server",
                _slot: slot,
            },
        };
        (connection, from)
    }
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    life: Life,
}

#[derive(Debug)]
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<Metered>>),
}

/// What a connection holds while it is open, and how it ends.
#[derive(Debug)]
struct Life {
    /// When it ends.
    end: Option<Pin<Box<Sleep>>>,
    greeted: bool,
    lifetime: Option<Duration>,
    gauge: Gauge,
    dialect: Option<&'static str>,
    /// Who ended it, as far as is known yet: this side, unless the other is heard of.
    ended_by: &'static str,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Connection {
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.get_ref().0.stream,
        }
    }

    /// Whether nobody on the way can read what is said.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        matches!(self.stream, Stream::Tls(_))
    }

    /// The same connection, over TLS from here on. The handshake counts as a first word yet to be
    /// said: it takes of the time for that.
    pub async fn secured(self, tls: &Tls) -> io::Result<Self> {
        let Self { stream, mut life } = self;
        let Stream::Plain(stream) = stream else {
            return Err(io::Error::other("it speaks TLS already"));
        };
        let shaking = tls.shake(stream);
        let shaken = match &mut life.end {
            None => shaking.await,
            Some(end) => tokio::select! {
                shaken = shaking => shaken,
                () = end => Err(io::ErrorKind::TimedOut.into()),
            },
        };
        tls::count(life.dialect, shaken.is_ok());
        let stream = shaken.inspect_err(|_| life.ended_by = "error")?;
        Ok(Self {
            stream: Stream::Tls(Box::new(stream)),
            life,
        })
    }

    /// Whether the other side has closed, whatever of it is yet to be read.
    #[must_use]
    pub fn is_closed_by_peer(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let stream = self.stream();
        let mut look = [PollFd::new(stream, PollFlags::RDHUP)];
        poll(&mut look, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

impl Life {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.end.as_mut().map(|end| end.as_mut().poll(cx)) {
            None | Some(Poll::Pending) => Ok(()),
            Some(Poll::Ready(())) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The first word is said: what is left of its life begins.
    fn greet(&mut self) {
        self.greeted = true;
        self.end = self
            .lifetime
            .map(|lifetime| Box::pin(tokio::time::sleep(lifetime)));
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.gauge.decrement(1.0);
        if let Some(dialect) = self.dialect {
            let reason = self.ended_by;
            counter!("trilog_connections_closed_total", "dialect" => dialect, "reason" => reason)
                .increment(1);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, life } = &mut *self;
        life.check(cx)?;
        let (room, before) = (buffer.remaining(), buffer.filled().len());
        let read = match stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Stream::Tls(stream) => tls::poll_read(stream, cx, buffer),
        };
        let came = buffer.filled().len() - before;
        match &read {
            Poll::Ready(Ok(())) if room > 0 && came == 0 => life.ended_by = "client",
            Poll::Ready(Err(_)) => life.ended_by = "error",
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if !life.greeted && came > 0 {
            life.greet();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.life.check(cx)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.life.check(cx)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn listen(bounds: Bounds) -> (Listener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (Listener::new(listener, bounds), address)
    }

    #[tokio::test]
    async fn a_connection_ends_with_its_time_even_while_its_peer_is_busy() {
        let (listener, address) = listen(Bounds {
            lifetime: Some(Duration::from_millis(50)),
            ..Bounds::new(1)
        })
        .await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let (mut served, _) = listener.next().await;
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
    async fn whoever_says_nothing_is_let_go_and_whoever_does_may_stay() {
        let (listener, address) = listen(Bounds {
            greeting: Duration::from_millis(50),
            ..Bounds::new(2)
        })
        .await;
        let mut polite = TcpStream::connect(address).await.unwrap();
        let (mut served, _) = listener.next().await;
        polite.write_all(b"hello").await.unwrap();
        let mut buffer = [0; 5];
        served.read_exact(&mut buffer).await.unwrap();

        let _silent = TcpStream::connect(address).await.unwrap();
        let (mut ignored, _) = listener.next().await;
        let error = ignored.read(&mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        polite.write_all(b"again").await.unwrap();
        served.read_exact(&mut buffer).await.unwrap();
        assert_eq!(&buffer, b"again");
    }

    #[tokio::test]
    async fn a_slot_is_free_again_when_its_connection_is_gone() {
        let (listener, address) = listen(Bounds::new(1)).await;
        let first = TcpStream::connect(address).await.unwrap();
        let (served, _) = listener.next().await;
        let _second = TcpStream::connect(address).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(20), listener.next()).await;
        assert!(waiting.is_err(), "there is no slot for a second connection");
        drop((first, served));
        let (_served, _) = listener.next().await;
    }
}
