//! openraft's network on top of the links between nodes.
//!
//! ```text
//! votes, transfers, heartbeats   calls on the control lane
//! entries in memory              one stream per follower and session on the append lane
//! entries from disk              one stream per follower and session on the bulk lane, throttled
//! log-start descriptors          one stream per transfer on the bulk lane
//! log data that a replica lacks  one stream per stretch on the bulk lane, see `copy`
//! ```
//!
//! A session from disk ends where memory begins; the next one goes on from there.
//!
//! Requests of a stream are pipelined up to the follower's byte credit; answers come in order.
//! Every message names the replica it is from and the one it is for, so that nothing meant for a
//! predecessor on the same node is ever taken.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, Either, select};
use futures::stream::{BoxStream, StreamExt};
use futures::{FutureExt, Stream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
    RaftNetworkFactory,
};
use openraft::raft::{
    AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RPCTypes};
use trilog_model::{EntryId, GroupId, LogIndex, ReplicaId};
use trilog_storage::log::GroupLog;

use super::catch_up::Throttle;
use super::descriptor::Descriptor;
use super::heard::Heard;
use crate::codec::{self, CodecError, SnapshotMessage};
use crate::transport::{
    Kind, Lane, PeerError, Route, StreamReceiver, StreamSender, Target, Transport,
};
use crate::types::{RaftVote, TypeConfig, log_id};

pub(crate) const VOTE: Kind = Kind(Kind::FIRST_RAFT);
pub(crate) const PRE_VOTE: Kind = Kind(Kind::FIRST_RAFT + 1);
pub(crate) const APPEND: Kind = Kind(Kind::FIRST_RAFT + 2);
pub(crate) const BEAT: Kind = Kind(Kind::FIRST_RAFT + 3);
pub(crate) const SNAPSHOT: Kind = Kind(Kind::FIRST_RAFT + 4);
pub(crate) const TRANSFER: Kind = Kind(Kind::FIRST_RAFT + 5);
pub(crate) const COPY: Kind = Kind(Kind::FIRST_RAFT + 10);
pub(crate) const WHOLE: Kind = Kind(Kind::FIRST_RAFT + 11);

/// Bytes of a descriptor in one message.
const CHUNK: usize = 1 << 20;
/// The largest descriptor a replica takes: views larger than this are copied as files.
pub(crate) const DESCRIPTOR_MAX: usize = 256 << 20;
/// How long the next piece of one may take: few are taken in at the same time.
const PIECE_PATIENCE: Duration = Duration::from_secs(10);

type RpcError = RPCError<TypeConfig>;
type AppendStream<'s> = BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>;

/// Makes the clients of one replica.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    transport: Transport,
    group: GroupId,
    from: ReplicaId,
    log: GroupLog,
    throttle: Arc<Throttle>,
    heard: Arc<Heard>,
}

impl Network {
    pub(crate) fn new(
        transport: Transport,
        log: GroupLog,
        throttle: Arc<Throttle>,
        heard: Arc<Heard>,
    ) -> Self {
        Self {
            transport,
            group: log.group(),
            from: log.replica(),
            log,
            throttle,
            heard,
        }
    }

    /// Has a request say what is committed, as far as it is known here. A new leader says nothing
    /// of that before it has committed an entry of its own term; a follower whose memory is full of
    /// what it does not know to be committed could not take that entry.
    fn tell_committed(&self, request: &mut AppendEntriesRequest<TypeConfig>) {
        if request.leader_commit.is_none()
            && let Some(index) = self.log.state().committed
            && let Some(term) = self.log.term_of(index)
        {
            request.leader_commit = Some(log_id(EntryId { term, index }));
        }
    }

    /// Whether entries from `index` on have to be read from disk.
    fn is_cold(&self, index: LogIndex) -> bool {
        let held = self
            .log
            .state()
            .last
            .is_some_and(|last| index <= last.index);
        held && self.log.headers(index, index.next()).is_none()
    }

    fn client(&self, target: u64, purpose: Purpose) -> Client {
        Client {
            network: self.clone(),
            to: ReplicaId(target),
            purpose,
        }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, _node: &()) -> Client {
        self.client(target, Purpose::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _node: &()) -> Client {
        self.client(target, Purpose::Beats)
    }
}

/// What a client's appends are, which decides how they travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Entries,
    Beats,
}

/// One replica's way to another.
#[derive(Debug)]
pub(crate) struct Client {
    network: Network,
    to: ReplicaId,
    purpose: Purpose,
}

impl Client {
    fn target(&self, lane: Lane, kind: Kind) -> Target {
        Target {
            node: self.to.node(),
            lane,
            kind,
            route: Route {
                group: self.network.group,
                from: self.network.from,
                to: self.to,
            },
        }
    }

