//! The members of a group of consumers: what each wants, has, is to give up and is to have.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use trilog_raft::controller::TopicId;

use super::super::GroupError;
use super::super::types::{ConsumerBeat, Settings};
use super::patterns::{Patterns, Wanted};
use super::{
    Assignor, Catalogue, ConsumerRecord, JOINS, LEAVES_TO_RETURN, Part, millis, parts_of,
    stored_parts,
};
use crate::access::Identity;

/// Where a member says nothing.
const REBALANCE: Duration = Duration::from_mins(5);
/// What a member takes beside what it said.
const OVERHEAD: usize = 136;
/// What a name takes beside its letters.
const NAME: usize = 4;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: Option<String>,
    pub(super) rack: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    /// Whose rights count for what its pattern matches; none where nobody is asked.
    pub(super) viewer: Option<Arc<Identity>>,
    pub(super) topics: BTreeSet<String>,
    /// Topics by their names' pattern.
    pub(super) regex: Option<String>,
    pub(super) assignor: Option<Assignor>,
    pub(super) rebalance_timeout: Duration,
    pub(super) epoch: i32,
    pub(super) previous_epoch: i32,
    pub(super) assigned: BTreeSet<Part>,
    pub(super) revoking: BTreeSet<Part>,
    pub(super) target: BTreeSet<Part>,
    /// Until when it must be heard from.
    deadline: Instant,
    /// Until when it must have given up what it is told to.
    pub(super) revoke_by: Option<Instant>,
}

impl Member {
    pub(super) fn new(beat: &ConsumerBeat, deadline: Instant) -> Self {
        Self {
            instance: beat.instance.clone(),
            rack: beat.rack.clone(),
            client_id: beat.client_id.clone(),
            client_host: beat.client_host.clone(),
            viewer: None,
            topics: BTreeSet::new(),
            regex: None,
            assignor: None,
            rebalance_timeout: REBALANCE,
            epoch: JOINS,
            previous_epoch: JOINS,
            assigned: BTreeSet::new(),
            revoking: BTreeSet::new(),
            target: BTreeSet::new(),
            deadline,
            revoke_by: None,
        }
    }

    pub(super) fn load(record: &ConsumerRecord, now: Instant, settings: &Settings) -> Self {
        let named = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
        let rebalance_timeout = Duration::from_millis(record.rebalance_timeout_ms);
        let revoking = parts_of(&record.revoking);
        Self {
            instance: named(&record.instance),
            rack: named(&record.rack),
            client_id: record.client_id.clone(),
            client_host: record.client_host.clone(),
            viewer: (!record.principal.is_empty()).then(|| {
                Arc::new(Identity {
                    principal: record.principal.as_str().into(),
                    host: record.host.as_str().into(),
                })
            }),
            topics: record.topics.iter().cloned().collect(),
            regex: named(&record.regex),
            assignor: Assignor::named(&record.assignor),
            rebalance_timeout,
            epoch: record.epoch,
            previous_epoch: record.previous_epoch,
            assigned: parts_of(&record.assigned),
            revoke_by: (!revoking.is_empty()).then(|| now + rebalance_timeout),
            revoking,
            target: parts_of(&record.target),
            deadline: now + settings.consumer_session,
        }
    }

