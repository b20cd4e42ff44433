//! What the peer transport costs against bare TCP on loopback, in one run.
//!
//! `cargo bench -p trilog-raft --bench peer_link`, on a machine that does nothing else. Rounds
//! alternate, and the median of each figure is shown.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails, fails loudly")]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_raft::transport::{
    ClusterId, Kind, Lane, PeerCall, PeerHandler, PeerStream, Refusal, Route, Target, Transport,
    TransportConfig,
};
use trilog_storage::env::Entropy;

const MESSAGE: usize = 64 * 1024;
const MESSAGES: usize = 40_000;
const CALLS: usize = 40_000;
const ROUNDS: usize = 7;
const WAIT: Duration = Duration::from_mins(1);
const KIND: Kind = Kind(64);

struct Echo(mpsc::UnboundedSender<PeerStream>);

impl PeerHandler for Echo {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        Box::pin(std::future::ready(Ok(vec![call.payload])))
    }

    fn on_stream(&self, stream: PeerStream) {
        // The bench that opened it waits for it.
        let _ = self.0.send(stream);
    }
}

struct Pair {
    a: Transport,
    b: Transport,
    streams: mpsc::UnboundedReceiver<PeerStream>,
    target: Target,
}

async fn pair() -> Pair {
    let start = async |node: u32| {
        let config = TransportConfig::new(NodeId(node), Some(ClusterId([1; 16])));
        let entropy = Entropy::from_seed(node.into());
        Transport::tcp(config, "127.0.0.1:0", entropy)
            .await
            .unwrap()
    };
    let (a, b) = (start(1).await, start(2).await);
    a.book().set(NodeId(2), b.address());
    let (sender, streams) = mpsc::unbounded_channel();
    b.register(64..65, Arc::new(Echo(sender)));
    let target = Target {
        node: NodeId(2),
        lane: Lane::Append,
        kind: KIND,
        route: Route {
            group: GroupId(1),
            from: ReplicaId::new(NodeId(1), 1),
            to: ReplicaId::new(NodeId(2), 1),
        },
    };
    Pair {
        a,
        b,
        streams,
        target,
    }
}

/// MiB per second for so many messages of so many bytes.
fn rate(messages: usize, size: usize, start: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let bytes = (messages * size) as f64;
    bytes / f64::from(1 << 20) / start.elapsed().as_secs_f64()
}

/// Microseconds each.
fn each(count: usize, start: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
    let count = count as f64;
    start.elapsed().as_secs_f64() * 1e6 / count
}

async fn bare_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (near, far) = (near.unwrap(), far.unwrap().0);
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    (near, far)
}

/// A connection that carries as much in writes of `size` bytes.
async fn bare_stream(size: usize) -> f64 {
    let total = MESSAGES * MESSAGE;
    let (mut near, mut far) = bare_pair().await;
    let start = Instant::now();
    let writer = tokio::spawn(async move {
        let message = vec![7; size];
        for _ in 0..total / size {
            near.write_all(&message).await.unwrap();
        }
    });
    let reader = tokio::spawn(async move {
        let mut buffer = BytesMut::with_capacity(256 * 1024);
        let mut left = total;
        while left > 0 {
            left -= far.read_buf(&mut buffer).await.unwrap();
            buffer.clear();
        }
    });
    writer.await.unwrap();
    reader.await.unwrap();
    rate(total / size, size, start)
}

async fn bare_round_trip() -> f64 {
    let (mut near, mut far) = bare_pair().await;
    let echo = tokio::spawn(async move {
        let mut buffer = [0; 64];
        for _ in 0..CALLS {
            far.read_exact(&mut buffer).await.unwrap();
            far.write_all(&buffer).await.unwrap();
        }
    });
    let calls = tokio::spawn(async move {
        let mut buffer = [0; 64];
        let start = Instant::now();
        for _ in 0..CALLS {
            near.write_all(&buffer).await.unwrap();
            near.read_exact(&mut buffer).await.unwrap();
        }
        each(CALLS, start)
    });
    echo.await.unwrap();
    calls.await.unwrap()
}

