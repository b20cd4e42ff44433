//! `trilog produce`: records from arguments or from the lines of standard input.

use std::io::{self, BufRead, IsTerminal};
use std::time::Duration as StdDuration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use futures::stream::{FuturesOrdered, StreamExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use trilog_client::{Compression, Delivery, Producer, ProducerConfig, Record};

use super::connect::ConnectArgs;
use super::output;
use super::progress::Progress;
use super::topic::plural;
use crate::config::{ByteSize, Duration};

#[derive(Debug, Args)]
pub(super) struct ProduceArgs {
    /// The topic's name
    topic: String,
    /// The records' values; without any, each line of standard input is one
    values: Vec<String>,
    /// The key of all records
    #[arg(short, long)]
    key: Option<String>,
    /// Lines are KEY<SEPARATOR>VALUE
    #[arg(short = 'K', long, value_name = "SEPARATOR", conflicts_with = "key")]
    key_separator: Option<String>,
    /// A header of all records
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE")]
    headers: Vec<String>,
    /// The partition [default: by the key]
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// How batches are compressed
    #[arg(short, long, value_enum, default_value_t)]
    compression: Codec,
    /// How long a batch waits for more records
    #[arg(long, value_name = "TIME", default_value_t = Duration::from_millis(5))]
    linger: Duration,
    /// Size at which a batch is sent
    #[arg(long, value_name = "SIZE", default_value_t = ByteSize::kib(128))]
    batch_size: ByteSize,
    /// So many records a second at most
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Print the place of each record as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Codec {
    #[default]
    None,
    Lz4,
    Zstd,
}

impl From<Codec> for Compression {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::None => Self::None,
            Codec::Lz4 => Self::Lz4,
            Codec::Zstd => Self::Zstd,
        }
    }
}

/// Records sent and not yet acknowledged; the producer bounds their bytes.
const PENDING: usize = 64 << 10;
/// A longer line is no record.
const LINE_BYTES_MAX: u64 = 16 << 20;

pub(super) async fn run(args: ProduceArgs) -> anyhow::Result<()> {
    let headers = headers(&args.headers)?;
    let client = args.connect.client().await?;
    let producer = client.producer_with(ProducerConfig {
        linger: args.linger.get(),
        batch_bytes: args.batch_size.as_usize(),
        compression: args.compression.into(),
        ..ProducerConfig::default()
    });
    let mut input = input(&args)?;
    let progress = Progress::records("producing", None);
    let mut sending = Sending {
        args: &args,
        pending: FuturesOrdered::new(),
        acknowledged: 0,
    };
    let started = Instant::now();
    let mut pace = args.rate.map(pace);
    while let Some(line) = input.recv().await {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        let record = record(&args, line?, &headers)?;
        sending.send(&producer, record).await?;
        progress.add(1);
    }
    sending.finish().await?;
    progress.finish();
    if args.values.is_empty() && io::stderr().is_terminal() {
        let count = sending.acknowledged;
        let seconds = started.elapsed().as_secs_f64();
        let ending = plural(usize::try_from(count).unwrap_or(usize::MAX));
        eprintln!("{count} record{ending} acknowledged in {seconds:.1} s");
    }
    Ok(())
}

fn pace(rate: u32) -> tokio::time::Interval {
    let period = StdDuration::from_secs(1) / rate.max(1);
    let mut pace = tokio::time::interval(period);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    pace
}

type Headers = Vec<(String, String)>;

fn headers(texts: &[String]) -> anyhow::Result<Headers> {
    let split = |text: &String| {
        let (name, value) = text
            .split_once('=')
            .with_context(|| format!("--header {text}: expected NAME=VALUE"))?;
        Ok((name.to_owned(), value.to_owned()))
    };
    texts.iter().map(split).collect()
}

/// The values to send: the arguments, or lines read by a thread of their own.
fn input(args: &ProduceArgs) -> anyhow::Result<mpsc::Receiver<io::Result<Vec<u8>>>> {
    let (lines, input) = mpsc::channel(1024);
    let values: Vec<Vec<u8>> = args
        .values
        .iter()
        .map(|value| value.clone().into())
        .collect();
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || {
            if values.is_empty() {
                read_lines(&mut io::stdin().lock(), &lines);
                return;
            }
            for value in values {
                if lines.blocking_send(Ok(value)).is_err() {
                    return;
                }
            }
        })?;
    Ok(input)
}

