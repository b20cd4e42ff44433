//! The fill worker's part in damage, copies and compaction: it alone renames and deletes segments of a group,
//! so these take their turn with all else it does to them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::compaction::{CleanError, sort};
use super::copy::{CopyError, Staged, copy_error};
use super::fill::Worker;
use super::group::{Group, GroupState, Life};
use super::rewriter::Rewritten;
use super::segment::{self, IndexSlot, Segment};
use super::types::StoreError;
use crate::io::Io;

impl<I: Io> Worker<I> {
    /// Renames a damaged segment, so that a restart knows it as such. It is never deleted while
    /// its range is part of the log: what is left of it may be all there is.
    pub(super) async fn set_aside(&mut self, group: &Arc<Group>, segment: &Arc<Segment>) {
        self.close(group, segment);
        if group.state.lock().segments.position(segment).is_none() {
            // It left the log meanwhile, and its file is deleted, or was and another took the name.
            return;
        }
        self.shared.reads.forget(&segment.path).await;
        if let Err(error) = self.rename_aside(&segment.path).await {
            // It is not served, and will be found damaged again after a restart.
            tracing::warn!(path = %segment.path.display(), %error, "cannot set aside");
        }
        self.delete_file(&segment::index_path(&segment.path)).await;
        group.set_aside(segment);
    }

    /// Gives a file its next free name among those set aside; durable on return.
    async fn rename_aside(&self, path: &Path) -> io::Result<()> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(());
        };
        let names = match self.io.list(dir).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        if !names.iter().any(|other| other.as_os_str() == name) {
            return Ok(());
        }
        let taken = |aside: &Path| names.iter().any(|name| dir.join(name) == aside);
        let mut free = (1..=u32::MAX).map(|n| segment::aside_path(path, n));
        let aside = free.find(|aside| !taken(aside));
        let aside = aside.ok_or(io::ErrorKind::AlreadyExists)?;
        self.io.rename(path, &aside).await?;
        let synced = self.io.sync_dir(dir).await;
        self.check_sync("sync a segment's folder", synced)
            .map_err(|_| io::Error::other("the folder is not synced"))
    }

    /// Has a group's folder there, unless the group is gone: a copy must not make it anew.
    pub(super) async fn folder(&self, group: &Group) -> Result<(), CopyError> {
        if group.state.lock().life != Life::Here {
            return Err(StoreError::NoSuchGroup(group.id).into());
        }
        let made = self.io.create_dir_all(&group.dir).await;
        made.map_err(|error| copy_error("make", group, error))
    }

    /// Makes a stretch that was copied part of the log; durable on return.
    pub(super) async fn adopt(
        &mut self,
        group: &Arc<Group>,
        staged: Staged,
    ) -> Result<(), CopyError> {
        let copy = staged.path.clone();
        let index = staged
            .index
            .encode(group.id, staged.header.base_index, staged.extent.bytes);
        let takes = group.state.lock().takes(&staged);
        let generation = match takes {
            Ok(generation) => generation,
            Err(error) => {
                self.delete_file(&copy).await;
                return Err(error);
            }
        };
        let segment = Arc::new(staged.segment(group, generation));
        let named = self.name(group, &copy, &segment.path).await;
        if let Err(error) = named {
            self.delete_file(&copy).await;
            return Err(copy_error("rename", group, error));
        }
        // Never synced, as any index: it is built again where it is missing.
        let path = segment::index_path(&segment.path);
        if let Err(error) = self.write_index(&path, index).await {
            tracing::debug!(path = %path.display(), %error, "an index is not written");
        }
        let adopted = group.adopt(staged, &segment);
        if let Err(error) = adopted {
            self.delete_file(&segment.path).await;
            self.delete_file(&path).await;
            return Err(error);
        }
        tracing::info!(
            path = %segment.path.display(),
            group = %group.id,
            "a segment was copied from another replica"
        );
        Ok(())
    }

    /// Moves a copy to a segment's name, whatever stood there moved aside before.
    async fn name(&self, group: &Group, copy: &Path, path: &Path) -> io::Result<()> {
        self.rename_aside(path).await?;
        self.shared.reads.forget(path).await;
        self.io.rename(copy, path).await?;
        let synced = self.io.sync_dir(&group.dir).await;
        self.check_sync("sync a segment's folder", synced)
            .map_err(|_| io::Error::other("the folder is not synced"))
    }
}

