//! How a data directory comes to belong to a cluster, decided from what the seeds say.
//!
//! # The protocol
//!
//! A node draws an identity when its data directory is first used and keeps it there, beside the
//! id of the cluster it belongs to, once it does. On start:
//!
//! 1. A directory with a cluster id is a member's. The node comes back as what it is; the seeds
//!    can only show that something is wrong ([`check_member`]).
//! 2. An empty directory asks all seeds who they are, over links that need no cluster yet, and
//!    asks again until the answers settle it ([`decide`]):
//!
//! ```text
//! a seed is clustered                                          join through it
//! none is, but one does not answer                             wait: it may hold the cluster
//! all answer and are empty, this is the seed of lowest id      found the cluster
//! all answer and are empty, this is another seed, or no seed   wait for the founder
//! no seeds are configured                                      found a cluster of one
//! two clusters, or two nodes of one number                     refuse: a human must look
//! ```
//!
//! 3. The founder writes a new cluster id into its directory, then forms the controller group
//!    alone, as replica incarnation 1, and proposes `Bootstrap` as its first command. If it
//!    crashes in between, its directory is no longer empty, and it carries on from there.
//! 4. A joiner has a seed propose `RegisterNode` with the joiner's identity. The answer names the
//!    cluster and the joiner's replica of the controller group, which it writes into its directory
//!    before it opens that replica. A repeated registration gets the same answer.
//! 5. A node that lost its disk is an empty directory with a new identity. Its number is taken by
//!    the old one, so registration is refused until an operator says that the old disk is gone;
//!    then `ReplaceNode` gives it new replicas for all it held.
//! 6. Whatever answers for another cluster is refused, and nothing is ever deleted for it.
//!
//! # Why it is safe
//!
//! A new cluster appears only if every seed, itself included, has an empty directory: while one
//! seed's directory survives, it answers as clustered or not at all, and both stop the founding.
//! Among seeds that see the same list, one alone has the lowest number. So every node must be
//! given the same seeds, and at least three where there are three nodes: whoever lists a single
//! seed and wipes it has told the cluster to begin anew (the others then refuse it as foreign).

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::NodeId;

use super::ids::{ClusterId, NodeIdentity};

/// A seed as configured, and what came of asking it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seed {
    pub address: String,
    pub answer: Answer,
}

/// What a seed said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing, or nothing that can be read, for this reason.
    Silent(String),
    /// Its directory belongs to no cluster.
    Empty {
        node: NodeId,
        identity: NodeIdentity,
    },
    /// It belongs to this cluster.
    Clustered {
        node: NodeId,
        identity: NodeIdentity,
        cluster: ClusterId,
    },
}

impl Answer {
    fn who(&self) -> Option<(NodeId, NodeIdentity)> {
        match self {
            Self::Silent(_) => None,
            Self::Empty { node, identity } | Self::Clustered { node, identity, .. } => {
                Some((*node, *identity))
            }
        }
    }
}

/// What an empty node does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Found the cluster.
    Initialize,
    /// Ask this seed to be taken into its cluster.
    Join { address: String, cluster: ClusterId },
    /// Ask all seeds again in a moment.
    Wait(Waiting),
    /// Stop: asking again would not help.
    Refuse(Refusal),
}

/// What an empty node waits for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Waiting {
    #[error("seed {address} does not answer ({reason}); it may belong to the cluster already")]
    Silent { address: String, reason: String },
    #[error("node {founder} founds the cluster")]
    Founder { founder: NodeId },
    #[error("no seed has founded the cluster yet, and this node is none of the seeds")]
    NoSeed,
}

/// Why a node must not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the seeds belong to different clusters: {first} ({first_cluster}) and {second} ({second_cluster})"
    )]
    TwoClusters {
        first: String,
        first_cluster: ClusterId,
        second: String,
        second_cluster: ClusterId,
    },
    #[error("node number {node} is in use twice: by this node and by the one at {address}")]
    MyNumberTaken { node: NodeId, address: String },
    #[error("node number {node} is in use twice: at {first} and at {second}")]
    NumberTaken {
        node: NodeId,
        first: String,
        second: String,
    },
    #[error(
        "this data directory belongs to cluster {ours}, seed {address} to cluster {theirs}; nothing was changed"
    )]
    ForeignCluster {
        ours: ClusterId,
        theirs: ClusterId,
        address: String,
    },
}

