//! A worker's Kafka client: a producer, idempotent or with transactions, and a consumer that is
//! assigned its keys or subscribes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::auditor::Look;
use super::hand::{self, Kind, Outcome, Polled, Positions};
use super::{GROUP, Stage};
use crate::history::{Key, Mop, ON_PURPOSE};
use crate::kafka::{Client, Fault, Identity, Member};

/// How long a node waits for something to come.
const WAIT: Duration = Duration::from_millis(30);
/// How long a member says nothing to its coordinator.
const BEAT: Duration = Duration::from_millis(400);

#[derive(Debug)]
pub(super) struct KafkaHand {
    pub(super) client: Client,
    stage: Arc<Stage>,
    /// The transactional id, if it has one.
    id: Option<String>,
    /// The rack it reads in, if it does not read from leaders.
    rack: Option<String>,
    identity: Option<Identity>,
    pub(super) positions: Positions,
    preferred: BTreeMap<Key, u32>,
    member: Option<Member>,
    /// The process of the history that asks where the group is, in the middle of what others do.
    asking: Option<u32>,
    beaten: Option<Instant>,
    name: String,
}

/// What was read and is not settled yet.
#[derive(Debug, Default)]
struct Read {
    polled: Polled,
    positions: BTreeMap<Key, u64>,
}

impl KafkaHand {
    pub(super) fn new(kind: Kind, name: &str, nth: u32, stage: &Arc<Stage>) -> Self {
        let count = u32::try_from(stage.nodes.len()).unwrap_or(1).max(1);
        let first = usize::try_from(nth).unwrap_or(0);
        let rack = format!("rack-{}", nth % count + 1);
        Self {
            client: stage.kafka_client(first),
            stage: Arc::clone(stage),
            id: (kind == Kind::Transactional).then(|| name.to_owned()),
            rack: (kind == Kind::Near).then_some(rack),
            identity: None,
            positions: Positions::new(),
            preferred: BTreeMap::new(),
            member: None,
            asking: None,
            beaten: None,
            name: name.to_owned(),
        }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.stage.patience
    }

    async fn identity(&mut self, deadline: Instant) -> Result<Identity, Fault> {
        if let Some(identity) = self.identity.clone() {
            return Ok(identity);
        }
        let timeout = self.stage.txn_timeout;
        let made = self
            .client
            .init_producer(self.id.as_deref(), timeout, deadline)
            .await;
        // A producer that nobody uses is none that did anything.
        let identity = made.map_err(Fault::certain)?;
        self.identity = Some(identity.clone());
        Ok(identity)
    }

    pub(super) async fn send(&mut self, key: Key, value: u64) -> Result<u64, Fault> {
        let deadline = self.deadline();
        let mut identity = self.identity(deadline).await?;
        let sent = self
            .client
            .send(&mut identity, None, (key, value), deadline)
            .await;
        // What a producer has lost track of another one does not take up.
        self.identity = sent.is_ok().then_some(identity);
        sent
    }

    pub(super) async fn transact(&mut self, mops: &[Mop], abort: bool) -> Outcome {
        let mut outcome = Outcome {
            mops: mops.to_vec(),
            ..Outcome::default()
        };
        let Some(id) = self.id.clone() else {
            outcome.fault = Some(Fault::Not("this producer has no transactions".to_owned()));
            return outcome;
        };
        let deadline = self.deadline();
        let identity = match self.identity(deadline).await {
            Ok(identity) => identity,
            Err(fault) => {
                outcome.fault = Some(fault);
                return outcome;
            }
        };
        let mut open = Open {
            id,
            identity,
            keys: Vec::new(),
            deadline,
        };
        let mut positions = self.positions.clone();
        let done = self.steps(&mut open, &mut outcome, &mut positions).await;
        // What may have been appended, or be yet, has used its sequence up, or has not: who goes on
        // with it could be told of it in the place of something else.
        let astray = matches!(done, Err(Fault::Unknown(_)));
        // Nobody but this producer commits it: until that was asked for it surely is not.
        let ended = match done {
            Ok(()) if abort => Err(Fault::Not(ON_PURPOSE.to_owned())),
            Ok(()) if open.keys.is_empty() && outcome.offsets.is_empty() => Ok(false),
            Ok(()) => {
                self.client
                    .end_txn(&open.id, &open.identity, true, deadline)
                    .await
            }
            Err(fault) => Err(fault.certain()),
        };
        match ended {
            Ok(late) => {
                self.positions = positions;
                self.identity = (!late).then_some(open.identity);
            }
            Err(fault) => {
                self.identity = None;
                if let (Fault::Not(_), false) = (&fault, open.keys.is_empty()) {
                    let aborting = self
                        .client
                        .end_txn(&open.id, &open.identity, false, deadline);
                    if let Ok(false) = aborting.await {
                        self.identity = (!astray).then_some(open.identity);
                    }
                }
                self.lose_place();
                outcome.fault = Some(fault);
            }
        }
        outcome
    }

