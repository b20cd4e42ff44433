//! The receiving side of a group: hands what peers send to openraft and answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use openraft::Raft;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use trilog_model::ReplicaId;
use trilog_storage::log::{Claim, GroupLog, Share};

use super::Replica;
use super::descriptor::Descriptor;
use super::network::{BEAT, PRE_VOTE, TRANSFER, VOTE, receive_snapshot};
use super::state_machine::StateMachine;
use crate::codec;
use crate::transport::{Lease, PeerCall, PeerStream, Refusal, StreamReceiver};
use crate::types::{Entry, TypeConfig, log_id, raft_vote};

pub(crate) type GroupRaft = Raft<TypeConfig, StateMachine>;

/// Answers one call.
pub(crate) async fn call(replica: &Replica, call: PeerCall) -> Result<Vec<Bytes>, Refusal> {
    let raft = &replica.raft;
    let PeerCall {
        kind,
        route,
        payload,
        ..
    } = call;
    let reply = match kind {
        VOTE | PRE_VOTE => {
            let request = codec::decode_vote(payload).map_err(failed)?;
            let reply = vote(replica, kind == PRE_VOTE, route.from, request).await?;
            codec::encode_vote_reply(&reply)
        }
        BEAT => {
            let request = codec::decode_append(payload).map_err(failed)?;
            let previous = request.prev_log_id;
            let reply = raft.append_entries(request).await.map_err(failed)?;
            replica.take_note(!matches!(reply, AppendEntriesResponse::HigherVote(_)));
            codec::encode_append_reply(&reply.into_stream_result(previous, previous))
        }
        TRANSFER => {
            let request = codec::decode_transfer(payload).map_err(failed)?;
            replica.rise();
            let reply = raft.handle_transfer_leader(request).await;
            codec::encode_transfer_reply(&reply.map_err(failed)?)
        }
        _ => return Err(Refusal::Unserved),
    };
    Ok(vec![reply])
}