fn read_lines(input: &mut impl BufRead, lines: &mpsc::Sender<io::Result<Vec<u8>>>) {
    loop {
        let mut line = Vec::new();
        let read = io::Read::take(&mut *input, LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let item = match read {
            Ok(0) => return,
            Ok(_) if line.last() == Some(&b'\n') => {
                line.pop();
                Ok(line)
            }
            Ok(length) if length as u64 == LINE_BYTES_MAX => {
                Err(io::Error::other("a line is longer than 16MiB"))
            }
            // The last line has no end of its own.
            Ok(_) => Ok(line),
            Err(error) => Err(error),
        };
        let failed = item.is_err();
        if lines.blocking_send(item).is_err() || failed {
            return;
        }
    }
}

fn record(args: &ProduceArgs, line: Vec<u8>, headers: &Headers) -> anyhow::Result<Record> {
    let (key, value) = match &args.key_separator {
        None => (args.key.clone().map(String::into_bytes), line),
        Some(separator) => {
            let (key, value) = split_key(&line, separator.as_bytes())
                .with_context(|| format!("a line has no {separator:?}"))?;
            (Some(key.to_vec()), value.to_vec())
        }
    };
    let mut record = Record::new(value);
    if let Some(key) = key {
        record = record.with_key(key);
    }
    if let Some(partition) = args.partition {
        record = record.at_partition(partition);
    }
    for (name, value) in headers {
        record = record.with_header(name.clone(), value.clone());
    }
    Ok(record)
}

fn split_key<'a>(line: &'a [u8], separator: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    if separator.is_empty() {
        return None;
    }
    let at = line
        .windows(separator.len())
        .position(|window| window == separator)?;
    Some((&line[..at], &line[at + separator.len()..]))
}

/// Records under way, and what became of those before.
struct Sending<'a> {
    args: &'a ProduceArgs,
    pending: FuturesOrdered<Delivery>,
    acknowledged: u64,
}

impl Sending<'_> {
    async fn send(&mut self, producer: &Producer, record: Record) -> anyhow::Result<()> {
        while self.pending.len() >= PENDING {
            self.settle().await?;
        }
        let delivery = producer.send(&self.args.topic, record).await?;
        self.pending.push_back(delivery);
        Ok(())
    }

    async fn settle(&mut self) -> anyhow::Result<()> {
        let Some(place) = self.pending.next().await else {
            bail!("nothing is under way");
        };
        let place = place?;
        self.acknowledged += 1;
        let (partition, offset) = (place.partition, place.offset);
        if self.args.json {
            let line = json!({
                "topic": self.args.topic,
                "partition": partition,
                "offset": offset,
                "append_time_ns": place.append_time.nanos(),
            });
            output::line(line)?;
        } else if !self.args.values.is_empty() {
            output::line(format_args!("{}/{partition}@{offset}", self.args.topic))?;
        }
        Ok(())
    }

    async fn finish(&mut self) -> anyhow::Result<()> {
        while !self.pending.is_empty() {
            self.settle().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_split_off_at_the_first_separator() {
        let split =
            |line: &'static str, separator: &str| split_key(line.as_bytes(), separator.as_bytes());
        assert_eq!(split("a:b:c", ":"), Some((&b"a"[..], &b"b:c"[..])));
        assert_eq!(split("a=>b", "=>"), Some((&b"a"[..], &b"b"[..])));
        assert_eq!(split(":b", ":"), Some((&b""[..], &b"b"[..])));
        assert_eq!(split("ab", ":"), None);
        assert_eq!(split("ab", ""), None);
    }

    #[test]
    fn lines_are_read_with_and_without_a_last_line_end() {
        for (text, expected) in [
            (&b""[..], &[][..]),
            (b"a\nb", &["a", "b"]),
            (b"a\n\nb\n", &["a", "", "b"]),
        ] {
            let (lines, mut input) = mpsc::channel(8);
            read_lines(&mut &text[..], &lines);
            drop(lines);
            let mut found = Vec::new();
            while let Some(line) = input.blocking_recv() {
                found.push(String::from_utf8(line.unwrap()).unwrap());
            }
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn headers_are_names_and_values() {
        let found = headers(&["a=1".to_owned(), "b=x=y".to_owned()]).unwrap();
        assert_eq!(found[1], ("b".to_owned(), "x=y".to_owned()));
        assert!(headers(&["a".to_owned()]).is_err());
    }
}
