//! Recovery: reads the chain of rounds from its start, yields every frame, and decides where the
//! log ends.
//!
//! The end is where the next round of the chain is not whole. Whether that is a torn tail or
//! damage is decided by the durable marks, which each later round of the file and each file
//! header carry: a mark at or beyond the missing round proves that it was durable, and then this
//! is corruption; without one the round was never acknowledged, and it is cut.
//!
//! What no mark proves may have been read from the page cache of a kernel that failed to write it
//! and then called it clean. It is therefore written again, as it stands, before it is yielded
//! as durable; a sync alone would prove nothing.
//!
//! A mark is never beyond what was durable when it was written, and a recovery never cuts what
//! was durable, so the greatest mark found anywhere among the files that matter is the judge,
//! even where earlier recoveries have cut tails before.

use bytes::Bytes;

use super::format::{self, BLOCK, HEADER_LEN, NotAHeader, RoundHeader};
use super::planted::{Flaw, planted};
use super::pool::Slots;
use super::survey::{Link, Seen, Survey, survey};
use super::{Damage, TornTail, WalConfig, WalError, WalPosition, WalStart};
use crate::frame::{self, Frame, FrameError};
use crate::io::{Io, IoFile};

/// Takes each recovered frame, in order.
pub(super) type Visit = Box<dyn FnMut(WalPosition, Frame) + Send>;

/// The last round of the chain, behind which the writer goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    pub(super) file: u64,
    pub(super) round: u64,
    pub(super) crc: u32,
}

/// What a scan found.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) tail: Tail,
    pub(super) slots: Slots,
    /// Whether the last frames lie beyond every mark.
    pub(super) seal_due: bool,
    pub(super) torn_tail: Option<TornTail>,
    pub(super) rounds: u64,
    pub(super) bytes_read: u64,
}

/// Recovers the log from `start`. Everything visited is durable on return.
pub(super) async fn scan<I: Io>(
    io: &I,
    config: &WalConfig,
    start: WalStart,
    visit: &mut Visit,
) -> Result<Recovered, WalError> {
    let (from, fresh) = match start {
        WalStart::Beginning => (WalPosition { file: 1, round: 1 }, true),
        WalStart::At(position) => (position, false),
    };
    let Survey {
        chain,
        strays,
        slots,
    } = survey(io, config, from.file, fresh).await?;
    let mut scan = Scan {
        step: config.max_round_bytes * 2,
        from: from.round,
        tail: Tail::default(),
        framed: 0,
        mark: from.round.saturating_sub(1),
        unproven: Vec::new(),
        torn: None,
        rounds: 0,
        bytes_read: 0,
        visit,
    };
    scan.chain(&chain).await?;
    for stray in &strays {
        scan.stray(stray, from.file).await?;
    }
    if scan.mark > scan.tail.round {
        return Err(scan.rounds_missing(scan.tail.file, 0));
    }
    scan.rewrite_unproven(&chain).await?;
    for link in &chain {
        let synced = link.seen.file.sync_data().await;
        synced.map_err(WalError::io("sync", &link.seen.path))?;
    }
    // A slot file made just before a crash may have a name that is not durable yet.
    if !planted(Flaw::TrustsFoundNames) {
        let synced = io.sync_dir(&config.dir).await;
        synced.map_err(WalError::io("sync", &config.dir))?;
    }
    Ok(Recovered {
        tail: scan.tail,
        slots,
        seal_due: scan.framed > scan.mark,
        torn_tail: scan.torn,
        rounds: scan.rounds,
        bytes_read: scan.bytes_read,
    })
}

struct Scan<'a> {
    /// Bytes to read at once.
    step: usize,
    /// The first round whose frames are wanted.
    from: u64,
    tail: Tail,
    /// The last round that carries frames.
    framed: u64,
    /// The newest round that is proven to have been durable.
    mark: u64,
    /// The last rounds of the file being read, those that nothing proves yet.
    unproven: Vec<Whole>,
    torn: Option<TornTail>,
    rounds: u64,
    bytes_read: u64,
    visit: &'a mut Visit,
}

/// A round that was read, every byte of its frames as written, and where it stands.
struct Whole {
    header: RoundHeader,
    pos: u64,
    /// Padding included.
    bytes: Bytes,
}

