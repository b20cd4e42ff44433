//! Damage to files, drawn so that one good majority is always left: of one node at a time, which
//! is to be whole again before another one is harmed.
//!
//! ```text
//! what is harmed        how                               what must come of it
//! write-ahead log       bit, zeros, other block, cut      every replica steps aside, comes back as
//! checkpoint            the same, or an older one         another one
//! segment, its index    the same                          replaced by a copy of a peer's, or rebuilt
//! the whole disk        empty                             every replica comes back as another one
//! ```
//!
//! Votes have no file of their own: they stand in the write-ahead log and in checkpoints.
//!
//! Of the write-ahead log only what some later round proves to have been durable is harmed. Nobody
//! can tell the damage of the last round from a write that was never completed, here as anywhere.
//! A cut leaves a file's header, for the same reason.

use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use trilog_model::GroupId;
use trilog_storage::io::sim::SimDisk;
use trilog_storage::wal::{FilePlaces, places};

use super::Cluster;

/// The unit in which blocks are mixed up: that of the write-ahead log.
const BLOCK: usize = 4096;

/// What is harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Wal,
    Checkpoint,
    Segment,
    Index,
}

/// How it is harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    FlipBit,
    /// A write that never got there.
    Zeros,
    /// Another block of a file of the kind: a write that went astray, or an older version.
    StaleBlock,
    CutShort,
}

/// A file and where it may be harmed.
struct Target {
    path: PathBuf,
    bytes: Vec<u8>,
    place: Range<usize>,
    /// What it may be cut to.
    cut: Range<usize>,
}

/// Harms a node's files while it is down, and starts it; or, if one was harmed before, has that
/// one mended.
///
/// # Panics
/// If what was harmed before does not become whole.
pub(super) async fn damage(cluster: &mut Cluster, group: GroupId, rng: &mut SmallRng) -> String {
    if !cluster.damaged().is_empty() {
        let damaged = cluster.damaged();
        cluster.heal().await;
        cluster.await_whole(group).await;
        return format!("Damage of {damaged:?} is mended");
    }
    let Some(node) = cluster.nodes().choose(rng).copied() else {
        return "Damage: no node".to_owned();
    };
    let what = if rng.random_bool(0.1) {
        cluster.destroy(node);
        "all of the disk".to_owned()
    } else {
        match rng.random_range(0..3) {
            0 => cluster.stop(node).await,
            1 => cluster.kill(node),
            _ => cluster.power_loss(node),
        }
        let Some(harmed) = harm(cluster.disk(node), rng) else {
            return format!("Damage: nothing on node {node}");
        };
        cluster.mark_damaged(node);
        harmed
    };
    if rng.random() {
        cluster.boot(node).await;
    }
    format!("Damage of node {node}: {what}")
}

/// Harms one file; says which and how, or `None` if there is nothing to harm.
fn harm(disk: &SimDisk, rng: &mut SmallRng) -> Option<String> {
    let parts = [
        Part::Wal,
        Part::Wal,
        Part::Checkpoint,
        Part::Segment,
        Part::Segment,
        Part::Index,
    ];
    let harms = [
        Harm::FlipBit,
        Harm::FlipBit,
        Harm::Zeros,
        Harm::StaleBlock,
        Harm::CutShort,
    ];
    let (part, how) = (*parts.choose(rng)?, *harms.choose(rng)?);
    let target = match part {
        Part::Wal => in_wal(disk, rng),
        Part::Checkpoint => in_checkpoint(disk),
        Part::Segment => in_any(disk, "seg", rng),
        Part::Index => in_any(disk, "idx", rng),
    }?;
    let at = rng.random_range(target.place.clone());
    let stale = stale_block(disk, part, &target, rng)?;
    let mut bytes = target.bytes;
    let block = at / BLOCK * BLOCK..bytes.len().min((at / BLOCK + 1) * BLOCK);
    match how {
        Harm::FlipBit => bytes[at] ^= 1 << rng.random_range(0..8),
        Harm::Zeros => bytes[block].fill(0),
        Harm::StaleBlock => {
            for (byte, other) in bytes[block].iter_mut().zip(stale) {
                *byte = other;
            }
        }
        Harm::CutShort => bytes.truncate(rng.random_range(target.cut)),
    }
    disk.write(&target.path, &bytes);
    Some(format!("{how:?} at {at} of {}", target.path.display()))
}

