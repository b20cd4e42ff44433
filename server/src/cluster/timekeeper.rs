//! Whether this node's clock agrees with those of the other nodes, and what follows if not: it
//! gives up its leaderships and stands for none, until it agrees again.
//!
//! ```text
//!             3 looks beyond what is allowed
//!    sound ───────────────────────────────────> astray
//!      ^                                          │
//!      └───────── 5 looks within 3/4 of it ───────┘
//! ```
//!
//! The first look after a start judges at once. A look counts only while a majority of the nodes
//! is heard; what they differ by is the median over all of them, this one included, so that one
//! wrong clock among three is the one that is found wrong. A jump of the clock below is followed
//! only once the others confirm it, or where there are none.

use std::sync::Arc;
use std::time::Duration;

use metrics::gauge;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_raft::Node;
use trilog_raft::transport::heartbeat::ClockOffset;
use trilog_storage::env::SteadyClock;

use super::Cluster;

/// How often the clocks are compared.
const INTERVAL: Duration = Duration::from_millis(200);
/// Looks in a row that have to find the clock wrong, or right again.
const LOOKS_ASTRAY: u32 = 3;
const LOOKS_SOUND: u32 = 5;
/// How long leaderships that could not be handed over are kept before the next try.
const RESIGN_AGAIN: Duration = Duration::from_secs(5);

/// What is known of this node's clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClockState {
    /// How far it is ahead of the others', in nanoseconds; negative when behind.
    pub ahead_nanos: i64,
    /// It is further from theirs than allowed: this node leads nothing.
    pub astray: bool,
}

impl ClockState {
    /// How far the clock is ahead of the others', in seconds; negative when behind.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a figure for people: 2^53 ns are 104 days"
    )]
    pub fn ahead_seconds(self) -> f64 {
        self.ahead_nanos as f64 / 1e9
    }
}

/// Judges the looks at the clocks.
#[derive(Clone, Debug)]
struct Judge {
    allowed: Duration,
    state: ClockState,
    judged: bool,
    /// Looks in a row that contradict `state`.
    against: u32,
}

impl Judge {
    fn new(allowed: Duration) -> Self {
        Self {
            allowed,
            state: ClockState::default(),
            judged: false,
            against: 0,
        }
    }

    /// Takes in how the clocks of those heard differ from ours, of `others` nodes in all. False
    /// if that says nothing, for too few are heard.
    fn look(&mut self, heard: &[ClockOffset], others: usize) -> bool {
        if (heard.len() + 1) * 2 <= others + 1 {
            return false;
        }
        self.state.ahead_nanos = median(heard).saturating_neg();
        let distance = Duration::from_nanos(self.state.ahead_nanos.unsigned_abs());
        let astray = if self.state.astray {
            distance > self.allowed / 4 * 3
        } else {
            distance > self.allowed
        };
        if astray == self.state.astray {
            self.against = 0;
        } else {
            self.against += 1;
        }
        let needed = match astray {
            _ if !self.judged => 1,
            true => LOOKS_ASTRAY,
            false => LOOKS_SOUND,
        };
        if self.against >= needed {
            self.state.astray = astray;
            self.against = 0;
        }
        self.judged = true;
        true
    }

    /// Whether the last look found the clock where it may be.
    fn is_sound(&self) -> bool {
        let distance = Duration::from_nanos(self.state.ahead_nanos.unsigned_abs());
        !self.state.astray && distance <= self.allowed
    }
}

/// The middle one of all clocks, this node's being at zero; of two in the middle the nearer. Each
/// counts for what is certain of it.
fn median(heard: &[ClockOffset]) -> i64 {
    let mut all: Vec<i64> = heard.iter().map(certain).chain([0]).collect();
    all.sort_unstable();
    let (lower, upper) = ((all.len() - 1) / 2, all.len() / 2);
    let middle = all.get(lower..=upper).unwrap_or_default();
    let nearest = middle.iter().min_by_key(|ahead| ahead.unsigned_abs());
    nearest.copied().unwrap_or_default()
}

fn certain(offset: &ClockOffset) -> i64 {
    let doubt = i64::try_from(offset.uncertainty.as_nanos()).unwrap_or(i64::MAX);
    let least = offset.ahead_nanos.saturating_abs().saturating_sub(doubt);
    least.max(0) * offset.ahead_nanos.signum()
}

/// Watches this node's clock; cheap to clone.
#[derive(Clone, Debug)]
pub struct Timekeeper {
    steady: Arc<SteadyClock>,
    allowed: Duration,
    shown: watch::Sender<ClockState>,
}

impl Timekeeper {
    /// A clock may be `allowed` away from the others'.
    #[must_use]
    pub fn new(steady: Arc<SteadyClock>, allowed: Duration) -> Self {
        Self {
            steady,
            allowed,
            shown: watch::Sender::default(),
        }
    }

