//! Copies of log data between replicas, on the bulk lane: what a log lacks comes from another
//! replica as a stretch of frames.
//!
//! ```text
//! request  version u8, first u8: index u64, end index u64
//! answers  1, bytes so far u64, CRC-32C so far u32, whole frames     as often as it takes
//!          2, bytes u64, CRC-32C u32                                 that was all
//!          3                                                         nothing of it is here
//! ```
//!
//! A call asks what a replica holds: `whole u8, end index u64, reluctance u8, clean up to offset u64,
//! arrivals u64, cleaning rules u32`, the end being that of what is both committed and durable
//! there; a version before the reluctance, or before compaction, ends there. One that cleans by
//! other rules cannot say how clean its log is by ours.
//!
//! The sender reads, and so verifies, each frame before it sends it; the receiver verifies it
//! again, with its place in the chain, and the sums so far. A copy has the room of one stream:
//! a receiver that is slow to write holds its sender. Both sides keep to the node's rate, so that
//! copies leave the disk and the links to those who wait for an answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};
use trilog_model::{LogIndex, NodeId, Offset, ReplicaId};
use trilog_storage::log::{CLEAN_RULES, Cleanness, CopyError, CopySum, Gap, GroupLog, ReadError};

use super::catch_up::Throttle;
use super::network::{COPY, WHOLE};
use crate::codec::{CodecError, Reader};
use crate::transport::{
    Kind, Lane, PeerError, PeerStream, Refusal, Route, StreamReceiver, StreamSender, Target,
    Transport,
};

const VERSION: u8 = 1;
/// Bytes of frames in one message; a frame that is larger travels alone.
const PIECE: usize = 256 << 10;
/// Copies a node sends at the same time; more wait.
const SERVED: usize = 4;
/// Descriptors a node takes in at the same time, each in memory until it is installed.
const INSTALLED: usize = 2;
/// How long a receiver waits for the next message, or a sender for its request.
const SILENCE: Duration = Duration::from_secs(20);
/// How long the answer to a small question may take.
const PATIENCE: Duration = Duration::from_secs(2);

const FRAMES: u8 = 1;
const ALL: u8 = 2;
const NOTHING: u8 = 3;

/// How long a node that gave no answer is not asked again by those who ask about many groups.
const RESPITE: Duration = Duration::from_secs(10);

/// What all copies of a node share; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    /// Until when nodes are not asked that gave no answer.
    silent: Arc<Mutex<BTreeMap<NodeId, Instant>>>,
    transport: Transport,
    throttle: Arc<Throttle>,
    served: Arc<Semaphore>,
    installed: Arc<Semaphore>,
}

/// Why a replica did not give what was asked of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("it has nothing of that")]
    Nothing,
    #[error("it is silent")]
    Silent,
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Copy(#[from] CopyError),
}

impl Copies {
    /// Copies both to and from this node pass the throttle.
    pub(crate) fn new(transport: Transport, throttle: Arc<Throttle>) -> Self {
        Self {
            silent: Arc::default(),
            transport,
            throttle,
            served: Arc::new(Semaphore::new(SERVED)),
            installed: Arc::new(Semaphore::new(INSTALLED)),
        }
    }

