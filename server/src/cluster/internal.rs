//! The topics that are views' own logs: created at first use, found by name.

use std::sync::Arc;

use trilog_raft::controller::commands::{Command, CreateTopic, TopicKind};
use trilog_raft::controller::{ControllerError, InternalTopic, Topic, TopicId};
use trilog_storage::env::Entropy;

use super::{Cluster, ProposeError};

/// Why there is no such topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InternalError {
    #[error(transparent)]
    Propose(#[from] ProposeError),
    #[error("'{0}' was created by a user before the system needed the name")]
    Taken(&'static str),
    #[error("the controller says that '{0}' exists, and this node does not know it yet")]
    NotYetKnown(&'static str),
}

impl Cluster {
    /// The internal topic, if it was created.
    #[must_use]
    pub fn internal_topic(&self, which: InternalTopic) -> Option<Arc<Topic>> {
        let map = self.map();
        let topic = map.topic_named(which.name())?;
        (topic.kind == TopicKind::Internal).then(|| Arc::clone(topic))
    }

    /// The internal topic, created with so many partitions if this is its first use. It has as
    /// many replicas as there are nodes for, and gets more when there are more.
    pub async fn use_internal_topic(
        &self,
        which: InternalTopic,
        partitions: u32,
        entropy: &Entropy,
    ) -> Result<Arc<Topic>, InternalError> {
        if let Some(topic) = self.internal_topic(which) {
            return Ok(topic);
        }
        let name = which.name();
        let command = Command::CreateTopic(CreateTopic {
            id: TopicId::random(entropy).to_wire(),
            name: name.to_owned(),
            partitions,
            replication: 0,
            configs: Vec::new(),
            assignments: Vec::new(),
            kind: TopicKind::Internal.into(),
        });
        match self.propose(&command).await {
            Ok(_) => {}
            Err(ProposeError::Refused(ControllerError::TopicExists { .. })) => {
                // Somebody else was first; the map may have to catch up.
                if let Ok(topic) = self.current_topic(name).await
                    && topic.kind != TopicKind::Internal
                {
                    return Err(InternalError::Taken(name));
                }
            }
            Err(error) => return Err(error.into()),
        }
        self.internal_topic(which)
            .ok_or(InternalError::NotYetKnown(name))
    }
}
