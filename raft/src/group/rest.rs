//! Whether a replica rests: its timers are off because nothing happens in its group.
//!
//! ```text
//!             idle, all level               all agreed
//!      Awake ─────────────────> Offering ──────────────> Leading
//!      │ ^ ^ ^                     │ used, not agreed       │ used, doubted, refused, deposed,
//!      │ │ │ └─────────────────────┴────────────────────────┘ a follower's node lost or back
//!      │ │ └───── heard of news, another vote ─────┐
//!      │ │                                         │
//!      └─┼── vouched for, level ───────────────> Following
//!        │                                         │ withdrawn, refused, doubted, node lost
//!        └─ heard, another vote, patience over ─ Doubting
//! ```
//!
//! The leader's node vouches for a resting group, which stands in for its heartbeats; so a
//! replica that rests refuses votes as one does whose leader's lease holds. A follower that loses
//! trust does not tick at once: its timer ran out long ago, so it would stand for election before
//! its leader, if it lives, could say anything. It tells the leader's node, and waits.
//!
//! Pure: time arrives as an argument, and what has to be done is left in [`Duties`].

use std::time::Duration;

use tokio::time::Instant;
use trilog_model::{LogIndex, ReplicaId, Term};

use super::Leadership;
use crate::transport::heartbeat::Vouch;

/// What a replica's timers do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// They run.
    Awake,
    /// They run while the followers are asked to agree; the number tells this offer from others.
    Offering(u64),
    /// Off: this replica leads, and its node vouches for it.
    Leading,
    /// Off: another node vouches.
    Following(Vouch),
    /// Still off: the leader has until then to be heard.
    Doubting { vouch: Vouch, until: Instant },
    /// The replica is closed.
    Closed,
}

/// What a transition leaves to be done, each once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Duties {
    /// Take back the word given to the followers.
    pub(super) withdraw: bool,
    /// Tell the leader's node that its word is not agreed to any more.
    pub(super) refuse: bool,
    /// Let the followers hear from this leader at once.
    pub(super) renew: bool,
}

/// What changes whenever something happens in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) term: Term,
    pub(super) last: Option<LogIndex>,
    pub(super) applied: Option<LogIndex>,
}

/// What a replica knows of its group, at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) leadership: Leadership,
    pub(super) mark: Mark,
    /// All of the log is durable, known as committed, and applied.
    pub(super) level: bool,
}

/// The rest of one replica.
#[derive(Debug)]
pub(super) struct Rest {
    me: ReplicaId,
    state: State,
    /// Calls under way for which a leader has to be awake.
    users: u32,
    quiet_since: Instant,
    mark: Mark,
    offers: u64,
    duties: Duties,
}

impl Rest {
    pub(super) fn new(me: ReplicaId, now: Instant) -> Self {
        Self {
            me,
            state: State::Awake,
            users: 0,
            quiet_since: now,
            mark: Mark::default(),
            offers: 0,
            duties: Duties::default(),
        }
    }

    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Whether the timers run.
    pub(super) fn ticks(&self) -> bool {
        match self.state {
            State::Awake | State::Offering(_) | State::Closed => true,
            State::Leading | State::Following(_) | State::Doubting { .. } => false,
        }
    }

    pub(super) fn take_duties(&mut self) -> Duties {
        std::mem::take(&mut self.duties)
    }

    /// A call begins for which a leader has to be awake. True if it rested: its lease, which is
    /// over, has to be renewed first.
    pub(super) fn used(&mut self, now: Instant) -> bool {
        self.users += 1;
        self.quiet_since = now;
        let rested = self.state == State::Leading;
        self.wake_leader();
        // Whoever called renews the lease, and waits for it.
        self.duties.renew = false;
        rested
    }

    /// The call is over.
    pub(super) fn done(&mut self, now: Instant) {
        self.users = self.users.saturating_sub(1);
        self.quiet_since = now;
    }

    /// Ends this replica's rest, or its wish to, as a leader.
    fn wake_leader(&mut self) {
        match self.state {
            State::Offering(_) => self.duties.withdraw = true,
            State::Leading => {
                self.duties.withdraw = true;
                self.duties.renew = true;
            }
            State::Awake | State::Following(_) | State::Doubting { .. } | State::Closed => return,
        }
        self.state = State::Awake;
    }

