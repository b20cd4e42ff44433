//! What went in, so that what comes back can be compared with it.
//!
//! Two accounts are kept, by different means. The first is by file: a running SHA-256 over each
//! file's lines in the order they were sent, which knows nothing of the cluster. The second is by
//! place: the SHA-256 of the record that was acknowledged at each offset of each partition, from
//! which the digest of any range follows.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

pub(super) type Hash = [u8; 32];

/// The digest of one record.
pub(super) fn record_hash(key: &[u8], value: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    // The length keeps ("ab", "c") and ("a", "bc") apart.
    hasher.update(key.len().to_be_bytes());
    hasher.update(key);
    hasher.update(value);
    hasher.finalize().into()
}

/// Lines by file, in the order they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    by_name: BTreeMap<Vec<u8>, Sha256>,
    pub(super) records: u64,
    pub(super) bytes: u64,
}

impl Files {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.bytes += (key.len() + value.len()) as u64;
        if !self.by_name.contains_key(key) {
            self.by_name.insert(key.to_vec(), Sha256::new());
        }
        if let Some(hasher) = self.by_name.get_mut(key) {
            hasher.update(value);
            hasher.update(b"\n");
        }
    }

    pub(super) fn count(&self) -> usize {
        self.by_name.len()
    }

    /// One digest over all files and their lines.
    pub(super) fn digest(&self) -> Hash {
        let mut whole = Sha256::new();
        for (name, lines) in &self.by_name {
            whole.update(name.len().to_be_bytes());
            whole.update(name);
            whole.update(lines.clone().finalize());
        }
        whole.finalize().into()
    }

    /// The files whose lines differ, for whoever has to find out why.
    pub(super) fn differing(&self, other: &Self) -> Vec<String> {
        let names = self.by_name.keys().chain(other.by_name.keys());
        let mut found: Vec<String> = names
            .filter(|name| {
                let digest = |files: &Self| {
                    let hasher = files.by_name.get(*name);
                    hasher.map(|hasher| hasher.clone().finalize())
                };
                digest(self) != digest(other)
            })
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        found.dedup();
        found
    }
}

/// What was acknowledged, by partition and offset.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    partitions: BTreeMap<u32, Vec<Option<Entry>>>,
}

/// One acknowledged record.
#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: Hash,
    /// When the leader appended it, in nanoseconds since the epoch, as it told its producer.
    append_time: u64,
}

/// Two records were acknowledged at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two records were acknowledged at {partition}@{offset}")]
pub(super) struct SamePlace {
    partition: u32,
    offset: u64,
}

impl Places {
    pub(super) fn add(
        &mut self,
        partition: u32,
        offset: u64,
        append_time: u64,
        hash: Hash,
    ) -> Result<(), SamePlace> {
        let entries = self.partitions.entry(partition).or_default();
        let same = SamePlace { partition, offset };
        let place = usize::try_from(offset).map_err(|_| same)?;
        if entries.len() <= place {
            entries.resize(place + 1, None);
        }
        match entries[place].replace(Entry { hash, append_time }) {
            None => Ok(()),
            Some(_) => Err(same),
        }
    }

    /// The end of each partition.
    pub(super) fn ends(&self) -> BTreeMap<u32, u64> {
        let partitions = self.partitions.iter();
        let ends = partitions.map(|(partition, entries)| (*partition, entries.len() as u64));
        ends.collect()
    }

    /// Offsets below the end at which nothing was acknowledged.
    pub(super) fn holes(&self) -> u64 {
        let entries = self.partitions.values().flatten();
        entries.filter(|entry| entry.is_none()).count() as u64
    }

    /// The time at which some record was appended: the `nth` of all, counted around.
    pub(super) fn append_time(&self, nth: u64) -> Option<u64> {
        let mut entries = self.partitions.values().flatten().flatten();
        let count = entries.clone().count();
        let nth = usize::try_from(nth)
            .unwrap_or(usize::MAX)
            .checked_rem(count)?;
        entries.nth(nth).map(|entry| entry.append_time)
    }

    /// In each partition, the first record appended at that time or later; its end, if none was.
    pub(super) fn starts_at(&self, append_time: u64) -> BTreeMap<u32, u64> {
        let partitions = self.partitions.iter();
        partitions
            .map(|(partition, entries)| {
                let late = |entry: &Option<Entry>| {
                    entry.is_some_and(|entry| entry.append_time >= append_time)
                };
                let start = entries.iter().position(late).unwrap_or(entries.len());
                (*partition, start as u64)
            })
            .collect()
    }

