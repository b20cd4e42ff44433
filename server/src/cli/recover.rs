//! `trilog recover`: go on with what is left when a majority of nodes is lost for ever.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use super::config::{SettingArgs, load};
use super::log;
use super::output::{self, OutputArgs};
use crate::boot::recover::{Fate, PartitionReport, Recovery, Report, Request, prepare};

/// Recover a stopped node whose cluster has lost a majority for ever
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// The node's configuration file; without one, the defaults
    #[arg(short, long, value_name = "FILE", env = "TRILOG_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingArgs,
    /// All nodes that are left, where there are more than this one
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    survivors: Vec<u32>,
    /// What recovering another survivor has printed
    #[arg(long, value_name = "ID")]
    cluster_id: Option<Uuid>,
    /// Do it, and give up what only the other nodes had. Without this, only say what that may be
    #[arg(long)]
    accept_loss: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(args: RecoverArgs) -> anyhow::Result<()> {
    let config = load(args.config, &args.settings)?.config;
    let dir = config.node.data_dir.clone();
    if !dir.is_dir() {
        bail!("there is no data directory {}", dir.display());
    }
    let _lock = log::lock(&dir, true)?;
    let request = Request {
        survivors: args.survivors.iter().copied().collect::<BTreeSet<u32>>(),
        cluster: args.cluster_id,
    };
    let prepared = prepare(&config, request).await;
    let recovery = prepared.context("nothing was changed")?;
    let report = recovery.report.clone();
    show(&report, args.accept_loss, args.output)?;
    if !args.accept_loss {
        recovery.give_up().await?;
        bail!("nothing was changed; to give up what only the lost nodes had, add --accept-loss");
    }
    finish(recovery, &report, args.output).await
}

async fn finish(recovery: Recovery, report: &Report, output: OutputArgs) -> anyhow::Result<()> {
    recovery
        .carry_out()
        .await
        .context("not finished, and the node does not start until it is: run this again")?;
    if output.is_json() {
        return Ok(());
    }
    let id = report.cluster;
    output::line(format_args!("recovered as cluster {id}"))?;
    if report.survivors.len() > 1 {
        output::line(format_args!(
            "Recover each other survivor the same way, with --cluster-id {id}, before any is started"
        ))?;
    }
    output::line(
        "Start it. Other nodes join with empty data directories; what the lost ones still have is \
         refused and kept.",
    )?;
    Ok(())
}

fn show(report: &Report, done: bool, output: OutputArgs) -> anyhow::Result<()> {
    if output.is_json() {
        return Ok(output::json(&as_json(report, done))?);
    }
    let list = |nodes: &[trilog_model::NodeId]| {
        let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        names.join(", ")
    };
    output::line(format_args!(
        "cluster {}: left {}, lost {}",
        report.before,
        list(&report.survivors),
        list(&report.lost)
    ))?;
    let rows: Vec<Vec<String>> = report.partitions.iter().map(row).collect();
    if !rows.is_empty() {
        output::table(
            &["partition", "replicas left", "end", "what may be lost"],
            rows,
        )?;
    }
    Ok(())
}

fn row(report: &PartitionReport) -> Vec<String> {
    let end = match report.fate {
        Fate::Kept { end, .. } => end.to_string(),
        Fate::Elsewhere | Fate::Gone | Fate::Unusable => "-".to_owned(),
    };
    vec![
        format!("{}/{}", report.topic, report.partition),
        format!("{} of {}", report.left, report.voters),
        end,
        report.fate.to_string(),
    ]
}

fn as_json(report: &Report, done: bool) -> Value {
    let ids = |nodes: &[trilog_model::NodeId]| -> Vec<u32> {
        nodes.iter().map(|node| node.get()).collect()
    };
    let partitions: Vec<Value> = report
        .partitions
        .iter()
        .map(|partition| {
            let (state, end, undecided) = match partition.fate {
                Fate::Kept { end, undecided, .. } => ("kept", Some(end.get()), Some(undecided)),
                Fate::Elsewhere => ("elsewhere", None, None),
                Fate::Gone => ("gone", None, None),
                Fate::Unusable => ("unusable", None, None),
            };
            json!({
                "topic": partition.topic,
                "partition": partition.partition,
                "voters": partition.voters,
                "left": partition.left,
                "state": state,
                "end": end,
                "undecided_entries": undecided,
            })
        })
        .collect();
    json!({
        "accepted": done,
        "cluster_before": report.before.to_string(),
        "cluster": report.cluster.to_string(),
        "survivors": ids(&report.survivors),
        "lost": ids(&report.lost),
        "partitions": partitions,
    })
}
