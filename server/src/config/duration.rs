//! Spans of time as people write them: `100ms`, `10s`, `1h30m`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration as Std;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time with a unit; a bare number is refused, because nobody remembers which unit a
/// key counts in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(Std);

/// Largest first: a span is written in the largest unit that expresses it exactly.
const UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl Duration {
    pub const fn from_millis(millis: u64) -> Self {
        Self(Std::from_millis(millis))
    }

    pub const fn from_secs(secs: u64) -> Self {
        Self(Std::from_secs(secs))
    }

    pub const fn get(self) -> Std {
        self.0
    }
}

impl From<Duration> for Std {
    fn from(duration: Duration) -> Self {
        duration.0
    }
}

/// Text that is not a span of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("expected a time span like 100ms, 10s or 1h30m, found {0:?}")]
    Malformed(String),
    #[error("{0:?} is longer than can be counted")]
    TooLong(String),
}

impl FromStr for Duration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let malformed = || ParseError::Malformed(text.to_owned());
        let too_long = || ParseError::TooLong(text.to_owned());
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(malformed());
        }
        let mut nanos = 0_u64;
        while !rest.is_empty() {
            let digits = rest
                .find(|c: char| !c.is_ascii_digit())
                .ok_or_else(malformed)?;
            let (count, after) = rest.split_at(digits);
            let letters = after
                .find(|c: char| !c.is_ascii_alphabetic())
                .unwrap_or(after.len());
            let (unit, after) = after.split_at(letters);
            if count.is_empty() {
                return Err(malformed());
            }
            let (_, factor) = UNITS
                .iter()
                .find(|(name, _)| *name == unit)
                .ok_or_else(malformed)?;
            nanos = count
                .parse::<u64>()
                .ok()
                .and_then(|count| count.checked_mul(*factor))
                .and_then(|part| nanos.checked_add(part))
                .ok_or_else(too_long)?;
            rest = after;
        }
        Ok(Self(Std::from_nanos(nanos)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        let unit = UNITS
            .iter()
            .find(|(_, factor)| nanos != 0 && nanos.is_multiple_of(*factor));
        match unit {
            Some((name, factor)) => write!(f, "{}{name}", nanos / factor),
            None => f.write_str("0s"),
        }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a time span like \"100ms\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                text.parse().map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_in_every_unit_and_in_sums() {
        for (text, millis) in [
            ("0s", 0),
            ("100ms", 100),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(text.parse(), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused() {
        for text in ["", "10", "s", "10 s", "-5s", "1.5s", "10sec"] {
            assert!(
                matches!(text.parse::<Duration>(), Err(ParseError::Malformed(_))),
                "{text}"
            );
        }
        assert!(matches!(
            "999999999999d".parse::<Duration>(),
            Err(ParseError::TooLong(_))
        ));
    }

    #[test]
    fn what_is_printed_reads_back() {
        for millis in [0, 1, 100, 1_000, 1_500, 60_000, 90_000, 86_400_000] {
            let span = Duration::from_millis(millis);
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        assert_eq!(Duration::from_secs(10).to_string(), "10s");
        assert_eq!(Duration::from_millis(1_500).to_string(), "1500ms");
    }
}
