//! The command line: one tree of commands over one binary.
//!
//! Owns arguments, presentation and exit codes. Standard output belongs to [`output`] alone, so
//! that what a program reads there is never mixed with remarks for people.

mod acl;
mod bench;
mod cluster;
mod config;
mod connect;
mod consume;
mod demo;
mod dev;
mod format;
mod group;
mod log;
mod logging;
mod output;
mod position;
mod produce;
mod progress;
mod reader;
mod recover;
mod replay;
mod scrape;
mod server;
mod topic;
mod txn;
mod user;

use std::io;
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A replicated commit log that speaks three dialects.
#[derive(Debug, Parser)]
#[command(
    name = "trilog",
    version,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run one node of a cluster
    Server(server::ServerArgs),
    /// Run a whole cluster on this machine, for trying things out
    Dev(dev::DevArgs),
    /// Make, list, describe, change and delete topics
    Topic(topic::TopicArgs),
    /// Write records to a topic
    Produce(produce::ProduceArgs),
    /// Read records of a topic, from anywhere
    Consume(consume::ConsumeArgs),
    /// Copy records of a topic, from anywhere, into another
    Replay(replay::ReplayArgs),
    /// List consumer groups, show how far they are, reset and delete them
    Group(group::GroupArgs),
    /// List transactions of Kafka producers, find those that nobody ends, and abort them
    Txn(txn::TxnArgs),
    /// List, make, change and remove users
    User(user::UserArgs),
    /// List, add and remove rules of who may do what
    Acl(acl::AclArgs),
    /// Show and change the nodes of a cluster
    Cluster(cluster::ClusterArgs),
    /// Show the whole thing working, and check it: three nodes, real data, a killed leader
    Demo(demo::DemoArgs),
    /// Measure it, beside what the same machine does without it
    Bench(bench::BenchArgs),
    /// Go on with what is left when a majority of nodes is lost for ever
    Recover(recover::RecoverArgs),
    /// Look into the log of a stopped node
    Log(log::LogArgs),
    /// Write, check and show the configuration of a node
    Config(config::ConfigArgs),
    /// Print the completion script of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Parses the arguments and runs the command; the exit code is 0 for success, 1 for failure and 2
/// for arguments that make no sense.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has had enough of it, which is no failure.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trilog: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Config(args) => config::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "trilog", &mut script);
            output::bytes(&script)?;
            Ok(())
        }
        Command::Server(args) => runtime()?.block_on(server::run(args)),
        Command::Dev(args) => runtime()?.block_on(dev::run(args)),
        Command::Topic(args) => runtime()?.block_on(topic::run(args)),
        Command::Produce(args) => runtime()?.block_on(produce::run(args)),
        Command::Consume(args) => runtime()?.block_on(consume::run(args)),
        Command::Replay(args) => runtime()?.block_on(replay::run(args)),
        Command::Group(args) => runtime()?.block_on(group::run(args)),
        Command::Txn(args) => runtime()?.block_on(txn::run(args)),
        Command::User(args) => runtime()?.block_on(user::run(args)),
        Command::Acl(args) => runtime()?.block_on(acl::run(args)),
        Command::Cluster(args) => runtime()?.block_on(cluster::run(args)),
        Command::Bench(args) => runtime()?.block_on(bench::run(args)),
        Command::Recover(args) => runtime()?.block_on(recover::run(args)),
        Command::Log(args) => runtime()?.block_on(log::run(args)),
        Command::Demo(args) => runtime()?.block_on(demo::run(args)),
    }
}

/// One worker less than there are processors, for the threads that read and write files have to
/// run somewhere too; where two are all there are, work that never crosses between workers is a
/// third cheaper besides. `TOKIO_WORKER_THREADS` says otherwise.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        builder.worker_threads(processors.saturating_sub(1).max(1));
    }
    builder.enable_all().build()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_of_commands_is_sound() {
        Cli::command().debug_assert();
    }
}
