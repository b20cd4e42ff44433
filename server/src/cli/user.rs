//! `trilog user`: who can prove who they are.
//!
//! A password is read from a file, the environment, a pipe or the terminal, never from an
//! argument, which everybody on the machine can see; and it does not leave this process: nodes get
//! what SCRAM keeps of it.

use std::io::{BufRead as _, IsTerminal as _, Read as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use trilog_client::proto::{PutUserRequest, ScramCredential};
use trilog_raft::controller::{Credential, Mechanism};

use super::connect::ConnectArgs;
use super::output::{self, OutputArgs};
use crate::access::credential;

/// The longest password that is taken, in bytes.
const MAX_PASSWORD: u64 = 1_024;

#[derive(Debug, Args)]
pub(super) struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Debug, Subcommand)]
enum UserCommand {
    /// List users, and how each can prove who it is
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a user
    Add(PutArgs),
    /// Give a user another password
    SetPassword(PutArgs),
    /// Remove a user
    #[command(visible_alias = "remove")]
    Rm {
        name: String,
        #[command(flatten)]
        connect: ConnectArgs,
    },
}

#[derive(Debug, Args)]
struct PutArgs {
    name: String,
    /// A file that holds the password; without it, TRILOG_NEW_PASSWORD, else standard input
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(super) async fn run(args: UserArgs) -> anyhow::Result<()> {
    match args.command {
        UserCommand::Ls { connect, output } => list(&connect, output).await,
        UserCommand::Add(args) => put(args, false).await,
        UserCommand::SetPassword(args) => put(args, true).await,
        UserCommand::Rm { name, connect } => {
            let client = connect.client().await?;
            client.admin().remove_user(&name).await?;
            Ok(output::line(format!("removed user {name}"))?)
        }
    }
}

async fn list(connect: &ConnectArgs, output: OutputArgs) -> anyhow::Result<()> {
    let users = connect.client().await?.admin().list_users().await?;
    if output.is_json() {
        let users: Vec<Value> = users
            .into_iter()
            .map(|user| json!({ "name": user.name, "mechanisms": user.mechanisms }))
            .collect();
        return Ok(output::json(&Value::Array(users))?);
    }
    let rows = users
        .into_iter()
        .map(|user| vec![user.name, user.mechanisms.join(" ")]);
    Ok(output::table(&["user", "mechanisms"], rows.collect())?)
}

async fn put(args: PutArgs, exists: bool) -> anyhow::Result<()> {
    let password = password(args.password_file)?;
    let kept = Mechanism::ALL.map(|mechanism| credential(mechanism, password.as_bytes()));
    let client = args.connect.client().await?;
    let request = PutUserRequest {
        name: args.name.clone(),
        exists,
        credentials: kept.map(message).to_vec(),
    };
    client.admin().put_user(request).await?;
    let done = if exists {
        format!("user {} has another password", args.name)
    } else {
        format!("made user {}", args.name)
    };
    Ok(output::line(done)?)
}

fn message(kept: Credential) -> ScramCredential {
    ScramCredential {
        mechanism: kept.mechanism().name().to_owned(),
        salt: kept.salt,
        iterations: kept.iterations,
        stored_key: kept.stored_key,
        server_key: kept.server_key,
    }
}

/// The new password, a line without its end.
fn password(file: Option<PathBuf>) -> anyhow::Result<String> {
    let text = if let Some(file) = file {
        let opened = std::fs::File::open(&file);
        let opened = opened.with_context(|| format!("opening {}", file.display()))?;
        let mut text = String::new();
        opened.take(MAX_PASSWORD + 2).read_to_string(&mut text)?;
        text
    } else if let Ok(text) = std::env::var("TRILOG_NEW_PASSWORD") {
        text
    } else if std::io::stdin().is_terminal() {
        bail!(
            "the password would be shown as you type it: name a file with --password-file, or \
             pipe it in"
        );
    } else {
        let mut line = String::new();
        let input = std::io::stdin().lock();
        input.take(MAX_PASSWORD + 2).read_line(&mut line)?;
        line
    };
    let password = text.trim_end_matches(['\n', '\r']);
    ensure!(!password.is_empty(), "the password is empty");
    let long = password.len() as u64 > MAX_PASSWORD;
    ensure!(!long, "the password is longer than {MAX_PASSWORD} bytes");
    ensure!(!password.contains('\0'), "the password has a zero byte");
    Ok(password.to_owned())
}
