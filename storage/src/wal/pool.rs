//! The fixed set of slot files: which hold frames, which are ready for use, which must be made.
//!
//! ```text
//! absent ──┐                        ┌──────── release ─────────┐
//! short ───┴─> filling ──> ready ───┴──> used (a file number) ─┘
//! ```
//!
//! The last two ready files are the reserve: one for notes, such as votes, and the very last for
//! what is logged again, since that is what frees files.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::growth::Growth;
use super::queue::Room;
use super::{WalPressure, WalStatus};
use crate::fatal::Fatal;

/// Ready files that common units leave alone.
const RESERVE: usize = kept_from(Room::Common);
/// Ready files that the filler keeps up, the reserve included.
const READY_AIM: usize = RESERVE + 1;

/// Ready files that units of this kind must leave to others.
const fn kept_from(room: Room) -> usize {
    // The last is only lent: see `Pool::lend`.
    match room {
        Room::Common => 2,
        Room::Reserved => 1,
        Room::Relog => 0,
    }
}

/// The number in a slot file's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(pub(super) u32);

impl Slot {
    pub(super) fn path(self, dir: &Path) -> PathBuf {
        dir.join(format!("{:02}.wal", self.0))
    }

    /// The slot that `name` is the file of, if it is one.
    pub(super) fn from_name(name: &Path) -> Option<Self> {
        let stem = name.to_str()?.strip_suffix(".wal")?;
        let slot = Self(stem.parse().ok()?);
        (slot.path(Path::new("")) == name).then_some(slot)
    }
}

/// What a scan found of the slots.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub(super) used: BTreeMap<u64, Slot>,
    /// Taken from the back: those freed last, whose pages are most likely still in the kernel's
    /// cache, before those never used.
    pub(super) ready: VecDeque<Slot>,
    /// Files that exist and are not as long as they should be.
    pub(super) short: BTreeSet<Slot>,
    pub(super) absent: BTreeSet<Slot>,
}

impl Slots {
    /// Sees to it that `count` slots are free, adding names for files to be made.
    pub(super) fn ensure_free(&mut self, count: usize) {
        let known = self.used.values().chain(&self.ready);
        let known = known.chain(&self.short).chain(&self.absent);
        let mut next = known.max().map_or(0, |slot| slot.0 + 1);
        while self.ready.len() + self.short.len() + self.absent.len() < count {
            self.absent.insert(Slot(next));
            next += 1;
        }
    }
}

/// What the filler has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Errand {
    Create(Slot),
    Lengthen(Slot),
    /// Nothing until the pool says so.
    Rest,
    /// Nothing until the disk may have room again.
    Retry,
    End,
}

#[derive(Debug)]
pub(super) struct Pool {
    state: Mutex<State>,
    errand: Notify,
    growth: Arc<Growth>,
    pressure: watch::Sender<WalPressure>,
}

/// Who may use the last ready file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LastFile {
    /// What is logged again.
    #[default]
    Kept,
    /// Notes too.
    Lent,
}

#[derive(Debug, Default)]
struct State {
    slots: Slots,
    filling: Option<Slot>,
    /// The newest used file whose header is durable.
    current: u64,
    /// Whether the disk has no room for more files.
    blocked: bool,
    /// Whether the writer holds units that it cannot place.
    starved: bool,
    last: LastFile,
    /// Why no more files are made.
    failure: Option<Fatal>,
    ended: bool,
}

impl State {
    /// Ready files that units of this kind must leave to others now.
    fn kept_from(&self, room: Room) -> usize {
        match room {
            Room::Reserved if self.last == LastFile::Lent => 0,
            room => kept_from(room),
        }
    }

    fn growable(&self) -> usize {
        if self.blocked {
            return 0;
        }
        self.slots.absent.len() + self.slots.short.len() + usize::from(self.filling.is_some())
    }

    fn pressure(&self) -> WalPressure {
        let ready = self.slots.ready.len();
        let free = ready + self.growable();
        if self.starved && self.growable() == 0 && ready <= RESERVE {
            WalPressure::Full
        } else if free < self.slots.used.len() {
            WalPressure::Low
        } else {
            WalPressure::None
        }
    }
}

