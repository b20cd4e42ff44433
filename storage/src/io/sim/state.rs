//! Everything a simulated disk consists of, and what each operation does to it when it is issued
//! and when it completes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::io::Errno;
use tokio::time::Instant;

use super::config::{SimConfig, SyncFailure};
use super::content::Content;
use super::fate::{Fate, PowerLoss};
use super::names::{FileId, Names};
use super::trace::{Asked, Trace};
use crate::io::OpenMode;

const PER_MILLION: u32 = 1_000_000;

#[derive(Clone, Debug, Default)]
struct SimInode {
    content: Content,
    handles: usize,
    /// Where reads fail until it is written again.
    bad: Vec<Range<u64>>,
}

/// Cloning is cheap: contents are shared until written.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) config: SimConfig,
    pub(super) trace: Trace,
    /// Which of the successive openings of the disk may use it.
    pub(super) incarnation: u64,
    /// Operations issued so far; each bears its number as a stamp.
    pub(super) stamp: u64,
    /// The operation that never completes, and after which none is issued.
    pub(super) halt_at: Option<u64>,
    pub(super) stalled_until: Option<Instant>,
    rng: SmallRng,
    names: Names,
    inodes: BTreeMap<FileId, SimInode>,
    next_file: FileId,
    /// Writes issued and not completed: a sync issued meanwhile does not cover them.
    in_flight: BTreeSet<u64>,
    sync_failures: Vec<(Option<PathBuf>, SyncFailure)>,
    write_failures: Vec<Option<PathBuf>>,
    /// Reads to misdirect, each with how many of the same file come before it.
    misdirected: Vec<(PathBuf, u64)>,
}

/// What a sync will make durable once it completes.
#[derive(Clone, Debug)]
pub(super) struct Covered {
    stamp: u64,
    but: BTreeSet<u64>,
}

impl State {
    pub(super) fn new(seed: u64, config: SimConfig) -> Self {
        Self {
            config,
            trace: Trace::default(),
            incarnation: 0,
            stamp: 0,
            halt_at: None,
            stalled_until: None,
            rng: SmallRng::seed_from_u64(seed),
            names: Names::default(),
            inodes: BTreeMap::new(),
            next_file: 1,
            in_flight: BTreeSet::new(),
            sync_failures: Vec::new(),
            write_failures: Vec::new(),
            misdirected: Vec::new(),
        }
    }

    /// A copy that goes its own way from here.
    pub(super) fn fork(&self, seed: u64) -> Self {
        let mut copy = self.clone();
        copy.rng = SmallRng::seed_from_u64(seed);
        copy.close_all();
        copy.halt_at = None;
        copy
    }

    /// Numbers an operation.
    pub(super) fn issue(&mut self, asked: Asked, path: &Path, at: u64) -> u64 {
        self.stamp += 1;
        self.trace.asked(asked, path, at);
        self.stamp
    }

    /// How long the operation takes that was issued just now.
    pub(super) fn delay(&mut self) -> Duration {
        let config = &self.config;
        let mut delay = if config.latency_max > config.latency_min {
            self.rng
                .random_range(config.latency_min..=config.latency_max)
        } else {
            config.latency_min
        };
        if self.chance(self.config.stall_chance) {
            delay += self.config.stall;
        }
        if let Some(until) = self.stalled_until {
            let now = Instant::now();
            if until > now {
                delay += until - now;
            } else {
                self.stalled_until = None;
            }
        }
        delay
    }

