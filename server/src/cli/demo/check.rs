//! Reading back: from given offsets to the end, hashed on the way.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use futures::stream::StreamExt;
use tokio::time::Instant;
use trilog_client::Client;

use super::ledger::{Chains, Files, record_hash};
use crate::cli::progress::Progress;
use crate::cli::reader::{self, Range, Ranges};

/// What came back.
#[derive(Debug)]
pub(super) struct ReadBack {
    pub(super) chains: Chains,
    pub(super) files: Files,
    pub(super) seconds: f64,
}

/// Reads each partition from its start to its end. Every offset must come exactly once.
pub(super) async fn read_back(
    client: &Client,
    topic: &str,
    starts: &BTreeMap<u32, u64>,
    ends: &BTreeMap<u32, u64>,
) -> anyhow::Result<ReadBack> {
    let mut chains = Chains::default();
    let mut next = BTreeMap::new();
    let mut ranges = Ranges::new();
    for (partition, start) in starts {
        let end = *ends.get(partition).context("a partition has no end")?;
        chains.begin(*partition);
        next.insert(*partition, *start);
        ranges.insert(*partition, Range { start: *start, end });
    }
    let progress = Progress::records("replaying", Some(reader::total(&ranges)));
    let started = Instant::now();
    let mut records = reader::read(client, topic, &ranges, false).await?;
    let mut files = Files::default();
    while let Some(record) = records.next().await {
        let record = record?;
        let expected = next
            .get_mut(&record.partition)
            .context("a record came from a partition that was not asked for")?;
        let offset = record.offset;
        if offset != *expected {
            bail!(
                "{topic}/{}: offset {offset} came where {expected} was due",
                record.partition
            );
        }
        *expected += 1;
        let key = record.key.as_deref().unwrap_or_default();
        let value = record.value.as_deref().unwrap_or_default();
        chains.add(record.partition, &record_hash(key, value));
        files.add(key, value);
        progress.add(1);
    }
    for (partition, reached) in next {
        let end = ranges[&partition].end;
        if reached != end {
            bail!("{topic}/{partition}: reading ended at {reached}, the partition at {end}");
        }
    }
    Ok(ReadBack {
        chains,
        files,
        seconds: started.elapsed().as_secs_f64(),
    })
}
