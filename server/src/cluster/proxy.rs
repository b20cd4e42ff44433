//! Appending from any node: to the partition if this node leads it, else over the peer link to
//! the node that does. For callers that know no leaders; those that do go there themselves.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, Offset, Timestamp};
use trilog_raft::transport::{
    Lane, PeerCall, PeerError, PeerHandler, PeerStream, Refusal, Route, Target,
};

use super::kinds::APPEND;
use super::{Cluster, LookupError};
use crate::partition::{AppendError, Appended, Partitions};

const PATIENCE: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Answers of one byte: why the leader took nothing, though it may later.
const DISK_FULL: u8 = 1;
const BUSY: u8 = 2;

/// Why an append through any node came to nothing, or to nothing known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error("the leading node refused: {0}")]
    Refused(String),
}

impl Cluster {
    /// Appends one batch to a partition, wherever it is led.
    pub async fn append(
        &self,
        topic: &str,
        index: u32,
        batch: Bytes,
    ) -> Result<Appended, ProxyError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tried = match self.partition(topic, index) {
                Ok(partition) => partition.append(batch.clone()).await,
                Err(LookupError::Elsewhere { leader }) => Err(AppendError::NotLeader { leader }),
                Err(error) => return Err(error.into()),
            };
            let leader = match tried {
                Err(AppendError::NotLeader { leader }) => leader,
                outcome => return Ok(outcome?),
            };
            if let Some(node) = leader.filter(|node| *node != self.node()) {
                let group = self.place(topic, index)?.group;
                match self.forward(node, group, batch.clone()).await {
                    Some(outcome) => return outcome,
                    None if Instant::now() >= deadline => {
                        return Err(AppendError::NotLeader { leader }.into());
                    }
                    None => {}
                }
            } else if Instant::now() >= deadline {
                return Err(AppendError::NotLeader { leader }.into());
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// `None` if surely nothing was appended and another try is due.
    async fn forward(
        &self,
        node: NodeId,
        group: GroupId,
        batch: Bytes,
    ) -> Option<Result<Appended, ProxyError>> {
        let mut head = BytesMut::with_capacity(8);
        head.put_u64(group.get());
        let target = Target {
            node,
            lane: Lane::Live,
            kind: APPEND,
            route: Route::default(),
        };
        let transport = self.controller().transport();
        match transport
            .call(target, vec![head.freeze(), batch], PATIENCE)
            .await
        {
            Ok(answer) => Some(read_answer(answer).map_err(ProxyError::from)),
            Err(PeerError::Refused(Refusal::Failed(text))) => Some(Err(ProxyError::Refused(text))),
            Err(PeerError::Unreachable { .. } | PeerError::Refused(_)) => None,
            Err(_) => Some(Err(AppendError::Unknown.into())),
        }
    }
}

fn read_answer(answer: Bytes) -> Result<Appended, AppendError> {
    match answer.as_ref() {
        [DISK_FULL] => Err(AppendError::DiskFull),
        [BUSY] => Err(AppendError::Busy("the leading node is overloaded")),
        _ => read_appended(answer).ok_or(AppendError::Unknown),
    }
}

fn read_appended(mut answer: Bytes) -> Option<Appended> {
    if answer.len() != 17 {
        return None;
    }
    Some(Appended {
        base_offset: Offset(answer.get_u64()),
        append_time: Timestamp(answer.get_u64()),
        duplicate: answer.get_u8() != 0,
        // Nobody who comes this way asks.
        stamped: None,
    })
}

/// Appends for other nodes.
#[derive(Clone, Debug)]
pub(super) struct AppendService {
    partitions: Partitions,
}

impl AppendService {
    pub(super) fn new(partitions: Partitions) -> Self {
        Self { partitions }
    }
}

impl PeerHandler for AppendService {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let partitions = self.partitions.clone();
        async move {
            let mut payload = call.payload;
            if payload.len() < 8 {
                return Err(Refusal::Failed("the append names no group".to_owned()));
            }
            let group = GroupId(payload.get_u64());
            let partition = partitions.get(group).ok_or(Refusal::UnknownGroup)?;
            // A task of its own: an append goes on when the call is given up.
            let append = tokio::spawn(async move { partition.append(payload).await });
            match append.await {
                Ok(Ok(appended)) => {
                    let mut answer = BytesMut::with_capacity(17);
                    answer.put_u64(appended.base_offset.get());
                    answer.put_u64(appended.append_time.nanos());
                    answer.put_u8(appended.duplicate.into());
                    Ok(vec![answer.freeze()])
                }
                Ok(Err(AppendError::NotLeader { .. } | AppendError::Closed)) => Err(Refusal::Busy),
                Ok(Err(AppendError::DiskFull)) => Ok(vec![Bytes::from_static(&[DISK_FULL])]),
                Ok(Err(AppendError::Busy(_))) => Ok(vec![Bytes::from_static(&[BUSY])]),
                // No answer is the honest one: the caller then counts it as unknown.
                Ok(Err(AppendError::Unknown)) | Err(_) => std::future::pending().await,
                Ok(Err(error)) => Err(Refusal::Failed(error.to_string())),
            }
        }
        .boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        stream.refuse(&Refusal::Unserved);
    }
}
