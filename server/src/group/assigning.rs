//! Groups in which the coordinator assigns (KIP-848), as an edge speaks to them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;
use trilog_model::Term;
use trilog_raft::controller::CONSUMERS_LEVEL;
use trilog_raft::controller::commands::TopicKind;

use super::classic::{ID_SUFFIX, new_id};
use super::consumer::{Around, Catalogue, Sight};
use super::lead::{Commit, ConsumerStore as Store};
use super::types::{ConsumerBeat, ConsumerDescription, Given};
use super::{Coordinator, GroupError, Handle, check_id};
use crate::view::group::MAX_NAME;

/// Names of topics, of all kinds, in one heartbeat at most.
const MAX_TOPICS: usize = 10_000;

impl Coordinator {
    /// A consumer says what it wants and has, and is told what it is to read. What it is told is
    /// committed before.
    pub async fn consumer_heartbeat(&self, mut beat: ConsumerBeat) -> Result<Given, GroupError> {
        check_id(&beat.group)?;
        if beat.member.is_empty() && beat.epoch == 0 {
            // The first version of the protocol has the coordinator choose.
            beat.member = new_id(&beat.client_id, &self.inner.entropy);
        }
        check_beat(&beat)?;
        if self.inner.cluster.map().level() < CONSUMERS_LEVEL {
            return Err(GroupError::LevelTooLow);
        }
        let catalogue = self.catalogue();
        let handle = self.enter(&beat.group)?;
        let (told, term) = {
            let mut lead = handle.lock();
            let before = lead.next_due();
            let told = lead.beat(&beat, self.around(&catalogue));
            if lead.next_due() != before {
                self.inner.sooner.notify_one();
            }
            (told, lead.term)
        };
        let (given, commit) = told?;
        match commit {
            None => {}
            Some(Commit::Awaited(mut outcome)) => {
                let known = outcome.wait_for(Option::is_some).await;
                let known = known.ok().and_then(|outcome| outcome.clone());
                known.unwrap_or(Err(GroupError::Unknown))?;
            }
            Some(Commit::Sent(store)) => {
                let this = self.clone();
                // A task of its own: whoever asked may be gone before it is committed.
                let stored =
                    tokio::spawn(
                        async move { this.stored(handle, term, &beat.group, store).await },
                    );
                stored.await.unwrap_or(Err(GroupError::Unknown))?;
            }
        }
        Ok(given)
    }

    async fn stored(
        &self,
        handle: Handle,
        term: Term,
        group: &str,
        store: Store,
    ) -> Result<(), GroupError> {
        let Store {
            version,
            sent,
            tell,
        } = store;
        let outcome = self.committed(group, term, sent).await;
        {
            let mut lead = handle.lock();
            lead.consumers_stored(group, version, outcome.is_ok(), Instant::now());
        }
        tell.send_replace(Some(outcome.clone()));
        outcome
    }

    /// Lets go of consumers whose time is over.
    pub(super) fn expire_consumers(&self, handle: &Handle, name: &str) {
        let catalogue = self.catalogue();
        let (store, term) = {
            let mut lead = handle.lock();
            let store = lead.expire_consumers(name, self.around(&catalogue));
            (store, lead.term)
        };
        if let Some(store) = store {
            let (this, handle, name) = (self.clone(), Arc::clone(handle), name.to_owned());
            tokio::spawn(async move { this.stored(handle, term, &name, store).await });
        }
    }

    fn around<'a>(&'a self, catalogue: &'a Arc<Catalogue>) -> Around<'a> {
        Around {
            now: Instant::now(),
            settings: &self.inner.settings,
            catalogue,
            room: usize::MAX,
        }
    }

    /// The topics there are, and who may know of which, as of this node's map.
    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        let map = self.inner.cluster.map();
        let mut known = self.inner.catalogue.lock();
        let (seen, known) = &mut *known;
        if *seen != map.version() {
            let topics = map.topics_by_name();
            let topics = topics.filter(|topic| topic.kind != TopicKind::Internal);
            let topics: BTreeMap<_, _> = topics
                .map(|topic| {
                    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
                    (topic.name.to_string(), (topic.id, partitions))
                })
                .collect();
            let version = map.version();
            *seen = version;
            // Most changes of the map are of other things.
            if topics != known.topics || known.sight.is_older(map.acls()) {
                let sight = Sight::new(&self.inner.access, map.acls());
                *known = Arc::new(Catalogue {
                    version,
                    topics,
                    sight,
                });
            }
        }
        Arc::clone(known)
    }

    /// A group in which the coordinator assigns, if it has members.
    pub fn describe_consumers(&self, group: &str) -> Result<ConsumerDescription, GroupError> {
        let handle = self.enter(group)?;
        let described = handle.lock().describe_consumers(group);
        described.ok_or(GroupError::UnknownGroup)
    }

    /// Whether a member may fetch offsets of these partitions, or all, as of its epoch; of a group
    /// of another kind everybody may.
    pub fn check_member(
        &self,
        group: &str,
        member: &str,
        epoch: i32,
        partitions: Option<&[(String, u32)]>,
    ) -> Result<(), GroupError> {
        let handle = self.enter(group)?;
        let map = self.inner.cluster.map();
        let lead = handle.lock();
        let Some(consumers) = lead.consumers(group) else {
            let was = lead.partition.with_state(|state| {
                let group = state.groups()?.get(group)?;
                group.consumers().map(drop)
            });
            return was.map_or(Ok(()), |()| Err(GroupError::UnknownMember));
        };
        let named = partitions.into_iter().flatten();
        let parts = named.map(|(topic, index)| Some((map.topic_named(topic)?.id, *index)));
        // Who wants all may want some that it has given up.
        let all = partitions.is_none().then_some(None);
        consumers.check_epoch(member, epoch, parts.chain(all))
    }
}

fn check_beat(beat: &ConsumerBeat) -> Result<(), GroupError> {
    let topics = beat.topics.iter().flatten();
    if topics.clone().count() > MAX_TOPICS {
        return Err(GroupError::InvalidRequest("it names too many topics"));
    }
    let names = [&beat.client_id, &beat.client_host];
    let more = [&beat.instance, &beat.rack, &beat.regex, &beat.assignor];
    let names = names.into_iter().chain(more.into_iter().flatten());
    if beat.member.is_empty() {
        Err(GroupError::InvalidRequest("the member has no id"))
    } else if beat.member.len() > 2 * MAX_NAME + ID_SUFFIX {
        Err(GroupError::InvalidRequest("the member's id is too long"))
    } else if names.chain(topics).any(|name| name.len() > 2 * MAX_NAME) {
        Err(GroupError::InvalidRequest("a name in it is too long"))
    } else {
        Ok(())
    }
}
