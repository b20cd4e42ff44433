//! What becomes of unsynced changes when the power goes.

use rand::Rng;
use rand::rngs::SmallRng;

/// How a power loss treats what was never synced. Synced data always survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLoss {
    /// All of it is lost.
    Lose,
    /// All of it happened to be written.
    Keep,
    /// It was written in order up to a point, where one operation is torn.
    InOrder,
    /// Each sector, length and name by itself is kept, lost, kept in an older version or torn.
    Scatter,
    /// One of the others, by the seed.
    Any,
}

/// A change that is not durable yet, with the number of the operation that made it.
#[derive(Clone, Debug)]
pub(super) struct Version<T> {
    pub(super) stamp: u64,
    pub(super) value: T,
}

/// A [`PowerLoss`] with its dice thrown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fate {
    Lose,
    Keep,
    /// Everything before the operation `torn`, and each part of that one by a coin.
    Before {
        torn: u64,
    },
    Scatter {
        keep_percent: u32,
    },
}

impl Fate {
    /// `unsynced` are the numbers of the oldest and the newest operation at risk.
    pub(super) fn draw(loss: PowerLoss, unsynced: (u64, u64), rng: &mut SmallRng) -> Self {
        match loss {
            PowerLoss::Lose => Self::Lose,
            PowerLoss::Keep => Self::Keep,
            PowerLoss::InOrder => Self::Before {
                torn: rng.random_range(unsynced.0..=unsynced.1.max(unsynced.0)),
            },
            PowerLoss::Scatter => Self::Scatter {
                keep_percent: [10, 50, 90][rng.random_range(0..3)],
            },
            PowerLoss::Any => {
                let all = [
                    PowerLoss::Lose,
                    PowerLoss::Keep,
                    PowerLoss::InOrder,
                    PowerLoss::InOrder,
                    PowerLoss::Scatter,
                    PowerLoss::Scatter,
                ];
                Self::draw(all[rng.random_range(0..all.len())], unsynced, rng)
            }
        }
    }

    pub(super) const fn scatters(self) -> bool {
        matches!(self, Self::Scatter { .. })
    }

    /// Whether a change that stands by itself survives.
    pub(super) fn keeps(self, stamp: u64, rng: &mut SmallRng) -> bool {
        match self {
            Self::Lose => false,
            Self::Keep => true,
            Self::Before { torn } => stamp < torn || (stamp == torn && rng.random_bool(0.5)),
            Self::Scatter { keep_percent } => rng.random_ratio(keep_percent, 100),
        }
    }

    /// Which of several versions of one thing survives: `old`, or one of the newer ones.
    pub(super) fn choose<T: Clone>(
        self,
        old: &T,
        versions: &[Version<T>],
        rng: &mut SmallRng,
    ) -> T {
        let survivor = match self {
            Self::Scatter { .. } => {
                let any = versions.get(rng.random_range(0..versions.len().max(1)));
                any.filter(|version| self.keeps(version.stamp, rng))
            }
            _ => versions.iter().rfind(|v| self.keeps(v.stamp, rng)),
        };
        survivor.map_or_else(|| old.clone(), |version| version.value.clone())
    }
}