    /// Everything of a transaction but its end.
    async fn steps(
        &mut self,
        open: &mut Open,
        outcome: &mut Outcome,
        positions: &mut BTreeMap<Key, u64>,
    ) -> Result<(), Fault> {
        for nth in 0..outcome.mops.len() {
            match outcome.mops[nth].clone() {
                Mop::Send { key, value, .. } => {
                    if !open.keys.contains(&key) {
                        open.keys.push(key);
                        let (id, identity) = (&open.id, &open.identity);
                        self.client
                            .add_keys(id, identity, &[key], open.deadline)
                            .await?;
                    }
                    let id = Some(open.id.as_str());
                    let sending =
                        self.client
                            .send(&mut open.identity, id, (key, value), open.deadline);
                    let offset = Some(sending.await?);
                    outcome.mops[nth] = Mop::Send {
                        key,
                        value,
                        offset,
                        term: None,
                    };
                }
                Mop::Poll(_) => {
                    let read = self.read(positions).await?;
                    positions.clone_from(&read.positions);
                    outcome.mops[nth] = Mop::Poll(read.polled.runs);
                    outcome.rebalanced.extend(read.polled.rebalanced);
                    if let Some(fault) = read.polled.fault {
                        return Err(fault);
                    }
                    outcome.offsets.extend(read.polled.offsets);
                }
            }
        }
        if let (Some(member), false) = (self.member.clone(), outcome.offsets.is_empty()) {
            let offsets = outcome.offsets.clone();
            let adding =
                self.client
                    .add_offsets(&open.id, &open.identity, &member, &offsets, open.deadline);
            open.keys.extend(offsets.keys());
            adding.await?;
        }
        Ok(())
    }

    pub(super) async fn poll(&mut self) -> Result<Polled, Fault> {
        let before = self.positions.clone();
        let mut read = match self.read(&before).await {
            Ok(read) => read,
            Err(fault) => {
                self.lose_place();
                return Err(fault.certain());
            }
        };
        if read.polled.fault.is_some() {
            self.lose_place();
            read.polled.offsets.clear();
            return Ok(read.polled);
        }
        if let (Some(member), false) = (self.member.clone(), read.polled.offsets.is_empty()) {
            let deadline = self.deadline();
            let committed = self
                .client
                .commit(&member, &read.polled.offsets, deadline)
                .await;
            if let Err(fault) = committed {
                self.lose_place();
                // What may be committed is said, for it explains where the group is later.
                read.polled.fault = Some(fault);
                return Ok(read.polled);
            }
        }
        self.positions = read.positions;
        Ok(read.polled)
    }

    /// A member goes back to what its group has committed.
    fn lose_place(&mut self) {
        if self.member.is_some() {
            self.positions.clear();
        }
    }

    /// Reads on from `positions`; as a member from wherever its group is in keys that are new.
    async fn read(&mut self, positions: &BTreeMap<Key, u64>) -> Result<Read, Fault> {
        let mut read = Read {
            positions: positions.clone(),
            ..Read::default()
        };
        if self.member.is_some() {
            read.polled.rebalanced = self.follow_group(&mut read.positions).await?;
        }
        let rack = self.rack.clone();
        let from = read.positions.clone();
        let fetching = self
            .client
            .fetch(&from, rack.as_deref(), &mut self.preferred, WAIT);
        for (key, fetched) in fetching.await.map_err(Fault::certain)? {
            if self.member.is_some() && fetched.next > from.get(&key).copied().unwrap_or(0) {
                read.polled.offsets.insert(key, fetched.next);
            }
            read.positions.insert(key, fetched.next);
            let damaged = fetched.damaged.map(Fault::Not);
            read.polled.fault = read.polled.fault.or(damaged);
            if !fetched.records.is_empty() {
                read.polled.runs.push((key, fetched.records));
            }
        }
        Ok(read)
    }

    /// Hears what the group gives; the keys that came or went.
    async fn follow_group(
        &mut self,
        positions: &mut BTreeMap<Key, u64>,
    ) -> Result<Vec<Key>, Fault> {
        let deadline = self.deadline();
        let Some(mut member) = self.member.take() else {
            return Ok(Vec::new());
        };
        let due = self.beaten.is_none_or(|beaten| beaten.elapsed() >= BEAT);
        let mut changed = Vec::new();
        if due || member.epoch == 0 {
            let heard = self.client.heartbeat(&mut member, deadline).await;
            self.beaten = Some(Instant::now());
            match heard {
                Ok(keys) => changed = keys,
                Err(fault) => {
                    self.member = Some(member);
                    return Err(fault);
                }
            }
        }
        positions.retain(|key, _| member.assigned.contains(key) && !changed.contains(key));
        let assigned = member.assigned.iter().copied();
        let new: Vec<Key> = assigned
            .filter(|key| !positions.contains_key(key))
            .collect();
        if !new.is_empty() {
            let process = *self.asking.get_or_insert_with(|| self.stage.process());
            let look = Look {
                stage: &self.stage,
                process,
                member: Some(&member),
            };
            let committed = look.at(&mut self.client, &new, deadline).await;
            let committed = match committed {
                Ok(committed) => committed,
                Err(fault) => {
                    self.member = Some(member);
                    return Err(fault);
                }
            };
            positions.extend(committed);
        }
        self.member = Some(member);
        Ok(changed)
    }

    pub(super) async fn assign(&mut self, keys: &[Key], seek_to_beginning: bool) {
        if let Some(member) = self.member.take() {
            let deadline = self.deadline();
            self.client.leave(&member, deadline).await;
            self.positions.clear();
        }
        hand::place(&mut self.positions, keys, seek_to_beginning);
    }

    pub(super) fn subscribe(&mut self) {
        if self.member.is_none() {
            let number = self.stage.process();
            self.member = Some(Member::new(GROUP, format!("{}-{number}", self.name)));
            self.positions.clear();
            self.beaten = None;
        }
    }
}

/// A transaction that was begun.
struct Open {
    id: String,
    identity: Identity,
    /// What it has touched.
    keys: Vec<Key>,
    deadline: Instant,
}
