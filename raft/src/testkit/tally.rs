//! A view for tests: remembers which commands it folded, in order.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trilog_storage::kv::WriteBatch;

use crate::view::{Committed, View, ViewError};

/// Counts entries and keeps the command of each as a number, with a running digest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub entries: u64,
    pub records: u64,
    pub digest: u64,
    /// The index and command of every entry folded; commands are eight bytes.
    pub commands: Vec<(u64, u64)>,
}

impl Tally {
    fn mix(&mut self, value: u64) {
        let mut mixed = self.digest ^ value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^= mixed >> 29;
        self.digest = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    }
}

impl View for Tally {
    fn apply(&mut self, entry: &Committed<'_>, _batch: &mut WriteBatch) -> Bytes {
        self.entries += 1;
        self.records += u64::from(entry.header.record_count);
        let mut command = &entry.command[..];
        let number = command.try_get_u64_le().unwrap_or_default();
        self.commands.push((entry.header.index.get(), number));
        self.mix(entry.header.index.get());
        self.mix(entry.header.base_offset.get());
        self.mix(entry.header.append_time.nanos());
        self.mix(u64::from(entry.header.records_crc));
        self.mix(number);
        Bytes::copy_from_slice(&self.entries.to_le_bytes())
    }

    fn snapshot(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(24 + self.commands.len() * 16);
        out.put_u64_le(self.entries);
        out.put_u64_le(self.records);
        out.put_u64_le(self.digest);
        for (index, command) in &self.commands {
            out.put_u64_le(*index);
            out.put_u64_le(*command);
        }
        out.freeze()
    }

    fn restore(&mut self, mut state: &[u8], _batch: &mut WriteBatch) -> Result<(), ViewError> {
        let short = |_| ViewError::Unreadable("too short".to_owned());
        self.entries = state.try_get_u64_le().map_err(short)?;
        self.records = state.try_get_u64_le().map_err(short)?;
        self.digest = state.try_get_u64_le().map_err(short)?;
        self.commands.clear();
        while !state.is_empty() {
            let index = state.try_get_u64_le().map_err(short)?;
            let command = state.try_get_u64_le().map_err(short)?;
            self.commands.push((index, command));
        }
        Ok(())
    }

    fn hash(&self) -> u64 {
        self.digest
    }
}
