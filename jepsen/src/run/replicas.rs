//! Replicas side by side: what the files of stopped nodes hold of each group, entry by entry. Of keys
//! it is known where they end, so that nothing may be missing; of all other groups (the controller's,
//! those of coordinators) two logs may not contradict each other.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::history::{Key, Note};
use crate::workload::Held;

/// A line of `trilog log dump --entries -o json`.
#[derive(Debug, Deserialize)]
struct Line {
    group: u64,
    kind: String,
    in_segment: bool,
    index: u64,
    term: u64,
    offset: u64,
    next_offset: u64,
    sha256: String,
}

/// An entry as one replica has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    term: u64,
    offset: u64,
    next_offset: u64,
    sha256: String,
    in_segment: bool,
}

/// A replica's entries by their index.
type Log = BTreeMap<u64, Entry>;

#[derive(Debug, Default)]
pub(super) struct Compared {
    pub(super) notes: Vec<Note>,
    /// Replicas that do not hold a key to its end, or with holes. All were level when everything
    /// was whole, and nothing was written since.
    pub(super) short: Vec<String>,
    /// Replicas that hold something else than others.
    pub(super) differ: Vec<String>,
    /// How many entries, of how many groups, two replicas had to have alike.
    pub(super) entries: u64,
    pub(super) groups: usize,
}

/// Sums of what each replica holds of each key up to its end, and what no two logs may hold.
pub(super) async fn compare(
    trilog: &Path,
    dirs: &[(u32, PathBuf)],
    held: &BTreeMap<Key, Held>,
    ends: &BTreeMap<Key, u64>,
) -> anyhow::Result<Compared> {
    let mut groups: BTreeMap<u64, Vec<(u32, Log)>> = BTreeMap::new();
    for (node, dir) in dirs {
        for (group, log) in read(trilog, dir).await? {
            groups.entry(group).or_default().push((*node, log));
        }
    }
    let mut compared = Compared::default();
    for (group, logs) in &groups {
        agree(*group, logs, &mut compared);
    }
    for (key, held) in held {
        let end = ends.get(key).copied().unwrap_or(0);
        let mut logs = groups.remove(&held.group).unwrap_or_default();
        logs.retain(|(node, _)| held.nodes.contains(node));
        for node in &held.nodes {
            if logs.iter().all(|(there, _)| there != node) {
                logs.push((*node, Log::new()));
            }
        }
        side_by_side(*key, end, &logs, &mut compared);
    }
    Ok(compared)
}

/// What a stopped node's files hold, by group. Who gives this up has no program left running.
async fn read(trilog: &Path, dir: &Path) -> anyhow::Result<BTreeMap<u64, Log>> {
    let mut child = Command::new(trilog)
        .args(["log", "dump", "--entries", "-o", "json"])
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}", trilog.display()))?;
    let mut logs: BTreeMap<u64, Log> = BTreeMap::new();
    let stdout = child.stdout.take().context("the dump has no output")?;
    let mut lines = BufReader::new(stdout).lines();
    while let Some(text) = lines.next_line().await? {
        let line: Line = serde_json::from_str(&text).context("a line of the dump")?;
        // Stands for entries that are gone, which each replica takes out when it likes.
        if line.kind != "removed" {
            take(logs.entry(line.group).or_default(), line);
        }
    }
    let status = child.wait().await?;
    if !status.success() {
        bail!("the log in {} cannot be read whole", dir.display());
    }
    Ok(logs)
}

/// What Raft promises of any two logs of a group, whatever else they hold: of one index and term
/// there is one entry, and of one index one that was committed, which is what segments hold.
fn agree(group: u64, logs: &[(u32, Log)], compared: &mut Compared) {
    let before = compared.entries;
    for (nth, (node, log)) in logs.iter().enumerate() {
        for (other_node, other) in &logs[nth + 1..] {
            let mut pairs = log
                .iter()
                .filter_map(|(index, one)| Some((index, one, other.get(index)?)))
                .filter(|(_, one, other)| {
                    one.term == other.term || one.in_segment && other.in_segment
                });
            let differing = pairs.find(|(_, one, other)| {
                compared.entries += 1;
                !one.is_same(other)
            });
            if let Some((index, one, other)) = differing {
                compared.differ.push(format!(
                    "of group {group} nodes {node} and {other_node} hold other entries at {index}, \
                     of terms {} and {}",
                    one.term, other.term
                ));
            }
        }
    }
    compared.groups += usize::from(compared.entries > before);
}

impl Entry {
    /// Whether it is the same entry, wherever it is kept.
    fn is_same(&self, other: &Self) -> bool {
        let what = |of: &Self| (of.term, of.offset, of.next_offset);
        what(self) == what(other) && self.sha256 == other.sha256
    }
}

/// Keeps the entry that counts at its index: what is in a segment was committed; of what is in the
/// write-ahead log alone the last one replaced those before it, and what followed them.
fn take(log: &mut Log, line: Line) {
    if !line.in_segment {
        if log.get(&line.index).is_some_and(|there| there.in_segment) {
            return;
        }
        let after = log.split_off(&line.index);
        log.extend(after.into_iter().filter(|(_, entry)| entry.in_segment));
    }
    log.insert(
        line.index,
        Entry {
            term: line.term,
            offset: line.offset,
            next_offset: line.next_offset,
            sha256: line.sha256,
            in_segment: line.in_segment,
        },
    );
}

