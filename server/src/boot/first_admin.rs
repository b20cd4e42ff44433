//! The first administrator, from a file: where everybody is asked who they are, somebody has to be
//! there before anybody can be made.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tracing::{info, warn};
use trilog_raft::controller::commands::{AlterUser, Command, Expect};
use trilog_raft::controller::{ACCESS_LEVEL, ClusterMap, ControllerError, Mechanism};

use crate::access::{Access, credential, random};
use crate::cluster::{Cluster, ProposeError};
use crate::config::Config;

/// The longest file, in bytes: a name, a colon, a password.
const MAX_FILE: u64 = 2_048;
/// Rights of others than the owner of a file.
const OTHERS: u32 = 0o077;

/// How soon it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Who is to be the first administrator.
pub(super) struct FirstAdmin {
    name: String,
    password: String,
}

/// What there is to do about it.
#[derive(Debug, PartialEq, Eq)]
enum Todo {
    /// The cluster cannot have users yet.
    Wait,
    Make,
    /// There is somebody who may do everything.
    Nothing,
}

impl FirstAdmin {
    /// The user that `access.admin_file` names, if it does.
    pub(super) fn read(config: &Config) -> anyhow::Result<Option<Self>> {
        let Some(file) = &config.access.admin_file else {
            return Ok(None);
        };
        let reading = || format!("access.admin_file {}", file.display());
        let (name, password) = read(file).with_context(reading)?;
        ensure!(
            config.access.super_users.contains(&name),
            "access.admin_file {} names '{name}', who is not among access.super_users",
            file.display()
        );
        Ok(Some(Self { name, password }))
    }

    /// Makes the user once the cluster can have any, unless there is a super user by then; one that
    /// is there keeps its password, and one that was removed stays so as long as another is there.
    pub(super) async fn make(self, cluster: Cluster, access: Access) {
        let mut changes = cluster.changes();
        let mut told = false;
        loop {
            cluster.is_current().await;
            changes.borrow_and_update();
            match todo(&cluster.map(), &access) {
                Todo::Nothing => return,
                Todo::Make if self.is_made(&cluster).await => return,
                Todo::Make => tokio::time::sleep(AGAIN).await,
                Todo::Wait => {
                    if !told {
                        let level = ACCESS_LEVEL;
                        warn!(level, "no administrator before `trilog cluster upgrade`");
                    }
                    told = true;
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn is_made(&self, cluster: &Cluster) -> bool {
        let password = self.password.as_bytes();
        let set = Mechanism::ALL.map(|mechanism| credential(mechanism, password));
        let command = Command::AlterUser(AlterUser {
            name: self.name.clone(),
            expect: Expect::New.into(),
            set: set.to_vec(),
            remove: Vec::new(),
            secret: random::<32>().to_vec().into(),
        });
        match cluster.propose(&command).await {
            Ok(_) => info!(user = self.name, "made the first administrator"),
            // Another node was sooner, or this one's first answer was lost.
            Err(ProposeError::Refused(ControllerError::UserExists { .. })) => {}
            Err(ProposeError::Refused(refusal)) => {
                warn!(%refusal, user = self.name, "the first administrator cannot be made");
            }
            Err(_) => return false,
        }
        true
    }
}

fn todo(map: &ClusterMap, access: &Access) -> Todo {
    if map.level() < ACCESS_LEVEL {
        Todo::Wait
    } else if access.has_super_user(map) {
        Todo::Nothing
    } else {
        Todo::Make
    }
}

fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let (mode, owner) = (metadata.mode(), metadata.uid());
    // Of whoever else it is, they chose the password.
    ensure!(
        owner == 0 || owner == rustix::process::geteuid().as_raw(),
        "it is of another user ({owner}) than the node's"
    );
    if mode & OTHERS != 0 {
        bail!(
            "others than its owner may use it (mode {:o}), and it holds a password: chmod 600 it",
            mode & 0o777
        );
    }
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text)?;
    ensure!(text.len() as u64 <= MAX_FILE, "it is too long");
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default();
    ensure!(lines.all(str::is_empty), "it has more than one line");
    match line.split_once(':') {
        Some((name, password)) if !name.is_empty() && !password.is_empty() => {
            Ok((name.to_owned(), password.to_owned()))
        }
        Some(_) | None => bail!("it is to hold one line, user:password"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt as _;

    use bytes::Bytes;
    use trilog_model::Timestamp;
    use trilog_raft::controller::ControllerState;
    use trilog_raft::controller::commands::{Bootstrap, RegisterNode};

    use super::*;
    use crate::access::Settings;

    #[test]
    fn an_administrator_is_made_once_there_can_be_one_and_unless_there_is_any() {
        let access = Access::new(Settings {
            required: true,
            super_users: vec!["admin".to_owned(), "root".to_owned()],
            ..Settings::default()
        });
        let started = |level| {
            let mut state = ControllerState::new();
            let bootstrap = Command::Bootstrap(Bootstrap {
                cluster: Bytes::from_static(&[9; 16]),
                node: RegisterNode {
                    node: 1,
                    identity: Bytes::from_static(&[1; 16]),
                    min_level: 1,
                    max_level: ACCESS_LEVEL,
                    ..RegisterNode::default()
                },
                level,
            });
            state.carry_out(&bootstrap, Timestamp(1)).unwrap();
            state
        };
        let below = started(ACCESS_LEVEL - 1);
        assert_eq!(todo(&below.map(), &access), Todo::Wait);
        let mut state = started(ACCESS_LEVEL);
        for (user, expected) in [
            (None, Todo::Make),
            (Some("alice"), Todo::Make),
            (Some("root"), Todo::Nothing),
        ] {
            if let Some(user) = user {
                let add = Command::AlterUser(AlterUser {
                    name: user.to_owned(),
                    set: vec![credential(Mechanism::ScramSha256, b"secret")],
                    secret: Bytes::from_static(&[5; 32]),
                    ..AlterUser::default()
                });
                state.carry_out(&add, Timestamp(1)).unwrap();
            }
            assert_eq!(todo(&state.map(), &access), expected, "{user:?}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_or_that_is_no_pair_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin");
        let check = |text: &str, mode: u32, good: bool| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let read = read(&path);
            assert_eq!(read.is_ok(), good, "{text:?} {mode:o}: {read:?}");
        };
        check("admin:secret\n", 0o600, true);
        check("admin:se:cret", 0o400, true);
        check("admin:secret\n", 0o640, false);
        check("admin:secret\n", 0o604, false);
        check("admin:\n", 0o600, false);
        check(":secret\n", 0o600, false);
        check("admin\n", 0o600, false);
        check("a:b\nc:d\n", 0o600, false);
        check(&format!("a:{}", "x".repeat(4_096)), 0o600, false);
    }
}
