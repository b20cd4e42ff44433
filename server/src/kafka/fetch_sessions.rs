//! Fetch sessions (KIP-227): what a consumer reads, and what it was told of it, so that its next
//! request names only what is to be read differently, and its answer only what is new.
//!
//! ```text
//! request (0, 0) -> all is read -> session made, at epoch 1     no room: id 0, all is named again
//! request (id, epoch) -> parts changed, forgotten -> read in the session's order -> news, told
//!                        epoch + 1; what gave records goes to the end of the order
//! request (id, 0 or -1) -> session closed; all is read
//! ```
//!
//! Bounded by number and by bytes, and one that outgrows them ends with what it has. A new session takes the place of one that was not used for a
//! while or, as at a broker, of an older one with fewer partitions. A session is its connection's
//! and ends with it. Knows nothing of what a partition is: `T` is whatever its reader keeps of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use trilog_storage::env::Entropy;
use trilog_wire::kafka::{ErrorCode, FetchPartition, FetchedPartition, TopicRef};

#[cfg(test)]
mod tests;

/// For how long a session is safe: from one of more partitions after it was made, and from any
/// after it was used.
const SAFE: Duration = Duration::from_mins(2);
/// What one session may have of the memory of all.
const SHARE: usize = 8;
/// What a session takes beside its partitions, in bytes.
const SESSION_COST: usize = 512;

/// Sessions of all connections of a node; cheap to clone.
#[derive(Debug)]
pub(super) struct FetchSessions<T> {
    shared: Arc<Shared<T>>,
}

#[derive(Debug)]
struct Shared<T> {
    slots: usize,
    memory: usize,
    entropy: Entropy,
    /// Bytes of sessions, those included that have no place any more and are still read from.
    held: Arc<AtomicUsize>,
    table: Mutex<Table<T>>,
}

#[derive(Debug)]
struct Table<T> {
    sessions: HashMap<i32, Known<T>>,
    by_use: BTreeSet<(Instant, i32)>,
    /// Those that one with more partitions may take the place of.
    by_size: BTreeSet<(usize, i32)>,
    by_owner: BTreeSet<(u64, i32)>,
    owners: u64,
    /// Bytes of those that are here.
    bytes: usize,
}

#[derive(Debug)]
struct Known<T> {
    session: Shareable<T>,
    owner: u64,
    made: Instant,
    used: Instant,
    partitions: usize,
    bytes: usize,
}

/// A session; whoever reads from it holds it until the answer is made.
pub(super) type Shareable<T> = Arc<tokio::sync::Mutex<FetchSession<T>>>;

/// What one connection sees of the sessions: its own.
#[derive(Debug)]
pub(super) struct Owner<T> {
    sessions: FetchSessions<T>,
    number: u64,
}

/// One session.
#[derive(Debug)]
pub(super) struct FetchSession<T> {
    id: i32,
    epoch: i32,
    by_id: bool,
    pub(super) parts: Parts<T>,
    /// Partitions it may have.
    most: usize,
    charge: Charge,
}

/// Partitions in the order they are read in.
#[derive(Debug)]
pub(super) struct Parts<T> {
    in_order: BTreeMap<u64, Part<T>>,
    places: HashMap<(TopicRef, i32), u64>,
    next: u64,
    names: usize,
}

/// One partition of a fetch.
#[derive(Debug)]
pub(super) struct Part<T> {
    pub(super) topic: TopicRef,
    pub(super) from: FetchPartition,
    pub(super) place: T,
    /// What its reader was told last, if it was.
    told: Option<Told>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    high_watermark: i64,
    log_start: i64,
}

