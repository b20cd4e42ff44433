//! Reading a topic from a start position: where that lies in each partition, and the records from
//! there on.

use std::collections::BTreeMap;

use anyhow::bail;
use futures::future::try_join_all;
use futures::stream::{BoxStream, SelectAll, StreamExt};
use jiff::Zoned;
use trilog_client::proto::start::At;
use trilog_client::{Client, ConsumedRecord, ConsumerConfig, Error, StartAt};

use super::position::Position;

/// Where reading begins in one partition, and where the partition ended when that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Ranges by partition.
pub(super) type Ranges = BTreeMap<u32, Range>;

/// How many records lie in them.
pub(super) fn total(ranges: &Ranges) -> u64 {
    let lengths = ranges
        .values()
        .map(|range| range.end.saturating_sub(range.start));
    lengths.sum()
}

/// The partitions of a topic: those asked for, or all.
pub(super) async fn partitions(
    client: &Client,
    topic: &str,
    wanted: &[u32],
) -> anyhow::Result<Vec<u32>> {
    let described = client.admin().describe_topic(topic).await?;
    let all: Vec<u32> = described.partitions.iter().map(|p| p.partition).collect();
    if wanted.is_empty() {
        return Ok(all);
    }
    if let Some(missing) = wanted.iter().find(|partition| !all.contains(partition)) {
        bail!(
            "{topic} has {} partitions; {missing} is not one of them",
            all.len()
        );
    }
    Ok(wanted.to_vec())
}

/// Where `position` lies in each partition. Of a time, the moment that was meant comes back too.
pub(super) async fn locate(
    client: &Client,
    topic: &str,
    partitions: &[u32],
    position: &Position,
    now: &Zoned,
) -> anyhow::Result<(Ranges, Option<Zoned>)> {
    let moment = match position {
        Position::Time(when) => Some(when.resolve(now)?),
        Position::Start | Position::End | Position::Offset(_) | Position::Last(_) => None,
    };
    let at = moment.as_ref().map(|moment| {
        let nanos = moment.timestamp().as_nanosecond();
        // Before the epoch there is nothing, and everything lies behind it.
        At::AppendTimeNs(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
    });
    let admin = client.admin();
    let asked = partitions.iter().map(|partition| {
        let (admin, at) = (&admin, at);
        async move {
            let answer = admin.resolve(topic, *partition, at).await?;
            Ok::<_, Error>((*partition, answer))
        }
    });
    let mut ranges = Ranges::new();
    for (partition, answer) in try_join_all(asked).await? {
        let (first, end) = (answer.log_start, answer.high_watermark);
        let start = match position {
            Position::Start => first,
            Position::End => end,
            Position::Offset(offset) => *offset,
            Position::Last(count) => end.saturating_sub(*count).max(first),
            Position::Time(_) => answer.offset,
        };
        ranges.insert(partition, Range { start, end });
    }
    if let Position::Offset(offset) = position {
        let ends: Vec<String> = ranges
            .iter()
            .map(|(partition, range)| format!("{topic}/{partition} ends at {}", range.end))
            .collect();
        ranges.retain(|_, range| range.start <= range.end);
        if ranges.is_empty() {
            bail!("offset {offset} lies beyond the end: {}", ends.join(", "));
        }
    }
    Ok((ranges, moment))
}

/// What comes out of [`read`].
pub(super) type Records = SelectAll<BoxStream<'static, Result<ConsumedRecord, Error>>>;

/// The records of each range from its start on: to the end it had, or on and on.
pub(super) async fn read(
    client: &Client,
    topic: &str,
    ranges: &Ranges,
    follow: bool,
) -> anyhow::Result<Records> {
    let config = ConsumerConfig {
        follow,
        ..ConsumerConfig::default()
    };
    let mut all = SelectAll::new();
    for (partition, range) in ranges {
        if !follow && range.start >= range.end {
            continue;
        }
        let consumer = client
            .consumer(topic)
            .config(config)
            .partitions([*partition])
            .start(StartAt::Offset(range.start))
            .open()
            .await?;
        let end = range.end;
        let within = consumer.take_while(move |record| {
            let inside = match record {
                Ok(record) => follow || record.offset < end,
                Err(_) => true,
            };
            std::future::ready(inside)
        });
        all.push(within.boxed());
    }
    Ok(all)
}