/// One stream of messages of `size` bytes.
async fn stream(pair: &mut Pair, size: usize, messages: usize) -> f64 {
    let (mut sender, _receiver) = pair.a.open_stream(pair.target, WAIT).await.unwrap();
    let mut far = pair.streams.recv().await.unwrap();
    let start = Instant::now();
    let writer = tokio::spawn(async move {
        let message = Bytes::from(vec![7; size]);
        for _ in 0..messages {
            sender.send(vec![message.clone()]).await.unwrap();
        }
    });
    let reader = tokio::spawn(async move {
        for _ in 0..messages {
            let message = far.receiver.recv().await.unwrap().unwrap();
            assert_eq!(message.len(), size);
        }
        far
    });
    writer.await.unwrap();
    drop(reader.await.unwrap());
    rate(messages, size, start)
}

async fn round_trip(pair: &Pair) -> f64 {
    let (transport, mut target) = (pair.a.clone(), pair.target);
    target.lane = Lane::Control;
    let calls = tokio::spawn(async move {
        let payload = Bytes::from_static(&[7; 64]);
        let start = Instant::now();
        for _ in 0..CALLS {
            let answer = transport.call(target, vec![payload.clone()], WAIT).await;
            assert_eq!(answer.unwrap().len(), 64);
        }
        each(CALLS, start)
    });
    calls.await.unwrap()
}

/// Milliseconds of processor time this process has used, user and system; zero where it cannot be
/// told. Unlike rates it hardly depends on what else the machine does.
fn cpu_millis() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |place| {
        after_name
            .split_whitespace()
            .nth(place)
            .and_then(|field: &str| field.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) * 10.0
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// One figure per round, with the processor time of all rounds.
struct Figure {
    values: Vec<f64>,
    cpu: f64,
}

impl Figure {
    async fn add(&mut self, run: impl Future<Output = f64>) {
        let before = cpu_millis();
        self.values.push(run.await);
        self.cpu += cpu_millis() - before;
    }

    /// Processor milliseconds per GiB carried in each round's 64 KiB messages.
    fn per_gib(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
        let gib = (MESSAGES * MESSAGE * ROUNDS) as f64 / f64::from(1 << 30);
        self.cpu / gib
    }

    /// Processor microseconds per call.
    fn per_call(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a figure to look at")]
        let calls = (CALLS * ROUNDS) as f64;
        self.cpu * 1000.0 / calls
    }
}

async fn run() -> std::io::Result<()> {
    let mut pair = pair().await;
    let [
        mut bare,
        mut framed,
        mut bare_large,
        mut bare_trip,
        mut trip,
        mut small,
    ] = [const {
        Figure {
            values: Vec::new(),
            cpu: 0.0,
        }
    }; 6];
    for _ in 0..ROUNDS {
        bare.add(bare_stream(MESSAGE)).await;
        framed.add(stream(&mut pair, MESSAGE, MESSAGES)).await;
        bare_large.add(bare_stream(1 << 20)).await;
        bare_trip.add(bare_round_trip()).await;
        trip.add(round_trip(&pair)).await;
        small.add(stream(&mut pair, 64, 1_000_000)).await;
    }
    let mut out = std::io::stdout().lock();
    for (name, figure) in [
        ("64 KiB, bare TCP   ", &bare),
        ("64 KiB, one stream ", &framed),
        ("1 MiB, bare TCP    ", &bare_large),
    ] {
        let (rate, cpu) = (median(figure.values.clone()), figure.per_gib());
        writeln!(out, "{name} {rate:8.0} MiB/s {cpu:8.0} CPU ms/GiB")?;
    }
    for (name, figure) in [("64 B round trip, bare", &bare_trip), ("64 B call", &trip)] {
        let (each, cpu) = (median(figure.values.clone()), figure.per_call());
        writeln!(out, "{name:21} {each:8.1} us {cpu:8.1} CPU us")?;
    }
    let messages = median(small.values.clone()) / 64.0 * f64::from(1 << 20);
    writeln!(out, "64 B, one stream    {messages:10.0} messages/s")?;
    writeln!(out, "sender: {:?}", pair.a.stats())?;
    writeln!(out, "receiver: {:?}", pair.b.stats())?;
    Ok(())
}

fn main() -> std::io::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run())
}
