//! The file of a checkpoint: how one replaces another, atomically and without asking the disk for
//! room, since a full disk is freed by way of checkpoints.
//!
//! The file before last is kept as the spare. It is written over, synced, and changes places with
//! the present one:
//!
//! ```text
//! checkpoint.new        spare, written over and synced
//! checkpoint      ───>  checkpoint.old
//! checkpoint.new  ───>  checkpoint             then the folder is synced: the new one holds
//! checkpoint.old  ───>  checkpoint.new         the next spare; the folder is synced again
//! ```
//!
//! Between the two renames there is no `checkpoint`, only `checkpoint.old` and a complete
//! `checkpoint.new`. Files are longer than what they hold, so that the next one may be, too.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::fill::is_full;
use crate::io::{Io, IoFile, OpenMode};

pub(crate) const NAME: &str = "checkpoint";
pub(crate) const NEW_NAME: &str = "checkpoint.new";
pub(crate) const OLD_NAME: &str = "checkpoint.old";
/// Files are a multiple of this, so that a checkpoint may grow in its place.
const FILE_UNIT: usize = 16 << 10;

pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(NAME)
}

/// Reads the checkpoint file; `None` if there is none.
pub(crate) async fn load<I: Io>(io: &I, dir: &Path) -> io::Result<Option<Bytes>> {
    if let Some(bytes) = read(io, &path(dir)).await? {
        return Ok(Some(bytes));
    }
    let Some(old) = read(io, &dir.join(OLD_NAME)).await? else {
        return Ok(None);
    };
    let new = read(io, &dir.join(NEW_NAME)).await?;
    Ok(Some(new.unwrap_or(old)))
}

/// Finishes a replacement that was cut short, so that the file has its name again.
pub(crate) async fn mend<I: Io>(io: &I, dir: &Path) -> io::Result<()> {
    if exists(io, &path(dir)).await? {
        return Ok(());
    }
    for name in [NEW_NAME, OLD_NAME] {
        // Without the old one nothing was being replaced: a new one may be any part of a first.
        if exists(io, &dir.join(OLD_NAME)).await? && exists(io, &dir.join(name)).await? {
            return io.rename(&dir.join(name), &path(dir)).await;
        }
    }
    Ok(())
}

/// Has a spare from the start, as large as the present one, if there is room.
pub(crate) async fn keep_spare<I: Io>(io: &I, dir: &Path) -> io::Result<()> {
    let (new, old) = (dir.join(NEW_NAME), dir.join(OLD_NAME));
    let len = load(io, dir).await?.map_or(0, |bytes| bytes.len());
    let file = spare(io, dir, &new, &old).await?;
    match lengthen(&file, len).await {
        Err(error) if !is_full(&error) => Err(error),
        Err(_) | Ok(()) => Ok(()),
    }
}

/// What went wrong replacing a checkpoint: the old one still stands.
#[derive(Debug)]
pub(crate) enum SaveError {
    /// Nothing was lost; it may be tried again.
    Write(io::Error),
    /// A sync or a rename failed: final.
    Sync(io::Error),
}

impl SaveError {
    pub(crate) fn into_inner(self) -> io::Error {
        match self {
            Self::Write(error) | Self::Sync(error) => error,
        }
    }
}

/// Replaces the checkpoint file; durable on return.
pub(crate) async fn save<I: Io>(io: &I, dir: &Path, bytes: Bytes) -> Result<(), SaveError> {
    let (new, old, present) = (dir.join(NEW_NAME), dir.join(OLD_NAME), path(dir));
    let file = spare(io, dir, &new, &old).await.map_err(SaveError::Write)?;
    write(&file, bytes).await.map_err(SaveError::Write)?;
    file.sync_data().await.map_err(SaveError::Sync)?;
    let replaced = exists(io, &present).await.map_err(SaveError::Write)?;
    if replaced {
        io.rename(&present, &old).await.map_err(SaveError::Write)?;
    }
    io.rename(&new, &present).await.map_err(SaveError::Sync)?;
    io.sync_dir(dir).await.map_err(SaveError::Sync)?;
    if replaced {
        io.rename(&old, &new).await.map_err(SaveError::Sync)?;
        // Or a power loss could leave one file with two names, of which one is written over.
        io.sync_dir(dir).await.map_err(SaveError::Sync)?;
    }
    Ok(())
}

/// The file to write over, a new one if there is none yet.
async fn spare<I: Io>(io: &I, dir: &Path, new: &Path, old: &Path) -> io::Result<I::File> {
    if !exists(io, new).await? {
        if !exists(io, old).await? {
            return io.open(new, OpenMode::Create).await;
        }
        // The last replacement was cut short behind its sync.
        io.rename(old, new).await?;
        io.sync_dir(dir).await?;
    }
    io.open(new, OpenMode::Write).await
}

/// Writes `bytes`, and zeros behind them as far as there is room.
async fn write<F: IoFile>(file: &F, bytes: Bytes) -> io::Result<()> {
    let len = bytes.len();
    file.write_all_at(vec![bytes], 0).await?;
    match lengthen(file, len + len / 4).await {
        Err(error) if is_full(&error) => Ok(()),
        lengthened => lengthened,
    }
}

/// Writes zeros behind a file's end until it is this long, or a little longer.
async fn lengthen<F: IoFile>(file: &F, len: usize) -> io::Result<()> {
    let whole = len.max(1).next_multiple_of(FILE_UNIT);
    let end = usize::try_from(file.len().await?).unwrap_or(usize::MAX);
    if end < whole {
        let zeros = Bytes::from(vec![0; whole - end]);
        file.write_all_at(vec![zeros], end as u64).await?;
    }
    Ok(())
}

async fn read<I: Io>(io: &I, path: &Path) -> io::Result<Option<Bytes>> {
    let file = match io.open(path, OpenMode::Read).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = usize::try_from(file.len().await?);
    let len = len.map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    file.read_at(0, len).await.map(Some)
}

async fn exists<I: Io>(io: &I, path: &Path) -> io::Result<bool> {
    match io.open(path, OpenMode::Read).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
