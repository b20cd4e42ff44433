//! The pulses to one peer and the answers to them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_model::{GroupId, NodeId, Timestamp};

use super::ledger::Ledger;
use super::wire::{Answer, Pulse};
use super::{ClockOffset, Hub, Vouch, WakeReason};
use crate::transport::peer::{Kind, Lane, PeerError, Refusal, Route, Target};
use crate::transport::stream::{StreamReceiver, StreamSender};

/// A pulse is cut at about this size.
const MAX_PULSE: usize = 128 * 1024;
/// Pulses whose answers still tell something about clocks.
const MAX_SENT: usize = 16;

#[derive(Debug, Default)]
struct State {
    sequence: u64,
    /// Everything vouched for to this peer.
    vouched: Ledger,
    /// What of it the peer has been told on the present stream.
    told: Ledger,
    /// Groups in which the two differ.
    changed: BTreeSet<GroupId>,
    /// Who waits for the peer's agreement, and from which pulse's answer on it counts.
    agreements: BTreeMap<GroupId, Agreement>,
    /// The latest pulses, with when they left by either clock.
    sent: VecDeque<Sent>,
    offset: Option<ClockOffset>,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    sequence: u64,
    at: Instant,
    clock: Timestamp,
}

#[derive(Debug)]
struct Agreement {
    told_in: Option<u64>,
    waiting: oneshot::Sender<Result<(), PeerError>>,
}

impl State {
    /// Compares clocks: the answer was written between the pulse's departure and now.
    fn measure(&mut self, sequence: u64, theirs: Timestamp) {
        let Some(sent) = self.sent.iter().find(|sent| sent.sequence == sequence) else {
            return;
        };
        let half = sent.at.elapsed() / 2;
        let half_nanos = i128::try_from(half.as_nanos()).unwrap_or(i128::MAX);
        let middle = i128::from(sent.clock.nanos()).saturating_add(half_nanos);
        let ahead = i128::from(theirs.nanos()).saturating_sub(middle);
        self.offset = Some(ClockOffset {
            ahead_nanos: i64::try_from(ahead).unwrap_or(if ahead < 0 {
                i64::MIN
            } else {
                i64::MAX
            }),
            uncertainty: half,
        });
    }
}

#[derive(Debug)]
pub(super) struct Outbound {
    node: NodeId,
    state: Mutex<State>,
    filled: Notify,
    gone: CancellationToken,
}

