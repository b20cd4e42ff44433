//! Consumer groups: listed, described, put somewhere else, deleted.

use std::collections::{BTreeMap, BTreeSet};

use tonic::{Request, Response, Status};
use trilog_model::{Offset, Timestamp};
use trilog_raft::controller::{Operation, ResourceKind};
use trilog_wire::v1::groups_server::Groups;
use trilog_wire::v1::reset_offsets_request::To;
use trilog_wire::v1::{
    DeleteGroupRequest, DeleteGroupResponse, DeleteOffsetsRequest, DeleteOffsetsResponse,
    DescribeGroupRequest, DescribeGroupResponse, Error, ErrorCode, GroupMember, GroupPlace,
    GroupSummary, ListGroupsRequest, ListGroupsResponse, OffsetDeletion, OffsetReset,
    ResetOffsetsRequest, ResetOffsetsResponse, TopicPartitions,
};

use super::door::Caller;
use super::{Api, errors};
use crate::group::{
    DescribedMember, FetchRequest, GroupError, Listing, Place, Reset, ResetRequest, ResetTo,
};
use crate::partition::Start;

#[tonic::async_trait]
impl Groups for Api {
    async fn list(
        &self,
        request: Request<ListGroupsRequest>,
    ) -> Result<Response<ListGroupsResponse>, Status> {
        let caller = Caller::of(&request);
        let all = self.check_cluster(&caller, Operation::Describe).is_ok();
        let may =
            |name: &str| all || self.may(&caller, Operation::Describe, ResourceKind::Group, name);
        let mut listed = self.coordinator.list_led();
        listed.groups.retain(|group| may(&group.group));
        Ok(Response::new(ListGroupsResponse {
            groups: listed.groups.into_iter().map(summary).collect(),
            partitions: listed.partitions,
            partition_count: listed.count,
        }))
    }

    async fn describe(
        &self,
        request: Request<DescribeGroupRequest>,
    ) -> Result<Response<DescribeGroupResponse>, Status> {
        let caller = Caller::of(&request);
        let group = request.into_inner().group;
        self.check_group(&caller, Operation::Describe, &group)?;
        let surveyed = self.coordinator.survey(&group).await;
        let (described, mut places) = surveyed.map_err(|error| self.group_error(&group, &error))?;
        // Who may know of a group need not know of all that it reads.
        let mut seen: BTreeMap<String, bool> = BTreeMap::new();
        places.retain(|place| {
            let topic = &place.topic;
            let may = || self.may(&caller, Operation::Describe, ResourceKind::Topic, topic);
            *seen.entry(topic.clone()).or_insert_with(may)
        });
        Ok(Response::new(DescribeGroupResponse {
            generation: described.generation,
            protocol: described.protocol,
            places: places.into_iter().map(place).collect(),
            coordinator: self.cluster.node().get(),
            group: Some(summary(Listing {
                group,
                protocol_type: described.protocol_type,
                state: described.state,
                kind: described.kind,
                members: described.members.len(),
            })),
            members: described.members.into_iter().map(member).collect(),
        }))
    }

