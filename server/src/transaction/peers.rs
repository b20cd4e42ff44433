//! What nodes ask one another about transactions: markers for the partitions that a node leads,
//! and whether a partition is in a transaction.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use prost::Message;
use trilog_model::{GroupId, NodeId};
use trilog_raft::transport::{Lane, PeerCall, PeerHandler, PeerStream, Refusal, Route, Target};

use super::finish::Marked;
use super::{Coordinator, Identity, Shown, TransactionError, VerifyRequest};
use crate::cluster::Cluster;
use crate::cluster::kinds::{MARK, VERIFY};
use crate::view::Marker;

/// How long the other node may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Eq, Message)]
struct MarkCall {
    #[prost(uint64, tag = "1")]
    group: u64,
    #[prost(message, required, tag = "2")]
    marker: Marker,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct VerifyCall {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(sint64, tag = "2")]
    producer_id: i64,
    #[prost(int32, tag = "3")]
    epoch: i32,
    #[prost(uint64, repeated, tag = "4")]
    partitions: Vec<u64>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct VerifyAnswer {
    /// A code of [`CODES`]; zero is none.
    #[prost(uint32, tag = "1")]
    refused: u32,
    #[prost(uint64, tag = "2")]
    transaction: u64,
    #[prost(bool, repeated, tag = "3")]
    within: Vec<bool>,
}

/// Refusals that say something for good; all else is to be asked again. Codes are never reused.
const CODES: [(u32, TransactionError); 4] = [
    (1, TransactionError::UnknownProducer),
    (2, TransactionError::Fenced),
    (3, TransactionError::InvalidId),
    (4, TransactionError::Concurrent),
];
const ASK_AGAIN: u32 = 100;

/// Answers other nodes.
pub fn serve(coordinator: &Coordinator) {
    let transport = coordinator.inner.cluster.controller().transport();
    let service = Service(coordinator.clone());
    for kind in [MARK, VERIFY] {
        let handler = Arc::new(service.clone());
        transport.register(kind.0..kind.0 + 1, handler);
    }
}

async fn call(
    cluster: &Cluster,
    node: NodeId,
    kind: trilog_raft::transport::Kind,
    call: Bytes,
) -> Option<Bytes> {
    let target = Target {
        node,
        lane: Lane::Live,
        kind,
        route: Route::default(),
    };
    let transport = cluster.controller().transport();
    transport.call(target, vec![call], PATIENCE).await.ok()
}

/// Has another node write a marker to a partition that it leads.
pub(super) async fn mark(
    cluster: &Cluster,
    node: NodeId,
    group: GroupId,
    marker: Marker,
) -> Marked {
    let message = MarkCall {
        group: group.get(),
        marker,
    };
    match call(cluster, node, MARK, message.encode_to_vec().into())
        .await
        .as_deref()
    {
        Some([1]) => Marked::Done,
        Some([2]) => Marked::Stale,
        Some(_) | None => Marked::Again,
    }
}

/// Asks another node about a transaction that it coordinates.
pub(super) async fn verify(
    cluster: &Cluster,
    node: NodeId,
    request: &VerifyRequest,
) -> Result<Shown, TransactionError> {
    let message = VerifyCall {
        id: request.id.clone(),
        producer_id: request.producer.producer_id,
        epoch: i32::from(request.producer.epoch),
        partitions: request.partitions.iter().map(|one| one.get()).collect(),
    };
    let again = TransactionError::NotCoordinator { node: None };
    let answer = call(cluster, node, VERIFY, message.encode_to_vec().into()).await;
    let answer = answer.ok_or_else(|| again.clone())?;
    let answer = VerifyAnswer::decode(answer).map_err(|_| again.clone())?;
    if answer.refused != 0 {
        let known = CODES.into_iter().find(|(code, _)| *code == answer.refused);
        return Err(known.map_or(again, |(_, error)| error));
    }
    if answer.within.len() != request.partitions.len() {
        return Err(again);
    }
    Ok(Shown {
        transaction: answer.transaction,
        within: answer.within,
    })
}

/// Answers the calls of other nodes.
#[derive(Clone, Debug)]
struct Service(Coordinator);

impl Service {
    async fn mark(&self, call: Bytes) -> Result<Bytes, Refusal> {
        let call = MarkCall::decode(call).map_err(|_| unreadable())?;
        let coordinator = self.0.clone();
        // A task of its own: what is being appended goes on when the call is given up.
        let marking = tokio::spawn(async move {
            coordinator
                .mark_here(GroupId(call.group), call.marker)
                .await
        });
        let answer: &'static [u8] = match marking.await {
            Ok(Marked::Done) => &[1],
            Ok(Marked::Stale) => &[2],
            Ok(Marked::Again) | Err(_) => &[3],
        };
        Ok(Bytes::from_static(answer))
    }

    async fn verify(&self, call: Bytes) -> Result<Bytes, Refusal> {
        let call = VerifyCall::decode(call).map_err(|_| unreadable())?;
        let request = VerifyRequest {
            id: call.id,
            producer: Identity {
                producer_id: call.producer_id,
                epoch: i16::try_from(call.epoch).map_err(|_| unreadable())?,
            },
            partitions: call.partitions.into_iter().map(GroupId).collect(),
        };
        let answer = match self.0.verify_here(&request).await {
            Ok(shown) => VerifyAnswer {
                refused: 0,
                transaction: shown.transaction,
                within: shown.within,
            },
            Err(error) => {
                let code = CODES.into_iter().find(|(_, known)| *known == error);
                VerifyAnswer {
                    refused: code.map_or(ASK_AGAIN, |(code, _)| code),
                    ..VerifyAnswer::default()
                }
            }
        };
        Ok(answer.encode_to_vec().into())
    }
}

fn unreadable() -> Refusal {
    Refusal::Failed("the call about a transaction cannot be read".to_owned())
}

impl PeerHandler for Service {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let this = self.clone();
        async move {
            let answer = if call.kind == MARK {
                this.mark(call.payload).await
            } else {
                this.verify(call.payload).await
            };
            answer.map(|answer| vec![answer])
        }
        .boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        stream.refuse(&Refusal::Unserved);
    }
}
