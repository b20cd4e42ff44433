//! The RocksDB engine: a column family per [`Family`], no write-ahead log, atomic flush, little
//! memory.

use std::path::Path;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIterator, FlushOptions, IteratorMode, LogLevel, Options, ReadOptions, WriteOptions,
};
use trilog_model::GroupId;

use super::batch::{Change, Op};
use super::{Family, KvConfig, KvError, engine, stored_key};

/// Bits of a bloom filter per key: about one false positive in a hundred.
const BLOOM_BITS: f64 = 10.0;
/// A family's share of the write buffer after which it is flushed.
const FAMILY_BUFFERS: usize = 4;

pub(super) struct RocksEngine {
    db: DB,
    /// All that are there, this build's and others'.
    families: Vec<String>,
    unlogged: WriteOptions,
}

impl std::fmt::Debug for RocksEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksEngine")
            .field("path", &self.db.path())
            .finish_non_exhaustive()
    }
}

impl RocksEngine {
    pub(super) fn open(dir: &Path, families: &[Family], config: KvConfig) -> Result<Self, KvError> {
        let wanted = families.iter().copied().chain([Family::META]);
        let mut names: Vec<String> = wanted.map(|family| family.0.to_owned()).collect();
        // `CURRENT` is the one file that every RocksDB has.
        if dir.join("CURRENT").exists() {
            names.extend(DB::list_cf(&Options::default(), dir).map_err(engine)?);
        }
        names.sort_unstable();
        names.dedup();
        let options = family_options(config);
        let descriptors = names
            .iter()
            .map(|name| ColumnFamilyDescriptor::new(name, options.clone()));
        let db = DB::open_cf_descriptors(&db_options(config), dir, descriptors).map_err(engine)?;
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        Ok(Self {
            db,
            families: names,
            unlogged,
        })
    }

    pub(super) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let found = self.db.get_pinned_cf(self.family(family)?, key);
        let found = found.map_err(engine)?;
        Ok(found.map(|value| Bytes::copy_from_slice(&value)))
    }

    pub(super) fn scan(
        &self,
        family: Family,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let mut options = ReadOptions::default();
        if let Some(end) = after_prefix(prefix) {
            options.set_iterate_upper_bound(end);
        }
        let family = self.family(family)?;
        let mut at: DBRawIterator<'_> = self.db.raw_iterator_cf_opt(family, options);
        at.seek(from.max(prefix));
        let mut found = Vec::new();
        while found.len() < limit
            && let Some((key, value)) = at.item()
        {
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            at.next();
        }
        at.status().map_err(engine)?;
        Ok(found)
    }

    pub(super) fn apply(
        &self,
        group: GroupId,
        changes: &[Change],
        record: &Op,
    ) -> Result<(), KvError> {
        let mut batch = rocksdb::WriteBatch::default();
        for change in changes {
            match change {
                Change::One(family, op) => {
                    let key = stored_key(group, &op.key);
                    put(&mut batch, self.family(*family)?, &key, op.value.as_ref());
                }
                Change::Clear => self.clear(&mut batch, group)?,
            }
        }
        let meta = self.family(Family::META)?;
        put(&mut batch, meta, &record.key, record.value.as_ref());
        self.db.write_opt(batch, &self.unlogged).map_err(engine)
    }

    pub(super) fn is_empty(&self) -> Result<bool, KvError> {
        for name in &self.families {
            let mut keys = self.db.iterator_cf(self.named(name)?, IteratorMode::Start);
            if keys.next().transpose().map_err(engine)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn flush(&self) -> Result<(), KvError> {
        let families: Result<Vec<&ColumnFamily>, KvError> =
            self.families.iter().map(|name| self.named(name)).collect();
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.db.flush_cfs_opt(&families?, &options).map_err(engine)
    }

    fn clear(&self, batch: &mut rocksdb::WriteBatch, group: GroupId) -> Result<(), KvError> {
        let from = stored_key(group, &[]);
        // The last group of all has no end but that of the keys.
        let end = after_prefix(&from).unwrap_or_else(|| vec![u8::MAX; 2 * from.len()]);
        for name in self.families.iter().filter(|name| *name != Family::META.0) {
            batch.delete_range_cf(self.named(name)?, &from, &end);
        }
        Ok(())
    }

    fn family(&self, family: Family) -> Result<&ColumnFamily, KvError> {
        let found = self.db.cf_handle(family.0);
        found.ok_or(KvError::UnknownFamily(family))
    }

    fn named(&self, name: &str) -> Result<&ColumnFamily, KvError> {
        let found = self.db.cf_handle(name);
        found.ok_or(KvError::Damaged { group: None })
    }
}

fn put(batch: &mut rocksdb::WriteBatch, family: &ColumnFamily, key: &[u8], value: Option<&Bytes>) {
    match value {
        Some(value) => batch.put_cf(family, key, value),
        None => batch.delete_cf(family, key),
    }
}

/// The first key behind all that begin with `prefix`.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

fn db_options(config: KvConfig) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // Without a log, families flushed apart would tear a batch.
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    options.set_db_write_buffer_size(config.write_buffer_bytes);
    options.set_max_open_files(i32::from(config.files_max));
    options.set_max_background_jobs(2);
    // By default 4 MiB, which a full disk does not have; what there is of it would be taken all the same.
    options.set_manifest_preallocation_size(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(config: KvConfig) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(config.cache_bytes));
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_bloom_filter(BLOOM_BITS, false);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_size(config.write_buffer_bytes / FAMILY_BUFFERS);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}
