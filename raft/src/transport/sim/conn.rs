//! The ends of a simulated connection as byte streams.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::super::net::{Conn, ReadHalf, WriteHalf};
use super::world::{Incoming, Side, World};

/// One end of a connection. Closes it when both its halves are dropped.
#[derive(Debug)]
pub(super) struct SimConn {
    end: Arc<End>,
    /// Until the next bytes are due.
    due: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct End {
    world: Arc<Mutex<World>>,
    id: u64,
    side: Side,
}

impl Drop for End {
    fn drop(&mut self) {
        self.world.lock().shut(self.id, self.side);
    }
}

impl SimConn {
    pub(super) fn new(world: Arc<Mutex<World>>, id: u64, side: Side) -> Self {
        Self {
            end: Arc::new(End { world, id, side }),
            due: None,
        }
    }
}

impl Conn for SimConn {
    fn split(self: Box<Self>) -> (ReadHalf, WriteHalf) {
        let write = Self {
            end: Arc::clone(&self.end),
            due: None,
        };
        (self, Box::new(write))
    }
}

impl AsyncRead for SimConn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let end = &this.end;
            let incoming = end
                .world
                .lock()
                .read(end.id, end.side, buf.remaining(), cx.waker());
            match incoming {
                Incoming::Bytes(bytes) => {
                    buf.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                Incoming::End => return Poll::Ready(Ok(())),
                Incoming::Reset => {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                }
                Incoming::Nothing => return Poll::Pending,
                Incoming::Until(due) => {
                    let mut sleep = Box::pin(tokio::time::sleep_until(due));
                    if sleep.as_mut().poll(cx).is_pending() {
                        this.due = Some(sleep);
                        return Poll::Pending;
                    }
                }
            }
        }
    }
}

impl AsyncWrite for SimConn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let end = &self.end;
        let written = end.world.lock().write(end.id, end.side, slices, cx.waker());
        match written {
            Ok(Some(written)) => Poll::Ready(Ok(written)),
            Ok(None) => Poll::Pending,
            Err(()) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end.world.lock().finish(self.end.id, self.end.side);
        Poll::Ready(Ok(()))
    }
}
