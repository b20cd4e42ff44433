use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn candidates(racks: &[Option<u8>]) -> Vec<Candidate> {
    (1..)
        .zip(racks)
        .map(|(node, rack)| Candidate {
            node: NodeId(node),
            rack: rack.map(|rack| format!("rack-{rack}")),
            silent: false,
            total: Load::default(),
            topic: Load::default(),
        })
        .collect()
}

/// Per node: (replicas, leaders).
fn counts(candidates: &[Candidate], sets: &[Vec<NodeId>]) -> BTreeMap<NodeId, (u64, u64)> {
    let mut counts: BTreeMap<NodeId, (u64, u64)> = candidates
        .iter()
        .map(|candidate| (candidate.node, (0, 0)))
        .collect();
    for set in sets {
        for node in set {
            counts.get_mut(node).unwrap().0 += 1;
        }
        counts.get_mut(&set[0]).unwrap().1 += 1;
    }
    counts
}

fn spread(values: impl Iterator<Item = u64> + Clone) -> u64 {
    values.clone().max().unwrap_or(0) - values.min().unwrap_or(0)
}

#[test]
fn three_nodes_share_leaders_of_three_replicas() {
    let nodes = candidates(&[None; 3]);
    let sets = place(&nodes, 6, 3).unwrap();
    for (_, (replicas, leaders)) in counts(&nodes, &sets) {
        assert_eq!((replicas, leaders), (6, 2));
    }
}

#[test]
fn too_few_nodes_are_counted() {
    assert_eq!(
        place(&candidates(&[None; 2]), 1, 3),
        Err(TooFewNodes {
            wanted: 3,
            available: 2
        })
    );
}

#[test]
fn single_partitions_go_where_the_least_is() {
    let mut nodes = candidates(&[None; 4]);
    nodes[0].total.replicas = 5;
    nodes[1].total.replicas = 2;
    nodes[2].total.replicas = 1;
    nodes[3].total.replicas = 3;
    assert_eq!(place(&nodes, 1, 1).unwrap(), [[NodeId(3)]]);
    assert_eq!(
        place(&nodes, 1, 2).unwrap()[0]
            .iter()
            .copied()
            .collect::<BTreeSet<_>>(),
        BTreeSet::from([NodeId(2), NodeId(3)])
    );
}

#[test]
fn silent_nodes_are_chosen_last_and_do_not_lead() {
    let mut nodes = candidates(&[Some(1), Some(1), Some(2)]);
    nodes[2].silent = true;
    for set in place(&nodes, 6, 2).unwrap() {
        assert!(!set.contains(&NodeId(3)), "{set:?}");
    }
    for set in place(&nodes, 6, 3).unwrap() {
        assert_ne!(set[0], NodeId(3));
    }
}

#[test]
fn a_replacement_prefers_a_rack_that_is_not_used_yet() {
    let mut nodes = candidates(&[Some(1), Some(1), Some(2), Some(3)]);
    nodes[3].total.replicas = 100;
    assert_eq!(
        replacement(&nodes, &[NodeId(1), NodeId(3)]),
        Some(NodeId(4))
    );
    assert_eq!(
        replacement(&nodes, &[NodeId(1), NodeId(3), NodeId(4)]),
        Some(NodeId(2))
    );
    assert_eq!(
        replacement(&nodes, &[NodeId(1), NodeId(2), NodeId(3), NodeId(4)]),
        None
    );
}

#[test]
fn a_leadership_moves_along_a_chain_when_no_single_shift_helps() {
    // 1 leads three groups that only 2 could lead instead; 2 leads one that 3 could lead.
    let choice = |leader, options: &[u32]| LeaderChoice {
        leader: NodeId(leader),
        options: options.iter().copied().map(NodeId).collect(),
    };
    let choices = [choice(1, &[1, 2]), choice(1, &[1, 2]), choice(2, &[2, 3])];
    let counts = BTreeMap::from([(NodeId(1), 2), (NodeId(2), 1), (NodeId(3), 0)]);
    let moved = even_leaders(&choices, counts, usize::MAX, |_, _, _| true);
    assert_eq!(moved.len(), 2);
    assert_eq!(moved.get(&2), Some(&NodeId(3)));
}

proptest! {
    #[test]
    fn replicas_are_distinct_and_spread_over_racks_and_nodes(
        racks in prop::collection::vec(prop::option::of(0u8..4), 1..9),
        partitions in 1u32..40,
        replication in 1u32..5,
    ) {
        let nodes = candidates(&racks);
        let Ok(sets) = place(&nodes, partitions, replication) else {
            prop_assert!(nodes.len() < replication as usize);
            return Ok(());
        };
        let rack_of = |node: &NodeId| {
            nodes.iter().find(|c| c.node == *node).and_then(|c| c.rack.as_deref())
        };
        let all_racks = racks_covered(nodes.iter().map(|c| c.rack.as_deref()));
        for set in &sets {
            let distinct: BTreeSet<_> = set.iter().collect();
            prop_assert_eq!(distinct.len(), replication as usize);
            prop_assert_eq!(
                racks_covered(set.iter().map(rack_of)),
                all_racks.min(replication as usize)
            );
        }
        prop_assert_eq!(sets.len(), partitions as usize);
        prop_assert_eq!(place(&nodes, partitions, replication).unwrap(), sets);
    }

    #[test]
    fn without_racks_replicas_and_leaders_differ_by_at_most_one(
        nodes in 1usize..9,
        partitions in 1u32..60,
        replication in 1u32..6,
    ) {
        let nodes = candidates(&vec![None; nodes]);
        prop_assume!(nodes.len() >= replication as usize);
        let sets = place(&nodes, partitions, replication).unwrap();
        let counts = counts(&nodes, &sets);
        prop_assert!(spread(counts.values().map(|c| c.0)) <= 1, "{counts:?}");
        prop_assert!(spread(counts.values().map(|c| c.1)) <= 1, "{counts:?}");
    }

    #[test]
    fn leaders_are_evened_as_far_as_brute_force_can(
        raw in prop::collection::vec(prop::collection::btree_set(1u32..5, 1..4), 1..7),
    ) {
        let choices: Vec<LeaderChoice> = raw
            .iter()
            .map(|set| LeaderChoice {
                leader: NodeId(*set.iter().next().unwrap()),
                options: set.iter().copied().map(NodeId).collect(),
            })
            .collect();
        let tally = |leaders: &[NodeId]| {
            let mut counts: BTreeMap<NodeId, u64> =
                (1..5).map(|node| (NodeId(node), 0)).collect();
            for leader in leaders {
                *counts.get_mut(leader).unwrap() += 1;
            }
            counts
        };
        let squares = |leaders: &[NodeId]| -> u64 {
            tally(leaders).values().map(|count| count * count).sum()
        };
        let mut leaders: Vec<NodeId> = choices.iter().map(|choice| choice.leader).collect();
        for (at, leader) in even_leaders(&choices, tally(&leaders), usize::MAX, |_, _, _| true) {
            leaders[at] = leader;
        }
        let mut best = u64::MAX;
        let mut pick = vec![0; choices.len()];
        loop {
            let trial: Vec<NodeId> = pick
                .iter()
                .zip(&choices)
                .map(|(at, choice): (&usize, _)| choice.options[*at])
                .collect();
            best = best.min(squares(&trial));
            let Some(at) = (0..pick.len()).find(|at| pick[*at] + 1 < choices[*at].options.len())
            else {
                break;
            };
            pick[at] += 1;
            pick[..at].fill(0);
        }
        prop_assert_eq!(squares(&leaders), best);
    }
}
