//! The members of a group of consumers: what each wants, has, is to give up and is to have.

use std::collections::BTreeSet;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use tokio::time::Instant;
use trilog_raft::controller::TopicId;

use super::super::GroupError;
use super::super::types::{ConsumerBeat, Settings};
use super::{
    Assignor, Catalogue, ConsumerRecord, LEAVES_TO_RETURN, Part, millis, parts_of, stored_parts,
};

/// How much one compiled pattern may take, in bytes.
const MAX_PATTERN_BYTES: usize = 256 << 10;
/// Where a member says nothing.
const REBALANCE: Duration = Duration::from_mins(5);
/// What a member costs beside what it said.
const OVERHEAD: usize = 256;

/// Topics by their names' pattern, which must match the whole name.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Pattern {
    pub(super) fn compile(text: &str) -> Result<Self, GroupError> {
        let compiled = |text: &str| {
            let mut builder = RegexBuilder::new(text);
            builder.size_limit(MAX_PATTERN_BYTES);
            builder.dfa_size_limit(MAX_PATTERN_BYTES);
            builder.build().map_err(|_| GroupError::InvalidRegex)
        };
        // By itself, too: what closes more groups than it opens would escape the brackets.
        compiled(text)?;
        Ok(Self {
            text: text.to_owned(),
            regex: compiled(&format!("^(?:{text})$"))?,
        })
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: Option<String>,
    pub(super) rack: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    pub(super) topics: BTreeSet<String>,
    pub(super) regex: Option<Pattern>,
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
            topics: BTreeSet::new(),
            regex: None,
            assignor: None,
            rebalance_timeout: REBALANCE,
            epoch: 0,
            previous_epoch: 0,
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
            topics: record.topics.iter().cloned().collect(),
            // It was compiled when it came.
            regex: named(&record.regex).and_then(|text| Pattern::compile(&text).ok()),
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
        let regex = self.regex.as_ref();
        ConsumerRecord {
            id: id.to_owned(),
            instance: self.instance.clone().unwrap_or_default(),
            rack: self.rack.clone().unwrap_or_default(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            topics: self.topics.iter().cloned().collect(),
            regex: regex.map(|regex| regex.text.clone()).unwrap_or_default(),
            assignor: self.assignor.map_or("", Assignor::name).to_owned(),
            rebalance_timeout_ms: millis(self.rebalance_timeout),
            epoch: self.epoch,
            previous_epoch: self.previous_epoch,
            assigned: stored_parts(&self.assigned),
            revoking: stored_parts(&self.revoking),
            target: stored_parts(&self.target),
        }
    }

    /// Whether it was just made.
    pub(super) fn is_new(&self) -> bool {
        self.epoch == 0 && self.topics.is_empty() && self.regex.is_none()
    }

    /// What it said, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let own = self.client_id.len() + self.client_host.len();
        let topics: usize = self.topics.iter().map(|topic| topic.len() + 32).sum();
        let regex = self.regex.as_ref().map_or(0, |regex| regex.text.len());
        OVERHEAD + own + topics + regex
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

    /// Goes on with what another had who bore the same name.
    pub(super) fn inherit(&mut self, old: Self) {
        self.topics = old.topics;
        self.regex = old.regex;
        self.assignor = old.assignor;
        self.rebalance_timeout = old.rebalance_timeout;
        self.assigned = old.assigned;
        self.target = old.target;
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
    pub(super) fn wanted(&self, catalogue: &Catalogue) -> BTreeSet<TopicId> {
        let named = self.topics.iter();
        let named = named.filter_map(|name| catalogue.topics.get(name));
        let mut wanted: BTreeSet<TopicId> = named.map(|(id, _)| *id).collect();
        if let Some(pattern) = &self.regex {
            let matching = catalogue.topics.iter();
            let matching = matching.filter(|(name, _)| pattern.regex.is_match(name));
            wanted.extend(matching.map(|(_, (id, _))| *id));
        }
        wanted
    }
}
