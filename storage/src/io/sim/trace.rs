//! The running hash over everything a simulated disk was asked and answered: two runs of one
//! seed must end with the same.

use std::io;
use std::path::Path;

/// What was asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Open = 1,
    List,
    MakeDirs,
    Rename,
    RemoveFile,
    RemoveDir,
    SyncDir,
    Read,
    Write,
    WriteDurable,
    Sync,
    Len,
    SetLen,
    Crash,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trace(u64);

impl Trace {
    pub(super) const fn hash(self) -> u64 {
        self.0
    }

    pub(super) fn number(&mut self, number: u64) {
        // The finisher of SplitMix64 over a running sum.
        let mut x = (self.0 ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.0 = x ^ (x >> 31);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.number(u64::from(crc32c::crc32c(bytes)));
    }

    pub(super) fn asked(&mut self, asked: Asked, path: &Path, at: u64) {
        self.number(asked as u64);
        self.bytes(path.as_os_str().as_encoded_bytes());
        self.number(at);
    }

    pub(super) fn answered<T>(&mut self, stamp: u64, result: &io::Result<T>) {
        self.number(stamp);
        self.number(match result {
            Ok(_) => 0,
            Err(error) => {
                1 + error
                    .raw_os_error()
                    .map_or(0, |code| u64::from(code.unsigned_abs()))
            }
        });
    }
}
