//! `trilog replay`: records of one topic, from any position, into another.

use clap::Args;
use futures::stream::{FuturesUnordered, StreamExt};
use jiff::Zoned;
use tokio::time::Instant;
use trilog_client::{ConsumedRecord, ProducerConfig, Record};

use super::connect::ConnectArgs;
use super::output;
use super::position::Position;
use super::progress::Progress;
use super::reader;

#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    /// The topic to read
    topic: String,
    /// Where to start: as `consume -o`
    #[arg(
        long,
        value_name = "POSITION",
        default_value = "start",
        allow_hyphen_values = true
    )]
    from: Position,
    /// The topic to write; its partitions need not be as many
    #[arg(long, value_name = "TOPIC")]
    to: String,
    /// Stop after so many records; otherwise at the end that there is now
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Records written and not yet acknowledged; the producer bounds their bytes.
const PENDING: usize = 64 << 10;

pub(super) async fn run(args: ReplayArgs) -> anyhow::Result<()> {
    if args.topic == args.to {
        anyhow::bail!(
            "{} cannot be replayed into itself: it would not end",
            args.topic
        );
    }
    let client = args.connect.client().await?;
    let partitions = reader::partitions(&client, &args.topic, &[]).await?;
    let targets = reader::partitions(&client, &args.to, &[]).await?.len();
    let now = Zoned::now();
    let (ranges, moment) =
        reader::locate(&client, &args.topic, &partitions, &args.from, &now).await?;
    if let Some(moment) = moment {
        eprintln!("from {}", moment.strftime("%Y-%m-%dT%H:%M:%S%:z"));
    }
    let total = args.count.unwrap_or(u64::MAX).min(reader::total(&ranges));
    let progress = Progress::records("replaying", Some(total));
    let producer = client.producer_with(ProducerConfig::default());
    let mut records = reader::read(&client, &args.topic, &ranges, false).await?;
    let mut pending = FuturesUnordered::new();
    let started = Instant::now();
    let mut sent = 0;
    while sent < total {
        let Some(record) = records.next().await else {
            break;
        };
        while pending.len() >= PENDING {
            pending.next().await.transpose()?;
        }
        let copy = copy(record?, targets);
        pending.push(producer.send(&args.to, copy).await?);
        sent += 1;
        progress.add(1);
    }
    while let Some(place) = pending.next().await {
        place?;
    }
    progress.finish();
    let seconds = started.elapsed().as_secs_f64();
    output::line(format_args!(
        "{sent} records of {} are in {} after {seconds:.1} s",
        args.topic, args.to
    ))?;
    Ok(())
}

/// The same record for another topic. One with a key goes where its key belongs there; one
/// without stays with its neighbours, so that their order survives.
fn copy(record: ConsumedRecord, targets: usize) -> Record {
    let targets = u32::try_from(targets).unwrap_or(u32::MAX).max(1);
    let partition = record.key.is_none().then_some(record.partition % targets);
    Record {
        key: record.key,
        value: record.value,
        headers: record.headers,
        timestamp_ms: Some(record.timestamp_ms),
        partition,
    }
}
