//! Where a group stands: what it has committed, beside what its partitions hold and who of its
//! members reads them.

use std::collections::BTreeMap;

use trilog_model::Offset;
use trilog_raft::controller::ClusterMap;

use super::types::{Committed, Description, FetchRequest, FetchedOffset, Place};
use super::{Coordinator, GroupError, subscription};
use crate::partition::Start;

/// A partition by its topic's name.
pub(super) type Named = (String, u32);

impl Coordinator {
    /// A group, and every partition that it has an offset of or that a member reads.
    pub async fn survey(&self, group: &str) -> Result<(Description, Vec<Place>), GroupError> {
        self.check_used().await?;
        let description = self.describe(group)?;
        let mut places: BTreeMap<Named, (Option<Committed>, Option<usize>)> = BTreeMap::new();
        for (named, committed) in self.committed_offsets(group).await? {
            places.insert(named, (Some(committed), None));
        }
        for (place, member) in description.members.iter().enumerate() {
            let given = subscription::assigned(member.assignment.clone());
            for named in given.unwrap_or_default() {
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
