//! The transport as its users meet it, over loopback TCP and over the simulated network.

mod faults;
mod hostile;
mod links;
mod pressure;
mod proxied;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_storage::env::Entropy;

use super::sim::SimNet;
use super::{
    ClusterId, Kind, Lane, PeerCall, PeerHandler, PeerStream, Refusal, Route, Target, Transport,
    TransportConfig,
};

pub(super) const CLUSTER: ClusterId = ClusterId([7; 16]);
pub(super) const WAIT: Duration = Duration::from_secs(20);
pub(super) const ECHO: Kind = Kind(32);
pub(super) const HANG: Kind = Kind(33);
pub(super) const PICKY: Kind = Kind(34);
pub(super) const HELLO: Kind = Kind(1);
pub(super) const A: NodeId = NodeId(1);
pub(super) const B: NodeId = NodeId(2);
pub(super) const C: NodeId = NodeId(3);

/// Answers calls by kind, and hands streams to the test.
#[derive(Debug)]
pub(super) struct TestHandler {
    pub(super) streams: mpsc::UnboundedSender<PeerStream>,
    pub(super) calls: Mutex<Vec<PeerCall>>,
}

impl PeerHandler for TestHandler {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        self.calls.lock().push(call.clone());
        Box::pin(async move {
            match call.kind {
                ECHO | HELLO => Ok(vec![call.payload]),
                HANG => std::future::pending().await,
                _ => Err(Refusal::UnknownGroup),
            }
        })
    }

    fn on_stream(&self, stream: PeerStream) {
        if stream.kind == PICKY {
            stream.refuse(&Refusal::WrongReplica);
        } else {
            // A test that ended wants no more streams.
            let _ = self.streams.send(stream);
        }
    }
}

/// A node under test.
pub(super) struct TestNode {
    pub(super) transport: Transport,
    pub(super) handler: Arc<TestHandler>,
    pub(super) streams: mpsc::UnboundedReceiver<PeerStream>,
}

impl TestNode {
    pub(super) fn new(transport: Transport) -> Self {
        let (sender, streams) = mpsc::unbounded_channel();
        let handler = Arc::new(TestHandler {
            streams: sender,
            calls: Mutex::default(),
        });
        transport.register(0..64, Arc::clone(&handler) as Arc<dyn PeerHandler>);
        Self {
            transport,
            handler,
            streams,
        }
    }

    pub(super) async fn tcp(config: TransportConfig) -> Self {
        let entropy = Entropy::from_seed(config.node.get().into());
        let transport = Transport::tcp(config, "127.0.0.1:0", entropy);
        Self::new(transport.await.unwrap())
    }

    pub(super) fn sim(net: &SimNet, config: TransportConfig) -> Self {
        Self::new(net.transport(config))
    }

    pub(super) fn knows(&self, other: &Self) {
        let book = self.transport.book();
        book.set(other.transport.node(), other.transport.address());
    }

    pub(super) async fn next_stream(&mut self) -> PeerStream {
        let stream = tokio::time::timeout(WAIT, self.streams.recv()).await;
        stream.expect("a stream in time").expect("a stream")
    }
}

pub(super) fn config(node: NodeId) -> TransportConfig {
    TransportConfig::new(node, Some(CLUSTER))
}

pub(super) fn target(node: NodeId, lane: Lane, kind: Kind) -> Target {
    Target {
        node,
        lane,
        kind,
        route: Route {
            group: GroupId(9),
            from: ReplicaId::new(A, 1),
            to: ReplicaId::new(node, 1),
        },
    }
}

/// Nodes A and B, which know each other, over loopback TCP.
pub(super) async fn tcp_pair() -> (TestNode, TestNode) {
    let a = TestNode::tcp(config(A)).await;
    let b = TestNode::tcp(config(B)).await;
    a.knows(&b);
    b.knows(&a);
    (a, b)
}

/// Nodes A and B, which know each other, over a simulated network.
pub(super) fn sim_pair(seed: u64) -> (SimNet, TestNode, TestNode) {
    let net = SimNet::new(seed);
    let a = TestNode::sim(&net, config(A));
    let b = TestNode::sim(&net, config(B));
    a.knows(&b);
    b.knows(&a);
    (net, a, b)
}

pub(super) fn bytes(text: &'static str) -> Vec<Bytes> {
    vec![Bytes::from_static(text.as_bytes())]
}

/// Waits until a condition holds.
pub(super) async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(WAIT, waiting).await.expect(what);
}
