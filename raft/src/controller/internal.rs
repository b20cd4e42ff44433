//! The topics that are views' own logs, by their names.
//!
//! They are created by the system at their first use, with replication as far as there are nodes
//! and growing with them. Nobody else creates, deletes or writes to them, and their number of
//! partitions stays what it was, because it decides which partition an id belongs to.

use super::names::collision_key;

/// Names that begin so are kept for topics of the system to come.
const PREFIX: &str = "__trilog_";

/// One topic that is a view's own log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InternalTopic {
    /// Consumer groups and their offsets, by group id.
    Groups,
    /// Transactions, by transactional id.
    Transactions,
}

impl InternalTopic {
    /// Where Kafka has one for the same, its name: tools look for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Groups => "__consumer_offsets",
            Self::Transactions => "__transaction_state",
        }
    }

    /// The topic of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Groups, Self::Transactions]
            .into_iter()
            .find(|topic| topic.name() == name)
    }
}

/// Whether a name is the system's, or collides with one that is.
pub(super) fn is_reserved(name: &str) -> bool {
    let key = collision_key(name);
    InternalTopic::named(&key).is_some() || key.starts_with(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_system_and_what_collides_with_them_are_reserved() {
        for taken in ["__consumer_offsets", "__consumer.offsets", "__trilog_x"] {
            assert!(is_reserved(taken), "{taken}");
        }
        for free in ["_consumer_offsets", "__consumer_offsets2", "__other"] {
            assert!(!is_reserved(free), "{free}");
        }
        let groups = InternalTopic::Groups;
        assert_eq!(InternalTopic::named(groups.name()), Some(groups));
    }
}