    async fn call(
        &self,
        kind: Kind,
        action: RPCTypes,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, RpcError> {
        let target = self.target(Lane::Control, kind);
        let call = self.network.transport.call(target, vec![payload], timeout);
        call.await.map_err(|error| match error {
            PeerError::Timeout => RPCError::Timeout(Timeout {
                action,
                id: self.network.from.0,
                target: self.to.0,
                timeout,
            }),
            error => unreachable_peer(error),
        })
    }

    /// One empty append as a call that no payload can hold up.
    async fn beat(
        &self,
        mut request: AppendEntriesRequest<TypeConfig>,
        timeout: Duration,
    ) -> Result<StreamAppendResult<TypeConfig>, RpcError> {
        self.network.tell_committed(&mut request);
        let payload = codec::encode_append(request).map_err(unreachable_peer)?;
        let payload = payload.into_iter().next().unwrap_or_default();
        let reply = self
            .call(BEAT, RPCTypes::AppendEntries, payload, timeout)
            .await?;
        codec::decode_append_reply(reply).map_err(unreachable_peer)
    }

    async fn open(&self, lane: Lane, kind: Kind, timeout: Duration) -> Result<Ends, RpcError> {
        let target = self.target(lane, kind);
        let opened = self.network.transport.open_stream(target, timeout).await;
        opened.map_err(unreachable_peer)
    }
}

type Ends = (StreamSender, StreamReceiver);

/// A peer that cannot do what is asked now; openraft waits before it tries again.
fn unreachable_peer(error: impl Display) -> RpcError {
    RPCError::Unreachable(Unreachable::from_string(error))
}

impl NetBackoff<TypeConfig> for Client {
    fn backoff(&self) -> Option<Backoff> {
        None
    }
}

impl NetVote<TypeConfig> for Client {
    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let payload = codec::encode_vote(&rpc);
        let call = self.call(VOTE, RPCTypes::Vote, payload, option.soft_ttl());
        codec::decode_vote_reply(call.await?).map_err(unreachable_peer)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        // openraft judges by its timer alone, which may be late, or ahead of what has arrived.
        if self.network.heard.excuses_leader(self.network.from) {
            return Err(unreachable_peer("the leader's node is heard"));
        }
        let payload = codec::encode_vote(&rpc);
        let call = self.call(PRE_VOTE, RPCTypes::Vote, payload, option.soft_ttl());
        codec::decode_vote_reply(call.await?).map_err(unreachable_peer)
    }
}

impl NetTransferLeader<TypeConfig> for Client {
    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let payload = codec::encode_transfer(&req);
        let call = self.call(
            TRANSFER,
            RPCTypes::TransferLeader,
            payload,
            option.soft_ttl(),
        );
        codec::decode_transfer_reply(&req, call.await?).map_err(unreachable_peer)
    }
}

impl NetStreamAppend<TypeConfig> for Client {
    /// Takes the first request before it opens anything: openraft waits between attempts where it
    /// hands out requests, so failing earlier would make it try again without end.
    fn stream_append<S>(
        &mut self,
        mut input: S,
        option: RPCOption,
    ) -> BoxFuture<'_, Result<AppendStream<'_>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let timeout = option.soft_ttl();
        let session = async move {
            let Some(first) = input.next().await else {
                return futures::stream::empty().boxed();
            };
            if self.purpose == Purpose::Beats {
                return once(self.beat(first, timeout).await).boxed();
            }
            let begins = first.entries.first().map(|entry| entry.entry_id().index);
            let bulk = begins.is_some_and(|index| self.network.is_cold(index));
            let lane = if bulk { Lane::Bulk } else { Lane::Append };
            let bulk = bulk.then(|| self.network.clone());
            match self.open(lane, APPEND, timeout).await {
                Ok((sender, receiver)) => {
                    exchange(once(first).chain(input), sender, receiver, bulk)
                }
                Err(error) => once(Err(error)).boxed(),
            }
        };
        futures::future::ready(Ok(session.flatten_stream().boxed())).boxed()
    }
}

fn once<T: Send>(item: T) -> impl Stream<Item = T> + Send + Unpin {
    futures::stream::once(futures::future::ready(item))
}

