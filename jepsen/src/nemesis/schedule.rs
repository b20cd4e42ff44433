//! The schedule of faults: drawn from the seed before anything starts, so that it can be printed,
//! and be the same again.

use std::fmt;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// `kill -9`, and a restart.
    Kill,
    KillAll,
    /// A process stands still.
    Pause,
    /// So many that no majority is left moving.
    PauseMost,
    /// One node and the others do not hear each other.
    Isolate,
    /// One node does not hear another, which hears it.
    CutOneWay,
    /// Two nodes do not hear each other, all others hear both.
    Partial,
    Delay,
    Loss,
    Bandwidth,
    /// Leaderships are handed over by request.
    Transfer,
    /// Replicas leave and come.
    Membership,
    /// All nodes stop in order and start again, one after the other.
    RollingRestart,
    /// The same, from an older build to this one, and then what only this one can.
    Upgrade,
    /// A disk is lost, and its node comes back empty in its own place.
    Wipe,
    /// Bits of a stopped node's files change.
    FlipBits,
    /// A stopped node's files end earlier.
    Truncate,
    /// Parts of a stopped node's files are as they were earlier.
    StaleChunks,
    /// No room is left on a disk.
    DiskFull,
    /// A disk takes nothing for a while.
    StallDisk,
    /// A disk takes nothing any more, and says so.
    FailedSync,
    /// What was not synced is gone, on all nodes at once.
    PowerLoss,
    /// The clock of a node jumps.
    ClockJump,
}

impl Fault {
    pub const ALL: [Self; 23] = [
        Self::Kill,
        Self::KillAll,
        Self::Pause,
        Self::PauseMost,
        Self::Isolate,
        Self::CutOneWay,
        Self::Partial,
        Self::Delay,
        Self::Loss,
        Self::Bandwidth,
        Self::Transfer,
        Self::Membership,
        Self::RollingRestart,
        Self::Upgrade,
        Self::Wipe,
        Self::FlipBits,
        Self::Truncate,
        Self::StaleChunks,
        Self::DiskFull,
        Self::StallDisk,
        Self::FailedSync,
        Self::PowerLoss,
        Self::ClockJump,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::KillAll => "kill-all",
            Self::Pause => "pause",
            Self::PauseMost => "pause-most",
            Self::Isolate => "isolate",
            Self::CutOneWay => "cut-one-way",
            Self::Partial => "partial",
            Self::Delay => "delay",
            Self::Loss => "loss",
            Self::Bandwidth => "bandwidth",
            Self::Transfer => "transfer",
            Self::Membership => "membership",
            Self::RollingRestart => "rolling-restart",
            Self::Upgrade => "upgrade",
            Self::Wipe => "wipe",
            Self::FlipBits => "flip-bits",
            Self::Truncate => "truncate",
            Self::StaleChunks => "stale-chunks",
            Self::DiskFull => "disk-full",
            Self::StallDisk => "stall-disk",
            Self::FailedSync => "failed-sync",
            Self::PowerLoss => "power-loss",
            Self::ClockJump => "clock-jump",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }

    /// Whether nodes must have disks of their own for it.
    pub fn needs_disks(self) -> bool {
        matches!(
            self,
            Self::DiskFull | Self::StallDisk | Self::FailedSync | Self::PowerLoss
        )
    }

    /// Whether it does nothing to nodes that do not run.
    pub fn needs_life(self) -> bool {
        matches!(
            self,
            Self::Kill
                | Self::KillAll
                | Self::Pause
                | Self::PauseMost
                | Self::FailedSync
                | Self::PowerLoss
        )
    }

    /// Whether it damages files. All such faults of a schedule strike one node: what they did may
    /// be found long after, and two replicas must not be damaged in one place.
    pub fn damages(self) -> bool {
        matches!(self, Self::FlipBits | Self::Truncate | Self::StaleChunks)
    }

