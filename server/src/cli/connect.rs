//! Which cluster a command talks to.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use trilog_client::{Client, ClientConfig, Error};

use super::dev::DATA;
use crate::dev::Layout;

/// Where a node listens unless it is configured otherwise.
const USUAL: &str = "127.0.0.1:7400";

/// How long to look for a node that answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// The option of commands that talk to a cluster.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ConnectArgs {
    /// A node, or several separated by commas [default: the nodes of `trilog dev` in this
    /// directory, else 127.0.0.1:7400]
    #[arg(short, long, value_name = "HOST:PORT,..", env = "TRILOG_SERVER")]
    server: Option<String>,
}

impl ConnectArgs {
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let seeds = self.seeds();
        // A person should not wait as long to hear that nobody is there as for a slow change.
        let first = ClientConfig {
            seeds: seeds.clone(),
            call_timeout: PATIENCE,
            ..ClientConfig::default()
        };
        match Client::connect_with(first).await {
            Err(error @ Error::Unreachable(_)) if self.server.is_none() => bail!(
                "{error}\n  start one here with `trilog dev`, or name a node of yours with --server"
            ),
            connected => drop(connected?),
        }
        Ok(Client::connect(seeds).await?)
    }

    fn seeds(&self) -> Vec<String> {
        match &self.server {
            Some(servers) => {
                let servers = servers.split(',').map(str::trim);
                servers
                    .filter(|s| !s.is_empty())
                    .map(str::to_owned)
                    .collect()
            }
            None => match Layout::load(Path::new(DATA)) {
                Ok(Some(layout)) => layout.servers(),
                // A damaged layout is for `trilog dev` to complain of.
                Ok(None) | Err(_) => vec![USUAL.to_owned()],
            },
        }
    }
}
