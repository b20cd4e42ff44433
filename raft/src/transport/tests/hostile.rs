//! Strangers, foreign clusters and peers that break the protocol.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::transport::frame::{FrameHeader, Op};
use crate::transport::handshake::{self, GREETING_LEN, Greeting, Identity};
use crate::transport::limits::Limits;
use crate::transport::{PeerError, Timings};

fn identity(node: NodeId) -> Identity {
    Identity {
        node,
        cluster: Some(CLUSTER),
        boot: 1,
        limits: Limits::default(),
    }
}

/// A connection to `node` that did its handshake as node A.
async fn greeted(node: &TestNode) -> TcpStream {
    let mut conn = TcpStream::connect(node.transport.address()).await.unwrap();
    let greeting = Greeting::new(identity(A), node.transport.node(), 0, false);
    handshake::initiate(&mut conn, &greeting).await.unwrap();
    conn
}

/// Reads until the other side closes, ignoring what it says.
async fn closed(conn: &mut TcpStream) {
    let mut rest = Vec::new();
    // A reset says the same as an end.
    let _ = tokio::time::timeout(WAIT, conn.read_to_end(&mut rest))
        .await
        .expect("the node hangs up");
}

#[tokio::test]
async fn a_foreign_cluster_is_refused_by_name_on_both_sides() {
    let a = TestNode::tcp(config(A)).await;
    let foreign = TransportConfig::new(B, Some(ClusterId([8; 16])));
    let b = TestNode::tcp(foreign).await;
    a.knows(&b);
    let call = a
        .transport
        .call(target(B, Lane::Control, ECHO), bytes("x"), WAIT);
    let Err(PeerError::Unreachable { reason, .. }) = call.await else {
        panic!("a foreign node answered");
    };
    assert_eq!(
        reason,
        format!(
            "the peer belongs to cluster {}, this node to {CLUSTER}",
            ClusterId([8; 16])
        )
    );
    assert_eq!(b.transport.stats().handshake_failures, 1);
    assert_eq!(b.transport.stats().accepts, 0);
    let hello = a
        .transport
        .introduce(b.transport.address(), HELLO, bytes("x"), WAIT);
    assert!(hello.await.is_err());
}

#[tokio::test]
async fn a_node_under_a_wrong_id_is_refused() {
    let (a, b) = tcp_pair().await;
    a.transport.book().set(C, b.transport.address());
    let call = a
        .transport
        .call(target(C, Lane::Control, ECHO), bytes("x"), WAIT);
    let Err(PeerError::Unreachable { reason, .. }) = call.await else {
        panic!("node 2 answered for node 3");
    };
    assert_eq!(reason, "node 2 answers where node 3 was expected");
}

#[tokio::test]
async fn a_twin_with_the_same_node_id_is_refused() {
    let (a, b) = tcp_pair().await;
    let twin = TestNode::tcp(config(B)).await;
    twin.knows(&a);
    twin.transport.book().set(C, b.transport.address());
    let mut conn = TcpStream::connect(b.transport.address()).await.unwrap();
    let greeting = Greeting::new(identity(B), B, 0, false);
    let refused = handshake::initiate(&mut conn, &greeting).await.unwrap_err();
    assert_eq!(refused.to_string(), "the peer also calls itself node 2");
}

#[tokio::test]
async fn strangers_are_hung_up_on_without_an_answer() {
    let node = TestNode::tcp(config(B)).await;
    for stranger in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 200], &[0xff; 4]] {
        let mut conn = TcpStream::connect(node.transport.address()).await.unwrap();
        conn.write_all(stranger).await.unwrap();
        closed(&mut conn).await;
    }
    until("all are counted", || {
        node.transport.stats().handshake_failures == 3
    })
    .await;
}

#[tokio::test]
async fn a_slow_handshake_ends_at_its_deadline_and_frees_its_slot() {
    let mut strict = config(B);
    strict.max_handshakes = 2;
    strict.timings.handshake = Duration::from_millis(200);
    let node = TestNode::tcp(strict).await;
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut conn = TcpStream::connect(node.transport.address()).await.unwrap();
        conn.write_all(b"TL").await.unwrap();
        slow.push(conn);
    }
    for conn in &mut slow {
        closed(conn).await;
    }
    let mut conn = greeted(&node).await;
    conn.write_all(&FrameHeader::bare(Op::Ping, 0).encode())
        .await
        .unwrap();
    until("it counts both", || {
        node.transport.stats().handshake_failures == 2
    })
    .await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_dropped_at_once() {
    let mut small = config(B);
    small.max_accepted = 3;
    let node = TestNode::tcp(small).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(TcpStream::connect(node.transport.address()).await.unwrap());
    }
    until("five are dropped", || {
        node.transport.stats().handshake_failures == 5
    })
    .await;
}

