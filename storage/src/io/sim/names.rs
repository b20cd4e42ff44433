//! The names on a simulated disk: what is durable, what the kernel shows, and the changes in
//! between that a power loss may undo.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;

use super::fate::{Fate, Version};

/// A file whatever it is called.
pub(super) type FileId = u64;

/// One state of the tree.
#[derive(Clone, Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, FileId>,
    dirs: BTreeSet<PathBuf>,
}

#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, FileId),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, FileId),
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
    RenameDir(PathBuf, PathBuf),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    cached: Tree,
    durable: Tree,
    /// Changes that no `sync_dir` has covered yet, oldest first.
    pending: Vec<Version<Change>>,
}

impl Names {
    pub(super) fn file(&self, path: &Path) -> Option<FileId> {
        self.cached.files.get(path).copied()
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (&PathBuf, FileId)> {
        self.cached.files.iter().map(|(path, file)| (path, *file))
    }

    /// Whether there is such a folder; the roots always are.
    pub(super) fn is_dir(&self, dir: &Path) -> bool {
        dir.parent().is_none() || dir == Path::new("") || self.cached.dirs.contains(dir)
    }

    /// The names directly in a folder, sorted.
    pub(super) fn list(&self, dir: &Path) -> Vec<PathBuf> {
        let paths = self.cached.files.keys().chain(&self.cached.dirs);
        let inside = paths.filter(|path| path.parent() == Some(dir));
        let mut names: Vec<PathBuf> = inside
            .filter_map(|path| path.file_name().map(PathBuf::from))
            .collect();
        names.sort_unstable();
        names
    }

    pub(super) fn link(&mut self, stamp: u64, path: &Path, file: FileId) {
        self.change(stamp, Change::Link(path.to_owned(), file));
    }

    pub(super) fn unlink(&mut self, stamp: u64, path: &Path) {
        self.change(stamp, Change::Unlink(path.to_owned()));
    }

    pub(super) fn rename(&mut self, stamp: u64, from: &Path, to: &Path, file: FileId) {
        let change = Change::Rename(from.to_owned(), to.to_owned(), file);
        self.change(stamp, change);
    }

    /// Changes inside the folder count as durable from here on: they are found under a new path.
    pub(super) fn rename_dir(&mut self, stamp: u64, from: &Path, to: &Path) {
        self.sync_where(|change| change.value.touches_under(from));
        let change = Change::RenameDir(from.to_owned(), to.to_owned());
        self.change(stamp, change);
    }

    /// Makes the folders that are missing and returns their parents, outermost first.
    pub(super) fn make_dirs(&mut self, stamp: u64, dir: &Path) -> Vec<PathBuf> {
        let mut missing: Vec<&Path> = dir.ancestors().take_while(|d| !self.is_dir(d)).collect();
        missing.reverse();
        let mut parents = Vec::new();
        for dir in missing {
            self.change(stamp, Change::MakeDir(dir.to_owned()));
            parents.extend(dir.parent().map(Path::to_owned));
        }
        parents
    }

    pub(super) fn remove_dir(&mut self, stamp: u64, dir: &Path) {
        let inside = |path: &&PathBuf| path.starts_with(dir);
        let files: Vec<PathBuf> = self.cached.files.keys().filter(inside).cloned().collect();
        for path in files {
            self.change(stamp, Change::Unlink(path));
        }
        let dirs: Vec<PathBuf> = self.cached.dirs.iter().filter(inside).cloned().collect();
        for dir in dirs.into_iter().rev() {
            self.change(stamp, Change::RemoveDir(dir));
        }
    }

    /// Makes the changes of a folder's own names durable, those made before `stamp`.
    pub(super) fn sync(&mut self, dir: &Path, stamp: u64) {
        self.sync_where(|change| change.stamp < stamp && change.value.touches(dir));
    }

    pub(super) fn power_loss(&mut self, fate: Fate, rng: &mut SmallRng) {
        for change in std::mem::take(&mut self.pending) {
            if fate.keeps(change.stamp, rng) {
                self.durable.apply(&change.value);
            }
        }
        // A file that outlived its folder brings it back.
        let files: Vec<PathBuf> = self.durable.files.keys().cloned().collect();
        for path in files {
            let parents = path.ancestors().skip(1).filter(|d| d.parent().is_some());
            self.durable.dirs.extend(parents.map(Path::to_owned));
        }
        self.cached = self.durable.clone();
    }

    /// Puts a file there for good, as if it always had been.
    pub(super) fn plant(&mut self, path: &Path, file: FileId) {
        let mut changes = vec![Change::Link(path.to_owned(), file)];
        let parents = path.ancestors().skip(1).filter(|d| d.parent().is_some());
        changes.extend(parents.map(|dir| Change::MakeDir(dir.to_owned())));
        for change in &changes {
            self.cached.apply(change);
            self.durable.apply(change);
        }
    }

    /// Takes a file away for good.
    pub(super) fn uproot(&mut self, path: &Path) {
        let concerns = |change: &Change| change.paths().any(|changed| changed == path);
        self.pending.retain(|change| !concerns(&change.value));
        let change = Change::Unlink(path.to_owned());
        self.cached.apply(&change);
        self.durable.apply(&change);
    }

    /// Every file that has a name now, or would have one again after some power loss.
    pub(super) fn reachable(&self) -> BTreeSet<FileId> {
        let linked = self.pending.iter().filter_map(|change| match change.value {
            Change::Link(_, file) | Change::Rename(_, _, file) => Some(file),
            _ => None,
        });
        let trees = self
            .cached
            .files
            .values()
            .chain(self.durable.files.values());
        trees.copied().chain(linked).collect()
    }

    pub(super) fn oldest_unsynced(&self) -> Option<u64> {
        self.pending.first().map(|change| change.stamp)
    }

    fn change(&mut self, stamp: u64, value: Change) {
        self.cached.apply(&value);
        self.pending.push(Version { stamp, value });
    }

    /// Makes the chosen changes durable, in order.
    fn sync_where(&mut self, chosen: impl Fn(&Version<Change>) -> bool) {
        let mut left: Vec<Version<Change>> = Vec::new();
        for change in std::mem::take(&mut self.pending) {
            if chosen(&change) {
                self.durable.apply(&change.value);
                // What went on inside a removed folder before is settled with it.
                if let Change::RemoveDir(dir) = change.value {
                    left.retain(|older| !older.value.touches_under(&dir));
                }
            } else {
                left.push(change);
            }
        }
        self.pending = left;
    }
}

impl Change {
    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let (one, other) = match self {
            Self::Link(path, _)
            | Self::Unlink(path)
            | Self::MakeDir(path)
            | Self::RemoveDir(path) => (path, None),
            Self::Rename(from, to, _) | Self::RenameDir(from, to) => (from, Some(to)),
        };
        std::iter::once(one).chain(other)
    }

