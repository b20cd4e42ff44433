//! `trilog group`: consumer groups, what they have read, and what they have not.

use std::str::FromStr;

use anyhow::bail;
use clap::{Args, Subcommand};
use jiff::{Timestamp, Zoned};
use serde_json::{Value, json};
use trilog_client::proto::reset_offsets_request::To;
use trilog_client::proto::{
    DeleteOffsetsRequest, DescribeGroupResponse, ErrorCode, GroupPlace, GroupSummary, OffsetReset,
    ResetOffsetsRequest, TopicPartitions, Unit,
};
use trilog_client::{Admin, Error};

use super::connect::ConnectArgs;
use super::output::{self, OutputArgs};
use super::position::{Position, When};
use super::topic::plural;

#[derive(Debug, Args)]
pub(super) struct GroupArgs {
    #[command(subcommand)]
    command: GroupCommand,
}

#[derive(Debug, Subcommand)]
enum GroupCommand {
    /// List the groups of all nodes
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a group's members, who reads what, and where it stands
    Describe {
        group: String,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show how many records groups have yet to read
    Lag {
        /// Which groups [default: all]
        groups: Vec<String>,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Put a group without members somewhere else; says what it would do unless told to --execute
    Reset(Box<ResetArgs>),
    /// Delete groups without members, or offsets of topics they no longer read
    Delete(DeleteArgs),
}

/// A topic, and which of its partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Meant(TopicPartitions);

impl FromStr for Meant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names of topics hold no colon.
        let (topic, partitions) = text.split_once(':').unwrap_or((text, ""));
        let partitions = partitions.split(',').filter(|part| !part.is_empty());
        let partitions: Result<Vec<u32>, _> = partitions.map(str::parse).collect();
        match partitions {
            Ok(partitions) if !topic.is_empty() => Ok(Self(TopicPartitions {
                topic: topic.to_owned(),
                partitions,
            })),
            _ => Err("write TOPIC, or TOPIC:0,1,2 for some of its partitions".to_owned()),
        }
    }
}

#[derive(Debug, Args)]
struct ResetArgs {
    group: String,
    /// A topic, or some of its partitions; may be given again
    #[arg(
        short,
        long,
        value_name = "TOPIC[:N,..]",
        required_unless_present = "all_topics",
        conflicts_with = "all_topics"
    )]
    topic: Vec<Meant>,
    /// Everything that the group has offsets of
    #[arg(long)]
    all_topics: bool,
    #[command(flatten)]
    to: ToArgs,
    /// Do it, instead of saying what would be done
    #[arg(long, visible_alias = "yes")]
    execute: bool,
    /// Only say what would be done, which is the default
    #[arg(long, conflicts_with = "execute")]
    dry_run: bool,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Where to; the names are those of Kafka's tool.
#[derive(Debug, Default, Args)]
#[group(required = true, multiple = false)]
struct ToArgs {
    /// start, end, an offset, the last so many of each partition (-10), or a time of appending
    /// (@2026-11-20T10:00 local, @10:00, @-5m, @yesterday, @tuesday)
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    to: Option<Position>,
    /// The first record there still is
    #[arg(long)]
    to_earliest: bool,
    /// Behind the last record
    #[arg(long)]
    to_latest: bool,
    /// This offset, or the nearest there is
    #[arg(long, value_name = "OFFSET")]
    to_offset: Option<u64>,
    /// The first record whose own time is this or later (2026-11-20T10:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to_datetime: Option<When>,
    /// The first record whose own time is this long ago or later (5m, 1h30m, PT5M)
    #[arg(long, value_name = "TIME", value_parser = parse_ago)]
    by_duration: Option<When>,
    /// So many records on, or back (-10)
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    shift_by: Option<i64>,
    /// Where it is, within what there still is
    #[arg(long)]
    to_current: bool,
}

fn parse_time(text: &str) -> Result<When, String> {
    let text = text.strip_prefix('@').unwrap_or(text);
    text.parse().map_err(|error| format!("{error}"))
}

fn parse_ago(text: &str) -> Result<When, String> {
    parse_time(&format!("-{}", text.trim_start_matches('-')))
}

