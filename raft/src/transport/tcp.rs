//! Peer connections over TCP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::future::BoxFuture;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream};

use super::net::{BoxConn, Conn, Net, ReadHalf, WriteHalf};

/// How long the kernel keeps trying to deliver what we wrote: a backstop behind the transport's
/// own signs of life.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

impl Conn for TcpStream {
    fn split(self: Box<Self>) -> (ReadHalf, WriteHalf) {
        let (read, write) = (*self).into_split();
        (Box::new(read), Box::new(write))
    }
}

/// A node's listener and its way to others.
#[derive(Debug)]
pub(super) struct TcpNet {
    listener: TcpListener,
    address: SocketAddr,
}

impl TcpNet {
    /// Listens at `address`; port 0 takes a free one.
    pub(super) async fn bind(address: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }
}

impl Net for TcpNet {
    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<BoxConn>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            prepare(&stream)?;
            Ok(Box::new(stream) as BoxConn)
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxConn, String)>> {
        Box::pin(async move {
            let (stream, from) = self.listener.accept().await?;
            prepare(&stream)?;
            Ok((Box::new(stream) as BoxConn, from.to_string()))
        })
    }

    fn address(&self) -> String {
        self.address.to_string()
    }
}

fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(USER_TIMEOUT))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}