    /// Whether it takes copies of what was acknowledged away. One such begins only when everything
    /// is whole, and nothing else happens meanwhile: a majority of good copies is what the promise
    /// rests on. So does what a node has to notice by its own work.
    pub fn is_alone(self) -> bool {
        match self {
            Self::Wipe | Self::FlipBits | Self::Truncate | Self::StaleChunks | Self::FailedSync => {
                true
            }
            // Nodes that are restarted keep what they have, and replicas that move are there until
            // others have what they had.
            Self::Membership
            | Self::RollingRestart
            | Self::Upgrade
            | Self::Kill
            | Self::KillAll
            | Self::Pause
            | Self::PauseMost
            | Self::Isolate
            | Self::CutOneWay
            | Self::Partial
            | Self::Delay
            | Self::Loss
            | Self::Bandwidth
            | Self::Transfer
            | Self::DiskFull
            | Self::StallDisk
            | Self::PowerLoss
            | Self::ClockJump => false,
        }
    }

    /// Whether it restarts all nodes, one after the other, for as long as that takes.
    pub fn rolls(self) -> bool {
        matches!(self, Self::RollingRestart | Self::Upgrade)
    }

    /// Whether one may last while the other does, so that the verdict still says something.
    pub fn may_overlap(self, other: Self) -> bool {
        let forbids = |one: Self, other: Self| match one {
            // A node stops once; and without room for what it has to write, nobody can say that it
            // should have stopped in order.
            Self::RollingRestart | Self::Upgrade => other.rolls() || other == Self::DiskFull,
            // What one move has begun the other would take back.
            Self::Membership => other == Self::Membership,
            one => one.is_alone(),
        };
        !forbids(self, other) && !forbids(other, self)
    }

    /// Whether both keep a node from the same, so that it goes on when both are over.
    pub fn holds_as(self, other: Self) -> bool {
        let hold = |fault: Self| match fault {
            Self::Kill | Self::KillAll | Self::PowerLoss => Some("dead"),
            Self::Pause | Self::PauseMost => Some("still"),
            Self::DiskFull => Some("full"),
            _ => None,
        };
        hold(self).is_some_and(|held| hold(other) == Some(held))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One fault, and what it is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduled {
    pub at: Duration,
    pub lasts: Duration,
    pub fault: Fault,
    /// Whom it strikes; in pairs, who does not hear whom.
    pub nodes: Vec<u32>,
    /// Whether it begins only when everything is whole.
    pub alone: bool,
    /// What else it draws.
    pub seed: u64,
}

impl fmt::Display for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, lasts) = (self.at.as_secs_f64(), self.lasts.as_secs_f64());
        let nodes: Vec<String> = self.nodes.iter().map(u32::to_string).collect();
        write!(
            f,
            "{at:6.1} s  {:<16} {:<8} for {lasts:.1} s",
            self.fault,
            nodes.join(",")
        )
    }
}

/// What a schedule is drawn for.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub nodes: Vec<u32>,
    /// How long faults may begin.
    pub length: Duration,
    pub faults: Vec<Fault>,
    /// Whether every fault comes alone, and strikes one node if it can.
    pub calm: bool,
}

/// Before the first fault, so that there is something to lose.
const CALM: Duration = Duration::from_millis(2_500);

/// How often the next fault comes while another lasts, where there are others to come.
const OVERLAP: f64 = 0.5;
const OVERLAP_OF_ONE: f64 = 0.25;

/// What happens and when.
pub fn schedule(plan: &Plan) -> Vec<Scheduled> {
    let mut rng = SmallRng::seed_from_u64(plan.seed ^ 0x6e65_6d65_7369_7300);
    let fragile: Vec<u32> = plan.nodes.choose(&mut rng).copied().into_iter().collect();
    let overlap = if plan.faults.len() > 1 {
        OVERLAP
    } else {
        OVERLAP_OF_ONE
    };
    let mut all: Vec<Scheduled> = Vec::new();
    let mut at = CALM;
    // When each that was begun is over, with a rest after it.
    let mut over: Vec<(Fault, Duration)> = Vec::new();
    // Each kind comes once before any comes again, as far as there is time.
    let mut due: Vec<Fault> = Vec::new();
    while at < plan.length && !plan.faults.is_empty() {
        if due.is_empty() {
            due.clone_from(&plan.faults);
        }
        let fault = due.swap_remove(rng.random_range(0..due.len()));
        let alone = plan.calm || fault.is_alone();
        let forbidden = over
            .iter()
            .filter(|(other, _)| alone || !fault.may_overlap(*other));
        at = forbidden.fold(at, |at, (_, end)| at.max(*end));
        let lasts = lasting(fault, alone, &mut rng);
        all.push(Scheduled {
            at,
            lasts,
            fault,
            nodes: if fault.damages() {
                fragile.clone()
            } else {
                victims(fault, &plan.nodes, plan.calm, &mut rng)
            },
            alone,
            seed: rng.random(),
        });
        over.push((fault, at + lasts + rest(&mut rng)));
        at = if alone || !rng.random_bool(overlap) {
            over.iter().fold(at, |at, (_, end)| at.max(*end))
        } else {
            at + lasts.mul_f64(rng.random_range(0.1..0.9))
        };
    }
    all
}