    pub(super) fn record(&self, id: &str) -> ConsumerRecord {
        let viewer = self.viewer.as_deref();
        let viewer = viewer.map(|viewer| (&*viewer.principal, &*viewer.host));
        let (principal, host) = viewer.unwrap_or_default();
        ConsumerRecord {
            id: id.to_owned(),
            instance: self.instance.clone().unwrap_or_default(),
            rack: self.rack.clone().unwrap_or_default(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            principal: principal.to_owned(),
            host: host.to_owned(),
            topics: self.topics.iter().cloned().collect(),
            regex: self.regex.clone().unwrap_or_default(),
            assignor: self.assignor.map_or("", Assignor::name).to_owned(),
            rebalance_timeout_ms: millis(self.rebalance_timeout),
            epoch: self.epoch,
            previous_epoch: self.previous_epoch,
            assigned: stored_parts(&self.assigned),
            revoking: stored_parts(&self.revoking),
            target: stored_parts(&self.target),
        }
    }

    /// What it said, in bytes.
    pub(super) fn texts(&self, id: &str) -> usize {
        let whose = [&self.instance, &self.rack].into_iter().flatten();
        let own = [&self.client_id, &self.client_host]
            .into_iter()
            .chain(whose);
        let own: usize = own.map(String::len).sum();
        let own = own + self.viewer.as_deref().map_or(0, viewer_len);
        id.len() + own + wishes(&self.topics, self.regex.as_deref())
    }

    pub(super) fn heard(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// When it is let go, unless something happens before.
    pub(super) fn due(&self) -> Instant {
        self.revoke_by
            .map_or(self.deadline, |by| by.min(self.deadline))
    }

    /// It comes back, within its session, under another id.
    pub(super) fn away(&mut self) {
        self.epoch = LEAVES_TO_RETURN;
        // It reads nothing any more.
        self.revoking.clear();
        self.revoke_by = None;
    }

    /// Whether it said that it comes back.
    pub(super) fn is_away(&self) -> bool {
        self.epoch == LEAVES_TO_RETURN
    }

    /// It is back, and reads nothing yet.
    pub(super) fn returned(&mut self) {
        self.epoch = JOINS;
        self.previous_epoch = JOINS;
    }

    /// Goes on with what another had who bore the same name and is away.
    pub(super) fn inherit(&mut self, old: Self) {
        self.topics = old.topics;
        self.regex = old.regex;
        self.assignor = old.assignor;
        self.rebalance_timeout = old.rebalance_timeout;
        self.assigned = old.assigned;
        self.target = old.target;
        self.returned();
    }

    /// The epoch it says it is in must be its own; or the one before, if the answer that told it of
    /// the new one seems to have been lost: then it has nothing but what it was given.
    pub(super) fn check_epoch(&self, beat: &ConsumerBeat) -> Result<(), GroupError> {
        let owns_no_more = || {
            let owned = beat.owned.as_ref();
            owned.is_some_and(|owned| owned.iter().all(|part| self.assigned.contains(part)))
        };
        if beat.epoch == self.epoch || (beat.epoch == self.previous_epoch && owns_no_more()) {
            Ok(())
        } else {
            Err(GroupError::FencedEpoch)
        }
    }

    /// Whether it has all it is to have, and nothing else.
    pub(super) fn is_settled(&self, epoch: i32) -> bool {
        self.epoch == epoch && self.revoking.is_empty() && self.assigned == self.target
    }

    /// The topics it wants that there are.
    pub(super) fn wanted(&self, patterns: &Patterns, catalogue: &Catalogue) -> BTreeSet<TopicId> {
        let named = self.topics.iter();
        let named = named.filter_map(|name| catalogue.topics.get(name));
        let mut wanted: BTreeSet<TopicId> = named.map(|(id, _)| *id).collect();
        if let Some(text) = &self.regex {
            let pattern = (text.as_str(), self.viewer.as_deref());
            wanted.extend(patterns.matching(pattern, catalogue));
        }
        wanted
    }

    /// The pattern by which it wants topics.
    pub(super) fn pattern(&self) -> Option<Wanted<'_>> {
        Some((self.regex.as_deref()?, self.viewer.as_deref()))
    }
}

/// What it takes to say who somebody is, in bytes.
pub(in crate::group) fn viewer_len(viewer: &Identity) -> usize {
    viewer.principal.len() + viewer.host.len()
}

/// What a member takes with these wishes, in bytes, beside what it says of itself.
pub(super) fn wishes(topics: &BTreeSet<String>, regex: Option<&str>) -> usize {
    let topics: usize = topics.iter().map(|topic| topic.len() + NAME).sum();
    OVERHEAD + topics + regex.map_or(0, str::len)
}
