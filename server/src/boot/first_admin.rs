//! The first administrator, from a file: where everybody is asked who they are, somebody has to be
//! there before anybody can be made.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use tracing::{info, warn};
use trilog_raft::controller::commands::{AlterUser, Command, Expect};
use trilog_raft::controller::{ACCESS_LEVEL, ControllerError, Mechanism};

use crate::access::{credential, random};
use crate::cluster::{Cluster, ProposeError};
use crate::config::Config;

/// The longest file, in bytes: a name, a colon, a password.
const MAX_FILE: u64 = 2_048;
/// Rights of others than the owner of a file.
const OTHERS: u32 = 0o077;

/// Makes the user that `access.admin_file` names, unless it is there; one that is keeps its
/// password.
pub(super) async fn make(config: &Config, cluster: &Cluster) -> anyhow::Result<()> {
    let Some(file) = &config.access.admin_file else {
        return Ok(());
    };
    let reading = || format!("access.admin_file {}", file.display());
    let (name, password) = read(file).with_context(reading)?;
    ensure!(
        config.access.super_users.contains(&name),
        "access.admin_file {} names '{name}', who is not among access.super_users",
        file.display()
    );
    let map = cluster.map();
    if map.user(&name).is_some() {
        return Ok(());
    }
    if map.level() < ACCESS_LEVEL {
        warn!("the cluster has no users before `trilog cluster upgrade`: no administrator is made");
        return Ok(());
    }
    let set = Mechanism::ALL.map(|mechanism| credential(mechanism, password.as_bytes()));
    let command = Command::AlterUser(AlterUser {
        name: name.clone(),
        expect: Expect::New.into(),
        set: set.to_vec(),
        remove: Vec::new(),
        secret: random::<32>().to_vec().into(),
    });
    match cluster.propose_when_led(&command).await {
        Ok(()) => info!(user = name, "made the first administrator"),
        // Another node was sooner, or this one's first answer was lost.
        Err(ProposeError::Refused(ControllerError::UserExists { .. })) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<(String, String)> {
    let file = File::open(path)?;
    let mode = file.metadata()?.mode();
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

    use super::*;

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
