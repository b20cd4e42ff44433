//! The changes of one write.

use bytes::Bytes;

use super::Family;

/// Changes of one group, applied in order and as one. Keys live in the group's own space: two
/// groups never see each other's.
#[derive(Clone, Debug, Default)]
pub struct WriteBatch {
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    One(Family, Op),
    /// Everything of the group goes, in all families.
    Clear,
}

#[derive(Clone, Debug)]
pub(super) struct Op {
    pub(super) key: Bytes,
    /// `None` deletes.
    pub(super) value: Option<Bytes>,
}

impl Op {
    pub(super) const fn put(key: Bytes, value: Bytes) -> Self {
        let value = Some(value);
        Self { key, value }
    }

    pub(super) const fn delete(key: Bytes) -> Self {
        Self { key, value: None }
    }
}

impl WriteBatch {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub fn put(&mut self, family: Family, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        let op = Op::put(key.into(), value.into());
        self.changes.push(Change::One(family, op));
    }

    pub fn delete(&mut self, family: Family, key: impl Into<Bytes>) {
        let op = Op::delete(key.into());
        self.changes.push(Change::One(family, op));
    }

    /// Deletes everything the group has, in all families: the beginning of a batch that installs
    /// a state from elsewhere.
    pub fn clear(&mut self) {
        self.changes.push(Change::Clear);
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }
}