/// Decides for a node with an empty directory.
#[must_use]
pub fn decide(node: NodeId, identity: NodeIdentity, seeds: &[Seed]) -> Decision {
    if let Err(refusal) = check_numbers(node, identity, seeds) {
        return Decision::Refuse(refusal);
    }
    match find_cluster(seeds) {
        Err(refusal) => return Decision::Refuse(refusal),
        Ok(Some((address, cluster))) => return Decision::Join { address, cluster },
        Ok(None) => {}
    }
    for seed in seeds {
        if let Answer::Silent(reason) = &seed.answer {
            return Decision::Wait(Waiting::Silent {
                address: seed.address.clone(),
                reason: reason.clone(),
            });
        }
    }
    let empty: BTreeSet<(NodeId, NodeIdentity)> =
        seeds.iter().filter_map(|seed| seed.answer.who()).collect();
    match empty.first() {
        None => Decision::Initialize,
        Some((founder, _)) if *founder == node => Decision::Initialize,
        Some((founder, _)) if empty.contains(&(node, identity)) => {
            Decision::Wait(Waiting::Founder { founder: *founder })
        }
        Some(_) => Decision::Wait(Waiting::NoSeed),
    }
}

/// Checks what the seeds say against a directory that belongs to `cluster`. Silence is no
/// objection, nor are seeds that are empty: they may have been wiped, or be about to join.
pub fn check_member(
    node: NodeId,
    identity: NodeIdentity,
    cluster: ClusterId,
    seeds: &[Seed],
) -> Result<(), Refusal> {
    check_numbers(node, identity, seeds)?;
    for seed in seeds {
        match &seed.answer {
            Answer::Clustered {
                cluster: theirs, ..
            } if *theirs != cluster => {
                return Err(Refusal::ForeignCluster {
                    ours: cluster,
                    theirs: *theirs,
                    address: seed.address.clone(),
                });
            }
            _ => {}
        }
    }
    Ok(())
}

/// No number may stand for two directories. One node under two addresses is no harm.
fn check_numbers(node: NodeId, identity: NodeIdentity, seeds: &[Seed]) -> Result<(), Refusal> {
    let mut known: BTreeMap<NodeId, (NodeIdentity, &str)> = BTreeMap::new();
    for seed in seeds {
        let Some((theirs, their_identity)) = seed.answer.who() else {
            continue;
        };
        if theirs == node && their_identity != identity {
            return Err(Refusal::MyNumberTaken {
                node,
                address: seed.address.clone(),
            });
        }
        let (first_identity, first) = known
            .entry(theirs)
            .or_insert((their_identity, &seed.address));
        if *first_identity != their_identity {
            return Err(Refusal::NumberTaken {
                node: theirs,
                first: (*first).to_owned(),
                second: seed.address.clone(),
            });
        }
    }
    Ok(())
}