/// Sends requests and yields the answers to them, until either side ends.
fn exchange<S>(
    requests: S,
    sender: StreamSender,
    receiver: StreamReceiver,
    bulk: Option<Network>,
) -> AppendStream<'static>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + Unpin + 'static,
{
    let complete = Arc::new(AtomicBool::new(false));
    // The sending side yields nothing but the error that ends it.
    let sent = send_all(requests, sender, bulk, Arc::clone(&complete)).into_stream();
    let failures = sent.filter_map(|result| futures::future::ready(result.err().map(Err)));
    let end = async move {
        let expected = complete.load(Ordering::Relaxed);
        (!expected).then(|| Err(unreachable_peer("it ended the stream")))
    };
    let end = end.into_stream().filter_map(futures::future::ready);
    let answers = replies(receiver).chain(end).map(Some).chain(once(None));
    let both = futures::stream::select(answers, failures.map(Some));
    let until_the_end = both.take_while(|item| futures::future::ready(item.is_some()));
    until_the_end.filter_map(futures::future::ready).boxed()
}

/// Sends every request as the follower has room for it, then ends the stream. In bulk it goes
/// slowly, and only as far as entries come from disk.
async fn send_all<S>(
    mut requests: S,
    mut sender: StreamSender,
    bulk: Option<Network>,
    complete: Arc<AtomicBool>,
) -> Result<(), RpcError>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    while let Some(request) = requests.next().await {
        let last = request.entries.last().map(|entry| entry.entry_id().index);
        if last.is_none() {
            // It only says what is committed. Whoever waits for that commit here goes first.
            tokio::task::yield_now().await;
        }
        let payload = codec::encode_append(request).map_err(unreachable_peer)?;
        if let Some(network) = &bulk {
            let bytes: usize = payload.iter().map(Bytes::len).sum();
            network.throttle.pass(bytes as u64).await;
        }
        sender.send(payload).await.map_err(unreachable_peer)?;
        if let Some(network) = &bulk
            && last.is_none_or(|last| !network.is_cold(last.next()))
        {
            break;
        }
    }
    complete.store(true, Ordering::Relaxed);
    Ok(())
}

fn replies(
    receiver: StreamReceiver,
) -> impl Stream<Item = Result<StreamAppendResult<TypeConfig>, RpcError>> {
    receiver.map(|message| {
        let message = message.map_err(unreachable_peer)?;
        codec::decode_append_reply(message).map_err(unreachable_peer)
    })
}

impl NetSnapshot<TypeConfig> for Client {
    type SnapshotData = Box<Descriptor>;

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, Box<Descriptor>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let transfer = self.send_snapshot(vote, snapshot, option.soft_ttl());
        let transfer = std::pin::pin!(transfer);
        match select(std::pin::pin!(cancel), transfer).await {
            Either::Left((closed, _)) => Err(StreamingError::Closed(closed)),
            Either::Right((sent, _)) => sent.map_err(StreamingError::from),
        }
    }
}

impl Client {
    async fn send_snapshot(
        &self,
        vote: RaftVote,
        snapshot: SnapshotOf<TypeConfig, Box<Descriptor>>,
        timeout: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>, RpcError> {
        let last = snapshot.meta.last_log_id;
        let last = last.ok_or_else(|| unreachable_peer("a descriptor of an empty log"))?;
        let message = codec::encode_snapshot(&SnapshotMessage {
            vote,
            last,
            membership: snapshot.meta.last_membership,
            descriptor: snapshot.snapshot.encode().map_err(unreachable_peer)?,
        });
        let (mut sender, mut receiver) = self.open(Lane::Bulk, SNAPSHOT, timeout).await?;
        for mut slice in message {
            while !slice.is_empty() {
                let chunk = slice.split_to(slice.len().min(CHUNK));
                sender.send(vec![chunk]).await.map_err(unreachable_peer)?;
            }
        }
        drop(sender);
        let reply = tokio::time::timeout(timeout, receiver.recv()).await;
        let reply = reply.map_err(unreachable_peer)?.map_err(unreachable_peer)?;
        let reply = reply.ok_or_else(|| unreachable_peer("the answer is missing"))?;
        let vote = codec::decode_snapshot_reply(reply).map_err(unreachable_peer)?;
        Ok(SnapshotResponse::new(vote))
    }
}

/// Gathers a descriptor message that came in pieces.
pub(crate) async fn receive_snapshot(
    receiver: &mut StreamReceiver,
) -> Result<SnapshotMessage, ReceiveError> {
    let mut whole = BytesMut::new();
    loop {
        let piece = tokio::time::timeout(PIECE_PATIENCE, receiver.recv()).await;
        let Some(piece) = piece.map_err(|_| ReceiveError::Silent)?? else {
            break;
        };
        if whole.len() + piece.len() > DESCRIPTOR_MAX {
            return Err(ReceiveError::TooLarge);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(codec::decode_snapshot(whole.freeze())?)
}

/// Why a descriptor did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReceiveError {
    #[error("a descriptor of more than {DESCRIPTOR_MAX} bytes")]
    TooLarge,
    #[error("the rest of a descriptor does not come")]
    Silent,
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Codec(#[from] CodecError),
}