fn side_by_side(key: Key, end: u64, replicas: &[(u32, Log)], compared: &mut Compared) {
    let mut whole: Vec<(u32, Vec<(u64, &Entry)>)> = Vec::new();
    for (node, log) in replicas {
        let entries: Vec<(u64, &Entry)> = log
            .iter()
            .map(|(index, entry)| (*index, entry))
            .filter(|(_, entry)| entry.next_offset > entry.offset && entry.offset < end)
            .collect();
        let hole = entries
            .windows(2)
            .find(|pair| pair[0].1.next_offset != pair[1].1.offset);
        if let Some([(_, before), (_, after)]) = hole {
            compared.short.push(format!(
                "node {node} has nothing of key {} from {} to {}",
                key.0, before.next_offset, after.offset
            ));
        }
        let reaches = entries
            .last()
            .is_some_and(|(_, last)| last.next_offset >= end);
        if reaches || end == 0 {
            whole.push((*node, entries));
        } else {
            let last = entries.last().map_or(0, |(_, last)| last.next_offset);
            compared.short.push(format!(
                "the replica of key {} on node {node} ends at {last}, the key at {end}",
                key.0
            ));
        }
    }
    if replicas.is_empty() {
        let key = key.0;
        compared
            .short
            .push(format!("nobody has a replica of key {key}"));
    }
    let first = |entries: &Vec<(u64, &Entry)>| entries.first().map(|(_, entry)| entry.offset);
    let Some(from) = whole.iter().filter_map(|(_, entries)| first(entries)).max() else {
        return;
    };
    for (node, entries) in &whole {
        let mut text = String::new();
        for (index, entry) in entries.iter().filter(|(_, entry)| entry.offset >= from) {
            let Entry {
                term,
                offset,
                next_offset,
                sha256,
                ..
            } = entry;
            let place = format!("{index} {term} {offset} {next_offset}");
            text.extend([&place, " ", sha256, "\n"]);
        }
        let sum = Sha256::digest(text.as_bytes());
        compared.notes.push(Note::Replica {
            key,
            node: *node,
            from,
            upto: end,
            checksum: format!("{sum:x}"),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(in_segment: bool, index: u64, term: u64, offset: u64, sum: &str) -> Line {
        Line {
            group: 1,
            kind: "data".to_owned(),
            in_segment,
            index,
            term,
            offset,
            next_offset: offset + 1,
            sha256: sum.to_owned(),
        }
    }

    fn log(lines: Vec<Line>) -> Log {
        let mut log = Log::new();
        for line in lines {
            take(&mut log, line);
        }
        log
    }

    #[test]
    fn what_was_replaced_in_the_write_ahead_log_does_not_count() {
        let found = log(vec![
            line(true, 1, 1, 0, "a"),
            line(false, 1, 1, 0, "a"),
            line(false, 2, 1, 1, "old"),
            line(false, 3, 1, 2, "old"),
            line(false, 2, 2, 1, "b"),
        ]);
        let sums: Vec<&str> = found.values().map(|entry| entry.sha256.as_str()).collect();
        assert_eq!(sums, ["a", "b"]);
        assert!(found[&1].in_segment);
    }

    #[test]
    fn logs_that_contradict_each_other_are_told_from_logs_that_differ_in_what_is_open() {
        let base = || line(true, 1, 1, 0, "a");
        let found = |one: Vec<Line>, other: Vec<Line>| {
            let mut compared = Compared::default();
            agree(7, &[(1, log(one)), (2, log(other))], &mut compared);
            (compared.differ.len(), compared.entries, compared.groups)
        };
        let with = |more: Line| vec![base(), more];
        // Alike, wherever they are kept, and as far as both go.
        let (kept, logged) = (line(true, 2, 1, 1, "b"), line(false, 2, 1, 1, "b"));
        assert_eq!(found(with(kept), with(logged)), (0, 2, 1));
        assert_eq!(
            found(vec![base()], with(line(true, 2, 1, 1, "b"))),
            (0, 1, 1)
        );
        assert_eq!(
            found(vec![base()], vec![line(true, 5, 1, 4, "e")]),
            (0, 0, 0)
        );
        // One of them was never committed.
        let (stale, newer) = (line(false, 2, 1, 1, "x"), line(true, 2, 2, 1, "b"));
        assert_eq!(found(with(stale), with(newer)), (0, 1, 1));
        // Of one term, or both committed, they may not differ.
        let (one, other) = (line(false, 2, 1, 1, "x"), line(false, 2, 1, 1, "b"));
        assert_eq!(found(with(one), with(other)), (1, 2, 1));
        let (one, other) = (line(true, 2, 1, 1, "b"), line(true, 2, 2, 1, "b"));
        assert_eq!(found(with(one), with(other)), (1, 2, 1));
        let (one, other) = (line(true, 2, 1, 1, "b"), line(true, 2, 1, 2, "b"));
        assert_eq!(found(with(one), with(other)), (1, 2, 1));
    }

    #[test]
    fn replicas_that_differ_have_other_sums_and_holes_are_told() {
        let good = || log(vec![line(true, 1, 1, 0, "a"), line(false, 2, 1, 1, "b")]);
        let bad = log(vec![line(true, 1, 1, 0, "a"), line(false, 2, 1, 1, "c")]);
        let mut compared = Compared::default();
        let replicas = [(1, good()), (2, good()), (3, bad)];
        side_by_side(Key(0), 2, &replicas, &mut compared);
        let sums: Vec<_> = compared
            .notes
            .iter()
            .map(|note| match note {
                Note::Replica { checksum, .. } => checksum.clone(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(sums[0] == sums[1] && sums[1] != sums[2]);
        assert!(compared.short.is_empty());

        let holed = log(vec![line(true, 1, 1, 0, "a"), line(true, 3, 1, 2, "c")]);
        let short = log(vec![line(true, 1, 1, 0, "a")]);
        let mut compared = Compared::default();
        side_by_side(
            Key(0),
            3,
            &[(1, holed), (2, short.clone()), (3, short)],
            &mut compared,
        );
        assert_eq!(compared.short.len(), 3, "{:?}", compared.short);
    }
}
