//! Opening, naming, removing and measuring files with plain system calls: rare operations that
//! both real back-ends do on the spot.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::OpenMode;

/// A read longer than this is first held against the length of the file, so that a wrong length
/// costs no memory.
const READ_UNCHECKED_MAX: usize = 1 << 20;

pub(super) fn open(path: &Path, mode: OpenMode) -> io::Result<File> {
    let mut options = File::options();
    options.read(true);
    match mode {
        OpenMode::Read => {}
        OpenMode::Write => {
            options.write(true);
        }
        OpenMode::Create => {
            options.write(true).create_new(true);
        }
    }
    options.open(path)
}

/// The same file once more, each write through which is durable when it returns.
pub(super) fn reopen_durable(file: BorrowedFd<'_>) -> io::Result<File> {
    // By its descriptor: the name may be another file's by now.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let durable = OFlags::DSYNC.bits().cast_signed();
    File::options().write(true).custom_flags(durable).open(path)
}

pub(super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = fs::read_dir(dir)?
        .map(|entry| Ok(PathBuf::from(entry?.file_name())))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

pub(super) fn create_dir_all(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists && dir.is_dir() => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let parent = dir.parent().ok_or(error)?;
            create_dir_all(parent)?;
            fs::create_dir(dir)?;
        }
        Err(error) => return Err(error),
    }
    match dir.parent() {
        Some(parent) if parent != Path::new("") => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

pub(super) fn remove_dir_all(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(super) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let space = rustix::fs::statvfs(dir)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

pub(super) fn len(file: impl AsFd) -> io::Result<u64> {
    let stat = rustix::fs::fstat(file)?;
    Ok(u64::try_from(stat.st_size).unwrap_or(0))
}

/// How much of `len` bytes from `pos` it makes sense to ask for.
pub(super) fn readable(file: impl AsFd, pos: u64, wanted: usize) -> io::Result<usize> {
    if wanted <= READ_UNCHECKED_MAX {
        return Ok(wanted);
    }
    let left = len(file)?.saturating_sub(pos);
    Ok(usize::try_from(left).map_or(wanted, |left| wanted.min(left)))
}