impl Outbound {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            state: Mutex::default(),
            filled: Notify::new(),
            gone: CancellationToken::new(),
        }
    }

    pub(super) fn clock_offset(&self) -> Option<ClockOffset> {
        self.state.lock().offset
    }

    /// The node left the address book.
    pub(super) fn stop(&self) {
        self.gone.cancel();
    }

    pub(super) async fn vouch(&self, vouch: Vouch) -> Result<(), PeerError> {
        let (waiting, agreed) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let group = vouch.route.group;
            state.vouched.insert(vouch);
            state.changed.insert(group);
            let agreement = Agreement {
                told_in: None,
                waiting,
            };
            state.agreements.insert(group, agreement);
        }
        self.filled.notify_one();
        agreed.await.unwrap_or(Err(PeerError::Closed))
    }

    pub(super) fn withdraw(&self, group: GroupId) {
        let mut state = self.state.lock();
        state.agreements.remove(&group);
        if state.vouched.remove(group).is_some() {
            state.changed.insert(group);
            drop(state);
            self.filled.notify_one();
        }
    }

    /// Vouches for nothing any more; returns what it vouched for.
    pub(super) fn forget(&self) -> Vec<GroupId> {
        let mut state = self.state.lock();
        state.offset = None;
        let groups = state.vouched.groups();
        for group in &groups {
            state.vouched.remove(*group);
            state.changed.insert(*group);
        }
        state.agreements.clear();
        groups
    }

    pub(super) async fn run(&self, hub: &Hub) {
        let serving = async {
            loop {
                let target = Target {
                    node: self.node,
                    lane: Lane::Control,
                    kind: Kind::HEARTBEAT,
                    route: Route::default(),
                };
                let opened = hub.transport.open_stream(target, hub.config.timeout).await;
                if let Ok((sender, receiver)) = opened {
                    // What is vouched for stays, and is told again on the next stream, unless
                    // the node dies first.
                    let ended = self.session(hub, sender, receiver).await;
                    tracing::debug!(node = %self.node, %ended, "a stream of pulses ended");
                }
                tokio::time::sleep(hub.config.interval).await;
            }
        };
        tokio::select! {
            biased;
            () = self.gone.cancelled() => {}
            () = serving => {}
        }
        for group in self.forget() {
            hub.handler.on_wake(group, WakeReason::NodeDead(self.node));
        }
    }

    /// Pulses over one stream until it fails.
    async fn session(
        &self,
        hub: &Hub,
        mut sender: StreamSender,
        mut receiver: StreamReceiver,
    ) -> PeerError {
        self.start_over();
        let sending = async {
            let mut first = true;
            loop {
                let sent_at = Instant::now();
                // One more pulse than needed never hurts, and tells the peer we live.
                loop {
                    let (pulse, more) = self.next_pulse(hub, first);
                    first = false;
                    if let Err(error) = sender.send(vec![pulse]).await {
                        return error;
                    }
                    if !more {
                        break;
                    }
                }
                tokio::select! {
                    biased;
                    () = self.filled.notified() => tokio::time::sleep(hub.config.tick).await,
                    () = tokio::time::sleep_until(sent_at + hub.config.interval) => {}
                }
            }
        };
        let receiving = async {
            loop {
                match receiver.recv().await {
                    Ok(Some(bytes)) => match Answer::decode(bytes) {
                        Some(answer) => self.on_answer(hub, answer),
                        None => return PeerError::Refused(Refusal::Failed("garbled".into())),
                    },
                    Ok(None) => return PeerError::Closed,
                    Err(error) => return error,
                }
            }
        };
        tokio::select! {
            biased;
            error = receiving => error,
            error = sending => error,
        }
    }

    /// A new stream: the peer has been told nothing on it.
    fn start_over(&self) {
        let mut state = self.state.lock();
        state.told = Ledger::default();
        state.changed = state.vouched.groups().into_iter().collect();
        for agreement in state.agreements.values_mut() {
            agreement.told_in = None;
        }
    }

    /// The next pulse, and whether more is left to say.
    fn next_pulse(&self, hub: &Hub, first: bool) -> (Bytes, bool) {
        let mut state = self.state.lock();
        let state = &mut *state;
        state.sequence += 1;
        let mut pulse = Pulse {
            sequence: state.sequence,
            clock: hub.clock.now(),
            boot: hub.boot,
            first,
            ..Pulse::default()
        };
        if state.sent.len() == MAX_SENT {
            state.sent.pop_front();
        }
        state.sent.push_back(Sent {
            sequence: pulse.sequence,
            at: Instant::now(),
            clock: pulse.clock,
        });
        let mut len = 0;
        while len < MAX_PULSE
            && let Some(group) = state.changed.pop_first()
        {
            len += 32;
            if let Some(vouch) = state.vouched.get(group) {
                pulse.vouches.push(*vouch);
                state.told.insert(*vouch);
                if let Some(agreement) = state.agreements.get_mut(&group) {
                    agreement.told_in = Some(state.sequence);
                }
            } else if state.told.remove(group).is_some() {
                pulse.withdrawn.push(group);
            }
        }
        pulse.synced = state.changed.is_empty();
        (pulse.vouched, pulse.digest) = state.told.summary();
        (pulse.encode(), !pulse.synced)
    }

    fn on_answer(&self, hub: &Hub, answer: Answer) {
        let mut woken = Vec::new();
        {
            let mut state = self.state.lock();
            state.measure(answer.sequence, answer.clock);
            for group in answer.refused {
                if let Some(agreement) = state.agreements.remove(&group) {
                    let refused = PeerError::Refused(Refusal::Failed("not agreed".into()));
                    let _ = agreement.waiting.send(Err(refused));
                }
                if state.vouched.remove(group).is_some() {
                    state.changed.insert(group);
                    woken.push(group);
                }
            }
            let agreed = |_: &GroupId, agreement: &mut Agreement| {
                agreement
                    .told_in
                    .is_some_and(|told| told <= answer.sequence)
            };
            for (_, agreement) in state.agreements.extract_if(.., agreed) {
                let _ = agreement.waiting.send(Ok(()));
            }
        }
        for group in woken {
            self.filled.notify_one();
            hub.handler.on_wake(group, WakeReason::Refused(self.node));
        }
    }
}