    /// Whether a name directly in `dir` changes.
    fn touches(&self, dir: &Path) -> bool {
        self.paths().any(|path| path.parent() == Some(dir))
    }

    fn touches_under(&self, dir: &Path) -> bool {
        self.paths()
            .any(|path| path.starts_with(dir) && path != dir)
    }
}

impl Tree {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Link(path, file) => {
                self.files.insert(path.clone(), *file);
            }
            Change::Unlink(path) => {
                self.files.remove(path);
            }
            Change::Rename(from, to, file) => {
                self.files.remove(from);
                self.files.insert(to.clone(), *file);
            }
            Change::MakeDir(dir) => {
                self.dirs.insert(dir.clone());
            }
            Change::RemoveDir(dir) => {
                self.files.retain(|path, _| !path.starts_with(dir));
                self.dirs.retain(|path| !path.starts_with(dir));
            }
            Change::RenameDir(from, to) => {
                let moved = |path: PathBuf| match path.strip_prefix(from) {
                    Ok(rest) if rest == Path::new("") => to.clone(),
                    Ok(rest) => to.join(rest),
                    Err(_) => path,
                };
                let files = std::mem::take(&mut self.files);
                self.files = files.into_iter().map(|(p, f)| (moved(p), f)).collect();
                let dirs = std::mem::take(&mut self.dirs);
                self.dirs = dirs.into_iter().map(moved).collect();
            }
        }
    }
}
