//! Opening, naming and removing files with plain system calls: rare operations that both real
//! back-ends do on the spot.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::OpenMode;

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
