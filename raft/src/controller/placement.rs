//! Where replicas go: to nodes that answer, over racks, then evenly over nodes, leaders evenly
//! among replicas.
//!
//! Pure and deterministic. Placing a new topic happens inside apply, so what it answers at one
//! feature level is frozen; moving replicas is decided outside and may become cleverer any time.

use std::collections::{BTreeMap, VecDeque};

use trilog_model::NodeId;

/// A node that may get replicas, with what it holds already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    /// Nodes without a rack count as a rack of their own.
    pub(super) rack: Option<String>,
    /// Not heard from lately: chosen last, leads last.
    pub(super) silent: bool,
    /// Of all topics.
    pub(super) total: Load,
    /// Of the topic in question.
    pub(super) topic: Load,
}

/// How much a node holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    pub(super) replicas: u64,
    /// Groups it is preferred to lead.
    pub(super) leaders: u64,
}

/// There are fewer candidates than replicas are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} nodes are wanted, {available} are there")]
pub(super) struct TooFewNodes {
    pub(super) wanted: u32,
    pub(super) available: u32,
}

/// Places `partitions` partitions on `replication` distinct nodes each, the leader first.
pub(super) fn place(
    candidates: &[Candidate],
    partitions: u32,
    replication: u32,
) -> Result<Vec<Vec<NodeId>>, TooFewNodes> {
    let wanted = usize::try_from(replication).unwrap_or(usize::MAX);
    if candidates.len() < wanted {
        return Err(TooFewNodes {
            wanted: replication,
            available: u32::try_from(candidates.len()).unwrap_or(u32::MAX),
        });
    }
    let mut candidates = candidates.to_vec();
    candidates.sort_by_key(|candidate| candidate.node);
    let mut sets = Vec::new();
    for _ in 0..partitions {
        let mut set = Vec::with_capacity(wanted);
        while set.len() < wanted {
            let Some(next) = best_addition(&candidates, &set) else {
                break;
            };
            candidates[next].total.replicas += 1;
            candidates[next].topic.replicas += 1;
            set.push(next);
        }
        put_leader_first(&mut candidates, &mut set);
        sets.push(set.into_iter().map(|at| candidates[at].node).collect());
    }
    even_leaders_of_topic(&candidates, &mut sets);
    Ok(sets)
}

/// The candidate that best joins those at `set`: from the rack least used, then the least loaded.
fn best_addition(candidates: &[Candidate], set: &[usize]) -> Option<usize> {
    let rack_use = |candidate: &Candidate| {
        set.iter()
            .filter(|at| candidate.rack.is_some() && candidates[**at].rack == candidate.rack)
            .count()
    };
    (0..candidates.len())
        .filter(|at| !set.contains(at))
        .min_by_key(|at| {
            let candidate = &candidates[*at];
            (
                candidate.silent,
                rack_use(candidate),
                candidate.topic.replicas,
                candidate.total.replicas,
                candidate.topic.leaders,
                candidate.total.leaders,
                candidate.node,
            )
        })
}

fn put_leader_first(candidates: &mut [Candidate], set: &mut [usize]) {
    let leader = (0..set.len()).min_by_key(|place| {
        let candidate = &candidates[set[*place]];
        (
            candidate.silent,
            candidate.topic.leaders,
            candidate.total.leaders,
            candidate.node,
        )
    });
    if let Some(place) = leader {
        set[..=place].rotate_right(1);
        candidates[set[0]].topic.leaders += 1;
        candidates[set[0]].total.leaders += 1;
    }
}

/// Mends what choosing leaders one by one left uneven within the new partitions.
fn even_leaders_of_topic(candidates: &[Candidate], sets: &mut [Vec<NodeId>]) {
    let counts = candidates
        .iter()
        .map(|candidate| (candidate.node, candidate.topic.leaders))
        .collect();
    let choices: Vec<LeaderChoice> = sets
        .iter()
        .map(|set| LeaderChoice {
            leader: set[0],
            options: set.clone(),
        })
        .collect();
    let silent = |node| candidates.iter().any(|c| c.node == node && c.silent);
    for (at, leader) in even_leaders(&choices, counts, usize::MAX, |_, _, to| !silent(to)) {
        if let Some(place) = sets[at].iter().position(|node| *node == leader) {
            sets[at][..=place].rotate_right(1);
        }
    }
}

/// A group that some nodes could lead.
#[derive(Clone, Debug)]
pub(super) struct LeaderChoice {
    pub(super) leader: NodeId,
    pub(super) options: Vec<NodeId>,
}

