//! Directed graphs over operations, their strongly connected components, and cycles in them.

use std::collections::{HashMap, VecDeque};

use super::super::intake::{NONE, Ops, Outcome, small};
use super::Edge;

/// What orders operations besides their data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    None,
    Process,
    Realtime,
}

/// Nodes are the operations at the ends of data edges; with realtime order also moments, each of
/// which comes after the operations that had ended by then and before those that began later.
#[derive(Debug)]
pub(super) struct Graph {
    /// The operation of each node, or [`NONE`] for a moment.
    ops: Vec<u32>,
    /// For each operation of the history, its node or [`NONE`].
    nodes: Vec<u32>,
    /// Edges by node of origin.
    starts: Vec<u32>,
    targets: Vec<u32>,
    components: Vec<u32>,
    /// How many operations a component has.
    sizes: Vec<u32>,
}

impl Graph {
    pub(super) fn new(ops: &Ops, order: Order, data: &[&[Edge]]) -> Self {
        let mut nodes = vec![NONE; ops.rows.len()];
        for (from, to) in data.iter().copied().flatten() {
            nodes[*from as usize] = 0;
            nodes[*to as usize] = 0;
        }
        let mut members = Vec::new();
        for (op, node) in nodes.iter_mut().enumerate() {
            if *node != NONE {
                *node = small(members.len());
                members.push(small(op));
            }
        }
        let node = |op: &u32| nodes[*op as usize];
        let edges = data.iter().copied().flatten();
        let mut edges: Vec<Edge> = edges.map(|(from, to)| (node(from), node(to))).collect();
        match order {
            Order::None => {}
            Order::Process => process_order(ops, &members, &mut edges),
            Order::Realtime => realtime_order(ops, &mut members, &mut edges),
        }
        let mut graph = Self {
            ops: members,
            nodes,
            starts: Vec::new(),
            targets: Vec::new(),
            components: Vec::new(),
            sizes: Vec::new(),
        };
        graph.connect(edges);
        graph.components = Tarjan::run(&graph);
        let count = graph.components.iter().max().map_or(0, |most| most + 1);
        graph.sizes = vec![0; count as usize];
        for (node, component) in graph.components.iter().enumerate() {
            if graph.ops[node] != NONE {
                graph.sizes[*component as usize] += 1;
            }
        }
        graph
    }

    fn connect(&mut self, mut edges: Vec<Edge>) {
        edges.sort_unstable();
        edges.dedup();
        self.starts = vec![0; self.ops.len() + 1];
        for (from, _) in &edges {
            self.starts[*from as usize + 1] += 1;
        }
        for node in 0..self.ops.len() {
            self.starts[node + 1] += self.starts[node];
        }
        self.targets = edges.into_iter().map(|(_, to)| to).collect();
    }

    fn targets(&self, node: u32) -> &[u32] {
        let node = node as usize;
        &self.targets[self.starts[node] as usize..self.starts[node + 1] as usize]
    }

    /// The component of an operation that is in the graph.
    pub(super) fn component(&self, op: u32) -> u32 {
        self.components[self.nodes[op as usize] as usize]
    }

    /// Whether an edge is part of a cycle.
    pub(super) fn joins(&self, (from, to): Edge) -> bool {
        let known = |op: u32| self.nodes[op as usize] != NONE;
        known(from) && known(to) && self.component(from) == self.component(to)
    }

    /// What operations may be part of a cycle, here or in a finer graph.
    pub(super) fn covered(&self, ops: &Ops) -> Covered {
        let mut spans: HashMap<u32, (u32, u32)> = HashMap::new();
        let mut members = vec![false; ops.rows.len()];
        for (node, op) in self.ops.iter().enumerate() {
            let component = self.components[node];
            if *op == NONE || self.sizes[component as usize] < 2 {
                continue;
            }
            members[*op as usize] = true;
            let row = ops.row(*op);
            let span = spans.entry(component).or_insert((NONE, 0));
            span.0 = span.0.min(row.completed);
            span.1 = span.1.max(row.invoked);
        }
        let mut between: Vec<(u32, u32)> = spans.into_values().collect();
        between.sort_unstable();
        // Of spans that overlap, their union: wider than need be, and quickly looked up.
        between.dedup_by(|next, kept| {
            let meets = next.0 <= kept.1;
            if meets {
                kept.1 = kept.1.max(next.1);
            }
            meets
        });
        for (op, row) in ops.rows.iter().enumerate() {
            let after = between.partition_point(|(from, _)| *from < row.invoked);
            let within = between[..after].last();
            members[op] |= within.is_some_and(|(_, to)| row.completed < *to);
        }
        Covered {
            empty: between.is_empty(),
            members,
        }
    }

