//! What stopped nodes have left in their files: verified, compared, and where they were damaged looked
//! at again until it is mended.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use super::Options;
use super::finish::{Finish, await_whole, stop};
use super::replicas::{self, Compared};
use crate::cluster::{Cluster, verify};
use crate::history::Key;
use crate::workload::{Held, Stage};

/// How long nodes look through their files each time they are started once more to find what was
/// done to them. They read some 16 MB a second.
const LOOKS: [Duration; 6] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
    Duration::from_secs(32),
];

/// What stopped nodes have kept, and what they should have.
pub(super) struct Kept<'a> {
    pub(super) stage: &'a Stage,
    pub(super) held: BTreeMap<Key, Held>,
    pub(super) ends: BTreeMap<Key, u64>,
    pub(super) options: &'a Options,
}

/// What was found in the files of stopped nodes.
#[derive(Debug, Default)]
struct Looked {
    /// Files that are damaged.
    wrong: Vec<String>,
    /// What took too long.
    late: Vec<String>,
    compared: Compared,
}

impl Looked {
    /// Whether something is missing that a node may yet mend. Copies that differ it may not mend.
    fn may_mend(&self) -> bool {
        self.compared.differ.is_empty()
            && !(self.wrong.is_empty() && self.compared.short.is_empty())
    }

    /// What is missing, or not mended, of nodes that were not `whole` in time is late with them.
    fn tell(self, whole: bool, damaged: bool, finish: &mut Finish) {
        let Compared { short, differ, .. } = self.compared;
        finish.late.extend(self.late);
        finish.failures.extend(differ);
        let (of_wrong, of_short) = (whole || !damaged, whole);
        for (is_failure, what) in [(of_wrong, self.wrong), (of_short, short)] {
            if is_failure {
                finish.failures.extend(what);
            } else {
                finish.late.extend(what);
            }
        }
    }
}

impl Kept<'_> {
    /// Verifies and compares what was written. Where it was damaged, and is not mended, nodes are
    /// started again to find it. `whole`: nothing was missing when they were stopped.
    pub(super) async fn inspect(
        &self,
        cluster: &mut Cluster,
        mut whole: bool,
        finish: &mut Finish,
    ) -> anyhow::Result<()> {
        let damaged = finish.done.iter().any(|one| one.fault.damages());
        let mut found = self.look(cluster).await?;
        for wait in LOOKS {
            if !damaged || !found.may_mend() {
                break;
            }
            // What was damaged and not read since is found by the background check only.
            cluster.boot_all()?;
            whole = await_whole(cluster, self.stage, finish).await;
            if !whole {
                break;
            }
            sleep(wait).await;
            stop(cluster, finish).await?;
            found = self.look(cluster).await?;
        }
        let (groups, entries) = (found.compared.groups, found.compared.entries);
        finish.notes.push(format!(
            "compared {entries} entries of {groups} groups beside each other"
        ));
        if entries == 0 && self.held.values().any(|held| held.nodes.len() > 1) {
            let gap = "no two replicas held anything that could be compared";
            finish.gaps.push(gap.to_owned());
        }
        for note in std::mem::take(&mut found.compared.notes) {
            self.stage.recorder.note(note);
        }
        found.tell(whole, damaged, finish);
        Ok(())
    }

    async fn look(&self, cluster: &Cluster) -> anyhow::Result<Looked> {
        let mut looked = Looked::default();
        let dirs = cluster.data_dirs();
        for (number, dir) in &dirs {
            let program = &self.options.trilog;
            let found = verify(program, dir).await;
            let found = found.with_context(|| format!("cannot run {}", program.display()))?;
            match found {
                Some(damage) if damage.is_empty() => {}
                Some(damage) => looked.wrong.push(format!(
                    "the log of node {number} does not verify: {}",
                    damage.join("; ")
                )),
                None => looked
                    .late
                    .push(format!("to verify the log of node {number} takes too long")),
            }
        }
        match replicas::compare(&self.options.trilog, &dirs, &self.held, &self.ends).await {
            Ok(compared) => looked.compared = compared,
            // What cannot be read is no reason to keep what else was found to oneself.
            Err(error) => looked
                .wrong
                .push(format!("replicas cannot be compared: {error:#}")),
        }
        Ok(looked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_not_looked_at_again_until_it_is_gone() {
        let well = Looked::default();
        assert!(!well.may_mend());
        let mut short = Looked::default();
        short.compared.short.push("ends early".to_owned());
        assert!(short.may_mend());
        short.compared.differ.push("other bytes".to_owned());
        assert!(!short.may_mend());
        let wrong = Looked {
            wrong: vec!["does not verify".to_owned()],
            ..Looked::default()
        };
        assert!(wrong.may_mend());
    }

    #[test]
    fn what_is_missing_of_nodes_that_were_not_whole_in_time_is_late() {
        let told = |whole, damaged| {
            let compared = Compared {
                short: vec!["ends early".to_owned()],
                differ: vec!["other bytes".to_owned()],
                ..Compared::default()
            };
            let looked = Looked {
                wrong: vec!["does not verify".to_owned()],
                compared,
                ..Looked::default()
            };
            let mut finish = Finish::default();
            looked.tell(whole, damaged, &mut finish);
            (finish.failures.join(", "), finish.late.join(", "))
        };
        let of = |failures: &str, late: &str| (failures.to_owned(), late.to_owned());
        let all = "other bytes, does not verify, ends early";
        assert_eq!(told(true, false), of(all, ""));
        assert_eq!(told(true, true), of(all, ""));
        let wrong = "other bytes, does not verify";
        assert_eq!(told(false, false), of(wrong, "ends early"));
        let late = "does not verify, ends early";
        assert_eq!(told(false, true), of("other bytes", late));
    }
}
