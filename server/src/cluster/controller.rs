//! Changing the cluster's metadata from any node: proposed here if this node leads the
//! controller, else sent to the one that does.

use std::sync::Arc;
use std::time::Duration;

use super::kinds::{CONFIRM, PROPOSE, QUORUM};
use arc_swap::ArcSwap;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, Offset, ReplicaId, Timestamp};
use trilog_raft::controller::commands::{Command, Purpose};
use trilog_raft::controller::{
    ClusterMap, ControllerError, ControllerState, Outcome, Reply, RestoreError, decode_outcome,
};
use trilog_raft::transport::{
    Lane, PeerCall, PeerError, PeerHandler, PeerStream, Refusal, Route, Target, Transport,
};
use trilog_raft::{Committed, Group, Node, OpenError, Proposal, View, ViewError};
use trilog_storage::kv::WriteBatch;

/// How long a change may take before its outcome counts as unknown.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one try at the leader may take: elections move it.
const ONE_TRY: Duration = Duration::from_secs(3);
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why a change was not made, or not known to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Refused(#[from] ControllerError),
    #[error("the controller has no leader at present; nothing was changed")]
    NoLeader,
    #[error("the controller did not answer in time; the change may yet be made")]
    Unknown,
}

/// The fold of the controller group, which publishes a map after every change.
#[derive(Debug)]
pub struct ControllerView {
    state: ControllerState,
    map: Arc<ArcSwap<ClusterMap>>,
    version: watch::Sender<u64>,
}

impl ControllerView {
    /// An empty cluster's view, with the map it publishes and a watch of the map's version.
    #[must_use]
    pub fn new() -> (Self, Arc<ArcSwap<ClusterMap>>, watch::Receiver<u64>) {
        let state = ControllerState::new();
        let map = Arc::new(ArcSwap::from_pointee(state.map()));
        let (version, changes) = watch::channel(0);
        (
            Self {
                state,
                map: Arc::clone(&map),
                version,
            },
            map,
            changes,
        )
    }

    /// A view that begins anew beside those who have the map of this one.
    fn successor(&self) -> Self {
        Self {
            state: ControllerState::new(),
            map: Arc::clone(&self.map),
            version: self.version.clone(),
        }
    }

    fn publish(&self) {
        let map = self.state.map();
        let version = map.version();
        // One that begins anew passes through what was published long ago.
        if version < self.map.load().version() {
            return;
        }
        self.map.store(Arc::new(map));
        self.version.send_replace(version);
    }
}

impl View for ControllerView {
    fn apply(&mut self, entry: &Committed<'_>, _: &mut WriteBatch) -> Bytes {
        // What comes after it would be read differently than by the others. The node is ending
        // already: whoever runs it looks at the level of every map.
        assert!(
            self.state.unsupported_level().is_none(),
            "the cluster's feature level is beyond this build"
        );
        let outcome = self.state.apply(entry.command, entry.header.append_time);
        self.publish();
        let mut reply = BytesMut::with_capacity(8 + outcome.len());
        reply.put_u64(self.state.map().version());
        reply.put(outcome);
        reply.freeze()
    }

    fn snapshot(&self) -> Bytes {
        self.state.snapshot()
    }

    fn restore(&mut self, state: &[u8], _: &mut WriteBatch) -> Result<(), ViewError> {
        let restored = self.state.restore(state);
        restored.map_err(|error| match error {
            RestoreError::Damaged(_) => ViewError::Unreadable(error.to_string()),
            RestoreError::Format(_) | RestoreError::Level { .. } => {
                ViewError::Newer(error.to_string())
            }
        })?;
        self.publish();
        Ok(())
    }

    fn hash(&self) -> u64 {
        self.state.hash()
    }
}

/// The way to the controller's leader; cheap to clone.
#[derive(Clone, Debug)]
pub struct ControllerHandle {
    group: Arc<ArcSwap<Group<ControllerView>>>,
    transport: Transport,
    map: Arc<ArcSwap<ClusterMap>>,
    changes: watch::Receiver<u64>,
}

impl ControllerHandle {
    #[must_use]
    pub fn new(
        group: Group<ControllerView>,
        transport: Transport,
        map: Arc<ArcSwap<ClusterMap>>,
        changes: watch::Receiver<u64>,
    ) -> Self {
        Self {
            group: Arc::new(ArcSwap::from_pointee(group)),
            transport,
            map,
            changes,
        }
    }

