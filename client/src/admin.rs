//! Administration: topics, nodes, leaders, groups. Requests and answers are the wire's own
//! messages.

use std::collections::{BTreeMap, BTreeSet};

use trilog_wire::v1::acls_client::AclsClient;
use trilog_wire::v1::cluster_client::ClusterClient;
use trilog_wire::v1::groups_client::GroupsClient;
use trilog_wire::v1::offsets_client::OffsetsClient;
use trilog_wire::v1::producer_client::ProducerClient;
use trilog_wire::v1::topics_client::TopicsClient;
use trilog_wire::v1::users_client::UsersClient;
use trilog_wire::v1::{
    Acl, AddAclsRequest, AlterTopicRequest, BalanceRequest, BalanceResponse, ConfigureRequest,
    CreateTopicRequest, CreateTopicResponse, DeleteGroupRequest, DeleteOffsetsRequest,
    DeleteTopicRequest, DescribeGroupRequest, DescribeGroupResponse, DescribeTopicsRequest,
    DescribeTopicsResponse, DescribedTopic, DrainRequest, DrainResponse, GroupSummary,
    ListAclsRequest, ListGroupsRequest, ListGroupsResponse, ListTopicsRequest, ListUsersRequest,
    MoveRequest, OffsetDeletion, OffsetReset, PublishRequest, PublishResponse, PutUserRequest,
    RemoveAclsRequest, RemoveRequest, RemoveResponse, RemoveUserRequest, ReplaceRequest,
    ReplaceResponse, ResetOffsetsRequest, ResolveRequest, ResolveResponse, Setting, Start,
    StatusRequest, StatusResponse, TopicDescription, TopicSummary, TransferRequest,
    TransferResponse, UpgradeRequest, UpgradeResponse, UserSummary, described_topic, start,
};

use crate::client::{Client, Repeat};
use crate::error::{Error, Failure};

/// Rules of one request: it has to be a short one, however long they are.
const RULES_AT_ONCE: usize = 50;

/// Administrative calls; any node takes them, and this tries as many as it needs.
///
/// A change whose answer was lost is not repeated: it fails with [`Error::UnknownOutcome`], and a
/// description or the status tells what became of it.
#[derive(Clone, Debug)]
pub struct Admin {
    client: Client,
}

/// Makes `request` on any node: `call!(admin, Safe, TopicsClient::list, request)`.
macro_rules! call {
    ($admin:ident, $repeat:ident, $service:ident::$method:ident, $request:expr) => {{
        let request = $request;
        $admin
            .client
            .on_any_node(Repeat::$repeat, |channel| {
                let request = request.clone();
                async move { $service::new(channel).$method(request).await }
            })
            .await
    }};
}

mod transactions;

