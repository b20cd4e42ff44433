//! The links between nodes as they are to behave: each node is reached through a port of this
//! process, which passes on what is said, late, slowly, or not at all.
//!
//! A node tells everybody one address, so one port here serves all that connect to it. Who
//! connects is found out from the kernel: the socket on the other end belongs to one of the nodes'
//! processes. So links differ by direction and by pair, and the nodes' own protocol is not touched.
//!
//! A port here is open while the node's own is, and refuses otherwise, for nodes draw conclusions
//! from a refusal. A cut hides that nobody is there: then it is open all the same, and silent.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::sockets::{Pids, Sockets};
use super::ways::{Pair, Way};

/// The most that is read before it is passed on.
const CHUNK: usize = 256 << 10;
/// What a lost packet costs at least, as TCP does it.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// How often it is looked whether somebody listens at a port again.
const KNOCK: Duration = Duration::from_millis(15);

/// A way, and how often every connection by it was ended: counting up ends those that there are.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct State {
    way: Way,
    resets: u32,
}

/// By who says something to whom; none is a good one that never was another.
type States = BTreeMap<Pair, State>;

/// All links; dropping them ends them. They have a thread of their own: what clients and checkers
/// are busy with must not look like a bad network.
#[derive(Debug)]
pub struct Links {
    states: watch::Sender<States>,
    pids: watch::Sender<Pids>,
    _stop: oneshot::Sender<()>,
}

impl Links {
    /// Serves each node's port: its number, where others reach it, and where it listens.
    pub async fn start(nodes: &[(u32, u16, u16)], seed: u64) -> io::Result<Self> {
        let (states, watched) = watch::channel(States::new());
        let (pids, known) = watch::channel(Pids::new());
        let sockets = Arc::new(Sockets::default());
        let mut doors = Vec::new();
        for (number, outside, inside) in nodes.iter().copied() {
            // Whoever has it would be found out much later otherwise.
            drop(TcpListener::bind(("127.0.0.1", outside)).await?);
            let door = Door {
                number,
                outside,
                inside,
                states: watched.clone(),
                pids: known.clone(),
                sockets: Arc::clone(&sockets),
                seed: seed ^ u64::from(number),
            };
            doors.push(door);
        }
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serve = move || {
            runtime.block_on(async {
                let _doors: JoinSet<()> = doors.into_iter().map(Door::serve).collect();
                // Nobody sends anything: it ends with the one who could.
                let _dropped = stopped.await;
            });
        };
        thread::Builder::new()
            .name("links".to_owned())
            .spawn(serve)?;
        Ok(Self {
            states,
            pids,
            _stop: stop,
        })
    }

    /// Says which process a node is now.
    pub fn is_process(&self, node: u32, pid: u32) {
        self.pids.send_modify(|pids| {
            pids.insert(node, pid);
        });
    }

    /// Says that a node's process has ended.
    pub fn is_gone(&self, node: u32) {
        self.pids.send_modify(|pids| {
            pids.remove(&node);
        });
    }

    /// Has all links be as these say, and all others good. What was on its way by those of `reset`
    /// is lost with its connection.
    pub fn set(&self, ways: &BTreeMap<Pair, Way>, reset: &[Pair]) {
        self.states.send_modify(|states| {
            for pair in ways.keys().chain(reset) {
                states.entry(*pair).or_default();
            }
            for (pair, state) in states {
                state.way = ways.get(pair).copied().unwrap_or_default();
                state.resets += u32::from(reset.contains(pair));
            }
        });
    }
}

/// The port of one node.
#[derive(Clone)]
struct Door {
    number: u32,
    /// The port that others are told, and the one behind it.
    outside: u16,
    inside: u16,
    states: watch::Receiver<States>,
    pids: watch::Receiver<Pids>,
    sockets: Arc<Sockets>,
    seed: u64,
}

impl Door {
    async fn serve(mut self) {
        let mut connections = JoinSet::new();
        loop {
            while !self.is_open().await {
                sleep(KNOCK).await;
            }
            match TcpListener::bind(("127.0.0.1", self.outside)).await {
                Ok(listener) => self.accept(&listener, &mut connections).await,
                Err(_) => sleep(KNOCK).await,
            }
        }
    }

    /// Passes connections on until the port is to refuse them.
    async fn accept(&mut self, listener: &TcpListener, connections: &mut JoinSet<()>) {
        loop {
            let doubt = tokio::select! {
                biased;
                // It may have found nobody there. One look is enough for all of them.
                Some(_) = connections.join_next() => {
                    while connections.try_join_next().is_some() {}
                    true
                }
                known = self.pids.changed() => known.is_ok(),
                changed = self.states.changed() => changed.is_ok(),
                accepted = listener.accept() => {
                    if let Ok((stream, address)) = accepted {
                        self.seed = self.seed.wrapping_add(0x9E37_79B9);
                        let _task: AbortHandle =
                            connections.spawn(self.clone().pass(stream, address.port()));
                    }
                    false
                }
            };
            if doubt && !self.is_open().await {
                return;
            }
        }
    }

