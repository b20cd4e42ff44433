//! `trilog dev`: a cluster on this machine, from one terminal or two.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::output::{self, OutputArgs};
use crate::dev::{Dev, DevOptions, Down, NodeStatus, Request, call};

#[derive(Debug, Args)]
pub(super) struct DevArgs {
    #[command(subcommand)]
    command: Option<DevCommand>,
    /// How many nodes [default: as many as the data was made with, else 3]
    #[arg(long, value_name = "N")]
    nodes: Option<u32>,
    /// Forget the data of an earlier run
    #[arg(long)]
    clean: bool,
    /// Where the data is
    #[arg(long, value_name = "DIR", default_value = DATA, global = true)]
    data: PathBuf,
    /// First of the ports; each node takes ten [default: the usual ports]
    #[arg(long, value_name = "PORT")]
    base_port: Option<u16>,
    /// Configuration of every node
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    settings: Vec<String>,
}

/// Where `trilog dev` keeps its data unless told otherwise.
pub(super) const DATA: &str = "trilog-data";

#[derive(Debug, Subcommand)]
enum DevCommand {
    /// Kill a node as a power cut would (from another terminal)
    Kill {
        /// Its number
        node: u32,
    },
    /// Start a killed node again, or restart a running one
    Restart {
        /// Its number
        node: u32,
    },
    /// Show the nodes
    Status {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Stop all nodes and the `trilog dev` that runs them; the data stays
    Stop,
}

pub(super) async fn run(args: DevArgs) -> anyhow::Result<()> {
    let data = &args.data;
    match args.command {
        None => foreground(args).await,
        Some(DevCommand::Kill { node }) => {
            call(data, &Request::Kill { node }).await?;
            output::line(format_args!(
                "node {node} is dead; `trilog dev restart {node}{}` brings it back",
                data_flag(data)
            ))?;
            Ok(())
        }
        Some(DevCommand::Restart { node }) => {
            let before = Instant::now();
            call(data, &Request::Restart { node }).await?;
            let nodes = call(data, &Request::Status).await?;
            let state = nodes.into_iter().find(|status| status.node == node);
            let state = state.map_or_else(String::new, |status| status.state);
            let seconds = before.elapsed().as_secs_f64();
            output::line(format_args!(
                "node {node} runs: {state} after {seconds:.1} s"
            ))?;
            Ok(())
        }
        Some(DevCommand::Status { output }) => {
            let nodes = call(data, &Request::Status).await?;
            show(output, &nodes)
        }
        Some(DevCommand::Stop) => {
            call(data, &Request::Stop).await?;
            output::line(format_args!("stopped; the data is in {}", data.display()))?;
            Ok(())
        }
    }
}

fn show(output: OutputArgs, nodes: &[NodeStatus]) -> anyhow::Result<()> {
    if output.is_json() {
        output::json(&json!({ "nodes": nodes }))?;
        return Ok(());
    }
    let rows = nodes.iter().map(|status| {
        let pid = status
            .pid
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let node = status.node.to_string();
        vec![
            node,
            status.state.clone(),
            pid,
            status.grpc.clone(),
            status.http.clone(),
        ]
    });
    output::table(&["node", "state", "pid", "grpc", "http"], rows.collect())?;
    Ok(())
}

/// The options a development cluster is started with.
fn options(args: DevArgs) -> anyhow::Result<DevOptions> {
    Ok(DevOptions {
        data: args.data,
        nodes: args.nodes,
        base_port: args.base_port,
        clean: args.clean,
        binary: std::env::current_exe().context("finding this program's own file")?,
        settings: args.settings,
    })
}

async fn foreground(args: DevArgs) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let data = args.data.clone();
    let before = Instant::now();
    let starting = Dev::start(options(args)?);
    let dev = tokio::select! {
        biased;
        _ = interrupt.recv() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
        dev = starting => dev?,
    };
    welcome(&dev, &data, before.elapsed())?;
    {
        let mut serving = std::pin::pin!(dev.serve(remark));
        loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                () = &mut serving => break,
                (node, down) = dev.next_exit() => {
                    report_exit(&dev, node, &down, &data);
                    dev.forget(node).await;
                }
            }
        }
    }
    eprintln!("stopping");
    dev.stop().await;
    output::line(format_args!(
        "stopped; the data is kept, `trilog dev{}` goes on with it",
        data_flag(&data)
    ))?;
    Ok(())
}

fn remark(request: &Request) {
    match request {
        Request::Kill { node } => eprintln!("node {node} killed"),
        Request::Restart { node } => eprintln!("node {node} restarted"),
        Request::Stop | Request::Status => {}
    }
}

fn report_exit(dev: &Dev, node: u32, down: &Down, data: &Path) {
    let log = dev.layout().log_path(node);
    let how = match down {
        Down::Died(how) => how.as_str(),
        Down::New | Down::Stopped | Down::Killed => "",
    };
    eprintln!(
        "node {node} ended by itself ({how}); its log is {}; `trilog dev restart {node}{}` starts it",
        log.display(),
        data_flag(data)
    );
}

/// ` --data DIR`, where it is not the default.
pub(super) fn data_flag(data: &Path) -> String {
    if data == Path::new(DATA) {
        return String::new();
    }
    format!(" --data {}", data.display())
}

fn welcome(dev: &Dev, data: &Path, took: Duration) -> anyhow::Result<()> {
    let layout = dev.layout();
    let flag = data_flag(data);
    output::line(format_args!(
        "{} nodes are up after {:.1} s; data in {}\n",
        layout.places.len(),
        took.as_secs_f64(),
        data.display()
    ))?;
    let rows = layout.places.iter().map(|place| {
        let http = place.http_addr();
        vec![
            place.node.to_string(),
            place.grpc_addr().to_string(),
            place.kafka_addr().to_string(),
            format!("http://{http}/metrics"),
            format!("http://{http}/health/ready"),
        ]
    });
    output::table(
        &["node", "grpc", "kafka", "metrics", "health"],
        rows.collect(),
    )?;
    let server = match layout.places.first() {
        Some(first) if first.grpc != 7400 => format!(" -s {}", first.grpc_addr()),
        _ => String::new(),
    };
    output::line(format_args!(
        "\nIn another terminal:\n\
         \x20 trilog topic create orders --partitions 3{server}\n\
         \x20 trilog produce orders 'the first one' 'the second'{server}\n\
         \x20 trilog consume orders -o start{server}\n\
         \x20 trilog dev kill 2{flag}        # nothing acknowledged is lost\n\
         \x20 trilog dev restart 2{flag}\n\
         \x20 trilog cluster status{server}\n\n\
         Ctrl-C stops the nodes; the data stays unless the next start says --clean."
    ))?;
    Ok(())
}
