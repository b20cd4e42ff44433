//! A history boiled down: how many operations ended each second and how long they took, when
//! faults lasted, and who led.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::history::{Event, Function, Note, Op, Stage, What};

/// What ended in one second.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Second {
    /// Seconds since the run began.
    pub at: u64,
    pub ok: u64,
    pub fail: u64,
    pub info: u64,
    /// Values that were acknowledged.
    pub acknowledged: u64,
    /// Records that were read.
    pub read: u64,
    /// Of sends and transactions that were acknowledged.
    pub latency_p50_us: u64,
    pub latency_p99_us: u64,
    pub latency_max_us: u64,
    #[serde(skip)]
    latencies: Vec<u64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Fault {
    pub fault: String,
    pub nodes: Vec<u32>,
    pub from_ns: u64,
    /// The end of the history if it was never said to be over.
    pub to_ns: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Leader {
    pub key: u32,
    pub node: u32,
    pub term: u64,
    pub from_ns: u64,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    pub seconds: Vec<Second>,
    pub faults: Vec<Fault>,
    pub leaders: Vec<Leader>,
    /// When everything was healed.
    pub final_ns: Option<u64>,
    pub end_ns: u64,
    /// By function and how it ended.
    pub operations: BTreeMap<String, u64>,
    /// The longest time before the end of the faults in which nothing was acknowledged.
    pub longest_stall_ms: u64,
    /// How many operations said what went wrong, by what they said.
    pub errors: BTreeMap<String, u64>,
}

/// The most different errors that are told apart.
const ERRORS_MAX: usize = 60;

/// Boils events down, in their order.
pub fn summarize(events: impl Iterator<Item = Event>) -> Summary {
    let mut summary = Summary::default();
    let mut begun: HashMap<u32, u64> = HashMap::new();
    let mut acknowledged: Vec<u64> = Vec::new();
    for event in events {
        summary.end_ns = event.time;
        match event.what {
            What::Op(op) if op.stage == Stage::Invoke => {
                begun.insert(op.process, event.time);
            }
            What::Op(op) => {
                let began = begun.remove(&op.process).unwrap_or(event.time);
                let sent = is_write(&op) && op.stage == Stage::Ok;
                if sent && summary.final_ns.is_none() {
                    acknowledged.push(event.time);
                }
                summary.ended(&op, began, event.time);
            }
            What::Note(note) => summary.noted(&note, event.time),
        }
    }
    for fault in summary.faults.iter_mut().filter(|fault| fault.to_ns == 0) {
        fault.to_ns = summary.end_ns;
    }
    for second in &mut summary.seconds {
        second.settle();
    }
    let gaps = acknowledged.windows(2).map(|pair| pair[1] - pair[0]);
    summary.longest_stall_ms = gaps.max().unwrap_or(0) / 1_000_000;
    summary
}

fn is_write(op: &Op) -> bool {
    op.mops
        .iter()
        .any(|mop| matches!(mop, crate::history::Mop::Send { .. }))
}

impl Summary {
    fn second(&mut self, time: u64) -> &mut Second {
        let at = time / 1_000_000_000;
        let place = usize::try_from(at).unwrap_or(usize::MAX).min(100_000);
        while self.seconds.len() <= place {
            let at = self.seconds.len() as u64;
            self.seconds.push(Second {
                at,
                ..Second::default()
            });
        }
        &mut self.seconds[place]
    }

    fn ended(&mut self, op: &Op, began: u64, time: u64) {
        let how = match op.stage {
            Stage::Ok => "ok",
            Stage::Fail => "fail",
            Stage::Info | Stage::Invoke => "info",
        };
        let name = format!("{} {how}", name_of(op.f));
        *self.operations.entry(name).or_default() += 1;
        if let Some(error) = &op.error {
            let known = self.errors.contains_key(error) || self.errors.len() < ERRORS_MAX;
            let name = if known { error.as_str() } else { "others" };
            *self.errors.entry(name.to_owned()).or_default() += 1;
        }
        let sends = op
            .mops
            .iter()
            .filter(|mop| matches!(mop, crate::history::Mop::Send { .. }));
        let sends = sends.count() as u64;
        let read: u64 = op
            .mops
            .iter()
            .filter_map(|mop| match mop {
                crate::history::Mop::Poll(runs) => Some(runs),
                crate::history::Mop::Send { .. } => None,
            })
            .flatten()
            .map(|(_, records)| records.len() as u64)
            .sum();
        let second = self.second(time);
        match op.stage {
            Stage::Ok => {
                second.ok += 1;
                second.read += read;
                second.acknowledged += sends;
                if sends > 0 {
                    second.latencies.push((time - began) / 1_000);
                }
            }
            Stage::Fail => second.fail += 1,
            Stage::Info | Stage::Invoke => second.info += 1,
        }
    }

    fn noted(&mut self, note: &Note, time: u64) {
        match note {
            Note::FaultBegin { fault, nodes } => self.faults.push(Fault {
                fault: fault.clone(),
                nodes: nodes.clone(),
                from_ns: time,
                to_ns: 0,
            }),
            Note::FaultEnd { fault, nodes } => {
                let open = self.faults.iter_mut();
                let mut open = open.filter(|one| one.to_ns == 0 && one.fault == *fault);
                if let Some(one) = open.find(|one| one.nodes == *nodes) {
                    one.to_ns = time;
                }
            }
            Note::Leader { key, node, term } => self.leaders.push(Leader {
                key: key.0,
                node: *node,
                term: *term,
                from_ns: time,
            }),
            Note::Final => self.final_ns = Some(time),
            Note::HighWatermark { .. }
            | Note::Replica { .. }
            | Note::Boundary { .. }
            | Note::Done => {}
        }
    }
}

fn name_of(f: Function) -> &'static str {
    match f {
        Function::Send => "send",
        Function::Poll => "poll",
        Function::Txn => "txn",
        Function::Assign => "assign",
        Function::Subscribe => "subscribe",
        Function::Crash => "crash",
        Function::Commit => "commit",
        Function::Committed => "committed",
        Function::Reset => "reset",
    }
}

