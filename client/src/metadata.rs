//! What the client believes about topics, partitions and leaders. Belief is corrected by whoever
//! finds it wrong: a refusal that names the leader, or a fresh description.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::time::Instant;
use trilog_wire::v1::{DescribeTopicsResponse, Leader, described_topic};

use crate::error::{Error, Failure};

/// One topic as last described.
#[derive(Clone, Debug)]
pub(crate) struct TopicView {
    pub(crate) id: Bytes,
    pub(crate) partitions: Vec<PartitionView>,
    pub(crate) described_at: Instant,
}

/// Who leads a partition, as far as is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionView {
    leader: u32,
    term: u64,
}

impl TopicView {
    pub(crate) fn partition_count(&self) -> u32 {
        u32::try_from(self.partitions.len()).unwrap_or(u32::MAX)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Metadata {
    state: Mutex<State>,
    /// Held by whoever asks the cluster, so that many who wait ask once.
    pub(crate) asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// gRPC addresses by node.
    nodes: BTreeMap<u32, String>,
    topics: BTreeMap<String, Arc<TopicView>>,
}

impl Metadata {
    pub(crate) fn topic(&self, name: &str) -> Option<Arc<TopicView>> {
        self.lock().topics.get(name).cloned()
    }

    /// The address of a partition's leader, if both are known.
    pub(crate) fn leader_address(&self, topic: &str, partition: u32) -> Option<String> {
        let state = self.lock();
        let view = state.topics.get(topic)?;
        let place = usize::try_from(partition).ok()?;
        let leader = view.partitions.get(place)?.leader;
        state.nodes.get(&leader).cloned()
    }

    pub(crate) fn node_addresses(&self) -> Vec<String> {
        self.lock().nodes.values().cloned().collect()
    }

    /// Takes over a description; the view of `topic`, or why there is none.
    pub(crate) fn learn(
        &self,
        topic: &str,
        described: DescribeTopicsResponse,
    ) -> Result<Arc<TopicView>, Failure> {
        let mut state = self.lock();
        for node in described.nodes {
            if !node.address.is_empty() {
                state.nodes.insert(node.node, node.address);
            }
        }
        let result = described
            .topics
            .into_iter()
            .find(|described| described.name == topic)
            .and_then(|described| described.result);
        let description = match result {
            Some(described_topic::Result::Topic(description)) => description,
            Some(described_topic::Result::Error(error)) => {
                state.topics.remove(topic);
                return Err(error.into());
            }
            None => return Err(Failure::retry("a node left the topic out of its answer")),
        };
        let mut partitions = description.partitions;
        partitions.sort_by_key(|partition| partition.partition);
        let known = state.topics.get(topic);
        let partitions = partitions
            .iter()
            .enumerate()
            .map(|(place, partition)| {
                let told = PartitionView {
                    leader: partition.leader,
                    term: partition.term,
                };
                // The node that answered may lag behind what a leader said itself.
                let heard = known
                    .filter(|view| view.id == description.id)
                    .and_then(|view| view.partitions.get(place))
                    .copied();
                heard.filter(|heard| heard.term > told.term).unwrap_or(told)
            })
            .collect();
        let view = Arc::new(TopicView {
            id: description.id,
            partitions,
            described_at: Instant::now(),
        });
        state.topics.insert(topic.to_owned(), Arc::clone(&view));
        Ok(view)
    }

    /// Takes a refusing node's word for who leads, unless something newer is known; a term of zero
    /// is one the node did not know. Tells whether that changed anything.
    pub(crate) fn learn_leader(&self, topic: &str, partition: u32, leader: &Leader) -> bool {
        let mut state = self.lock();
        if !leader.address.is_empty() {
            state.nodes.insert(leader.node, leader.address.clone());
        }
        let Some(view) = state.topics.get_mut(topic) else {
            return false;
        };
        let Ok(place) = usize::try_from(partition) else {
            return false;
        };
        let current = view.partitions.get(place).copied();
        let changes = current.is_some_and(|current| {
            let newer = leader.term == 0 || leader.term >= current.term;
            leader.node != 0 && newer && leader.node != current.leader
        });
        if changes && let Some(slot) = Arc::make_mut(view).partitions.get_mut(place) {
            *slot = PartitionView {
                leader: leader.node,
                term: slot.term.max(leader.term),
            };
        }
        changes
    }

    /// Forgets a topic that is no longer the one of its name.
    pub(crate) fn forget(&self, topic: &str, id: &[u8]) {
        let mut state = self.lock();
        if state.topics.get(topic).is_some_and(|view| view.id == id) {
            state.topics.remove(topic);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Checks that a partition exists.
pub(crate) fn check_partition(topic: &str, partition: u32, view: &TopicView) -> Result<(), Error> {
    let partitions = view.partition_count();
    if partition < partitions {
        return Ok(());
    }
    Err(Error::NoSuchPartition {
        topic: topic.to_owned(),
        partition,
        partitions,
    })
}

#[cfg(test)]
mod tests {
    use trilog_wire::v1::{DescribedTopic, NodeAddress, PartitionDescription, TopicDescription};

    use super::*;

    fn description(id: &'static [u8], leaders: &[(u32, u64)]) -> DescribeTopicsResponse {
        let partition = |(place, &(leader, term)): (usize, &(u32, u64))| PartitionDescription {
            partition: u32::try_from(place).unwrap(),
            leader,
            term,
            ..PartitionDescription::default()
        };
        let topic = TopicDescription {
            name: "t".into(),
            id: Bytes::from_static(id),
            partitions: leaders.iter().enumerate().map(partition).collect(),
            ..TopicDescription::default()
        };
        let node = |node: u32| NodeAddress {
            node,
            address: format!("node{node}:1"),
        };
        DescribeTopicsResponse {
            topics: vec![DescribedTopic {
                name: "t".into(),
                result: Some(described_topic::Result::Topic(topic)),
            }],
            nodes: (1..4).map(node).collect(),
        }
    }

    fn leader(node: u32, term: u64) -> Leader {
        Leader {
            node,
            address: format!("node{node}:1"),
            term,
        }
    }

    #[tokio::test]
    async fn a_leaders_own_word_outlives_an_older_description() {
        let metadata = Metadata::default();
        metadata.learn("t", description(b"1", &[(1, 5)])).unwrap();
        assert!(metadata.learn_leader("t", 0, &leader(2, 6)));
        metadata.learn("t", description(b"1", &[(1, 5)])).unwrap();
        assert_eq!(metadata.leader_address("t", 0).unwrap(), "node2:1");
        metadata.learn("t", description(b"1", &[(3, 7)])).unwrap();
        assert_eq!(metadata.leader_address("t", 0).unwrap(), "node3:1");
    }

    #[tokio::test]
    async fn an_older_term_or_no_leader_changes_nothing() {
        let metadata = Metadata::default();
        metadata.learn("t", description(b"1", &[(1, 5)])).unwrap();
        assert!(!metadata.learn_leader("t", 0, &leader(2, 4)));
        assert!(!metadata.learn_leader("t", 0, &leader(0, 9)));
        assert!(!metadata.learn_leader("t", 7, &leader(2, 9)));
        assert_eq!(metadata.leader_address("t", 0).unwrap(), "node1:1");
        assert!(
            metadata.learn_leader("t", 0, &leader(3, 0)),
            "of no known term"
        );
        assert_eq!(metadata.leader_address("t", 0).unwrap(), "node3:1");
    }

    #[tokio::test]
    async fn a_topic_created_anew_is_believed_at_once() {
        let metadata = Metadata::default();
        metadata.learn("t", description(b"1", &[(1, 5)])).unwrap();
        metadata.learn("t", description(b"2", &[(2, 1)])).unwrap();
        assert_eq!(metadata.leader_address("t", 0).unwrap(), "node2:1");
    }
}