/// The one cluster the seeds belong to, and the first of them that does.
fn find_cluster(seeds: &[Seed]) -> Result<Option<(String, ClusterId)>, Refusal> {
    let mut found: Option<(&Seed, ClusterId)> = None;
    for seed in seeds {
        let Answer::Clustered { cluster, .. } = &seed.answer else {
            continue;
        };
        match found {
            None => found = Some((seed, *cluster)),
            Some((first, first_cluster)) if first_cluster != *cluster => {
                return Err(Refusal::TwoClusters {
                    first: first.address.clone(),
                    first_cluster,
                    second: seed.address.clone(),
                    second_cluster: *cluster,
                });
            }
            Some(_) => {}
        }
    }
    Ok(found.map(|(seed, cluster)| (seed.address.clone(), cluster)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One seed of a table: `1` node 1, empty; `1@7` node 1 in cluster 7; `1'` node 1 with
    /// another identity; `-` silent. Addresses are `a`, `b`, `c`, in order.
    fn seeds(table: &str) -> Vec<Seed> {
        let addresses = ["a", "b", "c", "d"];
        table
            .split_whitespace()
            .zip(addresses)
            .map(|(text, address)| Seed {
                address: address.to_owned(),
                answer: answer(text),
            })
            .collect()
    }

    fn answer(text: &str) -> Answer {
        let (who, cluster) = match text.split_once('@') {
            Some((who, cluster)) => (who, Some(cluster.parse().unwrap())),
            None => (text, None),
        };
        if who == "-" {
            return Answer::Silent("connection refused".to_owned());
        }
        let number: u32 = who.trim_end_matches('\'').parse().unwrap();
        let node = NodeId(number);
        let identity = if who.ends_with('\'') {
            identity(number + 100)
        } else {
            identity(number)
        };
        match cluster {
            None => Answer::Empty { node, identity },
            Some(number) => Answer::Clustered {
                node,
                identity,
                cluster: cluster_id(number),
            },
        }
    }

    fn identity(number: u32) -> NodeIdentity {
        NodeIdentity::from_bytes([u8::try_from(number).unwrap(); 16]).unwrap()
    }

    fn cluster_id(number: u8) -> ClusterId {
        ClusterId::from_bytes([number; 16]).unwrap()
    }

    /// `init`, `join a@7`, `wait` or `refuse`, as node `node`.
    fn told(node: u32, table: &str) -> String {
        match decide(NodeId(node), identity(node), &seeds(table)) {
            Decision::Initialize => "init".to_owned(),
            Decision::Join { address, cluster } => {
                format!("join {address}@{}", cluster.as_bytes()[0])
            }
            Decision::Wait(_) => "wait".to_owned(),
            Decision::Refuse(_) => "refuse".to_owned(),
        }
    }

    #[test]
    fn an_empty_node_decides_by_the_table() {
        for (node, table, expect) in [
            // No seeds: a cluster of one.
            (1, "", "init"),
            // A new cluster: the lowest number founds it, once all have answered.
            (1, "1 2 3", "init"),
            (2, "1 2 3", "wait"),
            (3, "1 2 3", "wait"),
            (2, "3 2", "init"),
            (1, "1 2 -", "wait"),
            (1, "1 - -", "wait"),
            (1, "- - -", "wait"),
            (1, "1", "init"),
            // The founder has founded; the others join.
            (2, "1@7 2 3", "join a@7"),
            (3, "1@7 2@7 3", "join a@7"),
            // One wiped seed, with the others there, half there, and away.
            (1, "1 2@7 3@7", "join b@7"),
            (1, "1 - 3@7", "join c@7"),
            (1, "1 - -", "wait"),
            // Two wiped seeds: the third one's word counts, and its silence too.
            (1, "1 2 3@7", "join c@7"),
            (2, "1 2 3@7", "join c@7"),
            (1, "1 2 -", "wait"),
            (2, "1 2 -", "wait"),
            // A node that is no seed never founds.
            (9, "1 2 3", "wait"),
            (9, "10 11", "wait"),
            (9, "1@7 2 -", "join a@7"),
            (9, "- -", "wait"),
            // Two clusters; two directories of one number.
            (3, "1@7 2@8 3", "refuse"),
            (3, "1@7 - 3@8", "refuse"),
            (1, "1' 2 3", "refuse"),
            (1, "1'@7 2@7 3@7", "refuse"),
            (1, "1 2 2'", "refuse"),
            (1, "1 2@7 2'@7", "refuse"),
            // One node under two addresses, and oneself under a third.
            (1, "1 1 2", "init"),
            (2, "1@7 1@7 2", "join a@7"),
        ] {
            assert_eq!(told(node, table), expect, "node {node}, seeds {table:?}");
        }
    }

    #[test]
    fn a_member_objects_to_foreign_clusters_and_doubled_numbers_only() {
        for (table, fine) in [
            ("", true),
            ("1@7 2@7 -", true),
            ("- - -", true),
            ("1@7 2 3", true),
            ("1@7 2@8", false),
            ("1'@7 2@7", false),
            ("1' 2@7", false),
        ] {
            let checked = check_member(NodeId(1), identity(1), cluster_id(7), &seeds(table));
            assert_eq!(checked.is_ok(), fine, "{table:?}: {checked:?}");
        }
    }

    #[test]
    fn reasons_name_who_and_why() {
        let waiting = decide(NodeId(1), identity(1), &seeds("1 -"));
        let Decision::Wait(reason) = waiting else {
            panic!("not waiting");
        };
        assert_eq!(
            reason.to_string(),
            "seed b does not answer (connection refused); it may belong to the cluster already"
        );
        let refusal = decide(NodeId(1), identity(1), &seeds("1'"));
        let Decision::Refuse(reason) = refusal else {
            panic!("not refused");
        };
        assert_eq!(
            reason.to_string(),
            "node number 1 is in use twice: by this node and by the one at a"
        );
    }

    proptest! {
        /// Nodes that share a list of seeds never found two clusters, nor one beside another,
        /// however many directories were wiped and whoever hears whom.
        #[test]
        fn at_most_one_cluster_is_ever_founded(
            clustered in prop::collection::vec(any::<bool>(), 1..4),
            heard in prop::collection::vec(prop::collection::vec(any::<bool>(), 4), 4),
        ) {
            let answers: Vec<Seed> = (1..)
                .zip(&clustered)
                .map(|(number, clustered): (u32, _)| Seed {
                    address: number.to_string(),
                    answer: answer(&format!("{number}{}", if *clustered { "@7" } else { "" })),
                })
                .collect();
            let mut founders = 0;
            for at in (0..clustered.len()).filter(|at| !clustered[*at]) {
                let number = u32::try_from(at + 1).unwrap();
                let mut seen = answers.clone();
                for (other, seed) in seen.iter_mut().enumerate() {
                    if other != at && !heard[at][other] {
                        seed.answer = Answer::Silent("cut off".to_owned());
                    }
                }
                if decide(NodeId(number), identity(number), &seen) == Decision::Initialize {
                    founders += 1;
                }
            }
            prop_assert!(founders <= usize::from(!clustered.contains(&true)));
        }
    }
}
