//! Cycles of dependencies between operations: G0 and G1c.
//!
//! Edges are **ww** (who sent a value, to who sent the next one of that key) and **wr** (who sent a
//! value, to each other operation that read it); besides, an operation precedes the next one of
//! its process, and whatever began after it had ended. A cycle of ww alone is G0, one with a wr is
//! G1c; where it takes process order it is called so, likewise realtime order. Kafka isolates no
//! writes, so a cycle with a ww is permitted, and one of wr without is an error.
//!
//! Realtime order alone has no cycles and is transitive, so of all data edges only those count for
//! it that it does not imply, and of all operations only those at their ends; in a valid history
//! that is next to nothing. Only where a cycle shows there are the finer graphs built, of the
//! operations that may be part of it.

mod graph;

use super::anomaly::{Detail, Findings, Kind, Weight};
use super::intake::{NONE, Ops, Outcome, small};
use super::logs::Logs;
use graph::{Graph, Order};

type Edge = (u32, u32);

/// Of how many edges of a component the shortest cycle is taken.
const TRIED: u32 = 4;

pub(super) fn check(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    let cycles = Cycles { ops, logs };
    let ww = cycles.ww();
    let wr = Weight::allowed_if(!ops.header.read_committed);
    let g1c = [Kind::G1c, Kind::G1cProcess, Kind::G1cRealtime];
    let g0 = [Kind::G0, Kind::G0Process, Kind::G0Realtime];
    cycles.find(&Family::new(g1c, wr, true, &[]), findings);
    cycles.find(&Family::new(g0, Weight::Allowed, false, &ww), findings);
    cycles.find(&Family::new(g1c, Weight::Allowed, true, &ww), findings);
}

/// Which edges make up a graph, and what a cycle of it is called without, with process, and with
/// realtime order.
struct Family<'a> {
    kinds: [Kind; 3],
    weight: Weight,
    /// Whether a cycle must have a wr edge; else there is none.
    wr: bool,
    ww: &'a [Edge],
}

impl<'a> Family<'a> {
    fn new(kinds: [Kind; 3], weight: Weight, wr: bool, ww: &'a [Edge]) -> Self {
        Self {
            kinds,
            weight,
            wr,
            ww,
        }
    }
}

struct Cycles<'a> {
    ops: &'a Ops,
    logs: &'a Logs,
}

/// A graph, and the edges that a cycle is looked for at.
struct Level {
    graph: Graph,
    edges: Vec<Edge>,
}

