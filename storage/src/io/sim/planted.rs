//! Little write-ahead logs, one right and five wrong in ways that real ones were: the simulated
//! disk must catch each, or it would not catch ours.

use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::sync::oneshot;

use super::explore::{Promises, Violation, explore};
use super::{SimConfig, SimDisk, block_on};
use crate::io::{Io, IoFile, IoJob, OpenMode};

const DIR: &str = "/wal";
const MAGIC: u32 = 0x4d57_414c;
/// Magic, CRC of all that follows, length of what follows; then records.
const ROUND_HEADER: usize = 12;
const BLOCK: u64 = 512;
const RECORDS: u64 = 12;
const RECORDS_PER_FILE: u64 = 4;
/// Within so many seeds each bug must show.
const SEEDS: u64 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    AcksBeforeTheSync,
    SyncsTheFileBefore,
    LeavesTheNewNameUnsynced,
    RewritesTheLastBlock,
    TrustsATailWithoutChecksum,
}

/// The record numbered `number`: its length and bytes follow from it.
fn record(number: u64) -> Bytes {
    let len = 20 + usize::try_from(number * 397 % 1_700).unwrap();
    let fill = u8::try_from(number % 250 + 1).unwrap();
    let mut record = BytesMut::from(&number.to_be_bytes()[..]);
    record.resize(8 + len, fill);
    record.freeze()
}

fn round(records: &[Bytes]) -> Bytes {
    let mut body = BytesMut::new();
    for record in records {
        body.put_u32(u32::try_from(record.len()).unwrap());
        body.put_slice(record);
    }
    let mut round = BytesMut::new();
    round.put_u32(MAGIC);
    round.put_u32(crc32c::crc32c(&body));
    round.put_u32(u32::try_from(body.len()).unwrap());
    round.put_slice(&body);
    round.freeze()
}

fn file(number: u64) -> PathBuf {
    Path::new(DIR).join(format!("{number:03}"))
}

/// Appends the records, promising each (by their count) once it believes it durable.
struct Writer {
    flaw: Option<Flaw>,
    promised: Promises<u64>,
}

impl IoJob for Writer {
    async fn run<I: Io>(self, io: I) {
        let dir = Path::new(DIR);
        io.create_dir_all(dir).await.unwrap();
        let mut before: Option<I::File> = None;
        for number in 0..RECORDS / RECORDS_PER_FILE {
            let file = io.open(&file(number), OpenMode::Create).await.unwrap();
            if self.flaw != Some(Flaw::LeavesTheNewNameUnsynced) {
                io.sync_dir(dir).await.unwrap();
            }
            let first = number * RECORDS_PER_FILE;
            self.fill(&file, before.as_ref(), first).await;
            before = Some(file);
        }
    }
}

impl Writer {
    async fn fill<F: IoFile>(&self, file: &F, before: Option<&F>, first: u64) {
        let mut pos = 0;
        let mut block: Vec<Bytes> = Vec::new();
        for number in first..first + RECORDS_PER_FILE {
            if self.flaw != Some(Flaw::RewritesTheLastBlock) {
                block.clear();
            }
            block.push(record(number));
            let round = round(&block);
            let len = round.len() as u64;
            file.write_all_at(vec![round], pos).await.unwrap();
            if self.flaw != Some(Flaw::RewritesTheLastBlock) {
                pos += len.next_multiple_of(BLOCK);
            }
            if self.flaw == Some(Flaw::AcksBeforeTheSync) {
                *self.promised.lock() = number + 1;
            }
            match before {
                Some(before) if self.flaw == Some(Flaw::SyncsTheFileBefore) => {
                    before.sync_data().await.unwrap();
                }
                _ => file.sync_data().await.unwrap(),
            }
            *self.promised.lock() = number + 1;
        }
    }
}

/// Reads back the records, up to the first that is not there or not whole.
struct Reader {
    flaw: Option<Flaw>,
    found: oneshot::Sender<Vec<Bytes>>,
}

impl IoJob for Reader {
    async fn run<I: Io>(self, io: I) {
        let mut found = Vec::new();
        for number in 0..RECORDS / RECORDS_PER_FILE {
            let Ok(file) = io.open(&file(number), OpenMode::Read).await else {
                break;
            };
            let len = file.len().await.unwrap();
            let mut bytes = file
                .read_at(0, usize::try_from(len).unwrap())
                .await
                .unwrap();
            while let Some(records) = self.next_round(&mut bytes) {
                found.extend(records);
            }
        }
        let _ = self.found.send(found);
    }
}

impl Reader {
    fn next_round(&self, bytes: &mut Bytes) -> Option<Vec<Bytes>> {
        let mut header = bytes.get(..ROUND_HEADER)?;
        let (magic, crc, len) = (header.get_u32(), header.get_u32(), header.get_u32());
        let end = ROUND_HEADER + usize::try_from(len).unwrap();
        let mut body =
            (magic == MAGIC && end <= bytes.len()).then(|| bytes.slice(ROUND_HEADER..end))?;
        if self.flaw != Some(Flaw::TrustsATailWithoutChecksum) && crc32c::crc32c(&body) != crc {
            return None;
        }
        let block = usize::try_from(BLOCK).unwrap();
        bytes.advance(end.next_multiple_of(block).min(bytes.len()));
        let mut records = Vec::new();
        while let Ok(len) = body.try_get_u32() {
            let len = usize::try_from(len).unwrap().min(body.len());
            records.push(body.split_to(len));
        }
        Some(records)
    }
}

async fn check(flaw: Option<Flaw>, disk: SimDisk, promised: u64) -> Result<(), String> {
    let (found, reading) = oneshot::channel();
    disk.backend()
        .spawn("reader", Reader { flaw, found })
        .join()
        .await;
    let found = reading.await.unwrap();
    for (number, found) in (0..).zip(&found) {
        if *found != record(number) {
            return Err(format!("record {number} reads as something never written"));
        }
    }
    if (found.len() as u64) < promised {
        return Err(format!("{} of {promised} records are left", found.len()));
    }
    Ok(())
}

fn run(flaw: Option<Flaw>, seed: u64) -> Result<u64, Violation> {
    block_on(explore(
        seed,
        SimConfig::instant(),
        0,
        async |disk: SimDisk, promised| {
            let writer = Writer { flaw, promised };
            disk.backend().spawn("writer", writer).join().await;
        },
        async |disk, promised: &u64| check(flaw, disk, *promised).await,
    ))
}

#[test]
fn every_planted_flaw_is_caught_within_a_few_seeds() {
    let flaws = [
        Flaw::AcksBeforeTheSync,
        Flaw::SyncsTheFileBefore,
        Flaw::LeavesTheNewNameUnsynced,
        Flaw::RewritesTheLastBlock,
        Flaw::TrustsATailWithoutChecksum,
    ];
    for flaw in flaws {
        let caught = (0..SEEDS).find_map(|seed| run(Some(flaw), seed).err());
        let caught = caught.unwrap_or_else(|| panic!("{flaw:?} passed {SEEDS} seeds"));
        assert_eq!(run(Some(flaw), caught.seed), Err(caught), "and again");
    }
}

#[test]
fn the_right_log_keeps_its_promises_at_every_crash() {
    for seed in 0..SEEDS {
        match run(None, seed) {
            Ok(crashes) => assert!(crashes > 100, "{crashes}"),
            Err(violation) => panic!("{violation}"),
        }
    }
}