impl<I: Io> Worker<I> {
    /// Puts a rewritten segment in the place of those it was made of; in memory on return, and for
    /// a restart with the next checkpoint.
    pub(super) async fn switch(
        &mut self,
        group: &Arc<Group>,
        rewritten: Rewritten,
    ) -> Result<(), CleanError> {
        let Some(generation) = group.state.lock().next_generation(&rewritten) else {
            self.delete_file(&rewritten.path).await;
            return Err(CleanError::Superseded);
        };
        let (header, extent) = (rewritten.header, rewritten.extent);
        let index = rewritten
            .index
            .encode(group.id, header.base_index, extent.bytes);
        let slot = IndexSlot::Here(rewritten.index.clone());
        let segment = Arc::new(Segment::new(&group.dir, header, generation, slot));
        if let Err(error) = self.io.rename(&rewritten.path, &segment.path).await {
            self.delete_file(&rewritten.path).await;
            return Err(sort(group, &rewritten.path, error));
        }
        let named = self.io.sync_dir(&group.dir).await;
        self.check_sync("sync a segment's folder", named)
            .map_err(|_| StoreError::Closed)?;
        let path = segment::index_path(&segment.path);
        if let Err(error) = self.write_index(&path, index).await {
            tracing::debug!(path = %path.display(), %error, "an index is not written");
        }
        if group.switch(&rewritten, &segment) {
            return Ok(());
        }
        self.delete_file(&segment.path).await;
        self.delete_file(&path).await;
        Err(CleanError::Superseded)
    }

    /// Deletes what was replaced, unless the name stands for part of the log again.
    pub(super) async fn drop_retired(&mut self, group: &Group, paths: &[PathBuf]) {
        let unused: Vec<PathBuf> = {
            let state = group.state.lock();
            let links = &state.segments.links;
            let used = |path: &PathBuf| links.iter().any(|link| link.segment.path == *path);
            paths.iter().filter(|path| !used(path)).cloned().collect()
        };
        self.delete(&unused).await;
    }
}

impl GroupState {
    /// Which content of its name a rewritten segment has; `None` if it has no place any more.
    fn next_generation(&self, rewritten: &Rewritten) -> Option<u32> {
        let places = self.segments.run_of(&rewritten.of)?;
        let last = self.segments.links.get(places.end - 1)?;
        let same = self.life == Life::Here && last.extent.tip == rewritten.extent.tip;
        let newest = rewritten
            .of
            .iter()
            .map(|segment| segment.generation)
            .max()?;
        newest.checked_add(1).filter(|_| same)
    }
}

impl Group {
    /// Whether a rewritten segment, whose file has its name, took its place.
    fn switch(self: &Arc<Self>, rewritten: &Rewritten, segment: &Arc<Segment>) -> bool {
        let mut state = self.state.lock();
        if state.next_generation(rewritten) != Some(segment.generation) {
            return false;
        }
        let Some(places) = state.segments.run_of(&rewritten.of) else {
            return false;
        };
        let new = Arc::clone(segment);
        for old in state.segments.merge(places, new, rewritten.extent) {
            state.rewrites.retire(old);
        }
        drop(state);
        // Memory holds what the segment did before: nobody may copy that any more.
        self.evict(rewritten.extent.tip.next_index);
        self.shared.indexes.keep(segment);
        // With the keeper's next tick: a pass over small segments switches many in a second.
        self.shared.keep_unsaved();
        true
    }

    /// Takes in a stretch whose file has its name, if it still has a place.
    fn adopt(self: &Arc<Self>, staged: Staged, segment: &Arc<Segment>) -> Result<(), CopyError> {
        let mut state = self.state.lock();
        if state.takes(&staged)? != segment.generation {
            return Err(CopyError::Superseded);
        }
        state.adopt(staged, Arc::clone(segment));
        let synced = state.segments.synced().next_index;
        state.runs.release(synced);
        // The log start may have moved past what came in.
        self.purge(&mut state);
        drop(state);
        self.shared.indexes.keep(segment);
        self.shared.copied();
        Ok(())
    }
}