    /// Waits for the turn of a descriptor that a peer has begun to send; until then it is held by
    /// the room of its stream.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.installed.acquire().await.ok()
    }

    /// Has another replica send what `log` lacks, and takes it in; durable on return.
    pub(crate) async fn fetch(
        &self,
        log: &GroupLog,
        from: ReplicaId,
        gap: Gap,
    ) -> Result<(), FetchError> {
        let target = target(log, from, Lane::Bulk, COPY);
        let (mut sender, mut receiver) = self.transport.open_stream(target, PATIENCE).await?;
        sender.send(vec![encode_request(gap)]).await?;
        let mut incoming = None;
        loop {
            let message = timeout(SILENCE, receiver.recv()).await;
            let message = message.map_err(|_| FetchError::Silent)??;
            let message = message.ok_or(FetchError::Nothing)?;
            match Answer::decode(message)? {
                Answer::Frames { sum, frames } => {
                    self.throttle.pass(frames.len() as u64).await;
                    let copy = match &mut incoming {
                        Some(copy) => copy,
                        none @ None => none.insert(log.receive(gap).await?),
                    };
                    copy.push(frames).await?;
                    copy.compare(sum)?;
                }
                Answer::All(sum) => {
                    let copy = incoming.take().ok_or(FetchError::Nothing)?;
                    return Ok(copy.finish(sum).await?);
                }
                Answer::Nothing => return Err(FetchError::Nothing),
            }
        }
    }

    /// Whether another replica of `log`'s group holds everything that lies between the data start
    /// and X; `None` if it cannot say, being of a version that does not know the question.
    pub(crate) async fn is_whole(
        &self,
        log: &GroupLog,
        replica: ReplicaId,
    ) -> Result<Option<bool>, FetchError> {
        let held = self.holding(log, replica).await?;
        // A log that has nothing yet lacks nothing it knows of.
        let start = log.state().log_start;
        let begun = |end: LogIndex| start.as_ref().is_none_or(|start| start.purged.index < end);
        Ok(held.map(|held| held.whole && begun(held.end)))
    }

    /// What another replica of `log`'s group holds; `None` as above.
    pub(crate) async fn holding(
        &self,
        log: &GroupLog,
        replica: ReplicaId,
    ) -> Result<Option<Holding>, FetchError> {
        let target = target(log, replica, Lane::Control, WHOLE);
        let answer = match self.transport.call(target, Vec::new(), PATIENCE).await {
            Err(PeerError::Refused(Refusal::Unserved)) => return Ok(None),
            answer => answer?,
        };
        Holding::decode(answer).map(Some).map_err(FetchError::from)
    }

    /// As [`Copies::holding`], but a node that was silent a moment ago is not waited for again:
    /// who asks for each of a thousand groups would wait a thousand times.
    pub(crate) async fn holding_if_heard(
        &self,
        log: &GroupLog,
        replica: ReplicaId,
    ) -> Result<Option<Holding>, FetchError> {
        let node = replica.node();
        let until = self.silent.lock().get(&node).copied();
        if until.is_some_and(|until| Instant::now() < until) {
            return Err(FetchError::Silent);
        }
        let held = self.holding(log, replica).await;
        let mut silent = self.silent.lock();
        if matches!(held, Err(FetchError::Peer(PeerError::Timeout))) {
            silent.insert(node, Instant::now() + RESPITE);
        } else {
            silent.remove(&node);
        }
        drop(silent);
        held
    }

    /// Sends a peer what it lacks of `log`, as far as it is here.
    pub(crate) async fn serve(&self, log: &GroupLog, stream: PeerStream) {
        let PeerStream {
            mut sender,
            mut receiver,
            ..
        } = stream;
        let request = match Self::request(&mut receiver).await {
            Ok(request) => request,
            Err(refusal) => return receiver.refuse(&refusal),
        };
        // Held for as long as the copy is sent.
        let Ok(_slot) = self.served.acquire().await else {
            return;
        };
        if let Err(error) = self.send(log, request, &mut sender).await {
            tracing::info!(group = %log.group(), %error, "a copy to a peer ends early");
            receiver.refuse(&Refusal::Failed(error.to_string()));
        }
    }

    async fn request(receiver: &mut StreamReceiver) -> Result<Gap, Refusal> {
        let failed = |error: &dyn std::fmt::Display| Refusal::Failed(error.to_string());
        let message = timeout(SILENCE, receiver.recv()).await;
        let message = message.map_err(|_| Refusal::Failed("no request came".to_owned()))?;
        let message = message.map_err(|error| failed(&error))?;
        decode_request(message.unwrap_or_default()).map_err(|error| failed(&error))
    }

    async fn send(
        &self,
        log: &GroupLog,
        gap: Gap,
        sender: &mut StreamSender,
    ) -> Result<(), SendError> {
        let held = log.stretch_before(gap.end);
        let Some(mut next) = held.map(|begin| gap.first.unwrap_or(begin)) else {
            return Ok(sender.send(vec![Bytes::from_static(&[NOTHING])]).await?);
        };
        let mut sum = CopySum::default();
        while next < gap.end {
            let frames = match log.read(next, gap.end, PIECE).await {
                // What is damaged here has to come from a third.
                Err(ReadError::BelowStart { .. } | ReadError::Damaged { .. }) => {
                    return Ok(sender.send(vec![Bytes::from_static(&[NOTHING])]).await?);
                }
                frames => frames?,
            };
            let Some(last) = frames.last() else {
                return Ok(sender.send(vec![Bytes::from_static(&[NOTHING])]).await?);
            };
            next = last.header.next_index();
            let mut slices = vec![Bytes::new()];
            for frame in &frames {
                frame.push_slices(&mut slices);
            }
            for slice in &slices {
                sum.add(slice);
            }
            slices[0] = encode_sum(FRAMES, sum);
            let len: usize = slices.iter().map(Bytes::len).sum();
            self.throttle.pass(len as u64).await;
            // A receiver that takes nothing must not keep others waiting.
            let sent = timeout(SILENCE, sender.send(slices)).await;
            sent.map_err(|_| SendError::Stuck)??;
        }
        Ok(sender.send(vec![encode_sum(ALL, sum)]).await?)
    }
}

