//! Groups as their owners see them: listed, described, deleted.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::types::{Description, GroupKind, GroupState, Listed, Listing};
use super::{Coordinator, GroupError, subscription};
use crate::view::group::command::DeleteGroup;
use crate::view::group::{GroupAction, Groups};

impl Coordinator {
    /// The groups this node coordinates, by id. A partition about to be taken over makes the
    /// answer one that is to be asked for again.
    pub fn list(&self) -> Result<Vec<Listing>, GroupError> {
        let listed = self.list_led();
        if listed.loading {
            Err(GroupError::Loading)
        } else {
            Ok(listed.groups)
        }
    }

    /// As [`Coordinator::list`], with the partitions the answer is about, for callers that put
    /// together what all nodes say.
    #[must_use]
    pub fn list_led(&self) -> Listed {
        let mut listed = Listed::default();
        // Before anybody has used a group there is none.
        let Ok(topic) = self.topic() else {
            return listed;
        };
        let mut all = BTreeMap::new();
        for (index, _) in (0..).zip(&topic.partitions) {
            listed.count = index + 1;
            let handle = match self.enter_at(&topic, index) {
                Ok(handle) => handle,
                Err(error) => {
                    listed.loading |= error == GroupError::Loading;
                    continue;
                }
            };
            listed.partitions.push(index);
            let lead = handle.lock();
            lead.partition.with_state(|state| {
                for (name, group) in state.groups().into_iter().flat_map(Groups::iter) {
                    let listing = Listing {
                        group: name.clone(),
                        protocol_type: group.membership().protocol_type.clone(),
                        state: GroupState::Empty,
                        kind: match group.consumers() {
                            Some(_) => GroupKind::Consumer,
                            None => GroupKind::Classic,
                        },
                        members: 0,
                    };
                    all.insert(name.clone(), listing);
                }
            });
            for (name, group) in lead.groups() {
                let listing = Listing {
                    group: name.clone(),
                    protocol_type: group.protocol_type().to_owned(),
                    state: group.state(),
                    kind: GroupKind::Classic,
                    members: group.member_count(),
                };
                all.insert(name.clone(), listing);
            }
            for (name, group) in lead.all_consumers() {
                let listing = Listing {
                    group: name.clone(),
                    protocol_type: subscription::CONSUMER.to_owned(),
                    state: group.state(),
                    kind: GroupKind::Consumer,
                    members: group.member_count(),
                };
                all.insert(name.clone(), listing);
            }
        }
        listed.groups = all.into_values().collect();
        listed
    }

    /// A group in which the members assign, or one without members.
    pub fn describe(&self, group: &str) -> Result<Description, GroupError> {
        let handle = self.enter(group)?;
        let mut lead = handle.lock();
        if lead.assigns(group) {
            return Err(GroupError::UnknownGroup);
        }
        let described = lead
            .find(group, Instant::now())
            .map(|group| group.describe());
        // Looked at, it need not stay in memory.
        lead.touch(group, |_| ());
        described.ok_or(GroupError::UnknownGroup)
    }

    /// Deletes a group that has no members, and its offsets.
    pub async fn delete(&self, group: &str) -> Result<(), GroupError> {
        let handle = self.enter(group)?;
        let (sent, term) = {
            let mut lead = handle.lock();
            if lead.assigns(group) {
                return Err(GroupError::NotEmpty);
            }
            match lead.find(group, Instant::now()).map(|group| group.state()) {
                None => return Err(GroupError::UnknownGroup),
                Some(GroupState::Empty) => {}
                Some(_) => {
                    // Looked at, it need not stay in memory; and its members' time runs.
                    lead.touch(group, |_| ());
                    return Err(GroupError::NotEmpty);
                }
            }
            let sent = lead.send(GroupAction::DeleteGroup(DeleteGroup {
                group: group.to_owned(),
            }));
            if sent.is_queued() {
                lead.delete(group);
            } else {
                lead.touch(group, |_| ());
            }
            (sent, lead.term)
        };
        let (this, group) = (self.clone(), group.to_owned());
        // A task of its own: whoever asked may be gone before it is committed.
        let deleted = tokio::spawn(async move {
            let queued = sent.is_queued();
            let outcome = this.committed(&group, term, sent).await;
            if queued {
                handle.lock().deleted(&group);
            }
            outcome
        });
        deleted.await.unwrap_or(Err(GroupError::Unknown))
    }
}
