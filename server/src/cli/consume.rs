//! `trilog consume`: records of a topic, from any position, in any form.

use std::io::IsTerminal;
use std::pin::pin;

use clap::Args;
use futures::FutureExt;
use futures::stream::StreamExt;
use jiff::Zoned;
use tokio::signal::unix::{SignalKind, signal};
use trilog_client::ConsumedRecord;

use super::connect::ConnectArgs;
use super::format::{Format, Shown};
use super::output;
use super::position::Position;
use super::reader::{self, Ranges};

#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    /// The topic's name
    topic: String,
    /// Where to start: start, end, an offset, the last so many of each partition (-10), or a time
    /// (@2026-11-20T10:00 local, @10:00, @-5m, @yesterday, @tuesday)
    #[arg(
        short,
        long,
        value_name = "POSITION",
        default_value = "end",
        allow_hyphen_values = true
    )]
    offset: Position,
    /// Stop after so many records
    #[arg(short = 'n', long, value_name = "COUNT")]
    count: Option<u64>,
    /// Stop at the end that there is now, instead of waiting for more
    #[arg(short, long)]
    exit: bool,
    /// Only these partitions, separated by commas
    #[arg(short, long, value_name = "N,..", value_delimiter = ',')]
    partition: Vec<u32>,
    /// pretty, value, json, or a template: %t topic, %p partition, %o offset, %T milliseconds,
    /// %d time, %k key, %s value, %h headers, \n [default: pretty on a terminal, else value]
    #[arg(short, long)]
    format: Option<Format>,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Output is written at the latest when so much of it is waiting.
const BUFFER_BYTES: usize = 256 << 10;

pub(super) async fn run(args: ConsumeArgs) -> anyhow::Result<()> {
    let client = args.connect.client().await?;
    let partitions = reader::partitions(&client, &args.topic, &args.partition).await?;
    let now = Zoned::now();
    let (ranges, moment) =
        reader::locate(&client, &args.topic, &partitions, &args.offset, &now).await?;
    announce(&args, &ranges, moment.as_ref());
    let format = args.format.clone().unwrap_or_else(|| {
        if std::io::stdout().is_terminal() {
            Format::Pretty
        } else {
            Format::Value
        }
    });
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut stopped = pin!(interrupt.recv());
    let mut records = reader::read(&client, &args.topic, &ranges, !args.exit).await?;
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut buffer = Vec::new();
    while left > 0 {
        // What waits is written before this waits itself.
        let next = if let Some(next) = records.next().now_or_never() {
            next
        } else {
            output::bytes(&std::mem::take(&mut buffer))?;
            tokio::select! {
                biased;
                _ = &mut stopped => break,
                next = records.next() => next,
            }
        };
        let Some(record) = next else {
            break;
        };
        format.write(&shown(&args.topic, &record?), &mut buffer);
        left -= 1;
        if buffer.len() >= BUFFER_BYTES {
            output::bytes(&buffer)?;
            buffer.clear();
        }
    }
    output::bytes(&buffer)?;
    Ok(())
}

/// Says on standard error what a person could not know: which moment was meant, and that there is
/// more before the end.
fn announce(args: &ConsumeArgs, ranges: &Ranges, moment: Option<&Zoned>) {
    if let Some(moment) = moment {
        let places: Vec<String> = ranges
            .iter()
            .map(|(partition, range)| format!("{partition}@{}", range.start))
            .collect();
        let shown = moment.strftime("%Y-%m-%dT%H:%M:%S%:z");
        eprintln!("from {shown}: {}", places.join(" "));
    }
    if args.offset == Position::End && std::io::stderr().is_terminal() {
        eprintln!("waiting for new records; `-o start` shows those there are");
    }
}

fn shown<'a>(topic: &'a str, record: &'a ConsumedRecord) -> Shown<'a> {
    Shown {
        topic,
        partition: record.partition,
        offset: record.offset,
        timestamp_ms: record.timestamp_ms,
        key: record.key.as_deref(),
        value: record.value.as_deref(),
        headers: record
            .headers
            .iter()
            .map(|(name, value)| (&name[..], value.as_deref()))
            .collect(),
    }
}
