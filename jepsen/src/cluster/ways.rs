//! What is wrong with the links between nodes, and by which fault: several may spoil one link, and
//! one that is over takes away only what it brought.

use std::collections::BTreeMap;
use std::time::Duration;

/// Who says something, and to whom.
pub type Pair = (u32, u32);

/// How what one node says to another gets there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Way {
    /// Nothing passes, and nobody is told.
    pub cut: bool,
    pub delay: Duration,
    /// Up to so much more, drawn for each piece.
    pub jitter: Duration,
    /// How likely a piece is lost once, and sent again later.
    pub loss: f64,
    /// Bytes a second; nothing is no limit.
    pub rate: Option<u32>,
}

impl Way {
    /// As bad as both of them.
    fn and(self, other: Self) -> Self {
        let slower = self.rate.into_iter().chain(other.rate).min();
        Self {
            cut: self.cut || other.cut,
            delay: self.delay.max(other.delay),
            jitter: self.jitter.max(other.jitter),
            loss: self.loss.max(other.loss),
            rate: slower,
        }
    }
}

/// Faults that are in force, by a number of whoever brought them.
#[derive(Debug, Default)]
pub(super) struct Ways(BTreeMap<usize, (Vec<Pair>, Way)>);

impl Ways {
    /// Fault number `by` is that these are this bad, too.
    pub(super) fn spoil(&mut self, by: usize, pairs: &[Pair], way: Way) {
        self.0.insert(by, (pairs.to_vec(), way));
    }

    /// Fault number `by` is over. The pairs that nothing is wrong with any more.
    pub(super) fn mend(&mut self, by: usize) -> Vec<Pair> {
        let (mut pairs, _) = self.0.remove(&by).unwrap_or_default();
        let still = self.now();
        pairs.retain(|pair| !still.contains_key(pair));
        pairs
    }

    /// All faults are over. The pairs that something was wrong with.
    pub(super) fn heal(&mut self) -> Vec<Pair> {
        let pairs = self.now().into_keys().collect();
        self.0.clear();
        pairs
    }

    /// All that is not good, by everything that is in force.
    pub(super) fn now(&self) -> BTreeMap<Pair, Way> {
        let mut now: BTreeMap<Pair, Way> = BTreeMap::new();
        for (pairs, way) in self.0.values() {
            for pair in pairs {
                let entry = now.entry(*pair).or_default();
                *entry = entry.and(*way);
            }
        }
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Way = Way {
        cut: true,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        rate: None,
    };

    #[test]
    fn what_one_fault_ends_another_that_lasts_keeps() {
        let slow = Way {
            delay: Duration::from_millis(50),
            rate: Some(900),
            ..Way::default()
        };
        let mut ways = Ways::default();
        ways.spoil(1, &[(1, 2), (2, 1), (1, 3), (3, 1)], CUT);
        ways.spoil(2, &[(1, 2), (2, 1)], CUT);
        ways.spoil(3, &[(1, 2), (1, 3)], slow);
        let both = Way { cut: true, ..slow };
        assert_eq!(ways.now()[&(1, 2)], both);
        assert_eq!(ways.now()[&(3, 1)], CUT);

        // The first is over: what the others brought is as it was.
        assert_eq!(ways.mend(1), [(3, 1)]);
        let now = [((1, 2), both), ((1, 3), slow), ((2, 1), CUT)];
        assert_eq!(ways.now(), BTreeMap::from(now));
        assert_eq!(ways.mend(1), []);
        assert_eq!(ways.mend(3), [(1, 3)]);
        let now = [((1, 2), CUT), ((2, 1), CUT)];
        assert_eq!(ways.now(), BTreeMap::from(now));
        assert_eq!(ways.mend(2), [(1, 2), (2, 1)]);
        assert_eq!(ways.now(), BTreeMap::new());
    }

    #[test]
    fn of_two_limits_the_lower_one_holds_until_it_is_over() {
        let limit = |rate| Way {
            rate: Some(rate),
            ..Way::default()
        };
        let mut ways = Ways::default();
        ways.spoil(1, &[(1, 2)], limit(100));
        ways.spoil(2, &[(1, 2)], limit(700));
        assert_eq!(ways.now()[&(1, 2)], limit(100));
        assert_eq!(ways.mend(1), []);
        assert_eq!(ways.now()[&(1, 2)], limit(700));
        ways.spoil(3, &[(2, 1)], CUT);
        assert_eq!(ways.heal(), [(1, 2), (2, 1)]);
        assert_eq!(ways.now(), BTreeMap::new());
    }
}
