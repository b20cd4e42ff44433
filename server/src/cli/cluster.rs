//! `trilog cluster`: the nodes, and what lies where.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use trilog_client::Admin;
use trilog_client::proto::{
    BalanceRequest, ConfigureRequest, MoveRequest, NodeState, NodeStatus, PlannedMove, Setting,
    StatusResponse,
};

use super::connect::ConnectArgs;
use super::output::{self, OutputArgs};
use super::progress::Progress;
use super::topic::plural;

/// Between two looks at moves that are under way.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Debug, Subcommand)]
enum ClusterCommand {
    /// Show the nodes and whether anything is amiss
    Status {
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take a drained node in again, or say how to start a new one
    Add {
        node: u32,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Move everything off a node; it stays a member
    Drain {
        node: u32,
        /// Come back when nothing is left on it
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Take a node out for good
    Remove {
        node: u32,
        /// Although it still holds replicas: they are made anew from their other copies
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Give all replicas of a lost node to another, or say how it comes back with an empty disk
    Replace {
        node: u32,
        /// The node that takes its place
        #[arg(long = "with", value_name = "NODE")]
        replacement: Option<u32>,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Hand the leadership of a partition over
    Transfer {
        /// As TOPIC/PARTITION
        #[arg(value_parser = parse_partition)]
        partition: (String, u32),
        /// The new leader [default: any other replica]
        #[arg(
            long,
            value_name = "NODE",
            default_value_t = 0,
            hide_default_value = true
        )]
        to: u32,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Move one replica of a partition from a node to another
    Move {
        /// As TOPIC/PARTITION
        #[arg(value_parser = parse_partition)]
        partition: (String, u32),
        #[arg(long, value_name = "NODE")]
        from: u32,
        #[arg(long, value_name = "NODE")]
        to: u32,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Show the settings of the whole cluster, or change some
    Config {
        /// New values
        #[arg(value_name = "KEY=VALUE")]
        set: Vec<String>,
        /// Back to its default
        #[arg(long, value_name = "KEY")]
        unset: Vec<String>,
        /// Show those at their defaults, too
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Raise the feature level, once every node runs the newer build; there is no way back
    Upgrade {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        connect: ConnectArgs,
    },
    /// Even out leaders over the nodes
    Balance {
        /// Replicas, too, over racks and nodes: a few at a time, until all are even
        #[arg(long)]
        replicas: bool,
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

fn parse_partition(text: &str) -> Result<(String, u32), String> {
    let wrong = || format!("{text:?} is not of the form TOPIC/PARTITION");
    let (topic, partition) = text.rsplit_once('/').ok_or_else(wrong)?;
    let partition = partition.parse().map_err(|_| wrong())?;
    if topic.is_empty() {
        return Err(wrong());
    }
    Ok((topic.to_owned(), partition))
}

pub(super) async fn run(args: ClusterArgs) -> anyhow::Result<()> {
    match args.command {
        ClusterCommand::Status { connect, output } => {
            let status = connect.client().await?.admin().status().await?;
            show(&status, output)
        }
        ClusterCommand::Add { node, connect } => add(&connect.client().await?.admin(), node).await,
        ClusterCommand::Drain {
            node,
            wait,
            connect,
        } => drain(&connect.client().await?.admin(), node, wait).await,
        ClusterCommand::Remove {
            node,
            force,
            connect,
        } => {
            let admin = connect.client().await?.admin();
            let answer = admin.remove_node(node, force).await?;
            removed(node, answer.replicas_replaced)
        }
        ClusterCommand::Replace {
            node,
            replacement,
            connect,
        } => replace(&connect.client().await?.admin(), node, replacement).await,
        ClusterCommand::Transfer {
            partition,
            to,
            connect,
        } => transfer(&connect.client().await?.admin(), partition, to).await,
        ClusterCommand::Move {
            partition,
            from,
            to,
            connect,
        } => move_replica(&connect.client().await?.admin(), partition, from, to).await,
        ClusterCommand::Balance {
            replicas,
            dry_run,
            connect,
            output,
        } => {
            let admin = connect.client().await?.admin();
            let request = BalanceRequest { replicas, dry_run };
            let moves = balance(&admin, request).await?;
            balanced(&moves, dry_run, output)
        }
        ClusterCommand::Config {
            set,
            unset,
            all,
            connect,
            output,
        } => {
            let request = ConfigureRequest {
                set: set
                    .iter()
                    .map(|text| setting(text))
                    .collect::<Result<_, _>>()?,
                reset: unset,
            };
            let settings = connect.client().await?.admin().configure(request).await?;
            configured(&settings, all, output)
        }
        ClusterCommand::Upgrade { dry_run, connect } => {
            upgrade(&connect.client().await?.admin(), dry_run).await
        }
    }
}

/// Begins moves until there are none left to begin; replicas take a while to arrive.
async fn balance(admin: &Admin, request: BalanceRequest) -> anyhow::Result<Vec<PlannedMove>> {
    let mut moves = Vec::new();
    let mut progress = None;
    loop {
        let answer = admin.balance(request).await?;
        let begun = answer
            .moves
            .iter()
            .filter(|planned| !planned.leadership)
            .count();
        moves.extend(answer.moves);
        let moving =
            request.replicas && !request.dry_run && (begun > 0 || answer.moving_replicas > 0);
        if !moving {
            return Ok(moves);
        }
        let bar = progress.get_or_insert_with(|| Progress::steps("moves of replicas begun"));
        bar.add(u64::try_from(begun).unwrap_or(0));
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn setting(text: &str) -> anyhow::Result<(String, String)> {
    let (key, value) = text
        .split_once('=')
        .with_context(|| format!("{text:?} is not of the form KEY=VALUE"))?;
    Ok((key.trim().to_owned(), value.to_owned()))
}

fn configured(settings: &[Setting], all: bool, output: OutputArgs) -> anyhow::Result<()> {
    if output.is_json() {
        let settings: serde_json::Map<String, Value> = settings
            .iter()
            .map(|entry| {
                let value = json!({ "value": entry.value, "is_default": entry.is_default });
                (entry.name.clone(), value)
            })
            .collect();
        return Ok(output::json(&json!({ "settings": settings }))?);
    }
    let shown = settings.iter().filter(|entry| all || !entry.is_default);
    let rows: Vec<Vec<String>> = shown
        .map(|entry| {
            vec![
                entry.name.clone(),
                entry.value.clone(),
                entry.documentation.clone(),
            ]
        })
        .collect();
    let hidden = settings.len() - rows.len();
    if !rows.is_empty() {
        output::table(&["setting", "value", "what it does"], rows)?;
    }
    if hidden > 0 {
        output::line(format_args!(
            "{hidden} settings are at their defaults; --all shows them"
        ))?;
    }
    Ok(())
}

async fn upgrade(admin: &Admin, dry_run: bool) -> anyhow::Result<()> {
    let answer = admin.upgrade(dry_run).await?;
    let (before, level) = (answer.level_before, answer.level);
    let would = if dry_run { "would be" } else { "is" };
    if level > before {
        output::line(format_args!(
            "the feature level {would} raised from {before} to {level}"
        ))?;
    } else {
        output::line(format_args!(
            "the feature level is {level}, the highest that every node can follow"
        ))?;
    }
    if !answer.held_back_by.is_empty() {
        let nodes: Vec<String> = answer.held_back_by.iter().map(u32::to_string).collect();
        output::line(format_args!(
            "others could follow a higher one; still on an older build: node {}",
            nodes.join(", ")
        ))?;
    }
    Ok(())
}

async fn drain(admin: &Admin, node: u32, wait: bool) -> anyhow::Result<()> {
    let mut left = admin.drain(node, false).await?.replicas_left;
    if wait || left == 0 {
        let progress = Progress::steps("replicas moved off");
        while left > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
            let now = admin.drain(node, false).await?.replicas_left;
            progress.add(left.saturating_sub(now).into());
            left = now;
        }
        progress.finish();
        output::line(format_args!(
            "node {node} is drained; `trilog cluster remove {node}` takes it out"
        ))?;
        return Ok(());
    }
    output::line(format_args!(
        "node {node} is draining, {left} replicas are still there; \
         `trilog cluster status` follows it"
    ))?;
    Ok(())
}

/// A node with an empty disk comes back under its number by being started; another one takes over
/// by being named.
async fn replace(admin: &Admin, node: u32, replacement: Option<u32>) -> anyhow::Result<()> {
    let Some(replacement) = replacement else {
        output::line(format_args!(
            "Start it on its machine, with an empty directory and its old number:\n\n  \
             trilog server --replace --node-id {node} --data-dir DIR --seeds {}\n\n\
             or name another node that takes its replicas: \
             trilog cluster replace {node} --with NODE",
            seeds(&admin.status().await?)
        ))?;
        return Ok(());
    };
    let moving = admin
        .replace_node(node, replacement)
        .await?
        .replicas_replaced;
    output::line(format_args!(
        "node {node} gives up {moving} replica{} to node {replacement}; once `trilog cluster \
         status` shows none moving, `trilog cluster remove {node}` takes it out",
        if moving == 1 { "" } else { "s" }
    ))?;
    Ok(())
}

/// By which a node that starts finds the cluster.
fn seeds(status: &StatusResponse) -> String {
    let addresses = status
        .nodes
        .iter()
        .filter_map(|node| node.addresses.as_ref());
    let peers: Vec<&str> = addresses.map(|addresses| addresses.peer.as_str()).collect();
    peers.join(",")
}

async fn transfer(admin: &Admin, (topic, partition): (String, u32), to: u32) -> anyhow::Result<()> {
    let leader = admin.transfer(&topic, partition, to).await?.leader;
    output::line(format_args!("node {leader} leads {topic}/{partition}"))?;
    Ok(())
}

async fn move_replica(
    admin: &Admin,
    (topic, partition): (String, u32),
    from: u32,
    to: u32,
) -> anyhow::Result<()> {
    let request = MoveRequest {
        topic: topic.clone(),
        partition,
        from,
        to,
    };
    admin.move_replica(request).await?;
    output::line(format_args!(
        "a replica of {topic}/{partition} is on its way from node {from} to node {to}"
    ))?;
    Ok(())
}

/// A node joins by being started; what is left to say is how, or that it is a member again.
async fn add(admin: &Admin, node: u32) -> anyhow::Result<()> {
    let status = admin.status().await?;
    if status.nodes.iter().any(|member| member.node == node) {
        admin.drain(node, true).await?;
        output::line(format_args!("node {node} is a full member"))?;
        return Ok(());
    }
    output::line(format_args!(
        "Start it on its machine, with an empty directory; it joins by itself:\n\n  \
         trilog server --node-id {node} --data-dir DIR --seeds {}",
        seeds(&status)
    ))?;
    Ok(())
}

fn removed(node: u32, replicas: u32) -> anyhow::Result<()> {
    output::line(format_args!(
        "node {node} is out; {replicas} replica{} made anew elsewhere",
        if replicas == 1 { " is" } else { "s are" }
    ))?;
    Ok(())
}

fn balanced(moves: &[PlannedMove], dry_run: bool, output: OutputArgs) -> anyhow::Result<()> {
    if output.is_json() {
        let moves: Vec<Value> = moves
            .iter()
            .map(|planned| {
                json!({
                    "topic": planned.topic,
                    "partition": planned.partition,
                    "from": planned.from,
                    "to": planned.to,
                    "what": what(planned),
                })
            })
            .collect();
        return Ok(output::json(
            &json!({ "dry_run": dry_run, "moves": moves }),
        )?);
    }
    if moves.is_empty() {
        return Ok(output::line("all is even")?);
    }
    let rows = moves.iter().map(|planned| {
        vec![
            format!("{}/{}", planned.topic, planned.partition),
            what(planned).to_owned(),
            planned.from.to_string(),
            planned.to.to_string(),
        ]
    });
    output::table(&["partition", "what", "from", "to"], rows.collect())?;
    Ok(())
}

fn what(planned: &PlannedMove) -> &'static str {
    if planned.leadership {
        "leadership"
    } else {
        "replica"
    }
}

fn state(node: &NodeStatus) -> &'static str {
    match (node.alive, node.state()) {
        (false, _) => "down",
        (true, NodeState::Draining) => "draining",
        (true, NodeState::Drained) => "drained",
        (true, NodeState::Active | NodeState::Unspecified) => "up",
    }
}

/// What is amiss, in words; nothing when nothing is.
fn complaints(status: &StatusResponse) -> Vec<String> {
    let mut found = Vec::new();
    if status.controller == 0 {
        found.push("the controller has no leader: topics cannot be changed".to_owned());
    }
    let down = status.nodes.iter().filter(|node| !node.alive);
    found.extend(down.map(|node| format!("node {} is down", node.node)));
    let mut count = |number: u32, what: &str| {
        if number > 0 {
            let plural = plural(usize::try_from(number).unwrap_or(usize::MAX));
            found.push(format!("{number} partition{plural} {what}"));
        }
    };
    count(
        status.leaderless_partitions,
        "without a leader: they refuse writes",
    );
    count(status.under_replicated_partitions, "with a replica missing");
    match status.moving_replicas {
        0 => {}
        1 => found.push("1 replica is moving".to_owned()),
        several => found.push(format!("{several} replicas are moving")),
    }
    if status.feature_level_possible > status.feature_level {
        found.push(format!(
            "every node can follow feature level {}: `trilog cluster upgrade` raises it",
            status.feature_level_possible
        ));
    }
    found.extend(status.losses.iter().map(|loss| {
        let nodes: Vec<String> = loss.nodes.iter().map(u32::to_string).collect();
        format!(
            "on {} what only node {} had was given up for lost",
            time(loss.at_ns),
            nodes.join(", ")
        )
    }));
    found
}

fn time(nanos: u64) -> String {
    let time = jiff::Timestamp::from_nanosecond(i128::from(nanos));
    let local = time.map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
    local.map_or_else(
        |_| nanos.to_string(),
        |time| time.strftime("%Y-%m-%d %H:%M %Z").to_string(),
    )
}

fn show(status: &StatusResponse, output: OutputArgs) -> anyhow::Result<()> {
    let complaints = complaints(status);
    if output.is_json() {
        return Ok(output::json(&status_json(status, &complaints))?);
    }
    output::line(format_args!(
        "cluster {}: {} topic{}, {} partition{}, feature level {}",
        status.cluster_id,
        status.topics,
        plural(usize::try_from(status.topics).unwrap_or(usize::MAX)),
        status.partitions,
        plural(usize::try_from(status.partitions).unwrap_or(usize::MAX)),
        status.feature_level,
    ))?;
    for complaint in &complaints {
        output::line(format_args!("  ! {complaint}"))?;
    }
    output::line("")?;
    let rows = status.nodes.iter().map(|node| {
        let addresses = node.addresses.clone().unwrap_or_default();
        let controller = if node.node == status.controller {
            " (controller)"
        } else {
            ""
        };
        vec![
            node.node.to_string(),
            format!("{}{controller}", state(node)),
            node.replicas.to_string(),
            node.leaders.to_string(),
            node.rack.clone(),
            addresses.grpc,
            addresses.http,
            node.version.clone(),
        ]
    });
    let heading = [
        "node", "state", "replicas", "leaders", "rack", "grpc", "http", "version",
    ];
    Ok(output::table(&heading, rows.collect())?)
}

fn status_json(status: &StatusResponse, complaints: &[String]) -> Value {
    let nodes: Vec<Value> = status
        .nodes
        .iter()
        .map(|node| {
            let addresses = node.addresses.clone().unwrap_or_default();
            json!({
                "node": node.node,
                "state": state(node),
                "alive": node.alive,
                "rack": node.rack,
                "version": node.version,
                "replicas": node.replicas,
                "leaders": node.leaders,
                "grpc": addresses.grpc,
                "peer": addresses.peer,
                "http": addresses.http,
                "feature_level_min": node.feature_level_min,
                "feature_level_max": node.feature_level_max,
            })
        })
        .collect();
    let losses: Vec<Value> = status
        .losses
        .iter()
        .map(|loss| {
            json!({
                "at_ns": loss.at_ns,
                "nodes": loss.nodes,
                "cluster_id": loss.cluster_id,
            })
        })
        .collect();
    json!({
        "cluster_id": status.cluster_id,
        "controller": (status.controller != 0).then_some(status.controller),
        "answered_by": status.answered_by,
        "topics": status.topics,
        "partitions": status.partitions,
        "leaderless_partitions": status.leaderless_partitions,
        "under_replicated_partitions": status.under_replicated_partitions,
        "moving_replicas": status.moving_replicas,
        "feature_level": status.feature_level,
        "feature_level_possible": status.feature_level_possible,
        "losses": losses,
        "complaints": complaints,
        "nodes": nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_by_its_topic_and_number() {
        assert_eq!(parse_partition("orders/3"), Ok(("orders".to_owned(), 3)));
        assert_eq!(parse_partition("a/b/0"), Ok(("a/b".to_owned(), 0)));
        for wrong in ["orders", "orders/", "/3", "orders/-1", "orders/x"] {
            assert!(parse_partition(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_amiss_is_said_and_nothing_else() {
        let node = |node, alive| NodeStatus {
            node,
            alive,
            ..NodeStatus::default()
        };
        let mut status = StatusResponse {
            controller: 1,
            nodes: vec![node(1, true), node(2, true)],
            ..StatusResponse::default()
        };
        assert!(complaints(&status).is_empty());
        status.nodes[1].alive = false;
        status.under_replicated_partitions = 1;
        let found = complaints(&status);
        assert_eq!(
            found,
            ["node 2 is down", "1 partition with a replica missing"]
        );
    }
}
