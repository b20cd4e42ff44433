//! A history boiled down: how many operations ended each second and how long they took, when
//! faults lasted, and who led.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use crate::history::{Event, Function, Note, ON_PURPOSE, Op, Stage, What};

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

/// A key whose leader was killed.
#[derive(Debug, Clone, Serialize)]
pub struct Succession {
    pub key: u32,
    pub node: u32,
    pub from_ns: u64,
    /// From when the leader was dead to the first acknowledgement of what was sent after that.
    pub took_ms: u64,
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
    /// The longest time before the end of the faults in which somebody tried to write, and nothing
    /// was acknowledged.
    pub longest_stall_ms: u64,
    /// The same by the fault that lasted in it, in milliseconds.
    pub stalls: BTreeMap<String, u64>,
    /// The same of the key for which it was longest.
    pub key_stalls: BTreeMap<String, u64>,
    /// Leaders that were killed, and how long it took.
    pub successions: Vec<Succession>,
    /// How many operations said what went wrong, by what they said.
    pub errors: BTreeMap<String, u64>,
}

/// The most different errors that are told apart.
const ERRORS_MAX: usize = 60;

/// Boils events down, in their order.
pub fn summarize(events: impl Iterator<Item = Event>) -> Summary {
    let mut summary = Summary::default();
    let mut begun: HashMap<u32, u64> = HashMap::new();
    let mut silence = Silence::default();
    let mut by_key: BTreeMap<u32, Silence> = BTreeMap::new();
    let mut orphans = Orphans::default();
    for event in events {
        summary.end_ns = event.time;
        match event.what {
            What::Op(op) if op.stage == Stage::Invoke => {
                begun.insert(op.process, event.time);
                silence.begins(&op, event.time);
                for key in written(&op) {
                    by_key.entry(key).or_default().begins(&op, event.time);
                }
            }
            What::Op(op) => {
                let began = begun.remove(&op.process).unwrap_or(event.time);
                if summary.final_ns.is_none() {
                    silence.ends(&op, event.time);
                    for key in written(&op) {
                        by_key.entry(key).or_default().ends(&op, event.time);
                    }
                    orphans.acknowledged(&op, began, event.time, &mut summary.successions);
                }
                summary.ended(&op, began, event.time);
            }
            What::Note(note) => {
                orphans.noted(&note, event.time);
                summary.noted(&note, event.time);
            }
        }
    }
    for fault in summary.faults.iter_mut().filter(|fault| fault.to_ns == 0) {
        fault.to_ns = summary.end_ns;
    }
    for second in &mut summary.seconds {
        second.settle();
    }
    let longest = silence.stalls.iter().map(|(from, to)| to - from).max();
    summary.longest_stall_ms = longest.unwrap_or(0) / 1_000_000;
    summary.stalls = by_fault(&silence.stalls, &summary.faults);
    for silence in by_key.values() {
        for (fault, took) in by_fault(&silence.stalls, &summary.faults) {
            let longest = summary.key_stalls.entry(fault).or_default();
            *longest = took.max(*longest);
        }
    }
    summary
}

/// The longest of these times by the fault that lasted in it, in milliseconds.
fn by_fault(stalls: &[(u64, u64)], faults: &[Fault]) -> BTreeMap<String, u64> {
    let mut longest: BTreeMap<String, u64> = BTreeMap::new();
    for fault in faults {
        let within = stalls.iter().copied();
        let within = within.filter(|(from, to)| fault.from_ns <= *to && *from <= fault.to_ns);
        let took = within.map(|(from, to)| (to - from) / 1_000_000).max();
        let entry = longest.entry(fault.fault.clone()).or_default();
        *entry = took.unwrap_or(0).max(*entry);
    }
    longest
}

/// What was measured of the cluster as a whole, for people.
pub fn figures(summary: &Summary) -> Vec<String> {
    let mut took: Vec<u64> = summary.successions.iter().map(|one| one.took_ms).collect();
    took.sort_unstable();
    let mut lines = Vec::new();
    if let Some(longest) = took.last() {
        let at = |percent| percentile(&took, percent);
        lines.push(format!(
            "leader killed to first acknowledged write, {} times: p50 {} ms, p99 {} ms, longest \
             {longest} ms",
            took.len(),
            at(50),
            at(99)
        ));
    }
    let longest = summary.longest_stall_ms;
    lines.push(format!(
        "longest time without an acknowledgement: {longest} ms"
    ));
    let rolling = |stalls: &BTreeMap<String, u64>| stalls.get("rolling-restart").copied();
    if let Some((all, one)) = rolling(&summary.stalls).zip(rolling(&summary.key_stalls)) {
        lines.push(format!(
            "longest stall during a rolling restart: {all} ms of everything, {one} ms of one key"
        ));
    }
    lines
}