fn rest(rng: &mut SmallRng) -> Duration {
    Duration::from_millis(rng.random_range(600..2_500))
}

fn lasting(fault: Fault, alone: bool, rng: &mut SmallRng) -> Duration {
    let millis = match fault {
        // About what it takes to restart some nodes; it ends when all are.
        Fault::RollingRestart | Fault::Upgrade if !alone => 3_000..8_000,
        Fault::Kill | Fault::KillAll | Fault::PowerLoss => 100..2_500,
        Fault::Pause | Fault::PauseMost => 300..4_000,
        Fault::Isolate | Fault::CutOneWay | Fault::Partial => 800..5_000,
        Fault::StallDisk => 200..2_500,
        Fault::Delay | Fault::Loss | Fault::Bandwidth | Fault::DiskFull => 1_500..5_000,
        Fault::Transfer | Fault::Membership | Fault::ClockJump => 1_000..3_000,
        Fault::RollingRestart
        | Fault::Upgrade
        | Fault::Wipe
        | Fault::FlipBits
        | Fault::Truncate
        | Fault::StaleChunks
        | Fault::FailedSync => 500..1_500,
    };
    Duration::from_millis(rng.random_range(millis))
}

/// Whom a fault strikes; `one`: not more of them than it has to.
fn victims(fault: Fault, nodes: &[u32], one: bool, rng: &mut SmallRng) -> Vec<u32> {
    let count = match fault {
        Fault::Kill | Fault::Pause | Fault::StallDisk if rng.random_bool(0.2) && !one => {
            nodes.len().div_ceil(2)
        }
        Fault::Isolate if !one && nodes.len() >= 5 && rng.random_bool(0.3) => 2,
        Fault::Kill
        | Fault::Pause
        | Fault::Isolate
        | Fault::Membership
        | Fault::Wipe
        | Fault::FlipBits
        | Fault::Truncate
        | Fault::StaleChunks
        | Fault::DiskFull
        | Fault::StallDisk
        | Fault::FailedSync
        | Fault::ClockJump => 1,
        Fault::CutOneWay | Fault::Partial => 2,
        Fault::PauseMost => nodes.len() / 2 + 1,
        Fault::KillAll
        | Fault::Delay
        | Fault::Loss
        | Fault::Bandwidth
        | Fault::Transfer
        | Fault::RollingRestart
        | Fault::Upgrade
        | Fault::PowerLoss => nodes.len(),
    };
    let mut chosen: Vec<u32> = nodes.choose_multiple(rng, count).copied().collect();
    if fault != Fault::CutOneWay {
        chosen.sort_unstable();
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(seed: u64, faults: &[Fault]) -> Plan {
        Plan {
            seed,
            nodes: vec![1, 2, 3],
            length: Duration::from_mins(5),
            faults: faults.to_vec(),
            calm: false,
        }
    }

    #[test]
    fn a_seed_gives_one_schedule_and_another_seed_another() {
        let one = schedule(&plan(1, &Fault::ALL));
        assert_eq!(one, schedule(&plan(1, &Fault::ALL)));
        assert_ne!(one, schedule(&plan(2, &Fault::ALL)));
    }

    #[test]
    fn every_kind_comes_and_what_costs_copies_comes_alone() {
        for seed in 0..200 {
            let all = schedule(&plan(seed, &Fault::ALL));
            for fault in Fault::ALL {
                assert!(all.iter().any(|one| one.fault == fault), "{seed}: {fault}");
            }
            for (nth, one) in all
                .iter()
                .enumerate()
                .filter(|(_, one)| one.fault.is_alone())
            {
                let before = all[..nth].iter().map(|other| other.at + other.lasts);
                assert!(
                    before.max().is_none_or(|end| end <= one.at),
                    "{seed}: {one}"
                );
                let after = all.get(nth + 1);
                assert!(
                    after.is_none_or(|next| one.at + one.lasts <= next.at),
                    "{seed}: {one}"
                );
                assert_eq!(one.nodes.len(), 1);
            }
            let mut damaged: Vec<_> = all
                .iter()
                .filter(|one| one.fault.damages())
                .map(|one| one.nodes.clone())
                .collect();
            damaged.dedup();
            assert_eq!(damaged.len(), 1, "{seed}: {damaged:?}");
        }
    }

    /// Any two of a schedule that last at one time.
    fn overlaps(all: &[Scheduled]) -> Vec<(&Scheduled, &Scheduled)> {
        let mut found = Vec::new();
        for (nth, one) in all.iter().enumerate() {
            let after = all[nth + 1..].iter();
            let within = after.filter(|other| other.at < one.at + one.lasts);
            found.extend(within.map(|other| (one, other)));
        }
        found
    }

    #[test]
    fn what_restarts_and_moves_comes_with_what_cuts_and_kills_and_nothing_forbidden_does() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let all = schedule(&plan(seed, &Fault::ALL));
            for (one, other) in overlaps(&all) {
                let (one, other) = (one.fault, other.fault);
                assert!(one.may_overlap(other), "{seed}: {one} and {other}");
                seen.extend([(one, other), (other, one)]);
            }
        }
        for slow in [Fault::RollingRestart, Fault::Upgrade, Fault::Membership] {
            for other in [
                Fault::Kill,
                Fault::KillAll,
                Fault::Pause,
                Fault::PauseMost,
                Fault::Isolate,
                Fault::CutOneWay,
                Fault::Partial,
                Fault::Delay,
                Fault::Loss,
                Fault::Bandwidth,
                Fault::Transfer,
                Fault::StallDisk,
                Fault::PowerLoss,
            ] {
                assert!(seen.contains(&(slow, other)), "{slow} never with {other}");
            }
        }
        assert!(seen.contains(&(Fault::Membership, Fault::RollingRestart)));
    }

    #[test]
    fn what_costs_copies_overlaps_with_nothing_and_nobody_is_stopped_twice() {
        for one in Fault::ALL {
            for other in Fault::ALL {
                let may = one.may_overlap(other);
                assert_eq!(may, other.may_overlap(one), "{one}, {other}");
                assert!(!may || !one.is_alone() && !other.is_alone());
                assert!(!may || !one.rolls() || !other.rolls() && other != Fault::DiskFull);
            }
        }
        assert!(!Fault::Membership.may_overlap(Fault::Membership));
        assert!(Fault::Kill.may_overlap(Fault::Kill));
    }

    #[test]
    fn in_short_runs_of_two_kinds_that_may_overlap_half_of_them_do() {
        for pair in [
            [Fault::RollingRestart, Fault::Isolate],
            [Fault::Membership, Fault::Kill],
            [Fault::Upgrade, Fault::Partial],
        ] {
            let both = (0..200).filter(|seed| {
                let all = schedule(&Plan {
                    length: Duration::from_secs(20),
                    ..plan(*seed, &pair)
                });
                let mixed = overlaps(&all);
                mixed.iter().any(|(one, other)| one.fault != other.fault)
            });
            let both = both.count();
            assert!(both >= 100, "{pair:?}: in {both} of 200");
        }
    }

    #[test]
    fn in_a_calm_schedule_one_node_is_struck_after_the_other() {
        for seed in 0..50 {
            let all = schedule(&Plan {
                calm: true,
                ..plan(seed, &[Fault::Kill, Fault::Isolate])
            });
            assert!(all.len() > 20, "{seed}");
            assert!(all.iter().all(|one| one.alone && one.nodes.len() == 1));
            let apart = |pair: &[Scheduled]| pair[0].at + pair[0].lasts < pair[1].at;
            assert!(all.windows(2).all(apart), "{seed}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for fault in Fault::ALL {
            assert_eq!(Fault::named(fault.name()), Some(fault));
        }
        assert_eq!(Fault::named("none"), None);
    }
}