impl Scan<'_> {
    async fn chain<F: IoFile>(&mut self, chain: &[Link<F>]) -> Result<(), WalError> {
        if let Some(first) = chain.first() {
            self.tail.round = first.header.first_round.saturating_sub(1);
            self.tail.crc = first.header.predecessor_crc;
        }
        let mut ended = None;
        for (link, next) in chain.iter().zip(1..) {
            let header = &link.header;
            if planted(Flaw::ReadsPastTheCut) {
                self.tail.round = header.first_round - 1;
                self.tail.crc = header.predecessor_crc;
            }
            if header.first_round != self.tail.round + 1 || header.predecessor_crc != self.tail.crc
            {
                return Err(chain_broken(header.file, header.first_round));
            }
            self.mark = self.mark.max(self.tail.round);
            self.tail.file = header.file;
            let limit = chain.get(next).map(|next| next.header.first_round);
            let limit = limit.filter(|_| !planted(Flaw::ReadsPastTheCut));
            let pos = self.file(link, limit).await?;
            if let Some(limit) = limit
                && self.tail.round + 1 < limit
            {
                self.mark = self.mark.max(limit - 1);
                return Err(self.rounds_missing(header.file, pos));
            }
            ended = Some((link, pos));
        }
        match ended {
            Some((link, pos)) => self.beyond_the_end(link, pos).await,
            None => Ok(()),
        }
    }

    /// Reads the rounds of one file up to round `limit`; returns where they end.
    async fn file<F: IoFile>(
        &mut self,
        link: &Link<F>,
        limit: Option<u64>,
    ) -> Result<u64, WalError> {
        let mut reader = Reader::new(&link.seen, self.step);
        let mut pos = format::BLOCK_BYTES;
        self.unproven.clear();
        while limit.is_none_or(|limit| self.tail.round + 1 < limit) {
            let mut read = self.round(link, &mut reader, pos).await?;
            if read.is_none() && !planted(Flaw::BelievesTheFirstRead) {
                // A disk may err once; what it says twice is taken for the end.
                reader.forget();
                read = self.round(link, &mut reader, pos).await?;
            }
            let Some((whole, frames)) = read else {
                break;
            };
            pos += whole.bytes.len() as u64;
            self.found(whole, frames);
        }
        self.bytes_read += reader.bytes_read;
        Ok(pos)
    }

    /// Goes on to the next round.
    fn found(&mut self, whole: Whole, frames: Vec<Frame>) {
        let RoundHeader {
            file,
            round,
            durable,
            ..
        } = whole.header;
        self.tail.round = round;
        self.tail.crc = format::crc_of(&whole.bytes);
        self.mark = self.mark.max(durable);
        self.rounds += 1;
        if !frames.is_empty() {
            self.framed = round;
        }
        self.unproven
            .retain(|earlier| earlier.header.round > durable);
        self.unproven.push(whole);
        if round >= self.from {
            for frame in frames {
                (self.visit)(WalPosition { file, round }, frame);
            }
        }
    }

    /// The round at `pos`, if it is whole and the one that follows.
    async fn round<F: IoFile>(
        &self,
        link: &Link<F>,
        reader: &mut Reader<'_, F>,
        pos: u64,
    ) -> Result<Option<(Whole, Vec<Frame>)>, WalError> {
        let bytes = reader.get(pos, HEADER_LEN).await?;
        let header = match RoundHeader::decode(&bytes) {
            Ok(header) => header,
            Err(NotAHeader::Unreadable) => return Ok(None),
            Err(NotAHeader::Version(version)) => return Err(WalError::Version(version)),
        };
        let follows = header.file == link.header.file
            && (header.signature == link.header.signature || planted(Flaw::ForgetsSignatures))
            && header.round == self.tail.round + 1
            && header.predecessor_crc == self.tail.crc;
        let follows = follows || planted(Flaw::AdoptsStaleRounds);
        let len = format::padded(header.len());
        if !follows || pos + len as u64 > link.seen.len {
            return Ok(None);
        }
        let whole = reader.get(pos, len).await?;
        if whole.len() != len || whole[..HEADER_LEN] != bytes[..] {
            return Ok(None);
        }
        let frames = frames_of(&header, whole.slice(HEADER_LEN..header.len()))?;
        let whole = Whole {
            header,
            pos,
            bytes: whole,
        };
        Ok(frames.map(|frames| (whole, frames)))
    }

    /// Looks behind the end of the last file for rounds that prove more to have been durable.
    async fn beyond_the_end<F: IoFile>(
        &mut self,
        link: &Link<F>,
        end: u64,
    ) -> Result<(), WalError> {
        let owned = |round: &RoundHeader| {
            round.file == link.header.file && round.signature == link.header.signature
        };
        let found = self.leftovers(&link.seen, end, owned).await?;
        if self.mark > self.tail.round {
            return Err(self.rounds_missing(link.header.file, end));
        }
        if found {
            self.torn = Some(TornTail {
                file: link.header.file,
                pos: end,
                round: self.tail.round + 1,
            });
        }
        Ok(())
    }

    /// Looks through a file whose header is unreadable or not its rounds' own.
    async fn stray<F: IoFile>(&mut self, seen: &Seen<F>, first: u64) -> Result<(), WalError> {
        let matters = |round: &RoundHeader| round.file >= first;
        let next = self.tail.file + 1;
        let found = self.leftovers(seen, format::BLOCK_BYTES, matters).await?;
        if self.mark > self.tail.round {
            return Err(WalError::Corrupt {
                file: next,
                pos: 0,
                damage: Damage::FileMissing,
            });
        }
        if found && self.torn.is_none() {
            self.torn = Some(TornTail {
                file: next,
                pos: 0,
                round: self.tail.round + 1,
            });
        }
        Ok(())
    }

    /// Collects the marks of all round headers that `matter` from `pos` on; whether there are
    /// any.
    async fn leftovers<F: IoFile>(
        &mut self,
        seen: &Seen<F>,
        mut pos: u64,
        matter: impl Fn(&RoundHeader) -> bool,
    ) -> Result<bool, WalError> {
        let mut found = false;
        while pos < seen.len {
            let bytes = seen.file.read_at(pos, self.step).await;
            let bytes = bytes.map_err(WalError::io("read", &seen.path))?;
            self.bytes_read += bytes.len() as u64;
            for block in bytes.chunks(BLOCK) {
                if let Ok(round) = RoundHeader::decode(block)
                    && matter(&round)
                {
                    found = true;
                    self.mark = self.mark.max(round.durable);
                }
            }
            pos += format::padded(bytes.len().max(1)) as u64;
        }
        Ok(found)
    }

    /// Writes the rounds at the end that no mark proves once more, with the file's header if
    /// that may be as new as they are.
    async fn rewrite_unproven<F: IoFile>(&mut self, chain: &[Link<F>]) -> Result<(), WalError> {
        let Some(Link { seen, header }) = chain.last() else {
            return Ok(());
        };
        let mark = self.mark;
        self.unproven.retain(|whole| whole.header.round > mark);
        let mut from = self.unproven.first().map_or(0, |whole| whole.pos);
        let mut slices = Vec::new();
        if header.first_round > mark {
            from = 0;
            slices.push(header.block());
        } else if self.unproven.is_empty() {
            return Ok(());
        }
        slices.extend(self.unproven.drain(..).map(|whole| whole.bytes));
        let written = seen.file.write_durable_at(slices, from).await;
        written.map_err(WalError::io("write", &seen.path))
    }

    fn rounds_missing(&self, file: u64, pos: u64) -> WalError {
        WalError::Corrupt {
            file,
            pos,
            damage: Damage::RoundsMissing {
                found: self.tail.round,
                durable: self.mark,
            },
        }
    }
}