    /// Whether somebody listens behind it, or nobody could tell that none does.
    async fn is_open(&self) -> bool {
        let pids = self.pids.borrow().clone();
        self.is_cut() || self.sockets.listens(self.inside, &pids).await
    }

    fn is_cut(&self) -> bool {
        let (states, node) = (self.states.borrow(), self.number);
        let mut cut = states.iter().filter(|(_, state)| state.way.cut);
        cut.any(|((from, to), _)| *from == node || *to == node)
    }

    async fn pass(self, outside: TcpStream, port: u16) {
        let pids = self.pids.borrow().clone();
        // Who is gone already, or is none of the nodes, has nothing to say.
        let Some(from) = self.sockets.owner(port, &pids).await else {
            return;
        };
        let (mut there, mut back) = (self.way(from, self.number), self.way(self.number, from));
        // Through a cut nobody learns whether a port is open.
        let (far, near) = (there.now().resets, back.now().resets);
        if there.open(far).await.is_none() || back.open(near).await.is_none() {
            return;
        }
        let Ok(inside) = TcpStream::connect(("127.0.0.1", self.inside)).await else {
            return;
        };
        let _small = (outside.set_nodelay(true), inside.set_nodelay(true));
        let (out_read, out_write) = outside.into_split();
        let (in_read, in_write) = inside.into_split();
        let there = pump(there, out_read, in_write);
        let back = pump(back, in_read, out_write);
        tokio::select! { biased; () = there => {} () = back => {} }
    }

    fn way(&self, from: u32, to: u32) -> Watched {
        Watched {
            states: self.states.clone(),
            pair: (from, to),
            rng: SmallRng::seed_from_u64(self.seed ^ u64::from(from) << 8 ^ u64::from(to) << 16),
        }
    }
}

/// One direction of one connection.
struct Watched {
    states: watch::Receiver<States>,
    pair: Pair,
    rng: SmallRng,
}

impl Watched {
    fn now(&mut self) -> State {
        let states = self.states.borrow_and_update();
        states.get(&self.pair).copied().unwrap_or_default()
    }

    /// Waits until something may pass; false if the connection is to end.
    async fn open(&mut self, resets: u32) -> Option<Way> {
        loop {
            let State { way, resets: ended } = self.now();
            if ended != resets {
                return None;
            }
            if !way.cut {
                return Some(way);
            }
            self.states.changed().await.ok()?;
        }
    }

    /// Waits until the connection is to end.
    async fn reset(mut states: watch::Receiver<States>, pair: Pair, resets: u32) {
        let gone = |states: &States| states.get(&pair).is_some_and(|now| now.resets != resets);
        let _ended = states.wait_for(gone).await;
    }

    fn cost(&mut self, way: &Way, bytes: usize) -> Duration {
        let mut cost = way.delay + way.jitter.mul_f64(self.rng.random());
        if way.loss > 0.0 && self.rng.random_bool(way.loss.min(1.0)) {
            cost += RETRANSMISSION.mul_f64(self.rng.random_range(1.0..4.0));
        }
        if let Some(rate) = way.rate {
            let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
            cost += Duration::from_secs_f64(f64::from(bytes) / f64::from(rate.max(1)));
        }
        cost
    }
}