    /// The shortest cycle through an edge that is part of one: its operations, and whether it is
    /// realtime that leads on from each.
    pub(super) fn cycle(&self, (from, to): Edge) -> Vec<(u32, bool)> {
        let (goal, start) = (self.nodes[from as usize], self.nodes[to as usize]);
        let component = self.components[goal as usize];
        // A moment costs nothing, an operation one: (cost, the node before).
        let mut reached: HashMap<u32, (u32, u32)> = HashMap::from([(start, (0, NONE))]);
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((node, cost)) = queue.pop_front() {
            if node == goal {
                break;
            }
            if reached[&node].0 < cost {
                continue;
            }
            for next in self.targets(node) {
                if self.components[*next as usize] != component {
                    continue;
                }
                let moment = self.ops[*next as usize] == NONE;
                let cost = if moment { cost } else { cost + 1 };
                if reached.get(next).is_none_or(|(known, _)| cost < *known) {
                    reached.insert(*next, (cost, node));
                    if moment {
                        queue.push_front((*next, cost));
                    } else {
                        queue.push_back((*next, cost));
                    }
                }
            }
        }
        self.path(goal, &reached)
    }

    fn path(&self, goal: u32, reached: &HashMap<u32, (u32, u32)>) -> Vec<(u32, bool)> {
        let mut path = vec![(self.ops[goal as usize], false)];
        let mut node = reached.get(&goal).map_or(NONE, |(_, before)| *before);
        let mut moments = false;
        while node != NONE {
            match self.ops[node as usize] {
                NONE => moments = true,
                op => {
                    path.push((op, moments));
                    moments = false;
                }
            }
            node = reached[&node].1;
        }
        path.reverse();
        path
    }
}

/// The operations that may be part of a cycle.
#[derive(Debug)]
pub(super) struct Covered {
    empty: bool,
    members: Vec<bool>,
}

impl Covered {
    pub(super) fn is_empty(&self) -> bool {
        self.empty
    }

    pub(super) fn contains(&self, op: u32) -> bool {
        self.members[op as usize]
    }
}

/// Each operation to the next one of its process. Members are in the order of completion.
fn process_order(ops: &Ops, members: &[u32], edges: &mut Vec<Edge>) {
    let mut last: HashMap<u32, u32> = HashMap::new();
    for (node, op) in members.iter().enumerate() {
        let node = small(node);
        if let Some(before) = last.insert(ops.row(*op).process, node) {
            edges.push((before, node));
        }
    }
}

fn realtime_order(ops: &Ops, members: &mut Vec<u32>, edges: &mut Vec<Edge>) {
    // (place in the history, whether it is a completion, node)
    let mut places: Vec<(u32, bool, u32)> = Vec::with_capacity(members.len() * 2);
    for (node, op) in members.iter().enumerate() {
        let row = ops.row(*op);
        places.push((row.invoked, false, small(node)));
        if row.outcome != Outcome::Info {
            places.push((row.completed, true, small(node)));
        }
    }
    places.sort_unstable();
    let mut now = NONE;
    for (_, completion, node) in places {
        if completion {
            let moment = small(members.len());
            members.push(NONE);
            edges.push((node, moment));
            if now != NONE {
                edges.push((now, moment));
            }
            now = moment;
        } else if now != NONE {
            edges.push((now, node));
        }
    }
}

/// Tarjan's algorithm, on a stack of its own: a chain of a million operations is no reason to run
/// out of the other one.
struct Tarjan<'a> {
    graph: &'a Graph,
    visited: u32,
    /// When a node was first visited; 0 is never.
    order: Vec<u32>,
    lowest: Vec<u32>,
    stack: Vec<u32>,
    components: Vec<u32>,
    found: u32,
}

impl<'a> Tarjan<'a> {
    fn run(graph: &'a Graph) -> Vec<u32> {
        let count = graph.ops.len();
        let mut tarjan = Self {
            graph,
            visited: 0,
            order: vec![0; count],
            lowest: vec![0; count],
            stack: Vec::new(),
            components: vec![NONE; count],
            found: 0,
        };
        for node in 0..small(count) {
            if tarjan.order[node as usize] == 0 {
                tarjan.from(node);
            }
        }
        tarjan.components
    }

    fn visit(&mut self, node: u32) {
        self.visited += 1;
        self.order[node as usize] = self.visited;
        self.lowest[node as usize] = self.visited;
        self.stack.push(node);
    }

    fn lower(&mut self, node: u32, to: u32) {
        let lowest = &mut self.lowest[node as usize];
        *lowest = (*lowest).min(to);
    }

    fn from(&mut self, root: u32) {
        self.visit(root);
        let mut path = vec![(root, 0_usize)];
        while let Some((node, nth)) = path.last_mut() {
            let (node, target) = (*node, self.graph.targets(*node).get(*nth).copied());
            *nth += 1;
            match target {
                Some(next) if self.order[next as usize] == 0 => {
                    self.visit(next);
                    path.push((next, 0));
                }
                Some(next) if self.components[next as usize] == NONE => {
                    self.lower(node, self.order[next as usize]);
                }
                Some(_) => {}
                None => {
                    path.pop();
                    if let Some((parent, _)) = path.last() {
                        self.lower(*parent, self.lowest[node as usize]);
                    }
                    if self.lowest[node as usize] == self.order[node as usize] {
                        self.close(node);
                    }
                }
            }
        }
    }

    /// Takes a component whose first node this is off the stack.
    fn close(&mut self, node: u32) {
        while let Some(member) = self.stack.pop() {
            self.components[member as usize] = self.found;
            if member == node {
                break;
            }
        }
        self.found += 1;
    }
}
