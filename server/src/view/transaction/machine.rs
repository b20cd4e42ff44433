//! What a request means for a transactional id, by what is known of it: Kafka's rules (KIP-98,
//! KIP-360, KIP-890 part 1). What is still on its way for the id is for the caller to wait for.

use super::{MAX_PARTITIONS, Phase, Transaction};

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the transactional id is not this producer's")]
    UnknownProducer,
    #[error("another producer has taken the transactional id over")]
    Fenced,
    /// It may be asked again in a moment.
    #[error("the last transaction is not over yet")]
    Concurrent,
    #[error("the transaction is not in a state in which this can be asked")]
    InvalidState,
    #[error("a transaction cannot have so many partitions")]
    TooManyPartitions,
}

/// What a producer says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub producer_id: i64,
    pub epoch: i16,
}

/// What becomes of a producer's wish to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It was told so before.
    Is(Identity),
    /// Once this is committed it is the producer.
    Put(Transaction),
    /// A producer id is needed for that.
    NeedsId,
    /// The transaction that is open is to be aborted first; it is to ask again then.
    Abort(Transaction),
}

/// What becomes of another request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// There is nothing to change.
    Is,
    Put(Transaction),
}

/// Epochs that producers are given end here; one more is kept for fencing the last.
const LAST_EPOCH: i32 = i16::MAX as i32 - 1;

impl Transaction {
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity {
            producer_id: self.producer_id,
            epoch: i16::try_from(self.epoch).unwrap_or(i16::MAX),
        }
    }

    fn is(&self, identity: Identity) -> bool {
        self.identity() == identity
    }

    fn check(&self, identity: Identity) -> Result<(), Refused> {
        if self.producer_id != identity.producer_id {
            Err(Refused::UnknownProducer)
        } else if !self.is(identity) {
            Err(Refused::Fenced)
        } else {
            Ok(())
        }
    }

    fn has(&self, partition: u64) -> bool {
        self.partitions.binary_search(&partition).is_ok()
    }
}

/// A producer begins, or begins anew if it says what it was (KIP-360). `fresh` is a producer id
/// that nobody has.
pub fn begin(
    known: Option<&Transaction>,
    expected: Option<Identity>,
    timeout_ms: u64,
    fresh: Option<i64>,
) -> Result<Begin, Refused> {
    let Some(known) = known else {
        return Ok(fresh.map_or(Begin::NeedsId, |producer_id| {
            Begin::Put(first(producer_id, timeout_ms))
        }));
    };
    let exhausted = |epoch: i16| i32::from(epoch) >= LAST_EPOCH;
    if let Some(was) = expected {
        let rotated = was.producer_id == known.last_producer_id && exhausted(was.epoch);
        let same = was.producer_id == known.producer_id;
        let last = i32::from(was.epoch) == known.last_epoch && (same || rotated);
        if last && !known.phase().is_ending() {
            return Ok(Begin::Is(known.identity()));
        }
        if !known.is(was) && !last {
            return Err(Refused::Fenced);
        }
    }
    match known.phase() {
        Phase::PrepareCommit | Phase::PrepareAbort => Err(Refused::Concurrent),
        Phase::Ongoing => Ok(Begin::Abort(fence(known))),
        Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => {
            let last_epoch = expected.map_or(-1, |was| i32::from(was.epoch));
            if exhausted(known.identity().epoch) {
                return Ok(fresh.map_or(Begin::NeedsId, |producer_id| {
                    Begin::Put(Transaction {
                        last_producer_id: known.producer_id,
                        last_epoch,
                        ..first(producer_id, timeout_ms)
                    })
                }));
            }
            let mut next = known.clone();
            next.epoch += 1;
            next.last_epoch = last_epoch;
            next.last_producer_id = known.producer_id;
            next.timeout_ms = timeout_ms;
            next.partitions.clear();
            next.set_phase(Phase::Empty);
            Ok(Begin::Put(next))
        }
    }
}

fn first(producer_id: i64, timeout_ms: u64) -> Transaction {
    Transaction {
        producer_id,
        epoch: 0,
        last_producer_id: -1,
        last_epoch: -1,
        timeout_ms,
        phase: Phase::Empty.into(),
        number: 0,
        partitions: Vec::new(),
    }
}

/// Partitions come into the producer's transaction, which begins with its first ones: its number is
/// above that of the last one, and not below `least`.
pub fn add(
    known: Option<&Transaction>,
    producer: Identity,
    partitions: &[u64],
    least: u64,
) -> Result<Next, Refused> {
    let known = known.ok_or(Refused::UnknownProducer)?;
    known.check(producer)?;
    let mut next = known.clone();
    match known.phase() {
        Phase::PrepareCommit | Phase::PrepareAbort => return Err(Refused::Concurrent),
        Phase::Ongoing if partitions.iter().all(|one| known.has(*one)) => return Ok(Next::Is),
        Phase::Ongoing => {}
        Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => {
            next.number = (known.number + 1).max(least);
            next.partitions.clear();
            next.set_phase(Phase::Ongoing);
        }
    }
    next.partitions.extend(partitions);
    next.partitions.sort_unstable();
    next.partitions.dedup();
    if next.partitions.len() > MAX_PARTITIONS {
        return Err(Refused::TooManyPartitions);
    }
    Ok(Next::Put(next))
}

/// The producer commits or aborts.
pub fn end(known: Option<&Transaction>, producer: Identity, commit: bool) -> Result<Next, Refused> {
    let known = known.ok_or(Refused::UnknownProducer)?;
    known.check(producer)?;
    match (known.phase(), commit) {
        (Phase::Ongoing, _) => {
            let mut next = known.clone();
            next.set_phase(if commit {
                Phase::PrepareCommit
            } else {
                Phase::PrepareAbort
            });
            Ok(Next::Put(next))
        }
        // It was answered before, and the answer was lost.
        (Phase::CompleteCommit, true) | (Phase::CompleteAbort, false) => Ok(Next::Is),
        (Phase::PrepareCommit, true) | (Phase::PrepareAbort, false) => Err(Refused::Concurrent),
        (Phase::CompleteCommit | Phase::PrepareCommit, false)
        | (Phase::CompleteAbort | Phase::PrepareAbort, true)
        | (Phase::Empty, _) => Err(Refused::InvalidState),
    }
}

/// Aborts a transaction that is open, and shuts out its producer.
#[must_use]
pub fn fence(known: &Transaction) -> Transaction {
    let mut next = known.clone();
    next.epoch = (known.epoch + 1).min(i32::from(i16::MAX));
    next.last_epoch = -1;
    next.last_producer_id = -1;
    next.set_phase(Phase::PrepareAbort);
    next
}

/// Every marker of a transaction is written.
#[must_use]
pub fn complete(known: &Transaction) -> Transaction {
    let mut next = known.clone();
    next.partitions.clear();
    next.set_phase(if known.phase() == Phase::PrepareCommit {
        Phase::CompleteCommit
    } else {
        Phase::CompleteAbort
    });
    next
}

/// Whether partitions are in the producer's transaction: its number, and for each whether it is.
pub fn shows(
    known: Option<&Transaction>,
    producer: Identity,
    partitions: &[u64],
) -> Result<(u64, Vec<bool>), Refused> {
    let known = known.ok_or(Refused::UnknownProducer)?;
    known.check(producer)?;
    if known.phase().is_ending() {
        return Err(Refused::Concurrent);
    }
    let ongoing = known.phase() == Phase::Ongoing;
    let within = partitions.iter().map(|one| ongoing && known.has(*one));
    Ok((known.number, within.collect()))
}