    pub(super) fn open(&mut self, stamp: u64, path: &Path, mode: OpenMode) -> io::Result<FileId> {
        if self.names.is_dir(path) {
            return Err(Errno::ISDIR.into());
        }
        if self.config.no_descriptors && mode == OpenMode::Read {
            return Err(Errno::MFILE.into());
        }
        let file = match (self.names.file(path), mode) {
            (Some(_), OpenMode::Create) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(file), OpenMode::Read | OpenMode::Write) => file,
            (None, OpenMode::Create) => {
                if !path.parent().is_some_and(|dir| self.names.is_dir(dir)) {
                    return Err(ErrorKind::NotFound.into());
                }
                let file = self.new_file();
                self.names.link(stamp, path, file);
                file
            }
            (None, OpenMode::Read | OpenMode::Write) => return Err(ErrorKind::NotFound.into()),
        };
        self.inodes.entry(file).or_default().handles += 1;
        Ok(file)
    }

    /// A handle is gone.
    pub(super) fn close(&mut self, file: FileId) {
        if let Some(inode) = self.inodes.get_mut(&file) {
            inode.handles = inode.handles.saturating_sub(1);
        }
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.require_dir(dir)?;
        Ok(self.names.list(dir))
    }

    /// Returns the folders whose names change.
    pub(super) fn make_dirs(&mut self, stamp: u64, dir: &Path) -> io::Result<Vec<PathBuf>> {
        if dir.ancestors().any(|dir| self.names.file(dir).is_some()) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        Ok(self.names.make_dirs(stamp, dir))
    }

    pub(super) fn rename(&mut self, stamp: u64, from: &Path, to: &Path) -> io::Result<()> {
        if !to.parent().is_some_and(|dir| self.names.is_dir(dir)) {
            return Err(ErrorKind::NotFound.into());
        }
        match self.names.file(from) {
            Some(_) if self.names.is_dir(to) => Err(Errno::ISDIR.into()),
            Some(file) => {
                self.names.rename(stamp, from, to, file);
                Ok(())
            }
            None if !self.names.is_dir(from) => Err(ErrorKind::NotFound.into()),
            None if self.names.file(to).is_some() => Err(Errno::NOTDIR.into()),
            None if self.names.is_dir(to) => Err(Errno::NOTEMPTY.into()),
            None => {
                self.names.rename_dir(stamp, from, to);
                Ok(())
            }
        }
    }

    pub(super) fn remove_file(&mut self, stamp: u64, path: &Path) -> io::Result<()> {
        if self.names.file(path).is_none() {
            return Err(ErrorKind::NotFound.into());
        }
        self.names.unlink(stamp, path);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, stamp: u64, dir: &Path) -> io::Result<()> {
        if self.names.file(dir).is_some() {
            return Err(Errno::NOTDIR.into());
        }
        self.names.remove_dir(stamp, dir);
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, stamp: u64, dir: &Path) -> io::Result<()> {
        self.require_dir(dir)?;
        if self.sync_failure(dir).is_some() {
            return Err(Errno::IO.into());
        }
        self.names.sync(dir, stamp);
        self.forget_unreachable();
        Ok(())
    }

    pub(super) fn read(
        &mut self,
        file: FileId,
        path: &Path,
        pos: u64,
        len: usize,
    ) -> io::Result<Bytes> {
        let (mut file, mut pos) = (file, pos);
        let inode = self.inode(file)?;
        let end = pos.saturating_add(len as u64);
        let bad = inode.bad.iter().any(|bad| bad.start < end && pos < bad.end);
        if bad || self.chance(self.config.read_error_chance) {
            return Err(Errno::IO.into());
        }
        if self.is_misdirected(path) || self.chance(self.config.read_misdirect_chance) {
            (file, pos) = self.elsewhere(file, pos);
        }
        let mut bytes = self.inode(file)?.content.read(pos, len);
        if !bytes.is_empty() && self.chance(self.config.read_flip_chance) {
            let at = self.rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << self.rng.random_range(0..8);
        }
        self.trace.bytes(&bytes);
        Ok(Bytes::from(bytes))
    }

    /// Writes as much as there is room for; the rest of the operation follows on completion.
    pub(super) fn write(
        &mut self,
        stamp: u64,
        file: FileId,
        path: &Path,
        bufs: &[Bytes],
        pos: u64,
    ) -> io::Result<()> {
        let total: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        if total == 0 {
            return Ok(());
        }
        let mut left = total.min(self.room(file, pos)?);
        let mut result = if left < total {
            Err(ErrorKind::StorageFull.into())
        } else {
            Ok(())
        };
        if self.write_failure(path) {
            left = self.rng.random_range(0..=left);
            result = Err(Errno::IO.into());
        }
        let inode = self.inodes.entry(file).or_default();
        inode
            .bad
            .retain(|bad| bad.end <= pos || pos + left <= bad.start);
        let mut at = pos;
        for buf in bufs {
            let take = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if take > 0 {
                inode.content.write(stamp, at, &buf[..take]);
                self.trace.bytes(&buf[..take]);
                at += take as u64;
                left -= take as u64;
            }
        }
        result
    }

    pub(super) fn set_len(&mut self, stamp: u64, file: FileId, len: u64) -> io::Result<()> {
        let grows = len.saturating_sub(self.inode(file)?.content.len());
        if self.room(file, len)? < grows {
            return Err(ErrorKind::StorageFull.into());
        }
        self.inodes
            .entry(file)
            .or_default()
            .content
            .set_len(stamp, len);
        Ok(())
    }

    pub(super) fn len(&self, file: FileId) -> io::Result<u64> {
        Ok(self.inode(file)?.content.len())
    }

    pub(super) fn begin_write(&mut self, stamp: u64) {
        self.in_flight.insert(stamp);
    }

    pub(super) fn end_write(&mut self, stamp: u64) {
        self.in_flight.remove(&stamp);
    }

    /// What a sync issued now as `stamp` covers.
    pub(super) fn covered(&self, stamp: u64) -> Covered {
        let mut but = self.in_flight.clone();
        but.remove(&stamp);
        Covered { stamp, but }
    }

    pub(super) fn sync(&mut self, file: FileId, path: &Path, covered: &Covered) -> io::Result<()> {
        let failure = self.sync_failure(path);
        let inode = self.inodes.entry(file).or_default();
        if let Some(failure) = failure {
            let ghosts = failure == SyncFailure::Ghost;
            inode.content.fail_sync(ghosts, &mut self.rng);
            return Err(Errno::IO.into());
        }
        let covers = |stamp| stamp <= covered.stamp && !covered.but.contains(&stamp);
        inode.content.sync(covers);
        Ok(())
    }

    pub(super) fn power_loss(&mut self, loss: PowerLoss) {
        let contents = self.inodes.values().map(|inode| &inode.content);
        let oldest = contents.filter_map(Content::oldest_unsynced);
        let oldest = oldest.chain(self.names.oldest_unsynced()).min();
        let unsynced = (oldest.unwrap_or(self.stamp), self.stamp);
        let fate = Fate::draw(loss, unsynced, &mut self.rng);
        self.names.power_loss(fate, &mut self.rng);
        for inode in self.inodes.values_mut() {
            inode.content.power_loss(fate, &mut self.rng);
        }
        self.end_of_incarnation(1 + loss as u64);
    }

    /// The process is gone; the page cache stays.
    pub(super) fn kill(&mut self) {
        self.end_of_incarnation(0);
    }

    pub(super) fn fail_sync(&mut self, path: Option<&Path>, failure: SyncFailure) {
        self.sync_failures.push((path.map(Path::to_owned), failure));
    }

    pub(super) fn fail_write(&mut self, path: Option<&Path>) {
        self.write_failures.push(path.map(Path::to_owned));
    }

    pub(super) fn mend(&mut self) {
        self.sync_failures.clear();
        self.write_failures.clear();
        self.misdirected.clear();
        self.stalled_until = None;
        self.config.quota_bytes = None;
        self.config.write_error_chance = 0;
        self.config.sync_error_chance = 0;
        self.config.read_error_chance = 0;
        self.config.read_flip_chance = 0;
        self.config.read_misdirect_chance = 0;
        self.config.no_descriptors = false;
    }

    pub(super) fn is_sound(&self) -> bool {
        self.sync_failures.is_empty()
            && self.write_failures.is_empty()
            && self.config.sync_error_chance == 0
            && self.config.write_error_chance == 0
    }

    pub(super) fn misdirect_read(&mut self, path: &Path, reads: u64) {
        self.misdirected.push((path.to_owned(), reads));
    }

    pub(super) fn is_to_misdirect(&self) -> bool {
        !self.misdirected.is_empty()
    }

    /// Whether the read of this file that is being done now was asked to go astray.
    fn is_misdirected(&mut self, path: &Path) -> bool {
        let mut due = false;
        self.misdirected.retain_mut(|(concerned, reads)| {
            if concerned != path {
                return true;
            }
            let now = *reads == 0 && !due;
            due |= now;
            *reads = reads.saturating_sub(1);
            !now
        });
        due
    }

    pub(super) fn fail_reads(&mut self, path: &Path, range: Range<u64>) {
        let file = self.names.file(path);
        if let Some(inode) = file.and_then(|file| self.inodes.get_mut(&file)) {
            inode.bad.push(range);
        }
    }

    pub(super) fn flip_bit(&mut self, path: &Path, pos: u64, bit: u8) {
        let file = self.names.file(path);
        if let Some(inode) = file.and_then(|file| self.inodes.get_mut(&file)) {
            inode.content.flip_bit(pos, bit);
        }
    }

    pub(super) fn raw_read(&self, path: &Path) -> Option<Vec<u8>> {
        let inode = self.inodes.get(&self.names.file(path)?)?;
        let len = usize::try_from(inode.content.len()).ok()?;
        Some(inode.content.read(0, len))
    }

    pub(super) fn raw_write(&mut self, path: &Path, data: &[u8]) {
        let file = self.new_file();
        let content = &mut self.inodes.entry(file).or_default().content;
        content.write(0, 0, data);
        content.sync(|_| true);
        self.names.plant(path, file);
    }

    pub(super) fn raw_remove(&mut self, path: &Path) {
        self.names.uproot(path);
    }

    pub(super) fn files(&self) -> Vec<(PathBuf, u64)> {
        let len = |file| {
            self.inodes
                .get(&file)
                .map_or(0, |inode| inode.content.len())
        };
        self.names
            .files()
            .map(|(path, file)| (path.clone(), len(file)))
            .collect()
    }

    /// Files that take up memory, whether or not they have a name.
    #[cfg(test)]
    pub(super) fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    fn inode(&self, file: FileId) -> io::Result<&SimInode> {
        self.inodes.get(&file).ok_or_else(|| Errno::BADF.into())
    }

    fn new_file(&mut self) -> FileId {
        let file = self.next_file;
        self.next_file += 1;
        self.inodes.insert(file, SimInode::default());
        file
    }

    fn require_dir(&self, dir: &Path) -> io::Result<()> {
        if self.names.is_dir(dir) {
            Ok(())
        } else if self.names.file(dir).is_some() {
            Err(Errno::NOTDIR.into())
        } else {
            Err(ErrorKind::NotFound.into())
        }
    }

    /// Bytes that can be written from `pos` within the quota.
    fn room(&self, file: FileId, pos: u64) -> io::Result<u64> {
        let len = self.inode(file)?.content.len();
        Ok(self.free().saturating_add(len).saturating_sub(pos))
    }

    /// Bytes that can be written within the quota.
    pub(super) fn free(&self) -> u64 {
        let Some(quota) = self.config.quota_bytes else {
            return u64::MAX;
        };
        // A file without a name takes room only while somebody has it open.
        let named: BTreeSet<FileId> = self.names.files().map(|(_, file)| file).collect();
        let taking =
            |(file, inode): &(&FileId, &SimInode)| inode.handles > 0 || named.contains(*file);
        let used: u64 = self
            .inodes
            .iter()
            .filter(taking)
            .map(|(_, inode)| inode.content.len())
            .sum();
        quota.saturating_sub(used)
    }

    fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0
            && self
                .rng
                .random_ratio(per_million.min(PER_MILLION), PER_MILLION)
    }

    fn sync_failure(&mut self, path: &Path) -> Option<SyncFailure> {
        let planned = self
            .sync_failures
            .iter()
            .position(|(p, _)| concerns(p.as_deref(), path));
        if let Some(planned) = planned {
            return Some(self.sync_failures.remove(planned).1);
        }
        self.chance(self.config.sync_error_chance)
            .then_some(SyncFailure::Drop)
    }

    fn write_failure(&mut self, path: &Path) -> bool {
        let planned = self
            .write_failures
            .iter()
            .position(|p| concerns(p.as_deref(), path));
        if let Some(planned) = planned {
            self.write_failures.remove(planned);
            return true;
        }
        self.chance(self.config.write_error_chance)
    }

    /// Another place, which a confused disk might read instead.
    fn elsewhere(&mut self, file: FileId, pos: u64) -> (FileId, u64) {
        let others: Vec<FileId> = self
            .inodes
            .keys()
            .copied()
            .filter(|id| *id != file)
            .collect();
        if !others.is_empty() && self.rng.random_bool(0.5) {
            return (others[self.rng.random_range(0..others.len())], pos);
        }
        (file, pos ^ (512 << self.rng.random_range(0..4)))
    }

    fn end_of_incarnation(&mut self, how: u64) {
        let stamp = self.issue(Asked::Crash, Path::new(""), how);
        self.trace.number(stamp);
        self.incarnation += 1;
        self.close_all();
        self.forget_unreachable();
    }

    fn close_all(&mut self) {
        for inode in self.inodes.values_mut() {
            inode.handles = 0;
        }
        self.in_flight.clear();
    }

    fn forget_unreachable(&mut self) {
        let reachable = self.names.reachable();
        self.inodes
            .retain(|file, inode| inode.handles > 0 || reachable.contains(file));
    }
}

fn concerns(planned: Option<&Path>, path: &Path) -> bool {
    planned.is_none_or(|planned| planned == path)
}
