//! Room that is kept so that the store can be opened while the disk is full.
//!
//! RocksDB writes a few small files whenever it is opened. A node that was full and lost its power would
//! not come back for want of them, and a full disk is got out of by nodes that run: they trim. So there
//! is a file among the store's that means nothing; who finds no room to open the store removes it, and
//! makes it anew of what is left.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::KvError;

/// Many times what opening takes.
const ROOM: usize = 1 << 20;
/// Bytes asked for at once, so that what there is can be had.
const STEP: usize = 16 << 10;

/// Whether it was for want of room: RocksDB says so in words alone, those of the system.
pub(super) fn was_lacking(error: &KvError) -> bool {
    let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
    let words = full.to_string();
    let words = words.split(" (os error").next().unwrap_or_default();
    error.to_string().contains(words)
}

/// Among the store's own files, which RocksDB knows by their names.
fn file(store: &Path) -> PathBuf {
    store.join("room")
}

/// Keeps as much room as there is, up to what is enough.
pub(super) fn keep(store: &Path) {
    if let Err(error) = grow(&file(store)) {
        tracing::debug!(%error, "no room is kept for opening the view state on a full disk");
    }
}

fn grow(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let held = usize::try_from(file.metadata()?.len()).unwrap_or(ROOM);
    let step = vec![0; STEP];
    let grown = (held / STEP..ROOM / STEP).try_for_each(|_| file.write_all(&step));
    // Otherwise what there is of it may not be there when it is needed.
    file.sync_all()?;
    grown
}

/// Gives it up; false if there was none.
pub(super) fn give_up(store: &Path) -> bool {
    fs::remove_file(file(store)).is_ok()
}