fn chain_broken(file: u64, round: u64) -> WalError {
    WalError::Corrupt {
        file,
        pos: 0,
        damage: Damage::ChainBroken { round },
    }
}

/// The frames of a round, if every byte of them is as written.
fn frames_of(header: &RoundHeader, mut body: Bytes) -> Result<Option<Vec<Frame>>, WalError> {
    if body.len() != header.frame_bytes as usize
        || body.len() / frame::HEADER_LEN < header.frame_count as usize
    {
        return Ok(None);
    }
    let mut frames = Vec::with_capacity(header.frame_count as usize);
    let mut crc = 0;
    while !body.is_empty() {
        let head = body.slice(..body.len().min(frame::HEADER_LEN));
        match Frame::decode(&mut body) {
            Ok(frame) => frames.push(frame),
            Err(error @ (FrameError::Version(_) | FrameError::Kind(_))) => {
                return Err(WalError::UnknownFrame(error));
            }
            Err(
                FrameError::Incomplete
                | FrameError::NotAFrame
                | FrameError::HeaderCrc
                | FrameError::Implausible
                | FrameError::PayloadLength
                | FrameError::RecordsCrc
                | FrameError::CommandCrc,
            ) => return Ok(None),
        }
        crc = crc32c::crc32c_append(crc, &head);
    }
    let whole = frames.len() == header.frame_count as usize && crc == header.frames_crc;
    Ok(whole.then_some(frames))
}

/// Reads a file forwards in large steps.
struct Reader<'a, F> {
    seen: &'a Seen<F>,
    step: usize,
    window: Bytes,
    window_at: u64,
    bytes_read: u64,
}

impl<'a, F: IoFile> Reader<'a, F> {
    fn new(seen: &'a Seen<F>, step: usize) -> Self {
        Self {
            seen,
            step,
            window: Bytes::new(),
            window_at: 0,
            bytes_read: 0,
        }
    }

    /// Reads the next bytes from the disk, whether or not they were read before.
    fn forget(&mut self) {
        self.window = Bytes::new();
    }

    /// `len` bytes from `pos`, fewer only where the file ends.
    async fn get(&mut self, pos: u64, len: usize) -> Result<Bytes, WalError> {
        if let Some(bytes) = self.in_window(pos, len) {
            return Ok(bytes);
        }
        let bytes = self.seen.file.read_at(pos, len.max(self.step)).await;
        self.window = bytes.map_err(WalError::io("read", &self.seen.path))?;
        self.window_at = pos;
        self.bytes_read += self.window.len() as u64;
        let len = len.min(self.window.len());
        Ok(self.window.slice(..len))
    }

    fn in_window(&self, pos: u64, len: usize) -> Option<Bytes> {
        let from = usize::try_from(pos.checked_sub(self.window_at)?).ok()?;
        let to = from.checked_add(len)?;
        (to <= self.window.len()).then(|| self.window.slice(from..to))
    }
}
