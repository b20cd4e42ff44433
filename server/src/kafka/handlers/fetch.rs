//! Fetch: what is committed from an offset on, or a wait until there is enough of it.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, select_all};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use trilog_model::batch::{BatchHeader, Compression};
use trilog_model::{Offset, Term};
use trilog_storage::frame::Frame;
use trilog_wire::kafka::{
    AbortedTransaction, EpochEnd, ErrorCode, FetchPartition, FetchRequest, FetchedBatch,
    FetchedPartition, FetchedTopic, Request, StrBytes, fetch_answer,
};

use super::Begun;
use crate::kafka::conn::Outcome;
use crate::kafka::errors;
use crate::kafka::session::{Session, Target, check_epoch};
use crate::meter::TopicMeter;
use crate::partition::{Partition, ReadError, Settled};

/// The most records of one answer, in bytes, unless a single batch is larger.
const MAX_BYTES: usize = 55 << 20;
const MAX_WAIT: Duration = Duration::from_mins(5);
/// The first version whose readers know zstd.
const ZSTD_SINCE: i16 = 10;
/// The isolation level of readers of transactions that are over.
const READ_COMMITTED: i8 = 1;

/// A fetch with its partitions looked up.
struct Fetch {
    request: Request,
    /// What the request itself holds while it waits.
    _waiting: Option<OwnedSemaphorePermit>,
    max_bytes: usize,
    min_bytes: usize,
    deadline: Instant,
    /// Only what is settled, with what was aborted of it.
    committed: bool,
    topics: Vec<(StrBytes, Vec<Wanted>)>,
    budget: Arc<Semaphore>,
}

/// One partition that is read from, or why it is not.
struct Wanted {
    from: FetchPartition,
    target: Result<Target, ErrorCode>,
}

/// What one pass over the partitions gave.
struct Pass {
    topics: Vec<FetchedTopic>,
    bytes: usize,
    failed: bool,
    /// What the records hold until they are sent.
    room: Vec<OwnedSemaphorePermit>,
    /// Records and bytes by topic, to be counted if this is what is sent.
    sent: Vec<(TopicMeter, u64, u64)>,
}

pub(super) fn begin(session: &mut Session, request: Request) -> Begun {
    let fetch = match FetchRequest::decode(&request) {
        Ok(fetch) => fetch,
        Err(error) => return Begun::Done(Outcome::Close(error.into())),
    };
    if let Some(code) = session_error(&fetch) {
        let answer = fetch_answer(&request, code.code(), Vec::new());
        return Begun::Done(Outcome::Answer(answer));
    }
    let mut topics = Vec::with_capacity(fetch.topics.len());
    for topic in fetch.topics {
        let wanted = topic.partitions.into_iter().map(|from| Wanted {
            target: session.led(&topic.name, from.index),
            from,
        });
        let wanted = wanted.collect();
        topics.push((topic.name, wanted));
    }
    let budget = Arc::clone(&session.kafka.inner.fetched);
    let waiting = u32::try_from(request.body.len()).unwrap_or(u32::MAX);
    let fetches = Arc::clone(&session.kafka.inner.fetches);
    let waiting = fetches.try_acquire_many_owned(waiting).ok();
    let wait = match &waiting {
        Some(_) => u64::try_from(fetch.max_wait_ms).unwrap_or(0),
        // There is no room for it to stay.
        None => 0,
    };
    let fetch = Fetch {
        request,
        _waiting: waiting,
        max_bytes: bounded(fetch.max_bytes, MAX_BYTES),
        min_bytes: bounded(fetch.min_bytes, MAX_BYTES),
        deadline: Instant::now() + Duration::from_millis(wait).min(MAX_WAIT),
        committed: fetch.isolation_level == READ_COMMITTED,
        topics,
        budget,
    };
    Begun::Later(fetch.answer().boxed())
}

/// There are no sessions: a client that asks for a new one, or for none, gets a full answer
/// without one; any other session is one that this node does not know.
fn session_error(fetch: &FetchRequest) -> Option<ErrorCode> {
    match (fetch.session_id, fetch.session_epoch) {
        (0, -1 | 0) => None,
        (0, _) => Some(ErrorCode::InvalidFetchSessionEpoch),
        (_, -1) => None,
        _ => Some(ErrorCode::FetchSessionIdNotFound),
    }
}

fn bounded(asked: i32, most: usize) -> usize {
    usize::try_from(asked).unwrap_or(0).min(most)
}

impl Fetch {
    async fn answer(self) -> Outcome {
        let pass = loop {
            // Watched from before the look, so that nothing is missed between the two.
            let changes = self.changes();
            let pass = self.look().await;
            let enough = pass.bytes >= self.min_bytes.max(1) || pass.failed;
            if enough || Instant::now() >= self.deadline {
                break pass;
            }
            drop(pass);
            let any = async {
                if changes.is_empty() {
                    std::future::pending::<()>().await;
                }
                select_all(changes).await;
            };
            drop(tokio::time::timeout_at(self.deadline, any).await);
        };
        for (meter, records, bytes) in pass.sent {
            meter.left(records, bytes);
        }
        let answer = fetch_answer(&self.request, 0, pass.topics);
        Outcome::Records(answer, pass.room)
    }