    /// Ends this replica's rest as a follower.
    fn wake_follower(&mut self) {
        if matches!(self.state, State::Following(_) | State::Doubting { .. }) {
            self.state = State::Awake;
            self.duties.refuse = true;
        }
    }

    /// Compares with what was known before. `heard` says that the leader was just heard, so that
    /// this replica's timer runs afresh.
    pub(super) fn look(&mut self, look: &Look, heard: bool, now: Instant) {
        if self.mark != look.mark {
            self.mark = look.mark;
            self.quiet_since = now;
        }
        let leader = look.leadership.leader;
        match self.state {
            State::Offering(_) | State::Leading if leader != Some(self.me) => self.wake_leader(),
            State::Following(vouch) if !covers(&vouch, look) || !look.level => self.wake_follower(),
            State::Doubting { vouch, .. } if heard || !covers(&vouch, look) => self.wake_follower(),
            State::Awake
            | State::Offering(_)
            | State::Leading
            | State::Following(_)
            | State::Doubting { .. }
            | State::Closed => {}
        }
    }

    /// Whether nothing happened here for so long that the followers may be asked to rest.
    pub(super) fn is_idle(&self, quiesce_after: Duration, now: Instant) -> bool {
        self.state == State::Awake
            && self.users == 0
            && now.saturating_duration_since(self.quiet_since) >= quiesce_after
    }

    /// The followers are about to be asked. The number has to be given back with the answer.
    pub(super) fn offer(&mut self) -> u64 {
        self.offers += 1;
        self.state = State::Offering(self.offers);
        self.offers
    }

    /// What became of an offer.
    pub(super) fn answered(&mut self, offer: u64, agreed: bool, now: Instant) {
        if self.state != State::Offering(offer) {
            // Something came between. Some of the followers may rest on it still.
            self.wake_leader();
            self.duties.withdraw = true;
            return;
        }
        if agreed {
            self.state = State::Leading;
        } else {
            self.quiet_since = now;
            self.wake_leader();
        }
    }

    /// Another node vouches for a leader. True if this replica rests on that from now on.
    pub(super) fn vouched(&mut self, vouch: &Vouch, look: &Look) -> bool {
        let may = match self.state {
            State::Awake | State::Following(_) | State::Doubting { .. } => true,
            State::Offering(_) | State::Leading | State::Closed => false,
        };
        let agreed = may && look.level && covers(vouch, look);
        if agreed {
            self.state = State::Following(*vouch);
        }
        agreed
    }

    /// There is a reason to look after the group again; a leader that lives has until then to be
    /// heard.
    pub(super) fn doubted(&mut self, until: Instant) {
        match self.state {
            State::Offering(_) | State::Leading => self.wake_leader(),
            State::Following(vouch) => {
                self.state = State::Doubting { vouch, until };
                self.duties.refuse = true;
            }
            State::Doubting { vouch, until: old } => {
                let until = until.min(old);
                self.state = State::Doubting { vouch, until };
            }
            State::Awake | State::Closed => {}
        }
    }

    /// A replica stands for election, or wants to. True if it has to be refused, since the group
    /// has a leader as far as this replica knows. A `member` makes it doubt that.
    pub(super) fn solicited(&mut self, member: bool, leader_alive: bool, until: Instant) -> bool {
        let refused = match self.state {
            State::Leading => true,
            State::Following(_) => leader_alive,
            State::Awake | State::Offering(_) | State::Doubting { .. } | State::Closed => false,
        };
        if member {
            self.doubted(until);
        }
        refused
    }

    /// Until when the leader has to be heard.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Doubting { until, .. } => Some(until),
            State::Awake
            | State::Offering(_)
            | State::Leading
            | State::Following(_)
            | State::Closed => None,
        }
    }

    /// Time passed.
    pub(super) fn passed(&mut self, now: Instant) {
        if self.deadline().is_some_and(|until| until <= now) {
            self.wake_follower();
        }
    }

    /// The replica closes: nobody may rest on it, and it rests on nobody.
    pub(super) fn close(&mut self) {
        self.wake_leader();
        self.wake_follower();
        self.duties = Duties {
            withdraw: true,
            refuse: true,
            renew: false,
        };
        self.state = State::Closed;
    }
}

/// Whether a vouch is for the leader and term that are known here.
fn covers(vouch: &Vouch, look: &Look) -> bool {
    let leadership = &look.leadership;
    vouch.term == leadership.term && leadership.leader == Some(vouch.route.from)
}

#[cfg(test)]
mod tests;
