//! A worker's stock client: librdkafka in a process of its own (`stock/client.py`), told line by
//! line what to do. How often it tries something is its own affair, so what it gives up is unknown.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::hand::{self, Polled, Positions};
use super::{Stage, TOPIC};
use crate::history::{Key, Record};
use crate::kafka::{Fault, payload, value_of};

const PROGRAM: &str = include_str!("../../stock/client.py");
/// How long a poll waits for something to come.
const WAIT: Duration = Duration::from_millis(60);
/// How many records a poll returns at most.
const RECORDS: usize = 400;
/// What it may take beyond its own time-outs before it is given up.
const GRACE: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub(super) struct StockHand {
    stage: Arc<Stage>,
    running: Option<Running>,
    pub(super) positions: Positions,
    /// Whether the client knows what it is to read.
    assigned: bool,
}

/// Its process; dropping it ends it.
#[derive(Debug)]
struct Running {
    _process: Child,
    asks: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

#[derive(Debug, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
enum Ask {
    Send { key: u32, value: String },
    Assign { places: BTreeMap<u32, u64> },
    Poll { wait: f64, most: usize },
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Answer {
    offset: Option<u64>,
    unknown: Option<String>,
    /// Partition, offset, value.
    records: Vec<(u32, u64, String)>,
    /// Partition, and what it says of bytes there that it cannot take for what was written.
    damaged: Vec<(u32, String)>,
    places: BTreeMap<u32, u64>,
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(nibble.into(), 16).unwrap_or('0');
    let digits = bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]);
    digits.collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    let bytes = digits.map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    bytes.collect()
}

impl StockHand {
    pub(super) fn new(stage: &Arc<Stage>) -> Self {
        Self {
            stage: Arc::clone(stage),
            running: None,
            positions: Positions::new(),
            assigned: false,
        }
    }

    fn start(&self) -> std::io::Result<Running> {
        let python = self.stage.python.as_deref();
        let python = python.ok_or_else(|| std::io::Error::other("no Python was given"))?;
        let mut process = Command::new(python)
            .args(["-c", PROGRAM, &self.stage.servers(), TOPIC])
            .arg(self.stage.patience.as_secs().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (asks, answers) = pipes.ok_or_else(|| std::io::Error::other("it has no pipes"))?;
        Ok(Running {
            _process: process,
            asks,
            answers: BufReader::new(answers).lines(),
        })
    }

    /// Asks, and waits for the answer. One that gives none is thrown away.
    async fn ask(&mut self, ask: &Ask) -> Result<Answer, Fault> {
        let lost = |error: &dyn std::fmt::Display| Fault::Unknown(format!("stock client: {error}"));
        if self.running.is_none() {
            self.assigned = false;
            self.running = Some(self.start().map_err(|error| lost(&error).certain())?);
        }
        let Some(mut running) = self.running.take() else {
            return Err(Fault::Not("it does not run".to_owned()));
        };
        let mut line = serde_json::to_string(ask).map_err(|error| lost(&error).certain())?;
        line.push('\n');
        let exchange = async {
            running.asks.write_all(line.as_bytes()).await?;
            let answer = running.answers.next_line().await?;
            answer.ok_or_else(|| std::io::Error::other("it has ended"))
        };
        let answer = timeout(self.stage.patience + GRACE, exchange).await;
        let answer = answer.map_err(|late| lost(&late))?;
        let answer = answer.map_err(|error| lost(&error))?;
        let answer: Answer = serde_json::from_str(&answer).map_err(|error| lost(&error))?;
        self.running = Some(running);
        match answer.unknown {
            Some(why) => Err(Fault::Unknown(why)),
            None => Ok(answer),
        }
    }

    pub(super) async fn send(&mut self, key: Key, value: u64) -> Result<u64, Fault> {
        let value = hex(&payload(value));
        let answer = self.ask(&Ask::Send { key: key.0, value }).await?;
        let none = || Fault::Unknown("acknowledged without an offset".to_owned());
        answer.offset.ok_or_else(none)
    }

    pub(super) fn assign(&mut self, keys: &[Key], seek_to_beginning: bool) {
        hand::place(&mut self.positions, keys, seek_to_beginning);
        self.assigned = false;
    }

    pub(super) async fn poll(&mut self) -> Result<Polled, Fault> {
        let polled = self.take().await;
        if polled.is_err() {
            // It may have gone on: it is told again where it is.
            self.assigned = false;
        }
        polled.map_err(Fault::certain)
    }

    async fn take(&mut self) -> Result<Polled, Fault> {
        if self.running.is_none() || !self.assigned {
            let places = self.positions.iter().map(|(key, at)| (key.0, *at));
            let places = places.collect();
            self.ask(&Ask::Assign { places }).await?;
            self.assigned = true;
        }
        let (wait, most) = (WAIT.as_secs_f64(), RECORDS);
        let answer = self.ask(&Ask::Poll { wait, most }).await?;
        let mut runs: BTreeMap<Key, Vec<Record>> = BTreeMap::new();
        for (key, offset, value) in answer.records {
            let value = value_of(unhex(&value).as_deref());
            runs.entry(Key(key))
                .or_default()
                .push(Record { offset, value });
        }
        let mut fault = None;
        for (key, why) in answer.damaged {
            let run = runs.entry(Key(key)).or_default();
            let from = self.positions.get(&Key(key)).copied().unwrap_or(0);
            run.push(Record {
                offset: run.last().map_or(from, |last| last.offset + 1),
                value: value_of(None),
            });
            fault = Some(Fault::Not(format!("stock client: {why}")));
        }
        if fault.is_none() {
            let places = answer.places.into_iter();
            self.positions
                .extend(places.map(|(key, at)| (Key(key), at)));
        }
        // What is wrong is read again.
        self.assigned &= fault.is_none();
        Ok(Polled {
            runs: runs.into_iter().collect(),
            fault,
            ..Polled::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_back_from_their_digits() {
        for bytes in [&[][..], &[0, 1, 0x7f, 0x80, 0xff]] {
            assert_eq!(unhex(&hex(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(unhex("0g"), None);
    }
}
