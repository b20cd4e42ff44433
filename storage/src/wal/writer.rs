//! The one job that writes: takes what queued, lays it out as a round, makes it durable, tells
//! the waiters, and again.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::RngCore;
use rand::rngs::SmallRng;
use tokio::time::Instant;

use super::answers::Answer;
use super::format::{BLOCK_BYTES, FileHeader, HEADER_LEN, padded};
use super::queue::{Room, Unit};
use super::round::{Place, Round, RoundBuilder};
use super::scan::Tail;
use super::{Shared, WalConfig, WalError, WalPosition, WalWriting};
use crate::fatal::{Fatal, FatalSink};
use crate::io::{Io, IoFile, OpenMode};
use crate::planted::{self, Bug};

/// How long after the last round with frames a seal follows.
const SEAL_AFTER: Duration = Duration::from_millis(50);

pub(super) struct Writer<I: Io> {
    io: I,
    config: WalConfig,
    shared: Arc<Shared>,
    signatures: SmallRng,
    fatal: FatalSink,
    /// The last durable round.
    tail: Tail,
    /// Whether the last frames lie beyond every durable mark on disk.
    seal_due: bool,
    current: Option<Current<I::File>>,
    /// Units to be written in order, and those that overtake them into the reserve.
    lanes: Lanes,
    /// Whether some of them had no place when last looked at.
    starved: bool,
    builder: RoundBuilder,
    writing: WalWriting,
    /// Who is told next.
    answers: Vec<Answer>,
}

/// The file being written.
struct Current<F> {
    file: F,
    number: u64,
    signature: u64,
    /// Where the next round goes.
    pos: u64,
    /// The header block, until the first round takes it along.
    header: Option<Bytes>,
    /// The least that may use the file while the reserve is not whole.
    least: Room,
}

/// What is taken from the queue, by how far it may go.
#[derive(Debug, Default)]
struct Lanes {
    common: VecDeque<Unit>,
    reserved: VecDeque<Unit>,
    relog: VecDeque<Unit>,
}

impl Lanes {
    fn of(&mut self, room: Room) -> &mut VecDeque<Unit> {
        match room {
            Room::Common => &mut self.common,
            Room::Reserved => &mut self.reserved,
            Room::Relog => &mut self.relog,
        }
    }

    fn is_empty(&self) -> bool {
        self.common.is_empty() && self.reserved.is_empty() && self.relog.is_empty()
    }

    fn drain(&mut self) -> impl Iterator<Item = Unit> + '_ {
        let overtook = self.relog.drain(..).chain(self.reserved.drain(..));
        overtook.chain(self.common.drain(..))
    }

    /// Lets units overtake that may go further than the common ones: what is logged again by
    /// itself, notes with whatever of their groups was submitted before them, so that the order
    /// within a group stands.
    fn overtake(&mut self) {
        if self.common.iter().all(|unit| unit.room == Room::Common) {
            return;
        }
        let mut groups = BTreeSet::new();
        let mut lanes = Self::default();
        while let Some(unit) = self.common.pop_back() {
            let members = || unit.frames.iter().map(|frame| frame.header.group);
            let room = match unit.room {
                Room::Relog => Room::Relog,
                Room::Reserved => Room::Reserved,
                Room::Common if members().any(|group| groups.contains(&group)) => Room::Reserved,
                Room::Common => Room::Common,
            };
            if room == Room::Reserved {
                groups.extend(members());
            }
            lanes.of(room).push_front(unit);
        }
        self.common = lanes.common;
        self.reserved.append(&mut lanes.reserved);
        self.relog.append(&mut lanes.relog);
        // What is told durable later must not begin earlier than what is told now: a unit written
        // in part is written again as a whole.
        for unit in self.common.iter_mut().chain(&mut self.reserved) {
            unit.replace();
        }
    }
}

impl<I: Io> Writer<I> {
    pub(super) fn new(
        io: I,
        config: WalConfig,
        shared: Arc<Shared>,
        signatures: SmallRng,
        fatal: FatalSink,
        recovered: (Tail, bool),
    ) -> Self {
        let builder = RoundBuilder::new(config.max_round_bytes);
        let (tail, seal_due) = recovered;
        shared.publish(tail.round, &WalWriting::default());
        Self {
            io,
            config,
            shared,
            signatures,
            fatal,
            tail,
            seal_due,
            current: None,
            lanes: Lanes::default(),
            starved: false,
            builder,
            writing: WalWriting::default(),
            answers: Vec::new(),
        }
    }