    /// The digest of what lies at and behind these offsets, and how many records that is.
    pub(super) fn digest_from(&self, starts: &BTreeMap<u32, u64>) -> (Hash, u64) {
        let mut chains = Chains::default();
        for (partition, start) in starts {
            chains.begin(*partition);
            let entries = self
                .partitions
                .get(partition)
                .map_or(&[][..], Vec::as_slice);
            let start = usize::try_from(*start).unwrap_or(usize::MAX);
            for entry in entries.get(start..).unwrap_or_default().iter().flatten() {
                chains.add(*partition, &entry.hash);
            }
        }
        (chains.digest(), chains.records)
    }
}

/// Running digests, one for each partition: what is read back, in the order it comes.
#[derive(Clone, Debug, Default)]
pub(super) struct Chains {
    partitions: BTreeMap<u32, Sha256>,
    pub(super) records: u64,
}

impl Chains {
    /// A partition takes part even if nothing comes from it.
    pub(super) fn begin(&mut self, partition: u32) {
        self.partitions.entry(partition).or_default();
    }

    pub(super) fn add(&mut self, partition: u32, hash: &Hash) {
        self.records += 1;
        self.partitions.entry(partition).or_default().update(hash);
    }

    pub(super) fn digest(&self) -> Hash {
        let mut whole = Sha256::new();
        for (partition, chain) in &self.partitions {
            whole.update(partition.to_be_bytes());
            whole.update(chain.clone().finalize());
        }
        whole.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_of_files_sees_order_within_a_file_only() {
        let fill = |lines: &[(&str, &str)]| {
            let mut files = Files::default();
            for (key, value) in lines {
                files.add(key.as_bytes(), value.as_bytes());
            }
            files
        };
        let sent = fill(&[("a", "1"), ("b", "2"), ("a", "3")]);
        let same = fill(&[("b", "2"), ("a", "1"), ("a", "3")]);
        assert_eq!(sent.digest(), same.digest());
        assert_eq!((sent.records, sent.bytes, sent.count()), (3, 6, 2));
        for wrong in [
            &[("a", "3"), ("b", "2"), ("a", "1")][..],
            &[("a", "1"), ("b", "2")],
            &[("a", "1"), ("b", "2"), ("a", "3"), ("a", "3")],
            &[("a", "13"), ("b", "2")],
        ] {
            let wrong = fill(wrong);
            assert_ne!(sent.digest(), wrong.digest());
            assert_eq!(sent.differing(&wrong), ["a"]);
        }
    }

    #[test]
    fn a_range_read_back_has_the_digest_of_what_was_acknowledged_there() {
        let mut places = Places::default();
        let hashes: Vec<Hash> = (0_u8..10).map(|n| record_hash(b"k", &[n])).collect();
        for (nth, hash) in hashes.iter().enumerate().rev() {
            let nth = u64::try_from(nth).unwrap();
            places
                .add(u32::from(nth % 2 == 1), nth / 2, nth * 10, *hash)
                .unwrap();
        }
        assert_eq!(places.ends(), BTreeMap::from([(0, 5), (1, 5)]));
        assert_eq!(places.holes(), 0);
        let starts = BTreeMap::from([(0, 3), (1, 5)]);
        let mut chains = Chains::default();
        chains.begin(0);
        chains.begin(1);
        chains.add(0, &hashes[6]);
        chains.add(0, &hashes[8]);
        assert_eq!(places.digest_from(&starts), (chains.digest(), 2));
        chains.add(1, &hashes[9]);
        assert_ne!(places.digest_from(&starts).0, chains.digest());

        assert_eq!(places.starts_at(61), BTreeMap::from([(0, 4), (1, 3)]));
        assert_eq!(places.starts_at(0), BTreeMap::from([(0, 0), (1, 0)]));
        assert_eq!(places.starts_at(91), places.ends());
        assert_eq!(places.append_time(16), Some(30));
        assert_eq!(Places::default().append_time(3), None);
    }

    #[test]
    fn an_offset_given_twice_or_never_is_noticed() {
        let mut places = Places::default();
        places.add(0, 2, 7, [1; 32]).unwrap();
        assert_eq!(places.holes(), 2);
        assert!(places.add(0, 2, 7, [1; 32]).is_err());
    }
}
