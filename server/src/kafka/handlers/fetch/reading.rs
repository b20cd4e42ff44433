//! Reading: passes over the partitions of a fetch, until there is enough or the time is over.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use trilog_model::batch::{BatchHeader, Compression};
use trilog_model::{NodeId, Offset, Term};
use trilog_storage::frame::Frame;
use trilog_wire::kafka::{
    AbortedTransaction, EpochEnd, ErrorCode, FetchPartition, FetchedBatch, FetchedPartition,
    StrBytes,
};

use super::bounded;
use crate::cluster::Cluster;
use crate::kafka::errors;
use crate::kafka::fetch_sessions::Part;
use crate::kafka::handlers::metadata::broker_id;
use crate::kafka::hints;
use crate::kafka::session::{Place, Target, check_epoch};
use crate::meter::TopicMeter;
use crate::partition::{Partition, ReadError, Settled};

/// What an aborted transaction takes in an answer, and on the way into it.
const ABORTED_BYTES: usize = 64;
/// The first version whose readers know zstd.
const ZSTD_SINCE: i16 = 10;

/// The first version that tells of leaders.
const HINTS_SINCE: i16 = 16;

/// What a fetch wants beside its partitions.
pub(super) struct Reading {
    pub(super) version: i16,
    pub(super) max_bytes: usize,
    pub(super) min_bytes: usize,
    pub(super) deadline: Instant,
    /// Only what is settled, with what was aborted of it.
    pub(super) committed: bool,
    /// Where the reader is, if it says so.
    pub(super) rack: Option<StrBytes>,
    pub(super) cluster: Cluster,
    pub(super) budget: Arc<Semaphore>,
}

/// What one pass over the partitions gave.
#[derive(Default)]
pub(super) struct Pass {
    /// What its reader has to be told.
    pub(super) partitions: Vec<FetchedPartition>,
    bytes: usize,
    /// It is told at once, however little it is.
    urgent: bool,
    /// Partitions that are there, whether they gave something or not.
    known: usize,
    /// What the records hold until they are sent.
    pub(super) room: Vec<OwnedSemaphorePermit>,
    /// Records and bytes by topic, to be counted if this is what is sent.
    pub(super) sent: Vec<(Arc<TopicMeter>, u64, u64)>,
}