/// Bytes that are given back when it is dropped.
#[derive(Debug)]
struct Charge {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Charge {
    fn set(&mut self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Told {
    /// After an error the next answer without one is news, whatever it says.
    fn of(answered: &FetchedPartition) -> Self {
        let high_watermark = match answered.error_code {
            0 => answered.high_watermark,
            _ => -1,
        };
        Self {
            high_watermark,
            log_start: answered.log_start,
        }
    }
}

impl<T> Part<T> {
    pub(super) fn new(topic: TopicRef, from: FetchPartition, place: T) -> Self {
        Self {
            topic,
            from,
            place,
            told: None,
        }
    }

    /// Whether its reader has to be told this.
    pub(super) fn is_news(&self, answered: &FetchedPartition) -> bool {
        self.told != Some(Told::of(answered))
            || answered.error_code != 0
            || answered.diverging.is_some()
            || answered.preferred_replica.is_some()
            || !answered.batches.is_empty()
    }
}

impl<T> Parts<T> {
    /// Bytes of one partition, its place included; nodes of trees and tables may be half empty.
    const PART_COST: usize =
        2 * (size_of::<(u64, Part<T>)>() + size_of::<((TopicRef, i32), u64)>() + 8);

    fn new() -> Self {
        Self {
            in_order: BTreeMap::new(),
            places: HashMap::new(),
            next: 0,
            names: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.in_order.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Part<T>> + Clone {
        self.in_order.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Part<T>> {
        self.in_order.values_mut()
    }

    fn bytes(&self) -> usize {
        self.len() * Self::PART_COST + self.names
    }

    /// Adds partitions, or changes what is to be read of them; false where that would be more
    /// than `most`. Names are copied, once for neighbours of one topic, since they are slices of
    /// their request.
    fn set(&mut self, parts: impl IntoIterator<Item = Part<T>>, most: usize) -> bool {
        let mut name: Option<TopicRef> = None;
        for mut part in parts {
            let key = (part.topic, part.from.index);
            if let Some(known) = self
                .places
                .get(&key)
                .and_then(|at| self.in_order.get_mut(at))
            {
                (known.from, known.place) = (part.from, part.place);
                continue;
            }
            if self.len() == most {
                return false;
            }
            let known = name.filter(|name| *name == key.0);
            let own = known.unwrap_or_else(|| key.0.detached());
            name = Some(own.clone());
            part.topic = own.clone();
            self.names += own.text_len();
            self.places.insert((own, key.1), self.next);
            self.in_order.insert(self.next, part);
            self.next += 1;
        }
        true
    }

    fn forget(&mut self, topic: &TopicRef, index: i32) {
        if let Some(at) = self.places.remove(&(topic.clone(), index)) {
            self.in_order.remove(&at);
            self.names -= topic.text_len();
        }
    }

    /// Remembers what is told; what gave records is read last next time, so that none starves.
    fn tell(&mut self, answered: &FetchedPartition) {
        let key = (answered.topic.clone(), answered.index);
        let Some(at) = self.places.get_mut(&key) else {
            return;
        };
        let told = Some(Told::of(answered));
        if answered.batches.is_empty() {
            if let Some(part) = self.in_order.get_mut(at) {
                part.told = told;
            }
        } else if let Some(part) = self.in_order.remove(at) {
            *at = self.next;
            self.in_order.insert(self.next, Part { told, ..part });
            self.next += 1;
        }
    }
}

impl<T> FetchSession<T> {
    pub(super) fn id(&self) -> i32 {
        self.id
    }

    /// Goes on to the next request, which must be the one that is due and name topics as the
    /// first did.
    fn advance(
        &mut self,
        epoch: i32,
        by_id: bool,
        changed: impl IntoIterator<Item = Part<T>>,
        forgotten: impl IntoIterator<Item = (TopicRef, i32)>,
    ) -> Result<(), ErrorCode> {
        if epoch != self.epoch {
            return Err(ErrorCode::InvalidFetchSessionEpoch);
        }
        if by_id != self.by_id {
            return Err(ErrorCode::FetchSessionTopicIdError);
        }
        self.epoch = epoch.checked_add(1).unwrap_or(1);
        if !self.parts.set(changed, self.most) {
            // Too many to be remembered: its reader begins anew, and is given none.
            return Err(ErrorCode::FetchSessionIdNotFound);
        }
        for (topic, index) in forgotten {
            self.parts.forget(&topic, index);
        }
        Ok(())
    }

    /// Remembers what is told of its partitions.
    pub(super) fn tell(&mut self, answered: &[FetchedPartition]) {
        for answered in answered {
            self.parts.tell(answered);
        }
    }
}

impl<T> Clone for FetchSessions<T> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T> FetchSessions<T> {
    /// No more than `slots` sessions, in no more than `memory` bytes.
    pub(super) fn new(slots: usize, memory: usize, entropy: Entropy) -> Self {
        let table = Table {
            sessions: HashMap::new(),
            by_use: BTreeSet::new(),
            by_size: BTreeSet::new(),
            by_owner: BTreeSet::new(),
            owners: 0,
            bytes: 0,
        };
        let shared = Shared {
            slots,
            memory,
            entropy,
            held: Arc::default(),
            table: Mutex::new(table),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// For one connection.
    pub(super) fn owner(&self) -> Owner<T> {
        let mut table = self.shared.table.lock();
        table.owners += 1;
        Owner {
            sessions: self.clone(),
            number: table.owners,
        }
    }

    /// Bytes of all sessions, and how many there are.
    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        let sessions = self.shared.table.lock().sessions.len();
        (self.shared.held.load(Ordering::Relaxed), sessions)
    }
}

impl<T> Owner<T> {
    /// Whose the sessions are.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn find(&self, id: i32) -> Option<Shareable<T>> {
        let table = self.sessions.shared.table.lock();
        let known = table.sessions.get(&id)?;
        (known.owner == self.number).then(|| Arc::clone(&known.session))
    }

    pub(super) fn close(&self, id: i32) {
        let mut table = self.sessions.shared.table.lock();
        if table.by_owner.contains(&(self.number, id)) {
            table.remove(id);
        }
    }
}

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        let mut table = self.sessions.shared.table.lock();
        let own = (self.number, i32::MIN)..=(self.number, i32::MAX);
        let own: Vec<i32> = table.by_owner.range(own).map(|(_, id)| *id).collect();
        for id in own {
            table.remove(id);
        }
    }
}

impl<T> FetchSessions<T> {
    /// Makes a session of partitions with what was told of each, if there is room; its id, or 0.
    /// Whoever names a partition twice gets none.
    pub(super) fn create(
        &self,
        owner: u64,
        by_id: bool,
        parts: Vec<Part<T>>,
        told: &[FetchedPartition],
        now: Instant,
    ) -> i32 {
        let shared = &*self.shared;
        let most = shared.memory / SHARE / Parts::<T>::PART_COST;
        let mut all = Parts::new();
        if parts.len() > most || !all.set(parts, most) || all.len() != told.len() {
            return 0;
        }
        let (partitions, bytes) = (all.len(), SESSION_COST + all.bytes());
        for (part, answered) in all.iter_mut().zip(told) {
            part.told = Some(Told::of(answered));
        }
        let mut table = shared.table.lock();
        if !shared.make_room(&mut table, 1, bytes, partitions, now) {
            return 0;
        }
        let id = table.fresh_id(&shared.entropy);
        let mut charge = Charge {
            held: Arc::clone(&shared.held),
            bytes: 0,
        };
        charge.set(bytes);
        let session = FetchSession {
            id,
            epoch: 1,
            by_id,
            parts: all,
            most,
            charge,
        };
        let known = Known {
            session: Arc::new(tokio::sync::Mutex::new(session)),
            owner,
            made: now,
            used: now,
            partitions,
            bytes,
        };
        table.insert(id, known);
        id
    }

    /// Takes a session on to its next request, an epoch and whether topics go by their ids, and
    /// counts what it has become with it before anything is read. Without partitions it ends. If
    /// its place is gone, or it is too large now, it ends with nothing left of it, whoever waits
    /// for it or reads it still.
    pub(super) fn go_on(
        &self,
        session: &mut FetchSession<T>,
        (epoch, by_id): (i32, bool),
        changed: impl IntoIterator<Item = Part<T>>,
        forgotten: impl IntoIterator<Item = (TopicRef, i32)>,
        now: Instant,
    ) -> Result<(), ErrorCode> {
        let gone = ErrorCode::FetchSessionIdNotFound;
        let went_on = session.advance(epoch, by_id, changed, forgotten);
        let went_on = went_on.and_then(|()| self.touch(session, now).then_some(()).ok_or(gone));
        if went_on == Err(gone) {
            self.shared.table.lock().remove(session.id);
            session.parts = Parts::new();
            session.charge.set(SESSION_COST);
        }
        went_on
    }

    /// Counts a session as it is now; false if there is no room for it, or its place is gone.
    fn touch(&self, session: &mut FetchSession<T>, now: Instant) -> bool {
        let shared = &*self.shared;
        let (partitions, bytes) = (session.parts.len(), SESSION_COST + session.parts.bytes());
        let mut table = shared.table.lock();
        let Some(mut known) = table.remove(session.id) else {
            return false;
        };
        if partitions == 0 {
            return true;
        }
        session.charge.set(0);
        let fits = shared.make_room(&mut table, 1, bytes, partitions, now);
        session.charge.set(bytes);
        if fits {
            (known.used, known.partitions, known.bytes) = (now, partitions, bytes);
            table.insert(session.id, known);
        }
        fits
    }
}

impl<T> Shared<T> {
    /// Whether there is room for so many sessions and bytes, after others have made some.
    fn make_room(
        &self,
        table: &mut Table<T>,
        slots: usize,
        bytes: usize,
        partitions: usize,
        now: Instant,
    ) -> bool {
        if bytes > self.memory / SHARE {
            return false;
        }
        while table.sessions.len() + slots > self.slots || table.bytes + bytes > self.memory {
            if !table.evict(partitions, now) {
                return false;
            }
        }
        // What was evicted and is being read from has to go first.
        self.held.load(Ordering::Relaxed) + bytes <= self.memory
    }
}

impl<T> Table<T> {
    fn fresh_id(&self, entropy: &Entropy) -> i32 {
        loop {
            let [a, b, c, d, ..] = entropy.next_u64().to_le_bytes();
            let id = i32::from_le_bytes([a, b, c, d & 0x7f]);
            if id != 0 && !self.sessions.contains_key(&id) {
                return id;
            }
        }
    }

    fn insert(&mut self, id: i32, known: Known<T>) {
        self.by_use.insert((known.used, id));
        if known.used - known.made > SAFE {
            self.by_size.insert((known.partitions, id));
        }
        self.by_owner.insert((known.owner, id));
        self.bytes += known.bytes;
        self.sessions.insert(id, known);
    }

    fn remove(&mut self, id: i32) -> Option<Known<T>> {
        let known = self.sessions.remove(&id)?;
        self.by_use.remove(&(known.used, id));
        self.by_size.remove(&(known.partitions, id));
        self.by_owner.remove(&(known.owner, id));
        self.bytes -= known.bytes;
        Some(known)
    }

    /// Ends a session that may go for one of so many partitions: one that was not used for long,
    /// or else the one with the fewest partitions of those that are no longer safe, if it has
    /// fewer.
    fn evict(&mut self, partitions: usize, now: Instant) -> bool {
        let stale = self.by_use.first().filter(|(used, _)| now - *used > SAFE);
        let smaller = self.by_size.first().filter(|(size, _)| *size < partitions);
        let victim = stale.map(|(_, id)| *id).or(smaller.map(|(_, id)| *id));
        victim.is_some_and(|id| self.remove(id).is_some())
    }
}