/// Of sorted values the one that so many percent of them lie below; zero of none.
pub fn percentile(sorted: &[u64], percent: usize) -> u64 {
    let place = sorted.len() * percent / 100;
    let last = sorted.len().saturating_sub(1);
    sorted.get(place.min(last)).copied().unwrap_or(0)
}

/// The times in which somebody tries to write, and nothing is acknowledged.
#[derive(Debug, Default)]
struct Silence {
    /// Who tries.
    trying: HashSet<u32>,
    /// Since when, or since the last acknowledgement.
    since: u64,
    /// Whether somebody has given up since then.
    in_vain: bool,
    /// From when to when.
    stalls: Vec<(u64, u64)>,
}

impl Silence {
    fn begins(&mut self, op: &Op, time: u64) {
        if is_write(op) {
            if self.trying.is_empty() && !self.in_vain {
                self.since = time;
            }
            self.trying.insert(op.process);
        }
    }

    fn ends(&mut self, op: &Op, time: u64) {
        if !self.trying.remove(&op.process) {
            return;
        }
        // Who aborts has been answered, and wanted nothing acknowledged.
        let on_purpose = op.error.as_deref() == Some(ON_PURPOSE);
        self.in_vain |= op.stage != Stage::Ok && !on_purpose;
        if op.stage == Stage::Ok {
            self.stalls.push((self.since, time));
            self.since = time;
            self.in_vain = false;
        }
    }
}

/// Keys whose leader was killed and that have acknowledged nothing since.
#[derive(Debug, Default)]
struct Orphans {
    /// How many faults last.
    lasting: usize,
    /// Who is dead by a kill.
    dead: BTreeSet<u32>,
    /// Who leads, by what was said last, and has not been killed since: it is said late, and who
    /// is back leads nothing until that is said of a later term.
    leaders: BTreeMap<u32, u32>,
    /// Who led, and when it was dead.
    since: BTreeMap<u32, (u32, u64)>,
}

impl Orphans {
    fn noted(&mut self, note: &Note, time: u64) {
        match note {
            Note::Leader { key, node, .. } if !self.dead.contains(node) => {
                self.leaders.insert(key.0, *node);
            }
            Note::FaultBegin { fault, nodes } => {
                // Of several nodes a majority may be gone, which nobody can succeed; and who waits
                // for something else than a successor says nothing about successions.
                if fault == "kill" && nodes.len() == 1 && self.lasting == 0 {
                    for (key, leader) in self.leaders.iter().filter(|one| nodes.contains(one.1)) {
                        self.since.entry(*key).or_insert((*leader, time));
                    }
                } else {
                    self.since.clear();
                }
                if is_death(fault) {
                    self.leaders.retain(|_, leader| !nodes.contains(leader));
                    self.dead.extend(nodes);
                }
                self.lasting += 1;
            }
            Note::FaultEnd { fault, nodes } => {
                if is_death(fault) {
                    self.dead.retain(|node| !nodes.contains(node));
                }
                self.lasting = self.lasting.saturating_sub(1);
            }
            _ => {}
        }
    }

    fn acknowledged(&mut self, op: &Op, began: u64, time: u64, found: &mut Vec<Succession>) {
        if op.stage != Stage::Ok {
            return;
        }
        for mop in &op.mops {
            let crate::history::Mop::Send { key, .. } = mop else {
                continue;
            };
            if self.since.get(&key.0).is_some_and(|since| since.1 <= began)
                && let Some((node, from_ns)) = self.since.remove(&key.0)
            {
                found.push(Succession {
                    key: key.0,
                    node,
                    from_ns,
                    took_ms: (time - from_ns) / 1_000_000,
                });
            }
        }
    }
}

/// Whether those that it strikes are dead while it lasts, and lead nothing when they are back.
fn is_death(fault: &str) -> bool {
    matches!(
        fault,
        "kill"
            | "kill-all"
            | "power-loss"
            | "failed-sync"
            | "wipe"
            | "flip-bits"
            | "truncate"
            | "stale-chunks"
    )
}

fn is_write(op: &Op) -> bool {
    op.mops
        .iter()
        .any(|mop| matches!(mop, crate::history::Mop::Send { .. }))
}