impl Reading {
    pub(super) async fn read<'a>(
        &self,
        parts: impl Iterator<Item = &'a Part<Place>> + Clone,
    ) -> Pass {
        let mut changes = None;
        loop {
            let pass = self.look(parts.clone()).await;
            let enough = pass.bytes >= self.min_bytes || pass.urgent || pass.known == 0;
            if enough || Instant::now() >= self.deadline {
                return pass;
            }
            drop(pass);
            changes = match changes {
                // Watched from before a look, so that nothing is missed between the two.
                None => Some(parts.clone().filter_map(change).collect::<Vec<_>>()),
                Some(changes) => {
                    drop(tokio::time::timeout_at(self.deadline, any(changes)).await);
                    None
                }
            };
        }
    }

    /// Reads from the partitions in their order until there is as much as is wanted.
    async fn look<'a>(&self, parts: impl Iterator<Item = &'a Part<Place>>) -> Pass {
        let mut pass = Pass::default();
        for part in parts {
            let answered = self.look_at(part, &mut pass).await;
            if part.is_news(&answered) {
                pass.partitions.push(answered);
            }
        }
        pass
    }

    async fn look_at(&self, part: &Part<Place>, pass: &mut Pass) -> FetchedPartition {
        let read = match &part.place.target {
            Ok(target) => self.read_one(part, target, pass).await,
            Err(code) => Err(*code),
        };
        let unknown = [
            ErrorCode::UnknownTopicOrPartition,
            ErrorCode::UnknownTopicId,
        ];
        let known = !matches!(read, Err(code) if unknown.contains(&code));
        let answered = read.unwrap_or_else(|code| self.refused(part, code));
        pass.known += usize::from(known);
        // As at a broker, what does not exist holds nobody up and hurries nobody.
        pass.urgent |= known && answered.error_code != 0
            || answered.diverging.is_some()
            || answered.preferred_replica.is_some();
        pass.bytes += answered.bytes();
        answered
    }

    fn refused(&self, part: &Part<Place>, code: ErrorCode) -> FetchedPartition {
        let mut refused =
            FetchedPartition::refused(part.topic.clone(), part.from.index, code.code());
        let moved = [ErrorCode::NotLeaderOrFollower, ErrorCode::FencedLeaderEpoch];
        if let (Ok(target), true) = (&part.place.target, moved.contains(&code))
            && self.version >= HINTS_SINCE
        {
            refused.current_leader = hints::leader(&self.cluster, &target.partition);
        }
        refused
    }

    async fn read_one(
        &self,
        part: &Part<Place>,
        target: &Target,
        pass: &mut Pass,
    ) -> Result<FetchedPartition, ErrorCode> {
        let (from, partition) = (&part.from, &target.partition);
        check_epoch(partition, from.leader_epoch)?;
        let leads = partition.leader().1;
        if !leads && self.rack.is_none() {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        let offset = u64::try_from(from.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
        let preferred = leads.then(|| self.nearer(partition, Offset(offset)));
        let preferred = preferred.flatten();
        if !leads && partition.watch().borrow().offset < Offset(offset) {
            return ahead(part, partition, Offset(offset));
        }
        let diverging = diverging(partition, from);
        // The first batch of an answer comes whatever its size; others only if they fit.
        let left = self.max_bytes.saturating_sub(pass.bytes);
        let bytes = bounded(from.max_bytes, left);
        let nothing = diverging.is_some()
            || preferred.is_some()
            || partition.watch().borrow().offset <= Offset(offset);
        let room = match pass.bytes {
            _ if nothing => None,
            0 => self.room(bytes).await,
            _ if bytes == 0 => None,
            _ => self.room_at_once(bytes),
        };
        let fetched = match room {
            Some(_) => self.read_from(partition, Offset(offset), bytes).await,
            // Only where the log begins and ends.
            None => bounds(partition, Offset(offset)).await,
        };
        let mut settled = fetched.map_err(|error| errors::read(&error))?;
        if pass.bytes > 0 {
            keep_within(&mut settled.fetched.frames, bytes);
        }
        self.refuse_zstd(&settled.fetched.frames)?;
        if let Some(room) = room {
            self.hold(room, &mut settled, pass);
        }
        let fetched = &settled.fetched;
        let frames = &fetched.frames;
        let records = frames
            .iter()
            .map(|frame| u64::from(frame.header.record_count));
        let sizes = frames.iter().map(|frame| frame.records.len() as u64);
        if !frames.is_empty() {
            let meter = Arc::clone(&target.meter);
            pass.sent.push((meter, records.sum(), sizes.sum()));
        }
        let aborted = settled.aborted.iter().map(|one| AbortedTransaction {
            producer_id: one.producer_id,
            first_offset: one.first_offset.get().cast_signed(),
        });
        Ok(FetchedPartition {
            topic: part.topic.clone(),
            index: from.index,
            error_code: 0,
            high_watermark: fetched.high_watermark.get().cast_signed(),
            last_stable_offset: settled.stable.get().cast_signed(),
            log_start: fetched.log_start.get().cast_signed(),
            diverging,
            current_leader: None,
            preferred_replica: preferred.map(|node| broker_id(node).0),
            aborted: self.committed.then(|| aborted.collect()),
            batches: fetched.frames.iter().filter_map(batch).collect(),
        })
    }

    /// Holds the room of what is there until it is sent; what was claimed beyond it goes back at
    /// once. Where there is none for what goes with the records there are none this time.
    fn hold(&self, mut room: OwnedSemaphorePermit, settled: &mut Settled, pass: &mut Pass) {
        if !settled.aborted.is_empty() {
            if let Some(room) = self.room_at_once(settled.aborted.len() * ABORTED_BYTES) {
                pass.room.push(room);
            } else {
                settled.fetched.frames.clear();
                settled.aborted.clear();
            }
        }
        let frames = settled.fetched.frames.iter();
        let used: usize = frames.map(|frame| frame.records.len()).sum();
        drop(room.split(room.num_permits().saturating_sub(used)));
        if used > 0 {
            pass.room.push(room);
        }
    }

    /// A node with a replica in the rack of the reader, if this one is in another: the reader saves
    /// its way, and what it gives is committed all the same.
    fn nearer(&self, partition: &Partition, offset: Offset) -> Option<NodeId> {
        let rack = Some(&**self.rack.as_ref()?);
        let map = self.cluster.map();
        let is_near = |node: NodeId| {
            let node = map.node(node);
            node.is_some_and(|node| node.rack.as_deref() == rack)
        };
        if is_near(self.cluster.node()) {
            return None;
        }
        let place = map.group(partition.group().id())?;
        let mut near = place.voter_nodes().filter(|node| is_near(*node));
        near.find(|node| self.cluster.is_alive(*node) && partition.is_held_by(*node, offset))
    }

    async fn read_from(
        &self,
        partition: &Partition,
        from: Offset,
        bytes: usize,
    ) -> Result<Settled, ReadError> {
        if self.committed {
            return partition.read_stable(from, bytes).await;
        }
        let fetched = partition.read(from, bytes).await?;
        Ok(Settled {
            next: from,
            stable: partition.stable_offset().min(fetched.high_watermark),
            aborted: Vec::new(),
            fetched,
        })
    }

    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
        let waiting = Arc::clone(&self.budget).acquire_many_owned(permits);
        let deadline = self.deadline.max(Instant::now() + Duration::from_secs(1));
        tokio::time::timeout_at(deadline, waiting).await.ok()?.ok()
    }

    /// A fetch that holds something does not wait for more: others might wait for it.
    fn room_at_once(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        Arc::clone(&self.budget)
            .try_acquire_many_owned(permits)
            .ok()
    }

    fn refuse_zstd(&self, frames: &[Frame]) -> Result<(), ErrorCode> {
        let zstd = |frame: &Frame| {
            let header = BatchHeader::parse(&frame.records);
            header.is_ok_and(|header| header.attributes.compression() == Ok(Compression::Zstd))
        };
        if self.version < ZSTD_SINCE && frames.iter().any(zstd) {
            return Err(ErrorCode::UnsupportedCompressionType);
        }
        Ok(())
    }
}

