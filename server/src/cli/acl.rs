//! `trilog acl`: who may do what to which topics, groups, transactional ids and to the cluster.

use anyhow::ensure;
use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};
use trilog_client::proto::{Acl, ListAclsRequest};
use trilog_raft::controller::{ANY, CLUSTER_RESOURCE, USER_PREFIX};

use super::connect::ConnectArgs;
use super::output::{self, OutputArgs};
use crate::access::rules::{OPERATIONS, PATTERNS, PERMISSIONS, RESOURCES};

#[derive(Debug, Args)]
pub(super) struct AclArgs {
    #[command(subcommand)]
    command: AclCommand,
}

#[derive(Debug, Subcommand)]
enum AclCommand {
    /// List rules, all or those that are as stated
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Add rules: everybody named, everything named to be done, on everything named
    Add(AddArgs),
    /// Remove the rules that are as stated, and show them
    #[command(visible_alias = "remove")]
    Rm {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        connect: ConnectArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Which rules are meant.
#[derive(Debug, Args)]
struct Which {
    /// About a user; '*' is the rules about everybody
    #[arg(long, value_name = "USER")]
    of: Option<String>,
    /// About this kind of resource
    #[arg(long, value_name = "KIND", value_parser = words(&RESOURCES))]
    resource: Option<String>,
    /// About resources under this very name, or what begins with it
    #[arg(long)]
    name: Option<String>,
    /// Whether the name is one or the beginning of names
    #[arg(long, value_parser = words(&PATTERNS))]
    pattern: Option<String>,
    /// About this operation
    #[arg(long, value_name = "OPERATION", value_parser = words(&OPERATIONS))]
    to: Option<String>,
    /// Those that allow, or those that deny
    #[arg(long, value_parser = words(&PERMISSIONS))]
    permission: Option<String>,
    /// About who comes from this address
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("whom").required(true).args(["allow", "deny"]),
    group = ArgGroup::new("what").required(true).multiple(true)
        .args(["topic", "group", "transactional_id", "cluster"]),
)]
struct AddArgs {
    /// Whom to allow it; '*' is everybody
    #[arg(long, value_name = "USER")]
    allow: Vec<String>,
    /// Whom to deny it, whatever else allows it
    #[arg(long, value_name = "USER")]
    deny: Vec<String>,
    /// What is done, or several separated by commas
    #[arg(
        long,
        value_name = "OPERATION,..",
        required = true,
        value_delimiter = ',',
        value_parser = words(&OPERATIONS)
    )]
    to: Vec<String>,
    /// A topic; '*' is all of them
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// A consumer group
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// A transactional id
    #[arg(long, value_name = "ID")]
    transactional_id: Vec<String>,
    /// The cluster itself
    #[arg(long)]
    cluster: bool,
    /// The names are beginnings of names
    #[arg(long, conflicts_with = "cluster")]
    prefixed: bool,
    /// Only for who comes from this address
    #[arg(long, value_name = "ADDRESS", default_value = ANY)]
    host: String,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    output: OutputArgs,
}

fn words<T>(words: &[(&'static str, T)]) -> PossibleValuesParser {
    words
        .iter()
        .map(|(name, _)| *name)
        .collect::<Vec<_>>()
        .into()
}

pub(super) async fn run(args: AclArgs) -> anyhow::Result<()> {
    match args.command {
        AclCommand::Ls {
            which,
            connect,
            output,
        } => {
            let client = connect.client().await?;
            let found = client.admin().list_acls(which.filter()).await?;
            show(found, output)
        }
        AclCommand::Add(args) => {
            let rules = args.rules();
            let client = args.connect.client().await?;
            client.admin().add_acls(rules.clone()).await?;
            show(rules, args.output)
        }
        AclCommand::Rm {
            which,
            connect,
            output,
        } => {
            ensure!(
                which.is_narrow(),
                "say which rules are meant: without a word they are all (`trilog acl rm --help`)"
            );
            let client = connect.client().await?;
            let found = client.admin().list_acls(which.filter()).await?;
            client.admin().remove_acls(found.clone()).await?;
            show(found, output)
        }
    }
}

/// As rules have a user.
fn principal(user: &str) -> String {
    if user.starts_with(USER_PREFIX) {
        user.to_owned()
    } else {
        format!("{USER_PREFIX}{user}")
    }
}

impl Which {
    fn is_narrow(&self) -> bool {
        let words = [
            &self.of,
            &self.resource,
            &self.name,
            &self.pattern,
            &self.to,
            &self.permission,
            &self.host,
        ];
        words.into_iter().any(Option::is_some)
    }

    fn filter(self) -> ListAclsRequest {
        ListAclsRequest {
            resource: self.resource,
            pattern: self.pattern,
            name: self.name,
            principal: self.of.as_deref().map(principal),
            host: self.host,
            operation: self.to,
            permission: self.permission,
        }
    }
}

impl AddArgs {
    /// Each user with each operation on each resource.
    fn rules(&self) -> Vec<Acl> {
        let pattern = if self.prefixed { "prefixed" } else { "literal" };
        let named = |kind: &'static str, names: &[String]| -> Vec<(&str, String)> {
            names.iter().map(|name| (kind, name.clone())).collect()
        };
        let cluster = self
            .cluster
            .then(|| ("cluster", CLUSTER_RESOURCE.to_owned()));
        let resources = [
            named("topic", &self.topic),
            named("group", &self.group),
            named("transactional-id", &self.transactional_id),
            cluster.into_iter().collect(),
        ]
        .concat();
        let allowed = self.allow.iter().map(|user| (user, "allow"));
        let denied = self.deny.iter().map(|user| (user, "deny"));
        let mut rules = Vec::new();
        for (user, permission) in allowed.chain(denied) {
            for (resource, name) in &resources {
                rules.extend(self.to.iter().map(|operation| Acl {
                    resource: (*resource).to_owned(),
                    pattern: pattern.to_owned(),
                    name: name.clone(),
                    principal: principal(user),
                    host: self.host.clone(),
                    operation: operation.clone(),
                    permission: permission.to_owned(),
                }));
            }
        }
        rules
    }
}

fn show(rules: Vec<Acl>, output: OutputArgs) -> anyhow::Result<()> {
    if output.is_json() {
        let rules = rules.into_iter().map(|rule| {
            json!({
                "resource": rule.resource,
                "pattern": rule.pattern,
                "name": rule.name,
                "principal": rule.principal,
                "host": rule.host,
                "operation": rule.operation,
                "permission": rule.permission,
            })
        });
        return Ok(output::json(&Value::Array(rules.collect()))?);
    }
    let rows = rules.into_iter().map(|rule| {
        vec![
            rule.principal,
            rule.permission,
            rule.operation,
            rule.resource,
            rule.name,
            rule.pattern,
            rule.host,
        ]
    });
    let heading = [
        "principal",
        "permission",
        "operation",
        "resource",
        "name",
        "pattern",
        "host",
    ];
    Ok(output::table(&heading, rows.collect())?)
}