impl Cycles<'_> {
    fn ww(&self) -> Vec<Edge> {
        let mut edges = Vec::new();
        for key in 0..small(self.ops.keys.len()) {
            let mut last: Option<(u32, u32)> = None;
            for number in self.logs.of_key(key) {
                let entry = &self.logs.entries[number];
                if !entry.is_live() || last.is_some_and(|(rank, _)| rank == entry.rank) {
                    continue;
                }
                let op = self.writer(entry.send);
                if let (Some((_, from)), Some(to)) = (last, op)
                    && from != NONE
                    && from != to
                {
                    edges.push((from, to));
                }
                last = Some((entry.rank, op.unwrap_or(NONE)));
            }
        }
        edges
    }

    /// Whose send it is, if it may have happened.
    fn writer(&self, send: u32) -> Option<u32> {
        let sent = self.ops.sends.get(send as usize)?;
        let failed = self.ops.row(sent.op).outcome == Outcome::Fail;
        (!failed).then_some(sent.op)
    }

    /// The wr edges that `keep` wants.
    fn wr(&self, keep: impl Fn(Edge) -> bool) -> Vec<Edge> {
        let mut edges = Vec::new();
        for (op, row) in self.ops.rows.iter().enumerate() {
            let mut last = NONE;
            for run in self.ops.runs_of(row) {
                for number in self.logs.of_run(run) {
                    let send = self.logs.entry(*number).send;
                    let Some(writer) = self.writer(send) else {
                        continue;
                    };
                    let edge = (writer, small(op));
                    if writer != last && edge.0 != edge.1 && keep(edge) {
                        edges.push(edge);
                    }
                    last = writer;
                }
            }
        }
        edges
    }

    fn implied(&self, (from, to): Edge) -> bool {
        self.ops.row(from).precedes(self.ops.row(to))
    }

    fn level(&self, family: &Family, order: Order, keep: impl Fn(Edge) -> bool) -> Level {
        let ww: Vec<Edge> = family.ww.iter().copied().filter(|e| keep(*e)).collect();
        let wr = if family.wr { self.wr(keep) } else { Vec::new() };
        let graph = Graph::new(self.ops, order, &[&ww, &wr]);
        Level {
            graph,
            edges: if family.wr { wr } else { ww },
        }
    }

    fn find(&self, family: &Family, findings: &mut Findings) {
        let realtime = self.level(family, Order::Realtime, |edge| !self.implied(edge));
        let covered = realtime.graph.covered(self.ops);
        if covered.is_empty() {
            return;
        }
        let may = |(from, to): Edge| covered.contains(from) && covered.contains(to);
        let process = self.level(family, Order::Process, may);
        // Without any order, who sends nothing ends no cycle.
        let none = self.level(family, Order::None, |edge| {
            may(edge) && !self.ops.row(edge.1).sends.is_empty()
        });
        let nothing = |_: Edge| false;
        self.report(family, 0, &none, nothing, findings);
        self.report(family, 1, &process, |e| none.graph.joins(e), findings);
        self.report(family, 2, &realtime, |e| process.graph.joins(e), findings);
    }

    /// Reports a cycle for each component with an edge that is in no component of a lower level.
    fn report(
        &self,
        family: &Family,
        nth: usize,
        level: &Level,
        lower: impl Fn(Edge) -> bool,
        findings: &mut Findings,
    ) {
        let edges = level.edges.iter().copied();
        let mut inside: Vec<(u32, Edge)> = edges
            .filter(|edge| level.graph.joins(*edge) && !lower(*edge))
            .map(|edge| (level.graph.component(edge.0), edge))
            .collect();
        inside.sort_unstable();
        for group in inside.chunk_by(|a, b| a.0 == b.0) {
            findings.add(family.kinds[nth], family.weight, || {
                let tried = group.iter().take(TRIED as usize);
                let cycles = tried.map(|(_, edge)| level.graph.cycle(*edge));
                let shortest = cycles.min_by_key(Vec::len).unwrap_or_default();
                self.detail(&shortest)
            });
        }
    }

    fn detail(&self, cycle: &[(u32, bool)]) -> Detail {
        let mut detail = Detail::default();
        let mut steps = Vec::new();
        for (nth, (op, realtime)) in cycle.iter().enumerate() {
            let (next, _) = cycle[(nth + 1) % cycle.len()];
            let row = self.ops.row(*op);
            let relation = self.relation(*op, next, *realtime, &mut detail);
            steps.push(format!("#{} -{relation}->", row.invoked));
            detail = detail.row(row);
        }
        let first = cycle.first().map(|(op, _)| self.ops.row(*op).invoked);
        steps.extend(first.map(|invoked| format!("#{invoked}")));
        detail.message = steps.join(" ");
        detail
    }

    /// What makes one operation come before another.
    fn relation(&self, from: u32, to: u32, realtime: bool, detail: &mut Detail) -> String {
        if realtime {
            return "realtime".to_owned();
        }
        let (ops, logs) = (self.ops, self.logs);
        for run in ops.runs_of(ops.row(to)) {
            for number in logs.of_run(run) {
                let entry = logs.entry(*number);
                if self.writer(entry.send) == Some(from) {
                    detail.values.push(entry.value);
                    return format!("wr {}:{}", ops.keys[run.key as usize].0, entry.value);
                }
            }
        }
        for nth in ops.row(from).sends.range() {
            let Some(place) = logs.place(small(nth)) else {
                continue;
            };
            let key = ops.sends[nth].key;
            let next = logs.entry(place).rank + 1;
            let mut entries = logs.of_key(key).skip_while(|n| *n <= place as usize);
            let follower = entries.find(|n| logs.entries[*n].rank == next);
            let follower = follower.map(|n| &logs.entries[n]);
            if follower.and_then(|entry| self.writer(entry.send)) == Some(to) {
                detail.values.push(ops.sends[nth].value);
                let key = ops.keys[key as usize].0;
                return format!("ww {key}:{}", ops.sends[nth].value);
            }
        }
        "process".to_owned()
    }
}
