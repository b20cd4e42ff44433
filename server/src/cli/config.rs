//! `trilog config`: write, check and show the configuration of a node.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};

use super::output;
use crate::config::{self, Config, Loaded, Sources};

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Write a commented file with every key at its default
    Init {
        /// Where to; standard output if none is given
        file: Option<PathBuf>,
        /// Write over a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Say what is wrong with a configuration, if anything
    Check {
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Show every value in force and where it came from
    Print {
        #[command(flatten)]
        source: SourceArgs,
        /// How to show it
        #[arg(short, long, value_enum, default_value_t)]
        output: PrintStyle,
    },
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum PrintStyle {
    /// A configuration file, with origins as comments
    #[default]
    Toml,
    /// A table
    Table,
    /// A list of key, value, origin, place and variable
    Json,
}

/// Where a configuration comes from.
#[derive(Debug, Default, Args)]
pub(super) struct SourceArgs {
    /// The configuration file
    #[arg(short, long = "config", value_name = "FILE", env = "TRILOG_CONFIG")]
    config: Option<PathBuf>,
    /// The configuration file, too
    #[arg(value_name = "FILE", conflicts_with = "config")]
    file: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingArgs,
}

/// What flags can set.
#[derive(Debug, Default, Args)]
pub(super) struct SettingArgs {
    /// The number of this node [node.id]
    #[arg(long, value_name = "N")]
    node_id: Option<String>,
    /// Where it keeps its data [node.data_dir]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Peer addresses to find the cluster by, separated by commas [cluster.seeds]
    #[arg(long, value_name = "HOST:PORT,..")]
    seeds: Option<String>,
    /// Take the place of the node of this number whose disk is lost [cluster.replace]
    #[arg(long)]
    replace: bool,
    /// Any other key
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl SettingArgs {
    /// As (flag, key, value), later ones overriding earlier ones.
    fn flags(&self) -> anyhow::Result<Vec<(String, String, String)>> {
        let mut flags = Vec::new();
        for text in &self.set {
            let Some((key, value)) = text.split_once('=') else {
                bail!("--set {text}: expected SECTION.KEY=VALUE");
            };
            flags.push(("--set".to_owned(), key.trim().to_owned(), value.to_owned()));
        }
        for (flag, key, value) in [
            ("--node-id", "node.id", &self.node_id),
            ("--data-dir", "node.data_dir", &self.data_dir),
            ("--seeds", "cluster.seeds", &self.seeds),
        ] {
            if let Some(value) = value {
                flags.push((flag.to_owned(), key.to_owned(), value.clone()));
            }
        }
        if self.replace {
            let (flag, key) = ("--replace".to_owned(), "cluster.replace".to_owned());
            flags.push((flag, key, true.to_string()));
        }
        Ok(flags)
    }
}

/// Reads a configuration from a file, this process's environment, and flags.
pub(super) fn load(file: Option<PathBuf>, settings: &SettingArgs) -> anyhow::Result<Loaded> {
    let sources = Sources {
        file,
        flags: settings.flags()?,
        ..Sources::from_process()
    };
    config::load(&sources).context("the configuration cannot be used")
}

impl SourceArgs {
    fn load(self) -> anyhow::Result<Loaded> {
        load(self.file.or(self.config), &self.settings)
    }
}

pub(super) fn run(args: ConfigArgs) -> anyhow::Result<()> {
    match args.command {
        ConfigCommand::Init { file: None, .. } => {
            output::bytes(config::commented(&Config::default()).as_bytes())?;
        }
        ConfigCommand::Init {
            file: Some(path),
            force,
        } => {
            let opened = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(force)
                .create_new(!force)
                .open(&path);
            let mut file = opened.with_context(|| {
                let what = if path.exists() {
                    "is there already; --force overwrites it"
                } else {
                    "cannot be written"
                };
                format!("{} {what}", path.display())
            })?;
            file.write_all(config::commented(&Config::default()).as_bytes())?;
            output::line(format_args!("wrote {}", path.display()))?;
        }
        ConfigCommand::Check { source } => {
            source.load()?;
            output::line("the configuration is good")?;
        }
        ConfigCommand::Print { source, output } => print(&source.load()?, output)?,
    }
    Ok(())
}

fn print(loaded: &Loaded, style: PrintStyle) -> anyhow::Result<()> {
    match style {
        PrintStyle::Toml => output::bytes(config::annotated(loaded).as_bytes())?,
        PrintStyle::Json => output::json(&config::as_json(loaded))?,
        PrintStyle::Table => {
            let rows = loaded.config.keys().into_iter().map(|key| {
                let value = loaded.config.get(&key).unwrap_or_default();
                let origin = loaded.origin(&key).to_string();
                vec![key, value, origin]
            });
            output::table(&["key", "value", "origin"], rows.collect())?;
        }
    }
    Ok(())
}
