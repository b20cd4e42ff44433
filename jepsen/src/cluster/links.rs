//! The links between nodes as they are to behave: each node is reached through a port of this
//! process, which passes on what is said, late, slowly, or not at all.
//!
//! A node tells everybody one address, so one port here serves all that connect to it. Who
//! connects is found out from the kernel: the socket on the other end belongs to one of the nodes'
//! processes. So links differ by direction and by pair, and the nodes' own protocol is not touched.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// The most that is read before it is passed on.
const CHUNK: usize = 256 << 10;
/// What a lost packet costs at least, as TCP does it.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// How often it is looked for who connects, and how long it is waited in between.
const LOOKS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(5);

/// How what one node says to another gets there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Way {
    /// Nothing passes, and nobody is told.
    pub cut: bool,
    pub delay: Duration,
    /// Up to so much more, drawn for each piece.
    pub jitter: Duration,
    /// How likely a piece is lost once, and sent again later.
    pub loss: f64,
    /// Bytes a second; nothing is no limit.
    pub rate: Option<u32>,
    /// Counted up to end every connection that there is.
    pub resets: u32,
}

/// Ways by who says something to whom; none is a good one.
type Ways = BTreeMap<(u32, u32), Way>;

/// The processes of nodes by their numbers.
type Pids = Arc<Mutex<BTreeMap<u32, u32>>>;

/// All links; dropping them ends them.
#[derive(Debug)]
pub struct Links {
    ways: watch::Sender<Ways>,
    pids: Pids,
    _tasks: JoinSet<()>,
}

impl Links {
    /// Serves each node's port: its number, where others reach it, and where it listens.
    pub async fn start(nodes: &[(u32, u16, u16)], seed: u64) -> io::Result<Self> {
        let (ways, watched) = watch::channel(Ways::new());
        let pids = Pids::default();
        let mut tasks = JoinSet::new();
        for (number, outside, inside) in nodes.iter().copied() {
            let listener = TcpListener::bind(("127.0.0.1", outside)).await?;
            let door = Door {
                number,
                inside,
                ways: watched.clone(),
                pids: Arc::clone(&pids),
                seed: seed ^ u64::from(number),
            };
            tasks.spawn(door.serve(listener));
        }
        Ok(Self {
            ways,
            pids,
            _tasks: tasks,
        })
    }

    /// Says which process a node is now.
    pub fn is_process(&self, node: u32, pid: u32) {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.insert(node, pid);
    }

    /// Changes how what `from` says gets to `to`.
    pub fn change(&self, from: u32, to: u32, change: impl FnOnce(&mut Way)) {
        self.ways
            .send_modify(|ways| change(ways.entry((from, to)).or_default()));
    }

    /// Makes all links good again; with `reset` what was on its way is lost with its connection.
    pub fn heal(&self, reset: bool) {
        self.ways.send_modify(|ways| {
            for way in ways.values_mut() {
                let bad = *way
                    != Way {
                        resets: way.resets,
                        ..Way::default()
                    };
                let resets = way.resets + u32::from(reset && bad);
                *way = Way {
                    resets,
                    ..Way::default()
                };
            }
        });
    }
}

/// The port of one node.
#[derive(Clone)]
struct Door {
    number: u32,
    inside: u16,
    ways: watch::Receiver<Ways>,
    pids: Pids,
    seed: u64,
}

impl Door {
    async fn serve(mut self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(_) = connections.join_next() => {}
                accepted = listener.accept() => {
                    let Ok((stream, address)) = accepted else { continue };
                    self.seed = self.seed.wrapping_add(0x9E37_79B9);
                    let _task: AbortHandle =
                        connections.spawn(self.clone().pass(stream, address.port()));
                }
            }
        }
    }

    async fn pass(self, outside: TcpStream, port: u16) {
        let pids = self
            .pids
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Who is gone already, or is none of the nodes, has nothing to say.
        let Some(from) = find_owner(port, &pids).await else {
            return;
        };
        let Ok(inside) = TcpStream::connect(("127.0.0.1", self.inside)).await else {
            return;
        };
        let _small = (outside.set_nodelay(true), inside.set_nodelay(true));
        let (out_read, out_write) = outside.into_split();
        let (in_read, in_write) = inside.into_split();
        let there = pump(self.way(from, self.number), out_read, in_write);
        let back = pump(self.way(self.number, from), in_read, out_write);
        tokio::select! { biased; () = there => {} () = back => {} }
    }

    fn way(&self, from: u32, to: u32) -> Watched {
        Watched {
            ways: self.ways.clone(),
            pair: (from, to),
            rng: SmallRng::seed_from_u64(self.seed ^ u64::from(from) << 8 ^ u64::from(to) << 16),
        }
    }
}

/// One direction of one connection.
struct Watched {
    ways: watch::Receiver<Ways>,
    pair: (u32, u32),
    rng: SmallRng,
}