async fn bounds(partition: &Partition, from: Offset) -> Result<Settled, ReadError> {
    let fetched = partition.bounds(from).await?;
    Ok(Settled {
        next: from,
        stable: partition.stable_offset().min(fetched.high_watermark),
        aborted: Vec::new(),
        fetched,
    })
}

/// What a follower says of an offset that is beyond what it knows to be committed: it waits for
/// what it holds already, and the rest its reader has to ask somebody else for.
fn ahead(
    part: &Part<Place>,
    partition: &Partition,
    offset: Offset,
) -> Result<FetchedPartition, ErrorCode> {
    if offset > partition.log_end() {
        return Err(ErrorCode::OffsetNotAvailable);
    }
    let end = partition.watch().borrow().offset;
    let mut empty = FetchedPartition::refused(part.topic.clone(), part.from.index, 0);
    empty.high_watermark = end.get().cast_signed();
    empty.last_stable_offset = partition.stable_offset().get().cast_signed();
    empty.log_start = partition.log_start().get().cast_signed();
    Ok(empty)
}

/// Ends when the partition has more to read, or another leader.
fn change(part: &Part<Place>) -> Option<BoxFuture<'static, ()>> {
    let partition = &part.place.target.as_ref().ok()?.partition;
    let (mut watermark, mut leadership) = (partition.watch(), partition.leadership());
    watermark.mark_unchanged();
    let leads = leadership.borrow().ready;
    let change = async move {
        tokio::select! {
            _ = watermark.changed() => {}
            // A follower reads on, whoever leads.
            _ = leadership.wait_for(|now| now.ready != leads) => {}
        }
    };
    Some(change.boxed())
}

/// Ends when one of them does; never, if there is none.
async fn any(changes: Vec<BoxFuture<'static, ()>>) {
    if changes.is_empty() {
        std::future::pending::<()>().await;
    }
    select_all(changes).await;
}

fn keep_within(frames: &mut Vec<Frame>, bytes: usize) {
    let mut left = bytes;
    let fits = |frame: &Frame| match left.checked_sub(frame.records.len()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    let kept = frames.iter().map_while({
        let mut fits = fits;
        move |frame| fits(frame).then_some(())
    });
    let kept = kept.count();
    frames.truncate(kept);
}

/// Where the reader's log and this one part, if they do: a reader that has records of an epoch
/// beyond where that epoch ended here.
fn diverging(partition: &Partition, from: &FetchPartition) -> Option<EpochEnd> {
    let last = u64::try_from(from.last_epoch).ok()?;
    let (epoch, end) = match partition.epoch_end(Term(last)) {
        Some((term, end)) => (
            i32::try_from(term.get()).unwrap_or(i32::MAX),
            end.get().cast_signed(),
        ),
        None => return None,
    };
    (epoch < from.last_epoch || end < from.offset).then_some(EpochEnd {
        epoch,
        end_offset: end,
    })
}

fn batch(frame: &Frame) -> Option<FetchedBatch> {
    let (prefix, body) = frame.batch_slices()?;
    Some(FetchedBatch { prefix, body })
}