    #[must_use]
    pub fn state(&self) -> watch::Receiver<ClockState> {
        self.shown.subscribe()
    }

    /// Compares clocks and acts on it, until `stop`.
    pub async fn keep(self, cluster: Cluster, node: Node, stop: CancellationToken) {
        let mut judge = Judge::new(self.allowed);
        // Looks in a row that found a jump right. The first may be older than the jump.
        let mut confirmed = 0;
        let mut resigned: Option<Instant> = None;
        let mut looks = tokio::time::interval(INTERVAL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(looks.tick()).await.is_some() {
            let before = judge.state.astray;
            let known = look(&mut judge, &cluster);
            self.shown.send_replace(judge.state);
            publish(judge.state);
            confirmed = if known && judge.is_sound() && self.steady.has_jumped() {
                confirmed + 1
            } else {
                0
            };
            if confirmed >= LOOKS_SOUND {
                tracing::warn!("the clock jumped, and the other nodes agree with it now");
                self.steady.adopt();
            }
            if before != judge.state.astray {
                say(judge.state);
                node.abstain(judge.state.astray);
            }
            // Again from time to time, for what could not be handed over. Not at once: a group
            // takes nothing while it waits for a successor that may not come.
            let due = resigned.is_none_or(|at| at.elapsed() >= RESIGN_AGAIN);
            if judge.state.astray && due {
                stop.run_until_cancelled(node.resign()).await;
                resigned = Some(Instant::now());
            } else if !judge.state.astray {
                resigned = None;
            }
        }
    }
}

/// True if it is known now whether the clock below is right.
fn look(judge: &mut Judge, cluster: &Cluster) -> bool {
    let map = cluster.map();
    if map.cluster().is_none() {
        return false;
    }
    let others = map.nodes().filter(|node| node.id != cluster.node());
    let others: Vec<_> = others.map(|node| node.id).collect();
    let heard: Vec<ClockOffset> = others
        .iter()
        .filter_map(|node| cluster.liveness().clock_offset(*node))
        .collect();
    judge.look(&heard, others.len())
}

fn say(state: ClockState) {
    let ahead = state.ahead_seconds();
    if state.astray {
        tracing::error!(
            ahead_seconds = ahead,
            "this node's clock is too far from the others': it gives up its leaderships"
        );
    } else {
        tracing::info!(ahead_seconds = ahead, "this node's clock is right again");
    }
}

fn publish(state: ClockState) {
    gauge!("trilog_clock_offset_seconds").set(state.ahead_seconds());
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWED: Duration = Duration::from_secs(1);

    /// A clock so many milliseconds ahead of ours, known to 10 ms.
    fn ahead(millis: i64) -> ClockOffset {
        ClockOffset {
            ahead_nanos: millis * 1_000_000,
            uncertainty: Duration::from_millis(10),
        }
    }

    fn look(judge: &mut Judge, heard: &[i64], others: usize) -> bool {
        let heard: Vec<ClockOffset> = heard.iter().map(|millis| ahead(*millis)).collect();
        judge.look(&heard, others);
        judge.state.astray
    }

    #[test]
    fn the_first_look_judges_at_once_and_later_ones_by_persistence() {
        let mut judge = Judge::new(ALLOWED);
        assert!(look(&mut judge, &[-5_000, -5_000], 2));
        for (nth, heard) in [0, 0, 0, 900, 0, 0, 0, 0].into_iter().enumerate() {
            assert!(look(&mut judge, &[heard, heard], 2), "look {nth}");
        }
        assert!(!look(&mut judge, &[0, 0], 2));
        assert!(!look(&mut judge, &[5_000, 5_000], 2));
        assert!(!look(&mut judge, &[5_000, 5_000], 2));
        assert!(look(&mut judge, &[5_000, 5_000], 2));
    }

    #[test]
    fn the_one_that_differs_from_the_rest_is_wrong() {
        for (heard, others, astray) in [
            (&[][..], 0, false),
            (&[5_000][..], 1, false),
            (&[5_000, 0][..], 2, false),
            (&[5_000, 5_000][..], 2, true),
            (&[5_000, -5_000][..], 2, false),
            (&[1_005, 1_005][..], 2, false),
            (&[1_020, 1_020][..], 2, true),
            (&[5_000, 5_000, 0, 0][..], 4, false),
            (&[5_000, 5_000, 5_000, 0][..], 4, true),
        ] {
            let mut judge = Judge::new(ALLOWED);
            assert_eq!(look(&mut judge, heard, others), astray, "{heard:?}");
        }
    }

    #[test]
    fn a_minority_says_nothing() {
        let mut judge = Judge::new(ALLOWED);
        assert!(!judge.look(&[ahead(5_000)], 4));
        assert!(!judge.look(&[], 1));
        assert!(judge.look(&[], 0));
        assert_eq!(judge.state, ClockState::default());
    }
}
