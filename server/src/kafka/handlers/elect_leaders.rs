//! ElectLeaders: leadership goes to the replica that is listed first.
//!
//! That replica takes leadership by itself whenever it can (the first one of a list is whom the
//! cluster prefers), so this waits until it has. An unclean election, in which somebody leads who
//! lacks what was acknowledged, is none that could be held here: who has no majority cannot lead.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use trilog_model::{GroupId, NodeId};
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::elect_leaders_response::{
    PartitionResult, ReplicaElectionResult,
};
use trilog_wire::kafka::messages::{ElectLeadersRequest, ElectLeadersResponse, TopicName};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::{are_few, text};
use crate::cluster::Cluster;
use crate::kafka::conn::Ended;
use crate::kafka::errors::{self, Refusal};
use crate::kafka::session::Session;

/// Kinds of elections.
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;
/// How long a handing over is waited for at most.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

/// Who is to lead which group.
#[derive(Clone, Copy, Debug)]
struct Election {
    group: GroupId,
    heir: NodeId,
}

/// A topic and partitions of it.
type Named = (TopicName, Vec<i32>);

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ElectLeadersRequest = decode(request)?;
    if let Err(code) = session.check_cluster(Operation::Alter) {
        return refused(session, request, asked, code);
    }
    // Before anything is called unknown, or led by whom it should be.
    if !session.kafka.inner.cluster.is_current().await {
        return refused(session, request, asked, ErrorCode::NotController);
    }
    let all = asked.topic_partitions.is_none();
    let named = asked.topic_partitions.map(|topics| {
        let topics = topics.into_iter();
        topics.map(|one| (one.topic, one.partitions)).collect()
    });
    let named: Vec<Named> = named.unwrap_or_else(|| everything(&session.kafka.inner.cluster));
    let mut response = ElectLeadersResponse::default();
    let known = matches!(asked.election_type, PREFERRED | UNCLEAN);
    let few = all || are_few(named.iter().map(|(name, of)| (name.len(), of.len())));
    if !known || !few {
        let code = ErrorCode::InvalidRequest.code();
        session.count_error(request, code);
        // The first version has no place for it.
        response.error_code = if request.version > 0 { code } else { 0 };
        return Ok(Writer::message(request, &response)?);
    }
    let cluster = session.kafka.inner.cluster.clone();
    let begun = named.into_iter().map(|(topic, indexes)| {
        let elections = indexes.into_iter().map(|index| {
            let begun = begin(&cluster, &topic, index, asked.election_type);
            (index, begun)
        });
        // Of all partitions, those that are led by the first one are not told of.
        let led = |begun: &_| matches!(begun, Err((ErrorCode::ElectionNotNeeded, _)));
        let elections: Vec<_> = elections
            .filter(|(_, begun)| !(all && led(begun)))
            .collect();
        (topic, elections)
    });
    let begun: Vec<_> = begun
        .filter(|(_, elections)| !(all && elections.is_empty()))
        .collect();
    let timeout = Duration::from_millis(u64::try_from(asked.timeout_ms).unwrap_or(0));
    let deadline = Instant::now() + timeout.min(PATIENCE);
    for (topic, elections) in begun {
        let mut results = ReplicaElectionResult::default().with_topic(topic);
        for (index, begun) in elections {
            let outcome = match begun {
                Ok(election) => led(&cluster, election, deadline).await,
                Err(refusal) => Err(refusal),
            };
            let result = result(session, request, index, outcome);
            results.partition_result.push(result);
        }
        response.replica_election_results.push(results);
    }
    Ok(Writer::message(request, &response)?)
}

/// The same code for all that is named.
fn refused(
    session: &Session,
    request: &Request,
    asked: ElectLeadersRequest,
    code: ErrorCode,
) -> Result<Answer, Ended> {
    session.count_error(request, code.code());
    let refused = |index| {
        PartitionResult::default()
            .with_partition_id(index)
            .with_error_code(code.code())
            .with_error_message(None)
    };
    let topics = asked.topic_partitions.unwrap_or_default().into_iter();
    let topics = topics.map(|named| {
        ReplicaElectionResult::default()
            .with_partition_result(named.partitions.into_iter().map(refused).collect())
            .with_topic(named.topic)
    });
    let mut response = ElectLeadersResponse::default();
    response.replica_election_results = topics.collect();
    // The first version has no place for it.
    response.error_code = if request.version > 0 { code.code() } else { 0 };
    Ok(Writer::message(request, &response)?)
}

fn everything(cluster: &Cluster) -> Vec<Named> {
    let map = cluster.map();
    let topics = map.topics_by_name().map(|topic| {
        let indexes = (0..).zip(&topic.partitions).map(|(index, _)| index);
        (TopicName(text(&*topic.name)), indexes.collect())
    });
    topics.collect()
}

fn begin(cluster: &Cluster, topic: &str, index: i32, kind: i8) -> Result<Election, Refusal> {
    let index = u32::try_from(index).map_err(|_| (ErrorCode::UnknownTopicOrPartition, None))?;
    let place = cluster.place(topic, index);
    let place = place.map_err(|error| (errors::lookup(&error), Some(error.to_string())))?;
    let leader = cluster.leader(place.group);
    let leader = leader.filter(|leader| cluster.is_alive(*leader));
    if kind == UNCLEAN {
        let code = match leader {
            Some(_) => ErrorCode::ElectionNotNeeded,
            None => ErrorCode::EligibleLeadersNotAvailable,
        };
        return Err((code, None));
    }
    let heir = place.assigned().first().copied();
    if heir.is_some() && heir == leader {
        return Err((ErrorCode::ElectionNotNeeded, None));
    }
    let in_sync = place.in_sync();
    let map = cluster.map();
    let stays = |node: NodeId| map.node(node).is_some_and(|node| node.is_active());
    let able = |node: &NodeId| in_sync.contains(node) && cluster.is_alive(*node) && stays(*node);
    let heir = heir.filter(able);
    let heir = heir.ok_or((ErrorCode::PreferredLeaderNotAvailable, None))?;
    Ok(Election {
        group: place.group,
        heir,
    })
}

/// Waits until the heir leads, as far as this node knows.
async fn led(cluster: &Cluster, election: Election, deadline: Instant) -> Result<(), Refusal> {
    while cluster.leader(election.group) != Some(election.heir) {
        if Instant::now() >= deadline {
            let text = format!("node {} does not lead yet", election.heir);
            return Err((ErrorCode::RequestTimedOut, Some(text)));
        }
        sleep(POLL).await;
    }
    Ok(())
}

fn result(
    session: &Session,
    request: &Request,
    index: i32,
    outcome: Result<(), Refusal>,
) -> PartitionResult {
    let result = PartitionResult::default()
        .with_partition_id(index)
        .with_error_message(None);
    let Err((code, message)) = outcome else {
        return result;
    };
    session.count_error(request, code.code());
    result
        .with_error_code(code.code())
        .with_error_message(message.map(text))
}
