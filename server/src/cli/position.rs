//! Where reading starts: `start`, `end`, an offset, the last so many, or a time.

use std::fmt;
use std::str::FromStr;

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

/// A start position as it was written. A time is not yet a moment: that takes a clock and a zone.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Position {
    /// The first record there still is.
    Start,
    /// Behind the last record there is now.
    End,
    /// An offset, the same in every partition.
    Offset(u64),
    /// So many before the end, of each partition.
    Last(u64),
    /// The first record appended at that time or later.
    Time(When),
}

/// A time as it was written.
#[derive(Clone, Debug)]
pub(super) enum When {
    /// With an offset or zone: a moment already.
    Exact(Timestamp),
    /// Date and time on the wall.
    Civil(DateTime),
    /// A time of today.
    Today(Time),
    /// The beginning of a day so many days ago.
    DaysAgo(i32),
    /// The beginning of the last such day before today.
    LastWeekday(Weekday),
    /// So long ago.
    Ago(Span),
}

impl PartialEq for When {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(left), Self::Exact(right)) => left == right,
            (Self::Civil(left), Self::Civil(right)) => left == right,
            (Self::Today(left), Self::Today(right)) => left == right,
            (Self::DaysAgo(left), Self::DaysAgo(right)) => left == right,
            (Self::LastWeekday(left), Self::LastWeekday(right)) => left == right,
            (Self::Ago(left), Self::Ago(right)) => left.fieldwise() == right.fieldwise(),
            _ => false,
        }
    }
}

/// Text that is no start position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PositionError {
    #[error(
        "{0:?} is no position: write start, end, an offset (42), the last so many (-10), or a time \
         (@2026-11-20T10:00, @10:00, @-5m, @yesterday, @tuesday)"
    )]
    Position(String),
    #[error(
        "{0:?} is no time: write @2026-11-20T10:00 (local), @2026-11-20T10:00Z or +01:00, \
         @2026-11-20, @10:00, @-5m, @-1h30m, @today, @yesterday or @tuesday"
    )]
    Time(String),
    #[error("{0:?} is further away than time reaches")]
    OutOfRange(String),
    #[error("{0:?} is a format, not a position: -f {0} shows records so")]
    Format(String),
}

impl FromStr for Position {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        let wrong = || PositionError::Position(text.to_owned());
        let text = text.trim();
        if let Some(time) = text.strip_prefix('@') {
            return Ok(Self::Time(time.parse()?));
        }
        match text {
            "start" | "beginning" | "earliest" => return Ok(Self::Start),
            "end" | "latest" => return Ok(Self::End),
            "json" | "value" | "text" => return Err(PositionError::Format(text.to_owned())),
            _ => {}
        }
        // The standard parser takes a plus sign; here it would only be a slip.
        if text.starts_with('+') {
            return Err(wrong());
        }
        if let Some(last) = text.strip_prefix('-') {
            let digits = last.bytes().all(|byte| byte.is_ascii_digit());
            return digits
                .then(|| last.parse().ok())
                .flatten()
                .map(Self::Last)
                .ok_or_else(wrong);
        }
        text.parse().map(Self::Offset).map_err(|_| wrong())
    }
}

impl FromStr for When {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<Self, PositionError> {
        if let Some(ago) = text.strip_prefix('-') {
            let span: Result<Span, _> = ago.parse();
            return match span {
                Ok(span) if !span.is_negative() => Ok(Self::Ago(span)),
                _ => Err(PositionError::Time(text.to_owned())),
            };
        }
        if let Some(named) = named_day(&text.to_ascii_lowercase()) {
            return Ok(named);
        }
        // A zone or offset first: a civil date and time would read the same text without it.
        if let Ok(exact) = text.parse::<Timestamp>() {
            return Ok(Self::Exact(exact));
        }
        if let Ok(zoned) = text.parse::<Zoned>() {
            return Ok(Self::Exact(zoned.timestamp()));
        }
        if let Ok(time) = text.parse::<Time>()
            && text.contains(':')
            && !text.contains('-')
        {
            return Ok(Self::Today(time));
        }
        if let Ok(civil) = text.parse::<DateTime>() {
            return Ok(Self::Civil(civil));
        }
        if let Ok(date) = text.parse::<Date>() {
            return Ok(Self::Civil(date.into()));
        }
        Err(PositionError::Time(text.to_owned()))
    }
}

fn named_day(name: &str) -> Option<When> {
    Some(match name {
        "now" => When::Ago(Span::new()),
        "today" => When::DaysAgo(0),
        "yesterday" => When::DaysAgo(1),
        "monday" => When::LastWeekday(Weekday::Monday),
        "tuesday" => When::LastWeekday(Weekday::Tuesday),
        "wednesday" => When::LastWeekday(Weekday::Wednesday),
        "thursday" => When::LastWeekday(Weekday::Thursday),
        "friday" => When::LastWeekday(Weekday::Friday),
        "saturday" => When::LastWeekday(Weekday::Saturday),
        "sunday" => When::LastWeekday(Weekday::Sunday),
        _ => return None,
    })
}

