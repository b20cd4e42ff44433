//! The coordinator of consumer groups, whatever dialect its members speak.
//!
//! A group belongs to one partition of the internal topic, by the hash of its id; the node that
//! leads that partition coordinates it. What must survive the coordinator is committed there
//! before anybody is answered (`view::group`); what is only under way (`classic`) lives in the
//! leader's memory for one term (`lead`).
//!
//! ```text
//! edge -> Coordinator -> Lead (lock: judge, queue) -> partition => committed -> answer
//!             ^ keep: deadlines, expiry, leaderships gained and lost
//! ```

mod admin;
mod assigning;
mod classic;
mod consumer;
mod error;
mod keep;
mod lag;
mod lead;
mod offsets;
mod places;
mod reset;
mod subscription;
mod types;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use trilog_model::{NodeId, Term};
use trilog_raft::controller::{InternalTopic, Topic};
use trilog_storage::env::{Clock, Entropy};

pub use error::GroupError;
pub use lag::{GroupLag, LagMeter};
pub use types::{
    CommitRequest, Committed, ConsumerBeat, ConsumerDescription, DescribedConsumer,
    DescribedMember, Description, FetchRequest, FetchedOffset, Given, GroupKind, GroupState,
    JoinRequest, Joined, JoinedMember, Leaving, Listed, Listing, MemberRef, OffsetCommit, Place,
    Protocol, Reset, ResetError, ResetRequest, ResetTo, Settings, SyncRequest, Synced,
    TransactionCommit,
};

use crate::access::Access;
use crate::cluster::Cluster;
use crate::partition::Partition;
use crate::view::group::MAX_NAME;
use classic::{Ctx, Group, ID_SUFFIX, Then};
use consumer::{Catalogue, Sight};
use lead::{Lead, Sent, Tools};

/// How soon it is tried again to commit that a group has lost its members.
const STORE_AGAIN: Duration = Duration::from_secs(1);
/// Protocols of one member. All members' are compared with each other.
const MAX_PROTOCOLS: usize = 100;

/// Coordinates the groups of the partitions this node leads; cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    access: Access,
    settings: Settings,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    /// By partition of the internal topic.
    leads: Mutex<BTreeMap<u32, Entry>>,
    /// Something is due earlier than was known.
    sooner: Notify,
    /// The topics, and the version of the newest map that was looked at for them.
    catalogue: Mutex<(u64, Arc<Catalogue>)>,
}

/// A partition this node leads.
struct Entry {
    term: Term,
    /// A command's outcome is unknown: nothing is judged in this term any more.
    lost: bool,
    lead: Handle,
}