impl Pool {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            errand: Notify::new(),
            growth: Arc::default(),
            pressure: watch::Sender::new(WalPressure::None),
        }
    }

    /// Takes over what the scan found; the filler has work from now on.
    pub(super) fn install(&self, slots: Slots) {
        self.change(|state| {
            state.current = slots.used.keys().next_back().copied().unwrap_or(0);
            state.slots = slots;
        });
        self.errand.notify_one();
    }

    /// A ready slot for file number `file`, and the least of the kinds of units that may use it;
    /// none if those left are kept for others. The very first file need not wait for a reserve.
    pub(super) fn begin(&self, file: u64, room: Room) -> Option<(Slot, Room)> {
        let begun = self.change(|state| {
            let kept = if state.slots.used.is_empty() {
                0
            } else {
                state.kept_from(room)
            };
            if state.slots.ready.len() <= kept {
                return None;
            }
            let slot = state.slots.ready.pop_back()?;
            let left = state.slots.ready.len();
            // Who may begin a file while so many are left could have begun this one.
            let least = Room::ALL
                .into_iter()
                .find(|least| *least == room || left >= state.kept_from(*least));
            state.slots.used.insert(file, slot);
            if room == Room::Common {
                state.starved = false;
            }
            Some((slot, least.unwrap_or(room)))
        });
        self.errand.notify_one();
        begun
    }

    /// The files there are, and the wish for more.
    pub(super) fn growth(&self) -> &Arc<Growth> {
        &self.growth
    }

    /// The header of `file` is durable.
    pub(super) fn began(&self, file: u64) {
        self.state.lock().current = file;
    }

    /// Whether all that is kept from units of this kind is there.
    pub(super) fn has_reserve(&self, room: Room) -> bool {
        let state = self.state.lock();
        state.slots.ready.len() >= state.kept_from(room)
    }

    /// Lets notes use the last file until files are freed again: what is logged again needs it no
    /// more while a note has to come first.
    pub(super) fn lend(&self) {
        self.change(|state| state.last = LastFile::Lent);
    }

    /// Whether more files are to come without a release.
    pub(super) fn is_growing(&self) -> bool {
        self.state.lock().growable() > 0
    }

    pub(super) fn set_starved(&self, starved: bool) {
        self.change(|state| state.starved = starved);
    }

    /// Frees the files before number `before`, never the current one; whether there were any.
    pub(super) fn release(&self, before: u64) -> bool {
        let released = self.change(|state| {
            let before = before.min(state.current);
            let kept = state.slots.used.split_off(&before);
            let freed = std::mem::replace(&mut state.slots.used, kept);
            let any = !freed.is_empty();
            state.slots.ready.extend(freed.into_values());
            if any {
                state.last = LastFile::Kept;
            }
            any
        });
        if released {
            self.errand.notify_one();
        }
        released
    }

    pub(super) fn end(&self) {
        self.state.lock().ended = true;
        self.errand.notify_one();
    }

    pub(super) fn ended(&self) -> bool {
        self.state.lock().ended
    }

    /// What the filler should do now. On a disk known to be full only a `retry` tries again.
    pub(super) fn next_errand(&self, retry: bool) -> Errand {
        self.change(|state| {
            if state.ended {
                return Errand::End;
            }
            if state.slots.ready.len() >= READY_AIM && !self.growth.is_wanted() {
                return Errand::Rest;
            }
            if state.blocked && !retry {
                return Errand::Retry;
            }
            let errand = if let Some(slot) = state.slots.short.pop_first() {
                Errand::Lengthen(slot)
            } else if let Some(slot) = state.slots.absent.pop_first() {
                Errand::Create(slot)
            } else {
                return Errand::Rest;
            };
            if let Errand::Create(slot) | Errand::Lengthen(slot) = errand {
                state.filling = Some(slot);
            }
            errand
        })
    }

    /// Waits until the answer of [`Self::next_errand`] may be another.
    pub(super) async fn errand_changed(&self) {
        tokio::select! {
            () = self.errand.notified() => {}
            () = self.growth.wanted() => {}
        }
    }

    /// The slot of the last errand is ready.
    pub(super) fn filled(&self) {
        self.change(|state| {
            if let Some(slot) = state.filling.take() {
                state.slots.ready.push_front(slot);
            }
            state.blocked = false;
            self.growth.is_met();
        });
    }

    /// The disk has no room for the slot of the last errand, whose file is gone again.
    pub(super) fn not_filled(&self) {
        self.change(|state| {
            state.slots.absent.extend(state.filling.take());
            state.blocked = true;
        });
    }

    /// The slot of the last errand cannot be made, and none after it.
    pub(super) fn fail(&self, fatal: Fatal) {
        self.change(|state| {
            state.slots.absent.extend(state.filling.take());
            state.blocked = true;
            state.failure = Some(fatal);
        });
    }

    pub(super) fn failure(&self) -> Option<Fatal> {
        self.state.lock().failure.clone()
    }

    pub(super) fn watch(&self) -> watch::Receiver<WalPressure> {
        self.pressure.subscribe()
    }

    pub(super) fn describe(&self, status: &mut WalStatus) {
        let state = self.state.lock();
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        status.oldest_file = state.slots.used.keys().next().copied().unwrap_or(0);
        status.current_file = state.current;
        status.used_files = count(state.slots.used.len());
        status.free_files = count(state.slots.ready.len());
        status.growth_blocked = state.blocked;
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let files = state.slots.used.len() + state.slots.ready.len();
        self.growth.set_files(files);
        let pressure = state.pressure();
        self.pressure.send_if_modified(|seen| {
            let changed = *seen != pressure;
            *seen = pressure;
            changed
        });
        result
    }
}
