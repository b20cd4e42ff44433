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

/// Does one kind of damage to files of the log in a data directory; what was done where. Nothing
/// if there is no file that could be damaged.
pub(super) fn damage(dir: &Path, fault: Fault, rng: &mut SmallRng) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    log_files(dir, &mut files)?;
    files.sort();
    let mut done = Vec::new();
    for _ in 0..rng.random_range(1..=PLACES) {
        let Some((path, len)) = files.choose(rng) else {
            break;
        };
        let name = path.strip_prefix(dir).unwrap_or(path).display();
        let what = match fault {
            Fault::Truncate => truncate(path, *len, rng)?,
            Fault::StaleChunks => copy_chunk(path, *len, rng)?,
            _ => flip(path, *len, rng)?,
        };
        done.push(format!("{name}: {what}"));
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

fn flip(path: &Path, len: u64, rng: &mut SmallRng) -> io::Result<String> {
    let (place, bit) = (rng.random_range(0..len), rng.random_range(0..8));
    let mut file = open(path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(place))?;
    file.read_exact(&mut byte)?;
    byte[0] ^= 1 << bit;
    file.seek(SeekFrom::Start(place))?;
    file.write_all(&byte)?;
    file.sync_all()?;
    Ok(format!("bit {bit} of byte {place}"))
}

fn truncate(path: &Path, len: u64, rng: &mut SmallRng) -> io::Result<String> {
    let left = rng.random_range(0..len);
    let file = open(path)?;
    file.set_len(left)?;
    file.sync_all()?;
    Ok(format!("{len} bytes cut to {left}"))
}

/// One chunk is as another one is: a write went astray, or never happened.
fn copy_chunk(path: &Path, len: u64, rng: &mut SmallRng) -> io::Result<String> {
    let chunks = len.div_ceil(CHUNK);
    let (from, to) = (rng.random_range(0..chunks), rng.random_range(0..chunks));
    let mut file = open(path)?;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(from * CHUNK))?;
    (&mut file).take(CHUNK).read_to_end(&mut bytes)?;
    let room = usize::try_from((len - to * CHUNK).min(CHUNK)).unwrap_or(0);
    bytes.truncate(room);
    file.seek(SeekFrom::Start(to * CHUNK))?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    Ok(format!("chunk {to} is a copy of chunk {from}"))
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
            let whole: Vec<u8> = (0..40_000_u32).flat_map(u32::to_be_bytes).collect();
            fs::write(&path, &whole).unwrap();
            fs::write(dir.path().join("lock"), b"left alone").unwrap();
            let done = damage(dir.path(), fault, &mut rng).unwrap();
            assert!(
                done.iter().all(|what| what.starts_with("wal/1.wal: ")),
                "{done:?}"
            );
            assert_ne!(fs::read(&path).unwrap(), whole, "{fault}");
            assert_eq!(fs::read(dir.path().join("lock")).unwrap(), b"left alone");
        }
    }
}
