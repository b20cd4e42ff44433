//! `trilog txn`: transactions of Kafka producers, and those that nobody ends.

use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::{Value, json};
use trilog_client::Admin;
use trilog_client::proto::{
    DescribeTransactionResponse, EndOpenRequest, ListOpenResponse, OpenTransaction,
    TransactionSummary,
};

use super::connect::ConnectArgs;
use super::output::{self, OutputArgs};
use crate::config::Duration as Span;

#[derive(Debug, Args)]
pub(super) struct TxnArgs {
    #[command(subcommand)]
    command: TxnCommand,
}

#[derive(Debug, Subcommand)]
enum TxnCommand {
    /// List transactional ids and how far their transactions are
    #[command(visible_alias = "list")]
    Ls {
        /// Only those in this state (Empty, Ongoing, PrepareCommit, PrepareAbort, CompleteCommit,
        /// CompleteAbort); may be given again
        #[arg(long)]
        state: Vec<String>,
        /// Only those that began longer ago (30s, 5m)
        #[arg(long, value_name = "TIME", default_value = "0s")]
        longer_than: Span,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show the transaction of an id and the partitions in it
    Describe {
        id: String,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Find transactions that are open in partitions and that no coordinator is going to end
    #[command(visible_alias = "find-hanging")]
    Hanging {
        /// Only in this topic
        #[arg(short, long, default_value = "")]
        topic: String,
        /// Only where nothing was written for longer
        #[arg(long, value_name = "TIME", default_value = "15m")]
        longer_than: Span,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Abort the transaction of an id, or what is open in one partition whoever's it is
    Abort(AbortArgs),
}

#[derive(Debug, Args)]
struct AbortArgs {
    /// The transactional id; its producer is shut out
    #[arg(required_unless_present = "topic", conflicts_with = "topic")]
    id: Option<String>,
    /// The topic of a transaction that hangs
    #[arg(short, long, requires = "partition", requires = "start_offset")]
    topic: Option<String>,
    #[arg(short, long, requires = "topic")]
    partition: Option<u32>,
    /// Where it begins, as `trilog txn hanging` shows it
    #[arg(long, value_name = "OFFSET", requires = "topic")]
    start_offset: Option<u64>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: TxnArgs) -> anyhow::Result<()> {
    match args.command {
        TxnCommand::Ls {
            state,
            longer_than,
            connect,
            output,
        } => {
            let admin = connect.client().await?.admin();
            let all = admin.list_transactions(state, longer_than.get()).await?;
            list(&all, output)
        }
        TxnCommand::Describe {
            id,
            connect,
            output,
        } => {
            let admin = connect.client().await?.admin();
            describe(&admin.describe_transaction(id).await?, output)
        }
        TxnCommand::Hanging {
            topic,
            longer_than,
            connect,
            output,
        } => {
            let admin = connect.client().await?.admin();
            let found = admin
                .hanging_transactions(&topic, longer_than.get())
                .await?;
            hanging(&found, output)
        }
        TxnCommand::Abort(args) => abort(args).await,
    }
}

fn list(all: &[TransactionSummary], output: OutputArgs) -> anyhow::Result<()> {
    if output.is_json() {
        let all: Vec<Value> = all.iter().map(summary_json).collect();
        return Ok(output::json(&json!({ "transactions": all }))?);
    }
    let rows = all.iter().map(|one| {
        vec![
            one.id.clone(),
            one.state.clone(),
            one.producer_id.to_string(),
            one.producer_epoch.to_string(),
            one.partitions.to_string(),
            time(one.started_ms),
        ]
    });
    let heading = ["id", "state", "producer", "epoch", "partitions", "began"];
    Ok(output::table(&heading, rows.collect())?)
}

fn summary_json(one: &TransactionSummary) -> Value {
    json!({
        "id": one.id,
        "state": one.state,
        "producer_id": one.producer_id,
        "producer_epoch": one.producer_epoch,
        "partitions": one.partitions,
        "started_ms": one.started_ms,
    })
}

fn time(millis: i64) -> String {
    Timestamp::from_millisecond(millis).map_or_else(|_| "-".to_owned(), |time| time.to_string())
}

fn describe(described: &DescribeTransactionResponse, output: OutputArgs) -> anyhow::Result<()> {
    let summary = described.transaction.clone().unwrap_or_default();
    let places = described.places.iter();
    let places = places.map(|place| format!("{}/{}", place.topic, place.partition));
    if output.is_json() {
        let mut json = summary_json(&summary);
        json["timeout_ms"] = described.timeout_ms.into();
        json["coordinator"] = described.coordinator.into();
        json["places"] = places.collect();
        return Ok(output::json(&json)?);
    }
    output::line(format_args!(
        "{}: {}, producer {} of epoch {}, began {}, may take {} ms, coordinated by node {}",
        summary.id,
        summary.state,
        summary.producer_id,
        summary.producer_epoch,
        time(summary.started_ms),
        described.timeout_ms,
        described.coordinator,
    ))?;
    for place in places {
        output::line(format_args!("  {place}"))?;
    }
    Ok(())
}

fn hanging(found: &ListOpenResponse, output: OutputArgs) -> anyhow::Result<()> {
    if output.is_json() {
        let open: Vec<Value> = found.open.iter().map(open_json).collect();
        let json = json!({ "hanging": open, "cut_off": found.cut_off });
        return Ok(output::json(&json)?);
    }
    if found.open.is_empty() {
        return Ok(output::line("no transaction hangs")?);
    }
    let rows = found.open.iter().map(|one| {
        vec![
            one.topic.clone(),
            one.partition.to_string(),
            one.first_offset.to_string(),
            one.producer_id.to_string(),
            one.producer_epoch.to_string(),
            time(one.last_write_ms),
        ]
    });
    let heading = [
        "topic",
        "partition",
        "start offset",
        "producer",
        "epoch",
        "last write",
    ];
    output::table(&heading, rows.collect())?;
    if found.cut_off {
        output::line("there are more than are shown")?;
    }
    output::line("\ntrilog txn abort --topic T --partition P --start-offset N ends one")?;
    Ok(())
}

fn open_json(one: &OpenTransaction) -> Value {
    json!({
        "topic": one.topic,
        "partition": one.partition,
        "start_offset": one.first_offset,
        "producer_id": one.producer_id,
        "producer_epoch": one.producer_epoch,
        "last_write_ms": one.last_write_ms,
    })
}

async fn abort(args: AbortArgs) -> anyhow::Result<()> {
    let admin = args.connect.client().await?.admin();
    if let Some(id) = args.id {
        admin.abort_transaction(&id).await?;
        return Ok(output::line(format_args!(
            "aborts the transaction of {id}"
        ))?);
    }
    let (Some(topic), Some(partition), Some(start)) =
        (args.topic, args.partition, args.start_offset)
    else {
        bail!("name an id, or --topic, --partition and --start-offset");
    };
    let offset = abort_open(&admin, &topic, partition, start).await?;
    Ok(output::line(format_args!(
        "aborted in {topic}/{partition} what began at {start}: the marker is at {offset}"
    ))?)
}

async fn abort_open(admin: &Admin, topic: &str, partition: u32, start: u64) -> anyhow::Result<u64> {
    let found = admin.open_transactions(topic, Duration::ZERO).await?;
    let mut open = found.open.into_iter();
    let open = open.find(|one| one.partition == partition && one.first_offset == start);
    let Some(open) = open else {
        bail!("no transaction that is open in {topic}/{partition} begins at {start}");
    };
    let request = EndOpenRequest {
        topic: topic.to_owned(),
        partition,
        producer_id: open.producer_id,
        first_offset: start,
        commit: false,
    };
    Ok(admin.end_open_transaction(request).await?)
}
