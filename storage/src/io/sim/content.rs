//! The bytes of one simulated file: what is safe on the platter, and, sector by sector, every
//! newer version that a power loss may keep, lose or tear.

use std::collections::BTreeMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;

use super::fate::{Fate, Version};

/// What a simulated disk writes as a whole, unless it tears.
pub(super) const SECTOR: usize = 512;
const SECTOR_U64: u64 = SECTOR as u64;
/// One torn sector in this many that a scattered loss touches.
const TEAR_ONE_IN: u32 = 16;

/// A sector's bytes; `None` is all zeros, so that a zero-filled file costs nothing.
type Sector = Option<Arc<[u8; SECTOR]>>;

/// Cloning shares the bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    durable: Arc<BTreeMap<u64, Arc<[u8; SECTOR]>>>,
    durable_len: u64,
    /// Unsynced versions of each sector, oldest first.
    dirty: BTreeMap<u64, Vec<Version<Sector>>>,
    /// Unsynced lengths, oldest first.
    lens: Vec<Version<u64>>,
    /// Sectors that a failed sync left in the page cache as if clean: read back until the power
    /// goes, never written.
    ghosts: BTreeMap<u64, Sector>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.lens.last().map_or(self.durable_len, |len| len.value)
    }

    /// Up to `len` bytes from `pos`, as the page cache has them.
    pub(super) fn read(&self, pos: u64, len: usize) -> Vec<u8> {
        let end = pos.saturating_add(len as u64).min(self.len());
        let mut out = Vec::with_capacity(within(end.saturating_sub(pos)));
        let mut at = pos;
        while at < end {
            let from = within(at % SECTOR_U64);
            let take = (SECTOR - from).min(within(end - at));
            match self.cached(at / SECTOR_U64) {
                Some(sector) => out.extend_from_slice(&sector[from..from + take]),
                None => out.resize(out.len() + take, 0),
            }
            at += take as u64;
        }
        out
    }

    pub(super) fn write(&mut self, stamp: u64, pos: u64, mut data: &[u8]) {
        let end = pos + data.len() as u64;
        let mut at = pos;
        while !data.is_empty() {
            let (number, from) = (at / SECTOR_U64, within(at % SECTOR_U64));
            let (now, rest) = data.split_at(data.len().min(SECTOR - from));
            let mut sector = self.cached(number).map_or([0; SECTOR], |old| **old);
            sector[from..from + now.len()].copy_from_slice(now);
            self.put(stamp, number, &sector);
            at += now.len() as u64;
            data = rest;
        }
        if end > self.len() {
            self.lens.push(Version { stamp, value: end });
        }
    }

    pub(super) fn set_len(&mut self, stamp: u64, len: u64) {
        if len < self.len() {
            let first = len / SECTOR_U64;
            let keep = within(len % SECTOR_U64);
            for number in self.present_from(first) {
                let mut sector = [0; SECTOR];
                if let (true, Some(old)) = (number == first, self.cached(number)) {
                    sector[..keep].copy_from_slice(&old[..keep]);
                }
                self.put(stamp, number, &sector);
            }
        }
        self.lens.push(Version { stamp, value: len });
    }

    /// Makes durable what `covers` by its stamp; newer versions stay at risk.
    pub(super) fn sync(&mut self, covers: impl Fn(u64) -> bool) {
        let durable = Arc::make_mut(&mut self.durable);
        self.dirty.retain(|number, versions| {
            if let Some(last) = versions.iter().rposition(|v| covers(v.stamp)) {
                let synced = versions.drain(..=last).next_back();
                store(durable, *number, synced.and_then(|v| v.value));
            }
            !versions.is_empty()
        });
        if let Some(last) = self.lens.iter().rposition(|v| covers(v.stamp))
            && let Some(len) = self.lens.drain(..=last).next_back()
        {
            self.durable_len = len.value;
        }
    }

    /// A sync that failed: each unsynced sector was written all the same or is dropped, at once
    /// or (`ghosts`) when the power goes. Nothing of it is unsynced any more, so a second sync
    /// would report success.
    pub(super) fn fail_sync(&mut self, ghosts: bool, rng: &mut SmallRng) {
        let len = self.len();
        let durable = Arc::make_mut(&mut self.durable);
        for (number, versions) in std::mem::take(&mut self.dirty) {
            let latest = versions.into_iter().next_back().and_then(|v| v.value);
            if rng.random_bool(0.3) {
                store(durable, number, latest);
            } else if ghosts {
                self.ghosts.insert(number, latest);
            }
        }
        // The length is metadata, which the file system's journal keeps.
        self.durable_len = len;
        self.lens.clear();
    }

    /// The power goes: of what is unsynced, keeps what `fate` says.
    pub(super) fn power_loss(&mut self, fate: Fate, rng: &mut SmallRng) {
        self.ghosts.clear();
        let durable = Arc::make_mut(&mut self.durable);
        for (number, versions) in std::mem::take(&mut self.dirty) {
            let old = durable.get(&number).cloned();
            let mut kept = fate.choose(&old, &versions, rng);
            if fate.scatters() && rng.random_ratio(1, TEAR_ONE_IN) {
                kept = tear(&kept, &fate.choose(&old, &versions, rng), rng);
            }
            store(durable, number, kept);
        }
        self.durable_len = fate.choose(&self.durable_len, &self.lens, rng);
        self.lens.clear();
        self.cut_durable();
    }

    /// Inverts one bit, on the platter and in the cache.
    pub(super) fn flip_bit(&mut self, pos: u64, bit: u8) {
        let (number, at) = (pos / SECTOR_U64, within(pos % SECTOR_U64));
        let flip = |sector: &Sector| {
            let mut bytes = sector.as_ref().map_or([0; SECTOR], |old| **old);
            bytes[at] ^= 1 << (bit % 8);
            compact(&bytes)
        };
        let flipped = flip(&self.durable.get(&number).cloned());
        store(Arc::make_mut(&mut self.durable), number, flipped);
        for version in self.dirty.entry(number).or_default() {
            version.value = flip(&version.value);
        }
        self.dirty.retain(|_, versions| !versions.is_empty());
    }

    /// The stamp of the oldest change that a power loss may undo.
    pub(super) fn oldest_unsynced(&self) -> Option<u64> {
        let sectors = self.dirty.values().flatten().map(|v| v.stamp);
        sectors.chain(self.lens.iter().map(|v| v.stamp)).min()
    }

    fn cached(&self, number: u64) -> Option<&Arc<[u8; SECTOR]>> {
        if let Some(version) = self.dirty.get(&number).and_then(|versions| versions.last()) {
            return version.value.as_ref();
        }
        match self.ghosts.get(&number) {
            Some(ghost) => ghost.as_ref(),
            None => self.durable.get(&number),
        }
    }

    fn put(&mut self, stamp: u64, number: u64, sector: &[u8; SECTOR]) {
        let value = compact(sector);
        // Zeros over zeros: whether they reach the platter makes no difference.
        let nothing_new = value.is_none()
            && !self.dirty.contains_key(&number)
            && !self.ghosts.contains_key(&number)
            && !self.durable.contains_key(&number);
        if !nothing_new {
            // The page is dirty again, and the next sync writes it.
            self.ghosts.remove(&number);
            let versions = self.dirty.entry(number).or_default();
            versions.push(Version { stamp, value });
        }
    }

    /// The sectors from `first` on that hold anything but zeros, in order.
    fn present_from(&self, first: u64) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.durable.range(first..).map(|(n, _)| *n).collect();
        numbers.extend(self.dirty.range(first..).map(|(n, _)| *n));
        numbers.extend(self.ghosts.range(first..).map(|(n, _)| *n));
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Drops what lies beyond the durable length.
    fn cut_durable(&mut self) {
        let first = self.durable_len / SECTOR_U64;
        let keep = within(self.durable_len % SECTOR_U64);
        let durable = Arc::make_mut(&mut self.durable);
        let mut beyond = durable.split_off(&first);
        if let Some(last) = beyond.remove(&first) {
            let mut sector = *last;
            sector[keep..].fill(0);
            store(durable, first, compact(&sector));
        }
    }
}

fn compact(sector: &[u8; SECTOR]) -> Sector {
    (*sector != [0; SECTOR]).then(|| Arc::new(*sector))
}

fn store(durable: &mut BTreeMap<u64, Arc<[u8; SECTOR]>>, number: u64, sector: Sector) {
    match sector {
        Some(sector) => durable.insert(number, sector),
        None => durable.remove(&number),
    };
}

/// The start of one version and the end of another.
fn tear(start: &Sector, end: &Sector, rng: &mut SmallRng) -> Sector {
    let at = rng.random_range(1..SECTOR);
    let mut bytes = end.as_ref().map_or([0; SECTOR], |end| **end);
    match start {
        Some(start) => bytes[..at].copy_from_slice(&start[..at]),
        None => bytes[..at].fill(0),
    }
    compact(&bytes)
}

/// A length that is known to fit, for it counts bytes in memory.
fn within(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