impl When {
    /// The moment meant, seen from `now` and its zone. A time that the clocks skip in spring is
    /// taken as the moment just as long after the jump; one that comes twice in autumn as the
    /// first.
    pub(super) fn resolve(&self, now: &Zoned) -> Result<Zoned, PositionError> {
        let zone = now.time_zone();
        let resolved = match self {
            Self::Exact(exact) => Ok(exact.to_zoned(zone.clone())),
            Self::Civil(civil) => civil.to_zoned(zone.clone()),
            Self::Today(time) => now.date().to_datetime(*time).to_zoned(zone.clone()),
            Self::DaysAgo(days) => midnight(now, *days, zone),
            Self::LastWeekday(weekday) => now
                .nth_weekday(-1, *weekday)
                .and_then(|day| day.start_of_day()),
            Self::Ago(span) => now.checked_sub(*span),
        };
        resolved.map_err(|_| PositionError::OutOfRange(format!("{self}")))
    }
}

fn midnight(now: &Zoned, days: i32, zone: &TimeZone) -> Result<Zoned, jiff::Error> {
    let day = now.date().checked_sub(Span::new().try_days(days)?)?;
    day.to_zoned(zone.clone())?.start_of_day()
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(exact) => write!(f, "@{exact}"),
            Self::Civil(civil) => write!(f, "@{civil}"),
            Self::Today(time) => write!(f, "@{time}"),
            Self::DaysAgo(days) => write!(f, "@{days} days ago"),
            Self::LastWeekday(weekday) => write!(f, "@{weekday:?}"),
            Self::Ago(span) => write!(f, "@-{span:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin(text: &str) -> Zoned {
        let zone = TimeZone::get("Europe/Berlin").unwrap();
        text.parse::<DateTime>().unwrap().to_zoned(zone).unwrap()
    }

    #[test]
    fn positions_that_are_no_times() {
        for (text, expected) in [
            ("start", Position::Start),
            ("earliest", Position::Start),
            ("end", Position::End),
            ("0", Position::Offset(0)),
            ("42", Position::Offset(42)),
            ("-1", Position::Last(1)),
            ("-100", Position::Last(100)),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_position_says_what_would_be() {
        for text in [
            "",
            "first",
            "1.5",
            "+3",
            "--3",
            "-",
            "99999999999999999999",
            "2026-11-20",
        ] {
            let error = text.parse::<Position>().unwrap_err();
            assert_eq!(error, PositionError::Position(text.to_owned()));
        }
        for text in [
            "@",
            "@soon",
            "@-",
            "@-5",
            "@--5m",
            "@-5 parsecs",
            "@2026-13-01",
            "@25:00",
        ] {
            let error = text.parse::<Position>().unwrap_err();
            assert!(matches!(error, PositionError::Time(_)), "{text}: {error}");
        }
        let error = "json".parse::<Position>().unwrap_err();
        assert!(error.to_string().contains("-f json"), "{error}");
    }

    #[test]
    fn times_are_local_unless_they_name_an_offset() {
        let now = berlin("2026-11-23T09:30:00");
        for (text, expected) in [
            (
                "@2026-11-20T10:00",
                "2026-11-20T10:00:00+01:00[Europe/Berlin]",
            ),
            (
                "@2026-11-20 10:00",
                "2026-11-20T10:00:00+01:00[Europe/Berlin]",
            ),
            (
                "@2026-07-20T10:00:30",
                "2026-07-20T10:00:30+02:00[Europe/Berlin]",
            ),
            ("@2026-11-20", "2026-11-20T00:00:00+01:00[Europe/Berlin]"),
            (
                "@2026-11-20T10:00Z",
                "2026-11-20T11:00:00+01:00[Europe/Berlin]",
            ),
            (
                "@2026-11-20T10:00-05:00",
                "2026-11-20T16:00:00+01:00[Europe/Berlin]",
            ),
            ("@08:15", "2026-11-23T08:15:00+01:00[Europe/Berlin]"),
            ("@now", "2026-11-23T09:30:00+01:00[Europe/Berlin]"),
            ("@-5m", "2026-11-23T09:25:00+01:00[Europe/Berlin]"),
            ("@-1h30m", "2026-11-23T08:00:00+01:00[Europe/Berlin]"),
            ("@-2 days", "2026-11-21T09:30:00+01:00[Europe/Berlin]"),
            ("@today", "2026-11-23T00:00:00+01:00[Europe/Berlin]"),
            ("@Yesterday", "2026-11-22T00:00:00+01:00[Europe/Berlin]"),
            ("@tuesday", "2026-11-17T00:00:00+01:00[Europe/Berlin]"),
            ("@monday", "2026-11-16T00:00:00+01:00[Europe/Berlin]"),
        ] {
            let Position::Time(when) = text.parse().unwrap() else {
                panic!("{text} is a time");
            };
            assert_eq!(when.resolve(&now).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn days_are_calendar_days_where_clocks_change() {
        let now = berlin("2026-10-25T12:00:00");
        let Position::Time(when) = "@-1d".parse().unwrap() else {
            panic!("a time");
        };
        assert_eq!(
            when.resolve(&now).unwrap().to_string(),
            "2026-10-24T12:00:00+02:00[Europe/Berlin]"
        );
    }

    #[test]
    fn a_time_out_of_reach_is_an_error() {
        let Position::Time(when) = "@-19000y".parse().unwrap() else {
            panic!("a time");
        };
        let resolved = when.resolve(&berlin("2026-11-23T09:30:00"));
        assert!(matches!(resolved, Err(PositionError::OutOfRange(_))));
    }
}