    /// Moves with each change of the map, to its version.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// The newest map this node has.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        self.map.load_full()
    }

    /// Makes the change, following the leader while it moves.
    pub async fn propose(&self, command: &Command) -> Result<(Reply, u64), ProposeError> {
        self.propose_bytes(command.to_bytes()).await
    }

    async fn propose_bytes(&self, command: Bytes) -> Result<(Reply, u64), ProposeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = match self.leader() {
                Some(node) if node == self.transport.node() => {
                    self.propose_here(command.clone()).await
                }
                Some(node) => self.forward(node, command.clone()).await,
                None => self.ask_around(&command).await,
            };
            match answer {
                Attempt::Answered(reply) => return read_reply(reply),
                Attempt::Unknown => return Err(ProposeError::Unknown),
                Attempt::Nothing if Instant::now() >= deadline => {
                    return Err(ProposeError::NoLeader);
                }
                Attempt::Nothing => tokio::time::sleep(RETRY_PAUSE).await,
            }
        }
    }

    /// The node that leads the controller, as far as this one knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.group()
            .leadership()
            .borrow()
            .leader
            .map(ReplicaId::node)
    }

    async fn propose_here(&self, command: Bytes) -> Attempt {
        let group = self.group();
        let leadership = *group.leadership().borrow();
        if !leadership.ready {
            return Attempt::Nothing;
        }
        let proposal = Proposal {
            records: Bytes::new(),
            record_count: 0,
            command,
        };
        match group.propose(vec![proposal], leadership.term).await {
            Ok(applied) => applied
                .into_iter()
                .next()
                .map_or(Attempt::Unknown, |applied| Attempt::Answered(applied.reply)),
            Err(trilog_raft::ProposeError::Unknown) => Attempt::Unknown,
            Err(_) => Attempt::Nothing,
        }
    }

    /// Asks every node that is known, of which only the leader takes the command: a node that came
    /// back at another address is not told who leads before it has registered there.
    async fn ask_around(&self, command: &Bytes) -> Attempt {
        let nodes = self.transport.book().nodes();
        for node in nodes
            .into_iter()
            .filter(|node| *node != self.transport.node())
        {
            match self.forward(node, command.clone()).await {
                Attempt::Nothing => {}
                answered => return answered,
            }
        }
        Attempt::Nothing
    }

    async fn forward(&self, node: NodeId, command: Bytes) -> Attempt {
        let target = Target {
            node,
            lane: Lane::Control,
            kind: PROPOSE,
            route: Route::default(),
        };
        match self.transport.call(target, vec![command], ONE_TRY).await {
            Ok(reply) => Attempt::Answered(reply),
            Err(PeerError::Unreachable { .. } | PeerError::Refused(_)) => Attempt::Nothing,
            Err(_) => Attempt::Unknown,
        }
    }

    /// What the change would come to on the state this node has now; nothing is changed.
    pub fn rehearse(&self, command: &Command, time: Timestamp) -> Outcome {
        let mut state = self.group().with_view(|view| view.state.clone());
        state.carry_out(command, time)
    }

    /// Where this node's own peers reach it, as the map says.
    #[must_use]
    pub fn peer_address(&self, node: NodeId) -> Option<String> {
        let map = self.map.load();
        let endpoint = map.node(node)?.endpoint(Purpose::Peer)?;
        Some(format!("{}:{}", endpoint.host, endpoint.port))
    }

    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Waits, within bounds, until this node's map has reached `version`; false if it has not.
    pub async fn await_version(&self, version: u64) -> bool {
        let mut changes = self.changes.clone();
        let reached = changes.wait_for(|now| *now >= version);
        matches!(tokio::time::timeout(ONE_TRY, reached).await, Ok(Ok(_)))
    }

    /// The version of the map that was current at some moment after this call began, as the
    /// controller's leader proves it to itself; nothing if it cannot now.
    pub async fn current_version(&self) -> Option<u64> {
        match self.leader()? {
            node if node == self.transport.node() => self.prove_version().await,
            node => {
                let (lane, kind, route) = (Lane::Control, CONFIRM, Route::default());
                let target = Target {
                    node,
                    lane,
                    kind,
                    route,
                };
                let mut answer = self
                    .transport
                    .call(target, Vec::new(), ONE_TRY)
                    .await
                    .ok()?;
                (answer.len() == 8).then(|| answer.get_u64())
            }
        }
    }

    async fn prove_version(&self) -> Option<u64> {
        let group = self.group();
        let index = group.read_index().await.ok()?;
        let mut applied = group.high_watermark();
        let caught_up = applied.wait_for(|now| now.applied >= Some(index));
        tokio::time::timeout(ONE_TRY, caught_up).await.ok()?.ok()?;
        Some(group.with_view(|view| view.state.map().version()))
    }

    /// This node's replica of the controller, as it is now.
    #[must_use]
    pub fn group(&self) -> Arc<Group<ControllerView>> {
        self.group.load_full()
    }

    /// Closes the replica here, whose consensus has ended by itself, and opens it anew. The map
    /// stays what it is until the new one has caught up with it.
    pub(super) async fn reopen(&self, node: &Node) -> Result<(), OpenError> {
        let ended = self.group();
        node.close_group(GroupId::CONTROLLER).await;
        let view = ended.with_view(ControllerView::successor);
        let opened = node.open_group(GroupId::CONTROLLER, ended.replica(), view);
        self.group.store(Arc::new(opened.await?));
        Ok(())
    }

    /// The metadata log's applied end, for those who compare nodes.
    #[must_use]
    pub fn applied_offset(&self) -> Offset {
        self.group().high_watermark().borrow().offset
    }
}

/// What one try at the leader came to.
enum Attempt {
    Answered(Bytes),
    /// Surely not carried out: may be tried again.
    Nothing,
    Unknown,
}

fn read_reply(mut reply: Bytes) -> Result<(Reply, u64), ProposeError> {
    if reply.len() < 8 {
        return Err(ProposeError::Unknown);
    }
    let version = reply.get_u64();
    Ok((decode_outcome(&reply)?, version))
}

impl PeerHandler for ControllerHandle {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let this = self.clone();
        async move {
            if call.kind == CONFIRM {
                let version = this.prove_version().await.ok_or(Refusal::Busy)?;
                return Ok(vec![Bytes::copy_from_slice(&version.to_be_bytes())]);
            }
            if call.kind == QUORUM {
                let quorum = this.quorum_here().ok_or(Refusal::Busy)?;
                return Ok(vec![quorum]);
            }
            match this.propose_here(call.payload).await {
                Attempt::Answered(reply) => Ok(vec![reply]),
                Attempt::Nothing => Err(Refusal::Busy),
                // No answer is the honest one: the caller then counts it as unknown.
                Attempt::Unknown => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        stream.refuse(&Refusal::Unserved);
    }
}
