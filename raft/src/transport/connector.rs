//! Keeps one link to one peer: connects, reconnects with back-off, follows the address book.
//!
//! ```text
//!   Connecting ──handshake──> Up ──link ends──> Connecting
//!       └──failed──> Down ──a later attempt──> Up
//! ```
//!
//! Whoever needs the link waits while it is connecting and fails at once while it is down. A peer
//! that connects to us, or gets a new address, is tried without delay. One that was met and whose
//! address then refuses connections is reported as gone.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use trilog_model::NodeId;

use super::endpoint::Endpoint;
use super::handshake::{Greeting, HandshakeError};
use super::limits::Timings;
use super::link::Link;
use super::peer::PeerError;
use super::stats::count;

/// An attempt that takes longer than this is given up when the peer connects to us meanwhile.
const HUNG: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
enum State {
    Connecting,
    Up(Arc<Link>),
    Down(String),
}

/// The way to one link of one peer.
#[derive(Debug)]
pub(super) struct Connector {
    node: NodeId,
    number: u8,
    state: watch::Sender<State>,
    kick: Notify,
    /// The peer was met since it was last found to be gone.
    met: AtomicBool,
}

impl Connector {
    pub(super) fn start(endpoint: &Arc<Endpoint>, node: NodeId, number: u8) -> Arc<Self> {
        let connector = Arc::new(Self {
            node,
            number,
            state: watch::Sender::new(State::Connecting),
            kick: Notify::new(),
            met: AtomicBool::new(false),
        });
        let (running, owner) = (Arc::clone(&connector), Arc::clone(endpoint));
        endpoint.spawn(async move { running.run(&owner).await });
        connector
    }

    /// The link, waiting while it is being made.
    pub(super) async fn link(&self, deadline: Instant) -> Result<Arc<Link>, PeerError> {
        if let State::Up(link) = &*self.state.borrow()
            && link.is_open()
        {
            return Ok(Arc::clone(link));
        }
        let mut changes = self.state.subscribe();
        let usable = changes.wait_for(|state| match state {
            State::Connecting => false,
            // One that has ended is about to be replaced.
            State::Up(link) => link.is_open(),
            State::Down(_) => true,
        });
        match tokio::time::timeout_at(deadline, usable).await {
            Ok(Ok(state)) => match &*state {
                State::Up(link) => Ok(Arc::clone(link)),
                State::Down(reason) => Err(self.unreachable(reason)),
                State::Connecting => Err(self.unreachable("still connecting")),
            },
            Ok(Err(_)) => Err(PeerError::Closed),
            Err(_) => Err(self.unreachable("no connection in time")),
        }
    }

    fn unreachable(&self, reason: &str) -> PeerError {
        PeerError::Unreachable {
            node: self.node,
            reason: reason.to_owned(),
        }
    }

    /// The peer just connected to us, so it can be reached now.
    pub(super) fn kick(&self) {
        self.kick.notify_one();
    }

    async fn kicked_after(&self, patience: Duration) {
        tokio::time::sleep(patience).await;
        self.kick.notified().await;
    }