    async fn reset_offsets(
        &self,
        request: Request<ResetOffsetsRequest>,
    ) -> Result<Response<ResetOffsetsResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        self.check_group(&caller, Operation::Read, &request.group)?;
        for topic in &request.topics {
            self.check_topic(&caller, Operation::Read, &topic.topic)?;
        }
        let group = request.group.clone();
        if request.topics.is_empty() {
            // All that the group has: what is meant is checked as if it were named.
            let all = self.coordinator.fetch(all_offsets(&group)).await;
            let all = all.map_err(|error| self.group_error(&group, &error))?;
            let topics: BTreeSet<String> = all.into_iter().map(|offset| offset.topic).collect();
            for topic in &topics {
                self.check_topic(&caller, Operation::Read, topic)?;
            }
        }
        let request = ResetRequest {
            to: reset_to(request.to)?,
            group: request.group,
            topics: request.topics.into_iter().map(named).collect(),
            execute: request.execute,
        };
        let resets = self.coordinator.reset(request).await;
        let resets = resets.map_err(|error| errors::reset(&self.cluster, &group, &error))?;
        Ok(Response::new(ResetOffsetsResponse {
            resets: resets.into_iter().map(offset_reset).collect(),
        }))
    }

    async fn delete_offsets(
        &self,
        request: Request<DeleteOffsetsRequest>,
    ) -> Result<Response<DeleteOffsetsResponse>, Status> {
        let caller = Caller::of(&request);
        let DeleteOffsetsRequest { group, topics } = request.into_inner();
        self.check_group(&caller, Operation::Delete, &group)?;
        for topic in &topics {
            self.check_topic(&caller, Operation::Read, &topic.topic)?;
        }
        let failed = |error: GroupError| self.group_error(&group, &error);
        self.coordinator.check_used().await.map_err(failed)?;
        let meant = self.offsets_of(&group, topics).await.map_err(failed)?;
        let deleted = self.coordinator.delete_offsets(&group, meant.clone()).await;
        let outcomes = deleted.map_err(failed)?;
        let each = meant.into_iter().zip(outcomes);
        let deletions = each.map(|((topic, partition), outcome)| OffsetDeletion {
            topic,
            partition,
            error: outcome.err().map(failed),
        });
        Ok(Response::new(DeleteOffsetsResponse {
            deletions: deletions.collect(),
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteGroupRequest>,
    ) -> Result<Response<DeleteGroupResponse>, Status> {
        let caller = Caller::of(&request);
        let group = request.into_inner().group;
        self.check_group(&caller, Operation::Delete, &group)?;
        let failed = |error: GroupError| self.group_error(&group, &error);
        self.coordinator.check_used().await.map_err(failed)?;
        self.coordinator.delete(&group).await.map_err(failed)?;
        Ok(Response::new(DeleteGroupResponse {}))
    }
}

impl Api {
    fn group_error(&self, group: &str, error: &GroupError) -> Error {
        // Who is in the way is worth a second look.
        if *error == GroupError::NotEmpty
            && let Ok(members) = self.coordinator.members(group)
        {
            return errors::active(group, &members);
        }
        errors::group(&self.cluster, group, error)
    }

    /// What a group has committed of these topics and partitions.
    async fn offsets_of(
        &self,
        group: &str,
        topics: Vec<TopicPartitions>,
    ) -> Result<Vec<(String, u32)>, GroupError> {
        let fetched = self.coordinator.fetch(all_offsets(group)).await?;
        let asked: BTreeMap<String, Vec<u32>> = topics.into_iter().map(named).collect();
        let meant = fetched.into_iter().filter(|offset| {
            let asked = asked.get(&offset.topic);
            asked.is_some_and(|only| only.is_empty() || only.contains(&offset.partition))
        });
        Ok(meant
            .map(|offset| (offset.topic, offset.partition))
            .collect())
    }
}

fn all_offsets(group: &str) -> FetchRequest {
    FetchRequest {
        group: group.to_owned(),
        partitions: None,
        require_stable: false,
    }
}

fn named(topic: TopicPartitions) -> (String, Vec<u32>) {
    (topic.topic, topic.partitions)
}

fn reset_to(to: Option<To>) -> Result<ResetTo, Error> {
    Ok(match to {
        Some(To::Offset(offset)) => ResetTo::Start(Start::Offset(Offset(offset))),
        Some(To::Earliest(_)) => ResetTo::Start(Start::Earliest),
        Some(To::Latest(_)) => ResetTo::Start(Start::Latest),
        Some(To::Last(count)) => ResetTo::Last(count),
        Some(To::RecordTimeMs(millis)) => ResetTo::Start(Start::RecordTime(millis)),
        Some(To::AppendTimeNs(nanos)) => ResetTo::Start(Start::AppendTime(Timestamp(nanos))),
        Some(To::ShiftBy(by)) => ResetTo::Shift(by),
        Some(To::Current(_)) => ResetTo::Current,
        None => {
            let text = "it is not said where to";
            return Err(Error::new(ErrorCode::InvalidRequest, text));
        }
    })
}

fn summary(listing: Listing) -> GroupSummary {
    GroupSummary {
        group: listing.group,
        state: listing.state.as_str().to_owned(),
        protocol_type: listing.protocol_type,
        kind: listing.kind.as_str().to_owned(),
        members: u32::try_from(listing.members).unwrap_or(u32::MAX),
    }
}

fn member(member: DescribedMember) -> GroupMember {
    GroupMember {
        member: member.member,
        instance: member.instance.unwrap_or_default(),
        client_id: member.client_id,
        client_host: member.client_host,
    }
}

fn place(place: Place) -> GroupPlace {
    let lag = place.lag();
    let (offset, metadata) = place.committed.map_or_else(Default::default, |committed| {
        (u64::try_from(committed.offset).ok(), committed.metadata)
    });
    GroupPlace {
        topic: place.topic,
        partition: place.partition,
        offset,
        metadata,
        log_start: place.bounds.map(|(start, _)| start.get()),
        log_end: place.bounds.map(|(_, end)| end.get()),
        lag,
        member: place.member.and_then(|member| u32::try_from(member).ok()),
    }
}

fn offset_reset(reset: Reset) -> OffsetReset {
    let (log_start, log_end) = reset.bounds;
    OffsetReset {
        topic: reset.topic,
        partition: reset.partition,
        before: reset.before.and_then(|before| u64::try_from(before).ok()),
        after: reset.after.get(),
        log_start: log_start.get(),
        log_end: log_end.get(),
    }
}