/// The keys that an operation writes to.
fn written(op: &Op) -> BTreeSet<u32> {
    let keys = op.mops.iter().filter_map(|mop| match mop {
        crate::history::Mop::Send { key, .. } => Some(key.0),
        crate::history::Mop::Poll(_) => None,
    });
    keys.collect()
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
        let at = |percent| percentile(&self.latencies, percent);
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

    fn leader(node: u32, time_ms: u64) -> Event {
        let note = Note::Leader {
            key: Key(0),
            node,
            term: time_ms,
        };
        event(time_ms, What::Note(note))
    }

    fn kill(node: u32, time_ms: u64) -> Event {
        let note = Note::FaultBegin {
            fault: "kill".to_owned(),
            nodes: vec![node],
        };
        event(time_ms, What::Note(note))
    }

    fn back(node: u32, time_ms: u64) -> Event {
        let note = Note::FaultEnd {
            fault: "kill".to_owned(),
            nodes: vec![node],
        };
        event(time_ms, What::Note(note))
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
        assert_eq!(summary.longest_stall_ms, 2_020);
        assert_eq!(summary.stalls["kill"], 2_020);
        assert_eq!(summary.key_stalls["kill"], 2_020);
        assert_eq!(figures(&summary).len(), 1);
        assert_eq!(summary.seconds.len(), 10);
        let second = &summary.seconds[2];
        assert_eq!((second.ok, second.latency_p99_us), (1, 2_020_000));
        assert_eq!(summary.seconds[9].fail, 1);
        let fault = &summary.faults[0];
        assert_eq!((fault.from_ns, fault.to_ns), (200_000_000, 2_000_000_000));
        assert_eq!(summary.operations["send ok"], 2);
        assert_eq!(summary.final_ns, Some(3_000_000_000));
    }

    #[test]
    fn what_was_aborted_on_purpose_was_not_tried_in_vain() {
        let longest = |error: &str| {
            let mut aborted = send(Stage::Fail, 10);
            if let What::Op(op) = &mut aborted.what {
                op.error = Some(error.to_owned());
            }
            let events = vec![
                send(Stage::Invoke, 0),
                aborted,
                // Nobody tries anything for a while.
                send(Stage::Invoke, 5_000),
                send(Stage::Ok, 5_020),
            ];
            summarize(events.into_iter()).longest_stall_ms
        };
        assert_eq!(longest(ON_PURPOSE), 20);
        assert_eq!(longest("Produce: 56"), 5_020);
    }

    #[test]
    fn a_succession_takes_until_something_sent_after_the_kill_is_acknowledged() {
        let events = vec![
            leader(2, 10),
            // Somebody else is killed: nobody has to succeed.
            kill(3, 50),
            // While another node is gone nobody can.
            kill(2, 60),
            send(Stage::Invoke, 70),
            send(Stage::Ok, 75),
            back(2, 80),
            back(3, 85),
            leader(2, 87),
            send(Stage::Invoke, 90),
            kill(2, 100),
            // Sent before, so perhaps acknowledged before, and told late.
            send(Stage::Ok, 105),
            send(Stage::Invoke, 110),
            send(Stage::Ok, 350),
            leader(1, 400),
            send(Stage::Invoke, 410),
            send(Stage::Ok, 420),
        ];
        let summary = summarize(events.into_iter());
        let took: Vec<_> = summary.successions.iter().map(|one| one.took_ms).collect();
        assert_eq!(took, [250]);
        assert!(figures(&summary)[0].contains("1 times: p50 250 ms, p99 250 ms"));
    }

    #[test]
    fn who_was_killed_leads_nothing_until_that_is_said_of_a_later_term() {
        let events = vec![
            leader(2, 10),
            kill(2, 100),
            // Somebody has not heard of its end.
            leader(2, 150),
            send(Stage::Invoke, 200),
            send(Stage::Ok, 900),
            back(2, 1_000),
            // Another one leads, which nobody said yet: its death makes no orphan.
            kill(2, 2_000),
            send(Stage::Invoke, 2_005),
            send(Stage::Ok, 2_010),
            back(2, 2_500),
            leader(1, 2_600),
            leader(2, 2_700),
            kill(2, 3_000),
            send(Stage::Invoke, 3_100),
            send(Stage::Ok, 3_400),
        ];
        let summary = summarize(events.into_iter());
        let took: Vec<_> = summary.successions.iter().map(|one| one.took_ms).collect();
        assert_eq!(took, [800, 400]);
    }
}
