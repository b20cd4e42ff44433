//! Identities and positions. Each meaningful integer is a type of its own, so that a Raft index
//! can never be passed where a Kafka offset is meant.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The bare number.
            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }

            /// The value after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A server process of the cluster, numbered by its operator; never zero.
    NodeId(u32)
}
number! {
    /// One Raft group: a partition, or the controller. Assigned once and never reused.
    GroupId(u64)
}
number! {
    /// The place of an entry in a group's Raft log; counts entries, not records. Starts at zero.
    LogIndex(u64)
}
number! {
    /// The place of a record in a partition, as Kafka counts it; only records consume offsets.
    Offset(u64)
}
number! {
    /// A Raft term, which is also the Kafka leader epoch.
    Term(u64)
}

impl GroupId {
    /// The group that holds the cluster's own metadata.
    pub const CONTROLLER: Self = Self(1);
}

impl Offset {
    /// The offset `records` places further on.
    #[must_use]
    pub const fn plus(self, records: u64) -> Self {
        Self(self.0 + records)
    }
}

/// A replica of one group: the node that holds it and the incarnation the controller gave it.
///
/// A replica placed anew on the same node gets a higher incarnation, so that a vote or a message
/// of its wiped predecessor can never be taken for its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

impl ReplicaId {
    #[must_use]
    pub const fn new(node: NodeId, incarnation: u32) -> Self {
        Self(((node.0 as u64) << 32) | incarnation as u64)
    }

    #[must_use]
    pub const fn node(self) -> NodeId {
        NodeId((self.0 >> 32) as u32)
    }

    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is what is asked for"
    )]
    pub const fn incarnation(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.node(), self.incarnation())
    }
}

/// The identity of a log entry: two entries with equal term and index are the same entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId {
    pub term: Term,
    pub index: LogIndex,
}

impl EntryId {
    #[must_use]
    pub const fn new(term: u64, index: u64) -> Self {
        Self {
            term: Term(term),
            index: LogIndex(index),
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replica_id_keeps_node_and_incarnation_apart() {
        let replica = ReplicaId::new(NodeId(7), u32::MAX);
        assert_eq!(replica.node(), NodeId(7));
        assert_eq!(replica.incarnation(), u32::MAX);
        assert_eq!(replica.to_string(), "7.4294967295");
    }

    #[test]
    fn entries_order_by_term_before_index() {
        assert!(EntryId::new(1, 9) < EntryId::new(2, 3));
    }
}
