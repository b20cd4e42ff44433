//! A worker's kcat: a stock program that is run once for each thing it is to do. How often it tries
//! something is its own affair, so what it does not say it delivered is unknown.

use std::io;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use super::hand::{self, Polled, Positions};
use super::{Stage, TOPIC};
use crate::history::{Key, Record};
use crate::kafka::{Fault, payload, value_of};

/// Ends the one message that is written; no message holds it.
const END: &str = "--this-was-the-only-message--";
/// How many records a poll returns at most.
const RECORDS: usize = 400;
/// What it may take beyond its own time-out before it is given up.
const GRACE: Duration = Duration::from_secs(5);
/// Before each record: its offset and how long it is.
const FORMAT: &str = "%o %S %s\n";

#[derive(Debug)]
pub(super) struct KcatHand {
    stage: Arc<Stage>,
    pub(super) positions: Positions,
    /// Whose turn it is among the keys that are read: it reads one of them at a time.
    turn: usize,
}

impl KcatHand {
    pub(super) fn new(stage: &Arc<Stage>) -> Self {
        Self {
            stage: Arc::clone(stage),
            positions: Positions::new(),
            turn: 0,
        }
    }

    fn command(&self, mode: &str, key: Key, settings: &[&str]) -> io::Result<Command> {
        let kcat = self.stage.kcat.as_deref();
        let kcat = kcat.ok_or_else(|| io::Error::other("no kcat was given"))?;
        let mut command = Command::new(kcat);
        // It goes on when all nodes are gone for a moment.
        command.args([mode, "-E", "-b", &self.stage.servers(), "-t", TOPIC, "-p"]);
        command.arg(key.0.to_string());
        let common = ["socket.timeout.ms=3000", "reconnect.backoff.max.ms=250"];
        for setting in common.iter().chain(settings) {
            command.args(["-X", setting]);
        }
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs it to its end, with this as its input.
    async fn run(&self, mut command: Command, input: &[u8]) -> io::Result<Output> {
        let running = async {
            let mut child = command.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(input).await?;
            }
            child.wait_with_output().await
        };
        let late = || io::Error::other("it does not end");
        timeout(self.stage.patience + GRACE, running)
            .await
            .unwrap_or_else(|_| Err(late()))
    }

    pub(super) async fn send(&mut self, key: Key, value: u64) -> Result<u64, Fault> {
        let patience = format!("message.timeout.ms={}", self.stage.patience.as_millis());
        let settings = ["enable.idempotence=true", "linger.ms=0", &patience];
        let command = self.command("-P", key, &settings);
        let mut command = command.map_err(|error| lost(&error).certain())?;
        command.args(["-c", "1", "-D", END, "-vvv"]);
        let ran = self.run(command, &payload(value)).await;
        let ran = ran.map_err(|error| lost(&error))?;
        let said = String::from_utf8_lossy(&ran.stderr);
        delivered(&said).ok_or_else(|| lost(&said.lines().last().unwrap_or("it says nothing")))
    }

    pub(super) fn assign(&mut self, keys: &[Key], seek_to_beginning: bool) {
        hand::place(&mut self.positions, keys, seek_to_beginning);
    }

    /// What there is of the key whose turn it is.
    pub(super) async fn poll(&mut self) -> Result<Polled, Fault> {
        self.turn = (self.turn + 1) % self.positions.len().max(1);
        let Some((key, from)) = self.positions.iter().nth(self.turn) else {
            return Ok(Polled::default());
        };
        let (key, from) = (*key, *from);
        let settings = [
            "isolation.level=read_committed",
            "fetch.wait.max.ms=50",
            "check.crcs=true",
        ];
        let command = self.command("-C", key, &settings);
        let mut command = command.map_err(|error| lost(&error).certain())?;
        let (offset, most) = (from.to_string(), RECORDS.to_string());
        command.args(["-o", &offset, "-c", &most, "-e", "-f", FORMAT]);
        let ran = self.run(command, &[]).await;
        let ran = ran.map_err(|error| lost(&error).certain())?;
        let said = String::from_utf8_lossy(&ran.stderr);
        if !ran.status.success() {
            let last = said.lines().last().unwrap_or("it ends at once");
            let fault = lost(&last).certain();
            if !is_of_damage(&said) {
                return Err(fault);
            }
            let nobodys = Record {
                offset: from,
                value: value_of(None),
            };
            return Ok(Polled {
                runs: vec![(key, vec![nobodys])],
                fault: Some(fault),
                ..Polled::default()
            });
        }
        let records = records(&ran.stdout);
        let records = records.ok_or_else(|| lost(&"its output cannot be read").certain())?;
        let last = records.last().map(|record| record.offset + 1);
        let next = last.into_iter().chain(reached(&said)).max();
        self.positions.insert(key, next.unwrap_or(from).max(from));
        Ok(Polled {
            runs: vec![(key, records)],
            ..Polled::default()
        })
    }
}