/// The files of a kind that hold anything.
fn files(disk: &SimDisk, kind: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = disk.files().into_iter().map(|(path, _)| path);
    let of_kind = paths.filter(|path| path.extension().is_some_and(|found| found == kind));
    of_kind
        .filter(|path| !path.components().any(|part| is_aside(part.as_os_str())))
        .filter_map(|path| disk.read(&path).map(|bytes| (path, bytes)))
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect()
}

/// What was set aside is nobody's any more.
fn is_aside(name: &std::ffi::OsStr) -> bool {
    name.to_string_lossy().contains(".damaged-")
}

fn in_any(disk: &SimDisk, kind: &str, rng: &mut SmallRng) -> Option<Target> {
    let (path, bytes) = files(disk, kind).choose(rng)?.clone();
    anywhere(path, bytes)
}

fn in_checkpoint(disk: &SimDisk) -> Option<Target> {
    let path = PathBuf::from("/data/checkpoint");
    let bytes = disk.read(&path)?;
    anywhere(path, bytes)
}

fn anywhere(path: PathBuf, bytes: Vec<u8>) -> Option<Target> {
    // Behind this it is only prepared for what is to come.
    let end = bytes.iter().rposition(|byte| *byte != 0)? + 1;
    Some(Target {
        path,
        place: 0..end,
        cut: 0..end,
        bytes,
    })
}

/// A place in the two newest files of the write-ahead log that a later round proves durable.
fn in_wal(disk: &SimDisk, rng: &mut SmallRng) -> Option<Target> {
    let files = files(disk, "wal").into_iter();
    let begun = files.filter_map(|(path, bytes)| Some((places(&bytes)?, path, bytes)));
    let mut begun: Vec<_> = begun.collect();
    begun.sort_by_key(|(places, _, _)| places.file);
    let (newest, path, bytes) = begun.pop()?;
    let proven = newest.rounds.iter().map(|round| round.durable).max();
    let proven = proven
        .unwrap_or(0)
        .max(newest.first_round.saturating_sub(1));
    let former = begun
        .pop()
        .filter(|(former, _, _)| former.file + 1 == newest.file);
    let of_newest = provable(&newest, proven + 1);
    let (path, bytes, regions) = match former {
        Some((former, path, bytes)) if of_newest.is_empty() || rng.random_bool(0.3) => {
            (path, bytes, provable(&former, newest.first_round))
        }
        _ => (path, bytes, of_newest),
    };
    Some(Target {
        place: regions.choose(rng)?.clone(),
        cut: BLOCK..bytes.len(),
        path,
        bytes,
    })
}

/// What of a file holds rounds before `end`, or says where they are.
fn provable(file: &FilePlaces, end: u64) -> Vec<Range<usize>> {
    let rounds = file.rounds.iter().filter(|round| round.round < end);
    let mut regions: Vec<_> = rounds.map(|round| round.bytes.clone()).collect();
    if !regions.is_empty() {
        regions.push(file.header.clone());
    }
    regions
}

/// What a write that went astray would have put there.
fn stale_block(disk: &SimDisk, part: Part, target: &Target, rng: &mut SmallRng) -> Option<Vec<u8>> {
    let former = Path::new("/data/checkpoint.new");
    let from = match part {
        Part::Checkpoint => disk.read(former).unwrap_or_default(),
        Part::Wal | Part::Segment | Part::Index => {
            let kind = target.path.extension()?.to_str()?;
            files(disk, kind).choose(rng)?.1.clone()
        }
    };
    let block = from.chunks(BLOCK).collect::<Vec<_>>();
    Some(
        block
            .choose(rng)
            .map_or_else(Vec::new, |block| block.to_vec()),
    )
}

#[cfg(test)]
mod tests {
    use trilog_storage::wal::RoundPlace;

    use super::*;

    #[test]
    fn what_no_later_round_proves_is_spared() {
        let round = |round: u64, durable, from: usize| RoundPlace {
            round,
            durable,
            bytes: from..from + 100,
        };
        let file = FilePlaces {
            file: 3,
            first_round: 10,
            header: 0..64,
            rounds: vec![round(10, 9, BLOCK), round(11, 10, 2 * BLOCK)],
        };
        let regions = provable(&file, 11);
        assert_eq!(regions, [BLOCK..BLOCK + 100, 0..64]);
        // With a round that nothing proves, the header that leads to it is spared, too.
        assert_eq!(provable(&file, 10), []);
    }
}