    /// Writes until the log is closed and everything that can be written is.
    pub(super) async fn run(mut self) {
        let end = match self.serve().await {
            Ok(()) => WalError::Closed,
            Err(fatal) => {
                self.fatal.fire(fatal.clone());
                WalError::Fatal(fatal)
            }
        };
        self.refuse(&end).await;
        self.shared.answers.end();
        self.shared.pool.end();
    }

    async fn serve(&mut self) -> Result<(), Fatal> {
        loop {
            let taken = self.shared.queue.take(&mut self.lanes.common);
            if let Some(since) = taken.since {
                self.writing.stages.queued += since.elapsed();
            }
            match self.next_lane().await? {
                Some(lane) => self.write_round(lane).await?,
                None if taken.closed && !self.may_place() => return self.seal().await,
                None => self.rest().await?,
            }
        }
    }

    /// Whether units are left and a file for them is being made.
    fn may_place(&self) -> bool {
        !self.lanes.is_empty() && self.shared.pool.is_growing()
    }

    /// Answers everything with `end` until no one can submit any more.
    async fn refuse(&mut self, end: &WalError) {
        loop {
            let taken = self.shared.queue.take(&mut self.lanes.common);
            let refused = self.lanes.drain().map(|unit| Answer {
                unit,
                outcome: Err(end.clone()),
            });
            self.answers.extend(refused);
            self.tell();
            if taken.closed {
                return;
            }
            self.shared.queue.heard().await;
        }
    }

    /// Waits for something to do; seals the log when there is nothing for a while.
    async fn rest(&mut self) -> Result<(), Fatal> {
        let heard = self.shared.queue.heard();
        if !self.seal_due {
            heard.await;
        } else if tokio::time::timeout(SEAL_AFTER, heard).await.is_err() {
            self.seal().await?;
        }
        Ok(())
    }

    /// Which units come next, with a file for the first of them; none if there are none or no
    /// file is free.
    async fn next_lane(&mut self) -> Result<Option<Room>, Fatal> {
        if let Some(lane) = self.placeable().await? {
            if lane == Room::Common {
                self.starve(false);
            }
            return Ok(Some(lane));
        }
        if self.lanes.is_empty() {
            self.starve(false);
            return Ok(None);
        }
        self.starve(true);
        self.lanes.overtake();
        if let Some(lane) = self.placeable().await? {
            return Ok(Some(lane));
        }
        // Where the filler failed there is nothing to wait for.
        self.shared.pool.failure().map_or(Ok(None), Err)
    }

    /// Says whether units wait that have no place, where that is news.
    fn starve(&mut self, starved: bool) {
        if std::mem::replace(&mut self.starved, starved) != starved {
            self.shared.pool.set_starved(starved);
        }
    }

    /// The first lane that has units, if there is room for them: those that overtook come before
    /// the others.
    async fn placeable(&mut self) -> Result<Option<Room>, Fatal> {
        for lane in Room::ALL.into_iter().rev() {
            self.answer_placed(lane);
            if let Some(len) = next_len(self.lanes.of(lane)) {
                // Nothing passes what overtook and still waits: it may be of the same group.
                return Ok(self.make_room(len, lane).await?.then_some(lane));
            }
        }
        Ok(None)
    }

    /// Sees to a current file that takes a frame of `len` bytes; false if there is none.
    async fn make_room(&mut self, len: usize, lane: Room) -> Result<bool, Fatal> {
        if let Some(current) = &self.current
            && padded(HEADER_LEN + len) <= self.room()
            && (lane >= current.least || self.shared.pool.has_reserve(lane))
        {
            return Ok(true);
        }
        self.begin_file(lane).await
    }

    /// Bytes left for rounds with frames: the last block is kept for a seal.
    fn room(&self) -> usize {
        self.current.as_ref().map_or(0, |current| {
            let end = self.config.file_bytes - BLOCK_BYTES;
            usize::try_from(end.saturating_sub(current.pos)).unwrap_or(usize::MAX)
        })
    }

    async fn begin_file(&mut self, lane: Room) -> Result<bool, Fatal> {
        let number = self.tail.file + 1;
        let pool = &self.shared.pool;
        let Some((slot, least)) = pool.begin(number, lane) else {
            return Ok(false);
        };
        let path = slot.path(&self.config.dir);
        let file = self.io.open(&path, OpenMode::Write).await;
        let file = file.map_err(fatal)?;
        let signature = self.signatures.next_u64();
        let header = FileHeader {
            file: number,
            signature,
            first_round: self.tail.round + 1,
            file_bytes: self.config.file_bytes,
            predecessor_crc: self.tail.crc,
        };
        self.tail.file = number;
        self.current = Some(Current {
            file,
            number,
            signature,
            pos: BLOCK_BYTES,
            header: Some(header.block()),
            least,
        });
        Ok(true)
    }