impl Admin {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), trilog_client::Error> {
    /// # let cluster = trilog_client::testkit::FakeCluster::start(1, &[]).await;
    /// # let client = trilog_client::Client::connect(cluster.addresses()).await?;
    /// use trilog_client::proto::CreateTopicRequest;
    ///
    /// let request = CreateTopicRequest {
    ///     name: "orders".into(),
    ///     partitions: 4,
    ///     ..CreateTopicRequest::default()
    /// };
    /// assert!(client.admin().create_topic(request).await?.created);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create_topic(
        &self,
        request: CreateTopicRequest,
    ) -> Result<CreateTopicResponse, Error> {
        call!(self, Unsafe, TopicsClient::create, request)
    }

    /// Who can prove who they are, by name.
    pub async fn list_users(&self) -> Result<Vec<UserSummary>, Error> {
        let listed = call!(self, Safe, UsersClient::list, ListUsersRequest {})?;
        Ok(listed.users)
    }

    /// Makes a user, or gives one other credentials.
    pub async fn put_user(&self, request: PutUserRequest) -> Result<(), Error> {
        call!(self, Unsafe, UsersClient::put, request).map(drop)
    }

    pub async fn remove_user(&self, name: impl Into<String>) -> Result<(), Error> {
        let request = RemoveUserRequest { name: name.into() };
        call!(self, Unsafe, UsersClient::remove, request).map(drop)
    }

    /// Rules of who may do what that are as stated, in one order.
    pub async fn list_acls(&self, which: ListAclsRequest) -> Result<Vec<Acl>, Error> {
        let mut answers = call!(self, Safe, AclsClient::list, which)?;
        let mut rules = Vec::new();
        while let Some(some) = answers
            .message()
            .await
            .map_err(|status| Failure::from(status).of_read().into_error())?
        {
            rules.extend(some.acls);
        }
        Ok(rules)
    }

    /// Adds rules, some at a time.
    pub async fn add_acls(&self, rules: Vec<Acl>) -> Result<(), Error> {
        for some in rules.chunks(RULES_AT_ONCE) {
            let request = AddAclsRequest {
                acls: some.to_vec(),
            };
            call!(self, Safe, AclsClient::add, request)?;
        }
        Ok(())
    }

    /// Removes rules, some at a time.
    pub async fn remove_acls(&self, rules: Vec<Acl>) -> Result<(), Error> {
        for some in rules.chunks(RULES_AT_ONCE) {
            let request = RemoveAclsRequest {
                acls: some.to_vec(),
            };
            call!(self, Safe, AclsClient::remove, request)?;
        }
        Ok(())
    }

    pub async fn alter_topic(&self, request: AlterTopicRequest) -> Result<TopicDescription, Error> {
        let altered = call!(self, Unsafe, TopicsClient::alter, request)?;
        Ok(altered.topic.unwrap_or_default())
    }

    pub async fn delete_topic(&self, name: impl Into<String>) -> Result<(), Error> {
        let name = name.into();
        call!(
            self,
            Unsafe,
            TopicsClient::delete,
            DeleteTopicRequest { name }
        )
        .map(drop)
    }

    /// One topic with its settings.
    pub async fn describe_topic(&self, name: &str) -> Result<TopicDescription, Error> {
        let described = self
            .describe_topics(DescribeTopicsRequest {
                names: vec![name.to_owned()],
                include_internal: true,
                with_config: true,
            })
            .await?;
        match described.topics.into_iter().next() {
            Some(DescribedTopic {
                result: Some(described_topic::Result::Topic(topic)),
                ..
            }) => Ok(topic),
            Some(DescribedTopic {
                result: Some(described_topic::Result::Error(error)),
                ..
            }) => Err(Failure::from(error).into_error()),
            _ => Err(Error::Unreachable("the answer left the topic out".into())),
        }
    }

    /// Several topics, each with its own result, and the nodes they are on.
    pub async fn describe_topics(
        &self,
        request: DescribeTopicsRequest,
    ) -> Result<DescribeTopicsResponse, Error> {
        call!(self, Safe, TopicsClient::describe, request)
    }

    pub async fn list_topics(&self, include_internal: bool) -> Result<Vec<TopicSummary>, Error> {
        let request = ListTopicsRequest { include_internal };
        let listed = call!(self, Safe, TopicsClient::list, request)?;
        Ok(listed.topics)
    }

    /// Where a partition begins and ends, and which offset `start` is, if one is given.
    pub async fn resolve(
        &self,
        topic: &str,
        partition: u32,
        at: Option<start::At>,
    ) -> Result<ResolveResponse, Error> {
        let request = ResolveRequest {
            topic: topic.to_owned(),
            partition,
            start: at.map(|at| Start { at: Some(at) }),
        };
        call!(self, Safe, OffsetsClient::resolve, request)
    }

    /// Appends one record without batching; a producer is better for more than a few. It is not
    /// repeated when the answer is lost.
    pub async fn publish(&self, request: PublishRequest) -> Result<PublishResponse, Error> {
        call!(self, Unsafe, ProducerClient::publish, request)
    }

    /// The nodes and the health of the cluster.
    pub async fn status(&self) -> Result<StatusResponse, Error> {
        call!(self, Safe, ClusterClient::status, StatusRequest {})
    }

    /// Begins to move everything off a node, or with `undo` makes it a full member again.
    pub async fn drain(&self, node: u32, undo: bool) -> Result<DrainResponse, Error> {
        call!(
            self,
            Safe,
            ClusterClient::drain,
            DrainRequest { node, undo }
        )
    }

    /// Takes a node out for good.
    pub async fn remove_node(&self, node: u32, force: bool) -> Result<RemoveResponse, Error> {
        call!(
            self,
            Unsafe,
            ClusterClient::remove,
            RemoveRequest { node, force }
        )
    }

    /// Gives all replicas of `node` to `replacement`.
    pub async fn replace_node(
        &self,
        node: u32,
        replacement: u32,
    ) -> Result<ReplaceResponse, Error> {
        let request = ReplaceRequest { node, replacement };
        call!(self, Unsafe, ClusterClient::replace, request)
    }

    /// Hands a partition's leadership to node `to`, or with zero to any other replica.
    pub async fn transfer(
        &self,
        topic: &str,
        partition: u32,
        to: u32,
    ) -> Result<TransferResponse, Error> {
        let request = TransferRequest {
            topic: topic.to_owned(),
            partition,
            to,
        };
        call!(self, Unsafe, ClusterClient::transfer, request)
    }

    /// Moves one replica of a partition to another node.
    pub async fn move_replica(&self, request: MoveRequest) -> Result<(), Error> {
        call!(self, Unsafe, ClusterClient::r#move, request).map(drop)
    }

    /// Evens out leaders and, if asked, replicas; with `dry_run` only tells what it would do.
    pub async fn balance(&self, request: BalanceRequest) -> Result<BalanceResponse, Error> {
        call!(self, Unsafe, ClusterClient::balance, request)
    }

    /// Raises the feature level to the highest that every node can follow; with `dry_run` only
    /// tells what that is.
    pub async fn upgrade(&self, dry_run: bool) -> Result<UpgradeResponse, Error> {
        call!(
            self,
            Safe,
            ClusterClient::upgrade,
            UpgradeRequest { dry_run }
        )
    }

    /// Changes settings of the whole cluster, if any are given; all of them as they then are.
    pub async fn configure(&self, request: ConfigureRequest) -> Result<Vec<Setting>, Error> {
        let answer = call!(self, Unsafe, ClusterClient::configure, request)?;
        Ok(answer.settings)
    }

    /// All groups of the cluster, by name. Each node answers for those it coordinates; nodes are
    /// asked until the answers make up a whole.
    pub async fn list_groups(&self) -> Result<Vec<GroupSummary>, Error> {
        let deadline = tokio::time::Instant::now() + self.client.config().call_timeout;
        let mut backoff = self.client.backoff();
        loop {
            let mut whole = Whole::default();
            for address in self.node_addresses().await? {
                let asked = self.client.on_node(&address, |channel| async move {
                    GroupsClient::new(channel).list(ListGroupsRequest {}).await
                });
                // A node that is down coordinates nothing, or soon will not.
                if let Ok(listed) = asked.await {
                    whole.add(listed);
                }
            }
            match whole.missing() {
                Some(0) => return Ok(whole.groups.into_values().collect()),
                _ if tokio::time::Instant::now() < deadline => backoff.pause().await,
                missing => {
                    return Err(Error::Timeout(missing.map_or_else(
                        || "no node lists its groups".to_owned(),
                        |missing| format!("groups of {missing} partitions have no coordinator"),
                    )));
                }
            }
        }
    }

    /// Where the nodes of the cluster are reached.
    async fn node_addresses(&self) -> Result<Vec<String>, Error> {
        let status = self.status().await?;
        let nodes = status.nodes.into_iter().filter_map(|node| node.addresses);
        let known = nodes.map(|addresses| addresses.grpc);
        Ok(known.filter(|address| !address.is_empty()).collect())
    }

    /// A group's members, and where it stands in each partition.
    pub async fn describe_group(
        &self,
        group: impl Into<String>,
    ) -> Result<DescribeGroupResponse, Error> {
        let group = group.into();
        call!(
            self,
            Safe,
            GroupsClient::describe,
            DescribeGroupRequest { group }
        )
    }

    /// Sets a group's offsets, all or none; or says what would be set, unless `execute` is given.
    pub async fn reset_offsets(
        &self,
        request: ResetOffsetsRequest,
    ) -> Result<Vec<OffsetReset>, Error> {
        let reset = if request.execute {
            call!(self, Unsafe, GroupsClient::reset_offsets, request)?
        } else {
            call!(self, Safe, GroupsClient::reset_offsets, request)?
        };
        Ok(reset.resets)
    }

    /// Forgets offsets that no member of the group uses; one outcome for each that there was.
    pub async fn delete_offsets(
        &self,
        request: DeleteOffsetsRequest,
    ) -> Result<Vec<OffsetDeletion>, Error> {
        let deleted = call!(self, Unsafe, GroupsClient::delete_offsets, request)?;
        Ok(deleted.deletions)
    }

    /// Forgets a group without members, and its offsets.
    pub async fn delete_group(&self, group: impl Into<String>) -> Result<(), Error> {
        let group = group.into();
        call!(
            self,
            Unsafe,
            GroupsClient::delete,
            DeleteGroupRequest { group }
        )
        .map(drop)
    }

    /// Waits until every partition of a topic has a leader, as after its creation.
    pub async fn await_leaders(&self, topic: &str) -> Result<TopicDescription, Error> {
        let deadline = tokio::time::Instant::now() + self.client.config().call_timeout;
        let mut backoff = self.client.backoff();
        loop {
            let described = self.describe_topic(topic).await?;
            let led = |partition: &trilog_wire::v1::PartitionDescription| partition.leader != 0;
            if !described.partitions.is_empty() && described.partitions.iter().all(led) {
                return Ok(described);
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Error::Timeout(format!(
                    "partitions of '{topic}' lack a leader"
                )));
            }
            backoff.pause().await;
        }
    }
}

