//! Damage to a stopped node's files, as disks and their firmware do it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::schedule::Fault;

/// What a disk writes at once.
const CHUNK: u64 = 4096;
/// Places that are changed at once, at most.
const PLACES: usize = 4;
/// How often a place is looked for where something can be done.
const LOOKS: usize = 400;

/// Does one kind of damage to files of the log in a data directory; what was done where. Nothing
/// if there is no file that could be damaged.
pub(super) fn damage(dir: &Path, fault: Fault, rng: &mut SmallRng) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    log_files(dir, &mut files)?;
    files.sort();
    // Files are laid out before they are filled, and what holds nothing cannot be damaged.
    let mut busy: Vec<(&Path, Vec<u64>)> = Vec::new();
    for (path, len) in &files {
        let chunks = busy_chunks(path, *len)?;
        if !chunks.is_empty() {
            busy.push((path, chunks));
        }
    }
    let mut done = Vec::new();
    let wanted = rng.random_range(1..=PLACES);
    // A file of one chunk has no other that it could be a copy of.
    for _ in 0..LOOKS {
        let Some((path, chunks)) = busy.choose(rng).filter(|_| done.len() < wanted) else {
            break;
        };
        let Some(chunk) = chunks.choose(rng).copied() else {
            break;
        };
        let name = path.strip_prefix(dir).unwrap_or(path).display();
        let what = match fault {
            Fault::Truncate => Some(truncate(path, chunk, rng)?),
            Fault::StaleChunks => copy_chunk(path, chunk, rng)?,
            _ => Some(flip(path, chunk, rng)?),
        };
        done.extend(what.map(|what| format!("{name}: {what}")));
        // Cut once, a file is not what its length here says.
        if fault == Fault::Truncate {
            break;
        }
    }
    Ok(done)
}

/// Files of the write-ahead log and of segments, with their lengths.
fn log_files(dir: &Path, files: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    for folder in ["p", "wal"] {
        let path = dir.join(folder);
        if path.is_dir() {
            collect(&path, files)?;
        }
    }
    Ok(())
}

fn collect(dir: &Path, files: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            collect(&entry.path(), files)?;
        } else if metadata.len() > 0 {
            files.push((entry.path(), metadata.len()));
        }
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// A chunk of a file, which may be its last and shorter than others.
fn read_chunk(file: &mut File, chunk: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(chunk * CHUNK))?;
    file.take(CHUNK).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The chunks of a file that hold something.
fn busy_chunks(path: &Path, len: u64) -> io::Result<Vec<u64>> {
    let mut file = open(path)?;
    let mut busy = Vec::new();
    for chunk in 0..len.div_ceil(CHUNK) {
        let bytes = read_chunk(&mut file, chunk)?;
        if bytes.iter().any(|byte| *byte != 0) {
            busy.push(chunk);
        }
    }
    Ok(busy)
}

fn flip(path: &Path, chunk: u64, rng: &mut SmallRng) -> io::Result<String> {
    let mut file = open(path)?;
    let mut bytes = read_chunk(&mut file, chunk)?;
    let busy: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    // Most of what is damaged is something, and some of it nothing.
    let at = match busy.choose(rng) {
        Some(at) if rng.random_bool(0.8) => *at,
        _ => rng.random_range(0..bytes.len().max(1)),
    };
    let bit = rng.random_range(0..8);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
    file.seek(SeekFrom::Start(chunk * CHUNK))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(format!("bit {bit} of byte {at} of chunk {chunk}"))
}

/// Cuts a file somewhere at or before a chunk that holds something.
fn truncate(path: &Path, chunk: u64, rng: &mut SmallRng) -> io::Result<String> {
    let left = rng.random_range(0..=chunk * CHUNK);
    let file = open(path)?;
    let len = file.metadata()?.len();
    file.set_len(left)?;
    file.sync_all()?;
    Ok(format!("{len} bytes cut to {left}"))
}

/// One chunk is as another one is: a write went astray, or never happened. Nothing if all that
/// were looked at are alike.
fn copy_chunk(path: &Path, to: u64, rng: &mut SmallRng) -> io::Result<Option<String>> {
    let mut file = open(path)?;
    let chunks = file.metadata()?.len().div_ceil(CHUNK);
    let before = read_chunk(&mut file, to)?;
    for _ in 0..LOOKS {
        let from = rng.random_range(0..chunks);
        let mut bytes = read_chunk(&mut file, from)?;
        bytes.truncate(before.len());
        if bytes.len() == before.len() && bytes != before {
            file.seek(SeekFrom::Start(to * CHUNK))?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            return Ok(Some(format!("chunk {to} is a copy of chunk {from}")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn each_kind_changes_a_file_and_says_what_it_did() {
        for fault in [Fault::FlipBits, Fault::Truncate, Fault::StaleChunks] {
            let dir = tempfile::tempdir().unwrap();
            let mut rng = SmallRng::seed_from_u64(3);
            assert!(damage(dir.path(), fault, &mut rng).unwrap().is_empty());
            let wal = dir.path().join("wal");
            fs::create_dir(&wal).unwrap();
            let path = wal.join("1.wal");
            // What is laid out and not filled is no place for damage.
            let filled = (1..=10_000_u32).flat_map(u32::to_be_bytes);
            let whole: Vec<u8> = filled.chain(vec![0; 400_000]).collect();
            fs::write(&path, &whole).unwrap();
            fs::write(dir.path().join("lock"), b"left alone").unwrap();
            let done = damage(dir.path(), fault, &mut rng).unwrap();
            assert!(
                done.iter().all(|what| what.starts_with("wal/1.wal: ")),
                "{done:?}"
            );
            let found = fs::read(&path).unwrap();
            let filled = found.get(..40_000).unwrap_or(&found);
            assert_ne!(filled, &whole[..40_000], "{fault}");
            assert_eq!(fs::read(dir.path().join("lock")).unwrap(), b"left alone");
        }
    }

    #[test]
    fn the_one_chunk_that_holds_something_is_found() {
        for seed in 0..10 {
            let dir = tempfile::tempdir().unwrap();
            let wal = dir.path().join("wal");
            fs::create_dir(&wal).unwrap();
            for name in ["1.wal", "2.wal"] {
                File::create(wal.join(name))
                    .unwrap()
                    .set_len(8 << 20)
                    .unwrap();
            }
            fs::write(wal.join("3.wal"), b"all of it").unwrap();
            let mut file = open(&wal.join("2.wal")).unwrap();
            file.seek(SeekFrom::Start(1_500 * CHUNK)).unwrap();
            file.write_all(b"something").unwrap();
            let mut rng = SmallRng::seed_from_u64(seed);
            let done = damage(dir.path(), Fault::StaleChunks, &mut rng).unwrap();
            let what = "wal/2.wal: chunk 1500 is a copy of chunk ";
            assert!(done[0].starts_with(what), "{seed}: {done:?}");
        }
    }
}
