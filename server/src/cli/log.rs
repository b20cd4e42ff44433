//! `trilog log`: look into the log of a stopped node, changing nothing.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use trilog_storage::frame::Frame;
use trilog_storage::inspect::{GroupFound, Inspection, Place, Visitor, inspect};
use trilog_storage::io::Backend;

use super::output::{self, OutputArgs};
use super::topic::plural;
use crate::boot::make_private;

#[derive(Debug, Args)]
pub(super) struct LogArgs {
    #[command(subcommand)]
    command: LogCommand,
}

#[derive(Debug, Subcommand)]
enum LogCommand {
    /// Check every byte, and say what each partition's log holds
    Verify {
        /// The node's data directory
        dir: PathBuf,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Print a line for each entry and note
    Dump {
        /// The node's data directory
        dir: PathBuf,
        /// Only this group
        #[arg(short, long, value_name = "ID")]
        group: Option<u64>,
        /// Not what only the write-ahead log holds: votes, truncations, commit hints
        #[arg(long)]
        entries: bool,
        /// Stop after so many lines
        #[arg(short = 'n', long, value_name = "COUNT")]
        count: Option<u64>,
        /// With `json`, each line is an object, with a sum over the entry's content
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// Where what a batch's own checksum covers begins.
const CRC_COVER: usize = 21;
/// The file by which a running node keeps others out of its data directory.
const LOCK: &str = "lock";

/// Takes a data directory for this process, for as long as the file is open.
pub(super) fn lock(dir: &Path, create: bool) -> anyhow::Result<Option<File>> {
    let path = dir.join(LOCK);
    if create {
        make_private(dir)?;
    }
    let opened = File::options()
        .create(create)
        .truncate(false)
        .write(true)
        .open(&path);
    let file = match opened {
        Ok(file) => file,
        // Looking into a copy, or with fewer rights than its owner: nobody can be running there.
        Err(_) if !create => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(_) => bail!("{} is in use by a running node", dir.display()),
    }
}

/// The data directory meant: `dir` itself, or what `trilog dev` made in it.
fn data_dir(dir: &Path) -> PathBuf {
    let inside = dir.join("data");
    if !dir.join("checkpoint").exists() && inside.join("checkpoint").exists() {
        return inside;
    }
    dir.to_owned()
}

pub(super) async fn run(args: LogArgs) -> anyhow::Result<()> {
    match args.command {
        LogCommand::Verify { dir, output } => {
            let found = look(&dir, Box::new(|_, _| {})).await?;
            show(&dir, &found, output)?;
            if found.damage.is_empty() {
                return Ok(());
            }
            let count = found.damage.len();
            bail!(
                "{} has {count} damaged place{}",
                dir.display(),
                plural(count)
            );
        }
        LogCommand::Dump {
            dir,
            group,
            entries,
            count,
            output,
        } => {
            let line = if output.is_json() {
                json_line
            } else {
                text_line
            };
            dump(&dir, group, entries, count, line).await
        }
    }
}

/// Reads the whole of a directory that nobody has open.
pub(super) async fn look(dir: &Path, visit: Visitor) -> anyhow::Result<Inspection> {
    let dir = data_dir(dir);
    let _lock = lock(&dir, false)?;
    Ok(inspect(&Backend::Threads, &dir, visit).await?)
}

async fn dump(
    dir: &Path,
    group: Option<u64>,
    entries: bool,
    count: Option<u64>,
    line: fn(&Place, &Frame) -> String,
) -> anyhow::Result<()> {
    // The visitor runs on another thread and cannot stop the inspection: what went wrong with
    // the output is kept, and nothing more is written.
    let outcome = Arc::new(Mutex::new(Ok(())));
    let sink = Arc::clone(&outcome);
    let mut left = count.unwrap_or(u64::MAX);
    let visit: Visitor = Box::new(move |place, frame| {
        let wanted = group.is_none_or(|group| frame.header.group.get() == group)
            && (!entries || frame.header.kind.is_stored());
        let mut outcome = sink.lock();
        if left > 0 && wanted && outcome.is_ok() {
            left -= 1;
            *outcome = output::line(line(place, frame));
        }
    });
    let found = look(dir, visit).await?;
    std::mem::replace(&mut *outcome.lock(), Ok(()))?;
    for damage in &found.damage {
        eprintln!("damaged: {damage}");
    }
    if found.damage.is_empty() {
        return Ok(());
    }
    bail!("not everything could be read");
}

fn text_line(place: &Place, frame: &Frame) -> String {
    let header = &frame.header;
    let kind = format!("{:?}", header.kind).to_lowercase();
    let (group, id) = (header.group, header.id());
    let count = match header.further {
        0 => String::new(),
        further => format!(" ({} entries)", u128::from(further) + 1),
    };
    let start = format!("{:<22} group {group} {kind} {id}{count}", place.to_string());
    if header.record_count == 0 {
        return format!("{start} ({} B)", header.command_len);
    }
    let last = header.next_offset().get().saturating_sub(1);
    let time = jiff::Timestamp::from_nanosecond(i128::from(header.append_time.nanos()));
    let time = time.map_or_else(|_| header.append_time.to_string(), |time| time.to_string());
    let (first, bytes) = (header.base_offset, header.records_len);
    format!("{start} offsets {first}..={last} ({bytes} B) at {time}")
}

/// The sum covers what all replicas of an entry have in common: not the bytes of a batch outside
/// its own checksum, which say where it lies, as the line does.
fn json_line(place: &Place, frame: &Frame) -> String {
    let header = &frame.header;
    let content = frame.records.get(CRC_COVER..).unwrap_or_default();
    let mut sum = Sha256::new();
    sum.update(header.records_len.to_be_bytes());
    sum.update(content);
    sum.update(&frame.command);
    let sum = format!("{:x}", sum.finalize());
    let line = json!({
        "at": place.to_string(),
        "in_segment": matches!(place, Place::Segment { .. }),
        "group": header.group.get(),
        "kind": format!("{:?}", header.kind).to_lowercase(),
        "index": header.index.get(),
        "term": header.term.get(),
        "next_index": header.next_index().get(),
        "offset": header.base_offset.get(),
        "next_offset": header.next_offset().get(),
        "append_time_ns": header.append_time.nanos(),
        "sha256": sum,
    });
    line.to_string()
}

fn show(dir: &Path, found: &Inspection, output: OutputArgs) -> anyhow::Result<()> {
    if output.is_json() {
        return Ok(output::json(&found_json(found))?);
    }
    output::line(format_args!(
        "{}: {} frames and {} rounds read, {:.1} MB, checksums and chains compared",
        dir.display(),
        found.frames,
        found.wal_rounds,
        megabytes(found.bytes_read),
    ))?;
    if found.torn_tail.is_some() {
        output::line("the last write was never completed, nor acknowledged; a restart cuts it")?;
    }
    output::line("")?;
    let rows = found.groups.iter().map(row);
    let heading = [
        "group", "replica", "term", "first", "last", "end", "in wal", "segments", "MB",
    ];
    output::table(&heading, rows.collect())?;
    output::line("")?;
    for damage in &found.damage {
        let grave = if damage.grave {
            " (grave: the node would step aside)"
        } else {
            ""
        };
        output::line(format_args!("damaged: {damage}{grave}"))?;
    }
    for path in &found.set_aside {
        let path = path.display();
        output::line(format_args!("set aside as damaged at some time: {path}"))?;
    }
    for path in &found.copies {
        let path = path.display();
        output::line(format_args!(
            "an unfinished copy from another replica, which a restart deletes: {path}"
        ))?;
    }
    if found.damage.is_empty() {
        output::line("everything is as it was written")?;
    }
    Ok(())
}

fn row(group: &GroupFound) -> Vec<String> {
    let vote = group
        .vote
        .map_or_else(|| "-".to_owned(), |vote| vote.term.to_string());
    let last = group
        .last
        .map_or_else(|| "-".to_owned(), |last| last.to_string());
    vec![
        group.group.to_string(),
        group.replica.to_string(),
        vote,
        group.first_index.to_string(),
        last,
        group.next_offset.to_string(),
        group.entries_in_wal.to_string(),
        group.segments.to_string(),
        format!("{:.1}", megabytes(group.segment_bytes)),
    ]
}

fn found_json(found: &Inspection) -> Value {
    let groups: Vec<Value> = found
        .groups
        .iter()
        .map(|group| {
            json!({
                "group": group.group.get(),
                "replica": group.replica.to_string(),
                "term": group.vote.map(|vote| vote.term.get()),
                "first_index": group.first_index.get(),
                "last_index": group.last.map(|last| last.index.get()),
                "last_term": group.last.map(|last| last.term.get()),
                "end_offset": group.next_offset.get(),
                "entries_in_wal": group.entries_in_wal,
                "segments": group.segments,
                "segment_bytes": group.segment_bytes,
            })
        })
        .collect();
    let damage: Vec<Value> = found
        .damage
        .iter()
        .map(|damage| {
            let path = damage.path.display().to_string();
            json!({ "path": path, "what": damage.what, "grave": damage.grave })
        })
        .collect();
    let paths = |paths: &[PathBuf]| -> Vec<String> {
        let paths = paths.iter();
        paths.map(|path| path.display().to_string()).collect()
    };
    json!({
        "set_aside": paths(&found.set_aside),
        "copies": paths(&found.copies),
        "frames": found.frames,
        "bytes_read": found.bytes_read,
        "wal_rounds": found.wal_rounds,
        "torn_tail": found.torn_tail.is_some(),
        "groups": groups,
        "damage": damage,
    })
}

#[expect(clippy::cast_precision_loss, reason = "a size for people to read")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_is_taken_by_one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            lock(dir.path(), false).unwrap().is_none(),
            "nobody was ever there"
        );
        let held = lock(dir.path(), true).unwrap();
        assert!(lock(dir.path(), false).is_err());
        drop(held);
        assert!(lock(dir.path(), false).unwrap().is_some());
    }
}
