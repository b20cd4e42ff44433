//! Where a group stands: what it has committed, beside what its partitions hold and who of its
//! members reads them.

use std::collections::BTreeMap;

use bytes::Bytes;
use trilog_model::Offset;
use trilog_raft::controller::ClusterMap;

use super::types::{
    Committed, ConsumerDescription, DescribedMember, Description, FetchRequest, FetchedOffset,
    GroupKind, Place,
};
use super::{Coordinator, GroupError, subscription};
use crate::partition::Start;

/// A partition by its topic's name.
pub(super) type Named = (String, u32);

impl Coordinator {
    /// A group, and every partition that it has an offset of or that a member reads.
    pub async fn survey(&self, group: &str) -> Result<(Description, Vec<Place>), GroupError> {
        self.check_used().await?;
        let (description, readers) = self.readers(group)?;
        let mut places: BTreeMap<Named, (Option<Committed>, Option<usize>)> = BTreeMap::new();
        for (named, committed) in self.committed_offsets(group).await? {
            places.insert(named, (Some(committed), None));
        }
        for (place, named) in readers.into_iter().enumerate() {
            for named in named {
                places.entry(named).or_default().1 = Some(place);
            }
        }
        let named: Vec<Named> = places.keys().cloned().collect();
        let bounds = self.bounds(&named).await;
        let places = places.into_iter().zip(bounds);
        let places = places.map(
            |(((topic, partition), (committed, member)), bounds)| Place {
                topic,
                partition,
                committed,
                bounds,
                member,
            },
        );
        Ok((description, places.collect()))
    }

    /// A group of either kind, and what each of its members reads.
    pub(super) fn readers(
        &self,
        group: &str,
    ) -> Result<(Description, Vec<Vec<Named>>), GroupError> {
        let ConsumerDescription {
            state,
            epoch,
            assignor,
            members,
            ..
        } = match self.describe_consumers(group) {
            Err(GroupError::UnknownGroup) => {
                let description = self.describe(group)?;
                let members = description.members.iter();
                let given = members.map(|member| subscription::assigned(member.assignment.clone()));
                let readers = given.map(Option::unwrap_or_default).collect();
                return Ok((description, readers));
            }
            described => described?,
        };
        let map = self.inner.cluster.map();
        let readers = members.iter().map(|member| {
            let parts = member.assigned.iter();
            let named = parts.filter_map(|(topic, index)| {
                let topic = map.topic(*topic)?;
                Some((topic.name.to_string(), *index))
            });
            named.collect()
        });
        let readers = readers.collect();
        let members = members.into_iter().map(|member| DescribedMember {
            member: member.member,
            instance: member.instance,
            client_id: member.client_id,
            client_host: member.client_host,
            metadata: Bytes::new(),
            assignment: Bytes::new(),
        });
        let description = Description {
            group: group.to_owned(),
            kind: GroupKind::Consumer,
            state,
            protocol_type: subscription::CONSUMER.to_owned(),
            protocol: assignor.to_owned(),
            generation: epoch,
            members: members.collect(),
        };
        Ok((description, readers))
    }

    /// Who is in a group of either kind.
    pub fn members(&self, group: &str) -> Result<Vec<DescribedMember>, GroupError> {
        Ok(self.readers(group)?.0.members)
    }

    /// Everything a group has committed, as of now.
    pub(super) async fn committed_offsets(
        &self,
        group: &str,
    ) -> Result<BTreeMap<Named, Committed>, GroupError> {
        let fetched = self
            .fetch(FetchRequest {
                group: group.to_owned(),
                partitions: None,
                require_stable: false,
            })
            .await?;
        let each = fetched.into_iter().filter_map(
            |FetchedOffset {
                 topic,
                 partition,
                 committed,
             }| Some(((topic, partition), committed.ok()??)),
        );
        Ok(each.collect())
    }

    /// Before anybody has used a group no node coordinates one: then there is none to be found.
    pub async fn check_used(&self) -> Result<(), GroupError> {
        if self.is_unused().await {
            Err(GroupError::UnknownGroup)
        } else {
            Ok(())
        }
    }

    /// Whether nobody in the cluster has used a group yet, for certain.
    pub(super) async fn is_unused(&self) -> bool {
        self.topic().is_err() && self.inner.cluster.is_current().await && self.topic().is_err()
    }

    /// Where partitions begin and end, in order; none where nobody says.
    pub(super) async fn bounds(&self, named: &[Named]) -> Vec<Option<(Offset, Offset)>> {
        let map = self.inner.cluster.map();
        let mut questions = Vec::with_capacity(named.len());
        let mut asked = Vec::with_capacity(named.len());
        for named in named {
            let group = group_of(&map, named);
            asked.push(group.is_some());
            questions.extend(group.map(|group| (group, Start::Earliest)));
        }
        let mut answers = self.inner.cluster.locate(&questions).await.into_iter();
        let each = asked.into_iter().map(|asked| {
            let located = asked.then(|| answers.next()).flatten().flatten()?;
            Some((located.log_start, located.end))
        });
        each.collect()
    }
}

/// The Raft group of a partition.
pub(super) fn group_of(map: &ClusterMap, (topic, index): &Named) -> Option<trilog_model::GroupId> {
    let topic = map.topic_named(topic)?;
    let index = usize::try_from(*index).ok()?;
    Some(topic.partitions.get(index)?.group)
}