fn target(log: &GroupLog, to: ReplicaId, lane: Lane, kind: Kind) -> Target {
    Target {
        node: to.node(),
        lane,
        kind,
        route: Route {
            group: log.group(),
            from: log.replica(),
            to,
        },
    }
}

/// Why a copy to a peer ended.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("it takes nothing")]
    Stuck,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Peer(#[from] PeerError),
}

/// What a replica holds of its group's data, whatever happens to its node next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Nothing is lacking, or damaged, from the data start on.
    pub(crate) whole: bool,
    /// The end of what is both committed and durable.
    pub(crate) end: LogIndex,
    pub(crate) reluctance: Reluctance,
    /// How clean its log is; `None` from a version that does not know.
    pub(crate) cleanness: Option<Cleanness>,
}

/// Whether a replica would take leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reluctance {
    Willing,
    /// Its node has no room on its disk: somebody else should.
    Full,
    /// It refuses.
    Abstains,
}

impl Reluctance {
    fn to_wire(self) -> u8 {
        match self {
            Self::Willing => 0,
            Self::Full => 1,
            Self::Abstains => 2,
        }
    }

    /// What a later version may say counts as no.
    fn from_wire(byte: u8) -> Self {
        match byte {
            0 => Self::Willing,
            1 => Self::Full,
            _ => Self::Abstains,
        }
    }
}

impl Holding {
    pub(crate) fn of(log: &GroupLog, reluctance: Reluctance) -> Self {
        let state = log.state();
        let last = state.committed.min(state.durable);
        Self {
            whole: log.is_whole(),
            end: last.map_or(LogIndex(0), LogIndex::next),
            reluctance,
            cleanness: Some(log.cleanness()),
        }
    }

    pub(crate) fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(30);
        out.put_u8(u8::from(self.whole));
        out.put_u64_le(self.end.get());
        out.put_u8(self.reluctance.to_wire());
        if let Some(cleanness) = self.cleanness {
            out.put_u64_le(cleanness.clean.get());
            out.put_u64_le(cleanness.arrivals);
            out.put_u32_le(CLEAN_RULES);
        }
        out.freeze()
    }

    fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let whole = reader.flag("wholeness of a log")?;
        let end = LogIndex(reader.u64()?);
        let reluctance = match reader.u8() {
            Ok(byte) => Reluctance::from_wire(byte),
            Err(_) => Reluctance::Willing,
        };
        let cleanness = match (reader.u64(), reader.u64(), reader.u32()) {
            (Ok(clean), Ok(arrivals), Ok(CLEAN_RULES)) => Some(Cleanness {
                clean: Offset(clean),
                arrivals,
            }),
            _ => None,
        };
        Ok(Self {
            whole,
            end,
            reluctance,
            cleanness,
        })
    }
}

fn encode_request(gap: Gap) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(VERSION);
    out.put_u8(u8::from(gap.first.is_some()));
    if let Some(first) = gap.first {
        out.put_u64_le(first.get());
    }
    out.put_u64_le(gap.end.get());
    out.freeze()
}

fn decode_request(bytes: Bytes) -> Result<Gap, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let first = reader.flag("presence of a first entry")?;
    let first = first.then(|| reader.u64()).transpose()?;
    let end = reader.u64()?;
    reader.finish()?;
    Ok(Gap {
        first: first.map(LogIndex),
        end: LogIndex(end),
    })
}

fn encode_sum(what: u8, sum: CopySum) -> Bytes {
    let mut out = BytesMut::with_capacity(13);
    out.put_u8(what);
    out.put_u64_le(sum.bytes);
    out.put_u32_le(sum.crc);
    out.freeze()
}

/// One message of a sender.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Frames { sum: CopySum, frames: Bytes },
    All(CopySum),
    Nothing,
}

impl Answer {
    fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::new(bytes);
        let what = reader.u8()?;
        let sum = |reader: &mut Reader| -> Result<CopySum, CodecError> {
            Ok(CopySum {
                bytes: reader.u64()?,
                crc: reader.u32()?,
            })
        };
        match what {
            FRAMES => Ok(Self::Frames {
                sum: sum(&mut reader)?,
                frames: std::mem::take(reader.rest()),
            }),
            ALL => {
                let sum = sum(&mut reader)?;
                reader.finish()?;
                Ok(Self::All(sum))
            }
            NOTHING => reader.finish().map(|()| Self::Nothing),
            value => Err(CodecError::Value {
                what: "kind of a copy's message",
                value: value.into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