type Handle = Arc<Mutex<Lead>>;
type Locked<'a> = MutexGuard<'a, Lead>;

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coordinator")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    #[must_use]
    pub fn new(
        cluster: Cluster,
        access: Access,
        settings: Settings,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Self {
        let known = Catalogue {
            sight: Sight::new(&access, &Arc::default()),
            ..Catalogue::default()
        };
        let inner = Inner {
            cluster,
            access,
            settings,
            clock,
            entropy,
            leads: Mutex::default(),
            sooner: Notify::new(),
            catalogue: Mutex::new((0, Arc::new(known))),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The node that coordinates a group. At the first question in a cluster's life the internal
    /// topic is created.
    pub async fn locate(&self, group: &str) -> Result<NodeId, GroupError> {
        check_id(group)?;
        let Inner {
            cluster,
            settings,
            entropy,
            ..
        } = &*self.inner;
        let topic = cluster
            .use_internal_topic(InternalTopic::Groups, settings.partitions, entropy)
            .await
            .map_err(|error| {
                tracing::info!(%error, "there is no topic of groups");
                GroupError::Unavailable("the topic of groups is not there yet")
            })?;
        let place = usize::try_from(partition_of(group, &topic))
            .ok()
            .and_then(|index| topic.partitions.get(index))
            .ok_or(GroupError::Unavailable("the topic has no partitions"))?;
        let leader = cluster.leader(place.group);
        leader.ok_or(GroupError::Unavailable("its partition has no leader"))
    }

    /// A member joins; answered when the rebalance completes.
    pub async fn join(&self, request: JoinRequest) -> Result<Joined, GroupError> {
        let settings = &self.inner.settings;
        check_id(&request.group)?;
        check_lengths(&request)?;
        let bounds = settings.session_timeout_min..=settings.session_timeout_max;
        if !bounds.contains(&request.session_timeout) {
            return Err(GroupError::InvalidSessionTimeout);
        }
        let (reply, answer) = oneshot::channel();
        let name = request.group.clone();
        let handle = self.enter(&name)?;
        let led = {
            let mut lead = handle.lock();
            let now = Instant::now();
            if lead.assigns(&name) {
                return Err(GroupError::InconsistentProtocol);
            }
            if request.member.is_empty() {
                lead.find_or_make(&name, now)?;
            } else if lead.find(&name, now).is_none() {
                return Err(GroupError::UnknownMember);
            }
            // Whose members have all left may become one of this kind.
            lead.forget_consumers(&name);
            let led = lead.led();
            self.change(lead, &name, |group, ctx| group.join(request, reply, ctx));
            led
        };
        answered(&led, answer).await
    }

    /// A member fetches its assignment; the leader brings those of all.
    pub async fn sync(&self, request: SyncRequest) -> Result<Synced, GroupError> {
        check_id(&request.member.group)?;
        let (reply, answer) = oneshot::channel();
        let name = request.member.group.clone();
        let handle = match self.enter(&name) {
            // Whatever rebalance was under way is forgotten: it has to join again.
            Err(GroupError::Loading) => return Err(GroupError::RebalanceInProgress),
            entered => entered?,
        };
        let led = {
            let mut lead = handle.lock();
            if lead.find(&name, Instant::now()).is_none() {
                return Err(GroupError::UnknownMember);
            }
            let led = lead.led();
            self.change(lead, &name, |group, ctx| group.sync(request, reply, ctx));
            led
        };
        answered(&led, answer).await
    }

    /// A member shows that it is there, and learns whether it has to join again.
    pub fn heartbeat(&self, member: &MemberRef) -> Result<(), GroupError> {
        check_id(&member.group)?;
        let handle = match self.enter(&member.group) {
            // Its session begins anew in a moment.
            Err(GroupError::Loading) => return Ok(()),
            entered => entered?,
        };
        let now = Instant::now();
        let mut lead = handle.lock();
        lead.find(&member.group, now);
        let heard = lead.touch(&member.group, |group| group.heartbeat(member, now));
        heard.unwrap_or(Err(GroupError::UnknownMember))
    }

    /// Members leave; one outcome for each, in order.
    pub fn leave(
        &self,
        group: &str,
        leaving: &[Leaving],
    ) -> Result<Vec<Result<(), GroupError>>, GroupError> {
        check_id(group)?;
        let handle = self.enter(group)?;
        let mut lead = handle.lock();
        if lead.find(group, Instant::now()).is_none() {
            return Ok(vec![Err(GroupError::UnknownMember); leaving.len()]);
        }
        let left = self.change(lead, group, |group, ctx| {
            let each = leaving.iter().map(|leaving| group.leave(leaving, ctx));
            each.collect()
        });
        Ok(left.unwrap_or_default())
    }

    /// The partition of a group, if this node leads it.
    fn enter(&self, group: &str) -> Result<Handle, GroupError> {
        let topic = self.topic()?;
        self.enter_at(&topic, partition_of(group, &topic))
    }

    fn topic(&self) -> Result<Arc<Topic>, GroupError> {
        let topic = self.inner.cluster.internal_topic(InternalTopic::Groups);
        topic.ok_or(GroupError::NotCoordinator { node: None })
    }

    fn enter_at(&self, topic: &Topic, index: u32) -> Result<Handle, GroupError> {
        let (partition, term) = self.inner.cluster.led_here(topic, index)?;
        let mut leads = self.inner.leads.lock();
        match leads.get(&index) {
            Some(entry) if entry.term == term && entry.lost => {
                return Err(GroupError::NotCoordinator { node: None });
            }
            Some(entry) if entry.term == term => return Ok(Arc::clone(&entry.lead)),
            Some(_) | None => {}
        }
        let lead = Arc::new(Mutex::new(Lead::begin(
            partition,
            term,
            Instant::now(),
            &self.inner.settings,
        )));
        let entry = Entry {
            term,
            lost: false,
            lead: Arc::clone(&lead),
        };
        leads.insert(index, entry);
        self.inner.sooner.notify_one();
        Ok(lead)
    }

    fn tools(&self) -> Tools<'_> {
        Tools {
            settings: &self.inner.settings,
            entropy: &self.inner.entropy,
            now: Instant::now(),
        }
    }

    /// Changes a group, and sees to it that it learns what becomes of its commands.
    fn change<T>(
        &self,
        mut lead: Locked<'_>,
        name: &str,
        change: impl FnOnce(&mut Group, &mut Ctx<'_>) -> T,
    ) -> Option<T> {
        let before = lead.next_due();
        let (outcome, sent) = lead.change(name, self.tools(), change)?;
        if lead.next_due() != before {
            self.inner.sooner.notify_one();
        }
        let term = lead.term;
        drop(lead);
        for (then, sent) in sent {
            let (this, name) = (self.clone(), name.to_owned());
            // A task of its own: whoever asked may be gone before it is committed.
            tokio::spawn(async move { this.follow(term, &name, then, sent).await });
        }
        Some(outcome)
    }

    async fn follow(&self, term: Term, name: &str, then: Then, sent: Sent) {
        let outcome = self.committed(name, term, sent).await;
        let Ok(handle) = self.enter(name) else {
            return;
        };
        let mut lead = handle.lock();
        if lead.term == term {
            lead.arrived(name);
            self.change(lead, name, |group, ctx| group.stored(then, outcome, ctx));
        }
    }

    /// Waits for the commit of a command of a group. After an unknown outcome nothing more is
    /// judged in the term: memory may say what the log does not.
    async fn committed(&self, group: &str, term: Term, sent: Sent) -> Result<(), GroupError> {
        let outcome = sent.committed().await;
        if outcome == Err(GroupError::Unknown)
            && let Ok(topic) = self.topic()
            && let Some(entry) = self
                .inner
                .leads
                .lock()
                .get_mut(&partition_of(group, &topic))
            && entry.term == term
        {
            entry.lost = true;
        }
        outcome
    }
}

/// Waits for an answer, or until it cannot come any more.
async fn answered<T>(
    (partition, term): &(Partition, Term),
    answer: oneshot::Receiver<Result<T, GroupError>>,
) -> Result<T, GroupError> {
    let mut leadership = partition.leadership();
    let ended = leadership.wait_for(|now| now.term != *term || !now.ready);
    tokio::select! {
        biased;
        answered = answer => {
            answered.unwrap_or(Err(GroupError::NotCoordinator { node: None }))
        }
        _ = ended => Err(GroupError::NotCoordinator { node: None }),
    }
}

fn partition_of(group: &str, topic: &Topic) -> u32 {
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    positive_hash(group) % partitions.max(1)
}

/// Kafka's rule: Java's hash of the id, without its sign.
pub(crate) fn positive_hash(group: &str) -> u32 {
    let hash = group.encode_utf16().fold(0_i32, |hash, unit| {
        hash.wrapping_mul(31).wrapping_add(i32::from(unit))
    });
    if hash == i32::MIN {
        0
    } else {
        hash.unsigned_abs()
    }
}

fn check_id(group: &str) -> Result<(), GroupError> {
    if group.is_empty() || group.len() > MAX_NAME {
        Err(GroupError::InvalidGroupId)
    } else {
        Ok(())
    }
}

fn check_lengths(request: &JoinRequest) -> Result<(), GroupError> {
    let JoinRequest {
        member,
        instance,
        client_id,
        client_host,
        protocol_type,
        protocols,
        ..
    } = request;
    let instance = instance.as_deref().unwrap_or_default();
    // Ids are made of names and something that tells them apart.
    if member.len() > 2 * MAX_NAME + ID_SUFFIX {
        return Err(GroupError::InvalidRequest("the member's id is too long"));
    }
    let all = [instance, client_id, client_host, protocol_type];
    if protocols.len() > MAX_PROTOCOLS {
        return Err(GroupError::InvalidRequest("it names too many protocols"));
    }
    let names = protocols.iter().map(|protocol| protocol.name.as_str());
    if all
        .into_iter()
        .chain(names)
        .any(|name| name.len() > 2 * MAX_NAME)
    {
        Err(GroupError::InvalidRequest("a name in it is too long"))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
