//! Connections of native clients: a fixed number at once, each counted while it is open.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream;
use metrics::{counter, gauge};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// After an accept that failed for want of descriptors, most likely.
const BREATH: std::time::Duration = std::time::Duration::from_millis(100);

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    /// Who ended it, as far as is known yet: this side, unless the other is heard of.
    ended_by: &'static str,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        gauge!("trilog_connections", "dialect" => "native").decrement(1.0);
        let reason = self.ended_by;
        counter!("trilog_connections_closed_total", "dialect" => "native", "reason" => reason)
            .increment(1);
    }
}

/// Connections as they come, no more than `most` at once; further ones wait in the kernel, which
/// bounds them too.
pub(super) fn accept(
    listener: TcpListener,
    most: usize,
) -> impl Stream<Item = io::Result<Connection>> {
    let slots = Arc::new(Semaphore::new(most));
    stream::unfold((listener, slots), |(listener, slots)| async move {
        let slot = Arc::clone(&slots).acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(_) => tokio::time::sleep(BREATH).await,
            }
        };
        // Small answers must not wait for acknowledgements of earlier ones.
        let _ = stream.set_nodelay(true);
        gauge!("trilog_connections", "dialect" => "native").increment(1.0);
        let connection = Connection {
            stream,
            ended_by: "server",
            _slot: slot,
        };
        Some((Ok(connection), (listener, slots)))
    })
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (room, before) = (buffer.remaining(), buffer.filled().len());
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        match &read {
            Poll::Ready(Ok(())) if room > 0 && buffer.filled().len() == before => {
                self.ended_by = "client";
            }
            Poll::Ready(Err(_)) => self.ended_by = "error",
            Poll::Ready(Ok(())) | Poll::Pending => {}
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::StreamExt;

    use super::*;

    #[tokio::test]
    async fn no_more_connections_are_taken_than_there_are_slots() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = std::pin::pin!(accept(listener, 1));
        let _first = TcpStream::connect(address).await.unwrap();
        let taken = incoming.next().await.unwrap().unwrap();
        let _second = TcpStream::connect(address).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(20), incoming.next()).await;
        assert!(waiting.is_err(), "there is no slot for a second connection");
        drop(taken);
        assert!(incoming.next().await.unwrap().is_ok());
    }
}