    /// One future per partition that ends when it has more, or another leader.
    fn changes(&self) -> Vec<BoxFuture<'static, ()>> {
        let wanted = self.topics.iter().flat_map(|(_, wanted)| wanted);
        let targets = wanted.filter_map(|wanted| wanted.target.as_ref().ok());
        let partitions = targets.map(|target| &target.partition);
        partitions.map(change).collect()
    }

    /// Reads from the partitions in the order of the request until there is as much as is wanted.
    async fn look(&self) -> Pass {
        let mut pass = Pass {
            topics: Vec::with_capacity(self.topics.len()),
            bytes: 0,
            failed: false,
            room: Vec::new(),
            sent: Vec::new(),
        };
        for (name, wanted) in &self.topics {
            let mut partitions = Vec::with_capacity(wanted.len());
            for wanted in wanted {
                partitions.push(self.look_at(wanted, &mut pass).await);
            }
            let name = name.clone();
            pass.topics.push(FetchedTopic { name, partitions });
        }
        pass
    }

    async fn look_at(&self, wanted: &Wanted, pass: &mut Pass) -> FetchedPartition {
        let index = wanted.from.index;
        let read = match &wanted.target {
            Ok(target) => self.read(&wanted.from, target, pass).await,
            Err(code) => Err(*code),
        };
        let partition = read.unwrap_or_else(|code| FetchedPartition::refused(index, code.code()));
        pass.failed |= partition.error_code != 0 || partition.diverging.is_some();
        pass.bytes += partition.bytes();
        partition
    }

    async fn read(
        &self,
        from: &FetchPartition,
        target: &Target,
        pass: &mut Pass,
    ) -> Result<FetchedPartition, ErrorCode> {
        let partition = &target.partition;
        if !partition.leader().1 {
            return Err(ErrorCode::NotLeaderOrFollower);
        }
        check_epoch(partition, from.leader_epoch)?;
        let offset = u64::try_from(from.offset).map_err(|_| ErrorCode::OffsetOutOfRange)?;
        let diverging = diverging(partition, from);
        // The first batch of an answer comes whatever its size; others only if they fit.
        let left = self.max_bytes.saturating_sub(pass.bytes);
        let bytes = bounded(from.max_bytes, left);
        let room = match pass.bytes {
            _ if diverging.is_some() => None,
            0 => self.room(bytes).await,
            _ if bytes == 0 => None,
            _ => self.room_at_once(bytes),
        };
        let fetched = match room {
            Some(_) => self.read_from(partition, Offset(offset), bytes).await,
            // Only where the log begins and ends.
            None => bounds(partition, Offset(offset)),
        };
        let settled = fetched.map_err(|error| errors::read(&error))?;
        let mut fetched = settled.fetched;
        if pass.bytes > 0 {
            keep_within(&mut fetched.frames, bytes);
        }
        self.refuse_zstd(&fetched.frames)?;
        if let Some(mut room) = room {
            // What was claimed and is not there goes back at once.
            let used: usize = fetched.frames.iter().map(|frame| frame.records.len()).sum();
            drop(room.split(room.num_permits().saturating_sub(used)));
            pass.room.push(room);
        }
        let frames = &fetched.frames;
        let records = frames
            .iter()
            .map(|frame| u64::from(frame.header.record_count));
        let sizes = frames.iter().map(|frame| frame.records.len() as u64);
        if !frames.is_empty() {
            let meter = target.meter.clone();
            pass.sent.push((meter, records.sum(), sizes.sum()));
        }
        let aborted = settled.aborted.iter().map(|one| AbortedTransaction {
            producer_id: one.producer_id,
            first_offset: one.first_offset.get().cast_signed(),
        });
        Ok(FetchedPartition {
            index: from.index,
            error_code: 0,
            high_watermark: fetched.high_watermark.get().cast_signed(),
            last_stable_offset: settled.stable.get().cast_signed(),
            log_start: fetched.log_start.get().cast_signed(),
            diverging,
            aborted: self.committed.then(|| aborted.collect()),
            batches: fetched.frames.iter().filter_map(batch).collect(),
        })
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
        if self.request.version < ZSTD_SINCE && frames.iter().any(zstd) {
            return Err(ErrorCode::UnsupportedCompressionType);
        }
        Ok(())
    }
}

fn bounds(partition: &Partition, from: Offset) -> Result<Settled, ReadError> {
    let fetched = partition.bounds(from)?;
    Ok(Settled {
        next: from,
        stable: partition.stable_offset().min(fetched.high_watermark),
        aborted: Vec::new(),
        fetched,
    })
}

/// Ends when the partition has more to read, or another leader.
fn change(partition: &Partition) -> BoxFuture<'static, ()> {
    let (mut watermark, mut leadership) = (partition.watch(), partition.leadership());
    watermark.mark_unchanged();
    async move {
        tokio::select! {
            _ = watermark.changed() => {}
            _ = leadership.wait_for(|now| !now.ready) => {}
        }
    }
    .boxed()
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