    async fn write_round(&mut self, lane: Room) -> Result<(), Fatal> {
        let began = Instant::now();
        let room = self.room();
        let position = self.next_position();
        self.builder.begin();
        'full: for unit in self.lanes.of(lane) {
            for frame in &unit.frames[unit.placed..] {
                if !self.builder.fits(frame, room) {
                    break 'full;
                }
                self.builder.push(frame, &mut self.writing);
                unit.placed += 1;
                unit.position.get_or_insert(position);
            }
        }
        self.writing.stages.gather += began.elapsed();
        self.write(position.round).await?;
        self.seal_due = true;
        let written = Instant::now();
        self.answer_placed(lane);
        self.writing.stages.complete += written.elapsed();
        Ok(())
    }

    /// Writes an empty round, whose durable mark covers the last frames, if that is due.
    async fn seal(&mut self) -> Result<(), Fatal> {
        if !self.seal_due {
            return Ok(());
        }
        self.seal_due = false;
        // Without a file the mark has to wait for the next round with frames.
        if self.current.is_none() && !self.begin_file(Room::Common).await? {
            return Ok(());
        }
        self.builder.begin();
        self.write(self.tail.round + 1).await
    }

    fn next_position(&self) -> WalPosition {
        WalPosition {
            file: self.tail.file,
            round: self.tail.round + 1,
        }
    }

    /// Makes what the builder holds durable as round number `round`.
    async fn write(&mut self, round: u64) -> Result<(), Fatal> {
        let Some(current) = &mut self.current else {
            return Ok(());
        };
        let round = self.builder.finish(Place {
            file: current.number,
            signature: current.signature,
            round,
            durable: self.tail.round,
            predecessor_crc: self.tail.crc,
        });
        count(&mut self.writing, &round);
        let Round {
            mut slices,
            len,
            crc,
            buffer,
            ..
        } = round;
        let mut pos = current.pos;
        let header = current.header.take();
        let begins = header.is_some();
        if let Some(block) = header {
            slices.insert(0, block);
            pos -= BLOCK_BYTES;
            self.writing.bytes += BLOCK_BYTES;
        }
        let began = Instant::now();
        let written = if planted::has(Bug::AckBeforeSync) {
            current.file.write_all_at(slices, pos).await
        } else {
            current.file.write_durable_at(slices, pos).await
        };
        written.map_err(fatal)?;
        let took = began.elapsed();
        self.writing.stages.write += took;
        self.shared.syncs.observe(took);
        current.pos += len as u64;
        self.tail.round += 1;
        self.tail.crc = crc;
        self.builder.reuse(buffer);
        if begins {
            self.shared.pool.began(self.tail.file);
        }
        self.shared.publish(self.tail.round, &self.writing);
        Ok(())
    }

    /// Answers the units at the front of a lane whose frames are all durable.
    fn answer_placed(&mut self, lane: Room) {
        let here = WalPosition {
            file: self.tail.file,
            round: self.tail.round,
        };
        let units = self.lanes.of(lane);
        while units.front().is_some_and(Unit::is_placed) {
            if let Some(unit) = units.pop_front() {
                self.writing.units += 1;
                // A unit without frames is as durable as what came before it.
                let outcome = Ok(unit.position.unwrap_or(here));
                self.answers.push(Answer { unit, outcome });
            }
        }
        self.tell();
    }

    fn tell(&mut self) {
        let Shared { answers, queue, .. } = &*self.shared;
        answers.tell(queue, &mut self.answers);
    }
}

fn fatal(source: io::Error) -> Fatal {
    Fatal {
        what: "write to the write-ahead log",
        source: Arc::new(source),
    }
}

/// Bytes of the frame that a lane goes on with.
fn next_len(lane: &VecDeque<Unit>) -> Option<usize> {
    let unit = lane.front()?;
    let frame = unit.frames.get(unit.placed)?;
    Some(frame.header.frame_len())
}

fn count(writing: &mut WalWriting, round: &Round) {
    writing.syncs += 1;
    writing.bytes += round.len as u64;
    writing.frames += round.frames;
    writing.frames_per_round_max = writing.frames_per_round_max.max(round.frames);
    writing.payload_bytes_shared += round.shared_bytes;
    writing.payload_bytes_large_copied += round.large_bytes - round.shared_bytes;
    if round.frames == 0 {
        writing.seals += 1;
    } else {
        writing.rounds += 1;
    }
}
