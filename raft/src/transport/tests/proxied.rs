//! Real sockets through a proxy that drops connections, or goes deaf without closing them.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::*;
use crate::transport::{PeerError, Timings};

/// Stands between a node and its peers.
struct Proxy {
    address: String,
    /// Counts the times every connection was dropped.
    dropped: watch::Sender<u32>,
    deaf: Arc<AtomicBool>,
}

impl Proxy {
    async fn before(node: &TestNode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let dropped = watch::Sender::new(0);
        let deaf = Arc::new(AtomicBool::new(false));
        let (to, drops, deafness) = (
            node.transport.address(),
            dropped.subscribe(),
            Arc::clone(&deaf),
        );
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&to).await.unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                for (read, write) in [(near.0, far.1), (far.0, near.1)] {
                    let (mut drops, deaf) = (drops.clone(), Arc::clone(&deafness));
                    drops.mark_unchanged();
                    tokio::spawn(async move {
                        tokio::select! {
                            biased;
                            _ = drops.changed() => {}
                            () = carry(read, write, &deaf) => {}
                        }
                    });
                }
            }
        });
        Self {
            address,
            dropped,
            deaf,
        }
    }

    fn drop_connections(&self) {
        self.dropped.send_modify(|count| *count += 1);
    }
}

/// Carries bytes in odd pieces; swallows them while deaf.
async fn carry(
    mut read: tokio::net::tcp::OwnedReadHalf,
    mut write: tokio::net::tcp::OwnedWriteHalf,
    deaf: &AtomicBool,
) {
    let mut buffer = vec![0; 7_919];
    while let Ok(len) = read.read(&mut buffer).await {
        if len == 0 {
            return;
        }
        if !deaf.load(Ordering::Relaxed) && write.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

/// Streams of numbered messages, each broken on its way; each must deliver its messages in order
/// from its first.
async fn stream_through(a: &TestNode, b: &mut TestNode, proxy: &Proxy, breaks: usize) {
    for round in 0..=breaks {
        let opened = async {
            loop {
                let target = target(B, Lane::Append, ECHO);
                match a.transport.open_stream(target, WAIT).await {
                    Ok(opened) => break opened,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let (mut sender, _receiver) = tokio::time::timeout(WAIT, opened).await.unwrap();
        let sending = async {
            let mut sent = 0u32;
            let body = Bytes::from(vec![9; 30_000]);
            loop {
                let head = Bytes::copy_from_slice(&sent.to_le_bytes());
                match sender.send(vec![head, body.clone()]).await {
                    Ok(()) => sent += 1,
                    Err(error) => return (sent, error),
                }
            }
        };
        let receiving = async {
            let mut far = b.next_stream().await;
            let mut next = 0u32;
            loop {
                match far.receiver.recv().await {
                    Ok(Some(message)) => {
                        assert_eq!(message[..4], next.to_le_bytes(), "round {round}");
                        next += 1;
                        if next == 200 {
                            proxy.drop_connections();
                        }
                    }
                    Ok(None) => panic!("round {round}: a broken stream looked finished"),
                    Err(error) => return (next, error),
                }
            }
        };
        let both = async { tokio::join!(sending, receiving) };
        let ((sent, here), (got, there)) = tokio::time::timeout(WAIT, both).await.unwrap();
        assert!(got >= 200 && got <= sent, "{got} of {sent}");
        for error in [here, there] {
            assert!(matches!(error, PeerError::Broken { .. }), "{error:?}");
        }
    }
}

#[tokio::test]
async fn order_holds_on_every_stream_while_connections_are_dropped() {
    let (a, mut b) = tcp_pair().await;
    let proxy = Proxy::before(&b).await;
    a.transport.book().set(B, proxy.address.clone());
    stream_through(&a, &mut b, &proxy, 6).await;
    assert!(a.transport.stats().connects >= 7);
}

#[tokio::test]
async fn a_deaf_network_breaks_the_link_on_both_sides_and_a_new_one_follows() {
    let lively = |node| {
        let mut config = config(node);
        config.timings = Timings {
            keep_alive: Duration::from_millis(50),
            silence: Duration::from_millis(300),
            handshake: Duration::from_millis(300),
            ..Timings::default()
        };
        config
    };
    let a = TestNode::tcp(lively(A)).await;
    let b = TestNode::tcp(lively(B)).await;
    let proxy = Proxy::before(&b).await;
    a.transport.book().set(B, proxy.address.clone());
    let echo = target(B, Lane::Control, ECHO);
    a.transport.call(echo, bytes("x"), WAIT).await.unwrap();
    proxy.deaf.store(true, Ordering::Relaxed);
    until("both sides notice", || {
        a.transport.stats().breaks == 1 && b.transport.stats().breaks == 1
    })
    .await;
    proxy.deaf.store(false, Ordering::Relaxed);
    let healed = async {
        while a.transport.call(echo, bytes("y"), WAIT).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, healed).await.unwrap();
}