/// Changes of leaders, as (choice, new leader), that bring `counts` closest together, at most
/// about `limit` of them. Each step shifts one leadership along a chain of nodes from one with
/// many to one with at least two fewer; `allowed` may forbid a shift (choice, from, to).
///
/// Without restrictions and limit the result is optimal: no chain is left, so no assignment has
/// a smaller sum of squares.
pub(super) fn even_leaders(
    choices: &[LeaderChoice],
    mut counts: BTreeMap<NodeId, u64>,
    limit: usize,
    mut allowed: impl FnMut(usize, NodeId, NodeId) -> bool,
) -> BTreeMap<usize, NodeId> {
    let mut leaders: Vec<NodeId> = choices.iter().map(|choice| choice.leader).collect();
    let mut led: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
    for (at, leader) in leaders.iter().enumerate() {
        led.entry(*leader).or_default().push(at);
    }
    let mut changed = BTreeMap::new();
    let mut sources = busiest_first(&counts);
    while changed.len() < limit {
        let Some(from) = sources.pop_front() else {
            break;
        };
        let Some(chain) = shift_chain(from, choices, &led, &counts, &mut allowed) else {
            continue;
        };
        for Shift { choice, to } in &chain {
            let old = std::mem::replace(&mut leaders[*choice], *to);
            if let Some(list) = led.get_mut(&old) {
                list.retain(|at| at != choice);
            }
            led.entry(*to).or_default().push(*choice);
            changed.insert(*choice, *to);
        }
        if let (Some(first), Some(last)) = (counts.get(&from), chain.last()) {
            let less = first - 1;
            counts.insert(from, less);
            *counts.entry(last.to).or_default() += 1;
        }
        sources = busiest_first(&counts);
    }
    changed.retain(|at, leader| choices[*at].leader != *leader);
    changed
}

fn busiest_first(counts: &BTreeMap<NodeId, u64>) -> VecDeque<NodeId> {
    let mut nodes: Vec<(u64, NodeId)> =
        counts.iter().map(|(node, count)| (*count, *node)).collect();
    nodes.sort_by_key(|(count, node)| (std::cmp::Reverse(*count), *node));
    nodes.into_iter().map(|(_, node)| node).collect()
}

#[derive(Clone, Copy, Debug)]
struct Shift {
    choice: usize,
    to: NodeId,
}

/// The shortest chain of shifts from `from` to a node with at least two leaderships fewer.
fn shift_chain(
    from: NodeId,
    choices: &[LeaderChoice],
    led: &BTreeMap<NodeId, Vec<usize>>,
    counts: &BTreeMap<NodeId, u64>,
    allowed: &mut impl FnMut(usize, NodeId, NodeId) -> bool,
) -> Option<Vec<Shift>> {
    let most = *counts.get(&from)?;
    let mut reached: BTreeMap<NodeId, (NodeId, usize)> = BTreeMap::new();
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        for choice in led.get(&node).into_iter().flatten() {
            for to in &choices[*choice].options {
                let known = *to == from || reached.contains_key(to);
                let Some(count) = counts.get(to).filter(|_| !known) else {
                    continue;
                };
                if !allowed(*choice, node, *to) {
                    continue;
                }
                reached.insert(*to, (node, *choice));
                if count + 2 <= most {
                    return Some(chain_to(*to, from, &reached));
                }
                queue.push_back(*to);
            }
        }
    }
    None
}

fn chain_to(end: NodeId, from: NodeId, reached: &BTreeMap<NodeId, (NodeId, usize)>) -> Vec<Shift> {
    let mut chain = Vec::new();
    let mut to = end;
    while to != from {
        let Some((previous, choice)) = reached.get(&to) else {
            break;
        };
        chain.push(Shift {
            choice: *choice,
            to,
        });
        to = *previous;
    }
    chain.reverse();
    chain
}

/// The candidate to take over from a node that leaves a set: `rest` are the nodes that stay.
#[must_use]
pub(super) fn replacement(candidates: &[Candidate], rest: &[NodeId]) -> Option<NodeId> {
    let set: Vec<usize> = (0..candidates.len())
        .filter(|at| rest.contains(&candidates[*at].node))
        .collect();
    best_addition(candidates, &set).map(|at| candidates[at].node)
}

/// How many racks these nodes cover.
#[must_use]
pub(super) fn racks_covered<'a>(racks: impl IntoIterator<Item = Option<&'a str>>) -> usize {
    let mut named = std::collections::BTreeSet::new();
    let mut unnamed = 0;
    for rack in racks {
        match rack {
            Some(rack) => {
                named.insert(rack);
            }
            None => unnamed += 1,
        }
    }
    named.len() + unnamed
}

#[cfg(test)]
mod tests;