impl ToArgs {
    fn to(&self, now: &Zoned) -> anyhow::Result<To> {
        if let Some(position) = &self.to {
            return Ok(match position {
                Position::Start => To::Earliest(Unit {}),
                Position::End => To::Latest(Unit {}),
                Position::Offset(offset) => To::Offset(*offset),
                Position::Last(count) => To::Last(*count),
                Position::Time(when) => {
                    let nanos = when.resolve(now)?.timestamp().as_nanosecond();
                    // Before the epoch there is nothing, and everything lies behind it.
                    To::AppendTimeNs(u64::try_from(nanos.max(0)).unwrap_or(u64::MAX))
                }
            });
        }
        if let Some(when) = self.to_datetime.as_ref().or(self.by_duration.as_ref()) {
            return Ok(To::RecordTimeMs(millis(when.resolve(now)?.timestamp())));
        }
        if let Some(offset) = self.to_offset {
            return Ok(To::Offset(offset));
        }
        if let Some(by) = self.shift_by {
            return Ok(To::ShiftBy(by));
        }
        Ok(match (self.to_earliest, self.to_latest) {
            (true, _) => To::Earliest(Unit {}),
            (_, true) => To::Latest(Unit {}),
            _ => To::Current(Unit {}),
        })
    }
}

fn millis(time: Timestamp) -> i64 {
    time.as_millisecond()
}

#[derive(Debug, Args)]
struct DeleteArgs {
    #[arg(required = true)]
    groups: Vec<String>,
    /// Only the offsets of a topic, or of some of its partitions; may be given again
    #[arg(short, long, value_name = "TOPIC[:N,..]")]
    topic: Vec<Meant>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: GroupArgs) -> anyhow::Result<()> {
    match args.command {
        GroupCommand::Ls { connect, output } => {
            list(&connect.client().await?.admin(), output).await
        }
        GroupCommand::Describe {
            group,
            connect,
            output,
        } => {
            let admin = connect.client().await?.admin();
            describe(&admin.describe_group(group).await?, output)
        }
        GroupCommand::Lag {
            groups,
            connect,
            output,
        } => lag(&connect.client().await?.admin(), groups, output).await,
        GroupCommand::Reset(args) => reset(*args).await,
        GroupCommand::Delete(args) => delete(args).await,
    }
}

async fn list(admin: &Admin, output: OutputArgs) -> anyhow::Result<()> {
    let groups = admin.list_groups().await?;
    if output.is_json() {
        let groups: Vec<Value> = groups.iter().map(summary_json).collect();
        return Ok(output::json(&json!({ "groups": groups }))?);
    }
    let rows = groups.into_iter().map(|group| {
        vec![
            group.group,
            group.state,
            group.members.to_string(),
            dash(Some(group.protocol_type).filter(|kind| !kind.is_empty())),
            group.kind,
        ]
    });
    let heading = ["group", "state", "members", "type", "protocol"];
    Ok(output::table(&heading, rows.collect())?)
}

fn summary_json(group: &GroupSummary) -> Value {
    json!({
        "group": group.group,
        "state": group.state,
        "type": group.protocol_type,
        "protocol": group.kind,
        "members": group.members,
    })
}

fn dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// What its leader did not say.
fn unknown(value: Option<u64>) -> String {
    value.map_or_else(|| "?".to_owned(), |value| value.to_string())
}

/// Without an offset there is no lag; without an end it is not known.
fn lag_of(place: &GroupPlace) -> String {
    match (place.offset, place.lag) {
        (None, _) => "-".to_owned(),
        (Some(_), lag) => unknown(lag),
    }
}

fn describe(described: &DescribeGroupResponse, output: OutputArgs) -> anyhow::Result<()> {
    let summary = described.group.clone().unwrap_or_default();
    if output.is_json() {
        return Ok(output::json(&described_json(&summary, described))?);
    }
    let count = described.members.len();
    output::line(format_args!(
        "{}: {}, {count} member{}, generation {}, coordinated by node {}",
        summary.group,
        summary.state,
        plural(count),
        described.generation,
        described.coordinator,
    ))?;
    if count > 0 {
        output::line("")?;
        let rows = described.members.iter().enumerate().map(|(nth, member)| {
            let reads = described.places.iter();
            let reads = reads.filter(|place| place.member == u32::try_from(nth).ok());
            vec![
                member.member.clone(),
                dash(Some(&member.instance).filter(|name| !name.is_empty())),
                member.client_id.clone(),
                member.client_host.clone(),
                reads.count().to_string(),
            ]
        });
        let heading = ["member", "instance", "client", "host", "partitions"];
        output::table(&heading, rows.collect())?;
    }
    if !described.places.is_empty() {
        output::line("")?;
        let rows = described.places.iter().map(|place| {
            vec![
                place.topic.clone(),
                place.partition.to_string(),
                dash(place.offset),
                unknown(place.log_end),
                lag_of(place),
                dash(reader(described, place)),
            ]
        });
        let heading = ["topic", "partition", "offset", "end", "lag", "member"];
        output::table(&heading, rows.collect())?;
    }
    Ok(())
}