#[tokio::test]
async fn a_frame_longer_than_the_limit_closes_the_link_before_it_is_read() {
    let node = TestNode::tcp(config(B)).await;
    let mut conn = greeted(&node).await;
    let mut header = FrameHeader::bare(Op::Data, 1);
    header.payload_len = u32::MAX;
    conn.write_all(&header.encode()).await.unwrap();
    closed(&mut conn).await;
    assert_eq!(node.transport.stats().protocol_errors, 1);
}

/// Frames that no honest peer sends, each after an opened stream 1.
fn breaches() -> Vec<(&'static str, Vec<u8>)> {
    let frame = |header: FrameHeader, payload: Bytes| {
        let payload = [payload];
        let mut out = header.over(&payload).encode().to_vec();
        out.extend_from_slice(&payload[0]);
        out
    };
    let credit = |id| FrameHeader {
        argument: u32::MAX,
        ..FrameHeader::bare(Op::Credit, id)
    };
    let flood = || {
        let message = frame(
            FrameHeader::bare(Op::Data, 1),
            Bytes::from(vec![1; 256 * 1024]),
        );
        message.repeat(40)
    };
    let after_end = [
        frame(FrameHeader::bare(Op::End, 1), Bytes::new()),
        frame(FrameHeader::bare(Op::Data, 1), Bytes::from_static(b"x")),
    ];
    vec![
        ("link credit", frame(credit(0), Bytes::new())),
        ("stream credit", frame(credit(1), Bytes::new())),
        ("a flood", flood()),
        ("data after end", after_end.concat()),
        (
            "a twin stream",
            frame(FrameHeader::bare(Op::Open, 1), Bytes::new()),
        ),
        (
            "a long ping",
            frame(FrameHeader::bare(Op::Ping, 0), Bytes::from(vec![0; 5_000])),
        ),
    ]
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_loses_its_link_and_nothing_else() {
    let (a, mut b) = tcp_pair().await;
    for (what, breach) in breaches() {
        let mut conn = TcpStream::connect(b.transport.address()).await.unwrap();
        let greeting = Greeting::new(identity(C), B, 0, false);
        handshake::initiate(&mut conn, &greeting).await.unwrap();
        let mut open = FrameHeader::bare(Op::Open, 1);
        open.code = ECHO.0;
        conn.write_all(&open.encode()).await.unwrap();
        let stream = b.next_stream().await;
        let before = b.transport.stats().protocol_errors;
        // The node may hang up before it has read all of this.
        let _ = conn.write_all(&breach).await;
        closed(&mut conn).await;
        assert_eq!(b.transport.stats().protocol_errors, before + 1, "{what}");
        drop(stream);
    }
    let echo = a
        .transport
        .call(target(B, Lane::Control, ECHO), bytes("x"), WAIT);
    assert_eq!(echo.await.unwrap(), "x");
}

#[tokio::test]
async fn a_half_open_link_is_replaced_when_its_peer_connects_anew() {
    let node = TestNode::tcp(config(B)).await;
    let mut old = greeted(&node).await;
    let _new = greeted(&node).await;
    closed(&mut old).await;
    assert_eq!(node.transport.stats().accepts, 2);
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up() {
    let mut strict = config(B);
    strict.timings = Timings {
        keep_alive: Duration::from_millis(20),
        silence: Duration::from_millis(80),
        ..Timings::default()
    };
    let node = TestNode::tcp(strict).await;
    let mut conn = greeted(&node).await;
    closed(&mut conn).await;
    assert_eq!(node.transport.stats().breaks, 1);
}

/// A caller that never reads its answers must not make the node hold them all.
#[tokio::test]
async fn calls_whose_answers_are_never_read_stop_being_read() {
    let node = TestNode::tcp(config(B)).await;
    let mut conn = greeted(&node).await;
    let payload = [Bytes::from(vec![1; 64 * 1024])];
    let mut sent = 0u64;
    let flooding = async {
        for id in 0.. {
            let mut header = FrameHeader::bare(Op::Call, id);
            header.code = ECHO.0;
            header.argument = 60_000;
            let header = header.over(&payload).encode();
            if conn.write_all(&header).await.is_err() || conn.write_all(&payload[0]).await.is_err()
            {
                return;
            }
            sent += 64 * 1024;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), flooding).await;
    let window = u64::from(Limits::default().link_window);
    assert!(
        node.transport.stats().bytes_in <= 2 * window,
        "the node read {} of {sent} bytes",
        node.transport.stats().bytes_in
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn random_greetings_never_panic_and_are_never_admitted(
        mut noise in prop::collection::vec(any::<u8>(), 0..GREETING_LEN + 40),
        with_magic in any::<bool>(),
    ) {
        if with_magic && noise.len() >= 4 {
            noise[..4].copy_from_slice(b"TLPH");
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let admitted = runtime.block_on(async {
            let (mut near, mut far) = tokio::io::duplex(1024);
            near.write_all(&noise).await.unwrap();
            near.shutdown().await.unwrap();
            handshake::accept(&mut far, &identity(B), |_| Ok(())).await
        });
        prop_assert!(admitted.is_err());
    }
}