    async fn run(&self, endpoint: &Arc<Endpoint>) {
        let mut pauses = Pauses::new(*endpoint.timings(), endpoint.entropy.fork());
        let mut edits = endpoint.book.watch();
        while !endpoint.closing().is_cancelled() {
            edits.borrow_and_update();
            let Some(address) = endpoint.book.get(self.node) else {
                self.set(State::Down("its address is not known".into()));
                tokio::select! {
                    biased;
                    () = endpoint.closing().cancelled() => {}
                    _ = edits.changed() => {}
                }
                continue;
            };
            let attempt = async {
                self.keep_up(endpoint, &address, &mut pauses).await;
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(pauses.next()) => {}
                    () = self.kick.notified() => {}
                }
            };
            tokio::select! {
                biased;
                () = endpoint.closing().cancelled() => {}
                () = moved(endpoint, self.node, &address, &mut edits) => self.drop_link(),
                () = attempt => {}
            }
        }
        self.set(State::Down("this node is stopping".into()));
    }

    /// Connects once, and stays until the link is over.
    async fn keep_up(&self, endpoint: &Arc<Endpoint>, address: &str, pauses: &mut Pauses) {
        let greeting = Greeting::new(endpoint.identity(), self.node, self.number, false);
        let dialled = tokio::select! {
            biased;
            dialled = endpoint.dial(address.to_owned(), greeting) => dialled,
            // The network was deaf when this attempt began, and is not any more.
            () = self.kicked_after(HUNG) => return pauses.reset(),
        };
        match dialled {
            Ok((conn, peer)) => {
                count(&endpoint.counters.connects, 1);
                tracing::debug!(node = %self.node, link = self.number, "peer link up");
                pauses.reset();
                self.met.store(true, Ordering::Relaxed);
                let link = Link::new(self.node, endpoint.identity().limits, peer.limits);
                let (running, owner) = (Arc::clone(&link), Arc::clone(endpoint));
                endpoint.spawn(async move { owner.run(running, conn, None).await });
                self.set(State::Up(Arc::clone(&link)));
                link.stop().cancelled().await;
                self.set(State::Connecting);
            }
            Err(error) => {
                count(&endpoint.counters.connect_failures, 1);
                self.miss(endpoint, &error);
                let reason = error.to_string();
                if self.set(State::Down(reason)) {
                    tracing::warn!(node = %self.node, address, %error, "cannot reach a peer");
                }
            }
        }
    }

    /// An attempt failed: where nobody listens any more, whoever did is gone.
    fn miss(&self, endpoint: &Endpoint, error: &HandshakeError) {
        let refused = matches!(error, HandshakeError::Io(error)
            if error.kind() == io::ErrorKind::ConnectionRefused);
        if refused && self.met.load(Ordering::Relaxed) && endpoint.lost_node(self.node) {
            self.met.store(false, Ordering::Relaxed);
        }
    }

    fn drop_link(&self) {
        if let State::Up(link) = &*self.state.borrow() {
            link.fail(link.broken("the peer's address changed"));
        }
        self.set(State::Connecting);
    }

    /// True when the state is news.
    fn set(&self, state: State) -> bool {
        self.state.send_if_modified(|now| {
            let same = match (&*now, &state) {
                (State::Down(old), State::Down(new)) => old == new,
                (State::Connecting, State::Connecting) => true,
                _ => false,
            };
            *now = state;
            !same
        })
    }
}

/// Resolves when the address book no longer has `node` at `address`.
async fn moved(endpoint: &Endpoint, node: NodeId, address: &str, edits: &mut watch::Receiver<u64>) {
    while endpoint.book.get(node).as_deref() == Some(address) {
        if edits.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The pauses between attempts: doubling, each shortened by chance so that nodes spread out.
#[derive(Debug)]
struct Pauses {
    min: Duration,
    max: Duration,
    next: Duration,
    random: SmallRng,
}

impl Pauses {
    fn new(timings: Timings, random: SmallRng) -> Self {
        Self {
            min: timings.backoff_min,
            max: timings.backoff_max,
            next: timings.backoff_min,
            random,
        }
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(self.random.random_range(0.5..=1.0))
    }

    fn reset(&mut self) {
        self.next = self.min;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn pauses_double_to_the_limit_shortened_by_at_most_half() {
        let timings = Timings::default();
        let mut pauses = Pauses::new(timings, SmallRng::seed_from_u64(1));
        let mut full = timings.backoff_min;
        for _ in 0..20 {
            let pause = pauses.next();
            assert!(pause <= full && pause >= full / 2, "{pause:?} of {full:?}");
            full = (full * 2).min(timings.backoff_max);
        }
        pauses.reset();
        assert!(pauses.next() <= timings.backoff_min);
    }
}