/// The member that reads a partition.
fn reader<'a>(described: &'a DescribeGroupResponse, place: &GroupPlace) -> Option<&'a str> {
    let nth = usize::try_from(place.member?).ok()?;
    Some(described.members.get(nth)?.member.as_str())
}

fn described_json(summary: &GroupSummary, described: &DescribeGroupResponse) -> Value {
    let members = described.members.iter().map(|member| {
        json!({
            "member": member.member,
            "instance": (!member.instance.is_empty()).then_some(&member.instance),
            "client": member.client_id,
            "host": member.client_host,
        })
    });
    let members: Vec<Value> = members.collect();
    json!({
        "group": summary.group,
        "state": summary.state,
        "type": summary.protocol_type,
        "generation": described.generation,
        "protocol": described.protocol,
        "coordinator": described.coordinator,
        "members": members,
        "partitions": places_json(described),
        "lag": total(&described.places),
    })
}

fn places_json(described: &DescribeGroupResponse) -> Vec<Value> {
    let places = described.places.iter().map(|place| {
        json!({
            "topic": place.topic,
            "partition": place.partition,
            "offset": place.offset,
            "metadata": place.metadata,
            "start": place.log_start,
            "end": place.log_end,
            "lag": place.lag,
            "member": reader(described, place),
        })
    });
    places.collect()
}

fn total(places: &[GroupPlace]) -> u64 {
    places.iter().filter_map(|place| place.lag).sum()
}

async fn lag(admin: &Admin, groups: Vec<String>, output: OutputArgs) -> anyhow::Result<()> {
    let listed = groups.is_empty();
    let groups = if listed {
        let all = admin.list_groups().await?;
        all.into_iter().map(|group| group.group).collect()
    } else {
        groups
    };
    let mut described = Vec::with_capacity(groups.len());
    for group in groups {
        match admin.describe_group(&group).await {
            // Deleted since it was listed.
            Err(error) if listed && error.code() == Some(ErrorCode::UnknownGroup) => {}
            answer => described.push((group, answer?)),
        }
    }
    if output.is_json() {
        let groups = described.iter().map(|(group, described)| {
            json!({
                "group": group,
                "lag": total(&described.places),
                "partitions": places_json(described),
            })
        });
        let groups: Vec<Value> = groups.collect();
        return Ok(output::json(&json!({ "groups": groups }))?);
    }
    let rows = described.iter().flat_map(|(group, described)| {
        let places = described.places.iter();
        places.map(move |place| {
            vec![
                group.clone(),
                place.topic.clone(),
                place.partition.to_string(),
                dash(place.offset),
                unknown(place.log_end),
                lag_of(place),
            ]
        })
    });
    let heading = ["group", "topic", "partition", "offset", "end", "lag"];
    output::table(&heading, rows.collect())?;
    output::line("")?;
    for (group, described) in &described {
        let behind = total(&described.places);
        let records = usize::try_from(behind).unwrap_or(usize::MAX);
        let plural = plural(records);
        // Of some partitions nobody may say where they end.
        let mut places = described.places.iter();
        let partly = places.any(|place| place.offset.is_some() && place.lag.is_none());
        let least = if partly { "at least " } else { "" };
        output::line(format_args!(
            "{group}: {least}{behind} record{plural} behind"
        ))?;
    }
    Ok(())
}

async fn reset(args: ResetArgs) -> anyhow::Result<()> {
    let request = ResetOffsetsRequest {
        group: args.group.clone(),
        topics: args.topic.into_iter().map(|Meant(topic)| topic).collect(),
        execute: args.execute,
        to: Some(args.to.to(&Zoned::now())?),
    };
    let admin = args.connect.client().await?.admin();
    let resets = match admin.reset_offsets(request).await {
        Err(Error::UnknownOutcome(reason)) => bail!(
            "it is not known whether the offsets were set ({reason}); \
             `trilog group describe {}` tells",
            args.group
        ),
        resets => resets?,
    };
    if args.output.is_json() {
        let resets: Vec<Value> = resets.iter().map(reset_json).collect();
        return Ok(output::json(&json!({
            "group": args.group,
            "executed": args.execute,
            "offsets": resets,
        }))?);
    }
    let rows = resets.iter().map(|reset| {
        vec![
            reset.topic.clone(),
            reset.partition.to_string(),
            dash(reset.before),
            reset.after.to_string(),
            reset.log_end.saturating_sub(reset.after).to_string(),
        ]
    });
    let heading = ["topic", "partition", "before", "after", "lag"];
    output::table(&heading, rows.collect())?;
    output::line("")?;
    if args.execute {
        output::line(format_args!("set for {}", args.group))?;
    } else {
        output::line("nothing was changed; --execute does it")?;
    }
    Ok(())
}

