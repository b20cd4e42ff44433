//! Which cluster a command talks to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use trilog_client::{Client, ClientConfig, Credentials, Error};

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
    /// Who you are, where the cluster asks; the password comes from TRILOG_PASSWORD_FILE or
    /// TRILOG_PASSWORD
    #[arg(long, value_name = "NAME", env = "TRILOG_USER")]
    user: Option<String>,
    /// A file that holds the password
    #[arg(long, value_name = "FILE", env = "TRILOG_PASSWORD_FILE")]
    user_password_file: Option<PathBuf>,
}

impl ConnectArgs {
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        let seeds = self.seeds();
        let credentials = self.credentials()?;
        // A person should not wait as long to hear that nobody is there as for a slow change.
        let first = ClientConfig {
            seeds: seeds.clone(),
            call_timeout: PATIENCE,
            credentials: credentials.clone(),
            ..ClientConfig::default()
        };
        match Client::connect_with(first).await {
            Err(error @ Error::Unreachable(_)) if self.server.is_none() => bail!(
                "{error}\n  start one here with `trilog dev`, or name a node of yours with --server"
            ),
            connected => drop(connected?),
        }
        let config = ClientConfig {
            seeds,
            credentials,
            ..ClientConfig::default()
        };
        Ok(Client::connect_with(config).await?)
    }

    /// Never from an argument, which everybody on the machine can see.
    fn credentials(&self) -> anyhow::Result<Option<Credentials>> {
        let Some(user) = &self.user else {
            return Ok(None);
        };
        let password = match &self.user_password_file {
            Some(file) => {
                let read = std::fs::read_to_string(file);
                read.with_context(|| format!("reading {}", file.display()))?
            }
            None => std::env::var("TRILOG_PASSWORD").with_context(|| {
                format!("the password of {user}: set TRILOG_PASSWORD_FILE or TRILOG_PASSWORD")
            })?,
        };
        let password = password.trim_end_matches(['\n', '\r']);
        Ok(Some(Credentials::new(user, password)))
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
