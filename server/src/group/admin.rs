//! Groups as their owners see them: listed, described, deleted.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::types::{Description, GroupState, Listing};
use super::{Coordinator, GroupError};
use crate::view::group::command::DeleteGroup;
use crate::view::group::{GroupAction, Groups};

impl Coordinator {
    /// The groups this node coordinates, by id. A partition about to be taken over makes the
    /// answer one that is to be asked for again.
    pub fn list(&self) -> Result<Vec<Listing>, GroupError> {
        // Before anybody has used a group there is none.
        let Ok(topic) = self.topic() else {
            return Ok(Vec::new());
        };
        let mut all = BTreeMap::new();
        for (index, _) in (0..).zip(&topic.partitions) {
            let handle = match self.enter_at(&topic, index) {
                Ok(handle) => handle,
                Err(GroupError::Loading) => return Err(GroupError::Loading),
                Err(_) => continue,
            };
            let lead = handle.lock();
            lead.partition.with_state(|state| {
                for (name, group) in state.groups().into_iter().flat_map(Groups::iter) {
                    let listing = Listing {
                        group: name.clone(),
                        protocol_type: group.membership().protocol_type.clone(),
                        state: GroupState::Empty,
                    };
                    all.insert(name.clone(), listing);
                }
            });
            for (name, group) in lead.groups() {
                let listing = Listing {
                    group: name.clone(),
                    protocol_type: group.protocol_type().to_owned(),
                    state: group.state(),
                };
                all.insert(name.clone(), listing);
            }
        }
        Ok(all.into_values().collect())
    }

    pub fn describe(&self, group: &str) -> Result<Description, GroupError> {
        let handle = self.enter(group)?;
        let mut lead = handle.lock();
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
            match lead.find(group, Instant::now()).map(|group| group.state()) {
                None => return Err(GroupError::UnknownGroup),
                Some(GroupState::Empty) => {}
                Some(_) => return Err(GroupError::NotEmpty),
            }
            let sent = lead.send(GroupAction::DeleteGroup(DeleteGroup {
                group: group.to_owned(),
            }));
            lead.forget(group);
            (sent, lead.term)
        };
        self.committed(group, term, sent).await
    }
}
