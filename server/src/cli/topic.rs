//! `trilog topic`: make, list, describe, change and delete topics.

use std::collections::BTreeMap;

use anyhow::bail;
use clap::{Args, Subcommand};
use futures::future::join_all;
use serde_json::{Value, json};
use trilog_client::proto::{
    AlterTopicRequest, ConfigEntry, CreateTopicRequest, ResolveResponse, Subjects, TopicDescription,
};
use trilog_client::{Admin, Client, Error};

use super::connect::ConnectArgs;
use super::output::{self, OutputArgs};
use crate::config::{ByteSize, Duration};

#[derive(Debug, Args)]
pub(super) struct TopicArgs {
    #[command(subcommand)]
    command: TopicCommand,
}

#[derive(Debug, Subcommand)]
enum TopicCommand {
    /// Make a topic
    Create(CreateArgs),
    /// List the topics
    #[command(visible_alias = "list")]
    Ls {
        /// Also those the cluster made for itself
        #[arg(long)]
        internal: bool,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a topic's partitions, their leaders and offsets, and its settings
    Describe {
        name: String,
        /// Settings that nobody changed, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Change a topic
    Alter(AlterArgs),
    /// Delete a topic and its records
    Delete {
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

/// What a topic can be given at its creation and later.
#[derive(Debug, Default, Args)]
struct SettingArgs {
    /// How long records are kept at least, as in 7d or 12h [retention.ms]
    #[arg(long, value_name = "TIME")]
    retention: Option<Duration>,
    /// How much a partition keeps at most, as in 10GiB [retention.bytes]
    #[arg(long, value_name = "SIZE")]
    retention_size: Option<ByteSize>,
    /// Any other setting, by its Kafka name
    #[arg(long = "config", short = 'c', value_name = "NAME=VALUE")]
    config: Vec<String>,
    /// Subject filters whose publications the topic captures, separated by commas
    #[arg(long, value_name = "FILTER,..", value_delimiter = ',')]
    subjects: Vec<String>,
}

impl SettingArgs {
    fn config(&self) -> anyhow::Result<BTreeMap<String, String>> {
        let mut config = BTreeMap::new();
        for text in &self.config {
            let Some((name, value)) = text.split_once('=') else {
                bail!("--config {text}: expected NAME=VALUE");
            };
            config.insert(name.trim().to_owned(), value.to_owned());
        }
        if let Some(retention) = self.retention {
            config.insert(
                "retention.ms".to_owned(),
                retention.get().as_millis().to_string(),
            );
        }
        if let Some(size) = self.retention_size {
            config.insert("retention.bytes".to_owned(), size.get().to_string());
        }
        Ok(config)
    }
}

#[derive(Debug, Args)]
struct CreateArgs {
    name: String,
    /// How many partitions [default: the cluster's]
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true
    )]
    partitions: u32,
    /// Replicas of each [default: the cluster's]
    #[arg(
        short,
        long,
        value_name = "N",
        default_value_t = 0,
        hide_default_value = true
    )]
    replication: u32,
    /// A topic that is there already is no error
    #[arg(long)]
    if_not_exists: bool,
    /// Say what is wrong with the request, but make nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
struct AlterArgs {
    name: String,
    /// A new total of partitions; they can only be added
    #[arg(short, long, value_name = "N")]
    partitions: Option<u32>,
    /// Replicas of each
    #[arg(short, long, value_name = "N")]
    replication: Option<u32>,
    /// Settings to return to their defaults, separated by commas
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    unset: Vec<String>,
    #[command(flatten)]
    settings: SettingArgs,
    /// Say what is wrong with the request, but change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(args: TopicArgs) -> anyhow::Result<()> {
    match args.command {
        TopicCommand::Create(args) => create(args).await,
        TopicCommand::Ls {
            internal,
            connect,
            output,
        } => list(&connect.client().await?.admin(), internal, output).await,
        TopicCommand::Describe {
            name,
            all,
            connect,
            output,
        } => {
            let client = connect.client().await?;
            let topic = client.admin().describe_topic(&name).await?;
            let bounds = bounds(&client, &topic).await;
            describe(&topic, &bounds, all, output)
        }
        TopicCommand::Alter(args) => alter(args).await,
        TopicCommand::Delete { name, connect } => {
            connect.client().await?.admin().delete_topic(&name).await?;
            output::line(format_args!("deleted {name}"))?;
            Ok(())
        }
    }
}

async fn create(args: CreateArgs) -> anyhow::Result<()> {
    let request = CreateTopicRequest {
        name: args.name.clone(),
        partitions: args.partitions,
        replication: args.replication,
        config: args.settings.config()?,
        subjects: args.settings.subjects.clone(),
        validate_only: args.dry_run,
        if_not_exists: args.if_not_exists,
    };
    let admin = args.connect.client().await?.admin();
    let created = admin.create_topic(request).await?;
    let topic = if created.created {
        // Whoever writes to it next should not be the one to wait.
        admin.await_leaders(&args.name).await?
    } else {
        created.topic.unwrap_or_default()
    };
    if args.output.is_json() {
        let topic = topic_json(&topic, &[]);
        return Ok(output::json(
            &json!({ "created": created.created, "topic": topic }),
        )?);
    }
    let what = match (created.created, args.dry_run) {
        (true, _) => "created",
        (false, true) => "would create",
        (false, false) => "there is already",
    };
    let (partitions, replication) = (topic.partitions.len(), topic.replication);
    output::line(format_args!(
        "{what} {}: {partitions} partition{}, {replication} replica{} each",
        args.name,
        plural(partitions),
        plural(usize::try_from(replication).unwrap_or(usize::MAX)),
    ))?;
    Ok(())
}

async fn alter(args: AlterArgs) -> anyhow::Result<()> {
    let subjects = &args.settings.subjects;
    let request = AlterTopicRequest {
        name: args.name.clone(),
        set_config: args.settings.config()?,
        reset_config: args.unset,
        partitions: args.partitions,
        replication: args.replication,
        subjects: (!subjects.is_empty()).then(|| Subjects {
            filters: subjects.clone(),
        }),
        validate_only: args.dry_run,
    };
    let admin = args.connect.client().await?.admin();
    let topic = admin.alter_topic(request).await?;
    if args.output.is_json() {
        return Ok(output::json(&topic_json(&topic, &[]))?);
    }
    let what = if args.dry_run {
        "would alter"
    } else {
        "altered"
    };
    let moving = args.replication.is_some() && !args.dry_run;
    let hint = if moving {
        "; replicas come and go meanwhile: `trilog cluster status`"
    } else {
        ""
    };
    output::line(format_args!("{what} {}{hint}", args.name))?;
    Ok(())
}

async fn list(admin: &Admin, internal: bool, output: OutputArgs) -> anyhow::Result<()> {
    let topics = admin.list_topics(internal).await?;
    if output.is_json() {
        let topics: Vec<Value> = topics
            .iter()
            .map(|topic| {
                json!({
                    "name": topic.name,
                    "partitions": topic.partitions,
                    "replication": topic.replication,
                    "subjects": topic.subjects,
                    "internal": topic.internal,
                })
            })
            .collect();
        return Ok(output::json(&json!({ "topics": topics }))?);
    }
    let rows = topics.into_iter().map(|topic| {
        vec![
            topic.name,
            topic.partitions.to_string(),
            topic.replication.to_string(),
            topic.subjects.join(" "),
        ]
    });
    let heading = ["topic", "partitions", "replication", "subjects"];
    Ok(output::table(&heading, rows.collect())?)
}

type Bounds = Result<ResolveResponse, Error>;

/// Where each partition begins and ends, as far as its leader answers.
async fn bounds(client: &Client, topic: &TopicDescription) -> Vec<Bounds> {
    let admin = client.admin();
    let asked = topic
        .partitions
        .iter()
        // One without a leader would only make us wait.
        .map(|partition| {
            let (admin, name) = (&admin, &topic.name);
            async move {
                if partition.leader == 0 {
                    return Err(Error::Unreachable("it has no leader".to_owned()));
                }
                admin.resolve(name, partition.partition, None).await
            }
        });
    join_all(asked).await
}

fn describe(
    topic: &TopicDescription,
    bounds: &[Bounds],
    all: bool,
    output: OutputArgs,
) -> anyhow::Result<()> {
    if output.is_json() {
        return Ok(output::json(&topic_json(topic, bounds))?);
    }
    output::line(format_args!(
        "{}: {} partition{}, {} replica{} each, stream {}",
        topic.name,
        topic.partitions.len(),
        plural(topic.partitions.len()),
        topic.replication,
        plural(usize::try_from(topic.replication).unwrap_or(usize::MAX)),
        topic.stream,
    ))?;
    output::line(format_args!("Kafka's id {}", kafka_id(&topic.id)))?;
    if !topic.subjects.is_empty() {
        output::line(format_args!("captures {}", topic.subjects.join(" ")))?;
    }
    output::line("")?;
    let rows = topic.partitions.iter().enumerate().map(|(nth, partition)| {
        let offset = |pick: fn(&ResolveResponse) -> u64| match bounds.get(nth) {
            Some(Ok(bounds)) => pick(bounds).to_string(),
            _ => "?".to_owned(),
        };
        vec![
            partition.partition.to_string(),
            leader(partition.leader),
            partition.term.to_string(),
            numbers(&partition.replicas),
            numbers(&partition.live),
            numbers(&missing(&partition.replicas, &partition.live)),
            offset(|bounds| bounds.log_start),
            offset(|bounds| bounds.high_watermark),
        ]
    });
    let heading = [
        "partition",
        "leader",
        "epoch",
        "replicas",
        "isr",
        "missing",
        "start",
        "end",
    ];
    output::table(&heading, rows.collect())?;
    let shown: Vec<&ConfigEntry> = topic
        .config
        .iter()
        .filter(|entry| all || !entry.is_default)
        .collect();
    if !shown.is_empty() {
        output::line("")?;
        let rows = shown.iter().map(|entry| {
            let origin = if entry.is_default { "default" } else { "topic" };
            vec![entry.name.clone(), entry.value.clone(), origin.to_owned()]
        });
        output::table(&["setting", "value", "origin"], rows.collect())?;
    }
    let hidden = topic.config.len() - shown.len();
    if hidden > 0 {
        output::line(format_args!(
            "\n{hidden} settings are at their defaults; --all shows them"
        ))?;
    }
    Ok(())
}

fn topic_json(topic: &TopicDescription, bounds: &[Bounds]) -> Value {
    let partitions: Vec<Value> = topic
        .partitions
        .iter()
        .enumerate()
        .map(|(nth, partition)| {
            let bounds = bounds.get(nth).and_then(|bounds| bounds.as_ref().ok());
            json!({
                "partition": partition.partition,
                "leader": (partition.leader != 0).then_some(partition.leader),
                "term": partition.term,
                "epoch": partition.term,
                "replicas": partition.replicas,
                "learners": partition.learners,
                "live": partition.live,
                "isr": partition.live,
                "start": bounds.map(|bounds| bounds.log_start),
                "end": bounds.map(|bounds| bounds.high_watermark),
            })
        })
        .collect();
    let config: serde_json::Map<String, Value> = topic
        .config
        .iter()
        .map(|entry| {
            let value = json!({ "value": entry.value, "is_default": entry.is_default });
            (entry.name.clone(), value)
        })
        .collect();
    json!({
        "name": topic.name,
        "id": kafka_id(&topic.id),
        "stream": topic.stream,
        "replication": topic.replication,
        "subjects": topic.subjects,
        "internal": topic.internal,
        "partitions": partitions,
        "config": config,
    })
}

/// A topic's id as Kafka's tools write it: 16 bytes, base64 for URLs, no padding.
fn kafka_id(id: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(22);
    for three in id.chunks(3) {
        let mut bits = [0; 4];
        bits[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(bits);
        for nth in 0..=three.len() {
            let digit = (bits >> (18 - 6 * nth)) & 63;
            let digit = usize::try_from(digit).ok().and_then(|at| DIGITS.get(at));
            text.extend(digit.map(|digit| char::from(*digit)));
        }
    }
    text
}

fn leader(node: u32) -> String {
    if node == 0 {
        return "none".to_owned();
    }
    node.to_string()
}

fn missing(replicas: &[u32], live: &[u32]) -> Vec<u32> {
    let gone = replicas.iter().filter(|node| !live.contains(node));
    gone.copied().collect()
}

fn numbers(nodes: &[u32]) -> String {
    let nodes: Vec<String> = nodes.iter().map(u32::to_string).collect();
    nodes.join(",")
}

pub(super) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_take_units_and_kafka_names() {
        let settings = SettingArgs {
            retention: Some(Duration::from_secs(7 * 86_400)),
            retention_size: Some(ByteSize::mib(1)),
            config: vec!["max.message.bytes=1000".to_owned(), "a=b=c".to_owned()],
            subjects: Vec::new(),
        };
        let config = settings.config().unwrap();
        assert_eq!(config["retention.ms"], "604800000");
        assert_eq!(config["retention.bytes"], "1048576");
        assert_eq!(config["max.message.bytes"], "1000");
        assert_eq!(config["a"], "b=c");
        let wrong = SettingArgs {
            config: vec!["retention.ms".to_owned()],
            ..SettingArgs::default()
        };
        assert!(wrong.config().is_err());
    }

    #[test]
    fn topic_ids_are_written_as_kafkas_tools_write_them() {
        let counted: Vec<u8> = (0..16).collect();
        assert_eq!(kafka_id(&counted), "AAECAwQFBgcICQoLDA0ODw");
        assert_eq!(kafka_id(&[0xff; 16]), "_____________________w");
        assert_eq!(kafka_id(&[]), "");
    }

    #[test]
    fn missing_replicas_are_those_that_do_not_live() {
        assert_eq!(missing(&[1, 2, 3], &[1, 3]), [2]);
        assert_eq!(numbers(&[1, 3]), "1,3");
        assert_eq!(leader(0), "none");
    }
}