fn reset_json(reset: &OffsetReset) -> Value {
    json!({
        "topic": reset.topic,
        "partition": reset.partition,
        "before": reset.before,
        "after": reset.after,
        "start": reset.log_start,
        "end": reset.log_end,
    })
}

async fn delete(args: DeleteArgs) -> anyhow::Result<()> {
    let admin = args.connect.client().await?.admin();
    let topics: Vec<TopicPartitions> = args.topic.into_iter().map(|Meant(topic)| topic).collect();
    for group in args.groups {
        if topics.is_empty() {
            admin.delete_group(&group).await?;
            output::line(format_args!("deleted {group}"))?;
            continue;
        }
        let request = DeleteOffsetsRequest {
            group: group.clone(),
            topics: topics.clone(),
        };
        let deletions = admin.delete_offsets(request).await?;
        if deletions.is_empty() {
            bail!("group '{group}' has no offsets there");
        }
        let mut kept = Vec::new();
        for deletion in deletions {
            let place = format!("{}/{}", deletion.topic, deletion.partition);
            match deletion.error {
                None => output::line(format_args!("deleted the offset of {group} in {place}"))?,
                Some(error) => kept.push(format!("{place}: {}", error.message)),
            }
        }
        if !kept.is_empty() {
            bail!("not deleted of {group}: {}", kept.join("; "));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Zoned {
        "2026-11-20T10:00:00+00:00[UTC]".parse().unwrap()
    }

    #[test]
    fn topics_may_name_partitions() {
        let meant = |text: &str| text.parse::<Meant>().map(|Meant(meant)| meant);
        let whole = meant("orders").unwrap();
        assert_eq!((whole.topic.as_str(), whole.partitions), ("orders", vec![]));
        let some = meant("orders:0,2").unwrap();
        assert_eq!(
            (some.topic.as_str(), some.partitions),
            ("orders", vec![0, 2])
        );
        for wrong in ["", ":1", "orders:x", "orders:-1"] {
            assert!(meant(wrong).is_err(), "{wrong}");
        }
    }

    /// As the command line gives them.
    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        to: ToArgs,
    }

    #[test]
    fn every_way_to_say_where_to_is_understood() {
        let at = "2026-11-20T10:00:00Z".parse::<Timestamp>().unwrap();
        let (millis, nanos) = (at.as_millisecond(), at.as_nanosecond());
        let nanos = u64::try_from(nanos).unwrap();
        let table: [(&[&str], To); 12] = [
            (&["--to", "start"], To::Earliest(Unit {})),
            (&["--to", "-10"], To::Last(10)),
            (&["--to", "42"], To::Offset(42)),
            (&["--to", "@-5m"], To::AppendTimeNs(nanos - 300_000_000_000)),
            (&["--to-earliest"], To::Earliest(Unit {})),
            (&["--to-latest"], To::Latest(Unit {})),
            (&["--to-offset", "7"], To::Offset(7)),
            (
                &["--to-datetime", "2026-11-20T10:00:00Z"],
                To::RecordTimeMs(millis),
            ),
            (
                &["--by-duration", "PT5M"],
                To::RecordTimeMs(millis - 300_000),
            ),
            (&["--by-duration", "5m"], To::RecordTimeMs(millis - 300_000)),
            (&["--shift-by", "-3"], To::ShiftBy(-3)),
            (&["--to-current"], To::Current(Unit {})),
        ];
        for (arguments, to) in table {
            let line = [&["line"], arguments].concat();
            let line = <Line as clap::Parser>::try_parse_from(line).unwrap();
            assert_eq!(line.to.to(&now()).unwrap(), to, "{arguments:?}");
        }
        for wrong in [&["line"][..], &["line", "--to-latest", "--to-earliest"]] {
            assert!(<Line as clap::Parser>::try_parse_from(wrong).is_err());
        }
    }
}