impl Watched {
    fn now(&mut self) -> Way {
        let ways = self.ways.borrow_and_update();
        ways.get(&self.pair).copied().unwrap_or_default()
    }

    /// Waits until something may pass; false if the connection is to end.
    async fn open(&mut self, resets: u32) -> Option<Way> {
        loop {
            let way = self.now();
            if way.resets != resets {
                return None;
            }
            if !way.cut {
                return Some(way);
            }
            self.ways.changed().await.ok()?;
        }
    }

    /// Waits until the connection is to end.
    async fn reset(mut ways: watch::Receiver<Ways>, pair: (u32, u32), resets: u32) {
        let gone = |ways: &Ways| ways.get(&pair).is_some_and(|way| way.resets != resets);
        let _ended = ways.wait_for(gone).await;
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
    let reset = Watched::reset(way.ways.clone(), way.pair, resets);
    let passing = async {
        let mut bytes = vec![0; CHUNK];
        loop {
            if way.open(resets).await.is_none() {
                return;
            }
            // What is limited goes in small pieces, so that a limit is no stop.
            let most = if way.now().rate.is_some() {
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
                tokio::time::sleep(cost).await;
            }
            if way.open(resets).await.is_none() || to.write_all(&bytes[..read]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { biased; () = reset => {} () = passing => {} }
}

/// As [`owner`], which misses some: the kernel's table of connections is no snapshot, and changes
/// while it is read.
async fn find_owner(port: u16, pids: &BTreeMap<u32, u32>) -> Option<u32> {
    for _ in 0..LOOKS {
        if let Some(node) = owner(port, pids) {
            return Some(node);
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

/// Which of the processes has the socket that is bound to `port` of this machine and connected.
fn owner(port: u16, pids: &BTreeMap<u32, u32>) -> Option<u32> {
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let local = format!("0100007F:{port:04X}");
    let inode = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        (fields.get(1) == Some(&local.as_str())).then(|| fields.get(9).copied())?
    })?;
    let socket = format!("socket:[{inode}]");
    let holds = |pid: u32| {
        let files = std::fs::read_dir(format!("/proc/{pid}/fd"));
        files.is_ok_and(|files| {
            let targets = files.flatten().map(|file| std::fs::read_link(file.path()));
            targets
                .flatten()
                .any(|target| target.as_os_str() == socket.as_str())
        })
    };
    let found = pids.iter().find(|(_, pid)| holds(**pid));
    found.map(|(node, _)| *node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, timeout};

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A listener that answers each byte with itself, and a link to it from this process.
    async fn stage() -> (Links, u16) {
        let inside = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inside_port = inside.local_addr().unwrap().port();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outside = free.local_addr().unwrap().port();
        drop(free);
        let links = Links::start(&[(2, outside, inside_port)], 1).await.unwrap();
        links.is_process(1, std::process::id());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = inside.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        (links, outside)
    }

    async fn echo(stream: &mut TcpStream, byte: u8) -> io::Result<u8> {
        stream.write_all(&[byte]).await?;
        timeout(PATIENCE, stream.read_u8()).await.unwrap()
    }

    #[tokio::test]
    async fn a_cut_holds_one_direction_until_it_is_healed() {
        let (links, port) = stage().await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(echo(&mut stream, 1).await.unwrap(), 1);
        for pair in [(1, 2), (2, 1)] {
            links.change(pair.0, pair.1, |way| way.cut = true);
            stream.write_all(&[7]).await.unwrap();
            let silent = timeout(Duration::from_millis(200), stream.read_u8()).await;
            assert!(silent.is_err(), "{pair:?}");
            links.heal(false);
            assert_eq!(
                timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap(),
                7
            );
        }
    }

    #[tokio::test]
    async fn a_reset_ends_what_was_bad_and_new_connections_pass() {
        let (links, port) = stage().await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(echo(&mut stream, 1).await.unwrap(), 1);
        links.change(1, 2, |way| way.cut = true);
        stream.write_all(&[7]).await.unwrap();
        links.heal(true);
        assert!(timeout(PATIENCE, stream.read_u8()).await.unwrap().is_err());
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert_eq!(echo(&mut stream, 2).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn a_slow_way_is_slow() {
        let (links, port) = stage().await;
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let delay = Duration::from_millis(150);
        links.change(1, 2, |way| way.delay = delay);
        let began = Instant::now();
        assert_eq!(echo(&mut stream, 1).await.unwrap(), 1);
        assert!(began.elapsed() >= delay);
    }

    #[tokio::test]
    async fn who_is_no_node_is_not_let_through() {
        let (links, port) = stage().await;
        links.is_process(1, u32::MAX);
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert!(echo(&mut stream, 1).await.is_err());
    }
}