/// What nodes say of their groups, put together.
#[derive(Debug, Default)]
struct Whole {
    groups: BTreeMap<String, GroupSummary>,
    covered: BTreeSet<u32>,
    partitions: Option<u32>,
}

impl Whole {
    fn add(&mut self, listed: ListGroupsResponse) {
        // A node whose map is older may not know of any.
        self.partitions = self.partitions.max(Some(listed.partition_count));
        self.covered.extend(listed.partitions);
        let groups = listed.groups.into_iter();
        self.groups
            .extend(groups.map(|group| (group.group.clone(), group)));
    }

    /// Partitions that nobody has answered for; none if nobody has answered at all.
    fn missing(&self) -> Option<usize> {
        let all = 0..self.partitions?;
        Some(all.filter(|index| !self.covered.contains(index)).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(groups: &[&str], partitions: &[u32], partition_count: u32) -> ListGroupsResponse {
        let groups = groups.iter().map(|group| GroupSummary {
            group: (*group).to_owned(),
            ..GroupSummary::default()
        });
        ListGroupsResponse {
            groups: groups.collect(),
            partitions: partitions.to_vec(),
            partition_count,
        }
    }

    #[test]
    fn a_list_of_groups_is_whole_once_every_partition_was_answered_for() {
        let mut whole = Whole::default();
        assert_eq!(whole.missing(), None);
        whole.add(listed(&[], &[], 0));
        assert_eq!(whole.missing(), Some(0), "nobody has used a group");
        whole.add(listed(&["b"], &[0, 2], 3));
        assert_eq!(whole.missing(), Some(1));
        whole.add(listed(&["a"], &[1], 3));
        assert_eq!(whole.missing(), Some(0));
        assert_eq!(whole.groups.keys().collect::<Vec<_>>(), ["a", "b"]);
    }
}