/// Judges a candidate. While this replica rests, it refuses it as it would under the lease of the
/// leader that is vouched for; so it does while the leader is excused.
async fn vote(
    replica: &Replica,
    pre: bool,
    candidate: ReplicaId,
    request: VoteRequest<TypeConfig>,
) -> Result<VoteResponse<TypeConfig>, Refusal> {
    let shields = || replica.shields_leader(candidate) || replica.heard.excuses_leader(candidate);
    if !request.leadership_transfer && shields() {
        let state = replica.log.state();
        if let Some(vote) = state.vote.as_ref().map(raft_vote) {
            return Ok(VoteResponse::new(vote, state.last.map(log_id), false));
        }
    }
    let reply = if pre {
        replica.raft.pre_vote(request).await
    } else {
        replica.raft.vote(request).await
    };
    replica.take_note(false);
    reply.map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

/// How long a request with entries waits for memory before its stream ends. The leader then
/// backs off, and meanwhile may purge what the stream was holding and send a descriptor instead.
const ROOM_PATIENCE: Duration = Duration::from_millis(500);

/// A descriptor that may be in memory beside those whose turn it is.
const SMALL_DESCRIPTOR: usize = 1 << 20;

/// What requests hold that openraft has taken and not answered yet, oldest first: the leader's
/// credit, and memory here.
type Leases = Arc<Mutex<VecDeque<(Lease, Option<Claim>)>>>;

/// Serves a stream of appends until either side ends it. A request counts against the leader's
/// credit until it is answered, which is when its entries are durable here. One for whose entries
/// there is no memory is not taken, nor any after it, until there is: the credit then runs out
/// and the leader waits. Votes and heartbeats come another way, and with them what is committed
/// and may leave memory.
///
/// `stop` ends the requests too: openraft reads them in a task of its own, which would otherwise
/// wait for the leader.
pub(crate) async fn appends(replica: &Replica, stream: PeerStream, stop: CancellationToken) {
    let PeerStream {
        mut sender,
        receiver,
        ..
    } = stream;
    let leases = Leases::default();
    let requests = Requests {
        receiver,
        log: replica.log.clone(),
        leases: Arc::clone(&leases),
        stop: stop.clone(),
    };
    let requests = requests.into_stream();
    let _stop_at_return = stop.drop_guard();
    let mut replies = std::pin::pin!(replica.raft.stream_append(requests));
    while let Some(reply) = replies.next().await {
        drop(leases.lock().pop_front());
        // A replica that stopped has nothing to say: the stream just ends.
        let Ok(reply) = reply else { return };
        replica.take_note(!matches!(reply, Err(StreamAppendError::HigherVote(_))));
        let bytes = codec::encode_append_reply(&reply);
        if sender.send(vec![bytes]).await.is_err() {
            return;
        }
    }
}

/// The requests of one stream, on their way to openraft.
struct Requests {
    receiver: StreamReceiver,
    log: GroupLog,
    leases: Leases,
    stop: CancellationToken,
}

impl Requests {
    fn into_stream(
        self,
    ) -> impl futures::Stream<Item = AppendEntriesRequest<TypeConfig>> + Send + 'static {
        futures::stream::unfold(self, |mut this| async move {
            match this.next().await {
                Ok(request) => Some((request?, this)),
                Err(refusal) => {
                    this.receiver.refuse(&refusal);
                    None
                }
            }
        })
    }

    /// The next request, once there is room for it; none after the last.
    async fn next(&mut self) -> Result<Option<AppendEntriesRequest<TypeConfig>>, Refusal> {
        let stop = self.stop.clone();
        let received = stop.run_until_cancelled(self.receiver.recv_leased()).await;
        // A stream that failed just ends: its leader knows.
        let Some(Ok(Some((message, lease)))) = received else {
            return Ok(None);
        };
        let request = codec::decode_append(message).map_err(|error| {
            tracing::warn!(%error, "an append that is not one; the stream ends");
            failed(error)
        })?;
        let room = stop.run_until_cancelled(self.room(&request)).await;
        let Some(room) = room else { return Ok(None) };
        self.leases.lock().push_back((lease, room?));
        Ok(Some(request))
    }

    async fn room(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> Result<Option<Claim>, Refusal> {
        let entries = request.entries.iter().map(Entry::stored_bytes);
        let (bytes, records) = entries.fold((0, false), |(bytes, records), entry| {
            (bytes + entry.0, records || entry.1)
        });
        if bytes == 0 {
            return Ok(None);
        }
        let share = if records {
            Share::Common
        } else {
            Share::Reserved
        };
        let claim = tokio::time::timeout(ROOM_PATIENCE, self.log.claim(bytes, share)).await;
        claim.map(Some).map_err(|_| Refusal::Busy)
    }
}

/// Takes a log-start descriptor.
pub(crate) async fn snapshot(replica: &Replica, stream: PeerStream) {
    let PeerStream {
        mut sender,
        mut receiver,
        ..
    } = stream;
    let turn = replica.copies.turn().await;
    let message = match receive_snapshot(&mut receiver).await {
        Ok(message) => message,
        Err(error) => return receiver.refuse(&failed(error)),
    };
    // A small one holds up no other, however long its own log takes to make room for it.
    let _turn = turn.filter(|_| message.descriptor.len() > SMALL_DESCRIPTOR);
    let snapshot = match Descriptor::decode(message.descriptor) {
        Ok(descriptor) => SnapshotOf::<TypeConfig, Box<Descriptor>> {
            meta: SnapshotMetaOf::<TypeConfig> {
                last_log_id: Some(message.last),
                last_membership: message.membership,
            },
            snapshot: Box::new(descriptor),
        },
        Err(error) => return receiver.refuse(&failed(error)),
    };
    let installed = replica.raft.install_full_snapshot(message.vote, snapshot);
    match installed.await {
        Ok(reply) => {
            replica.take_note(reply.vote == message.vote);
            let bytes = codec::encode_snapshot_reply(&reply.vote);
            // The leader asks again if this answer is lost.
            let _ = sender.send(vec![bytes]).await;
        }
        Err(error) => receiver.refuse(&failed(error)),
    }
}
