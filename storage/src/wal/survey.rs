//! The first look at the log's folder: which slot files there are and what their heads say.

use std::io;
use std::path::PathBuf;

use super::format::{BLOCK, BLOCK_BYTES, FileHeader, NotAHeader, RoundHeader};
use super::planted::{Flaw, planted};
use super::pool::{Slot, Slots};
use super::{Damage, WalConfig, WalError};
use crate::io::{Io, IoFile, OpenMode};

/// A slot file as found.
#[derive(Debug)]
pub(super) struct Seen<F> {
    pub(super) slot: Slot,
    pub(super) path: PathBuf,
    pub(super) file: F,
    pub(super) len: u64,
    head: Head,
    /// What stands where a file's first round does.
    first_round: Option<RoundHeader>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// All zeros, or no whole block: never used.
    Blank,
    Readable(FileHeader),
    Unreadable,
}

/// A file of the chain.
#[derive(Debug)]
pub(super) struct Link<F> {
    pub(super) seen: Seen<F>,
    pub(super) header: FileHeader,
}

impl<F> Seen<F> {
    fn says_the_same(&self, other: &Self) -> bool {
        (self.head, self.first_round, self.len) == (other.head, other.first_round, other.len)
    }

    /// Whether rounds of file number `first` or later may stand here without a header that
    /// owns them.
    fn may_hide_rounds(&self, first: u64) -> bool {
        let owner = match self.head {
            Head::Unreadable => return true,
            Head::Readable(header) => Some(header.file),
            Head::Blank => None,
        };
        self.first_round
            .is_some_and(|round| round.file >= first && Some(round.file) != owner)
    }
}

/// Everything in the folder.
#[derive(Debug)]
pub(super) struct Survey<F> {
    /// The files to recover from, consecutive from the first.
    pub(super) chain: Vec<Link<F>>,
    /// Files outside the chain that may hold rounds which belong to it.
    pub(super) strays: Vec<Seen<F>>,
    /// All of them, sorted by use.
    pub(super) slots: Slots,
}

/// Files that are free after an opening, even beyond the configured number: a process that ends
/// again and again before it made a checkpoint uses one up each time, and must not end up with a
/// log in which nothing can be written, not even what would free it.
const FREE_AT_OPEN: usize = 3;

/// How often a slot file is looked at again for it to say the same twice.
const LOOKS: u32 = 4;

/// Looks at each slot file; file number `first` is the oldest that matters. A `fresh` log may
/// have no file at all.
pub(super) async fn survey<I: Io>(
    io: &I,
    config: &WalConfig,
    first: u64,
    fresh: bool,
) -> Result<Survey<I::File>, WalError> {
    let names = io.list(&config.dir).await;
    let names = names.map_err(WalError::io("list", &config.dir))?;
    let mut slots = Slots {
        absent: (0..config.files).map(Slot).collect(),
        ..Slots::default()
    };
    let (mut chain, mut strays) = (Vec::new(), Vec::new());
    for slot in names.iter().filter_map(|name| Slot::from_name(name)) {
        slots.absent.remove(&slot);
        let seen = look_twice(io, slot, slot.path(&config.dir)).await?;
        match seen.head {
            Head::Readable(header) if header.file >= first => {
                chain.push(Link { seen, header });
                continue;
            }
            _ if seen.len < config.file_bytes => drop(slots.short.insert(slot)),
            _ => slots.ready.push_front(slot),
        }
        if seen.may_hide_rounds(first) {
            strays.push(seen);
        }
    }
    chain.sort_by_key(|link| link.header.file);
    check_numbers(&chain, first, fresh)?;
    slots.used = chain.iter().map(|l| (l.header.file, l.seen.slot)).collect();
    slots.ensure_free(FREE_AT_OPEN);
    Ok(Survey {
        chain,
        strays,
        slots,
    })
}

/// Looks until a slot file says the same twice: a disk may err once, and the head of another file
/// in the place of this one would have it taken for free.
async fn look_twice<I: Io>(io: &I, slot: Slot, path: PathBuf) -> Result<Seen<I::File>, WalError> {
    let mut seen = look(io, slot, path.clone()).await?;
    for _ in 0..LOOKS {
        let again = look(io, slot, path.clone()).await?;
        if again.says_the_same(&seen) || planted(Flaw::BelievesTheFirstRead) {
            return Ok(seen);
        }
        seen = again;
    }
    let error = io::Error::other("it reads differently each time");
    Err(WalError::io("read", &path)(error))
}

async fn look<I: Io>(io: &I, slot: Slot, path: PathBuf) -> Result<Seen<I::File>, WalError> {
    let file = io.open(&path, OpenMode::Write).await;
    let file = file.map_err(WalError::io("open", &path))?;
    let len = file.len().await.map_err(WalError::io("measure", &path))?;
    let bytes = file.read_at(0, 2 * BLOCK).await;
    let bytes = bytes.map_err(WalError::io("read", &path))?;
    let head = match FileHeader::decode(&bytes) {
        Ok(header) => Head::Readable(header),
        Err(NotAHeader::Version(version)) => return Err(WalError::Version(version)),
        Err(NotAHeader::Unreadable) => {
            let zeros = bytes.iter().take(BLOCK).all(|byte| *byte == 0);
            let blank = zeros || len < BLOCK_BYTES;
            if blank { Head::Blank } else { Head::Unreadable }
        }
    };
    let second = bytes.get(BLOCK..).unwrap_or_default();
    Ok(Seen {
        slot,
        path,
        file,
        len,
        head,
        first_round: RoundHeader::decode(second).ok(),
    })
}

/// The chain's files must be numbered from `first` without a gap, and be as long as made.
fn check_numbers<F>(chain: &[Link<F>], first: u64, fresh: bool) -> Result<(), WalError> {
    if chain.is_empty() && !fresh {
        return Err(corrupt(first, Damage::FileMissing));
    }
    for (expected, link) in (first..).zip(chain) {
        let header = &link.header;
        if header.file > expected {
            return Err(corrupt(expected, Damage::FileMissing));
        }
        if header.file < expected {
            return Err(corrupt(header.file, Damage::FileTwice));
        }
        if link.seen.len < header.file_bytes {
            return Err(corrupt(header.file, Damage::FileShort));
        }
    }
    Ok(())
}

fn corrupt(file: u64, damage: Damage) -> WalError {
    WalError::Corrupt {
        file,
        pos: 0,
        damage,
    }
}
