//! Wall-clock time as the log stores it.

use std::fmt;

/// Nanoseconds since the Unix epoch. Partition time is made of these and moves only by entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    const NANOS_PER_MILLI: u64 = 1_000_000;

    /// From Kafka's unit, milliseconds since the epoch; negative times become zero.
    #[must_use]
    pub fn from_millis(millis: i64) -> Self {
        Self(
            u64::try_from(millis)
                .unwrap_or(0)
                .saturating_mul(Self::NANOS_PER_MILLI),
        )
    }

    /// In Kafka's unit, milliseconds since the epoch, rounded down.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        (self.0 / Self::NANOS_PER_MILLI).cast_signed()
    }

    #[must_use]
    pub const fn nanos(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ns", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_round_down_and_clamp() {
        assert_eq!(Timestamp(1_999_999).as_millis(), 1);
        assert_eq!(Timestamp::from_millis(-5), Timestamp(0));
        assert_eq!(
            Timestamp::from_millis(1_700_000_000_123).as_millis(),
            1_700_000_000_123
        );
    }
}
