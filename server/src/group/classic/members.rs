//! The members of a group: what they said, who waits for what, and who was last heard when.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use trilog_storage::env::Entropy;
use uuid::Uuid;

use super::super::GroupError;
use super::super::types::{JoinRequest, Protocol};
use super::{Ctx, Group, JoinReply, Phase, Store, SyncReply, Then};
use crate::view::group::command::MemberRecord;

/// How long a member that joined without an id may wait for its first answer. It cannot send
/// heartbeats before, and its client may be long gone.
const FIRST_ANSWER: Duration = Duration::from_mins(5);
/// What a member costs beside what it said.
const OVERHEAD: usize = 256;

/// What [`new_id`] adds to whose id it is.
pub(in crate::group) const ID_SUFFIX: usize = 37;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) instance: Option<String>,
    pub(super) client_id: String,
    pub(super) client_host: String,
    session_timeout: Duration,
    pub(super) rebalance_timeout: Duration,
    pub(super) protocols: Vec<Protocol>,
    pub(super) assignment: Bytes,
    /// Never answered yet.
    pub(super) fresh: bool,
    /// Until when it must be heard from.
    deadline: Instant,
    pub(super) joining: Option<JoinReply>,
    pub(super) syncing: Option<SyncReply>,
}

/// Bytes that protocols take.
pub(super) fn said(protocols: &[Protocol]) -> usize {
    let each = protocols.iter();
    each.map(|protocol| protocol.name.len() + protocol.metadata.len())
        .sum()
}

/// Bytes of a member that joins like this, as [`Member::bytes`] has them.
pub(super) fn asked(request: &JoinRequest) -> usize {
    let instance = request.instance.as_ref().map_or(0, String::len);
    let id = match request.member.len() {
        0 => request.client_id.len().max(instance) + ID_SUFFIX,
        length => length,
    };
    let own = 2 * (id + instance) + request.client_id.len() + request.client_host.len();
    OVERHEAD + own + said(&request.protocols)
}

/// An id that nobody has, and that tells people whose it is.
pub(crate) fn new_id(whose: &str, entropy: &Entropy) -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&entropy.next_u64().to_be_bytes());
    bytes[8..].copy_from_slice(&entropy.next_u64().to_be_bytes());
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    format!("{whose}-{}", Uuid::from_bytes(bytes))
}

impl Member {
    fn new(request: JoinRequest, reply: JoinReply, deadline: Instant) -> Self {
        Self {
            instance: request.instance,
            client_id: request.client_id,
            client_host: request.client_host,
            session_timeout: request.session_timeout,
            rebalance_timeout: request.rebalance_timeout,
            protocols: request.protocols,
            assignment: Bytes::new(),
            fresh: true,
            deadline,
            joining: Some(reply),
            syncing: None,
        }
    }

    pub(super) fn load(record: &MemberRecord, protocol: &str, now: Instant) -> Self {
        let session_timeout = Duration::from_millis(record.session_timeout_ms);
        Self {
            instance: record.instance_name().map(str::to_owned),
            client_id: record.client_id.clone(),
            client_host: record.client_host.clone(),
            session_timeout,
            rebalance_timeout: Duration::from_millis(record.rebalance_timeout_ms),
            protocols: vec![Protocol {
                name: protocol.to_owned(),
                metadata: record.subscription.clone(),
            }],
            assignment: record.assignment.clone(),
            fresh: false,
            deadline: now + session_timeout,
            joining: None,
            syncing: None,
        }
    }

    pub(super) fn record(&self, id: &str, protocol: &str, assignment: Bytes) -> MemberRecord {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        MemberRecord {
            id: id.to_owned(),
            instance: self.instance.clone().unwrap_or_default(),
            client_id: self.client_id.clone(),
            client_host: self.client_host.clone(),
            session_timeout_ms: millis(self.session_timeout),
            rebalance_timeout_ms: millis(self.rebalance_timeout),
            subscription: self.metadata(protocol),
            assignment,
        }
    }

    pub(super) fn supports(&self, name: &str) -> bool {
        self.protocols.iter().any(|protocol| protocol.name == name)
    }

    /// What it says under a protocol.
    pub(super) fn metadata(&self, name: &str) -> Bytes {
        let mut protocols = self.protocols.iter();
        let said = protocols.find(|protocol| protocol.name == name);
        said.map(|protocol| protocol.metadata.clone())
            .unwrap_or_default()
    }

