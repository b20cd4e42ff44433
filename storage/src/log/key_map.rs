//! The newest offset of each key of a stretch of log, by a hash of the key, within a bound.
//!
//! A record is removed for what this map says, so two keys must not share a hash: 128 bits of
//! SipHash under a secret chosen anew for each pass, which nobody who writes keys can know.

use std::collections::BTreeMap;

use siphasher::sip128::{Hasher128, SipHasher24};
use trilog_model::Offset;

/// About what an entry takes, the room in the tree's nodes included.
pub(crate) const ENTRY_BYTES: usize = 48;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct KeyMap {
    secret: (u64, u64),
    newest: BTreeMap<u128, Offset>,
    most: usize,
}

impl KeyMap {
    /// One that should take `bytes` at most.
    pub(crate) fn new(secret: (u64, u64), bytes: usize) -> Self {
        Self {
            secret,
            newest: BTreeMap::new(),
            most: (bytes / ENTRY_BYTES).max(1),
        }
    }

    /// Whether so many more keys may come; into an empty one any number may.
    pub(crate) fn has_room(&self, keys: usize) -> bool {
        self.newest.is_empty() || self.newest.len().saturating_add(keys) <= self.most
    }

    /// Notes a record; those of a key come in the order of their offsets.
    pub(crate) fn note(&mut self, key: &[u8], offset: Offset) {
        let hash = self.hash(key);
        self.newest.insert(hash, offset);
    }

    /// Whether the map knows a later record of the key.
    pub(crate) fn supersedes(&self, key: &[u8], offset: Offset) -> bool {
        let newest = self.newest.get(&self.hash(key));
        newest.is_some_and(|newest| *newest > offset)
    }

    fn hash(&self, key: &[u8]) -> u128 {
        let hasher = SipHasher24::new_with_keys(self.secret.0, self.secret.1);
        let mut hasher = hasher;
        std::hash::Hasher::write(&mut hasher, key);
        hasher.finish128().as_u128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_each_key_supersedes_those_before_it() {
        let mut map = KeyMap::new((1, 2), 1 << 20);
        for (key, offset) in [(b"a", 1), (b"b", 2), (b"a", 3)] {
            map.note(key, Offset(offset));
        }
        for (key, offset, superseded) in [
            (b"a", 1, true),
            (b"a", 3, false),
            (b"a", 4, false),
            (b"b", 1, true),
            (b"b", 2, false),
            (b"c", 0, false),
        ] {
            assert_eq!(map.supersedes(key, Offset(offset)), superseded);
        }
    }

    #[test]
    fn a_full_map_takes_no_more_but_an_empty_one_takes_any_batch() {
        let mut map = KeyMap::new((1, 2), 3 * ENTRY_BYTES);
        assert!(map.has_room(1_000));
        map.note(b"a", Offset(1));
        assert!(map.has_room(2) && !map.has_room(3));
    }
}