impl Second {
    fn settle(&mut self) {
        self.latencies.sort_unstable();
        let at = |percent: usize| {
            let place = self.latencies.len() * percent / 100;
            let last = self.latencies.len().saturating_sub(1);
            self.latencies.get(place.min(last)).copied().unwrap_or(0)
        };
        (self.latency_p50_us, self.latency_p99_us) = (at(50), at(99));
        self.latency_max_us = self.latencies.last().copied().unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Key, Mop};

    fn event(time_ms: u64, what: What) -> Event {
        Event {
            index: 0,
            time: time_ms * 1_000_000,
            what,
        }
    }

    fn send(stage: Stage, time_ms: u64) -> Event {
        let mut op = Op::new(stage, 1, Function::Send);
        op.mops = vec![Mop::Send {
            key: Key(0),
            value: 1,
            offset: None,
            term: None,
        }];
        event(time_ms, What::Op(op))
    }

    #[test]
    fn seconds_faults_and_stalls_are_found() {
        let nodes = vec![2];
        let fault = || "kill".to_owned();
        let begin = Note::FaultBegin {
            fault: fault(),
            nodes: nodes.clone(),
        };
        let end = Note::FaultEnd {
            fault: fault(),
            nodes,
        };
        let events = vec![
            send(Stage::Invoke, 100),
            send(Stage::Ok, 120),
            event(200, What::Note(begin)),
            send(Stage::Invoke, 300),
            event(2_000, What::Note(end)),
            send(Stage::Ok, 2_320),
            event(3_000, What::Note(Note::Final)),
            send(Stage::Invoke, 3_100),
            send(Stage::Fail, 9_000),
        ];
        let summary = summarize(events.into_iter());
        assert_eq!(summary.longest_stall_ms, 2_200);
        assert_eq!(summary.seconds.len(), 10);
        let second = &summary.seconds[2];
        assert_eq!((second.ok, second.latency_p99_us), (1, 2_020_000));
        assert_eq!(summary.seconds[9].fail, 1);
        let fault = &summary.faults[0];
        assert_eq!((fault.from_ns, fault.to_ns), (200_000_000, 2_000_000_000));
        assert_eq!(summary.operations["send ok"], 2);
        assert_eq!(summary.final_ns, Some(3_000_000_000));
    }
}
