//! The pulses of one peer and what they say of its groups.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId};

use super::ledger::Ledger;
use super::wire::{Answer, Pulse};
use super::{Hub, WakeReason};
use crate::transport::peer::{PeerError, PeerStream, Refusal};

#[derive(Debug, Default)]
struct State {
    /// Which stream of the peer counts: a newer one replaces the older.
    stream: u64,
    boot: u64,
    /// What the peer vouches for on the present stream.
    vouched: Ledger,
    /// What it vouched for on the stream before and has not said again.
    unconfirmed: BTreeSet<GroupId>,
    /// Groups the replicas here do not agree about, told or to be told to the peer.
    refused: BTreeSet<GroupId>,
    to_refuse: BTreeSet<GroupId>,
}

#[derive(Debug)]
pub(super) struct Inbound {
    node: NodeId,
    state: Mutex<State>,
    filled: Notify,
}

impl Inbound {
    pub(super) fn new(node: NodeId) -> Self {
        Self {
            node,
            state: Mutex::default(),
            filled: Notify::new(),
        }
    }

    /// The replica here no longer agrees with what the peer vouches for.
    pub(super) fn refuse(&self, group: GroupId) {
        let mut state = self.state.lock();
        if state.vouched.get(group).is_none() || !state.refused.insert(group) {
            return;
        }
        state.to_refuse.insert(group);
        drop(state);
        self.filled.notify_one();
    }

    /// Forgets what the peer vouched for; returns the groups that rested on it. On the present
    /// stream they count as refused, so that the peer wakes too should it still live.
    pub(super) fn forget(&self) -> Vec<GroupId> {
        let mut state = self.state.lock();
        let mut groups: Vec<_> = std::mem::take(&mut state.unconfirmed).into_iter().collect();
        for group in state.vouched.groups() {
            if state.refused.insert(group) {
                state.to_refuse.insert(group);
                groups.push(group);
            }
        }
        drop(state);
        self.filled.notify_one();
        groups
    }

    /// Serves one stream of pulses to its end.
    pub(super) async fn serve(&self, hub: &Hub, stream: PeerStream) {
        let number = self.start_over();
        self.take(hub, number, stream).await;
        if self.state.lock().stream == number {
            hub.lives.cut_off(self.node);
        }
    }

    async fn take(&self, hub: &Hub, number: u64, mut stream: PeerStream) {
        let mut answer = Answer::default();
        let mut due: Option<Instant> = None;
        loop {
            let later = Instant::now() + hub.config.interval;
            let flush = tokio::time::sleep_until(due.unwrap_or(later));
            tokio::select! {
                biased;
                received = stream.receiver.recv() => {
                    let pulse = match received {
                        Ok(Some(bytes)) => Pulse::decode(bytes),
                        Ok(None) | Err(_) => return,
                    };
                    let Some(pulse) = pulse else {
                        tracing::warn!(node = %self.node, "a pulse is garbled");
                        stream.refuse(&Refusal::Failed("garbled pulse".into()));
                        return;
                    };
                    answer.sequence = pulse.sequence;
                    if !self.on_pulse(hub, number, pulse) {
                        return;
                    }
                    due.get_or_insert_with(|| Instant::now() + hub.config.tick);
                }
                () = self.filled.notified() => {
                    due.get_or_insert_with(|| Instant::now() + hub.config.tick);
                }
                () = flush, if due.is_some() => {}
            }
            if due.take().is_none() {
                continue;
            }
            answer.clock = hub.clock.now();
            answer.refused = self.take_refused(number);
            if let Err(error) = stream.sender.send(vec![answer.encode()]).await {
                if !matches!(error, PeerError::Broken { .. } | PeerError::Closed) {
                    tracing::warn!(node = %self.node, %error, "cannot answer pulses");
                }
                return;
            }
        }
    }

    fn start_over(&self) -> u64 {
        let mut state = self.state.lock();
        state.stream += 1;
        let rested = state.vouched.groups();
        let refused = std::mem::take(&mut state.refused);
        state
            .unconfirmed
            .extend(rested.into_iter().filter(|group| !refused.contains(group)));
        state.vouched = Ledger::default();
        state.to_refuse.clear();
        state.stream
    }

    /// Takes what a pulse says; false if its stream counts no more.
    fn on_pulse(&self, hub: &Hub, number: u64, pulse: Pulse) -> bool {
        let mut woken = Vec::new();
        hub.lives.heard(self.node, pulse.boot);
        {
            let mut state = self.state.lock();
            if state.stream != number {
                return false;
            }
            let known_boot = std::mem::replace(&mut state.boot, pulse.boot);
            if known_boot != pulse.boot {
                let restarted = WakeReason::NodeRestarted(self.node);
                let rested = std::mem::take(&mut state.unconfirmed);
                woken.extend(rested.into_iter().map(|group| (group, restarted)));
            }
            for group in pulse.withdrawn {
                state.vouched.remove(group);
                state.to_refuse.remove(&group);
                if !state.refused.remove(&group) {
                    woken.push((group, WakeReason::Withdrawn));
                }
            }
        }
        for vouch in pulse.vouches {
            let group = vouch.route.group;
            let ours = vouch.route.from.node() == self.node
                && vouch.route.to.node() == hub.transport.node();
            {
                // On record first: once it agreed, the replica may refuse at any moment.
                let mut state = self.state.lock();
                state.vouched.insert(vouch);
                state.refused.remove(&group);
                state.to_refuse.remove(&group);
            }
            // Asked without the lock: the replica may call back.
            let agreed = ours && hub.handler.on_vouch(&vouch);
            let mut state = self.state.lock();
            let rested = state.unconfirmed.remove(&group);
            if !agreed {
                state.refused.insert(group);
                state.to_refuse.insert(group);
                if rested {
                    woken.push((group, WakeReason::Mismatch));
                }
            }
        }
        self.settle(pulse.synced, (pulse.vouched, pulse.digest), &mut woken);
        for (group, reason) in woken {
            hub.handler.on_wake(group, reason);
        }
        true
    }

    /// Compares what both sides have on record.
    fn settle(&self, synced: bool, theirs: (u64, u64), woken: &mut Vec<(GroupId, WakeReason)>) {
        let mut state = self.state.lock();
        if synced {
            let dropped = std::mem::take(&mut state.unconfirmed);
            woken.extend(
                dropped
                    .into_iter()
                    .map(|group| (group, WakeReason::Withdrawn)),
            );
        }
        if state.vouched.summary() == theirs {
            return;
        }
        tracing::warn!(node = %self.node, "the vouched groups of a node differ from its digest");
        for group in state.vouched.groups() {
            if state.refused.insert(group) {
                state.to_refuse.insert(group);
                woken.push((group, WakeReason::Mismatch));
            }
        }
    }

    fn take_refused(&self, number: u64) -> Vec<GroupId> {
        let mut state = self.state.lock();
        if state.stream != number {
            return Vec::new();
        }
        std::mem::take(&mut state.to_refuse).into_iter().collect()
    }
}