    pub(super) fn bytes(&self, id: &str) -> usize {
        let instance = self.instance.as_ref().map_or(0, String::len);
        let own = 2 * (id.len() + instance) + self.client_id.len() + self.client_host.len();
        OVERHEAD + own + self.assignment.len() + said(&self.protocols)
    }

    pub(super) fn heard(&mut self, now: Instant) {
        self.deadline = now + self.session_timeout;
    }

    /// When it is given up, if it is not heard from.
    pub(super) fn due(&self) -> Option<Instant> {
        let waits = self.joining.is_some() || self.syncing.is_some();
        (self.fresh || !waits).then_some(self.deadline)
    }

    /// It joins again.
    pub(super) fn update(&mut self, request: JoinRequest, reply: JoinReply) {
        self.client_id = request.client_id;
        self.client_host = request.client_host;
        self.session_timeout = request.session_timeout;
        self.rebalance_timeout = request.rebalance_timeout;
        self.protocols = request.protocols;
        if let Some(earlier) = self.joining.replace(reply) {
            drop(earlier.send(Err(GroupError::RebalanceInProgress)));
        }
    }

    /// Tells it, whatever it waits for, why it waits no more.
    fn dismiss(&mut self, error: &GroupError) {
        if let Some(reply) = self.joining.take() {
            drop(reply.send(Err(error.clone())));
        }
        if let Some(reply) = self.syncing.take() {
            drop(reply.send(Err(error.clone())));
        }
    }
}

impl Group {
    /// A new member, which waits for the rebalance.
    pub(super) fn add(
        &mut self,
        id: String,
        request: JoinRequest,
        reply: JoinReply,
        ctx: &mut Ctx<'_>,
    ) {
        self.pending.remove(&id);
        if self.members.is_empty() {
            self.protocol_type.clone_from(&request.protocol_type);
        }
        if matches!(self.phase, Phase::Preparing { .. }) && self.generation == 0 {
            self.newcomers = true;
        }
        if let Some(instance) = &request.instance {
            self.instances.insert(instance.clone(), id.clone());
        }
        if self.leader.is_none() {
            self.leader = Some(id.clone());
        }
        let member = Member::new(request, reply, ctx.now + FIRST_ANSWER);
        self.members.insert(id, member);
        self.rebalance(ctx);
    }

    /// A member that was started again takes the place of its former self. In a stable group,
    /// if nothing else changes, nobody else notices.
    pub(super) fn replace(
        &mut self,
        old: &str,
        new: String,
        request: JoinRequest,
        reply: JoinReply,
        ctx: &mut Ctx<'_>,
    ) {
        let before = self.leader.clone();
        let Some(mut member) = self.members.remove(old) else {
            return;
        };
        member.dismiss(&GroupError::FencedInstance);
        if self.leader.as_deref() == Some(old) {
            self.leader = Some(new.clone());
        }
        if let Some(instance) = &request.instance {
            self.instances.insert(instance.clone(), new.clone());
        }
        if self.unsynced.remove(old) {
            self.unsynced.insert(new.clone());
        }
        let can_skip = request.can_skip_assignment;
        member.update(request, reply);
        member.heard(ctx.now);
        self.members.insert(new.clone(), member);
        match self.phase {
            Phase::Stable { .. } if self.select_protocol() == self.protocol => {
                let given = self.members.iter();
                let given = given.map(|(id, member)| (id.clone(), member.assignment.clone()));
                let membership = self.membership(&given.collect());
                let leader = before.filter(|_| !can_skip);
                ctx.stores.push(Store {
                    membership,
                    then: Then::Answer {
                        member: new,
                        leader,
                    },
                });
            }
            Phase::Preparing { .. } => {}
            Phase::Empty | Phase::Completing { .. } | Phase::Stable { .. } => self.rebalance(ctx),
        }
    }

    /// Takes a member out; the others rebalance.
    pub(super) fn remove(&mut self, id: &str, ctx: &mut Ctx<'_>) {
        self.take_out(id);
        match self.phase {
            Phase::Preparing { .. } => self.try_complete(ctx),
            Phase::Empty | Phase::Completing { .. } | Phase::Stable { .. } => self.rebalance(ctx),
        }
    }

    pub(super) fn take_out(&mut self, id: &str) {
        let Some(mut member) = self.members.remove(id) else {
            return;
        };
        member.dismiss(&GroupError::UnknownMember);
        self.unsynced.remove(id);
        if let Some(instance) = &member.instance
            && self.instances.get(instance).is_some_and(|now| now == id)
        {
            self.instances.remove(instance);
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }
}