async fn pump(mut way: Watched, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let resets = way.now().resets;
    let reset = Watched::reset(way.states.clone(), way.pair, resets);
    let passing = async {
        let mut bytes = vec![0; CHUNK];
        loop {
            if way.open(resets).await.is_none() {
                return;
            }
            // What is limited goes in small pieces, so that a limit is no stop.
            let most = if way.now().way.rate.is_some() {
                16 << 10
            } else {
                CHUNK
            };
            let Ok(read) = from.read(&mut bytes[..most]).await else {
                return;
            };
            if read == 0 {
                return;
            }
            let Some(now) = way.open(resets).await else {
                return;
            };
            let cost = way.cost(&now, read);
            if !cost.is_zero() {
                sleep(cost).await;
            }
            if way.open(resets).await.is_none() || to.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { biased; () = reset => {} () = passing => {} }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, timeout};

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn port() -> u16 {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        free.local_addr().unwrap().port()
    }

    /// A link from this process to a port that nobody listens at yet.
    async fn link() -> (Links, u16, u16) {
        let (outside, inside) = (port().await, port().await);
        let links = Links::start(&[(2, outside, inside)], 1).await.unwrap();
        links.is_process(1, std::process::id());
        (links, outside, inside)
    }

    const CUT: Way = Way {
        cut: true,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        rate: None,
    };

    fn good() -> BTreeMap<Pair, Way> {
        BTreeMap::new()
    }

    /// Answers each byte with itself, as long as it is not dropped.
    async fn answer(port: u16) -> JoinSet<()> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut answering = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                answering.spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        tasks
    }

    /// A link to somebody who answers each byte with itself.
    async fn stage() -> (Links, u16, JoinSet<()>) {
        let (links, outside, inside) = link().await;
        let node = answer(inside).await;
        drop(connect(outside).await);
        (links, outside, node)
    }

    /// A connection, as soon as there is one to be had.
    async fn connect(port: u16) -> TcpStream {
        let connecting = async {
            loop {
                if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
                    return stream;
                }
                sleep(KNOCK).await;
            }
        };
        timeout(PATIENCE, connecting).await.unwrap()
    }

    async fn await_refusal(port: u16) {
        let refused = async {
            loop {
                let tried = TcpStream::connect(("127.0.0.1", port)).await;
                if tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                    return;
                }
                sleep(KNOCK).await;
            }
        };
        timeout(PATIENCE, refused).await.unwrap();
    }

    #[tokio::test]
    async fn a_port_refuses_while_nobody_listens_behind_it() {
        let (links, outside, inside) = link().await;
        await_refusal(outside).await;
        for _ in 0..3 {
            let node = answer(inside).await;
            let mut stream = connect(outside).await;
            assert_eq!(echo(&mut stream, 1).await.unwrap(), 1);
            drop(node);
            assert!(echo(&mut stream, 2).await.is_err());
            await_refusal(outside).await;
        }
        // Told of the end, it waits for nobody to find out.
        let mut node = answer(inside).await;
        drop(connect(outside).await);
        node.shutdown().await;
        links.is_gone(2);
        await_refusal(outside).await;
    }

    #[tokio::test]
    async fn a_cut_hides_that_nobody_listens() {
        let (links, outside, _) = link().await;
        await_refusal(outside).await;
        links.set(&BTreeMap::from([((2, 1), CUT)]), &[]);
        let mut stream = connect(outside).await;
        stream.write_all(&[7]).await.unwrap();
        let silent = timeout(Duration::from_millis(200), stream.read_u8()).await;
        assert!(silent.is_err());
        links.set(&good(), &[]);
        assert!(timeout(PATIENCE, stream.read_u8()).await.unwrap().is_err());
        await_refusal(outside).await;
    }

    async fn echo(stream: &mut TcpStream, byte: u8) -> io::Result<u8> {
        stream.write_all(&[byte]).await?;
        timeout(PATIENCE, stream.read_u8()).await.unwrap()
    }

    #[tokio::test]
    async fn a_cut_holds_one_direction_until_it_is_healed() {
        let (links, port, _node) = stage().await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(echo(&mut stream, 1).await.unwrap(), 1);
        for pair in [(1, 2), (2, 1)] {
            links.set(&BTreeMap::from([(pair, CUT)]), &[]);
            stream.write_all(&[7]).await.unwrap();
            let silent = timeout(Duration::from_millis(200), stream.read_u8()).await;
            assert!(silent.is_err(), "{pair:?}");
            links.set(&good(), &[]);
            assert_eq!(
                timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap(),
                7
            );
        }
    }

    #[tokio::test]
    async fn a_reset_ends_what_was_bad_and_new_connections_pass() {
        let (links, port, _node) = stage().await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(echo(&mut stream, 1).await.unwrap(), 1);
        links.set(&BTreeMap::from([((1, 2), CUT)]), &[]);
        stream.write_all(&[7]).await.unwrap();
        links.set(&good(), &[(1, 2)]);
        assert!(timeout(PATIENCE, stream.read_u8()).await.unwrap().is_err());
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(echo(&mut stream, 2).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_slow_way_is_slow() {
        let (links, port, _node) = stage().await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let delay = Duration::from_millis(150);
        let slow = Way {
            delay,
            ..Way::default()
        };
        links.set(&BTreeMap::from([((1, 2), slow)]), &[]);
        let began = Instant::now();
        assert_eq!(echo(&mut stream, 1).await.unwrap(), 1);
        assert!(began.elapsed() >= delay);
    }

    #[tokio::test]
    async fn who_is_no_node_is_not_let_through() {
        let (links, port, _node) = stage().await;
        links.is_process(1, u32::MAX);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert!(echo(&mut stream, 1).await.is_err());
    }
}