fn lost(error: &dyn std::fmt::Display) -> Fault {
    Fault::Unknown(format!("kcat: {error}"))
}

/// The number after these words.
fn after(said: &str, words: &str) -> Option<u64> {
    let (_, rest) = said.rsplit_once(words)?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// The offset that it says a message was delivered at.
fn delivered(said: &str) -> Option<u64> {
    let line = said
        .lines()
        .find(|line| line.contains("Message delivered to "));
    after(line?, "(offset ")
}

/// The end of the key, if it says that it came there.
fn reached(said: &str) -> Option<u64> {
    let line = said
        .lines()
        .find(|line| line.contains("Reached end of topic "));
    after(line?, " at offset ")
}

/// Whether it ended by bytes that it cannot take for what was written.
fn is_of_damage(said: &str) -> bool {
    said.contains(" failed CRC32C check ")
}

/// What is in its output; nothing if that is not of the format that was asked for.
fn records(mut output: &[u8]) -> Option<Vec<Record>> {
    let mut records = Vec::new();
    while !output.is_empty() {
        let offset = word(&mut output)?.parse().ok()?;
        // Of a record without a value the length is -1.
        let len = word(&mut output)?.parse::<i64>().ok()?;
        let value = match usize::try_from(len) {
            Ok(len) => Some(output.split_off(..len)?),
            Err(_) => None,
        };
        output = output.strip_prefix(b"\n")?;
        let value = value_of(value);
        records.push(Record { offset, value });
    }
    Some(records)
}

/// Takes what comes before the next space, and the space.
fn word<'a>(output: &mut &'a [u8]) -> Option<&'a str> {
    let end = output.iter().position(|byte| *byte == b' ')?;
    let word = output.split_off(..end)?;
    output.split_off_first()?;
    std::str::from_utf8(word).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_writes_is_read() {
        let (one, two) = (payload(7), payload(8));
        let mut output = Vec::new();
        for (offset, value) in [(3, &one), (5, &two)] {
            output.extend(format!("{offset} {} ", value.len()).as_bytes());
            output.extend(&value[..]);
            output.push(b'\n');
        }
        let found = records(&output).unwrap();
        let read = |offset, value| Record { offset, value };
        assert_eq!(found, [read(3, 7), read(5, 8)]);
        assert_eq!(records(b"6 -1 \n").unwrap(), [read(6, value_of(None))]);
        assert_eq!(records(b""), Some(Vec::new()));
        // Cut anywhere but between the two, it is no output of its kind.
        let between = output.len() - format!("5 {} \n", two.len()).len() - two.len();
        for cut in 1..output.len() {
            assert_eq!(records(&output[..cut]).is_some(), cut == between, "{cut}");
        }
        assert_eq!(records(b"x 1 a\n"), None);
        assert_eq!(records(b"1 9999999999999999999 a\n"), None);
    }

    #[test]
    fn what_it_says_is_understood() {
        let said = "% Setting producer input buffer max size to 1000000\n\
                    % Message delivered to partition 2 (offset 41) on broker 3\n";
        assert_eq!(delivered(said), Some(41));
        assert_eq!(
            delivered("% Delivery failed for message: Local: timed out\n"),
            None
        );
        let said = "% Reached end of topic chaos [0] at offset 17: exiting\n";
        assert_eq!(reached(said), Some(17));
        assert_eq!(reached("% Auto-selecting Consumer mode\n"), None);
        let said = "% ERROR: Topic chaos [0] error: MessageSet at offset 7 (81 bytes) failed CRC32C \
                    check (original 0x1 != calculated 0x2)\n";
        assert!(is_of_damage(said));
        assert!(!is_of_damage("% ERROR: Local: Timed out\n"));
    }
}
