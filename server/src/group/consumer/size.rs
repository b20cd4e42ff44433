//! How large a group of consumers is, and may come to be with the topics it wants: known before
//! anything changes, so that only who asks for too much is refused, and what is committed always
//! fits a command.

use super::Sizes;
use super::assign::Part;
use super::members::Member;

/// What a group may take as stored when somebody asks for more.
pub(super) const MAX_ASKED: usize = 2 << 20;
/// What it may come to when its topics grow; partitions beyond that are not assigned.
pub(super) const MAX_STORED: usize = 3 << 20;

/// What a list of a topic's partitions takes as stored, beside the partitions.
const LIST: usize = 26;
/// A partition in such a list.
const LISTED: usize = 3;
/// A partition in memory.
const HELD: usize = 32;
/// What a group takes beside everything else.
const BASE: usize = 64;

/// See the module's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// At most, whoever comes to hold which of the partitions.
    pub(super) stored: usize,
    pub(super) memory: usize,
}

impl Size {
    /// Of so many members who have said so much and share these topics.
    pub(super) fn of(texts: usize, members: usize, sizes: &Sizes) -> Self {
        let mut size = Self {
            stored: BASE + texts,
            memory: BASE + 2 * texts,
        };
        for count in sizes.values() {
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            // Each is in one member's target, and held by one, who gives it up or does not.
            let lists = count.min(members).saturating_mul(3 * LIST);
            let listed = count.saturating_mul(2 * LISTED).saturating_add(LIST);
            size.stored = size.stored.saturating_add(lists).saturating_add(listed);
            size.memory = size.memory.saturating_add(count.saturating_mul(2 * HELD));
        }
        size
    }

    /// What is held beside these topics: of such as are gone, or wanted no more.
    pub(super) fn beside<'a>(
        self,
        sizes: &Sizes,
        members: impl Iterator<Item = &'a Member>,
    ) -> Self {
        let outside = |part: &&Part| sizes.get(&part.0).is_none_or(|count| part.1 >= *count);
        let held = members.flat_map(|member| [&member.assigned, &member.revoking]);
        let mut size = self;
        for parts in held {
            let mut topic = None;
            for part in parts.iter().filter(outside) {
                if topic.replace(part.0) != Some(part.0) {
                    size.stored += LIST;
                }
                size.stored += LISTED;
                size.memory += HELD;
            }
        }
        size
    }
}
